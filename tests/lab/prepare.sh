#!/bin/bash
# prepare.sh [--image] [--podman5] [--bench] [--direct]: Debian packages and images of the lab, kept in TEROK_LAB_HOME; says nothing when all is there.
# --direct: only what containers on the host's own Podman need, without root where nothing is missing. --image: the workload image with real tools; --podman5: a Debian 13 root with Podman 5;
# --bench: what terok is measured against. Needs root, and a Debian mirror the first time.
set -eu
home=${TEROK_LAB_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/terok-lab}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export DEBIAN_FRONTEND=noninteractive
say() { echo "lab: $*" >&2; }
loudly() { local log; log=$(mktemp); "$@" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; say "failed: $*"; exit 1; }; rm -f "$log"; } # output only if it fails
image= podman5= bench= direct=
for a in "$@"; do case $a in --image) image=1 ;; --podman5) podman5=1 ;; --bench) bench=1 ;; --direct) direct=1 ;; *) say "unknown option $a"; exit 64 ;; esac; done
mkdir -p "$home"; chmod 755 "$home"
exec 9>"$home/prepare.lock"; flock 9

need=(podman crun runc conmon catatonit netavark aardvark-dns slirp4netns uidmap nftables fuse-overlayfs busybox-static dnsmasq-base dropbear-bin
      openssh-server openssh-client openssl git curl jq iproute2 python3-minimal python3 nginx-light ca-certificates mmdebstrap debootstrap procps util-linux dpkg-dev strace
      libmnl-dev libnftnl-dev libseccomp-dev pkg-config build-essential)
[ -z "$bench" ] || need+=(mitmproxy)
[ -z "$direct" ] || need=(podman crun uidmap busybox-static curl ca-certificates openssl)
# Docker and containerd may well be there from elsewhere, and their packages do not go together.
if [ -z "$direct" ]; then command -v dockerd >/dev/null || need+=(docker.io); command -v containerd >/dev/null || need+=(containerd); need+=(iptables containernetworking-plugins); fi
missing=()
for p in "${need[@]}"; do dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p"); done
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" = 0 ] || { say "these Debian packages are missing: ${missing[*]}; install them as root: apt-get install ${missing[*]}"; exit 2; }
  say "installing Debian packages: ${missing[*]}"
  # nginx and sshd must not start on the host: the lab runs its own.
  policy=; if [ ! -e /usr/sbin/policy-rc.d ]; then policy=1; printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; fi
  trap '[ -z "$policy" ] || rm -f /usr/sbin/policy-rc.d' EXIT
  loudly apt-get update -q
  loudly apt-get install -y -q --no-install-recommends "${missing[@]}"
  # Nor do daemons that nobody asked for start with the machine.
  case " ${missing[*]} " in *" docker.io "*) systemctl -q disable docker.service docker.socket 2>/dev/null || true ;; esac
  case " ${missing[*]} " in *" containerd "*) systemctl -q disable containerd.service 2>/dev/null || true ;; esac
  [ -z "$policy" ] || rm -f /usr/sbin/policy-rc.d; trap - EXIT
fi

# An archive is rebuilt when its recipe changed.
fresh() { [ -s "$home/$1.tar" ] && [ "$(cat "$home/$1.recipe" 2>/dev/null)" = "$2" ]; }
keep() { mv "$home/$1.tar.new" "$home/$1.tar"; chmod 644 "$home/$1.tar"; echo "$2" > "$home/$1.recipe"; }
skeleton() { mkdir -p "$1"/{bin,etc,tmp,proc,dev,sys,root}; chmod 755 "$1"; chmod 1777 "$1/tmp"; echo 'root:x:0:0:root:/root:/bin/sh' > "$1/etc/passwd"; echo 'root:x:0:' > "$1/etc/group"
  cp "$(command -v busybox)" "$1/bin/busybox"; local a; for a in $("$1/bin/busybox" --list); do [ "$a" = busybox ] || ln -sf busybox "$1/bin/$a"; done; }

if ! fresh bb 1; then # busybox, 2 MB
  r=$(mktemp -d); skeleton "$r"; tar -C "$r" --owner=0 --group=0 -c . > "$home/bb.tar.new"; keep bb 1; rm -rf "$r"
fi
if ! fresh demo 1; then # busybox and this host's own curl with its libraries and certificates
  r=$(mktemp -d); skeleton "$r"; mkdir -p "$r/usr/bin" "$r/etc/ssl/certs"
  cp "$(command -v curl)" "$r/usr/bin/curl"; cp -L /etc/ssl/certs/ca-certificates.crt "$r/etc/ssl/certs/"
  ldd "$(command -v curl)" | grep -o '/[^ ]*' | while read -r lib; do mkdir -p "$r$(dirname "$lib")"; cp -L "$lib" "$r$lib"; done
  for lib in libnss_dns.so.2 libnss_files.so.2; do f=$(ldconfig -p | awk -v l=$lib '$1 == l { print $NF; exit }'); [ -z "$f" ] || { mkdir -p "$r$(dirname "$f")"; cp -L "$f" "$r$f"; }; done
  echo 'hosts: files dns' > "$r/etc/nsswitch.conf"
  tar -C "$r" --owner=0 --group=0 -c . > "$home/demo.tar.new"; keep demo 1; rm -rf "$r"
fi

mirror() { apt-get indextargets --format '$(REPO_URI)' | grep -v -e security -e backports | head -1; }
# crun's own tests, from the Debian source of the crun that is here: they run on any OCI runtime.
if [ -z "$direct" ] && [ ! -e "$home/crun-tests/.ready" ]; then
  say "fetching crun's own tests"
  . /etc/os-release; r=$(mktemp -d); mkdir -p "$r/lists/partial" "$r/got"
  echo "deb-src $(mirror) $VERSION_CODENAME main" > "$r/sources.list"
  src() { (cd "$r/got" && apt-get -q -o Dir::Etc::SourceList="$r/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$r/lists" -o APT::Sandbox::User=root "$@"); }
  if src update >"$r/log" 2>&1 && src source --download-only crun >>"$r/log" 2>&1; then
    tar -C "$r/got" --strip-components=1 -xf "$r"/got/crun_*.orig.tar.xz --wildcards '*/tests/*'
    : > "$r/got/config.h"; loudly gcc -O1 -static -w -DHAVE_ERROR_H=1 -I"$r/got" "$r/got/tests/init.c" -o "$r/got/tests/init"
    rm -rf "$home/crun-tests"; mkdir "$home/crun-tests"; cp "$r"/got/tests/*.py "$r/got/tests/init" "$home/crun-tests/"; touch "$home/crun-tests/.ready"
  else
    say "no source of crun to be had, its tests are left out: $(tail -1 "$r/log")"
  fi
  rm -rf "$r"
fi

if [ -z "$direct" ] && [ ! "$home/marks.so" -nt "$here/marks.c" ]; then
  loudly gcc -shared -fPIC -o "$home/marks.so.new" "$here/marks.c"; mv "$home/marks.so.new" "$home/marks.so"
fi

tools=ca-certificates,curl,git,openssh-client,python3,python3-pip,python3-requests,python3-httpx,python3-h2,nodejs,iproute2,iputils-ping,bind9-dnsutils,ncat
if [ -n "$image" ] && ! fresh wl "$tools"; then
  say "building the workload image (a Debian with $tools)"
  . /etc/os-release
  loudly mmdebstrap -q --format=tar --variant=minbase --include="$tools" --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$VERSION_CODENAME" "$home/wl.tar.new" "$(mirror)"
  keep wl "$tools"
fi
if [ -n "$podman5" ] && ! { [ -e "$home/trixie/.ready" ] && [ -e "$home/trixie/usr/bin/catatonit" ] && [ -e "$home/trixie/usr/sbin/sshd" ] && [ -e "$home/trixie/usr/sbin/dockerd" ] && [ -e "$home/trixie/usr/lib/cni/bridge" ]; }; then
  say "building a Debian 13 root with Podman 5 and Docker 26 (about 1.3 GB)"
  loudly unshare -m --propagation private "$here/trixie.sh" "$home/trixie" "$(mirror)"
fi
