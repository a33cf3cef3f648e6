//! What the first bytes of a connection say: TLS with server name and ALPN, HTTP/1, HTTP/2.
//!
//! Source: Envoy listener filters `tls_inspector` and `http_inspector`; RFC 8446 section 4.1.2, RFC 6066 section 3, RFC 7301 section 3.1.
//!
//! The bytes are read into a buffer of bounded size that the connection reads again afterwards ([`crate::io::Inspected`]). Peeking instead would wake
//! the task for bytes it has seen already.

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::{
    io::{Inspected, Socket},
    model::{chain_match::TransportProtocol, listener::Look},
    tls::hello::{Gathered, Gathering, HEADER},
};

/// Largest ClientHello that is waited for, in its records: Envoy's `max_client_hello_size`, 16 KiB.
const MAX_CLIENT_HELLO: usize = 16 * 1024;
/// Largest first line of HTTP/1 that is looked at: Envoy's `MAX_INSPECT_SIZE`, 64 KiB; here a request line that long is not waited for.
const MAX_REQUEST_LINE: usize = 8 * 1024;

/// What was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// `tls` or `raw_buffer`.
    pub transport: TransportProtocol,
    /// Requested server name in lower case, empty without one.
    pub server_name: Box<str>,
    /// ALPN offers, or the HTTP version seen in plain text: `http/1.0`, `http/1.1`, `h2c`.
    pub application_protocols: Vec<Box<str>>,
}

impl Default for Findings {
    fn default() -> Self {
        Findings { transport: TransportProtocol::RawBuffer, server_name: "".into(), application_protocols: Vec::new() }
    }
}

/// Why inspection ended without findings.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The peer closed before it was known what it speaks.
    #[error("the peer closed the connection before its first bytes were complete")]
    Closed,
    /// The ClientHello is larger than any that is waited for. The connection must not be served: who reads more of it may see another server name.
    #[error("the ClientHello is larger than {MAX_CLIENT_HELLO} bytes")]
    TooLarge,
    /// There is no header of the PROXY protocol, or none that is taken. It has been counted.
    #[error("the connection does not begin with a header of the PROXY protocol that is taken")]
    ProxyProtocol,
    /// Reading failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Reads until it is known what the peer speaks. The caller bounds the time; what has been read by then is in `head`, which outlives a cancellation.
pub async fn inspect(socket: &mut Socket, head: &mut BytesMut, wanted: Look) -> Result<Findings, InspectError> {
    if !wanted.tls && !wanted.http {
        return Ok(Findings::default());
    }
    let mut hello = Gathering::default();
    loop {
        match examine(head, wanted, &mut hello) {
            Progress::Done(findings) => return Ok(findings),
            Progress::TooLarge => return Err(InspectError::TooLarge),
            Progress::More => {}
        }
        head.reserve(if head.is_empty() { 1024 } else { head.len() });
        if socket.read_buf(head).await? == 0 {
            // A peer that closes early may still be served by a chain that asks for nothing, once something was said.
            return if head.is_empty() { Err(InspectError::Closed) } else { Ok(Findings::default()) };
        }
    }
}

/// Puts the bytes back before the rest.
pub fn replay(head: BytesMut, socket: Socket) -> Inspected {
    Inspected { head: if head.is_empty() { Bytes::new() } else { head.freeze() }, socket }
}

enum Progress {
    Done(Findings),
    TooLarge,
    More,
}

fn examine(head: &[u8], wanted: Look, hello: &mut Gathering) -> Progress {
    if wanted.tls {
        match client_hello(head, hello) {
            Hello::Found { server_name, alpn } => {
                let application_protocols =
                    alpn.into_iter().map(|name| String::from_utf8_lossy(&name).into_owned().into()).collect();
                return Progress::Done(Findings {
                    transport: TransportProtocol::Tls,
                    server_name,
                    application_protocols,
                });
            }
            Hello::More => return Progress::More,
            Hello::TooLarge => return Progress::TooLarge,
            Hello::NotTls => {}
        }
    }
    if !wanted.http {
        return Progress::Done(Findings::default());
    }
    match http_version(head) {
        HttpVersion::More => Progress::More,
        HttpVersion::None => Progress::Done(Findings::default()),
        HttpVersion::Is(version) => {
            Progress::Done(Findings { application_protocols: vec![version.into()], ..Findings::default() })
        }
    }
}

/// What a prefix of a connection is as a ClientHello.
#[derive(Debug, PartialEq, Eq)]
enum Hello {
    More,
    NotTls,
    TooLarge,
    Found { server_name: Box<str>, alpn: Vec<Vec<u8>> },
}

/// Reads a ClientHello out of TLS records, however it is cut into them; `gathering` is what the calls before have read of them.
fn client_hello(bytes: &[u8], gathering: &mut Gathering) -> Hello {
    // No more is looked at than is waited for, and what has said to be too large is so whatever follows: the verdict is the same in whatever pieces it comes.
    let gathered = gathering.take(bytes.get(..MAX_CLIENT_HELLO).unwrap_or(bytes));
    if gathering.length().is_some_and(|length| length > MAX_CLIENT_HELLO) {
        return Hello::TooLarge;
    }
    match gathered {
        Gathered::Other => Hello::NotTls,
        Gathered::More if bytes.len() < MAX_CLIENT_HELLO => Hello::More,
        Gathered::More => Hello::TooLarge,
        Gathered::Whole => {
            let body = gathering.message().and_then(|message| message.get(HEADER..)).unwrap_or_default();
            parse_hello(&mut Cursor(body)).unwrap_or(Hello::NotTls)
        }
    }
}

/// RFC 8446 section 4.1.2. `None`: malformed.
fn parse_hello(hello: &mut Cursor<'_>) -> Option<Hello> {
    const SERVER_NAME: u16 = 0;
    const ALPN: u16 = 16;
    hello.take(2 + 32)?; // version and random
    hello.short_vector()?; // session id
    hello.vector()?; // cipher suites
    hello.short_vector()?; // compression methods
    let mut server_name: Box<str> = "".into();
    let mut alpn = Vec::new();
    if hello.0.is_empty() {
        return Some(Hello::Found { server_name, alpn });
    }
    let mut extensions = Cursor(hello.vector()?);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let mut content = Cursor(extensions.vector()?);
        match kind {
            SERVER_NAME => {
                let mut names = Cursor(content.vector()?);
                while !names.0.is_empty() {
                    let [name_type] = names.take(1)? else { return None };
                    let name = names.vector()?;
                    if *name_type == 0 && server_name.is_empty() {
                        server_name = String::from_utf8(name.to_vec()).ok()?.to_ascii_lowercase().into();
                    }
                }
            }
            ALPN => {
                let mut names = Cursor(content.vector()?);
                while !names.0.is_empty() {
                    alpn.push(names.short_vector()?.to_vec());
                }
            }
            _ => {}
        }
    }
    Some(Hello::Found { server_name, alpn })
}

/// Reads length-prefixed fields; every step checks what is left.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)))
    }

    fn vector(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    fn short_vector(&mut self) -> Option<&'a [u8]> {
        let &[length] = self.take(1)? else { return None };
        self.take(usize::from(length))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum HttpVersion {
    More,
    None,
    Is(&'static str),
}

/// What a prefix of a connection is as HTTP. Envoy's inspector also lets its parser decide on the request line alone.
fn http_version(bytes: &[u8]) -> HttpVersion {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    if bytes.len() >= PREFACE.len() && bytes.starts_with(PREFACE) {
        return HttpVersion::Is("h2c");
    }
    if PREFACE.starts_with(bytes) {
        return HttpVersion::More;
    }
    // A method is a token (RFC 9110 section 5.6.2).
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let method = bytes.iter().position(|byte| !token(byte)).unwrap_or(bytes.len());
    if method > 32 || (method == 0 && !bytes.is_empty()) || bytes.get(method).is_some_and(|byte| *byte != b' ') {
        return HttpVersion::None;
    }
    // What decides is the line alone, so that it is the same in whatever pieces it comes.
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    if line.len() >= MAX_REQUEST_LINE || line.iter().any(|byte| *byte < b' ' && *byte != b'\r') {
        return HttpVersion::None;
    }
    if end.is_none() {
        return HttpVersion::More;
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match line.rsplit(|byte| *byte == b' ').next() {
        Some(b"HTTP/1.1") => HttpVersion::Is("http/1.1"),
        Some(b"HTTP/1.0") => HttpVersion::Is("http/1.0"),
        _ => HttpVersion::None,
    }
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
pub(crate) mod tests;
