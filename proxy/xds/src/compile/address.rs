//! `core.v3.Address`, `CidrRange`, `BindConfig`, `TcpKeepalive`.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use shika_data::model::{cluster::Keepalive, listener::BindAddress};
use shika_proto::envoy::config::core::v3::{
    Address, BindConfig, CidrRange, SocketAddress, TcpKeepalive, address, socket_address,
};

use super::{Compiled, Fault, Within, enumeration, non_empty, wrapped};

/// An address with a host that may still be a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// IP address and port.
    Ip(SocketAddr),
    /// Host name and port.
    Name(String, u16),
    /// Unix socket.
    Unix(PathBuf),
}

/// The port of a socket address.
fn port(socket: &SocketAddress) -> Compiled<u16> {
    match &socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(*port)
            .map_err(|_| Fault::new("port_value", format!("value must be less than or equal to 65535, not {port}"))),
        Some(socket_address::PortSpecifier::NamedPort(_)) => {
            Err(Fault::new("named_port", "named ports need a custom resolver, which is not supported; give port_value"))
        }
        None => Err(Fault::new("port_value", "value is required")),
    }
}

fn is_udp(socket: &SocketAddress) -> Compiled<bool> {
    Ok(enumeration::<socket_address::Protocol>(socket.protocol, "protocol")? == socket_address::Protocol::Udp)
}

fn check_tcp(socket: &SocketAddress) -> Compiled<()> {
    if is_udp(socket)? {
        return Err(Fault::new("protocol", "UDP is supported for listeners only"));
    }
    Ok(())
}

/// An address to bind to.
pub(crate) fn bind(address: &Address) -> Compiled<BindAddress> {
    match &address.address {
        Some(address::Address::SocketAddress(socket)) => (|| {
            let ip = literal(&socket.address)?;
            if is_udp(socket)? {
                if socket.ipv4_compat {
                    return Err(Fault::new("ipv4_compat", "is not supported for UDP; give both addresses"));
                }
                return Ok(BindAddress::Udp(SocketAddr::new(ip, port(socket)?)));
            }
            Ok(BindAddress::Ip { address: SocketAddr::new(ip, port(socket)?), ipv4_compat: socket.ipv4_compat })
        })()
        .within("socket_address"),
        Some(address::Address::Pipe(pipe)) => {
            non_empty(&pipe.path, "path").within("pipe")?;
            if pipe.mode > 0o777 {
                return Err(Fault::new("pipe.mode", "value must be less than or equal to 511 (octal 777)"));
            }
            Ok(BindAddress::Unix { path: PathBuf::from(&pipe.path), mode: (pipe.mode != 0).then_some(pipe.mode) })
        }
        Some(address::Address::EnvoyInternalAddress(_)) => {
            Err(Fault::new("envoy_internal_address", "internal listeners are not supported"))
        }
        None => Err(Fault::new("", "value is required")),
    }
}

/// An address to connect to.
pub(crate) fn target(address: &Address) -> Compiled<Target> {
    match &address.address {
        Some(address::Address::SocketAddress(socket)) => (|| {
            check_tcp(socket)?;
            non_empty(&socket.address, "address")?;
            if !socket.resolver_name.is_empty() {
                return Err(Fault::new("resolver_name", "custom resolvers are not supported"));
            }
            let port = port(socket)?;
            Ok(match socket.address.parse::<IpAddr>() {
                Ok(ip) => Target::Ip(SocketAddr::new(ip, port)),
                Err(_) => Target::Name(socket.address.clone(), port),
            })
        })()
        .within("socket_address"),
        Some(address::Address::Pipe(pipe)) => {
            non_empty(&pipe.path, "path").within("pipe")?;
            Ok(Target::Unix(PathBuf::from(&pipe.path)))
        }
        Some(address::Address::EnvoyInternalAddress(_)) => {
            Err(Fault::new("envoy_internal_address", "internal listeners are not supported"))
        }
        None => Err(Fault::new("", "value is required")),
    }
}

fn literal(text: &str) -> Compiled<IpAddr> {
    non_empty(text, "address")?
        .parse()
        .map_err(|_| Fault::new("address", format!("malformed IP address: {text}. Consider setting resolver_name or setting cluster type to 'STRICT_DNS' or 'LOGICAL_DNS'")))
}

/// A CIDR range. A host part behind the prefix is cut off, as in Envoy.
pub(crate) fn cidr(range: &CidrRange) -> Compiled<IpNet> {
    let ip: IpAddr = range
        .address_prefix
        .parse()
        .map_err(|_| Fault::new("address_prefix", format!("malformed IP address: {:?}", range.address_prefix)))?;
    let length = wrapped(&range.prefix_len).unwrap_or(0);
    let widest = if ip.is_ipv4() { 32 } else { 128 };
    let net = u8::try_from(length).ok().and_then(|length| IpNet::new(ip, length).ok());
    net.map(|net| net.trunc())
        .ok_or_else(|| Fault::new("prefix_len", format!("value must be less than or equal to {widest}, not {length}")))
}

/// A list of CIDR ranges in the field `field`.
pub(crate) fn cidrs(ranges: &[CidrRange], field: &str) -> Compiled<Vec<IpNet>> {
    ranges.iter().enumerate().map(|(index, range)| cidr(range).at(field, index)).collect()
}

/// The source address of connections. A port other than 0 is refused: all connections to one peer would collide.
pub(crate) fn source(config: &BindConfig) -> Compiled<Option<IpAddr>> {
    let Some(socket) = &config.source_address else { return Ok(None) };
    (|| {
        check_tcp(socket)?;
        if port(socket)? != 0 {
            return Err(Fault::new("port_value", "a fixed source port is not supported; give 0"));
        }
        Ok(Some(literal(&socket.address)?))
    })()
    .within("source_address")
}

/// TCP keep-alive.
pub(crate) fn keepalive(options: &TcpKeepalive) -> Keepalive {
    let seconds = |value: Option<u32>| value.filter(|value| *value > 0).map(|value| Duration::from_secs(value.into()));
    Keepalive {
        probes: wrapped(&options.keepalive_probes).filter(|probes| *probes > 0),
        time: seconds(wrapped(&options.keepalive_time)),
        interval: seconds(wrapped(&options.keepalive_interval)),
    }
}
