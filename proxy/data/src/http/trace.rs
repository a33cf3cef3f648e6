//! The trace that a request is part of: whether it is traced, how its trace goes on upstream, and what is said of it at its end.
//!
//! Source: Envoy "Tracing", `ConnectionManagerUtility::mutateTracingRequestHeader`, `HttpTracerUtility::finalizeDownstreamSpan` and
//! `finalizeUpstreamSpan`, its tracers Zipkin, OpenTelemetry and Datadog; the propagation formats B3, W3C Trace Context and Datadog.

mod context;
mod datadog;
mod span;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use self::context::Parent;
pub use self::span::TrySpan;
pub(super) use self::span::finish_try;
use super::{head::Head, headers as names};
use crate::{
    model::{
        route::Fraction,
        tracing::{DatadogContext, Propagation, RouteTracing, Sampling, Tracing},
    },
    stats::HttpStats,
    worker,
};

/// Where a UUID says of what version it is; Envoy says there whether the request is traced.
const REASON: usize = 14;
/// Length of a UUID.
const UUID: usize = 36;
/// What stands there: a version 4 that means nothing more, by chance, because the server side asked for it, because the client did.
const NOT_TRACED: u8 = b'4';
const SAMPLED: u8 = b'9';
const FORCED: u8 = b'a';
const CLIENT: u8 = b'b';

/// The span of a request.
#[derive(Debug)]
pub struct Trace {
    /// Whether somebody asked for this very request to be traced (`x-envoy-force-trace`); what Envoy's `traceable_filter` of logs looks at.
    pub forced: bool,
    /// Whether the trace is recorded, as the context says to the next proxy.
    sampled: bool,
    trace: u128,
    id: u64,
    parent: Option<u64>,
    /// The parent is another process's span.
    continued: bool,
    state: Option<Box<str>>,
    datadog: Option<Box<DatadogContext>>,
    client: bool,
    name: Box<str>,
    route: Option<Arc<RouteTracing>>,
    /// The operation goes back to the caller.
    answers: bool,
}

/// Decides whether a request is traced, and begins its span. `None`: its context is broken, and the trace ends here.
pub(super) fn begin(
    tracing: &Tracing,
    route: Option<&Arc<RouteTracing>>,
    head: &mut Head,
    stats: &HttpStats,
) -> Option<Box<Trace>> {
    let sampling = route.and_then(|route| route.sampling).unwrap_or(tracing.sampling);
    let reason = decide(&sampling, &mut head.headers);
    match reason {
        Some(CLIENT) => stats.tracing_client_enabled().inc(),
        Some(FORCED) => stats.tracing_service_forced().inc(),
        Some(_) => stats.tracing_random_sampling().inc(),
        None => stats.tracing_not_traceable().inc(),
    }
    let parent = context::extract(tracing.propagation, &head.headers).ok()?;
    let (client, shared) = match tracing.propagation {
        Propagation::B3 { shared, split, .. } => (tracing.egress && !split, shared),
        Propagation::TraceContext | Propagation::Datadog => (tracing.egress, false),
    };
    // With spans of their own for tries, it is those that are the client's.
    let client = client && !tracing.spawn_upstream;
    let fresh = nonzero(worker::random());
    let Parent { sampled, ids, state, datadog } = parent;
    // W3C's flag says what the caller recorded; B3 and Datadog have a decision for the whole trace, which stands.
    let sampled = match tracing.propagation {
        Propagation::TraceContext => sampled != Some(false) && reason.is_some(),
        Propagation::B3 { .. } | Propagation::Datadog => sampled.unwrap_or(reason.is_some()),
    };
    let (trace, id, parent, continued) = match ids {
        None => (new_trace(tracing.propagation, fresh), fresh, None, false),
        Some((trace, id, parent)) if shared && !client => (trace, id, parent, true),
        Some((trace, id, _)) => (trace, fresh, Some(id), true),
    };
    let datadog = match tracing.propagation {
        Propagation::Datadog => Some(datadog.unwrap_or_else(|| datadog::begin(sampled))),
        _ => None,
    };
    let mut span = Box::new(Trace {
        forced: reason == Some(FORCED),
        sampled,
        trace,
        id,
        parent,
        continued,
        state,
        datadog,
        client,
        name: Box::default(),
        route: route.cloned(),
        answers: false,
    });
    span.call(tracing, head);
    Some(span)
}

fn nonzero(number: u64) -> u64 {
    number.max(1)
}

/// The id of a trace whose first span is `first`.
fn new_trace(propagation: Propagation, first: u64) -> u128 {
    let (high, low) = match propagation {
        Propagation::B3 { wide: false, .. } => (0, first),
        Propagation::B3 { wide: true, .. } => (nonzero(worker::random()), first),
        Propagation::TraceContext => (worker::random(), nonzero(worker::random())),
        Propagation::Datadog => (datadog::upper_half(), first),
    };
    u128::from(high) << 64 | u128::from(low)
}

/// Why a request is traced; `None` if it is not: by what its id says already, else by who asks for it, else by chance, which the id holds, so that all
/// proxies that the request passes decide alike. The id then says so.
fn decide(sampling: &Sampling, headers: &mut HeaderMap) -> Option<u8> {
    let id = headers.get(&names::REQUEST_ID)?.to_str().ok()?;
    // Below 10,000, whatever the denominator of a share.
    let chance = u64::from_str_radix(id.get(..8)?, 16).ok()? % 10_000;
    let within = |share: Fraction, drawn: u64| drawn % u64::from(share.denominator.max(1)) < u64::from(share.numerator);
    let said = if id.len() == UUID { id.as_bytes().get(REASON).copied() } else { None };
    let before = said.filter(|said| matches!(*said, SAMPLED | FORCED | CLIENT));
    let reason = if before.is_some() {
        before?
    } else if headers.contains_key(&names::CLIENT_TRACE_ID) && within(sampling.client, worker::random()) {
        CLIENT
    } else if headers.contains_key(&names::FORCE_TRACE) {
        FORCED
    } else if within(sampling.random, chance) {
        SAMPLED
    } else {
        return None;
    };
    let traced = within(sampling.overall, chance);
    let says = if traced { reason } else { NOT_TRACED };
    if said.is_some_and(|said| said != says) {
        let mut id = id.as_bytes().to_vec();
        if let Some(place) = id.get_mut(REASON) {
            *place = says;
        }
        if let Ok(id) = HeaderValue::from_bytes(&id) {
            headers.insert(names::REQUEST_ID, id);
        }
    }
    traced.then_some(reason)
}

impl Trace {
    /// Gives the span its name, and tells or obeys the other side's.
    ///
    /// Source: Envoy `ConnectionManagerImpl::ActiveStream::traceRequest`.
    fn call(&mut self, tracing: &Tracing, head: &mut Head) {
        self.name = match tracing.propagation {
            Propagation::B3 { .. } => head.authority().into(),
            _ if tracing.egress => format!("egress {}", head.authority()).into(),
            _ => "ingress".into(),
        };
        let decorator = self.route.as_deref().and_then(|route| Some((route.operation.as_deref()?, route.propagate)));
        if let Some((operation, _)) = decorator.filter(|(operation, _)| !operation.is_empty()) {
            self.name = operation.into();
        }
        let told = decorator.filter(|(operation, propagate)| *propagate && !operation.is_empty());
        if tracing.egress {
            if let Some(value) = told.and_then(|(operation, _)| HeaderValue::from_str(operation).ok()) {
                head.headers.insert(names::DECORATOR_OPERATION, value);
            }
            return;
        }
        self.answers = told.is_some();
        if let Some(value) = head.headers.remove(&names::DECORATOR_OPERATION)
            && let Some(operation) = value.to_str().ok().filter(|operation| !operation.is_empty())
        {
            self.name = operation.into();
            self.answers = false;
        }
    }

    /// Exchanges the operation with the other side in a response.
    pub(super) fn respond(&mut self, tracing: &Tracing, headers: &mut HeaderMap) {
        if tracing.egress {
            if let Some(value) = headers.remove(&names::DECORATOR_OPERATION)
                && let Some(operation) = value.to_str().ok().filter(|operation| !operation.is_empty())
            {
                self.name = operation.into();
            }
        } else if self.answers
            && let Ok(operation) = HeaderValue::from_str(&self.name)
        {
            headers.insert(names::DECORATOR_OPERATION, operation);
        }
    }

    /// Lets the trace go on upstream, from the request's own span.
    pub(super) fn inject(&self, propagation: Propagation, headers: &mut HeaderMap) {
        context::inject(propagation, self, (self.id, self.parent), headers);
    }

    /// The trace, and the request's span in it.
    pub fn ids(&self) -> (u128, u64) {
        (self.trace, self.id)
    }

    /// Whether its spans are sent to the collector. Datadog's agent is told of all traces, with the decision.
    pub fn is_sent(&self) -> bool {
        self.sampled || self.datadog.is_some()
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
