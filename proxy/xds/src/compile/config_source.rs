//! `core.v3.ConfigSource` and `ApiConfigSource`: where resources come from.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shika_proto::envoy::config::{
    bootstrap::v3::Bootstrap,
    cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType},
    core::v3::{
        ApiConfigSource, ApiVersion, ConfigSource, GrpcService, api_config_source::ApiType as Kind,
        config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
    },
};

use super::{Compiled, Fault, Within, duration, enumeration, non_empty, positive};
use crate::bootstrap::{ApiConfig, ApiType, Source};

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
    pub fn of(bootstrap: &Bootstrap) -> Self {
        let clusters = bootstrap.static_resources.iter().flat_map(|resources| &resources.clusters);
        let primary = clusters.filter(|cluster| {
            let by_file = cluster
                .eds_cluster_config
                .as_ref()
                .and_then(|config| config.eds_config.as_ref()?.config_source_specifier.as_ref())
                .is_some_and(|from| {
                    matches!(from, ConfigSourceSpecifier::Path(_) | ConfigSourceSpecifier::PathConfigSource(_))
                });
            let eds = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
            cluster.cluster_discovery_type != eds || by_file
        });
        Servers {
            ads: bootstrap.dynamic_resources.as_ref().is_some_and(|dynamic| dynamic.ads_config.is_some()),
            primary: primary.map(|cluster| cluster.name.clone()).collect(),
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
            let api = Arc::new(api(from, servers, through).within("api_config_source")?);
            Ok(Source::Api { api, initial_fetch_timeout })
        }
        None => Err(Fault::new("config_source_specifier", "value is required")),
    }
}

/// The server of ADS or of one type.
pub(crate) fn api(from: &ApiConfigSource, servers: &Servers, through: Through) -> Compiled<ApiConfig> {
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
            return Ok(ApiConfig {
                api_type: ApiType::Rest { refresh, timeout },
                cluster: cluster.clone(),
                authority: String::new(),
                metadata: Vec::new(),
                node_on_first_message_only: false,
            });
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
    grpc(service, api_type, from.set_node_on_first_message_only, &known).at("grpc_services", 0)
}

/// The server of a stream.
fn grpc(
    service: &GrpcService,
    api_type: ApiType,
    node_on_first_message_only: bool,
    known: &dyn Fn(&str, &str) -> Compiled<()>,
) -> Compiled<ApiConfig> {
    let grpc = match &service.target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(grpc)) => grpc,
        Some(TargetSpecifier::GoogleGrpc(_)) => {
            return Err(Fault::new("google_grpc", "is not supported; use envoy_grpc with a static cluster"));
        }
        None => return Err(Fault::new("target_specifier", "value is required")),
    };
    let cluster = non_empty(&grpc.cluster_name, "cluster_name").within("envoy_grpc")?;
    known(cluster, "envoy_grpc.cluster_name")?;
    let mut metadata = Vec::with_capacity(service.initial_metadata.len());
    for (index, header) in service.initial_metadata.iter().enumerate() {
        let name = http::HeaderName::from_bytes(header.key.to_ascii_lowercase().as_bytes());
        // The value may be a token: it is not repeated.
        if name.is_err() || http::HeaderValue::from_str(&header.value).is_err() {
            return Err(Fault::new(
                format!("initial_metadata[{index}]"),
                format!("{:?} or its value cannot be a header", header.key),
            ));
        }
        metadata.push((header.key.to_ascii_lowercase(), header.value.clone()));
    }
    Ok(ApiConfig {
        api_type,
        cluster: cluster.to_owned(),
        authority: grpc.authority.clone(),
        metadata,
        node_on_first_message_only,
    })
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
