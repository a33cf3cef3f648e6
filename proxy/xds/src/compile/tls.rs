//! TLS contexts: `DownstreamTlsContext`, `UpstreamTlsContext`, and their contexts built anew when a secret changes.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use prost::Message;
use rustls::CipherSuite;
use shika_data::{
    model::tls::{ClientTls, Identity, Parameters, ServerTls, TlsVersion, Trust, Validation},
    stats::{Registry, Scope, SslFactoryStats, SslStats},
};
use shika_proto::{
    any,
    envoy::{
        config::core::v3::{TransportSocket, transport_socket},
        extensions::transport_sockets::tls::v3::{
            CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, TlsParameters, UpstreamTlsContext,
            common_tls_context::ValidationContextType, downstream_tls_context::SessionTicketKeysType,
            tls_parameters::TlsProtocol,
        },
        extensions::transport_sockets::{
            proxy_protocol::v3::ProxyProtocolUpstreamTransport, raw_buffer::v3::RawBuffer,
        },
    },
    google::protobuf::Any,
};

use super::{
    Compiled, Context, Fault, Within,
    config_source::{self, Through},
    duration, enumeration, flag, non_empty, required, secret, unpack, wrapped,
};
use crate::{bootstrap::Source, store::content_hash};

mod binding;

use binding::Expiry;
pub(crate) use binding::{ClientBinding, Secrets, ServerBinding};

/// A secret that a context needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SecretRef {
    /// Its name.
    pub name: Arc<str>,
    /// SDS; `None`: from the bootstrap.
    pub source: Option<Source>,
}

/// A certificate as configured.
#[derive(Debug)]
enum IdentityFrom {
    Inline(Identity),
    Secret(SecretRef),
}

/// A validation context as configured.
#[derive(Debug)]
enum ValidationFrom {
    None,
    Inline(Validation),
    Secret(SecretRef),
    Combined(Validation, SecretRef),
}

/// The part that both sides have.
#[derive(Debug)]
struct Common {
    identities: Vec<IdentityFrom>,
    validation: ValidationFrom,
    alpn: Vec<Vec<u8>>,
    parameters: Parameters,
}

/// `scope` is that of `ssl.`; `factory` stands in its place.
fn factory(registry: &Registry, scope: &Scope, factory: &str) -> SslFactoryStats {
    let renamed = |name: &str| format!("{}{factory}.", name.strip_suffix("ssl.").unwrap_or(name));
    let scope = Scope { prefix: renamed(&scope.prefix), stem: renamed(&scope.stem), tags: scope.tags.clone() };
    SslFactoryStats::new(registry, scope)
}

/// What a chain or cluster speaks below its protocol.
pub(crate) enum Transport<T> {
    /// `raw_buffer`, or no transport socket.
    Plain,
    /// TLS.
    Tls(T),
}

/// Whether a transport socket begins with a header of the PROXY protocol.
pub(crate) fn is_proxy_protocol(socket: &TransportSocket) -> bool {
    typed_config(socket).is_ok_and(any::is::<ProxyProtocolUpstreamTransport>)
}

/// What a transport socket is.
pub(crate) fn typed_config(socket: &TransportSocket) -> Compiled<&Any> {
    match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(content)) => Ok(content),
        None => Err(Fault::new("typed_config", "value is required")),
    }
}

/// The transport socket of a filter chain. `prefix` is the listener's statistics prefix.
pub(crate) fn downstream(
    context: &mut Context<'_>,
    socket: &TransportSocket,
    scope: Scope,
) -> Compiled<Transport<ServerBinding>> {
    let content = typed_config(socket)?;
    if any::is::<RawBuffer>(content) {
        return Ok(Transport::Plain);
    }
    if !any::is::<DownstreamTlsContext>(content) {
        return Err(Fault::new("typed_config", format!("transport socket {} is not supported", content.type_url)));
    }
    (|| {
        let tls: DownstreamTlsContext = unpack(content)?;
        let common =
            common(context, required(&tls.common_tls_context, "common_tls_context")?).within("common_tls_context")?;
        if common.identities.is_empty() {
            return Err(Fault::new("common_tls_context", "No TLS certificates found for server context"));
        }
        let require_client_certificate = flag(&tls.require_client_certificate, false);
        if flag(&tls.require_sni, false) {
            return Err(Fault::new("require_sni", "is not supported"));
        }
        let longest = session_timeout(&tls)?;
        let resumption = match &tls.session_ticket_keys_type {
            None | Some(SessionTicketKeysType::DisableStatelessSessionResumption(false)) => Some(longest),
            Some(SessionTicketKeysType::DisableStatelessSessionResumption(true)) => None,
            Some(SessionTicketKeysType::SessionTicketKeys(_)) => {
                return Err(Fault::new("session_ticket_keys", "shared session ticket keys are not supported"));
            }
            Some(SessionTicketKeysType::SessionTicketKeysSdsSecretConfig(_)) => {
                return Err(Fault::new(
                    "session_ticket_keys_sds_secret_config",
                    "shared session ticket keys are not supported",
                ));
            }
        };
        let demands = demands(&tls);
        let factory = factory(context.registry, &scope, "server_ssl_socket_factory");
        let expiry = Expiry::new(context.registry, &scope, &common);
        let stats = SslStats::new(context.registry, scope);
        let handle = Arc::new(ServerTls { context: ArcSwapOption::empty(), stats, factory });
        Ok(Transport::Tls(ServerBinding { handle, demands, expiry, common, require_client_certificate, resumption }))
    })()
    .within("typed_config")
}

/// Seconds. Source: Envoy `DownstreamTlsContext.session_timeout`; the default is that of BoringSSL for TLS 1.2 (`SSL_DEFAULT_SESSION_TIMEOUT`).
fn session_timeout(tls: &DownstreamTlsContext) -> Compiled<u32> {
    const DEFAULT: u32 = 2 * 60 * 60;
    match duration(&tls.session_timeout, "session_timeout")?.map(|timeout| u32::try_from(timeout.as_secs())) {
        None | Some(Ok(0)) => Ok(DEFAULT),
        Some(Ok(seconds)) if seconds < u32::MAX => Ok(seconds),
        Some(_) => Err(Fault::new("session_timeout", "value must be inside range [0s, 4294967295s)")),
    }
}

/// The context without what we show of ourselves: inline certificates and keys are no demand on the peer.
fn demands(tls: &DownstreamTlsContext) -> u64 {
    let mut tls = tls.clone();
    if let Some(common) = &mut tls.common_tls_context {
        common.tls_certificates.clear();
        common.tls_certificate_sds_secret_configs.clear();
    }
    content_hash(&tls.encode_to_vec())
}

/// The transport socket of a cluster.
pub(crate) fn upstream(
    context: &mut Context<'_>,
    socket: &TransportSocket,
    scope: Scope,
) -> Compiled<Transport<ClientBinding>> {
    let content = typed_config(socket)?;
    if any::is::<RawBuffer>(content) {
        return Ok(Transport::Plain);
    }
    if any::is::<ProxyProtocolUpstreamTransport>(content) {
        return Err(Fault::new(
            "typed_config",
            "the PROXY protocol is supported as the cluster's own transport_socket alone",
        ));
    }
    if !any::is::<UpstreamTlsContext>(content) {
        return Err(Fault::new("typed_config", format!("transport socket {} is not supported", content.type_url)));
    }
    (|| {
        let tls: UpstreamTlsContext = unpack(content)?;
        let mut common = match &tls.common_tls_context {
            None => common(context, &CommonTlsContext::default()),
            Some(from) => common(context, from).within("common_tls_context"),
        }?;
        if common.identities.len() > 1 {
            return Err(Fault::new(
                "common_tls_context",
                "Multiple TLS certificates are not supported for client contexts",
            ));
        }
        // As in Envoy a client stops at TLS 1.2 unless it is told otherwise. There is no sense in a minimum of 1.3 that allows nothing.
        common.parameters.maximum =
            common.parameters.maximum.or(Some(common.parameters.minimum.unwrap_or(TlsVersion::V1_2)));
        if tls.sni.len() > 255 {
            return Err(Fault::new("sni", "value length must be at most 255 bytes"));
        }
        let factory = factory(context.registry, &scope, "client_ssl_socket_factory");
        let stats = SslStats::new(context.registry, scope);
        let handle = Arc::new(ClientTls { context: ArcSwapOption::empty(), stats, factory });
        Ok(Transport::Tls(ClientBinding {
            handle,
            common,
            sni: (!tls.sni.is_empty()).then(|| tls.sni.clone()),
            max_session_keys: wrapped(&tls.max_session_keys).unwrap_or(1) as usize,
        }))
    })()
    .within("typed_config")
}

fn common(context: &Context<'_>, from: &CommonTlsContext) -> Compiled<Common> {
    let mut identities = Vec::new();
    for (index, certificate) in from.tls_certificates.iter().enumerate() {
        identities.push(IdentityFrom::Inline(secret::identity(certificate).at("tls_certificates", index)?));
    }
    for (index, config) in from.tls_certificate_sds_secret_configs.iter().enumerate() {
        identities
            .push(IdentityFrom::Secret(secret_ref(context, config).at("tls_certificate_sds_secret_configs", index)?));
    }
    let validation = match &from.validation_context_type {
        None => ValidationFrom::None,
        Some(ValidationContextType::ValidationContext(inline)) => {
            let inline = secret::validation(inline).within("validation_context")?;
            check_sans(&inline).within("validation_context")?;
            ValidationFrom::Inline(inline)
        }
        Some(ValidationContextType::ValidationContextSdsSecretConfig(config)) => {
            ValidationFrom::Secret(secret_ref(context, config).within("validation_context_sds_secret_config")?)
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => (|| {
            let default = required(&combined.default_validation_context, "default_validation_context")?;
            let default = secret::validation(default).within("default_validation_context")?;
            let dynamic =
                required(&combined.validation_context_sds_secret_config, "validation_context_sds_secret_config")?;
            let dynamic = secret_ref(context, dynamic).within("validation_context_sds_secret_config")?;
            Ok(ValidationFrom::Combined(default, dynamic))
        })()
        .within("combined_validation_context")?,
        Some(ValidationContextType::ValidationContextCertificateProvider(_)) => {
            return Err(Fault::new(
                "validation_context_certificate_provider",
                "certificate providers are not supported",
            ));
        }
        Some(ValidationContextType::ValidationContextCertificateProviderInstance(_)) => {
            return Err(Fault::new(
                "validation_context_certificate_provider_instance",
                "certificate providers are not supported",
            ));
        }
    };
    let mut alpn = Vec::with_capacity(from.alpn_protocols.len());
    for (index, protocol) in from.alpn_protocols.iter().enumerate() {
        if protocol.is_empty() || protocol.len() > 255 {
            return Err(Fault::new(
                format!("alpn_protocols[{index}]"),
                "Invalid ALPN protocol string: must have 1 to 255 bytes",
            ));
        }
        alpn.push(protocol.clone().into_bytes());
    }
    let parameters = match &from.tls_params {
        None => Parameters::default(),
        Some(parameters) => self::parameters(parameters).within("tls_params")?,
    };
    Ok(Common { identities, validation, alpn, parameters })
}

/// Names in a certificate that nobody vouches for prove nothing.
fn check_sans(validation: &Validation) -> Compiled<()> {
    if !validation.sans.is_empty() && matches!(validation.trust, Trust::None) && !validation.accept_untrusted {
        return Err(Fault::new(
            "",
            "SAN-based verification of peer certificates without trusted CA is insecure and not allowed",
        ));
    }
    Ok(())
}

fn secret_ref(context: &Context<'_>, config: &SdsSecretConfig) -> Compiled<SecretRef> {
    let name: Arc<str> = non_empty(&config.name, "name")?.into();
    let source = match &config.sds_config {
        None => {
            if !(context.static_secret_exists)(&name) {
                return Err(Fault::new("name", format!("Unknown static secret: {name}")));
            }
            None
        }
        Some(from) => Some(config_source::config(from, context.servers, Through::Any).within("sds_config")?),
    };
    Ok(SecretRef { name, source })
}

fn parameters(from: &TlsParameters) -> Compiled<Parameters> {
    let minimum = match enumeration(from.tls_minimum_protocol_version, "tls_minimum_protocol_version")? {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => None,
        TlsProtocol::TlSv12 => Some(TlsVersion::V1_2),
        TlsProtocol::TlSv13 => Some(TlsVersion::V1_3),
    };
    let maximum = match enumeration(from.tls_maximum_protocol_version, "tls_maximum_protocol_version")? {
        TlsProtocol::TlsAuto => None,
        TlsProtocol::TlSv12 => Some(TlsVersion::V1_2),
        TlsProtocol::TlSv13 => Some(TlsVersion::V1_3),
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            return Err(Fault::new(
                "tls_maximum_protocol_version",
                "TLS 1.0 and 1.1 are not supported; TLSv1_2 is the least",
            ));
        }
    };
    if let (Some(low), Some(high)) = (minimum, maximum)
        && low > high
    {
        return Err(Fault::new("tls_maximum_protocol_version", "is below tls_minimum_protocol_version"));
    }
    let mut cipher_suites = Vec::new();
    for (index, names) in from.cipher_suites.iter().enumerate() {
        // `[A|B]` is a group of equal preference.
        for name in names.trim_matches(['[', ']']).split('|') {
            cipher_suites.push(cipher(name).ok_or_else(|| {
                Fault::new(
                    format!("cipher_suites[{index}]"),
                    format!("cipher suite {name} is not supported; the supported ones are {}", supported_ciphers()),
                )
            })?);
        }
    }
    Ok(Parameters { minimum, maximum, cipher_suites })
}

/// OpenSSL's names of the suites that the library has. They apply to TLS 1.2.
const CIPHERS: [(&str, CipherSuite); 6] = [
    ("ECDHE-ECDSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES128-GCM-SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-CHACHA20-POLY1305", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

fn cipher(name: &str) -> Option<CipherSuite> {
    CIPHERS.iter().find(|(known, _)| *known == name).map(|(_, suite)| *suite)
}

fn supported_ciphers() -> String {
    CIPHERS.map(|(name, _)| name).join(", ")
}
