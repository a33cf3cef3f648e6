//! TLS contexts between proxies. Certificate and trust come over SDS on the ADS stream.

use shika_proto::any::pack;
use shika_proto::envoy::config::core::v3::{TransportSocket, transport_socket};
use shika_proto::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use shika_proto::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use shika_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    UpstreamTlsContext,
};
use shika_proto::envoy::r#type::matcher::v3::StringMatcher;
use shika_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use shika_proto::google::protobuf::{Any, BoolValue};

use super::{ads, ca_secret, identity_secret};
use crate::plan::UpstreamTls;

/// Clients offer exactly this, which tells mesh TLS from the TLS of an application.
pub(super) const ALPN: &str = "kuma";

/// What an inbound of `mesh` shows and demands: a client certificate of the mesh.
pub(super) fn downstream(mesh: &str) -> TransportSocket {
    let common = common(mesh, vec![MatchPattern::Prefix(format!("spiffe://{mesh}/"))], Vec::new());
    socket(pack(&DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: Some(BoolValue { value: true }),
        ..DownstreamTlsContext::default()
    }))
}

/// What a proxy shows to a destination and demands of it: one of the identities of that service.
pub(super) fn upstream(tls: &UpstreamTls) -> TransportSocket {
    let UpstreamTls { mesh, sni, expected } = tls;
    let any = vec![MatchPattern::Prefix(format!("spiffe://{mesh}/"))];
    let exact: Vec<_> = expected.iter().map(|identity| MatchPattern::Exact(identity.clone())).collect();
    let common = common(mesh, if exact.is_empty() { any } else { exact }, vec![ALPN.to_owned()]);
    socket(pack(&UpstreamTlsContext {
        common_tls_context: Some(common),
        sni: sni.clone(),
        ..UpstreamTlsContext::default()
    }))
}

/// What a proxy shows to any destination of a mesh and demands of it: an identity of that mesh.
pub(super) fn upstream_of_mesh(mesh: &str) -> TransportSocket {
    upstream(&UpstreamTls { mesh: mesh.to_owned(), sni: String::new(), expected: Vec::new() })
}

fn common(mesh: &str, peers: Vec<MatchPattern>, alpn_protocols: Vec<String>) -> CommonTlsContext {
    let matchers = peers.into_iter().map(|peer| name_matcher(SanType::Uri, peer));
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: matchers.collect(),
            ..CertificateValidationContext::default()
        }),
        validation_context_sds_secret_config: Some(secret(ca_secret(mesh))),
        ..CombinedCertificateValidationContext::default()
    };
    CommonTlsContext {
        alpn_protocols,
        tls_certificate_sds_secret_configs: vec![secret(identity_secret(mesh))],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        ..CommonTlsContext::default()
    }
}

/// The peer's certificate has this name.
pub(super) fn name_matcher(kind: SanType, pattern: MatchPattern) -> SubjectAltNameMatcher {
    SubjectAltNameMatcher {
        san_type: kind.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }),
        ..SubjectAltNameMatcher::default()
    }
}

fn secret(name: String) -> SdsSecretConfig {
    SdsSecretConfig { name, sds_config: Some(ads()) }
}

/// The TLS transport socket with this context.
pub(super) fn socket(context: Any) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(context)),
    }
}
