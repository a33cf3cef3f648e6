//! Rules for a MeshTimeout (Kuma `meshtimeout/api/v1alpha1/validator.go`).

use super::Violation;
use super::permission::rule_match;
use super::policy::At;
use super::target_ref::{target_ref, top_kinds, top_without_effect};
use crate::resource::{HttpTimeout, MeshTimeout, Meta, TargetRefKind, Timeout};

pub(super) fn timeout(policy: &MeshTimeout, meta: &Meta, violations: &mut Vec<Violation>) {
    let MeshTimeout { target_ref: top, to, from, rules } = policy;
    if let Some(top) = top {
        let inbounds = !from.is_empty() || !rules.is_empty();
        target_ref("spec.targetRef", top, &top_kinds(meta, true), inbounds, violations);
    }
    if !rules.is_empty() && (!to.is_empty() || !from.is_empty()) {
        violations.push(Violation::new("spec", "fields 'to' and 'from' must be empty when 'rules' is defined"));
    }
    if rules.is_empty() && to.is_empty() && from.is_empty() {
        violations.push(Violation::new("spec", "at least one of 'from', 'to' or 'rules' has to be defined"));
    }
    let top = top.as_ref().and_then(|top| top.kind).unwrap_or(TargetRefKind::Mesh);
    let outbound_only = matches!(top, TargetRefKind::MeshHTTPRoute | TargetRefKind::MeshGateway);
    if outbound_only && !from.is_empty() {
        violations.push(Violation::new("spec.from", "must not be defined"));
    } else {
        for (index, item) in from.iter().enumerate() {
            let at = format!("spec.from[{index}]");
            target_ref(&format!("{at}.targetRef"), &item.target_ref, &[TargetRefKind::Mesh], false, violations);
            conf(&item.default, top, At::new(format!("{at}.default"), violations));
        }
    }
    for (index, item) in to.iter().enumerate() {
        let at = format!("spec.to[{index}]");
        target_ref(&format!("{at}.targetRef"), &item.target_ref, to_kinds(outbound_only), false, violations);
        conf(&item.default, top, At::new(format!("{at}.default"), violations));
    }
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        for (index, found) in rule.matches.iter().enumerate() {
            let empty = "must specify at least one of 'spiffeID' or 'sni'";
            rule_match(&format!("{at}.matches[{index}]"), found, empty, violations);
        }
        if rule.matches.iter().any(|found| found.spiffe_id.is_some()) {
            let message = "can't be specified when matches contain spiffeID because this field cannot be conditioned on \
                           source identity";
            refuse_connection_settings(&rule.default, message, true, At::new(format!("{at}.default"), violations));
        }
        conf(&rule.default, top, At::new(format!("{at}.default"), violations));
    }
}

/// The kinds of destinations, for policies at the top of which stands a gateway or route, and for others.
pub(super) fn to_kinds(gateway_or_route: bool) -> &'static [TargetRefKind] {
    if gateway_or_route {
        &[TargetRefKind::Mesh, TargetRefKind::MeshExternalService]
    } else {
        &[
            TargetRefKind::Mesh,
            TargetRefKind::MeshService,
            TargetRefKind::MeshExternalService,
            TargetRefKind::MeshMultiZoneService,
            TargetRefKind::MeshHTTPRoute,
        ]
    }
}

/// What is set for a whole connection cannot depend on a route or on who calls.
fn refuse_connection_settings(conf: &Timeout, message: &str, headers: bool, mut at: At<'_>) {
    let mut refuse = |present: bool, field: &str| {
        if present {
            at.wrong_field(field, message);
        }
    };
    refuse(conf.connection_timeout.is_some(), "connectionTimeout");
    refuse(conf.idle_timeout.is_some(), "idleTimeout");
    let Some(http) = &conf.http else { return };
    refuse(headers && http.request_headers_timeout.is_some(), "http.requestHeadersTimeout");
    refuse(http.max_stream_duration.is_some(), "http.maxStreamDuration");
    refuse(http.max_connection_duration.is_some(), "http.maxConnectionDuration");
}

fn conf(conf: &Timeout, top: TargetRefKind, mut at: At<'_>) {
    let Timeout { connection_timeout, idle_timeout, http } = conf;
    if connection_timeout.is_none() && idle_timeout.is_none() && http.is_none() {
        at.wrong("at least one timeout should be configured");
        return;
    }
    if top == TargetRefKind::MeshHTTPRoute {
        let message = "can't be specified when top-level TargetRef is referencing MeshHTTPRoute";
        let path = at.path().to_owned();
        refuse_connection_settings(conf, message, false, At::new(path, at.list()));
    }
    at.positive("connectionTimeout", *connection_timeout);
    at.not_negative("idleTimeout", *idle_timeout);
    let Some(http) = http else { return };
    let HttpTimeout {
        request_timeout,
        stream_idle_timeout,
        max_stream_duration,
        max_connection_duration,
        request_headers_timeout,
    } = http;
    let mut at = at.field("http");
    // Kuma does not count requestHeadersTimeout here.
    if [request_timeout, stream_idle_timeout, max_stream_duration, max_connection_duration].iter().all(|t| t.is_none())
    {
        at.wrong("at least one timeout in this section should be configured");
    }
    at.not_negative("requestTimeout", *request_timeout);
    at.not_negative("streamIdleTimeout", *stream_idle_timeout);
    at.not_negative("maxStreamDuration", *max_stream_duration);
    at.not_negative("maxConnectionDuration", *max_connection_duration);
    at.not_negative("requestHeadersTimeout", *request_headers_timeout);
}

pub(super) fn without_effect(policy: &MeshTimeout) -> Vec<String> {
    let mut notes: Vec<String> = top_without_effect(policy.target_ref.as_ref()).into_iter().collect();
    for (index, _) in policy.rules.iter().enumerate().filter(|(_, rule)| !rule.matches.is_empty()) {
        notes.push(format!(
            "spec.rules[{index}]: stored, but without effect: in this version timeouts do not depend on who calls; \
             use a rule without matches"
        ));
    }
    notes
}
