//! Rules for a MeshRetry (Kuma `meshretry/api/v1alpha1/validator.go`).

use super::Violation;
use super::policy::At;
use super::target_ref::{target_ref, top_kinds, top_without_effect};
use super::timeout::to_kinds;
use crate::resource::{
    BackOff, GrpcRetry, HeaderMatch, HeaderMatchType, HostPredicate, HttpCondition, HttpRetry, MeshRetry, Meta,
    PredicateType, RateLimitedBackOff, Retry, TargetRefKind, grpc_condition,
};

const NOT_EMPTY: &str = "must not be empty";

pub(super) fn retry(policy: &MeshRetry, meta: &Meta, violations: &mut Vec<Violation>) {
    let MeshRetry { target_ref: top, to } = policy;
    if let Some(top) = top {
        target_ref("spec.targetRef", top, &top_kinds(meta, true), false, violations);
    }
    let top = top.as_ref().and_then(|top| top.kind);
    let gateway_or_route = matches!(top, Some(TargetRefKind::MeshHTTPRoute | TargetRefKind::MeshGateway));
    for (index, item) in to.iter().enumerate() {
        let at = format!("spec.to[{index}]");
        target_ref(&format!("{at}.targetRef"), &item.target_ref, to_kinds(gateway_or_route), false, violations);
        // The field "conf" does not exist; Kuma names it all the same.
        conf(&item.default, At::new(format!("{at}.default.conf"), violations));
    }
}

pub(super) fn without_effect(policy: &MeshRetry) -> Vec<String> {
    top_without_effect(policy.target_ref.as_ref()).into_iter().collect()
}

fn conf(conf: &Retry, mut at: At<'_>) {
    let Retry { tcp, http, grpc } = conf;
    if tcp.is_none() && http.is_none() && grpc.is_none() {
        at.wrong("at least one of the 'tcp', 'http', 'grpc' must be specified");
    }
    match tcp.as_ref().map(|tcp| tcp.max_connect_attempt) {
        Some(None) => at.wrong_field("tcp", NOT_EMPTY),
        Some(Some(0)) => at.wrong_field("tcp.maxConnectAttempt", "must be greater than 0"),
        None | Some(Some(_)) => {}
    }
    if let Some(http) = http {
        self::http(http, at.field("http"));
    }
    if let Some(grpc) = grpc {
        self::grpc(grpc, at.field("grpc"));
    }
}

fn http(retry: &HttpRetry, mut at: At<'_>) {
    let HttpRetry {
        num_retries,
        per_try_timeout,
        back_off,
        rate_limited_back_off,
        retry_on,
        retriable_response_headers,
        retriable_request_headers,
        host_selection,
        host_selection_max_attempts,
    } = retry;
    if num_retries.is_none()
        && per_try_timeout.is_none()
        && back_off.is_none()
        && retry_on.is_none()
        && retriable_request_headers.is_none()
        && retriable_response_headers.is_none()
        && rate_limited_back_off.is_none()
        && host_selection.is_none()
    {
        at.wrong(NOT_EMPTY);
    }
    back_offs(back_off.as_ref(), rate_limited_back_off.as_ref(), &mut at);
    at.not_negative("perTryTimeout", *per_try_timeout);
    if host_selection_max_attempts.is_some_and(|attempts| attempts < 0) {
        at.wrong_field("hostSelectionMaxAttempts", "must not be negative when defined");
    }
    for (index, item) in retry_on.iter().flatten().enumerate() {
        if HttpCondition::parse(item).is_none() {
            at.wrong_field(&format!("retryOn[{index}]"), format!("unknown item '{item}'"));
        }
    }
    headers("retriableResponseHeaders", retriable_response_headers.as_deref(), &mut at);
    headers("retriableRequestHeaders", retriable_request_headers.as_deref(), &mut at);
    let mut priorities = false;
    for (index, HostPredicate { predicate, tags, update_frequency }) in host_selection.iter().flatten().enumerate() {
        let mut at = at.entry("hostSelection", index);
        match predicate {
            PredicateType::OmitHostsWithTags if tags.is_none() => at.wrong_field("tags", "must be defined"),
            PredicateType::OmitHostsWithTags | PredicateType::OmitPreviousHosts => {}
            PredicateType::OmitPreviousPriorities => {
                if priorities {
                    at.wrong_field("predicate", "OmitPreviousPriorities must only be specified once");
                }
                if *update_frequency <= 0 {
                    at.wrong_field("updateFrequency", "must be defined and greater than zero");
                }
                priorities = true;
            }
        }
    }
}

fn grpc(retry: &GrpcRetry, mut at: At<'_>) {
    let GrpcRetry { num_retries, per_try_timeout, back_off, rate_limited_back_off, retry_on } = retry;
    if num_retries.is_none()
        && per_try_timeout.is_none()
        && back_off.is_none()
        && retry_on.is_none()
        && rate_limited_back_off.is_none()
    {
        at.wrong(NOT_EMPTY);
    }
    back_offs(back_off.as_ref(), rate_limited_back_off.as_ref(), &mut at);
    at.not_negative("perTryTimeout", *per_try_timeout);
    for (index, item) in retry_on.iter().flatten().enumerate() {
        if grpc_condition(item).is_none() {
            at.wrong_field(&format!("retryOn[{index}]"), format!("unknown item '{item}'"));
        }
    }
}

fn back_offs(back_off: Option<&BackOff>, limited: Option<&RateLimitedBackOff>, at: &mut At<'_>) {
    if let Some(BackOff { base_interval, max_interval }) = back_off {
        let mut at = at.field("backOff");
        if base_interval.is_none() && max_interval.is_none() {
            at.wrong(NOT_EMPTY);
        }
        // Kuma stores these and its proxies then refuse the listener: Envoy demands a positive base and a maximum not below it.
        at.positive("baseInterval", *base_interval);
        at.positive("maxInterval", *max_interval);
        if let (Some(base), Some(max)) = (base_interval, max_interval)
            && max < base
        {
            at.wrong_field("maxInterval", "must not be less than baseInterval");
        }
    }
    if let Some(RateLimitedBackOff { reset_headers, max_interval }) = limited {
        let mut at = at.field("rateLimitedBackOff");
        if max_interval.is_some_and(|max| max.is_negative() || max.is_zero()) {
            at.wrong_field("maxInterval", "must be defined and greater than zero");
        }
        if reset_headers.is_none() {
            at.wrong_field("resetHeaders", "must be defined");
        }
        for (index, header) in reset_headers.iter().flatten().enumerate() {
            if header.name.is_empty() {
                at.wrong_field(&format!("resetHeaders[{index}].name"), "must be defined");
            }
        }
    }
}

fn headers(name: &str, headers: Option<&[HeaderMatch]>, at: &mut At<'_>) {
    for (index, header) in headers.unwrap_or_default().iter().enumerate() {
        if header.kind == HeaderMatchType::RegularExpression {
            at.entry(name, index).expression("value", &header.value);
        }
    }
}
