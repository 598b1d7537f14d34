use super::*;

fn requests() -> Requests {
    Requests::new("api.example.com".parse().unwrap(), 80)
}

/// What is forwarded of `input`, fed in pieces of `step` bytes.
fn forwarded_by(input: &[u8], step: usize) -> Result<String, Refusal> {
    let (mut requests, mut out) = (requests(), Vec::new());
    for piece in input.chunks(step) {
        let taken = requests.feed(piece, &mut out)?;
        assert_eq!(taken, piece.len());
    }
    Ok(String::from_utf8(out).unwrap())
}

/// The same however the bytes arrive.
fn forwarded(input: &str) -> Result<String, Refusal> {
    let whole = forwarded_by(input.as_bytes(), usize::MAX);
    for step in [1, 7] {
        assert_eq!(forwarded_by(input.as_bytes(), step), whole, "in steps of {step}");
    }
    whole
}

fn refused(input: &str) -> Reason {
    match forwarded(input) {
        Err(refusal) => refusal.reason,
        Ok(text) => panic!("forwarded: {text:?}"),
    }
}

const GET: &str = "GET /a?b=%23 HTTP/1.1\r\nHost: api.example.com\r\nAccept: */*\r\n\r\n";

#[test]
fn a_plain_request_is_forwarded_as_it_is() {
    assert_eq!(forwarded(GET).unwrap(), GET);
}

#[test]
fn the_host_is_forwarded_in_canonical_form() {
    let canonical = "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
    for host in ["API.Example.com", "api.example.com.", "api.example.com:"] {
        assert_eq!(
            forwarded(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap(),
            canonical,
            "{host}"
        );
    }
    let with_port = "GET / HTTP/1.1\r\nHost: api.example.com:80\r\n\r\n";
    assert_eq!(forwarded(with_port).unwrap(), with_port);
}

#[test]
fn another_host_is_refused() {
    for host in [
        "evil.example",
        "api.example.com.evil.example",
        "x.api.example.com",
        "api.example.com:81",
        "api.example.com:080x",
        "api.example.com:+80",
        "user@api.example.com",
        "evil.example@api.example.com",
        "api.example.com,evil.example",
        "api.example.com evil.example",
        "api.example.com%00.evil.example",
        "192.0.2.1",
        "[::1]",
        "",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(refused(&request), Reason::HostMismatch, "{host}");
    }
    assert_eq!(refused("GET / HTTP/1.1\r\nAccept: */*\r\n\r\n"), Reason::HostMismatch);
    assert_eq!(refused("GET / HTTP/1.0\r\n\r\n"), Reason::HostMismatch);
}

#[test]
fn a_second_request_with_another_host_is_refused_and_says_what_it_asked_for() {
    let mut requests = requests();
    let mut out = Vec::new();
    let second = "POST /upload?token=s3cret HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    let refusal = requests.feed(format!("{GET}{second}").as_bytes(), &mut out).unwrap_err();
    assert_eq!(out, GET.as_bytes());
    assert_eq!(requests.count(), 1);
    assert_eq!(refusal.reason, Reason::HostMismatch);
    assert_eq!(
        (&*refusal.method, &*refusal.path, &*refusal.host),
        ("POST", "/upload", "evil.example"),
        "no query in what is recorded"
    );
}

#[test]
fn an_absolute_target_must_agree_and_is_forwarded_in_origin_form() {
    let absolute = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: api.example.com\r\n\r\n");
    assert_eq!(forwarded(&absolute("http://API.example.com/x?y")).unwrap(), absolute("/x?y"));
    assert_eq!(forwarded(&absolute("HTTP://api.example.com:80?y")).unwrap(), absolute("/?y"));
    for target in
        ["http://evil.example/", "http://u@api.example.com/", "http://api.example.com:81/", "http:///"]
    {
        assert_eq!(refused(&absolute(target)), Reason::HostMismatch, "{target}");
    }
    for target in ["https://api.example.com/", "ftp://api.example.com/", "x", "api.example.com:443", "*"] {
        assert_eq!(refused(&absolute(target)), Reason::BadProtocol, "{target}");
    }
    let mismatch = "GET http://api.example.com/ HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    assert_eq!(refused(mismatch), Reason::HostMismatch);
}

#[test]
fn ambiguous_messages_are_refused() {
    let host = "Host: api.example.com\r\n";
    for (what, request) in [
        (
            "CL and TE",
            format!("POST / HTTP/1.1\r\n{host}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ),
        ("two CL", format!("POST / HTTP/1.1\r\n{host}Content-Length: 4\r\nContent-Length: 4\r\n\r\n")),
        ("CL list", format!("POST / HTTP/1.1\r\n{host}Content-Length: 4, 4\r\n\r\n")),
        ("CL sign", format!("POST / HTTP/1.1\r\n{host}Content-Length: +4\r\n\r\n")),
        ("CL hex", format!("POST / HTTP/1.1\r\n{host}Content-Length: 0x4\r\n\r\n")),
        ("CL overflow", format!("POST / HTTP/1.1\r\n{host}Content-Length: 99999999999999999999\r\n\r\n")),
        ("CL empty", format!("POST / HTTP/1.1\r\n{host}Content-Length:\r\n\r\n")),
        ("TE identity", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: identity\r\n\r\n")),
        ("TE list", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: gzip, chunked\r\n\r\n")),
        (
            "TE twice",
            format!(
                "POST / HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
        ),
        ("TE vertical tab", format!("POST / HTTP/1.1\r\n{host}Transfer-Encoding: \x0bchunked\r\n\r\n")),
        ("TE in 1.0", format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n")),
        ("space before colon", format!("POST / HTTP/1.1\r\n{host}Content-Length : 4\r\n\r\n")),
        ("obs-fold", format!("GET / HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n")),
        ("folded first field", format!("GET / HTTP/1.1\r\n X: a\r\n{host}\r\n")),
        ("two Host", format!("GET / HTTP/1.1\r\n{host}{host}\r\n")),
        ("two Host, other", format!("GET / HTTP/1.1\r\n{host}host: evil.example\r\n\r\n")),
        ("LF only", "GET / HTTP/1.1\nHost: api.example.com\n\n".to_owned()),
        ("one LF", format!("GET / HTTP/1.1\nX: y\r\n{host}\r\n")),
        ("bare CR", format!("GET / HTTP/1.1\r\n{host}X: a\rHost: evil.example\r\n\r\n")),
        ("NUL", format!("GET / HTTP/1.1\r\n{host}X: a\0b\r\n\r\n")),
        ("blank line first", format!("\r\nGET / HTTP/1.1\r\n{host}\r\n")),
        ("blank line between", format!("GET / HTTP/1.1\r\n{host}\r\n\r\nGET / HTTP/1.1\r\n{host}\r\n")),
        ("two blanks", format!("GET  / HTTP/1.1\r\n{host}\r\n")),
        ("HTTP/0.9", "GET /\r\n\r\n".to_owned()),
        ("HTTP/1.2", format!("GET / HTTP/1.2\r\n{host}\r\n")),
        ("CONNECT", "CONNECT api.example.com:80 HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_owned()),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("hidden Host", format!("GET / HTTP/1.1\r\n{host}Connection: close, Host\r\n\r\n")),
        (
            "hidden length",
            format!("POST / HTTP/1.1\r\n{host}Connection: content-length\r\nContent-Length: 4\r\n\r\n"),
        ),
    ] {
        assert_eq!(refused(&request), Reason::BadProtocol, "{what}");
    }
}

#[test]
fn a_body_by_length_passes_and_the_next_request_is_judged() {
    let post = "POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 40\r\n\r\n";
    let body = "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\nxx";
    assert_eq!(body.len(), 40);
    let text = format!("{post}{body}{GET}");
    assert_eq!(forwarded(&text).unwrap(), text);
    assert_eq!(
        refused(&format!("{post}{body}GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n")),
        Reason::HostMismatch
    );
}

const POST_CHUNKED: &str = "POST / HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_chunked_body_is_written_anew_and_the_next_request_is_judged() {
    let got = forwarded(&format!(
        "{POST_CHUNKED}0005 ;x=y\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n{GET}"
    ));
    let want = format!("{POST_CHUNKED}5\r\nhello\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n{GET}");
    assert_eq!(got.unwrap(), want);
    let evil = "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    assert_eq!(refused(&format!("{POST_CHUNKED}1\r\nx\r\n0\r\n\r\n{evil}")), Reason::HostMismatch);
}

#[test]
fn ambiguous_chunks_are_refused() {
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "0x5\r\nhello\r\n",
        "-5\r\n",
        "\r\n",
        "5 5\r\nhello\r\n",
        "fffffffffffffffff\r\n",
        "5;a\nb\r\nhello\r\n",
        "5;a\rb\r\nhello\r\n",
        "0\r\nHost: evil.example\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nX\r\n\r\n",
        "0\r\nX: a\r\n b\r\n\r\n",
    ] {
        assert_eq!(refused(&format!("{POST_CHUNKED}{body}")), Reason::BadProtocol, "{body:?}");
    }
}

#[test]
fn sizes_are_limited() {
    let host = "Host: api.example.com\r\n";
    let long = format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", "a".repeat(HEAD_LIMIT));
    assert_eq!(refused(&long), Reason::TooLarge);
    let many = format!("GET / HTTP/1.1\r\n{host}{}\r\n", "X: y\r\n".repeat(200));
    assert_eq!(refused(&many), Reason::TooLarge);
    assert_eq!(refused(&format!("{POST_CHUNKED}5;{}\r\n", "a".repeat(2000))), Reason::TooLarge);
    let trailers = "X: y\r\n".repeat(5000);
    assert_eq!(refused(&format!("{POST_CHUNKED}0\r\n{trailers}\r\n")), Reason::TooLarge);
}

const SOCKET: &str = "GET /ws HTTP/1.1\r\nHost: api.example.com\r\nSec-WebSocket-Version: 13\r\n";

#[test]
fn a_websocket_request_holds_what_follows_until_its_answer() {
    let mut requests = requests();
    let mut out = Vec::new();
    let request = format!("{SOCKET}connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\r\n");
    let input = format!("{request}frames");
    assert_eq!(requests.feed(input.as_bytes(), &mut out), Ok(request.len()));
    assert!(requests.upgrading());
    let want = format!("{SOCKET}Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(String::from_utf8(out.clone()).unwrap(), want);
    requests.stay();
    out.clear();
    let refusal = requests.feed(b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", &mut out);
    assert_eq!(refusal.map_err(|r| r.reason), Err(Reason::HostMismatch));
    assert!(out.is_empty());
}

#[test]
fn other_changes_of_protocol_are_not_forwarded() {
    let h2c = "GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: Upgrade, HTTP2-Settings\r\n\
               Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    let plain = "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
    assert_eq!(forwarded(h2c).unwrap(), plain);
    assert_eq!(forwarded(&h2c.replace("h2c", "websocket, h2c")).unwrap(), plain);
    let later = format!("{plain}{SOCKET}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(forwarded(&later).unwrap(), format!("{plain}{SOCKET}\r\n"));
}

#[test]
fn only_a_101_to_websocket_changes_the_protocol() {
    let switched =
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81";
    assert_eq!(upgrade_answer(switched), Some(Answer::Switched));
    assert_eq!(upgrade_answer(&switched[..60]), None);
    let early = [b"HTTP/1.1 103 Early Hints\r\n\r\n".as_slice(), switched].concat();
    assert_eq!(upgrade_answer(&early), Some(Answer::Switched));
    assert_eq!(upgrade_answer(&early[..28]), None);
    for answer in [
        &b"HTTP/1.1 200 OK\r\nUpgrade: websocket\r\n\r\n"[..],
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ] {
        assert_eq!(upgrade_answer(answer), Some(Answer::Stayed));
    }
}

proptest::proptest! {
    #[test]
    fn how_bytes_arrive_never_changes_what_is_forwarded(input: Vec<u8>, step in 1usize..9) {
        for prefix in [&b""[..], POST_CHUNKED.as_bytes(), b"GET / HTTP/1.1\r\nHost: api.example.com\r\n"] {
            let input = [prefix, &input].concat();
            let run = |step: usize| {
                let (mut requests, mut out) = (requests(), Vec::new());
                let end = input.chunks(step).find_map(|piece| requests.feed(piece, &mut out).err());
                (end, out)
            };
            proptest::prop_assert_eq!(run(step), run(usize::MAX));
        }
    }
}

#[test]
fn what_a_refusal_repeats_gives_a_terminal_no_orders() {
    let refusal = forwarded("GET /\u{9b}2J HTTP/1.1\r\nHost: \u{9b}31m.example\r\n\r\n").unwrap_err();
    assert_eq!((refusal.path.as_str(), refusal.host.as_str()), ("/\u{fffd}2J", "\u{fffd}31m.example"));
}
