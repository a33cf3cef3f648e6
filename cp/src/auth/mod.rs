//! Tokens: of data planes, which join a mesh with them, of zones, whose proxies and control planes connect with them, and of
//! users, who call the REST API with them.
//!
//! Kuma's format (`pkg/core/tokens`): a JWT signed with RS256, whose header names the signing key by the number at the
//! end of its secret's name. The key with the highest number signs; every key that is still stored verifies, so that keys
//! are rotated by adding one, reissuing the tokens and deleting the old one.

mod dataplane;
mod keys;
mod user;
mod zone;

pub use dataplane::{DataplaneClaims, DataplaneIdentity, DataplaneTokens};
pub use keys::{new_signing_key, public_of_private};
pub use user::{ADMIN_GROUP, User, UserTokens};
pub use zone::{ZoneClaims, ZoneScope, ZoneTokens};

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::resource::{Kind, ResourceKey};
use crate::store::{Store, StoreError};

/// How far `iat` and `nbf` lie in the past, and `exp` beyond the validity, so that clocks may differ a little.
const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// Longest token that is looked at. Kuma's are below 2 KiB.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Length of an RSA-2048 key and more; a secret beyond it is no key.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// Why a token is not issued or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The token does not prove what was claimed: it is malformed, forged, expired, revoked or made for another one.
    #[error("{0}")]
    Invalid(String),
    /// There is no key of that number to sign or verify with.
    #[error(
        "there is no signing key with KID {kid}. {secret} is not found. If signing key was rotated, regenerate the token"
    )]
    NoSigningKey {
        /// The number of the key.
        kid: String,
        /// The secret that would hold it.
        secret: ResourceKey,
    },
    /// The token could not be made.
    #[error("{0}")]
    Issue(String),
    /// The store failed; nothing is known about the token.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the keys of one kind of token are: the secrets `<prefix>-<number>`.
#[derive(Clone, Debug)]
struct KeyRing {
    prefix: String,
    /// The mesh of the secrets; empty for GlobalSecrets.
    mesh: String,
    /// Begins the names of secrets that hold the public halves of keys whose private halves are kept elsewhere; empty when
    /// there are none.
    public_prefix: &'static str,
}

impl KeyRing {
    fn of_mesh(mesh: &str) -> KeyRing {
        KeyRing { prefix: signing_key_prefix(mesh), mesh: mesh.to_owned(), public_prefix: "" }
    }

    fn of_users() -> KeyRing {
        KeyRing { prefix: USER_SIGNING_KEY_PREFIX.to_owned(), mesh: String::new(), public_prefix: "" }
    }

    fn of_zones() -> KeyRing {
        let prefix = ZONE_SIGNING_KEY_PREFIX.to_owned();
        KeyRing { prefix, mesh: String::new(), public_prefix: ZONE_PUBLIC_KEY_PREFIX }
    }

    fn kind(&self) -> Kind {
        if self.mesh.is_empty() { Kind::GlobalSecret } else { Kind::Secret }
    }

    fn secret(&self, kid: &str) -> ResourceKey {
        ResourceKey::new(self.kind(), self.mesh.clone(), format!("{}-{kid}", self.prefix))
    }

    /// The number of the key in a secret of that name.
    fn number(&self, name: &str) -> Option<u64> {
        name.strip_prefix(&self.prefix)?.strip_prefix('-')?.parse().ok()
    }

    /// The newest key and its number.
    async fn latest(&self, store: &Store) -> Result<(u64, keys::SigningKey), TokenError> {
        let mesh = (!self.mesh.is_empty()).then_some(self.mesh.as_str());
        let secrets = store.list(self.kind(), mesh).await?;
        let newest = secrets
            .iter()
            .filter_map(|secret| Some((self.number(&secret.meta.name)?, secret)))
            .max_by_key(|(number, _)| *number);
        let (number, secret) =
            newest.ok_or_else(|| TokenError::NoSigningKey { kid: "1".to_owned(), secret: self.secret("1") })?;
        let data = secret.secret().map(|secret| secret.data.as_slice()).unwrap_or_default();
        let key = keys::SigningKey::read(data)
            .map_err(|e| TokenError::Issue(format!("{} is not a signing key: {e}", secret.key())))?;
        Ok((number, key))
    }

    /// The key of that number, as far as it verifies.
    async fn key(&self, store: &Store, kid: &str) -> Result<keys::PublicKey, TokenError> {
        let secret = self.secret(kid);
        // A token may hold anything as its kid; only a number is ever part of a secret's name.
        if kid.parse::<u64>().is_err() {
            return Err(TokenError::NoSigningKey { kid: kid.to_owned(), secret });
        }
        let unusable = |secret: &ResourceKey, reason: String| {
            TokenError::Invalid(format!("{secret} cannot verify the token: it is not a signing key: {reason}"))
        };
        if let Some(found) = store.get(&secret).await? {
            let data = found.secret().map(|secret| secret.data.as_slice()).unwrap_or_default();
            return keys::SigningKey::read(data).map(|key| key.public()).map_err(|e| unusable(&secret, e));
        }
        if !self.public_prefix.is_empty() {
            let public = ResourceKey::new(self.kind(), self.mesh.clone(), format!("{}-{kid}", self.public_prefix));
            if let Some(found) = store.get(&public).await? {
                let data = found.secret().map(|secret| secret.data.as_slice()).unwrap_or_default();
                return keys::PublicKey::read(data).map_err(|e| unusable(&public, e));
            }
        }
        Err(TokenError::NoSigningKey { kid: kid.to_owned(), secret })
    }
}

/// Begins the names of the GlobalSecrets that hold the keys of user tokens (Kuma `UserTokenSigningKeyPrefix`).
pub const USER_SIGNING_KEY_PREFIX: &str = "user-token-signing-key";

/// Begins the names of the GlobalSecrets that hold the keys of zone tokens (Kuma `ZoneTokenSigningKeyPrefix`).
pub const ZONE_SIGNING_KEY_PREFIX: &str = "zone-token-signing-key";

/// Begins the names of the GlobalSecrets that hold the public halves of these keys, in a zone that has a global control plane
/// (Kuma `ZoneTokenSigningPublicKeyPrefix`).
pub const ZONE_PUBLIC_KEY_PREFIX: &str = "zone-token-signing-public-key";

/// Begins the names of the Secrets that hold the keys of a mesh's data plane tokens (Kuma `DataplaneTokenSigningKeyPrefix`).
pub fn signing_key_prefix(mesh: &str) -> String {
    format!("dataplane-token-signing-key-{mesh}")
}

/// The claims that every token has (RFC 7519 section 4.1). Times in seconds since 1970.
#[derive(Clone, Debug)]
struct Registered {
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
}

impl Registered {
    fn new(now: SystemTime, valid_for: Duration) -> Registered {
        let seconds = |time: Option<SystemTime>| {
            let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        };
        let issued = seconds(now.checked_sub(CLOCK_SKEW));
        let expires = seconds(now.checked_add(valid_for));
        Registered { iat: issued, nbf: issued, exp: expires, jti: uuid::Uuid::new_v4().to_string() }
    }
}

/// Signs claims with the newest key.
async fn sign(store: &Store, ring: &KeyRing, claims: &impl Serialize) -> Result<String, TokenError> {
    let (number, key) = ring.latest(store).await?;
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(number.to_string());
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_rsa_der(key.pkcs1()))
        .map_err(|e| TokenError::Issue(format!("could not sign a token: {e}")))
}

/// Checks shape, algorithm, signature and times of a token and returns its claims.
async fn verify<T: DeserializeOwned + Clone>(store: &Store, ring: &KeyRing, token: &str) -> Result<T, TokenError> {
    let invalid = |what: String| TokenError::Invalid(format!("could not parse token: {what}"));
    if token.len() > MAX_TOKEN_BYTES {
        return Err(invalid(format!("it is longer than {MAX_TOKEN_BYTES} bytes")));
    }
    let header = jsonwebtoken::decode_header(token)
        .map_err(|_| invalid("it is not a JWT of three parts separated by dots".to_owned()))?;
    if header.alg != Algorithm::RS256 {
        return Err(invalid(format!("unsupported token alg {:?}. Allowed algorithm is RS256", header.alg)));
    }
    let kid = header.kid.ok_or_else(|| invalid("JWT token must have kid header".to_owned()))?;
    let key = ring.key(store, &kid).await?;
    let keys::PublicKey { modulus, exponent } = &key;
    let mut validation = Validation::new(Algorithm::RS256);
    validation.validate_nbf = true;
    validation.validate_aud = false;
    validation.leeway = 0;
    validation.set_required_spec_claims(&["exp"]);
    let decoded =
        jsonwebtoken::decode::<T>(token, &DecodingKey::from_rsa_raw_components(modulus, exponent), &validation);
    decoded.map(|token| token.claims).map_err(|error| match error.kind() {
        ErrorKind::ExpiredSignature => TokenError::Invalid(match times(token).map(|times| times.exp) {
            Some(Some(at)) => format!("token is expired since {}; generate a new one", crate::resource::time(at)),
            _ => "token is expired; generate a new one".to_owned(),
        }),
        ErrorKind::ImmatureSignature => {
            let begin = times(token).and_then(|times| times.nbf);
            let ahead = begin.map(|at| format!("{} s ", (at - Utc::now()).num_seconds())).unwrap_or_default();
            TokenError::Invalid(format!(
                "token is not yet valid: its 'nbf' lies {ahead}in the future. Check if the system clocks of this host and of the \
                 instance that issued the token are set correctly"
            ))
        }
        ErrorKind::InvalidSignature => TokenError::Invalid(format!(
            "signature of the token is invalid: it was not made with the key in {}; was the token issued by another control \
             plane, or for another mesh?",
            ring.secret(&kid)
        )),
        _ => invalid(error.to_string()),
    })
}

/// When a token says that it begins and ends to be valid.
struct Times {
    exp: Option<DateTime<Utc>>,
    nbf: Option<DateTime<Utc>>,
}

/// Only for messages: nothing was verified.
fn times(token: &str) -> Option<Times> {
    #[derive(serde::Deserialize)]
    struct Claims {
        #[serde(default)]
        exp: i64,
        #[serde(default)]
        nbf: i64,
    }
    let claims: Claims = jsonwebtoken::dangerous::insecure_decode_claims(token).ok()?;
    Some(Times { exp: DateTime::from_timestamp(claims.exp, 0), nbf: DateTime::from_timestamp(claims.nbf, 0) })
}

/// Whether a token was revoked: one of `lists` (secrets that hold identifiers separated by commas) names it.
async fn is_revoked(store: &Store, lists: &[ResourceKey], jti: &str) -> Result<bool, TokenError> {
    for list in lists {
        let Some(list) = store.get(list).await? else { continue };
        let Some(secret) = list.secret() else { continue };
        let text = String::from_utf8_lossy(&secret.data);
        if text.split([',', '\n']).any(|revoked| revoked.trim() == jti && !jti.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
#[path = "auth_tests.rs"]
mod tests;
