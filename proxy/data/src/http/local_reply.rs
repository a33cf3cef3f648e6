//! Answers that are ours.
//!
//! Source: Envoy "Local reply", `Http::Utility::sendLocalReply`, gRPC status mapping.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::{body::ResponseBody, headers as names};
use crate::error::ResponseFlag;

/// A request that is answered here instead of being forwarded.
#[derive(Debug)]
pub struct Refusal {
    /// Response code.
    pub status: StatusCode,
    /// Text; `text/plain`.
    pub body: Cow<'static, str>,
    /// For `%RESPONSE_CODE_DETAILS%`.
    pub details: Cow<'static, str>,
    /// What went wrong, if a flag stands for it.
    pub flag: Option<ResponseFlag>,
    /// The HTTP/1 connection cannot go on.
    pub close: bool,
    /// For redirects.
    pub location: Option<String>,
    /// `x-envoy-overloaded`
    pub overloaded: bool,
    /// These headers as well, in place of what it would have under their names.
    pub headers: Option<Box<HeaderMap>>,
    /// Nothing that the route adds: the answer to a CORS preflight.
    pub bare: bool,
    /// The gRPC status, where it is not that of the response code.
    pub grpc_status: Option<u32>,
}

impl Refusal {
    /// A plain refusal.
    pub fn new(status: StatusCode, body: impl Into<Cow<'static, str>>, details: impl Into<Cow<'static, str>>) -> Self {
        Refusal {
            status,
            body: body.into(),
            details: details.into(),
            flag: None,
            close: false,
            location: None,
            overloaded: false,
            headers: None,
            bare: false,
            grpc_status: None,
        }
    }

    /// With a response flag.
    pub fn flag(mut self, flag: ResponseFlag) -> Self {
        self.flag = Some(flag);
        self
    }

    /// Closing the connection.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// Redirecting.
    pub fn to(mut self, location: String) -> Self {
        self.location = Some(location);
        self
    }

    /// The response. A gRPC request gets its refusal in trailers-only form.
    pub fn response(self, grpc: bool) -> Response<ResponseBody> {
        let mut headers = HeaderMap::with_capacity(8);
        let mut status = self.status;
        let mut body = ResponseBody::EMPTY;
        if grpc {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers
                .insert(names::GRPC_STATUS, HeaderValue::from(self.grpc_status.unwrap_or_else(|| grpc_status(status))));
            if let Ok(message) = HeaderValue::from_str(&grpc_message(&self.body))
                && !message.is_empty()
            {
                headers.insert(names::GRPC_MESSAGE, message);
            }
            status = StatusCode::OK;
        } else if !self.body.is_empty() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            body = ResponseBody::full(match self.body {
                Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
                Cow::Owned(text) => Bytes::from(text),
            });
        }
        if let Some(more) = self.headers {
            headers.extend(*more);
        }
        if let Some(location) = self.location.as_deref().and_then(|location| HeaderValue::from_str(location).ok()) {
            headers.insert(header::LOCATION, location);
        }
        if self.overloaded {
            headers.insert(names::ENVOY_OVERLOADED, HeaderValue::from_static("true"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

fn grpc_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Percent-encoding of `grpc-message`: printable ASCII but `%` stays.
fn grpc_message(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
