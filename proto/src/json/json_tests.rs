#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;

use super::*;
use crate::envoy::config::bootstrap::v3::Bootstrap;
use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::core::v3::Metadata;
use crate::envoy::config::listener::v3::Listener;
use crate::envoy::config::route::v3::RouteConfiguration;
use crate::google::protobuf::value::Kind;
use crate::google::protobuf::{
    Any, BoolValue, BytesValue, DoubleValue, Duration, FloatValue, Int64Value, ListValue, StringValue, Struct,
    Timestamp, UInt32Value, UInt64Value, Value as ProtoValue,
};

fn errors<M: Message + Name + Default + fmt::Debug>(yaml: &str) -> Vec<String> {
    from_yaml::<M>(yaml).expect_err(yaml).iter().map(ToString::to_string).collect()
}

fn read<M: Message + Name + Default>(value: Value) -> Result<M, Vec<FieldError>> {
    from_json_value(&value)
}

#[test]
fn reads_both_spellings_of_names() {
    let snake: Cluster = from_yaml("{name: a, connect_timeout: 0.25s, lb_policy: ROUND_ROBIN, type: EDS}").unwrap();
    let camel: Cluster = from_yaml("{name: a, connectTimeout: 0.25s, lbPolicy: 0, type: eds}").unwrap();
    assert_eq!(snake, camel);
    assert_eq!(snake.connect_timeout, Some(Duration { seconds: 0, nanos: 250_000_000 }));
}

#[test]
fn every_error_has_its_path() {
    let yaml = r#"
static_resources:
  listeners:
  - name: ok
  - name: 5
    address: { socket_address: { address: 0.0.0.0, port_value: 8080, named_port: http } }
    filter_chains:
    - filters:
      - name: a
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          codec_type: HTTP9
          route_config:
            virtual_hosts:
            - name: v
              domains: { a: "*" }
              routes: [{ match: { prefix: / }, route: { timeout: 5 } }]
      - typed_config: { "@type": type.googleapis.com/acme.Nope }
      - typed_config: { stat_prefix: x }
  clusters:
  - name: c
    connect_timeout: 1h
    per_connection_buffer_limit_bytes: 5000000000
    no_such_field: 1
    load_assignment: { endpoints: [{ lb_endpoints: [{ health_status: 99999999999 }] }] }
    typed_extension_protocol_options:
      envoy.http: { "@type": 7 }
    metadata: { filter_metadata: { a: 5 } }
    transport_socket_matches: [null]
"#;
    let hcm = "static_resources.listeners[1].filter_chains[0].filters[1].typed_config";
    let timeout = "expected a duration in seconds such as \"5s\" or \"0.250s\", found";
    let expected = [
        "static_resources.listeners[1].name: expected a string, found number 5: put it in quotes".to_owned(),
        "static_resources.listeners[1].address.socket_address.named_port: excludes `port_value`, which is set as well: \
         only one of them may be"
            .to_owned(),
        format!(
            "{hcm}.codec_type: \"HTTP9\" is not a value of envoy.extensions.filters.network.http_connection_manager.v3.\
             HttpConnectionManager.CodecType (AUTO, HTTP1, HTTP2, HTTP3)"
        ),
        format!("{hcm}.route_config.virtual_hosts[0].domains: expected a string, found an object"),
        format!("{hcm}.route_config.virtual_hosts[0].routes[0].route.timeout: {timeout} number 5"),
        "static_resources.listeners[1].filter_chains[0].filters[2].typed_config.@type: unknown type \"acme.Nope\"".to_owned(),
        "static_resources.listeners[1].filter_chains[0].filters[3].typed_config: `@type` is missing: it names the type of \
         this google.protobuf.Any"
            .to_owned(),
        "static_resources.clusters[0].no_such_field: unknown field of envoy.config.cluster.v3.Cluster".to_owned(),
        format!("static_resources.clusters[0].connect_timeout: {timeout} string \"1h\""),
        "static_resources.clusters[0].per_connection_buffer_limit_bytes: 5000000000 is out of range for uint32 (0 to \
         4294967295)"
            .to_owned(),
        "static_resources.clusters[0].metadata.filter_metadata[\"a\"]: expected an object (google.protobuf.Struct), found \
         number 5"
            .to_owned(),
        "static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].health_status: 99999999999 is out of \
         range for an enum (-2147483648 to 2147483647)"
            .to_owned(),
        "static_resources.clusters[0].typed_extension_protocol_options[\"envoy.http\"].@type: expected a type URL, found \
         number 7"
            .to_owned(),
        "static_resources.clusters[0].transport_socket_matches[0]: null is not allowed in a list".to_owned(),
    ];
    let mut got = errors::<Bootstrap>(yaml);
    let mut wanted = expected.to_vec();
    got.sort();
    wanted.sort();
    assert_eq!(got, wanted);
}

#[test]
fn errors_are_bounded() {
    let many = vec!["x: 1"; 1_000].iter().enumerate().map(|(i, _)| format!("x{i}: 1\n")).collect::<String>();
    let errors = errors::<Cluster>(&many);
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert_eq!(errors[MAX_ERRORS], "stopped after 64 errors: there may be more");
}

#[test]
fn duplicates() {
    let twice = errors::<Cluster>("{name: a, connectTimeout: 1s, connect_timeout: 1s}");
    assert_eq!(twice, ["connect_timeout: the same field occurs twice, as \"connectTimeout\" and \"connect_timeout\""]);
    let error = from_json_str::<Cluster>(r#"{"name": "a", "name": "b"}"#).unwrap_err();
    assert_eq!(error[0].to_string(), "name: the key occurs twice");
    let error = from_json_str::<Struct>(r#"{"a": 1, "a": 2}"#).unwrap_err();
    assert_eq!(error[0].to_string(), "[\"a\"]: the key occurs twice");
    let error = from_json_str::<Any>(r#"{"@type": "a/b", "@type": "a/c"}"#).unwrap_err();
    assert_eq!(error[0].to_string(), "@type: the key occurs twice");
    // Null is unset: it excludes nothing.
    read::<Cluster>(json!({"type": "EDS", "cluster_type": null})).unwrap();
    assert!(read::<Cluster>(json!({"type": "EDS", "cluster_type": {}})).is_err());
}

#[test]
fn syntax_errors_have_line_and_column() {
    for (yaml, at) in [("a: [1,\nb: }", "line 2 column"), ("a: 1\n b: 2", "line 2 column")] {
        let error = &errors::<Cluster>(yaml)[0];
        assert!(error.starts_with("bad YAML: ") && error.contains(at), "{error}");
    }
    let error = from_json_str::<Cluster>("{\"a\": \n?}").unwrap_err();
    assert_eq!(error[0].to_string(), "bad JSON: expected value at line 2 column 1");
    for (document, found) in [("", "null"), ("5", "number 5"), ("[]", "a list")] {
        let expected = format!("expected an object (envoy.config.cluster.v3.Cluster), found {found}");
        assert_eq!(errors::<Cluster>(document), [expected]);
    }
    assert!(errors::<Cluster>("a: 1\n---\nb: 1")[0].contains("line 2 column 1: a second document"));
}

#[test]
fn yaml_anchors_and_merge_keys() {
    let yaml = "
x: &base { connect_timeout: 1s, type: EDS }
y: &more { type: STATIC, alt_stat_name: more }
a: { <<: *base, name: a }
b: { name: b, <<: [*base, *more], connect_timeout: 2s }
";
    // Through Struct, to see the merged keys themselves.
    let merged: Struct = from_yaml(yaml).unwrap();
    let value = to_json_value(&merged, Names::Proto).unwrap();
    assert_eq!(value["a"], json!({"connect_timeout": "1s", "name": "a", "type": "EDS"}));
    assert_eq!(value["b"], json!({"alt_stat_name": "more", "connect_timeout": "2s", "name": "b", "type": "EDS"}));
    assert!(errors::<Cluster>("<<: 5")[0].contains("merge key"));
    // JSON knows no merge keys.
    assert!(from_json_str::<Cluster>(r#"{"<<": {"name": "a"}}"#).is_err());
}

#[test]
fn unknown_fields_can_be_allowed() {
    let yaml = "
name: a
acme: 1
load_assignment: { endpoints: [{ acme: {} }] }
typed_extension_protocol_options:
  x: { '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, acme: [] }
";
    let parsed = from_yaml_with::<Cluster>(yaml, Options { allow_unknown_fields: true }).unwrap();
    assert_eq!(parsed.message.name, "a");
    let paths = ["acme", "load_assignment.endpoints[0].acme", "typed_extension_protocol_options[\"x\"].acme"];
    assert_eq!(parsed.ignored, paths);
    assert_eq!(errors::<Cluster>(yaml).len(), 3);
    let bad_enum = from_yaml_with::<Cluster>("{lb_policy: NOPE, acme: 1}", Options { allow_unknown_fields: true });
    assert_eq!(bad_enum.unwrap_err().len(), 1);
}

/// A value through JSON: what it becomes and how it is printed again; `None` when it is refused.
fn check<M: Message + Name + Default + PartialEq + fmt::Debug>(cases: &[(Value, Option<M>, Value)]) {
    for (value, message, printed) in cases {
        match (read::<M>(value.clone()), message) {
            (Ok(got), Some(wanted)) => {
                assert_eq!(got, *wanted, "{value}");
                assert_eq!(to_json_value(&got, Names::Proto).unwrap(), *printed, "{value}");
            }
            (Err(_), None) => {}
            (got, wanted) => panic!("{value}: expected {wanted:?}, got {got:?}"),
        }
    }
}

#[test]
fn numbers() {
    let u32s = |value| Some(UInt32Value { value });
    check(&[
        (json!(0), u32s(0), json!(0)),
        (json!(4_294_967_295u32), u32s(u32::MAX), json!(4_294_967_295u32)),
        (json!("8080"), u32s(8080), json!(8080)),
        (json!(5.0), u32s(5), json!(5)),
        (json!("1e3"), u32s(1000), json!(1000)),
        (json!(4_294_967_296u64), None, json!(null)),
        (json!(-1), None, json!(null)),
        (json!(1.5), None, json!(null)),
        (json!("+5"), u32s(5), json!(5)),
        (json!(" 5"), None, json!(null)),
        (json!(""), None, json!(null)),
        (json!(true), None, json!(null)),
        (json!([]), None, json!(null)),
    ]);
    let i64s = |value| Some(Int64Value { value });
    check(&[
        (json!("-9223372036854775808"), i64s(i64::MIN), json!("-9223372036854775808")),
        (json!(9_007_199_254_740_993i64), i64s(9_007_199_254_740_993), json!("9007199254740993")),
        (json!("9223372036854775808"), None, json!(null)),
        (json!(1e19), None, json!(null)),
    ]);
    check(&[(json!("18446744073709551615"), Some(UInt64Value { value: u64::MAX }), json!("18446744073709551615"))]);
    let doubles = |value| Some(DoubleValue { value });
    check(&[
        (json!(0.1), doubles(0.1), json!(0.1)),
        (json!(50), doubles(50.0), json!(50)),
        (json!("Infinity"), doubles(f64::INFINITY), json!("Infinity")),
        (json!("-Infinity"), doubles(f64::NEG_INFINITY), json!("-Infinity")),
        (json!("1.5"), doubles(1.5), json!(1.5)),
        (json!("inf"), None, json!(null)),
        (json!("nan"), None, json!(null)),
        (json!("1e999"), None, json!(null)),
    ]);
    assert!(read::<DoubleValue>(json!("NaN")).unwrap().value.is_nan());
    let floats = |value| Some(FloatValue { value });
    check(&[(json!(0.1), floats(0.1), json!(0.1)), (json!(1e39), None, json!(null))]);
    check(&[
        (json!(true), Some(BoolValue { value: true }), json!(true)),
        (json!("true"), Some(BoolValue { value: true }), json!(true)),
        (json!(1), None, json!(null)),
    ]);
}

#[test]
fn yaml_booleans_and_special_numbers() {
    for (yaml, value) in [("yes", true), ("on", true), ("Off", false), ("n", false), ("true", true)] {
        assert_eq!(from_yaml::<BoolValue>(yaml).unwrap().value, value, "{yaml}");
    }
    assert!(from_yaml::<BoolValue>("maybe").is_err());
    assert!(from_yaml::<BoolValue>("1").is_err());
    assert_eq!(from_yaml::<DoubleValue>(".5").unwrap().value, 0.5);
    assert!(from_yaml::<DoubleValue>(".inf").is_err());
    assert_eq!(from_yaml::<StringValue>("'5'").unwrap().value, "5");
}

#[test]
fn text_and_bytes() {
    let bytes = |value: &[u8]| Some(BytesValue { value: value.to_vec() });
    check(&[
        (json!("+/8="), bytes(&[0xfb, 0xff]), json!("+/8=")),
        (json!("-_8="), bytes(&[0xfb, 0xff]), json!("+/8=")),
        (json!("-_8"), bytes(&[0xfb, 0xff]), json!("+/8=")),
        (json!(""), bytes(&[]), json!("")),
        (json!("a"), None, json!(null)),
        (json!("%%%%"), None, json!(null)),
        (json!(5), None, json!(null)),
    ]);
    check(&[(json!("ä\u{0}"), Some(StringValue { value: "ä\u{0}".into() }), json!("ä\u{0}"))]);
}

#[test]
fn times() {
    check(&[
        (json!("5s"), Some(Duration { seconds: 5, nanos: 0 }), json!("5s")),
        (json!("-0.5s"), Some(Duration { seconds: 0, nanos: -500_000_000 }), json!("-0.500s")),
        (json!("5"), None, json!(null)),
        (json!({"seconds": 5}), Some(Duration { seconds: 5, nanos: 0 }), json!("5s")),
        (json!({"second": 5}), None, json!(null)),
    ]);
    check(&[
        (
            json!("1970-01-01T00:00:01.5Z"),
            Some(Timestamp { seconds: 1, nanos: 500_000_000 }),
            json!("1970-01-01T00:00:01.500Z"),
        ),
        (json!("yesterday"), None, json!(null)),
    ]);
    let far = Duration { seconds: i64::MAX, nanos: 0 };
    assert_eq!(to_json_value(&far, Names::Proto), Err(PrintError::OutOfRange("google.protobuf.Duration")));
}

#[test]
fn dynamic_values() {
    let value = json!({"a": null, "b": [1, "x", {"c": true}, []], "d": {}, "e": -1.5});
    let parsed: Struct = read(value.clone()).unwrap();
    assert_eq!(parsed.fields["a"].kind, Some(Kind::NullValue(0)));
    assert_eq!(to_json_value(&parsed, Names::Proto).unwrap(), value);
    let list: ListValue = read(json!([null, 1])).unwrap();
    assert_eq!(list.values.len(), 2);
    assert_eq!(read::<ProtoValue>(json!(null)).unwrap().kind, Some(Kind::NullValue(0)));
    let metadata: Metadata = read(json!({"filterMetadata": {"envoy.lb": {"v": 1}, "a": {}}})).unwrap();
    assert_eq!(
        to_json_value(&metadata, Names::Proto).unwrap().to_string(),
        r#"{"filter_metadata":{"a":{},"envoy.lb":{"v":1}}}"#
    );
}

#[test]
fn any_of_every_sort() {
    let url = |name: &str| format!("type.googleapis.com/google.protobuf.{name}");
    let duration = json!({"@type": url("Duration"), "value": "1.500s"});
    let any: Any = read(duration.clone()).unwrap();
    assert_eq!(crate::any::unpack::<Duration>(&any).unwrap(), Duration { seconds: 1, nanos: 500_000_000 });
    assert_eq!(to_json_value(&any, Names::Proto).unwrap(), duration);

    let nested = json!({"@type": url("Any"), "value": {"@type": url("Struct"), "value": {"value": 1}}});
    let any: Any = read(nested.clone()).unwrap();
    assert_eq!(to_json_value(&any, Names::Proto).unwrap(), nested);

    assert_eq!(read::<Any>(json!({})).unwrap(), Any::default());
    assert_eq!(to_json_value(&Any::default(), Names::Proto).unwrap(), json!({}));
    let last = json!({"name": "c", "@type": crate::type_url::CLUSTER});
    assert_eq!(crate::any::unpack::<Cluster>(&read(last).unwrap()).unwrap().name, "c");

    for (bad, place) in [
        (json!({"@type": url("Duration")}), ""),
        (json!({"@type": url("Duration"), "seconds": 1}), "seconds"),
        (json!({"@type": url("Duration"), "value": 5}), "value"),
        (json!({"@type": "envoy.config.cluster.v3.Cluster"}), "@type"),
        (json!({"@type": "type.googleapis.com/"}), "@type"),
        (json!("x"), ""),
    ] {
        assert_eq!(read::<Any>(bad.clone()).unwrap_err()[0].path, place, "{bad}");
    }

    for (type_url, value) in
        [("type.googleapis.com/acme.Nope", b"abc".to_vec()), (crate::type_url::CLUSTER, vec![0x0a, 0x09])]
    {
        let opaque = Any { type_url: type_url.into(), value: value.clone() };
        let printed = to_json_value(&opaque, Names::Proto).unwrap();
        assert_eq!(printed, json!({"@type": type_url, "value": scalar::print_bytes(&value)}));
    }
}

#[test]
fn prints_as_envoy_does() {
    let cluster: Cluster = from_yaml(
        "
name: backend
type: STRICT_DNS
lb_policy: LEAST_REQUEST
connect_timeout: 0.25s
per_connection_buffer_limit_bytes: 32768
common_lb_config: { healthy_panic_threshold: { value: 50 } }
load_assignment:
  cluster_name: backend
  endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: b, port_value: 80 } } } }] }]
",
    )
    .unwrap();
    let printed = to_json_value(&cluster, Names::Proto).unwrap();
    assert_eq!(
        printed,
        json!({
            "name": "backend", "type": "STRICT_DNS", "lb_policy": "LEAST_REQUEST", "connect_timeout": "0.250s",
            "per_connection_buffer_limit_bytes": 32768, "common_lb_config": {"healthy_panic_threshold": {"value": 50}},
            "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "b", "port_value": 80}}}}]}]},
        })
    );
    let camel = to_json_value(&cluster, Names::LowerCamelCase).unwrap();
    assert_eq!(camel["connectTimeout"], "0.250s");
    assert_eq!(from_yaml::<Cluster>(&to_yaml(&cluster, Names::Proto).unwrap()).unwrap(), cluster);
}

#[test]
fn reads_the_wire_as_prost_would() {
    use crate::wire::{put_bytes, put_tag, put_varint};
    let name = "envoy.config.route.v3.RouteConfiguration";
    // A scalar sent twice: the last wins. A message sent in parts: merged. A field nobody knows: passed over.
    let mut wire = Vec::new();
    put_bytes(&mut wire, 1, b"first");
    put_bytes(&mut wire, 9_999, b"?");
    put_bytes(&mut wire, 1, b"last");
    let (mut a, mut b) = (Vec::new(), Vec::new());
    put_tag(&mut a, 1, 0);
    put_varint(&mut a, 1);
    put_tag(&mut b, 1, 0);
    put_varint(&mut b, 0);
    put_bytes(&mut wire, 7, &a);
    put_bytes(&mut wire, 7, &b);
    let decoded = RouteConfiguration::decode(wire.as_slice()).unwrap();
    assert_eq!(wire_to_json_value(name, &wire, Names::Proto).unwrap(), to_json_value(&decoded, Names::Proto).unwrap());
    assert_eq!(wire_to_json_value("acme.Nope", &[], Names::Proto), Err(PrintError::UnknownType));
    assert_eq!(wire_to_json_value(name, &[0x0a, 0x05], Names::Proto), Err(PrintError::Malformed));
}

#[test]
fn deep_nesting_is_an_error() {
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    assert!(from_json_str::<ProtoValue>(&nested(40)).is_ok());
    let error = from_json_str::<ProtoValue>(&nested(60)).unwrap_err();
    assert!(error[0].reason.contains("nested deeper"), "{error:?}");
    assert!(from_json_str::<ProtoValue>(&nested(100_000)).unwrap_err()[0].reason.contains("recursion limit"));
    assert!(from_yaml::<ProtoValue>(&nested(100_000)).is_err());
    let mut value = json!(1);
    for _ in 0..1_000 {
        value = json!([value]);
    }
    assert!(from_json_value::<ProtoValue>(&value).is_err());
    // As deep as prost decodes and one level more, so that the two limits stay the same.
    for levels in 45..55 {
        if let Err(errors) = from_json_str::<ProtoValue>(&nested(levels)) {
            assert!(!errors[0].reason.contains("cannot decode"), "{levels}: {errors:?}");
        }
    }
    let mut bytes = Vec::new();
    for _ in 0..1_000 {
        let mut outer = Vec::new();
        crate::wire::put_bytes(&mut outer, 1, b"type.googleapis.com/google.protobuf.Any");
        crate::wire::put_bytes(&mut outer, 2, &bytes);
        bytes = outer;
    }
    assert!(wire_to_json_value("google.protobuf.Any", &bytes, Names::Proto).is_ok(), "the depth is kept as base64");
}

/// Random damage to documents and encoded messages: any answer will do, but for a panic and for a message that does not
/// survive its own JSON.
#[test]
fn hostile_input_is_answered() {
    let yaml = "
name: l
address: { socket_address: { address: 0.0.0.0, port_value: 80 } }
metadata: { filter_metadata: { a: { b: [1, null, 'x'] } } }
filter_chains:
- filters:
  - name: t
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: s
      idle_timeout: 1.5s
      weighted_clusters: { clusters: [{ name: a, weight: 1 }] }
listener_filters_timeout: 5s
per_connection_buffer_limit_bytes: 5
";
    let listener: Listener = from_yaml(yaml).unwrap();
    let json = to_json_value(&listener, Names::Proto).unwrap().to_string();
    let wire = listener.encode_to_vec();
    // xorshift with a fixed seed: the same cases on every run.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut read, mut printed) = (0, 0);
    for _ in 0..5_000 {
        let mut text = json.clone().into_bytes();
        let mut bytes = wire.clone();
        let mut block = yaml.to_owned().into_bytes();
        for damaged in [&mut text, &mut bytes, &mut block] {
            for _ in 0..=random(3) {
                let at = random(damaged.len());
                match random(4) {
                    0 => damaged[at] = random(256) as u8,
                    1 => damaged.truncate(at.max(1)),
                    2 => damaged[at] = b"\"{}[]:,0919-e.sn&*!|>%@`'#?\n  \t"[random(31)],
                    _ => {
                        let piece = damaged[at..(at + random(20)).min(damaged.len())].to_vec();
                        damaged.splice(at..at, piece);
                    }
                }
            }
        }
        for text in [&text, &block].into_iter().filter_map(|text| std::str::from_utf8(text).ok()) {
            for message in [from_json_str::<Listener>(text), from_yaml(text)].into_iter().flatten() {
                read += 1;
                let value = to_json_value(&message, Names::Proto).unwrap();
                assert_eq!(from_json_value::<Listener>(&value).unwrap(), message, "{text}");
            }
        }
        let name = "envoy.config.listener.v3.Listener";
        printed += usize::from(wire_to_json_value(name, &bytes, Names::Proto).is_ok());
        let _ = crate::walk::set_fields(name, &bytes);
        let _ = crate::walk::unknown_fields(name, &bytes, 10);
    }
    assert!(read > 100 && printed > 100, "{read} read, {printed} printed: the damage leaves too little to test");
}

/// Verdicts of Envoy 1.40.0 (`--mode validate`) on how a value is written, and ours where it is stricter by intent.
#[test]
fn accepts_what_envoy_accepts() {
    let cases = [
        ("type: static", true),
        ("type: strict-dns", false),
        ("type: 0", true),
        ("type: 0.0", false),
        ("type: '00'", true),
        ("ignore_health_on_host_removal: on", true),
        ("ignore_health_on_host_removal: 'yes'", true),
        ("ignore_health_on_host_removal: 1", false),
        ("name: on", false),
        ("name: 0x1F", false),
        ("name: 0755", false),
        ("name: 1.5", true),
        ("name: 1e3", true),
        ("name: .inf", true),
        ("name: 2024-01-01", true),
        ("name: 99999999999999999999", true),
        ("name: ~", true),
        ("per_connection_buffer_limit_bytes: 5.0", true),
        ("per_connection_buffer_limit_bytes: 5.5", false),
        ("per_connection_buffer_limit_bytes: 1e3", true),
        ("per_connection_buffer_limit_bytes: '010'", true),
        ("per_connection_buffer_limit_bytes: 1_000", false),
        ("per_connection_buffer_limit_bytes: ' 5'", false),
        ("per_connection_buffer_limit_bytes: true", false),
        ("per_connection_buffer_limit_bytes: { value: 5 }", true),
        ("connect_timeout: 5", false),
        ("connect_timeout: 500ms", false),
        ("connect_timeout: .5s", false),
        ("connect_timeout: 0.1234567890s", false),
        ("connect_timeout: { seconds: 5 }", true),
        ("connect_timeout: null", true),
        ("transport_socket_matches: { name: a }", true),
        ("transport_socket_matches: [null]", false),
        ("{ type: STATIC, cluster_type: { name: x } }", false),
        ("{ type: STATIC, cluster_type: null }", true),
        ("foo: null", false),
        ("Name: a", false),
        ("transport_socket: { typed_config: { a: 1 } }", false),
        ("common_lb_config: { healthy_panic_threshold: { value: .5 } }", true),
        ("common_lb_config: { healthy_panic_threshold: { value: .inf } }", false),
        // Envoy takes these, dropping one of two values in silence.
        ("{ name: a, name: b }", false),
        ("{ connect_timeout: 1s, connectTimeout: 2s }", false),
        ("typed_extension_protocol_options: { a: null }", false),
    ];
    for (yaml, accepted) in cases {
        let read = from_yaml::<Cluster>(yaml);
        assert_eq!(read.is_ok(), accepted, "{yaml}: {read:?}");
    }
    let number = |text| from_yaml::<UInt32Value>(text).unwrap().value;
    assert_eq!((number("0644"), number("'010'"), number("08"), number("0x10")), (420, 10, 8, 16));
}

/// What is printed as YAML is read by Envoy's rules, in which more text than usual needs quotes.
#[test]
fn printed_yaml_keeps_text_as_text() {
    let text = [
        "on",
        "y",
        "N",
        "yes",
        "OFF",
        "true",
        "null",
        "~",
        "",
        " ",
        "5",
        "-5",
        "+5",
        "0755",
        "08",
        "0x1F",
        "0o17",
        "1.5",
        "1e3",
        ".inf",
        "1_000",
        "a: b",
        "a #b",
        "- a",
        "[a",
        "{a",
        "'a'",
        "\"a\"",
        "a\nb\n",
        "a\n",
        "\ta",
        "%a",
        "@a",
        "`a",
        "!a",
        "&a",
        "*a",
        "|",
        ">",
        "---",
        "...",
        "=",
        "a\u{7f}\u{85}\u{2028}b",
        "\u{feff}",
        "ä",
        "9007199254740993",
        "a\r\nb",
        " a ",
        "2024-01-01",
        "a\n  b\n",
        "\n",
        "\n a",
    ];
    for text in text {
        let value = json!({"k": text, text: "v", "l": [text, {text: [text]}]});
        let message: Struct = read(value).unwrap();
        let yaml = to_yaml(&message, Names::Proto).unwrap();
        let again = from_yaml::<Struct>(&yaml).unwrap_or_else(|e| panic!("{text:?}: {e:?}\n{yaml}"));
        assert_eq!(again, message, "{text:?}\n{yaml}");
    }
}
