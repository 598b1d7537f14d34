#!/bin/bash
# inet.sh up: inside a lab, a fake internet behind one veth. The lab is "the host": 192.0.2.10, 2001:db8:ffff::10.
#   198.51.100.0/24, 198.52.0.0/16, 2001:db8:1::/64   the good part: every address answers (names: dns.py)
#   203.0.113.0/24, 203.1.0.0/16, 2001:db8:bad::/64   the bad part: every address answers, too; a hostile DNS server at 203.0.113.53
#   10.66.0.0/16, 169.254.169.254       private and metadata addresses that answer, so that reaching them would show
# What the servers really saw is in /run/inet/seen.jsonl; on the host itself (ports 80, 443, 8000) in the same file with "on":"host".
set -e
I=/run/inet; S=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p $I; chmod 755 $I; : > $I/seen.jsonl; chmod 644 $I/seen.jsonl
ip netns add inet
ip link add up0 type veth peer name gw0 netns inet
ip addr add 192.0.2.10/24 dev up0; ip -6 addr add 2001:db8:ffff::10/64 dev up0 nodad; ip link set up0 up
ip -n inet addr add 192.0.2.1/24 dev gw0; ip -n inet -6 addr add 2001:db8:ffff::1/64 dev gw0 nodad
ip -n inet link set gw0 up; ip -n inet link set lo up
for p in 198.51.100.0/24 198.52.0.0/16 203.0.113.0/24 203.1.0.0/16 10.66.0.0/16 169.254.169.254/32; do ip -n inet route add local $p dev lo; done
for p in 2001:db8:1::/64 2001:db8:bad::/64; do ip -n inet -6 route add local $p dev lo; done
# IPv6 servers that bind one address need it on a link; a route is not enough.
for a in 2001:db8:1::53 2001:db8:1::22 2001:db8:1::23 2001:db8:1::62 2001:db8:bad::53; do ip -n inet -6 addr add $a/128 dev lo nodad; done
# UDP answers leave from the address that was asked, one of a routed block.
nsenter --net=/run/netns/inet sh -c 'echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind'
# slirp4netns forwards pings by the host's own ping sockets.
echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range
ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8:ffff::1
echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
rm -f /etc/resolv.conf; printf 'nameserver 198.51.100.53\n' > /etc/resolv.conf

cd $I
{
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj '/CN=terok lab CA' -keyout ca.key -out ca.pem
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=api.example.com -keyout server.key -out server.csr
  printf 'subjectAltName=DNS:*.example.com,DNS:*.api.example.com,DNS:*.any.example.com,DNS:*.wild.example.com,DNS:*.example.net,DNS:*.example.org,DNS:api.anthropic.com,DNS:console.anthropic.com,DNS:api.openai.com,DNS:github.com,DNS:*.github.com,DNS:api.mistral.ai,DNS:openrouter.ai,DNS:gitlab.com,IP:198.51.100.10,IP:203.0.113.66\n' > san
  openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile san -out server.pem
} >/dev/null 2>&1
chmod 644 ca.pem
cat /etc/ssl/certs/ca-certificates.crt ca.pem > bundle.pem 2>/dev/null || cp ca.pem bundle.pem
# What is on the host trusts the lab's authority, as it would that of a company.
cat ca.pem >> /etc/ssl/certs/ca-certificates.crt
"$S/content.sh" $I/www

inside() { nsenter --net=/run/netns/inet "$@"; }
mkfifo $I/ready; exec 8<>$I/ready
inside python3 "$S/dns.py" $I/seen.jsonl >$I/dns.log 2>&1 8>&- &
inside python3 "$S/servers.py" inet $I/seen.jsonl $I >$I/servers.log 2>&1 8>&- &
python3 "$S/servers.py" host $I/seen.jsonl $I >$I/host.log 2>&1 8>&- &
# sshd: the key in client_key logs in as root and runs commands.
[ -e hostkey ] || dropbearkey -t ed25519 -f hostkey >/dev/null 2>&1
ssh-keygen -q -t ed25519 -N '' -C lab -f client_key; install -m 644 client_key client_key.shared; chmod 644 client_key.pub
install -d -m 700 /root/.ssh; cp client_key.pub /root/.ssh/authorized_keys; chmod 600 /root/.ssh/authorized_keys
dropbearkey -y -f hostkey | grep ^ssh- | cut -d' ' -f1,2 | sed 's/^/ssh.example.com /' > known_hosts
inside dropbear -F -E -s -r hostkey -p 198.51.100.22:22 -p '[2001:db8:1::22]:22' -p 203.0.113.66:22 >$I/ssh.log 2>&1 8>&- &
"$S/git-hosts.sh" $I >$I/sshd.log 2>&1 8>&-
# The fast server: 1 GiB of zeros (a hole) over HTTP 8081 and HTTPS 8444.
truncate -s 1G $I/www/static/big.bin
cat > nginx.conf <<X
worker_processes 1; daemon off; error_log $I/nginx.log; pid $I/nginx.pid;
events { worker_connections 2048; }
http {
  access_log off; sendfile on; keepalive_requests 100000000; client_body_temp_path $I; proxy_temp_path $I; fastcgi_temp_path $I; uwsgi_temp_path $I; scgi_temp_path $I;
  server { listen 8081; listen [::]:8081; listen 8444 ssl; listen [::]:8444 ssl; ssl_certificate $I/server.pem; ssl_certificate_key $I/server.key; root $I/www/static;
    location = /small { default_type text/plain; return 200 "ok\n"; } }
  # The same services over HTTP/2.
  map \$server_addr \$plain { ~: [\$server_addr]; default \$server_addr; }
  server { listen 9443 ssl http2; listen [::]:9443 ssl http2; ssl_certificate $I/server.pem; ssl_certificate_key $I/server.key; client_max_body_size 0;
    merge_slashes off; large_client_header_buffers 8 64k; http2_max_concurrent_streams 256;
    location / { proxy_pass http://\$plain\$request_uri; proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off; proxy_pass_request_headers on;
      proxy_set_header Host \$host; proxy_set_header X-Lab-Protocol \$server_protocol; proxy_set_header Connection ""; } }
}
X
chmod 755 $I/www $I/www/static
inside nginx -c $I/nginx.conf -e $I/nginx.log >/dev/null 2>&1 8>&- &
for server in dns inet host; do read -r -t 120 line <&8 || { cat $I/*.log >&2; echo "inet: the servers did not start" >&2; exit 1; }; done
# Those that say nothing when they are ready.
for at in 198.51.100.22/22 198.51.100.62/22 2001:db8:1::62/22 198.51.100.23/22 198.51.100.10/8081 198.51.100.10/9443; do
  for n in $(seq 600); do
    inside bash -c "exec 3<>/dev/tcp/$at" 2>/dev/null && continue 2
    sleep 0.1
  done
  cat $I/*.log >&2; echo "inet: nobody listens at $at" >&2; exit 1
done
