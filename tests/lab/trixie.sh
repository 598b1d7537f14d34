#!/bin/bash
# trixie.sh FOLDER MIRROR: a Debian 13 root with Podman 5, Docker and containerd in FOLDER; run by prepare.sh in a mount namespace of its own.
set -eu
T=$1
[ -x "$T/usr/bin/apt-get" ] || debootstrap --variant=minbase --include=ca-certificates,iproute2,procps,util-linux,mount,login,passwd trixie "$T" "$2"
printf '#!/bin/sh\nexit 101\n' > "$T/usr/sbin/policy-rc.d"; chmod 755 "$T/usr/sbin/policy-rc.d"
mount -t proc proc "$T/proc"; mount --rbind /dev "$T/dev"; mount --make-rslave "$T/dev"
cp -L /etc/resolv.conf "$T/etc/resolv.conf"
chroot "$T" apt-get update -q
chroot "$T" apt-get install -y -q --no-install-recommends podman crun runc conmon catatonit netavark aardvark-dns passt slirp4netns uidmap nftables fuse-overlayfs \
  busybox-static dnsmasq-base dropbear-bin openssh-server openssh-client openssl git curl jq python3 nginx-light dpkg-dev strace \
  docker.io docker-cli containerd iptables containernetworking-plugins
chroot "$T" apt-get clean
touch "$T/.ready"
