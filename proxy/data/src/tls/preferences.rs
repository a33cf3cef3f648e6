//! What is preferred in a handshake: Envoy's order where the library has another.

use std::sync::{Arc, LazyLock};

use rustls::{
    CipherSuite, SignatureAlgorithm, SignatureScheme,
    crypto::{CryptoProvider, SupportedKxGroup},
    sign::{Signer, SigningKey},
};

use super::{session, sni};

/// Those of TLS 1.3 in BoringSSL's order for machines with AES instructions, those of TLS 1.2 in that of Envoy's `cipher_suites`.
const SUITES: [CipherSuite; 9] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
];

/// How an RSA key signs: BoringSSL's order. Keys of other kinds sign in one way only.
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA512,
];

/// aws-lc-rs with the suites and groups that every context begins with. Shared, as most contexts are content with it.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut provider = sni::provider();
    provider.cipher_suites.sort_by_key(|suite| {
        let place = SUITES.iter().position(|known| *known == suite.suite());
        place.unwrap_or(SUITES.len())
    });
    // Four groups, once in the life of the process: rustls wants them to be there for ever.
    let noting = |group: &&'static dyn SupportedKxGroup| {
        let group: &'static dyn SupportedKxGroup = Box::leak(Box::new(session::Group(*group)));
        group
    };
    provider.kx_groups = provider.kx_groups.iter().map(noting).collect();
    Arc::new(provider)
});

/// A key that signs as BoringSSL would have it.
#[derive(Debug)]
pub(super) struct Preferring(pub(super) Arc<dyn SigningKey>);

impl SigningKey for Preferring {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let preferred = SCHEMES.iter().filter(|scheme| offered.contains(scheme));
        let signer = preferred.filter_map(|scheme| self.0.choose_scheme(&[*scheme])).next();
        signer.or_else(|| self.0.choose_scheme(offered))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_of_the_library_has_its_place() {
        let suites: Vec<_> = PROVIDER.cipher_suites.iter().map(|suite| suite.suite()).collect();
        assert_eq!(suites, SUITES);
    }
}
