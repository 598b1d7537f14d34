//! In the place of a brokered host: TLS on both sides, HTTP/1.1 and 2.

use super::ends::{pass, until};
use super::*;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use rustls_pki_types::pem::PemObject as _;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[derive(Clone)]
struct Here;
impl<F: Future + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move { drop(future.await) });
    }
}

const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
const OLD: &[&[u8]] = &[b"http/1.1"];

/// What the upstream saw of a request: version, method, target, host, credential, body.
type Seen = Rc<RefCell<Vec<String>>>;

/// An upstream behind TLS that speaks `protocols` and repeats what it got.
async fn echo(rig: &Rig, protocols: &'static [&'static [u8]]) -> Seen {
    let seen: Seen = Rc::default();
    let (told, acceptor) = (seen.clone(), rig.acceptor(protocols));
    rig.upstream(move |stream| {
        let (told, acceptor) = (told.clone(), acceptor.clone());
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let told = told.clone();
                async move {
                    let (parts, body) = request.into_parts();
                    let key = parts.headers.get("x-api-key").map(|v| v.to_str().unwrap().to_owned());
                    let host = parts.headers.get("host").map(|v| v.to_str().unwrap().to_owned());
                    let body = body.collect().await.unwrap();
                    let trailers = body.trailers().map_or(0, |trailers| trailers.len());
                    let body = body.to_bytes();
                    let line = format!(
                        "{:?} {} {} {host:?} {key:?} {} {trailers}",
                        parts.version,
                        parts.method,
                        parts.uri,
                        body.len()
                    );
                    told.borrow_mut().push(line);
                    Ok::<_, hyper::Error>(http::Response::new(Full::new(body)))
                }
            });
            let io = TokioIo::new(stream);
            if http2 {
                let _ = hyper::server::conn::http2::Builder::new(Here).serve_connection(io, service).await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            }
        }
    })
    .await;
    seen
}

/// The container's end: TLS to `name`, trusting the authority inside alone.
async fn shake(
    rig: &Rig,
    name: &str,
    server: &str,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(rig.ca().as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let stream = rig.connect(name, 443).await;
    TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from(server.to_owned()).unwrap(), stream)
        .await
}

fn post(uri: &str, key: &str, body: &[u8]) -> http::Request<Full<Bytes>> {
    let builder = http::Request::post(uri)
        .header("host", "api.example")
        .header("authorization", format!("Bearer {key}"));
    builder.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
}

async fn ask<B>(stream: TlsStream<TcpStream>, mut request: http::Request<B>) -> (http::StatusCode, Bytes)
where
    B: hyper::body::Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let response = if http2 {
        request.headers_mut().remove("host");
        let (mut sender, connection) = http2::handshake(Here, TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        sender.send_request(request).await.unwrap()
    } else {
        *request.uri_mut() = request.uri().path_and_query().unwrap().to_string().parse().unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        sender.send_request(request).await.unwrap()
    };
    let status = response.status();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

/// A body in pieces with time between them, and trailers.
struct Pieces {
    left: Rc<Cell<usize>>,
    trailers: bool,
    timer: std::pin::Pin<Box<tokio::time::Sleep>>,
}

/// What lies between two of them.
const PAUSE: Duration = Duration::from_millis(2);

impl Pieces {
    fn new(count: usize) -> Self {
        let timer = Box::pin(tokio::time::sleep(PAUSE));
        Pieces { left: Rc::new(Cell::new(count)), trailers: true, timer }
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::ready!(self.timer.as_mut().poll(cx));
        self.timer.as_mut().reset(tokio::time::Instant::now() + PAUSE);
        std::task::Poll::Ready(match self.left.get() {
            0 if std::mem::take(&mut self.trailers) => {
                let trailers =
                    [("x-sum", "7")].map(|(name, sum)| (name.parse().unwrap(), sum.parse().unwrap()));
                Some(Ok(hyper::body::Frame::trailers(trailers.into_iter().collect())))
            }
            0 => None,
            left => {
                self.left.set(left - 1);
                Some(Ok(hyper::body::Frame::data(Bytes::from_static(&[b'x'; 4000]))))
            }
        })
    }
}

#[tokio::test(flavor = "current_thread")]
async fn trailers_of_the_container_reach_the_upstream() {
    local! {
        for inside in [&b"h2"[..], b"http/1.1"] {
            for outside in [BOTH, OLD] {
                let rig = Rig::new();
                let seen = echo(&rig, outside).await;
                let stream = shake(&rig, "api.example", "api.example", &[inside]).await.unwrap();
                let mut request = post("https://api.example/v1", &rig.tokens[1], b"").map(|_| Pieces::new(3));
                // HTTP/1 has them only where they are announced.
                request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
                let (status, body) = ask(stream, request).await;
                assert_eq!((status.as_u16(), body.len()), (200, 12_000));
                assert!(seen.borrow()[0].ends_with(" 12000 1"), "{seen:?}");
            }
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_refusal_over_http2_lets_a_small_body_come_to_its_end() {
    local! {
        let rig = Rig::new();
        // Refused by what it carries, and because there is no upstream.
        for (key, status) in [("nm-evil".to_owned(), 403), (rig.tokens[1].clone(), 502)] {
            let stream = shake(&rig, "api.example", "api.example", &[b"h2"]).await.unwrap();
            let pieces = Pieces::new(15);
            let left = pieces.left.clone();
            let (got, body) = ask(stream, post("https://api.example/v1", &key, b"").map(|_| pieces)).await;
            assert_eq!((got.as_u16(), left.get()), (status, 0));
            assert!(body.starts_with(b"{"), "{body:?}");
        }
        // Of a large one little is read.
        let stream = shake(&rig, "api.example", "api.example", &[b"h2"]).await.unwrap();
        let pieces = Pieces::new(100_000);
        let left = pieces.left.clone();
        let (got, body) = ask(stream, post("https://api.example/v1", "nm-evil", b"").map(|_| pieces)).await;
        assert!(got.as_u16() == 403 && body.starts_with(b"{"), "{got} {body:?}");
        assert!(left.get() > 90_000);
    }
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test(flavor = "current_thread")]
async fn a_client_that_resets_what_it_asks_for_again_and_again_is_put_off() {
    local! {
        let rig = Rig::new();
        echo(&rig, BOTH).await;
        let mut stream = shake(&rig, "api.example", "api.example", &[b"h2"]).await.unwrap();
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        sent.extend(frame(4, 0, 0, &[]));
        let bearer = format!("Bearer {}", rig.tokens[1]);
        // GET, https, /, then :authority and authorization in words.
        let mut head = [&[0x82, 0x87, 0x84, 0x41, 11][..], b"api.example"].concat();
        head.extend([&[0x0f, 8, u8::try_from(bearer.len()).unwrap()][..], bearer.as_bytes()].concat());
        for number in 0..2000 {
            let id = number * 2 + 1;
            sent.extend(frame(1, 5, id, &head));
            sent.extend(frame(3, 0, id, &8u32.to_be_bytes()));
        }
        let _ = stream.write_all(&sent).await;
        let mut got = Vec::new();
        let _ = timeout(PASSES, stream.read_to_end(&mut got)).await.unwrap();
        let (mut rest, mut calm) = (&got[..], false);
        while let [a, b, c, kind, _, _, _, _, _, behind @ ..] = rest {
            let (payload, next) = behind.split_at(u32::from_be_bytes([0, *a, *b, *c]) as usize);
            // GOAWAY, ENHANCE_YOUR_CALM.
            calm |= *kind == 7 && payload[4..8] == 11u32.to_be_bytes();
            rest = next;
        }
        assert!(calm, "{got:?}");
        assert!(rig.dialled().len() < 100 && rig.broker.open.get() == 0, "{:?}", rig.dialled());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_http2_connection_that_nobody_uses_ends_with_its_last_answer() {
    local! {
        let rig = Rig::new();
        let (ended, more) = (Rc::new(Cell::new(0)), Rc::new(tokio::sync::Notify::new()));
        let (count, told, acceptor) = (ended.clone(), more.clone(), rig.acceptor(BOTH));
        rig.upstream(move |stream| {
            let (count, told, acceptor) = (count.clone(), told.clone(), acceptor.clone());
            async move {
                let stream = acceptor.accept(stream).await.unwrap();
                let service = service_fn(move |_| {
                    let told = told.clone();
                    async move {
                        told.notified().await;
                        Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from_static(b"late"))))
                    }
                });
                let _ = hyper::server::conn::http2::Builder::new(Here).serve_connection(TokioIo::new(stream), service).await;
                count.set(count.get() + 1);
            }
        })
        .await;
        let stream = shake(&rig, "api.example", "api.example", &[b"h2"]).await.unwrap();
        let request = post("https://api.example/v1", &rig.tokens[1], b"");
        let asked = tokio::task::spawn_local(ask(stream, request));
        until(|| rig.broker.pool.lines() == 1).await;
        pass(Duration::from_secs(91)).await;
        // Nothing new is asked of it, and what was asked is answered.
        until(|| rig.broker.pool.lines() == 0).await;
        assert_eq!(ended.get(), 0);
        more.notify_one();
        assert_eq!(timeout(PASSES, asked).await.unwrap().unwrap().1, "late");
        until(|| ended.get() == 1).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn however_many_requests_there_were_one_task_waits_to_end_the_connection_that_they_used() {
    local! {
        let rig = Rig::new();
        let ended = rig.answers("answer").await;
        for _ in 0..20 {
            assert!(rig.ask(&rig.get("/plain/v1", "")).await.ends_with("answer"));
        }
        until(|| rig.broker.pool.waiting() == 1).await;
        assert_eq!((rig.dialled().len(), ended.get()), (1, 0));
        pass(Duration::from_secs(80)).await;
        assert!(rig.ask(&rig.get("/plain/v1", "")).await.ends_with("answer"));
        until(|| rig.broker.pool.waiting() == 1).await;
        // It was used in between.
        pass(Duration::from_secs(20)).await;
        assert_eq!((rig.dialled().len(), ended.get()), (1, 0));
        pass(Duration::from_secs(80)).await;
        until(|| ended.get() == 1 && rig.broker.pool.waiting() == 0).await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn requests_at_once_leave_as_many_connections_for_the_next_ones() {
    const AT_ONCE: usize = 40;
    local! {
        let (rig, together) = (Rc::new(Rig::new()), Rc::new(tokio::sync::Barrier::new(AT_ONCE)));
        rig.upstream(move |mut stream| {
            let together = together.clone();
            async move {
                while read_request(&mut stream).await.is_some() {
                    together.wait().await;
                    stream.write_all(ok("answer").as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        for _ in 0..3 {
            let asked: Vec<_> = (0..AT_ONCE)
                .map(|_| {
                    let rig = rig.clone();
                    tokio::task::spawn_local(async move { rig.ask(&rig.get("/plain/v1", "")).await })
                })
                .collect();
            for answer in asked {
                assert!(answer.await.unwrap().ends_with("answer"));
            }
            until(|| rig.broker.pool.waiting() == 1).await;
            assert_eq!(rig.dialled().len(), AT_ONCE);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn any_version_inside_meets_any_version_outside() {
    local! {
        for inside in [&b"h2"[..], b"http/1.1"] {
            for outside in [BOTH, OLD] {
                let rig = Rig::new();
                let seen = echo(&rig, outside).await;
                let stream = shake(&rig, "api.example", "api.example", &[inside]).await.unwrap();
                let (status, body) = ask(stream, post("https://api.example/v1/a%2Fb?q=%23", &rig.tokens[1], b"hello")).await;
                assert_eq!((status.as_u16(), &body[..]), (200, &b"hello"[..]));
                let (version, target, host) = match outside.len() {
                    2 => ("HTTP/2.0", "https://api.example/v1/a%2Fb?q=%23", "None"),
                    _ => ("HTTP/1.1", "/v1/a%2Fb?q=%23", "Some(\"api.example\")"),
                };
                let expected = format!("{version} POST {target} {host} Some(\"{SECRET}\") 5 0");
                assert_eq!(*seen.borrow(), [expected]);
                assert_eq!(rig.dialled(), ["api.example:443"]);
                assert_eq!(rig.lines(1).await[0]["target"], "api.example:443");
            }
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_key_of_ones_own_is_a_403_and_none_is_a_401_that_asks_for_one() {
    local! {
        for protocol in [&b"h2"[..], b"http/1.1"] {
            let rig = Rig::new();
            let seen = echo(&rig, &[b"h2"]).await;
            let dead = phantom::token(&rig.broker.grant(1).unwrap().provider.token, &[77; phantom::MOST]);
            for (key, status) in [("nm-evil", 403), (dead.as_str(), 401), (rig.tokens[0].as_str(), 401)] {
                let stream = shake(&rig, "api.example", "api.example", &[protocol]).await.unwrap();
                let (got, body) = ask(stream, post("https://api.example/v1", key, b"")).await;
                assert_eq!(got.as_u16(), status, "{key}");
                let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                assert!(body["error"]["message"].as_str().unwrap().starts_with("terok: named: "), "{body}");
            }
            let stream = shake(&rig, "api.example", "api.example", &[protocol]).await.unwrap();
            let mut request = post("https://api.example/v1", "", b"");
            request.headers_mut().remove("authorization");
            assert_eq!(ask(stream, request).await.0.as_u16(), 401);
            assert!(seen.borrow().is_empty() && rig.dialled().is_empty());
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn another_server_name_or_authority_is_refused() {
    local! {
        let rig = Rig::new();
        echo(&rig, &[b"h2"]).await;
        assert!(shake(&rig, "api.example", "evil.example", &[b"h2"]).await.is_err());
        assert!(rig.log().contains("sni-mismatch"));
        for protocol in [&b"h2"[..], b"http/1.1"] {
            let stream = shake(&rig, "api.example", "api.example", &[protocol]).await.unwrap();
            let mut request = post("https://evil.example/v1", &rig.tokens[1], b"");
            request.headers_mut().insert("host", "evil.example".parse().unwrap());
            assert_eq!(ask(stream, request).await.0.as_u16(), 421);
        }
        assert!(rig.dialled().is_empty());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_base_url_is_there_over_tls_too() {
    local! {
        let rig = Rig::new();
        rig.replies(ok("fine")).await;
        let stream = shake(&rig, "vault.terok.internal", "vault.terok.internal", &[b"h2"]).await.unwrap();
        let request = post("https://vault.terok.internal/plain/v1", &rig.tokens[0], b"");
        assert_eq!(ask(stream, request).await.1, "fine");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_upstream_with_a_certificate_of_nobody_is_a_502_and_gets_no_key() {
    local! {
        let rig = Rig::new();
        let (config, _) = authority();
        let acceptor = TlsAcceptor::from(config);
        rig.upstream(move |stream| {
            let acceptor = acceptor.clone();
            async move { assert!(acceptor.accept(stream).await.is_err()) }
        })
        .await;
        let stream = shake(&rig, "api.example", "api.example", &[b"h2"]).await.unwrap();
        let (status, body) = ask(stream, post("https://api.example/v1", &rig.tokens[1], b"")).await;
        assert_eq!(status.as_u16(), 502);
        assert!(String::from_utf8_lossy(&body).contains("TLS"), "{body:?}");
    }
}

#[test]
fn a_brokered_host_is_met_by_the_broker_on_its_web_ports_alone() {
    let rig = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { Rig::new() });
    let meets =
        |name: &str, port| rig.broker.meets(&Target { host: Host::Name(name.parse().unwrap()), port });
    assert!(matches!(meets("api.example", 443), Some(Meets::Broker(Entrance::Host { grant: 1, .. }))));
    assert_eq!(meets("api.example", 80), Some(Meets::Nobody));
    assert_eq!(meets("vault.terok.internal", 22), Some(Meets::Nobody));
    assert_eq!((meets("api.example", 22), meets("other.example", 443)), (None, None));
    // What is left of its ports is for SSH alone.
    assert!(rig.broker.is_brokered(&"api.example".parse().unwrap()));
    assert!(!rig.broker.is_brokered(&"other.example".parse().unwrap()));
}

#[tokio::test(flavor = "current_thread")]
async fn no_credential_goes_out_behind_a_body() {
    local! {
        let rig = Rig::new();
        let seen = echo(&rig, &[b"h2"]).await;
        let stream = shake(&rig, "api.example", "api.example", &[b"h2"]).await.unwrap();
        let (mut sender, connection) = http2::handshake(Here, TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(async move { drop(connection.await) });
        let mut trailers = http::HeaderMap::new();
        for (name, value) in [("x-sum", "1"), ("x-api-key", "evil"), ("x_api_key", "evil"), ("authorization", "Bearer evil"), ("cookie", "a=b"), ("host", "evil.example")] {
            trailers.insert(http::HeaderName::from_static(name), value.parse().unwrap());
        }
        let frames = [hyper::body::Frame::data(Bytes::from_static(b"hello")), hyper::body::Frame::trailers(trailers)];
        let mut frames = std::collections::VecDeque::from(frames);
        let body = Behind(std::iter::from_fn(move || frames.pop_front()));
        let request = http::Request::post("https://api.example/v1").header("authorization", format!("Bearer {}", rig.tokens[1]));
        assert_eq!(sender.send_request(request.body(body).unwrap()).await.unwrap().status().as_u16(), 200);
        assert!(seen.borrow()[0].ends_with(" 5 1"), "{seen:?}");
    }
}

/// A body of frames.
struct Behind<F>(F);

impl<F: Iterator<Item = hyper::body::Frame<Bytes>> + Unpin> hyper::body::Body for Behind<F> {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(self.get_mut().0.next().map(Ok))
    }
}
