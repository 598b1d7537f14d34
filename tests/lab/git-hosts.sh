#!/bin/bash
# git-hosts.sh FOLDER: two real sshd in the fake internet, github.com and ssh2.example.com, each with a host key of its own. The user is git
# (or deploy), whose home FOLDER/home-git has lab/repo.git (the same that https://github.com serves); keys in FOLDER/git_keys may log in.
# The host keys are in the known_hosts of both users of the lab and, for containers, in FOLDER/git_hosts.
set -e
I=$1; H=$I/home-git; cd "$I"
inside() { nsenter --net=/run/netns/inet "$@"; }
mkdir -p /run/sshd "$H/lab"; : > git_keys; : > git_hosts; chmod 644 git_keys git_hosts
cp -r "$I/www/git/repo.git" "$H/lab/repo.git"
git -C "$H/lab/repo.git" config core.sharedRepository 0777; git -C "$H/lab/repo.git" config receive.denyNonFastForwards false
chown -R git:git "$H"; chmod -R a+rwX "$H/lab"
serve() { # NAME IPV4 IPV6
  ssh-keygen -q -t ed25519 -N '' -C "$1" -f "host_$1"; ssh-keygen -q -t ecdsa -N '' -C "$1" -f "host_ecdsa_$1"
  cat > "sshd_$1" <<C
ListenAddress $2:22
ListenAddress [$3]:22
HostKey $I/host_$1
HostKey $I/host_ecdsa_$1
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
AuthorizedKeysFile $I/git_keys
AllowUsers git deploy
LogLevel VERBOSE
MaxStartups 200
C
  inside "$(command -v sshd)" -D -e -f "$I/sshd_$1" </dev/null >"$I/sshd_$1.log" 2>&1 &
  local key; for key in host_$1.pub host_ecdsa_$1.pub; do echo "$1 $(cut -d' ' -f1,2 "$key")" >> git_hosts; done
}
serve github.com 198.51.100.62 2001:db8:1::62
serve ssh2.example.com 198.51.100.23 2001:db8:1::23
install -d -m 700 /root/.ssh; cat git_hosts >> /root/.ssh/known_hosts
install -d -m 700 -o tester -g tester /run/home/tester/.ssh; install -m 600 -o tester -g tester git_hosts /run/home/tester/.ssh/known_hosts
