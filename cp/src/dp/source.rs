//! What a proxy is planned from: its mesh, or for zone proxies every mesh of the zone.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::Status;

use super::node::ProxyNode;
use crate::identity::ca::CertificateAuthority;
use crate::mesh::{MeshView, ZoneView};
use crate::plan::{self, PlanError, ProxyPlan};
use crate::resource::ProxyType;

/// What a proxy is planned from.
pub(super) enum Source {
    /// One mesh.
    Mesh(watch::Receiver<Arc<MeshView>>),
    /// All of them, for a zone ingress or a zone egress.
    Zone(watch::Receiver<Arc<ZoneView>>),
}

impl Source {
    /// Waits for a change. The error says why there will be none.
    pub(super) async fn changed(&mut self, node: &ProxyNode) -> Result<(), Status> {
        match self {
            Source::Mesh(view) => {
                view.changed().await.map_err(|_| Status::not_found(format!("mesh {:?} was deleted", node.mesh)))
            }
            Source::Zone(all) => all.changed().await.map_err(|_| Status::unavailable("the control plane is stopping")),
        }
    }

    /// Plans the proxy from what is there now.
    pub(super) fn plan(&mut self, node: &ProxyNode) -> Result<ProxyPlan, PlanError> {
        match self {
            Source::Mesh(view) => {
                let view = view.borrow_and_update().clone();
                plan::plan(&view, &node.name, node.features.clone())
            }
            Source::Zone(all) => {
                let all = all.borrow_and_update().clone();
                match node.proxy_type {
                    ProxyType::Egress => plan::egress(&all, &node.name, &node.features),
                    ProxyType::Ingress | ProxyType::Dataplane => plan::ingress(&all, &node.name, &node.features),
                }
            }
        }
    }

    /// The authority of a mesh, if it can be used.
    pub(super) fn authority(&self, mesh: &str) -> Option<Arc<CertificateAuthority>> {
        match self {
            Source::Mesh(view) => view.borrow().authority.clone().ok().flatten(),
            Source::Zone(all) => all.borrow().meshes.get(mesh)?.authority.clone().ok().flatten(),
        }
    }
}
