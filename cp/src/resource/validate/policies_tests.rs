#![allow(clippy::unwrap_used)]

use crate::resource::{documents, parse, validate};

/// The violations of a policy with this specification, which may be followed by labels.
fn check(kind: &str, spec: &str, expected: &[&str]) {
    let yaml = format!("type: {kind}\nmesh: default\nname: p\nspec: {spec}");
    let parsed = parse(documents(&yaml).unwrap().remove(0)).unwrap();
    let found: Vec<String> = validate::resource(&parsed.resource).iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{yaml}");
    assert!(parsed.warnings.is_empty(), "{yaml}: {:?}", parsed.warnings);
}

#[test]
fn timeouts() {
    let kind = "MeshTimeout";
    let all = "{connectionTimeout: 10s, idleTimeout: 1h, http: {requestTimeout: 0s, streamIdleTimeout: 1h, maxStreamDuration: 1h, maxConnectionDuration: 1h}}";
    check(
        kind,
        &format!(
            "{{targetRef: {{kind: MeshService, name: web}}, from: [{{targetRef: {{kind: Mesh}}, default: {all}}}], \
             to: [{{targetRef: {{kind: MeshService, name: backend}}, default: {all}}}]}}"
        ),
        &[],
    );
    check(
        kind,
        "{targetRef: {kind: MeshHTTPRoute, name: r}, to: [{targetRef: {kind: Mesh}, default: {http: {requestTimeout: 1s}}}]}",
        &[],
    );
    check(
        kind,
        "{to: [{targetRef: {kind: MeshHTTPRoute, labels: {a: b}}, default: {http: {requestTimeout: 1s}}}]}",
        &[],
    );
    check(kind, "{targetRef: {kind: Dataplane, sectionName: http}, rules: [{default: {idleTimeout: 1s}}]}", &[]);
    check(kind, "{targetRef: {kind: Mesh}}", &["spec: at least one of 'from', 'to' or 'rules' has to be defined"]);
    check(
        kind,
        "{targetRef: {kind: Dataplane, sectionName: test}, to: [{targetRef: {kind: MeshServiceSubset}, default: {http: {requestTimeout: 1s}}}]}",
        &[
            "spec.targetRef.sectionName: can only be used with inbound policies",
            "spec.to[0].targetRef.kind: value 'MeshServiceSubset' is not supported",
        ],
    );
    check(
        kind,
        "{to: [{targetRef: {kind: MeshService, name: a}}]}",
        &["spec.to[0].default: at least one timeout should be configured"],
    );
    check(
        kind,
        "{to: [{targetRef: {kind: MeshService, name: a}, default: {connectionTimeout: -1s, http: {requestTimeout: -10s}}}]}",
        &[
            "spec.to[0].default.connectionTimeout: must be greater than zero when defined",
            "spec.to[0].default.http.requestTimeout: must not be negative when defined",
        ],
    );
    check(
        kind,
        "{to: [{targetRef: {kind: Mesh}, default: {http: {}}}]}",
        &["spec.to[0].default.http: at least one timeout in this section should be configured"],
    );
    check(
        kind,
        "{to: [{targetRef: {kind: MeshHTTPRoute, name: r, sectionName: s}, default: {http: {requestTimeout: 1s}}}]}",
        &["spec.to[0].targetRef.sectionName: must not be set with kind MeshHTTPRoute"],
    );
    check(
        kind,
        "{targetRef: {kind: MeshHTTPRoute, name: r}, to: [{targetRef: {kind: MeshService, name: a}, default: {connectionTimeout: 1s, idleTimeout: 1s, http: {maxStreamDuration: 1s, maxConnectionDuration: 1s}}}]}",
        &[
            "spec.to[0].targetRef.kind: value 'MeshService' is not supported",
            "spec.to[0].default.connectionTimeout: can't be specified when top-level TargetRef is referencing MeshHTTPRoute",
            "spec.to[0].default.idleTimeout: can't be specified when top-level TargetRef is referencing MeshHTTPRoute",
            "spec.to[0].default.http.maxStreamDuration: can't be specified when top-level TargetRef is referencing MeshHTTPRoute",
            "spec.to[0].default.http.maxConnectionDuration: can't be specified when top-level TargetRef is referencing MeshHTTPRoute",
        ],
    );
    check(
        kind,
        "{to: [{targetRef: {kind: Mesh}, default: {idleTimeout: 1s}}], rules: [{matches: [{}], default: {idleTimeout: 1s}}]}",
        &[
            "spec: fields 'to' and 'from' must be empty when 'rules' is defined",
            "spec.rules[0].matches[0]: must specify at least one of 'spiffeID' or 'sni'",
        ],
    );
    check(
        kind,
        "{rules: [{matches: [{spiffeID: {type: Exact, value: 'spiffe://a/b'}}], default: {idleTimeout: 1s}}]}",
        &[
            "spec.rules[0].default.idleTimeout: can't be specified when matches contain spiffeID because this field cannot be conditioned on source identity",
        ],
    );
    let yaml = "type: MeshTimeout\nmesh: default\nname: p\nlabels: {kuma.io/policy-role: consumer}\nspec: {targetRef: {kind: MeshHTTPRoute, name: r}, to: [{targetRef: {kind: Mesh}, default: {http: {requestTimeout: 1s}}}]}";
    let resource = parse(documents(yaml).unwrap().remove(0)).unwrap().resource;
    let found: Vec<String> = validate::resource(&resource).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["spec.targetRef.kind: value 'MeshHTTPRoute' is not supported"]);
}

#[test]
fn circuit_breakers() {
    let kind = "MeshCircuitBreaker";
    let outlier =
        |fields: &str| format!("{{to: [{{targetRef: {{kind: Mesh}}, default: {{outlierDetection: {{{fields}}}}}}}]}}");
    let at = "spec.to[0].default.outlierDetection";
    check(
        kind,
        &outlier(
            "disabled: false, interval: 5s, baseEjectionTime: 30s, maxEjectionPercent: 20, splitExternalAndLocalErrors: true, healthyPanicThreshold: '61.2', detectors: {totalFailures: {consecutive: 10}, successRate: {minimumHosts: 5, requestVolume: 10, standardDeviationFactor: '1.9'}, failurePercentage: {threshold: 85}}",
        ),
        &[],
    );
    check(
        kind,
        "{from: [{targetRef: {kind: Mesh}, default: {connectionLimits: {maxConnections: 2}}}], to: [{targetRef: {kind: MeshExternalService, name: a}, default: {connectionLimits: {maxRetries: 2}}}]}",
        &[],
    );
    check(kind, "{}", &["spec: at least one of 'from', 'to' or 'rules' has to be defined"]);
    check(
        kind,
        "{to: [{targetRef: {kind: MeshHTTPRoute, name: a}, default: {connectionLimits: {maxRetries: 0}}}]}",
        &[
            "spec.to[0].targetRef.kind: value 'MeshHTTPRoute' is not supported",
            "spec.to[0].default.connectionLimits.maxRetries: must be greater than 0",
        ],
    );
    check(
        kind,
        "{rules: [{default: {}}]}",
        &["spec.rules[0].default: at least one of: 'connectionLimits' or 'outlierDetection' should be configured"],
    );
    check(kind, &outlier("interval: 5s"), &[&format!("{at}.detectors: must be defined")]);
    check(
        kind,
        &outlier("detectors: {}"),
        &[&format!(
            "{at}.detectors: must have at least one defined: totalFailures, gatewayFailures, localOriginFailures, successRate, failurePercentage"
        )],
    );
    check(
        kind,
        &outlier(
            "interval: 0s, baseEjectionTime: -1s, maxEjectionPercent: 101, healthyPanicThreshold: '100.1', detectors: {totalFailures: {consecutive: 0}, successRate: {minimumHosts: 0, standardDeviationFactor: 'x'}, failurePercentage: {threshold: 101}}",
        ),
        &[
            &format!("{at}.interval: must be greater than zero when defined"),
            &format!("{at}.baseEjectionTime: must be greater than zero when defined"),
            &format!("{at}.maxEjectionPercent: must be in inclusive range [0, 100]"),
            &format!("{at}.healthyPanicThreshold: must be in inclusive range [0.0, 100.0]"),
            &format!("{at}.detectors.totalFailures.consecutive: must be greater than 0"),
            &format!("{at}.detectors.successRate.minimumHosts: must be greater than 0"),
            &format!("{at}.detectors.successRate.standardDeviationFactor: invalid number"),
            &format!("{at}.detectors.failurePercentage.threshold: must be in inclusive range [0, 100]"),
        ],
    );
}

#[test]
fn retries() {
    let kind = "MeshRetry";
    let retry = |conf: &str| format!("{{to: [{{targetRef: {{kind: Mesh}}, default: {conf}}}]}}");
    let at = "spec.to[0].default.conf";
    check(
        kind,
        &retry(
            "{tcp: {maxConnectAttempt: 5}, http: {numRetries: 0, perTryTimeout: 1s, backOff: {baseInterval: 1s, maxInterval: 2s}, \
             rateLimitedBackOff: {maxInterval: 1s, resetHeaders: [{name: retry-after, format: Seconds}]}, \
             retryOn: [5xx, GatewayError, HttpMethodGet, '429'], retriableRequestHeaders: [{type: Prefix, name: a, value: b}], \
             hostSelection: [{predicate: OmitPreviousHosts}, {predicate: OmitPreviousPriorities}], hostSelectionMaxAttempts: 3}, \
             grpc: {retryOn: [Canceled, Internal]}}",
        ),
        &[],
    );
    check(kind, &retry("{}"), &[&format!("{at}: at least one of the 'tcp', 'http', 'grpc' must be specified")]);
    check(
        kind,
        &retry("{tcp: {}, http: {}, grpc: {}}"),
        &[
            &format!("{at}.tcp: must not be empty"),
            &format!("{at}.http: must not be empty"),
            &format!("{at}.grpc: must not be empty"),
        ],
    );
    check(
        kind,
        &retry(
            "{tcp: {maxConnectAttempt: 0}, http: {backOff: {}, rateLimitedBackOff: {maxInterval: 0s}, retryOn: [5XX, '999', '306'], hostSelection: [{predicate: OmitHostsWithTags}, {predicate: OmitPreviousPriorities, updateFrequency: -1}, {predicate: OmitPreviousPriorities}]}, grpc: {retryOn: [Cancelled]}}",
        ),
        &[
            &format!("{at}.tcp.maxConnectAttempt: must be greater than 0"),
            &format!("{at}.http.backOff: must not be empty"),
            &format!("{at}.http.rateLimitedBackOff.maxInterval: must be defined and greater than zero"),
            &format!("{at}.http.rateLimitedBackOff.resetHeaders: must be defined"),
            &format!("{at}.http.retryOn[0]: unknown item '5XX'"),
            &format!("{at}.http.retryOn[1]: unknown item '999'"),
            &format!("{at}.http.retryOn[2]: unknown item '306'"),
            &format!("{at}.http.hostSelection[0].tags: must be defined"),
            &format!("{at}.http.hostSelection[1].updateFrequency: must be defined and greater than zero"),
            &format!("{at}.http.hostSelection[2].predicate: OmitPreviousPriorities must only be specified once"),
            &format!("{at}.grpc.retryOn[0]: unknown item 'Cancelled'"),
        ],
    );
    check(
        kind,
        "{targetRef: {kind: MeshHTTPRoute, name: r}, to: [{targetRef: {kind: MeshService, name: a}, default: {tcp: {maxConnectAttempt: 1}}}]}",
        &["spec.to[0].targetRef.kind: value 'MeshService' is not supported"],
    );
}

#[test]
fn routes() {
    let kind = "MeshHTTPRoute";
    let route = |rules: &str| format!("{{to: [{{targetRef: {{kind: MeshService, name: a}}, rules: [{rules}]}}]}}");
    let at = "spec.to[0].rules[0]";
    check(
        kind,
        &route(
            "{matches: [{path: {type: PathPrefix, value: /v1}, method: GET, headers: [{name: a, value: b}, {type: Absent, name: c}], \
             queryParams: [{type: RegularExpression, name: q, value: 'a.*'}]}], default: {filters: [\
             {type: URLRewrite, urlRewrite: {hostname: example.com, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}, \
             {type: RequestMirror, requestMirror: {percentage: '10.5', backendRef: {kind: MeshService, name: shadow, port: 80}}}, \
             {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}}], \
             backendRefs: [{kind: MeshService, name: b, weight: 90}, {kind: MeshServiceSubset, name: b, tags: {version: v1}, weight: 10}]}}",
        ),
        &[],
    );
    check(
        kind,
        "{to: [{targetRef: {kind: Mesh}, hostnames: [a.com], rules: []}]}",
        &["spec.to[0].targetRef.kind: value 'Mesh' is not supported", "spec.to[0].hostnames: must not be defined"],
    );
    check(
        kind,
        &route(
            "{matches: [{path: {type: PathPrefix, value: v1/}}, {path: {type: Exact, value: v1}}, {path: {type: RegularExpression, value: '('}}, {headers: [{type: Present, name: a, value: b}], queryParams: [{type: Exact, name: q, value: a}, {type: Exact, name: q, value: b}]}], default: {}}",
        ),
        &[
            &format!(
                "{at}.matches[0].path.value: does not need a trailing slash because only a `/`-separated prefix or an entire path is matched"
            ),
            &format!("{at}.matches[0].path.value: must be an absolute path"),
            &format!("{at}.matches[1].path.value: must be an absolute path"),
            &format!("{at}.matches[2].path.value: invalid regular expression: unclosed group"),
            &format!("{at}.matches[3].queryParams[1].name: multiple entries for name q"),
            &format!("{at}.matches[3].headers[0].value: must not be defined"),
        ],
    );
    let filters = |filters: &str, path: &str| {
        route(&format!("{{matches: [{{path: {path}}}], default: {{filters: [{filters}]}}}}"))
    };
    let exact = "{type: Exact, value: /}";
    let filter = format!("{at}.default.filters[0]");
    check(kind, &filters("{type: RequestRedirect}", exact), &[&format!("{filter}.requestRedirect: must be defined")]);
    check(
        kind,
        &filters(
            "{type: RequestRedirect, requestRedirect: {hostname: 127.0.0.1, statusCode: 200, path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}}}",
            exact,
        ),
        &[
            &format!(
                "{filter}.requestRedirect.path.replacePrefixMatch: can only appear if all matches match a path prefix"
            ),
            &format!("{filter}.requestRedirect.hostname: cannot be an IP address"),
            &format!("{filter}.requestRedirect.statusCode: must be one of: 301, 302, 303, 307, 308"),
        ],
    );
    check(
        kind,
        &filters("{type: URLRewrite, urlRewrite: {hostToBackendHostname: true, hostname: a.com}}", exact),
        &[
            &format!("{filter}.urlRewrite.hostToBackendHostname: can only be set with MeshGateway"),
            &format!("{filter}.urlRewrite.hostToBackendHostname: cannot be set together with hostname"),
        ],
    );
    check(
        kind,
        &filters(
            "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: a, value: b}], remove: [a]}}",
            exact,
        ),
        &[&format!("{filter}.responseHeaderModifier.remove[0].name: duplicate header name")],
    );
    check(
        kind,
        &filters("{type: RequestHeaderModifier, requestHeaderModifier: {}}", exact),
        &[&format!("{filter}.requestHeaderModifier: must have at least one defined: set, add, remove")],
    );
    check(
        kind,
        &filters("{type: RequestMirror, requestMirror: {percentage: '101', backendRef: {kind: Mesh}}}", exact),
        &[
            &format!("{filter}.requestMirror.percentage: must be in inclusive range [0.0, 100.0]"),
            &format!("{filter}.requestMirror.backendRef.kind: value 'Mesh' is not supported"),
        ],
    );
    check(
        kind,
        &route(
            "{matches: [{method: GET}], default: {backendRefs: [{kind: MeshMultiZoneService, labels: {a: b}}, {kind: MeshService}]}}",
        ),
        &[
            &format!("{at}.default.backendRefs[0].port: must be defined with kind MeshMultiZoneService"),
            &format!("{at}.default.backendRefs[1]: name or labels must be set when kind is MeshService"),
        ],
    );
    check(kind, &route("{default: {}}"), &[&format!("{at}.matches: must not be empty")]);
}

#[test]
fn metrics() {
    let kind = "MeshMetric";
    let at = "spec.default";
    check(
        kind,
        "{default: {sidecar: {includeUnused: true, profiles: {appendProfiles: [{name: Basic}], exclude: [{type: Regex, match: 'a.*'}]}}, \
         applications: [{name: a, path: /metrics, port: 8080}], backends: [{type: Prometheus, prometheus: {port: 5670, path: /metrics, clientId: a, tls: {mode: Disabled}}}, {type: OpenTelemetry, openTelemetry: {endpoint: 'otel:4317', refreshInterval: 10s}}]}}",
        &[],
    );
    check(
        kind,
        "{targetRef: {kind: MeshHTTPRoute, name: a}, default: {sidecar: {profiles: {include: [{type: Regex, match: '('}]}}, applications: [{port: 0}], \
         backends: [{type: Prometheus}, {type: Prometheus, prometheus: {port: 65536}}, {type: OpenTelemetry, openTelemetry: {endpoint: otel}}, {type: OpenTelemetry, openTelemetry: {}}]}}",
        &[
            "spec.targetRef.kind: value 'MeshHTTPRoute' is not supported",
            &format!("{at}.sidecar.profiles.include[0].match: invalid regex"),
            &format!("{at}.applications.application[0]: port must be a valid (1-65535)"),
            &format!("{at}.backends.backend[0].prometheus: must be defined"),
            &format!("{at}.backends.backend[1].port: port must be a valid (1-65535)"),
            &format!("{at}.backends.backend[2].openTelemetry.endpoint: must be in host:port format"),
            &format!(
                "{at}.backends.backend[3].openTelemetry: openTelemetry must have exactly one defined: endpoint, backendRef"
            ),
        ],
    );
}

#[test]
fn unknown_and_ineffective_fields_are_named() {
    let warnings = |yaml: &str| {
        let parsed = parse(documents(yaml).unwrap().remove(0)).unwrap();
        let mut all = parsed.warnings;
        all.extend(validate::without_effect(&parsed.resource));
        all
    };
    let found = warnings(
        "type: MeshRetry\nmesh: default\nname: p\nspec: {from: [], to: [{targetRef: {kind: Mesh}, default: {http: {numRetries: 1, retries: 2}}}]}",
    );
    assert_eq!(found, ["spec.from: unknown field, ignored", "spec.to[0].default.http.retries: unknown field, ignored"]);
    let found = warnings(
        "type: MeshCircuitBreaker\nmesh: default\nname: p\nspec: {targetRef: {kind: MeshGateway, name: g}, rules: [{matches: [], default: {connectionLimits: {maxRetries: 1}}}]}",
    );
    assert_eq!(found[0], "spec.rules[0].matches: unknown field, ignored");
    assert!(found[1].starts_with("spec.targetRef.kind: MeshGateway: stored, but without effect"), "{found:?}");
    let found = warnings(
        "type: MeshTimeout\nmesh: default\nname: p\nspec: {rules: [{matches: [{spiffeID: {type: Exact, value: 'spiffe://a/b'}}], default: {http: {requestTimeout: 1s}}}]}",
    );
    assert!(found[0].starts_with("spec.rules[0]: stored, but without effect"), "{found:?}");
}

/// What is served is what was applied, durations in Go's form.
#[test]
fn policies_are_served_as_they_came() {
    let yaml = "type: MeshTimeout\nmesh: default\nname: p\nspec: {to: [{targetRef: {kind: Mesh}, default: {idleTimeout: 90m}}]}";
    let resource = parse(documents(yaml).unwrap().remove(0)).unwrap().resource;
    let document = resource.to_document();
    assert_eq!(document["kri"], "kri_mt_default___p_");
    assert_eq!(
        document["spec"],
        serde_json::json!({"to": [{"targetRef": {"kind": "Mesh"}, "default": {"idleTimeout": "1h30m0s"}}]})
    );
}
