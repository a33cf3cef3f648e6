//! What a proxy says of itself: the node of its first request.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use shika_proto::envoy::config::core::v3::Node;
use shika_proto::google::protobuf::value::Kind;
use shika_proto::google::protobuf::{self, Struct};

use crate::plan::{AdminEndpoint, ProxyFeatures, Redirection};
use crate::resource::{EnvoyVersion, InsightVersion, KumaDpVersion, ProxyType, ResourceKey};

/// Deepest nesting of the metadata that is looked at.
const MAX_DEPTH: usize = 32;

/// A proxy as its node describes it.
#[derive(Clone, Debug)]
pub(super) struct ProxyNode {
    pub(super) proxy_type: ProxyType,
    /// Empty for a zone ingress or a zone egress, which serves all meshes.
    pub(super) mesh: String,
    pub(super) name: String,
    /// Text of the Dataplane that the proxy brings along (`dataplane.resource`).
    pub(super) dataplane: Option<String>,
    pub(super) features: ProxyFeatures,
    pub(super) version: Option<InsightVersion>,
    pub(super) metadata: Value,
}

/// Splits a node id at the first dot: `<mesh>.<name>`, or `.<name>` for a zone ingress or a zone egress.
pub(super) fn split_id(id: &str, proxy_type: ProxyType) -> Option<(&str, &str)> {
    let of_mesh = proxy_type == ProxyType::Dataplane;
    id.split_once('.').filter(|(mesh, name)| mesh.is_empty() != of_mesh && !name.is_empty())
}

impl ProxyNode {
    /// The resource that describes the proxy.
    pub(super) fn key(&self) -> ResourceKey {
        ResourceKey::new(self.proxy_type.kind(), &self.mesh, &self.name)
    }

    /// The id of the node.
    pub(super) fn id(&self) -> String {
        format!("{}.{}", self.mesh, self.name)
    }

    /// Reads a node; the error says what is wrong with it.
    pub(super) fn read(node: &Node) -> Result<Self, String> {
        let metadata = node.metadata.as_ref().map_or_else(|| Value::Object(Map::new()), |s| object(s, 0));
        let text = |key: &str| metadata.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        let written = text("dataplane.proxyType").unwrap_or_default();
        let proxy_type = ProxyType::parse(written).ok_or_else(|| {
            format!("node.metadata[\"dataplane.proxyType\"] is {written:?}; it must be dataplane, ingress or egress")
        })?;
        let (mesh, name) = split_id(&node.id, proxy_type).ok_or_else(|| {
            let expected = if proxy_type == ProxyType::Dataplane { "<mesh>.<name>" } else { ".<name>" };
            format!("node.id {:?} is not {expected}; is the bootstrap from this control plane?", node.id)
        })?;
        Ok(ProxyNode {
            proxy_type,
            mesh: mesh.to_owned(),
            name: name.to_owned(),
            dataplane: text("dataplane.resource").map(str::to_owned),
            features: features(&metadata)?,
            version: metadata.get("version").map(version),
            metadata,
        })
    }
}

/// What the metadata announces. Ports are strings there (trap 6); numbers are understood too.
fn features(metadata: &Value) -> Result<ProxyFeatures, String> {
    let announced = metadata.get("features").and_then(Value::as_array);
    let has = |feature: &str| announced.is_some_and(|all| all.iter().any(|f| f.as_str() == Some(feature)));
    let text = |key: &str| metadata.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let port_at = |key: &str| match metadata.get(key) {
        None => Ok(0),
        Some(value) => port(value).ok_or_else(|| format!("node.metadata[{key:?}] is {value}, which is no port")),
    };
    let redirection = match metadata.get("transparentProxy").filter(|settings| settings.is_object()) {
        _ if !has("feature-transparent-proxy-in-dataplane-metadata") => None,
        None => Some(Redirection::default()),
        Some(settings) => Some(redirection(settings)?),
    };
    let admin_port = port_at("dataplane.admin.port")?;
    let (address, socket) = (text("dataplane.admin.address"), text("dataplane.admin.socketPath"));
    Ok(ProxyFeatures {
        reuse_port: has("feature-reuse-port"),
        ipv6: metadata.get("ipv6Enabled").and_then(Value::as_bool).unwrap_or(true),
        strict_inbound_ports: has("feature-strict-inbound-ports"),
        bind_outbounds: has("feature-bind-outbounds"),
        embedded_dns: has("feature-embedded-dns"),
        work_dir: text("workdir"),
        dns_port: port_at("dataplane.dns.port")?,
        redirection,
        admin: (admin_port != 0).then_some(AdminEndpoint { address, port: admin_port, socket }),
        readiness_port: port_at("dataplane.readinessReporter.port")?,
        app_probe_proxy: text("dataplane.appProbeProxy.enabled") == "true",
        metrics_cert_path: text("metricsCertPath"),
        metrics_key_path: text("metricsKeyPath"),
        system_ca_path: text("systemCaPath"),
    })
}

/// `{ipFamilyMode, redirect: {inbound: {enabled, port}, outbound: {enabled, port}}}` (Kuma
/// `pkg/transparentproxy/config/dataplane`).
fn redirection(settings: &Value) -> Result<Redirection, String> {
    let flow = |name: &str| {
        let flow = settings.get("redirect").and_then(|redirect| redirect.get(name));
        if flow.and_then(|flow| flow.get("enabled")).and_then(Value::as_bool) != Some(true) {
            return Ok(0);
        }
        let value = flow.and_then(|flow| flow.get("port")).unwrap_or(&Value::Null);
        port(value).ok_or_else(|| {
            format!("node.metadata[\"transparentProxy\"].redirect.{name}.port is {value}, which is no port")
        })
    };
    let mode = settings.get("ipFamilyMode").and_then(Value::as_str).unwrap_or_default();
    Ok(Redirection { inbound: flow("inbound")?, outbound: flow("outbound")?, ipv6: Redirection::includes_ipv6(mode) })
}

/// A port, as a number or as text.
fn port(value: &Value) -> Option<u32> {
    let port = match value {
        Value::String(text) => text.parse::<u16>().ok()?,
        // Numbers of a protobuf structure are floating point; a port is exact in it.
        Value::Number(number) => number.to_string().trim_end_matches(".0").parse::<u16>().ok()?,
        _ => return None,
    };
    Some(u32::from(port))
}

/// `{kumaDp: {…}, envoy: {…}}` of the metadata.
fn version(value: &Value) -> InsightVersion {
    let text = |part: &str, key: &str| {
        value.get(part).and_then(|part| part.get(key)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let flag = |part: &str, key: &str| {
        value.get(part).and_then(|part| part.get(key)).and_then(Value::as_bool).unwrap_or_default()
    };
    InsightVersion {
        kuma_dp: KumaDpVersion {
            version: text("kumaDp", "version"),
            git_tag: text("kumaDp", "gitTag"),
            git_commit: text("kumaDp", "gitCommit"),
            build_date: text("kumaDp", "buildDate"),
            kuma_cp_compatible: true,
        },
        envoy: EnvoyVersion {
            version: text("envoy", "version"),
            build: text("envoy", "build"),
            kuma_dp_compatible: flag("envoy", "kumaDpCompatible"),
        },
        dependencies: BTreeMap::new(),
    }
}

fn object(fields: &Struct, depth: usize) -> Value {
    let sorted: BTreeMap<&String, &protobuf::Value> = fields.fields.iter().collect();
    Value::Object(sorted.into_iter().map(|(key, value)| (key.clone(), json(value, depth + 1))).collect())
}

fn json(value: &protobuf::Value, depth: usize) -> Value {
    match &value.kind {
        _ if depth > MAX_DEPTH => Value::Null,
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => serde_json::Number::from_f64(*number).map_or(Value::Null, Value::Number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::StructValue(fields)) => object(fields, depth),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(|value| json(value, depth + 1)).collect()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn node(id: &str, metadata: &[(&str, &str)]) -> Node {
        let text = |text: &str| protobuf::Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let fields = metadata.iter().map(|(key, value)| ((*key).to_owned(), text(value))).collect();
        Node { id: id.to_owned(), metadata: Some(Struct { fields }), ..Node::default() }
    }

    /// Trap 6: the id splits at the first dot.
    #[test]
    fn ids_split_at_the_first_dot() {
        for (id, proxy_type, expected) in [
            ("default.web-1", "", Some(("default", "web-1"))),
            ("default.web-1.shop", "dataplane", Some(("default", "web-1.shop"))),
            (".ingress.kuma-system", "ingress", Some(("", "ingress.kuma-system"))),
            ("default.ingress", "ingress", None),
            (".web-1", "", None),
            ("default.", "", None),
            ("default", "", None),
            ("", "egress", None),
        ] {
            let read = ProxyNode::read(&node(id, &[("dataplane.proxyType", proxy_type)]));
            let found = read.as_ref().ok().map(|node| (node.mesh.as_str(), node.name.as_str()));
            assert_eq!(found, expected, "{id} {proxy_type}");
        }
    }

    /// Trap 6: ports and booleans are strings.
    #[test]
    fn ports_and_booleans_are_strings() {
        let given = [
            ("dataplane.admin.port", "9901"),
            ("dataplane.dns.port", "15053"),
            ("dataplane.readinessReporter.port", "9902"),
            ("dataplane.appProbeProxy.enabled", "true"),
        ];
        let features = ProxyNode::read(&node("m.d", &given)).unwrap().features;
        let admin = features.admin.unwrap();
        assert_eq!((admin.port, features.dns_port, features.readiness_port), (9901, 15053, 9902));
        assert!(features.app_probe_proxy);
        for (key, value) in [("dataplane.admin.port", "x"), ("dataplane.dns.port", "70000")] {
            let error = ProxyNode::read(&node("m.d", &[(key, value)])).err().unwrap();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }
}
