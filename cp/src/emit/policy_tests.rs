//! What policies make of the resources of a proxy, beside what Kuma makes of them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::testing::*;
use super::*;
use crate::mesh::MeshView;
use crate::plan::{MetricsTls, ProxyFeatures, plan};
use crate::policy::Policies;
use crate::resource::{Dataplane, Mesh, Meta};

/// A client of the service `backend`, and the services that there are.
const DATAPLANES: &[(&str, &str)] = &[
    (
        "web",
        "networking: {address: 127.0.0.1, inbound: [{port: 80, servicePort: 8080, tags: {kuma.io/service: web, kuma.io/protocol: http}}], \
         outbound: [{port: 10001, tags: {kuma.io/service: backend}}, {port: 10002, tags: {kuma.io/service: calls}}, \
         {port: 10003, tags: {kuma.io/service: db}}, {port: 10004, tags: {kuma.io/service: second}}]}",
    ),
    (
        "backend",
        "networking: {address: 192.168.0.4, inbound: [{port: 8084, tags: {kuma.io/service: backend, kuma.io/protocol: http, region: us}}]}",
    ),
    (
        "calls",
        "networking: {address: 192.168.0.5, inbound: [{port: 8084, tags: {kuma.io/service: calls, kuma.io/protocol: grpc}}]}",
    ),
    ("db", "networking: {address: 192.168.0.6, inbound: [{port: 5432, tags: {kuma.io/service: db}}]}"),
    (
        "payments",
        "networking: {address: 192.168.0.7, inbound: [{port: 8084, tags: {kuma.io/service: payments, kuma.io/protocol: http, region: us, version: v1, env: dev}}]}",
    ),
    (
        "second",
        "networking: {address: 192.168.0.8, inbound: [{port: 8084, tags: {kuma.io/service: second, kuma.io/protocol: http2}}]}",
    ),
];

/// What the first of these proxies is given in the mesh `default`, and the warnings.
fn given(dataplanes: &[(&str, &str)], policies: Policies) -> (BTreeMap<String, Value>, BTreeSet<String>) {
    let name = dataplanes[0].0;
    let dataplanes = dataplanes
        .iter()
        .map(|(name, yaml)| {
            let dataplane: Dataplane = serde_yaml_ng::from_str(yaml).unwrap();
            (Meta::new("default", *name), Arc::new(dataplane))
        })
        .collect();
    let mut view =
        MeshView::new("default", Arc::new(Mesh::default()), dataplanes, Vec::new(), Ok(None), &BTreeSet::new());
    view.policies = policies;
    let plan = plan(&view, name, ProxyFeatures { ipv6: false, ..ProxyFeatures::default() }).unwrap();
    let all = as_json_unstripped(&snapshot(&plan, None, &Snapshot::default()));
    (all, plan.warnings)
}

/// The resources of a snapshot as Envoy's JSON, all of it.
fn as_json_unstripped(snapshot: &Snapshot) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for kind in ResourceType::ORDER {
        for (name, resource) in snapshot.resources(kind) {
            let body = resource.body.as_ref().unwrap();
            let message = body.type_url.rsplit('/').next().unwrap();
            let names = shika_proto::json::Names::LowerCamelCase;
            let json = shika_proto::json::wire_to_json_value(message, &body.value, names).unwrap();
            all.insert(format!("{message} {name}"), json);
        }
    }
    all
}

fn web(yaml: &str) -> BTreeMap<String, Value> {
    let (all, warnings) = given(DATAPLANES, policies(yaml));
    assert!(warnings.is_empty(), "{warnings:?}");
    all
}

fn policy(kind: &str, spec: &str) -> String {
    format!("type: {kind}\nmesh: default\nname: p\nspec: {spec}")
}

const FILTER: &str = "/filterChains/0/filters/0/typedConfig";

fn routes(all: &BTreeMap<String, Value>, port: u32) -> Value {
    let path = format!("{FILTER}/routeConfig/virtualHosts/0/routes");
    all[&format!("{LISTENER} outbound:127.0.0.1:{port}")].pointer(&path).unwrap().clone()
}

fn golden_routes(file: &str) -> Option<Value> {
    let golden = golden(file)?;
    let (_, listener) = golden.iter().next().unwrap();
    Some(listener.pointer(&format!("{FILTER}/routeConfig/virtualHosts/0/routes")).unwrap().clone())
}

/// Routes as Kuma makes them of the same rules (2.14, `pkg/plugins/policies/meshhttproute/plugin/v1alpha1/testdata`). Timeouts of other
/// policies are not part of these goldens.
#[test]
fn routes_are_those_of_kuma() {
    let rules = |rules: &str| {
        policy(
            "MeshHTTPRoute",
            &format!("{{to: [{{targetRef: {{kind: MeshService, name: backend}}, rules: [{rules}]}}]}}"),
        )
    };
    let v1 = |filters: &str| {
        rules(&format!("{{matches: [{{path: {{type: PathPrefix, value: /v1}}}}], default: {{filters: [{filters}]}}}}"))
    };
    let cases = [
        (
            "headers-match",
            rules(
                "{matches: [{headers: [{type: Exact, name: foo-exact, value: bar}, {type: Present, name: foo-present}, \
                 {type: RegularExpression, name: foo-regex, value: 'x.*y'}, {type: Absent, name: foo-absent}, \
                 {type: Prefix, name: foo-prefix, value: x}]}], default: {backendRefs: [{kind: MeshService, name: backend}]}}",
            ),
        ),
        (
            "match-priority",
            rules(
                "{matches: [{path: {type: PathPrefix, value: /v1}}], default: {}}, \
                 {matches: [{path: {type: Exact, value: /v1/specific}}, {method: GET}], default: {}}",
            ),
        ),
        (
            "request-header-modifiers",
            v1("{type: RequestHeaderModifier, requestHeaderModifier: {\
                set: [{name: request-set-header, value: set-value}, {name: request-set-header-multiple, value: 'one-value,second-value'}], \
                add: [{name: request-add-header, value: add-value}], remove: [request-header-to-remove]}}"),
        ),
        (
            "response-header-modifiers",
            v1(
                "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: response-set-header, value: set-value}], \
                add: [{name: response-add-header, value: add-value}], remove: [response-header-to-remove]}}",
            ),
        ),
        (
            "url-rewrite",
            v1("{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}"),
        ),
        (
            "request-mirror",
            v1(
                "{type: RequestMirror, requestMirror: {percentage: '99.9', backendRef: {kind: MeshServiceSubset, name: payments, \
                tags: {region: us, version: v1, env: dev}}}}, \
                {type: RequestMirror, requestMirror: {backendRef: {kind: MeshService, name: backend}}}",
            ),
        ),
    ];
    for (name, yaml) in cases {
        let Some(theirs) = golden_routes(&format!("policy/meshhttproute/{name}.listeners.yaml")) else { return };
        let all = web(&yaml);
        let mut ours = routes(&all, 10001);
        let mut theirs = theirs;
        match name {
            // Kuma loses the slash between the new prefix and the rest.
            "url-rewrite" => {
                let rewrite = theirs.pointer_mut("/1/route/prefixRewrite").unwrap();
                assert_eq!(*rewrite, "/v2");
                *rewrite = json!("/v2/");
            }
            // The hash at the end of the name of a cluster with tags is another one here.
            "request-mirror" => {
                for (index, list) in [(0, &mut ours), (1, &mut theirs)] {
                    for route in list.as_array_mut().unwrap() {
                        if let Some(cluster) = route.pointer_mut("/route/requestMirrorPolicies/0/cluster") {
                            let found = cluster.as_str().unwrap().to_owned();
                            assert!(found.starts_with("payments-"), "{found}");
                            assert!(index == 1 || all.contains_key(&format!("{CLUSTER} {found}")), "{found}");
                            *cluster = json!("payments");
                        }
                    }
                }
            }
            _ => {}
        }
        assert_eq!(ours, theirs, "{name}\nours: {ours:#}\ntheirs: {theirs:#}");
    }
}

#[test]
fn redirects_and_splits() {
    let all = web(&policy(
        "MeshHTTPRoute",
        "{to: [{targetRef: {kind: MeshService, name: backend}, rules: [\
          {matches: [{path: {type: PathPrefix, value: /old}}], default: {filters: [{type: RequestRedirect, requestRedirect: \
           {scheme: https, hostname: a.com, port: 8443, statusCode: 301, path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}]}}, \
          {matches: [{path: {type: Exact, value: /full}}], default: {filters: [{type: RequestRedirect, requestRedirect: \
           {path: {type: ReplaceFullPath, replaceFullPath: /x}}}]}}, \
          {matches: [{path: {type: RegularExpression, value: '/s.*'}, queryParams: [{type: Exact, name: q, value: a}, \
           {type: RegularExpression, name: r, value: 'b+'}], method: POST}], default: {filters: [{type: URLRewrite, urlRewrite: \
           {hostname: b.com, path: {type: ReplaceFullPath, replaceFullPath: /y}}}], \
           backendRefs: [{kind: MeshServiceSubset, name: payments, tags: {version: v1}, weight: 10}, {kind: MeshService, name: backend, weight: 90}, \
           {kind: MeshService, name: calls, weight: 0}]}}]}]}",
    ));
    let found = routes(&all, 10001);
    let clusters = found.pointer("/3/route/weightedClusters/clusters").unwrap().as_array().unwrap().clone();
    let names: Vec<&str> = clusters.iter().map(|cluster| cluster["name"].as_str().unwrap()).collect();
    assert!(names[0].starts_with("payments-") && names[1] == "backend" && names.len() == 2, "{names:?}");
    let expected = json!([
        {
            "match": {"path": "/full"},
            "redirect": {"regexRewrite": {"pattern": {"regex": ".*"}, "substitution": "/x"}, "responseCode": "FOUND"},
        },
        {
            "match": {"path": "/old"},
            "redirect": {
                "schemeRedirect": "https", "hostRedirect": "a.com", "portRedirect": 8443,
                "regexRewrite": {"pattern": {"regex": ".*"}, "substitution": "/new"},
            },
        },
        {
            "match": {"prefix": "/old/"},
            "redirect": {"schemeRedirect": "https", "hostRedirect": "a.com", "portRedirect": 8443, "prefixRewrite": "/new/"},
        },
        {
            "match": {
                "safeRegex": {"regex": "/s.*"},
                "headers": [{"name": ":method", "stringMatch": {"exact": "POST"}}],
                "queryParameters": [
                    {"name": "q", "stringMatch": {"exact": "a"}},
                    {"name": "r", "stringMatch": {"safeRegex": {"regex": "b+"}}},
                ],
            },
            "route": {
                "hostRewriteLiteral": "b.com",
                "regexRewrite": {"pattern": {"regex": ".*"}, "substitution": "/y"},
                "timeout": "0s",
                "weightedClusters": {"clusters": [{"name": names[0], "weight": 10}, {"name": "backend", "weight": 90}]},
            },
        },
        {"match": {"prefix": "/"}, "route": {"cluster": "backend", "timeout": "0s"}},
    ]);
    let mut found = found;
    for route in found.as_array_mut().unwrap() {
        route.as_object_mut().unwrap().remove("name");
    }
    assert_eq!(found, expected, "{found:#}");
    let subset = &all[&format!("{ENDPOINT} {}", names[0])];
    assert_eq!(subset["endpoints"][0]["lbEndpoints"].as_array().unwrap().len(), 1);
}

#[test]
fn what_a_route_cannot_do_is_said() {
    let yaml = policy(
        "MeshHTTPRoute",
        "{to: [{targetRef: {kind: MeshService, name: backend}, rules: [{matches: [{headers: [{name: a, value: b}, {name: a, value: c}]}], default: {\
          filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {hostname: a.com}}], \
          backendRefs: [{kind: MeshService, name: db}, {kind: MeshService, name: backend, port: 80}, {kind: MeshExternalService, name: x}]}}]}]}",
    );
    let (all, warnings) = given(DATAPLANES, policies(&yaml));
    let expected = [
        "MeshHTTPRoute \"p\": a match names the header \"a\" more than once; only the first condition has effect",
        "MeshHTTPRoute \"p\": a rule has a RequestRedirect, so that its URLRewrite and RequestMirror have no effect",
        "MeshHTTPRoute \"p\": what the backendRef MeshExternalService \"x\" leads to does not exist; it is left out",
        "MeshHTTPRoute \"p\": what the backendRef MeshService \"backend\" leads to does not exist; it is left out",
        "MeshHTTPRoute \"p\": what the backendRef MeshService \"db\" leads to does not speak HTTP or does not exist; it is left out",
    ];
    assert_eq!(warnings.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    assert_eq!(routes(&all, 10001).as_array().unwrap().len(), 1, "what leads nowhere is no route");
}

/// A route to a service of another protocol makes HTTP of it; without one it stays as it is.
#[test]
fn a_route_makes_http_of_a_destination() {
    let to = |rules: &str| {
        policy("MeshHTTPRoute", &format!("{{to: [{{targetRef: {{kind: MeshService, name: db}}, rules: [{rules}]}}]}}"))
    };
    let all = web(&to(
        "{matches: [{path: {type: PathPrefix, value: /}}], default: {backendRefs: [{kind: MeshService, name: backend}]}}",
    ));
    assert_eq!(routes(&all, 10003)[0]["route"]["cluster"], "backend");
    let all = web("");
    assert_eq!(
        all[&format!("{LISTENER} outbound:127.0.0.1:10003")].pointer("/filterChains/0/filters/0/name").unwrap(),
        "envoy.filters.network.tcp_proxy"
    );
}

const RETRIES: &str = "{to: [{targetRef: {kind: Mesh}, default: {\
    tcp: {maxConnectAttempt: 21}, \
    http: {numRetries: 1, perTryTimeout: 2s, backOff: {baseInterval: 3s, maxInterval: 4s}, \
     rateLimitedBackOff: {maxInterval: 5s, resetHeaders: [{name: retry-after-http, format: Seconds}, {name: x-retry-after-http, format: UnixTimestamp}]}, \
     retryOn: [5xx, GatewayError, Reset, Retriable4xx, ConnectFailure, EnvoyRatelimited, RefusedStream, Http3PostConnectFailure, \
      HttpMethodConnect, HttpMethodDelete, HttpMethodGet, HttpMethodHead, HttpMethodOptions, HttpMethodPatch, HttpMethodPost, HttpMethodPut, \
      HttpMethodTrace, '429'], \
     retriableResponseHeaders: [{type: RegularExpression, name: x-retry-regex, value: '.*'}, {type: Exact, name: x-retry-exact, value: exact-value}], \
     retriableRequestHeaders: [{type: Prefix, name: x-retry-prefix, value: prefix-}], \
     hostSelection: [{predicate: OmitPreviousHosts}, {predicate: OmitHostsWithTags, tags: {test: test}}, {predicate: OmitPreviousPriorities, updateFrequency: 2}], \
     hostSelectionMaxAttempts: 2}, \
    grpc: {numRetries: 11, perTryTimeout: 12s, backOff: {baseInterval: 13s, maxInterval: 14s}, \
     rateLimitedBackOff: {maxInterval: 15s, resetHeaders: [{name: retry-after-grpc, format: Seconds}, {name: x-retry-after-grpc, format: UnixTimestamp}]}, \
     retryOn: [Canceled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable]}}}]}";

#[test]
fn retries_are_those_of_kuma() {
    let all = web(&policy("MeshRetry", RETRIES));
    let path = format!("{FILTER}/maxConnectAttempts");
    assert_eq!(all[&format!("{LISTENER} outbound:127.0.0.1:10003")].pointer(&path), Some(&json!(21)));
    assert!(routes(&all, 10004)[0]["route"].get("retryPolicy").is_none(), "HTTP/2 that is not gRPC has none");
    let Some(theirs) = golden_routes("policy/meshretry/http.listeners.yaml") else { return };
    assert_eq!(routes(&all, 10001)[0]["route"]["retryPolicy"], theirs[0]["route"]["retryPolicy"]);
    // Trap 34: Kuma emits "canceled", which Envoy does not know; its name is "cancelled".
    let mut theirs = golden_routes("policy/meshretry/grpc.listeners.yaml").unwrap();
    let conditions = &mut theirs[0]["route"]["retryPolicy"]["retryOn"];
    *conditions = json!(conditions.as_str().unwrap().replace("canceled", "cancelled"));
    assert_eq!(routes(&all, 10002)[0]["route"]["retryPolicy"], theirs[0]["route"]["retryPolicy"]);

    let none =
        policy("MeshRetry", "{to: [{targetRef: {kind: Mesh}, default: {http: {numRetries: 0, perTryTimeout: 2s}}}]}");
    assert!(
        routes(&web(&none), 10001)[0]["route"].get("retryPolicy").is_none(),
        "numRetries: 0 means no policy at all"
    );
    let default = policy(
        "MeshRetry",
        "{to: [{targetRef: {kind: MeshService, name: backend}, default: {http: {numRetries: 2}}}]}",
    );
    assert_eq!(
        routes(&web(&default), 10001)[0]["route"]["retryPolicy"],
        json!({"numRetries": 2, "retryOn": "gateway-error,connect-failure,refused-stream"})
    );
}

/// Limits and outlier detection as in `pkg/plugins/policies/meshcircuitbreaker/plugin/v1alpha1/testdata`.
#[test]
fn circuit_breakers_are_those_of_kuma() {
    let conf = "{connectionLimits: {maxConnectionPools: 1111, maxConnections: 2222, maxPendingRequests: 3333, maxRequests: 4444, maxRetries: 5555}, \
        outlierDetection: {disabled: false, interval: 10s, baseEjectionTime: 8s, maxEjectionPercent: 88, splitExternalAndLocalErrors: true, \
        healthyPanicThreshold: '30.2', detectors: {totalFailures: {consecutive: 12}, gatewayFailures: {consecutive: 91}, \
        localOriginFailures: {consecutive: 3}, successRate: {minimumHosts: 33, requestVolume: 99, standardDeviationFactor: '1.9'}, \
        failurePercentage: {minimumHosts: 32, requestVolume: 182, threshold: 80}}}}";
    let yaml = policy(
        "MeshCircuitBreaker",
        &format!(
            "{{to: [{{targetRef: {{kind: Mesh}}, default: {conf}}}], from: [{{targetRef: {{kind: Mesh}}, default: {conf}}}]}}"
        ),
    );
    let all = web(&yaml);
    let file = "policy/meshcircuitbreaker/outbound_cluster_connection_limits_outlier_detection.yaml";
    let Some(golden) = golden(file) else { return };
    let (_, theirs) = golden.iter().next().unwrap();
    for cluster in ["backend", "localhost:8080"] {
        for field in ["circuitBreakers", "outlierDetection", "commonLbConfig"] {
            assert_eq!(all[&format!("{CLUSTER} {cluster}")][field], theirs[field], "{cluster} {field}");
        }
    }
    let off = policy(
        "MeshCircuitBreaker",
        "{to: [{targetRef: {kind: Mesh}, default: {outlierDetection: {disabled: true, detectors: {totalFailures: {consecutive: 1}}}}}]}",
    );
    let cluster = &web(&off)[&format!("{CLUSTER} backend")];
    assert_eq!(cluster["circuitBreakers"], json!({"thresholds": [{"trackRemaining": true}]}));
    assert!(cluster.get("outlierDetection").is_none());
    let only = policy(
        "MeshCircuitBreaker",
        "{to: [{targetRef: {kind: Mesh}, default: {outlierDetection: {detectors: {gatewayFailures: {consecutive: 2}}}}}]}",
    );
    assert_eq!(
        web(&only)[&format!("{CLUSTER} backend")]["outlierDetection"],
        json!({
            "consecutiveGatewayFailure": 2,
            "enforcingConsecutiveGatewayFailure": 100,
            "enforcingConsecutive5xx": 0,
            "enforcingConsecutiveLocalOriginFailure": 0,
            "enforcingSuccessRate": 0,
            "enforcingLocalOriginSuccessRate": 0,
            "enforcingFailurePercentage": 0,
            "enforcingFailurePercentageLocalOrigin": 0,
        }),
        "detectors that are not listed are off"
    );
}

#[test]
fn timeouts_of_outbounds() {
    let yaml = policy(
        "MeshTimeout",
        "{to: [{targetRef: {kind: Mesh}, default: {connectionTimeout: 51s, idleTimeout: 50s, http: {requestTimeout: 52s, streamIdleTimeout: 53s, \
          maxStreamDuration: 54s, maxConnectionDuration: 55s, requestHeadersTimeout: 56s}}}]}",
    );
    let all = web(&yaml);
    let options = |cluster: &str| {
        all[&format!("{CLUSTER} {cluster}")]["typedExtensionProtocolOptions"]
            ["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]["commonHttpProtocolOptions"]
            .clone()
    };
    let limits = json!({"idleTimeout": "50s", "maxConnectionDuration": "55s", "maxStreamDuration": "54s"});
    assert_eq!((options("backend"), options("second")), (limits.clone(), limits));
    assert_eq!((options("calls"), options("db")), (Value::Null, Value::Null), "neither gRPC nor TCP");
    for cluster in ["backend", "calls", "db", "second"] {
        assert_eq!(all[&format!("{CLUSTER} {cluster}")]["connectTimeout"], "51s", "{cluster}");
    }
    let at = |port: u32, path: &str| {
        all[&format!("{LISTENER} outbound:127.0.0.1:{port}")].pointer(&format!("{FILTER}{path}")).cloned()
    };
    assert_eq!(at(10003, "/idleTimeout"), Some(json!("50s")));
    assert_eq!(at(10001, "/commonHttpProtocolOptions/idleTimeout"), Some(json!("0s")));
    assert_eq!(at(10001, "/requestHeadersTimeout"), Some(json!("56s")));
    let route = &routes(&all, 10001)[0]["route"];
    assert_eq!((&route["timeout"], &route["idleTimeout"]), (&json!("52s"), &json!("53s")));

    // Section 16.5: what the policy leaves out is Kuma's default; without any policy a service by tag has no limit for requests.
    let all = web(&policy(
        "MeshTimeout",
        "{to: [{targetRef: {kind: MeshService, name: backend}, default: {idleTimeout: 1s}}]}",
    ));
    let route = |port| routes(&all, port)[0]["route"].clone();
    assert_eq!((&route(10001)["timeout"], &route(10001)["idleTimeout"]), (&json!("15s"), &json!("1800s")));
    assert_eq!(route(10002), json!({"cluster": "calls", "timeout": "0s"}));
}

/// A policy about a route concerns requests on that route alone.
#[test]
fn policies_about_a_route() {
    let yaml = "
type: MeshHTTPRoute
mesh: default
name: r
spec: {to: [{targetRef: {kind: MeshService, name: backend}, rules: [{matches: [{path: {type: Exact, value: /slow}}], default: {}}]}]}
---
type: MeshTimeout
mesh: default
name: t
spec: {targetRef: {kind: MeshHTTPRoute, name: r}, to: [{targetRef: {kind: Mesh}, default: {http: {requestTimeout: 99s}}}]}
---
type: MeshRetry
mesh: default
name: t
spec: {targetRef: {kind: MeshHTTPRoute, name: r}, to: [{targetRef: {kind: Mesh}, default: {http: {numRetries: 9}}}]}
";
    let found = routes(&web(yaml), 10001);
    assert_eq!(found[0]["route"]["timeout"], "99s");
    assert_eq!(found[0]["route"]["retryPolicy"]["numRetries"], 9);
    assert_eq!(found[1]["route"], json!({"cluster": "backend", "timeout": "0s"}));
    let (_, warnings) = given(
        DATAPLANES,
        policies(&policy(
            "MeshTimeout",
            "{to: [{targetRef: {kind: MeshHTTPRoute, name: r}, default: {http: {requestTimeout: 1s}}}]}",
        )),
    );
    assert!(warnings.first().unwrap().starts_with("MeshTimeout \"p\": spec.to has an entry of kind MeshHTTPRoute"));
}

/// Cases of whole control planes (`test/e2e_env/universal/envoyconfig`): the inbound of test-server and its application.
#[test]
fn inbounds_with_policies_are_those_of_kuma() {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/kuma-2.14-policy-vectors/envoyconfig/sidecars");
    for case in [
        "meshtimeout.inbound",
        "meshtimeout.inbound-rules",
        "meshtimeout.outbound",
        "meshcircuitbreaker.inbound",
        "meshcircuitbreaker.inbound-rules",
    ] {
        let name = case.split_once('.').unwrap().1;
        let dir = root.join(case);
        let Ok(input) = fs::read_to_string(dir.join(format!("{name}.input.yaml"))) else {
            eprintln!("skipped: {} is not there", dir.display());
            return;
        };
        // Kuma compares what shadow policies would do; here they are put in force.
        let input = input
            .replace("kuma.io/effect: shadow", "kuma.io/effect: none")
            .replace("mesh: envoyconfig", "mesh: default");
        let golden = fs::read_to_string(dir.join(format!("{name}.test-server.golden.json"))).unwrap();
        let golden: Value = serde_json::from_str(&golden).unwrap();
        let theirs = |kind: &str, name: &str| golden["xds"][&format!("type.googleapis.com/{kind}")][name].clone();
        let dataplane = "networking: {address: 10.0.0.1, inbound: [{port: 80, servicePort: 8080, tags: {kuma.io/service: test-server, \
            kuma.io/protocol: http}}]}";
        let (all, warnings) = given(&[("test-server", dataplane)], policies(&input));
        assert!(warnings.is_empty(), "{case}: {warnings:?}");
        let cluster = theirs(CLUSTER, "localhost:8080");
        for field in [
            "connectTimeout",
            "circuitBreakers",
            "outlierDetection",
            "typedExtensionProtocolOptions",
            "altStatName",
            "type",
        ] {
            assert_eq!(all[&format!("{CLUSTER} localhost:8080")].get(field), cluster.get(field), "{case} {field}");
        }
        let ours = all[&format!("{LISTENER} inbound:10.0.0.1:80")].pointer(FILTER).unwrap();
        let listener = theirs(LISTENER, "inbound:IP_REDACTED:80");
        for field in ["commonHttpProtocolOptions", "requestHeadersTimeout", "streamIdleTimeout", "routeConfig"] {
            assert_eq!(ours.get(field), listener.pointer(FILTER).unwrap().get(field), "{case} {field}");
        }
    }
}

/// Inbounds that share an application share its cluster.
#[test]
fn the_last_inbound_decides_about_its_application() {
    let dataplane = "networking: {address: 10.0.0.1, inbound: [\
        {port: 80, name: a, servicePort: 8080, serviceAddress: 127.0.0.1, tags: {kuma.io/service: a}}, \
        {port: 81, name: b, servicePort: 8080, serviceAddress: 127.0.0.1, tags: {kuma.io/service: b}}]}";
    let yaml = policy(
        "MeshTimeout",
        "{targetRef: {kind: Dataplane, sectionName: b}, rules: [{default: {connectionTimeout: 7s}}]}",
    );
    let (all, _) = given(&[("d", dataplane)], policies(&yaml));
    let clusters: Vec<&String> = all.keys().filter(|name| name.starts_with(CLUSTER)).collect();
    assert_eq!(clusters, [&format!("{CLUSTER} localhost:8080")]);
    assert_eq!(all[clusters[0]]["connectTimeout"], "7s");
}

/// `pkg/plugins/policies/meshmetric/plugin/v1alpha1/testdata`.
#[test]
fn metrics_are_those_of_kuma() {
    let Some(mut theirs) = golden("policy/meshmetric/multiple_prometheus.listeners.yaml") else { return };
    theirs.extend(golden("policy/meshmetric/multiple_prometheus.clusters.yaml").unwrap());
    let mut meta = Meta::new("default", "dp-1");
    meta.labels = [("kuma.io/zone", "zone-1"), ("kuma.io/workload", "backend")]
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .collect();
    let dataplane = "networking: {address: 192.168.0.1, inbound: [{port: 80, tags: {kuma.io/service: backend}}]}";
    let dataplane: Arc<Dataplane> = Arc::new(serde_yaml_ng::from_str(dataplane).unwrap());
    let mesh = Arc::new(Mesh::default());
    let mut view = MeshView::new("default", mesh, vec![(meta, dataplane)], Vec::new(), Ok(None), &BTreeSet::new());
    view.policies = policies(&policy(
        "MeshMetric",
        "{default: {sidecar: {includeUnused: false}, applications: [{path: /metrics, port: 8080}], backends: [\
          {type: Prometheus, prometheus: {clientId: first-backend, port: 5670, path: /metrics}}, \
          {type: Prometheus, prometheus: {clientId: second-backend, port: 5671, path: /metrics, tls: {mode: ProvidedTLS}}}]}}",
    ));
    let features = ProxyFeatures { ipv6: false, work_dir: "/tmp".to_owned(), ..ProxyFeatures::default() };
    let plan = plan(&view, "dp-1", features).unwrap();
    assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
    assert!(plan.warnings.first().unwrap().contains("asks for ProvidedTLS"));
    let ours = as_json(&snapshot(&plan, None, &Snapshot::default()));
    // The socket is named after the proxy; the golden's is called backend.
    let cluster = theirs.get_mut(&format!("{CLUSTER} _kuma:metrics:hijacker")).unwrap();
    let path = "/loadAssignment/endpoints/0/lbEndpoints/0/endpoint/address/pipe/path";
    *cluster.pointer_mut(path).unwrap() = json!("/tmp/kuma-mh-dp-1-default.sock");
    let names: Vec<String> = theirs.keys().cloned().collect();
    assert_same(&ours, &theirs, &names);
}

#[test]
fn metrics_with_tls_and_without_backends() {
    let given = |spec: &str, features: ProxyFeatures| {
        let dataplane = "networking: {address: 192.168.0.1, inbound: [{port: 80, tags: {kuma.io/service: b, version: v1}}, \
            {port: 81, tags: {kuma.io/service: a, version: v2}}]}";
        let dataplane = (Meta::new("default", "d"), Arc::new(serde_yaml_ng::from_str::<Dataplane>(dataplane).unwrap()));
        let mesh = Arc::new(Mesh::default());
        let mut view = MeshView::new("default", mesh, vec![dataplane], Vec::new(), Ok(None), &BTreeSet::new());
        view.policies = policies(&policy("MeshMetric", spec));
        plan(&view, "d", features).unwrap()
    };
    assert_eq!(given("{default: {sidecar: {includeUnused: true}}}", ProxyFeatures::default()).metrics, None);
    let otel = given(
        "{default: {backends: [{type: OpenTelemetry, openTelemetry: {endpoint: 'a:1'}}]}}",
        ProxyFeatures::default(),
    );
    assert!(otel.metrics.is_none() && otel.warnings.first().unwrap().contains("type OpenTelemetry"));
    let features = ProxyFeatures {
        metrics_cert_path: "/cert".to_owned(),
        metrics_key_path: "/key".to_owned(),
        ..ProxyFeatures::default()
    };
    let plan = given(
        "{default: {backends: [{type: Prometheus, prometheus: {tls: {mode: ProvidedTLS}}}, {type: Prometheus, prometheus: {clientId: x}}]}}",
        features,
    );
    let listeners = &plan.metrics.as_ref().unwrap().listeners;
    assert_eq!(listeners.len(), 1, "two backends on one port");
    assert_eq!(listeners[0].name, "_kuma:metrics:prometheus:default-backend");
    assert_eq!(listeners[0].tls, MetricsTls::Files { certificate: "/cert".to_owned(), key: "/key".to_owned() });
    assert!(plan.warnings.first().unwrap().contains("have one port or one client"), "{:?}", plan.warnings);
    let document: Value = serde_json::from_str(&plan.dynamic.unwrap().documents["/meshmetric"]).unwrap();
    assert_eq!(
        document["observability"]["metrics"],
        json!({
            "applications": null,
            "backends": [{"type": "Prometheus", "name": null}],
            "extraLabels": {
                "dataplane": "d", "kuma.proxy_role": "sidecar", "kuma_io_service": "a", "kuma_io_services": ",a,b,",
                "mesh": "default", "service": "a", "version": "v1", "versions": ",v1,v2,",
            },
        })
    );
}

/// Destinations that are resources: routes are named after the MeshHTTPRoute, Kuma's defaults always apply, and policies can be about a
/// port, a service or a route (`meshtimeout.outbound`, `meshretry.outbound-mix` and `outbound-route` of `envoyconfig/sidecars`).
#[test]
fn service_resources_with_policies_are_those_of_kuma() {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/kuma-2.14-policy-vectors/envoyconfig/sidecars");
    for case in ["meshtimeout.outbound", "meshretry.outbound-mix", "meshretry.outbound-route", "meshtimeout.inbound"] {
        let name = case.split_once('.').unwrap().1;
        let dir = root.join(case);
        let Ok(input) = fs::read_to_string(dir.join(format!("{name}.input.yaml"))) else {
            eprintln!("skipped: {} is not there", dir.display());
            return;
        };
        let golden = fs::read_to_string(dir.join(format!("{name}.demo-client.golden.json"))).unwrap();
        let golden: Value = serde_json::from_str(&golden).unwrap();
        let labels = |name: &str| {
            let mut meta = Meta::new("envoyconfig", name);
            for (label, value) in
                [("kuma.io/zone", "kuma-3"), ("kuma.io/origin", "zone"), ("kuma.io/display-name", name)]
            {
                meta.labels.insert(label.to_owned(), value.to_owned());
            }
            meta
        };
        let client = "networking: {address: 10.0.0.1, inbound: [{port: 3000, tags: {kuma.io/service: demo-client}}], \
            outbound: [{port: 10080, backendRef: {kind: MeshService, name: test-server, port: 80}}]}";
        let dataplane = (labels("demo-client"), Arc::new(serde_yaml_ng::from_str::<Dataplane>(client).unwrap()));
        let mesh = Arc::new(Mesh::default());
        let mut view = MeshView::new("envoyconfig", mesh, vec![dataplane], Vec::new(), Ok(None), &BTreeSet::new());
        let mut zones = crate::mesh::Zones::new("kuma-3");
        zones.local = "kuma-3".to_owned();
        view.zones = Arc::new(zones);
        let service =
            "{selector: {dataplaneTags: {kuma.io/service: test-server}}, ports: [{port: 80, appProtocol: http}]}";
        view.mesh_services.insert(
            "test-server".to_owned(),
            (labels("test-server"), Arc::new(serde_yaml_ng::from_str(service).unwrap())),
        );
        view.complete();
        for document in crate::resource::documents(&input).unwrap() {
            let mut resource = crate::resource::parse(document).unwrap().resource;
            let shadow = resource.meta.labels.remove("kuma.io/effect");
            assert_eq!(shadow.as_deref(), Some("shadow"), "Kuma compares what shadow policies would do");
            resource.meta.labels.extend(labels(&resource.meta.name).labels);
            view.policies.add(&resource);
        }
        let service = labels("test-server");
        view.policies.services.push(crate::policy::rules::ServiceTarget {
            kind: crate::resource::TargetRefKind::MeshService,
            meta: service,
            ports: vec![("80".to_owned(), 80)],
        });
        let plan = plan(&view, "demo-client", ProxyFeatures { ipv6: false, ..ProxyFeatures::default() }).unwrap();
        let ours = as_json_unstripped(&snapshot(&plan, None, &Snapshot::default()));
        let theirs = |kind: &str, name: &str| golden["xds"][&format!("type.googleapis.com/{kind}")][name].clone();
        let cluster = "envoyconfig_test-server__kuma-3_msvc_80";
        for field in
            ["connectTimeout", "circuitBreakers", "outlierDetection", "typedExtensionProtocolOptions", "altStatName"]
        {
            let found = ours[&format!("{CLUSTER} {cluster}")].get(field).cloned();
            assert_eq!(found, theirs(CLUSTER, cluster).get(field).cloned(), "{case} {field}");
        }
        let listener = theirs(LISTENER, "outbound:IP_REDACTED:80");
        let found = ours[&format!("{LISTENER} outbound:127.0.0.1:10080")].pointer(FILTER).unwrap();
        for field in ["commonHttpProtocolOptions", "requestHeadersTimeout", "normalizePath", "routeConfig"] {
            let theirs = listener.pointer(FILTER).unwrap().get(field);
            assert_eq!(
                found.get(field),
                theirs,
                "{case} {field}\nours: {:#}\ntheirs: {:#}",
                json!(found.get(field)),
                json!(theirs)
            );
        }
    }
}
