# machine.sh COMMAND…: second half of boot.sh, inside the lab's root: users, configuration, network, images; then COMMAND.
umount -l /run/.old; mount --make-rshared /
export PATH=/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TEROK_LAB=1
unset XDG_RUNTIME_DIR XDG_CONFIG_HOME XDG_DATA_HOME XDG_CACHE_HOME XDG_STATE_HOME DBUS_SESSION_BUS_ADDRESS CONTAINERS_CONF CONTAINERS_STORAGE_CONF
umask 022; cd /

# The rootless user, without a trace on the host.
for f in passwd group shadow; do sed -i -e '/^tester:/d' -e '/^[^:]*:[^:]*:1001:/d' /etc/$f; done
echo 'tester:x:1001:1001::/run/home/tester:/bin/bash' >> /etc/passwd
echo 'tester:x:1001:' >> /etc/group
echo 'tester:*:19000:0:99999:7:::' >> /etc/shadow
# Whom git logs in as, at the fake github.com, and somebody else with the same rights there.
for f in passwd group shadow; do sed -i -e '/^git:/d' -e '/^deploy:/d' /etc/$f; done
echo 'deploy:x:1004:1003::/run/inet/home-git:/usr/bin/git-shell' >> /etc/passwd; echo 'deploy:*:19000:0:99999:7:::' >> /etc/shadow
echo 'git:x:1003:1003::/run/inet/home-git:/usr/bin/git-shell' >> /etc/passwd; echo 'git:x:1003:' >> /etc/group; echo 'git:*:19000:0:99999:7:::' >> /etc/shadow
# Whose the users of root's containers with users of their own are (--userns=auto).
printf '%s:65536\n' tester:100000 containers:200000 | tee /etc/subuid > /etc/subgid

# Machines without CAP_SYS_RESOURCE and without usable cgroup controllers: defaults that Podman can keep everywhere.
mkdir -p /etc/containers; rm -rf /etc/containers/containers.conf.d
cat > /etc/containers/containers.conf <<X
[containers]
default_ulimits = ["nofile=1024:1024","nproc=1024:1024"]
cgroups = "disabled"
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime_supports_nocgroup = ["crun","krun","terok-shim"]
runtime_supports_nocgroups = ["crun","krun","terok-shim"]
X
storage() { printf '[storage]\ndriver = "overlay"\nrunroot = "%s"\ngraphroot = "%s"\n' "$1" "$2"; }
storage /run/containers/storage /var/lib/containers/storage > /etc/containers/storage.conf
install -d -o tester -g tester /run/home/tester/.config /run/home/tester/.config/containers
storage /run/user/1001/containers /run/home/tester/.local/share/containers/storage > /run/home/tester/.config/containers/storage.conf
# Podman 4 hides the parent of /var/lib/cni and the user's home below /run from itself when it sets up a rootless bridge.
install -d /var/lib/cni; install -d -o tester -g tester /var/lib/lab/networks
printf '[network]\nnetwork_config_dir = "/var/lib/lab/networks"\n' > /run/home/tester/.config/containers/containers.conf
[ -e /etc/containers/policy.json ] || echo '{"default":[{"type":"insecureAcceptAnything"}]}' > /etc/containers/policy.json
[ ! -c /dev/net/tun ] || chmod 666 /dev/net/tun

hostname lab; ip link set lo up
/run/lab/scripts/inet.sh up
# With the workload image both users are served: tests start containers as either.
[ "$LAB_USER" = tester ] && [ -z "$LAB_IMAGE" ] || /run/lab/scripts/load-images.sh "${LAB_IMAGE:+all}"
[ "$LAB_USER" = root ] && [ -z "$LAB_IMAGE" ] || /run/lab/scripts/as-tester /run/lab/scripts/load-images.sh "${LAB_IMAGE:+all}"
set +e
if [ "$LAB_USER" = tester ]; then
  cd /run/home/tester; /run/lab/scripts/as-tester "$@"
else
  cd "$LAB_CWD" 2>/dev/null || cd /root
  "$@"
fi
exit $?
