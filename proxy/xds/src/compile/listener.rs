//! `config.listener.v3.Listener` and its filter chains.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use prost::Message;
use shika_data::{
    model::{
        ChainId, ListenerId, RouteTableId,
        chain_match::{ChainMatch, ChainTable, SourceType},
        labels::Labels,
        listener::{BindAddress, FilterChain, Inspect, Listener, NetworkFilter, TcpProxy, Terminal, TrafficDirection},
        route::{ClusterChoice, WeightedCluster},
    },
    stats::{HttpInspectorStats, ListenerStats, Scope, TcpStats, TlsInspectorStats},
};
use shika_proto::{
    any,
    envoy::{
        config::{
            core::v3::TrafficDirection as ProtoDirection,
            listener::v3::{
                self as proto, FilterChainMatch, filter, filter_chain_match::ConnectionSourceType, listener_filter,
            },
        },
        extensions::filters::{
            listener::{
                http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, proxy_protocol::v3::ProxyProtocol,
                tls_inspector::v3::TlsInspector,
            },
            network::{
                direct_response::v3::Config as DirectResponse,
                echo::v3::Echo,
                http_connection_manager::v3::HttpConnectionManager,
                local_ratelimit::v3::LocalRateLimit,
                rbac::v3::Rbac,
                set_filter_state::v3::Config as SetFilterState,
                tcp_proxy::v3::{self as proto_tcp, TcpProxy as ProtoTcpProxy, tcp_proxy},
            },
        },
    },
};

use super::{
    Compiled, Context, Fault, Within, access_log, address, bound, denials, enumeration,
    filter::{network, rbac},
    flag, hash,
    http::{self, Routes},
    kafka, labels, non_empty, positive, proxy_protocol, required, source,
    tls::{self, ServerBinding, Transport},
    unpack, wrapped,
};
use crate::{store::content_hash, subscription::RouteStats};

/// A chain and what it still needs.
#[derive(Debug)]
pub(crate) struct CompiledChain {
    /// The chain.
    pub chain: Arc<FilterChain>,
    /// TLS, if it is terminated.
    pub tls: Option<ServerBinding>,
    /// Routes, if it speaks HTTP.
    pub routes: Option<Routes>,
    /// Statistics of its RDS subscription.
    pub rds: Option<RouteStats>,
    /// Hash of its configuration.
    hash: u64,
}

/// A listener and its chains.
#[derive(Debug)]
pub(crate) struct CompiledListener {
    /// The listener.
    pub listener: Arc<Listener>,
    /// All chains, the default one included.
    pub chains: Vec<Arc<CompiledChain>>,
}

/// Ids of a listener's chains: one for each match, as long as the listener's name lives.
#[derive(Debug, Default)]
pub(crate) struct ChainIds {
    ids: HashMap<ChainMatch, ChainId>,
    default: Option<ChainId>,
    next: u32,
}

impl ChainIds {
    fn fresh(next: &mut u32) -> ChainId {
        let id = ChainId(*next);
        *next += 1;
        id
    }

    fn of(&mut self, criteria: Option<&ChainMatch>) -> ChainId {
        match criteria {
            None => *self.default.get_or_insert_with(|| Self::fresh(&mut self.next)),
            Some(criteria) => match self.ids.get(criteria) {
                Some(id) => *id,
                None => {
                    let id = Self::fresh(&mut self.next);
                    self.ids.insert(criteria.clone(), id);
                    id
                }
            },
        }
    }
}

/// Gives the id of a route table: of an RDS name, or with `None` of the chain with this id.
pub(crate) type RouteIds<'a> = &'a mut dyn FnMut(ChainId, Option<&str>) -> RouteTableId;

/// A listener. Chains whose configuration equals that of `old` stay the same.
pub(crate) fn listener(
    context: &mut Context<'_>,
    from: &proto::Listener,
    id: ListenerId,
    chain_ids: &mut ChainIds,
    old: &[Arc<CompiledChain>],
    route_ids: RouteIds<'_>,
) -> Compiled<CompiledListener> {
    let mut addresses = vec![address::bind(required(&from.address, "address")?).within("address")?];
    for (index, more) in from.additional_addresses.iter().enumerate() {
        let more = required(&more.address, "address").and_then(|more| address::bind(more).within("address"));
        addresses.push(more.at("additional_addresses", index)?);
    }
    if from.filter_chains.is_empty() && from.default_filter_chain.is_none() {
        return Err(Fault::new(
            "filter_chains",
            format!("error adding listener '{}': no filter chains specified", from.name),
        ));
    }
    context.direction = match enumeration(from.traffic_direction, "traffic_direction")? {
        ProtoDirection::Unspecified => TrafficDirection::Unspecified,
        ProtoDirection::Inbound => TrafficDirection::Inbound,
        ProtoDirection::Outbound => TrafficDirection::Outbound,
    };
    let scope = scope(from, addresses.first());
    let old: HashMap<ChainId, &Arc<CompiledChain>> = old.iter().map(|chain| (chain.chain.id, chain)).collect();
    let mut one = |context: &mut Context<'_>, from: &proto::FilterChain, id: ChainId| -> Compiled<Arc<CompiledChain>> {
        let hash = content_hash(&from.encode_to_vec());
        if let Some(same) = old.get(&id)
            && same.hash == hash
        {
            return Ok(Arc::clone(same));
        }
        Ok(Arc::new(chain(context, from, id, hash, &scope, &mut |name| route_ids(id, name))?))
    };
    let mut table = Vec::with_capacity(from.filter_chains.len());
    let mut chains = Vec::with_capacity(from.filter_chains.len() + 1);
    let mut seen: HashMap<ChainId, usize> = HashMap::new();
    for (index, filter_chain) in from.filter_chains.iter().enumerate() {
        let empty = FilterChainMatch::default();
        let criteria = criteria(filter_chain.filter_chain_match.as_ref().unwrap_or(&empty))
            .within("filter_chain_match")
            .at("filter_chains", index)?;
        let id = chain_ids.of(Some(&criteria));
        if let Some(first) = seen.insert(id, index) {
            return Err(Fault::new(
                format!("filter_chains[{index}].filter_chain_match"),
                format!(
                    "error adding listener '{}': filter chain '{}' has the same matching rules defined as filter_chains[{first}]",
                    from.name, filter_chain.name
                ),
            ));
        }
        let compiled = one(context, filter_chain, id).at("filter_chains", index)?;
        table.push((criteria, compiled.chain.clone()));
        chains.push(compiled);
    }
    let mut default = None;
    if let Some(filter_chain) = &from.default_filter_chain {
        let compiled = one(context, filter_chain, chain_ids.of(None)).within("default_filter_chain")?;
        default = Some(compiled.chain.clone());
        chains.push(compiled);
    }
    let table = ChainTable::new(table, default)
        .map_err(|error| Fault::new("filter_chains", format!("error adding listener '{}': {error}", from.name)))?;
    let own_bind = flag(&from.bind_to_port, true);
    let old_bind = from.deprecated_v1.as_ref().is_none_or(|deprecated| flag(&deprecated.bind_to_port, true));
    let listener = Listener {
        id,
        name: from.name.as_str().into(),
        addresses,
        bind_to_port: own_bind && old_bind,
        reuse_port: flag(&from.enable_reuse_port, true),
        backlog: wrapped(&from.tcp_backlog_size),
        freebind: flag(&from.freebind, false),
        transparent: flag(&from.transparent, false),
        direction: context.direction,
        use_original_dst: flag(&from.use_original_dst, false),
        inspect: inspect(context, from)?,
        inspect_timeout: bound(
            &from.listener_filters_timeout,
            "listener_filters_timeout",
            Some(Duration::from_secs(15)),
        )?,
        continue_on_inspect_timeout: from.continue_on_listener_filters_timeout,
        chains: table,
        buffer_limit: wrapped(&from.per_connection_buffer_limit_bytes).unwrap_or(1 << 20),
        access_log: access_log::access_logs(context, &from.access_log, "access_log")?,
        stats: ListenerStats::new(context.registry, scope),
    };
    Ok(CompiledListener { listener: Arc::new(listener), chains })
}

/// `listener.<stat_prefix, or the address with : turned into _>.`
fn scope(from: &proto::Listener, address: Option<&BindAddress>) -> Scope {
    let name = match (from.stat_prefix.as_str(), address) {
        ("", Some(BindAddress::Ip { address, .. })) => address.to_string(),
        ("", Some(BindAddress::Unix { path, .. })) => path.display().to_string(),
        (prefix, _) => prefix.to_owned(),
    };
    let name = name.replace(':', "_");
    Scope {
        prefix: format!("listener.{name}."),
        stem: "listener.".into(),
        tags: vec![("envoy.listener_address", name)],
    }
}

fn inspect(context: &Context<'_>, from: &proto::Listener) -> Compiled<Inspect> {
    let mut inspect = Inspect::default();
    for (index, filter) in from.listener_filters.iter().enumerate() {
        (|| {
            let content = match &filter.config_type {
                Some(listener_filter::ConfigType::TypedConfig(content)) => content,
                Some(listener_filter::ConfigType::ConfigDiscovery(_)) => {
                    return Err(Fault::new("config_discovery", "ECDS is not supported; use typed_config"));
                }
                None => return Err(Fault::new("typed_config", "value is required")),
            };
            if any::is::<TlsInspector>(content) {
                inspect.tls = true;
                let scope = Scope { prefix: "tls_inspector.".into(), stem: "tls_inspector.".into(), tags: Vec::new() };
                inspect.tls_stats = Some(TlsInspectorStats::new(context.registry, scope));
            } else if any::is::<HttpInspector>(content) {
                inspect.http = true;
                let scope =
                    Scope { prefix: "http_inspector.".into(), stem: "http_inspector.".into(), tags: Vec::new() };
                inspect.http_stats = Some(HttpInspectorStats::new(context.registry, scope));
            } else if any::is::<OriginalDst>(content) {
                if inspect.proxy_protocol.is_some() {
                    return Err(Fault::new(
                        "typed_config",
                        "must come before proxy_protocol, which says where the connection went",
                    ));
                }
                inspect.original_dst = true;
            } else if any::is::<ProxyProtocol>(content) {
                let reason = if inspect.proxy_protocol.is_some() {
                    Some("a connection has one header of the PROXY protocol; leave the second filter out")
                } else if inspect.tls || inspect.http {
                    Some("the header comes before what tls_inspector and http_inspector look at; put this filter first")
                } else if flag(&from.use_original_dst, false) {
                    Some("is not supported together with use_original_dst; put it into the listeners that take over")
                } else {
                    None
                };
                if let Some(reason) = reason {
                    return Err(Fault::new("typed_config", reason));
                }
                let compiled = unpack(content).and_then(|config| proxy_protocol::downstream(context, &config));
                inspect.proxy_protocol = Some(Arc::new(compiled.within("typed_config")?));
            } else {
                return Err(Fault::new(
                    "typed_config",
                    format!("listener filter {} is not supported", content.type_url),
                ));
            }
            Ok(())
        })()
        .at("listener_filters", index)?;
    }
    Ok(inspect)
}

/// `FilterChainMatch`
pub(crate) fn criteria(from: &FilterChainMatch) -> Compiled<ChainMatch> {
    let destination_port = match wrapped(&from.destination_port) {
        None => None,
        Some(port @ 1..=65_535) => u16::try_from(port).ok(),
        Some(port) => {
            return Err(Fault::new("destination_port", format!("value must be inside range [1, 65535], not {port}")));
        }
    };
    let mut server_names = Vec::with_capacity(from.server_names.len());
    for (index, name) in from.server_names.iter().enumerate() {
        let rest = name.strip_prefix("*.").unwrap_or(name);
        if rest.is_empty() || rest.contains('*') {
            return Err(Fault::new(
                format!("server_names[{index}]"),
                format!("{name:?}: partial wildcards are not supported in \"server_names\"; give a name or *.suffix"),
            ));
        }
        server_names.push(name.to_ascii_lowercase().into());
    }
    let mut source_ports = Vec::with_capacity(from.source_ports.len());
    for (index, port) in from.source_ports.iter().enumerate() {
        let port = u16::try_from(*port).ok().filter(|port| *port > 0).ok_or_else(|| {
            Fault::new(format!("source_ports[{index}]"), format!("value must be inside range [1, 65535], not {port}"))
        })?;
        source_ports.push(port);
    }
    Ok(ChainMatch {
        destination_port,
        destination_ips: address::cidrs(&from.prefix_ranges, "prefix_ranges")?,
        server_names,
        transport_protocol: (!from.transport_protocol.is_empty()).then(|| from.transport_protocol.as_str().into()),
        application_protocols: from.application_protocols.iter().map(|protocol| protocol.as_str().into()).collect(),
        direct_source_ips: address::cidrs(&from.direct_source_prefix_ranges, "direct_source_prefix_ranges")?,
        source_type: match enumeration(from.source_type, "source_type")? {
            ConnectionSourceType::Any => None,
            ConnectionSourceType::SameIpOrLoopback => Some(SourceType::SameIpOrLoopback),
            ConnectionSourceType::External => Some(SourceType::External),
        },
        source_ips: address::cidrs(&from.source_prefix_ranges, "source_prefix_ranges")?,
        source_ports,
    })
}

fn chain(
    context: &mut Context<'_>,
    from: &proto::FilterChain,
    id: ChainId,
    hash: u64,
    scope: &Scope,
    route_ids: http::RouteIds<'_>,
) -> Compiled<CompiledChain> {
    let tls = match &from.transport_socket {
        None => None,
        Some(socket) => {
            let ssl = Scope {
                prefix: format!("{}ssl.", scope.prefix),
                stem: "listener.ssl.".into(),
                tags: scope.tags.clone(),
            };
            match tls::downstream(context, socket, ssl).within("transport_socket")? {
                Transport::Plain => None,
                Transport::Tls(binding) => Some(binding),
            }
        }
    };
    let mut filters = Vec::new();
    let mut routes = None;
    let mut terminal = Terminal::Close;
    if let Some((last, others)) = from.filters.split_last() {
        for (index, filter) in others.iter().enumerate() {
            if content(filter).and_then(kafka::is_counter).at("filters", index)? {
                continue;
            }
            filters.push(network_filter(context, filter).at("filters", index)?);
        }
        (terminal, routes) = self::terminal(context, last, route_ids).at("filters", others.len())?;
    }
    let chain = FilterChain {
        id,
        name: from.name.as_str().into(),
        tls: tls.as_ref().map(|binding| binding.handle.clone()),
        handshake_timeout: positive(&from.transport_socket_connect_timeout, "transport_socket_connect_timeout")?,
        filters,
        terminal,
        demands: tls.as_ref().map_or(0, |binding| binding.demands),
        denials: from.metadata.as_ref().and_then(denials::denials),
    };
    let rds = match (&chain.terminal, &routes) {
        (Terminal::Http(manager), Some(Routes::Rds(name, _))) => {
            Some(RouteStats::new(context.registry, &manager.stats.group().scope, name))
        }
        _ => None,
    };
    Ok(CompiledChain { chain: Arc::new(chain), tls, routes, rds, hash })
}

fn content(from: &proto::Filter) -> Compiled<&shika_proto::google::protobuf::Any> {
    match &from.config_type {
        Some(filter::ConfigType::TypedConfig(content)) => Ok(content),
        Some(filter::ConfigType::ConfigDiscovery(_)) => {
            Err(Fault::new("config_discovery", "ECDS is not supported; use typed_config"))
        }
        None => Err(Fault::new("typed_config", "value is required")),
    }
}

fn network_filter(context: &Context<'_>, from: &proto::Filter) -> Compiled<NetworkFilter> {
    let content = content(from)?;
    if any::is::<Rbac>(content) {
        let config: Rbac = unpack(content).within("typed_config")?;
        return Ok(NetworkFilter::Rbac(Arc::new(rbac::network(context, &config).within("typed_config")?)));
    }
    if any::is::<LocalRateLimit>(content) {
        let limit = unpack(content).and_then(|config| network::local_rate_limit(context, &config));
        return Ok(NetworkFilter::LocalRateLimit(Arc::new(limit.within("typed_config")?)));
    }
    if any::is::<SetFilterState>(content) {
        let rules = unpack(content).and_then(|config| network::set_filter_state(context, &config));
        return Ok(NetworkFilter::SetFilterState(Arc::new(rules.within("typed_config")?)));
    }
    let terminal = any::is::<ProtoTcpProxy>(content)
        || any::is::<HttpConnectionManager>(content)
        || any::is::<DirectResponse>(content)
        || any::is::<Echo>(content);
    Err(Fault::new(
        "typed_config",
        if terminal {
            format!(
                "terminal filter named {} of type {} must be the last filter in a network filter chain",
                from.name, content.type_url
            )
        } else {
            format!("network filter {} is not supported", content.type_url)
        },
    ))
}

fn terminal(
    context: &mut Context<'_>,
    from: &proto::Filter,
    route_ids: http::RouteIds<'_>,
) -> Compiled<(Terminal, Option<Routes>)> {
    let content = content(from)?;
    (|| {
        if any::is::<HttpConnectionManager>(content) {
            let (manager, routes) = http::manager(context, &unpack(content)?, route_ids)?;
            Ok((Terminal::Http(Arc::new(manager)), Some(routes)))
        } else if any::is::<ProtoTcpProxy>(content) {
            Ok((Terminal::Tcp(Arc::new(tcp(context, &unpack(content)?)?)), None))
        } else if any::is::<DirectResponse>(content) {
            let config: DirectResponse = unpack(content)?;
            let bytes = match &config.response {
                None => Bytes::new(),
                Some(response) => Bytes::from(source::data(response).within("response")?.bytes),
            };
            Ok((Terminal::DirectResponse(bytes), None))
        } else if any::is::<Echo>(content) {
            Ok((Terminal::Echo, None))
        } else if any::is::<Rbac>(content) || any::is::<LocalRateLimit>(content) || any::is::<SetFilterState>(content) {
            Err(Fault::new(
                "",
                format!(
                    "non-terminal filter named {} of type {} is the last filter in a network filter chain",
                    from.name, content.type_url
                ),
            ))
        } else {
            Err(Fault::new("", format!("network filter {} is not supported", content.type_url)))
        }
    })()
    .within("typed_config")
}

/// `filters.network.tcp_proxy.v3.TcpProxy`
fn tcp(context: &mut Context<'_>, from: &ProtoTcpProxy) -> Compiled<TcpProxy> {
    let stat_prefix = non_empty(&from.stat_prefix, "stat_prefix")?;
    let asked = labels::namespace(from.metadata_match.as_ref(), labels::LB);
    let clusters = match &from.cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            let (id, name) = context.clusters.intern(non_empty(name, "cluster")?);
            ClusterChoice::One { id, name }
        }
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => {
            tcp_weighted(context, asked.as_deref(), &weighted.clusters).within("weighted_clusters")?
        }
        None => return Err(Fault::new("cluster_specifier", "value is required")),
    };
    let max_connect_attempts = match wrapped(&from.max_connect_attempts) {
        Some(0) => return Err(Fault::new("max_connect_attempts", "value must be greater than or equal to 1")),
        Some(attempts) => attempts,
        None => 1,
    };
    let (mut log_on_connected, mut on_start, mut interval) =
        (from.flush_access_log_on_connected, false, from.access_log_flush_interval.is_some());
    if let Some(options) = &from.access_log_options {
        log_on_connected |= options.flush_access_log_on_connected;
        on_start = options.flush_access_log_on_start;
        interval |= options.access_log_flush_interval.is_some();
    }
    if on_start || interval {
        return Err(Fault::new("access_log_options", "log lines at the start and at intervals are not supported"));
    }
    let scope = Scope {
        prefix: format!("tcp.{stat_prefix}."),
        stem: "tcp.".into(),
        tags: vec![("envoy.tcp_prefix", stat_prefix.to_owned())],
    };
    Ok(TcpProxy {
        stats: TcpStats::new(context.registry, scope),
        clusters,
        labels: asked,
        hash_source_ip: hash::source_ip(&from.hash_policy)?,
        idle_timeout: bound(&from.idle_timeout, "idle_timeout", Some(Duration::from_secs(3_600)))?,
        max_duration: positive(&from.max_downstream_connection_duration, "max_downstream_connection_duration")?,
        max_connect_attempts,
        access_log: access_log::access_logs(context, &from.access_log, "access_log")?,
        log_on_connected,
    })
}

fn tcp_weighted(
    context: &mut Context<'_>,
    asked: Option<&Labels>,
    from: &[proto_tcp::tcp_proxy::weighted_cluster::ClusterWeight],
) -> Compiled<ClusterChoice> {
    if from.is_empty() {
        return Err(Fault::new("clusters", "value must contain at least 1 item(s)"));
    }
    let mut total: u32 = 0;
    let mut clusters = Vec::with_capacity(from.len());
    for (index, one) in from.iter().enumerate() {
        let name = non_empty(&one.name, "name").at("clusters", index)?;
        if one.weight == 0 {
            return Err(Fault::new(format!("clusters[{index}].weight"), "value must be greater than or equal to 1"));
        }
        total = total
            .checked_add(one.weight)
            .ok_or_else(|| Fault::new("clusters", "The sum of weights of all weighted clusters exceeds 4294967295"))?;
        let (id, name) = context.clusters.intern(name);
        clusters.push(WeightedCluster {
            id,
            name,
            weight: one.weight,
            labels: match (asked, labels::namespace(one.metadata_match.as_ref(), labels::LB)) {
                (Some(asked), Some(own)) => Some(Arc::new(asked.clone().with(&own))),
                (Some(asked), None) => Some(Arc::new(asked.clone())),
                (None, own) => own,
            },
            host_rewrite: None,
            request_headers: Default::default(),
            response_headers: Default::default(),
            filters: Default::default(),
        });
    }
    Ok(ClusterChoice::Weighted { clusters, total })
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
