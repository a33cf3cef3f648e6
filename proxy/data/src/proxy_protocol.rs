//! The header of the PROXY protocol: what comes before the first byte of a connection that another proxy passes on.
//!
//! Source: "The PROXY protocol, versions 1 & 2" (HAProxy, 2020/03/05); which of it is taken, Envoy listener filter `proxy_protocol`.
//!
//! ```text
//! version 1   PROXY TCP4 <source> <destination> <source port> <destination port> CR LF
//! version 2   12 bytes of signature | version, command | family, protocol | length of the rest (2 bytes) | addresses, ports | TLVs
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

/// Beginning of version 1.
const V1_SIGNATURE: &[u8] = b"PROXY ";
/// Beginning of version 2: no other protocol begins like this.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Fixed part of version 2.
const V2_HEADER: usize = 16;
/// Longest line of version 1, its end included. (The specification has 107.)
const V1_LONGEST: usize = 108;
/// Most bytes that follow the fixed part of version 2.
const V2_MOST: usize = u16::MAX as usize;

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Which versions are taken, and whether there must be a header at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// Version 1.
    pub v1: bool,
    /// Version 2.
    pub v2: bool,
    /// `allow_requests_without_proxy_protocol`: what begins like no version that is taken is served as it is.
    pub nothing: bool,
}

/// One type-length-value of version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tlv {
    /// Type.
    pub kind: u8,
    /// Value.
    pub value: Bytes,
}

/// Where a connection came from and where it went before it was passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Its client.
    pub source: SocketAddr,
    /// What the client had connected to.
    pub destination: SocketAddr,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How it was written.
    pub version: Version,
    /// Bytes that it takes.
    pub length: usize,
    /// `None`: the proxy speaks for itself (`LOCAL`, `UNKNOWN`), and the connection's own addresses count.
    pub addresses: Option<Addresses>,
    /// TLVs in their order; none of a header without addresses.
    pub tlvs: Vec<Tlv>,
}

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not to be told yet.
    More,
    /// No header, and there need not be one.
    Nothing,
    /// A header.
    Header(Header),
    /// A header of a version that is not taken.
    Disallowed(Version),
    /// Not what may begin a connection; `Some` if it had said to be a header of this version.
    Malformed(Option<Version>),
}

/// Reads a header as its bytes come.
#[derive(Debug, Default)]
pub struct Parser {
    /// Where the search for the end of a line goes on.
    searched: usize,
}

impl Parser {
    /// Goes on with all that has come of the connection until now. To be asked no more after an answer other than [`Progress::More`].
    pub fn parse(&mut self, bytes: &[u8], accepts: Accepts) -> Progress {
        if bytes.is_empty() {
            return Progress::More;
        }
        let maybe_v1 = begins(bytes, V1_SIGNATURE);
        let maybe_v2 = begins(bytes, V2_SIGNATURE);
        if accepts.nothing && !(accepts.v1 && maybe_v1) && !(accepts.v2 && maybe_v2) {
            return Progress::Nothing;
        }
        // As in Envoy, what is neither is found out when a header of version 2 could be there, or a line has ended.
        if let Some((fixed, rest)) = bytes.split_first_chunk::<V2_HEADER>() {
            if maybe_v2 {
                return if accepts.v2 { v2(fixed, rest) } else { Progress::Disallowed(Version::V2) };
            }
            if !maybe_v1 {
                return Progress::Malformed(None);
            }
        }
        if maybe_v2 {
            return Progress::More;
        }
        let end = bytes.get(self.searched..).and_then(|new| new.windows(2).position(|pair| pair == b"\r\n"));
        match end.map(|end| self.searched + end + 2) {
            // What does not begin like a header is none, whether its line ends before or after so many bytes.
            Some(length) if length > 2 && !maybe_v1 => Progress::Malformed(None),
            Some(length) if length <= V1_LONGEST && length > 2 => match bytes.get(..length) {
                Some(line) if accepts.v1 => v1(line).unwrap_or(Progress::Malformed(Some(Version::V1))),
                _ => Progress::Disallowed(Version::V1),
            },
            Some(length) if length > V1_LONGEST => Progress::Malformed(None),
            None if bytes.len() > V1_LONGEST => Progress::Malformed(None),
            // An empty line may still become the signature of version 2.
            Some(_) => Progress::More,
            None => {
                self.searched = bytes.len() - 1;
                Progress::More
            }
        }
    }
}

/// Whether one of the two begins with the other.
fn begins(bytes: &[u8], signature: &[u8]) -> bool {
    let length = bytes.len().min(signature.len());
    bytes.get(..length) == signature.get(..length)
}

/// Section 2.1. `None`: malformed.
fn v1(line: &[u8]) -> Option<Progress> {
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.trim_end_matches(|end: char| end.is_ascii_whitespace() || end == '\x0b').split(' ');
    if words.next() != Some("PROXY") {
        return None;
    }
    let header = |addresses| {
        Some(Progress::Header(Header { version: Version::V1, length: line.len(), addresses, tlvs: Vec::new() }))
    };
    let family = words.next()?;
    if family == "UNKNOWN" {
        return header(None);
    }
    let mut word = || words.next();
    let (source, destination, source_port, destination_port) = (word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return None;
    }
    let address = |ip: &str, port: &str| {
        let ip = match family {
            "TCP4" => IpAddr::V4(ip.parse::<Ipv4Addr>().ok()?),
            "TCP6" => IpAddr::V6(ip.parse::<Ipv6Addr>().ok()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port.parse().ok()?))
    };
    let addresses =
        Addresses { source: address(source, source_port)?, destination: address(destination, destination_port)? };
    addresses.are_unicast().then(|| header(Some(addresses))).flatten()
}

/// Section 2.2.
fn v2(fixed: &[u8; V2_HEADER], rest: &[u8]) -> Progress {
    let malformed = Progress::Malformed(Some(Version::V2));
    let &[.., version, family, high, low] = fixed;
    let announced = usize::from(u16::from_be_bytes([high, low]));
    const LOCAL: u8 = 0;
    const PROXY: u8 = 1;
    if version >> 4 != 2 {
        return malformed;
    }
    let command = version & 0x0f;
    let addresses_length = match (command, family >> 4) {
        (LOCAL, _) => 0,
        (_, 1) => 12,
        (_, 2) => 36,
        _ => return malformed,
    };
    if announced < addresses_length {
        return malformed;
    }
    let Some((addresses, _)) = rest.split_at_checked(addresses_length) else { return Progress::More };
    let addresses = match command {
        LOCAL => None,
        // Streams and datagrams.
        PROXY if matches!(family & 0x0f, 1 | 2) => match v2_addresses(addresses) {
            Some(addresses) => Some(addresses),
            None => return malformed,
        },
        _ => return malformed,
    };
    let Some(rest) = rest.get(..announced) else { return Progress::More };
    let tlvs = match addresses {
        // What a proxy says of its own connections is passed over.
        None => Vec::new(),
        Some(_) => match tlvs(rest.get(addresses_length..).unwrap_or_default()) {
            Some(tlvs) => tlvs,
            None => return malformed,
        },
    };
    if addresses.is_some_and(|addresses| !addresses.are_unicast()) {
        return malformed;
    }
    Progress::Header(Header { version: Version::V2, length: V2_HEADER + announced, addresses, tlvs })
}

fn v2_addresses(mut bytes: &[u8]) -> Option<Addresses> {
    let ip = |bytes: &mut &[u8], wide: bool| -> Option<IpAddr> {
        if wide {
            take::<16>(bytes).map(|ip| Ipv6Addr::from(ip).into())
        } else {
            take::<4>(bytes).map(|ip| Ipv4Addr::from(ip).into())
        }
    };
    let wide = bytes.len() > 12;
    let (source, destination) = (ip(&mut bytes, wide)?, ip(&mut bytes, wide)?);
    let mut port = || take::<2>(&mut bytes).map(u16::from_be_bytes);
    Some(Addresses { source: SocketAddr::new(source, port()?), destination: SocketAddr::new(destination, port()?) })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

/// Section 2.2.7. `None`: one is cut short.
fn tlvs(mut bytes: &[u8]) -> Option<Vec<Tlv>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let [kind, high, low] = take::<3>(&mut bytes)?;
        let (value, rest) = bytes.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        bytes = rest;
        found.push(Tlv { kind, value: Bytes::copy_from_slice(value) });
    }
    Some(found)
}

impl Addresses {
    /// TCP has no other connections.
    fn are_unicast(&self) -> bool {
        let unicast = |ip: IpAddr| {
            let broadcast = matches!(ip, IpAddr::V4(Ipv4Addr::BROADCAST));
            !ip.is_unspecified() && !ip.is_multicast() && !broadcast
        };
        unicast(self.source.ip()) && unicast(self.destination.ip())
    }
}

/// Writes a header. Without addresses, or with addresses of two families, it says that the proxy speaks for itself.
///
/// TLVs are for version 2; those that would make the header too long are left out, and `false` is returned then.
pub fn write(version: Version, addresses: Option<Addresses>, tlvs: &[Tlv], out: &mut Vec<u8>) -> bool {
    let addresses = addresses.filter(|addresses| addresses.source.is_ipv4() == addresses.destination.is_ipv4());
    match version {
        Version::V1 => {
            let line = match addresses {
                None => "PROXY UNKNOWN\r\n".to_owned(),
                Some(Addresses { source, destination }) => format!(
                    "PROXY {} {} {} {} {}\r\n",
                    if source.is_ipv4() { "TCP4" } else { "TCP6" },
                    source.ip(),
                    destination.ip(),
                    source.port(),
                    destination.port()
                ),
            };
            out.extend_from_slice(line.as_bytes());
            true
        }
        Version::V2 => write_v2(addresses, tlvs, out),
    }
}

fn write_v2(addresses: Option<Addresses>, tlvs: &[Tlv], out: &mut Vec<u8>) -> bool {
    out.extend_from_slice(V2_SIGNATURE);
    let Some(Addresses { source, destination }) = addresses else {
        out.extend_from_slice(&[0x20, 0, 0, 0]);
        return true;
    };
    let mut rest = Vec::with_capacity(36);
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => rest.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => rest.extend_from_slice(&ip.octets()),
        }
    }
    for port in [source.port(), destination.port()] {
        rest.extend_from_slice(&port.to_be_bytes());
    }
    let mut whole = true;
    for Tlv { kind, value } in tlvs {
        let length = u16::try_from(value.len()).ok().filter(|_| rest.len() + 3 + value.len() <= V2_MOST);
        let Some(length) = length else {
            whole = false;
            continue;
        };
        rest.push(*kind);
        rest.extend_from_slice(&length.to_be_bytes());
        rest.extend_from_slice(value);
    }
    let length = u16::try_from(rest.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&[0x21, if source.is_ipv4() { 0x11 } else { 0x21 }]);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&rest);
    whole
}

#[cfg(test)]
#[path = "proxy_protocol_tests.rs"]
mod tests;
