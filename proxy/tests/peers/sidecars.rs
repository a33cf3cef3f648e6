//! The bootstraps of a pair of sidecars, and the certificates that they know one another by. Which protocol is spoken where is as Kuma has it: HTTP/2 over
//! mutual TLS between the sidecars, ALPN `kuma`, identities in SPIFFE form.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use serde_json::{Value, json};

/// What both sidecars need for mutual TLS, in PEM.
pub struct Certificates {
    ca: String,
    web: (String, String),
    backend: (String, String),
}

impl Certificates {
    /// Makes a CA and the identities `spiffe://default/web` and `spiffe://default/backend`.
    pub fn make() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let leaf = |identity: &str| {
            let mut params = CertificateParams::default();
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.subject_alt_names.push(SanType::URI(identity.try_into().unwrap()));
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
        };
        Certificates { ca: issuer.pem(), web: leaf("spiffe://default/web"), backend: leaf("spiffe://default/backend") }
    }
}

/// Protocol of a cluster's endpoints.
#[derive(Clone, Copy, PartialEq)]
enum Speaks {
    Http1,
    Http2,
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn extension(name: &str, mut config: Value, kind: &str) -> Value {
    config["@type"] = format!("type.googleapis.com/{kind}").into();
    json!({"name": name, "typed_config": config})
}

fn cluster(name: &str, port: u16, speaks: Speaks, tls: Option<Value>) -> Value {
    let options = match speaks {
        Speaks::Http1 => json!({"http_protocol_options": {}}),
        Speaks::Http2 => json!({"http2_protocol_options": {"allow_connect": true}}),
    };
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": options,
            },
        },
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

fn listener(name: &str, routes: Value, tls: Option<Value>) -> Value {
    let manager = json!({
        "stat_prefix": name,
        "codec_type": "AUTO",
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": true},
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
        "http_filters": [extension("envoy.filters.http.router", json!({}), "envoy.extensions.filters.http.router.v3.Router")],
    });
    let mut chain = json!({"filters": [extension(
        "envoy.filters.network.http_connection_manager",
        manager,
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    )]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": name, "address": address(0), "filter_chains": [chain]})
}

fn bootstrap(id: &str, listeners: Vec<Value>, clusters: Vec<Value>) -> Value {
    json!({
        "node": {"id": id, "cluster": id},
        "admin": {"address": address(0)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn identity((chain, key): &(String, String)) -> Value {
    json!([{"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}])
}

fn to_all(cluster: &str) -> Value {
    // Kuma writes the timeout of the policy, and none for streams.
    json!([{"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}])
}

/// The server's sidecar: a listener for each application, mutual TLS in, plain text out. `ports` are those of the applications.
pub fn server(certificates: &Certificates, ports: &dyn Fn(&str) -> u16) -> Value {
    let tls = extension(
        "envoy.transport_sockets.tls",
        json!({
            "require_client_certificate": true,
            "common_tls_context": {
                "tls_certificates": identity(&certificates.backend),
                "validation_context": {
                    "trusted_ca": {"inline_string": certificates.ca},
                    "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://default/"}}],
                },
            },
        }),
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    );
    let applications = [
        ("grpc", Speaks::Http2),
        ("aging", Speaks::Http2),
        ("victim", Speaks::Http2),
        ("tunnel", Speaks::Http2),
        ("websocket", Speaks::Http1),
    ];
    let listeners = applications.iter().map(|(name, _)| listener(name, to_all(name), Some(tls.clone()))).collect();
    let clusters = applications.iter().map(|(name, speaks)| cluster(name, ports(name), *speaks, None)).collect();
    bootstrap("default.backend", listeners, clusters)
}

/// The client's sidecar: a listener for each application, plain text in, mutual TLS out. `ports` are those of the server's sidecar.
pub fn client(certificates: &Certificates, ports: &dyn Fn(&str) -> u16) -> Value {
    let tls = extension(
        "envoy.transport_sockets.tls",
        json!({
            "sni": "a029781856823048e.backend.80.default.ms",
            "common_tls_context": {
                "alpn_protocols": ["kuma"],
                "tls_certificates": identity(&certificates.web),
                "validation_context": {
                    "trusted_ca": {"inline_string": certificates.ca},
                    "match_typed_subject_alt_names": [
                        {"san_type": "URI", "matcher": {"exact": "spiffe://default/backend"}},
                    ],
                },
            },
        }),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    );
    let asks = |route: &str, action: Value| {
        let header = json!({"name": "x-route", "string_match": {"exact": route}});
        json!({"match": {"prefix": "/", "headers": [header]}, "route": action})
    };
    let to_websocket = |cluster: &str| {
        let mut routes = vec![
            asks("idle", json!({"cluster": cluster, "timeout": "0s", "idle_timeout": "2s"})),
            asks("long", json!({"cluster": cluster, "max_stream_duration": {"max_stream_duration": "2s"}})),
        ];
        routes.extend(to_all(cluster).as_array().into_iter().flatten().cloned());
        routes.into()
    };
    let mut to_grpc = vec![
        asks("short", json!({"cluster": "grpc", "timeout": "0.5s"})),
        asks(
            "deadline",
            json!({"cluster": "grpc", "timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "30s"}}),
        ),
    ];
    to_grpc.extend(to_all("grpc").as_array().into_iter().flatten().cloned());
    let listeners = vec![
        listener("grpc", to_grpc.into(), None),
        listener("aging", to_all("aging"), None),
        listener("victim", to_all("victim"), None),
        listener("tunnel", to_all("tunnel"), None),
        listener("websocket_h1", to_websocket("websocket_h1"), None),
        listener("websocket_h2", to_websocket("websocket_h2"), None),
    ];
    let to = |name: &str, application: &str, speaks| cluster(name, ports(application), speaks, Some(tls.clone()));
    let clusters = vec![
        to("grpc", "grpc", Speaks::Http2),
        to("aging", "aging", Speaks::Http2),
        to("victim", "victim", Speaks::Http2),
        to("tunnel", "tunnel", Speaks::Http2),
        to("websocket_h1", "websocket", Speaks::Http1),
        to("websocket_h2", "websocket", Speaks::Http2),
    ];
    bootstrap("default.web", listeners, clusters)
}
