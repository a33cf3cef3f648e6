//! Tokens of zones: zone ingresses and zone egresses join with them, zone control planes connect to global with them (Kuma
//! `pkg/tokens/builtin/zone`; the scope `cp` is Kong Mesh's).

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{KeyRing, Registered, TokenError, is_revoked, sign, verify};
use crate::resource::{Kind, ResourceKey};
use crate::store::Store;

/// What a zone token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneScope {
    /// Zone ingresses.
    Ingress,
    /// Zone egresses.
    Egress,
    /// The control plane of the zone.
    ControlPlane,
}

impl ZoneScope {
    /// Every scope.
    pub const ALL: [ZoneScope; 3] = [ZoneScope::Ingress, ZoneScope::Egress, ZoneScope::ControlPlane];

    /// As it stands in the token.
    pub fn as_str(self) -> &'static str {
        match self {
            ZoneScope::Ingress => "ingress",
            ZoneScope::Egress => "egress",
            ZoneScope::ControlPlane => "cp",
        }
    }

    /// The scope that is written so.
    pub fn parse(text: &str) -> Option<ZoneScope> {
        ZoneScope::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

impl fmt::Display for ZoneScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The claims of a zone token, named as Kuma's Go fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ZoneClaims {
    /// The zone; empty for any.
    #[serde(rename = "Zone")]
    pub zone: String,
    /// What the token is good for.
    #[serde(rename = "Scope")]
    pub scope: Option<Vec<String>>,
    /// Expiry, seconds since 1970.
    pub exp: i64,
    /// Not valid before, seconds since 1970.
    pub nbf: i64,
    /// Issued at, seconds since 1970.
    pub iat: i64,
    /// Unique identifier, by which a token is revoked.
    pub jti: String,
}

/// Issues and checks the tokens of zones.
#[derive(Clone, Debug)]
pub struct ZoneTokens {
    store: Store,
}

impl ZoneTokens {
    /// With the keys in that store.
    pub fn new(store: Store) -> ZoneTokens {
        ZoneTokens { store }
    }

    /// Makes a token. An empty zone makes one that is good for every zone, as in Kuma.
    ///
    /// # Errors
    /// [`TokenError::NoSigningKey`] when there is no signing key: a zone that has a global control plane only has the
    /// public keys, so that its tokens come from global.
    pub async fn issue(&self, zone: &str, scope: &[ZoneScope], valid_for: Duration) -> Result<String, TokenError> {
        let Registered { iat, nbf, exp, jti } = Registered::new(SystemTime::now(), valid_for);
        let scope = Some(scope.iter().map(|scope| scope.as_str().to_owned()).collect());
        let claims = ZoneClaims { zone: zone.to_owned(), scope, exp, nbf, iat, jti };
        sign(&self.store, &KeyRing::of_zones(), &claims).await
    }

    /// Checks that `token` (the bare JWT) was made for this zone and scope: its signature, its times, that it is not revoked.
    ///
    /// # Errors
    /// [`TokenError::Invalid`] or [`TokenError::NoSigningKey`] saying which of these failed, and what was expected;
    /// [`TokenError::Store`] when the store failed, which says nothing about the token.
    pub async fn validate(&self, token: &str, zone: &str, scope: ZoneScope) -> Result<ZoneClaims, TokenError> {
        let token = token.trim();
        if token.is_empty() {
            return Err(TokenError::Invalid(format!(
                "no zone token given; generate one with: shikactl generate zone-token --zone {zone} --scope {scope}"
            )));
        }
        let claims: ZoneClaims = verify(&self.store, &KeyRing::of_zones(), token).await?;
        let list = ResourceKey::global(Kind::GlobalSecret, "zone-token-revocations");
        if is_revoked(&self.store, &[list], &claims.jti).await? {
            return Err(TokenError::Invalid(format!("token {} is revoked", claims.jti)));
        }
        claims.check(zone, scope).map_err(TokenError::Invalid)?;
        Ok(claims)
    }
}

impl ZoneClaims {
    /// Whether the token was made for this zone and scope. Messages as Kuma's.
    fn check(&self, zone: &str, scope: ZoneScope) -> Result<(), String> {
        let scopes = self.scope.as_deref().unwrap_or_default();
        if !scopes.iter().any(|allowed| allowed == scope.as_str()) {
            return Err(format!(
                "token cannot be used to authenticate zone entity ({scope} is out of token's scope: [{}])",
                scopes.join(" ")
            ));
        }
        if !self.zone.is_empty() && self.zone != zone {
            return Err(format!("zone from requestor: {zone} is different than in token: {}", self.zone));
        }
        Ok(())
    }
}
