//! What is to be redirected, as one plain value that any firewall can be told: the settings checked and looked up on the host.

use std::{fs, net::IpAddr};

use ipnet::IpNet;

use super::{
    config::{self, Config, IpFamilyMode},
    host::{self, Host},
};

/// Source of the proxy's connections to applications on its own host, so that they are not redirected again (Kuma's
/// `InboundPassthroughCIDR`).
pub const INBOUND_SOURCE_V4: &str = "127.0.0.6/32";
/// The same in IPv6.
pub const INBOUND_SOURCE_V6: &str = "::6/128";

/// Everything that the rules are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirection {
    /// User that the proxy runs with.
    pub uid: u32,
    /// Firewall mark of the proxy's packets, where it sets one.
    pub mark: Option<u32>,
    /// Name of the loopback interface.
    pub loopback: String,
    /// Whether IPv6 is redirected besides IPv4.
    pub ipv6: bool,
    /// Incoming TCP.
    pub inbound: Inbound,
    /// Outgoing TCP.
    pub outbound: Outbound,
    /// Outgoing DNS queries, where they are redirected.
    pub dns: Option<Dns>,
    /// The proxy's DNS port; virtual networks use it even without `dns`.
    pub dns_port: u16,
    /// Virtual networks, by interface name.
    pub networks: Vec<Network>,
    /// Drop packets that conntrack finds invalid.
    pub drop_invalid: bool,
    /// syslog level at which packets are logged.
    pub log_level: Option<u8>,
    /// Whether rules carry comments.
    pub comments: bool,
}

/// Incoming TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Whether it is redirected.
    pub enabled: bool,
    /// The proxy's port.
    pub port: u16,
    /// Where not empty: these ports alone.
    pub include_ports: Vec<u16>,
    /// Not these ports; of no effect beside `include_ports`.
    pub exclude_ports: Vec<u16>,
    /// Not from these sources.
    pub exclude_sources: Vec<IpNet>,
    /// Before the rules of others.
    pub first: bool,
}

/// Outgoing TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Whether it is redirected.
    pub enabled: bool,
    /// The proxy's port.
    pub port: u16,
    /// Where not empty: these ports alone.
    pub include_ports: Vec<u16>,
    /// Not these ports; of no effect beside `include_ports`.
    pub exclude_ports: Vec<u16>,
    /// What neither TCP nor DNS redirection touches.
    pub exclusions: Vec<Exclusion>,
    /// Before the rules of others.
    pub first: bool,
}

/// Outgoing traffic that is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exclusion {
    /// Of some users, to some ports.
    Owner {
        /// Of this protocol.
        transport: Transport,
        /// To these ports.
        ports: Vec<PortRange>,
        /// Of these users.
        uids: UidRange,
    },
    /// To an address or network, whatever the protocol.
    Destination(IpNet),
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Ports from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// UIDs from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UidRange {
    /// The lowest.
    pub first: u32,
    /// The highest.
    pub last: u32,
}

/// Outgoing DNS queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Which queries.
    pub queries: Queries,
    /// Whether queries of applications and of the proxy are tracked in zones of their own: both may use one source port at one time.
    pub zone_split: bool,
    /// With iptables: where the proxy's own queries go on to.
    pub upstream_chain: Option<String>,
}

/// Which DNS queries are redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Those to any server.
    All,
    /// Those to these servers.
    To(Vec<IpAddr>),
}

/// A virtual network behind this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Interface name; `+` at its end stands for any rest.
    pub interface: String,
    /// Its own addresses: traffic among them is left alone.
    pub cidr: IpNet,
}

impl Redirection {
    /// Checks the settings against the host. The second value holds what the user should know though nothing is wrong.
    ///
    /// # Errors
    /// Every setting that cannot be honoured, with its path and the reason.
    pub fn new(config: &Config, host: &Host) -> Result<(Redirection, Vec<String>), Vec<String>> {
        let mut errors = refusals(config);
        let mut notes = Vec::new();
        let mut keep = |result: Result<(), String>| errors.extend(result.err());

        let mut uid = host::DEFAULT_UID;
        keep(host.uid(&config.kuma_dp_user).map(|found| uid = found));
        let mut exclude_sources = Vec::new();
        keep(
            networks_of(&config.inbound.exclude_ports_for_ips)
                .map(|networks| exclude_sources = networks)
                .map_err(|error| format!("redirect.inbound.excludePortsForIPs: {error}")),
        );
        let mut exclusions = Vec::new();
        for entry in &config.outbound.exclude_ports_for_uids {
            keep(
                owner_exclusions(entry)
                    .map(|parsed| exclusions.extend(parsed))
                    .map_err(|error| format!("redirect.outbound.excludePortsForUIDs: `{entry}`: {error}")),
            );
        }
        keep(
            networks_of(&config.outbound.exclude_ports_for_ips)
                .map(|networks| exclusions.extend(networks.into_iter().map(Exclusion::Destination)))
                .map_err(|error| format!("redirect.outbound.excludePortsForIPs: {error}")),
        );
        let mut networks = Vec::new();
        for entry in &config.networks {
            keep(
                network(entry)
                    .map(|network| networks.push(network))
                    .map_err(|error| format!("redirect.vnet.networks: `{entry}`: {error}")),
            );
        }
        networks.sort_by(|a, b| a.interface.cmp(&b.interface));
        let mut captured = None;
        keep(dns(config, host, &mut notes).map(|dns| captured = dns));
        if !errors.is_empty() {
            return Err(errors);
        }

        let ipv6 = config.ip_family_mode == IpFamilyMode::DualStack && host.ipv6;
        if config.ip_family_mode == IpFamilyMode::DualStack && !host.ipv6 {
            notes.push("no interface has an IPv6 address: IPv6 is not redirected".into());
        }
        let redirection = Redirection {
            uid,
            mark: (config.proxy_mark != 0).then_some(config.proxy_mark),
            loopback: host.loopback.clone(),
            ipv6,
            inbound: Inbound {
                enabled: config.inbound.enabled,
                port: config.inbound.port,
                include_ports: config.inbound.include_ports.clone(),
                exclude_ports: config.inbound.exclude_ports.clone(),
                exclude_sources,
                first: config.inbound.insert_redirect_instead_of_append,
            },
            outbound: Outbound {
                enabled: config.outbound.enabled,
                port: config.outbound.port,
                include_ports: config.outbound.include_ports.clone(),
                exclude_ports: config.outbound.exclude_ports.clone(),
                exclusions,
                first: config.outbound.insert_redirect_instead_of_append,
            },
            dns: captured,
            dns_port: config.dns.port,
            networks,
            drop_invalid: config.drop_invalid_packets,
            log_level: config.log_enabled.then_some(config.log_level as u8),
            comments: !config.comments_disabled,
        };
        Ok((redirection, notes))
    }
}

/// Settings that are known but not honoured, and those with values out of bounds.
fn refusals(config: &Config) -> Vec<String> {
    let mut errors = Vec::new();
    let mut refuse = |set: bool, error: &str| {
        if set {
            errors.push(error.to_owned());
        }
    };
    refuse(config.ebpf_enabled, "ebpf.enabled: there is no eBPF mode; leave it out and the kernel's nftables are used");
    refuse(
        config.store_firewalld,
        "storeFirewalld: firewalld does not touch these rules, which have a table of their own; to have them after a restart of the host, \
         run this command at boot (systemd unit shika-transparent-proxy.service)",
    );
    refuse(
        !config.inbound.exclude_ports_for_uids.is_empty(),
        "redirect.inbound.excludePortsForUIDs: an incoming connection has no user yet; exclude its port or its source address",
    );
    refuse(config.log_level > 7, "log.level: a syslog level is 0 to 7");
    errors
}

fn dns(config: &Config, host: &Host, notes: &mut Vec<String>) -> Result<Option<Dns>, String> {
    let dns = &config.dns;
    if !dns.enabled && !dns.capture_all {
        return Ok(None);
    }
    let mut zone_split = !dns.skip_conntrack_zone_split;
    if zone_split && dns.capture_all && host.docker_dns {
        // Docker answers from a port of its own, which a rule for port 53 does not put into the zone.
        notes.push("Docker rewrites the DNS queries of this namespace: conntrack zones are not split".into());
        zone_split = false;
    }
    let queries = if dns.capture_all {
        Queries::All
    } else {
        let text = fs::read_to_string(&dns.resolv_config_path)
            .map_err(|error| format!("redirect.dns.resolvConfigPath: {}: {error}", dns.resolv_config_path))?;
        let servers = host::dns_servers(&text);
        for (name, found) in
            [("IPv4", servers.iter().any(IpAddr::is_ipv4)), ("IPv6", servers.iter().any(IpAddr::is_ipv6))]
        {
            if !found {
                notes.push(format!(
                    "{} names no {name} server: DNS over {name} is not redirected",
                    dns.resolv_config_path
                ));
            }
        }
        Queries::To(servers)
    };
    let chain = dns.upstream_target_chain.as_str();
    let upstream_chain = match chain {
        "" => host.docker_dns.then(|| "DOCKER_OUTPUT".to_owned()),
        "RETURN" => None,
        _ if chain.len() <= 28 && chain.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') => {
            Some(chain.to_owned())
        }
        _ => return Err(format!("redirect.dns.upstreamTargetChain: `{chain}` is not the name of a chain")),
    };
    Ok(Some(Dns { queries, zone_split, upstream_chain }))
}

fn networks_of(entries: &[String]) -> Result<Vec<IpNet>, String> {
    let words = entries.iter().flat_map(|entry| entry.split(',')).map(str::trim).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let parsed = word.parse::<IpNet>().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from));
            parsed
                .map(|network| network.trunc())
                .ok_or(format!("`{word}` is neither an address nor a network such as `10.0.0.0/8` or `fd00::/8`"))
        })
        .collect()
}

/// `[protocol:][ports:]uids`. An entry without a protocol stands for TCP and UDP.
fn owner_exclusions(entry: &str) -> Result<Vec<Exclusion>, String> {
    let parts: Vec<&str> = entry.split(':').map(str::trim).collect();
    let (protocols, ports, uids) = match parts.as_slice() {
        [uids] => ("*", "*", *uids),
        [ports, uids] => ("*", *ports, *uids),
        [protocols, ports, uids] => (*protocols, *ports, *uids),
        _ => return Err("expected `protocol:ports:uids`, where protocol and ports may be left out".into()),
    };
    if uids == "*" {
        return Err("`*` is not allowed for UIDs".into());
    }
    if uids.contains(',') {
        return Err(format!("`{uids}`: one UID or one range; give a further entry for others"));
    }
    let uids = match uids.split_once('-') {
        Some((first, last)) => UidRange { first: uid(first)?, last: uid(last)? },
        None => UidRange { first: uid(uids)?, last: uid(uids)? },
    };
    if uids.first > uids.last {
        return Err(format!("{}-{}: the range ends before it begins", uids.first, uids.last));
    }
    let ports = match ports {
        "" | "*" => vec![PortRange { first: 1, last: u16::MAX }],
        _ => {
            ports.split(',').map(str::trim).filter(|word| !word.is_empty()).map(port_range).collect::<Result<_, _>>()?
        }
    };
    let transports: Vec<Transport> = match protocols {
        "" | "*" => vec![Transport::Tcp, Transport::Udp],
        _ => protocols
            .split(',')
            .map(|word| match word.trim().to_ascii_lowercase().as_str() {
                "tcp" => Ok(Transport::Tcp),
                "udp" => Ok(Transport::Udp),
                _ => Err(format!("`{word}` is neither `tcp` nor `udp`")),
            })
            .collect::<Result<_, _>>()?,
    };
    Ok(transports.into_iter().map(|transport| Exclusion::Owner { transport, ports: ports.clone(), uids }).collect())
}

fn uid(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a UID"))
}

fn port_range(text: &str) -> Result<PortRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = PortRange { first: config::port(first)?, last: config::port(last)? };
    if range.first > range.last { Err(format!("`{text}`: the range ends before it begins")) } else { Ok(range) }
}

fn network(entry: &str) -> Result<Network, String> {
    let (interface, cidr) = entry.split_once(':').ok_or("expected `interface:CIDR`")?;
    let name = interface.strip_suffix('+').unwrap_or(interface);
    // Linux, IFNAMSIZ: 15 bytes and the terminator. The characters are those that no firewall's syntax trips over.
    if interface.is_empty()
        || name.len() > 15
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '@'))
    {
        return Err(format!("`{interface}` is not the name of an interface, or its start followed by `+`"));
    }
    let cidr: IpNet = cidr.parse().map_err(|_| format!("`{cidr}` is not a network such as `172.17.0.0/16`"))?;
    Ok(Network { interface: interface.to_owned(), cidr: cidr.trunc() })
}

#[cfg(test)]
#[path = "redirection_tests.rs"]
mod tests;
