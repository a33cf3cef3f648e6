//! Responses and files, resource by resource.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use prost::{Message, Name};
use serde_json::Value;
use shika_data::model::{ListenerId, RouteTableId, listener::TrafficDirection};
use shika_proto::{
    any,
    envoy::{
        config::{
            cluster::v3 as clusters, endpoint::v3::ClusterLoadAssignment, listener::v3 as listeners,
            route::v3::RouteConfiguration,
        },
        service::runtime::v3 as proto_runtime,
    },
    google::protobuf::Any,
    type_url,
};

use crate::{
    compile::{
        Compiled, Context, Fault, Within, cluster,
        endpoints::{self, Names},
        listener::{self, ChainIds, CompiledListener},
        route,
        tls::Secrets,
    },
    compiler::{Applied, CompileOptions, Compiler, Resource, RouteKey, Update, UpdateKind},
    fixed::struct_value,
    harmless,
    reject::Reject,
    store::{Stored, content_hash},
    subscription,
    warm::{ClusterState, ListenerSlot, ListenerState},
};

mod secrets;

/// Most names of one type that the store holds; a control plane that sends more is refused the rest.
const MOST_RESOURCES: usize = 1_000_000;

/// What became of one resource.
enum Outcome {
    Changed,
    Unchanged,
    /// Nothing asks for it.
    Unwanted,
}

impl Compiler {
    /// Takes one response or file. A refused resource does not keep the others out, and its last accepted version stays. When something changed,
    /// [`Self::build`] says what to publish.
    pub fn apply(&mut self, update: Update, now: Instant) -> Applied {
        let mut applied = Applied::default();
        let began = Instant::now();
        let kind = update.type_url.as_str();
        if !matches!(
            kind,
            type_url::CLUSTER
                | type_url::LISTENER
                | type_url::ENDPOINT
                | type_url::ROUTE
                | type_url::SECRET
                | type_url::RUNTIME
        ) {
            applied.rejects.push(Reject::new(
                kind,
                "",
                "",
                "resources of this type were not asked for and are not supported",
            ));
            return applied;
        }
        // Worked out once per response: what it brings does not change what is wanted, and a first push may bring ten thousand.
        let wanted = match kind {
            type_url::CLUSTER | type_url::LISTENER | type_url::ENDPOINT => None,
            _ => Some(self.names(kind)),
        };
        let mut seen: BTreeSet<String> = BTreeSet::new();
        for resource in update.resources {
            let resource = match resource.unwrapped() {
                Ok(resource) => resource,
                Err((name, fault)) => {
                    applied.rejects.push(Reject::new(kind, &name, fault.path, fault.reason));
                    continue;
                }
            };
            let name = match resource.own_name(kind) {
                Ok(name) => name,
                Err(fault) => {
                    applied.rejects.push(Reject::new(kind, &resource.name, fault.path, fault.reason));
                    continue;
                }
            };
            let outcome = if !seen.insert(name.clone()) {
                Err(vec![Fault::new("name", format!("duplicate {} {name} found", crate::reject::short_type(kind)))])
            } else if wanted.as_ref().is_some_and(|wanted| !wanted.contains(name.as_str()))
                || (kind == type_url::ENDPOINT && !self.clusters.ask_for(&name))
            {
                Ok(Outcome::Unwanted)
            } else {
                self.one(kind, &name, &resource, now)
            };
            if !matches!(outcome, Ok(Outcome::Unwanted)) {
                self.arrived(kind, &name, &resource.version, outcome.is_ok(), began.elapsed());
            }
            match outcome {
                Ok(Outcome::Changed) => applied.changed = true,
                Ok(Outcome::Unchanged) => applied.unchanged += 1,
                Ok(Outcome::Unwanted) => {}
                Err(faults) => {
                    let rejects = faults.into_iter().map(|fault| Reject::new(kind, &name, fault.path, fault.reason));
                    for reject in rejects {
                        self.store.refuse(&reject, Some(resource.resource.clone()), &resource.version);
                        applied.rejects.push(reject);
                    }
                }
            }
        }
        let removed: Vec<String> = match update.kind {
            UpdateKind::Delta => update.removed,
            UpdateKind::FullState => match kind {
                type_url::CLUSTER | type_url::LISTENER => {
                    // What was refused and is not sent any more is refused no more.
                    self.store.of_mut(kind).errors.retain(|name, _| seen.contains(name));
                    let held = self.store.of(kind).into_iter().flat_map(|store| store.dynamic.keys());
                    held.filter(|name| !seen.contains(*name)).cloned().collect()
                }
                // What a response about other types does not mention stays as it is.
                _ => Vec::new(),
            },
        };
        for name in removed {
            applied.changed |= self.remove(kind, &name);
        }
        self.finish(kind, &update.version, &mut applied, began.elapsed());
        applied
    }

    /// Counts what became of a resource that something asked for by its name.
    fn arrived(&self, kind: &str, name: &str, version: &str, accepted: bool, took: Duration) {
        match kind {
            // Those that are accepted are counted where they are put to use.
            type_url::ENDPOINT if !accepted => {
                for state in self.clusters.that_ask_for(name) {
                    if let Some(eds) = &state.compiled.eds_stats {
                        subscription::endpoints(&state.compiled.cluster.stats, eds, version, accepted, took);
                    }
                }
            }
            type_url::ROUTE => {
                let states = self.listeners.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
                for rds in states.flat_map(|state| &state.compiled.chains).filter_map(|chain| chain.rds.as_ref()) {
                    rds.arrived(name, version, accepted, took);
                }
            }
            type_url::SECRET => {
                if let Some(stats) = self.sds.get(name) {
                    subscription::arrived(stats, version, accepted, took);
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, kind: &str, version: &str, applied: &mut Applied, took: Duration) {
        let (whole, stats) = match kind {
            type_url::CLUSTER => (&mut self.cds, &self.stats.cds),
            type_url::LISTENER => (&mut self.lds, &self.stats.lds),
            _ => {
                if applied.rejects.is_empty() {
                    self.store.of_mut(kind).version = version.to_owned();
                }
                return;
            }
        };
        if !whole.arrived {
            whole.arrived = true;
            // An empty first response too lets the start go on.
            applied.changed = true;
        }
        subscription::arrived(stats, version, applied.rejects.is_empty(), took);
        if applied.rejects.is_empty() {
            self.store.of_mut(kind).version = version.to_owned();
        }
        self.changed |= applied.changed;
    }

    fn one(&mut self, kind: &str, name: &str, resource: &Resource, now: Instant) -> Result<Outcome, Vec<Fault>> {
        let hash = content_hash(&resource.resource.value);
        let store = self.store.of_mut(kind);
        if store.fixed.contains_key(name) && matches!(kind, type_url::CLUSTER | type_url::LISTENER) {
            return Err(vec![Fault::new(
                "name",
                "a static resource of the bootstrap has this name and cannot be changed",
            )]);
        }
        // It keeps the version that it came with, as in Envoy: the one in force is that of its last change.
        if let Some(stored) = store.dynamic.get(name)
            && stored.hash == hash
            && stored.resource.value == resource.resource.value
        {
            store.errors.remove(name);
            return Ok(Outcome::Unchanged);
        }
        if store.dynamic.len() >= MOST_RESOURCES && !store.dynamic.contains_key(name) {
            return Err(vec![Fault::new("", format!("more than {MOST_RESOURCES} resources of one type"))]);
        }
        let full_name = type_url::message_name(kind).unwrap_or_default();
        let passed = harmless::check(full_name, &resource.resource.value, self.options.reject_unknown_dynamic_fields)?;
        let stored = Stored {
            resource: resource.resource.clone(),
            version: resource.version.clone(),
            hash,
            last_updated: SystemTime::now(),
            warming: false,
        };
        let warming = match kind {
            type_url::CLUSTER => self.cluster_update(&decode(&resource.resource)?, false, now).map(|()| true),
            type_url::LISTENER => {
                self.listener_update(&decode(&resource.resource)?, name, stored.clone(), false, now).map(|()| true)
            }
            type_url::ENDPOINT => {
                self.assignment(&decode(&resource.resource)?, name, &resource.version).map(|()| false)
            }
            type_url::ROUTE => self.route_table(&decode(&resource.resource)?, name).map(|()| false),
            type_url::RUNTIME => self.runtime_layer(&decode(&resource.resource)?, name).map(|()| false),
            _ => self.secret(&decode(&resource.resource)?, name).map(|()| false),
        }
        .map_err(|fault| vec![fault])?;
        for one in passed {
            self.harmless.note(
                &one.field,
                || format!("{} {name:?}: {}", crate::reject::short_type(kind), one.path),
                one.why,
            );
        }
        let store = self.store.of_mut(kind);
        store.errors.remove(name);
        store.dynamic.insert(name.to_owned(), Stored { warming, ..stored });
        // Endpoints are in force already, on every worker; only what waits may have got what it waits for.
        self.changed |= kind != type_url::ENDPOINT || self.clusters.waiting().next().is_some();
        Ok(Outcome::Changed)
    }

    fn remove(&mut self, kind: &str, name: &str) -> bool {
        let store = self.store.of_mut(kind);
        store.errors.remove(name);
        match kind {
            type_url::CLUSTER => match self.clusters.slot(name) {
                Some(slot) if !slot.fixed => {
                    store.dynamic.remove(name);
                    self.stats.clusters.cluster_removed().inc();
                    self.clusters.remove(name);
                    self.asks_changed();
                    self.changed = true;
                    true
                }
                Some(_) | None => false,
            },
            type_url::LISTENER => match self.listeners.get_mut(name) {
                Some(slot) if !slot.fixed && (slot.active.is_some() || slot.warming.is_some()) => {
                    store.dynamic.remove(name);
                    self.stats.listeners.listener_removed().inc();
                    (slot.active, slot.warming) = (None, None);
                    self.waiting_listeners.remove(name);
                    self.asks_changed();
                    self.changed = true;
                    true
                }
                Some(_) | None => false,
            },
            // As in Envoy, routes, endpoints and secrets that are removed while something asks for them stay in force.
            _ => false,
        }
    }

    /// Takes a cluster.
    pub(crate) fn cluster_update(&mut self, from: &clusters::Cluster, fixed: bool, now: Instant) -> Compiled<()> {
        let compiled = self.with_context(|context, _| cluster::cluster(context, from))?;
        for tls in &compiled.tls {
            let context =
                tls.build(&self.secrets).map_err(|reason| Fault::new("transport_socket.typed_config", reason))?;
            tls.handle.context.store(context);
        }
        let name = compiled.cluster.name.clone();
        let before = self.clusters.slot(&name);
        let active = before.and_then(|slot| slot.active.as_deref());
        let existed = active.is_some();
        let latest = before.and_then(|slot| slot.warming.as_deref()).or(active);
        let state = ClusterState::new(compiled, latest, now);
        if let Some(assignment) = state.assignment().and_then(|name| self.assignments.get(name)) {
            let old = active.map(|old| old.compiled.cluster.endpoints.load_full());
            state.assign(assignment, old.as_deref());
        }
        self.clusters.accept(name, fixed, state);
        self.asks_changed();
        let stats = &self.stats.clusters;
        if existed {
            stats.cluster_modified().inc()
        } else {
            stats.cluster_added().inc()
        }
        Ok(())
    }

    /// Takes a listener.
    pub(crate) fn listener_update(
        &mut self,
        from: &listeners::Listener,
        name: &str,
        stored: Stored,
        fixed: bool,
        now: Instant,
    ) -> Compiled<()> {
        let next = ListenerId(self.listeners.len() as u32);
        // The ids are taken out for the time of compiling: the table of listeners is not looked at meanwhile.
        let (id, mut chain_ids, old) = match self.listeners.get_mut(name) {
            Some(slot) => {
                let old = slot.active.as_ref().map(|state| state.compiled.chains.clone()).unwrap_or_default();
                (slot.id, std::mem::take(&mut slot.chain_ids), old)
            }
            None => (next, ChainIds::default(), Vec::new()),
        };
        let compiled = self.with_context(|context, route_ids| {
            listener::listener(context, from, id, &mut chain_ids, &old, &mut |chain, name| {
                route_ids(match name {
                    Some(name) => RouteKey::Rds(name.into()),
                    None => RouteKey::Inline(id, chain),
                })
            })
        });
        let built = compiled.and_then(|compiled| {
            self.build_contexts(&compiled)?;
            Ok(compiled)
        });
        if let Some(slot) = self.listeners.get_mut(name) {
            slot.chain_ids = std::mem::take(&mut chain_ids);
        }
        let compiled = match built {
            Ok(compiled) => compiled,
            Err(fault) => {
                self.stats.listeners.listener_create_failure().inc();
                return Err(fault);
            }
        };
        let slot = self.listeners.entry(name.into()).or_insert_with(|| ListenerSlot {
            id,
            fixed,
            chain_ids,
            active: None,
            warming: None,
            previous: None,
            bound: None,
        });
        slot.fixed = fixed;
        let stats = &self.stats.listeners;
        if slot.active.is_some() {
            stats.listener_modified().inc()
        } else {
            stats.listener_added().inc()
        }
        slot.warming = Some(ListenerState::new(compiled, Stored { warming: true, ..stored }, now));
        self.waiting_listeners.insert(name.into());
        self.asks_changed();
        Ok(())
    }

    /// Builds the TLS contexts of new chains; those of chains that stayed the same are in force already.
    fn build_contexts(&self, compiled: &CompiledListener) -> Compiled<()> {
        for (index, chain) in compiled.chains.iter().enumerate() {
            let Some(tls) = &chain.tls else { continue };
            if tls.handle.context.load().is_some() {
                continue;
            }
            let context = tls
                .build(&self.secrets)
                .map_err(|reason| Fault::new("transport_socket.typed_config", reason))
                .at("filter_chains", index)?;
            tls.put_in_force(context);
        }
        Ok(())
    }

    fn assignment(&mut self, from: &ClusterLoadAssignment, name: &str, version: &str) -> Compiled<()> {
        let began = Instant::now();
        let assignment = endpoints::assignment(from, Names::Refused)?;
        for state in self.clusters.that_ask_for(name) {
            state.assign(&assignment, None);
            if let Some(eds) = &state.compiled.eds_stats {
                subscription::endpoints(&state.compiled.cluster.stats, eds, version, true, began.elapsed());
            }
        }
        self.assignments.insert(name.into(), assignment);
        Ok(())
    }

    fn route_table(&mut self, from: &RouteConfiguration, name: &str) -> Compiled<()> {
        let table = self.with_context(|context, route_ids| {
            let id = route_ids(RouteKey::Rds(name.into()));
            route::table(context, from, id, false)
        })?;
        self.tables.insert(name.into(), Arc::new(table));
        Ok(())
    }

    /// Takes the values of an RTDS layer.
    fn runtime_layer(&mut self, from: &proto_runtime::Runtime, name: &str) -> Compiled<()> {
        let values = match &from.layer {
            Some(layer) => struct_value(layer).within("layer")?,
            None => Value::Null,
        };
        self.runtime.update(name, values.as_object().cloned().unwrap_or_default())
    }

    /// Runs `compile` with all it reads and fills; the second argument gives ids of route tables.
    pub(crate) fn with_context<T>(
        &mut self,
        compile: impl FnOnce(&mut Context<'_>, &mut dyn FnMut(RouteKey) -> RouteTableId) -> Compiled<T>,
    ) -> Compiled<T> {
        let Secrets { fixed, dynamic: _ } = &self.secrets;
        let (runtime, clusters) = (&mut self.runtime, &self.clusters);
        let CompileOptions {
            hostname,
            concurrency: _,
            reject_unknown_dynamic_fields: _,
            log_sink,
            span_sink,
            log_collector,
        } = &mut self.options;
        let mut context = Context {
            registry: &self.registry,
            log_sink: &mut **log_sink,
            span_sink: &mut **span_sink,
            log_collector: &mut **log_collector,
            direction: TrafficDirection::Unspecified,
            hostname,
            local_cluster: &self.local_cluster,
            bind_source: self.bind_source,
            clusters: &mut self.cluster_ids,
            connection_limit: &mut |listener| runtime.limit(listener),
            cluster_exists: &|name| clusters.contains(name),
            servers: &self.servers,
            static_secret_exists: &|name| fixed.contains_key(name),
        };
        let ids = &mut self.route_ids;
        compile(&mut context, &mut |key| {
            let next = RouteTableId(ids.len() as u32);
            *ids.entry(key).or_insert(next)
        })
    }
}

fn decode<M: Message + Name + Default>(resource: &Any) -> Result<M, Vec<Fault>> {
    any::unpack(resource).map_err(|error| vec![Fault::new("", error.to_string())])
}
