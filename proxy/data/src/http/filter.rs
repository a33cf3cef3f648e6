//! HTTP filters: what is done with a request before the router, and with the response because of it.
//!
//! A filter that has something to do with the response leaves a note of it in the exchange's [`Effects`]; requests without such filters have none.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    exchange::Exchange,
    head::Head,
    headers::{mutate, values},
    local_reply::Refusal,
    request::Matched,
};
use crate::{
    connection::{Connection, explain},
    error::ResponseFlag,
    model::{
        header::HeaderMutations,
        http_filter::{FilterSetting, HttpFilter, HttpFilterKind, LocalRateLimit, MessageMutations, RbacRules},
        listener::FilterChain,
        rbac::{Rules, Subject},
    },
    snapshot::Snapshot,
    stats::RbacStats,
    token_bucket::TokenBucket,
    worker,
};

mod compress;
mod cors;
mod fault;
mod shape;

use compress::Negotiation;
use fault::ActiveFault;
pub(super) use shape::Shaped;
use shape::Throttle;

/// What filters have to do with a response.
#[derive(Debug, Default)]
pub struct Effects {
    /// The limit that refused the request.
    limited: Option<Arc<LocalRateLimit>>,
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
}

impl Effects {
    /// Whether what is added to the response may quote the request.
    pub(super) fn quote_request(&self) -> bool {
        self.limited.is_some() || !self.mutations.is_empty()
    }

    /// Whether the body is not sent as it is.
    pub(super) fn shapes(&self) -> bool {
        self.gzip.is_some() || self.throttle.is_some()
    }
}

/// Runs a request through the chain's filters. The error is the answer of the filter that stops it.
pub(super) async fn run(
    exchange: &mut Exchange,
    head: &mut Head,
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
                change_headers(all, *most_specific_wins, &filter.name, exchange, head, matched);
                Ok(())
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

/// Envoy "Header mutation": the filter's own, then those of routes.
fn change_headers(
    all: &Arc<MessageMutations>,
    most_specific_wins: bool,
    name: &str,
    exchange: &mut Exchange,
    head: &mut Head,
    matched: Option<Matched<'_>>,
) {
    let levels = matched.into_iter().flat_map(|matched| matched.filter_settings(name)).filter_map(|said| match said {
        FilterSetting::HeaderMutation(mutations) => Some(mutations),
        _ => None,
    });
    let mut list: Vec<&Arc<MessageMutations>> = levels.collect();
    if most_specific_wins {
        list.reverse();
    }
    list.insert(0, all);
    for mutations in list {
        for step in &mutations.request {
            add_to_request(exchange, head, step);
        }
        if !mutations.response.is_empty() {
            effects(exchange).mutations.push(mutations.clone());
        }
    }
}

/// What filters do to the headers of a response; `ends`: it has no body.
pub(super) fn respond(exchange: &mut Exchange, headers: &mut HeaderMap, ends: bool) {
    let Some(mut effects) = exchange.effects.take() else { return };
    if let Some(limit) = &effects.limited {
        add(exchange, headers, &limit.response_headers);
    }
    if let Some(cors) = &effects.cors {
        cors.allow(headers);
    }
    for step in effects.mutations.iter().flat_map(|mutations| &mutations.response) {
        add(exchange, headers, step);
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
        record.response = Some(headers);
        values(mutations, &record)
    };
    mutate(headers, mutations, values);
}

/// All values of a header that lists tokens, joined; empty without it.
fn listed<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Cow<'a, str> {
    crate::model::matcher::joined_header(headers, name).unwrap_or_default()
}
