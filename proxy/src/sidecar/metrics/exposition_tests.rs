use super::*;

fn written(families: &[Family], format: Format) -> String {
    let mut writer = Writer::new(format);
    for family in families {
        writer.write(family);
    }
    writer.finish()
}

const TEXT: &str = "# HELP http_requests_total Requests \\\\ all.
# TYPE http_requests_total counter
http_requests_total{path=\"/a}\\\"b,c=\\\\\",code=\"200\"} 1027 1395066363000
http_requests_total{path=\"/b\",code=\"400\"} 3
# TYPE go_goroutines gauge
go_goroutines 17
# TYPE latency histogram
latency_bucket{le=\"0.5\"} 1
latency_bucket{le=\"+Inf\"} 2
latency_sum 1.5
latency_count 2
# TYPE rpc summary
rpc{quantile=\"0.5\"} 4773
rpc_sum 1.7560473e+07
rpc_count 2693
# TYPE something untyped
something{a=\"b\"} NaN
";

#[test]
fn text_goes_through_unchanged() {
    let families = parse(TEXT, Format::Text).expect("families");
    assert_eq!(families.len(), 5);
    assert_eq!(written(&families, Format::Text), TEXT);
    assert_eq!(labels(&families[0].samples[0].labels), [("path", "/a}\\\"b,c=\\\\"), ("code", "200")]);
}

#[test]
fn open_metrics_and_back() {
    let open = written(&parse(TEXT, Format::Text).expect("families"), Format::OpenMetrics100);
    for line in [
        "# HELP http_requests Requests \\\\ all.",
        "# TYPE http_requests counter",
        "http_requests_total{path=\"/a}\\\"b,c=\\\\\",code=\"200\"} 1027 1395066363",
        "# TYPE something unknown",
        "# EOF",
    ] {
        assert!(open.lines().any(|known| known == line), "{line}\n{open}");
    }
    assert_eq!(written(&parse(&open, Format::OpenMetrics100).expect("families"), Format::Text), TEXT);
}

#[test]
fn what_open_metrics_has_more() {
    let text = "# TYPE foo counter\n# UNIT foo seconds\n# HELP foo Help.\nfoo_total{a=\"1\"} 17.0 1520879607.789 # {id=\"x\"} 0.5\nfoo_created{a=\"1\"} 1520430000.123\n\
                # TYPE build info\nbuild_info{v=\"1\"} 1\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1 # {t=\"a b\"} 3\nh_sum 2\nh_count 1\nh_created 5\n# EOF\n";
    assert_eq!(
        written(&parse(text, Format::OpenMetrics100).expect("families"), Format::Text),
        "# HELP foo_total Help.\n# TYPE foo_total counter\nfoo_total{a=\"1\"} 17.0 1520879607789\n# TYPE build_info gauge\nbuild_info{v=\"1\"} 1\n\
         # TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 2\nh_count 1\n"
    );
}

#[test]
fn counters_that_open_metrics_has_no_name_for() {
    let text = "# TYPE envoy_cluster_upstream_rq counter\nenvoy_cluster_upstream_rq{} 1\n# TYPE a gauge\na 1\n# TYPE a_total counter\na_total 2\n";
    let families = parse(text, Format::Text).expect("families");
    assert_eq!(
        written(&families, Format::OpenMetrics001),
        "# TYPE envoy_cluster_upstream_rq unknown\nenvoy_cluster_upstream_rq 1\n# TYPE a gauge\na 1\n# TYPE a_total unknown\na_total 2\n# EOF\n"
    );
}

#[test]
fn bad_lines_are_named() {
    for (text, needle) in [
        ("a 1\nb{x=\"1\" 2", "line 2: b: the labels have no end"),
        ("a", "line 1: a: no value"),
        ("a one", "\"one\" is no number"),
        ("a 1 soon", "\"soon\" is no timestamp"),
        ("9a 1", "no metric name"),
        ("<html>", "no metric name"),
        ("{\"json\": 1}", "no metric name"),
    ] {
        let error = parse(text, Format::Text).expect_err("an error");
        assert!(error.contains(needle), "{error}");
    }
}

#[test]
fn sources_are_merged_by_family() {
    let parsed = |text: &str| parse(text, Format::Text).expect("families");
    let mut merged = Merged::default();
    assert_eq!(merged.add(parsed("# TYPE up gauge\nup{app=\"a\"} 1\n# TYPE same counter\nsame 1\n")), 0);
    assert_eq!(merged.add(parsed("# TYPE up gauge\nup{app=\"b\"} 1\n# TYPE same counter\nsame 2\n")), 1);
    assert_eq!(merged.add(parsed("# TYPE up counter\nup{app=\"c\"} 1\n")), 1);
    assert!(merged.take("none").is_none());
    let families: Vec<_> = merged.rest().collect();
    assert_eq!(
        written(&families, Format::Text),
        "# TYPE same counter\nsame 1\n# TYPE up gauge\nup{app=\"a\"} 1\nup{app=\"b\"} 1\n"
    );
}

#[test]
fn labels_are_added_in_place_of_the_same_name() {
    let mut families = parse("a{mesh=\"mine\",x=\"1\"} 1\na 2\n", Format::Text).expect("families");
    families[0].add_labels(&[("mesh".into(), "default".into()), ("zone".into(), "z".into())]);
    assert_eq!(
        written(&families, Format::Text),
        "# TYPE a untyped\na{x=\"1\",mesh=\"default\",zone=\"z\"} 1\na{mesh=\"default\",zone=\"z\"} 2\n"
    );
}

#[test]
fn formats_by_header() {
    let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
                      text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    for (accept, expected) in [
        (prometheus, Format::OpenMetrics100),
        ("text/plain;version=0.0.4", Format::Text),
        ("application/openmetrics-text", Format::OpenMetrics001),
        ("application/openmetrics-text;version=1.0.0;q=0.1, text/plain;q=0.9", Format::Text),
        (
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7",
            Format::Text,
        ),
        ("", Format::Text),
    ] {
        assert_eq!(Format::accepted(accept), expected, "{accept}");
    }
    assert_eq!(Format::of_content_type("text/plain; charset=UTF-8"), Some(Format::Text));
    assert_eq!(Format::of_content_type("application/openmetrics-text; version=2.0.0"), None);
    assert_eq!(Format::of_content_type("text/html"), None);
}
