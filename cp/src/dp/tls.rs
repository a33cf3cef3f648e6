//! The certificate of the data-plane server: given, or made on the first start and kept in the working directory.
//!
//! The self-made one has an authority of its own (`dp-server-ca.pem`), which proxies are given to trust, and a leaf that is made
//! again when it nears its end or lacks a name that the machine now has.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;

use super::{DpConfig, DpError};
use crate::identity::pem;

/// Lifetime of the self-made authority and leaf.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A leaf that ends sooner than this is replaced at the start.
const LEAST_LEFT: TimeDelta = TimeDelta::days(30);

/// What the server shows, and what proxies must trust for it.
pub(crate) struct ServerIdentity {
    /// Certificate chain, PEM.
    certificate: String,
    /// Private key, PEM.
    key: String,
    /// What proxies must trust, PEM.
    pub(crate) ca: String,
    /// Where it is.
    pub(crate) ca_path: PathBuf,
    /// Names and addresses of the certificate.
    pub(super) names: BTreeSet<String>,
}

fn failed(doing: impl std::fmt::Display, reason: impl std::fmt::Display) -> DpError {
    DpError::Tls(format!("{doing}: {reason}"))
}

impl ServerIdentity {
    /// Reads the configured certificate, or reads or makes the self-made one.
    pub(crate) fn load(config: &DpConfig) -> Result<Self, DpError> {
        if let Some((certificate_path, key_path)) = &config.tls {
            let certificate = read(certificate_path)?;
            let names = names(&certificate).map_err(|e| failed(certificate_path.display(), e))?;
            // Kuma hands out the server's own certificate file as what to trust.
            let (ca, ca_path) = (certificate.clone(), certificate_path.clone());
            return Ok(ServerIdentity { certificate, key: read(key_path)?, ca, ca_path, names });
        }
        let dir = &config.work_dir;
        fs::create_dir_all(dir).map_err(|e| failed(format_args!("creating {}", dir.display()), e))?;
        let file = |name: &str| dir.join(name);
        let (ca_path, ca_key_path) = (file("dp-server-ca.pem"), file("dp-server-ca-key.pem"));
        let (certificate_path, key_path) = (file("dp-server-cert.pem"), file("dp-server-key.pem"));

        if !(ca_path.exists() && ca_key_path.exists()) {
            let (certificate, key) = make_ca().map_err(|e| failed("making the certificate authority", e))?;
            write(&ca_key_path, &key, 0o600)?;
            write(&ca_path, &certificate, 0o644)?;
            // A leaf of an authority that is no more is of no use.
            let _ = fs::remove_file(&certificate_path);
            tracing::info!(path = %ca_path.display(), "made a certificate authority for the data-plane server");
        }
        let (ca, ca_key) = (read(&ca_path)?, read(&ca_key_path)?);
        let wanted = local_names(&config.extra_names);
        let usable = certificate_path.exists() && key_path.exists() && {
            let certificate = read(&certificate_path)?;
            names(&certificate).is_ok_and(|names| wanted.is_subset(&names))
                && expires(&certificate).is_some_and(|expires| expires > Utc::now() + LEAST_LEFT)
        };
        if !usable {
            let (certificate, key) = make_leaf(&ca, &ca_key, &wanted)
                .map_err(|e| failed(format_args!("making a certificate with {}", ca_path.display()), e))?;
            write(&key_path, &key, 0o600)?;
            write(&certificate_path, &certificate, 0o644)?;
        }
        let certificate = read(&certificate_path)?;
        let names = names(&certificate).map_err(|e| failed(certificate_path.display(), e))?;
        Ok(ServerIdentity { certificate, key: read(&key_path)?, ca, ca_path, names })
    }

    /// What takes in TLS connections: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1.
    pub(crate) fn acceptor(&self) -> Result<tokio_rustls::TlsAcceptor, DpError> {
        let chain: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect();
        let chain = chain.map_err(|e| failed("reading the certificate", e))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|e| failed("reading the key", e))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| failed("setting up TLS", e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| failed("using certificate and key", e))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
    }

    /// Whether a client that dials `host` will find that name in the certificate.
    pub(super) fn covers(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let wildcard = host.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        self.names.contains(&host) || wildcard.is_some_and(|wildcard| self.names.contains(&wildcard))
    }
}

fn read(path: &Path) -> Result<String, DpError> {
    fs::read_to_string(path).map_err(|e| failed(format_args!("reading {}", path.display()), e))
}

/// Writes a file in one step, so that a crash leaves no half of it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), DpError> {
    let scratch = path.with_extension("new");
    let doing = || format!("writing {}", path.display());
    let mut options = fs::OpenOptions::new();
    let _ = fs::remove_file(&scratch);
    let mut file = options.write(true).create_new(true).mode(mode).open(&scratch).map_err(|e| failed(doing(), e))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|e| failed(doing(), e))?;
    fs::rename(&scratch, path).map_err(|e| failed(doing(), e))
}

fn make_ca() -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "shika-cp data-plane server CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    crate::identity::ca::set_validity(&mut params, Utc::now(), LIFETIME);
    let certificate = params.self_signed(&key)?;
    Ok((pem("CERTIFICATE", certificate.der()), key.serialize_pem()))
}

fn make_leaf(ca: &str, ca_key: &str, names: &BTreeSet<String>) -> Result<(String, String), rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(ca, KeyPair::from_pem(ca_key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "shika-cp data-plane server");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    crate::identity::ca::set_validity(&mut params, Utc::now(), LIFETIME);
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((pem("CERTIFICATE", certificate.der()), key.serialize_pem()))
}

/// DNS names (lower case) and IP addresses of a certificate.
fn names(certificate: &str) -> Result<BTreeSet<String>, String> {
    let (_, document) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(|e| e.to_string())?;
    let certificate = document.parse_x509().map_err(|e| e.to_string())?;
    let extension = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(v4) => Some(Ipv4Addr::from(v4).to_string()),
                Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|v6| Ipv6Addr::from(v6).to_string()),
            },
            _ => None,
        })
        .collect())
}

fn expires(certificate: &str) -> Option<DateTime<Utc>> {
    let (_, document) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok()?;
    let certificate = document.parse_x509().ok()?;
    DateTime::from_timestamp(certificate.validity().not_after.timestamp(), 0)
}

/// Whether a PEM certificate may sign others; an error if it is no certificate.
pub(super) fn is_ca(certificate: &str) -> Result<bool, String> {
    let (_, document) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(|e| e.to_string())?;
    Ok(document.parse_x509().map_err(|e| e.to_string())?.is_ca())
}

/// Under which names this machine may be dialled: localhost, its host name, its addresses, and `extra`.
fn local_names(extra: &[String]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].into_iter().map(str::to_owned).collect();
    if let Ok(name) = fs::read_to_string("/proc/sys/kernel/hostname") {
        names.insert(name.trim().to_ascii_lowercase());
    }
    names.extend(fs::read_to_string("/proc/net/fib_trie").map(|trie| local_v4(&trie)).unwrap_or_default());
    names.extend(fs::read_to_string("/proc/net/if_inet6").map(|table| local_v6(&table)).unwrap_or_default());
    names.extend(extra.iter().map(|name| name.to_ascii_lowercase()));
    names.retain(|name| name.parse::<IpAddr>().is_ok() || is_dns_name(name));
    names
}

/// Local addresses of the kernel's routing trie: a line `|-- <address>` followed by `/32 host LOCAL`.
fn local_v4(trie: &str) -> Vec<String> {
    let lines: Vec<&str> = trie.lines().collect();
    lines
        .windows(2)
        .filter(|pair| pair[1].contains("/32 host LOCAL"))
        .filter_map(|pair| pair[0].trim().strip_prefix("|-- "))
        .filter(|address| address.parse::<Ipv4Addr>().is_ok())
        .map(str::to_owned)
        .collect()
}

/// Global addresses of `/proc/net/if_inet6`: 32 hexadecimal digits, then index, prefix length, scope (00), flags and device.
fn local_v6(table: &str) -> Vec<String> {
    let address = |line: &str| {
        let mut columns = line.split_whitespace();
        let digits = u128::from_str_radix(columns.next()?, 16).ok()?;
        (columns.nth(2)? == "00").then(|| Ipv6Addr::from(digits).to_string())
    };
    table.lines().filter_map(address).collect()
}

fn is_dns_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 253 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-')
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
