//! Rate limits that a service keeps: what it is told of a request, and what its answer means.
//!
//! Source: Envoy "Rate limit" filter, `service.ratelimit.v3`; draft-polli-ratelimit-headers-03.

use std::{fmt::Write, net::IpAddr, sync::Arc, time::Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::{
    super::{
        exchange::Exchange,
        forward::choose_cluster,
        head::Head,
        headers as names,
        local_reply::Refusal,
        request::Matched,
        route::{parameter, query_holds},
    },
    call::{CallError, unary},
    effects, may_change,
    protobuf::{Fields, Malformed, Writer},
};
use crate::{
    error::ResponseFlag,
    model::{
        header::AppendAction,
        http_filter::FilterSetting,
        ratelimit::{AsksFor, HostRules, RATE_LIMITED, RateAction, RateLimit, RateLimitRule},
        route::RouteAction,
    },
    snapshot::Snapshot,
    worker,
};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// What is asked about: a list of entries, and what else its rule says.
#[derive(Debug, PartialEq)]
struct Descriptor<'a> {
    entries: Vec<(&'a str, String)>,
    limit: Option<(u32, u32)>,
    hits: Option<(u64, bool)>,
}

/// Asks the service about a request. The error is the refusal.
pub(super) async fn ask(
    limit: &Arc<RateLimit>,
    setting: Option<&FilterSetting>,
    exchange: &mut Exchange,
    head: &mut Head,
    matched: Option<Matched<'_>>,
    snapshot: &Snapshot,
) -> Result<(), Refusal> {
    let Some(matched) = matched else { return Ok(()) };
    let RouteAction::Forward(action) = &matched.route.action else { return Ok(()) };
    if !limit.enabled.holds(worker::random()) {
        return Ok(());
    }
    let internal = head.headers.get(&names::ENVOY_INTERNAL).is_some_and(|value| value == "true");
    if limit.asks_for == (if internal { AsksFor::External } else { AsksFor::Internal }) {
        return Ok(());
    }
    let Some(cluster) = choose_cluster(snapshot, &action.clusters, matched.weighted, head) else { return Ok(()) };
    let own = match setting {
        Some(FilterSetting::RateLimit(own)) => Some(&**own),
        _ => None,
    };
    let message = {
        let request = Facts { head, destination: &cluster.name, remote: exchange.remote.map(|remote| remote.ip()) };
        let descriptors: Vec<_> =
            rules(limit, own, matched).into_iter().filter_map(|rule| describe(rule, &request)).collect();
        if descriptors.is_empty() {
            return Ok(());
        }
        question(own.and_then(|own| own.domain.as_deref()).unwrap_or(&limit.domain), &descriptors)
    };
    let begun = Instant::now();
    let answer = unary(snapshot, &limit.service, METHOD, message).await;
    exchange.held += begun.elapsed();
    let stats = cluster.stats.rate_limit(&limit.stat_prefix);
    match answer.and_then(|message| Verdict::read(&message).map_err(CallError::from)) {
        Ok(verdict) => {
            if limit.draft_headers {
                effects(exchange).put.extend(draft_headers(&verdict.statuses));
            }
            let append = |(name, value)| (name, value, AppendAction::AppendIfExistsOrAdd);
            if !verdict.over {
                stats.ok().inc();
            } else {
                stats.over_limit().inc();
                if limit.ratelimited_header {
                    let (name, value) = RATE_LIMITED;
                    effects(exchange).put.push((name, value, AppendAction::OverwriteIfExistsOrAdd));
                }
                if limit.enforced.holds(worker::random()) {
                    cluster.stats.count_code(crate::stats::Origin::Internal, limit.status.as_u16());
                    effects(exchange).put.extend(verdict.response_headers.into_iter().map(append));
                    if !limit.response_headers.is_empty() {
                        effects(exchange).refused = Some(limit.clone());
                    }
                    let mut refusal = Refusal::new(limit.status, verdict.body, "request_rate_limited");
                    refusal.grpc_status = limit.resource_exhausted.then_some(8);
                    return Err(refusal.flag(ResponseFlag::RateLimited));
                }
            }
            for (name, value) in verdict.request_headers {
                head.headers.append(name, value);
            }
            if !verdict.response_headers.is_empty() {
                effects(exchange).put.extend(verdict.response_headers.into_iter().map(append));
            }
            Ok(())
        }
        Err(error) => {
            tracing::debug!(?error, service = %limit.service.name, "the rate limit service gave no answer");
            stats.error().inc();
            if limit.failure_mode_deny {
                let refusal = Refusal::new(limit.status_on_error, "", "rate_limiter_error");
                return Err(refusal.flag(ResponseFlag::RateLimitServiceError));
            }
            stats.failure_mode_allowed().inc();
            Ok(())
        }
    }
}

/// The rules that count for a request.
fn rules<'a>(
    limit: &'a RateLimit,
    own: Option<&'a crate::model::ratelimit::RateLimitOverride>,
    matched: Matched<'a>,
) -> Vec<&'a RateLimitRule> {
    if let Some(own) = own.filter(|own| !own.rules.is_empty()) {
        return own.rules.iter().collect();
    }
    if !limit.rules.is_empty() {
        return limit.rules.iter().collect();
    }
    let RouteAction::Forward(action) = &matched.route.action else { return Vec::new() };
    let (route, include) =
        action.rate_limits.as_ref().map_or((&[][..], false), |limits| (limits.rules.as_slice(), limits.include_host));
    let host = match own.map_or(HostRules::Fallback, |own| own.host) {
        _ if include => HostRules::Include,
        said => said,
    };
    let host = match host {
        HostRules::Include => true,
        HostRules::Fallback => route.is_empty(),
        HostRules::Ignore => false,
    };
    let host = matched.host.rate_limits.as_deref().filter(|_| host).unwrap_or_default();
    route.iter().chain(host).filter(|rule| rule.stage == limit.stage).collect()
}

/// What rules look at.
struct Facts<'a> {
    head: &'a Head,
    destination: &'a str,
    remote: Option<IpAddr>,
}

/// The descriptor of a rule; `None` if an action has nothing to say.
fn describe<'a>(rule: &'a RateLimitRule, request: &Facts<'_>) -> Option<Descriptor<'a>> {
    let mut entries: Vec<(&str, String)> = Vec::with_capacity(rule.actions.len());
    let view = request.head.view();
    for action in &rule.actions {
        let entry = match action {
            RateAction::Constant { key, value } => Some((&**key, value.to_string())),
            RateAction::DestinationCluster => Some(("destination_cluster", request.destination.to_owned())),
            RateAction::Header { name, key, skip_if_absent } => match (view.first_value(name), skip_if_absent) {
                (Some(value), _) => Some((&**key, value.to_owned())),
                (None, true) => continue,
                (None, false) => None,
            },
            RateAction::Query { name, key, skip_if_absent } => match (parameter(view.path, name), skip_if_absent) {
                (Some(value), _) => Some((&**key, value.to_owned())),
                (None, true) => continue,
                (None, false) => None,
            },
            RateAction::RemoteAddress => {
                request.remote.map(|remote| ("remote_address", remote.to_canonical().to_string()))
            }
            RateAction::MaskedRemoteAddress { v4, v6 } => request.remote.and_then(|remote| {
                let remote = remote.to_canonical();
                let net = IpNet::new(remote, if remote.is_ipv4() { *v4 } else { *v6 }).ok()?.trunc();
                Some(("masked_remote_address", net.to_string()))
            }),
            RateAction::HeaderMatch { key, value, expect, headers } => {
                let holds = headers.iter().all(|matcher| view.header_matches(matcher));
                (holds == *expect).then(|| (&**key, value.to_string()))
            }
            RateAction::QueryMatch { key, value, expect, parameters } => {
                (query_holds(parameters, view.path) == *expect).then(|| (&**key, value.to_string()))
            }
        };
        entries.push(entry?);
    }
    (!entries.is_empty()).then_some(Descriptor { entries, limit: rule.limit, hits: rule.hits })
}

/// `RateLimitRequest`
fn question(domain: &str, descriptors: &[Descriptor<'_>]) -> Vec<u8> {
    let mut message = Writer::default();
    message.bytes(1, domain);
    for descriptor in descriptors {
        message.message(2, |to| {
            for (key, value) in &descriptor.entries {
                to.entry(1, key, value);
            }
            if let Some((requests, unit)) = descriptor.limit {
                to.message(2, |to| {
                    to.number(1, u64::from(requests));
                    to.number(2, u64::from(unit));
                });
            }
            if let Some((hits, given_back)) = descriptor.hits {
                to.message(3, |to| to.number(1, hits));
                to.number(4, u64::from(given_back));
            }
        });
    }
    message.finish()
}

/// `RateLimitResponse`
#[derive(Debug, Default)]
struct Verdict {
    over: bool,
    statuses: Vec<Status>,
    response_headers: Vec<(HeaderName, HeaderValue)>,
    request_headers: Vec<(HeaderName, HeaderValue)>,
    body: String,
}

/// `RateLimitResponse.DescriptorStatus`
#[derive(Debug, Default)]
struct Status {
    limit: Option<Limit>,
    remaining: u64,
    reset: u64,
}

#[derive(Debug, Default)]
struct Limit {
    requests: u64,
    unit: u64,
    name: String,
}

impl Verdict {
    fn read(message: &[u8]) -> Result<Verdict, Malformed> {
        let mut verdict = Verdict::default();
        let mut code = 0;
        for field in Fields(message) {
            match field? {
                (1, value) => code = value.number()?,
                (2, value) => verdict.statuses.push(Status::read(value.fields()?)?),
                (3, value) => verdict.response_headers.extend(header(value.fields()?)?),
                (4, value) => verdict.request_headers.extend(header(value.fields()?)?),
                (5, value) => verdict.body = String::from_utf8_lossy(value.bytes()?).into_owned(),
                _ => {}
            }
        }
        verdict.over = match code {
            1 => false,
            2 => true,
            // Neither within the limits nor over them: no answer.
            _ => return Err(Malformed),
        };
        Ok(verdict)
    }
}

impl Status {
    fn read(fields: Fields<'_>) -> Result<Status, Malformed> {
        let mut status = Status::default();
        for field in fields {
            match field? {
                (2, value) => {
                    let mut limit = Limit::default();
                    for field in value.fields()? {
                        match field? {
                            (1, value) => limit.requests = value.number()?,
                            (2, value) => limit.unit = value.number()?,
                            (3, value) => limit.name = value.text()?.to_owned(),
                            _ => {}
                        }
                    }
                    status.limit = Some(limit);
                }
                (3, value) => status.remaining = value.number()?,
                (4, value) => {
                    for field in value.fields()? {
                        if let (1, seconds) = field? {
                            status.reset = seconds.number()?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(status)
    }
}

/// `HeaderValue`; `None` for one that is no header, or not the service's to change.
fn header(fields: Fields<'_>) -> Result<Option<(HeaderName, HeaderValue)>, Malformed> {
    let (mut name, mut text) = (&[][..], &[][..]);
    for field in fields {
        match field? {
            (1, value) => name = value.bytes()?,
            (2 | 3, value) => text = value.bytes()?,
            _ => {}
        }
    }
    let name = HeaderName::from_bytes(name).ok().filter(may_change);
    Ok(name.zip(HeaderValue::from_bytes(text).ok()))
}

/// Limit, rest and reset of the tightest limit; the limit with all policies behind it.
fn draft_headers(statuses: &[Status]) -> Vec<(HeaderName, HeaderValue, AppendAction)> {
    let limited = || statuses.iter().filter_map(|status| Some((status, status.limit.as_ref()?)));
    let Some((tightest, limit)) = limited().min_by_key(|(status, _)| status.remaining) else { return Vec::new() };
    let mut text = limit.requests.to_string();
    for (_, limit) in limited() {
        let window = match limit.unit {
            1 => 1,
            2 => 60,
            3 => 3_600,
            4 => 86_400,
            5 => 30 * 86_400,
            6 => 365 * 86_400,
            7 => 7 * 86_400,
            _ => continue,
        };
        // Writing to a string does not fail.
        let _ = write!(text, ", {};w={window}", limit.requests);
        if !limit.name.is_empty() {
            let _ = write!(text, ";name=\"{}\"", limit.name);
        }
    }
    let mut headers = HeaderMap::with_capacity(4);
    if let Ok(text) = HeaderValue::from_str(&text) {
        headers.insert("x-ratelimit-limit", text);
    }
    headers.insert("x-ratelimit-remaining", HeaderValue::from(tightest.remaining));
    headers.insert("x-ratelimit-reset", HeaderValue::from(tightest.reset));
    let put =
        |(name, value): (Option<HeaderName>, HeaderValue)| Some((name?, value, AppendAction::AppendIfExistsOrAdd));
    headers.into_iter().filter_map(put).collect()
}

#[cfg(test)]
#[path = "ratelimit_tests.rs"]
mod tests;
