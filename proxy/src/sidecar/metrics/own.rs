//! The proxy's own metrics, family by family, as the admin interface writes them.
//!
//! One family at a time: a proxy with 10,000 clusters has a million series, and other work has to get its turn between.

use std::{collections::BTreeMap, rc::Rc};

use super::exposition::{Family, Format, Sample, labels, parse, render};
use crate::{admin, state::State};

/// Bytes that are written before they are read.
const PIECE: usize = 32 * 1024;
/// Starts a family.
const START: &str = "# TYPE ";

/// Label of clusters.
const CLUSTER: &str = "envoy_cluster_name";
/// Label of connection managers.
const HTTP_PREFIX: &str = "envoy_http_conn_manager_prefix";
/// Clusters that carry no traffic of the mesh.
const OTHER_CLUSTERS: &[&str] = &["ads_cluster", "access_log_sink", "kuma_envoy_admin", "kuma_metrics_hijacker"];
/// Connection managers that carry none.
const OTHER_PREFIXES: &[&str] = &["admin", "kuma_envoy_admin", "kuma_metrics_prometheus"];

/// See the module.
pub struct Families {
    exposition: Option<admin::prometheus::Exposition>,
    text: String,
    /// Families of the text so far, in reverse.
    ready: Vec<Family>,
}

impl Families {
    /// All families; without `unused` only series that were ever written. `query` is that of the admin interface's `/stats`.
    pub async fn new(state: &Rc<State>, unused: bool, query: &str) -> Families {
        let exposition = admin::own_metrics(state, unused, query).await;
        Families { exposition, text: String::new(), ready: Vec::new() }
    }

    /// The next one.
    pub async fn next(&mut self) -> Option<Family> {
        loop {
            if let Some(family) = self.ready.pop() {
                return Some(family);
            }
            let more = match &mut self.exposition {
                None => return None,
                Some(exposition) => {
                    let limit = self.text.len() + PIECE;
                    exposition.write(&mut self.text, limit)
                }
            };
            if !more {
                self.exposition = None;
            }
            // What begins last may go on.
            let whole = if more { self.text.rfind(START).unwrap_or(0) } else { self.text.len() };
            let rest = self.text.split_off(whole);
            let families = std::mem::replace(&mut self.text, rest);
            // Our own text is well-formed.
            self.ready = parse(&families, Format::Text).unwrap_or_default();
            self.ready.reverse();
            tokio::task::yield_now().await;
        }
    }
}

/// What `Mesh.metrics` makes of clusters: those that a control plane split for one destination (`name-<16 hex digits>`) are one again, and what carries
/// the mesh's traffic is labelled. Source: Kuma `app/kuma-dp/pkg/dataplane/metrics/merge.go`.
pub fn merge_clusters(family: &mut Family) {
    let Some(first) = family.samples.first() else { return };
    let entity = labels(&first.labels).into_iter().find_map(|(name, _)| {
        [(CLUSTER, OTHER_CLUSTERS), (HTTP_PREFIX, OTHER_PREFIXES)].into_iter().find(|(label, _)| *label == name)
    });
    let Some((entity, others)) = entity else { return };
    let mut merged: Vec<Sample> = Vec::with_capacity(family.samples.len());
    let mut places: BTreeMap<(String, String), usize> = BTreeMap::new();
    for sample in std::mem::take(&mut family.samples) {
        let own = labels(&sample.labels);
        let mut mesh = false;
        let renamed: Vec<(&str, &str)> = own
            .into_iter()
            .map(|(name, value)| {
                if name != entity {
                    return (name, value);
                }
                let value = if name == CLUSTER { unsplit(value) } else { value };
                mesh = !others.contains(&value);
                (name, value)
            })
            .collect();
        let text = render(renamed.into_iter().chain(mesh.then_some(("kuma_io_mesh_traffic", "true"))));
        let key = (sample.name.clone(), text.clone());
        match places.get(&key).and_then(|at| merged.get_mut(*at)) {
            Some(known) => {
                let sum = known.value.parse::<f64>().unwrap_or(0.0) + sample.value.parse::<f64>().unwrap_or(0.0);
                known.value = sum.to_string();
            }
            None => {
                places.insert(key, merged.len());
                merged.push(Sample { labels: text, ..sample });
            }
        }
    }
    family.samples = merged;
}

/// A cluster's name without the hash of a split.
fn unsplit(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((stem, hash)) if hash.len() == 16 && hash.chars().all(|c| c.is_ascii_hexdigit()) => stem,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_clusters_are_one_again() {
        let text = "# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name=\"backend-5fb50345cfb50345\",code=\"200\"} 10
envoy_cluster_upstream_rq_total{envoy_cluster_name=\"backend-cfb50345409aedd1\",code=\"200\"} 20
envoy_cluster_upstream_rq_total{envoy_cluster_name=\"backend-cfb50345409aedd1\",code=\"503\"} 1
envoy_cluster_upstream_rq_total{envoy_cluster_name=\"backend-v2\"} 5
envoy_cluster_upstream_rq_total{envoy_cluster_name=\"ads_cluster\"} 3
# TYPE envoy_http_downstream_rq_total counter
envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"127_0_0_1_80\"} 7
envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix=\"kuma_envoy_admin\"} 7
# TYPE envoy_server_live gauge
envoy_server_live 1
";
        let mut families = parse(text, Format::Text).expect("families");
        families.iter_mut().for_each(merge_clusters);
        let listed: Vec<_> = families
            .iter()
            .flat_map(|family| &family.samples)
            .map(|sample| format!("{{{}}} {}", sample.labels, sample.value))
            .collect();
        assert_eq!(
            listed,
            [
                "{envoy_cluster_name=\"backend\",code=\"200\",kuma_io_mesh_traffic=\"true\"} 30",
                "{envoy_cluster_name=\"backend\",code=\"503\",kuma_io_mesh_traffic=\"true\"} 1",
                "{envoy_cluster_name=\"backend-v2\",kuma_io_mesh_traffic=\"true\"} 5",
                "{envoy_cluster_name=\"ads_cluster\"} 3",
                "{envoy_http_conn_manager_prefix=\"127_0_0_1_80\",kuma_io_mesh_traffic=\"true\"} 7",
                "{envoy_http_conn_manager_prefix=\"kuma_envoy_admin\"} 7",
                "{} 1"
            ]
        );
    }
}
