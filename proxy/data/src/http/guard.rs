//! A second pair of eyes on HTTP/1 requests: what hyper repairs or lets through and Envoy refuses.
//!
//! hyper drops a `content-length` that stands beside `transfer-encoding`, takes equal content lengths for one, and knows any method. A hop before this
//! one may have read such a request differently, so it is refused here, as Envoy does, before hyper sees the end of the head. The guard follows the
//! framing of a connection's bytes; it copies nothing but the beginning of a line whose end has not come yet.
//!
//! Source: RFC 9112 sections 2.2, 3, 5 and 6.3; Envoy "HTTP/1 codec", `max_request_headers_kb`, response code details.

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

/// Follows the requests of one connection.
#[derive(Debug)]
pub struct Guard {
    place: Place,
    line: Vec<u8>,
    size: usize,
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
    /// A body that is none; hyper refuses it too, and nothing follows it.
    Lost,
}

#[derive(Clone, Copy, Debug, Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Guard {
    /// At the start of a connection; `max_head` is in bytes.
    pub fn new(max_head: u32, accept_http_10: bool) -> Self {
        Guard {
            place: Place::Start,
            line: Vec::new(),
            size: 0,
            framing: Framing::default(),
            max_head: max_head as usize,
            accept_http_10,
        }
    }

    /// Whether a head has begun and not ended.
    pub fn in_head(&self) -> bool {
        self.place == Place::Head || (self.place == Place::Start && !self.line.is_empty())
    }

    /// Whether nothing of a request has been left unread, as far as the bytes seen go.
    pub fn is_between_requests(&self) -> bool {
        self.place == Place::Start && self.line.is_empty()
    }

    /// Looks at the bytes that come next. An error is how many of them are sound, less than there are, and what is wrong with the rest.
    pub fn inspect(&mut self, bytes: &[u8]) -> Result<(), (usize, Refused)> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match &mut self.place {
                Place::Lost => return Ok(()),
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
                                Err((bytes.len() - 1, Refused::TooLarge))
                            }
                            Place::ChunkSize | Place::ChunkEnd | Place::Trailers
                                if self.line.len() > MAX_CHUNK_LINE =>
                            {
                                self.place = Place::Lost;
                                Ok(())
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
                    outcome.map_err(|refused| (at + end, refused))?;
                    at += end + 1;
                }
            }
        }
        Ok(())
    }

    /// A line without its LF.
    fn take(&mut self, line: &[u8]) -> Result<(), Refused> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.place {
            Place::Start if line.is_empty() => {}
            Place::Start => {
                self.framing = Framing::default();
                self.size = line.len();
                self.place = Place::Head;
                request_line(line, self.accept_http_10)?;
            }
            Place::Head if line.is_empty() => {
                self.size = 0;
                self.place = match self.framing {
                    Framing { chunked: true, .. } => Place::ChunkSize,
                    Framing { length: None | Some(0), .. } => Place::Start,
                    Framing { length: Some(length), .. } => Place::Length(length),
                };
            }
            Place::Head => {
                // Without the colon and the space after it: names and values count.
                self.size += line.len().saturating_sub(2);
                self.framing.field(line)?;
            }
            Place::ChunkSize => {
                self.place = match chunk_size(line) {
                    Some(0) => Place::Trailers,
                    Some(size) => Place::ChunkData(size),
                    None => Place::Lost,
                };
            }
            Place::ChunkEnd => self.place = if line.is_empty() { Place::ChunkSize } else { Place::Lost },
            Place::Trailers if line.is_empty() => self.place = Place::Start,
            Place::Trailers | Place::Length(_) | Place::ChunkData(_) | Place::Lost => {}
        }
        if self.size > self.max_head { Err(Refused::TooLarge) } else { Ok(()) }
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
            Some(b'c' | b'C' | b't' | b'T') => {}
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
        }
        Ok(())
    }
}

/// The size at the start of a chunk's line; an extension may follow.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    u64::from_str_radix(std::str::from_utf8(line.get(..digits)?).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard() -> Guard {
        Guard::new(1024, false)
    }

    #[test]
    fn methods_are_in_order() {
        assert!(METHODS.is_sorted());
    }

    #[test]
    fn what_two_hops_may_read_differently_is_refused_wherever_the_reads_end() {
        use Refused::*;
        for (bytes, expected) in [
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", None),
            ("\r\n\r\nGET / HTTP/1.1\nhost: a\n\n", None),
            ("POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbodyGET / HTTP/1.1\r\n\r\n", None),
            ("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n", None),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\n\r\n4;a=b\r\nbody\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
                None,
            ),
            ("POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n", Some(Malformed)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n", Some(Malformed)),
            ("POST / HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\n", Some(Malformed)),
            ("POST / HTTP/1.1\r\ncontent-length: 4, 4\r\n\r\n", Some(Malformed)),
            ("POST / HTTP/1.1\r\ncontent-length: +4\r\n\r\n", Some(Malformed)),
            ("POST / HTTP/1.1\r\ncontent-length:\r\n\r\n", Some(Malformed)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked, chunked\r\n\r\n", Some(Coding)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", Some(Coding)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", Some(Coding)),
            ("GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n", Some(Malformed)),
            ("BREW / HTTP/1.1\r\n\r\n", Some(Malformed)),
            ("get / HTTP/1.1\r\n\r\n", Some(Malformed)),
            ("GET /a b HTTP/1.1\r\n\r\n", Some(Malformed)),
            ("GET / HTTP/1.0\r\n\r\n", Some(Version)),
            ("GET / HTTP/9.9\r\n\r\n", Some(Version)),
            ("GET /\r\n\r\n", Some(Version)),
            ("GET /a#b HTTP/1.1\r\n\r\n", Some(Fragment)),
            // Behind a body, in the same read.
            ("POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbodyBREW / HTTP/1.1\r\n\r\n", Some(Malformed)),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nBREW / HTTP/1.1\r\n",
                Some(Malformed),
            ),
        ] {
            let whole = guard().inspect(bytes.as_bytes());
            assert_eq!(whole.err().map(|(_, refused)| refused), expected, "{bytes:?}");
            if let Err((sound, _)) = whole {
                assert!(sound < bytes.len(), "{bytes:?}");
            }
            let mut guard = guard();
            let pieces = bytes.as_bytes().chunks(1).find_map(|piece| guard.inspect(piece).err());
            assert_eq!(pieces.map(|(_, refused)| refused), expected, "{bytes:?} in pieces");
        }
    }

    #[test]
    fn a_head_is_bounded_whether_it_ends_or_not() {
        let head = |size: usize, end: &str| format!("GET / HTTP/1.1\r\nx: {}{end}", "a".repeat(size));
        for (size, end, refused) in
            [(900, "\r\n\r\n", false), (1100, "\r\n\r\n", true), (900, "", false), (1100, "", true)]
        {
            let outcome = guard().inspect(head(size, end).as_bytes());
            assert_eq!(outcome.is_err_and(|(_, refused)| refused == Refused::TooLarge), refused, "{size} {end:?}");
        }
        let mut guard = guard();
        for _ in 0..100 {
            assert_eq!(guard.inspect(head(900, "\r\n\r\n").as_bytes()), Ok(()));
        }
    }

    #[test]
    fn a_head_under_way_is_known() {
        let mut guard = guard();
        assert!(!guard.in_head());
        for (bytes, expected) in [
            ("GE", true),
            ("T / HTTP/1.1\r\n", true),
            ("\r\n", false),
            ("GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\n", false),
            ("x", false),
        ] {
            assert_eq!(guard.inspect(bytes.as_bytes()), Ok(()));
            assert_eq!(guard.in_head(), expected, "{bytes:?}");
        }
    }
}
