#!/bin/bash
# demo-direct.sh BIN: demo.sh on the host's own Podman as a plain user, in a home that is removed afterwards.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
archive=${TEROK_LAB_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/terok-lab}/demo.tar
home=$(mktemp -d "${TMPDIR:-/tmp}/terok-demo.XXXXXX")
export HOME=$home XDG_RUNTIME_DIR=$home/run PATH=$1:$PATH
unset XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME XDG_STATE_HOME CONTAINERS_CONF CONTAINERS_STORAGE_CONF
mkdir -m 700 "$home/run"
clean() { podman rm --all --force --time 0; podman rmi --all --force; podman unshare rm -rf "$home/.local/share/containers"; rm -rf "$home"; }
trap 'clean >/dev/null 2>&1 || true' EXIT
podman import -q "$archive" localhost/demo:latest >/dev/null
if curl -sI --max-time 5 -o /dev/null https://example.com/; then
  "$here/demo.sh" example.com example.net
else
  echo "There is no internet here: expect the allowed name to be allowed, but not to answer. cargo xtask demo --lab (as root) brings an internet of its own."
  "$here/demo.sh" example.com example.net
fi
