//! RSA signing keys in secrets: PEM, PKCS#1 (RFC 8017 appendix A.1.2), as Kuma writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::MAX_KEY_BYTES;

/// A public RSA key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    /// Big endian, without leading zeros.
    pub(super) modulus: Vec<u8>,
    /// Big endian, without leading zeros.
    pub(super) exponent: Vec<u8>,
}

impl PublicKey {
    /// Reads a PEM block `RSA PUBLIC KEY` (PKCS#1), as Kuma writes it, or `PUBLIC KEY` (RFC 5280 SubjectPublicKeyInfo).
    pub(super) fn read(data: &[u8]) -> Result<PublicKey, String> {
        if data.len() > MAX_KEY_BYTES {
            return Err(format!("{} bytes are too long for a key", data.len()));
        }
        let text = std::str::from_utf8(data).map_err(|_| "expected a PEM block RSA PUBLIC KEY".to_owned())?;
        let block = |name: &str| {
            let (_, rest) = text.split_once(&format!("-----BEGIN {name}-----"))?;
            let (body, _) = rest.split_once(&format!("-----END {name}-----"))?;
            STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()
        };
        let pkcs1 = match (block("RSA PUBLIC KEY"), block("PUBLIC KEY")) {
            (Some(pkcs1), _) => pkcs1,
            (None, Some(info)) => {
                let (info, _) = element(&info, SEQUENCE)?;
                let (_algorithm, rest) = element(info, SEQUENCE)?;
                let (bits, _) = element(rest, BIT_STRING)?;
                // The first byte counts unused bits at the end; a key has none.
                bits.strip_prefix(&[0]).ok_or("the key is malformed")?.to_vec()
            }
            (None, None) => return Err("expected a PEM block RSA PUBLIC KEY".to_owned()),
        };
        let (key, _) = element(&pkcs1, SEQUENCE)?;
        let (modulus, rest) = element(key, INTEGER)?;
        let (exponent, _) = element(rest, INTEGER)?;
        let (modulus, exponent) = (unsigned(modulus).to_vec(), unsigned(exponent).to_vec());
        if modulus.len() < 256 {
            return Err(format!("the RSA key has {} bits, at least 2048 are needed", modulus.len() * 8));
        }
        Ok(PublicKey { modulus, exponent })
    }

    /// A PEM block `RSA PUBLIC KEY`.
    fn to_pem(&self) -> Vec<u8> {
        let integer = |number: &[u8]| {
            // A leading one bit would make it negative.
            let sign = number.first().is_none_or(|byte| byte & 0x80 != 0);
            let content = [if sign { &[0][..] } else { &[] }, number].concat();
            encoded(INTEGER, &content)
        };
        let key = encoded(SEQUENCE, &[integer(&self.modulus), integer(&self.exponent)].concat());
        pem("RSA PUBLIC KEY", &key)
    }
}

/// The public half of a signing key: what a global control plane gives to its zones (Kuma
/// `MapZoneTokenSigningKeyGlobalToPublicKey`).
///
/// # Errors
/// A text when `private` is no signing key.
pub fn public_of_private(private: &[u8]) -> Result<Vec<u8>, String> {
    Ok(SigningKey::read(private)?.public().to_pem())
}

/// A private RSA key.
pub(super) struct SigningKey {
    pkcs1: Vec<u8>,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl SigningKey {
    /// Reads a key: PEM with PKCS#1 or PKCS#8, or PKCS#1 without PEM, as old versions of Kuma wrote it.
    pub(super) fn read(data: &[u8]) -> Result<SigningKey, String> {
        if data.len() > MAX_KEY_BYTES {
            return Err(format!("{} bytes are too long for a key", data.len()));
        }
        let pkcs1 = if data.starts_with(b"-----BEGIN") {
            match PrivateKeyDer::from_pem_slice(data) {
                Ok(PrivateKeyDer::Pkcs1(key)) => key.secret_pkcs1_der().to_vec(),
                Ok(PrivateKeyDer::Pkcs8(key)) => pkcs1_of_pkcs8(key.secret_pkcs8_der())?.to_vec(),
                Ok(_) => return Err("expected an RSA private key".to_owned()),
                Err(e) => return Err(format!("expected a PEM block RSA PRIVATE KEY: {e}")),
            }
        } else {
            data.to_vec()
        };
        // RSAPrivateKey ::= SEQUENCE { version, modulus, publicExponent, … }
        let (key, _) = element(&pkcs1, SEQUENCE)?;
        let (_version, rest) = element(key, INTEGER)?;
        let (modulus, rest) = element(rest, INTEGER)?;
        let (exponent, _) = element(rest, INTEGER)?;
        let (modulus, exponent) = (unsigned(modulus).to_vec(), unsigned(exponent).to_vec());
        if modulus.len() < 256 {
            return Err(format!("the RSA key has {} bits, at least 2048 are needed", modulus.len() * 8));
        }
        Ok(SigningKey { pkcs1, modulus, exponent })
    }

    pub(super) fn pkcs1(&self) -> &[u8] {
        &self.pkcs1
    }

    /// The half that verifies.
    pub(super) fn public(&self) -> PublicKey {
        PublicKey { modulus: self.modulus.clone(), exponent: self.exponent.clone() }
    }
}

/// Makes a new RSA-2048 key, as a PEM block `RSA PRIVATE KEY`. Takes some hundred milliseconds: call it off the async
/// threads.
///
/// # Errors
/// A text when the cryptographic library fails.
pub fn new_signing_key() -> Result<Vec<u8>, String> {
    let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
        .map_err(|e| format!("cannot generate an RSA key: {e}"))?;
    let pkcs8 = pair.serialize_der();
    Ok(pem("RSA PRIVATE KEY", pkcs1_of_pkcs8(&pkcs8)?))
}

/// A PEM block (RFC 7468).
fn pem(name: &str, der: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {name}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {name}-----\n"));
    pem.into_bytes()
}

/// A DER element.
fn encoded(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match u8::try_from(content.len()) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            let length = content.len().to_be_bytes();
            let significant: Vec<u8> = length.into_iter().skip_while(|byte| *byte == 0).collect();
            der.push(0x80 | u8::try_from(significant.len()).unwrap_or_default());
            der.extend(significant);
        }
    }
    der.extend_from_slice(content);
    der
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// `PrivateKeyInfo ::= SEQUENCE { version, algorithm, privateKey OCTET STRING }` (RFC 5208) around the PKCS#1 key.
fn pkcs1_of_pkcs8(der: &[u8]) -> Result<&[u8], String> {
    let (info, _) = element(der, SEQUENCE)?;
    let (_version, rest) = element(info, INTEGER)?;
    let (_algorithm, rest) = element(rest, SEQUENCE)?;
    let (key, _) = element(rest, OCTET_STRING)?;
    Ok(key)
}

/// The content of a DER element of that tag, and what follows it.
fn element(der: &[u8], expected: u8) -> Result<(&[u8], &[u8]), String> {
    let malformed = || "the key is malformed or no RSA private key".to_owned();
    let (&tag, rest) = der.split_first().ok_or_else(malformed)?;
    let (&first, mut rest) = rest.split_first().ok_or_else(malformed)?;
    if tag != expected {
        return Err(malformed());
    }
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        length = 0;
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 {
            return Err(malformed());
        }
        for _ in 0..count {
            let (&byte, after) = rest.split_first().ok_or_else(malformed)?;
            length = length << 8 | usize::from(byte);
            rest = after;
        }
    }
    rest.split_at_checked(length).ok_or_else(malformed)
}

/// An integer without the zero that marks it as positive.
fn unsigned(integer: &[u8]) -> &[u8] {
    integer.strip_prefix(&[0]).unwrap_or(integer)
}
