#!/bin/bash
# boot.sh COMMAND…: pid 1 of the lab, started by lab.sh in new namespaces: builds the machine around itself, then runs COMMAND.
set -e
T=$LAB_STATE/mnt
private() { # a folder of the host under a throw-away overlay
  local n=$T/run/.overlay/${1//\//_}
  mkdir -p "$n/u" "$n/w"; chown --reference="$1" "$n/u"; chmod --reference="$1" "$n/u"
  mount -t overlay overlay -o "lowerdir=$1,upperdir=$n/u,workdir=$n/w" "$T$1"
}
shown() { mkdir -p "$T$2"; mount --bind "$1" "$T$2"; } # HOST-FOLDER LAB-FOLDER

if [ -n "$LAB_ROOT" ]; then
  mount -t tmpfs tmpfs "$T"; mkdir "$T"/{u,w,m}
  mount -t overlay overlay -o "lowerdir=$LAB_ROOT,upperdir=$T/u,workdir=$T/w" "$T/m"
  T=$T/m
else
  mount --rbind / "$T"; mount --make-rprivate "$T"
fi
mount -t proc proc "$T/proc"
# Hybrid hierarchies (v1 and v2 side by side) are of no use to crun: the lab has cgroup2 alone.
[ -n "$LAB_ROOT" ] || umount -R "$T/sys/fs/cgroup" 2>/dev/null || true
mount -t sysfs sysfs "$T/sys"; mount -t cgroup2 none "$T/sys/fs/cgroup"
[ -z "$LAB_ROOT" ] || mount --rbind /dev "$T/dev"
mount -t tmpfs -o mode=1777 tmpfs "$T/dev/shm"
mount -t tmpfs -o mode=755 tmpfs "$T/run"
mkdir -p "$T"/run/{lock,netns,home,user/0,.overlay}
install -d -m 700 -o 1001 -g 1001 "$T/run/user/1001" "$T/run/home/tester"
chmod 700 "$T/run/user/0"
mount -t tmpfs tmpfs "$T/run/.overlay"
shown "$LAB_HOME" /run/lab/home
shown "$LAB_SCRIPTS" /run/lab/scripts
# Docker and containerd start their containers with runc, for which the hierarchies must be as the machine has them (engines.sh).
mkdir "$T/run/lab/cgroup"; mount --rbind /sys/fs/cgroup "$T/run/lab/cgroup"
[ -z "$LAB_DIST" ] || shown "$LAB_DIST" /run/lab/bin
if [ -n "$LAB_ROOT" ]; then
  for d in ${TEROK_LAB_SHOW:-}; do shown "$d" "$d"; done
else
  for d in /etc /usr /var /root; do private $d; done
fi
shown "$LAB_STATE/root" /var/lib/containers
shown "$LAB_STATE/docker" /var/lib/docker; shown "$LAB_STATE/containerd" /var/lib/containerd
shown "$LAB_STATE/tester" /run/home/tester/.local/share/containers
chown 1001:1001 "$LAB_STATE/tester" "$T"/run/home/tester/.local{,/share}

cd "$T"; mkdir -p run/.old; pivot_root . run/.old
exec chroot . /bin/bash -e /run/lab/scripts/machine.sh "$@"
