//! HTTP filters: what is done with a request before the router, and with the response because of it.
//!
//! A filter that has something to do with the response leaves a note of it in the exchange's [`Effects`]; requests without such filters have none.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body::Frame;

use super::{
    body::Inbound,
    exchange::Exchange,
    head::Head,
    headers::{mutate, put, values},
    local_reply::Refusal,
    request::Matched,
};
use crate::{
    connection::{Connection, explain},
    error::ResponseFlag,
    model::{
        header::{AppendAction, HeaderMutations},
        header_view::HeaderView,
        http_filter::{FilterSetting, HttpFilter, HttpFilterKind, LocalRateLimit, MessageMutations, RbacRules},
        listener::FilterChain,
        ratelimit::RateLimit,
        rbac::{Rules, Subject},
    },
    snapshot::Snapshot,
    stats::RbacStats,
    token_bucket::TokenBucket,
    worker,
};

mod buffer;
mod call;
mod compress;
mod cors;
mod ext_authz;
mod fault;
mod grpc_stats;
mod header_mutation;
mod health_check;
mod protobuf;
mod ratelimit;
mod shape;

pub(super) use buffer::progress;
use compress::Negotiation;
use fault::ActiveFault;
pub use grpc_stats::RequestMessages;
pub(super) use shape::Shaped;
use shape::Throttle;

/// What filters have to do with a response.
#[derive(Debug, Default)]
pub struct Effects {
    /// The limit that refused the request.
    limited: Option<Arc<LocalRateLimit>>,
    /// The rate limit that refused the request by its service's answer.
    refused: Option<Arc<RateLimit>>,
    /// Headers that services want on the response.
    put: Vec<(HeaderName, HeaderValue, AppendAction)>,
    /// Limits that tell the client how it stands.
    told: Vec<Arc<LocalRateLimit>>,
    /// Compressors of the chain, and what the client takes.
    negotiation: Option<Negotiation>,
    /// zlib's level, once it is settled that the body is compressed, and who counts it.
    gzip: Option<shape::Gzip>,
    throttle: Option<Throttle>,
    faults: Vec<ActiveFault>,
    cors: Option<cors::Allowed>,
    mutations: Vec<Arc<MessageMutations>>,
    /// Count the request's messages once its body is read.
    requests: Vec<RequestMessages>,
    calls: Vec<grpc_stats::Call>,
    checked: Option<health_check::Checked>,
}

impl Effects {
    /// Whether what is added to the response may quote the request.
    pub(super) fn quote_request(&self) -> bool {
        self.limited.is_some() || self.refused.is_some() || !self.mutations.is_empty()
    }

    /// Whether the body is not sent as it is.
    pub(super) fn shapes(&self) -> bool {
        self.gzip.is_some() || self.throttle.is_some()
    }

    /// A piece of the upstream's response, or its trailers, has come.
    pub(super) fn see(&mut self, frame: &Frame<Bytes>) {
        for call in &mut self.calls {
            call.see(frame);
        }
    }

    /// The upstream's response has ended.
    pub(super) fn end(&self, exchange: &Exchange) {
        for call in &self.calls {
            call.time(exchange);
        }
    }
}

/// Runs a request through the chain's filters. The error is the answer of the filter that stops it.
pub(super) async fn run(
    exchange: &mut Exchange,
    head: &mut Head,
    inbound: &mut Inbound,
    matched: Option<Matched<'_>>,
    chain: &FilterChain,
    snapshot: &Snapshot,
) -> Result<(), Refusal> {
    let manager = exchange.manager.clone();
    let mut filters = manager.filters.iter();
    let mut stopped = Ok(());
    for filter in filters.by_ref() {
        let Some(setting) = active(filter, matched) else { continue };
        if !filter.skip.is_empty() {
            let subject = subject(head, &exchange.connection);
            if filter.skip.iter().any(|skipped| skipped.matches(&subject)) {
                continue;
            }
        }
        stopped = match &filter.kind {
            HttpFilterKind::Rbac(rbac) => {
                let subject = subject(head, &exchange.connection);
                let refusal = match setting {
                    Some(FilterSetting::Rbac(rules)) => {
                        let RbacRules { enforced, shadow } = &**rules;
                        denied(enforced.as_ref(), shadow.as_ref(), &rbac.stats, &subject)
                    }
                    _ => denied(rbac.enforced.as_ref(), rbac.shadow.as_ref(), &rbac.stats, &subject),
                };
                if refusal.is_some() {
                    explain(chain, &exchange.connection, snapshot);
                }
                refusal.map_or(Ok(()), Err)
            }
            HttpFilterKind::LocalRateLimit(limit) => match setting {
                Some(FilterSetting::LocalRateLimit(own)) => limited(own, exchange, head),
                _ => limited(limit, exchange, head),
            },
            HttpFilterKind::Fault(fault) => {
                let settings = match setting {
                    Some(FilterSetting::Fault(own)) => own,
                    _ => &fault.settings,
                };
                fault::inject(fault, settings, exchange, head, matched).await
            }
            HttpFilterKind::Compressor(compressor) => {
                compress::note(compressor, setting, exchange, Some(head));
                Ok(())
            }
            HttpFilterKind::RouteKri(stats) => {
                stats.executions().inc();
                exchange.route_kri = matched.and_then(|matched| matched.route.kri.clone());
                Ok(())
            }
            HttpFilterKind::Cors(stats) => cors::judge(stats, &filter.name, exchange, head, matched),
            HttpFilterKind::HeaderMutation { all, most_specific_wins } => {
                header_mutation::change(all, *most_specific_wins, &filter.name, exchange, head, matched);
                Ok(())
            }
            HttpFilterKind::GrpcStats(methods) => {
                grpc_stats::note(methods, exchange, head, inbound, matched, snapshot);
                Ok(())
            }
            HttpFilterKind::Buffer { limit } => {
                let limit = match setting {
                    Some(FilterSetting::Buffer { limit }) => *limit,
                    _ => *limit,
                };
                Box::pin(buffer::buffer(limit, exchange, head, inbound)).await
            }
            // Boxed: requests that no service is asked about must not be larger for it.
            HttpFilterKind::RateLimit(limit) => {
                Box::pin(ratelimit::ask(limit, setting, exchange, head, matched, snapshot)).await
            }
            HttpFilterKind::ExtAuthz(authz) => {
                Box::pin(ext_authz::ask(authz, setting, exchange, head, inbound, matched, snapshot)).await
            }
            HttpFilterKind::HealthCheck(check) => {
                let answer = health_check::judge(check, exchange, head, snapshot);
                if answer.is_err() && !inbound.is_empty() {
                    Box::pin(buffer::discard(exchange, head, inbound)).await;
                }
                answer
            }
        };
        if stopped.is_err() {
            break;
        }
    }
    // Those behind the one that stopped it have not seen the request, but see the answer.
    for filter in filters {
        if let HttpFilterKind::Compressor(compressor) = &filter.kind
            && let Some(setting) = active(filter, matched)
        {
            compress::note(compressor, setting, exchange, None);
        }
    }
    stopped
}

/// What the route says about a filter, within `Some` unless the filter is off. The most specific level that says anything counts.
fn active<'a>(filter: &HttpFilter, matched: Option<Matched<'a>>) -> Option<Option<&'a FilterSetting>> {
    match matched.and_then(|matched| matched.filter_setting(&filter.name)) {
        Some(FilterSetting::Disabled) => None,
        None if filter.disabled => None,
        setting => Some(setting),
    }
}

/// Whether a service may change a header: those that frame a message are the codec's, and `host` is a pseudo-header's.
fn may_change(name: &HeaderName) -> bool {
    !matches!(name.as_str(), "host" | "content-length" | "transfer-encoding" | "connection" | "upgrade" | "te")
}

fn effects(exchange: &mut Exchange) -> &mut Effects {
    exchange.effects.get_or_insert_default()
}

fn subject<'a>(head: &'a Head, connection: &'a Connection) -> Subject<'a> {
    Subject { remote: head.remote, request: Some(head.view()), ..connection.subject() }
}

fn denied(
    enforced: Option<&Rules>,
    shadow: Option<&Rules>,
    stats: &RbacStats,
    subject: &Subject<'_>,
) -> Option<Refusal> {
    if let Some(shadow) = shadow {
        match shadow.decide(subject).allowed {
            true => stats.shadow_allowed().inc(),
            false => stats.shadow_denied().inc(),
        }
    }
    let decision = enforced?.decide(subject);
    if decision.allowed {
        stats.allowed().inc();
        return None;
    }
    stats.denied().inc();
    let policy = decision.policy.as_deref().unwrap_or("none").replace(' ', "_");
    Some(Refusal::new(
        StatusCode::FORBIDDEN,
        "RBAC: access denied",
        format!("rbac_access_denied_matched_policy[{policy}]"),
    ))
}

/// Source: Envoy "Local rate limit".
fn limited(limit: &Arc<LocalRateLimit>, exchange: &mut Exchange, head: &mut Head) -> Result<(), Refusal> {
    if !limit.enabled.holds(worker::random()) {
        return Ok(());
    }
    limit.stats.enabled().inc();
    if limit.draft_headers && limit.bucket.is_some() {
        effects(exchange).told.push(limit.clone());
    }
    if limit.bucket.as_ref().is_none_or(TokenBucket::take) {
        limit.stats.ok().inc();
        return Ok(());
    }
    limit.stats.rate_limited().inc();
    if !limit.enforced.holds(worker::random()) {
        add_to_request(exchange, head, &limit.request_headers);
        return Ok(());
    }
    limit.stats.enforced().inc();
    if !limit.response_headers.is_empty() {
        effects(exchange).limited = Some(limit.clone());
    }
    let mut refusal =
        Refusal::new(limit.status, "local_rate_limited", "local_rate_limited").flag(ResponseFlag::RateLimited);
    refusal.grpc_status = limit.resource_exhausted.then_some(8);
    Err(refusal)
}

/// What filters do to the headers of a response; `ends`: it has no body.
pub(super) fn respond(exchange: &mut Exchange, headers: &mut HeaderMap, ends: bool) {
    let Some(mut effects) = exchange.effects.take() else { return };
    if let Some(limit) = &effects.limited {
        add(exchange, headers, &limit.response_headers);
    }
    for (name, value, append) in effects.put.drain(..) {
        put(headers, &name, value, append);
    }
    if let Some(limit) = &effects.refused {
        add(exchange, headers, &limit.response_headers);
    }
    if let Some(cors) = &effects.cors {
        cors.allow(headers);
    }
    for step in effects.mutations.iter().flat_map(|mutations| &mutations.response) {
        add(exchange, headers, step);
    }
    if let Some(checked) = &effects.checked {
        checked.respond(exchange.status, headers);
    }
    for call in &mut effects.calls {
        call.respond(exchange, headers, ends);
    }
    if let Some(negotiation) = effects.negotiation.take() {
        effects.gzip = negotiation.settle(exchange.status, headers, ends);
    }
    for bucket in effects.told.iter().filter_map(|limit| limit.bucket.as_ref()) {
        for (name, value) in [
            ("x-ratelimit-limit", u64::from(bucket.max())),
            ("x-ratelimit-remaining", bucket.remaining()),
            ("x-ratelimit-reset", bucket.next_token()),
        ] {
            headers.append(name, HeaderValue::from(value));
        }
    }
    exchange.effects = Some(effects);
}

fn add_to_request(exchange: &Exchange, head: &mut Head, mutations: &HeaderMutations) {
    if mutations.is_empty() {
        return;
    }
    let values = {
        let mut record = exchange.record();
        record.request = Some(head.view());
        values(mutations, &record)
    };
    mutate(&mut head.headers, mutations, values);
}

fn add(exchange: &Exchange, headers: &mut HeaderMap, mutations: &HeaderMutations) {
    let values = {
        let mut record = exchange.record();
        record.response = Some((&*headers).into());
        values(mutations, &record)
    };
    mutate(headers, mutations, values);
}

/// All values of a header that lists tokens, joined; empty without it.
fn listed<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Cow<'a, str> {
    HeaderView::from(headers).joined(name).unwrap_or_default()
}
