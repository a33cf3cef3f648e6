//! TLS contexts as the path sees them. They are built in [`crate::tls`] from [`ServerTlsSpec`] and [`ClientTlsSpec`], which the compiler fills.
//!
//! Source: Envoy `extensions.transport_sockets.tls.v3`.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::matcher::StringMatcher;
use crate::stats::{SslFactoryStats, SslStats};

/// A downstream TLS context. The secret behind it is swapped alone: a rotation serves new handshakes and touches no connection.
#[derive(Debug)]
pub struct ServerTls {
    /// What a handshake uses now; `None` while a secret is missing: the connection is closed and `downstream_context_secrets_not_ready` counted.
    pub context: ArcSwapOption<ServerContext>,
    /// `listener.<..>.ssl.*`
    pub stats: SslStats,
    /// `listener.<..>.server_ssl_socket_factory.*`
    pub factory: SslFactoryStats,
}

/// An upstream TLS context.
#[derive(Debug)]
pub struct ClientTls {
    /// What a handshake uses now; `None` while a secret is missing.
    pub context: ArcSwapOption<ClientContext>,
    /// `cluster.<..>.ssl.*`
    pub stats: SslStats,
    /// `cluster.<..>.client_ssl_socket_factory.*`
    pub factory: SslFactoryStats,
}

/// Everything one downstream handshake needs.
#[derive(Debug)]
pub struct ServerContext {
    /// Certificate resolver, client verifier, versions, ciphers, ALPN and resumption.
    pub config: Arc<rustls::ServerConfig>,
    /// The same without ALPN, for a client whose offers have nothing in common with ours: Envoy goes on without ALPN, the library would refuse.
    pub config_without_alpn: Arc<rustls::ServerConfig>,
    /// First URI SAN of our own (first) certificate, for `By=` in `x-forwarded-client-cert`.
    pub own_uri: Option<Arc<str>>,
    /// The certificates served, for `/certs`.
    pub certificates: Vec<CertificateInfo>,
    /// The authorities trusted, for `/certs`.
    pub authorities: Vec<CertificateInfo>,
}

/// Everything one upstream handshake needs.
#[derive(Debug)]
pub struct ClientContext {
    /// Client certificate, server verifier, versions, ciphers, ALPN and resumption.
    pub config: Arc<rustls::ClientConfig>,
    /// What is sent as SNI; `None` sends none (the verifier does not look at it, SAN matchers do).
    pub sni: Option<ServerName<'static>>,
    /// The certificates shown, for `/certs`.
    pub certificates: Vec<CertificateInfo>,
    /// The authorities trusted, for `/certs`.
    pub authorities: Vec<CertificateInfo>,
}

/// What `/certs` and the expiry statistics say of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateInfo {
    /// Where it came from: a file name, or `<inline>`.
    pub path: Arc<str>,
    /// Serial number in lower-case hex.
    pub serial: String,
    /// URI, DNS and IP subject alternative names, with their kind.
    pub sans: Vec<SubjectAltName>,
    /// Unix time in seconds.
    pub not_before: i64,
    /// Unix time in seconds.
    pub not_after: i64,
}

/// One subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubjectAltName {
    /// URI.
    Uri(String),
    /// DNS name.
    Dns(String),
    /// IP address.
    Ip(IpAddr),
    /// E-mail address.
    Email(String),
}

/// What a downstream context is built from.
#[derive(Debug)]
pub struct ServerTlsSpec {
    /// At least one certificate.
    pub identities: Vec<Identity>,
    /// How a client certificate is judged; `None`: none is asked for.
    pub validation: Option<Validation>,
    /// A client without certificate is refused.
    pub require_client_certificate: bool,
    /// ALPN in order of preference; empty: the client's offer is ignored and the handshake goes on without ALPN.
    pub alpn: Vec<Vec<u8>>,
    /// Versions and ciphers.
    pub parameters: Parameters,
    /// `session_timeout`: seconds after a full handshake in which its session may be resumed. `None` with `disable_stateless_session_resumption`: never.
    pub resumption: Option<u32>,
}

/// What an upstream context is built from.
#[derive(Debug)]
pub struct ClientTlsSpec {
    /// Shown when the server asks; at most one is used.
    pub identity: Option<Identity>,
    /// How the server certificate is judged; `None`: it is not verified, as in Envoy without a validation context.
    pub validation: Option<Validation>,
    /// `sni`
    pub sni: Option<String>,
    /// ALPN offers.
    pub alpn: Vec<Vec<u8>>,
    /// Versions and ciphers.
    pub parameters: Parameters,
    /// Number of sessions kept for resumption; Envoy's default is 1, 0 turns it off. Of TLS 1.3, whose sessions serve one connection each, 8 are kept at least.
    pub max_session_keys: usize,
}

/// A certificate chain and its key. That the two belong together is checked when the context is built.
#[derive(Debug)]
pub struct Identity {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Where it came from, for `/certs`.
    pub path: Arc<str>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Identity { chain: self.chain.clone(), key: self.key.clone_key(), path: self.path.clone() }
    }
}

/// Envoy `CertificateValidationContext`.
#[derive(Clone, Debug)]
pub struct Validation {
    /// Whose signature counts.
    pub trust: Trust,
    /// Any matcher on any SAN of its kind suffices; empty: any certificate that verifies.
    pub sans: Vec<SanMatcher>,
    /// `verify_certificate_spki`: base64-decoded SHA-256 of the public key; any suffices.
    pub spki_hashes: Vec<[u8; 32]>,
    /// `verify_certificate_hash`: SHA-256 of the certificate; any suffices.
    pub certificate_hashes: Vec<[u8; 32]>,
    /// `allow_expired_certificate`
    pub allow_expired: bool,
    /// `trust_chain_verification: ACCEPT_UNTRUSTED`
    pub accept_untrusted: bool,
    /// Where the authorities came from, for `/certs`.
    pub path: Arc<str>,
}

/// Where trust comes from.
#[derive(Clone, Debug)]
pub enum Trust {
    /// No authority is given: the chain is not verified (other checks are).
    None,
    /// `trusted_ca`
    Authorities(Vec<CertificateDer<'static>>),
    /// `envoy.tls.cert_validator.spiffe`: the peer's trust domain chooses the bundle.
    Spiffe(Vec<(Box<str>, Vec<CertificateDer<'static>>)>),
}

/// Envoy `SubjectAltNameMatcher`.
#[derive(Clone, Debug)]
pub struct SanMatcher {
    /// Which kind of name is looked at.
    pub kind: SanKind,
    /// What it has to be. A DNS matcher with an exact value also accepts a certificate's wildcard name.
    pub matcher: StringMatcher,
}

/// Envoy `SubjectAltNameMatcher.SanType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SanKind {
    /// `DNS`
    Dns,
    /// `URI`
    Uri,
    /// `IP_ADDRESS`
    Ip,
    /// `EMAIL`
    Email,
}

/// Envoy `TlsParameters`.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    /// `None` is Envoy's default: 1.2.
    pub minimum: Option<TlsVersion>,
    /// `None` is the newest. (Envoy's default for clients is 1.2: the compiler says so.)
    pub maximum: Option<TlsVersion>,
    /// In order of preference; empty: all, in Envoy's order. Names are already mapped; they apply to TLS 1.2 only.
    pub cipher_suites: Vec<rustls::CipherSuite>,
}

/// Versions that the library speaks; older ones are refused by the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// RFC 5246
    V1_2,
    /// RFC 8446
    V1_3,
}
