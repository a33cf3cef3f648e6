//! Retries of a route, as a MeshRetry sets them (Kuma `pkg/plugins/policies/meshretry/plugin/xds/configurer.go`).

use std::collections::HashMap;

use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::Metadata;
use shika_proto::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader as EnvoyResetHeader, ResetHeaderFormat, RetryBackOff, RetryHostPredicate,
    RetryPriority, retry_host_predicate, retry_priority,
};
use shika_proto::envoy::config::route::v3::{HeaderMatcher, RetryPolicy as Envoy};
use shika_proto::envoy::extensions::retry::host::omit_host_metadata::v3::OmitHostMetadataConfig;
use shika_proto::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use shika_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use shika_proto::google::protobuf::UInt32Value;

use super::route::{exact_header, header_matcher};
use super::{duration, tags};
use crate::policy::retry::RetryPolicy;
use crate::resource::{
    BackOff, GoDuration, GrpcRetry, HostPredicate, HttpCondition, HttpRetry, PredicateType, RateLimitedBackOff,
    ResetFormat, grpc_condition,
};

/// What is a reason for HTTP where the policy names none.
const HTTP_CONDITIONS: &str = "gateway-error,connect-failure,refused-stream";
/// What is a reason for gRPC where the policy names none.
const GRPC_CONDITIONS: &str =
    "cancelled,connect-failure,gateway-error,refused-stream,reset,resource-exhausted,unavailable";
/// The condition that makes status codes count.
const STATUS_CODES: &str = "retriable-status-codes";
/// Envoy demands a first interval for calls of gRPC with back-off.
const GRPC_BASE_INTERVAL: GoDuration = GoDuration::from_millis(25);

/// The retries.
pub(super) fn policy(policy: &RetryPolicy) -> Envoy {
    match policy {
        RetryPolicy::Http(conf) => http(conf),
        RetryPolicy::Grpc(conf) => grpc(conf),
    }
}

fn http(conf: &HttpRetry) -> Envoy {
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
    } = conf;
    let (mut conditions, mut methods, mut statuses) = (Vec::new(), Vec::new(), Vec::new());
    for condition in retry_on.iter().flatten().filter_map(|item| HttpCondition::parse(item)) {
        match condition {
            HttpCondition::Named(name) => conditions.push(name),
            HttpCondition::Method(method) => methods.push(exact_header(":method", method.as_str())),
            HttpCondition::Status(status) => statuses.push(status),
        }
    }
    let mut retry_on = if conditions.is_empty() { HTTP_CONDITIONS.to_owned() } else { conditions.join(",") };
    if !statuses.is_empty() {
        retry_on.push(',');
        retry_on.push_str(STATUS_CODES);
    }
    let headers =
        |headers: &Option<Vec<_>>| headers.iter().flatten().map(header_matcher).collect::<Vec<HeaderMatcher>>();
    let selection = host_selection.as_deref().unwrap_or_default();
    Envoy {
        retry_on,
        num_retries: number(*num_retries),
        per_try_timeout: length(*per_try_timeout),
        retry_back_off: back_off.as_ref().map(|back_off| self::back_off(back_off, None)),
        rate_limited_retry_back_off: rate_limited_back_off.as_ref().map(rate_limited),
        retriable_status_codes: statuses,
        retriable_headers: headers(retriable_response_headers),
        retriable_request_headers: methods.into_iter().chain(headers(retriable_request_headers)).collect(),
        retry_host_predicate: selection.iter().filter_map(host_predicate).collect(),
        retry_priority: selection.iter().find_map(priority),
        host_selection_retry_max_attempts: host_selection_max_attempts.unwrap_or_default(),
        ..Envoy::default()
    }
}

fn grpc(conf: &GrpcRetry) -> Envoy {
    let GrpcRetry { num_retries, per_try_timeout, back_off, rate_limited_back_off, retry_on } = conf;
    let conditions: Vec<&str> = retry_on.iter().flatten().filter_map(|item| grpc_condition(item)).collect();
    Envoy {
        retry_on: if conditions.is_empty() { GRPC_CONDITIONS.to_owned() } else { conditions.join(",") },
        num_retries: number(*num_retries),
        per_try_timeout: length(*per_try_timeout),
        retry_back_off: back_off.as_ref().map(|back_off| self::back_off(back_off, Some(GRPC_BASE_INTERVAL))),
        rate_limited_retry_back_off: rate_limited_back_off.as_ref().map(rate_limited),
        ..Envoy::default()
    }
}

fn number(value: Option<u32>) -> Option<UInt32Value> {
    value.map(|value| UInt32Value { value })
}

fn length(value: Option<GoDuration>) -> Option<shika_proto::google::protobuf::Duration> {
    value.map(|value| duration(value.length()))
}

/// Envoy demands a first interval. Where there is a default, Kuma sets it for gRPC alone; here it is set for HTTP too, which Envoy would
/// otherwise refuse together with the whole listener.
fn back_off(conf: &BackOff, base: Option<GoDuration>) -> RetryBackOff {
    let BackOff { base_interval, max_interval } = conf;
    let base = base_interval.or(base).unwrap_or(GRPC_BASE_INTERVAL);
    RetryBackOff { base_interval: length(Some(base)), max_interval: length(*max_interval) }
}

fn rate_limited(conf: &RateLimitedBackOff) -> RateLimitedRetryBackOff {
    let RateLimitedBackOff { reset_headers, max_interval } = conf;
    let headers = reset_headers.iter().flatten().map(|header| EnvoyResetHeader {
        name: header.name.clone(),
        format: match header.format {
            ResetFormat::Seconds => ResetHeaderFormat::Seconds,
            ResetFormat::UnixTimestamp => ResetHeaderFormat::UnixTimestamp,
        }
        .into(),
    });
    RateLimitedRetryBackOff { reset_headers: headers.collect(), max_interval: length(*max_interval) }
}

fn host_predicate(selection: &HostPredicate) -> Option<RetryHostPredicate> {
    let (name, config) = match selection.predicate {
        PredicateType::OmitPreviousHosts => {
            ("envoy.retry_host_predicates.previous_hosts", pack(&PreviousHostsPredicate::default()))
        }
        PredicateType::OmitHostsWithTags => {
            let tags = selection.tags.as_ref().map(tags).unwrap_or_default();
            let metadata =
                Metadata { filter_metadata: HashMap::from([("envoy.lb".to_owned(), tags)]), ..Metadata::default() };
            let config = OmitHostMetadataConfig { metadata_match: Some(metadata) };
            ("envoy.retry_host_predicates.omit_host_metadata", pack(&config))
        }
        PredicateType::OmitPreviousPriorities => return None,
    };
    Some(RetryHostPredicate {
        name: name.to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(config)),
    })
}

fn priority(selection: &HostPredicate) -> Option<RetryPriority> {
    (selection.predicate == PredicateType::OmitPreviousPriorities).then(|| RetryPriority {
        name: "envoy.retry_priorities.previous_priorities".to_owned(),
        config_type: Some(retry_priority::ConfigType::TypedConfig(pack(&PreviousPrioritiesConfig {
            update_frequency: selection.update_frequency,
        }))),
    })
}
