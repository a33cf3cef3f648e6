//! The life of a request, top to bottom.

use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use hyper::body::Incoming;

use super::{
    body::{Inbound, ResponseBody},
    exchange::Exchange,
    filter::{self, Shaped},
    forward,
    head::Head,
    headers::{self as names, mutate, values},
    local_reply::Refusal,
    path,
    route::{path_only, without_port},
    trace,
};
use crate::{
    connection::Connection,
    model::{
        header::HeaderMutations,
        http::ServerHeader,
        http_filter::FilterSetting,
        listener::{FilterChain, Terminal},
        route::{
            ClusterChoice, Forward, PathMatch, Redirect, RedirectPath, RequireTls, Route, RouteAction, RouteTable,
            VirtualHost, WeightedCluster,
        },
    },
    snapshot::Snapshot,
    worker,
};

/// Why a request gets no answer at all: its connection (HTTP/1) or stream (HTTP/2) is closed.
#[derive(Debug, thiserror::Error)]
#[error("request is not answered: {0}")]
pub struct Unanswered(pub &'static str);

/// Serves one request: configuration, checks, route, filters, action, response. `pinned` is the chain that the connection was matched to, used once the
/// configuration no longer has it and the connection only drains.
pub async fn serve(
    request: Request<Incoming>,
    connection: Arc<Connection>,
    pinned: Arc<FilterChain>,
) -> Result<Response<ResponseBody>, Unanswered> {
    // Configuration is read here, once; whatever is published from now on is for the next request.
    let snapshot = worker::snapshot();
    let chain = chain(&snapshot, &connection, &pinned);
    let Terminal::Http(manager) = &chain.terminal else { return Err(Unanswered("its filter chain serves no HTTP")) };
    let manager = manager.clone();
    let mut exchange = Exchange::new(connection, manager.clone(), request.version());
    let (mut head, extensions, body) = Head::new(request);
    let mut inbound = Inbound::new(body);
    exchange.unfinished = !inbound.is_empty() || head.method == Method::CONNECT;
    exchange.grpc = head.is_grpc();

    if worker::stops_requests() {
        manager.stats.downstream_rq_overload_close().inc();
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "envoy overloaded", "overload")
            .flag(crate::error::ResponseFlag::OverloadManager);
        return Ok(reply(exchange, &head, None, refusal));
    }
    if let Err(refusal) = head.check(&manager) {
        return Ok(reply(exchange, &head, None, refusal));
    }
    exchange.origin = head.sanitize(&manager, &exchange.connection);
    exchange.remote = head.remote;
    exchange.keep_alive = head.keep_alive;
    exchange.unfinished |= head.upgrade.is_some();

    let connect = head.method == Method::CONNECT;
    let table = snapshot.route_table(manager.routes);
    let host = table.and_then(|table| table.virtual_host(head.authority()));
    let route =
        host.and_then(|host| host.route(&head.view(), &exchange.connection.filter_state, connect, &mut worker::random));
    let matched = match (table, host, route) {
        (Some(table), Some(host), Some(route)) => Some(Matched { table, host, route, weighted: draw(route) }),
        _ => None,
    };
    if let Some(Matched { host, route, .. }) = matched {
        exchange.route = (!route.name.is_empty()).then(|| route.name.clone());
        exchange.virtual_host = exchange.logs().then(|| host.name.clone());
    }

    if let Some(tracing) = &manager.tracing {
        let route = matched.and_then(|matched| matched.route.tracing.as_ref());
        exchange.trace = trace::begin(tracing, route, &mut head, &manager.stats);
    }

    if !manager.filters.is_empty()
        && let Err(refusal) = filter::run(&mut exchange, &mut head, &mut inbound, matched, chain, &snapshot).await
    {
        let matched = matched.filter(|_| !refusal.bare);
        return Ok(reply(exchange, &head, matched, refusal));
    }

    let Some(matched) = matched else {
        manager.stats.no_route().inc();
        let details = if table.is_none() { "route_configuration_not_found" } else { "route_not_found" };
        return Ok(reply(
            exchange,
            &head,
            None,
            Refusal::new(StatusCode::NOT_FOUND, "", details).flag(crate::error::ResponseFlag::NoRoute),
        ));
    };
    if must_use_tls(matched.host, &head, &exchange) {
        let refusal = Refusal::new(StatusCode::MOVED_PERMANENTLY, "", "direct_response").to(format!(
            "https://{}{}",
            // A port stays, even that of plain text: so does Envoy here, other than for `https_redirect`.
            head.authority(),
            head.path.as_str()
        ));
        count_direct(&manager);
        return Ok(reply(exchange, &head, None, refusal));
    }
    match &matched.route.action {
        RouteAction::Forward(action) => {
            forward::forward(&snapshot, exchange, &mut head, extensions, inbound, matched, action).await
        }
        RouteAction::Redirect(redirect) => {
            count_direct(&manager);
            let refusal =
                Refusal::new(redirect.status, "", "direct_response").to(location(redirect, &matched.route.path, &head));
            Ok(reply(exchange, &head, Some(matched), refusal))
        }
        RouteAction::Direct(direct) => {
            count_direct(&manager);
            let mut text = String::new();
            let body = match &direct.format {
                Some(format) => {
                    let mut record = exchange.record();
                    record.request = Some(head.view());
                    crate::record::render(format, &record, &mut text);
                    text.into()
                }
                None => direct.body.clone(),
            };
            let grpc = exchange.grpc;
            let text = if grpc { String::from_utf8_lossy(&body).into_owned() } else { String::new() };
            let mut refusal = Refusal::new(direct.status, text, "direct_response");
            // Envoy names the place of what was made or is elsewhere (RFC 9110 section 10.2.2): the request's own.
            if direct.status == StatusCode::CREATED || direct.status.is_redirection() {
                refusal = refusal.to(format!("{}://{}{}", scheme(&head), head.authority(), head.path.as_str()));
            }
            let mut response = closes_after(refusal, &exchange).response(grpc);
            if !grpc && !body.is_empty() {
                response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                *response.body_mut() = ResponseBody::full(body);
            }
            exchange.details = Some("direct_response".into());
            Ok(local(exchange, &head, Some(matched), response))
        }
        RouteAction::NonForwarding => {
            manager.stats.no_route().inc();
            let refusal =
                Refusal::new(StatusCode::NOT_FOUND, "", "route_not_found").flag(crate::error::ResponseFlag::NoRoute);
            Ok(reply(exchange, &head, None, refusal))
        }
    }
}

/// A route with what stands above it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matched<'a> {
    pub table: &'a RouteTable,
    pub host: &'a VirtualHost,
    pub route: &'a Route,
    /// The cluster drawn, if the route leads to several.
    pub weighted: Option<&'a WeightedCluster>,
}

impl<'a> Matched<'a> {
    /// What is said about a filter, by the most specific level that says anything.
    pub fn filter_setting(self, filter: &str) -> Option<&'a FilterSetting> {
        self.filter_settings(filter).next()
    }

    /// What every level says about a filter, the most specific one first.
    pub fn filter_settings(self, filter: &str) -> impl Iterator<Item = &'a FilterSetting> {
        let levels = [
            self.weighted.map(|weighted| &weighted.filters),
            Some(&self.route.filters),
            Some(&self.host.filters),
            Some(&self.table.filters),
        ];
        levels.into_iter().flatten().filter_map(move |level| level.of(filter))
    }

    /// The cluster that the route leads to.
    pub fn cluster_name(&self, head: &'a Head) -> Option<&'a str> {
        let RouteAction::Forward(action) = &self.route.action else { return None };
        match &action.clusters {
            ClusterChoice::One { name, .. } => Some(name),
            ClusterChoice::Weighted { .. } => self.weighted.map(|weighted| &*weighted.name),
            ClusterChoice::Header { name, .. } => head.headers.get(name)?.to_str().ok(),
        }
    }

    /// The three levels' request mutations in the order in which they apply.
    pub fn request_headers(&self) -> [&'a HeaderMutations; 3] {
        self.ordered([&self.route.request_headers, &self.host.request_headers, &self.table.request_headers])
    }

    /// Likewise for responses.
    pub fn response_headers(&self) -> [&'a HeaderMutations; 3] {
        self.ordered([&self.route.response_headers, &self.host.response_headers, &self.table.response_headers])
    }

    fn ordered(&self, [route, host, table]: [&'a HeaderMutations; 3]) -> [&'a HeaderMutations; 3] {
        if self.table.most_specific_wins { [table, host, route] } else { [route, host, table] }
    }

    /// Whether a response mutation may quote the request.
    pub fn has_response_headers(&self) -> bool {
        self.response_headers().iter().any(|level| !level.is_empty())
    }
}

/// The cluster that a request goes to, of those among which its route chooses by weight.
fn draw(route: &Route) -> Option<&WeightedCluster> {
    let RouteAction::Forward(Forward { clusters: ClusterChoice::Weighted { clusters, total }, .. }) = &route.action
    else {
        return None;
    };
    let mut draw = (worker::random() % u64::from((*total).max(1))) as u32;
    clusters.iter().find(|weighted| {
        let taken = draw < weighted.weight;
        draw = draw.saturating_sub(weighted.weight);
        taken
    })
}

fn chain<'a>(snapshot: &'a Snapshot, connection: &Connection, pinned: &'a FilterChain) -> &'a FilterChain {
    let current = snapshot.chain(connection.listener, connection.chain).filter(|chain| chain.demands == pinned.demands);
    current.map_or(pinned, |chain| chain)
}

/// A route that answers by itself, be it with a redirect.
fn count_direct(manager: &crate::model::http::HttpConnectionManager) {
    manager.stats.rq_total().inc();
    manager.stats.rq_direct_response().inc();
}

fn must_use_tls(host: &VirtualHost, head: &Head, exchange: &Exchange) -> bool {
    let plain = || head.headers.get(&names::FORWARDED_PROTO).is_none_or(|proto| proto.as_bytes() != b"https");
    match host.require_tls {
        RequireTls::No => false,
        RequireTls::All => plain(),
        RequireTls::ExternalOnly => exchange.origin == crate::stats::Origin::External && plain(),
    }
}

/// What the client came by, as it said or as it was found.
fn scheme(head: &Head) -> &'static str {
    match head.headers.get(&names::FORWARDED_PROTO) {
        Some(proto) if proto.as_bytes() == b"https" => "https",
        Some(_) | None => "http",
    }
}

fn location(redirect: &Redirect, matched: &PathMatch, head: &Head) -> String {
    let authority = head.authority();
    let old_scheme = scheme(head);
    let scheme = redirect.scheme.as_deref().unwrap_or(old_scheme);
    let bare = without_port(authority);
    let host = redirect.host.as_deref().unwrap_or(bare);
    let mut port =
        authority.get(bare.len() + 1..).and_then(|port| port.parse::<u16>().ok()).filter(|_| redirect.host.is_none());
    // The old scheme's default port means nothing under the new one.
    if redirect.scheme.is_some() && matches!((old_scheme, port), ("http", Some(80)) | ("https", Some(443))) {
        port = None;
    }
    let port = redirect.port.or(port).map_or(String::new(), |port| format!(":{port}"));
    let old = head.path.as_str();
    let mut path = match &redirect.path {
        RedirectPath::Keep => old.to_owned(),
        RedirectPath::Path(path) if path.contains('?') => path.to_string(),
        RedirectPath::Path(path) => format!("{path}{}", old.find('?').map_or("", |at| &old[at..])),
        RedirectPath::Rewrite(rewrite) => path::rewrite(old, rewrite, matched_length(matched, old)),
    };
    if redirect.strip_query
        && let Some(at) = path.find('?')
        && !matches!(&redirect.path, RedirectPath::Path(path) if path.contains('?'))
    {
        path.truncate(at);
    }
    format!("{scheme}://{host}{port}{path}")
}

/// How much of a path its route matched, for a prefix rewrite.
pub(super) fn matched_length(matched: &PathMatch, path: &str) -> usize {
    match matched {
        PathMatch::Prefix { value, .. } | PathMatch::SeparatedPrefix { value, .. } => value.len(),
        PathMatch::Exact { .. } | PathMatch::Regex(_) | PathMatch::Connect => path_only(path).len(),
    }
}

/// A 400 of ours says that the messages have gone wrong, which over HTTP/1 only a new connection mends. Source: Envoy `sendLocalReply`.
fn closes_after(refusal: Refusal, exchange: &Exchange) -> Refusal {
    if refusal.status == StatusCode::BAD_REQUEST && exchange.version != Version::HTTP_2 {
        refusal.closing()
    } else {
        refusal
    }
}

/// Ends a request with a refusal.
pub(super) fn reply(
    mut exchange: Box<Exchange>,
    head: &Head,
    matched: Option<Matched<'_>>,
    refusal: Refusal,
) -> Response<ResponseBody> {
    if let Some(flag) = refusal.flag {
        exchange.flags.set(flag);
    }
    exchange.details = Some(refusal.details.clone());
    let response = closes_after(refusal, &exchange).response(exchange.grpc);
    local(exchange, head, matched, response)
}

/// Ends a request with a response of ours.
fn local(
    mut exchange: Box<Exchange>,
    head: &Head,
    matched: Option<Matched<'_>>,
    mut response: Response<ResponseBody>,
) -> Response<ResponseBody> {
    exchange.status = response.status().as_u16();
    exchange.keep_request(head, matched);
    if let ResponseBody::Full(Some(body)) = response.body() {
        exchange.bytes_sent = body.len() as u64;
    }
    if head.method == Method::HEAD {
        *response.body_mut() = ResponseBody::EMPTY;
        exchange.bytes_sent = 0;
    }
    let ends = response.body().is_end_stream();
    finish_headers(&mut exchange, matched, response.headers_mut(), ends);
    exchange.complete();
    if exchange.effects.as_ref().is_some_and(|effects| effects.shapes()) {
        return response.map(|body| match body {
            ResponseBody::Full(body) => ResponseBody::Shaped(Shaped::local(body, exchange)),
            other => other,
        });
    }
    response
}

/// The last touch on any response: the route's mutations, `server`, `via`, request id, and the end of a connection that drains.
/// `ends`: the response has no body.
pub(super) fn finish_headers(
    exchange: &mut Exchange,
    matched: Option<Matched<'_>>,
    headers: &mut http::HeaderMap,
    ends: bool,
) {
    if let Some(matched) = matched.filter(|matched| matched.has_response_headers()) {
        for level in matched.response_headers() {
            if !level.is_empty() {
                let values = {
                    let mut record = exchange.record();
                    record.response = Some((&*headers).into());
                    values(level, &record)
                };
                mutate(headers, level, values);
            }
        }
    }
    if exchange.effects.is_some() {
        filter::respond(exchange, headers, ends);
    }
    let manager = &exchange.manager;
    if let (Some(trace), Some(tracing)) = (&mut exchange.trace, &manager.tracing) {
        trace.respond(tracing, headers);
    }
    match manager.server_header {
        ServerHeader::Overwrite => {
            headers.insert(header::SERVER, manager.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            headers.entry(header::SERVER).or_insert_with(|| manager.server_name.clone());
        }
        ServerHeader::PassThrough => {}
    }
    if let Some(via) = &manager.via {
        names::append(headers, header::VIA, via.to_str().unwrap_or(""), ", ");
    }
    if manager.always_set_request_id_in_response
        && let Some(id) = exchange.request.as_ref().and_then(|request| request.headers.view().get(&names::REQUEST_ID))
    {
        headers.insert(names::REQUEST_ID.clone(), id.clone());
    }
    let mut close = exchange.version < Version::HTTP_11 && !exchange.keep_alive;
    // Nobody will read the rest of the request, so nothing can follow it on an HTTP/1 connection.
    if !exchange.has_whole_request() && exchange.status != StatusCode::SWITCHING_PROTOCOLS.as_u16() {
        manager.stats.downstream_rq_response_before_rq_complete().inc();
        close = true;
    }
    if exchange.connection.drain.is_draining() {
        manager.stats.downstream_cx_drain_close().inc();
        close = true;
    }
    if close && exchange.version != Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if exchange.logs() {
        exchange.keep_response(headers);
    }
}
