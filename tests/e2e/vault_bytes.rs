//! What goes through the broker arrives as it was sent, both ways, streamed, with bounded memory.

use terok_tests::{Container, Mode, Net, Service, both_modes, eventually, headers};

/// Python of the tests below: `raw(base, target, headers, body)` sends a request octet by octet, over plain HTTP to the vault's name or over TLS
/// to the host's, and gives status, headers and body.
pub(crate) const RAW: &str = r#"
import os, socket, ssl, sys, time, json, hashlib, threading
TOKEN, HOST, PROVIDER = os.environ.get('LAB_TOKEN'), sys.argv[1] if len(sys.argv) > 1 else None, None
def connect(host, tls):
    s = socket.create_connection((host, 443 if tls else 80), 20)
    return ssl.create_default_context().wrap_socket(s, server_hostname=host) if tls else s
def head(s):
    got = b''
    while not got.endswith(b'\r\n\r\n'):
        c = s.recv(1)
        if not c: return got
        got += c
    return got
def take(s, n):
    got = b''
    while len(got) < n and (part := s.recv(n - len(got))): got += part
    return got
def line(s):
    got = b''
    while not got.endswith(b'\n') and (c := s.recv(1)): got += c
    return got
def answer(s):
    lines = head(s).decode('latin-1').split('\r\n')
    if not lines[0]: return 0, [], b''
    status = int(lines[0].split(' ')[1]); fields = [tuple(l.split(': ', 1)) for l in lines[1:] if ': ' in l]; named = {k.lower(): v for k, v in fields}
    if status in (204, 304) or 100 <= status < 200: return status, fields, b''
    body = b''
    if named.get('transfer-encoding') == 'chunked':
        while n := int(line(s).split(b';')[0], 16): body += take(s, n); line(s)
        while (l := line(s)) not in (b'\r\n', b''): fields.append(tuple(l.decode('latin-1').strip().split(': ', 1)))
    elif 'content-length' in named: body = take(s, int(named['content-length']))
    else:
        while part := s.recv(65536): body += part
    return status, fields, body
"#;

/// Runs Python in `container` with RAW before it and `SITE`, `BASE` (host, prefix, tls) for both ways in.
#[track_caller]
pub(crate) fn python(container: &Container, service: &Service, program: &str) -> String {
    let ways = format!(
        "WAYS = [('vault.terok.internal', '/{}', False), ('{}', '', True)]\n",
        service.provider, service.site.name
    );
    container.python(&[RAW, &ways, program].concat()).succeeded()
}

/// Request targets that a proxy that parses and writes URLs anew would change.
const TARGETS: [&str; 18] = [
    "/seen?q=%23%26%2B%25&r=a+b&s=%2f%2F",
    "/seen?q=1&q=2&q=&q",
    "/seen?",
    "/seen?a=%E4%F6%FC&b=%c3%a4",
    "/seen/%2F%2f/x",
    "/seen/a%20b/c+d",
    "/seen//double",
    "/seen/./dot/../dot",
    "/seen/%2e%2e/dot",
    "/seen/semi;colon=1;x",
    "/seen/~tilde/%7Etilde",
    "/seen/(paren)'quote'!*,",
    "/seen/@at:colon$dollar&amp=",
    "/seen?redirect=https://evil.example.net/?x=y#nofragment",
    "/seen?json={'a':[1,2]}",
    "/seen?empty=&=value&&",
    "/seen?pipe=a|b^c`d",
    "/seen?long=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
];

both_modes! {
    fn paths_and_queries_arrive_octet_for_octet(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        // A fragment is no part of a request target (RFC 9112 3.2); the rest must arrive.
        let targets: Vec<&str> = TARGETS.into_iter().filter(|target| !target.contains('#')).collect();
        let list = serde_json::to_string(&targets).expect("strings");
        let out = python(&container, &service, &format!(r"
for host, prefix, tls in WAYS:
    for target in json.loads(r'''{list}'''):
        s = connect(host, tls)
        s.sendall(f'GET {{prefix}}{{target}} HTTP/1.1\r\nHost: {{host}}\r\nAuthorization: Bearer {{TOKEN}}\r\n\r\n'.encode('latin-1'))
        status, _, body = answer(s)
        print(json.dumps([target, status, json.loads(body)['target'] if status == 200 else body.decode('latin-1')]))
"));
        let mut lines = 0;
        for line in out.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!((&line[1], &line[2]), (&200.into(), &line[0]), "{line}");
            lines += 1;
        }
        assert_eq!(lines, 2 * targets.len());
        for target in targets {
            assert_eq!(service.requests(target).len(), 2, "{target}");
        }
    }

    fn headers_arrive_as_often_as_they_were_sent(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let out = python(&container, &service, r"
extra = b'X-One: 1\r\nAccept: a/b\r\nX-One: 2\r\nX-Empty:\r\nX-Latin: caf\xe9\r\nCookie: a=1\r\nX-One: 3\r\nCookie: b=2\r\nX-Drop: me\r\nKeep-Alive: 5\r\n'
for host, prefix, tls in WAYS:
    s = connect(host, tls)
    s.sendall(f'GET {prefix}/seen HTTP/1.1\r\nHost: {host}\r\n'.encode() + extra + f'Connection: keep-alive, X-Drop\r\nAuthorization: Bearer {TOKEN}\r\nUser-Agent: raw\r\n\r\n'.encode())
    print(answer(s)[0])
");
        assert_eq!(out, "200\n200\n");
        let requests = service.requests("/seen");
        assert_eq!(requests.len(), 2);
        for request in requests {
            let names: Vec<&str> = request["headers"].as_array().expect("a list").iter().filter_map(|pair| pair[0].as_str()).collect();
            let mut kept: Vec<String> = names.iter().map(|name| name.to_lowercase())
                .filter(|name| name.starts_with("x-") || ["accept", "user-agent", "cookie", "keep-alive"].contains(&name.as_str())).collect();
            // Those of one name stay in order; whether others stand between them means nothing (RFC 9110 5.3).
            kept.dedup();
            assert_eq!(kept, ["x-one", "accept", "x-empty", "x-latin", "user-agent"], "{request}");
            assert_eq!(headers(&request, "x-one"), ["1", "2", "3"]);
            assert_eq!(headers(&request, "x-latin"), ["caf\u{e9}"]);
            // A session of its own is a credential, too.
            assert!(headers(&request, "cookie").is_empty());
            assert_eq!(headers(&request, "host"), std::slice::from_ref(&service.site.name));
            assert_eq!(headers(&request, "authorization"), [format!("Bearer {}", service.secret)]);
            let ours = names.iter().filter(|name| name.to_lowercase().starts_with("x-forwarded") || name.eq_ignore_ascii_case("via"));
            assert_eq!(ours.count(), 0, "{request}");
        }
    }

    fn bodies_trailers_and_continues_arrive_unchanged(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        for way in ["$LAB_BASE_URL", &format!("https://{}", service.site.name)] {
            let token = "-H \"Authorization: Bearer $LAB_TOKEN\"";
            let sums = container.sh(&format!("head -c 5000001 /dev/urandom > /tmp/f; sha256sum < /tmp/f | cut -d' ' -f1
                curl -sS {token} --data-binary @/tmp/f {way}/sink | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"sha256\"])'
                curl -sS {token} -H 'Transfer-Encoding: chunked' --data-binary @/tmp/f {way}/sink | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"sha256\"])'
                curl -sS {token} -H 'Expect: 100-continue' --data-binary @/tmp/f {way}/echo | sha256sum | cut -d' ' -f1")).succeeded();
            let sums: Vec<&str> = sums.lines().collect();
            assert!(sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]), "{way}: {sums:?}");
            let answer = container.curl(&format!("-i --http1.1 {token} -H 'TE: trailers' {way}/trailers"));
            assert!(answer.body.to_lowercase().contains("x-sum: d9a4c6676a62"), "{way}: {answer:?}");
            // Refused before the body is asked for.
            let answer = container.curl(&format!("--http1.1 --expect100-timeout 20 -H 'Authorization: Bearer terok' -H 'Expect: 100-continue' --data-binary @/tmp/f {way}/sink"));
            assert!([401, 403].contains(&answer.status), "{way}: {answer:?}");
        }
    }

    /// Each event is there when it was sent, not when the last one was.
    fn server_sent_events_come_one_by_one(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let out = python(&container, &service, r"
for host, prefix, tls in WAYS:
    s = connect(host, tls)
    s.sendall(f'GET {prefix}/sse/1000000?pause=0.2 HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\nAuthorization: Bearer {TOKEN}\r\n\r\n'.encode())
    head(s)
    # There is no last one: an event that waits for more of them, or for a full buffer, comes too late.
    events = (json.loads(line[6:])['n'] for line in s.makefile('rb') if line.startswith(b'data: '))
    print([next(events) for _ in range(4)])
    s.close()
");
        assert_eq!(out, "[0, 1, 2, 3]\n[0, 1, 2, 3]\n");
    }

    fn a_websocket_echoes_over_both_ways_in(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let out = python(&container, &service, r"
for host, prefix, tls in WAYS:
    s = connect(host, tls)
    s.sendall(f'GET {prefix}/ws HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n'.encode())
    first = head(s); assert first.startswith(b'HTTP/1.1 101'), first
    for word in (b'hello', b'again'):
        s.sendall(b'\x81\x85\0\0\0\0' + word)
        got = b''
        while len(got) < 7: got += s.recv(7 - len(got))
        print(got[2:].decode())
");
        assert_eq!(out, "hello\nagain\nhello\nagain\n");
        service.got_the_real_key("/ws");
    }

    fn a_client_that_leaves_ends_the_request_upstream(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        for (n, way) in ["$LAB_BASE_URL", &format!("https://{}", service.site.name)].iter().enumerate() {
            // curl ends when nobody reads what it got.
            let began = container.sh(&format!("curl -sN {way}/live -H \"Authorization: Bearer $LAB_TOKEN\" | head -c 4")).stdout;
            assert_eq!(began, "data");
            eventually("the service sees that its client left", || service_gone(&service) > n);
        }
    }

    fn http2_upstream_carries_the_same(mode: Mode) {
        let service = Service::over_http2(mode);
        let container = service.sealed();
        let answer = container.curl("\"$LAB_BASE_URL\"'/seen//a/%2e?q=%23+%26' --path-as-is -H \"Authorization: Bearer $LAB_TOKEN\" -H 'A: 1' -H 'A: 2' -d hello");
        assert_eq!(answer.status, 200, "{answer:?}");
        let requests = service.requests("/seen//a/%2e?q=%23+%26");
        assert_eq!(requests.len(), 1, "{:?}", service.site.paths());
        assert_eq!(headers(&requests[0], "x-lab-protocol"), ["HTTP/2.0"]);
        assert_eq!(headers(&requests[0], "a"), ["1", "2"]);
        assert_eq!(headers(&requests[0], "authorization"), [format!("Bearer {}", service.secret)]);
    }

    /// Ten at once, each way; the worker's memory stays what it was within a few MiB.
    fn ten_times_128_mib_up_and_down_take_bounded_memory(mode: Mode) {
        const SIZE: usize = 128 << 20;
        let service = Service::new(mode);
        let container = service.recipe(Net::sealed(mode)).idle();
        let token = "-H \"Authorization: Bearer $LAB_TOKEN\"";
        assert_eq!(container.curl(&format!("$LAB_BASE_URL/seen {token}")).status, 200);
        for (n, way) in ["$LAB_BASE_URL", &format!("https://{}", service.site.name)].iter().enumerate() {
            let script = format!("for n in 1 2 3 4 5; do
                head -c {SIZE} /dev/zero | curl -sS {token} -H 'Transfer-Encoding: chunked' -T - {way}/sink >/dev/null &
                curl -sS {token} -o /dev/null -w '%{{size_download}}\\n' {way}/bytes/{SIZE} &
                done; wait");
            let out = container.sh(&script).succeeded();
            assert_eq!(out.lines().filter(|line| *line == SIZE.to_string()).count(), 5, "{out}");
            let whole = || service.site_sinks(SIZE) == 5 * (n + 1);
            eventually("all uploads arrived whole", whole);
        }
        let (_, worker) = container.served_by();
        let status = std::fs::read_to_string(format!("/proc/{worker}/status")).expect("it lives");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("kB");
        assert!(peak < 64 << 10, "the worker took {peak} KiB");
    }
}

fn service_gone(service: &Service) -> usize {
    let host = service.site.name.as_str();
    terok_tests::seen().iter().filter(|line| line["proto"] == "gone" && line["host"] == host).count()
}

trait Sinks {
    /// Uploads of so many octets that arrived whole.
    fn site_sinks(&self, size: usize) -> usize;
}

impl Sinks for Service {
    fn site_sinks(&self, size: usize) -> usize {
        let host = self.site.name.as_str();
        let all = terok_tests::seen();
        all.iter()
            .filter(|l| l["proto"] == "sink" && l["host"] == host && l["bytes"] == size && l["whole"] == true)
            .count()
    }
}
