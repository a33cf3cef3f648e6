//! Envoy's command operators, compiled: access-log lines, JSON logs and header values.
//!
//! Source: Envoy "Access logging: format rules".

use std::{iter, sync::Arc};

use http::HeaderName;

use super::{access_log::Asked, matcher::HeaderRef};

/// A text with operators.
#[derive(Clone, Debug, Default)]
pub struct Format {
    /// In order.
    pub parts: Vec<Part>,
    /// `omit_empty_values`: an unset operator is written as nothing instead of `-`.
    pub omit_empty: bool,
}

impl Format {
    /// The text, when there is no operator in it.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }
}

impl Format {
    /// Takes down the headers that it asks for.
    pub(super) fn note(&self, asked: &mut Asked) {
        for part in &self.parts {
            match part {
                Part::Operator(Operator::RequestHeader(first, other), _) => {
                    iter::once(first).chain(other).for_each(|header| asked.request(header));
                }
                Part::Operator(Operator::ResponseHeader(first, other), _) => {
                    iter::once(first).chain(other).for_each(|header| asked.response(header));
                }
                Part::Operator(Operator::StreamId, _) => asked.request.push(REQUEST_ID),
                Part::Operator(Operator::GrpcStatus { .. }, _) => asked.response.push(GRPC_STATUS),
                Part::Operator(..) | Part::Text(_) => {}
            }
        }
    }
}

/// Where a call says how it went: in its trailers, or in its head if there is nothing else.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Which request it is.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A piece of a format.
#[derive(Clone, Debug)]
pub enum Part {
    /// Copied as it is.
    Text(Box<str>),
    /// Replaced, then cut to at most so many bytes (`:Z`).
    Operator(Operator, Option<usize>),
}

/// A JSON log line: the shape is fixed, the leaves are formats. An object's keys are written in this order.
#[derive(Clone, Debug)]
pub enum JsonFormat {
    /// Object.
    Object(Vec<(Box<str>, JsonFormat)>),
    /// Array.
    Array(Vec<JsonFormat>),
    /// A leaf with operators. With exactly one operator and nothing else its type is kept: numbers stay numbers, unset is `null`.
    Value(Format),
    /// A leaf that is a text whatever is in it; without a value `-`.
    Text(Format),
    /// A number, boolean or null, already as JSON text.
    Literal(Box<str>),
}

impl JsonFormat {
    /// Takes down the headers that it asks for.
    pub(super) fn note(&self, asked: &mut Asked) {
        match self {
            Self::Object(members) => members.iter().for_each(|(_, member)| member.note(asked)),
            Self::Array(items) => items.iter().for_each(|item| item.note(asked)),
            Self::Value(format) | Self::Text(format) => format.note(asked),
            Self::Literal(_) => {}
        }
    }
}

/// A command operator.
#[derive(Clone, Debug)]
pub enum Operator {
    /// `%START_TIME(fmt)%`; an empty format is ISO 8601 in UTC with milliseconds.
    StartTime(TimeFormat),
    /// `%REQ(X?Y)%`: header, then alternative.
    RequestHeader(HeaderRef, Option<HeaderRef>),
    /// `%RESP(X?Y)%`
    ResponseHeader(HeaderRef, Option<HeaderRef>),
    /// `%TRAILER(X?Y)%`
    ResponseTrailer(HeaderRef, Option<HeaderRef>),
    /// `%TRACE_ID%`
    TraceId,
    /// `%SPAN_ID%`
    SpanId,
    /// `%PROTOCOL%`
    Protocol,
    /// `%UPSTREAM_PROTOCOL%`
    UpstreamProtocol,
    /// `%RESPONSE_CODE%`
    ResponseCode,
    /// `%RESPONSE_CODE_DETAILS%`
    ResponseCodeDetails,
    /// `%CONNECTION_TERMINATION_DETAILS%`
    ConnectionTerminationDetails,
    /// `%RESPONSE_FLAGS%`
    ResponseFlags,
    /// `%RESPONSE_FLAGS_LONG%`
    ResponseFlagsLong,
    /// `%BYTES_RECEIVED%`
    BytesReceived,
    /// `%BYTES_SENT%`
    BytesSent,
    /// `%UPSTREAM_WIRE_BYTES_SENT%` and its kin
    WireBytes(WireBytes),
    /// `%DURATION%`, ms
    Duration,
    /// `%REQUEST_DURATION%`: until the last byte of the request, ms
    RequestDuration,
    /// `%RESPONSE_DURATION%`: until the first byte of the response from upstream, ms
    ResponseDuration,
    /// `%RESPONSE_TX_DURATION%`: from then to the last byte sent, ms
    ResponseTxDuration,
    /// `%UPSTREAM_HOST%`
    UpstreamHost,
    /// `%UPSTREAM_CLUSTER%`
    UpstreamCluster,
    /// `%UPSTREAM_LOCAL_ADDRESS%`, with or without port
    UpstreamLocalAddress(AddressPart),
    /// `%UPSTREAM_REMOTE_ADDRESS%`, with or without port
    UpstreamRemoteAddress(AddressPart),
    /// `%UPSTREAM_TRANSPORT_FAILURE_REASON%`
    UpstreamTransportFailureReason,
    /// `%UPSTREAM_REQUEST_ATTEMPT_COUNT%`
    AttemptCount,
    /// `%DOWNSTREAM_LOCAL_ADDRESS%`
    DownstreamLocalAddress(AddressPart),
    /// `%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%`: before the original destination was restored
    DownstreamDirectLocalAddress(AddressPart),
    /// `%DOWNSTREAM_REMOTE_ADDRESS%`
    DownstreamRemoteAddress(AddressPart),
    /// `%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%`
    DownstreamDirectRemoteAddress(AddressPart),
    /// `%DOWNSTREAM_PEER_URI_SAN%`
    PeerUriSan,
    /// `%DOWNSTREAM_PEER_DNS_SAN%`
    PeerDnsSan,
    /// `%DOWNSTREAM_PEER_SUBJECT%`
    PeerSubject,
    /// `%DOWNSTREAM_PEER_FINGERPRINT_256%`
    PeerFingerprint,
    /// `%DOWNSTREAM_LOCAL_URI_SAN%`
    LocalUriSan,
    /// `%DOWNSTREAM_TLS_VERSION%`
    TlsVersion,
    /// `%DOWNSTREAM_TLS_CIPHER%`
    TlsCipher,
    /// `%DOWNSTREAM_TRANSPORT_FAILURE_REASON%`
    DownstreamTransportFailureReason,
    /// `%REQUESTED_SERVER_NAME%`
    RequestedServerName,
    /// `%ROUTE_NAME%`
    RouteName,
    /// `%VIRTUAL_HOST_NAME%`... as far as Envoy has it under that name
    VirtualHostName,
    /// `%CONNECTION_ID%`
    ConnectionId,
    /// `%STREAM_ID%`
    StreamId,
    /// `%FILTER_CHAIN_NAME%`
    FilterChainName,
    /// `%HOSTNAME%`, `%ENVIRONMENT(X)%`, resolved when the configuration was compiled
    Constant(Arc<str>),
    /// `%GRPC_STATUS%` by name or `%GRPC_STATUS_NUMBER%`
    GrpcStatus {
        /// As a number instead of a name.
        number: bool,
    },
    /// `%DYNAMIC_METADATA(kuma.routes:route_kri)%`
    RouteKri,
    /// `%FILTER_STATE(key)%`
    FilterState {
        /// Key.
        key: Box<str>,
        /// `PLAIN` instead of a JSON string.
        plain: bool,
    },
    /// `%DYNAMIC_METADATA(namespace:key)%` of a connection, which a header of the PROXY protocol may set
    ConnectionMetadata {
        /// Namespace.
        namespace: Box<str>,
        /// Key.
        key: Box<str>,
    },
    /// Metadata that nothing sets
    Unset,
}

/// `%START_TIME%`'s argument, split once.
#[derive(Clone, Debug)]
pub enum TimeFormat {
    /// `2026-01-31T23:59:59.123Z`
    Iso8601,
    /// `strftime` with Envoy's `%s`, `%3f`, `%6f`, `%9f` and `%f`.
    Strftime(Box<str>),
}

/// Which part of an address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPart {
    /// `ip:port`
    Full,
    /// `..._WITHOUT_PORT`
    WithoutPort,
    /// `..._PORT`
    Port,
}

/// Wire byte counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireBytes {
    /// `UPSTREAM_WIRE_BYTES_SENT`
    UpstreamSent,
    /// `UPSTREAM_WIRE_BYTES_RECEIVED`
    UpstreamReceived,
    /// `DOWNSTREAM_WIRE_BYTES_SENT`
    DownstreamSent,
    /// `DOWNSTREAM_WIRE_BYTES_RECEIVED`
    DownstreamReceived,
}
