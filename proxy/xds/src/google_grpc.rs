//! `core.v3.GrpcService.GoogleGrpc` for ADS: Kuma gives it to proxies whose token is a file that changes, which is its default on Kubernetes.
//!
//! There is one gRPC client, whichever of Envoy's two a bootstrap asks for. Here the target becomes a static cluster with the name
//! `google_grpc.<stat_prefix>`, which is seen in `/clusters` and `/config_dump` as any other.

use std::{net::IpAddr, time::Duration};

use serde_json::{Value, json};
use shika_proto::{
    any,
    envoy::config::{
        cluster::v3::Cluster,
        core::v3::{
            DataSource,
            data_source::Specifier,
            grpc_service::{
                GoogleGrpc,
                google_grpc::{
                    CallCredentials,
                    call_credentials::{self, metadata_credentials_from_plugin},
                    channel_args::value::ValueSpecifier,
                    channel_credentials::CredentialSpecifier,
                },
            },
        },
        grpc_credential::v3::FileBasedMetadataConfig,
    },
};

use crate::{
    bootstrap::TokenFile,
    compile::{Compiled, Fault, Within, non_empty, required, source, unpack},
};

/// The only plugin for credentials of calls that Envoy itself has for this, apart from those of clouds.
const FILE_BASED: &str = "envoy.grpc_credentials.file_based_metadata";

/// Largest message where nothing is said, bytes: gRPC's default.
const LARGEST_MESSAGE: usize = 4 << 20;

/// What of a stream is asked for besides its target.
#[derive(Debug)]
pub(crate) struct GoogleStream {
    /// The target as a cluster.
    pub cluster: Cluster,
    /// Host and port.
    pub authority: String,
    /// Sent with each stream.
    pub token_file: Option<TokenFile>,
    /// Pause between pings, and how long an answer may take.
    pub keepalive: Option<(Duration, Duration)>,
    /// Bound on messages of the control plane, bytes.
    pub largest_message: usize,
}

/// Reads the message.
pub(crate) fn stream(from: &GoogleGrpc) -> Compiled<GoogleStream> {
    let prefix = non_empty(&from.stat_prefix, "stat_prefix")?;
    let target = non_empty(&from.target_uri, "target_uri")?;
    let authority = target.strip_prefix("dns:").map_or(target, |rest| rest.trim_start_matches('/'));
    let (host, port) = authority
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host.trim_matches(['[', ']']), port.parse::<u16>().ok()?)))
        .filter(|(host, _)| !host.is_empty())
        .ok_or_else(|| Fault::new("target_uri", format!("{target:?}: give host:port or dns:///host:port")))?;
    if !matches!(from.credentials_factory_name.as_str(), "" | FILE_BASED) {
        return Err(Fault::new(
            "credentials_factory_name",
            format!("{:?} is not supported; use {FILE_BASED}", from.credentials_factory_name),
        ));
    }
    let token_file = match from.call_credentials.as_slice() {
        [] => None,
        [one] => Some(credentials(one).at("call_credentials", 0)?),
        _ => return Err(Fault::new("call_credentials[1]", "one token is supported")),
    };
    let transport_socket = match from.channel_credentials.as_ref().and_then(|of| of.credential_specifier.as_ref()) {
        None => None,
        Some(CredentialSpecifier::SslCredentials(ssl)) => {
            let text = |part: &Option<DataSource>, field: &str| -> Compiled<Option<String>> {
                part.as_ref().map(|part| source::text(part).within(field)).transpose()
            };
            let place =
                |compiled: Compiled<Option<String>>| compiled.within("ssl_credentials").within("channel_credentials");
            let roots = required(&ssl.root_certs, "root_certs")
                .map_err(|_| Fault::new("root_certs", "value is required: the system's are not looked for"))
                .and_then(|roots| source::text(roots).within("root_certs"));
            let roots = place(roots.map(Some))?;
            for (given, other, missing) in
                [(&ssl.cert_chain, &ssl.private_key, "private_key"), (&ssl.private_key, &ssl.cert_chain, "cert_chain")]
            {
                if given.is_some() && other.is_none() {
                    place(Err(Fault::new(missing, "value is required: a certificate needs its key")))?;
                }
            }
            Some(tls(
                host,
                roots,
                place(text(&ssl.cert_chain, "cert_chain"))?,
                place(text(&ssl.private_key, "private_key"))?,
            ))
        }
        Some(CredentialSpecifier::GoogleDefault(_)) => {
            return Err(Fault::new("channel_credentials.google_default", "is not supported; use ssl_credentials"));
        }
        Some(CredentialSpecifier::LocalCredentials(_)) => {
            return Err(Fault::new("channel_credentials.local_credentials", "is not supported; leave them out"));
        }
    };
    let mut cluster = json!({
        "name": format!("google_grpc.{prefix}"),
        "type": if host.parse::<IpAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" },
        "load_assignment": {
            "cluster_name": format!("google_grpc.{prefix}"),
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
                "socket_address": { "address": host, "port_value": port }
            } } }] }]
        },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} }
        } }
    });
    if let Some(socket) = transport_socket {
        cluster["transport_socket"] = socket;
    }
    let mut stream = GoogleStream {
        cluster: shika_proto::json::from_json_value(&cluster)
            .map_err(|errors| Fault::new("target_uri", format!("{target:?} makes no cluster: {errors:?}")))?,
        authority: authority.to_owned(),
        token_file,
        keepalive: None,
        largest_message: LARGEST_MESSAGE,
    };
    arguments(from, &mut stream)?;
    Ok(stream)
}

/// The token of `file_based_metadata`.
fn credentials(from: &CallCredentials) -> Compiled<TokenFile> {
    let Some(call_credentials::CredentialSpecifier::FromPlugin(plugin)) = &from.credential_specifier else {
        return Err(Fault::new("", format!("only from_plugin with {FILE_BASED} is supported")));
    };
    (|| {
        let Some(metadata_credentials_from_plugin::ConfigType::TypedConfig(content)) = &plugin.config_type else {
            return Err(Fault::new("typed_config", "value is required"));
        };
        if !any::is::<FileBasedMetadataConfig>(content) {
            return Err(Fault::new("typed_config", format!("{} is not supported", content.type_url)));
        }
        let config: FileBasedMetadataConfig = unpack(content)?;
        (|| {
            let Some(Specifier::Filename(path)) = required(&config.secret_data, "secret_data")?.specifier.as_ref()
            else {
                return Err(Fault::new("secret_data", "give the filename of the token"));
            };
            let header = if config.header_key.is_empty() {
                "authorization".to_owned()
            } else {
                config.header_key.to_ascii_lowercase()
            };
            if http::HeaderName::from_bytes(header.as_bytes()).is_err() {
                return Err(Fault::new("header_key", format!("{header:?} cannot be a header")));
            }
            Ok(TokenFile { path: path.into(), header, prefix: config.header_prefix.clone() })
        })()
        .within("typed_config")
    })()
    .within("from_plugin")
}

/// TLS as gRPC does it: the server's name is that of the target, and has to be in its certificate.
fn tls(host: &str, roots: Option<String>, chain: Option<String>, key: Option<String>) -> Value {
    let (kind, sni) = if host.parse::<IpAddr>().is_ok() { ("IP_ADDRESS", "") } else { ("DNS", host) };
    let mut common = json!({
        "alpn_protocols": ["h2"],
        "validation_context": {
            "trusted_ca": { "inline_string": roots.unwrap_or_default() },
            "match_typed_subject_alt_names": [{ "san_type": kind, "matcher": { "exact": host } }]
        }
    });
    if let (Some(chain), Some(key)) = (chain, key) {
        common["tls_certificates"] =
            json!([{ "certificate_chain": { "inline_string": chain }, "private_key": { "inline_string": key } }]);
    }
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": sni,
            "common_tls_context": common
        }
    })
}

/// `channel_args`: those that Kuma sets, by gRPC's names.
fn arguments(from: &GoogleGrpc, stream: &mut GoogleStream) -> Compiled<()> {
    let (mut time, mut timeout) = (None, Duration::from_secs(20));
    for (name, value) in from.channel_args.iter().flat_map(|arguments| &arguments.args) {
        let place = |reason: String| Fault::new(format!("channel_args.args[{name:?}]"), reason);
        let Some(ValueSpecifier::IntValue(number)) = value.value_specifier else {
            return Err(place("only numbers are supported".into()));
        };
        let number = u64::try_from(number).map_err(|_| place(format!("{number} is negative")))?;
        match name.as_str() {
            "grpc.keepalive_time_ms" => time = Some(Duration::from_millis(number)),
            "grpc.keepalive_timeout_ms" => timeout = Duration::from_millis(number),
            "grpc.max_receive_message_length" => stream.largest_message = usize::try_from(number).unwrap_or(usize::MAX),
            // Pings go on whether there is data or not, as 0 asks for.
            "grpc.http2.max_pings_without_data" if number == 0 => {}
            _ => return Err(place("is not supported".into())),
        }
    }
    stream.keepalive = time.map(|time| (time, timeout));
    Ok(())
}

#[cfg(test)]
#[path = "google_grpc_tests.rs"]
mod tests;
