//! What is said to this hop alone: `connection` with what it names, `upgrade`, `te`, `expect`.
//!
//! Source: RFC 9110 sections 7.6.1, 7.8, 10.1.1 and 10.1.4; Envoy `Utility::sanitizeConnectionHeader`, `ConnectionManagerUtility`.

use http::{HeaderName, HeaderValue, Version, header};

use super::Head;
use crate::http::{headers as names, local_reply::Refusal, present::Present};

/// Most members that `connection` may have. Source: Envoy `Utility::sanitizeConnectionHeader`.
const MAX_CONNECTION_MEMBERS: u32 = 9;

impl Head {
    /// Acts on `connection`: what it names belongs to this hop.
    pub(super) fn take_connection(&mut self) -> Result<(), Refusal> {
        if !self.present.has(Present::CONNECTION) {
            if self.present.has(Present::UPGRADE) {
                self.headers.remove(header::UPGRADE);
            }
            return Ok(());
        }
        // Several lines are one list (RFC 9110 section 5.3). A list of none, as there mostly is of more lines, costs nothing.
        let more: Vec<HeaderValue> = self.headers.get_all(header::CONNECTION).iter().skip(1).cloned().collect();
        let Some(first) = self.headers.remove(header::CONNECTION) else { return Ok(()) };
        let (mut named, mut wants_upgrade, mut removed) = (0, false, false);
        let lines = std::iter::once(&first).chain(&more);
        let tokens = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        for token in tokens.filter(|token| !token.is_empty()) {
            named += 1;
            if named > MAX_CONNECTION_MEMBERS {
                return Err(self.connection_rejected());
            }
            let token = token.trim_ascii();
            if token.eq_ignore_ascii_case(b"upgrade") {
                wants_upgrade = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"te") {
                // `te` is looked at by itself.
            } else if token.starts_with(b":") {
                return Err(self.connection_rejected());
            } else if let Ok(name) = HeaderName::from_bytes(token) {
                if name == names::FORWARDED_FOR || name == names::FORWARDED_HOST || name == names::FORWARDED_PROTO {
                    return Err(self.connection_rejected());
                }
                removed |= self.headers.remove(name).is_some();
            }
            // Anything else names no header.
        }
        if self.present.has(Present::UPGRADE) {
            let upgrade = names::joined(&self.headers, &header::UPGRADE);
            self.headers.remove(header::UPGRADE);
            // HTTP/1.0 knows no upgrade (RFC 9110 section 7.8). HTTP/2 by upgrade (h2c) is not something Envoy's codec takes either: the request is
            // served as it is.
            if wants_upgrade && self.version == Version::HTTP_11 && !upgrade.eq_ignore_ascii_case("h2c") {
                self.upgrade = Some(upgrade.to_ascii_lowercase());
            }
        }
        if removed {
            self.present = Present::of(&self.headers);
        }
        Ok(())
    }

    /// Envoy refuses to take away what others rely on, and more than a few headers.
    fn connection_rejected(&self) -> Refusal {
        Refusal { details: "http1.connection_header_rejected".into(), ..self.malformed() }
    }

    /// Removes what hyper answers, in whichever line it stands; another expectation is for the upstream.
    pub(super) fn take_expect(&mut self) {
        let others = |value: &&HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let others: Vec<HeaderValue> = self.headers.get_all(header::EXPECT).iter().filter(others).cloned().collect();
        self.headers.remove(header::EXPECT);
        for value in others {
            self.headers.append(header::EXPECT, value);
        }
    }

    /// Of the transfer codings and their like only `trailers` is for the next hop. Source: Envoy `sanitizeTEHeader`.
    pub(super) fn take_te(&mut self) {
        const TRAILERS: &[u8] = b"trailers";
        let mut values = self.headers.get_all(header::TE).iter();
        if values.next().is_some_and(|value| value.as_bytes() == TRAILERS) && values.next().is_none() {
            return;
        }
        let mut members =
            self.headers.get_all(header::TE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        if members.any(|member| member.trim_ascii() == TRAILERS) {
            self.headers.insert(header::TE, HeaderValue::from_static("trailers"));
        } else {
            self.headers.remove(header::TE);
        }
    }
}

#[cfg(test)]
#[path = "hop_tests.rs"]
mod tests;
