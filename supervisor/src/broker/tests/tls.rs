//! In the place of a brokered host: TLS on both sides, HTTP/1.1 and 2.

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

async fn ask(
    stream: TlsStream<TcpStream>,
    mut request: http::Request<Full<Bytes>>,
) -> (http::StatusCode, Bytes) {
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
