#!/bin/bash
# demo.sh ALLOWED REFUSED: one rootless container without a network card, seen from outside and inside. terok and podman are on the PATH.
set -eu
allowed=$1 refused=$2 trust=()
[ ! -e /run/inet/bundle.pem ] || trust=(--volume /run/inet/bundle.pem:/etc/ssl/certs/ca-certificates.crt:ro)
bold= dim= plain=; [ ! -t 1 ] || { bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; }
say() { echo; echo "$bold$*$plain"; }
trap 'podman rm --force --time 0 terok-demo >/dev/null 2>&1 || true; terok uninstall >/dev/null 2>&1 || true' EXIT

say "terok setup: install terok's hooks for $(id -un)"
terok setup

say "A rootless container without a network card, allowed to reach $allowed and nothing else:"
echo "$dim\$ podman run --network none --annotation terok.shield.allow=$allowed IMAGE …$plain"
podman run --name terok-demo --network none --annotation "terok.shield.allow=$allowed" "${trust[@]}" localhost/demo:latest sh -c '
  echo "its network cards: $(ls /sys/class/net | grep -v ^lo$ | wc -l)"
  try() { printf "%-34s " "$1"; curl -sS --max-time 10 -o /dev/null -w "HTTP %{http_code} over TLS, certificate verified, in %{time_total} s\n" "$1" 2>/tmp/why || sed "s/^/refused: /" /tmp/why; }
  try "https://$1/"
  try "https://$2/"
  try "https://203.0.113.66/"' sh "$allowed" "$refused"

say "What terok wrote down about it (terok audit terok-demo):"
terok audit terok-demo
say "Try it: cargo xtask lab --rootless -- bash"
