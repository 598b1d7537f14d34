//! A connection that left HTTP for WebSocket: bytes both ways, the credential covered on the way back, until one side ends or the right to it is gone.

use super::ledger::Entry;
use super::redact::Redactor;
use super::upstream::Switched;
use crate::flows::FlowGuard;
use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// One read.
const READ: usize = 16 * 1024;

/// Carries bytes between `client`, of which `read` came already, and the upstream.
pub(super) async fn relay<S>(
    client: S,
    read: Bytes,
    switched: Switched,
    entry: Entry,
    redactor: Redactor,
    flow: &FlowGuard,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let up_count = entry.up();
    let entry = RefCell::new(entry);
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_upstream, mut to_upstream) = tokio::io::split(switched.io);
    let redactor = RefCell::new(redactor);
    let down = async {
        let clean = |bytes: Bytes| {
            let mut redactor = redactor.borrow_mut();
            let clean = redactor.feed(bytes);
            entry.borrow_mut().covered(redactor.covered());
            entry.borrow_mut().down(clean.len());
            clean
        };
        to_client.write_all(&clean(switched.read)).await?;
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ);
            if from_upstream.read_buf(&mut buffer).await? == 0 {
                break;
            }
            to_client.write_all(&clean(buffer.split().freeze())).await?;
            to_client.flush().await?;
        }
        let rest = redactor.borrow_mut().finish();
        entry.borrow_mut().down(rest.len());
        to_client.write_all(&rest).await?;
        to_client.shutdown().await
    };
    let up = copy(&mut from_client, &mut to_upstream, read, &up_count);
    let both = async {
        tokio::try_join!(up, down)?;
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        biased;
        () = flow.cut() => entry.borrow_mut().cut(),
        ended = both => match ended {
            Ok(()) => entry.borrow_mut().finish(),
            Err(error) => entry.borrow_mut().failed(&error),
        },
    }
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    read: Bytes,
    count: &Rc<Cell<u64>>,
) -> io::Result<()> {
    count.set(count.get() + read.len() as u64);
    to.write_all(&read).await?;
    to.flush().await?;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ);
        let length = from.read_buf(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        count.set(count.get() + length as u64);
        to.write_all(&buffer.split()).await?;
        to.flush().await?;
    }
}
