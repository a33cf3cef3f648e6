//! Ends of connections that are served here: sent away, answered, echoed.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Connection;
use crate::io::DownstreamIo;

/// Bound on waiting for a peer that is being sent away.
const GOODBYE: Duration = Duration::from_secs(1);

/// Sends a denied peer away: what it says first is read, because a close with unread bytes becomes a reset.
pub(super) async fn hang_up(mut io: DownstreamIo, connection: &Connection) {
    let mut first = [0; 4096];
    tokio::select! {
        read = tokio::time::timeout(GOODBYE, io.read(&mut first)) => {
            if let Ok(Ok(n)) = read {
                connection.received.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
        () = connection.drain.closing() => {}
    }
    let _ = tokio::time::timeout(GOODBYE, io.shutdown()).await;
}

/// Closes a connection that is not let in, without waiting for it: it may be one of very many.
pub(super) async fn turn_away(mut io: DownstreamIo) {
    // What has come already would make the close a reset.
    let _ = io.read(&mut [0; 1024]).now_or_never();
    let _ = tokio::time::timeout(GOODBYE, io.shutdown()).await;
}

/// Envoy network filter `direct_response`.
pub(super) async fn answer(mut io: DownstreamIo, bytes: Bytes, connection: &Connection) {
    let exchange = async {
        io.write_all(&bytes).await?;
        connection.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        io.shutdown().await?;
        let mut rest = [0; 1024];
        while io.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    tokio::select! {
        _ = tokio::time::timeout(GOODBYE, exchange) => {}
        () = connection.drain.closing() => {}
    }
}

/// Envoy network filter `echo`.
pub(super) async fn echo(mut io: DownstreamIo, connection: &Connection) {
    let exchange = async {
        let mut bytes = vec![0; 4096];
        loop {
            let n = io.read(&mut bytes).await?;
            if n == 0 {
                return io.shutdown().await;
            }
            connection.received.fetch_add(n as u64, Ordering::Relaxed);
            io.write_all(bytes.get(..n).unwrap_or_default()).await?;
            io.flush().await?;
            connection.sent.fetch_add(n as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = exchange => {}
        () = connection.drain.closing() => {}
    }
}
