//! Users of the REST API and their tokens (Kuma `pkg/core/user`, `pkg/plugins/authn/api-server/tokens`).

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{KeyRing, Registered, TokenError, is_revoked, sign, verify};
use crate::resource::{Kind, ResourceKey};
use crate::store::Store;

/// The group of administrators.
pub const ADMIN_GROUP: &str = "mesh-system:admin";
/// The group that every user with valid credentials is in.
const AUTHENTICATED_GROUP: &str = "mesh-system:authenticated";

/// Who calls the REST API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The groups, by which access is granted.
    pub groups: Vec<String>,
}

impl User {
    /// A user who gave no credentials.
    pub fn anonymous() -> User {
        User { name: "mesh-system:anonymous".to_owned(), groups: vec!["mesh-system:unauthenticated".to_owned()] }
    }

    /// The administrator.
    pub fn admin() -> User {
        User { name: ADMIN_GROUP.to_owned(), groups: vec![ADMIN_GROUP.to_owned()] }
    }

    /// The same user, whose credentials were checked.
    #[must_use]
    pub fn authenticated(mut self) -> User {
        self.groups.push(AUTHENTICATED_GROUP.to_owned());
        self
    }

    /// Whether the user may read and write secrets and generate tokens (Kuma's default access lists).
    pub fn is_admin(&self) -> bool {
        self.name == ADMIN_GROUP || self.groups.iter().any(|group| group == ADMIN_GROUP)
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.groups.join(","))
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct UserClaims {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Groups")]
    groups: Option<Vec<String>>,
    exp: i64,
    nbf: i64,
    iat: i64,
    jti: String,
}

/// Issues and checks the tokens of users.
#[derive(Clone, Debug)]
pub struct UserTokens {
    store: Store,
}

impl UserTokens {
    /// With the keys in that store.
    pub fn new(store: Store) -> UserTokens {
        UserTokens { store }
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`TokenError::NoSigningKey`] when there is no signing key.
    pub async fn issue(&self, user: &User, valid_for: Duration) -> Result<String, TokenError> {
        let Registered { iat, nbf, exp, jti } = Registered::new(SystemTime::now(), valid_for);
        let claims = UserClaims { name: user.name.clone(), groups: Some(user.groups.clone()), exp, nbf, iat, jti };
        sign(&self.store, &KeyRing::of_users(), &claims).await
    }

    /// Checks a token and returns its user, who is then in the group of authenticated users too.
    ///
    /// # Errors
    /// [`TokenError::Invalid`] or [`TokenError::NoSigningKey`] saying what failed.
    pub async fn validate(&self, token: &str) -> Result<User, TokenError> {
        let claims: UserClaims = verify(&self.store, &KeyRing::of_users(), token.trim()).await?;
        let lists = [ResourceKey::global(Kind::GlobalSecret, "user-token-revocations")];
        if is_revoked(&self.store, &lists, &claims.jti).await? {
            return Err(TokenError::Invalid(format!("token {} is revoked", claims.jti)));
        }
        Ok(User { name: claims.name, groups: claims.groups.unwrap_or_default() }.authenticated())
    }
}
