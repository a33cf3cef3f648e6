//! Spans as Datadog's agent takes them: MessagePack.
//!
//! Source: the agent's API, version 0.4, as dd-trace-cpp speaks it for Envoy; the MessagePack specification. The rates that an agent answers with are
//! not applied: the configuration's sampling decides.

use std::{
    collections::BTreeMap,
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use shika_data::model::tracing::Span;

use super::{Identity, own_tags};

/// Where it takes them.
pub const PATH: &str = "/v0.4/traces";
/// Who sends them.
pub const HEADERS: [(&str, &str); 4] = [
    ("content-type", "application/msgpack"),
    ("datadog-meta-lang", "rust"),
    ("datadog-meta-lang-version", env!("CARGO_PKG_RUST_VERSION")),
    ("datadog-meta-tracer-version", env!("CARGO_PKG_VERSION")),
];

/// What Envoy's spans are called.
const NAME: &str = "envoy.proxy";
const KIND: &str = "web";

/// A request with these spans, and the number of traces in it.
pub fn traces(spans: &[Span], identity: &Identity, service: &str) -> (Vec<u8>, usize) {
    // The agent takes a list of traces, each of which is a list of spans.
    let mut at: BTreeMap<u128, usize> = BTreeMap::new();
    let mut traces: Vec<Vec<&Span>> = Vec::new();
    for span in spans {
        let index = *at.entry(span.trace).or_insert_with(|| {
            traces.push(Vec::new());
            traces.len() - 1
        });
        if let Some(trace) = traces.get_mut(index) {
            trace.push(span);
        }
    }
    let mut out = Packer(Vec::with_capacity(spans.len() * 1024));
    out.list(traces.len());
    for trace in &traces {
        out.list(trace.len());
        for span in trace {
            write(&mut out, span, identity, service);
        }
    }
    (out.0, traces.len())
}

fn write(out: &mut Packer, span: &Span, identity: &Identity, service: &str) {
    let upper = (span.trace >> 64) as u64;
    let upper = (span.root && upper != 0).then(|| format!("{upper:016x}"));
    let context = span.datadog.as_deref();
    let mut meta: Vec<(&str, &str)> = own_tags(span, identity).collect();
    // Failures have a field of their own.
    let tags = span.tags.iter().filter(|(name, _)| name != "error");
    meta.extend(tags.map(|(name, value)| (&**name, value.as_str())));
    meta.push(("language", "rust"));
    meta.extend(upper.as_deref().map(|upper| ("_dd.p.tid", upper)));
    if let Some(context) = context {
        meta.extend(context.tags.iter().map(|(name, value)| (&**name, &**value)));
        meta.extend(context.origin.as_deref().map(|origin| ("_dd.origin", origin)));
    }
    out.map(12);
    out.text("service");
    out.text(service);
    out.text("name");
    out.text(NAME);
    out.text("resource");
    out.text(&span.name);
    out.text("type");
    out.text(KIND);
    for (key, number) in [
        ("trace_id", span.trace as u64),
        ("span_id", span.id),
        ("parent_id", span.parent.unwrap_or(0)),
        ("start", nanos(span.start)),
        ("duration", u64::try_from(span.duration.as_nanos()).unwrap_or(u64::MAX)),
        ("error", u64::from(span.error)),
    ] {
        out.text(key);
        out.number(number);
    }
    out.text("meta");
    out.map(meta.len());
    for (name, value) in meta {
        out.text(name);
        out.text(value);
    }
    out.text("metrics");
    // Sampled here, by no rule: at the rate that an agent which has said nothing stands for.
    let by_default = context.is_some_and(|context| context.priority == 1) && !span.remote_parent;
    out.map(1 + usize::from(context.is_some()) + usize::from(by_default));
    if by_default {
        out.text("_dd.agent_psr");
        out.float(1.0);
    }
    out.text("process_id");
    out.float(f64::from(process::id()));
    if let Some(context) = context {
        out.text("_sampling_priority_v1");
        out.float(f64::from(context.priority));
    }
}

fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// Writes MessagePack, with lengths of 32 bits throughout: short ones cost bytes, and nothing else.
struct Packer(Vec<u8>);

impl Packer {
    fn head(&mut self, kind: u8, length: usize) {
        self.0.push(kind);
        self.0.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    }

    fn list(&mut self, length: usize) {
        self.head(0xdd, length);
    }

    fn map(&mut self, length: usize) {
        self.head(0xdf, length);
    }

    fn text(&mut self, text: &str) {
        self.head(0xdb, text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.push(0xcf);
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn float(&mut self, number: f64) {
        self.0.push(0xcb);
        self.0.extend_from_slice(&number.to_be_bytes());
    }
}
