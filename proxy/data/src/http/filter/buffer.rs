//! Bodies that a filter waits for.
//!
//! Source: Envoy "Buffer".

use std::{sync::Arc, time::Instant};

use http::{StatusCode, Version};

use super::super::{
    body::{Hold, Inbound, Progress},
    exchange::Exchange,
    head::Head,
    local_reply::Refusal,
};
use crate::error::ResponseFlag;

/// Waits for all of a body. The error answers one that is too long, or does not come.
pub(super) async fn buffer(
    limit: u32,
    exchange: &mut Exchange,
    head: &Head,
    inbound: &mut Inbound,
) -> Result<(), Refusal> {
    if inbound.is_empty() {
        return Ok(());
    }
    match hold(limit as usize, exchange, head, inbound).await? {
        true => {
            inbound.set_sized();
            Ok(())
        }
        false => Err(too_large(exchange)),
    }
}

/// The answer to a body that is longer than a filter holds.
pub(super) fn too_large(exchange: &mut Exchange) -> Refusal {
    // As in Envoy the end of it may be here, and is not looked at.
    exchange.unfinished = true;
    exchange.manager.stats.downstream_rq_too_large().inc();
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large", "request_payload_too_large")
}

/// Waits for a body of up to `limit` bytes; whether it was no longer.
pub(super) async fn hold(
    limit: usize,
    exchange: &mut Exchange,
    head: &Head,
    inbound: &mut Inbound,
) -> Result<bool, Refusal> {
    let trailers = head.version == Version::HTTP_2 || exchange.manager.http1.enable_trailers;
    let progress = progress(exchange, head.upgrade.is_some());
    let begun = Instant::now();
    let (idle, request) = (exchange.manager.timeouts.stream_idle, exchange.manager.timeouts.request);
    let held = inbound.hold(&progress, trailers, limit, idle);
    let held = match request {
        // On the heap: a listener with such a limit is the exception.
        Some(limit) => match Box::pin(tokio::time::timeout_at((exchange.start + limit).into(), held)).await {
            Ok(held) => held,
            Err(_) => {
                exchange.manager.stats.downstream_rq_timeout().inc();
                let refusal = Refusal::new(StatusCode::REQUEST_TIMEOUT, "request timeout", "request_overall_timeout");
                return Err(refusal);
            }
        },
        None => held.await,
    };
    exchange.held += begun.elapsed();
    match held {
        Hold::Whole => Ok(true),
        Hold::TooLong => Ok(false),
        Hold::Broken(broken) => Err(broken.refusal()),
        Hold::Idle => {
            exchange.manager.stats.downstream_rq_idle_timeout().inc();
            let refusal = Refusal::new(StatusCode::REQUEST_TIMEOUT, "stream timeout", "stream_idle_timeout");
            Err(refusal.flag(ResponseFlag::StreamIdleTimeout))
        }
    }
}

/// Reads a body that nobody looks at to its end, so that the connection can go on.
pub(super) async fn discard(exchange: &mut Exchange, head: &Head, inbound: &mut Inbound) {
    let progress = progress(exchange, head.upgrade.is_some());
    inbound.discard(&progress, exchange.manager.timeouts.stream_idle).await;
}

/// What tells how far the request's body has come, from now on.
pub(in crate::http) fn progress(exchange: &mut Exchange, switching: bool) -> Arc<Progress> {
    let start = exchange.start;
    let progress = exchange.progress.get_or_insert_with(|| Progress::new(start)).clone();
    exchange.unfinished = switching;
    if let Some(effects) = &mut exchange.effects
        && !effects.requests.is_empty()
    {
        progress.count_messages(std::mem::take(&mut effects.requests));
    }
    progress
}
