//! A byte stream, plain or TLS, and HTTP/1 read from it byte for byte. Neither hyper nor the subject's own code takes part, so that a
//! fault shared by both would still be seen.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::case::Fate;

/// How long anything that must come may take. A bound against hanging, not a measurement.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Heads larger than this are a fault of the subject.
const MAX_HEAD: usize = 256 * 1024;

/// A transport: TCP or TLS over it.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {
    /// The TCP socket below, if it is one.
    fn tcp(&self) -> Option<&TcpStream>;
}

impl Io for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Io for UnixStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Io for tokio_rustls::client::TlsStream<TcpStream> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

impl Io for tokio_rustls::server::TlsStream<TcpStream> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.get_ref().0)
    }
}

/// Why no more bytes come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// End of stream.
    Closed,
    /// Connection reset.
    Reset,
    /// A fatal TLS alert, by name.
    Alert(String),
    /// Nothing came in time.
    Silent,
    /// Not what the protocol allows.
    Malformed(String),
}

impl End {
    /// From an I/O error; an alert that the peer sent is inside rustls' own error.
    pub fn of(error: &io::Error) -> Self {
        if let Some(rustls::Error::AlertReceived(alert)) = error.get_ref().and_then(|e| e.downcast_ref()) {
            return End::Alert(format!("{alert:?}"));
        }
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => End::Reset,
            // rustls says so when TCP ends without close_notify.
            io::ErrorKind::UnexpectedEof => End::Closed,
            _ => End::Malformed(error.to_string()),
        }
    }

    /// What it means for the connection.
    pub fn fate(&self) -> Fate {
        match self {
            End::Closed | End::Alert(_) | End::Malformed(_) => Fate::Closed,
            End::Reset => Fate::Reset,
            End::Silent => Fate::Open,
        }
    }
}

/// Which message is read.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A request.
    Request,
    /// A response; `head` says that the request was HEAD.
    Response {
        /// The request was HEAD.
        head: bool,
    },
}

/// An HTTP/1 message as it was on the wire, chunk boundaries aside (they follow TCP segments, not meaning).
#[derive(Debug, Default, Clone)]
pub struct Message {
    /// Request or status line.
    pub start: String,
    /// Headers in order, spelt as sent.
    pub headers: Vec<(String, String)>,
    /// `none`, `content-length`, `chunked`, `close`.
    pub framing: &'static str,
    /// Body, decoded.
    pub body: Vec<u8>,
    /// Trailers.
    pub trailers: Vec<(String, String)>,
    /// The stream ended inside the body.
    pub truncated: Option<End>,
}

impl Message {
    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// Status code of a response.
    pub fn status(&self) -> Option<u16> {
        self.start.split(' ').nth(1)?.parse().ok()
    }
}

/// A connection with its read buffer.
pub struct Wire {
    io: Box<dyn Io>,
    buffer: Vec<u8>,
}

impl Wire {
    /// Around a transport.
    pub fn new(io: Box<dyn Io>) -> Self {
        Wire { io, buffer: Vec::new() }
    }

    /// Writes and flushes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        let write = async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        };
        match timeout(PATIENCE, write).await {
            Ok(result) => result.map_err(|error| End::of(&error)),
            Err(_) => Err(End::Silent),
        }
    }

    /// Half-closes (TLS: close_notify and FIN).
    pub async fn shutdown(&mut self) -> Result<(), End> {
        self.io.shutdown().await.map_err(|error| End::of(&error))
    }

    /// Closes with RST instead of FIN.
    pub fn reset(self) {
        // Failing leaves an orderly close, which the case's expectations then show.
        if let Some(tcp) = self.io.tcp() {
            let _ = tcp.set_zero_linger();
        }
    }

    /// Reads a message.
    pub async fn message(&mut self, kind: Kind) -> Result<Message, End> {
        Reader { io: &mut self.io, buffer: &mut self.buffer }.message(kind).await
    }

    /// Reads a message's head only; its body is read with [`Wire::body`].
    pub async fn head(&mut self, kind: Kind) -> Result<Message, End> {
        Reader { io: &mut self.io, buffer: &mut self.buffer }.head(kind).await
    }

    /// Reads the body that belongs to a head.
    pub async fn body(&mut self, message: &mut Message) {
        Reader { io: &mut self.io, buffer: &mut self.buffer }.body(message).await;
    }

    /// Sends while reading, so that neither side waits on full buffers. Interim responses come in the list, the final one last.
    pub async fn exchange(&mut self, bytes: &[u8], head: bool) -> Result<Vec<Message>, End> {
        let (mut read, mut write) = tokio::io::split(&mut self.io);
        let sending = async {
            // A peer that answers early and closes makes this fail: what the peer did shows on the read side.
            let _ = write.write_all(bytes).await;
            let _ = write.flush().await;
            std::future::pending::<()>().await;
        };
        let buffer = &mut self.buffer;
        let receiving = async {
            let mut reader = Reader { io: &mut read, buffer };
            reader.responses(head).await
        };
        tokio::select! {
            () = sending => Err(End::Silent),
            result = receiving => result,
        }
    }

    /// Reads responses up to and with the final one.
    pub async fn responses(&mut self, head: bool) -> Result<Vec<Message>, End> {
        Reader { io: &mut self.io, buffer: &mut self.buffer }.responses(head).await
    }

    /// Reads exactly so many bytes; on an early end, what came and why.
    pub async fn exact(&mut self, count: usize) -> Result<Vec<u8>, (Vec<u8>, End)> {
        while self.buffer.len() < count {
            let mut reader = Reader { io: &mut self.io, buffer: &mut self.buffer };
            if let Err(end) = reader.more(PATIENCE).await {
                return Err((std::mem::take(&mut self.buffer), end));
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Whatever is there or comes next.
    pub async fn some(&mut self) -> Result<Vec<u8>, End> {
        if self.buffer.is_empty() {
            Reader { io: &mut self.io, buffer: &mut self.buffer }.more(PATIENCE).await?;
        }
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Reads to the end of stream, waiting at most so long for each piece: the rest and how it ended.
    pub async fn rest(&mut self, wait: Duration) -> (Vec<u8>, End) {
        loop {
            let mut reader = Reader { io: &mut self.io, buffer: &mut self.buffer };
            if let Err(end) = reader.more(wait).await {
                return (std::mem::take(&mut self.buffer), end);
            }
            if self.buffer.len() > 64 * MAX_HEAD {
                return (std::mem::take(&mut self.buffer), End::Malformed("endless".into()));
            }
        }
    }
}

/// Reading half with the buffer.
struct Reader<'a, R> {
    io: &'a mut R,
    buffer: &'a mut Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    /// At least one more byte.
    async fn more(&mut self, wait: Duration) -> Result<(), End> {
        match timeout(wait, self.io.read_buf(self.buffer)).await {
            Err(_) => Err(End::Silent),
            Ok(Ok(0)) => Err(End::Closed),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(End::of(&error)),
        }
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<String, End> {
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=at).collect();
                line.pop();
                if line.pop() != Some(b'\r') {
                    return Err(End::Malformed("a line ends with a bare LF".into()));
                }
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.buffer.len() > MAX_HEAD {
                return Err(End::Malformed("endless line".into()));
            }
            self.more(PATIENCE).await?;
        }
    }

    async fn headers(&mut self) -> Result<Vec<(String, String)>, End> {
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) =
                line.split_once(':').ok_or_else(|| End::Malformed(format!("header without a colon: {line:?}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    async fn responses(&mut self, head: bool) -> Result<Vec<Message>, End> {
        let mut messages = Vec::new();
        loop {
            let message = self.message(Kind::Response { head }).await?;
            let interim = message.status().is_some_and(|status| (100..200).contains(&status) && status != 101);
            messages.push(message);
            if !interim {
                return Ok(messages);
            }
        }
    }

    async fn message(&mut self, kind: Kind) -> Result<Message, End> {
        let mut message = self.head(kind).await?;
        self.body(&mut message).await;
        Ok(message)
    }

    async fn head(&mut self, kind: Kind) -> Result<Message, End> {
        let start = self.line().await?;
        let headers = self.headers().await?;
        let mut message = Message { start, headers, framing: "none", ..Message::default() };
        let chunked = message.header("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked"));
        message.framing = match kind {
            Kind::Response { head } => {
                let status =
                    message.status().ok_or_else(|| End::Malformed(format!("status line {:?}", message.start)))?;
                if head || status < 200 || status == 204 || status == 304 {
                    "none"
                } else if chunked {
                    "chunked"
                } else if message.header("content-length").is_some() {
                    "content-length"
                } else {
                    "close"
                }
            }
            Kind::Request if chunked => "chunked",
            Kind::Request if message.header("content-length").is_some() => "content-length",
            Kind::Request => "none",
        };
        Ok(message)
    }

    async fn body(&mut self, message: &mut Message) {
        if let Err(end) = self.read_body(message).await {
            message.truncated = Some(end);
        }
    }

    async fn read_body(&mut self, message: &mut Message) -> Result<(), End> {
        match message.framing {
            "content-length" => {
                let length = message.header("content-length").and_then(|v| v.parse::<usize>().ok());
                let length = length.ok_or_else(|| End::Malformed("content-length is not a number".into()))?;
                self.take(length, &mut message.body).await
            }
            "chunked" => loop {
                let line = self.line().await?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size =
                    usize::from_str_radix(size, 16).map_err(|_| End::Malformed(format!("chunk size {line:?}")))?;
                if size == 0 {
                    message.trailers = self.headers().await?;
                    return Ok(());
                }
                self.take(size, &mut message.body).await?;
                if !self.line().await?.is_empty() {
                    return Err(End::Malformed("chunk is longer than its size".into()));
                }
            },
            "close" => loop {
                message.body.append(self.buffer);
                match self.more(PATIENCE).await {
                    Ok(()) => {}
                    Err(End::Closed) => return Ok(()),
                    Err(end) => return Err(end),
                }
            },
            _ => Ok(()),
        }
    }

    async fn take(&mut self, count: usize, into: &mut Vec<u8>) -> Result<(), End> {
        let mut missing = count;
        loop {
            let now = missing.min(self.buffer.len());
            into.extend(self.buffer.drain(..now));
            missing -= now;
            if missing == 0 {
                return Ok(());
            }
            self.more(PATIENCE).await?;
        }
    }
}

/// Splits `name: value`.
pub fn header_line(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.trim().to_owned(), value.trim().to_owned())
}
