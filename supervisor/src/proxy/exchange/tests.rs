use super::super::hello::tests::client_hello;
use super::super::relay::tests::{local, pair};
use super::*;
use crate::rig::PASSES;
use std::time::Duration;
use terok_policy::judge::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

struct Exchange {
    client: TcpStream,
    server: TcpStream,
    end: tokio::task::JoinHandle<Result<(), Fault>>,
}

async fn exchange_on(port: u16) -> Exchange {
    let ((client, inner_client), (inner_server, server)) = (pair().await, pair().await);
    let end = tokio::task::spawn_local(async move {
        let relay = Relay::new(super::super::relay::PIPES);
        let (client, upstream) = (Socket::new(inner_client), Socket::new(inner_server));
        let mut gate = Gate::new("api.example.com".parse().unwrap(), port);
        let judged = match super::super::gate::is_web(port) {
            true => opening(&relay, &client, &mut gate).await?,
            false => Some(Judged { gate: &mut gate, out: Vec::new(), rest: Vec::new() }),
        };
        exchange(&relay, &client, &upstream, judged, &Moved::default()).await
    });
    Exchange { client, server, end }
}

async fn text(from: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    timeout(PASSES, from.read_exact(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8(bytes).unwrap()
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    let end = timeout(PASSES, stream.read_to_end(&mut bytes)).await.unwrap();
    end.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}

fn reason(end: Result<(), Fault>) -> Reason {
    match end.unwrap_err() {
        Fault::Refused(Refusal::Bytes(r)) => r.reason,
        Fault::Refused(Refusal::Request(r)) => r.reason,
        other => panic!("{other:?}"),
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
const EVIL: &str = "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";

#[tokio::test(flavor = "current_thread")]
async fn a_second_request_for_another_host_resets_both_sides() {
    local! {
        for (port, pipelined) in [(80, false), (80, true), (8080, false), (8080, true)] {
            let Exchange { mut client, mut server, end } = exchange_on(port).await;
            if pipelined {
                client.write_all(format!("{GET}{EVIL}").as_bytes()).await.unwrap();
            } else {
                client.write_all(GET.as_bytes()).await.unwrap();
                assert_eq!(text(&mut server, GET.len()).await, GET);
                server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                assert_eq!(text(&mut client, 27).await, "HTTP/1.1 204 No Content\r\n\r\n");
                client.write_all(EVIL.as_bytes()).await.unwrap();
            }
            assert_eq!(reason(end.await.unwrap()), Reason::HostMismatch);
            let mut seen = Vec::new();
            let _ = server.read_to_end(&mut seen).await;
            assert!(!String::from_utf8_lossy(&seen).contains("evil"));
            assert!(is_reset(&mut client).await);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn tls_flows_once_the_hello_names_the_server() {
    local! {
        let Exchange { mut client, mut server, .. } = exchange_on(443).await;
        let hello = client_hello(Some("api.example.com"), 9999);
        for byte in &hello {
            client.write_u8(*byte).await.unwrap();
        }
        let mut got = vec![0; hello.len()];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(got, hello);
        server.write_all(b"\x16server").await.unwrap();
        assert_eq!(text(&mut client, 7).await, "\x16server");
        client.write_all(b"more").await.unwrap();
        assert_eq!(text(&mut server, 4).await, "more");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_speaks_first_is_heard_where_the_port_is_no_web_port() {
    local! {
        let Exchange { mut client, mut server, .. } = exchange_on(25).await;
        server.write_all(b"220 hello\r\n").await.unwrap();
        assert_eq!(text(&mut client, 11).await, "220 hello\r\n");
        client.write_all(b"EHLO x\r\n").await.unwrap();
        assert_eq!(text(&mut server, 8).await, "EHLO x\r\n");
    }
}

const SOCKET: &str =
    "GET /ws HTTP/1.1\r\nHost: api.example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

#[tokio::test(flavor = "current_thread")]
async fn a_websocket_is_opaque_once_the_server_agreed() {
    local! {
        for port in [80, 443, 8080] {
            let Exchange { mut client, mut server, .. } = exchange_on(port).await;
            client.write_all(SOCKET.as_bytes()).await.unwrap();
            client.write_all(b"early frame").await.unwrap();
            assert_eq!(text(&mut server, SOCKET.len()).await, SOCKET);
            let early = timeout(Duration::from_millis(50), server.read_u8()).await;
            assert!(early.is_err(), "a frame passed before the answer");
            server.write_all(format!("{SWITCHED}frame").as_bytes()).await.unwrap();
            assert_eq!(text(&mut client, SWITCHED.len() + 5).await, format!("{SWITCHED}frame"));
            assert_eq!(text(&mut server, 11).await, "early frame");
            client.write_all(EVIL.as_bytes()).await.unwrap();
            assert_eq!(text(&mut server, EVIL.len()).await, EVIL, "frames are not read");
            server.write_all(b"pong").await.unwrap();
            assert_eq!(text(&mut client, 4).await, "pong");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn where_the_server_declines_a_websocket_the_next_request_is_judged() {
    local! {
        let Exchange { mut client, mut server, end } = exchange_on(80).await;
        client.write_all(format!("{SOCKET}{GET}{EVIL}").as_bytes()).await.unwrap();
        assert_eq!(text(&mut server, SOCKET.len()).await, SOCKET);
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno";
        server.write_all(answer.as_bytes()).await.unwrap();
        assert_eq!(text(&mut client, answer.len()).await, answer);
        assert_eq!(reason(end.await.unwrap()), Reason::HostMismatch);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_that_ends_after_its_request_still_gets_the_answer() {
    local! {
        let Exchange { mut client, mut server, end } = exchange_on(80).await;
        client.write_all(GET.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, GET.as_bytes());
        server.write_all(b"HTTP/1.1 200 OK\r\n\r\nbody").await.unwrap();
        drop(server);
        got.clear();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got.ends_with(b"body"));
        assert!(end.await.unwrap().is_ok());
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn a_client_that_leaves_its_hello_incomplete_is_slow() {
    local! {
        for (port, head) in [(443, &b"\x16\x03\x01"[..]), (443, b""), (80, b"GET / HT"), (8080, b"GET /")] {
            let Exchange { mut client, end, server: _server } = exchange_on(port).await;
            client.write_all(head).await.unwrap();
            assert!(matches!(end.await.unwrap(), Err(Fault::Slow)), "{port} {head:?}");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_large_upload_passes_with_bounded_memory() {
    local! {
        let Exchange { mut client, mut server, .. } = exchange_on(80).await;
        let head = "POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 33554432\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(text(&mut server, head.len()).await, head);
        let block = vec![7; 1 << 20];
        let mut got = vec![0; 1 << 20];
        let send = async {
            for _ in 0..32 {
                client.write_all(&block).await.unwrap();
            }
        };
        let receive = async {
            for _ in 0..32 {
                server.read_exact(&mut got).await.unwrap();
                assert!(got == block);
            }
        };
        tokio::join!(send, receive);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_upload_that_never_pauses_leaves_others_their_turn() {
    local! {
        let ((client, inner_client), (inner_server, server)) = (pair().await, pair().await);
        // Both ends on threads of their own: bytes are always there, and always taken.
        let (mut client, mut server) = (client.into_std().unwrap(), server.into_std().unwrap());
        let whole = 64 << 20;
        let sending = std::thread::spawn(move || {
            use std::io::Write as _;
            client.set_nonblocking(false).unwrap();
            let head = format!("POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: {whole}\r\n\r\n");
            let _ = client.write_all(head.as_bytes());
            let block = vec![0; 1 << 20];
            while client.write_all(&block).is_ok() {}
        });
        let taking = std::thread::spawn(move || {
            use std::io::Read as _;
            server.set_nonblocking(false).unwrap();
            let mut block = vec![0; 1 << 20];
            while server.read(&mut block).is_ok_and(|n| n > 0) {}
        });
        let moved = std::rc::Rc::new(Moved::default());
        let counted = moved.clone();
        let served = tokio::task::spawn_local(async move {
            let relay = Relay::new(super::super::relay::PIPES);
            let (client, upstream) = (Socket::new(inner_client), Socket::new(inner_server));
            let mut gate = Gate::new("api.example.com".parse().unwrap(), 80);
            let judged = Judged { gate: &mut gate, out: Vec::new(), rest: Vec::new() };
            let _ = exchange(&relay, &client, &upstream, Some(judged), &counted).await;
        });
        let (mut turns, mut longest, mut last) = (0, 0, 0);
        while !served.is_finished() {
            tokio::task::yield_now().await;
            longest = longest.max(moved.up.get() - last);
            last = moved.up.get();
            turns += 1;
        }
        assert!(last >= whole, "{last}");
        assert!(longest <= 1 << 20, "{longest} octets in one of {turns} turns");
        sending.join().unwrap();
        taking.join().unwrap();
    }
}

/// `openssl` with `arguments`, `None` (said why) where it is not installed.
fn openssl(arguments: &[&str]) -> Option<std::process::Child> {
    use std::process::{Command, Stdio};
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            terok_need::missing("openssl", error);
            None
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn openssl_gets_through_with_and_without_a_second_hello() {
    local! {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let (key, cert) = (file("key"), file("cert"));
        let made = openssl(&[
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=a",
            "-keyout", &key, "-out", &cert,
        ]);
        let Some(mut made) = made else { return };
        assert!(made.wait().unwrap().success());
        // The first group is the one a client sends a share of: P-521 makes the server ask again.
        for (version, group) in [("-tls1_3", "X25519"), ("-tls1_3", "P-521"), ("-tls1_2", "X25519:P-256")] {
            let mut server = openssl(&[
                "s_server", "-accept", "127.0.0.1:0", "-key", &key, "-cert", &cert, "-groups", group, "-rev",
            ]).unwrap();
            let mut said = std::io::BufReader::new(server.stdout.take().unwrap());
            let address = loop {
                let mut line = String::new();
                assert_ne!(std::io::BufRead::read_line(&mut said, &mut line).unwrap(), 0, "no server");
                if let Some(address) = line.trim().strip_prefix("ACCEPT ") {
                    break address.to_owned();
                }
            };
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = listener.local_addr().unwrap().to_string();
            let mut client = openssl(&[
                "s_client", "-connect", &proxy, "-servername", "api.example.com", "-groups", "X25519:P-521:P-256", version,
                "-quiet", "-no_ign_eof",
            ]).unwrap();
            let (client_side, _) = listener.accept().await.unwrap();
            let upstream = TcpStream::connect(&address).await.unwrap();
            let served = tokio::task::spawn_local(async move {
                let relay = Relay::new(super::super::relay::PIPES);
                let (client, upstream) = (Socket::new(client_side), Socket::new(upstream));
                let mut gate = Gate::new("api.example.com".parse().unwrap(), 443);
                let judged = opening(&relay, &client, &mut gate).await?;
                exchange(&relay, &client, &upstream, judged, &Moved::default()).await
            });
            std::io::Write::write_all(client.stdin.as_mut().unwrap(), b"hello\n").unwrap();
            let mut answers = client.stdout.take().unwrap();
            let answer = tokio::task::spawn_blocking(move || {
                let mut answer = [0; 5];
                std::io::Read::read_exact(&mut answers, &mut answer).map(|()| answer)
            });
            let answer = timeout(PASSES, answer).await;
            let _ = (client.kill(), client.wait(), server.kill(), server.wait());
            assert_eq!(&answer.unwrap().unwrap().unwrap(), b"olleh", "{version} {group}");
            served.abort();
        }
    }
}
