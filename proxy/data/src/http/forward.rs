//! Forwarding: cluster, endpoint, connection, request, response. The router of Envoy's terms.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, uri};
use http_body::Body;
use hyper::body::Incoming;

use super::{
    body::{Broken, Inbound, RequestBody, ResponseBody, UpstreamBody},
    exchange::{Exchange, UpstreamRequest},
    failure::{Failure, expire, fail, overflow},
    filter::{self, Shaped},
    grpc_timeout::stream_duration,
    hash,
    head::{Head, Path},
    headers::{self as names, mutate, strip_hop_by_hop, values},
    limits::{Expired, Limits},
    local_reply::Refusal,
    mirror::mirror,
    path,
    request::{Matched, Unanswered, finish_headers, matched_length, reply},
    retry::{Retry, Tries},
    route::path_only,
    strict, upgrade,
};
use crate::{
    connection::Connection,
    error::ResponseFlag,
    model::{
        cluster::{Cluster, Endpoint},
        route::{ClusterChoice, Forward, HostRewrite, WeightedCluster},
    },
    snapshot::Snapshot,
    stats::Origin,
    upstream::{
        outlier::Report,
        pick::{self, PickContext},
        pool::{self, Lease, Protocol},
    },
};

/// Sends a request to where its route says and returns the response, or the answer that stands for it.
pub(super) async fn forward(
    snapshot: &Snapshot,
    mut exchange: Box<Exchange>,
    head: &mut Head,
    mut extensions: http::Extensions,
    body: Inbound,
    matched: Matched<'_>,
    action: &Forward,
) -> Result<Response<ResponseBody>, Unanswered> {
    let manager = exchange.manager.clone();
    if !manager.strict_headers.is_empty()
        && let Some((name, value)) = strict::broken(&manager.strict_headers, &head.headers)
    {
        let details = format!("request_headers_failed_strict_check{{{name}}}");
        let text = format!("invalid header '{name}' with value '{value}'");
        let refusal = Refusal::new(StatusCode::BAD_REQUEST, text, details).flag(ResponseFlag::InvalidHeader);
        return Ok(reply(exchange, head, Some(matched), refusal));
    }
    let switching = match head.upgrade.take() {
        Some(kind) if upgrade::allowed(&kind, &manager.upgrades, &action.upgrades) => {
            manager.stats.downstream_cx_upgrades_total().inc();
            Some(kind)
        }
        Some(_) => {
            manager.stats.downstream_rq_ws_on_non_ws_route().inc();
            let refusal = Refusal::new(StatusCode::FORBIDDEN, "", "upgrade_failed");
            return Ok(reply(exchange, head, Some(matched), refusal));
        }
        None => None,
    };
    if head.method == Method::CONNECT {
        return Ok(reply(exchange, head, Some(matched), Refusal::new(StatusCode::FORBIDDEN, "", "upgrade_failed")));
    }

    let weighted = matched.weighted;
    manager.stats.rq_total().inc();
    let cluster = match choose_cluster(snapshot, &action.clusters, weighted, head) {
        Some(cluster) => cluster,
        None => {
            manager.stats.no_cluster().inc();
            let refusal = Refusal::new(action.cluster_not_found, "", "cluster_not_found").flag(ResponseFlag::NoCluster);
            return Ok(reply(exchange, head, Some(matched), refusal));
        }
    };
    exchange.cluster = Some(cluster.clone());

    let timeout = request_timeout(head, exchange.origin, action);
    let stream = match &action.max_stream_duration {
        None => manager.timeouts.max_stream,
        Some(route) => stream_duration(route, manager.timeouts.max_stream, &mut head.headers, exchange.grpc),
    };
    let limits = Limits {
        start: exchange.start,
        held: exchange.held,
        response: timeout,
        idle: action.idle_timeout.unwrap_or(manager.timeouts.stream_idle),
        stream,
        upstream_stream: cluster.max_stream,
        request: manager.timeouts.request,
    };
    let labels = match weighted {
        Some(weighted) => weighted.labels.as_ref(),
        None => action.labels.as_ref(),
    };
    let original = exchange.connection.local.filter(|_| exchange.connection.restored);
    let hash = match cluster.hashing {
        Some(_) => hash::of_request(&action.hash, head, &mut exchange),
        None => None,
    };
    let context = PickContext { original_destination: original, labels, hash, ..PickContext::default() };
    let endpoint = match pick::choose(&cluster, &context) {
        Ok(endpoint) => endpoint,
        Err(_) => {
            cluster.stats.count_code(exchange.origin, 503);
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream", "no_healthy_upstream")
                .flag(ResponseFlag::NoHealthyUpstream);
            return Ok(reply(exchange, head, Some(matched), refusal));
        }
    };

    rewrite(head, &exchange, matched, action, weighted, &endpoint);
    if let (Some(trace), Some(tracing)) = (&exchange.trace, &manager.tracing) {
        trace.inject(tracing.propagation, &mut head.headers);
    }
    if !manager.suppress_envoy_headers
        && let Some(timeout) = action.retry.as_ref().and_then(|retry| retry.first_timeout(timeout)).or(timeout)
    {
        head.headers.insert(names::ENVOY_ATTEMPT_TIMEOUT.clone(), names::number(timeout.as_millis() as u64));
    }
    exchange.keep_request(head, Some(matched));

    let breaker = if action.high_priority { &cluster.high_limits } else { &cluster.limits };
    if breaker.requests.load(Relaxed) >= breaker.max_requests {
        cluster.stats.upstream_rq_pending_overflow().inc();
        return Ok(overflow(exchange, head, matched, &cluster));
    }
    exchange.attempts = 1;
    let mut upstream = UpstreamRequest::new(&cluster, &endpoint, action.high_priority);
    if let (Some(trace), Some(tracing)) = (&exchange.trace, &manager.tracing) {
        upstream.span = trace.begin_try(tracing, 0, &mut head.headers);
    }

    let downstream = if head.version == Version::HTTP_2 { Protocol::Http2 } else { Protocol::Http1 };
    let body = if body.is_empty() {
        RequestBody::Empty
    } else {
        let progress = filter::progress(&mut exchange, switching.is_some());
        let trailers = downstream == Protocol::Http2 || manager.http1.enable_trailers;
        let limit = action.buffer_limit.or_else(|| exchange.buffer_limit(snapshot)).unwrap_or(1 << 20);
        body.into_body(progress, trailers, limit)
    };
    let retry = action.retry.as_deref().and_then(|policy| Retry::new(policy, &head.view()));
    let client = switching.as_deref().and_then(|kind| upgrade::Client::new(kind, &mut extensions));
    let request = match outbound(head, body, switching.as_deref()) {
        Some(request) => request,
        None => {
            exchange.upstream = Some(upstream);
            return Ok(reply(exchange, head, Some(matched), Refusal::new(StatusCode::BAD_REQUEST, "", "invalid_path")));
        }
    };

    let progress = exchange.progress.clone();
    let buffer = || action.buffer_limit.or_else(|| exchange.buffer_limit(snapshot)).unwrap_or(1 << 20);
    let request = match action.mirrors.is_empty() {
        true => request,
        false => mirror(snapshot, action, &exchange.connection, head, downstream, request, buffer()),
    };
    let outcome = match retry {
        None => {
            let client = Some(exchange.connection.as_ref());
            let attempt = attempt(&cluster, &endpoint, client, downstream, request, &head.authority, head.scheme);
            limits.watch(std::pin::pin!(attempt), progress.as_deref()).await
        }
        Some(retry) => {
            let buffer = buffer();
            let (exchange, upstream, head) = (&mut *exchange, &mut upstream, &mut *head);
            let tries =
                Tries { retry, exchange, upstream, head, action, labels, hash, downstream, original, timeout, buffer };
            // Boxed: requests of routes without a retry policy must not be larger for it.
            limits.watch(Box::pin(tries.run(request)).as_mut(), progress.as_deref()).await.and_then(|ended| ended)
        }
    };
    let (response, lease) = match outcome {
        Ok(Ok((response, lease))) => (response, lease),
        Ok(Err(failure)) => {
            upstream.ended(Report::Failed);
            exchange.upstream = Some(upstream);
            return match exchange.progress.as_ref().and_then(|progress| progress.broken()) {
                // Dropping the exchange records that the client left.
                Some(Broken::Aborted) => Err(Unanswered("the client ended it")),
                Some(broken @ (Broken::Malformed | Broken::BadTrailers)) => {
                    Ok(reply(exchange, head, Some(matched), broken.refusal()))
                }
                None => Ok(fail(exchange, head, matched, &cluster, failure)),
            };
        }
        Err(expired) => {
            upstream.ended(Report::TimedOut);
            if expired != Expired::Try {
                upstream.endpoint.stats.rq_timeout.fetch_add(1, Relaxed);
            }
            exchange.upstream = Some(upstream);
            return Ok(expire(exchange, head, matched, &cluster, expired));
        }
    };
    upstream.local = lease.local;
    upstream.version = if lease.protocol() == Protocol::Http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    upstream.ended(Report::Response(response.status().as_u16()));
    if switching.is_some()
        && let Some(refusal) = upgrade::misunderstood(head.version, &response)
    {
        exchange.upstream = Some(upstream);
        return Ok(reply(exchange, head, Some(matched), refusal));
    }
    Ok(respond(exchange, upstream, response, lease, matched, &limits, weighted, client))
}

/// The cluster that a route's requests go to, if it exists.
pub(super) fn choose_cluster(
    snapshot: &Snapshot,
    choice: &ClusterChoice,
    weighted: Option<&WeightedCluster>,
    head: &Head,
) -> Option<Arc<Cluster>> {
    let id = match choice {
        ClusterChoice::One { id, .. } => *id,
        ClusterChoice::Weighted { .. } => weighted?.id,
        ClusterChoice::Header { name, names } => {
            *names.get(head.headers.get(name).and_then(|value| value.to_str().ok())?)?
        }
    };
    snapshot.cluster(id).cloned()
}

/// The route's timeout, or the caller's `x-envoy-upstream-rq-timeout-ms` (which outsiders cannot set: it was removed from their requests).
fn request_timeout(head: &mut Head, origin: Origin, action: &Forward) -> Option<Duration> {
    // Requests from outside have lost them already.
    if origin == Origin::External {
        return action.timeout;
    }
    let asked = head.headers.get(&names::ENVOY_TIMEOUT).cloned();
    names::remove_envoy(&mut head.headers, &names::ROUTER_ONLY);
    match asked.and_then(|value| value.to_str().ok()?.parse::<u64>().ok()) {
        Some(0) => None,
        Some(ms) => Some(Duration::from_millis(ms)),
        None => action.timeout,
    }
}

/// The route's work on the request: header mutations first, because they may quote the original path and host, then path and host.
fn rewrite(
    head: &mut Head,
    exchange: &Exchange,
    matched: Matched<'_>,
    action: &Forward,
    weighted: Option<&WeightedCluster>,
    endpoint: &Endpoint,
) {
    let levels = weighted.map(|weighted| &weighted.request_headers).into_iter().chain(matched.request_headers());
    for level in levels {
        if !level.is_empty() {
            let values = {
                let mut record = exchange.record();
                record.request = Some(head.view());
                values(level, &record)
            };
            mutate(&mut head.headers, level, values);
        }
    }
    let host = match (weighted.and_then(|weighted| weighted.host_rewrite.as_ref()), action.host_rewrite.as_deref()) {
        (Some(host), _) => Some(host.clone()),
        (None, None) => None,
        (None, Some(HostRewrite::Literal(host))) => Some(host.clone()),
        (None, Some(HostRewrite::Auto)) => {
            endpoint.hostname.as_deref().and_then(|name| HeaderValue::from_str(name).ok())
        }
        (None, Some(HostRewrite::Header(name))) => head.headers.get(name).cloned(),
        (None, Some(HostRewrite::PathRegex { pattern, substitution })) => {
            HeaderValue::from_str(&pattern.replace_all(path_only(head.path.as_str()), &**substitution)).ok()
        }
    };
    if let Some(host) = host {
        if action.append_forwarded_host {
            let old = head.authority().to_owned();
            names::append(&mut head.headers, names::FORWARDED_HOST.clone(), &old, ",");
        }
        if !exchange.manager.suppress_envoy_headers {
            head.headers.insert(names::ENVOY_ORIGINAL_HOST.clone(), std::mem::replace(&mut head.authority, host));
        } else {
            head.authority = host;
        }
    }
    if let Some(rewrite) = &action.path_rewrite {
        let old = head.path.as_str();
        let new = path::rewrite(old, rewrite, matched_length(&matched.route.path, old));
        if !exchange.manager.suppress_envoy_headers
            && let Ok(old) = HeaderValue::from_str(old)
        {
            head.headers.insert(names::ENVOY_ORIGINAL_PATH.clone(), old);
        }
        head.path = Path::Changed(new);
    }
}

/// The request as sent upstream, in origin form. `None` if the rewritten path is no path.
fn outbound(head: &mut Head, body: RequestBody, switching: Option<&str>) -> Option<Request<RequestBody>> {
    let path = match &head.path {
        Path::Original(uri) => uri.path_and_query()?.clone(),
        Path::Changed(path) => uri::PathAndQuery::from_maybe_shared(Bytes::from(path.clone())).ok()?,
    };
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = std::mem::take(&mut head.headers);
    if let Some(kind) = switching {
        let asked = upgrade::Asked::new(kind, head)?;
        request.extensions_mut().insert(asked);
    }
    Some(request)
}

/// Makes the request fit the protocol of the connection it goes over.
fn address(
    request: &mut Request<RequestBody>,
    protocol: Protocol,
    authority: &HeaderValue,
    scheme: &'static str,
) -> Option<()> {
    // Nothing else rides in the extensions, so that of almost all requests they are empty.
    let asked = request.extensions().get::<upgrade::Asked>().cloned();
    if let Some(asked) = asked {
        asked.ask(request, protocol)?;
    }
    match protocol {
        Protocol::Http1 => {
            if request.headers().get(header::HOST) != Some(authority) {
                request.headers_mut().insert(header::HOST, authority.clone());
            }
            *request.version_mut() = Version::HTTP_11;
            if request.uri().scheme().is_some() {
                *request.uri_mut() = Uri::from(request.uri().path_and_query()?.clone());
            }
            let method = request.method();
            // As in Envoy: a method that may have a body says that it has none.
            let may_have_body =
                !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT);
            if may_have_body
                && request.body().is_end_stream()
                && !request.headers().contains_key(header::CONTENT_LENGTH)
            {
                request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            // hyper takes such a request for one without body unless it is told otherwise.
            if matches!(*request.method(), Method::GET | Method::HEAD)
                && request.body().is_unsized()
                && !request.headers().contains_key(header::CONTENT_LENGTH)
            {
                request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        Protocol::Http2 => {
            request.headers_mut().remove(header::HOST);
            // From an attempt over HTTP/1.
            request.headers_mut().remove(header::TRANSFER_ENCODING);
            let mut parts = uri::Parts::default();
            parts.scheme = Some(if scheme == "https" { uri::Scheme::HTTPS } else { uri::Scheme::HTTP });
            parts.authority =
                Some(uri::Authority::from_maybe_shared(Bytes::copy_from_slice(authority.as_bytes())).ok()?);
            parts.path_and_query = request.uri().path_and_query().cloned();
            *request.uri_mut() = Uri::from_parts(parts).ok()?;
            *request.version_mut() = Version::HTTP_2;
        }
    }
    Some(())
}

/// Gets a connection and sends the request. A pooled connection may have been closed by the other side a moment ago: as long as the request has not left
/// us, it is sent over another one.
pub(super) async fn attempt(
    cluster: &Arc<Cluster>,
    endpoint: &Arc<Endpoint>,
    client: Option<&Connection>,
    downstream: Protocol,
    mut request: Request<RequestBody>,
    authority: &HeaderValue,
    scheme: &'static str,
) -> Result<(Response<Incoming>, Lease), Failure> {
    loop {
        let mut lease = pool::acquire(cluster, endpoint, client, downstream).await.map_err(Failure::Acquire)?;
        address(&mut request, lease.protocol(), authority, scheme).ok_or(Failure::BadTarget)?;
        let reused = lease.reused;
        let sent = match lease.sender() {
            Some(sender) => sender.send(request).await,
            None => return Err(Failure::BadTarget),
        };
        match sent {
            Ok(response) if lease.protocol() == Protocol::Http2 && names::has_bad_name(response.headers()) => {
                return Err(Failure::BadResponse);
            }
            Ok(response) => return Ok((response, lease)),
            Err(mut error) => match error.take_message() {
                Some(unsent) if reused => request = unsent,
                _ => return Err(Failure::Send(error.into_error())),
            },
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "the end of `forward`, told apart only for its length")]
fn respond(
    mut exchange: Box<Exchange>,
    upstream: UpstreamRequest,
    response: Response<Incoming>,
    lease: Lease,
    matched: Matched<'_>,
    limits: &Limits,
    weighted: Option<&WeightedCluster>,
    client: Option<Box<upgrade::Client>>,
) -> Response<ResponseBody> {
    let (mut parts, incoming) = response.into_parts();
    // What the upstream speaks ends here: a client of HTTP/1.1 is answered in HTTP/1.1, and its connection stays.
    parts.version = Version::HTTP_11;
    let server = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    // As in Envoy: over HTTP/2 an upgrade succeeds with 200 (RFC 8441 section 5), which is a 101 to all that follows.
    if lease.protocol() == Protocol::Http2 && client.is_some() && server.is_some() {
        parts.status = StatusCode::SWITCHING_PROTOCOLS;
    }
    let now = Instant::now();
    exchange.response_start = Some(now - exchange.start);
    exchange.status = parts.status.as_u16();
    exchange.details = Some("via_upstream".into());
    if !exchange.health_check {
        upstream.cluster.stats.count_code(exchange.origin, exchange.status);
    }
    let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    if switched || !exchange.is_handed_over() || lease.is_blocked() {
        // There is more to send, whether or not the client takes what comes.
        lease.leave();
    }
    let named = switched.then(|| parts.headers.get(header::UPGRADE).cloned()).flatten();
    strip_hop_by_hop(&mut parts.headers);
    if !exchange.manager.suppress_envoy_headers && exchange.has_whole_request() {
        parts
            .headers
            .insert(names::ENVOY_UPSTREAM_TIME.clone(), names::number((now - upstream.start).as_millis() as u64));
    }
    exchange.upstream = Some(upstream);
    for cookie in std::mem::take(&mut exchange.set_cookies) {
        parts.headers.append(header::SET_COOKIE, cookie);
    }
    if let Some(weighted) = weighted.filter(|weighted| !weighted.response_headers.is_empty()) {
        let values = {
            let mut record = exchange.record();
            record.response = Some((&parts.headers).into());
            values(&weighted.response_headers, &record)
        };
        mutate(&mut parts.headers, &weighted.response_headers, values);
    }
    let ends = switched || incoming.is_end_stream();
    finish_headers(&mut exchange, Some(matched), &mut parts.headers, ends);

    if switched {
        return upgrade::granted(parts, named, client, server, exchange, lease, limits);
    }
    parts.extensions = http::Extensions::new();
    if incoming.is_end_stream() {
        exchange.complete();
        lease.give_back();
        return Response::from_parts(parts, ResponseBody::EMPTY);
    }
    let body = limits.body(exchange.progress.as_deref());
    let shaped = exchange.effects.as_ref().is_some_and(|effects| effects.shapes());
    let body = UpstreamBody::new(incoming, lease, exchange, body, now);
    let body = if shaped { ResponseBody::Shaped(Shaped::upstream(body)) } else { ResponseBody::Upstream(body) };
    Response::from_parts(parts, body)
}
