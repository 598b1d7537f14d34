//! `terok vault test`: one real request with a credential, told on standard input, by a process of the person who asks. No container has to do with it.

use super::{Credential, reach};
use crate::broker;
use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, header};
use std::io::Read as _;
use std::time::Duration;
use terok_vault::attempt::{Answer, Attempt};
use zeroize::Zeroizing;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// What is told is shorter.
const LIMIT: u64 = 256 << 10;

/// Reads an [`Attempt`] from standard input and prints the [`Answer`].
pub(crate) fn run() -> anyhow::Result<()> {
    terok_kernel::program::hide_memory()?;
    let mut told = Zeroizing::new(Vec::with_capacity(LIMIT as usize));
    std::io::stdin().take(LIMIT).read_to_end(&mut told)?;
    // Not with the parser's words, which could hold some of it.
    let attempt: Attempt =
        serde_json::from_slice(&told).ok().context("this is for terok vault test, not by hand")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let answer: Answer = local.block_on(&runtime, async {
        match tokio::time::timeout(PATIENCE, send(&attempt)).await {
            Ok(answer) => answer.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
        }
    });
    println!("{}", serde_json::to_string(&answer)?);
    Ok(())
}

async fn send(attempt: &Attempt) -> anyhow::Result<u16> {
    let mut request = Request::get(format!("{}{}", attempt.endpoint.path, attempt.request.path))
        .header(header::HOST, attempt.endpoint.authority())
        .header(header::ACCEPT, "application/json")
        .header(header::USER_AGENT, concat!("terok/", env!("CARGO_PKG_VERSION")));
    for (name, value) in &attempt.request.headers {
        request = request.header(name, value);
    }
    let mut request = request.body(Full::new(Bytes::new()))?;
    let credential = Credential {
        kind: attempt.kind,
        user: attempt.user.clone(),
        secret: attempt.secret.clone(),
        revision: 0,
        until: None,
    };
    broker::headers::send(request.headers_mut(), &attempt.sent, &credential)?;
    Ok(reach::send(&attempt.endpoint, request, attempt.proxy.as_ref()).await?.0)
}
