#!/bin/bash
# demo.sh RULE URL REFUSED-URL [TRUST]: one rootless container without a network card that RULE lets reach URL; TRUST is a file of
# authorities for its TLS. terok and podman are on the PATH.
set -eu
rule=$1 url=$2 refused=$3 trust=()
[ -z "${4-}" ] || trust=(--volume "$4:/etc/ssl/certs/ca-certificates.crt:ro")
bold= dim= plain=; [ ! -t 1 ] || { bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; }
say() { echo; echo "$bold$*$plain"; }
trap 'podman rm --force --time 0 terok-demo >/dev/null 2>&1 || true; terok uninstall >/dev/null 2>&1 || true' EXIT

say "Installing terok's hooks for $(id -un)"
echo "$dim\$ terok setup$plain"; terok setup | grep -v -e '^wrote ' -e '^to type '

say "A rootless container without a network card that may reach $rule, and nothing else"
echo "$dim\$ podman run --network none --annotation terok.shield.allow=$rule IMAGE …$plain"
set +e
podman run --name terok-demo --network none --annotation "terok.shield.allow=$rule" "${trust[@]}" localhost/demo:latest sh -c '
  echo "network cards inside: $(ls /sys/class/net | grep -vc "^lo$")"
  ok=0
  expect() { # allowed|refused URL
    if answer=$(curl -sS --max-time 10 -o /dev/null -w "answers %{http_code} over verified TLS after %{time_total} s" "$2" 2>&1); then got=allowed; else got=refused; fi
    answer=${answer%%answers 000*}; answer=$(echo $answer)
    printf "%-8s %-32s %s\n" "$got" "$2" "$answer"
    [ "$got" = "$1" ] || ok=1
  }
  expect allowed "$1"; expect refused "$2"; expect refused https://203.0.113.66/
  exit $ok' sh "$url" "$refused"
code=$?
set -e

say "What terok wrote down about it"
echo "$dim\$ terok audit terok-demo$plain"; terok audit terok-demo
if [ $code != 0 ]; then say "This is not what was to be shown (exit code $code): terok doctor says what is missing."; exit 1; fi
