//! What a client says over HTTP.

use std::path::Path;

use shika_data::fuzzing::Memory;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::memory::{Client, Proxy, pair};

thread_local! {
    /// Routes of every kind; see `proxy.yaml`.
    pub static PROXY: Proxy = Proxy::new(include_str!("proxy.yaml"));
}

/// Begins every connection of HTTP/2, and an empty SETTINGS frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The client's bytes, in pieces that the first byte tells of: what goes to the upstream is HTTP/1 that can be read in one way only, and what the client
/// gets begins like an answer.
pub fn http1(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let heard = PROXY.with(|proxy| proxy.serve("http1", client(*mode, bytes), strict_upstream));
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&heard));
    assert_eq!(heard.windows(2).filter(|pair| pair == b"\0\n").count(), 0);
}

/// The same of a client of HTTP/2, behind a preface unless the first byte takes it away. What it gets are frames.
pub fn http2(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let whole = if mode & 0x80 == 0 { [PREFACE, bytes].concat() } else { bytes.to_vec() };
    let heard = PROXY.with(|proxy| proxy.serve("http2", client(*mode & 0x7f, &whole), strict_upstream));
    frames(&heard);
}

/// Bit 0: the client half-closes. The rest: in pieces of so many bytes, 0 for all at once.
pub fn client(mode: u8, bytes: &[u8]) -> Client<'_> {
    let chunk = match usize::from(mode >> 1) {
        0 => bytes.len(),
        // No more turns than fit into a moment.
        few => few.max(bytes.len() / 256),
    };
    Client { bytes, chunk, half_closes: mode & 1 == 1 }
}

/// Answers every request, and panics at one that could be read in two ways.
fn strict_upstream(path: &Path) -> Option<Memory> {
    let (near, far) = pair();
    let h2 = path == Path::new("/h2");
    tokio::spawn(async move { if h2 { strict_http2(near).await } else { strict_http1(near).await } });
    Some(far)
}

async fn strict_http1(mut stream: Memory) {
    let mut bytes = Vec::new();
    loop {
        let Some(length) = check_head(&bytes) else {
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await {
                Ok(n @ 1..) => bytes.extend_from_slice(piece.get(..n).unwrap_or_default()),
                _ => return,
            }
            continue;
        };
        // Bodies are not waited for: an early answer ends the exchange, and the connection with it.
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
        assert!(length <= bytes.len());
        return;
    }
}

/// The length of the head of a request; `None` if it is not whole yet.
fn check_head(bytes: &[u8]) -> Option<usize> {
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return None,
        Err(error) => panic!("the upstream got no HTTP: {error}: {:?}", String::from_utf8_lossy(bytes)),
    };
    let head = || String::from_utf8_lossy(bytes);
    let all = |name: &str| request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).count();
    assert_eq!(request.version, Some(1), "{:?}", head());
    assert_eq!(all("host"), 1, "{:?}", head());
    assert!(all("content-length") + all("transfer-encoding") <= 1, "{:?}", head());
    assert!(!request.path.unwrap_or_default().contains(|byte: char| byte.is_ascii_control()), "{:?}", head());
    for header in request.headers.iter() {
        assert!(!header.value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)), "{:?}", head());
        assert!(!header.name.contains('_'), "{:?}", head());
    }
    // The filter refuses these whatever their case.
    assert_eq!(all("x-deny"), 0, "{:?}", head());
    Some(length)
}

async fn strict_http2(mut stream: Memory) {
    let mut bytes = Vec::new();
    let _ = stream.write_all(PREFACE.get(24..).unwrap_or_default()).await;
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut piece).await {
        if bytes.len() < 100_000 {
            bytes.extend_from_slice(piece.get(..n).unwrap_or_default());
        }
        let Some(all) = bytes.strip_prefix(&PREFACE[..24]) else {
            assert!(PREFACE.starts_with(&bytes), "the upstream got no preface");
            continue;
        };
        // 200 without a body to every HEADERS frame.
        for (kind, stream_id) in frames(all) {
            if kind == 1 {
                let mut answer = vec![0, 0, 1, 1, 5];
                answer.extend_from_slice(&stream_id.to_be_bytes());
                answer.push(0x88);
                let _ = stream.write_all(&answer).await;
            }
        }
        bytes.truncate(24);
    }
}

/// Type and stream of each frame; a last one that is cut short counts too.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u32)> {
    let mut found = Vec::new();
    while let Some((&[a, b, c, kind, _flags, s1, s2, s3, s4], rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        assert!(kind <= 9 && length <= 1 << 14, "no frame that was agreed on: type {kind}, {length} bytes");
        found.push((kind, u32::from_be_bytes([s1, s2, s3, s4])));
        bytes = rest.get(length..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(listener: &str, text: &[u8]) -> Vec<u8> {
        PROXY.with(|proxy| proxy.serve(listener, client(0, text), strict_upstream))
    }

    #[test]
    fn requests_reach_the_routes_and_the_upstreams() {
        for (request, status, body) in [
            ("GET /direct HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200", "hello, hello"),
            ("GET /up HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200", "ok"),
            ("GET /h2/x HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 200", ""),
            ("GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 503", "no healthy upstream"),
            ("GET /denied HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP/1.1 403", "RBAC: access denied"),
            ("GET /direct HTTP/1.1\r\nhost: a\r\nx-envoy-fault-abort-request: 418\r\n\r\n", "HTTP/1.1 418", "fault"),
            ("nonsense\r\n\r\n", "HTTP/1.1 400", ""),
        ] {
            let heard = String::from_utf8_lossy(&says("http1", request.as_bytes())).into_owned();
            assert!(heard.starts_with(status) && heard.contains(body), "{request:?}: {heard:?}");
        }
    }

    #[test]
    fn frames_reach_the_routes_and_the_upstreams() {
        // :method GET, :scheme http, :authority a, and a path.
        let get = |path: &str| {
            let mut block = vec![0x82, 0x86, 0x41, 1, b'a', 0x44, u8::try_from(path.len()).unwrap_or_default()];
            block.extend_from_slice(path.as_bytes());
            let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap_or_default(), 1, 5, 0, 0, 0, 1];
            frame.extend(block);
            [PREFACE, &frame].concat()
        };
        for (path, first) in [("/direct", 0x88), ("/up", 0x88), ("/h2/x", 0x88), ("/denied", 0x48)] {
            let heard = says("http2", &get(path));
            // The first byte of the HEADERS frame's block is `:status`: 200 has an index of its own.
            let at = heard.windows(9).position(|frame| frame[3] == 1 && frame[5..] == [0, 0, 0, 1]);
            let block = at.and_then(|at| heard.get(at + 9));
            assert_eq!(block, Some(&first), "{path}: {heard:?}");
        }
    }
}
