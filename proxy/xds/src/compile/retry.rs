//! `config.route.v3.RetryPolicy`.

use std::time::Duration;

use shika_data::model::retry::{ResetHeader, RetryOn, RetryPolicy};
use shika_proto::{
    any,
    envoy::{
        config::route::v3::{
            self as proto,
            retry_policy::{
                RateLimitedRetryBackOff, ResetHeaderFormat, RetryHostPredicate, retry_host_predicate, retry_priority,
            },
        },
        extensions::retry::{
            host::{
                omit_canary_hosts::v3::OmitCanaryHostsPredicate, omit_host_metadata::v3::OmitHostMetadataConfig,
                previous_hosts::v3::PreviousHostsPredicate,
            },
            priority::previous_priorities::v3::PreviousPrioritiesConfig,
        },
    },
};

use super::{Compiled, Fault, Within, duration, enumeration, labels, matcher, positive, required, unpack, wrapped};

/// Envoy's default pause before the first retry.
const BASE: Duration = Duration::from_millis(25);
/// Envoy's default longest pause that a response may ask for.
const LONGEST_RESET: Duration = Duration::from_secs(300);

/// A retry policy; `None` for one that retries nothing.
pub(crate) fn policy(from: &proto::RetryPolicy) -> Compiled<Option<RetryPolicy>> {
    let (mut base, mut longest) = (BASE, BASE * 10);
    if let Some(pauses) = &from.retry_back_off {
        (|| {
            base = required(&pauses.base_interval, "base_interval")
                .and_then(|_| positive(&pauses.base_interval, "base_interval"))?
                .unwrap_or(BASE)
                .max(Duration::from_millis(1));
            longest = positive(&pauses.max_interval, "max_interval")?.unwrap_or(base * 10);
            if longest < base {
                return Err(Fault::new(
                    "max_interval",
                    "retry_policy.max_interval must greater than or equal to the base_interval",
                ));
            }
            Ok(())
        })()
        .within("retry_back_off")?;
    }
    let mut policy = RetryPolicy {
        on: RetryOn::parse(&from.retry_on),
        retries: wrapped(&from.num_retries).unwrap_or(1),
        per_try_timeout: duration(&from.per_try_timeout, "per_try_timeout")?.filter(|limit| !limit.is_zero()),
        base,
        longest,
        status_codes: from.retriable_status_codes.iter().filter_map(|code| u16::try_from(*code).ok()).collect(),
        response_headers: headers(&from.retriable_headers, "retriable_headers")?,
        request_headers: headers(&from.retriable_request_headers, "retriable_request_headers")?,
        reset_headers: Vec::new(),
        longest_reset: LONGEST_RESET,
        other_hosts: false,
        omitted_hosts: Vec::new(),
        reselections: match from.host_selection_retry_max_attempts {
            0 => 1,
            attempts => u32::try_from(attempts).map_err(|_| {
                Fault::new("host_selection_retry_max_attempts", format!("must not be negative, but is {attempts}"))
            })?,
        },
        other_priorities_after: None,
    };
    if let Some(limited) = &from.rate_limited_retry_back_off {
        rate_limited(&mut policy, limited).within("rate_limited_retry_back_off")?;
    }
    for (index, predicate) in from.retry_host_predicate.iter().enumerate() {
        host_predicate(&mut policy, predicate).at("retry_host_predicate", index)?;
    }
    if let Some(priority) = &from.retry_priority {
        (|| {
            let Some(retry_priority::ConfigType::TypedConfig(content)) = &priority.config_type else {
                return Err(Fault::new("typed_config", "value is required"));
            };
            if !any::is::<PreviousPrioritiesConfig>(content) {
                let reason = format!("retry priority {} is not supported", content.type_url);
                return Err(Fault::new("typed_config", reason));
            }
            let config: PreviousPrioritiesConfig = unpack(content).within("typed_config")?;
            let after = u32::try_from(config.update_frequency).ok().filter(|after| *after > 0);
            policy.other_priorities_after =
                Some(after.ok_or_else(|| Fault::new("typed_config.update_frequency", "value must be greater than 0"))?);
            Ok(())
        })()
        .within("retry_priority")?;
    }
    Ok((!policy.on.is_empty()).then_some(policy))
}

fn headers(from: &[proto::HeaderMatcher], field: &str) -> Compiled<Vec<shika_data::model::matcher::HeaderMatcher>> {
    from.iter().enumerate().map(|(index, one)| matcher::header(one).at(field, index)).collect()
}

fn rate_limited(policy: &mut RetryPolicy, from: &RateLimitedRetryBackOff) -> Compiled<()> {
    if from.reset_headers.is_empty() {
        return Err(Fault::new("reset_headers", "value must contain at least 1 item(s)"));
    }
    for (index, header) in from.reset_headers.iter().enumerate() {
        let header = (|| {
            Ok(ResetHeader {
                name: matcher::header_name(&header.name, "name")?,
                is_timestamp: match enumeration(header.format, "format")? {
                    ResetHeaderFormat::Seconds => false,
                    ResetHeaderFormat::UnixTimestamp => true,
                },
            })
        })();
        policy.reset_headers.push(header.at("reset_headers", index)?);
    }
    policy.longest_reset = positive(&from.max_interval, "max_interval")?.unwrap_or(LONGEST_RESET);
    Ok(())
}

fn host_predicate(policy: &mut RetryPolicy, from: &RetryHostPredicate) -> Compiled<()> {
    let Some(retry_host_predicate::ConfigType::TypedConfig(content)) = &from.config_type else {
        return Err(Fault::new("typed_config", "value is required"));
    };
    if any::is::<PreviousHostsPredicate>(content) {
        policy.other_hosts = true;
    } else if any::is::<OmitHostMetadataConfig>(content) {
        let config: OmitHostMetadataConfig = unpack(content).within("typed_config")?;
        policy.omitted_hosts.extend(labels::namespace(config.metadata_match.as_ref(), labels::LB));
    } else if any::is::<OmitCanaryHostsPredicate>(content) {
        // No endpoint is a canary: nothing can mark one in v3.
    } else {
        return Err(Fault::new("typed_config", format!("retry host predicate {} is not supported", content.type_url)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::compile::testing::yaml;

    #[test]
    fn defaults_are_envoys() {
        let policy = policy(&yaml("retry_on: 5xx")).unwrap().unwrap();
        assert_eq!((policy.retries, policy.base, policy.longest), (1, BASE, BASE * 10));
        assert_eq!((policy.reselections, policy.longest_reset), (1, LONGEST_RESET));
        assert!(policy.per_try_timeout.is_none() && !policy.other_hosts && policy.other_priorities_after.is_none());
        assert!(super::policy(&yaml("retry_on: canceled")).unwrap().is_none(), "nothing that is known");
    }

    /// As Kuma's MeshRetry emits it.
    #[test]
    fn everything_that_kuma_writes_is_read() {
        let policy = policy(&yaml(
            r#"
retry_on: 5xx,retriable-headers
num_retries: 6
per_try_timeout: 2s
host_selection_retry_max_attempts: 2
retry_back_off: {base_interval: 7s, max_interval: 480s}
rate_limited_retry_back_off: {max_interval: 5s, reset_headers: [{name: retry-after}, {name: x-at, format: UNIX_TIMESTAMP}]}
retriable_status_codes: [500, 418]
retriable_headers: [{name: x-retry, string_match: {prefix: a}}]
retriable_request_headers: [{name: ":method", string_match: {exact: GET}}]
retry_host_predicate:
- name: previous
  typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}
- name: omit
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig
    metadata_match: {filter_metadata: {envoy.lb: {test: test}}}
retry_priority:
  name: previous
  typed_config: {"@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 3}
"#,
        ))
        .unwrap()
        .unwrap();
        assert_eq!((policy.retries, policy.per_try_timeout), (6, Some(Duration::from_secs(2))));
        assert_eq!((policy.base, policy.longest), (Duration::from_secs(7), Duration::from_secs(480)));
        assert_eq!((policy.status_codes.as_slice(), policy.reselections), (&[500, 418][..], 2));
        assert_eq!(policy.reset_headers.iter().map(|header| header.is_timestamp).collect::<Vec<_>>(), [false, true]);
        assert_eq!((policy.response_headers.len(), policy.request_headers.len()), (1, 1));
        assert_eq!(policy.omitted_hosts.len(), 1);
        assert_eq!((policy.other_hosts, policy.other_priorities_after), (true, Some(3)));
    }

    #[test]
    fn refusals_say_where() {
        for (text, path) in [
            ("{retry_on: 5xx, retry_back_off: {max_interval: 1s}}", "retry_back_off.base_interval"),
            ("{retry_on: 5xx, retry_back_off: {base_interval: 2s, max_interval: 1s}}", "retry_back_off.max_interval"),
            ("{retry_on: 5xx, rate_limited_retry_back_off: {}}", "rate_limited_retry_back_off.reset_headers"),
            ("{retry_on: 5xx, retry_host_predicate: [{name: a}]}", "retry_host_predicate[0].typed_config"),
            ("{retry_on: 5xx, host_selection_retry_max_attempts: -1}", "host_selection_retry_max_attempts"),
        ] {
            assert_eq!(policy(&yaml(text)).unwrap_err().path, path, "{text}");
        }
    }
}
