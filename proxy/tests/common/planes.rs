//! The ways in which a proxy is subscribed to a control plane, and resources for tests of them.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;

use shika_proto::{
    any,
    envoy::{
        config::{
            bootstrap::v3::bootstrap::StaticResources, cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener, route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
    },
    google::protobuf::Any,
    json,
};

use super::{
    Proxy,
    control_plane::{Streams, control_plane},
    http_listener,
};

/// How the proxy is subscribed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// ADS, delta.
    DeltaAds,
    /// ADS, state of the world.
    Ads,
    /// A stream for each type, delta.
    Delta,
    /// A stream for each type, state of the world.
    Grpc,
}

impl Variant {
    pub const ALL: [Variant; 4] = [Variant::DeltaAds, Variant::Ads, Variant::Delta, Variant::Grpc];

    fn api(self) -> String {
        let kind = match self {
            Variant::DeltaAds | Variant::Delta => "DELTA_GRPC",
            Variant::Ads | Variant::Grpc => "GRPC",
        };
        format!(
            "{{api_type: {kind}, transport_api_version: V3, set_node_on_first_message_only: true, grpc_services: [{{envoy_grpc: {{cluster_name: cp}}}}]}}"
        )
    }

    /// Only what changed is sent.
    pub fn is_delta(self) -> bool {
        matches!(self, Variant::DeltaAds | Variant::Delta)
    }

    /// Where resources come from. `timeout` is `initial_fetch_timeout`.
    pub fn source(self, timeout: &str) -> String {
        let from = match self {
            Variant::DeltaAds | Variant::Ads => "ads: {}".to_owned(),
            Variant::Delta | Variant::Grpc => format!("api_config_source: {}", self.api()),
        };
        format!("{{{from}, resource_api_version: V3, initial_fetch_timeout: {timeout}}}")
    }

    /// A bootstrap that takes everything from the control plane at `cp`. `clusters` are static ones besides.
    pub fn bootstrap(self, cp: SocketAddr, clusters: &str) -> String {
        let ads = match self {
            Variant::DeltaAds | Variant::Ads => format!("ads_config: {}", self.api()),
            Variant::Delta | Variant::Grpc => String::new(),
        };
        format!(
            "node: {{id: mesh.proxy, cluster: test}}
dynamic_resources:
  {ads}
  cds_config: {source}
  lds_config: {source}
static_resources:
  clusters:
  - name: cp
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: cp, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}]}}
{clusters}",
            source = self.source("0s"),
            port = cp.port()
        )
    }

    /// A proxy under a control plane.
    pub async fn start(self, clusters: &str, args: &[&str]) -> (Proxy, Streams) {
        let (address, sessions) = control_plane().await;
        (Proxy::start(&self.bootstrap(address, clusters), args), Streams::new(sessions))
    }
}

/// A listener named `web` on a free port, with these fields of its connection manager.
pub fn listener(manager: &str) -> Any {
    named_listener("web", manager)
}

/// The same with another name.
pub fn named_listener(name: &str, manager: &str) -> Any {
    listener_of(&http_listener(name, "127.0.0.1:0", manager))
}

/// A listener from YAML, as an item of a list.
pub fn listener_of(text: &str) -> Any {
    let resources: StaticResources = json::from_yaml(&format!("listeners:{text}")).unwrap();
    any::pack::<Listener>(&resources.listeners[0])
}

/// Routes that lie in the listener: everything is answered with `body`.
pub fn inline(body: &str) -> Any {
    listener(&format!("route_config: {{virtual_hosts: [{}]}}", answers(body)))
}

/// A listener whose routes come from RDS.
pub fn by_rds(variant: Variant, name: &str, timeout: &str) -> Any {
    listener(&format!("rds: {{route_config_name: {name}, config_source: {}}}", variant.source(timeout)))
}

/// A virtual host that answers everything with `body`.
pub fn answers(body: &str) -> String {
    format!(
        "{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {body}}}}}}}]}}"
    )
}

/// A virtual host that sends everything to a cluster.
pub fn leads_to(cluster: &str) -> String {
    format!(
        "{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, route: {{cluster: {cluster}, timeout: 0s}}}}]}}"
    )
}

/// A route table of one virtual host.
pub fn routes(name: &str, host: &str) -> Any {
    any::pack(&json::from_yaml::<RouteConfiguration>(&format!("name: {name}\nvirtual_hosts: [{host}]")).unwrap())
}

/// A static cluster.
pub fn cluster(name: &str, address: SocketAddr) -> Any {
    cluster_of(&super::cluster(name, &address.to_string()))
}

/// A cluster from YAML, as an item of a list.
pub fn cluster_of(text: &str) -> Any {
    let resources: StaticResources = json::from_yaml(&format!("clusters:{text}")).unwrap();
    any::pack::<Cluster>(&resources.clusters[0])
}

/// A cluster whose endpoints come from EDS under the name `service`. `more` are further fields.
pub fn eds_cluster(variant: Variant, name: &str, service: &str, timeout: &str, more: &str) -> Any {
    let source = variant.source(timeout);
    cluster_of(&format!(
        "\n  - name: {name}\n    type: EDS\n    connect_timeout: 5s\n    eds_cluster_config: {{service_name: {service}, eds_config: {source}}}\n{more}"
    ))
}

/// Its endpoints.
pub fn endpoints(service: &str, address: SocketAddr) -> Any {
    let text = format!(
        "cluster_name: {service}\nendpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}]}}]",
        address.ip(),
        address.port()
    );
    any::pack(&json::from_yaml::<ClusterLoadAssignment>(&text).unwrap())
}

/// A secret with a certificate.
pub fn certificate(name: &str, chain: &str, key: &str) -> Any {
    let text = |pem: &str| serde_json::to_string(pem).unwrap();
    let yaml = format!(
        "name: {name}\ntls_certificate: {{certificate_chain: {{inline_string: {}}}, private_key: {{inline_string: {}}}}}",
        text(chain),
        text(key)
    );
    any::pack(&json::from_yaml::<Secret>(&yaml).unwrap())
}

/// A secret with the authorities that are believed.
pub fn authorities(name: &str, bundle: &str) -> Any {
    let bundle = serde_json::to_string(bundle).unwrap();
    let yaml = format!("name: {name}\nvalidation_context: {{trusted_ca: {{inline_string: {bundle}}}}}");
    any::pack(&json::from_yaml::<Secret>(&yaml).unwrap())
}
