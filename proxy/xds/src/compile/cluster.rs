//! `config.cluster.v3.Cluster`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use shika_data::{
    model::{
        cluster::{
            Balancer, Cluster, Discovery, EndpointSet, Fallback, Limits, RetryBudget, Selection, Subsets,
            UpstreamProtocol,
        },
        hash::Hashing,
    },
    stats::{ClusterStats, EdsStats, Registry, RemainingStats, Scope},
};
use shika_proto::envoy::{
    config::{
        cluster::v3::{
            self as proto, CircuitBreakers,
            cluster::{
                ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, LbConfig, LbPolicy, LbSubsetConfig,
                common_lb_config::LocalityConfigSpecifier,
                lb_subset_config::{
                    LbSubsetFallbackPolicy, lb_subset_selector::LbSubsetSelectorFallbackPolicy as SelectorFallback,
                },
            },
        },
        core::v3::{RoutingPriority, TransportSocket},
    },
    extensions::{
        transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport, upstreams::http::v3::HttpProtocolOptions,
    },
};

use super::{
    Compiled, Context, Fault, Within, address,
    config_source::{self, Servers, Through},
    endpoints::{self, Assignment, Names},
    enumeration, hash, health, labels, non_empty, outlier, positive, proxy_protocol, required,
    tls::{self, ClientBinding, Transport},
    unpack, upstream_http, wrapped,
};
use crate::{bootstrap::Source, compiler::LookupFamily};

/// Key of [`HttpProtocolOptions`] in `typed_extension_protocol_options`.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's default `dns_refresh_rate`.
const DNS_REFRESH: Duration = Duration::from_secs(5);

/// A cluster and what it still needs before it serves.
#[derive(Debug)]
pub(crate) struct CompiledCluster {
    /// The cluster; endpoints that need neither EDS nor DNS are in.
    pub cluster: Arc<Cluster>,
    /// Its own endpoints, for DNS clusters.
    pub assignment: Assignment,
    /// EDS: the name asked for and where.
    pub eds: Option<(Arc<str>, Source)>,
    /// Statistics of the EDS subscription.
    pub eds_stats: Option<EdsStats>,
    /// DNS settings.
    pub dns: Option<Dns>,
    /// TLS contexts: that of the cluster, and those for endpoints with certain labels.
    pub tls: Vec<ClientBinding>,
}

/// How names of a cluster are resolved.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dns {
    /// `dns_lookup_family`
    pub family: LookupFamily,
    /// `dns_refresh_rate`
    pub refresh: Duration,
    /// `respect_dns_ttl`
    pub respect_ttl: bool,
}

/// `cluster.<alt_stat_name or name>.`, as Envoy spells it.
fn scope(from: &proto::Cluster) -> Scope {
    let name = if from.alt_stat_name.is_empty() { &from.name } else { &from.alt_stat_name };
    let name = name.replace(':', "_");
    Scope { prefix: format!("cluster.{name}."), stem: "cluster.".into(), tags: vec![("envoy.cluster_name", name)] }
}

/// A cluster.
pub(crate) fn cluster(context: &mut Context<'_>, from: &proto::Cluster) -> Compiled<CompiledCluster> {
    non_empty(&from.name, "name")?;
    let kind = match &from.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(number)) => enumeration(*number, "type")?,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Err(Fault::new("cluster_type", format!("cluster type {} is not supported", custom.name)));
        }
    };
    let (discovery, eds, assignment) = discovery(from, kind, context.servers)?;
    let balancer = balancer(from, kind)?;
    let dns = match kind {
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => Some(dns(from)?),
        DiscoveryType::Static | DiscoveryType::Eds | DiscoveryType::OriginalDst => None,
    };
    let http = http(from)?;
    let limits = from.circuit_breakers.as_ref().map(limits).transpose().within("circuit_breakers")?;
    let (mut limits, mut high_limits) = limits.unwrap_or_default();
    let panic_threshold =
        match from.common_lb_config.as_ref().and_then(|common| common.healthy_panic_threshold.as_ref()) {
            None => 50,
            Some(percent) if (0.0..=100.0).contains(&percent.value) => percent.value as u8,
            Some(_) => {
                return Err(Fault::new(
                    "common_lb_config.healthy_panic_threshold.value",
                    "value must be inside range [0, 100]",
                ));
            }
        };
    let bind_source = match &from.upstream_bind_config {
        None => context.bind_source,
        Some(config) => address::source(config).within("upstream_bind_config")?,
    };
    let keepalive = from
        .upstream_connection_options
        .as_ref()
        .and_then(|options| options.tcp_keepalive.as_ref())
        .map(address::keepalive);
    let scope = scope(from);
    for (limits, priority) in [(&mut limits, "default"), (&mut high_limits, "high")] {
        limits.remaining = limits.track_remaining.then(|| {
            let within = |name: &str| format!("{name}circuit_breakers.{priority}.");
            let scope = Scope { prefix: within(&scope.prefix), stem: within(&scope.stem), tags: scope.tags.clone() };
            Box::new(RemainingStats::new(context.registry, scope))
        });
    }
    let mut bindings = Vec::new();
    let mut bind = |context: &mut Context<'_>, socket: &Option<TransportSocket>| -> Compiled<_> {
        let Some(socket) = socket else { return Ok(None) };
        let ssl =
            Scope { prefix: format!("{}ssl.", scope.prefix), stem: "cluster.ssl.".into(), tags: scope.tags.clone() };
        match tls::upstream(context, socket, ssl).within("transport_socket")? {
            Transport::Plain => Ok(None),
            Transport::Tls(binding) => {
                let handle = binding.handle.clone();
                bindings.push(binding);
                Ok(Some(handle))
            }
        }
    };
    let proxied: Option<ProxyProtocolUpstreamTransport> = match &from.transport_socket {
        Some(socket) if tls::is_proxy_protocol(socket) => {
            Some(tls::typed_config(socket).and_then(unpack).within("typed_config").within("transport_socket")?)
        }
        _ => None,
    };
    let (proxy_protocol, tls) = match &proxied {
        None => (None, bind(context, &from.transport_socket)?),
        Some(proxied) => (|| {
            let (header, inner) = proxy_protocol::upstream(context, proxied, &scope)?;
            Ok((Some(Box::new(header)), bind(context, &Some(inner.clone()))?))
        })()
        .within("typed_config")
        .within("transport_socket")?,
    };
    let mut tls_matches = Vec::with_capacity(from.transport_socket_matches.len());
    for (index, one) in from.transport_socket_matches.iter().enumerate() {
        non_empty(&one.name, "name").at("transport_socket_matches", index)?;
        let labels = one.r#match.as_ref().map(labels::labels).unwrap_or_default();
        tls_matches.push((labels, bind(context, &one.transport_socket).at("transport_socket_matches", index)?));
    }
    let outlier = match &from.outlier_detection {
        None => None,
        Some(outlier) => {
            Some(Box::new(outlier::outlier(context.registry, outlier, &scope).within("outlier_detection")?))
        }
    };
    let http2 = http.protocol == UpstreamProtocol::Http2;
    let health = health::health(context, from, &scope, http2)?;
    let hashing = hashing(context.registry, from, &scope)?;
    let selection = selection(from)?;
    let (id, name) = context.clusters.intern(&from.name);
    let endpoints = match kind {
        DiscoveryType::Static => assignment.endpoints(&HashMap::new(), false, None),
        DiscoveryType::Eds | DiscoveryType::StrictDns | DiscoveryType::LogicalDns | DiscoveryType::OriginalDst => {
            EndpointSet { priorities: Vec::new(), overprovisioning: assignment.overprovisioning }
        }
    };
    let cluster = Cluster {
        id,
        name,
        discovery,
        endpoints: ArcSwap::from_pointee(endpoints),
        balancer,
        hashing,
        panic_threshold,
        connect_timeout: positive(&from.connect_timeout, "connect_timeout")?.unwrap_or(Duration::from_secs(5)),
        selection,
        health,
        outlier,
        close_on_failure: from.close_connections_on_host_health_failure.then(Box::default),
        tls,
        tls_matches,
        proxy_protocol,
        protocol: http.protocol,
        idle_timeout: http.idle_timeout,
        max_connection: http.max_connection,
        max_stream: http.max_stream,
        max_requests_per_connection: http.max_requests_per_connection,
        http2: http.http2,
        limits,
        high_limits,
        bind_source,
        keepalive,
        buffer_limit: wrapped(&from.per_connection_buffer_limit_bytes).unwrap_or(1 << 20),
        stats: ClusterStats::new(context.registry, scope.clone()),
    };
    let eds_stats = eds.as_ref().map(|_| {
        if cluster.stats.update_attempt().total() == 0 {
            cluster.stats.update_attempt().inc();
        }
        EdsStats::new(context.registry, scope)
    });
    Ok(CompiledCluster { cluster: Arc::new(cluster), assignment, eds, eds_stats, dns, tls: bindings })
}

type Found = (Discovery, Option<(Arc<str>, Source)>, Assignment);

fn discovery(from: &proto::Cluster, kind: DiscoveryType, servers: &Servers) -> Compiled<Found> {
    if from.eds_cluster_config.is_some() && kind != DiscoveryType::Eds {
        return Err(Fault::new("eds_cluster_config", "cannot set EDS config for a cluster whose type is not EDS"));
    }
    let own = |names| match &from.load_assignment {
        None => Ok(Assignment { overprovisioning: 140, ..Assignment::default() }),
        Some(assignment) => endpoints::assignment(assignment, names).within("load_assignment"),
    };
    match kind {
        DiscoveryType::Static => Ok((Discovery::Static, None, own(Names::Refused)?)),
        DiscoveryType::StrictDns => Ok((Discovery::StrictDns, None, own(Names::Allowed)?)),
        DiscoveryType::LogicalDns => {
            let assignment = own(Names::Allowed)?;
            if assignment.hosts.len() != 1 {
                return Err(Fault::new(
                    "load_assignment",
                    "LOGICAL_DNS clusters must have a single locality_lb_endpoint and a single lb_endpoint",
                ));
            }
            Ok((Discovery::LogicalDns, None, assignment))
        }
        DiscoveryType::OriginalDst => {
            if from.load_assignment.is_some() {
                return Err(Fault::new(
                    "load_assignment",
                    "ORIGINAL_DST clusters must have no load assignment configured",
                ));
            }
            Ok((Discovery::OriginalDst, None, Assignment { overprovisioning: 140, ..Assignment::default() }))
        }
        DiscoveryType::Eds => {
            if from.load_assignment.is_some() {
                return Err(Fault::new(
                    "load_assignment",
                    "an EDS cluster takes its endpoints from EDS; a load assignment has no effect",
                ));
            }
            let config = required(&from.eds_cluster_config, "eds_cluster_config")?;
            let source = required(&config.eds_config, "eds_config")
                .and_then(|source| config_source::config(source, servers, Through::Primary).within("eds_config"))
                .within("eds_cluster_config")?;
            let name: Arc<str> =
                if config.service_name.is_empty() { from.name.as_str() } else { &config.service_name }.into();
            Ok((
                Discovery::Eds(name.clone()),
                Some((name, source)),
                Assignment { overprovisioning: 140, ..Assignment::default() },
            ))
        }
    }
}

/// Which endpoints are chosen from.
fn selection(from: &proto::Cluster) -> Compiled<Selection> {
    let mut selection = Selection::default();
    match from.common_lb_config.as_ref().and_then(|common| common.locality_config_specifier.as_ref()) {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => selection.by_locality = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zones)) => {
            selection.fail_on_panic = zones.fail_traffic_on_panic;
        }
    }
    selection.subsets = from.lb_subset_config.as_ref().map(subsets).transpose().within("lb_subset_config")?.flatten();
    Ok(selection)
}

/// `None` without selectors: Envoy then has no subsets.
fn subsets(from: &LbSubsetConfig) -> Compiled<Option<Subsets>> {
    if from.subset_selectors.is_empty() {
        return Ok(None);
    }
    let mut selectors = Vec::with_capacity(from.subset_selectors.len());
    for (index, selector) in from.subset_selectors.iter().enumerate() {
        let mut keys: Vec<Box<str>> = selector.keys.iter().map(|key| key.as_str().into()).collect();
        keys.sort_unstable();
        keys.dedup();
        let fallback = match enumeration(selector.fallback_policy, "fallback_policy").at("subset_selectors", index)? {
            SelectorFallback::NotDefined => None,
            SelectorFallback::NoFallback => Some(Fallback::None),
            SelectorFallback::AnyEndpoint => Some(Fallback::Any),
            SelectorFallback::DefaultSubset => Some(Fallback::Default),
            SelectorFallback::KeysSubset => {
                let fault = Err(Fault::new("fallback_policy", "KEYS_SUBSET is not supported"));
                return fault.at("subset_selectors", index);
            }
        };
        selectors.push((keys, fallback));
    }
    let fallback = match enumeration(from.fallback_policy, "fallback_policy")? {
        LbSubsetFallbackPolicy::NoFallback => Fallback::None,
        LbSubsetFallbackPolicy::AnyEndpoint => Fallback::Any,
        LbSubsetFallbackPolicy::DefaultSubset => Fallback::Default,
    };
    let default = Arc::new(from.default_subset.as_ref().map(labels::labels).unwrap_or_default());
    Ok(Some(Subsets { selectors, fallback, default }))
}

fn balancer(from: &proto::Cluster, kind: DiscoveryType) -> Compiled<Balancer> {
    let policy = enumeration::<LbPolicy>(from.lb_policy, "lb_policy")?;
    if kind == DiscoveryType::OriginalDst && policy != LbPolicy::ClusterProvided {
        return Err(Fault::new("lb_policy", "ORIGINAL_DST clusters need CLUSTER_PROVIDED"));
    }
    match policy {
        LbPolicy::RoundRobin => {
            if let Some(LbConfig::RoundRobinLbConfig(config)) = &from.lb_config
                && config.slow_start_config.is_some()
            {
                return Err(Fault::new("round_robin_lb_config.slow_start_config", "slow start is not supported"));
            }
            Ok(Balancer::RoundRobin)
        }
        LbPolicy::LeastRequest => {
            let (mut choices, mut bias) = (2, 1.0);
            if let Some(LbConfig::LeastRequestLbConfig(config)) = &from.lb_config {
                choices = wrapped(&config.choice_count).unwrap_or(2);
                if choices < 2 {
                    return Err(Fault::new(
                        "least_request_lb_config.choice_count",
                        "value must be greater than or equal to 2",
                    ));
                }
                bias = config.active_request_bias.as_ref().map_or(1.0, |bias| bias.default_value);
                if !(bias >= 0.0 && bias.is_finite()) {
                    return Err(Fault::new(
                        "least_request_lb_config.active_request_bias.default_value",
                        "value must be at least 0",
                    ));
                }
                if config.slow_start_config.is_some() {
                    return Err(Fault::new("least_request_lb_config.slow_start_config", "slow start is not supported"));
                }
            }
            Ok(Balancer::LeastRequest { choices, bias })
        }
        LbPolicy::Random => Ok(Balancer::Random),
        LbPolicy::ClusterProvided if kind == DiscoveryType::OriginalDst => Ok(Balancer::Provided),
        LbPolicy::ClusterProvided => {
            Err(Fault::new("lb_policy", "CLUSTER_PROVIDED is for clusters of type ORIGINAL_DST"))
        }
        LbPolicy::RingHash | LbPolicy::Maglev => Ok(Balancer::Hash),
        LbPolicy::LoadBalancingPolicyConfig => Err(Fault::new(
            "lb_policy",
            "LOAD_BALANCING_POLICY_CONFIG is not supported; ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH, MAGLEV and CLUSTER_PROVIDED are",
        )),
    }
}

/// How hosts are spread, for clusters that choose by a hash.
fn hashing(registry: &Registry, from: &proto::Cluster, scope: &Scope) -> Compiled<Option<Box<Hashing>>> {
    let config = from.lb_config.as_ref();
    let spread = match enumeration::<LbPolicy>(from.lb_policy, "lb_policy")? {
        LbPolicy::RingHash => hash::ring(config)?,
        LbPolicy::Maglev => hash::maglev(config)?,
        _ => return Ok(None),
    };
    let consistent = from.common_lb_config.as_ref().and_then(|common| common.consistent_hashing_lb_config.as_ref());
    let by_hostname = consistent.is_some_and(|config| config.use_hostname_for_hashing);
    Ok(Some(Box::new(Hashing::new(registry, scope, spread, by_hostname))))
}

fn dns(from: &proto::Cluster) -> Compiled<Dns> {
    let family = match enumeration(from.dns_lookup_family, "dns_lookup_family")? {
        DnsLookupFamily::Auto => LookupFamily::Auto,
        DnsLookupFamily::V4Only => LookupFamily::V4Only,
        DnsLookupFamily::V6Only => LookupFamily::V6Only,
        DnsLookupFamily::V4Preferred => LookupFamily::V4Preferred,
        DnsLookupFamily::All => LookupFamily::All,
    };
    let refresh = positive(&from.dns_refresh_rate, "dns_refresh_rate")?.unwrap_or(DNS_REFRESH);
    if refresh < Duration::from_millis(1) {
        return Err(Fault::new("dns_refresh_rate", "value must be greater than 1ms"));
    }
    Ok(Dns { family, refresh, respect_ttl: from.respect_dns_ttl })
}

fn http(from: &proto::Cluster) -> Compiled<upstream_http::Options> {
    let mut options = upstream_http::Options::default();
    for (key, content) in &from.typed_extension_protocol_options {
        if key != HTTP_OPTIONS {
            return Err(Fault::new(
                format!("typed_extension_protocol_options[{key:?}]"),
                "protocol options of this extension are not supported",
            ));
        }
        let typed: HttpProtocolOptions = unpack(content).at_key("typed_extension_protocol_options", key)?;
        options = upstream_http::typed(&typed).at_key("typed_extension_protocol_options", key)?;
    }
    if from.typed_extension_protocol_options.is_empty() {
        if let Some(common) = &from.common_http_protocol_options {
            upstream_http::common(&mut options, common).within("common_http_protocol_options")?;
        }
        if let Some(http1) = &from.http_protocol_options {
            upstream_http::upstream_http1(http1).within("http_protocol_options")?;
        }
        if let Some(http2) = &from.http2_protocol_options {
            options.protocol = UpstreamProtocol::Http2;
            options.http2 = upstream_http::http2(http2).within("http2_protocol_options")?;
        }
        if from.protocol_selection == proto::cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32 {
            options.protocol = UpstreamProtocol::Downstream;
        }
    }
    if let Some(most) = wrapped(&from.max_requests_per_connection).filter(|most| *most > 0) {
        options.max_requests_per_connection.get_or_insert(most);
    }
    Ok(options)
}

/// Default and high priority.
fn limits(from: &CircuitBreakers) -> Compiled<(Limits, Limits)> {
    let (mut default, mut high) = (Limits::default(), Limits::default());
    let (mut default_set, mut high_set) = (false, false);
    for (index, threshold) in from.thresholds.iter().enumerate() {
        let (limits, set) = match enumeration(threshold.priority, "priority").at("thresholds", index)? {
            RoutingPriority::Default => (&mut default, &mut default_set),
            RoutingPriority::High => (&mut high, &mut high_set),
        };
        // As in Envoy, the first entry of a priority counts.
        if std::mem::replace(set, true) {
            continue;
        }
        limits.max_connections = wrapped(&threshold.max_connections).unwrap_or(limits.max_connections);
        limits.max_pending = wrapped(&threshold.max_pending_requests).unwrap_or(limits.max_pending);
        limits.max_requests = wrapped(&threshold.max_requests).unwrap_or(limits.max_requests);
        limits.max_retries = wrapped(&threshold.max_retries).unwrap_or(limits.max_retries);
        limits.retry_budget = threshold.retry_budget.as_ref().map(|budget| RetryBudget {
            percent: budget.budget_percent.as_ref().map_or(20.0, |percent| percent.value.clamp(0.0, 100.0)),
            least: wrapped(&budget.min_retry_concurrency).unwrap_or(3),
        });
        limits.track_remaining = threshold.track_remaining;
    }
    Ok((default, high))
}

#[cfg(test)]
#[path = "cluster_tests.rs"]
mod tests;
