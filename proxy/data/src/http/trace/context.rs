//! A trace's context in headers: B3 and W3C Trace Context.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Trace, datadog};
use crate::model::tracing::{DatadogContext, Propagation};

const B3: HeaderName = HeaderName::from_static("b3");
const B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What a request brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parent {
    /// The caller's decision.
    pub sampled: Option<bool>,
    /// Trace, span, and the span that that one is a part of.
    pub ids: Option<(u128, u64, Option<u64>)>,
    /// `tracestate`
    pub state: Option<Box<str>>,
    /// For Datadog's tracer.
    pub datadog: Option<Box<DatadogContext>>,
}

/// What it brings cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Reads the context of a request.
pub(super) fn extract(propagation: Propagation, headers: &HeaderMap) -> Result<Parent, Broken> {
    match propagation {
        Propagation::B3 { .. } => match text(headers, &B3) {
            Some(single) => b3_single(single),
            None => b3(headers),
        },
        Propagation::TraceContext => match text(headers, &TRACEPARENT) {
            Some(parent) => trace_context(parent, headers),
            None => Ok(Parent::default()),
        },
        Propagation::Datadog => Ok(datadog::extract(headers)),
    }
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap_or(""))
}

fn b3(headers: &HeaderMap) -> Result<Parent, Broken> {
    let sampled = text(headers, &B3_SAMPLED).map(|sampled| matches!(sampled, "1" | "true"));
    let ids = match (text(headers, &B3_TRACE), text(headers, &B3_SPAN)) {
        (Some(trace), Some(span)) => {
            let parent = match text(headers, &B3_PARENT) {
                None | Some("") => None,
                Some(parent) => Some(hex64(parent)?),
            };
            Some((trace_id(trace)?, hex64(span)?, parent.filter(|parent| *parent != 0)))
        }
        _ => None,
    };
    Ok(Parent { sampled, ids, state: None, datadog: None })
}

/// `trace-span-sampled-parent`, of which the last two may be missing, or the decision alone.
fn b3_single(single: &str) -> Result<Parent, Broken> {
    let decision = |text: &str| match text {
        "1" | "d" => Ok(true),
        "0" => Ok(false),
        _ => Err(Broken),
    };
    let mut parts = single.split('-');
    let first = parts.next().unwrap_or("");
    let Some(span) = parts.next() else { return Ok(Parent { sampled: Some(decision(first)?), ..Parent::default() }) };
    let (trace, span) = (trace_id(first)?, hex64(span)?);
    let sampled = parts.next().map(decision).transpose()?;
    let parent = parts.next().map(hex64).transpose()?;
    match parts.next() {
        None => Ok(Parent { sampled, ids: Some((trace, span, parent)), state: None, datadog: None }),
        Some(_) => Err(Broken),
    }
}

/// `version-trace-span-flags`
pub(super) fn trace_context(parent: &str, headers: &HeaderMap) -> Result<Parent, Broken> {
    let mut parts = parent.split('-');
    let (Some(version), Some(trace), Some(span), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Broken);
    };
    if parts.next().is_some() || version.len() != 2 || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return Err(Broken);
    }
    hex(version)?;
    let (trace, span) = (trace_id(trace)?, hex64(span)?);
    if trace == 0 || span == 0 {
        return Err(Broken);
    }
    let sampled = hex(flags)? & 1 == 1;
    let states: Vec<&str> = headers.get_all(TRACESTATE).iter().filter_map(|value| value.to_str().ok()).collect();
    let state = (!states.is_empty()).then(|| states.join(",").into());
    Ok(Parent { sampled: Some(sampled), ids: Some((trace, span, None)), state, datadog: None })
}

fn hex(text: &str) -> Result<u128, Broken> {
    if text.is_empty() || text.len() > 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Broken);
    }
    u128::from_str_radix(text, 16).map_err(|_| Broken)
}

fn hex64(text: &str) -> Result<u64, Broken> {
    if text.len() > 16 {
        return Err(Broken);
    }
    hex(text).and_then(|number| u64::try_from(number).map_err(|_| Broken))
}

fn trace_id(text: &str) -> Result<u128, Broken> {
    if text.len() == 32 { hex(text) } else { hex64(text).map(u128::from) }
}

/// Writes the context of a span of this trace, given by its id and its parent's. B3 is written as it came: in one header, or in one for each part.
pub(super) fn inject(
    propagation: Propagation,
    trace: &Trace,
    (id, parent): (u64, Option<u64>),
    headers: &mut HeaderMap,
) {
    let single = headers.contains_key(B3);
    let mut put = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    };
    match propagation {
        Propagation::B3 { .. } if single => {
            let parent = parent.map(|parent| format!("-{parent:016x}")).unwrap_or_default();
            put(B3, format!("{}-{id:016x}-{}{parent}", trace_text(trace.trace), u8::from(trace.sampled)));
        }
        Propagation::B3 { .. } => {
            put(B3_TRACE, trace_text(trace.trace));
            put(B3_SPAN, format!("{id:016x}"));
            if let Some(parent) = parent {
                put(B3_PARENT, format!("{parent:016x}"));
            }
            put(B3_SAMPLED, u8::from(trace.sampled).to_string());
        }
        Propagation::TraceContext => {
            put(TRACEPARENT, format!("00-{:032x}-{id:016x}-{:02x}", trace.trace, u8::from(trace.sampled)));
            // Written even where it is empty, as Envoy does.
            put(TRACESTATE, trace.state.as_deref().unwrap_or_default().to_owned());
        }
        Propagation::Datadog => datadog::inject(trace, id, headers),
    }
}

/// Short where it can be.
fn trace_text(trace: u128) -> String {
    if trace >> 64 == 0 { format!("{trace:016x}") } else { format!("{trace:032x}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B3_PLAIN: Propagation = Propagation::B3 { shared: true, wide: false, split: false };

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn contexts_are_read() {
        let ids = |sampled, trace, span, parent| {
            Ok(Parent { sampled, ids: Some((trace, span, parent)), state: None, datadog: None })
        };
        for (lines, wanted) in [
            (&[][..], Ok(Parent::default())),
            (&[("x-b3-sampled", "1")], Ok(Parent { sampled: Some(true), ..Parent::default() })),
            (
                &[("x-b3-traceid", "000000000000000a"), ("x-b3-spanid", "000000000000000b"), ("x-b3-sampled", "0")],
                ids(Some(false), 10, 11, None),
            ),
            (
                &[
                    ("x-b3-traceid", "0000000000000001000000000000000a"),
                    ("x-b3-spanid", "000000000000000b"),
                    ("x-b3-parentspanid", "000000000000000c"),
                ],
                ids(None, 1 << 64 | 10, 11, Some(12)),
            ),
            (&[("x-b3-traceid", "zz"), ("x-b3-spanid", "000000000000000b")], Err(Broken)),
            (&[("b3", "0")], Ok(Parent { sampled: Some(false), ..Parent::default() })),
            (&[("b3", "000000000000000a-000000000000000b-d-000000000000000c")], ids(Some(true), 10, 11, Some(12))),
            (&[("b3", "000000000000000a-000000000000000b")], ids(None, 10, 11, None)),
            (&[("b3", "a-b-c-d-e")], Err(Broken)),
        ] {
            assert_eq!(extract(B3_PLAIN, &headers(lines)), wanted, "{lines:?}");
        }
        let good = "00-0000000000000000000000000000000a-000000000000000b-01";
        let state = Parent { sampled: Some(true), ids: Some((10, 11, None)), state: Some("a=1".into()), datadog: None };
        for (lines, wanted) in [
            (&[("tracestate", "a=1")][..], Ok(Parent::default())),
            (&[("traceparent", good), ("tracestate", "a=1")], Ok(state)),
            (
                &[("traceparent", "00-0000000000000000000000000000000a-000000000000000b-00")],
                ids(Some(false), 10, 11, None),
            ),
            (&[("traceparent", "00-00000000000000000000000000000000-000000000000000b-00")], Err(Broken)),
            (&[("traceparent", "00-0000000000000000000000000000000a-000000000000000b")], Err(Broken)),
            (&[("traceparent", "")], Err(Broken)),
        ] {
            assert_eq!(extract(Propagation::TraceContext, &headers(lines)), wanted, "{lines:?}");
        }
    }
}
