//! What an upstream answers.

use std::path::Path;

use shika_data::fuzzing::Memory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    http::{PREFACE, PROXY, client},
    memory::{Client, pair, quiet},
};

/// Requests of a well-behaved client, by the first byte of an input. `$` is the cluster. Behind some of them wait bytes that are not for now: the client's
/// end must be noticed all the same.
const REQUESTS: [&str; 9] = [
    "GET /$a HTTP/1.1\r\nhost: a\r\n\r\n",
    "HEAD /$a HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /$a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\nhello",
    "GET /$a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n",
    "GET /retry HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n",
    "POST /mirror HTTP/1.0\r\ncontent-type: application/grpc\r\ncontent-length: 3\r\n\r\nabc",
    "GET /$a HTTP/1.1\r\nhost: a\r\n\r\nGET /$b HTTP/1.1\r\nhost: a\r\n\r\nGET /direct HTT",
    "GET /$a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly bytes",
    // The body is longer than what is held on the way; see `answer`.
    "POST /$a HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n",
];

/// How much of its body the last of them sends.
const UPLOAD: usize = 1 << 19;

/// The bytes of an HTTP/1 server, to every connection the same: whatever they are, the client gets HTTP.
pub fn upstream_http1(data: &[u8]) {
    upstream(data, "up/", false);
}

/// The bytes of an HTTP/2 server, behind its SETTINGS.
pub fn upstream_http2(data: &[u8]) {
    upstream(data, "h2/", true);
}

fn upstream(data: &[u8], cluster: &str, http2: bool) {
    let Some((&[request, mode], bytes)) = data.split_first_chunk::<2>() else { return };
    let Some(request) = REQUESTS.get(usize::from(request) % REQUESTS.len()) else { return };
    let mut request = request.replace("$", cluster);
    if request.contains("10000000") {
        request.extend(std::iter::repeat_n('x', UPLOAD));
    }
    let Client { chunk, half_closes, .. } = client(mode, bytes);
    let bytes = if http2 { [PREFACE.get(24..).unwrap_or_default(), bytes].concat() } else { bytes.to_vec() };
    let answers = move |_: &Path| -> Option<Memory> {
        let (near, far) = pair();
        tokio::spawn(answer(near, bytes.clone(), chunk, half_closes));
        Some(far)
    };
    let whole = Client { bytes: request.as_bytes(), chunk: request.len(), half_closes: false };
    let heard = PROXY.with(|proxy| proxy.serve("http1", whole, answers));
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&heard));
}

/// Waits for the first byte of a request, then says all it has to say. It closes at the end, or keeps reading, unless it has nothing to say.
async fn answer(stream: Memory, bytes: Vec<u8>, chunk: usize, closes: bool) {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut piece = [0; 4096];
    if !matches!(from.read(&mut piece).await, Ok(1..)) {
        return;
    }
    let talk = async {
        for part in bytes.chunks(chunk.max(1)) {
            if to.write_all(part).await.is_err() {
                return;
            }
            if chunk < bytes.len() {
                quiet().await;
            }
        }
        if closes {
            let _ = to.shutdown().await;
        }
    };
    if bytes.is_empty() && !closes {
        return std::future::pending().await;
    }
    let hear = async { while let Ok(1..) = from.read(&mut piece).await {} };
    tokio::join!(talk, hear);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_reach_the_client() {
        for (bytes, expected) in [
            ("HTTP/1.1 203 Fine\r\ncontent-length: 2\r\n\r\nok", "HTTP/1.1 203"),
            ("nonsense\r\n\r\n", "HTTP/1.1 502"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc", "HTTP/1.1 502"),
        ] {
            let answers = move |_: &Path| {
                let (near, far) = pair();
                tokio::spawn(answer(near, bytes.into(), 100, false));
                Some(far)
            };
            let request = b"GET /up HTTP/1.1\r\nhost: a\r\n\r\n";
            let whole = Client { bytes: request, chunk: request.len(), half_closes: false };
            let heard = PROXY.with(|proxy| proxy.serve("http1", whole, answers));
            assert!(heard.starts_with(expected.as_bytes()), "{bytes:?}: {:?}", String::from_utf8_lossy(&heard));
        }
    }
}
