//! The bootstrap: static resources, and what else it asks for.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime},
};

use prost::Message;
use serde_json::{Map, Value};
use shika_proto::{
    any,
    bootstrap::EncodedBootstrap,
    envoy::{
        config::{
            bootstrap::v3::{self as proto, Bootstrap, bootstrap::StaticResources, runtime_layer::LayerSpecifier},
            cluster::v3::Cluster,
            core::v3::{ApiConfigSource, ConfigSource, Node, TypedExtensionConfig, node::UserAgentVersionType},
            metrics::v3::{StatsConfig, tag_specifier::TagValue},
        },
        extensions::{regex_engines::v3::GoogleRe2, transport_sockets::tls::v3::Secret},
    },
    google::protobuf::Struct,
    json, type_url,
};

use crate::{
    bootstrap::{Admin, ApiConfig, ApiType, BootstrapPlan, Source, StatsTag, StatsTagValue, TagRegex},
    compile::{
        Compiled, Fault, Within, access_log, address,
        config_source::{self, Servers, Through},
        flag, non_empty, positive, required, secret,
    },
    compiler::{Compiler, Whole},
    harmless, overload,
    reject::Reject,
    runtime::Layer,
    store::{Stored, content_hash},
    warm::timeout_of_source,
};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

impl Compiler {
    /// Takes the static resources of a bootstrap: all of them or none. Called once, first; [`Self::build`] then gives the first plan. A decoded
    /// cluster has some twenty times the size of its bytes, so that each is decoded when its turn comes and let go of at once.
    ///
    /// # Errors
    /// Every refusal, with the path from the root: `static_resources.listeners[0].address`.
    pub fn load_static(&mut self, encoded: &EncodedBootstrap, now: Instant) -> Result<BootstrapPlan, Vec<Reject>> {
        let passed = harmless::check(BOOTSTRAP, encoded.bytes(), true).map_err(|faults| {
            faults.into_iter().map(|fault| refusal(type_url::BOOTSTRAP, "", fault)).collect::<Vec<_>>()
        })?;
        let mut bootstrap = encoded
            .frame()
            .map_err(|error| vec![refusal(type_url::BOOTSTRAP, "", Fault::new("", error.to_string()))])?;
        let mut rejects = Vec::new();
        // First, because static clusters have it too.
        let bind = bootstrap.cluster_manager.as_ref().and_then(|manager| manager.upstream_bind_config.as_ref());
        match bind.map(address::source).transpose().within("upstream_bind_config").within("cluster_manager") {
            Ok(source) => self.bind_source = source.flatten(),
            Err(fault) => rejects.push(refusal(type_url::BOOTSTRAP, "", fault)),
        }
        // A cluster that cannot be read is refused in its turn.
        self.servers = Servers::of(&bootstrap, encoded.cluster_heads().flatten());
        self.local_cluster = bootstrap.node.as_ref().map(|node| node.cluster.clone()).unwrap_or_default();
        let resources = bootstrap.static_resources.take().unwrap_or_default();
        self.static_resources(resources, encoded, now, &mut rejects);
        let plan = match self.rest(&bootstrap, now) {
            Ok(plan) if rejects.is_empty() => plan,
            Ok(_) => return Err(rejects),
            Err(fault) => {
                rejects.push(refusal(type_url::BOOTSTRAP, "", fault));
                return Err(rejects);
            }
        };
        for one in passed {
            self.harmless.note(&one.field, || format!("Bootstrap: {}", one.path), one.why);
        }
        let whole = |source: &Option<Source>| Whole {
            source: source.clone(),
            deadline: source.as_ref().and_then(timeout_of_source).and_then(|timeout| now.checked_add(timeout)),
            ..Default::default()
        };
        (self.cds, self.lds) = (whole(&plan.cds), whole(&plan.lds));
        self.changed = true;
        Ok(plan)
    }

    fn static_resources(
        &mut self,
        resources: StaticResources,
        encoded: &EncodedBootstrap,
        now: Instant,
        rejects: &mut Vec<Reject>,
    ) {
        let mut refuse = |type_url: &str, name: &str, field: &str, index: usize, fault: Fault| {
            let placed: Compiled<()> = Err(fault).at(field, index).within("static_resources");
            if let Err(fault) = placed {
                rejects.push(refusal(type_url, name, fault));
            }
        };
        for (index, one) in resources.secrets.iter().enumerate() {
            let done = (|| {
                non_empty(&one.name, "name")?;
                if self.secrets.fixed.contains_key(one.name.as_str()) {
                    return Err(Fault::new("name", format!("duplicate static secret {}", one.name)));
                }
                self.secrets.fixed.insert(one.name.as_str().into(), secret::secret(one)?);
                Ok(())
            })();
            match done {
                Ok(()) => {
                    let stored = Stored { warming: false, ..stored(type_url::SECRET, one.encode_to_vec()) };
                    self.store.of_mut(type_url::SECRET).fixed.insert(one.name.clone(), stored);
                }
                Err(fault) => refuse(type_url::SECRET, &one.name, "secrets", index, fault),
            }
        }
        for (index, one) in encoded.clusters().enumerate() {
            let (name, done) = match one {
                Ok(one) => (one.name.clone(), self.static_cluster(one, now)),
                Err(error) => (String::new(), Err(Fault::new("", error.to_string()))),
            };
            if let Err(fault) = done {
                refuse(type_url::CLUSTER, &name, "clusters", index, fault);
            }
        }
        let mut names: BTreeSet<String> = BTreeSet::new();
        for (index, one) in resources.listeners.into_iter().enumerate() {
            // Envoy makes up a name for a static listener without one.
            let name =
                if one.name.is_empty() { format!("static_resources.listeners[{index}]") } else { one.name.clone() };
            let stored = stored(type_url::LISTENER, one.encode_to_vec());
            let done = if names.insert(name.clone()) {
                self.listener_update(&one, &name, stored.clone(), true, now)
            } else {
                Err(Fault::new("name", format!("error adding listener: duplicate listener '{name}'")))
            };
            match done {
                Ok(()) => {
                    self.store.of_mut(type_url::LISTENER).fixed.insert(name, stored);
                }
                Err(fault) => refuse(type_url::LISTENER, &name, "listeners", index, fault),
            }
        }
    }

    fn static_cluster(&mut self, one: Cluster, now: Instant) -> Compiled<()> {
        if self.clusters.contains(one.name.as_str()) {
            return Err(Fault::new("name", format!("cluster manager: duplicate cluster '{}'", one.name)));
        }
        self.cluster_update(&one, true, now)?;
        let stored = stored(type_url::CLUSTER, one.encode_to_vec());
        self.store.of_mut(type_url::CLUSTER).fixed.insert(one.name, stored);
        Ok(())
    }

    /// Puts another value of a static secret in force, for whoever gave the first one and has a new one. What uses it has to work with it.
    ///
    /// # Errors
    /// The secret is none of the bootstrap's, or cannot be used; the old value stays.
    pub fn replace_static_secret(&mut self, from: &Secret) -> Result<(), Reject> {
        let refuse = |reason: String| Reject::new(type_url::SECRET, &from.name, secret::content_field(from), reason);
        if !self.secrets.fixed.contains_key(from.name.as_str()) {
            return Err(refuse("is no static secret".into()));
        }
        let value = secret::secret(from).map_err(|fault| refusal(type_url::SECRET, &from.name, fault))?;
        let old = self.secrets.fixed.insert(from.name.as_str().into(), value);
        match self.contexts_with(&from.name) {
            Ok(contexts) => {
                for context in contexts {
                    context.put_in_force();
                }
            }
            Err(reason) => {
                self.secrets.fixed.extend(old.map(|old| (from.name.as_str().into(), old)));
                return Err(refuse(reason));
            }
        }
        let stored = Stored { warming: false, ..stored(type_url::SECRET, from.encode_to_vec()) };
        self.store.of_mut(type_url::SECRET).fixed.insert(from.name.clone(), stored);
        Ok(())
    }

    /// Everything but the static resources.
    fn rest(&mut self, bootstrap: &Bootstrap, now: Instant) -> Compiled<BootstrapPlan> {
        if let Some(engine) = &bootstrap.default_regex_engine {
            regex_engine(engine).within("default_regex_engine")?;
        }
        let admin = match &bootstrap.admin {
            Some(admin) => self.admin(admin).within("admin")?,
            None => None,
        };
        let (mut ads, mut cds, mut lds) = (None, None, None);
        if let Some(dynamic) = &bootstrap.dynamic_resources {
            (|| {
                ads =
                    dynamic.ads_config.as_ref().map(|config| self.ads(config, now)).transpose().within("ads_config")?;
                let config = |from: &Option<ConfigSource>, field: &str| -> Compiled<Option<Source>> {
                    let Some(from) = from else { return Ok(None) };
                    config_source::config(from, &self.servers, Through::Primary).within(field).map(Some)
                };
                cds = config(&dynamic.cds_config, "cds_config")?;
                lds = config(&dynamic.lds_config, "lds_config")?;
                Ok(())
            })()
            .within("dynamic_resources")?;
        }
        let served = |source: &Option<Source>| matches!(source, Some(Source::Api { .. }));
        let node = node(bootstrap.node.as_ref(), ads.is_some() || served(&cds) || served(&lds)).within("node")?;
        let (stats_tags, default_tags) = match &bootstrap.stats_config {
            Some(config) => stats(config).within("stats_config")?,
            None => (Vec::new(), true),
        };
        for (index, layer) in bootstrap.layered_runtime.iter().flat_map(|runtime| &runtime.layers).enumerate() {
            let layer = runtime_layer(layer, &self.servers).at("layers", index).within("layered_runtime")?;
            self.runtime.layers.push(layer);
        }
        self.runtime.apply();
        let overload = bootstrap.overload_manager.as_ref().map(overload::overload).transpose();
        let mut overload = overload.within("overload_manager")?;
        if let Some(most) = self.runtime.global_limit() {
            overload.get_or_insert_default().most_connections.get_or_insert(most);
        }
        Ok(BootstrapPlan {
            node,
            admin,
            ads,
            cds,
            lds,
            stats_tags,
            default_tags,
            overload,
            stats_flush_interval: positive(&bootstrap.stats_flush_interval, "stats_flush_interval")?
                .unwrap_or(Duration::from_secs(5)),
        })
    }

    fn admin(&mut self, from: &proto::Admin) -> Compiled<Option<Admin>> {
        let Some(address) = &from.address else { return Ok(None) };
        let address = address::bind(address).within("address")?;
        if matches!(address, shika_data::model::listener::BindAddress::Udp(_)) {
            return Err(Fault::new("address.socket_address.protocol", "the admin interface needs TCP"));
        }
        let access_log =
            self.with_context(|context, _| access_log::access_logs(context, &from.access_log, "access_log"))?;
        Ok(Some(Admin { address, access_log }))
    }

    fn ads(&mut self, from: &ApiConfigSource, now: Instant) -> Compiled<ApiConfig> {
        let (config, cluster) = config_source::api(from, &self.servers, Through::Primary)?;
        if matches!(config.api_type, ApiType::Rest { .. }) {
            return Err(Fault::new("api_type", "ADS needs GRPC or DELTA_GRPC"));
        }
        if let Some(cluster) = cluster {
            self.static_cluster(cluster, now).within("google_grpc").at("grpc_services", 0)?;
        }
        Ok(config)
    }
}

/// A layer of runtime values.
fn runtime_layer(from: &proto::RuntimeLayer, servers: &Servers) -> Compiled<Layer> {
    let name = non_empty(&from.name, "name")?;
    let mut layer = Layer { name: name.to_owned(), values: Value::Object(Map::new()), rtds: None };
    match &from.layer_specifier {
        Some(LayerSpecifier::StaticLayer(values)) => layer.values = struct_value(values).within("static_layer")?,
        Some(LayerSpecifier::RtdsLayer(rtds)) => {
            let resource = if rtds.name.is_empty() { name } else { &rtds.name };
            let source = required(&rtds.rtds_config, "rtds_config")
                .and_then(|from| config_source::config(from, servers, Through::Primary).within("rtds_config"))
                .within("rtds_layer")?;
            layer.rtds = Some((resource.into(), source));
        }
        Some(LayerSpecifier::DiskLayer(_) | LayerSpecifier::AdminLayer(_)) | None => {}
    }
    Ok(layer)
}

/// A structure as JSON.
pub(crate) fn struct_value(from: &Struct) -> Compiled<Value> {
    json::wire_to_json_value("google.protobuf.Struct", &from.encode_to_vec(), json::Names::Proto)
        .map_err(|error| Fault::new("", error.to_string()))
}

/// A static resource as it is kept.
fn stored(type_url: &str, bytes: Vec<u8>) -> Stored {
    Stored {
        hash: content_hash(&bytes),
        resource: shika_proto::google::protobuf::Any { type_url: type_url.into(), value: bytes },
        version: String::new(),
        last_updated: SystemTime::now(),
        warming: true,
    }
}

fn refusal(type_url: &str, name: &str, fault: Fault) -> Reject {
    Reject::new(type_url, name, fault.path, fault.reason)
}

fn regex_engine(engine: &TypedExtensionConfig) -> Compiled<()> {
    let content = required(&engine.typed_config, "typed_config")?;
    if any::is::<GoogleRe2>(content) {
        return Ok(());
    }
    Err(Fault::new("typed_config", format!("regex engine {} is not supported", content.type_url)))
}

fn node(from: Option<&Node>, needed: bool) -> Compiled<Node> {
    let mut node = from.cloned().unwrap_or_default();
    if needed {
        for (value, field) in [(&node.id, "id"), (&node.cluster, "cluster")] {
            if value.is_empty() {
                return Err(Fault::new(
                    field,
                    "node 'id' and 'cluster' are required with dynamic resources: set them here or with --service-node and --service-cluster",
                ));
            }
        }
    }
    if node.user_agent_name.is_empty() {
        node.user_agent_name = "shika".into();
    }
    if node.user_agent_version_type.is_none() {
        node.user_agent_version_type = Some(UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").into()));
    }
    Ok(node)
}

fn stats(from: &StatsConfig) -> Compiled<(Vec<StatsTag>, bool)> {
    let mut tags = Vec::with_capacity(from.stats_tags.len());
    for (index, tag) in from.stats_tags.iter().enumerate() {
        let value = match &tag.tag_value {
            None => StatsTagValue::Default,
            Some(TagValue::FixedValue(value)) => StatsTagValue::Fixed(value.clone()),
            Some(TagValue::Regex(pattern)) if pattern.is_empty() => StatsTagValue::Default,
            Some(TagValue::Regex(pattern)) => StatsTagValue::Regex(TagRegex::new(pattern).map_err(|why| {
                Fault::new(format!("stats_tags[{index}].regex"), format!("invalid regex '{pattern}': {why}"))
            })?),
        };
        tags.push(StatsTag { name: tag.tag_name.clone(), value });
    }
    Ok((tags, flag(&from.use_all_default_tags, true)))
}
