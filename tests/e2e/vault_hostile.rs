//! Ambiguous requests reach nobody, redirects are told and not followed, and a service that gives the key back gives stars (A12, A14 to A16, A18).

use crate::vault_bytes::python;
use serde_json::Value;
use terok_tests::{Mode, Net, Service, bad_addresses, both_modes, secret, seen, seen_at};

/// Requests of which two readers could see different things; `{H}` is the host, `{P}` the prefix, `{T}` the token. Each carries `/v1/smuggled`.
const SMUGGLED: [(&str, &str); 19] = [
    (
        "both lengths",
        "POST {P}/v1/smuggled-a HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET",
    ),
    (
        "two lengths",
        "POST {P}/v1/smuggled-b HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    ),
    (
        "a list of lengths",
        "POST {P}/v1/smuggled-c HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nContent-Length: 5, 6\r\n\r\nhello!",
    ),
    (
        "a length with a sign",
        "POST {P}/v1/smuggled-d HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nContent-Length: +5\r\n\r\nhello",
    ),
    (
        "an odd coding",
        "POST {P}/v1/smuggled-e HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding twice",
        "POST {P}/v1/smuggled-f HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding with a tab",
        "POST {P}/v1/smuggled-g HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a space before the colon",
        "POST {P}/v1/smuggled-h HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "a folded line",
        "GET {P}/v1/smuggled-i HTTP/1.1\r\nHost: {H}\r\nX-Fold: a\r\n b\r\nAuthorization: Bearer {T}\r\n\r\n",
    ),
    (
        "two hosts",
        "GET {P}/v1/smuggled-j HTTP/1.1\r\nHost: {H}\r\nHost: evil.example.net\r\nAuthorization: Bearer {T}\r\n\r\n",
    ),
    ("no host", "GET {P}/v1/smuggled-k HTTP/1.1\r\nAuthorization: Bearer {T}\r\n\r\n"),
    (
        "another host",
        "GET {P}/v1/smuggled-l HTTP/1.1\r\nHost: evil.example.net\r\nAuthorization: Bearer {T}\r\n\r\n",
    ),
    (
        "an absolute target elsewhere",
        "GET http://evil.example.net/v1/smuggled-m HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\n\r\n",
    ),
    (
        "two credentials",
        "GET {P}/v1/smuggled-n HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nAuthorization: Bearer sk-attacker-REAL\r\n\r\n",
    ),
    (
        "the same credential twice",
        "GET {P}/v1/smuggled-o HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nauthorization: Bearer {T}\r\n\r\n",
    ),
    (
        "a tunnel",
        "CONNECT evil.example.net:443 HTTP/1.1\r\nHost: evil.example.net:443\r\nAuthorization: Bearer {T}\r\nContent-Length: 3\r\n\r\nv1/smuggled",
    ),
    ("a bare line feed", "GET {P}/v1/smuggled-p HTTP/1.1\nHost: {H}\nAuthorization: Bearer {T}\n\n"),
    (
        "a null in a value",
        "GET {P}/v1/smuggled-q HTTP/1.1\r\nHost: {H}\r\nX-Nul: a\x00b\r\nAuthorization: Bearer {T}\r\n\r\n",
    ),
    (
        "a chunk of no size",
        "POST {P}/v1/smuggled-r HTTP/1.1\r\nHost: {H}\r\nAuthorization: Bearer {T}\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nhello\r\n0\r\n\r\n",
    ),
];

/// So much of a key is not to come through either.
const PART: usize = 16;

/// What a service may give the credential back in, and whether the answer still comes whole.
const DRESSES: [(&str, bool); 13] = [
    ("plain", true),
    ("header", true),
    ("location", true),
    ("base64", true),
    ("url64", true),
    ("percent", true),
    ("chunks", true),
    ("halves", true),
    ("trailer", true),
    ("sse", true),
    ("error", true),
    ("gzip", false),
    ("deflate", false),
];

both_modes! {
    fn an_ambiguous_request_reaches_nobody(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let corpus = serde_json::to_string(&SMUGGLED).expect("strings");
        let out = python(&container, &service, &format!(r"
for host, prefix, tls in WAYS:
    for what, text in json.loads(r'''{corpus}'''):
        s = connect(host, tls); s.settimeout(10)
        s.sendall(text.replace('{{H}}', host).replace('{{P}}', prefix).replace('{{T}}', TOKEN).encode('latin-1'))
        try: status = answer(s)[0]
        except OSError as e: status = 0
        print(json.dumps([what, status]))
    # A request behind a good one is judged on its own.
    s = connect(host, tls)
    good = f'GET {{prefix}}/seen/good HTTP/1.1\r\nHost: {{host}}\r\nAuthorization: Bearer {{TOKEN}}\r\n\r\n'
    s.sendall((good + f'GET {{prefix}}/v1/smuggled-z HTTP/1.1\r\nHost: {{host}}\r\nAuthorization: Bearer sk-attacker-REAL\r\n\r\n').encode())
    print(json.dumps(['good', answer(s)[0]])); print(json.dumps(['behind', answer(s)[0]]))
"));
        let mut lines = 0;
        for line in out.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let status = line[1].as_u64().unwrap_or(0);
            // 0: the connection was closed without a word.
            let expected = if line[0] == "good" { status == 200 } else { matches!(status, 0 | 400..=431 | 501 | 505) };
            assert!(expected, "{line}");
            lines += 1;
        }
        assert_eq!(lines, 2 * (SMUGGLED.len() + 2));
        let arrived: Vec<String> = service.site.paths().into_iter().filter(|path| path.contains("smuggled")).collect();
        // What cannot be told before the body begins may have arrived as a request that never ended: `-1` as a chunk's size.
        assert!(arrived.iter().all(|path| path.ends_with("smuggled-r")), "{arrived:?}");
        assert_eq!(service.requests("/seen/good").len(), 2);
        assert!(!seen().iter().any(|line| line["host"] == "evil.example.net" && line.to_string().contains("smuggled")));
    }

    fn redirects_are_told_and_never_followed(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let (elsewhere, _) = bad_addresses();
        for to in [format!("http://{elsewhere}/stolen"), "http://127.0.0.1:8000/stolen".to_owned(), "https://evil.example.net/stolen".to_owned()] {
            for code in ["301", "302", "307", "308"] {
                for way in ["$LAB_BASE_URL".to_owned(), format!("https://{}", service.site.name)] {
                    let answer = container.curl(&format!("-i \"{way}/redirect-to?code={code}&to={to}\" -H \"Authorization: Bearer $LAB_TOKEN\" -d x"));
                    assert_eq!(answer.status.to_string(), code, "{answer:?}");
                    assert!(answer.body.contains(&to), "{answer:?}");
                }
            }
        }
        assert!(seen_at(elsewhere).is_empty());
        assert!(!seen().iter().any(|line| line["path"] == "/stolen"), "a redirect was followed");
        // A client that follows takes no real key along: it has none.
        let answer = container.curl(&format!("-L \"$LAB_BASE_URL/redirect-to?to=http://{elsewhere}/stolen\" -H \"Authorization: Bearer $LAB_TOKEN\""));
        assert_ne!(answer.status, 200, "{answer:?}");
        assert!(seen_at(elsewhere).is_empty());
    }

    fn a_key_that_the_service_gives_back_arrives_as_stars(mode: Mode) {
        // With characters that base64 for addresses and percent-encoding write in their own way.
        let service = Service { secret: secret("lab-/+?>~"), ..Service::new(mode) };
        service.vault.add(&service.provider, "default", &service.secret);
        let container = service.sealed();
        let list = serde_json::to_string(&DRESSES).expect("strings");
        let out = python(&container, &service, &format!(r"
import zlib
def unchunked(coded):
    out = b''
    while coded:
        size, _, coded = coded.partition(b'\r\n')
        try: n = int(size.split(b';')[0], 16)
        except ValueError: break
        if n == 0: return out + coded # with the trailers
        out += coded[:n]; coded = coded[n + 2:]
    return out
for host, prefix, tls in WAYS:
    for dress, whole in json.loads('''{list}'''):
        s = connect(host, tls); s.settimeout(15)
        s.sendall(f'GET {{prefix}}/reflect/{{dress}} HTTP/1.1\r\nHost: {{host}}\r\nAuthorization: Bearer {{TOKEN}}\r\nAccept-Encoding: gzip, deflate\r\nTE: trailers\r\nConnection: close\r\n\r\n'.encode())
        got = b''
        try:
            while part := s.recv(65536): got += part
        except OSError: pass
        # As a client would put it together: between pieces of a body stands how long they are.
        head, _, body = got.partition(b'\r\n\r\n')
        if b'transfer-encoding: chunked' in head.lower(): body = unchunked(body)
        got = head + b'\r\n\r\n' + body
        if dress in ('gzip', 'deflate'):
            # Whatever came of it is taken apart as far as it goes.
            for start in range(min(len(body), 64)):
                try: got += zlib.decompressobj(47).decompress(body[start:])
                except zlib.error: pass
        print(json.dumps([dress, host, got.decode('latin-1')]))
"));
        let (mut lines, mut leaked, mut without) = (0, Vec::new(), Vec::new());
        let forms = [forms(&service.secret), vec![service.secret.clone()]].concat();
        let contains = |got: &str, part: &[u8]| got.as_bytes().windows(PART).any(|at| at == part);
        for line in out.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let (dress, host, got) = (line[0].as_str().unwrap_or_default(), &line[1], line[2].as_str().unwrap_or_default());
            if forms.iter().flat_map(|form| form.as_bytes().windows(PART)).any(|part| contains(got, part)) {
                leaked.push(format!("{dress} by {host}"));
            }
            // Sessions that a service opens are not passed on at all.
            let whole = DRESSES.iter().any(|(name, whole)| *name == dress && *whole);
            if whole && !got.contains("********") {
                without.push(format!("{dress} by {host}: {got}"));
            }
            lines += 1;
        }
        // All of them, so that each is seen to be needed where what covers it is taken away.
        assert!(leaked.is_empty(), "the key came through: {leaked:?}");
        assert!(without.is_empty(), "nothing was given back at all: {without:?}");
        assert_eq!(lines, 2 * DRESSES.len());
        // It was really there: every request had the real key.
        for (dress, _) in DRESSES {
            service.got_the_real_key(&format!("/reflect/{dress}"));
        }
        container.audited("http", "cut", "");
    }

    fn an_encoding_that_cannot_be_read_is_not_passed_on(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        let answer = container.curl("$LAB_BASE_URL/reflect/br -H \"Authorization: Bearer $LAB_TOKEN\"");
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(!answer.body.contains(&service.secret));
        // What the client would take is narrowed to what can be read.
        container.curl("$LAB_BASE_URL/seen -H \"Authorization: Bearer $LAB_TOKEN\" -H 'Accept-Encoding: br, gzip, zstd'");
        let asked: String = service.requests("/seen").iter().flat_map(|request| terok_tests::headers(request, "accept-encoding")).collect();
        assert!(!asked.contains("br") && !asked.contains("zstd"), "{asked}");
    }

    /// Nothing of a broken answer stays on a connection that somebody else gets next.
    fn a_malformed_answer_poisons_no_other(mode: Mode) {
        let service = Service::new(mode);
        let container = service.sealed();
        for what in ["both", "lengths", "surplus", "garbage", "short"] {
            let broken = container.curl(&format!("$LAB_BASE_URL/malformed/{what} -H \"Authorization: Bearer $LAB_TOKEN\""));
            assert!(!broken.body.contains("poisoned"), "{what}: {broken:?}");
            let next = container.curl("$LAB_BASE_URL/v1/next -H \"Authorization: Bearer $LAB_TOKEN\"");
            assert!(next.status == 200 && next.body.contains("/v1/next"), "{what}: {next:?}");
        }
    }

    /// A12, A15, A18: the rules are about what the service will understand, however it is written.
    fn paths_that_rules_refuse_are_refused_in_every_form(mode: Mode) {
        let service = Service::with(mode, "[[rule]]\npath = \"/v1/admin/**\"\nallow = false\n[[rule]]\nmethods = [\"GET\"]\npath = \"/v1/**\"\nallow = true\n");
        let container = service.sealed();
        let token = "-H \"Authorization: Bearer $LAB_TOKEN\"";
        let refused = ["/v1/admin/keys", "/v1//admin/keys", "/v1/x/../admin/keys", "/v1/x/%2e%2e/admin/keys", "/v1/%61dmin/keys", "/v1/admin%2Fkeys/../../admin/keys",
            "/v1/./admin/keys", "/v1\\admin/keys", "/v1/admin;x=1/keys", "/v1/admin/", "/V1/other", "//v1/admin/keys", "/v2/else", "/%76%31/admin/keys"];
        for way in ["$LAB_BASE_URL", &format!("https://{}", service.site.name)] {
            assert_eq!(container.curl(&format!("{token} {way}/v1/models")).status, 200);
            for path in refused {
                let answer = container.curl(&format!("{token} --path-as-is \"{way}\"'{path}'"));
                assert!([400, 403].contains(&answer.status), "{way}{path}: {answer:?}");
            }
            assert_eq!(container.curl(&format!("{token} -X DELETE {way}/v1/models")).status, 403);
        }
        let arrived: Vec<String> = service.site.paths().into_iter().filter(|path| path != "/v1/models").collect();
        assert!(arrived.is_empty(), "{arrived:?}");
        assert_eq!(service.requests("/v1/models").len(), 2);
    }

    /// A15: endpoints of GitHub that make keys and tokens are not offered.
    fn tokens_are_not_minted_through_the_broker(mode: Mode) {
        let (name, token) = (format!("t{}", terok_tests::site().number), secret("ghp_"));
        terok_tests::Vault::open(mode).add("github", &name, &token);
        let container = terok_tests::Recipe::on(Net::sealed(mode), "").image("localhost/wl").annotate("vault", &format!("github={name}")).idle();
        let own = "-H \"Authorization: Bearer $GITHUB_TOKEN\"";
        assert_eq!(container.curl(&format!("{own} https://api.github.com/user")).status, 200);
        for (method, path) in [("POST", "/user/keys"), ("POST", "/applications/x/token"), ("POST", "/repos/o/r/keys"), ("POST", "/gists")] {
            let answer = container.curl(&format!("{own} -X {method} 'https://api.github.com{path}?by={name}' -d '{{}}'"));
            assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
        }
        let arrived = seen().into_iter().filter(|line| line["path"].as_str().is_some_and(|path| path.contains(&format!("by={name}"))));
        assert_eq!(arrived.count(), 0);
    }
}

/// base64 in its three alignments, without the characters that depend on what stands beside it.
fn forms(secret: &str) -> Vec<String> {
    let encoded = |text: &str| Mode::Rootful.fed("base64", &["-w0"], text).succeeded();
    let url = |text: &str| text.replace('+', "-").replace('/', "_");
    let mut forms = Vec::new();
    for before in 0..3 {
        let text = encoded(&format!("{}{secret}", "x".repeat(before)));
        let inner = &text[if before == 0 { 0 } else { 4 }..text.len() - 4];
        forms.extend([inner.to_owned(), url(inner)]);
    }
    forms.push(secret.replace('/', "%2F").replace('+', "%2B").replace('?', "%3F").replace('>', "%3E"));
    forms
}
