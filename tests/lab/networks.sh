#!/bin/bash
# networks.sh: inside a lab, as root or tester: Podman networks of this user. n is 90 for root and 91 for tester.
#   duo, duo2   10.n.1.0/24 and fdn:1::/64, 10.n.2.0/24 and fdn:2::/64, with names (aardvark-dns)
#   six         fdn:6::/64 alone      inner   10.n.9.0/24, internal: no way out
set -e
n=90; [ "$(id -u)" = 0 ] || n=91
have() { podman network exists "$1"; }
have duo || podman network create --ipv6 --subnet 10.$n.1.0/24 --subnet fd$n:1::/64 duo >/dev/null
have duo2 || podman network create --ipv6 --subnet 10.$n.2.0/24 --subnet fd$n:2::/64 duo2 >/dev/null
have six || podman network create --subnet fd$n:6::/64 six >/dev/null
have inner || podman network create --internal --subnet 10.$n.9.0/24 inner >/dev/null
# A bridge is made with the first container on it and goes with the last, and takes the lowest address of whoever is on it where nobody (udev, on
# machines that have it) has set one: containers that come and go would send to an address that is nobody's any more.
podman container exists anchor || podman create --name anchor --network duo --network duo2 --network six --network inner localhost/bb sleep 1000000 >/dev/null
podman start anchor >/dev/null
bridges=$(for n in duo duo2 six inner; do podman network inspect --format '{{.NetworkInterface}}' $n; done)
keep='for b in "$@"; do ip link set dev "$b" address "$(ip -o link show dev "$b" | grep -o "ether [^ ]*" | cut -d" " -f2)"; done'
if [ "$(id -u)" = 0 ]; then sh -ec "$keep" sh $bridges; exit; fi
# The namespace in which a user's bridges are goes with the last container on one, and with a reboot. slirp4netns gives it no route to the outside's
# IPv6 once it forwards.
podman unshare --rootless-netns sh -ec "$keep" sh $bridges
podman unshare --rootless-netns sh -c '
  ip -6 route | grep -q ^default && exit 0
  ip -6 addr add fd00::77/64 dev tap0 nodad; ip -6 route add default via fd00::2 dev tap0'
# Tests measure in milliseconds what gets through: the first packets of the way out are none of theirs.
podman unshare --rootless-netns bash -c '
  for address in 198.51.100.10 2001:db8:1::10; do
    for n in 1 2 3 4 5 6 7 8 9 10; do timeout 2 bash -c "exec 3<>/dev/tcp/$0/80" "$address" 2>/dev/null && break; sleep 0.2; done
  done'
