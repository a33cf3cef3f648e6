//! Statistics of gRPC calls: how many, how they ended, how many messages went either way.
//!
//! Source: Envoy "gRPC statistics"; gRPC over HTTP/2, "Length-Prefixed-Message".

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use parking_lot::Mutex;

use super::{
    super::{
        body::Inbound,
        exchange::Exchange,
        forward::choose_cluster,
        head::Head,
        headers::GRPC_STATUS,
        request::Matched,
        route::{is_grpc, path_only},
    },
    effects,
};
use crate::{
    model::{
        http_filter::{GrpcMethods, GrpcStatsFilter},
        route::RouteAction,
    },
    snapshot::Snapshot,
    stats::GrpcStats,
};

/// Counts the messages of a stream by their prefixes: a flag and four bytes of length. The messages may come in any pieces.
#[derive(Debug, Default)]
struct Messages {
    /// Bytes of the prefix that have come.
    prefix: u8,
    length: u32,
    /// Bytes of the message that are to come.
    left: u32,
}

impl Messages {
    /// How many messages begin in this piece. As in Envoy a message counts once its prefix is there.
    fn begin(&mut self, mut piece: &[u8]) -> u64 {
        let mut begun = 0;
        while !piece.is_empty() {
            if self.left > 0 {
                let skip = piece.len().min(self.left as usize);
                piece = piece.get(skip..).unwrap_or_default();
                self.left = self.left.saturating_sub(skip as u32);
                continue;
            }
            let Some((byte, rest)) = piece.split_first() else { break };
            piece = rest;
            self.length = if self.prefix == 0 { 0 } else { self.length << 8 | u32::from(*byte) };
            self.prefix += 1;
            if self.prefix == 5 {
                self.prefix = 0;
                self.left = self.length;
                begun += 1;
            }
        }
        begun
    }
}

/// Counts the messages of a request as its body is read.
#[derive(Debug)]
pub struct RequestMessages {
    stats: GrpcStats,
    messages: Mutex<Messages>,
}

impl RequestMessages {
    /// A piece of the body has come.
    pub fn see(&self, piece: &[u8]) {
        let begun = self.messages.lock().begin(piece);
        if begun > 0 {
            self.stats.request_message_count().add(begun);
        }
    }
}

/// A call whose end is counted.
#[derive(Debug)]
pub(super) struct Call {
    stats: GrpcStats,
    /// Of the response; `None` while it is not known to be gRPC.
    messages: Option<Messages>,
    upstream_time: bool,
}

/// Begins to count a request, if it is a gRPC call that a route sends to a cluster.
pub(super) fn note(
    filter: &GrpcStatsFilter,
    exchange: &mut Exchange,
    head: &Head,
    inbound: &Inbound,
    matched: Option<Matched<'_>>,
    snapshot: &Snapshot,
) {
    if !head.is_grpc() {
        return;
    }
    let Some(matched) = matched else { return };
    let RouteAction::Forward(action) = &matched.route.action else { return };
    let Some(cluster) = choose_cluster(snapshot, &action.clusters, matched.weighted, head) else { return };
    let Some((service, method)) = service_and_method(head.path.as_str()) else { return };
    let stats = match &filter.methods {
        GrpcMethods::All { replace_dots: true } => cluster.stats.grpc(&service.replace('.', "_"), method),
        GrpcMethods::All { replace_dots: false } => cluster.stats.grpc(service, method),
        GrpcMethods::Listed(list) if list.iter().any(|(a, b)| **a == *service && **b == *method) => {
            cluster.stats.grpc(service, method)
        }
        GrpcMethods::Listed(_) => cluster.stats.grpc("", ""),
    };
    let messages = RequestMessages { stats: stats.clone(), messages: Mutex::default() };
    for piece in inbound.held() {
        messages.see(piece);
    }
    let effects = effects(exchange);
    effects.requests.push(messages);
    effects.calls.push(Call { stats, messages: None, upstream_time: filter.upstream_time });
}

/// The two parts of a path that has exactly two.
fn service_and_method(path: &str) -> Option<(&str, &str)> {
    let mut parts = path_only(path).split('/').filter(|part| !part.is_empty());
    let found = (parts.next()?, parts.next()?);
    parts.next().is_none().then_some(found)
}

impl Call {
    /// The response's headers; `ends`: nothing follows them.
    pub(super) fn respond(&mut self, exchange: &Exchange, headers: &HeaderMap, ends: bool) {
        self.status(headers);
        if ends {
            self.take_time(exchange);
        } else if exchange.status == StatusCode::OK.as_u16() && is_grpc(headers) {
            self.messages = Some(Messages::default());
        }
    }

    /// A piece of the response, or its trailers.
    pub(super) fn see(&mut self, frame: &Frame<Bytes>) {
        match (frame.data_ref(), frame.trailers_ref(), &mut self.messages) {
            (Some(piece), _, Some(messages)) => {
                let begun = messages.begin(piece);
                if begun > 0 {
                    self.stats.response_message_count().add(begun);
                }
            }
            (None, Some(trailers), _) => self.status(trailers),
            _ => {}
        }
    }

    /// The upstream's response has ended. One that is not gRPC is not timed.
    pub(super) fn time(&self, exchange: &Exchange) {
        if self.messages.is_some() {
            self.take_time(exchange);
        }
    }

    fn take_time(&self, exchange: &Exchange) {
        if !self.upstream_time || exchange.response_start.is_none() {
            return;
        }
        let Some(upstream) = &exchange.upstream else { return };
        let sent = exchange.progress.as_ref().and_then(|progress| progress.done()).unwrap_or(Duration::ZERO);
        let sent = upstream.start.max(exchange.start + sent);
        let took = Instant::now().saturating_duration_since(sent);
        self.stats.upstream_rq_time().record(took.as_millis() as u64);
    }

    fn status(&self, headers: &HeaderMap) {
        if let Some(status) = headers.get(&GRPC_STATUS) {
            let status = status.to_str().map_or(Cow::Borrowed(""), Cow::Borrowed);
            self.stats.count_status(&status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_count_once_their_prefix_is_there_whatever_the_pieces() {
        let stream = [&[0, 0, 0, 0, 0][..], &[0, 0, 0, 0, 3, 1, 2, 3], &[1, 0, 0, 1, 0], &[7; 256], &[0, 0]].concat();
        for size in [1, 2, 3, 4, 5, 7, 64, 1024] {
            let mut messages = Messages::default();
            let begun: u64 = stream.chunks(size).map(|piece| messages.begin(piece)).sum();
            assert_eq!(begun, 3, "in pieces of {size}");
        }
        let mut huge = Messages::default();
        assert_eq!(huge.begin(&[0, 0xff, 0xff, 0xff, 0xff]), 1);
        assert_eq!(huge.begin(&[0; 4096]), 0, "all of it is inside the message");
    }

    #[test]
    fn a_path_names_service_and_method() {
        for (path, expected) in [
            ("/pkg.Echo/Say", Some(("pkg.Echo", "Say"))),
            ("/pkg.Echo/Say?q=/a/b", Some(("pkg.Echo", "Say"))),
            ("//pkg.Echo//Say/", Some(("pkg.Echo", "Say"))),
            ("/pkg.Echo", None),
            ("/a/b/c", None),
            ("/", None),
        ] {
            assert_eq!(service_and_method(path), expected, "{path}");
        }
    }
}
