//! Secrets.

use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::{DataSource, data_source::Specifier};
use shika_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate, secret,
};
use shika_proto::google::protobuf::Any;

use crate::identity::leaf::Leaf;

/// A proxy's certificate and key.
pub(super) fn certificate(name: &str, leaf: &Leaf) -> Any {
    let certificate = TlsCertificate {
        certificate_chain: Some(inline(&leaf.certificate)),
        private_key: Some(inline(&leaf.key)),
        ..TlsCertificate::default()
    };
    pack(&Secret { name: name.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) })
}

/// The authorities of a mesh.
pub(super) fn trust_bundle(name: &str, pem: &str) -> Any {
    let context =
        CertificateValidationContext { trusted_ca: Some(inline(pem)), ..CertificateValidationContext::default() };
    pack(&Secret { name: name.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) })
}

/// Bytes inside the configuration.
pub(super) fn inline(pem: &str) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(pem.as_bytes().to_vec())), ..DataSource::default() }
}
