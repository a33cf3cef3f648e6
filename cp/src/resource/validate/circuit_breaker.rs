//! Rules for a MeshCircuitBreaker (Kuma `meshcircuitbreaker/api/v1alpha1/validator.go`).

use super::Violation;
use super::policy::At;
use super::target_ref::{target_ref, top_without_effect};
use crate::resource::{
    CircuitBreaker, ConnectionLimits, Detectors, FailurePercentage, MeshCircuitBreaker, OutlierDetection, SuccessRate,
    TargetRefKind,
};

const TOP: [TargetRefKind; 6] = [
    TargetRefKind::Mesh,
    TargetRefKind::MeshSubset,
    TargetRefKind::MeshService,
    TargetRefKind::MeshGateway,
    TargetRefKind::MeshServiceSubset,
    TargetRefKind::Dataplane,
];
const TO: [TargetRefKind; 4] = [
    TargetRefKind::Mesh,
    TargetRefKind::MeshService,
    TargetRefKind::MeshExternalService,
    TargetRefKind::MeshMultiZoneService,
];

pub(super) fn circuit_breaker(policy: &MeshCircuitBreaker, violations: &mut Vec<Violation>) {
    let MeshCircuitBreaker { target_ref: top, to, from, rules } = policy;
    if let Some(top) = top {
        let inbounds = !from.is_empty() || !rules.is_empty();
        target_ref("spec.targetRef", top, &TOP, inbounds, violations);
    }
    if rules.is_empty() && to.is_empty() && from.is_empty() {
        violations.push(Violation::new("spec", "at least one of 'from', 'to' or 'rules' has to be defined"));
    }
    if !rules.is_empty() && (!to.is_empty() || !from.is_empty()) {
        violations.push(Violation::new("spec", "fields 'to' and 'from' must be empty when 'rules' is defined"));
    }
    for (index, rule) in rules.iter().enumerate() {
        conf(&rule.default, At::new(format!("spec.rules[{index}].default"), violations));
    }
    for (index, item) in from.iter().enumerate() {
        let at = format!("spec.from[{index}]");
        target_ref(&format!("{at}.targetRef"), &item.target_ref, &[TargetRefKind::Mesh], false, violations);
        conf(&item.default, At::new(format!("{at}.default"), violations));
    }
    for (index, item) in to.iter().enumerate() {
        let at = format!("spec.to[{index}]");
        target_ref(&format!("{at}.targetRef"), &item.target_ref, &TO, false, violations);
        conf(&item.default, At::new(format!("{at}.default"), violations));
    }
}

pub(super) fn without_effect(policy: &MeshCircuitBreaker) -> Vec<String> {
    top_without_effect(policy.target_ref.as_ref()).into_iter().collect()
}

fn conf(conf: &CircuitBreaker, mut at: At<'_>) {
    let CircuitBreaker { connection_limits, outlier_detection } = conf;
    if connection_limits.is_none() && outlier_detection.is_none() {
        at.wrong("at least one of: 'connectionLimits' or 'outlierDetection' should be configured");
        return;
    }
    if let Some(limits) = connection_limits {
        let ConnectionLimits { max_connections, max_connection_pools, max_pending_requests, max_retries, max_requests } =
            limits;
        let mut at = at.field("connectionLimits");
        for (name, value) in [
            ("maxConnections", max_connections),
            ("maxConnectionPools", max_connection_pools),
            ("maxPendingRequests", max_pending_requests),
            ("maxRetries", max_retries),
            ("maxRequests", max_requests),
        ] {
            at.above_zero(name, *value);
        }
    }
    if let Some(outlier) = outlier_detection {
        outlier_detection_conf(outlier, at.field("outlierDetection"));
    }
}

fn outlier_detection_conf(outlier: &OutlierDetection, mut at: At<'_>) {
    let OutlierDetection {
        disabled: _,
        interval,
        base_ejection_time,
        max_ejection_percent,
        split_external_and_local_errors: _,
        detectors,
        healthy_panic_threshold,
    } = outlier;
    at.positive("interval", *interval);
    at.positive("baseEjectionTime", *base_ejection_time);
    at.percentage("maxEjectionPercent", *max_ejection_percent);
    at.decimal_percentage("healthyPanicThreshold", healthy_panic_threshold.as_ref());
    let mut at = at.field("detectors");
    let Some(Detectors { total_failures, gateway_failures, local_origin_failures, success_rate, failure_percentage }) =
        detectors
    else {
        at.wrong("must be defined");
        return;
    };
    if total_failures.is_none()
        && gateway_failures.is_none()
        && local_origin_failures.is_none()
        && success_rate.is_none()
        && failure_percentage.is_none()
    {
        at.wrong(
            "must have at least one defined: totalFailures, gatewayFailures, localOriginFailures, successRate, \
             failurePercentage",
        );
        return;
    }
    for (name, detector) in [
        ("totalFailures", total_failures),
        ("gatewayFailures", gateway_failures),
        ("localOriginFailures", local_origin_failures),
    ] {
        if let Some(detector) = detector {
            at.field(name).above_zero("consecutive", detector.consecutive);
        }
    }
    if let Some(SuccessRate { minimum_hosts, request_volume, standard_deviation_factor }) = success_rate {
        let mut at = at.field("successRate");
        at.above_zero("minimumHosts", *minimum_hosts);
        at.above_zero("requestVolume", *request_volume);
        match standard_deviation_factor.as_ref().map(|factor| factor.number()) {
            Some(None) => at.wrong_field("standardDeviationFactor", "invalid number"),
            Some(Some(factor)) if factor <= 0.0 => {
                at.wrong_field("standardDeviationFactor", "must be greater than 0");
            }
            None | Some(Some(_)) => {}
        }
    }
    if let Some(FailurePercentage { minimum_hosts, request_volume, threshold }) = failure_percentage {
        let mut at = at.field("failurePercentage");
        at.above_zero("minimumHosts", *minimum_hosts);
        at.above_zero("requestVolume", *request_volume);
        at.percentage("threshold", *threshold);
    }
}
