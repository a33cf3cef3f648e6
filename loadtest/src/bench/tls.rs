//! The load's own TLS: the client side of mutual TLS, with the certificate of `web`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, ensure};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::setup::WorkDir;
use crate::load::stream::{Handshakes, Tls};

/// A client that presents `web`'s certificate. The server's is taken as it is: its identity is a URI, which rustls has no name for,
/// and checking it is the measured proxy's work in the other scenarios.
///
/// # Errors
/// When the certificates cannot be read.
pub fn client(dir: &WorkDir, resume: bool) -> anyhow::Result<Tls> {
    let chain =
        CertificateDer::pem_file_iter(dir.path().join("web.crt")).and_then(Iterator::collect).context("web.crt")?;
    let key = PrivateKeyDer::from_pem_file(dir.path().join("web.key")).context("web.key")?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok(Tls { config: Arc::new(config), resume, name: ServerName::try_from("backend")?, handshakes: Arc::default() })
}

/// Accepts any chain, but the peer has to hold the key of its certificate.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether the handshakes were those that are to be measured. The first of a store without sessions are full of necessity.
///
/// # Errors
/// With their numbers.
pub fn check(handshakes: &Handshakes, resume: bool) -> anyhow::Result<()> {
    let (full, resumed) = (handshakes.full.load(Ordering::Relaxed), handshakes.resumed.load(Ordering::Relaxed));
    let good = if resume { full * 10 < resumed } else { resumed == 0 };
    ensure!(good, "{full} handshakes were full and {resumed} resumed sessions");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_of_the_wanted_kind() {
        for (full, resumed, resume, good) in [
            (100, 0, false, true),
            (100, 1, false, false),
            (32, 1_000, true, true),
            (200, 1_000, true, false),
            (0, 0, true, false),
        ] {
            let handshakes = Handshakes { full: full.into(), resumed: resumed.into() };
            assert_eq!(check(&handshakes, resume).is_ok(), good, "{full} full, {resumed} resumed");
        }
    }
}
