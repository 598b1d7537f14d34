#!/usr/bin/env python3
"""dns.py SEEN: the DNS servers of the fake internet, good (198.51.100.53) and hostile (203.0.113.53); every query becomes a line in SEEN."""
import ipaddress, itertools, json, os, socket, struct, sys, threading, time

SEEN = sys.argv[1]
seen = os.open(SEEN, os.O_WRONLY | os.O_APPEND)
GOOD, BAD = ["198.51.100.53", "2001:db8:1::53"], ["203.0.113.53", "2001:db8:bad::53"]
HOST = ["192.0.2.10", "2001:db8:ffff::10"]
TYPES = {"A": 1, "CNAME": 5, "TXT": 16, "AAAA": 28, "HTTPS": 65}
ALIAS = {"www.example.com": "api.example.com", "alias.example.com": "evil.example.net", "loop.example.com": "loop.example.com"}
ZONE = {  # name: addresses; a leading "*." also answers every name below
    "api.example.com": ["198.51.100.10", "2001:db8:1::10"],
    "sub.api.example.com": ["198.51.100.14", "2001:db8:1::14"],
    "shared.example.org": ["198.51.100.10", "2001:db8:1::10"],
    "cdn.example.com": ["198.51.100.11", "198.51.100.12", "198.51.100.13"],
    "git.example.com": ["198.51.100.20", "2001:db8:1::20"],
    "ssh.example.com": ["198.51.100.22", "2001:db8:1::22"],
    "ssh2.example.com": ["198.51.100.23", "2001:db8:1::23"],
    "pypi.example.com": ["198.51.100.30", "2001:db8:1::30"],
    "deb.example.com": ["198.51.100.31", "2001:db8:1::31"],
    "big.example.com": ["198.51.100.40", "2001:db8:1::40"],
    "v4only.example.com": ["198.51.100.15"],
    "v6only.example.com": ["2001:db8:1::16"],
    "halfdead.example.com": ["198.51.100.17", "2001:db8:dead::17"],  # its IPv6 address leads nowhere
    "many.example.com": [f"198.51.100.{n}" for n in range(100, 160)],  # does not fit into 512 octets
    "*.any.example.com": ["198.51.100.10", "2001:db8:1::10"],
    "*.wild.example.com": ["198.51.100.10", "2001:db8:1::10"],
    "*.evil.example.net": ["203.0.113.66", "2001:db8:bad::66"],
    "evil.example.net": ["203.0.113.66", "2001:db8:bad::66"],
    # Answers that point where a name must never lead.
    "*.rebind-private.example.com": ["10.66.0.1"],
    "*.rebind-loopback.example.com": ["127.0.0.1", "::1"],
    "*.rebind-meta.example.com": ["169.254.169.254"],
    "*.rebind-mapped.example.com": ["::ffff:10.66.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254"],
    "*.rebind-host.example.com": HOST,
    "*.rebind-ula.example.com": ["fd00::1", "fe80::1", "64:ff9b::a42:1"],
    "*.rebind-zero.example.com": ["0.0.0.0", "::"],
    "*.rebind-cgnat.example.com": ["100.64.0.1", "224.0.0.1", "255.255.255.255"],
}
# Services with credentials, under their real names: provider.py.
PROVIDERS = ["api.anthropic.com", "api.openai.com", "github.com", "api.github.com", "uploads.github.com", "api.mistral.ai", "openrouter.ai", "gitlab.com", "console.anthropic.com"]
ZONE.update({name: [f"198.51.100.{60 + n}", f"2001:db8:1::{60 + n}"] for n, name in enumerate(PROVIDERS)})
turns = {}

def look_up(name, kind, hostile):
    """(addresses, ttl) or None for NXDOMAIN."""
    if hostile or name.endswith(".tunnel.example.net"): return ["203.0.113.66", "2001:db8:bad::66"], 60
    if name.endswith(".flip.example.com"):  # public, then private, for ever
        if kind != "A": return [], 0
        turn = next(turns.setdefault(name, itertools.count()))
        return (["198.51.100.10"] if turn < 1 else ["127.0.0.1"]), 0
    labels = name.split(".")
    if len(labels) == 3 and labels[0].startswith("site-") and labels[1:] == ["example", "com"] and labels[0][5:].isdigit():
        n = int(labels[0][5:]); return [f"198.52.{n >> 8 & 255}.{n & 255}", f"2001:db8:1::{n:x}"], 60  # a site for each test
    for n in range(len(labels)):
        key = ".".join(labels[n:]) if n == 0 else "*." + ".".join(labels[n:])
        if key in ZONE: return ZONE[key], (5 if name == "cdn.example.com" else 60)
    return None

def encode(name): return b"".join(bytes([len(l)]) + l.encode("latin-1") for l in name.split(".") if l) + b"\0"

def answer(query, transport, src, dst, hostile):
    if len(query) < 17 or query[2] & 0x80: return None
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode("latin-1")); at += query[at] + 1
    name, (qtype, _) = ".".join(labels).lower(), struct.unpack("!HH", query[at + 1:at + 5])
    question = query[12:at + 5]
    kind = next((k for k, v in TYPES.items() if v == qtype), str(qtype))
    line = json.dumps({"proto": "dns", "name": name, "type": kind, "transport": transport, "src": src, "dst": dst, "t": time.time()}) + "\n"
    os.write(seen, line.encode())
    if name == "silent.example.com": return None
    records, rcode = [], 0
    def add(owner, rtype, ttl, data): records.append(encode(owner) + struct.pack("!HHIH", rtype, 1, ttl, len(data)) + data)
    owner, hops = name, 0
    while owner in ALIAS and hops < 8: add(owner, 5, 60, encode(ALIAS[owner])); owner = ALIAS[owner]; hops += 1
    if name == "fail.example.com": rcode = 2
    elif (found := look_up(owner, kind, hostile)) is None: rcode = 0 if records else 3
    else:
        addresses, ttl = found
        for a in map(ipaddress.ip_address, addresses):
            if TYPES.get(kind) == (1 if a.version == 4 else 28): add(owner, qtype, ttl, a.packed)
        if kind == "TXT": add(owner, 16, ttl, b"\x09some text")
        if kind == "HTTPS": add(owner, 65, ttl, b"\0\1\0" + b"\0\4\0\4" + ipaddress.ip_address("198.51.100.10").packed)
    size = 512
    if query[10:12] == b"\0\1" and query[at + 5:at + 8] == b"\0\0\x29": size = max(512, struct.unpack("!H", query[at + 8:at + 10])[0])
    body = b"".join(records); truncated = transport == "udp" and 12 + len(question) + len(body) > size
    head = query[:2] + struct.pack("!HHHHH", 0x8180 | (0x0200 if truncated else 0) | rcode, 1, 0 if truncated else len(records), 0, 0)
    return head + question + (b"" if truncated else body)

def udp(address, hostile):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM); s.bind((address, 53))
    def serve():
        while True:
            query, peer = s.recvfrom(4096)
            try: reply = answer(query, "udp", peer[0], address, hostile)
            except (IndexError, struct.error): reply = None
            if reply: s.sendto(reply, peer)
    threading.Thread(target=serve).start()

def tcp(address, hostile):
    s = socket.create_server((address, 53), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=64)
    def one(c, peer):
        with c:
            c.settimeout(30)
            try:
                while len(n := c.recv(2, socket.MSG_WAITALL)) == 2:
                    reply = answer(c.recv(struct.unpack("!H", n)[0], socket.MSG_WAITALL), "tcp", peer[0], address, hostile)
                    if reply: c.sendall(struct.pack("!H", len(reply)) + reply)
            except (OSError, IndexError, struct.error): pass
    def serve():
        while True:
            c, peer = s.accept(); threading.Thread(target=one, args=(c, peer), daemon=True).start()
    threading.Thread(target=serve).start()

for address in GOOD + BAD:
    udp(address, address in BAD); tcp(address, address in BAD)
with open("/run/inet/ready", "w") as f: f.write("dns\n")
