#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use http::StatusCode;
use shika_data::model::http_filter::{AbortWith, LocalRateLimit as Limit};

use super::*;
use crate::{
    compile::testing::{compiler, yaml},
    compiler::Compiler,
};

const GZIP: &str = "{ name: text, typed_config: { '@type': type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip } }";

fn typed(kind: &str, rest: &str) -> String {
    let comma = if rest.is_empty() { "" } else { ", " };
    format!("{{ '@type': type.googleapis.com/envoy.extensions.filters.http.{kind}{comma}{rest} }}")
}

/// With the clusters that the filters here name.
fn with_clusters() -> Compiler {
    let mut compiler = compiler();
    for name in ["service", "c"] {
        compiler.cluster_update(&yaml(&format!("{{ name: {name}, type: STATIC }}")), true, Instant::now()).unwrap();
    }
    compiler
}

fn compiled(text: &str) -> Compiled<HttpFilter> {
    let from: proto::HttpFilter = yaml(text);
    with_clusters().with_context(|context, _| filter(context, &from, "ingress"))
}

fn named(name: &str, config: &str) -> Compiled<HttpFilter> {
    compiled(&format!("{{ name: {name}, typed_config: {config} }}"))
}

fn on_route(config: &str) -> Compiled<FilterSettings> {
    let host: shika_proto::envoy::config::route::v3::VirtualHost =
        yaml(&format!("{{ typed_per_filter_config: {{ a.filter: {config} }} }}"));
    with_clusters().with_context(|context, _| settings(context, &host.typed_per_filter_config))
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

const GRPC: &str = "grpc_service: { envoy_grpc: { cluster_name: service } }, transport_api_version: V3";

#[test]
fn statistics_of_grpc_methods() {
    use shika_data::model::http_filter::GrpcMethods;
    let methods = |rest: &str| {
        named("g", &typed("grpc_stats.v3.FilterConfig", rest)).map(|filter| match filter.kind {
            HttpFilterKind::GrpcStats(stats) => stats.methods,
            other => panic!("{other:?}"),
        })
    };
    assert!(matches!(methods("emit_filter_state: true").unwrap(), GrpcMethods::Listed(list) if list.is_empty()));
    assert!(matches!(methods("stats_for_all_methods: false").unwrap(), GrpcMethods::Listed(list) if list.is_empty()));
    let all = methods("stats_for_all_methods: true, replace_dots_in_grpc_service_name: true").unwrap();
    assert!(matches!(all, GrpcMethods::All { replace_dots: true }));
    let list =
        methods("individual_method_stats_allowlist: { services: [{ name: a.B, method_names: [C, D] }] }").unwrap();
    assert!(
        matches!(list, GrpcMethods::Listed(list) if list == [("a.B".into(), "C".into()), ("a.B".into(), "D".into())])
    );
    for (rest, path) in [
        ("replace_dots_in_grpc_service_name: true", "typed_config.replace_dots_in_grpc_service_name"),
        (
            "individual_method_stats_allowlist: { services: [{ name: a }] }",
            "typed_config.individual_method_stats_allowlist.services[0].method_names",
        ),
    ] {
        assert_eq!(methods(rest).unwrap_err().path, path);
    }
}

#[test]
fn filters_that_hold_or_answer_requests() {
    let kind = |kind: &str, rest: &str| named("f", &typed(kind, rest)).map(|filter| filter.kind);
    assert!(matches!(kind("buffer.v3.Buffer", "max_request_bytes: 7").unwrap(), HttpFilterKind::Buffer { limit: 7 }));
    let check = match kind("health_check.v3.HealthCheck", "pass_through_mode: true, cache_time: 1s").unwrap() {
        HttpFilterKind::HealthCheck(check) => check,
        other => panic!("{other:?}"),
    };
    assert!(check.pass_through && check.cache.is_some() && check.headers.is_empty());
    for (message, rest, path) in [
        ("buffer.v3.Buffer", "", "typed_config.max_request_bytes"),
        ("buffer.v3.Buffer", "max_request_bytes: 0", "typed_config.max_request_bytes"),
        ("health_check.v3.HealthCheck", "", "typed_config.pass_through_mode"),
        ("health_check.v3.HealthCheck", "pass_through_mode: false, cache_time: 1s", "typed_config.cache_time"),
        (
            "health_check.v3.HealthCheck",
            "pass_through_mode: true, cluster_min_healthy_percentages: { c: { value: 1 } }",
            "typed_config.cluster_min_healthy_percentages",
        ),
        (
            "health_check.v3.HealthCheck",
            "pass_through_mode: false, cluster_min_healthy_percentages: { c: { value: 101 } }",
            "typed_config.cluster_min_healthy_percentages[\"c\"].value",
        ),
    ] {
        assert_eq!(kind(message, rest).unwrap_err().path, path);
    }
}

#[test]
fn a_rate_limit_with_its_defaults() {
    use shika_data::model::ratelimit::AsksFor;
    let limit = |rest: &str| {
        let config = typed("ratelimit.v3.RateLimit", &format!("domain: d, rate_limit_service: {{ {GRPC} }}{rest}"));
        named("limit", &config).map(|filter| match filter.kind {
            HttpFilterKind::RateLimit(limit) => limit,
            other => panic!("{other:?}"),
        })
    };
    let plain = limit("").unwrap();
    assert_eq!((&*plain.domain, &*plain.stat_prefix, plain.stage, plain.asks_for), ("d", "", 0, AsksFor::Both));
    assert_eq!(
        (plain.status, plain.status_on_error),
        (StatusCode::TOO_MANY_REQUESTS, StatusCode::INTERNAL_SERVER_ERROR)
    );
    assert_eq!((plain.enabled.numerator, plain.enforced.numerator, plain.failure_mode_deny), (100, 100, false));
    assert_eq!(plain.service.timeout.unwrap().as_millis(), 20);
    assert_eq!((&*plain.service.name, plain.service.authority.to_str().unwrap()), ("service", "service"));
    assert!(limit(", timeout: 0s").unwrap().service.timeout.is_none());
    let set = limit(", timeout: 1s, stat_prefix: p, request_type: internal, rate_limited_status: { code: NotFound }")
        .unwrap();
    assert_eq!((&*set.stat_prefix, set.asks_for, set.status.as_u16()), ("p.", AsksFor::Internal, 404));
    for (rest, path) in [
        (", request_type: some", "typed_config.request_type"),
        (", stage: 11", "typed_config.stage"),
        (", rate_limits: [{ actions: [{ remote_address: {} }], stage: 1 }]", "typed_config.rate_limits[0].stage"),
        (
            ", rate_limits: [{ actions: [{ remote_address: {} }], hits_addend: { format: '%BYTES_RECEIVED%' } }]",
            "typed_config.rate_limits[0].hits_addend.format",
        ),
    ] {
        assert_eq!(limit(rest).unwrap_err().path, path);
    }
    let unknown = compiler().with_context(|context, _| {
        let from = yaml(&format!(
            "{{ name: l, typed_config: {} }}",
            typed("ratelimit.v3.RateLimit", &format!("domain: d, rate_limit_service: {{ {GRPC} }}"))
        ));
        filter(context, &from, "ingress")
    });
    let unknown = unknown.unwrap_err();
    assert_eq!(unknown.path, "typed_config.rate_limit_service.grpc_service.envoy_grpc.cluster_name");
    assert_eq!(unknown.reason, "Unknown gRPC client cluster 'service'");
}

#[test]
fn the_rules_of_routes() {
    let rules = |text: &str| {
        let from: shika_proto::envoy::config::route::v3::RouteAction = yaml(text);
        compiler().with_context(|context, _| ratelimit::of_route(context, &from))
    };
    assert!(rules("{ cluster: c }").unwrap().is_none());
    let route = rules("{ cluster: c, include_vh_rate_limits: true, rate_limits: [{ stage: 3, actions: [{ generic_key: { descriptor_value: v } }, { masked_remote_address: { v4_prefix_mask_len: 8 } }], limit: { rate_limit: { requests_per_unit: 5, unit: HOUR } } }] }").unwrap().unwrap();
    assert!(route.include_host);
    let rule = route.rules.first().unwrap();
    assert_eq!((rule.stage, rule.actions.len(), rule.limit, rule.hits), (3, 2, Some((5, 3)), None));
    for (rule, path) in [
        ("{ actions: [] }", "rate_limits[0].actions"),
        ("{ actions: [{}] }", "rate_limits[0].actions[0].action_specifier"),
        ("{ actions: [{ generic_key: {} }] }", "rate_limits[0].actions[0].generic_key.descriptor_value"),
        (
            "{ actions: [{ request_headers: { header_name: x } }] }",
            "rate_limits[0].actions[0].request_headers.descriptor_key",
        ),
        (
            "{ actions: [{ header_value_match: { descriptor_value: v } }] }",
            "rate_limits[0].actions[0].header_value_match.headers",
        ),
        (
            "{ actions: [{ masked_remote_address: { v4_prefix_mask_len: 33 } }] }",
            "rate_limits[0].actions[0].masked_remote_address.v4_prefix_mask_len",
        ),
        ("{ actions: [{ remote_address: {} }], apply_on_stream_done: true }", "rate_limits[0].apply_on_stream_done"),
        ("{ actions: [{ remote_address: {} }], hits_addend: { number: 2 } }", "rate_limits[0].hits_addend"),
        ("{ actions: [{ remote_address: {} }], limit: {} }", "rate_limits[0].limit.override_specifier"),
    ] {
        assert_eq!(rules(&format!("{{ cluster: c, rate_limits: [{rule}] }}")).unwrap_err().path, path, "{rule}");
    }
}

#[test]
fn an_authorization_with_its_defaults() {
    use shika_data::model::ext_authz::AuthzService;
    let authz = |rest: &str| {
        named("authz", &typed("ext_authz.v3.ExtAuthz", rest)).map(|filter| match filter.kind {
            HttpFilterKind::ExtAuthz(authz) => authz,
            other => panic!("{other:?}"),
        })
    };
    let plain = authz(GRPC).unwrap();
    let AuthzService::Grpc(service) = &plain.service else { panic!("{plain:?}") };
    assert_eq!(service.timeout.unwrap().as_millis(), 200);
    assert_eq!(
        (plain.status_on_error, plain.failure_mode_allow, plain.charge_cluster),
        (StatusCode::FORBIDDEN, false, true)
    );
    assert!(plain.allowed_headers.is_none() && plain.body.is_none());
    let http =
        "transport_api_version: V3, http_service: { server_uri: { uri: x, cluster: c, timeout: 1s }, path_prefix: /p }";
    assert!(matches!(&authz(http).unwrap().service, AuthzService::Http(http) if &*http.path_prefix == "/p"));
    for (rest, path) in [
        ("transport_api_version: V3".to_owned(), "typed_config.services"),
        ("grpc_service: { envoy_grpc: { cluster_name: c } }".to_owned(), "typed_config.transport_api_version"),
        (format!("{GRPC}, with_request_body: {{}}"), "typed_config.with_request_body.max_request_bytes"),
        (format!("{GRPC}, status_on_error: {{ code: 999 }}"), "typed_config.status_on_error.code"),
        (
            "http_service: { server_uri: { uri: x, cluster: c } }".to_owned(),
            "typed_config.http_service.server_uri.timeout",
        ),
        (
            "http_service: { server_uri: { uri: x, cluster: c, timeout: 1s }, path_prefix: p }".to_owned(),
            "typed_config.http_service.path_prefix",
        ),
        (
            "transport_api_version: V3, grpc_service: { google_grpc: { target_uri: x, stat_prefix: s } }".to_owned(),
            "typed_config.grpc_service.google_grpc",
        ),
    ] {
        assert_eq!(authz(&rest).unwrap_err().path, path);
    }
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
        (typed("buffer.v3.BufferPerRoute", "disabled: true"), "Disabled"),
        (typed("buffer.v3.BufferPerRoute", "buffer: { max_request_bytes: 1 }"), "Buffer"),
        (typed("ratelimit.v3.RateLimitPerRoute", "vh_rate_limits: INCLUDE"), "RateLimit"),
        (typed("ext_authz.v3.ExtAuthzPerRoute", "disabled: true"), "Disabled"),
        (typed("ext_authz.v3.ExtAuthzPerRoute", "check_settings: { context_extensions: { a: b } }"), "ExtAuthz"),
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
        (
            typed(
                "header_mutation.v3.HeaderMutationPerRoute",
                "mutations: { query_parameter_mutations: [{ append: { record: { key: a, value: 1 } } }] }",
            ),
            at(".mutations.query_parameter_mutations[0].append.record.value"),
            "only a string is allowed",
        ),
        (typed("buffer.v3.BufferPerRoute", ""), at(".override"), "value is required"),
        (
            typed("ratelimit.v3.RateLimitPerRoute", "override_option: IGNORE_POLICY"),
            at(".override_option"),
            "is not supported; use vh_rate_limits",
        ),
        (
            typed(
                "ext_authz.v3.ExtAuthzPerRoute",
                "check_settings: { grpc_service: { envoy_grpc: { cluster_name: c } } }",
            ),
            at(".check_settings.grpc_service"),
            "a route cannot ask another service",
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
        compiler().with_context(|context, _| network::local_rate_limit(context, &config))
    };
    assert_eq!(
        limit("{ stat_prefix: p, token_bucket: { max_tokens: 22, fill_interval: 22s } }").unwrap().bucket.max(),
        22
    );
    assert_eq!(limit("{ stat_prefix: p }").unwrap_err().path, "token_bucket");
    let state = |rule: &str| {
        let config: shika_proto::envoy::extensions::filters::network::set_filter_state::v3::Config =
            yaml(&format!("{{ on_downstream_tls_handshake: [{rule}] }}"));
        compiler().with_context(|context, _| network::set_filter_state(context, &config))
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
