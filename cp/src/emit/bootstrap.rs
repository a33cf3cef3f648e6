//! The bootstrap that a proxy starts with (Kuma `pkg/xds/bootstrap/template_v3.go`).
//!
//! Differences from Kuma 2.14: no `hdsConfig`, as the health discovery service is not served; no statistics tags for Kafka, as no
//! Kafka filter is emitted; the admin interface is on TCP unless [`Bootstrap::admin_socket`] asks for the socket.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// What the bootstrap depends on.
#[derive(Clone, Debug)]
pub struct Bootstrap<'a> {
    /// Mesh of the proxy.
    pub mesh: &'a str,
    /// Name of the Dataplane.
    pub name: &'a str,
    /// `node.cluster`: the service of the proxy, or `unknown`.
    pub cluster: &'a str,
    /// `node.metadata`.
    pub metadata: Value,
    /// Host of this server as the proxy reaches it.
    pub host: &'a str,
    /// Port of this server.
    pub port: u16,
    /// What the proxy must trust to reach this server, PEM.
    pub ca: &'a str,
    /// Token to show; empty for none.
    pub token: &'a str,
    /// Delta rather than state of the world.
    pub delta: bool,
    /// Port of the admin interface on 127.0.0.1; 0 for none.
    pub admin_port: u16,
    /// Admin interface on a socket in the working directory instead.
    pub admin_socket: bool,
    /// Working directory of the proxy; empty if it named none.
    pub work_dir: &'a str,
}

/// Longest path of a socket before its `.sock`, bytes: the limit of UNIX domain sockets.
const MAX_SOCKET_PATH: usize = 98;

/// The path of a socket in `dir`, cut as Kuma cuts it; relative without a directory.
pub(super) fn socket(dir: &str, name: &str) -> String {
    let mut path = if dir.is_empty() { name.to_owned() } else { format!("{}/{name}", dir.trim_end_matches('/')) };
    while path.len() > MAX_SOCKET_PATH {
        path.pop();
    }
    path + ".sock"
}

/// The path of the admin interface's socket.
pub fn admin_socket(work_dir: &str) -> String {
    socket(work_dir, "kuma-envoy-admin")
}

/// The bootstrap as a JSON document, which is a YAML document too.
pub fn bootstrap(of: &Bootstrap<'_>) -> Value {
    let mut grpc_service = json!({"envoyGrpc": {"clusterName": "ads_cluster"}});
    if !of.token.is_empty() {
        grpc_service["initialMetadata"] = json!([{"key": "authorization", "value": of.token}]);
    }
    let source = json!({"ads": {}, "initialFetchTimeout": "0s", "resourceApiVersion": "V3"});
    let mut bootstrap = json!({
        "node": {
            "id": format!("{}.{}", of.mesh, of.name),
            "cluster": of.cluster,
            "metadata": of.metadata,
        },
        "dynamicResources": {
            "adsConfig": {
                "apiType": if of.delta { "DELTA_GRPC" } else { "GRPC" },
                "transportApiVersion": "V3",
                "setNodeOnFirstMessageOnly": true,
                "grpcServices": [grpc_service],
            },
            "cdsConfig": source,
            "ldsConfig": source,
        },
        "staticResources": {
            "clusters": [access_log_sink(of), ads_cluster(of)],
            "secrets": [{
                "name": "cp_validation_ctx",
                "validationContext": {
                    "matchTypedSubjectAltNames": [
                        {"sanType": "DNS", "matcher": {"exact": of.host}},
                        {"sanType": "IP_ADDRESS", "matcher": {"exact": of.host}},
                    ],
                    "trustedCa": {"inlineBytes": STANDARD.encode(of.ca)},
                },
            }],
        },
        "layeredRuntime": {"layers": [{
            "name": "kuma",
            "staticLayer": {
                "re2.max_program_size.error_level": u32::MAX,
                "re2.max_program_size.warn_level": 1000,
            },
        }]},
        "defaultRegexEngine": {
            "name": "envoy.regex_engines.google_re2",
            "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.regex_engines.v3.GoogleRE2"},
        },
        "statsConfig": {"statsTags": [
            {"tagName": "name", "regex": r"^grpc\.((.+)\.)"},
            {"tagName": "status", "regex": "^grpc.*streams_closed(_([0-9]+))"},
            {"tagName": "worker", "regex": r"(worker_([0-9]+)\.)"},
            {"tagName": "listener", "regex": r"((.+?)\.)rbac\."},
        ]},
    });
    let admin_address = if of.admin_socket && !of.work_dir.is_empty() {
        Some(json!({"pipe": {"path": admin_socket(of.work_dir), "mode": 0o600}}))
    } else if of.admin_port != 0 {
        Some(json!({"socketAddress": {"address": "127.0.0.1", "portValue": of.admin_port}}))
    } else {
        None
    };
    if let Some(address) = admin_address {
        bootstrap["admin"] = json!({
            "address": address,
            "accessLog": [{
                "name": "envoy.access_loggers.file",
                "typedConfig": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": "/dev/null",
                },
            }],
        });
    }
    bootstrap
}

fn ads_cluster(of: &Bootstrap<'_>) -> Value {
    let address = json!({"socketAddress": {"address": of.host, "portValue": of.port}});
    let mut cluster = static_cluster("ads_cluster", &address);
    if of.host.parse::<IpAddr>().is_err() {
        cluster["type"] = json!("STRICT_DNS");
    }
    cluster["transportSocket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typedConfig": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": of.host,
            "commonTlsContext": {
                "tlsParams": {"tlsMinimumProtocolVersion": "TLSv1_2"},
                "validationContextSdsSecretConfig": {"name": "cp_validation_ctx"},
            },
        },
    });
    cluster
}

fn access_log_sink(of: &Bootstrap<'_>) -> Value {
    let dir = if of.work_dir.is_empty() { "/tmp" } else { of.work_dir };
    let path = socket(dir, &format!("kuma-al-{}-{}", of.name, of.mesh));
    static_cluster("access_log_sink", &json!({"pipe": {"path": path}}))
}

fn static_cluster(name: &str, address: &Value) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connectTimeout": "1s",
        "loadAssignment": {
            "clusterName": name,
            "endpoints": [{"lbEndpoints": [{"endpoint": {"address": address}}]}],
        },
        "typedExtensionProtocolOptions": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicitHttpConfig": {"http2ProtocolOptions": {}},
            },
        },
        "upstreamConnectionOptions": {
            "tcpKeepalive": {"keepaliveProbes": 3, "keepaliveTime": 10, "keepaliveInterval": 10},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trap 6: what is too long for a socket is cut before the suffix, as the proxy cuts it.
    #[test]
    fn socket_paths_are_cut() {
        assert_eq!(admin_socket("/tmp/kuma-dp-1"), "/tmp/kuma-dp-1/kuma-envoy-admin.sock");
        let long = socket("/tmp", &"x".repeat(200));
        assert_eq!((long.len(), long.ends_with("xxx.sock")), (103, true));
        assert_eq!(socket("/tmp", &"é".repeat(100)).len(), 5 + 92 + 5);
    }
}
