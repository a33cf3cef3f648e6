//! A trace's context in the headers of Datadog's tracers.
//!
//! Source: Datadog "Trace Context Propagation", dd-trace-cpp `extraction_util`, `tracestate` as its tracers write it. Both styles are read, Datadog's
//! first, and both are written.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    Trace,
    context::{Broken, Parent, text, trace_context},
};
use crate::model::tracing::DatadogContext;

const TRACE: HeaderName = HeaderName::from_static("x-datadog-trace-id");
const PARENT: HeaderName = HeaderName::from_static("x-datadog-parent-id");
const PRIORITY: HeaderName = HeaderName::from_static("x-datadog-sampling-priority");
const ORIGIN: HeaderName = HeaderName::from_static("x-datadog-origin");
const TAGS: HeaderName = HeaderName::from_static("x-datadog-tags");

/// Longest `x-datadog-tags` that is passed on.
const LONGEST_TAGS: usize = 512;
/// The upper half of the trace id, in hexadecimal.
const UPPER_HALF: &str = "_dd.p.tid";
/// Who decided about the trace.
const MECHANISM: &str = "_dd.p.dm";

/// The context of a trace that begins here.
pub(super) fn begin(sampled: bool) -> Box<DatadogContext> {
    let mut context = DatadogContext { priority: if sampled { 1 } else { -1 }, ..DatadogContext::default() };
    if sampled {
        // Nobody's rule: the default.
        context.tags.push((MECHANISM.into(), "-0".into()));
    }
    Box::new(context)
}

/// The upper half of a trace id: the second in which the trace began.
pub(super) fn upper_half() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u64::from(now as u32) << 32
}

/// Reads the context of a request. One that cannot be read is none.
pub(super) fn extract(headers: &HeaderMap) -> Parent {
    own(headers).unwrap_or_else(|| w3c(headers).unwrap_or_default())
}

fn own(headers: &HeaderMap) -> Option<Parent> {
    let trace: u64 = text(headers, &TRACE)?.trim().parse().ok()?;
    let span: u64 = text(headers, &PARENT)?.trim().parse().ok()?;
    if trace == 0 {
        return None;
    }
    let priority: Option<i32> = text(headers, &PRIORITY).and_then(|priority| priority.trim().parse().ok());
    let mut upper = 0;
    let mut tags = Vec::new();
    let given = text(headers, &TAGS).filter(|tags| tags.len() <= LONGEST_TAGS).unwrap_or("");
    for (name, value) in given.split(',').filter_map(|pair| pair.split_once('=')) {
        match name {
            UPPER_HALF => upper = u64::from_str_radix(value, 16).unwrap_or(0),
            name if name.starts_with("_dd.p.") => tags.push((name.into(), value.into())),
            _ => {}
        }
    }
    let origin = text(headers, &ORIGIN).filter(|origin| !origin.is_empty()).map(Into::into);
    let datadog = priority.map(|priority| Box::new(DatadogContext { priority, origin, tags }));
    Some(Parent {
        sampled: priority.map(|priority| priority > 0),
        ids: Some((u128::from(upper) << 64 | u128::from(trace), span, None)),
        state: None,
        datadog,
    })
}

/// W3C Trace Context, with the part of `tracestate` that is Datadog's.
fn w3c(headers: &HeaderMap) -> Result<Parent, Broken> {
    let Some(given) = text(headers, &HeaderName::from_static("traceparent")) else { return Ok(Parent::default()) };
    let mut parent = trace_context(given, headers)?;
    let sampled = parent.sampled == Some(true);
    let mut context = DatadogContext { priority: i32::from(sampled), ..DatadogContext::default() };
    let state = parent.state.take().unwrap_or_default();
    let (ours, others): (Vec<&str>, Vec<&str>) =
        state.split(',').map(str::trim).filter(|member| !member.is_empty()).partition(|m| m.starts_with("dd="));
    for pair in ours.iter().filter_map(|member| member.strip_prefix("dd=")).flat_map(|member| member.split(';')) {
        match pair.split_once(':') {
            Some(("s", priority)) => {
                // What other vendors' tracers decided since counts.
                let said = priority.parse().unwrap_or(0);
                if (said > 0) == sampled {
                    context.priority = said;
                }
            }
            Some(("o", origin)) => context.origin = Some(origin.replace('~', "=").into()),
            Some((name, value)) if name.starts_with("t.") => {
                let name = format!("_dd.p.{}", name.trim_start_matches("t."));
                context.tags.push((name.into(), value.replace('~', "=").into()));
            }
            _ => {}
        }
    }
    parent.state = (!others.is_empty()).then(|| others.join(",").into());
    parent.datadog = Some(Box::new(context));
    Ok(parent)
}

/// Writes the context of a span.
pub(super) fn inject(trace: &Trace, id: u64, headers: &mut HeaderMap) {
    let Some(context) = &trace.datadog else { return };
    let mut put = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put(TRACE, &(trace.trace as u64).to_string());
    put(PARENT, &id.to_string());
    put(PRIORITY, &context.priority.to_string());
    if let Some(origin) = &context.origin {
        put(ORIGIN, origin);
    }
    let upper = (trace.trace >> 64) as u64;
    let upper = (upper != 0).then(|| format!("{UPPER_HALF}={upper:016x}"));
    let pairs = context.tags.iter().map(|(name, value)| format!("{name}={value}"));
    let tags: Vec<String> = upper.into_iter().chain(pairs).collect();
    if !tags.is_empty() {
        put(TAGS, &tags.join(","));
    }
    let kept = u8::from(context.priority > 0);
    put(HeaderName::from_static("traceparent"), &format!("00-{:032x}-{id:016x}-{kept:02x}", trace.trace));
    let mut state = format!("dd=s:{};p:{id:016x}", context.priority);
    if let Some(origin) = &context.origin {
        state.push_str(&format!(";o:{}", origin.replace('=', "~")));
    }
    for (name, value) in &context.tags {
        if let Some(name) = name.strip_prefix("_dd.p.") {
            state.push_str(&format!(";t.{name}:{}", value.replace('=', "~")));
        }
    }
    if let Some(others) = &trace.state {
        state.push(',');
        state.push_str(others);
    }
    put(HeaderName::from_static("tracestate"), &state);
}
