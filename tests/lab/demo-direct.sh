#!/bin/bash
# demo-direct.sh BIN: demo.sh on the host's own Podman as a plain user, in a home that is removed afterwards.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
archive=${TEROK_LAB_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/terok-lab}/demo.tar
home=$(mktemp -d "${TMPDIR:-/tmp}/terok-demo.XXXXXX")
export HOME=$home XDG_RUNTIME_DIR=$home/run PATH=$1:$PATH
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME XDG_STATE_HOME CONTAINERS_CONF CONTAINERS_STORAGE_CONF
mkdir -m 700 "$home/run"; server=; cd "$home"
clean() { [ -z "$server" ] || kill "$server"; podman rmi --all --force; podman unshare rm -rf "$home/.local/share/containers"; rm -rf "$home"; }
trap 'clean >/dev/null 2>&1 || true' EXIT
podman import -q "$archive" localhost/demo:latest >/dev/null
if curl -sI --max-time 5 -o /dev/null https://example.com/; then
  "$here/demo.sh" example.com https://example.com/ https://example.net/
else
  echo "There is no internet here, so a server on this host's loopback stands in for the allowed name."
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=demo -addext subjectAltName=DNS:host.terok.internal -keyout key.pem -out cert.pem 2>/dev/null
  chmod 644 cert.pem
  for port in $(shuf -i 20000-40000 -n 20); do
    openssl s_server -quiet -www -accept "127.0.0.1:$port" -cert cert.pem -key key.pem >/dev/null 2>&1 & server=$!
    for _ in $(seq 50); do curl -s --cacert cert.pem --resolve "host.terok.internal:$port:127.0.0.1" -o /dev/null "https://host.terok.internal:$port/" && break 2; kill -0 $server 2>/dev/null || break; sleep 0.1; done
  done
  "$here/demo.sh" "host:$port" "https://host.terok.internal:$port/" https://example.net/ "$home/cert.pem"
fi
