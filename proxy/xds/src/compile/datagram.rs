//! UDP listeners, and `filters.udp.dns_filter.v3.DnsFilterConfig` in them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use shika_data::{
    model::{
        dns::{Addresses, DEFAULT_TTL, DnsTable},
        listener::{BindAddress, Datagrams},
    },
    stats::{DnsFilterStats, Scope, UdpListenerStats},
};
use shika_proto::{
    any,
    envoy::{
        config::listener::v3::{Listener, listener_filter},
        data::dns::v3::dns_table::{DnsVirtualDomain, dns_endpoint},
        extensions::filters::udp::dns_filter::v3::{
            DnsFilterConfig, dns_filter_config::server_context_config::ConfigSource,
        },
    },
};

use super::{Compiled, Context, Fault, Within, duration, non_empty, required, unpack};

/// Shortest TTL, as Envoy has it.
const SHORTEST_TTL: Duration = Duration::from_secs(30);

/// What a listener with these addresses does with datagrams; `None`: its addresses take connections.
pub(super) fn datagrams(
    context: &Context<'_>,
    from: &Listener,
    addresses: &[BindAddress],
    scope: &Scope,
) -> Compiled<Option<Datagrams>> {
    let udp = |address: &BindAddress| matches!(address, BindAddress::Udp(_));
    if !addresses.iter().any(udp) {
        return Ok(None);
    }
    if !addresses.iter().all(udp) {
        return Err(Fault::new("additional_addresses", "all addresses of a listener have to be UDP, or none"));
    }
    if !from.filter_chains.is_empty() || from.default_filter_chain.is_some() {
        return Err(Fault::new(
            "filter_chains",
            format!("error adding listener '{}': filter chains are for connections, not for UDP", from.name),
        ));
    }
    let dns = match from.listener_filters.as_slice() {
        [] => None,
        [filter] => Some(
            (|| {
                let Some(listener_filter::ConfigType::TypedConfig(content)) = &filter.config_type else {
                    return Err(Fault::new("typed_config", "value is required"));
                };
                if !any::is::<DnsFilterConfig>(content) {
                    return Err(Fault::new(
                        "typed_config",
                        format!("UDP filter {} is not supported", content.type_url),
                    ));
                }
                unpack(content).and_then(|config| table(context, &config)).within("typed_config")
            })()
            .at("listener_filters", 0)?,
        ),
        _ => return Err(Fault::new("listener_filters[1]", "a UDP listener has one filter")),
    };
    let stats = UdpListenerStats::new(
        context.registry,
        Scope { prefix: format!("{}udp.", scope.prefix), stem: "listener.udp.".into(), tags: scope.tags.clone() },
    );
    Ok(Some(Datagrams { dns, stats }))
}

fn table(context: &Context<'_>, from: &DnsFilterConfig) -> Compiled<DnsTable> {
    let prefix = non_empty(&from.stat_prefix, "stat_prefix")?;
    let scope = Scope {
        prefix: format!("dns_filter.{prefix}."),
        stem: "dns_filter.".into(),
        tags: vec![("envoy.dns_filter_prefix", prefix.to_owned())],
    };
    let mut table = DnsTable::new(from.case_insensitive, DnsFilterStats::new(context.registry, scope));
    let source = from.server_config.as_ref().and_then(|server| server.config_source.as_ref());
    if let Some(ConfigSource::InlineDnsTable(names)) = source {
        for (index, domain) in names.virtual_domains.iter().enumerate() {
            self::domain(&mut table, domain)
                .at("virtual_domains", index)
                .within("inline_dns_table")
                .within("server_config")?;
        }
    }
    Ok(table)
}

fn domain(table: &mut DnsTable, from: &DnsVirtualDomain) -> Compiled<()> {
    non_empty(&from.name, "name")?;
    let ttl = match duration(&from.answer_ttl, "answer_ttl")? {
        None => DEFAULT_TTL,
        Some(ttl) if ttl < SHORTEST_TTL => {
            return Err(Fault::new("answer_ttl", "value must be greater than or equal to 30s"));
        }
        Some(ttl) => ttl,
    };
    let mut addresses = Addresses { v4: Vec::<Ipv4Addr>::new(), v6: Vec::<Ipv6Addr>::new(), ttl };
    (|| {
        let list = match required(&from.endpoint, "").and_then(|endpoint| required(&endpoint.endpoint_config, ""))? {
            dns_endpoint::EndpointConfig::AddressList(list) => list,
            dns_endpoint::EndpointConfig::ClusterName(_) => {
                return Err(Fault::new(
                    "cluster_name",
                    "answers from a cluster's endpoints are not supported; give addresses",
                ));
            }
            dns_endpoint::EndpointConfig::ServiceList(_) => {
                return Err(Fault::new("service_list", "SRV records are not supported; give addresses"));
            }
        };
        if list.address.is_empty() {
            return Err(Fault::new("address_list.address", "value must contain at least 1 item(s)"));
        }
        for (index, address) in list.address.iter().enumerate() {
            match address.parse() {
                Ok(IpAddr::V4(v4)) => addresses.v4.push(v4),
                Ok(IpAddr::V6(v6)) => addresses.v6.push(v6),
                Err(_) => {
                    return Err(Fault::new(
                        format!("address_list.address[{index}]"),
                        format!("malformed IP address: {address}"),
                    ));
                }
            }
        }
        Ok(())
    })()
    .within("endpoint")?;
    table.add(&from.name, addresses);
    Ok(())
}

#[cfg(test)]
#[path = "datagram_tests.rs"]
mod tests;
