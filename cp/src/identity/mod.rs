//! Who a workload is: the builtin certificate authority of a mesh and the certificates it issues to data plane proxies.
//!
//! * [`ca`] makes and reads the authority that a mesh with a `builtin` mTLS backend owns (Kuma's
//!   `pkg/plugins/ca/builtin`). Its certificate and key live in two Secrets of the mesh.
//! * [`leaf`] issues workload certificates in Kuma's shape (`pkg/core/ca/issuer/issuer.go`): one `spiffe://` URI for each
//!   service, one `kuma://` URI for each tag value.
//! * [`rotation`] decides, without doing any I/O, when a proxy needs a new certificate, and paces attempts that fail.

pub mod ca;
pub mod leaf;
pub mod rotation;

use base64::Engine as _;

/// Why a certificate or a key could not be made or read.
#[derive(Debug, thiserror::Error, Clone)]
pub enum IdentityError {
    /// The cryptographic library refused the input. The text says what was being done.
    #[error("{doing}: {reason}")]
    Crypto {
        /// What was attempted, for example "signing the certificate of backend-1".
        doing: String,
        /// What the library answered.
        reason: String,
    },
    /// A stored PEM document cannot be used.
    #[error("{what} is not usable: {reason}")]
    BadPem {
        /// Which document, for example a Secret's name.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tag or a service cannot be written as a URI of a certificate.
    #[error("{uri:?} cannot be the URI of a certificate: only ASCII is allowed")]
    BadUri {
        /// The URI that was to be written.
        uri: String,
    },
    /// The authority has expired or expires before the certificate would be of use.
    #[error("the certificate authority of mesh {mesh} expired on {expired}")]
    AuthorityExpired {
        /// Mesh that owns the authority.
        mesh: String,
        /// When it expired, RFC 3339.
        expired: String,
    },
    /// Mutual TLS is on, but the authority's Secrets are not there yet.
    #[error("mesh {mesh} has no certificate authority yet: Secret {secret} is missing")]
    AuthorityMissing {
        /// Mesh whose authority is wanted.
        mesh: String,
        /// Name of the Secret that was looked for.
        secret: String,
    },
}

/// Writes DER as PEM (RFC 7468) with lines of 64 characters.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        // base64 is ASCII, so every chunk is a string of its own.
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

/// Writes an RSA private key, given as PKCS#8, in the PKCS#1 form that Kuma stores and sends (`RSA PRIVATE KEY`).
/// A key in any other encoding is written as it stands (`PRIVATE KEY`); every reader of one accepts the other.
pub(crate) fn rsa_key_pem(pkcs8: &[u8]) -> String {
    match pkcs1_inside(pkcs8) {
        Some(pkcs1) => pem("RSA PRIVATE KEY", pkcs1),
        None => pem("PRIVATE KEY", pkcs8),
    }
}

/// The RSAPrivateKey inside a PrivateKeyInfo (RFC 5208): version 0, rsaEncryption with NULL, OCTET STRING.
fn pkcs1_inside(pkcs8: &[u8]) -> Option<&[u8]> {
    const VERSION_AND_ALGORITHM: &[u8] =
        &[0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];
    let body = der_content(pkcs8, 0x30)?;
    let key = body.strip_prefix(VERSION_AND_ALGORITHM)?;
    der_content(key, 0x04)
}

/// Content of the DER element of the given tag that fills `der` from its first byte (definite lengths of up to four bytes).
fn der_content(der: &[u8], tag: u8) -> Option<&[u8]> {
    let (&found, rest) = der.split_first()?;
    if found != tag {
        return None;
    }
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let (bytes, rest) = rest.split_at(count);
        (bytes.iter().fold(0usize, |length, byte| (length << 8) | usize::from(*byte)), rest)
    };
    rest.get(..length)
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
