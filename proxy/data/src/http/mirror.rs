//! Copies of requests to other clusters, whose answers nobody reads.
//!
//! Source: Envoy `RouteAction.RequestMirrorPolicy`, `ShadowWriterImpl`. A copy is sent when the request is complete, its body then being what was kept of it;
//! one that grows beyond what may be kept is not sent.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::{
    body::{KeptFrame, Replay, RequestBody},
    exchange::UpstreamRequest,
    failure::Failure,
    forward,
    head::Head,
};
use crate::{
    connection::Connection,
    model::{
        cluster::Cluster,
        route::{Forward, Mirror},
    },
    snapshot::Snapshot,
    upstream::{
        outlier::Report,
        pick::{self, PickContext},
        pool::{Lease, Protocol},
    },
    worker,
};

const INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");

/// Sends copies of a request where the route wants them, and returns the request.
pub(super) fn mirror(
    snapshot: &Snapshot,
    action: &Forward,
    client: &Arc<Connection>,
    head: &Head,
    downstream: Protocol,
    request: Request<RequestBody>,
    buffer: u32,
) -> Request<RequestBody> {
    let wanted = |mirror: &&Mirror| mirror.fraction.is_none_or(|fraction| fraction.holds(worker::random()));
    let mut request = request;
    for mirror in action.mirrors.iter().filter(wanted) {
        let Some(cluster) = snapshot.cluster(mirror.cluster).cloned() else {
            tracing::debug!(cluster = %mirror.name, "no copy of a request: the cluster does not exist");
            continue;
        };
        let (parts, body) = request.into_parts();
        let (body, complete) = body.kept(buffer, &cluster);
        let mut copy = Request::new(RequestBody::Empty);
        *copy.method_mut() = parts.method.clone();
        *copy.uri_mut() = parts.uri.clone();
        *copy.headers_mut() = parts.headers.clone();
        *copy.extensions_mut() = parts.extensions.clone();
        // As in Envoy: whoever gets the copy sees that it comes from inside.
        copy.headers_mut().insert(INTERNAL, HeaderValue::from_static("true"));
        let host = shadow(&head.authority, mirror.suffix);
        tokio::spawn(send(cluster, copy, complete, host, head.scheme, (client.clone(), downstream), action.timeout));
        request = Request::from_parts(parts, body);
    }
    request
}

/// `host:port` becomes `host-shadow:port`.
fn shadow(authority: &HeaderValue, suffix: bool) -> HeaderValue {
    let Some(text) = authority.to_str().ok().filter(|_| suffix) else { return authority.clone() };
    let host = super::route::without_port(text);
    let shadow = format!("{host}-shadow{}", text.get(host.len()..).unwrap_or_default());
    HeaderValue::from_str(&shadow).unwrap_or_else(|_| authority.clone())
}

/// Sends a copy once its body is there, and reads the answer to its end.
async fn send(
    cluster: Arc<Cluster>,
    mut request: Request<RequestBody>,
    complete: Option<oneshot::Receiver<Vec<KeptFrame>>>,
    authority: HeaderValue,
    scheme: &'static str,
    (client, downstream): (Arc<Connection>, Protocol),
    timeout: Option<Duration>,
) {
    if let Some(complete) = complete {
        let Ok(frames) = complete.await else { return };
        *request.body_mut() = RequestBody::Replay(Replay::new(frames));
    }
    if cluster.limits.requests.load(std::sync::atomic::Ordering::Relaxed) >= cluster.limits.max_requests {
        cluster.stats.upstream_rq_pending_overflow().inc();
        return;
    }
    let Ok(endpoint) = pick::choose(&cluster, &PickContext::default()) else { return };
    let began = std::time::Instant::now();
    let mut upstream = UpstreamRequest::new(&cluster, &endpoint, false);
    let exchange = async {
        let sent: Result<(Response<Incoming>, Lease), Failure> =
            forward::attempt(&cluster, &endpoint, Some(&client), downstream, request, &authority, scheme).await;
        let Ok((response, lease)) = sent else {
            upstream.ended(Report::Failed);
            return;
        };
        lease.leave();
        let code = response.status().as_u16();
        upstream.ended(Report::Response(code));
        cluster.stats.count_code(crate::stats::Origin::Internal, code);
        let mut body = response.into_body();
        while !body.is_end_stream() {
            match std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return,
                None => break,
            }
        }
        cluster.stats.record_time(crate::stats::Origin::Internal, began.elapsed().as_millis() as u64);
        lease.give_back();
    };
    match timeout {
        None => exchange.await,
        Some(limit) => {
            if tokio::time::timeout(limit, exchange).await.is_err() {
                cluster.stats.upstream_rq_timeout().inc();
                upstream.ended(Report::TimedOut);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_says_that_it_is_a_copy() {
        for (host, suffix, expected) in [
            ("example.com", true, "example.com-shadow"),
            ("example.com:8080", true, "example.com-shadow:8080"),
            ("[::1]:80", true, "[::1]-shadow:80"),
            ("example.com:8080", false, "example.com:8080"),
        ] {
            assert_eq!(shadow(&HeaderValue::from_static(host), suffix), expected);
        }
    }
}
