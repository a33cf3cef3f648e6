//! HTTP/1.1 client of one connection at a time: the request is prepared once, the reply's head is parsed by `httparse`.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stream::{Peer, Stream};
use super::{Failure, Plan};

/// Largest reply head accepted, in bytes.
const HEAD_LIMIT: usize = 64 * 1024;
/// Bytes read at a time where replies are small, and where they are large.
const SMALL_BUFFER: usize = 4 * 1024;
const LARGE_BUFFER: usize = 256 * 1024;
/// Most headers accepted in a reply.
const HEADER_LIMIT: usize = 100;

/// What bulk uploads consist of.
static ZEROS: [u8; LARGE_BUFFER] = [0; LARGE_BUFFER];

/// One lane's client.
pub struct Client {
    plan: Arc<Plan>,
    peer: Peer,
    request: Vec<u8>,
    connection: Option<Connection>,
}

impl Client {
    /// Prepares the request of the plan.
    pub fn new(plan: &Arc<Plan>) -> Self {
        Self { plan: plan.clone(), peer: plan.target.for_lane(), request: request_bytes(plan), connection: None }
    }

    /// Sends one request and waits for its reply. A connection that failed or that the peer closes is not used again.
    pub async fn exchange(&mut self) -> Result<(), Failure> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.peer, self.plan.reply).await?,
        };
        let reply = connection.exchange(&self.request).await?;
        if reply.keep_alive && !self.plan.new_connection {
            self.connection = Some(connection);
        }
        match reply.status {
            200..=299 => Ok(()),
            status => Err(Failure::Status(status)),
        }
    }
}

/// The bytes of the plan's request.
pub fn request_bytes(plan: &Plan) -> Vec<u8> {
    let method = if plan.payload == 0 { "GET" } else { "POST" };
    let mut head = format!("{method} {} HTTP/1.1\r\nhost: {}\r\n", plan.path, plan.host);
    if plan.payload > 0 {
        head.push_str(&format!("content-length: {}\r\n", plan.payload));
    }
    if plan.new_connection {
        head.push_str("connection: close\r\n");
    }
    head.push_str("\r\n");
    let mut request = head.into_bytes();
    request.resize(request.len() + plan.payload, b'x');
    request
}

/// What the head of a reply said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Whether the connection can carry another request.
    pub keep_alive: bool,
}

/// Where a reply's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

/// An open connection and the bytes read ahead from it.
pub struct Connection {
    stream: Stream,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were consumed.
    consumed: usize,
}

impl Connection {
    /// Connects; replies of about `reply` bytes are expected.
    ///
    /// # Errors
    /// As [`Stream::open`].
    pub async fn open(peer: &Peer, reply: usize) -> Result<Self, Failure> {
        let stream = Stream::open(peer).await?;
        Ok(Self { stream, buffer: Vec::with_capacity(reply.clamp(SMALL_BUFFER, LARGE_BUFFER)), consumed: 0 })
    }

    /// Writes the request and reads the whole reply; the body is dropped.
    ///
    /// # Errors
    /// See [`Failure`]; after one the connection is of no more use.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Reply, Failure> {
        self.stream.write_all(request).await.map_err(broken)?;
        self.read_reply().await
    }

    /// Sends an upgrade request and waits for `101`; afterwards [`Connection::echo`] may be used.
    ///
    /// # Errors
    /// [`Failure::Status`] when the upgrade is refused.
    pub async fn upgrade(&mut self, request: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(request).await.map_err(broken)?;
        let (reply, _) = self.read_head().await?;
        if reply.status == 101 { Ok(()) } else { Err(Failure::Status(reply.status)) }
    }

    /// Sends a message over an upgraded connection and waits until the same bytes are back.
    ///
    /// # Errors
    /// [`Failure::Mismatch`] when other bytes come back.
    pub async fn echo(&mut self, message: &[u8]) -> Result<(), Failure> {
        self.stream.write_all(message).await.map_err(broken)?;
        while self.unread().len() < message.len() {
            self.fill().await?;
        }
        let same = self.unread().starts_with(message);
        self.consume(message.len());
        if same { Ok(()) } else { Err(Failure::Mismatch) }
    }

    /// Sends the head and `up` bytes, then waits until `down` bytes are back, whatever they are.
    ///
    /// # Errors
    /// See [`Failure`]; after one the connection is of no more use.
    pub async fn transfer(&mut self, head: &[u8], up: usize, down: usize) -> Result<(), Failure> {
        self.stream.write_all(head).await.map_err(broken)?;
        let mut left = up;
        while left > 0 {
            let step = left.min(ZEROS.len());
            self.stream.write_all(ZEROS.get(..step).unwrap_or_default()).await.map_err(broken)?;
            left -= step;
        }
        self.skip(down).await
    }

    /// Waits until the peer closes the connection or breaks it. Bytes nobody asked for count as an error of the protocol.
    pub async fn wait_for_end(&mut self) -> Failure {
        match self.fill().await {
            Ok(()) => Failure::Protocol("bytes arrived that belong to no request".into()),
            Err(failure) => failure,
        }
    }

    async fn read_reply(&mut self) -> Result<Reply, Failure> {
        let (mut reply, framing) = self.read_head().await?;
        match framing {
            Framing::Length(length) => self.skip(length).await?,
            Framing::Chunked => self.skip_chunks().await?,
            Framing::UntilClose => {
                reply.keep_alive = false;
                loop {
                    match self.fill().await {
                        Ok(()) => self.consume(self.unread().len()),
                        Err(Failure::Closed) => break,
                        Err(failure) => return Err(failure),
                    }
                }
            }
        }
        Ok(reply)
    }

    async fn read_head(&mut self) -> Result<(Reply, Framing), Failure> {
        loop {
            if let Some((length, reply, framing)) = parse_head(self.unread())? {
                self.consume(length);
                // 1xx other than 101 announce another head.
                if reply.status >= 200 || reply.status == 101 {
                    return Ok((reply, framing));
                }
                continue;
            }
            if self.unread().len() > HEAD_LIMIT {
                return Err(Failure::Protocol(format!("the reply's head is longer than {HEAD_LIMIT} bytes")));
            }
            self.fill().await?;
        }
    }

    async fn skip(&mut self, mut length: usize) -> Result<(), Failure> {
        loop {
            let step = length.min(self.unread().len());
            self.consume(step);
            length -= step;
            if length == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// Skips a chunked body with its trailers, RFC 9112 section 7.1.
    async fn skip_chunks(&mut self) -> Result<(), Failure> {
        loop {
            let line = self.read_line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| Failure::Protocol(format!("`{size}` is no size of a chunk")))?;
            if size == 0 {
                break;
            }
            self.skip(size).await?;
            if !self.read_line().await?.is_empty() {
                return Err(Failure::Protocol("a chunk is longer than its size".into()));
            }
        }
        while !self.read_line().await?.is_empty() {}
        Ok(())
    }

    async fn read_line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some(end) = self.unread().windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(self.unread().get(..end).unwrap_or_default()).into_owned();
                self.consume(end + 2);
                return Ok(line);
            }
            if self.unread().len() > HEAD_LIMIT {
                return Err(Failure::Protocol("a line of the chunked body has no end".into()));
            }
            self.fill().await?;
        }
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.consumed..).unwrap_or_default()
    }

    fn consume(&mut self, length: usize) {
        self.consumed += length;
        if self.consumed >= self.buffer.len() {
            self.buffer.clear();
            self.consumed = 0;
        }
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Failure::Closed),
            Ok(_) => Ok(()),
            Err(error) => Err(broken(error)),
        }
    }
}

/// A reset says the same as an end: the peer is gone before its reply was whole.
fn broken(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            Failure::Closed
        }
        _ => Failure::Io(error),
    }
}

/// The head's length, what it says, and where the body ends; none when the head is not complete.
fn parse_head(bytes: &[u8]) -> Result<Option<(usize, Reply, Framing)>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADER_LIMIT];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Failure::Protocol(error.to_string())),
    };
    let status = head.code.unwrap_or(0);
    let mut keep_alive = head.version == Some(1);
    let mut framing = Framing::UntilClose;
    for header in head.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default();
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = value.trim().parse().map_err(|_| Failure::Protocol(format!("content-length `{value}`")))?;
            framing = Framing::Length(length);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            framing = Framing::Chunked;
        } else if header.name.eq_ignore_ascii_case("connection") {
            let names = |word: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
            keep_alive = (keep_alive || names("keep-alive")) && !names("close");
        }
    }
    if matches!(status, 100..=199 | 204 | 304) {
        framing = Framing::Length(0);
    }
    Ok(Some((length, Reply { status, keep_alive }, framing)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn heads_and_their_framing() {
        let rows: &[(&str, u16, bool, Framing)] = &[
            ("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n", 200, true, Framing::Length(12)),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, true, Framing::Chunked),
            ("HTTP/1.1 503 No\r\nConnection: close\r\ncontent-length: 0\r\n\r\n", 503, false, Framing::Length(0)),
            ("HTTP/1.0 200 OK\r\n\r\n", 200, false, Framing::UntilClose),
            ("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n", 200, true, Framing::Length(1)),
            ("HTTP/1.1 204 None\r\n\r\n", 204, true, Framing::Length(0)),
            (
                "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                101,
                true,
                Framing::Length(0),
            ),
        ];
        for (head, status, keep_alive, framing) in rows {
            let (length, reply, found) = parse_head(head.as_bytes()).unwrap().unwrap();
            assert_eq!(length, head.len(), "{head}");
            assert_eq!(reply, Reply { status: *status, keep_alive: *keep_alive }, "{head}");
            assert_eq!(found, *framing, "{head}");
        }
    }

    #[test]
    fn a_part_of_a_head_asks_for_more() {
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ncontent-le").unwrap().is_none());
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert!(matches!(parse_head(b"SSH-2.0-x\r\n\r\n"), Err(Failure::Protocol(_))));
        assert!(matches!(parse_head(b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"), Err(Failure::Protocol(_))));
    }
}
