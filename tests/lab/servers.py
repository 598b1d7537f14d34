#!/usr/bin/env python3
"""servers.py inet|host SEEN FOLDER: HTTP(S), TCP and UDP echo, git, WebSocket. Every connection, request and datagram becomes a line in SEEN."""
import base64, hashlib, http.server, json, os, socket, ssl, struct, subprocess, sys, threading, time
import provider

WHERE, SEEN, FOLDER = sys.argv[1:4]
WWW = FOLDER + "/www"
seen = os.open(SEEN, os.O_WRONLY | os.O_APPEND)

def plain(address): return address[7:] if address.startswith("::ffff:") else address

def log(**line):
    line["on"] = WHERE; line["t"] = time.time()
    os.write(seen, (json.dumps(line) + "\n").encode())  # whole, beside those of the other programs

def ends(sock, peer):
    own = sock.getsockname(); return {"dst": plain(own[0]), "port": own[1], "src": plain(peer[0]), "sport": peer[1]}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"; timeout = 60; disable_nagle_algorithm = True
    def log_message(self, *_): pass
    def reply(self, body, code=200, kind="text/plain", headers=()):
        self.send_response(code); self.send_header("Content-Type", kind); self.send_header("Content-Length", str(len(body)))
        for name, value in headers: self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)
    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            out = b""
            while n := int(self.rfile.readline().split(b";")[0], 16): out += self.rfile.read(n); self.rfile.readline()
            self.rfile.readline(); return out
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))
    def serve(self):
        tls = isinstance(self.connection, ssl.SSLSocket)
        self.target = self.path = self.raw_requestline.decode("latin-1").split(" ")[1]  # http.server makes `//` one
        log(proto="https" if tls else "http", **ends(self.connection, self.client_address), host=self.headers.get("Host"), sni=getattr(self.connection, "lab_sni", None),
            method=self.command, path=self.path, headers=[[k, v] for k, v in self.headers.items()])
        if self.path.startswith("/ws") and "websocket" in self.headers.get("Upgrade", "").lower(): return self.websocket()
        if provider.serve(self, log): return
        body = self.body(); path = self.path.split("?")[0]
        if path.startswith("/git/"): return self.git(body, self.path[4:], WWW + "/git")
        if self.headers.get("Host") == "github.com":
            if not provider.good(provider.credential(self)): return self.reply(b"not logged in\n", 401, headers=[("WWW-Authenticate", 'Basic realm="GitHub"')])
            return self.git(body, self.path, FOLDER + "/home-git")
        if path.startswith("/bytes/"): return self.stream(int(path[7:]))
        if path.startswith("/drip/"): return self.drip(int(path[6:]))
        if path == "/echo": return self.reply(body, kind="application/octet-stream")
        if path == "/sha": return self.reply(hashlib.sha256(body).hexdigest().encode())
        if path == "/redirect": return self.reply(b"", 302, headers=[("Location", "http://evil.example.net/")])
        site = {"pypi.example.com": "pypi", "deb.example.com": "deb"}.get((self.headers.get("Host") or "").split(":")[0])
        if site: return self.file(WWW + "/" + site, path)
        own = self.connection.getsockname()
        self.reply(f"hello from {plain(own[0])}:{own[1]} host={self.headers.get('Host')} path={self.path}\n".encode())
    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = do_OPTIONS = do_DELETE = do_CONNECT = serve
    def file(self, root, path):
        full = os.path.normpath(root + path)
        if os.path.isdir(full): full += "/index.html"
        if not full.startswith(root + "/") or not os.path.isfile(full): return self.reply(b"not found\n", 404)
        with open(full, "rb") as f: self.reply(f.read(), kind="text/html" if full.endswith(".html") else "application/octet-stream")
    def stream(self, n):
        self.send_response(200); self.send_header("Content-Length", str(n)); self.end_headers(); block = bytes(1 << 18)
        while n > 0: self.wfile.write(block[:n]); n -= len(block)
    def drip(self, n):
        self.send_response(200); self.send_header("Content-Length", str(n)); self.end_headers()
        for _ in range(n): self.wfile.write(b"."); self.wfile.flush(); time.sleep(0.05)
    def git(self, body, target, root):
        path, _, query = target.partition("?")
        env = {"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": root, "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
               "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)), "REMOTE_USER": "lab", "REMOTE_ADDR": "lab", "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
               "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""), "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
               "GIT_CONFIG_KEY_1": "http.receivepack", "GIT_CONFIG_VALUE_1": "true"}
        head, _, data = subprocess.run(["git", "http-backend"], input=body, env=env, stdout=subprocess.PIPE).stdout.partition(b"\r\n\r\n")
        headers = [tuple(line.decode().split(": ", 1)) for line in head.split(b"\r\n") if b": " in line]
        code = next((int(v.split()[0]) for k, v in headers if k == "Status"), 200); kind = next((v for k, v in headers if k == "Content-Type"), "text/plain")
        self.reply(data, code, kind, [h for h in headers if h[0] not in ("Status", "Content-Type")])
    def websocket(self):
        accept = base64.b64encode(hashlib.sha1(self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
        self.send_response(101); self.send_header("Upgrade", "websocket"); self.send_header("Connection", "Upgrade"); self.send_header("Sec-WebSocket-Accept", accept); self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            n = head[1] & 127
            if n == 126: n = struct.unpack("!H", self.rfile.read(2))[0]
            mask = self.rfile.read(4); data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(n)))
            log(proto="websocket", **ends(self.connection, self.client_address), text=data.decode("latin-1"))
            if head[0] & 15 == 8: return
            self.wfile.write(bytes([head[0], n]) + data if n < 126 else bytes([head[0], 126]) + struct.pack("!H", n) + data)

class Http(http.server.ThreadingHTTPServer):
    daemon_threads = True; request_queue_size = 256; address_family = socket.AF_INET6; context = None
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0); self.socket.bind(self.server_address)
        self.server_name, self.server_port = "lab", self.server_address[1]
    def handle_error(self, *_): pass
    def finish_request(self, request, peer):
        where = ends(request, peer); log(proto="accept", **where)
        if self.context:
            request.settimeout(30)
            try: request = self.context.wrap_socket(request, server_side=True)
            except OSError as e: log(proto="tls-fail", **where, error=str(e)[:80]); return
        Handler(request, peer, self)

def https(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); context.load_cert_chain(FOLDER + "/server.pem", FOLDER + "/server.key"); context.set_alpn_protocols(["http/1.1"])
    def sni(sock, name, _): sock.lab_sni = name
    context.sni_callback = sni
    server = Http(("::", port), Handler); server.context = context; return server

def tcp_echo(port):
    s = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
    def one(c, peer):
        log(proto="tcp", **ends(c, peer)); c.settimeout(60)
        with c:
            try:
                if port == 4444: c.sendall(b"220 server speaks first\r\n")
                while data := c.recv(65536): c.sendall(data)
            except OSError: pass
    def serve():
        while True:
            c, peer = s.accept(); threading.Thread(target=one, args=(c, peer), daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()

def udp_echo(port):  # packet info, so that the answer leaves from the address that was asked
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0); s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    s.bind(("::", port))
    def serve():
        while True:
            data, extra, _, peer = s.recvmsg(65536, 256); info = extra[0][2]
            log(proto="udp", dst=plain(socket.inet_ntop(socket.AF_INET6, info[:16])), port=port, src=plain(peer[0]), text=data[:64].decode("latin-1"))
            try: s.sendmsg([data], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info[:16] + bytes(4))], 0, peer)
            except OSError: pass
    threading.Thread(target=serve, daemon=True).start()

def relay(a, b):
    def pump(x, y):
        try:
            while data := x.recv(65536): y.sendall(data)
        except OSError: pass
        for end in (x, y):
            try: end.shutdown(socket.SHUT_RDWR)
            except OSError: pass
    threading.Thread(target=pump, args=(b, a), daemon=True).start(); pump(a, b)

def http_proxy(c, peer):  # CONNECT alone (RFC 9110 9.3.6)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (byte := c.recv(1)): return
        head += byte
    lines = head.decode("latin-1").split("\r\n"); method, target, _ = lines[0].split(" "); host, _, port = target.rpartition(":")
    log(proto="proxy", kind="http", method=method, target=target, headers=lines[1:-2], **ends(c, peer))
    if method != "CONNECT": return c.sendall(b"HTTP/1.1 405 CONNECT only\r\nContent-Length: 0\r\n\r\n")
    if host.startswith("refused"): return c.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    with socket.create_connection((host.strip("[]"), int(port)), 30) as s: s.settimeout(None); c.sendall(b"HTTP/1.1 200 OK\r\n\r\n"); relay(c, s)

def socks_proxy(c, peer):  # RFC 1928, RFC 1929
    take = lambda n: c.recv(n, socket.MSG_WAITALL)
    _, n = take(2); methods = take(n); login = None
    if 2 in methods: c.sendall(b"\5\2"); take(1); user = take(take(1)[0]); word = take(take(1)[0]); login = (user + b":" + word).decode(); c.sendall(b"\1\0")
    else: c.sendall(b"\5\0")
    _, command, _, kind = take(4)
    host = take(take(1)[0]).decode() if kind == 3 else socket.inet_ntop(*((socket.AF_INET, take(4)) if kind == 1 else (socket.AF_INET6, take(16))))
    port, = struct.unpack("!H", take(2)); log(proto="proxy", kind="socks5", method=command, target=f"{host}:{port}", login=login, **ends(c, peer))
    with socket.create_connection((host, port), 30) as s: s.settimeout(None); c.sendall(b"\5\0\0\1" + bytes(6)); relay(c, s)

def proxy(port, speak):
    s = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    def one(c, peer):
        with c:
            try: speak(c, peer)
            except (OSError, ValueError, IndexError, struct.error) as e: log(proto="proxy-fail", error=str(e)[:80], **ends(c, peer))
    def serve():
        while True:
            c, peer = s.accept(); threading.Thread(target=one, args=(c, peer), daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()

if WHERE == "inet":
    proxy(3128, http_proxy); proxy(1080, socks_proxy)
    plain_ports, tls_ports, tcp_ports, udp_ports = [80, 8080], [443, 853, 8443], [7, 4444, 6667], [7, 123, 443, 4444, 5353]
else:
    plain_ports, tls_ports, tcp_ports, udp_ports = [80, 8000], [443], [], [123]
for p in plain_ports: threading.Thread(target=Http(("::", p), Handler).serve_forever, daemon=True).start()
for p in tls_ports: threading.Thread(target=https(p).serve_forever, daemon=True).start()
for p in tcp_ports: tcp_echo(p)
for p in udp_ports: udp_echo(p)
with open("/run/inet/ready", "w") as f: f.write(WHERE + "\n")
while True: time.sleep(3600)
