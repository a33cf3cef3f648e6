//! A second pair of eyes on HTTP/1 requests: what hyper repairs or lets through and Envoy refuses.
//!
//! hyper drops a `content-length` that stands beside `transfer-encoding`, takes equal content lengths for one, and knows any method. A hop before this
//! one may have read such a request differently, so it is refused here, as Envoy does, before hyper sees the end of the head. The guard follows the
//! framing of a connection's bytes; it copies nothing but the beginning of a line whose end has not come yet.
//!
//! It must never see the end of a body elsewhere than hyper does: a request that only one of them sees would go by unlooked at. So the lines of a chunked
//! body end with CRLF and nothing else, and what the guard cannot follow ends the body. Behind a head that asks to leave HTTP nothing is looked at.
//!
//! Source: RFC 9112 sections 2.2, 3, 5, 6.3 and 7.1, RFC 9110 section 7.8; Envoy "HTTP/1 codec", `max_request_headers_kb`, response code details.

use http::StatusCode;
use memchr::memchr;

/// Methods that Envoy's HTTP/1 codec takes (`allow_custom_methods` off), in order.
const METHODS: [&[u8]; 34] = [
    b"ACL",
    b"BIND",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LINK",
    b"LOCK",
    b"M-SEARCH",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MOVE",
    b"NOTIFY",
    b"OPTIONS",
    b"PATCH",
    b"POST",
    b"PROPFIND",
    b"PROPPATCH",
    b"PURGE",
    b"PUT",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"SOURCE",
    b"SUBSCRIBE",
    b"TRACE",
    b"UNBIND",
    b"UNLINK",
    b"UNLOCK",
    b"UNSUBSCRIBE",
];
/// Longest line of a chunked body (size, extension, trailer field) that is followed.
const MAX_CHUNK_LINE: usize = 16 << 10;

/// Why a request is refused before it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The head is malformed, or its framing may be read in two ways.
    Malformed,
    /// The head is larger than `max_request_headers_kb`.
    TooLarge,
    /// A transfer coding other than `chunked`.
    Coding,
    /// HTTP/1.0 where it is not accepted, or a version that is none.
    Version,
    /// The target has a fragment.
    Fragment,
    /// The head did not end in time.
    Late,
}

impl Refused {
    /// Response code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed | Self::Fragment => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::Version => StatusCode::UPGRADE_REQUIRED,
            Self::Late => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// Envoy's text.
    pub fn body(self) -> &'static str {
        match self {
            Self::Malformed => "Bad Request",
            Self::TooLarge => "Request Header Fields Too Large",
            Self::Coding => "Not Implemented",
            Self::Version => "Upgrade Required",
            Self::Fragment => "",
            Self::Late => "request header timeout",
        }
    }

    /// `%RESPONSE_CODE_DETAILS%`
    pub fn details(self) -> &'static str {
        match self {
            Self::Malformed => "http1.codec_error",
            Self::TooLarge => "http1.headers_too_large",
            Self::Coding => "http1.invalid_transfer_encoding",
            Self::Version => "low_version",
            Self::Fragment => "path_normalization_failed",
            Self::Late => "request_header_timeout",
        }
    }

    /// The client broke the protocol (`DPE`), not merely a rule of ours.
    pub fn is_protocol_error(self) -> bool {
        matches!(self, Self::Malformed | Self::TooLarge | Self::Coding)
    }
}

/// What is wrong with the bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// With the head that is coming in: there is no request yet.
    Head(Refused),
    /// With the framing of the body of a request that is being served.
    Body,
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub struct Guard {
    place: Place,
    line: Vec<u8>,
    size: usize,
    heads: u32,
    framing: Framing,
    max_head: usize,
    accept_http_10: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before a request line.
    Start,
    Head,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// The last head asks to leave HTTP: what follows is no request, unless it is refused, and then the connection ends.
    Leaving,
}

#[derive(Clone, Copy, Debug, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
    /// The method is `CONNECT`.
    connect: bool,
    /// `connection` names `upgrade`.
    connection_upgrade: bool,
    /// 0: there is no `upgrade`; 1: it is `h2c` alone, which is served as HTTP/1; more: something else.
    upgrades: u8,
    /// The client says that no request follows this one (RFC 9112 section 9.6).
    last: bool,
}

impl Guard {
    /// At the start of a connection; `max_head` is in bytes.
    pub fn new(max_head: u32, accept_http_10: bool) -> Self {
        Guard {
            place: Place::Start,
            line: Vec::new(),
            size: 0,
            heads: 0,
            framing: Framing::default(),
            max_head: max_head as usize,
            accept_http_10,
        }
    }

    /// Goes on behind this many requests of the connection.
    pub fn behind(mut self, heads: u32) -> Self {
        self.heads = heads;
        self
    }

    /// Requests so far, if the last one was read to its end.
    pub fn settled(&self) -> Option<u32> {
        self.is_between_requests().then_some(self.heads)
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        self.place == Place::Head || (self.place == Place::Start && !self.line.is_empty())
    }

    /// Whether nothing of a request has been left unread, as far as the bytes seen go.
    pub fn is_between_requests(&self) -> bool {
        self.place == Place::Start && self.line.is_empty()
    }

    /// Whether nothing of a request has been left unread, and the client has said that none follows.
    pub fn is_over(&self) -> bool {
        self.is_between_requests() && self.framing.last
    }

    /// The number, from 1, of the request that asks to leave HTTP, if one has; nothing behind its head is looked at.
    pub fn leaving(&self) -> Option<u32> {
        (self.place == Place::Leaving).then_some(self.heads)
    }

    /// Looks at the bytes that come next. An error is how many of them are sound, less than there are, and what is wrong with the rest; it is the last word.
    pub fn inspect(&mut self, bytes: &[u8]) -> Result<(), (usize, Fault)> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match &mut self.place {
                Place::Leaving => return Ok(()),
                Place::Length(left) | Place::ChunkData(left) => {
                    let taken = (*left).min(rest.len() as u64);
                    *left -= taken;
                    at += taken as usize;
                    if *left == 0 {
                        self.place =
                            if matches!(self.place, Place::Length(_)) { Place::Start } else { Place::ChunkEnd };
                    }
                }
                Place::Start | Place::Head | Place::ChunkSize | Place::ChunkEnd | Place::Trailers => {
                    let Some(end) = memchr(b'\n', rest) else {
                        self.line.extend_from_slice(rest);
                        return match self.place {
                            Place::Start | Place::Head if self.size + self.line.len() > self.max_head => {
                                Err((bytes.len() - 1, Fault::Head(Refused::TooLarge)))
                            }
                            Place::ChunkSize | Place::ChunkEnd | Place::Trailers
                                if self.line.len() > MAX_CHUNK_LINE =>
                            {
                                Err((bytes.len() - 1, Fault::Body))
                            }
                            _ => Ok(()),
                        };
                    };
                    let (line, _) = rest.split_at(end);
                    let outcome = if self.line.is_empty() {
                        self.take(line)
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.take(&whole)
                    };
                    outcome.map_err(|fault| (at + end, fault))?;
                    at += end + 1;
                }
            }
        }
        Ok(())
    }

    /// A line without its LF.
    fn take(&mut self, line: &[u8]) -> Result<(), Fault> {
        match self.place {
            Place::Start | Place::Head => self.take_head(line.strip_suffix(b"\r").unwrap_or(line)).map_err(Fault::Head),
            Place::ChunkSize | Place::ChunkEnd | Place::Trailers => self.take_chunked(line).ok_or(Fault::Body),
            Place::Length(_) | Place::ChunkData(_) | Place::Leaving => Ok(()),
        }
    }

    fn take_head(&mut self, line: &[u8]) -> Result<(), Refused> {
        if self.place == Place::Start {
            if line.is_empty() {
                return Ok(());
            }
            self.size = line.len();
            self.place = Place::Head;
            request_line(line, self.accept_http_10)?;
            self.framing = Framing {
                connect: line.starts_with(b"CONNECT "),
                last: line.ends_with(b" HTTP/1.0"),
                ..Framing::default()
            };
        } else if line.is_empty() {
            self.size = 0;
            self.heads = self.heads.wrapping_add(1);
            self.place = match self.framing {
                framing if framing.leaves() => Place::Leaving,
                Framing { chunked: true, .. } => Place::ChunkSize,
                Framing { length: None | Some(0), .. } => Place::Start,
                Framing { length: Some(length), .. } => Place::Length(length),
            };
        } else {
            // Without the colon and the space after it: names and values count.
            self.size += line.len().saturating_sub(2);
            self.framing.field(line)?;
        }
        if self.size > self.max_head { Err(Refused::TooLarge) } else { Ok(()) }
    }

    /// `None`: not how a chunked body is written (RFC 9112 section 7.1).
    fn take_chunked(&mut self, line: &[u8]) -> Option<()> {
        let line =
            line.strip_suffix(b"\r").filter(|line| line.len() <= MAX_CHUNK_LINE && memchr(b'\r', line).is_none())?;
        self.place = match self.place {
            Place::ChunkSize => match chunk_size(line)? {
                0 => Place::Trailers,
                size => Place::ChunkData(size),
            },
            Place::ChunkEnd if line.is_empty() => Place::ChunkSize,
            Place::Trailers if line.is_empty() => Place::Start,
            Place::Trailers => Place::Trailers,
            _ => return None,
        };
        Some(())
    }
}

fn request_line(line: &[u8], accept_http_10: bool) -> Result<(), Refused> {
    let mut words = line.split(|byte| *byte == b' ');
    let method = words.next().unwrap_or_default();
    if METHODS.binary_search(&method).is_err() {
        return Err(Refused::Malformed);
    }
    let (Some(target), version, None) = (words.next(), words.next(), words.next()) else {
        return Err(Refused::Malformed);
    };
    match version {
        Some(b"HTTP/1.1") => {}
        Some(b"HTTP/1.0") if accept_http_10 => {}
        Some(version) if !version.starts_with(b"HTTP/") => return Err(Refused::Malformed),
        Some(_) | None => return Err(Refused::Version),
    }
    if memchr(b'#', target).is_some() { Err(Refused::Fragment) } else { Ok(()) }
}

impl Framing {
    fn field(&mut self, line: &[u8]) -> Result<(), Refused> {
        match line.first() {
            // A folded line (RFC 9112 section 5.2) may be read as a header of its own elsewhere.
            Some(b' ' | b'\t') => return Err(Refused::Malformed),
            Some(b'c' | b'C' | b't' | b'T' | b'u' | b'U') => {}
            _ => return Ok(()),
        }
        let Some(colon) = memchr(b':', line) else { return Err(Refused::Malformed) };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            if self.chunked || self.length.is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                return Err(Refused::Malformed);
            }
            let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            self.length = Some(length.ok_or(Refused::Malformed)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.length.is_some() {
                return Err(Refused::Malformed);
            }
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refused::Coding);
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"connection") {
            for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                self.connection_upgrade |= token.eq_ignore_ascii_case(b"upgrade");
                self.last |= token.eq_ignore_ascii_case(b"close");
                self.last &= !token.eq_ignore_ascii_case(b"keep-alive");
            }
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            let weight = if self.upgrades == 0 && value.eq_ignore_ascii_case(b"h2c") { 1 } else { 2 };
            self.upgrades = self.upgrades.saturating_add(weight);
        }
        Ok(())
    }

    /// Whether the request asks to leave HTTP. At least whenever [`super::head::Head`] says so: where it does not, the connection ends with the answer.
    fn leaves(&self) -> bool {
        self.connect || (self.connection_upgrade && self.upgrades > 1)
    }
}

/// The size at the start of a chunk's line; white space and an extension may follow.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (size, rest) = line.split_at_checked(digits)?;
    match rest.trim_ascii_start().first() {
        None | Some(b';') => u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok(),
        Some(_) => None,
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
