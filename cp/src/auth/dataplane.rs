//! Tokens of data planes (Kuma `pkg/tokens/builtin`, `pkg/xds/auth/universal/authenticator.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{KeyRing, Registered, TokenError, is_revoked, sign, verify};
use crate::resource::{Kind, ResourceKey, WORKLOAD_LABEL};
use crate::store::Store;

/// To whom a token is bound. An empty part binds to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataplaneIdentity {
    /// The name of the Dataplane.
    pub name: String,
    /// The mesh; a token always has one, since the mesh's key signs it.
    pub mesh: String,
    /// For each tag, the values that the Dataplane may have.
    pub tags: BTreeMap<String, BTreeSet<String>>,
    /// `dataplane`, the default, or `ingress` or `egress` in tokens of old versions.
    pub kind: String,
    /// The value of the label `kuma.io/workload`.
    pub workload: String,
}

/// The claims of a data plane token, named as Kuma's Go fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataplaneClaims {
    /// The name of the Dataplane; empty for any.
    #[serde(rename = "Name")]
    pub name: String,
    /// The mesh.
    #[serde(rename = "Mesh")]
    pub mesh: String,
    /// For each tag, the values that the Dataplane may have.
    #[serde(rename = "Tags")]
    pub tags: Option<BTreeMap<String, Vec<String>>>,
    /// The type of proxy.
    #[serde(rename = "Type")]
    pub kind: String,
    /// The workload; empty for any.
    #[serde(rename = "Workload")]
    pub workload: String,
    /// Expiry, seconds since 1970.
    pub exp: i64,
    /// Not valid before, seconds since 1970.
    pub nbf: i64,
    /// Issued at, seconds since 1970.
    pub iat: i64,
    /// Unique identifier, by which a token is revoked.
    pub jti: String,
}

/// Issues and checks the tokens of data planes.
#[derive(Clone, Debug)]
pub struct DataplaneTokens {
    store: Store,
}

impl DataplaneTokens {
    /// With the keys in that store.
    pub fn new(store: Store) -> DataplaneTokens {
        DataplaneTokens { store }
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`TokenError::NoSigningKey`] when the mesh has no signing key, or is not there.
    pub async fn issue(&self, identity: &DataplaneIdentity, valid_for: Duration) -> Result<String, TokenError> {
        let Registered { iat, nbf, exp, jti } = Registered::new(SystemTime::now(), valid_for);
        let tags = identity.tags.iter().map(|(tag, values)| (tag.clone(), values.iter().cloned().collect())).collect();
        let claims = DataplaneClaims {
            name: identity.name.clone(),
            mesh: identity.mesh.clone(),
            tags: Some(tags),
            kind: identity.kind.clone(),
            workload: identity.workload.clone(),
            exp,
            nbf,
            iat,
            jti,
        };
        sign(&self.store, &KeyRing::of_mesh(&identity.mesh), &claims).await
    }

    /// Checks that `token` (the bare JWT) lets the proxy in: its signature, its times, that it is not revoked, and that
    /// it was made for this mesh, name, tags (all of the Dataplane's: [`crate::resource::Dataplane::tags`]) and
    /// workload (its label `kuma.io/workload`).
    ///
    /// # Errors
    /// [`TokenError::Invalid`] or [`TokenError::NoSigningKey`] saying which of these failed, and what was expected;
    /// [`TokenError::Store`] when the store failed, which says nothing about the token.
    pub async fn validate(
        &self,
        token: &str,
        mesh: &str,
        name: &str,
        tags: &BTreeMap<String, BTreeSet<String>>,
        workload: Option<&str>,
    ) -> Result<DataplaneClaims, TokenError> {
        let token = token.trim();
        if token.is_empty() {
            return Err(TokenError::Invalid(
                "no dataplane token given; generate one with: shikactl generate dataplane-token".to_owned(),
            ));
        }
        // The key of the proxy's own mesh verifies: a token of another mesh fails there. Its claim, although nothing has
        // verified it, makes a better message than a wrong signature does.
        if let Ok(claims) = jsonwebtoken::dangerous::insecure_decode_claims::<DataplaneClaims>(token)
            && !claims.mesh.is_empty()
            && claims.mesh != mesh
        {
            let claimed = claims.mesh;
            return Err(TokenError::Invalid(format!(
                "proxy mesh from requestor: {mesh} is different than in token: {claimed}"
            )));
        }
        let claims: DataplaneClaims = verify(&self.store, &KeyRing::of_mesh(mesh), token).await?;
        // Kuma documents the list as a Secret of the mesh and reads it as a GlobalSecret; both count.
        let list = format!("dataplane-token-revocations-{mesh}");
        let lists = [ResourceKey::new(Kind::Secret, mesh, list.clone()), ResourceKey::global(Kind::GlobalSecret, list)];
        if is_revoked(&self.store, &lists, &claims.jti).await? {
            return Err(TokenError::Invalid(format!("token {} is revoked", claims.jti)));
        }
        claims.check(mesh, name, tags, workload).map_err(TokenError::Invalid)?;
        Ok(claims)
    }
}

impl DataplaneClaims {
    /// Whether the token was made for this proxy. Messages as Kuma's.
    fn check(
        &self,
        mesh: &str,
        name: &str,
        tags: &BTreeMap<String, BTreeSet<String>>,
        workload: Option<&str>,
    ) -> Result<(), String> {
        if !self.kind.is_empty() && self.kind != "dataplane" {
            return Err(format!("token is of type {:?}, expected \"dataplane\"", self.kind));
        }
        if !self.name.is_empty() && self.name != name {
            return Err(format!("proxy name from requestor: {name} is different than in token: {}", self.name));
        }
        if !self.mesh.is_empty() && self.mesh != mesh {
            return Err(format!("proxy mesh from requestor: {mesh} is different than in token: {}", self.mesh));
        }
        for (tag, allowed) in self.tags.iter().flatten() {
            let Some(values) = tags.get(tag) else {
                return Err(format!("dataplane has no tag {tag:?} required by the token"));
            };
            if let Some(value) = values.iter().find(|value| !allowed.contains(value)) {
                return Err(format!(
                    "dataplane contains tag {tag:?} with value {value:?} which is not allowed with this token. Allowed values \
                     in token are {allowed:?}"
                ));
            }
        }
        match workload {
            _ if self.workload.is_empty() => Ok(()),
            None => Err(format!("dataplane has no label {WORKLOAD_LABEL:?} required by the token")),
            Some(found) if found != self.workload => Err(format!(
                "dataplane workload {found:?} is not allowed with this token. Allowed workload in token is {:?}",
                self.workload
            )),
            Some(_) => Ok(()),
        }
    }
}
