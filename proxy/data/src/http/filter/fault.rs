//! Faults on purpose: delays, refusals, bodies that trickle.
//!
//! Source: Envoy "Fault injection".

use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};

use super::{
    super::{exchange::Exchange, head::Head, local_reply::Refusal, request::Matched},
    effects,
    shape::Throttle,
};
use crate::{
    error::ResponseFlag,
    model::{
        http_filter::{AbortWith, Fault, FaultSettings},
        route::Fraction,
    },
    stats::FaultStats,
    worker,
};

/// A request that a fault is injected into, until it ends.
#[derive(Debug)]
pub(super) struct ActiveFault(FaultStats);

impl Drop for ActiveFault {
    fn drop(&mut self) {
        self.0.active_faults().dec();
    }
}

/// Injects what the settings say into a request: a slow body, a delay, then an abort, each drawn by itself.
pub(super) async fn inject(
    fault: &Fault,
    settings: &FaultSettings,
    exchange: &mut Exchange,
    head: &Head,
    matched: Option<Matched<'_>>,
) -> Result<(), Refusal> {
    if !concerns(settings, head, matched) {
        return Ok(());
    }
    let mut active = false;
    if let Some(rate) = &settings.rate
        && falls(rate.share, head, "x-envoy-fault-throughput-response-percentage")
        && let Some(rate) = rate.kib_per_second.or_else(|| number(&head.headers, "x-envoy-fault-throughput-response"))
        && rate > 0
        && charge(&mut active, fault, settings, exchange)
    {
        fault.stats.response_rl_injected().inc();
        effects(exchange).throttle = Some(Throttle::new(rate));
    }
    if let Some(delay) = &settings.delay
        && falls(delay.share, head, "x-envoy-fault-delay-request-percentage")
        && let Some(delay) = delay
            .duration
            .or_else(|| number(&head.headers, "x-envoy-fault-delay-request").map(Duration::from_millis))
            .filter(|delay| delay.as_millis() > 0)
        && charge(&mut active, fault, settings, exchange)
    {
        fault.stats.delays_injected().inc();
        exchange.flags.set(ResponseFlag::DelayInjected);
        let begun = Instant::now();
        Box::pin(tokio::time::sleep(delay)).await;
        exchange.held += begun.elapsed();
    }
    if let Some(abort) = &settings.abort
        && falls(abort.share, head, "x-envoy-fault-abort-request-percentage")
        && let Some((status, grpc)) = answer(abort.with, &head.headers)
        && charge(&mut active, fault, settings, exchange)
    {
        fault.stats.aborts_injected().inc();
        let mut refusal = Refusal::new(status, "fault filter abort", "fault_filter_abort");
        refusal.grpc_status = grpc;
        return Err(refusal.flag(ResponseFlag::FaultInjected));
    }
    Ok(())
}

fn concerns(settings: &FaultSettings, head: &Head, matched: Option<Matched<'_>>) -> bool {
    if let Some(wanted) = &settings.upstream_cluster
        && matched.and_then(|matched| matched.cluster_name(head)) != Some(&**wanted)
    {
        return false;
    }
    if !settings.downstream_nodes.is_empty() {
        let node = head.headers.get("x-envoy-downstream-service-node").and_then(|node| node.to_str().ok());
        if !settings.downstream_nodes.iter().any(|wanted| node == Some(&**wanted)) {
            return false;
        }
    }
    settings.headers.is_empty() || {
        let view = head.view();
        settings.headers.iter().all(|matcher| view.header_matches(matcher))
    }
}

/// Whether the draw falls into the share; a request's header may make the share smaller.
fn falls(share: Fraction, head: &Head, header: &str) -> bool {
    if share.numerator == 0 {
        return false;
    }
    let asked = number(&head.headers, header).map(|asked| u32::try_from(asked).unwrap_or(u32::MAX));
    let numerator = asked.map_or(share.numerator, |asked| asked.min(share.numerator));
    Fraction { numerator, ..share }.holds(worker::random())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn answer(with: AbortWith, headers: &HeaderMap) -> Option<(StatusCode, Option<u32>)> {
    match with {
        AbortWith::Http(status) => Some((status, None)),
        AbortWith::Grpc(status) => Some((StatusCode::OK, Some(status))),
        AbortWith::Header => {
            let http = number(headers, "x-envoy-fault-abort-request")
                .and_then(|status| u16::try_from(status).ok())
                .filter(|status| (200..600).contains(status))
                .and_then(|status| StatusCode::from_u16(status).ok());
            if let Some(status) = http {
                return Some((status, None));
            }
            let grpc = number(headers, "x-envoy-fault-abort-grpc-request")?;
            Some((StatusCode::OK, Some(u32::try_from(grpc).ok()?)))
        }
    }
}

/// Counts the request as one under a fault, once for all the faults of a filter; `false` if there are too many already.
fn charge(active: &mut bool, fault: &Fault, settings: &FaultSettings, exchange: &mut Exchange) -> bool {
    if *active {
        return true;
    }
    if settings.max_active.is_some_and(|most| fault.stats.active_faults().value() >= u64::from(most)) {
        fault.stats.faults_overflow().inc();
        return false;
    }
    fault.stats.active_faults().inc();
    effects(exchange).faults.push(ActiveFault(fault.stats.clone()));
    *active = true;
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_answer_of_an_abort() {
        let by_header = |pairs: &[(&'static str, &'static str)]| answer(AbortWith::Header, &headers(pairs));
        let http = |status| Some((StatusCode::from_u16(status).unwrap(), None));
        let grpc = |status| Some((StatusCode::OK, Some(status)));
        assert_eq!(answer(AbortWith::Http(StatusCode::IM_A_TEAPOT), &headers(&[])), http(418));
        assert_eq!(answer(AbortWith::Grpc(9), &headers(&[])), grpc(9));
        assert_eq!(by_header(&[]), None);
        assert_eq!(by_header(&[("x-envoy-fault-abort-request", "503")]), http(503));
        assert_eq!(by_header(&[("x-envoy-fault-abort-request", "600")]), None);
        assert_eq!(
            by_header(&[("x-envoy-fault-abort-request", "x"), ("x-envoy-fault-abort-grpc-request", "5")]),
            grpc(5)
        );
        assert_eq!(
            by_header(&[("x-envoy-fault-abort-request", "429"), ("x-envoy-fault-abort-grpc-request", "5")]),
            http(429)
        );
    }
}
