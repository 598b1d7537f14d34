use super::*;
use crate::resolve::Files;
use tokio::net::TcpListener;
use tokio::task::LocalSet;

fn settings(scheme: Scheme, port: u16, login: Option<(&str, &str)>) -> settings::Upstream {
    let login = login.map(|(user, password)| (user.to_owned(), password.to_owned()));
    settings::Upstream { scheme, host: "127.0.0.1".to_owned(), port, login, except: Vec::new() }
}

fn to(host: &str, port: u16) -> Target {
    let host = match host.parse() {
        Ok(ip) => Host::Literal(ip),
        Err(_) => Host::Name(host.parse().unwrap()),
    };
    Target { host, port }
}

/// What a proxy does: each step waits for these bytes and answers with those.
type Script = Vec<(Vec<u8>, Vec<u8>)>;

/// Asks a proxy that acts by `script`, and then ends, for `target`; what it got other than that comes back as well.
async fn ask(
    scheme: Scheme,
    login: Option<(&str, &str)>,
    target: Target,
    script: Script,
) -> (Result<TcpStream, Failure>, Option<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Upstream::new(settings(scheme, listener.local_addr().unwrap().port(), login));
    let resolver = Resolver::new(Files::at("/nonexistent".into(), "/nonexistent".into(), 1));
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (expected, answer) in script {
            let mut got = vec![0; expected.len()];
            if stream.read_exact(&mut got).await.is_err() || got != expected {
                return Some(String::from_utf8_lossy(&got).into_owned());
            }
            stream.write_all(&answer).await.unwrap();
        }
        None
    };
    let local = LocalSet::new();
    tokio::join!(local.run_until(upstream.connect(&resolver, &target)), serve)
}

fn connect(to: &str, more: &str) -> Vec<u8> {
    format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{more}\r\n").into_bytes()
}

async fn rest(asked: Result<TcpStream, Failure>) -> String {
    let mut text = String::new();
    asked.unwrap().read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test(flavor = "current_thread")]
async fn http_is_asked_by_name_and_what_follows_its_head_is_the_servers() {
    let answer = b"HTTP/1.1 200 Connection established\r\nContent-Length: 9\r\n\r\n220 first words".to_vec();
    let script = vec![(connect("a.example:443", ""), answer)];
    let (asked, unexpected) = ask(Scheme::Http, None, to("a.example", 443), script).await;
    assert_eq!((rest(asked).await.as_str(), unexpected), ("220 first words", None));
}

#[tokio::test(flavor = "current_thread")]
async fn http_gets_the_login_and_addresses_in_brackets() {
    let script = vec![(
        connect("[2001:db8::1]:22", "Proxy-Authorization: Basic dXNlcjpwOnc=\r\n"),
        b"HTTP/1.0 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\nSSH".to_vec(),
    )];
    let (asked, unexpected) = ask(Scheme::Http, Some(("user", "p:w")), to("2001:db8::1", 22), script).await;
    assert_eq!((rest(asked).await.as_str(), unexpected), ("SSH", None));
}

#[tokio::test(flavor = "current_thread")]
async fn http_refusals_are_told_in_the_proxys_words_without_its_orders_to_terminals() {
    for (answer, said) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\n", "upstream_proxy: 403 Forbidden"),
        ("HTTP/1.1 502 \t\r\nX: y\r\n\r\nbody", "upstream_proxy: 502 "),
        (
            "HTTP/1.1 407 Authentication Required\r\n\r\n",
            "upstream_proxy: 407 Authentication Required; give user",
        ),
        ("HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\n\r\n", "upstream_proxy: 301 Moved"),
    ] {
        let script = vec![(connect("a.example:443", ""), answer.as_bytes().to_vec())];
        let (asked, _) = ask(Scheme::Http, None, to("a.example", 443), script).await;
        let error = asked.unwrap_err().to_string();
        assert!(error.starts_with(said), "{error}");
    }
    assert_eq!(printable("Go\x1b[31m away\u{202e}"), "Go[31m away");
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_no_http_or_has_no_end_is_refused() {
    let endless = |line: &str| format!("HTTP/1.1 200 OK\r\n{}", line.repeat(HEAD)).into_bytes();
    for (answer, said) in [
        (b"220 mail.example ESMTP\r\n".to_vec(), "is not HTTP"),
        (b"\x05\x00".to_vec(), "is not HTTP"),
        (endless("x"), "no end"),
        (endless("x: y\r\n"), "is not HTTP"),
        (b"HTTP/1.1 200".to_vec(), "ended the connection"),
    ] {
        let script = vec![(connect("a.example:443", ""), answer)];
        let (asked, _) = ask(Scheme::Http, None, to("a.example", 443), script).await;
        let error = asked.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn socks_is_asked_by_name_and_by_address() {
    let ok = |bound: &[u8]| [&[5, 0, 0][..], bound, &[0, 80], b"first words"].concat();
    for (target, request, bound) in [
        (to("a.example", 443), [&[5, 1, 0, 3, 9][..], b"a.example", &[1, 187]].concat(), vec![1, 0, 0, 0, 0]),
        (to("192.0.2.1", 22), vec![5, 1, 0, 1, 192, 0, 2, 1, 0, 22], vec![3, 2, b'a', b'b']),
        (
            to("2001:db8::1", 22),
            [&[5, 1, 0, 4][..], &"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets(), &[0, 22]]
                .concat(),
            [&[4][..], &[0; 16]].concat(),
        ),
    ] {
        let script = vec![(vec![5, 1, 0], vec![5, 0]), (request, ok(&bound))];
        let (asked, unexpected) = ask(Scheme::Socks5, None, target, script).await;
        assert_eq!((rest(asked).await.as_str(), unexpected), ("first words", None));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn socks_gets_the_login_where_it_asks_for_one() {
    let request = [&[5, 1, 0, 3, 9][..], b"a.example", &[1, 187]].concat();
    let script = || {
        vec![
            (vec![5, 2, 0, 2], vec![5, 2]),
            ([&[1, 4][..], b"user", &[2], b"pw"].concat(), vec![1, 0]),
            (request.clone(), vec![5, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        ]
    };
    let (asked, unexpected) = ask(Scheme::Socks5, Some(("user", "pw")), to("a.example", 443), script()).await;
    assert!(asked.is_ok() && unexpected.is_none());
    let mut refused = script();
    refused[1].1 = vec![1, 1];
    let (asked, _) = ask(Scheme::Socks5, Some(("user", "pw")), to("a.example", 443), refused).await;
    assert!(asked.unwrap_err().to_string().contains("are refused"));
    let long = "x".repeat(256);
    let (asked, _) = ask(
        Scheme::Socks5,
        Some((long.as_str(), "pw")),
        to("a.example", 443),
        vec![(vec![5, 2, 0, 2], vec![5, 2])],
    )
    .await;
    assert!(asked.unwrap_err().to_string().contains("255 octets"));
}

#[tokio::test(flavor = "current_thread")]
async fn socks_errors_and_what_is_no_socks_are_told_apart() {
    let request = [&[5, 1, 0, 3, 9][..], b"a.example", &[1, 187]].concat();
    let greeted = |answer: &[u8]| vec![(vec![5, 1, 0], vec![5, 0]), (request.clone(), answer.to_vec())];
    for (script, said) in [
        (greeted(&[5, 2, 0, 1, 0, 0, 0, 0, 0, 0]), "SOCKS5 error 2, not allowed by its rules"),
        (greeted(&[5, 99, 0, 1]), "SOCKS5 error 99, unknown"),
        (greeted(&[4, 0, 0, 1]), "not SOCKS5"),
        (greeted(&[5, 0, 0, 9]), "not SOCKS5"),
        (greeted(&[5, 0]), "ended the connection"),
        (vec![(vec![5, 1, 0], b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())], "not SOCKS5"),
        (vec![(vec![5, 1, 0], vec![4, 0])], "not SOCKS5"),
        (vec![(vec![5, 1, 0], vec![5, 0xff])], "another kind"),
    ] {
        let (asked, _) = ask(Scheme::Socks5, None, to("a.example", 443), script).await;
        let error = asked.unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_ipv6_address_is_dialled_and_shown_in_brackets() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let address = listener.local_addr().unwrap();
    let settings =
        settings::Upstream { host: "::1".to_owned(), ..settings(Scheme::Http, address.port(), None) };
    let upstream = Upstream::new(settings);
    assert_eq!(upstream.to_string(), address.to_string());
    let resolver = Resolver::new(Files::at("/nonexistent".into(), "/nonexistent".into(), 1));
    assert_eq!(upstream.addresses(&resolver).await.unwrap(), [address]);
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_proxy_that_trickles_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let resolver = Resolver::new(Files::at("/nonexistent".into(), "/nonexistent".into(), 1));
    let trickle = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    let upstream = Upstream::new(settings(Scheme::Http, port, None));
    let target = to("a.example", 443);
    let asked = async { LocalSet::new().run_until(upstream.connect(&resolver, &target)).await };
    tokio::select! {
        asked = asked => assert!(matches!(asked.unwrap_err(), Failure::Slow)),
        () = trickle => unreachable!(),
    }
}

#[test]
fn some_targets_are_dialled_without_it() {
    let except =
        ["corp.example", "*.corp.example", "192.0.2.0/24", "2001:db8::1"].map(str::to_owned).to_vec();
    let upstream = Upstream::new(settings::Upstream { except, ..settings(Scheme::Http, 1, None) });
    for (host, carried) in [
        ("corp.example", false),
        ("a.corp.example", false),
        ("acorp.example", true),
        ("192.0.2.200", false),
        ("192.0.3.1", true),
        ("2001:db8::1", false),
        ("2001:db8::2", true),
    ] {
        assert_eq!(upstream.carries(&to(host, 443).host), carried, "{host}");
    }
    assert!(!upstream.carries(&Host::Loopback));
    assert_eq!(upstream.to_string(), "127.0.0.1:1");
}

#[test]
fn base64_is_padded() {
    for (text, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
        assert_eq!(base64(text.as_bytes()), coded);
    }
    assert_eq!(base64(&[0xfb, 0xff]), "+/8=");
}
