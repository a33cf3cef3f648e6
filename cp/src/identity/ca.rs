//! The builtin certificate authority of a mesh.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
    SanType, SerialNumber,
};

use super::{IdentityError, pem, rsa_key_pem};

/// How long before now a certificate starts to be valid, so that a peer whose clock is behind accepts it (Kuma:
/// `DefaultAllowedClockSkew`).
pub const ALLOWED_CLOCK_SKEW: Duration = Duration::from_secs(10);

/// Lifetime of an authority for which `conf.caCert.expiration` says nothing: ten years, as Kuma.
pub const DEFAULT_EXPIRATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Name of the Secret that holds the authority's certificate.
pub fn certificate_secret(mesh: &str, backend: &str) -> String {
    format!("{mesh}.ca-builtin-cert-{backend}")
}

/// Name of the Secret that holds the authority's private key.
pub fn key_secret(mesh: &str, backend: &str) -> String {
    format!("{mesh}.ca-builtin-key-{backend}")
}

/// An authority as the two Secrets hold it.
#[derive(Debug, Clone)]
pub struct CaPem {
    /// The self-signed certificate, PEM.
    pub certificate: String,
    /// Its RSA key, PEM (PKCS#1).
    pub key: String,
}

/// Makes a self-signed authority: subject `O=Kuma, OU=Mesh, CN=<mesh>`, URI `spiffe://<mesh>`, RSA.
///
/// `bits` is 2048, 3072 or 4096 (0 means 2048). Generating the key takes from tens to hundreds of milliseconds of CPU: call it on a
/// blocking thread.
pub fn create(mesh: &str, bits: u32, expiration: Duration, now: DateTime<Utc>) -> Result<CaPem, IdentityError> {
    let doing = || format!("creating the certificate authority of mesh {mesh}");
    let crypto = |reason: String| IdentityError::Crypto { doing: doing(), reason };
    let size = match bits {
        0 | 2048 => RsaKeySize::_2048,
        3072 => RsaKeySize::_3072,
        4096 => RsaKeySize::_4096,
        other => return Err(crypto(format!("RSAbits {other} is not supported: use 2048, 3072 or 4096"))),
    };
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).map_err(|e| crypto(e.to_string()))?;

    let uri = format!("spiffe://{mesh}");
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Kuma");
    params.distinguished_name.push(DnType::OrganizationalUnitName, "Mesh");
    params.distinguished_name.push(DnType::CommonName, mesh);
    params.subject_alt_names =
        vec![SanType::URI(uri.clone().try_into().map_err(|_| IdentityError::BadUri { uri: uri.clone() })?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(random_serial());
    set_validity(&mut params, now, expiration);
    let certificate = params.self_signed(&key).map_err(|e| crypto(e.to_string()))?;
    Ok(CaPem { certificate: pem("CERTIFICATE", certificate.der()), key: rsa_key_pem(key.serialized_der()) })
}

/// An authority that can sign.
pub struct CertificateAuthority {
    mesh: String,
    certificate: String,
    expires: DateTime<Utc>,
    fingerprint: u64,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for CertificateAuthority {
    /// Shows whose authority it is; never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("mesh", &self.mesh)
            .field("fingerprint", &format_args!("{:016x}", self.fingerprint))
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// Reads an authority from the two PEM documents of `mesh`. Keys in PKCS#1, PKCS#8 and SEC1 form are accepted, so an authority that
    /// Kuma made works as it is. A certificate that is no authority is refused.
    pub fn from_pem(mesh: &str, pem: &CaPem) -> Result<Self, IdentityError> {
        let bad = |what: &str, reason: String| IdentityError::BadPem { what: format!("{what} of mesh {mesh}"), reason };
        let key = KeyPair::from_pem(&pem.key)
            .or_else(|_| KeyPair::from_pem_and_sign_algo(&pem.key, &PKCS_RSA_SHA256))
            .map_err(|e| bad("the CA key", e.to_string()))?;
        let (_, document) = x509_parser::pem::parse_x509_pem(pem.certificate.as_bytes())
            .map_err(|e| bad("the CA certificate", e.to_string()))?;
        let parsed = document.parse_x509().map_err(|e| bad("the CA certificate", e.to_string()))?;
        if !parsed.is_ca() {
            return Err(bad("the CA certificate", "basicConstraints does not say CA:TRUE".to_owned()));
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(bad("the CA key", "it does not belong to the CA certificate".to_owned()));
        }
        let expires = DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0)
            .ok_or_else(|| bad("the CA certificate", "notAfter is out of range".to_owned()))?;
        let issuer =
            Issuer::from_ca_cert_pem(&pem.certificate, key).map_err(|e| bad("the CA certificate", e.to_string()))?;
        Ok(CertificateAuthority {
            mesh: mesh.to_owned(),
            certificate: pem.certificate.clone(),
            expires,
            fingerprint: xxhash_rust::xxh64::xxh64(&document.contents, 0),
            issuer,
        })
    }

    /// Mesh that owns the authority.
    pub fn mesh(&self) -> &str {
        &self.mesh
    }

    /// The certificate, PEM: the trust bundle of the mesh.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Until when the authority is valid.
    pub fn expires(&self) -> DateTime<Utc> {
        self.expires
    }

    /// A number that differs when the certificate differs. Not a security measure: it tells versions apart.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// A positive random serial of up to 128 bits, never zero (RFC 5280 section 4.1.2.2).
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // The top bit is the sign; the low bit keeps the number from being zero.
    bytes[0] &= 0x7f;
    bytes[15] |= 1;
    SerialNumber::from_slice(&bytes)
}

/// Sets the validity: from ten seconds before `from` (see [`ALLOWED_CLOCK_SKEW`]) until `lifetime` after it.
pub(crate) fn set_validity(params: &mut CertificateParams, from: DateTime<Utc>, lifetime: Duration) {
    let seconds = u64::try_from(from.timestamp()).unwrap_or(0);
    let from = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = from - ALLOWED_CLOCK_SKEW;
    params.not_after = from + lifetime;
}
