//! `/config_dump`: the configuration in force, as `envoy.admin.v3.ConfigDump`.
//!
//! Written resource by resource, so that 10,000 clusters neither hold up the control thread nor are held twice. Source: Envoy documentation,
//! "Administration interface", and `envoy/admin/v3/config_dump_shared.proto`.

use std::{collections::BTreeSet, rc::Rc, time::SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use regex::Regex;
use serde_json::{Map, Value, json};
use shika_data::model::cluster::{Cluster, Discovery};
use shika_proto::{json::Names, type_url};
use shika_xds::store::{ErrorState, Stored, TypeStore};

use super::{clusters::endpoint_config, inline_routes, json, mask::Mask, query::Query, redact::redact};
use crate::state::State;

const PREFIX: &str = "type.googleapis.com/envoy.admin.v3.";

/// One list of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    StaticClusters,
    ActiveClusters,
    WarmingClusters,
    StaticListeners,
    DynamicListeners,
    StaticRoutes,
    DynamicRoutes,
    StaticSecrets,
    ActiveSecrets,
    WarmingSecrets,
    StaticEndpoints,
    DynamicEndpoints,
}

impl List {
    const ALL: [List; 12] = [
        List::StaticClusters,
        List::ActiveClusters,
        List::WarmingClusters,
        List::StaticListeners,
        List::DynamicListeners,
        List::StaticRoutes,
        List::DynamicRoutes,
        List::StaticSecrets,
        List::ActiveSecrets,
        List::WarmingSecrets,
        List::StaticEndpoints,
        List::DynamicEndpoints,
    ];

    /// Field of the dump, message of the dump, message of an element.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            List::StaticClusters => ("static_clusters", "ClustersConfigDump", "StaticCluster"),
            List::ActiveClusters => ("dynamic_active_clusters", "ClustersConfigDump", "DynamicCluster"),
            List::WarmingClusters => ("dynamic_warming_clusters", "ClustersConfigDump", "DynamicCluster"),
            List::StaticListeners => ("static_listeners", "ListenersConfigDump", "StaticListener"),
            List::DynamicListeners => ("dynamic_listeners", "ListenersConfigDump", "DynamicListener"),
            List::StaticRoutes => ("static_route_configs", "RoutesConfigDump", "StaticRouteConfig"),
            List::DynamicRoutes => ("dynamic_route_configs", "RoutesConfigDump", "DynamicRouteConfig"),
            List::StaticSecrets => ("static_secrets", "SecretsConfigDump", "StaticSecret"),
            List::ActiveSecrets => ("dynamic_active_secrets", "SecretsConfigDump", "DynamicSecret"),
            List::WarmingSecrets => ("dynamic_warming_secrets", "SecretsConfigDump", "DynamicSecret"),
            List::StaticEndpoints => ("static_endpoint_configs", "EndpointsConfigDump", "StaticEndpointConfig"),
            List::DynamicEndpoints => ("dynamic_endpoint_configs", "EndpointsConfigDump", "DynamicEndpointConfig"),
        }
    }

    fn type_url(self) -> &'static str {
        match self {
            List::StaticClusters | List::ActiveClusters | List::WarmingClusters => type_url::CLUSTER,
            List::StaticListeners | List::DynamicListeners => type_url::LISTENER,
            List::StaticRoutes | List::DynamicRoutes => type_url::ROUTE,
            List::StaticSecrets | List::ActiveSecrets | List::WarmingSecrets => type_url::SECRET,
            List::StaticEndpoints | List::DynamicEndpoints => type_url::ENDPOINT,
        }
    }

    /// Field of an element that holds the resource.
    fn resource_field(self) -> &'static str {
        match self {
            List::StaticClusters | List::ActiveClusters | List::WarmingClusters => "cluster",
            List::StaticListeners | List::DynamicListeners => "listener",
            List::StaticRoutes | List::DynamicRoutes => "route_config",
            List::StaticSecrets | List::ActiveSecrets | List::WarmingSecrets => "secret",
            List::StaticEndpoints | List::DynamicEndpoints => "endpoint_config",
        }
    }

    fn is_static(self) -> bool {
        match self {
            List::StaticClusters
            | List::StaticListeners
            | List::StaticRoutes
            | List::StaticSecrets
            | List::StaticEndpoints => true,
            List::ActiveClusters
            | List::WarmingClusters
            | List::DynamicListeners
            | List::DynamicRoutes
            | List::ActiveSecrets
            | List::WarmingSecrets
            | List::DynamicEndpoints => false,
        }
    }

    /// Whether it holds resources that are in force, that wait, or both (`None`).
    fn warming(self) -> Option<bool> {
        match self {
            List::ActiveClusters | List::ActiveSecrets => Some(false),
            List::WarmingClusters | List::WarmingSecrets => Some(true),
            List::StaticClusters
            | List::StaticListeners
            | List::DynamicListeners
            | List::StaticRoutes
            | List::DynamicRoutes
            | List::StaticSecrets
            | List::StaticEndpoints
            | List::DynamicEndpoints => None,
        }
    }

    /// Names in the list now.
    fn entries(self, state: &State, name_regex: Option<&Regex>) -> Vec<String> {
        let wanted = |name: &str| name_regex.is_none_or(|regex| regex.is_match(name));
        if self == List::StaticEndpoints {
            let snapshot = state.snapshot.borrow();
            let fixed =
                snapshot.clusters.iter().flatten().filter(|cluster| !matches!(cluster.discovery, Discovery::Eds(_)));
            let mut names: Vec<_> = fixed.map(|cluster| cluster.name.to_string()).filter(|name| wanted(name)).collect();
            names.sort_unstable();
            return names;
        }
        if self == List::StaticRoutes {
            return inline_routes::keys(state, wanted);
        }
        let compiler = state.compiler.borrow();
        let Some(store) = compiler.store().of(self.type_url()) else { return Vec::new() };
        let names: BTreeSet<&String> = if self.is_static() {
            store.fixed.keys().collect()
        } else {
            let warming = self.warming();
            let held = store
                .dynamic
                .iter()
                .filter(|(_, stored)| warming.is_none_or(|warming| stored.warming == warming))
                .map(|(name, _)| name);
            // A resource that was only ever refused stands with those in force: its error is what there is to see.
            let refused =
                store.errors.keys().filter(|name| warming != Some(true) && !store.dynamic.contains_key(*name));
            held.chain(refused).collect()
        };
        names.into_iter().filter(|name| wanted(name)).cloned().collect()
    }

    /// One element; `None` if it is gone by now.
    fn entry(self, state: &State, name: &str) -> Option<Value> {
        if self == List::StaticEndpoints {
            let snapshot = state.snapshot.borrow();
            let cluster: &Cluster = snapshot.clusters.iter().flatten().find(|cluster| *cluster.name == *name)?;
            return Some(json!({"endpoint_config": endpoint_config(cluster)}));
        }
        if self == List::StaticRoutes {
            return Some(redacted(inline_routes::entry(state, name)?));
        }
        let compiler = state.compiler.borrow();
        let store = compiler.store().of(self.type_url())?;
        let mut entry = Map::new();
        if self.is_static() {
            let stored = store.fixed.get(name)?;
            if self == List::StaticSecrets {
                entry.insert("name".into(), name.into());
            }
            // Static resources have no version; Envoy's secrets list their time first, the others last.
            self.put(&mut entry, stored);
            return Some(redacted(entry));
        }
        self.dynamic(&mut entry, store, name)?;
        Some(redacted(entry))
    }

    fn dynamic(self, entry: &mut Map<String, Value>, store: &TypeStore, name: &str) -> Option<()> {
        let stored = store.dynamic.get(name);
        let error = store.errors.get(name);
        if stored.is_none() && error.is_none() {
            return None;
        }
        if matches!(self, List::DynamicListeners | List::ActiveSecrets | List::WarmingSecrets) {
            entry.insert("name".into(), name.into());
        }
        if let Some(stored) = stored {
            if self == List::DynamicListeners {
                let mut inner = Map::new();
                self.put(&mut inner, stored);
                entry.insert(if stored.warming { "warming_state" } else { "active_state" }.into(), inner.into());
            } else {
                self.put(entry, stored);
            }
        }
        if let Some(error) = error {
            entry.insert("error_state".into(), failure(error));
        }
        Some(())
    }

    fn put(self, entry: &mut Map<String, Value>, stored: &Stored) {
        if !stored.version.is_empty() {
            entry.insert("version_info".into(), stored.version.clone().into());
        }
        entry.insert(self.resource_field().into(), any(&stored.resource));
        entry.insert("last_updated".into(), time(stored.last_updated).into());
    }
}

fn redacted(entry: Map<String, Value>) -> Value {
    let mut value = Value::from(entry);
    redact(&mut value);
    value
}

/// A resource in JSON; one that cannot be printed is named by its type.
pub(super) fn any(resource: &shika_proto::google::protobuf::Any) -> Value {
    shika_proto::json::to_json_value(resource, Names::Proto)
        .unwrap_or_else(|error| json!({"@type": resource.type_url, "error": error.to_string()}))
}

fn failure(error: &ErrorState) -> Value {
    let mut value = Map::new();
    if let Some(resource) = &error.resource {
        value.insert("failed_configuration".into(), any(resource));
    }
    value.insert("last_update_attempt".into(), time(error.last_update_attempt).into());
    value.insert("details".into(), error.details.clone().into());
    if !error.version.is_empty() {
        value.insert("version_info".into(), error.version.clone().into());
    }
    value.into()
}

/// RFC 3339 with milliseconds.
pub fn time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// One step of a dump.
enum Step {
    /// Text as it is.
    Text(String),
    /// An element of a list, at this depth; with a type when it stands alone.
    Entry { list: List, name: String, depth: usize, alone: bool },
}

/// `/config_dump`, made step by step.
pub struct Dump {
    state: Rc<State>,
    steps: std::vec::IntoIter<Step>,
    mask: Option<Mask>,
    /// A comma is due before the next element.
    comma: bool,
}

/// Why there is no dump.
#[derive(Debug, PartialEq, Eq)]
pub enum DumpError {
    /// 400
    Bad(String),
    /// 404
    NotFound(String),
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.state.heap_used.set(true);
    }
}

impl Dump {
    /// By the parameters of a request.
    ///
    /// # Errors
    /// A bad regular expression, or a resource that a dump does not have.
    pub fn new(state: Rc<State>, query: &Query) -> Result<Dump, DumpError> {
        let name_regex = match query.value("name_regex") {
            None | Some("") => None,
            Some(pattern) => Some(
                Regex::new(pattern)
                    .map_err(|_| DumpError::Bad(format!("Error while parsing name_regex from {pattern}")))?,
            ),
        };
        let mask = query.value("mask").filter(|mask| !mask.is_empty()).map(Mask::parse);
        let include_eds = query.has("include_eds");
        let steps = match query.value("resource").filter(|resource| !resource.is_empty()) {
            Some(resource) => alone(&state, resource, name_regex.as_ref())
                .ok_or_else(|| DumpError::NotFound(format!("{resource} not found in config dump")))?,
            None => whole(&state, name_regex.as_ref(), include_eds, mask.as_ref()),
        };
        Ok(Dump { state, steps: steps.into_iter(), mask, comma: false })
    }

    /// Appends about `limit` bytes; `false` when there is no more.
    pub fn write(&mut self, out: &mut String, limit: usize) -> bool {
        while out.len() < limit {
            match self.steps.next() {
                None => return false,
                Some(Step::Text(text)) => {
                    self.comma = false;
                    out.push_str(&text);
                }
                Some(Step::Entry { list, name, depth, alone }) => {
                    let Some(mut entry) = list.entry(&self.state, &name) else { continue };
                    if alone {
                        let (_, message, element) = list.names();
                        let mut typed = Map::new();
                        typed.insert("@type".into(), format!("{PREFIX}{message}.{element}").into());
                        if let Value::Object(fields) = entry {
                            typed.extend(fields);
                        }
                        entry = typed.into();
                    }
                    if let (Some(mask), true) = (&self.mask, alone) {
                        mask.apply(&mut entry);
                    }
                    out.push_str(if self.comma { ",\n" } else { "\n" });
                    json::indent(depth, out);
                    json::pretty(&entry, depth, out);
                    self.comma = true;
                }
            }
        }
        true
    }
}

/// The elements of one list.
fn alone(state: &State, resource: &str, name_regex: Option<&Regex>) -> Option<Vec<Step>> {
    let list = List::ALL.into_iter().find(|list| list.names().0 == resource)?;
    let mut steps = vec![Step::Text("{\n \"configs\": [".into())];
    steps.extend(list.entries(state, name_regex).into_iter().map(|name| Step::Entry {
        list,
        name,
        depth: 2,
        alone: true,
    }));
    steps.push(Step::Text("\n ]\n}\n".into()));
    Some(steps)
}

/// Everything.
fn whole(state: &State, name_regex: Option<&Regex>, include_eds: bool, mask: Option<&Mask>) -> Vec<Step> {
    let mut steps = vec![Step::Text("{\n \"configs\": [\n  ".into())];
    let mut sections = 0;
    let mut section = |steps: &mut Vec<Step>| {
        if sections > 0 {
            steps.push(Step::Text(",\n  ".into()));
        }
        sections += 1;
    };
    if mask.is_none_or(|mask| mask.has("bootstrap")) {
        section(&mut steps);
        let mut bootstrap = shika_proto::json::to_json_value(&state.bootstrap(), Names::Proto).unwrap_or_default();
        redact(&mut bootstrap);
        let mut value = json!({"@type": format!("{PREFIX}BootstrapConfigDump"), "bootstrap": bootstrap, "last_updated": time(state.start_time)});
        if let Some(mask) = mask {
            mask.apply(&mut value);
        }
        let mut text = String::new();
        json::pretty(&value, 2, &mut text);
        steps.push(Step::Text(text));
    }
    let order = [
        "ClustersConfigDump",
        "EndpointsConfigDump",
        "ListenersConfigDump",
        "ScopedRoutesConfigDump",
        "RoutesConfigDump",
        "SecretsConfigDump",
    ];
    for message in order {
        if message == "EndpointsConfigDump" && !include_eds {
            continue;
        }
        let lists: Vec<_> = List::ALL
            .into_iter()
            .filter(|list| list.names().1 == message && mask.is_none_or(|mask| mask.has(list.names().0)))
            .collect();
        if mask.is_some() && lists.is_empty() {
            continue;
        }
        section(&mut steps);
        steps.push(Step::Text(format!("{{\n   \"@type\": \"{PREFIX}{message}\"")));
        if let Some(version) = lists.first().and_then(|list| version(state, *list)) {
            steps.push(Step::Text(format!(",\n   \"version_info\": {}", Value::from(version))));
        }
        for list in lists {
            let names = list.entries(state, name_regex);
            if names.is_empty() {
                continue;
            }
            steps.push(Step::Text(format!(",\n   \"{}\": [", list.names().0)));
            steps.extend(names.into_iter().map(|name| Step::Entry { list, name, depth: 4, alone: false }));
            steps.push(Step::Text("\n   ]".into()));
        }
        steps.push(Step::Text("\n  }".into()));
    }
    steps.push(Step::Text("\n ]\n}\n".into()));
    steps
}

/// `version_info` of clusters and listeners, the messages that have one.
fn version(state: &State, list: List) -> Option<String> {
    if !matches!(list.type_url(), type_url::CLUSTER | type_url::LISTENER) {
        return None;
    }
    let compiler = state.compiler.borrow();
    compiler.store().of(list.type_url()).map(|store| store.version.clone()).filter(|version| !version.is_empty())
}
