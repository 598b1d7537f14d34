#!/bin/bash
# cri.sh config | restart: inside a lab, as root: a containerd as a Kubernetes node has it, with CRI and a CNI bridge, beside the one
# of engines.sh. config: /etc/containerd/config.toml and the network as a node's packages would leave them. restart: the daemon anew,
# once it answers; containers live on. Its socket is /run/lab/cri.sock, its log /run/lab/cri.log; localhost/bb, demo and pause are there.
set -e
R=/run/lab
exec 9>$R/cri.lock; flock 9
config() {
  mkdir -p /etc/containerd $R/cni $R/cri-logs
  # Without CAP_SYS_RESOURCE a sandbox cannot have the score that CRI gives it.
  cat > /etc/containerd/config.toml <<X
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    # Nothing is pulled here.
    sandbox_image = "localhost/pause:latest"
    restrict_oom_score_adj = true
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/run/lab/cni"
X
  cat > $R/cni/10-pods.conflist <<X
{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cri0", "isGateway": true, "ipam": {"type": "host-local",
  "ranges": [[{"subnet": "172.31.77.0/24"}], [{"subnet": "fd00:d:77::/64"}]],
  "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}
X
  # A bridge that nobody gave an address has that of whichever pod's is the lowest.
  [ -e /sys/class/net/cri0 ] || ip link add cri0 address 02:00:00:00:77:01 type bridge
  # Answers of the fake internet find their way back; a firewall that Docker may have made lets pods through.
  ip -n inet route replace 172.31.77.0/24 via 192.0.2.10
  ip -n inet -6 route replace fd00:d:77::/64 via 2001:db8:ffff::10
  sysctl -q -w net.ipv6.conf.all.forwarding=1 || true
  local t; for t in iptables ip6tables; do ! command -v $t >/dev/null || for d in -i -o; do $t -C FORWARD $d cri0 -j ACCEPT 2>/dev/null || $t -I FORWARD $d cri0 -j ACCEPT; done; done
}
answers() { ctr -a $R/cri.sock -n k8s.io version >/dev/null 2>&1; }
lives() { [ -s $R/cri.pid ] && kill -0 "$(cat $R/cri.pid)" 2>/dev/null; }
images() {
  local name
  for name in bb demo pause; do
    ctr -a $R/cri.sock -n k8s.io images check 2>/dev/null | grep -q "^localhost/$name:latest" && continue
    [ $name != pause ] || podman import -q --change 'ENTRYPOINT ["/bin/sleep", "2147483647"]' $R/home/bb.tar localhost/pause:latest >/dev/null
    podman save -q --format oci-archive -o $R/$name.cri "localhost/$name:latest"
    ctr -a $R/cri.sock -n k8s.io images import $R/$name.cri >/dev/null; rm -f $R/$name.cri
  done
}
restart() {
  if lives; then kill "$(cat $R/cri.pid)"; for _ in $(seq 1200); do lives || break; sleep 0.1; done; fi
  /run/lab/scripts/engines.sh place
  setsid nsenter --mount=/proc/"$(cat $R/engines.pid)"/ns/mnt --wd=/ env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    containerd --root /var/lib/containerd/cri --state $R/cri --address $R/cri.sock </dev/null >>$R/cri.log 2>&1 9>&- &
  echo $! > $R/cri.pid
  for _ in $(seq 1200); do
    if answers; then images; return; fi
    lives || break
    sleep 0.1
  done
  tail -20 $R/cri.log >&2; echo "cri: containerd does not start" >&2; exit 2
}
case ${1-} in config) config ;; restart) restart ;; *) echo "usage: cri.sh config|restart" >&2; exit 64 ;; esac
