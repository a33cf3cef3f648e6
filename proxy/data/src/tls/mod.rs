//! TLS on both sides: contexts from specifications, handshakes, and the judgement of peers.
//!
//! Source: Envoy `extensions.transport_sockets.tls.v3`.

pub mod accept;
pub mod connect;
mod context;
pub(crate) mod hello;
pub mod info;
pub mod outgoing;
mod sni;
mod verify;

pub use context::ContextError;
pub use verify::{FailureKind, VerifyFailure};

use rustls::CipherSuite;

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
