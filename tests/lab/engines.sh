#!/bin/bash
# engines.sh docker|containerd…: inside a lab, as root: starts the named daemons, if they do not run yet, and waits until they answer.
# engines.sh reload|restart|stop docker|containerd: as systemctl would, and what an engine keeps alive stays alive.
# engines.sh place: only makes the place where the daemons are; kept COMMAND…: runs COMMAND there.
# They live in a mount namespace of their own with the machine's view of control groups (runc wants it; the lab itself shows crun
# cgroup2 alone), use /var/lib/docker and /var/lib/containerd of this lab, and have localhost/bb and localhost/demo (containerd: in
# the namespaces default and k8s.io); a network of both families with `ctr run --cni`. What they print is in /run/lab/docker.log and /run/lab/containerd.log.
set -e
R=/run/lab DAEMONS=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin # a daemon of systemd's has no other variables
keeper() { cat $R/engines.pid 2>/dev/null; }
kept() { nsenter --mount=/proc/"$(keeper)"/ns/mnt --wd=/ "$@"; }
lives() { [ -s "$R/$1.pid" ] && kill -0 "$(cat "$R/$1.pid")" 2>/dev/null; }

place() { # the mount namespace, once
  [ -n "$(keeper)" ] && kill -0 "$(keeper)" 2>/dev/null && return
  [ -d $R/cgroup ] || { echo "engines: this lab has no control groups to show" >&2; exit 2; }
  rm -f $R/engines.there
  setsid unshare --mount --propagation slave bash -c "
    mount --rbind $R/cgroup /sys/fs/cgroup
    touch $R/engines.there; exec sleep infinity" </dev/null >/dev/null 2>&1 9>&- &
  echo $! > $R/engines.pid
  for _ in $(seq 1200); do [ -e $R/engines.there ] && return; sleep 0.05; done
  echo "engines: no mount namespace for the daemons" >&2; exit 2
}

answers() { case $1 in docker) docker version >/dev/null 2>&1 ;; containerd) ctr version >/dev/null 2>&1 ;; esac; }
start() { # ENGINE: the daemon, until it answers
  local engine=$1 command=(containerd --log-level info)
  lives "$engine" && answers "$engine" && return
  [ -n "$(keeper)" ] || { echo "engines: start it with engines.sh $engine" >&2; exit 2; }
  if [ "$engine" = docker ]; then
    command=(dockerd --containerd /run/containerd/containerd.sock)
    rm -f /run/docker.pid # a dead daemon's, it may name somebody else by now
    # Answers of the fake internet find their way back, whether or not the daemon masquerades.
    ip -n inet route replace 172.16.0.0/12 via 192.0.2.10
    ip -n inet -6 route replace fd00:d::/32 via 2001:db8:ffff::10
  fi
  if [ "$engine" = containerd ]; then
    # The network of who asks for one (ctr run --cni, Kubernetes): a bridge with both families, found before what Podman's package brings.
    mkdir -p /etc/cni/net.d $R/output
    # One that nobody gave an address has that of whichever container's is the lowest.
    [ -e /sys/class/net/cni0 ] || ip link add cni0 address 02:00:00:00:93:01 type bridge
    ip -n inet route replace 10.93.0.0/16 via 192.0.2.10; ip -n inet -6 route replace fd00:d::/32 via 2001:db8:ffff::10
    echo '{"cniVersion": "0.4.0", "name": "lab", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local",
      "ranges": [[{"subnet": "10.93.0.0/16"}], [{"subnet": "fd00:d:c::/64"}]], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
      {"type": "portmap", "capabilities": {"portMappings": true}}]}' > /etc/cni/net.d/10-lab.conflist
  fi
  setsid nsenter --mount=/proc/"$(keeper)"/ns/mnt --wd=/ \
    env -i "PATH=$DAEMONS" "${command[@]}" </dev/null >>"$R/$engine.log" 2>&1 9>&- &
  local pid=$!; echo $pid > "$R/$engine.pid"
  for _ in $(seq 1200); do
    answers "$engine" && return
    kill -0 $pid 2>/dev/null || break
    sleep 0.1
  done
  tail -20 "$R/$engine.log" >&2; echo "engines: $engine does not start" >&2; exit 2
}
stop() { # ENGINE
  lives "$1" || return 0
  kill "$(cat "$R/$1.pid")"
  for _ in $(seq 1200); do lives "$1" || return 0; sleep 0.1; done
  echo "engines: $1 does not stop" >&2; exit 2
}

images() { # ENGINE: each archive once
  local name stamp now n
  for name in bb demo; do
    stamp=/var/lib/$1/.terok-$name; now=$(stat -c %Y:%s "$R/home/$name.tar")
    [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && continue
    case $1 in
      docker) docker import "$R/home/$name.tar" "localhost/$name:latest" >/dev/null ;;
      containerd)
        podman image exists "localhost/$name:latest" || podman import -q "$R/home/$name.tar" "localhost/$name:latest" >/dev/null
        podman save -q --format oci-archive -o "$R/$name.oci" "localhost/$name:latest"
        for n in default k8s.io; do ctr -n $n images import "$R/$name.oci" >/dev/null; done
        rm -f "$R/$name.oci" ;;
    esac
    echo "$now" > "$stamp"
  done
}

leftovers() { # ENGINE: containers of an earlier lab, whose storage this is
  [ ! -e "$R/$1.fresh" ] || return 0
  local all n c
  case $1 in
    docker)
      all=$(docker ps -aq); [ -z "$all" ] || docker rm -f $all >/dev/null
      docker network prune -f >/dev/null ;;
    containerd)
      for n in $(ctr namespaces ls -q); do
        [ "$n" != moby ] || continue
        for c in $(ctr -n "$n" containers ls -q); do ctr -n "$n" containers rm "$c" >/dev/null; done
      done ;;
  esac
  touch "$R/$1.fresh"
}

case ${1-} in
  place) exec 9>$R/engines.lock; flock 9; place; exit ;;
  kept) shift; kept "$@"; exit ;;
  stop) stop "$2"; exit ;;
  reload) kill -HUP "$(cat "$R/$2.pid")"; exit ;;
  restart) stop "$2"; start "$2"; exit ;;
  docker | containerd) ;;
  *) echo "usage: engines.sh docker|containerd…, reload|restart|stop ENGINE, place, kept COMMAND…" >&2; exit 64 ;;
esac
exec 9>$R/engines.lock; flock 9
place
# As with Debian's units, Docker's containers are containerd's.
for engine in containerd "$@"; do start "$engine"; done
for engine in "$@"; do leftovers "$engine"; images "$engine"; done
