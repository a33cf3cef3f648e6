//! `filters.http.fault.v3.HTTPFault`.

use http::StatusCode;
use shika_data::{
    model::{
        http_filter::{AbortWith, Fault as Model, FaultAbort, FaultDelay, FaultRate, FaultSettings},
        route::Fraction,
    },
    stats::FaultStats,
};
use shika_proto::envoy::{
    extensions::filters::{
        common::fault::v3::{FaultRateLimit, fault_delay::FaultDelaySecifier, fault_rate_limit::LimitType},
        http::fault::v3::{FaultAbort as ProtoAbort, HttpFault, fault_abort::ErrorType},
    },
    r#type::v3::FractionalPercent,
};

use super::super::{Compiled, Context, Fault, Within, matcher, positive, route, wrapped};

/// A filter's.
pub(crate) fn http(context: &Context<'_>, from: &HttpFault, stat_prefix: &str) -> Compiled<Model> {
    let settings = settings(from)?;
    Ok(Model { stats: FaultStats::new(context.registry, super::scope(stat_prefix, "fault.")), settings })
}

/// What is injected: a filter's or a route's.
pub(crate) fn settings(from: &HttpFault) -> Compiled<FaultSettings> {
    let delay = match &from.delay {
        None => None,
        Some(delay) => {
            let duration = match &delay.fault_delay_secifier {
                Some(FaultDelaySecifier::FixedDelay(fixed)) => {
                    positive(&Some(*fixed), "fixed_delay").within("delay")?
                }
                Some(FaultDelaySecifier::HeaderDelay(_)) => None,
                None => return Err(Fault::new("delay", "one of fixed_delay and header_delay is required")),
            };
            Some(FaultDelay { share: share(&delay.percentage).within("delay")?, duration })
        }
    };
    Ok(FaultSettings {
        delay,
        abort: from.abort.as_ref().map(abort).transpose().within("abort")?,
        rate: from.response_rate_limit.as_ref().map(rate).transpose().within("response_rate_limit")?,
        upstream_cluster: (!from.upstream_cluster.is_empty()).then(|| from.upstream_cluster.as_str().into()),
        headers: from
            .headers
            .iter()
            .enumerate()
            .map(|(index, header)| matcher::header(header).at("headers", index))
            .collect::<Compiled<_>>()?,
        downstream_nodes: from.downstream_nodes.iter().map(|node| node.as_str().into()).collect(),
        max_active: wrapped(&from.max_active_faults),
    })
}

fn abort(from: &ProtoAbort) -> Compiled<FaultAbort> {
    let with = match &from.error_type {
        Some(ErrorType::HttpStatus(status)) => u16::try_from(*status)
            .ok()
            .filter(|status| (200..600).contains(status))
            .and_then(|status| StatusCode::from_u16(status).ok())
            .map(AbortWith::Http)
            .ok_or_else(|| Fault::new("http_status", format!("value must be inside range [200, 600), not {status}")))?,
        Some(ErrorType::GrpcStatus(status)) => AbortWith::Grpc(*status),
        Some(ErrorType::HeaderAbort(_)) => AbortWith::Header,
        None => return Err(Fault::new("", "one of http_status, grpc_status and header_abort is required")),
    };
    Ok(FaultAbort { share: share(&from.percentage)?, with })
}

fn rate(from: &FaultRateLimit) -> Compiled<FaultRate> {
    let kib_per_second = match &from.limit_type {
        Some(LimitType::FixedLimit(limit)) if limit.limit_kbps == 0 => {
            return Err(Fault::new("fixed_limit.limit_kbps", "value must be greater than or equal to 1"));
        }
        Some(LimitType::FixedLimit(limit)) => Some(limit.limit_kbps),
        Some(LimitType::HeaderLimit(_)) => None,
        None => return Err(Fault::new("", "one of fixed_limit and header_limit is required")),
    };
    Ok(FaultRate { share: share(&from.percentage)?, kib_per_second })
}

/// Unset is never.
fn share(from: &Option<FractionalPercent>) -> Compiled<Fraction> {
    match from {
        None => Ok(Fraction { numerator: 0, denominator: 100 }),
        Some(share) => route::fraction(share).within("percentage"),
    }
}
