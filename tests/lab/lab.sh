#!/bin/bash
# lab.sh [--podman5] [--rootless] [--image] COMMAND…: runs COMMAND in a throw-away machine (README.md). Nothing of the host's
# mounts, network, /etc, /usr or container storage changes, and the machine ends with everything that was started in it.
# Needs root and a finished prepare.sh. Environment: TEROK_LAB_HOME, TEROK_LAB_DIST (programs to put on the PATH).
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export LAB_SCRIPTS=$here LAB_HOME=${TEROK_LAB_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/terok-lab}
export LAB_DIST=${TEROK_LAB_DIST:-} LAB_ROOT= LAB_USER=root LAB_IMAGE= LAB_CWD=$PWD
kind=state
while [ $# -gt 0 ]; do
  case $1 in
    --podman5) LAB_ROOT=$LAB_HOME/trixie kind=state5 ;;
    --rootless) LAB_USER=tester ;;
    --image) LAB_IMAGE=1 ;;
    *) break ;;
  esac
  shift
done
[ "$(id -u)" = 0 ] || { echo "lab: needs root" >&2; exit 2; }
[ -s "$LAB_HOME/bb.tar" ] || { echo "lab: not prepared: run tests/lab/prepare.sh" >&2; exit 2; }
[ -z "$LAB_ROOT" ] || [ -e "$LAB_ROOT/.ready" ] || { echo "lab: no Debian 13 root: run tests/lab/prepare.sh --podman5" >&2; exit 2; }

# Container storage outlives a run, so that images are imported once; labs that run side by side each take one.
storage() { export LAB_STATE=$LAB_HOME/$kind-$1; mkdir -p "$LAB_STATE"/{root,tester,docker,containerd,mnt}; exec {lock}>"$LAB_STATE/lock"; }
locked=
for n in 1 2 3 4; do
  storage $n
  if flock -n "$lock"; then locked=1; break; fi
  exec {lock}>&-
done
[ -n "$locked" ] || { echo "lab: four labs are running, waiting for the first to end" >&2; storage 1; flock "$lock"; }

# unshare ignores SIGINT and SIGTERM while it waits; its death takes the whole pid namespace along.
setpriv --pdeathsig KILL unshare -m -n -p -f -i -u --kill-child=KILL --propagation private "$here/boot.sh" "$@" <&0 {lock}>&- &
machine=$!
trap 'kill -KILL $machine 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
set +e
wait $machine
ended=$?

# Control groups are the host's, and outlive the machine in which engines made them; empty ones go with the last lab.
tidy() {
  local other of name
  for other in "$LAB_HOME"/state*-*/lock; do
    [ "$other" -ef "$LAB_STATE/lock" ] && continue
    exec {of}>"$other"; flock -n "$of" || return
  done
  # The host's own daemons use the same names.
  pgrep -x dockerd >/dev/null || pgrep -x containerd >/dev/null && return
  for name in docker default k8s.io libpod_parent 'buildah-buildah*' 'test-tmp*'; do
    find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -name "$name" -type d -exec find {} -depth -type d -exec rmdir {} \; \; 2>/dev/null
  done
}
tidy
exit $ended
