//! What a proxy is planned from: its mesh, or for zone proxies every mesh of the zone.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::Status;

use super::node::{ProxyKind, ProxyNode};
use crate::identity::ca::CertificateAuthority;
use crate::mesh::{AllMeshes, MeshView};
use crate::plan::{self, PlanError, ProxyPlan};

/// What a proxy is planned from.
pub(super) enum Source {
    /// One mesh.
    Mesh(watch::Receiver<Arc<MeshView>>),
    /// All of them; nothing until they were read for the first time.
    All(watch::Receiver<Option<Arc<AllMeshes>>>),
}

impl Source {
    /// Waits for a change. The error says why there will be none.
    pub(super) async fn changed(&mut self, node: &ProxyNode) -> Result<(), Status> {
        match self {
            Source::Mesh(view) => {
                view.changed().await.map_err(|_| Status::not_found(format!("mesh {:?} was deleted", node.mesh)))
            }
            Source::All(all) => all.changed().await.map_err(|_| Status::unavailable("the control plane is stopping")),
        }
    }

    /// Plans the proxy from what is there now; `None` if nothing is there yet.
    pub(super) fn plan(&mut self, node: &ProxyNode) -> Option<Result<ProxyPlan, PlanError>> {
        match self {
            Source::Mesh(view) => {
                let view = view.borrow_and_update().clone();
                Some(plan::plan(&view, &node.name, node.features.clone()))
            }
            Source::All(all) => {
                let all = all.borrow_and_update().clone()?;
                Some(match node.kind {
                    ProxyKind::Egress => plan::egress(&all, &node.name, &node.features),
                    ProxyKind::Ingress | ProxyKind::Dataplane => plan::ingress(&all, &node.name, &node.features),
                })
            }
        }
    }

    /// The authority of a mesh, if it can be used.
    pub(super) fn authority(&self, mesh: &str) -> Option<Arc<CertificateAuthority>> {
        match self {
            Source::Mesh(view) => view.borrow().authority.clone().ok().flatten(),
            Source::All(all) => {
                let all = all.borrow();
                all.as_ref()?.meshes.get(mesh)?.authority.clone().ok().flatten()
            }
        }
    }
}
