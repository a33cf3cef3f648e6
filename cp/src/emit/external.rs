//! Clusters of services outside the mesh (Kuma `pkg/xds/envoy/clusters/v3/{endpoint_cluster,client_side_tls}_configurer.go`).
//!
//! Unlike Kuma's, a cluster whose endpoints all need the same TLS has one transport socket, not one that endpoints select by their tags.

use std::collections::BTreeMap;
use std::net::IpAddr;

use shika_proto::any::pack;
use shika_proto::envoy::config::cluster::v3::Cluster;
use shika_proto::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, TransportSocketMatch,
};
use shika_proto::envoy::config::core::v3::{DataSource, Locality, TransportSocket, data_source};
use shika_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints};
use shika_proto::envoy::extensions::transport_sockets::tls::v3::common_tls_context::ValidationContextType;
use shika_proto::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use shika_proto::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use shika_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, TlsCertificate, TlsParameters, UpstreamTlsContext,
};
use shika_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use shika_proto::google::protobuf::Any;

use super::cluster::{CONNECT, protocol_options};
use super::{endpoint, seconds, tags, tls};
use crate::mesh::{ExternalName, OriginatedTls};
use crate::plan::{ExternalHostPlan, ExternalPlan, stat_name};

/// The cluster: static if every host is an address, otherwise by DNS.
pub(super) fn cluster(plan: &ExternalPlan) -> Any {
    let by_name = plan.hosts.iter().any(|host| !is_ip(&host.host));
    let kind = if by_name { DiscoveryType::StrictDns } else { DiscoveryType::Static };
    let family = match (by_name, plan.ipv6) {
        (true, false) => DnsLookupFamily::V4Only,
        _ => DnsLookupFamily::Auto,
    };
    let (transport_socket, transport_socket_matches) = transport_sockets(plan);
    let alt_stat_name = stat_name(&plan.name);
    pack(&Cluster {
        alt_stat_name: if alt_stat_name == plan.name { String::new() } else { alt_stat_name },
        name: plan.name.clone(),
        connect_timeout: seconds(CONNECT),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(kind.into())),
        dns_lookup_family: family.into(),
        load_assignment: Some(assignment(plan)),
        transport_socket,
        transport_socket_matches,
        typed_extension_protocol_options: protocol_options(plan.protocol, false).into_iter().collect(),
        ..Cluster::default()
    })
}

fn assignment(plan: &ExternalPlan) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<(&str, &str, u32), Vec<LbEndpoint>> = BTreeMap::new();
    for host in &plan.hosts {
        let ExternalHostPlan { host, port, zone, sub_zone, priority, tags, tls: _ } = host;
        let endpoint = endpoint::host(host, *port, tags, &BTreeMap::new());
        localities.entry((zone, sub_zone, *priority)).or_default().push(endpoint);
    }
    let endpoints = localities.into_iter().map(|((zone, sub_zone, priority), lb_endpoints)| LocalityLbEndpoints {
        locality: (!zone.is_empty() || !sub_zone.is_empty()).then(|| Locality {
            zone: zone.to_owned(),
            sub_zone: sub_zone.to_owned(),
            ..Locality::default()
        }),
        lb_endpoints,
        priority,
        ..LocalityLbEndpoints::default()
    });
    ClusterLoadAssignment {
        cluster_name: plan.name.clone(),
        endpoints: endpoints.collect(),
        ..ClusterLoadAssignment::default()
    }
}

/// One transport socket for all hosts, or one for each, found by its tags.
fn transport_sockets(plan: &ExternalPlan) -> (Option<TransportSocket>, Vec<TransportSocketMatch>) {
    let mut sockets: Vec<(&ExternalHostPlan, Option<TransportSocket>)> = plan
        .hosts
        .iter()
        .map(|host| (host, host.tls.as_ref().map(|tls| context(tls, &host.host, &plan.system_ca_path))))
        .collect();
    let Some((_, first)) = sockets.first().cloned() else { return (None, Vec::new()) };
    if sockets.iter().all(|(_, socket)| *socket == first) {
        return (first, Vec::new());
    }
    // Hosts of one resource have the same tags, and the same TLS.
    sockets.dedup_by_key(|(host, _)| &host.tags);
    let matches = sockets.into_iter().filter_map(|(host, socket)| {
        Some(TransportSocketMatch {
            name: host.host.clone(),
            r#match: Some(tags(&host.tags)),
            transport_socket: Some(socket?),
        })
    });
    (None, matches.collect())
}

fn context(tls: &OriginatedTls, host: &str, system_ca_path: &str) -> TransportSocket {
    let OriginatedTls { server_name, ca, system_ca, client, skip_names, allow_renegotiation, names, versions } = tls;
    // A server name is never an address.
    let sni = match server_name.as_str() {
        "" if !is_ip(host) => host,
        server_name => server_name,
    };
    let trusted = match ca {
        Some(ca) => Some(data_source::Specifier::InlineBytes(ca.clone())),
        None if *system_ca && !system_ca_path.is_empty() => {
            Some(data_source::Specifier::Filename(system_ca_path.to_owned()))
        }
        None => None,
    };
    let validation = trusted.map(|trusted| {
        let mut matchers = Vec::new();
        if !skip_names {
            let name = if sni.is_empty() { host } else { sni };
            let all = [ExternalName::Exact(name.to_owned())];
            for kind in [SanType::Dns, SanType::IpAddress] {
                matchers.extend(all.iter().map(|name| matcher(kind, name)));
            }
            for kind in [SanType::Dns, SanType::IpAddress] {
                matchers.extend(names.iter().map(|name| matcher(kind, name)));
            }
        }
        CertificateValidationContext {
            trusted_ca: Some(source(trusted)),
            match_typed_subject_alt_names: matchers,
            ..CertificateValidationContext::default()
        }
    });
    let certificates = client.iter().map(|(chain, key)| TlsCertificate {
        certificate_chain: Some(source(data_source::Specifier::InlineBytes(chain.clone()))),
        private_key: Some(source(data_source::Specifier::InlineBytes(key.clone()))),
        ..TlsCertificate::default()
    });
    let version = |name: Option<&'static str>| name.and_then(TlsProtocol::from_str_name).unwrap_or_default().into();
    let limited = versions.0.is_some() || versions.1.is_some();
    let common = CommonTlsContext {
        tls_params: limited.then(|| TlsParameters {
            tls_minimum_protocol_version: version(versions.0),
            tls_maximum_protocol_version: version(versions.1),
            ..TlsParameters::default()
        }),
        tls_certificates: certificates.collect(),
        validation_context_type: validation.map(ValidationContextType::ValidationContext),
        ..CommonTlsContext::default()
    };
    tls::socket(pack(&UpstreamTlsContext {
        common_tls_context: (common != CommonTlsContext::default()).then_some(common),
        sni: sni.to_owned(),
        allow_renegotiation: *allow_renegotiation,
        ..UpstreamTlsContext::default()
    }))
}

fn matcher(
    kind: SanType,
    name: &ExternalName,
) -> shika_proto::envoy::extensions::transport_sockets::tls::v3::SubjectAltNameMatcher {
    tls::name_matcher(
        kind,
        match name {
            ExternalName::Exact(name) => MatchPattern::Exact(name.clone()),
            ExternalName::Prefix(prefix) => MatchPattern::Prefix(prefix.clone()),
        },
    )
}

fn source(specifier: data_source::Specifier) -> DataSource {
    DataSource { specifier: Some(specifier), ..DataSource::default() }
}

fn is_ip(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok()
}
