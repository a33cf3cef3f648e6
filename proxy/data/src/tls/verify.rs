//! The judgement of a peer's certificate: chain, usage, names, hashes.
//!
//! Source: Envoy `CertificateValidationContext`, `DefaultCertValidator`, `SPIFFEValidator`.

mod names;

use std::{cell::RefCell, fmt, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{context::ContextError, info, session, sni};
use crate::model::tls::{SanMatcher, Trust, Validation};

use names::{describe_matcher, san_matches, trust_domain};

pub use names::dns_matches;

thread_local! {
    /// The last refusal whose [`rustls::Error`] has no room for it.
    static LAST: RefCell<Option<VerifyFailure>> = const { RefCell::new(None) };
}

/// Why a peer's certificate was refused. [`VerifyFailure::find`] gets it from a handshake's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyFailure {
    /// Which counter it belongs to.
    pub kind: FailureKind,
    /// What was expected and what was presented.
    pub reason: String,
    /// What the peer is told.
    alert: Alert,
}

/// What a peer is told of a refusal. It is the error's kind that decides in rustls, so only the general one can carry the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alert {
    /// `certificate_expired`
    Expired,
    /// `unknown_ca`
    UnknownIssuer,
    /// `certificate_unknown`
    Unknown,
}

/// The counters of `ssl.fail_verify_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// `fail_verify_error`: chain, time or usage.
    Chain,
    /// `fail_verify_san`
    San,
    /// `fail_verify_cert_hash`
    Hash,
}

impl fmt::Display for VerifyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for VerifyFailure {}

impl VerifyFailure {
    /// The failure inside a handshake's error, if the peer's certificate was the reason.
    ///
    /// To be called in the same poll that returned the error: the reason may have been put aside, for nothing else runs on the thread between a verifier's
    /// refusal and the end of the handshake (the alert gets one attempt to be written).
    pub fn find(error: &Error) -> Option<VerifyFailure> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => other.downcast_ref().cloned(),
            Error::InvalidCertificate(CertificateError::Expired | CertificateError::UnknownIssuer) => {
                LAST.with_borrow_mut(Option::take)
            }
            _ => None,
        }
    }

    fn into_tls(self) -> Error {
        let kind = match self.alert {
            Alert::Expired => CertificateError::Expired,
            Alert::UnknownIssuer => CertificateError::UnknownIssuer,
            Alert::Unknown => return Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self)))),
        };
        LAST.set(Some(self));
        Error::InvalidCertificate(kind)
    }
}

/// A [`Validation`] made ready: roots parsed once.
#[derive(Debug)]
pub struct Judge {
    roots: Roots,
    sans: Vec<SanMatcher>,
    spki_hashes: Vec<[u8; 32]>,
    certificate_hashes: Vec<[u8; 32]>,
    allow_expired: bool,
    accept_untrusted: bool,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Roots {
    None,
    One(Store),
    Spiffe(Vec<(Box<str>, Store)>),
}

#[derive(Debug)]
struct Store {
    anchors: Vec<TrustAnchor<'static>>,
    subjects: Vec<DistinguishedName>,
    certificates: Vec<CertificateDer<'static>>,
}

/// Which side the peer is on.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Client,
    Server,
}

impl Store {
    fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, ContextError> {
        let mut anchors = Vec::with_capacity(certificates.len());
        for certificate in certificates {
            let anchor = anchor_from_trusted_cert(certificate).map_err(|error| ContextError::Authority {
                name: info::describe(certificate),
                reason: error.to_string(),
            })?;
            anchors.push(anchor.to_owned());
        }
        // The anchor holds the name's content; a DistinguishedName is the whole SEQUENCE.
        let subjects = anchors.iter().map(|anchor| DistinguishedName::in_sequence(anchor.subject.as_ref())).collect();
        Ok(Store { anchors, subjects, certificates: certificates.to_vec() })
    }
}

impl Judge {
    /// `validation` is `None` where any certificate, or none, will do.
    pub fn new(validation: Option<&Validation>, provider: Arc<CryptoProvider>) -> Result<Self, ContextError> {
        let Some(Validation { trust, sans, spki_hashes, certificate_hashes, allow_expired, accept_untrusted, path: _ }) =
            validation
        else {
            return Ok(Judge {
                roots: Roots::None,
                sans: Vec::new(),
                spki_hashes: Vec::new(),
                certificate_hashes: Vec::new(),
                allow_expired: false,
                accept_untrusted: false,
                provider,
            });
        };
        let roots = match trust {
            Trust::None => Roots::None,
            Trust::Authorities(authorities) => Roots::One(Store::new(authorities)?),
            Trust::Spiffe(domains) => {
                let stores = domains.iter().map(|(domain, authorities)| Ok((domain.clone(), Store::new(authorities)?)));
                Roots::Spiffe(stores.collect::<Result<_, ContextError>>()?)
            }
        };
        Ok(Judge {
            roots,
            sans: sans.clone(),
            spki_hashes: spki_hashes.clone(),
            certificate_hashes: certificate_hashes.clone(),
            allow_expired: *allow_expired,
            accept_untrusted: *accept_untrusted,
            provider,
        })
    }

    /// Whether nothing at all is asked of a certificate.
    pub fn accepts_anything(&self) -> bool {
        matches!(self.roots, Roots::None)
            && self.sans.is_empty()
            && self.spki_hashes.is_empty()
            && self.certificate_hashes.is_empty()
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        peer: Peer,
    ) -> Result<(), VerifyFailure> {
        if self.accepts_anything() {
            return Ok(());
        }
        if !self.accept_untrusted {
            self.check_chain(leaf, intermediates, now, peer)?;
        }
        self.check_sans(leaf)?;
        self.check_hashes(leaf)?;
        if self.is_a_matter_of_time() {
            // One of them may not be needed for the chain. Then the session ends early, and a full handshake follows.
            for certificate in std::iter::once(leaf).chain(intermediates) {
                let end = info::validity(certificate).map_or(0, |(_, to)| u64::try_from(to).unwrap_or(0));
                session::note_expiry(end);
            }
        }
        Ok(())
    }

    /// Whether what is accepted now may be refused later.
    fn is_a_matter_of_time(&self) -> bool {
        !matches!(self.roots, Roots::None) && !self.accept_untrusted && !self.allow_expired
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        peer: Peer,
    ) -> Result<(), VerifyFailure> {
        let refuse = |reason: String| VerifyFailure {
            kind: FailureKind::Chain,
            reason: format!("{reason}; presented: {}", info::describe(leaf)),
            alert: Alert::Unknown,
        };
        let store = match &self.roots {
            Roots::None => return Ok(()),
            Roots::One(store) => store,
            Roots::Spiffe(domains) => {
                let domain =
                    trust_domain(leaf).ok_or_else(|| refuse("the certificate has no single SPIFFE ID".into()))?;
                let known = domains.iter().find(|(name, _)| **name == *domain).map(|(_, store)| store);
                known.ok_or_else(|| refuse(format!("no trust bundle for trust domain \"{domain}\"")))?
            }
        };
        // A leaf that is itself listed as trusted needs no issuer, only to be in time.
        if store.certificates.iter().any(|trusted| trusted == leaf) {
            let (from, to) = info::validity(leaf).map_err(|error| refuse(error.to_string()))?;
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            return if self.allow_expired || (from <= now && now <= to) {
                Ok(())
            } else {
                Err(refuse("the certificate is not within its period of validity".into()))
            };
        }
        let certificate = EndEntityCert::try_from(leaf).map_err(|error| refuse(error.to_string()))?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let usage = || match peer {
            Peer::Client => KeyUsage::client_auth(),
            Peer::Server => KeyUsage::server_auth(),
        };
        let verify = |time| {
            certificate
                .verify_for_usage(algorithms, &store.anchors, intermediates, time, usage(), None, None)
                .map(|_| ())
        };
        match verify(now) {
            Ok(()) => Ok(()),
            Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) if self.allow_expired => {
                let (_, to) = info::validity(leaf).map_err(|error| refuse(error.to_string()))?;
                let last = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(to).unwrap_or(0)));
                verify(last).map_err(|error| refuse(error.to_string()))
            }
            Err(error) => {
                let alert = match &error {
                    webpki::Error::CertExpired { .. } => Alert::Expired,
                    webpki::Error::UnknownIssuer => Alert::UnknownIssuer,
                    _ => Alert::Unknown,
                };
                Err(VerifyFailure { alert, ..refuse(explain(&error)) })
            }
        }
    }

    fn check_sans(&self, leaf: &CertificateDer<'_>) -> Result<(), VerifyFailure> {
        if self.sans.is_empty() {
            return Ok(());
        }
        let names = info::subject_alt_names(leaf).map_err(|error| VerifyFailure {
            kind: FailureKind::San,
            reason: format!("cannot read the peer's names: {error}"),
            alert: Alert::Unknown,
        })?;
        if names.iter().any(|name| self.sans.iter().any(|matcher| san_matches(matcher, name))) {
            return Ok(());
        }
        let expected: Vec<_> = self.sans.iter().map(describe_matcher).collect();
        let reason = format!(
            "the peer's name does not match; expected any of: {}; presented: {}",
            expected.join(", "),
            info::describe(leaf)
        );
        Err(VerifyFailure { kind: FailureKind::San, reason, alert: Alert::Unknown })
    }

    /// With both lists set, a hit in either suffices (Envoy `verify_certificate_spki`).
    fn check_hashes(&self, leaf: &CertificateDer<'_>) -> Result<(), VerifyFailure> {
        if self.spki_hashes.is_empty() && self.certificate_hashes.is_empty() {
            return Ok(());
        }
        let hash = info::fingerprint(leaf);
        let spki = info::spki_fingerprint(leaf).ok();
        if self.certificate_hashes.contains(&hash) || spki.is_some_and(|spki| self.spki_hashes.contains(&spki)) {
            return Ok(());
        }
        let reason = format!(
            "the certificate's hash is not among the expected ones; presented: SHA-256 {}, {}",
            info::hex(&hash),
            info::describe(leaf)
        );
        Err(VerifyFailure { kind: FailureKind::Hash, reason, alert: Alert::Unknown })
    }

    fn root_subjects(&self) -> Vec<DistinguishedName> {
        match &self.roots {
            Roots::None => Vec::new(),
            Roots::One(store) => store.subjects.clone(),
            Roots::Spiffe(domains) => domains.iter().flat_map(|(_, store)| store.subjects.clone()).collect(),
        }
    }
}

fn explain(error: &webpki::Error) -> String {
    match error {
        webpki::Error::UnknownIssuer => "the certificate is not signed by a trusted authority".into(),
        webpki::Error::CertExpired { time, not_after } => {
            let (now, end) = (time.as_secs(), not_after.as_secs());
            let late = now.saturating_sub(end);
            format!(
                "the certificate, or one of its issuers, has expired {late} s ago (now {now}, valid until {end}); it was not \
                 renewed, or the clock of this host is ahead"
            )
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            let (now, begin) = (time.as_secs(), not_before.as_secs());
            let early = begin.saturating_sub(now);
            format!(
                "the certificate, or one of its issuers, is not valid for another {early} s (now {now}, valid from {begin}); \
                 the clock of this host is behind, or that of the control plane which issued it is ahead"
            )
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "the certificate's extended key usage does not allow this side of TLS".into()
        }
        other => other.to_string(),
    }
}

/// Judges clients.
#[derive(Debug)]
pub struct ClientVerifier {
    judge: Judge,
    subjects: Vec<DistinguishedName>,
    required: bool,
}

impl ClientVerifier {
    /// `required`: a client without certificate is refused.
    pub fn new(judge: Judge, required: bool) -> Self {
        ClientVerifier { subjects: judge.root_subjects(), judge, required }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge.judge(leaf, intermediates, now, Peer::Client).map_err(VerifyFailure::into_tls)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.judge.provider.signature_verification_algorithms;
        let valid = verify_tls12_signature(&sni::on_wire(message), leaf, dss, algorithms)?;
        session::note_proof(dss.scheme);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = verify_tls13_signature(message, leaf, dss, &self.judge.provider.signature_verification_algorithms)?;
        session::note_proof(dss.scheme);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Judges servers. The name in the SNI is not compared: Envoy's matchers say what is expected.
#[derive(Debug)]
pub struct ServerVerifier(Judge);

impl ServerVerifier {
    /// A verifier by these rules.
    pub fn new(judge: Judge) -> Self {
        ServerVerifier(judge)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.judge(leaf, intermediates, now, Peer::Server).map_err(VerifyFailure::into_tls)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = verify_tls12_signature(message, leaf, dss, &self.0.provider.signature_verification_algorithms)?;
        session::note_proof(dss.scheme);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let valid = verify_tls13_signature(message, leaf, dss, &self.0.provider.signature_verification_algorithms)?;
        session::note_proof(dss.scheme);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
