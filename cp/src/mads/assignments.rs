//! Which Prometheus is to fetch metrics from which proxies: from MeshMetrics, or from `metrics` of the meshes while no MeshMetric of any mesh
//! names a Prometheus (Kuma `pkg/mads/v1/reconcile/snapshot_generator.go`).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::mesh::{MeshView, ZoneView};
use crate::plan;
use crate::policy::metric::{metric, prometheus};
use crate::policy::select::Target;
use crate::resource::{Dataplane, LegacyTlsMode, Meta, PrometheusTlsMode};
use crate::xds::Version;

/// The type of an assignment.
const TYPE_URL: &str = "type.googleapis.com/kuma.observability.v1.MonitoringAssignment";
/// Every client that no MeshMetric names (Kuma `DefaultKumaClientId`).
const ANY_CLIENT: &str = "_kuma-default-client";
/// The service of a proxy that has none (Kuma `ServiceUnknown`).
const NO_SERVICE: &str = "unknown";

/// What a client is told.
#[derive(Debug)]
pub(super) struct Told {
    /// Hash of the assignments.
    pub(super) version: String,
    /// A DiscoveryResponse, as JSON.
    pub(super) body: Bytes,
}

/// Targets of one proxy, `kuma.observability.v1.MonitoringAssignment`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
struct Assignment {
    #[serde(rename = "@type")]
    type_url: &'static str,
    mesh: String,
    service: String,
    targets: Vec<AssignedTarget>,
}

/// One place to fetch metrics from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
struct AssignedTarget {
    name: String,
    scheme: &'static str,
    address: String,
    metrics_path: String,
    /// None with a MeshMetric: the proxy itself puts them on its metrics.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

/// Who fetches from where.
#[derive(Debug)]
pub(super) struct Assignments {
    by_client: BTreeMap<String, Told>,
    /// For clients that nothing is assigned to.
    nothing: Told,
    /// What was asked for and is not done, in words.
    pub(super) warnings: Vec<String>,
}

impl Assignments {
    /// The assignments of all meshes.
    pub(super) fn of_zone(view: &ZoneView) -> Assignments {
        let Collected { by_client, warnings } = Collected::of_zone(view);
        Assignments {
            by_client: by_client.into_iter().map(|(client, assigned)| (client, told(&assigned))).collect(),
            nothing: told(&[]),
            warnings,
        }
    }

    /// What a client is told, by the name that it gives itself.
    pub(super) fn of(&self, client: &str) -> &Told {
        self.by_client.get(client).or_else(|| self.by_client.get(ANY_CLIENT)).unwrap_or(&self.nothing)
    }
}

fn told(assigned: &[Assignment]) -> Told {
    let version = Version::of(assigned).to_string();
    let body = json!({"version_info": version, "resources": assigned, "type_url": TYPE_URL, "nonce": version});
    Told { version, body: body.to_string().into() }
}

#[derive(Debug, Default)]
struct Collected {
    /// By client; the proxies of each by mesh and name.
    by_client: BTreeMap<String, Vec<Assignment>>,
    warnings: Vec<String>,
}

impl Collected {
    fn of_zone(view: &ZoneView) -> Collected {
        let mut all = Collected::default();
        for mesh in view.meshes.values() {
            for (_, policy) in &mesh.policies.metrics {
                for backend in prometheus(&policy.default) {
                    let client = backend.client_id.as_deref().unwrap_or(ANY_CLIENT);
                    all.by_client.entry(client.to_owned()).or_default();
                }
            }
        }
        let has_policies = !all.by_client.is_empty();
        for mesh in view.meshes.values() {
            if has_policies {
                all.add_policies(mesh);
            } else {
                all.add_legacy(mesh);
            }
        }
        all
    }

    fn add_policies(&mut self, mesh: &MeshView) {
        if mesh.mesh.prometheus_backend().is_some() {
            self.warnings.push(format!(
                "mesh {:?}: Prometheus is not told of its metrics backend, because there are MeshMetrics; replace \"metrics\" of the \
                 mesh by a MeshMetric",
                mesh.name
            ));
        }
        for (meta, dataplane) in mesh.dataplanes.values() {
            let Some(conf) = metric(&mesh.policies, Target { meta, dataplane }) else { continue };
            let mut clients: Vec<&str> = Vec::new();
            for backend in prometheus(&conf) {
                let client = backend.client_id.as_deref().unwrap_or(ANY_CLIENT);
                // A proxy has one listener for each client.
                if clients.contains(&client) {
                    continue;
                }
                clients.push(client);
                let tls = backend.tls.as_ref().is_some_and(|tls| tls.mode == PrometheusTlsMode::ProvidedTLS);
                let target = target(meta, dataplane, tls, backend.port, &backend.path);
                self.add(client, mesh, dataplane, target);
            }
        }
    }

    fn add_legacy(&mut self, mesh: &MeshView) {
        for (meta, dataplane) in mesh.dataplanes.values() {
            match mesh.mesh.prometheus_of(dataplane) {
                None => {}
                Some(Err(reason)) => {
                    self.warnings.push(format!("Dataplane {:?} of mesh {:?}: {reason}", meta.name, mesh.name));
                }
                Some(Ok(conf)) => {
                    let tls = conf.tls_mode() == LegacyTlsMode::ProvidedTls;
                    let mut target = target(meta, dataplane, tls, conf.port, &conf.path);
                    target.labels = plan::tag_labels(dataplane);
                    self.add(ANY_CLIENT, mesh, dataplane, target);
                }
            }
        }
    }

    fn add(&mut self, client: &str, mesh: &MeshView, dataplane: &Dataplane, target: AssignedTarget) {
        self.by_client.entry(client.to_owned()).or_default().push(Assignment {
            type_url: TYPE_URL,
            mesh: mesh.name.clone(),
            service: plan::service(dataplane).unwrap_or_else(|| NO_SERVICE.to_owned()),
            targets: vec![target],
        });
    }
}

fn target(meta: &Meta, dataplane: &Dataplane, tls: bool, port: u32, path: &str) -> AssignedTarget {
    AssignedTarget {
        name: meta.name.clone(),
        scheme: if tls { "https" } else { "http" },
        address: plan::host_port(dataplane.advertised(), port),
        metrics_path: path.to_owned(),
        labels: BTreeMap::new(),
    }
}
