//! Zone, ZoneIngress, ZoneEgress and what is known of them (Kuma `api/system/v1alpha1/zone*.proto`,
//! `api/mesh/v1alpha1/zone_ingress*.proto`, `zoneegress*.proto`).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::{self, is_default};
use super::{Admin, Kind, SERVICE_TAG, ServiceStats, Subscription};

/// What a proxy is (Kuma `ProxyType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyType {
    /// The proxy of one workload, or a gateway.
    Dataplane,
    /// A zone ingress.
    Ingress,
    /// A zone egress.
    Egress,
}

impl ProxyType {
    /// The type that is written so; empty means a Dataplane.
    pub fn parse(text: &str) -> Option<ProxyType> {
        match text {
            "" | "dataplane" => Some(ProxyType::Dataplane),
            "ingress" => Some(ProxyType::Ingress),
            "egress" => Some(ProxyType::Egress),
            _ => None,
        }
    }

    /// As bootstraps and node metadata have it.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyType::Dataplane => "dataplane",
            ProxyType::Ingress => "ingress",
            ProxyType::Egress => "egress",
        }
    }

    /// The kind of resource that describes such a proxy.
    pub fn kind(self) -> Kind {
        match self {
            ProxyType::Dataplane => Kind::Dataplane,
            ProxyType::Ingress => Kind::ZoneIngress,
            ProxyType::Egress => Kind::ZoneEgress,
        }
    }

    /// The kind of insight that is written of such a proxy.
    pub fn insight(self) -> Kind {
        match self {
            ProxyType::Dataplane => Kind::DataplaneInsight,
            ProxyType::Ingress => Kind::ZoneIngressInsight,
            ProxyType::Egress => Kind::ZoneEgressInsight,
        }
    }
}

/// A zone of a mesh over several zones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Zone {
    /// Whether what the zone offers is known to other zones; unset means yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

impl Zone {
    /// Whether what the zone offers is known to other zones.
    pub fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

/// A proxy that lets other zones' traffic into this one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneIngress {
    /// The zone it is in; set by the control plane of that zone.
    #[serde(skip_serializing_if = "is_default")]
    pub zone: String,
    /// Where it listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<ZoneIngressNetworking>,
    /// The services of its zone that other zones may call; set by the control plane of that zone.
    #[serde(alias = "available_services", skip_serializing_if = "Vec::is_empty")]
    pub available_services: Vec<AvailableService>,
}

impl ZoneIngress {
    /// Where other zones reach it: the advertised address and port, if both are known.
    pub fn advertised(&self) -> Option<(&str, u32)> {
        let networking = self.networking.as_ref()?;
        let known = !networking.advertised_address.is_empty() && networking.advertised_port != 0;
        known.then_some((networking.advertised_address.as_str(), networking.advertised_port))
    }
}

/// Where a zone ingress listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneIngressNetworking {
    /// The address to listen on: an IP address or a DNS name.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// Where other zones reach it, if both this and the port are known.
    #[serde(alias = "advertised_address", skip_serializing_if = "is_default")]
    pub advertised_address: String,
    /// The port to listen on.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub port: u32,
    /// The port on which other zones reach it.
    #[serde(alias = "advertised_port", deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub advertised_port: u32,
    /// The admin endpoint of the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
}

/// A set of tags with which other zones may call into a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AvailableService {
    /// The tags of the instances, `kuma.io/service` among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// How many instances have them.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub instances: u32,
    /// Their mesh.
    #[serde(skip_serializing_if = "is_default")]
    pub mesh: String,
    /// Whether it is an ExternalService.
    #[serde(alias = "external_service", skip_serializing_if = "is_default")]
    pub external_service: bool,
}

impl AvailableService {
    /// The service, from the tag `kuma.io/service`.
    pub fn service(&self) -> Option<&str> {
        self.tags.get(SERVICE_TAG).map(String::as_str)
    }
}

/// A proxy that takes traffic for other zones and for services outside the mesh out of this zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneEgress {
    /// The zone it is in; set by the control plane of that zone.
    #[serde(skip_serializing_if = "is_default")]
    pub zone: String,
    /// Where it listens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<ZoneEgressNetworking>,
}

/// Where a zone egress listens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneEgressNetworking {
    /// The address to listen on: an IP address or a DNS name.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// The port to listen on.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub port: u32,
    /// The admin endpoint of the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Admin>,
}

/// What the control plane knows of a zone ingress or a zone egress: its streams and what was sent to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneProxyInsight {
    /// The ADS streams of the proxy, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<Subscription>,
    /// The node metadata that the proxy announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
}

impl ZoneProxyInsight {
    /// Whether the proxy has a stream to a control plane now.
    pub fn is_online(&self) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.disconnect_time.is_none())
    }
}

/// What the global control plane knows of a zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ZoneInsight {
    /// The connections of the zone, oldest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subscriptions: Vec<KdsSubscription>,
    /// Which instance of the global control plane holds the streams of the admin interface.
    #[serde(alias = "envoy_admin_streams", skip_serializing_if = "Option::is_none")]
    pub envoy_admin_streams: Option<Value>,
    /// When the zone last said that it is there.
    #[serde(alias = "health_check", skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Which instance of the global control plane holds which stream.
    #[serde(alias = "kds_streams", skip_serializing_if = "Option::is_none")]
    pub kds_streams: Option<KdsStreams>,
}

impl ZoneInsight {
    /// Whether the zone has a connection to global now (Kuma `ZoneInsight.IsOnline`).
    pub fn is_online(&self) -> bool {
        self.subscriptions.iter().any(|subscription| subscription.disconnect_time.is_none())
    }
}

/// When a zone last said that it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthCheck {
    /// The time, by the clock of the global control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<DateTime<Utc>>,
}

/// Which instance of the global control plane holds which stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KdsStreams {
    /// From global to the zone.
    #[serde(alias = "global_to_zone", skip_serializing_if = "Option::is_none")]
    pub global_to_zone: Option<KdsStream>,
    /// From the zone to global.
    #[serde(alias = "zone_to_global", skip_serializing_if = "Option::is_none")]
    pub zone_to_global: Option<KdsStream>,
    /// Configurations of proxies.
    #[serde(alias = "config_dump", skip_serializing_if = "Option::is_none")]
    pub config_dump: Option<KdsStream>,
    /// Statistics of proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<KdsStream>,
    /// Clusters of proxies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clusters: Option<KdsStream>,
}

/// One stream between a zone and global.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KdsStream {
    /// The instance of the global control plane.
    #[serde(alias = "global_instance_id", skip_serializing_if = "is_default")]
    pub global_instance_id: String,
    /// When it began.
    #[serde(alias = "connect_time", skip_serializing_if = "Option::is_none")]
    pub connect_time: Option<DateTime<Utc>>,
}

/// One connection of a zone to global.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KdsSubscription {
    /// Unique identifier of the connection.
    pub id: String,
    /// The instance of the global control plane.
    #[serde(alias = "global_instance_id", skip_serializing_if = "is_default")]
    pub global_instance_id: String,
    /// The instance of the zone control plane.
    #[serde(alias = "zone_instance_id", skip_serializing_if = "is_default")]
    pub zone_instance_id: String,
    /// When it began.
    #[serde(alias = "connect_time", skip_serializing_if = "Option::is_none")]
    pub connect_time: Option<DateTime<Utc>>,
    /// When it ended; absent while it lasts.
    #[serde(alias = "disconnect_time", skip_serializing_if = "Option::is_none")]
    pub disconnect_time: Option<DateTime<Utc>>,
    /// What was sent and how it was answered.
    #[serde(skip_serializing_if = "is_default")]
    pub status: KdsStatus,
    /// The version of the zone control plane, as it announced it: `{kumaCp: {version, …}}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Value>,
    /// Counts the writes of this subscription, so that one whose control plane died can be told from a quiet one.
    #[serde(deserialize_with = "wire::u32", skip_serializing_if = "is_default")]
    pub generation: u32,
    /// The configuration of the zone control plane, JSON.
    #[serde(skip_serializing_if = "is_default")]
    pub config: String,
    /// Whether the zone proved its name with a token.
    #[serde(alias = "auth_token_provided", skip_serializing_if = "is_default")]
    pub auth_token_provided: bool,
}

/// What was sent to a zone and how it was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KdsStatus {
    /// When these figures last changed.
    #[serde(alias = "last_update_time", skip_serializing_if = "Option::is_none")]
    pub last_update_time: Option<DateTime<Utc>>,
    /// All kinds together.
    pub total: ServiceStats,
    /// By kind.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stat: BTreeMap<String, ServiceStats>,
}
