//! Reaching a token endpoint: verified TLS, the floor, and the proxy of the host's network, as for every connection that terok makes. No redirect is
//! followed: a refresh token goes to the place its provider names.

use super::token;
use crate::flows::{self, Target};
use crate::proxy::{Upstream, dial};
use crate::resolve::{Files, Resolver};
use crate::trust;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use terok_kernel::rtnl::Rtnl;
use terok_policy::floor::floor;
use terok_policy::provider::{Endpoint, Host, OAuth};
use terok_policy::settings;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

/// The longest answer that is read.
const ANSWER: usize = 256 << 10;

/// Sends `refresh` to the endpoint of `oauth`; status and body of the answer.
pub(super) async fn post(
    oauth: &OAuth,
    refresh: &str,
    upstream: Option<&settings::Upstream>,
) -> anyhow::Result<(u16, Zeroizing<Vec<u8>>)> {
    let endpoint =
        Endpoint::parse(&oauth.token_url).map_err(|reason| anyhow::anyhow!("token_url: {reason}"))?;
    let (kind, body) = token::request(oauth, refresh);
    let request = Request::post(if endpoint.path.is_empty() { "/" } else { &endpoint.path })
        .header(header::HOST, endpoint.authority())
        .header(header::CONTENT_TYPE, kind)
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("terok/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::copy_from_slice(&body)))?;
    send(&endpoint, request, upstream).await
}

/// Sends `request` to `endpoint`; status and body of the answer.
pub(super) async fn send(
    endpoint: &Endpoint,
    request: Request<Full<Bytes>>,
    upstream: Option<&settings::Upstream>,
) -> anyhow::Result<(u16, Zeroizing<Vec<u8>>)> {
    let stream = connect(endpoint, upstream).await?;
    if !endpoint.tls {
        return exchange(stream, request).await;
    }
    let name = match &endpoint.host {
        Host::Name(name) => ServerName::try_from(name.as_str().to_owned())?,
        Host::Address(ip) => ServerName::from(*ip),
        Host::Loopback => ServerName::try_from("localhost")?,
    };
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trust::client()?));
    exchange(connector.connect(name, stream).await?, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<(u16, Zeroizing<Vec<u8>>)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::task::spawn_local(connection);
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let read = Limited::new(response.into_body(), ANSWER).collect().await;
    driver.abort();
    let body = read.map_err(|error| anyhow::anyhow!("its answer was not read: {error}"))?;
    Ok((status, Zeroizing::new(body.to_bytes().to_vec())))
}

/// A connection to the endpoint.
async fn connect(endpoint: &Endpoint, upstream: Option<&settings::Upstream>) -> anyhow::Result<TcpStream> {
    let resolver = Resolver::new(Files::host_files());
    let host = match &endpoint.host {
        Host::Name(name) => flows::Host::Name(name.clone()),
        Host::Address(ip) => flows::Host::Literal(*ip),
        Host::Loopback => flows::Host::Loopback,
    };
    let target = Target { host, port: endpoint.port };
    if let Some(via) = upstream.cloned().map(Upstream::new).filter(|via| via.carries(&target.host)) {
        return Ok(via.connect(&resolver, &target).await?);
    }
    let addresses: Vec<IpAddr> = match &endpoint.host {
        Host::Name(name) => {
            let found = resolver.addresses(name).await?;
            let routes = Rtnl::open()?;
            let above = |ip: &IpAddr| floor(*ip).is_none() && !routes.is_local(*ip).unwrap_or(true);
            let open: Vec<_> = found.into_iter().filter(above).collect();
            anyhow::ensure!(!open.is_empty(), "{name} leads to a private address, which no name may");
            open
        }
        // Written in the provider's definition, which the user chose (E3).
        Host::Address(ip) => vec![*ip],
        Host::Loopback => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    };
    let addresses: Vec<SocketAddr> =
        addresses.iter().map(|ip| SocketAddr::new(ip.to_canonical(), endpoint.port)).collect();
    Ok(dial(&addresses).await?)
}
