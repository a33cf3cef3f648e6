//! How long a client waits for a server that speaks first, as those of MySQL, SMTP and SSH do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::histogram::Histogram;

/// Connects again and again, says nothing, and measures from the connect to the first byte of each greeting. One at a time: what is measured is a
/// delay, and no queue.
///
/// # Errors
/// The first connection without a greeting, and why.
pub async fn run(target: SocketAddr, count: usize, limit: Duration) -> anyhow::Result<Histogram> {
    let mut times = Histogram::default();
    for number in 1..=count {
        let begin = Instant::now();
        let greeted = async {
            let mut stream = TcpStream::connect(target).await.context("no connection")?;
            if stream.read(&mut [0; 512]).await.context("no greeting")? == 0 {
                bail!("closed without a greeting");
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(limit, greeted).await {
            Ok(greeted) => greeted.with_context(|| format!("connection {number} to {target}"))?,
            Err(_) => bail!("connection {number} to {target}: no greeting within {limit:?}"),
        }
        times.record(begin.elapsed());
    }
    Ok(times)
}
