//! The certificate authority of a mesh: two Secrets, made when mTLS is on and they are missing.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;

use super::MeshView;
use crate::identity::IdentityError;
use crate::identity::ca::{self, CaPem, CertificateAuthority};
use crate::resource::{CaBackend, Kind, Mesh, Meta, Resource, ResourceKey, Secret, Spec};
use crate::store::{Event, Expect, Store, StoreError};

pub(super) type Authority = (Result<Option<Arc<CertificateAuthority>>, IdentityError>, Option<CaPem>);

/// The authority of a mesh, created if mTLS is on and it has none. Read again only if its Secrets changed.
pub(super) async fn authority(
    store: &Store,
    name: &str,
    mesh: &Mesh,
    before: Option<&MeshView>,
    make: bool,
) -> Result<Authority, StoreError> {
    let Some(backend) = mesh.enabled_backend() else { return Ok((Ok(None), None)) };
    if backend.kind != "builtin" {
        let error = IdentityError::Crypto {
            doing: format!("using mTLS backend {:?}", backend.name),
            reason: format!("type {:?} is not supported, only builtin is", backend.kind),
        };
        return Ok((Err(error), None));
    }
    let pem = match ensure(store, name, backend, make).await? {
        Ok(pem) => pem,
        Err(error) => return Ok((Err(error), None)),
    };
    if let Some(before) = before
        && before.authority_pem.as_ref().is_some_and(|old| old.certificate == pem.certificate && old.key == pem.key)
    {
        return Ok((before.authority.clone(), Some(pem)));
    }
    Ok((CertificateAuthority::from_pem(name, &pem).map(|authority| Some(Arc::new(authority))), Some(pem)))
}

/// The Secrets of a builtin authority, created when they are missing. The certificate makes the pair complete: a key alone is what a
/// crash left behind, with which nothing was signed.
async fn ensure(
    store: &Store,
    mesh: &str,
    backend: &CaBackend,
    make: bool,
) -> Result<Result<CaPem, IdentityError>, StoreError> {
    let certificate_key = ResourceKey::new(Kind::Secret, mesh, ca::certificate_secret(mesh, &backend.name));
    let key_key = ResourceKey::new(Kind::Secret, mesh, ca::key_secret(mesh, &backend.name));
    // The second round reads what another instance created first.
    for _ in 0..2 {
        if let Some(certificate) = text(store, &certificate_key).await? {
            let missing = IdentityError::AuthorityMissing { mesh: mesh.to_owned(), secret: key_key.name.clone() };
            return Ok(text(store, &key_key).await?.map(|key| CaPem { certificate, key }).ok_or(missing));
        }
        if !make {
            return Ok(Err(IdentityError::AuthorityMissing { mesh: mesh.to_owned(), secret: certificate_key.name }));
        }
        let conf = match backend.builtin_conf() {
            Ok(conf) => conf,
            Err(reason) => {
                return Ok(Err(IdentityError::Crypto {
                    doing: format!("reading conf of mTLS backend {:?}", backend.name),
                    reason,
                }));
            }
        };
        let owner = mesh.to_owned();
        let job = move || ca::create(&owner, conf.rsa_bits, conf.expiration, Utc::now());
        let pem = match tokio::task::spawn_blocking(job).await {
            Ok(Ok(pem)) => pem,
            Ok(Err(error)) => return Ok(Err(error)),
            Err(stopped) => return Err(StoreError::Database(stopped.to_string())),
        };
        let secret = |key: &ResourceKey, pem: &str| {
            let spec = Spec::Secret(Arc::new(Secret::new(pem.as_bytes())));
            Resource::new(Meta::new(mesh, key.name.clone()), spec)
        };
        match store.put(secret(&key_key, &pem.key), Expect::Absent).await {
            Ok(_) => {}
            // Either another instance is at it, and its certificate is about to appear, or it died half way.
            Err(StoreError::Exists(_)) => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                if text(store, &certificate_key).await?.is_some() {
                    continue;
                }
                store.put(secret(&key_key, &pem.key), Expect::Any).await?;
            }
            Err(error) => return Err(error),
        }
        match store.put(secret(&certificate_key, &pem.certificate), Expect::Absent).await {
            Ok(_) => {
                tracing::info!(mesh, backend = backend.name, "created the certificate authority of the mesh");
                return Ok(Ok(pem));
            }
            Err(StoreError::Exists(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Err(IdentityError::AuthorityMissing { mesh: mesh.to_owned(), secret: certificate_key.name }))
}

async fn text(store: &Store, key: &ResourceKey) -> Result<Option<String>, StoreError> {
    let resource = store.get(key).await?;
    let secret = resource.as_ref().and_then(Resource::secret);
    Ok(secret.map(|secret| String::from_utf8_lossy(&secret.data).into_owned()))
}

/// Makes the authorities of all meshes as they come, until the store is gone: what a global control plane does for its zones.
pub async fn keep_authorities(store: Store) {
    let mut watch = store.watch();
    loop {
        for resource in store.list(Kind::Mesh, None).await.unwrap_or_default() {
            let Some(mesh) = resource.mesh() else { continue };
            match authority(&store, &resource.meta.name, mesh, None, true).await {
                Ok((Ok(_), _)) => {}
                Ok((Err(error), _)) => {
                    tracing::error!(mesh = resource.meta.name, %error, "certificates of the mesh cannot be issued");
                }
                Err(error) => {
                    tracing::error!(mesh = resource.meta.name, %error, "cannot look for the authority of the mesh")
                }
            }
        }
        loop {
            match watch.next().await {
                None => return,
                Some(Event::Changed(key) | Event::Deleted(key)) if key.kind != Kind::Mesh => {}
                Some(_) => break,
            }
        }
    }
}
