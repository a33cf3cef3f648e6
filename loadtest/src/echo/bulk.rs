//! Many bytes one way.

use std::io;
use std::sync::OnceLock;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes read or written at a time.
const STEP: usize = 256 * 1024;
/// Longest reply of `/bytes`.
const LONGEST: usize = 16 << 20;

/// `length` bytes, at most 16 MiB, shared with every other reply.
pub fn bytes(length: usize) -> Bytes {
    static ALL: OnceLock<Bytes> = OnceLock::new();
    ALL.get_or_init(|| Bytes::from(vec![b'x'; LONGEST])).slice(..length.min(LONGEST))
}

/// Serves transfers until the client closes.
pub async fn transfer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; STEP];
    loop {
        let up = match stream.read_u64().await {
            Ok(up) => up,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return stream.shutdown().await,
            Err(error) => return Err(error),
        };
        let down = stream.read_u64().await?;
        let mut left = up;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(STEP).min(STEP);
            let length = stream.read(buffer.get_mut(..step).unwrap_or_default()).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= length as u64;
        }
        left = down;
        // An upload is confirmed by what the client asked back; it asks for a byte at least.
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(STEP).min(STEP);
            stream.write_all(buffer.get(..step).unwrap_or_default()).await?;
            left -= step as u64;
        }
    }
}
