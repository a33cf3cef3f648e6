//! What a fresh control plane and a new mesh start with (Kuma `pkg/defaults`).

mod policies;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{
    ADMIN_GROUP, USER_SIGNING_KEY_PREFIX, User, UserTokens, ZONE_SIGNING_KEY_PREFIX, new_signing_key,
    signing_key_prefix,
};
use crate::resource::{HostnameGenerator, HostnameSelector, Kind, LabelSelector, Mesh, Meta, Resource, Secret, Spec};
use crate::store::{Expect, Store, StoreError};

/// The mesh that a fresh control plane has.
pub const DEFAULT_MESH: &str = "default";
/// The GlobalSecret that holds a token of the administrator (Kuma `AdminUserToken`).
pub const ADMIN_TOKEN_SECRET: &str = "admin-user-token";
/// How long the administrator's token is valid: ten years, as Kuma's.
const ADMIN_TOKEN_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why the defaults could not be created.
#[derive(Debug, thiserror::Error)]
pub enum DefaultsError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key or token could not be made.
    #[error("{0}")]
    Key(String),
    /// A default policy could not be made.
    #[error("default policies: {0}")]
    Policy(String),
}

/// Creates what is missing: the mesh `default` (unless told not to), the signing key of every mesh, the signing key of
/// user tokens and the administrator's token. What is there already is left alone.
///
/// # Errors
/// [`DefaultsError`] naming what could not be created.
pub async fn ensure(store: &Store, skip_mesh_creation: bool) -> Result<(), DefaultsError> {
    ensure_user_keys(store).await?;
    ensure_key(store, "", ZONE_SIGNING_KEY_PREFIX).await?;
    if !skip_mesh_creation {
        let mesh = Arc::new(Mesh::default());
        let resource = Resource::new(Meta::new("", DEFAULT_MESH), Spec::Mesh(mesh.clone()));
        match store.put(resource, Expect::Absent).await {
            Ok(_) => {
                tracing::info!(mesh = DEFAULT_MESH, "created the default mesh");
                new_mesh(store, DEFAULT_MESH, &mesh).await?;
            }
            Err(StoreError::Exists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for mesh in store.list(Kind::Mesh, None).await? {
        ensure_mesh(store, &mesh.meta.name).await?;
    }
    Ok(())
}

/// Creates what a zone has of its own when everything else comes from its global control plane: the signing key of user tokens and
/// the administrator's token.
///
/// # Errors
/// [`DefaultsError`] naming what could not be created.
pub async fn ensure_federated(store: &Store) -> Result<(), DefaultsError> {
    ensure_user_keys(store).await
}

/// Creates what a mesh starts with once it was stored for the first time: what every mesh has, and the default policies that it does not
/// skip. These are resources like others: one that an operator changes or deletes is not made again.
///
/// # Errors
/// [`DefaultsError`] naming what could not be created.
pub async fn new_mesh(store: &Store, name: &str, mesh: &Mesh) -> Result<(), DefaultsError> {
    ensure_mesh(store, name).await?;
    for policy in policies::policies(name, &mesh.skip_creating_initial_policies).map_err(DefaultsError::Policy)? {
        match store.put(policy, Expect::Absent).await {
            // The mesh was deleted in the meantime, or somebody else was faster.
            Ok(_) | Err(StoreError::Exists(_) | StoreError::NoMesh { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Creates what every mesh has: the key that signs its data plane tokens.
///
/// # Errors
/// [`DefaultsError`] naming what could not be created.
pub async fn ensure_mesh(store: &Store, mesh: &str) -> Result<(), DefaultsError> {
    ensure_key(store, mesh, &signing_key_prefix(mesh)).await
}

/// Creates the HostnameGenerators that a zone has (Kuma `pkg/defaults/hostname_generator.go`), unless they are there.
///
/// # Errors
/// [`DefaultsError`] naming what could not be created.
pub async fn ensure_zone_names(store: &Store) -> Result<(), DefaultsError> {
    let of_zone = || LabelSelector { match_labels: labels(&[("kuma.io/origin", "zone")]) };
    let external = HostnameSelector { mesh_external_service: Some(of_zone()), ..HostnameSelector::default() };
    let service = HostnameSelector { mesh_service: Some(of_zone()), ..HostnameSelector::default() };
    for (name, selector, template) in [
        ("local-mesh-external-service", external, "{{ .DisplayName }}.extsvc.mesh.local"),
        ("local-universal-mesh-service", service, "{{ .DisplayName }}.svc.mesh.local"),
    ] {
        ensure_generator(store, name, &[("kuma.io/origin", "zone")], selector, template).await?;
    }
    Ok(())
}

/// Creates the HostnameGenerators that a global control plane has for its zones, unless they are there.
///
/// # Errors
/// [`DefaultsError`] naming what could not be created.
pub async fn ensure_global_names(store: &Store) -> Result<(), DefaultsError> {
    let global = ("kuma.io/origin", "global");
    let service = |more: &[(&str, &str)]| HostnameSelector {
        mesh_service: Some(LabelSelector { match_labels: labels(&[&[global], more].concat()) }),
        ..HostnameSelector::default()
    };
    let kubernetes = ("kuma.io/env", "kubernetes");
    let headless = |value| ("k8s.kuma.io/is-headless-service", value);
    let of_global = || LabelSelector { match_labels: labels(&[global]) };
    let multi_zone = HostnameSelector { mesh_multi_zone_service: Some(of_global()), ..HostnameSelector::default() };
    let external = HostnameSelector { mesh_external_service: Some(of_global()), ..HostnameSelector::default() };
    for (name, selector, template) in [
        ("synced-mesh-multi-zone-service", multi_zone, "{{ .DisplayName }}.mzsvc.mesh.local"),
        (
            "synced-kube-mesh-service",
            service(&[headless("false"), kubernetes]),
            "{{ .DisplayName }}.{{ .Namespace }}.svc.{{ .Zone }}.mesh.local",
        ),
        (
            "synced-headless-kube-mesh-service",
            service(&[headless("true"), kubernetes]),
            "{{ label \"statefulset.kubernetes.io/pod-name\" }}.{{ label \"k8s.kuma.io/service-name\" }}.{{ .Namespace \
             }}.svc.{{ .Zone }}.mesh.local",
        ),
        (
            "synced-universal-mesh-service",
            service(&[("kuma.io/env", "universal")]),
            "{{ .DisplayName }}.svc.{{ .Zone }}.mesh.local",
        ),
        ("synced-mesh-external-service", external, "{{ .DisplayName }}.extsvc.mesh.local"),
    ] {
        ensure_generator(store, name, &[], selector, template).await?;
    }
    Ok(())
}

fn labels(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect()
}

async fn ensure_generator(
    store: &Store,
    name: &str,
    with_labels: &[(&str, &str)],
    selector: HostnameSelector,
    template: &str,
) -> Result<(), DefaultsError> {
    let mut meta = Meta::new("", name);
    meta.labels = labels(with_labels);
    let generator = HostnameGenerator { selector, template: template.to_owned(), extension: None };
    match store.put(Resource::new(meta, Spec::HostnameGenerator(Arc::new(generator))), Expect::Absent).await {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn ensure_user_keys(store: &Store) -> Result<(), DefaultsError> {
    ensure_key(store, "", USER_SIGNING_KEY_PREFIX).await?;
    let secret = |data: String| {
        let spec = Spec::GlobalSecret(Arc::new(Secret::new(data)));
        Resource::new(Meta::new("", ADMIN_TOKEN_SECRET), spec)
    };
    if store.get(&secret(String::new()).key()).await?.is_some() {
        return Ok(());
    }
    let admin = User { name: ADMIN_GROUP.to_owned(), groups: vec![ADMIN_GROUP.to_owned()] };
    let token = UserTokens::new(store.clone()).issue(&admin, ADMIN_TOKEN_VALIDITY).await;
    let token = token.map_err(|e| DefaultsError::Key(format!("GlobalSecret {ADMIN_TOKEN_SECRET:?}: {e}")))?;
    match store.put(secret(token), Expect::Absent).await {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Creates the key `<prefix>-1` where there is no key of that prefix.
async fn ensure_key(store: &Store, mesh: &str, prefix: &str) -> Result<(), DefaultsError> {
    let kind = if mesh.is_empty() { Kind::GlobalSecret } else { Kind::Secret };
    let secrets = store.list(kind, (!mesh.is_empty()).then_some(mesh)).await?;
    let is_key = |name: &str| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-'));
    if secrets.iter().any(|secret| is_key(&secret.meta.name)) {
        return Ok(());
    }
    let key = tokio::task::spawn_blocking(new_signing_key)
        .await
        .map_err(|e| DefaultsError::Key(format!("signing key {prefix}-1: {e}")))?
        .map_err(|e| DefaultsError::Key(format!("signing key {prefix}-1: {e}")))?;
    let spec = Arc::new(Secret::new(key));
    let spec = if mesh.is_empty() { Spec::GlobalSecret(spec) } else { Spec::Secret(spec) };
    match store.put(Resource::new(Meta::new(mesh, format!("{prefix}-1")), spec), Expect::Absent).await {
        Ok(stored) => {
            tracing::info!(secret = %stored.key(), "created a signing key");
            Ok(())
        }
        // The mesh was deleted in the meantime, or another one was faster.
        Err(StoreError::Exists(_) | StoreError::NoMesh { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
