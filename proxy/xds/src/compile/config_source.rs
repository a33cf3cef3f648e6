//! `core.v3.ConfigSource` and `ApiConfigSource`: where resources come from.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shika_proto::{
    bootstrap::ClusterHead,
    envoy::config::{
        bootstrap::v3::Bootstrap,
        cluster::v3::{Cluster, cluster::DiscoveryType},
        core::v3::{
            ApiConfigSource, ApiVersion, ConfigSource, GrpcService, api_config_source::ApiType as Kind,
            config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
        },
    },
};

use super::{Compiled, Fault, Within, duration, enumeration, non_empty, positive};
use crate::{
    bootstrap::{ApiConfig, ApiType, Source},
    client::LARGEST_MESSAGE,
    google_grpc,
};

/// Envoy's default `initial_fetch_timeout`.
const INITIAL_FETCH_TIMEOUT: Duration = Duration::from_secs(15);
/// Envoy's default `request_timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// What of the bootstrap a source may lead to.
#[derive(Clone, Debug)]
pub(crate) struct Servers {
    /// `dynamic_resources.ads_config` is set.
    pub ads: bool,
    /// Static clusters that need no EDS server to be reached themselves.
    pub primary: BTreeSet<String>,
}

impl Default for Servers {
    /// Before a bootstrap has said otherwise: ADS alone.
    fn default() -> Self {
        Servers { ads: true, primary: BTreeSet::new() }
    }
}

impl Servers {
    /// Those of a bootstrap.
    pub fn of(bootstrap: &Bootstrap, clusters: impl Iterator<Item = ClusterHead>) -> Self {
        let primary = clusters.filter(|cluster| {
            let by_file = cluster
                .eds_cluster_config
                .as_ref()
                .and_then(|config| config.eds_config.as_ref()?.config_source_specifier.as_ref())
                .is_some_and(|from| {
                    matches!(from, ConfigSourceSpecifier::Path(_) | ConfigSourceSpecifier::PathConfigSource(_))
                });
            cluster.kind != Some(DiscoveryType::Eds.into()) || by_file
        });
        Servers {
            ads: bootstrap.dynamic_resources.as_ref().is_some_and(|dynamic| dynamic.ads_config.is_some()),
            primary: primary.map(|cluster| cluster.name).collect(),
        }
    }
}

/// Which clusters may lead to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Through {
    /// [`Servers::primary`].
    Primary,
    /// Any, from CDS too: secrets alone, as in Envoy. Kuma reaches SPIRE's agent so.
    Any,
}

/// Where resources come from.
pub(crate) fn config(source: &ConfigSource, servers: &Servers, through: Through) -> Compiled<Source> {
    let initial_fetch_timeout = match duration(&source.initial_fetch_timeout, "initial_fetch_timeout")? {
        None => Some(INITIAL_FETCH_TIMEOUT),
        Some(Duration::ZERO) => None,
        Some(limit) => Some(limit),
    };
    check_version(source.resource_api_version, "resource_api_version")?;
    let ads = |field: &str| {
        if servers.ads {
            Ok(Source::Ads { initial_fetch_timeout })
        } else {
            Err(Fault::new(field, "ADS is not configured: dynamic_resources.ads_config of the bootstrap is not set"))
        }
    };
    match &source.config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) => ads("ads"),
        // The transport that the resource itself came by.
        Some(ConfigSourceSpecifier::Self_(_)) => ads("self"),
        Some(ConfigSourceSpecifier::PathConfigSource(from)) => Ok(Source::File {
            path: non_empty(&from.path, "path").within("path_config_source")?.to_owned(),
            watched_directory: from.watched_directory.as_ref().map(|directory| directory.path.clone()),
            initial_fetch_timeout,
        }),
        Some(ConfigSourceSpecifier::Path(path)) => Ok(Source::File {
            path: non_empty(path, "path")?.to_owned(),
            watched_directory: None,
            initial_fetch_timeout,
        }),
        Some(ConfigSourceSpecifier::ApiConfigSource(from)) => {
            let kind = enumeration::<Kind>(from.api_type, "api_type").within("api_config_source")?;
            if matches!(kind, Kind::AggregatedGrpc | Kind::AggregatedDeltaGrpc) {
                return ads("api_config_source.api_type");
            }
            let (api, cluster) = api(from, servers, through).within("api_config_source")?;
            if cluster.is_some() {
                let reason = "is supported for ADS alone; use envoy_grpc with a cluster";
                return Err(Fault::new("api_config_source.grpc_services[0].google_grpc", reason));
            }
            Ok(Source::Api { api: Arc::new(api), initial_fetch_timeout })
        }
        None => Err(Fault::new("config_source_specifier", "value is required")),
    }
}

/// The server of ADS or of one type. `google_grpc` brings a cluster of its own, which is to be made.
pub(crate) fn api(
    from: &ApiConfigSource,
    servers: &Servers,
    through: Through,
) -> Compiled<(ApiConfig, Option<Cluster>)> {
    let kind = enumeration::<Kind>(from.api_type, "api_type")?;
    check_version(from.transport_api_version, "transport_api_version")?;
    let known = |cluster: &str, field: &str| {
        if through == Through::Any || servers.primary.contains(cluster) {
            return Ok(());
        }
        Err(Fault::new(
            field,
            format!("Unknown cluster '{cluster}': it has to be in static_resources, and not a cluster of EDS"),
        ))
    };
    let api_type = match kind {
        Kind::Grpc | Kind::AggregatedGrpc => ApiType::Grpc,
        Kind::DeltaGrpc | Kind::AggregatedDeltaGrpc => ApiType::DeltaGrpc,
        Kind::Rest => {
            let [cluster] = from.cluster_names.as_slice() else {
                return Err(Fault::new(
                    "cluster_names",
                    format!("must have a singleton cluster name specified for REST, not {}", from.cluster_names.len()),
                ));
            };
            if !from.grpc_services.is_empty() {
                return Err(Fault::new("grpc_services", "REST must not have a gRPC service specified"));
            }
            non_empty(cluster, "cluster_names[0]")?;
            known(cluster, "cluster_names[0]")?;
            let refresh = positive(&from.refresh_delay, "refresh_delay")?
                .ok_or_else(|| Fault::new("refresh_delay", "is required for REST API configuration sources"))?;
            let timeout = positive(&from.request_timeout, "request_timeout")?.unwrap_or(REQUEST_TIMEOUT);
            let config = ApiConfig {
                api_type: ApiType::Rest { refresh, timeout },
                cluster: cluster.clone(),
                authority: String::new(),
                metadata: Vec::new(),
                node_on_first_message_only: false,
                token_file: None,
                keepalive: None,
                largest_message: LARGEST_MESSAGE,
            };
            return Ok((config, None));
        }
        Kind::DeprecatedAndUnavailableDoNotUse => {
            return Err(Fault::new("api_type", "must be GRPC, DELTA_GRPC or REST"));
        }
    };
    if !from.cluster_names.is_empty() {
        return Err(Fault::new("cluster_names", "(DELTA_)GRPC must not have a cluster name specified"));
    }
    let [service] = from.grpc_services.as_slice() else {
        return Err(Fault::new(
            "grpc_services",
            format!("value must contain exactly 1 item(s), not {}", from.grpc_services.len()),
        ));
    };
    let mut config = ApiConfig {
        api_type,
        cluster: String::new(),
        authority: String::new(),
        metadata: Vec::with_capacity(service.initial_metadata.len()),
        node_on_first_message_only: from.set_node_on_first_message_only,
        token_file: None,
        keepalive: None,
        largest_message: LARGEST_MESSAGE,
    };
    let made = grpc(service, &mut config, &known).at("grpc_services", 0)?;
    Ok((config, made))
}

/// The target of a stream and what is sent with it.
fn grpc(
    service: &GrpcService,
    config: &mut ApiConfig,
    known: &dyn Fn(&str, &str) -> Compiled<()>,
) -> Compiled<Option<Cluster>> {
    let mut made = None;
    match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => {
            config.cluster = non_empty(&grpc.cluster_name, "cluster_name").within("envoy_grpc")?.to_owned();
            known(&config.cluster, "envoy_grpc.cluster_name")?;
            config.authority.clone_from(&grpc.authority);
        }
        Some(TargetSpecifier::GoogleGrpc(grpc)) => {
            let stream = google_grpc::stream(grpc).within("google_grpc")?;
            config.cluster.clone_from(&stream.cluster.name);
            config.authority = stream.authority;
            config.token_file = stream.token_file;
            config.keepalive = stream.keepalive;
            config.largest_message = stream.largest_message;
            made = Some(stream.cluster);
        }
        None => return Err(Fault::new("target_specifier", "value is required")),
    }
    for (index, header) in service.initial_metadata.iter().enumerate() {
        let name = http::HeaderName::from_bytes(header.key.to_ascii_lowercase().as_bytes());
        // The value may be a token: it is not repeated.
        if name.is_err() || http::HeaderValue::from_str(&header.value).is_err() {
            return Err(Fault::new(
                format!("initial_metadata[{index}]"),
                format!("{:?} or its value cannot be a header", header.key),
            ));
        }
        config.metadata.push((header.key.to_ascii_lowercase(), header.value.clone()));
    }
    Ok(made)
}

/// Only version 3 exists; `AUTO` (unset) is taken for it.
fn check_version(number: i32, field: &str) -> Compiled<()> {
    match enumeration::<ApiVersion>(number, field)? {
        ApiVersion::Auto | ApiVersion::V3 => Ok(()),
        ApiVersion::V2 => Err(Fault::new(field, "V2 is no longer supported; use V3")),
    }
}

#[cfg(test)]
#[path = "config_source_tests.rs"]
mod tests;
