//! What is to be asked for because of the clusters and listeners that there are: resources, names, files, checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shika_data::model::cluster::Cluster;
use shika_proto::type_url;

use crate::{
    bootstrap::{ApiConfig, Source},
    compile::tls::SecretRef,
    compiler::{Compiler, DnsTarget, Wanted},
    runtime::Layer,
};

impl Compiler {
    /// Something may ask for other resources than before.
    pub(crate) fn asks_changed(&mut self) {
        self.revision += 1;
    }

    /// Changes whenever what is to be asked for may be other than before: names, files, checks and resources. While it does not, [`Self::wanted`] and its
    /// like need not be asked.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Which resources of a type are wanted on the ADS stream now. LDS waits until the first CDS response is warm.
    pub fn wanted(&self, type_url: &str) -> Wanted {
        let ads = |source: &Source| matches!(source, Source::Ads { .. });
        match type_url {
            type_url::CLUSTER if self.cds.source.as_ref().is_some_and(ads) => Wanted::All,
            type_url::LISTENER if self.cds.settled && self.lds.source.as_ref().is_some_and(ads) => Wanted::All,
            type_url::ENDPOINT | type_url::ROUTE | type_url::SECRET | type_url::RUNTIME => {
                Wanted::Names(self.sources(type_url).filter(|(_, source)| ads(source)).map(|(name, _)| name).collect())
            }
            _ => Wanted::None,
        }
    }

    /// What is wanted now of servers of single types (`api_config_source`), by server and type; LDS waits as in [`Self::wanted`].
    pub fn wanted_apis(&self) -> BTreeMap<(Arc<ApiConfig>, &'static str), Wanted> {
        let mut wanted = BTreeMap::new();
        for (type_url, whole) in [(type_url::CLUSTER, &self.cds), (type_url::LISTENER, &self.lds)] {
            if let Some(Source::Api { api, .. }) = &whole.source
                && (type_url == type_url::CLUSTER || self.cds.settled)
            {
                wanted.insert((api.clone(), type_url), Wanted::All);
            }
        }
        for type_url in [type_url::ENDPOINT, type_url::ROUTE, type_url::SECRET, type_url::RUNTIME] {
            for (name, source) in self.sources(type_url) {
                let Source::Api { api, .. } = source else { continue };
                let names = wanted.entry((api, type_url)).or_insert_with(|| Wanted::Names(BTreeSet::new()));
                if let Wanted::Names(names) = names {
                    names.insert(name);
                }
            }
        }
        wanted
    }

    /// Files to watch, with the type of what is in them.
    pub fn wanted_files(&self) -> Vec<(String, Source)> {
        let wholes = [(type_url::CLUSTER, &self.cds), (type_url::LISTENER, &self.lds)];
        let mut files: Vec<(String, Source)> = wholes
            .into_iter()
            .filter_map(|(type_url, whole)| Some((type_url.to_owned(), whole.source.clone()?)))
            .chain(
                [type_url::ENDPOINT, type_url::ROUTE, type_url::SECRET, type_url::RUNTIME]
                    .into_iter()
                    .flat_map(|type_url| self.sources(type_url).map(move |(_, source)| (type_url.to_owned(), source))),
            )
            .filter(|(_, source)| matches!(source, Source::File { .. }))
            .collect();
        files.dedup();
        files
    }

    /// Names of a type that are asked for, wherever from.
    pub(crate) fn names(&self, type_url: &str) -> BTreeSet<Arc<str>> {
        self.sources(type_url).map(|(name, _)| name).collect()
    }

    /// Everything that clusters and listeners, active and warming, ask for.
    fn sources(&self, type_url: &str) -> Box<dyn Iterator<Item = (Arc<str>, Source)> + '_> {
        let clusters = self.clusters.states();
        let listeners = self.listeners.values().flat_map(|slot| slot.active.iter().chain(&slot.warming));
        match type_url {
            type_url::ENDPOINT => Box::new(clusters.filter_map(|state| state.compiled.eds.clone())),
            type_url::ROUTE => Box::new(
                listeners.flat_map(|state| state.route_names()).map(|(name, source)| (name.clone(), source.clone())),
            ),
            type_url::RUNTIME => Box::new(self.runtime.layers.iter().filter_map(|layer| layer.rtds.clone())),
            type_url::SECRET => {
                let secrets: BTreeSet<SecretRef> = clusters
                    .flat_map(|state| state.secrets())
                    .chain(listeners.flat_map(|state| state.secrets()))
                    .collect();
                Box::new(secrets.into_iter().filter_map(|secret| Some((secret.name, secret.source?))))
            }
            _ => Box::new(std::iter::empty()),
        }
    }

    /// The layers of runtime values, as they are now.
    pub fn runtime_layers(&self) -> &[Layer] {
        &self.runtime.layers
    }

    /// Clusters whose endpoints are to be checked: those that wait for it too.
    pub fn health_targets(&self) -> Vec<Arc<Cluster>> {
        let clusters = self.clusters.states().map(|state| &state.compiled.cluster);
        clusters.filter(|cluster| cluster.health.is_some()).cloned().collect()
    }

    /// Names to resolve.
    pub fn dns_targets(&self) -> Vec<DnsTarget> {
        let mut targets = Vec::new();
        for state in self.clusters.slots().filter_map(|slot| slot.warming.as_ref().or(slot.active.as_ref())) {
            let Some(dns) = &state.compiled.dns else { continue };
            for hostname in state.compiled.assignment.names().collect::<BTreeSet<_>>() {
                targets.push(DnsTarget {
                    cluster: state.compiled.cluster.name.clone(),
                    hostname: hostname.into(),
                    family: dns.family,
                    refresh: dns.refresh,
                    respect_ttl: dns.respect_ttl,
                });
            }
        }
        targets
    }
}
