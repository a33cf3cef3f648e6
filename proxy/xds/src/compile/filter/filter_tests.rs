#![allow(clippy::unwrap_used, clippy::panic)]

use http::StatusCode;
use shika_data::model::http_filter::{AbortWith, LocalRateLimit as Limit};

use super::*;
use crate::compile::testing::{compiler, yaml};

const GZIP: &str = "{ name: text, typed_config: { '@type': type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip } }";

fn typed(kind: &str, rest: &str) -> String {
    let comma = if rest.is_empty() { "" } else { ", " };
    format!("{{ '@type': type.googleapis.com/envoy.extensions.filters.http.{kind}{comma}{rest} }}")
}

fn compiled(text: &str) -> Compiled<HttpFilter> {
    let from: proto::HttpFilter = yaml(text);
    compiler().with_context(&|_| true, |context, _| filter(context, &from, "ingress"))
}

fn named(name: &str, config: &str) -> Compiled<HttpFilter> {
    compiled(&format!("{{ name: {name}, typed_config: {config} }}"))
}

fn on_route(config: &str) -> Compiled<FilterSettings> {
    let host: shika_proto::envoy::config::route::v3::VirtualHost =
        yaml(&format!("{{ typed_per_filter_config: {{ a.filter: {config} }} }}"));
    compiler().with_context(&|_| true, |context, _| settings(context, &host.typed_per_filter_config))
}

fn limit(rest: &str) -> Compiled<Arc<Limit>> {
    let config = typed("local_ratelimit.v3.LocalRateLimit", &format!("stat_prefix: rl, {rest}"));
    named("limit", &config).map(|filter| match filter.kind {
        HttpFilterKind::LocalRateLimit(limit) => limit,
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_local_rate_limit_with_its_defaults() {
    let idle = limit("").unwrap();
    assert_eq!((idle.enabled.numerator, idle.enforced.numerator), (0, 0), "without filter_enabled it does nothing");
    assert_eq!(idle.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(idle.bucket.is_none());
    let bucket = "token_bucket: { max_tokens: 7, fill_interval: 10s }";
    for (status, expected) in [("NotFound", 404), ("OK", 429), ("Locked", 423)] {
        let limit = limit(&format!("{bucket}, status: {{ code: {status} }}, filter_enabled: {{ default_value: {{ numerator: 100 }}, runtime_key: k }}")).unwrap();
        assert_eq!(
            (limit.status.as_u16(), limit.bucket.as_ref().unwrap().max(), limit.enabled.numerator),
            (expected, 7, 100)
        );
    }
    for (rest, path, reason) in [
        (
            "token_bucket: { max_tokens: 1, fill_interval: 0.04s }",
            "typed_config.token_bucket.fill_interval",
            "local rate limit token bucket fill timer must be >= 50ms",
        ),
        (
            "token_bucket: { max_tokens: 0, fill_interval: 1s }",
            "typed_config.token_bucket.max_tokens",
            "value must be greater than 0",
        ),
        (
            "token_bucket: { max_tokens: 1, tokens_per_fill: 0, fill_interval: 1s }",
            "typed_config.token_bucket.tokens_per_fill",
            "value must be greater than 0",
        ),
        ("token_bucket: { max_tokens: 1 }", "typed_config.token_bucket.fill_interval", "value is required"),
        ("filter_enabled: { runtime_key: k }", "typed_config.filter_enabled.default_value", "value is required"),
    ] {
        let fault = limit(rest).unwrap_err();
        assert_eq!((fault.path.as_str(), fault.reason.as_str()), (path, reason));
    }
}

#[test]
fn faults() {
    let fault = |rest: &str| {
        named("fault", &typed("fault.v3.HTTPFault", rest)).map(|filter| match filter.kind {
            HttpFilterKind::Fault(fault) => fault,
            other => panic!("{other:?}"),
        })
    };
    let full = fault("delay: { fixed_delay: 5s, percentage: { numerator: 50 } }, abort: { grpc_status: 14, percentage: { numerator: 1, denominator: MILLION } }, response_rate_limit: { header_limit: {} }").unwrap();
    let settings = &full.settings;
    assert_eq!(settings.delay.unwrap().duration.unwrap().as_secs(), 5);
    assert_eq!(settings.abort.unwrap().with, AbortWith::Grpc(14));
    assert_eq!(settings.abort.unwrap().share.denominator, 1_000_000);
    assert_eq!((settings.rate.unwrap().kib_per_second, settings.rate.unwrap().share.numerator), (None, 0));
    for (rest, path, reason) in [
        (
            "abort: { http_status: 111 }",
            "typed_config.abort.http_status",
            "value must be inside range [200, 600), not 111",
        ),
        (
            "abort: { percentage: { numerator: 1 } }",
            "typed_config.abort",
            "one of http_status, grpc_status and header_abort is required",
        ),
        ("delay: { fixed_delay: 0s }", "typed_config.delay.fixed_delay", "value must be greater than 0s"),
        (
            "delay: { percentage: { numerator: 1 } }",
            "typed_config.delay",
            "one of fixed_delay and header_delay is required",
        ),
        (
            "response_rate_limit: { fixed_limit: {} }",
            "typed_config.response_rate_limit.fixed_limit.limit_kbps",
            "value must be greater than or equal to 1",
        ),
    ] {
        let refused = fault(rest).unwrap_err();
        assert_eq!((refused.path.as_str(), refused.reason.as_str()), (path, reason));
    }
}

#[test]
fn a_compressor_with_its_defaults() {
    let compressor = |rest: &str| {
        named("c", &typed("compressor.v3.Compressor", rest)).map(|filter| match filter.kind {
            HttpFilterKind::Compressor(compressor) => compressor,
            other => panic!("{other:?}"),
        })
    };
    let plain = compressor(&format!("compressor_library: {GZIP}, response_direction_config: {{}}")).unwrap();
    assert!(plain.enabled && !plain.disable_on_etag);
    assert_eq!((plain.min_content_length, plain.level, plain.content_types.len()), (30, 6, 20));
    let set = compressor(&format!("compressor_library: {GZIP}, response_direction_config: {{ common_config: {{ enabled: {{ default_value: false, runtime_key: k }}, min_content_length: 100, content_type: [Text/Html] }}, disable_on_etag_header: true }}")).unwrap();
    assert!(!set.enabled && set.disable_on_etag);
    assert_eq!((set.min_content_length, set.content_types.as_slice()), (100, ["text/html".into()].as_slice()));
    for (rest, path) in [
        (format!("compressor_library: {GZIP}"), "typed_config.response_direction_config"),
        ("response_direction_config: {}".into(), "typed_config.compressor_library"),
        (
            format!("compressor_library: {GZIP}, response_direction_config: {{ uncompressible_response_codes: [99] }}"),
            "typed_config.response_direction_config.uncompressible_response_codes[0]",
        ),
        (
            "compressor_library: { name: b, typed_config: { '@type': type.googleapis.com/envoy.extensions.compression.brotli.compressor.v3.Brotli } }, response_direction_config: {}".into(),
            "typed_config.compressor_library.typed_config",
        ),
    ] {
        assert_eq!(compressor(&rest).unwrap_err().path, path);
    }
}

/// Kuma's script is known by its words; Lua is not run.
#[test]
fn one_script_is_known() {
    let script = |name: &str, code: &str| {
        named(name, &typed("lua.v3.Lua", &format!("default_source_code: {{ inline_string: {code} }}")))
    };
    let known = r#""function envoy_on_request(handle)\n  local meta = handle:metadata():get(\"route_kri\")\n  if meta ~= nil then\n    handle:streamInfo():dynamicMetadata():set(\"kuma.routes\", \"route_kri\", meta)\n  end\nend\n""#;
    assert!(matches!(script(lua::NAME, known).unwrap().kind, HttpFilterKind::RouteKri(_)));
    assert_eq!(script("another", known).unwrap_err().path, "name");
    let other =
        script(lua::NAME, r#""function envoy_on_request(handle) handle:respond({[\":status\"] = \"200\"}, \"\") end""#)
            .unwrap_err();
    assert_eq!(other.path, "typed_config.default_source_code");
    assert!(other.reason.starts_with("Lua is not run"));
}

const MATCHED: &str = "extension_config: { name: fault, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault } }";

fn matching(matcher: &str) -> Compiled<HttpFilter> {
    named(
        "kri_fault",
        &format!(
            "{{ '@type': type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher, {MATCHED}, {matcher} }}"
        ),
    )
}

#[test]
fn a_filter_with_a_matcher_in_front() {
    let skip = "{ action: { name: skip, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter } } }";
    let sni = "{ not_matcher: { single_predicate: { input: { name: i, typed_config: { '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.ServerNameInput } }, value_match: { exact: a } } } }";
    let filter = matching(&format!(
        "xds_matcher: {{ matcher_list: {{ matchers: [{{ predicate: {sni}, on_match: {skip} }}] }} }}"
    ))
    .unwrap();
    assert!(matches!(filter.kind, HttpFilterKind::Fault(_)));
    let passed_by = |server_name: &str| {
        let subject = shika_data::model::rbac::Subject {
            peer: None,
            destination: None,
            remote: None,
            direct_remote: None,
            server_name,
            request: None,
        };
        filter.skip.iter().any(|predicate| predicate.matches(&subject))
    };
    assert_eq!((passed_by("a"), passed_by("b"), passed_by("")), (false, true, true));
    assert_eq!(matching(&format!("xds_matcher: {{ on_no_match: {skip} }}")).unwrap().skip.len(), 1);
    let deny =
        "{ action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: x } } }";
    for (matcher, path) in [
        (format!("xds_matcher: {{ on_no_match: {deny} }}"), "typed_config.xds_matcher.on_no_match.action.typed_config"),
        (
            format!("xds_matcher: {{ matcher_list: {{ matchers: [{{ predicate: {sni}, on_match: {deny} }}] }} }}"),
            "typed_config.xds_matcher.matcher_list.matchers[0].on_match.action.typed_config",
        ),
    ] {
        assert_eq!(matching(&matcher).unwrap_err().path, path);
    }
}

#[test]
fn what_a_route_says_about_filters() {
    let bucket = "stat_prefix: rl, token_bucket: { max_tokens: 1, fill_interval: 1s }";
    let config = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";
    let inner = typed("local_ratelimit.v3.LocalRateLimit", bucket);
    for (text, expected) in [
        (format!("{{ {config}, disabled: true }}"), "Disabled"),
        (inner.clone(), "LocalRateLimit"),
        (format!("{{ {config}, config: {inner} }}"), "LocalRateLimit"),
        (typed("fault.v3.HTTPFault", ""), "Fault"),
        (typed("rbac.v3.RBACPerRoute", ""), "Rbac"),
        (typed("compressor.v3.CompressorPerRoute", "disabled: true"), "Compressor"),
        (typed("cors.v3.CorsPolicy", "allow_origin_string_match: [{ exact: a }]"), "Cors"),
        (typed("header_mutation.v3.HeaderMutationPerRoute", ""), "HeaderMutation"),
    ] {
        let settings = on_route(&text).unwrap();
        assert!(settings.of("another").is_none());
        let said = format!("{:?}", settings.of("a.filter").unwrap());
        assert!(said.starts_with(expected), "{text}: {said}");
    }
    let at = |rest: &str| format!("typed_per_filter_config[\"a.filter\"]{rest}");
    for (text, path, reason) in [
        (
            typed("local_ratelimit.v3.LocalRateLimit", "stat_prefix: rl"),
            at(".token_bucket"),
            "local rate limit token bucket must be set for per filter configs",
        ),
        (format!("{{ {config} }}"), at(".config"), "value is required"),
        (
            typed("router.v3.Router", ""),
            at(""),
            "settings of type type.googleapis.com/envoy.extensions.filters.http.router.v3.Router are not supported for a route",
        ),
        (
            format!("{{ {config}, config: {} }}", typed("fault.v3.HTTPFault", "abort: { http_status: 1 }")),
            at(".config.abort.http_status"),
            "value must be inside range [200, 600), not 1",
        ),
        (typed("compressor.v3.CompressorPerRoute", ""), at(".override"), "value is required"),
        (
            typed("cors.v3.CorsPolicy", "allow_origin_string_match: [{ safe_regex: { regex: 'a(' } }]"),
            at(".allow_origin_string_match[0].safe_regex.regex"),
            "invalid regex 'a(': unclosed group",
        ),
        (
            typed(
                "header_mutation.v3.HeaderMutationPerRoute",
                "mutations: { request_mutations: [{ remove: ':path' }] }",
            ),
            at(".mutations.request_mutations[0].remove"),
            ":-prefixed or host headers may not be modified, but \":path\" is named",
        ),
    ] {
        let fault = on_route(&text).unwrap_err();
        assert_eq!((fault.path, fault.reason.as_str()), (path, reason));
    }
}

#[test]
fn the_network_filters() {
    let limit = |text: &str| {
        let config: shika_proto::envoy::extensions::filters::network::local_ratelimit::v3::LocalRateLimit = yaml(text);
        compiler().with_context(&|_| true, |context, _| network::local_rate_limit(context, &config))
    };
    assert_eq!(
        limit("{ stat_prefix: p, token_bucket: { max_tokens: 22, fill_interval: 22s } }").unwrap().bucket.max(),
        22
    );
    assert_eq!(limit("{ stat_prefix: p }").unwrap_err().path, "token_bucket");
    let state = |rule: &str| {
        let config: shika_proto::envoy::extensions::filters::network::set_filter_state::v3::Config =
            yaml(&format!("{{ on_downstream_tls_handshake: [{rule}] }}"));
        compiler().with_context(&|_| true, |context, _| network::set_filter_state(context, &config))
    };
    let text = "format_string: { text_format_source: { inline_string: '%DOWNSTREAM_PEER_URI_SAN%' } }";
    let rules =
        state(&format!("{{ object_key: k, factory_key: envoy.string, {text}, read_only: true, skip_if_empty: true }}"))
            .unwrap();
    let rule = rules.on_handshake.first().unwrap();
    assert_eq!((&*rule.key, rule.read_only, rule.skip_if_empty), ("k", true, true));
    for (rule, path) in [
        (format!("{{ object_key: k, {text} }}"), "on_downstream_tls_handshake[0].factory_key"),
        (
            format!("{{ object_key: k, factory_key: envoy.string, shared_with_upstream: ONCE, {text} }}"),
            "on_downstream_tls_handshake[0].shared_with_upstream",
        ),
        ("{ object_key: k, factory_key: envoy.string }".to_owned(), "on_downstream_tls_handshake[0].value"),
    ] {
        assert_eq!(state(&rule).unwrap_err().path, path);
    }
}
