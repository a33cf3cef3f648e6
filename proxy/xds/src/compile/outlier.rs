//! `config.cluster.v3.OutlierDetection`.

use std::time::Duration;

use shika_data::{
    model::outlier::{FailurePercentage, Outlier, OutlierConfig, SuccessRate},
    stats::{OutlierStats, Registry, Scope},
};
use shika_proto::{envoy::config::cluster::v3::OutlierDetection, google::protobuf::UInt32Value};

use super::{Compiled, Fault, duration, flag, positive, wrapped};

/// A detector.
pub(crate) fn outlier(registry: &Registry, from: &OutlierDetection, scope: &Scope) -> Compiled<Outlier> {
    let default = OutlierConfig::default();
    let percent = |value: &Option<UInt32Value>, field: &str, default: u32| match wrapped(value) {
        Some(value) if value > 100 => {
            Err(Fault::new(field, format!("value must be less than or equal to 100, not {value}")))
        }
        value => Ok(value.unwrap_or(default)),
    };
    let base_ejection = positive(&from.base_ejection_time, "base_ejection_time")?.unwrap_or(default.base_ejection);
    let longest_ejection = positive(&from.max_ejection_time, "max_ejection_time")?
        .unwrap_or_else(|| default.longest_ejection.max(base_ejection));
    if longest_ejection < base_ejection {
        return Err(Fault::new(
            "max_ejection_time",
            "outlier detector's max_ejection_time cannot be smaller than base_ejection_time",
        ));
    }
    let (rate, failures) = (default.success_rate, default.failure_percentage);
    let config = OutlierConfig {
        interval: positive(&from.interval, "interval")?.unwrap_or(default.interval),
        base_ejection,
        longest_ejection,
        jitter: duration(&from.max_ejection_time_jitter, "max_ejection_time_jitter")?.unwrap_or(Duration::ZERO),
        most_ejected: percent(&from.max_ejection_percent, "max_ejection_percent", default.most_ejected)?,
        check_ends_ejection: flag(&from.successful_active_health_check_uneject_host, true),
        always_one: flag(&from.always_eject_one_host, false),
        split: from.split_external_local_origin_errors,
        consecutive_5xx: wrapped(&from.consecutive_5xx).unwrap_or(default.consecutive_5xx),
        consecutive_gateway: wrapped(&from.consecutive_gateway_failure).unwrap_or(default.consecutive_gateway),
        consecutive_local: wrapped(&from.consecutive_local_origin_failure).unwrap_or(default.consecutive_local),
        enforce_5xx: percent(&from.enforcing_consecutive_5xx, "enforcing_consecutive_5xx", default.enforce_5xx)?,
        enforce_gateway: percent(
            &from.enforcing_consecutive_gateway_failure,
            "enforcing_consecutive_gateway_failure",
            default.enforce_gateway,
        )?,
        enforce_local: percent(
            &from.enforcing_consecutive_local_origin_failure,
            "enforcing_consecutive_local_origin_failure",
            default.enforce_local,
        )?,
        success_rate: SuccessRate {
            minimum_hosts: wrapped(&from.success_rate_minimum_hosts).unwrap_or(rate.minimum_hosts),
            minimum_requests: wrapped(&from.success_rate_request_volume).unwrap_or(rate.minimum_requests),
            factor: wrapped(&from.success_rate_stdev_factor).unwrap_or(rate.factor),
            enforce: percent(&from.enforcing_success_rate, "enforcing_success_rate", rate.enforce)?,
            enforce_local: percent(
                &from.enforcing_local_origin_success_rate,
                "enforcing_local_origin_success_rate",
                rate.enforce_local,
            )?,
        },
        failure_percentage: FailurePercentage {
            threshold: percent(&from.failure_percentage_threshold, "failure_percentage_threshold", failures.threshold)?,
            minimum_hosts: wrapped(&from.failure_percentage_minimum_hosts).unwrap_or(failures.minimum_hosts),
            minimum_requests: wrapped(&from.failure_percentage_request_volume).unwrap_or(failures.minimum_requests),
            enforce: percent(&from.enforcing_failure_percentage, "enforcing_failure_percentage", failures.enforce)?,
            enforce_local: percent(
                &from.enforcing_failure_percentage_local_origin,
                "enforcing_failure_percentage_local_origin",
                failures.enforce_local,
            )?,
        },
    };
    let scope = Scope {
        prefix: format!("{}outlier_detection.", scope.prefix),
        stem: "cluster.outlier_detection.".into(),
        tags: scope.tags.clone(),
    };
    Ok(Outlier {
        config,
        stats: OutlierStats::new(registry, scope),
        epoch: Default::default(),
        next: Default::default(),
    })
}
