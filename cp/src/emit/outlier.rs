//! Limits of a cluster and outlier detection, as a MeshCircuitBreaker sets them
//! (Kuma `pkg/plugins/policies/meshcircuitbreaker/plugin/xds/configurer.go`).

use shika_proto::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use shika_proto::envoy::config::cluster::v3::cluster::CommonLbConfig;
use shika_proto::envoy::config::cluster::v3::{CircuitBreakers, Cluster, OutlierDetection as Envoy};
use shika_proto::envoy::r#type::v3::Percent;
use shika_proto::google::protobuf::UInt32Value;

use super::duration;
use crate::resource::{
    CircuitBreaker, ConnectionLimits, Consecutive, Detectors, FailurePercentage, GoDuration, IntOrString,
    OutlierDetection, SuccessRate,
};

/// Sets limits, outlier detection and panic threshold. What remains of a limit is always counted.
pub(super) fn configure(cluster: &mut Cluster, conf: &CircuitBreaker) {
    let CircuitBreaker { connection_limits, outlier_detection } = conf;
    let none = ConnectionLimits::default();
    let ConnectionLimits { max_connections, max_connection_pools, max_pending_requests, max_retries, max_requests } =
        connection_limits.as_ref().unwrap_or(&none);
    let thresholds = Thresholds {
        max_connections: number(*max_connections),
        max_connection_pools: number(*max_connection_pools),
        max_pending_requests: number(*max_pending_requests),
        max_retries: number(*max_retries),
        max_requests: number(*max_requests),
        track_remaining: true,
        ..Thresholds::default()
    };
    cluster.circuit_breakers = Some(CircuitBreakers { thresholds: vec![thresholds], ..CircuitBreakers::default() });
    let Some(outlier) = outlier_detection.as_ref().filter(|outlier| outlier.disabled != Some(true)) else { return };
    cluster.outlier_detection = Some(outlier_detection_of(outlier));
    if let Some(value) = outlier.healthy_panic_threshold.as_ref().and_then(IntOrString::number) {
        let common = cluster.common_lb_config.get_or_insert_with(CommonLbConfig::default);
        common.healthy_panic_threshold = Some(Percent { value });
    }
}

fn outlier_detection_of(conf: &OutlierDetection) -> Envoy {
    let OutlierDetection {
        disabled: _,
        interval,
        base_ejection_time,
        max_ejection_percent,
        split_external_and_local_errors,
        detectors,
        healthy_panic_threshold: _,
    } = conf;
    let none = Detectors::default();
    let Detectors { total_failures, gateway_failures, local_origin_failures, success_rate, failure_percentage } =
        detectors.as_ref().unwrap_or(&none);
    let length = |value: &Option<GoDuration>| value.map(|value| duration(value.length()));
    let (enforcing_consecutive_5xx, consecutive_5xx) = consecutive(total_failures);
    let (enforcing_consecutive_gateway_failure, consecutive_gateway_failure) = consecutive(gateway_failures);
    let (enforcing_consecutive_local_origin_failure, consecutive_local_origin_failure) =
        consecutive(local_origin_failures);
    let mut outlier = Envoy {
        interval: length(interval),
        base_ejection_time: length(base_ejection_time),
        max_ejection_percent: number(*max_ejection_percent),
        split_external_local_origin_errors: split_external_and_local_errors.unwrap_or_default(),
        enforcing_consecutive_5xx,
        consecutive_5xx,
        enforcing_consecutive_gateway_failure,
        consecutive_gateway_failure,
        enforcing_consecutive_local_origin_failure,
        consecutive_local_origin_failure,
        ..Envoy::default()
    };
    // The last two are switched off only where there is a list of detectors without them; validation asks for such a list.
    if detectors.is_none() {
        return outlier;
    }
    outlier.enforcing_success_rate = enforcing(success_rate.is_some());
    outlier.enforcing_local_origin_success_rate = enforcing(success_rate.is_some());
    if let Some(SuccessRate { minimum_hosts, request_volume, standard_deviation_factor }) = success_rate {
        outlier.success_rate_minimum_hosts = number(*minimum_hosts);
        outlier.success_rate_request_volume = number(*request_volume);
        outlier.success_rate_stdev_factor = number(standard_deviation_factor.as_ref().and_then(thousandths));
    }
    outlier.enforcing_failure_percentage = enforcing(failure_percentage.is_some());
    outlier.enforcing_failure_percentage_local_origin = enforcing(failure_percentage.is_some());
    if let Some(FailurePercentage { minimum_hosts, request_volume, threshold }) = failure_percentage {
        outlier.failure_percentage_minimum_hosts = number(*minimum_hosts);
        outlier.failure_percentage_request_volume = number(*request_volume);
        outlier.failure_percentage_threshold = number(*threshold);
    }
    outlier
}

/// Whether the detector is on, and after how many failures.
fn consecutive(detector: &Option<Consecutive>) -> (Option<UInt32Value>, Option<UInt32Value>) {
    let consecutive = detector.as_ref().and_then(|detector| detector.consecutive);
    (enforcing(consecutive.is_some()), number(consecutive))
}

/// The probability, per cent, with which a finding counts.
fn enforcing(on: bool) -> Option<UInt32Value> {
    Some(UInt32Value { value: if on { 100 } else { 0 } })
}

fn number(value: Option<u32>) -> Option<UInt32Value> {
    value.map(|value| UInt32Value { value })
}

/// Whole thousandths of a positive number; what is beyond them is cut off.
fn thousandths(factor: &IntOrString) -> Option<u32> {
    // Rounding at the sixth place first: 1.001 * 1000 is a little less than 1001 in binary.
    let thousandths = ((factor.number()? * 1e9).round() / 1e6).trunc();
    (0.0..=f64::from(u32::MAX)).contains(&thousandths).then_some(thousandths as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_places_survive() {
        for (text, expected) in
            [("1.9", Some(1900)), ("1.001", Some(1001)), ("1.9999", Some(1999)), ("0.0005", Some(0)), ("x", None)]
        {
            assert_eq!(thousandths(&IntOrString::Text(text.to_owned())), expected, "{text}");
        }
        assert_eq!(thousandths(&IntOrString::Int(2)), Some(2000));
    }
}
