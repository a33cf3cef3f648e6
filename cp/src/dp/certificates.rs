//! The certificates of one proxy over the life of its stream: one for a sidecar, one of each mesh for a zone egress.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;

use crate::emit::Identity;
use crate::identity::IdentityError;
use crate::identity::ca::CertificateAuthority;
use crate::identity::leaf::{Leaf, LeafIssuer, LeafRequest};
use crate::identity::rotation::{Due, Rotation};
use crate::plan::MtlsPlan;

type Issuing = BoxFuture<'static, (LeafRequest, Result<Leaf, IdentityError>)>;

/// The certificates of one proxy.
#[derive(Default)]
pub(super) struct Certificates {
    meshes: BTreeMap<String, Certificate>,
    /// Meshes whose certificate is being issued.
    busy: BTreeSet<String>,
    issuing: FuturesUnordered<Issuing>,
    /// What an earlier stream issued, until it is known what it would have to say now: when, and by which backend.
    adoption: Option<(DateTime<Utc>, String)>,
}

#[derive(Default)]
struct Certificate {
    rotation: Rotation,
    /// The proxy needs the certificate itself, and this process does not have it.
    content_needed: bool,
}

impl Certificates {
    /// Notes what an earlier stream issued.
    pub(super) fn adopt(&mut self, noted: Option<(DateTime<Utc>, String)>) {
        self.adoption = noted;
    }

    /// Starts to issue whatever is due and forgets what is not wanted any more.
    pub(super) fn refresh(
        &mut self,
        wanted: &[MtlsPlan],
        authority: impl Fn(&str) -> Option<Arc<CertificateAuthority>>,
        issuer: &LeafIssuer,
    ) {
        self.meshes.retain(|mesh, _| wanted.iter().any(|mtls| mtls.mesh == *mesh));
        for mtls in wanted {
            let certificate = self.meshes.entry(mtls.mesh.clone()).or_default();
            if let Some((issued, backend)) = self.adoption.take()
                && backend == mtls.leaf.backend
            {
                certificate.rotation.adopt(mtls.leaf.clone(), issued);
            }
            let due = certificate.rotation.due(&mtls.leaf, certificate.content_needed, Utc::now());
            if due == Due::Now
                && !self.busy.contains(&mtls.mesh)
                && let Some(authority) = authority(&mtls.mesh)
            {
                self.busy.insert(mtls.mesh.clone());
                let (issuer, request) = (issuer.clone(), mtls.leaf.clone());
                let issue = async move {
                    let result = issuer.issue(authority, request.clone()).await;
                    (request, result)
                };
                self.issuing.push(issue.boxed());
            }
        }
    }

    /// The next certificate that was issued, or was not; nothing ever while none is being issued.
    pub(super) async fn next(&mut self) -> (LeafRequest, Result<Leaf, IdentityError>) {
        match self.issuing.next().await {
            Some(outcome) => {
                self.busy.remove(&outcome.0.mesh);
                outcome
            }
            None => pending().await,
        }
    }

    /// Records a certificate that was issued.
    pub(super) fn issued(&mut self, request: LeafRequest, leaf: Leaf) {
        let certificate = self.meshes.entry(request.mesh.clone()).or_default();
        certificate.content_needed = false;
        certificate.rotation.issued(request, leaf);
    }

    /// Records an attempt that failed: when to try again, and how long what the proxy has is valid.
    pub(super) fn failed(&mut self, request: &LeafRequest, reason: String) -> (DateTime<Utc>, Option<DateTime<Utc>>) {
        let certificate = self.meshes.entry(request.mesh.clone()).or_default();
        let retry_at = certificate.rotation.failed(reason, Utc::now());
        (retry_at, certificate.rotation.validity().map(|(_, expires)| expires))
    }

    /// Notes that the proxy asks for the certificates themselves; true if one has to be issued for that.
    pub(super) fn need_content(&mut self) -> bool {
        let mut needed = false;
        for certificate in self.meshes.values_mut() {
            if certificate.rotation.leaf().is_none() && !certificate.content_needed {
                certificate.content_needed = true;
                needed = true;
            }
        }
        needed
    }

    /// Whether there is one for every mesh that wants one.
    pub(super) fn complete(&self, wanted: &[MtlsPlan]) -> bool {
        let has =
            |mesh: &str| self.meshes.get(mesh).is_some_and(|certificate| certificate.rotation.version().is_some());
        wanted.iter().all(|mtls| has(&mtls.mesh))
    }

    /// What is sent, by mesh.
    pub(super) fn identities(&self) -> impl Iterator<Item = (&str, Identity<'_>)> {
        self.meshes.iter().filter_map(|(mesh, certificate)| {
            let version = certificate.rotation.version()?;
            Some((mesh.as_str(), Identity { version, leaf: certificate.rotation.leaf() }))
        })
    }

    /// When a certificate is to be issued, if none is being issued already. A mesh without an authority waits for one.
    pub(super) fn due(&self, wanted: &[MtlsPlan], can_issue: impl Fn(&str) -> bool) -> Option<DateTime<Utc>> {
        let now = Utc::now();
        let idle = wanted.iter().filter(|mtls| !self.busy.contains(&mtls.mesh) && can_issue(&mtls.mesh));
        let due = idle.filter_map(|mtls| {
            let certificate = self.meshes.get(&mtls.mesh)?;
            Some(match certificate.rotation.due(&mtls.leaf, certificate.content_needed, now) {
                Due::Now => now,
                Due::At(at) => at,
            })
        });
        due.min()
    }
}
