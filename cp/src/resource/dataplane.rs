//! Dataplane (Kuma `api/mesh/v1alpha1/dataplane.proto`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::{self, is_default};
use super::{LegacyMetricsBackend, PROTOCOL_TAG, SERVICE_TAG};

/// One workload proxy: where it listens, what it serves, what it calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Dataplane {
    /// Addresses, inbounds and outbounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<Networking>,
    /// Legacy setting of metrics, over that of the mesh; see [`Mesh::prometheus_of`](super::Mesh::prometheus_of).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<LegacyMetricsBackend>,
    /// Virtual probes, kept as given: `{port, endpoints: [{inboundPort, inboundPath, path}]}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Value>,
}

impl Dataplane {
    /// The inbounds.
    pub fn inbounds(&self) -> &[Inbound] {
        self.networking.as_ref().map(|networking| networking.inbound.as_slice()).unwrap_or_default()
    }

    /// The outbounds.
    pub fn outbounds(&self) -> &[Outbound] {
        self.networking.as_ref().map(|networking| networking.outbound.as_slice()).unwrap_or_default()
    }

    /// The address of the proxy; empty only in a Dataplane that was not validated.
    pub fn address(&self) -> &str {
        self.networking.as_ref().map(|networking| networking.address.as_str()).unwrap_or_default()
    }

    /// The address under which others reach the proxy: the advertised one if there is one (Kuma `DataplaneResource.GetIP`).
    pub fn advertised(&self) -> &str {
        let advertised = self.networking.as_ref().map(|networking| networking.advertised_address.as_str());
        advertised.filter(|address| !address.is_empty()).unwrap_or_else(|| self.address())
    }

    /// Every tag with every value that it has on an inbound or on the gateway (Kuma `Dataplane.TagSet`).
    pub fn tags(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let Some(networking) = &self.networking else { return all };
        let gateway = networking.gateway.as_ref().map(|gateway| &gateway.tags);
        for tags in networking.inbound.iter().map(|inbound| &inbound.tags).chain(gateway) {
            for (tag, value) in tags {
                all.entry(tag.clone()).or_default().insert(value.clone());
            }
        }
        all
    }

    /// Notes the zone in the tags of every inbound and of the gateway (Kuma `setInboundsClusterTag`), so that other zones and
    /// policies know where the proxy is.
    pub fn set_zone(&mut self, zone: &str) {
        let Some(networking) = &mut self.networking else { return };
        let gateway = networking.gateway.as_mut().map(|gateway| &mut gateway.tags);
        for tags in networking.inbound.iter_mut().map(|inbound| &mut inbound.tags).chain(gateway) {
            tags.insert("kuma.io/zone".to_owned(), zone.to_owned());
        }
    }

    /// Whether the proxy is a gateway, delegated or builtin.
    pub fn is_gateway(&self) -> bool {
        self.networking.as_ref().is_some_and(|networking| networking.gateway.is_some())
    }
}

/// Addresses, inbounds and outbounds of a Dataplane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Networking {
    /// Where other proxies reach this one: an IP address or a DNS name.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// Where other proxies reach this one when that differs from the address it listens on.
    #[serde(alias = "advertised_address", skip_serializing_if = "is_default")]
    pub advertised_address: String,
    /// Makes the proxy a gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// What the proxy serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inbound: Vec<Inbound>,
    /// What the proxy calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbound: Vec<Outbound>,
    /// Redirection of the workload's traffic.
    #[serde(alias = "transparent_proxying", skip_serializing_if = "Option::is_none")]
    pub transparent_proxying: Option<TransparentProxying>,
    /// The admin endpoint of the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
    /// Listeners of a zone proxy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
}

/// A service that the proxy serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Inbound {
    /// The port that the proxy listens on and that peers dial.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub port: u32,
    /// The port of the application; 0 means `port`.
    #[serde(alias = "service_port", deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub service_port: u32,
    /// The address of the application; empty means the listening address.
    #[serde(alias = "service_address", skip_serializing_if = "is_default")]
    pub service_address: String,
    /// The address that the proxy listens on; empty means `networking.address`.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// The tags, `kuma.io/service` among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Health as a health check saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// How the proxy checks the application.
    #[serde(alias = "service_probe", skip_serializing_if = "Option::is_none")]
    pub service_probe: Option<ServiceProbe>,
    /// Whether traffic is sent to this inbound.
    #[serde(skip_serializing_if = "is_default")]
    pub state: InboundState,
    /// The name of this inbound; empty means its port.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// The application protocol; wins over the tag `kuma.io/protocol`.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: String,
}

impl Inbound {
    /// The service, from the tag `kuma.io/service`.
    pub fn service(&self) -> Option<&str> {
        self.tags.get(SERVICE_TAG).map(String::as_str)
    }

    /// The application protocol as written, lower case: the field, else the tag, else empty (treated as TCP).
    pub fn protocol(&self) -> String {
        let written = if self.protocol.is_empty() { self.tags.get(PROTOCOL_TAG) } else { Some(&self.protocol) };
        written.map(|protocol| protocol.to_ascii_lowercase()).unwrap_or_default()
    }

    /// The port of the application.
    pub fn application_port(&self) -> u32 {
        if self.service_port == 0 { self.port } else { self.service_port }
    }

    /// The name that policies call this inbound by (`sectionName`): its name, else its port.
    pub fn section_name(&self) -> String {
        if self.name.is_empty() { self.port.to_string() } else { self.name.clone() }
    }

    /// Whether peers may send traffic here: state `Ready`, and not unhealthy.
    pub fn is_healthy(&self) -> bool {
        self.state == InboundState::Ready && self.health.as_ref().is_none_or(|health| health.ready)
    }
}

/// Health of an inbound as a health check saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    /// Whether it is ready.
    #[serde(skip_serializing_if = "is_default")]
    pub ready: bool,
}

/// How the proxy checks the application. Durations as protobuf writes them (`10s`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceProbe {
    /// Between two checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// For one check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Failures in a row that make it unhealthy.
    #[serde(alias = "unhealthy_threshold", skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row that make it healthy.
    #[serde(alias = "healthy_threshold", skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<u32>,
    /// A TCP connection as check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Value>,
}

/// Whether traffic is sent to an inbound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InboundState {
    /// Yes.
    #[default]
    Ready,
    /// No, and the proxy counts as degraded.
    NotReady,
    /// No, and the proxy does not count as degraded.
    Ignored,
}

/// A service that the proxy calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outbound {
    /// The address to listen on; empty means 127.0.0.1.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// The port to listen on.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub port: u32,
    /// The destination by tags, `kuma.io/service` among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The destination as a reference to a resource.
    #[serde(alias = "backend_ref", skip_serializing_if = "Option::is_none")]
    pub backend_ref: Option<BackendRef>,
}

impl Outbound {
    /// The service, from the tag `kuma.io/service`.
    pub fn service(&self) -> Option<&str> {
        self.tags.get(SERVICE_TAG).map(String::as_str)
    }

    /// The address to listen on, with its default.
    pub fn listen_address(&self) -> &str {
        if self.address.is_empty() { "127.0.0.1" } else { &self.address }
    }
}

/// A reference to a service resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendRef {
    /// `MeshService`, `MeshExternalService` or `MeshMultiZoneService`.
    #[serde(skip_serializing_if = "is_default")]
    pub kind: String,
    /// The name; excludes labels.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// The port.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub port: u32,
    /// Labels; exclude a name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Makes a proxy a gateway.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Gateway {
    /// The tags, `kuma.io/service` among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whose gateway it is.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: GatewayType,
}

/// Whose gateway it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum GatewayType {
    /// Another product takes the traffic in, the proxy serves its outbounds.
    #[default]
    Delegated,
    /// The proxy itself is the gateway.
    Builtin,
}

/// Redirection of the workload's traffic through the proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TransparentProxying {
    /// The port that inbound traffic is redirected to.
    #[serde(alias = "redirect_port_inbound", deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub redirect_port_inbound: u32,
    /// The port that outbound traffic is redirected to.
    #[serde(alias = "redirect_port_outbound", deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub redirect_port_outbound: u32,
    /// Services whose instances are reached by their own addresses.
    #[serde(alias = "direct_access_services", skip_serializing_if = "Vec::is_empty")]
    pub direct_access_services: Vec<String>,
    /// Services that the workload calls; empty means all.
    #[serde(alias = "reachable_services", skip_serializing_if = "Vec::is_empty")]
    pub reachable_services: Vec<String>,
    /// `UnSpecified`, `DualStack`, `IPv4` or `IPv6`.
    #[serde(alias = "ip_family_mode", skip_serializing_if = "is_default")]
    pub ip_family_mode: String,
    /// Service resources that the workload calls.
    #[serde(alias = "reachable_backends", skip_serializing_if = "Option::is_none")]
    pub reachable_backends: Option<Value>,
}

/// The admin endpoint of a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Admin {
    /// The port.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub port: u32,
}

/// A listener of a zone proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Listener {
    /// `ZoneIngress` or `ZoneEgress`.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// The address to listen on.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// The port to listen on.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub port: u32,
    /// The name.
    #[serde(skip_serializing_if = "is_default")]
    pub name: String,
    /// Whether traffic is sent to it.
    #[serde(skip_serializing_if = "is_default")]
    pub state: InboundState,
}
