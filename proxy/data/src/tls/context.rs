//! Contexts out of specifications: what can be wrong is found here, when the configuration is compiled, and not in a handshake.

use std::sync::Arc;

use rustls::{
    ClientConfig, ServerConfig, SupportedProtocolVersion,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use rustls_pki_types::CertificateDer;

use super::{
    info,
    preferences::{PROVIDER, Preferring},
    session::{Sessions, Tickets},
    sni,
    verify::{ClientVerifier, Judge, ServerVerifier, dns_matches},
};
use crate::model::tls::{
    CertificateInfo, ClientContext, ClientTlsSpec, Identity, Parameters, ServerContext, ServerTlsSpec, SubjectAltName,
    TlsVersion, Trust, Validation,
};

/// Why a context cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// There is no certificate to serve.
    #[error("no TLS certificate: a downstream TLS context needs at least one")]
    NoCertificate,
    /// A chain without certificates.
    #[error("{path}: the certificate chain is empty")]
    EmptyChain {
        /// Where it came from.
        path: Arc<str>,
    },
    /// A certificate that cannot be read.
    #[error("{path}: {reason}")]
    Certificate {
        /// Where it came from.
        path: Arc<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that cannot be used.
    #[error("{path}: the private key cannot be used: {reason}")]
    Key {
        /// Where it came from.
        path: Arc<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// Key and certificate are of different pairs.
    #[error("{path}: the private key does not belong to the certificate ({certificate})")]
    KeyMismatch {
        /// Where they came from.
        path: Arc<str>,
        /// Names in the certificate.
        certificate: String,
    },
    /// An authority that cannot be used.
    #[error("the trusted authority {name} cannot be used: {reason}")]
    Authority {
        /// Names in it.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Versions or ciphers that leave nothing.
    #[error("TLS parameters: {0}")]
    Parameters(String),
    /// A server name that cannot be sent.
    #[error("sni \"{0}\" is no DNS name and too long to be sent as what it is")]
    Sni(String),
}

impl ServerContext {
    /// Builds a downstream context.
    pub fn build(spec: &ServerTlsSpec) -> Result<Self, ContextError> {
        let ServerTlsSpec { identities, validation, require_client_certificate, alpn, parameters, resumption } = spec;
        if identities.is_empty() {
            return Err(ContextError::NoCertificate);
        }
        let (provider, versions) = provider(parameters)?;
        let mut certificates = Vec::new();
        let mut keys = Vec::new();
        for identity in identities {
            let key = certified_key(identity, &provider)?;
            certificates.extend(chain_info(identity)?);
            let names = info::subject_alt_names(leaf(identity)?).unwrap_or_default();
            keys.push(Served { key: Arc::new(key), names });
        }
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| ContextError::Parameters(error.to_string()))?;
        let builder = if validation.is_some() || *require_client_certificate {
            let judge = Judge::new(validation.as_ref(), provider)?;
            builder.with_client_cert_verifier(Arc::new(ClientVerifier::new(judge, *require_client_certificate)))
        } else {
            builder.with_no_client_auth()
        };
        let own_uri = keys.first().and_then(|served| first_uri(&served.names));
        let mut config = builder.with_cert_resolver(Arc::new(BySni(keys)));
        // Tickets alone resume sessions: a store would cost memory for each context, and the library says nothing of what is in it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        match *resumption {
            Some(longest) => {
                let seal = aws_lc_rs::Ticketer::new().map_err(|error| ContextError::Parameters(error.to_string()))?;
                config.ticketer = Arc::new(Tickets::new(seal, longest));
            }
            None => config.send_tls13_tickets = 0,
        }
        let config_without_alpn = Arc::new(config.clone());
        config.alpn_protocols = alpn.clone();
        Ok(ServerContext {
            config: Arc::new(config),
            config_without_alpn,
            own_uri,
            certificates,
            authorities: authorities(validation.as_ref())?,
        })
    }
}

impl ClientContext {
    /// Builds an upstream context.
    pub fn build(spec: &ClientTlsSpec) -> Result<Self, ContextError> {
        let ClientTlsSpec { identity, validation, sni, alpn, parameters, max_session_keys } = spec;
        let (provider, versions) = provider(parameters)?;
        let sni = match sni.as_deref().filter(|sni| !sni.is_empty()) {
            Some(name) => Some(sni::server_name(name).ok_or_else(|| ContextError::Sni(name.to_owned()))?),
            None => None,
        };
        let judge = Judge::new(validation.as_ref(), provider.clone())?;
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| ContextError::Parameters(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ServerVerifier::new(judge)));
        let (mut config, certificates) = match identity {
            Some(identity) => {
                let mut key = certified_key(identity, &provider)?;
                key.key = Arc::new(sni::WireKey(key.key));
                (builder.with_client_cert_resolver(Arc::new(Always(Arc::new(key)))), chain_info(identity)?)
            }
            None => (builder.with_no_client_auth(), Vec::new()),
        };
        config.alpn_protocols = alpn.clone();
        config.enable_sni = sni.is_some();
        config.resumption = if *max_session_keys == 0 {
            Resumption::disabled()
        } else {
            Resumption::store(Arc::new(Sessions::new(*max_session_keys)))
        };
        Ok(ClientContext {
            config: Arc::new(config),
            sni,
            certificates,
            authorities: authorities(validation.as_ref())?,
        })
    }
}

/// The provider with the wanted TLS 1.2 suites, and the wanted versions.
fn provider(
    parameters: &Parameters,
) -> Result<(Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>), ContextError> {
    let Parameters { minimum, maximum, cipher_suites } = parameters;
    let minimum = minimum.unwrap_or(TlsVersion::V1_2);
    let maximum = maximum.unwrap_or(TlsVersion::V1_3);
    let mut versions = Vec::new();
    for (version, supported) in [(TlsVersion::V1_3, &TLS13), (TlsVersion::V1_2, &TLS12)] {
        if minimum <= version && version <= maximum {
            versions.push(supported);
        }
    }
    if versions.is_empty() {
        return Err(ContextError::Parameters("the minimum version is above the maximum version".into()));
    }
    if cipher_suites.is_empty() {
        return Ok((PROVIDER.clone(), versions));
    }
    let mut provider = CryptoProvider::clone(&PROVIDER);
    provider.cipher_suites.retain(|suite| suite.tls13().is_some() || cipher_suites.contains(&suite.suite()));
    provider.cipher_suites.sort_by_key(|suite| cipher_suites.iter().position(|wanted| *wanted == suite.suite()));
    if maximum == TlsVersion::V1_2 && !provider.cipher_suites.iter().any(|suite| suite.tls13().is_none()) {
        return Err(ContextError::Parameters("none of the cipher suites is supported".into()));
    }
    if !provider.cipher_suites.iter().any(|suite| suite.tls13().is_none()) {
        versions.retain(|version| version.version == TLS13.version);
    }
    Ok((Arc::new(provider), versions))
}

fn leaf(identity: &Identity) -> Result<&CertificateDer<'static>, ContextError> {
    identity.chain.first().ok_or_else(|| ContextError::EmptyChain { path: identity.path.clone() })
}

fn certified_key(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, ContextError> {
    let certificate = leaf(identity)?;
    let key = provider
        .key_provider
        .load_private_key(identity.key.clone_key())
        .map_err(|error| ContextError::Key { path: identity.path.clone(), reason: error.to_string() })?;
    let mut certified = CertifiedKey::new(identity.chain.clone(), key);
    match certified.keys_match() {
        Ok(()) => {
            certified.key = Arc::new(Preferring(certified.key));
            Ok(certified)
        }
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(ContextError::KeyMismatch { path: identity.path.clone(), certificate: info::describe(certificate) })
        }
        Err(error) => Err(ContextError::Certificate { path: identity.path.clone(), reason: error.to_string() }),
    }
}

fn chain_info(identity: &Identity) -> Result<Vec<CertificateInfo>, ContextError> {
    let read = |certificate| {
        info::certificate_info(certificate, &identity.path)
            .map_err(|error| ContextError::Certificate { path: identity.path.clone(), reason: error.to_string() })
    };
    // Envoy's `/certs` lists the leaf of each chain.
    Ok(vec![read(leaf(identity)?)?])
}

fn authorities(validation: Option<&Validation>) -> Result<Vec<CertificateInfo>, ContextError> {
    let Some(validation) = validation else { return Ok(Vec::new()) };
    let read = |certificate: &CertificateDer<'static>| {
        info::certificate_info(certificate, &validation.path)
            .map_err(|error| ContextError::Certificate { path: validation.path.clone(), reason: error.to_string() })
    };
    match &validation.trust {
        Trust::None => Ok(Vec::new()),
        Trust::Authorities(certificates) => certificates.iter().map(read).collect(),
        Trust::Spiffe(domains) => domains.iter().flat_map(|(_, certificates)| certificates).map(read).collect(),
    }
}

fn first_uri(names: &[SubjectAltName]) -> Option<Arc<str>> {
    names.iter().find_map(|name| match name {
        SubjectAltName::Uri(uri) => Some(uri.as_str().into()),
        SubjectAltName::Dns(_) | SubjectAltName::Ip(_) | SubjectAltName::Email(_) => None,
    })
}

/// Chooses among several certificates: one whose name covers the requested server name, else the first; among equals one whose key the client can use.
///
/// Source: Envoy "Certificate selection".
#[derive(Debug)]
struct BySni(Vec<Served>);

#[derive(Debug)]
struct Served {
    key: Arc<CertifiedKey>,
    names: Vec<SubjectAltName>,
}

impl ResolvesServerCert for BySni {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let usable = |served: &&Served| served.key.key.choose_scheme(schemes).is_some();
        let named = |served: &&Served| {
            hello.server_name().is_some_and(|wanted| {
                served
                    .names
                    .iter()
                    .any(|name| matches!(name, SubjectAltName::Dns(presented) if dns_matches(wanted, presented)))
            })
        };
        let all = || self.0.iter();
        let best = all().filter(named).find(usable).or_else(|| all().find(usable)).or_else(|| all().next());
        best.map(|served| served.key.clone())
    }
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _root_hints: &[&[u8]], schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.key.choose_scheme(schemes).map(|_| self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
