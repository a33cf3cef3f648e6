//! `config.listener.v3.Listener` and its filter chains.

mod tcp;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt};
use prost::Message;
use shika_data::{
    model::{
        ChainId, ListenerId, RouteTableId,
        chain_match::{ChainMatch, ChainTable, SourceType},
        listener::{BindAddress, FilterChain, Listener, NetworkFilter, Terminal, TrafficDirection},
    },
    stats::{ListenerStats, Scope},
};
use shika_proto::{
    any,
    envoy::{
        config::{
            core::v3::TrafficDirection as ProtoDirection,
            listener::v3::{self as proto, FilterChainMatch, filter, filter_chain_match::ConnectionSourceType},
        },
        extensions::filters::network::{
            direct_response::v3::Config as DirectResponse, echo::v3::Echo,
            http_connection_manager::v3::HttpConnectionManager, local_ratelimit::v3::LocalRateLimit, rbac::v3::Rbac,
            set_filter_state::v3::Config as SetFilterState, tcp_proxy::v3::TcpProxy as ProtoTcpProxy,
        },
    },
};

use super::{
    Compiled, Context, Fault, Within, access_log, address, bound, datagram, denials, enumeration,
    filter::{network, rbac},
    flag,
    http::{self, Routes},
    kafka, listener_filters, positive, required, source,
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
    let scope = scope(from, addresses.first());
    let datagrams = datagram::datagrams(context, from, &addresses, &scope)?;
    if datagrams.is_none() && from.filter_chains.is_empty() && from.default_filter_chain.is_none() {
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
        // The filter of a UDP listener is none of those that look at connections.
        inspect: if datagrams.is_none() {
            listener_filters::inspect(context, from)?
        } else {
            shika_data::model::listener::Inspect::default()
        },
        inspect_timeout: bound(
            &from.listener_filters_timeout,
            "listener_filters_timeout",
            Some(Duration::from_secs(15)),
        )?,
        continue_on_inspect_timeout: from.continue_on_listener_filters_timeout,
        chains: table,
        connection_limit: (context.connection_limit)(&from.name),
        ignores_global_limit: from.ignore_global_conn_limit,
        datagrams,
        buffer_limit: wrapped(&from.per_connection_buffer_limit_bytes).unwrap_or(1 << 20),
        access_log: access_log::access_logs(context, &from.access_log, "access_log")?,
        stats: ListenerStats::new(context.registry, scope),
    };
    Ok(CompiledListener { listener: Arc::new(listener), chains })
}

/// `listener.<stat_prefix, or the address with : turned into _>.`
fn scope(from: &proto::Listener, address: Option<&BindAddress>) -> Scope {
    let name = match (from.stat_prefix.as_str(), address) {
        ("", Some(BindAddress::Ip { address, .. } | BindAddress::Udp(address))) => address.to_string(),
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
            Ok((Terminal::Tcp(Arc::new(tcp::tcp_proxy(context, &unpack(content)?)?)), None))
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

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
