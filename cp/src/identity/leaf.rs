//! Workload certificates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    RsaKeySize, SanType,
};

use super::ca::{self, CertificateAuthority};
use super::{IdentityError, pem, rsa_key_pem};
use crate::resource::SERVICE_TAG;

/// What a workload certificate has to say. Two requests that are equal are served by the same certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LeafRequest {
    /// Mesh that the workload belongs to.
    pub mesh: String,
    /// Name of the backend that issues, for the insight.
    pub backend: String,
    /// [`CertificateAuthority::fingerprint`] of the authority that issues.
    pub authority: u64,
    /// URI names, in order; see [`uris`].
    pub uris: Vec<String>,
    /// How long the certificate is valid (`dpCert.rotation.expiration`).
    pub lifetime: Duration,
}

/// A workload certificate with its key, both made here.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Certificate, PEM.
    pub certificate: String,
    /// Private key, PEM.
    pub key: String,
    /// When it was issued.
    pub issued: DateTime<Utc>,
    /// When it expires.
    pub expires: DateTime<Utc>,
}

impl std::fmt::Debug for Leaf {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaf").field("issued", &self.issued).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// The URI names of a workload: `spiffe://<mesh>/<service>` for each service, then `kuma://<tag>/<value>` for each value of each tag,
/// `kuma.io/service` included, tags and values sorted (Kuma `pkg/core/ca/issuer`).
pub fn uris(mesh: &str, tags: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let services = tags.get(SERVICE_TAG).into_iter().flatten().map(|service| format!("spiffe://{mesh}/{service}"));
    let pairs = tags.iter().flat_map(|(tag, values)| values.iter().map(move |value| format!("kuma://{tag}/{value}")));
    services.chain(pairs).collect()
}

/// Issues a certificate. Generates an RSA-2048 key, which costs tens to hundreds of milliseconds of CPU: see [`LeafIssuer`].
pub fn issue(
    authority: &CertificateAuthority,
    request: &LeafRequest,
    now: DateTime<Utc>,
) -> Result<Leaf, IdentityError> {
    let crypto = |e: rcgen::Error| IdentityError::Crypto {
        doing: format!("issuing a workload certificate of mesh {}", request.mesh),
        reason: e.to_string(),
    };
    if authority.expires() <= now {
        return Err(IdentityError::AuthorityExpired {
            mesh: request.mesh.clone(),
            expired: authority.expires().to_rfc3339(),
        });
    }
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).map_err(crypto)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for uri in &request.uris {
        let name = uri.clone().try_into().map_err(|_| IdentityError::BadUri { uri: uri.clone() })?;
        params.subject_alt_names.push(SanType::URI(name));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(ca::random_serial());
    params.use_authority_key_identifier_extension = true;
    ca::set_validity(&mut params, now, request.lifetime);
    let certificate = params.signed_by(&key, authority.issuer()).map_err(crypto)?;
    Ok(Leaf {
        certificate: pem("CERTIFICATE", certificate.der()),
        key: rsa_key_pem(key.serialized_der()),
        issued: now,
        // A certificate counts whole seconds.
        expires: DateTime::from_timestamp(now.timestamp(), 0).unwrap_or(now) + request.lifetime,
    })
}

/// Issues certificates on blocking threads, a few at a time, so that a thousand proxies that connect at once neither stop the streams
/// of others nor start a thousand threads.
#[derive(Debug, Clone)]
pub struct LeafIssuer {
    slots: Arc<tokio::sync::Semaphore>,
}

impl LeafIssuer {
    /// An issuer that makes at most `parallel` certificates at once (at least one).
    pub fn new(parallel: usize) -> Self {
        LeafIssuer { slots: Arc::new(tokio::sync::Semaphore::new(parallel.max(1))) }
    }

    /// Issues one certificate, waiting for a free slot first.
    pub async fn issue(
        &self,
        authority: Arc<CertificateAuthority>,
        request: LeafRequest,
    ) -> Result<Leaf, IdentityError> {
        let stopped = |reason: String| IdentityError::Crypto {
            doing: format!("issuing a workload certificate of mesh {}", request.mesh),
            reason,
        };
        let _slot = self.slots.acquire().await.map_err(|e| stopped(e.to_string()))?;
        let job = request.clone();
        tokio::task::spawn_blocking(move || issue(&authority, &job, Utc::now()))
            .await
            .map_err(|e| stopped(e.to_string()))?
    }
}
