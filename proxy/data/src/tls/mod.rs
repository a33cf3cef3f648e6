//! TLS on both sides: contexts from specifications, handshakes, and the judgement of peers.
//!
//! Source: Envoy `extensions.transport_sockets.tls.v3`.

pub mod accept;
pub mod connect;
mod context;
pub(crate) mod hello;
pub mod info;
pub mod outgoing;
mod preferences;
mod session;
mod sni;
mod verify;

pub use context::ContextError;
pub use verify::{FailureKind, VerifyFailure};

use rustls::{CipherSuite, NamedGroup, SignatureScheme};

/// What the handshake takes for the server name.
#[cfg(feature = "fuzzing")]
pub(crate) async fn server_name(io: &mut crate::io::Inspected) -> std::io::Result<Option<String>> {
    Ok(sni::incoming(io).await?.map(|asked| asked.name))
}

/// OpenSSL's name of a cipher suite, which Envoy prints in `%DOWNSTREAM_TLS_CIPHER%`.
pub fn cipher_name(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "UNKNOWN",
    }
}

/// The cipher suite of an OpenSSL name, the inverse of [`cipher_name`]; `None` for suites that the library does not have.
pub fn cipher_by_name(name: &str) -> Option<CipherSuite> {
    rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES
        .iter()
        .map(|suite| suite.suite())
        .find(|suite| cipher_name(*suite) == name)
}

/// BoringSSL's name of a group, which Envoy counts in `ssl.curves.*`; `None` for one that is never agreed on.
pub fn group_name(group: NamedGroup) -> Option<&'static str> {
    Some(match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "P-256",
        NamedGroup::secp384r1 => "P-384",
        _ => return None,
    })
}

/// BoringSSL's name of a signature algorithm, which Envoy counts in `ssl.sigalgs.*`; `None` for one that no certificate here can have.
pub fn scheme_name(scheme: SignatureScheme) -> Option<&'static str> {
    Some(match scheme {
        SignatureScheme::ECDSA_NISTP256_SHA256 => "ecdsa_secp256r1_sha256",
        SignatureScheme::ECDSA_NISTP384_SHA384 => "ecdsa_secp384r1_sha384",
        SignatureScheme::ECDSA_NISTP521_SHA512 => "ecdsa_secp521r1_sha512",
        SignatureScheme::ED25519 => "ed25519",
        SignatureScheme::RSA_PSS_SHA256 => "rsa_pss_rsae_sha256",
        SignatureScheme::RSA_PSS_SHA384 => "rsa_pss_rsae_sha384",
        SignatureScheme::RSA_PSS_SHA512 => "rsa_pss_rsae_sha512",
        SignatureScheme::RSA_PKCS1_SHA256 => "rsa_pkcs1_sha256",
        SignatureScheme::RSA_PKCS1_SHA384 => "rsa_pkcs1_sha384",
        SignatureScheme::RSA_PKCS1_SHA512 => "rsa_pkcs1_sha512",
        _ => return None,
    })
}

/// A protocol version as Envoy prints it in `%DOWNSTREAM_TLS_VERSION%`.
pub fn version_name(version: rustls::ProtocolVersion) -> &'static str {
    match version {
        rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2",
        rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "UNKNOWN",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_of_the_library_has_a_name_that_leads_back() {
        for suite in rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES {
            let name = cipher_name(suite.suite());
            assert_ne!(name, "UNKNOWN", "{suite:?}");
            assert_eq!(cipher_by_name(name), Some(suite.suite()));
        }
        assert_eq!(cipher_by_name("AES128-SHA"), None);
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod handshake_tests;
