#![allow(clippy::unwrap_used)]

use http::{HeaderName, Request};

use super::*;
use crate::{
    model::tracing::{CustomTag, SpanSink, TagValue},
    record::Record,
};

fn start(tracing: &Tracing, route: Option<&Arc<RouteTracing>>, head: &mut Head) -> Option<Box<Trace>> {
    let stats = HttpStats::new(&crate::stats::Registry::new(1), crate::testing::scope("http.test."));
    begin(tracing, route, head, &stats)
}

fn hundredths(numerator: u32) -> Fraction {
    Fraction { numerator, denominator: 10_000 }
}

fn tag(name: &str, value: TagValue) -> CustomTag {
    CustomTag { name: name.into(), value }
}

fn tracing(egress: bool, propagation: Propagation) -> Tracing {
    let header = |name: &'static str, default: Option<&str>| TagValue::Header {
        header: HeaderName::from_static(name),
        default: default.map(Into::into),
    };
    Tracing {
        sampling: Sampling { client: hundredths(10_000), random: hundredths(10_000), overall: hundredths(10_000) },
        egress,
        spawn_upstream: false,
        longest_path: 5,
        tags: vec![
            tag("mesh", TagValue::Constant("default".into())),
            tag("app", header("x-app", None)),
            tag("zone", header("x-zone", Some("z"))),
        ],
        propagation,
        sink: SpanSink::new(1).0,
    }
}

const B3: Propagation = Propagation::B3 { shared: true, wide: false, split: false };

fn head(lines: &[(&str, &str)]) -> Head {
    let mut request = Request::get("http://example.org/a").body(()).unwrap();
    for (name, value) in lines {
        request.headers_mut().insert(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    Head::new(request).0
}

#[test]
fn the_request_id_decides_and_says_so() {
    let id = |chance: &str, reason: char| format!("{chance}-0000-{reason}000-8000-000000000000");
    for (chance, reason, more, random, overall, traced, says) in [
        ("00000000", '4', None, 10_000, 10_000, true, '9'),
        ("00000000", '4', None, 0, 10_000, false, '4'),
        // 0x1388 is 5000: half of the requests.
        ("00001388", '4', None, 5_000, 10_000, false, '4'),
        ("00001387", '4', None, 5_000, 10_000, true, '9'),
        ("00000000", '4', Some("x-envoy-force-trace"), 0, 10_000, true, 'a'),
        ("00000000", '4', Some("x-client-trace-id"), 0, 10_000, true, 'b'),
        // Decided before, by another proxy.
        ("00000000", 'a', None, 0, 10_000, true, 'a'),
        // Bounded after all.
        ("00001388", '9', None, 10_000, 5_000, false, '4'),
        ("00001387", '9', None, 10_000, 5_000, true, '9'),
    ] {
        let mut tracing = tracing(false, B3);
        tracing.sampling.random = hundredths(random);
        tracing.sampling.overall = hundredths(overall);
        let before = id(chance, reason);
        let mut lines = vec![("x-request-id", before.as_str())];
        lines.extend(more.map(|name| (name, "1")));
        let mut head = head(&lines);
        let trace = start(&tracing, None, &mut head).unwrap();
        assert_eq!(trace.sampled, traced, "{lines:?}");
        assert_eq!(head.headers.get(&names::REQUEST_ID).unwrap(), &*id(chance, says), "{lines:?}");
    }
    // What is no UUID stays as it is.
    let mut head = head(&[("x-request-id", "0000000000")]);
    assert!(start(&tracing(false, B3), None, &mut head).unwrap().sampled);
    assert_eq!(head.headers.get(&names::REQUEST_ID).unwrap(), "0000000000");
}

#[test]
fn a_trace_goes_on() {
    let given = [
        ("x-request-id", "00000000-0000-4000-8000-000000000000"),
        ("x-b3-traceid", "000000000000000a"),
        ("x-b3-spanid", "000000000000000b"),
        ("x-b3-sampled", "0"),
    ];
    // A server shares the span of its client, a client makes one of its own.
    for (egress, propagation, same) in [
        (false, B3, true),
        (true, B3, false),
        (false, Propagation::B3 { shared: false, wide: false, split: false }, false),
        (true, Propagation::B3 { shared: true, wide: false, split: true }, true),
    ] {
        let mut head = head(&given);
        let trace = start(&tracing(egress, propagation), None, &mut head).unwrap();
        trace.inject(propagation, &mut head.headers);
        let line = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(line("x-b3-traceid").as_deref(), Some("000000000000000a"));
        assert_eq!(line("x-b3-spanid").as_deref() == Some("000000000000000b"), same, "{egress} {propagation:?}");
        assert_eq!(line("x-b3-parentspanid").as_deref(), (!same).then_some("000000000000000b"));
        assert_eq!(line("x-b3-sampled").as_deref(), Some("0"), "the caller decides");
    }
}

#[test]
fn a_context_in_one_header_goes_on_in_one() {
    for (egress, given, wanted) in [
        (false, "000000000000000a-000000000000000b-1", "000000000000000a-000000000000000b-1"),
        (
            false,
            "000000000000000a-000000000000000b-0-000000000000000c",
            "000000000000000a-000000000000000b-0-000000000000000c",
        ),
        (true, "000000000000000a-000000000000000b-d", "-1-000000000000000b"),
        (true, "0", "-0"),
    ] {
        let mut head = head(&[("x-request-id", "00000000-0000-4000-8000-000000000000"), ("b3", given)]);
        let trace = start(&tracing(egress, B3), None, &mut head).unwrap();
        trace.inject(B3, &mut head.headers);
        let found = head.headers.get("b3").unwrap().to_str().unwrap();
        assert!(found.ends_with(wanted), "{given}: {found}");
        assert!(!head.headers.contains_key("x-b3-traceid"));
    }
}

#[test]
fn w3cs_flag_and_the_request_id_have_both_to_ask_for_it() {
    for (flags, random, sampled) in [("01", 10_000, true), ("01", 0, false), ("00", 10_000, false)] {
        let parent = format!("00-0000000000000000000000000000000a-000000000000000b-{flags}");
        let id = ("x-request-id", "00000000-0000-4000-8000-000000000000");
        let mut tracing = tracing(false, Propagation::TraceContext);
        tracing.sampling.random = hundredths(random);
        let trace = start(&tracing, None, &mut head(&[id, ("traceparent", &parent)])).unwrap();
        assert_eq!(trace.sampled, sampled, "{flags} {random}");
    }
}

#[test]
fn a_trace_begins() {
    for (propagation, length) in [(B3, 16), (Propagation::B3 { shared: true, wide: true, split: false }, 32)] {
        let mut head = head(&[("x-request-id", "00000000-0000-4000-8000-000000000000")]);
        let trace = start(&tracing(true, propagation), None, &mut head).unwrap();
        assert_eq!(&*trace.name, "example.org", "Zipkin's spans are called by the host");
        trace.inject(propagation, &mut head.headers);
        assert_eq!(head.headers.get("x-b3-traceid").unwrap().len(), length);
        assert_eq!(head.headers.get("x-b3-sampled").unwrap(), "1");
        assert!(!head.headers.contains_key("x-b3-parentspanid"));
    }
    let mut head = head(&[("traceparent", "broken")]);
    assert!(start(&tracing(true, Propagation::TraceContext), None, &mut head).is_none());
}

#[tokio::test]
async fn a_span_says_what_envoys_says() {
    let connection = crate::testing::connection();
    let mut tracing = tracing(false, B3);
    let (sink, mut spans) = SpanSink::new(1);
    tracing.sink = sink;
    let mut head = head(&[("x-request-id", "00000000-0000-4000-8000-000000000000"), ("user-agent", "curl")]);
    let trace = start(&tracing, None, &mut head).unwrap();
    let second = start(&tracing, None, &mut head).unwrap();
    let request = crate::model::rbac::RequestView { path: "/abcdef?q", ..head.view() };
    let record = Record { request: Some(request), status: 503, bytes_sent: 7, ..Record::of_connection(&connection) };
    trace.finish(&tracing, &record);
    second.finish(&tracing, &record);
    assert_eq!(tracing.sink.take_dropped(), 1, "a full queue drops");
    let mut received = Vec::new();
    spans.receive(&mut received, 1).await;
    let span = received.remove(0);
    assert!(span.error && !span.client);
    assert_eq!(&*span.name, "example.org");
    for (name, value) in [
        ("http.url", Some("http://example.org/abcd")),
        ("http.method", Some("GET")),
        ("http.status_code", Some("503")),
        ("user_agent", Some("curl")),
        ("downstream_cluster", Some("-")),
        ("component", Some("proxy")),
        ("response_size", Some("7")),
        ("response_flags", Some("-")),
        ("error", Some("true")),
        ("mesh", Some("default")),
        ("zone", Some("z")),
        ("app", None),
    ] {
        let found = span.tags.iter().find(|(tag, _)| tag == name).map(|(_, value)| value.as_str());
        assert_eq!(found, value, "{name}");
    }
}

#[test]
fn datadog_is_told_in_its_own_headers_and_in_w3cs() {
    let id = ("x-request-id", "00000000-0000-4000-8000-000000000000");
    let begun = |random: u32| {
        let mut tracing = tracing(false, Propagation::Datadog);
        tracing.sampling.random = hundredths(random);
        let mut head = head(&[id]);
        let trace = start(&tracing, None, &mut head).unwrap();
        trace.inject(Propagation::Datadog, &mut head.headers);
        (trace, head)
    };
    let text = |head: &Head, name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    for (random, priority, kept, mechanism) in [(10_000, "1", "01", true), (0, "-1", "00", false)] {
        let (trace, head) = begun(random);
        assert!(trace.is_sent(), "the agent counts what is dropped too");
        assert_eq!(&*trace.name, "ingress");
        let low = trace.trace as u64;
        assert_eq!(low, trace.id, "a trace is called by its first span");
        assert_eq!(text(&head, "x-datadog-trace-id"), Some(low.to_string()));
        assert_eq!(text(&head, "x-datadog-parent-id"), Some(trace.id.to_string()));
        assert_eq!(text(&head, "x-datadog-sampling-priority").as_deref(), Some(priority));
        let upper = format!("_dd.p.tid={:016x}", (trace.trace >> 64) as u64);
        let (tags, more) = if mechanism { (format!("{upper},_dd.p.dm=-0"), ";t.dm:-0") } else { (upper, "") };
        assert_eq!(text(&head, "x-datadog-tags"), Some(tags));
        assert_eq!(text(&head, "traceparent"), Some(format!("00-{:032x}-{low:016x}-{kept}", trace.trace)));
        assert_eq!(text(&head, "tracestate"), Some(format!("dd=s:{priority};p:{low:016x}{more}")));
    }
}

#[test]
fn datadogs_context_goes_on() {
    let own = [
        ("x-datadog-trace-id", "10"),
        ("x-datadog-parent-id", "11"),
        ("x-datadog-sampling-priority", "2"),
        ("x-datadog-origin", "rum"),
        ("x-datadog-tags", "_dd.p.tid=0000000000000001,_dd.p.dm=-4,other=1"),
    ];
    let w3c = [
        ("traceparent", "00-0000000000000001000000000000000a-000000000000000b-01"),
        ("tracestate", "a=1,dd=s:2;p:000000000000000b;o:rum;t.dm:-4"),
    ];
    let wide = 1 << 64 | 10;
    for (lines, trace_id, priority, tags, others) in [
        (&own[..], wide, 2, &["_dd.p.dm=-4"][..], false),
        (&own[..3], 10, 2, &[], false),
        (&own[..2], 10, 1, &["_dd.p.dm=-0"], false),
        (&w3c, wide, 2, &["_dd.p.dm=-4"], true),
        (&w3c[..1], wide, 1, &[], false),
    ] {
        let mut head = head(lines);
        let mut tracing = tracing(true, Propagation::Datadog);
        head.headers.insert("x-request-id", "00000000-0000-4000-8000-000000000000".parse().unwrap());
        tracing.spawn_upstream = true;
        let trace = start(&tracing, None, &mut head).unwrap();
        let context = trace.datadog.as_deref().unwrap();
        let found: Vec<String> = context.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!((trace.trace, trace.parent, context.priority), (trace_id, Some(11), priority), "{lines:?}");
        assert_eq!(found, tags, "{lines:?}");
        trace.inject(Propagation::Datadog, &mut head.headers);
        let state = head.headers.get("tracestate").unwrap().to_str().unwrap();
        assert_eq!(state.ends_with(",a=1"), others, "{state}");
        assert_eq!(state.contains(";o:rum"), context.origin.is_some(), "{state}");
    }
    // What cannot be read begins a trace of its own.
    for lines in [&[("x-datadog-trace-id", "x"), own[1]][..], &[("x-datadog-trace-id", "0"), own[1]], &own[..1]] {
        let trace = start(&tracing(true, Propagation::Datadog), None, &mut head(lines)).unwrap();
        assert_eq!(trace.parent, None, "{lines:?}");
    }
}

#[test]
fn a_route_has_its_own_shares_tags_and_operation() {
    let route = Arc::new(RouteTracing {
        sampling: Some(Sampling { random: hundredths(0), client: hundredths(0), overall: hundredths(10_000) }),
        tags: vec![tag("mesh", TagValue::Constant("other".into()))],
        operation: Some("list".into()),
        propagate: true,
    });
    let id = ("x-request-id", "00000000-0000-4000-8000-000000000000");
    let other = ("x-envoy-decorator-operation", "theirs");
    // (egress, what the client says, the span's name, what the server is told, what the server says, what the client is told, the name after that)
    for (egress, lines, name, told, said, back, finally) in [
        (true, &[id][..], "list", Some("list"), Some("served"), None, "served"),
        (true, &[id, other], "list", Some("list"), None, None, "list"),
        (false, &[id], "list", None, None, Some("list"), "list"),
        (false, &[id, other], "theirs", None, Some("served"), Some("served"), "theirs"),
    ] {
        let tracing = tracing(egress, Propagation::TraceContext);
        let mut head = head(lines);
        let mut trace = start(&tracing, Some(&route), &mut head).unwrap();
        assert!(!trace.sampled);
        assert_eq!(&*trace.name, name, "{lines:?}");
        let text = |headers: &HeaderMap| {
            headers.get(names::DECORATOR_OPERATION).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(text(&head.headers).as_deref(), told, "{lines:?}");
        let mut response = HeaderMap::new();
        if let Some(said) = said {
            response.insert(names::DECORATOR_OPERATION, said.parse().unwrap());
        }
        trace.respond(&tracing, &mut response);
        assert_eq!((text(&response).as_deref(), &*trace.name), (back, finally), "{lines:?}");
    }
}

#[test]
fn a_try_is_a_span_of_its_own() {
    let mut tracing = tracing(true, B3);
    let mut head = head(&[("x-request-id", "00000000-0000-4000-8000-000000000000")]);
    assert!(start(&tracing, None, &mut head).unwrap().begin_try(&tracing, 0, &mut HeaderMap::new()).is_none());
    tracing.spawn_upstream = true;
    let trace = start(&tracing, None, &mut head).unwrap();
    assert!(!trace.client, "the tries are the client's");
    let mut headers = HeaderMap::new();
    trace.begin_try(&tracing, 0, &mut headers).unwrap();
    let text = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    assert_eq!(text("x-b3-traceid"), format!("{:016x}", trace.trace));
    assert_eq!(text("x-b3-parentspanid"), format!("{:016x}", trace.id));
    assert_ne!(text("x-b3-spanid"), format!("{:016x}", trace.id));
}
