//! A rule as the expressions that nf_tables runs: load something into a register, compare it, decide.
//!
//! They are those that nft makes of the rule's text. Source: Linux, include/uapi/linux/netfilter/nf_tables.h.

use ipnet::IpNet;

use super::{
    netlink::Attributes,
    nft,
    redirection::Transport,
    rules::{Match, Rule, Verdict},
};

/// The register that all expressions use, 16 bytes wide.
const REGISTER: u32 = 1;
const EQUAL: u32 = 0;
const UNEQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

/// The list of a rule's expressions.
pub fn expressions(rule: &Rule) -> Attributes {
    let matches = rule.matches.iter().fold(Attributes::default(), |all, part| all.and(match_expressions(part)));
    matches.and(verdict_expressions(&rule.verdict))
}

/// One expression of a rule's list.
fn expression(name: &str, data: Attributes) -> Attributes {
    const NFTA_LIST_ELEM: u16 = 1;
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;
    let inner = Attributes::default().text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, data);
    Attributes::default().nested(NFTA_LIST_ELEM, inner)
}

fn value(bytes: &[u8]) -> Attributes {
    const NFTA_DATA_VALUE: u16 = 1;
    Attributes::default().bytes(NFTA_DATA_VALUE, bytes)
}

fn meta(key: u32) -> Attributes {
    const NFTA_META_DREG: u16 = 1;
    const NFTA_META_KEY: u16 = 2;
    expression("meta", Attributes::default().number(NFTA_META_KEY, key).number(NFTA_META_DREG, REGISTER))
}

fn compare(operator: u32, bytes: &[u8]) -> Attributes {
    const NFTA_CMP_SREG: u16 = 1;
    const NFTA_CMP_OP: u16 = 2;
    const NFTA_CMP_DATA: u16 = 3;
    let data = Attributes::default().number(NFTA_CMP_SREG, REGISTER).number(NFTA_CMP_OP, operator);
    expression("cmp", data.nested(NFTA_CMP_DATA, value(bytes)))
}

fn payload(base: u32, offset: u32, length: u32) -> Attributes {
    const NFTA_PAYLOAD_DREG: u16 = 1;
    const NFTA_PAYLOAD_BASE: u16 = 2;
    const NFTA_PAYLOAD_OFFSET: u16 = 3;
    const NFTA_PAYLOAD_LEN: u16 = 4;
    let data = Attributes::default()
        .number(NFTA_PAYLOAD_DREG, REGISTER)
        .number(NFTA_PAYLOAD_BASE, base)
        .number(NFTA_PAYLOAD_OFFSET, offset)
        .number(NFTA_PAYLOAD_LEN, length);
    expression("payload", data)
}

fn masked(mask: &[u8]) -> Attributes {
    const NFTA_BITWISE_SREG: u16 = 1;
    const NFTA_BITWISE_DREG: u16 = 2;
    const NFTA_BITWISE_LEN: u16 = 3;
    const NFTA_BITWISE_MASK: u16 = 4;
    const NFTA_BITWISE_XOR: u16 = 5;
    let data = Attributes::default()
        .number(NFTA_BITWISE_SREG, REGISTER)
        .number(NFTA_BITWISE_DREG, REGISTER)
        .number(NFTA_BITWISE_LEN, mask.len() as u32)
        .nested(NFTA_BITWISE_MASK, value(mask))
        .nested(NFTA_BITWISE_XOR, value(&vec![0; mask.len()]));
    expression("bitwise", data)
}

/// Numbers of the host's order compare as memory only after this.
fn to_network_order(length: u32) -> Attributes {
    const NFTA_BYTEORDER_SREG: u16 = 1;
    const NFTA_BYTEORDER_DREG: u16 = 2;
    const NFTA_BYTEORDER_OP: u16 = 3;
    const NFTA_BYTEORDER_LEN: u16 = 4;
    const NFTA_BYTEORDER_SIZE: u16 = 5;
    const HTON: u32 = 1;
    let data = Attributes::default()
        .number(NFTA_BYTEORDER_SREG, REGISTER)
        .number(NFTA_BYTEORDER_DREG, REGISTER)
        .number(NFTA_BYTEORDER_OP, HTON)
        .number(NFTA_BYTEORDER_LEN, length)
        .number(NFTA_BYTEORDER_SIZE, length);
    expression("byteorder", data)
}

fn ct(key: u32) -> Attributes {
    const NFTA_CT_DREG: u16 = 1;
    const NFTA_CT_KEY: u16 = 2;
    expression("ct", Attributes::default().number(NFTA_CT_KEY, key).number(NFTA_CT_DREG, REGISTER))
}

fn match_expressions(part: &Match) -> Attributes {
    const META_MARK: u32 = 3;
    const META_IIFNAME: u32 = 6;
    const META_OIFNAME: u32 = 7;
    const META_SKUID: u32 = 10;
    const META_L4PROTO: u32 = 16;
    const CT_STATE: u32 = 0;
    const CT_STATE_INVALID: u32 = 1;
    const TRANSPORT_HEADER: u32 = 2;
    let source_port = || payload(TRANSPORT_HEADER, 0, 2);
    let destination_port = || payload(TRANSPORT_HEADER, 2, 2);
    match part {
        Match::Transport(transport) => {
            let number = match transport {
                Transport::Tcp => libc::IPPROTO_TCP,
                Transport::Udp => libc::IPPROTO_UDP,
            };
            meta(META_L4PROTO).and(compare(EQUAL, &[number as u8]))
        }
        Match::DestinationPort(port) => destination_port().and(compare(EQUAL, &port.to_be_bytes())),
        // `nft::chains` leaves one range in a rule.
        Match::DestinationPorts(ranges) => ranges.iter().take(1).fold(destination_port(), |all, range| {
            all.and(compare(AT_LEAST, &range.first.to_be_bytes())).and(compare(AT_MOST, &range.last.to_be_bytes()))
        }),
        Match::SourcePort(port) => source_port().and(compare(EQUAL, &port.to_be_bytes())),
        Match::Source(network) => address(network, true, EQUAL),
        Match::Destination(network) => address(network, false, EQUAL),
        Match::NotDestination(network) => address(network, false, UNEQUAL),
        Match::InInterface(name) => meta(META_IIFNAME).and(interface(name)),
        Match::OutInterface(name) => meta(META_OIFNAME).and(interface(name)),
        Match::Owner(uids) if uids.first == uids.last => {
            meta(META_SKUID).and(compare(EQUAL, &uids.first.to_ne_bytes()))
        }
        Match::Owner(uids) => meta(META_SKUID)
            .and(to_network_order(4))
            .and(compare(AT_LEAST, &uids.first.to_be_bytes()))
            .and(compare(AT_MOST, &uids.last.to_be_bytes())),
        Match::NotOwner(uid) => meta(META_SKUID).and(compare(UNEQUAL, &uid.to_ne_bytes())),
        Match::Mark(mark) => meta(META_MARK).and(compare(EQUAL, &mark.to_ne_bytes())),
        Match::NotMark(mark) => meta(META_MARK).and(compare(UNEQUAL, &mark.to_ne_bytes())),
        Match::Invalid => {
            ct(CT_STATE).and(masked(&CT_STATE_INVALID.to_ne_bytes())).and(compare(UNEQUAL, &0_u32.to_ne_bytes()))
        }
    }
}

fn address(network: &IpNet, source: bool, operator: u32) -> Attributes {
    const NETWORK_HEADER: u32 = 1;
    // Offsets of the addresses: RFC 791 section 3.1, RFC 8200 section 3.
    let (bytes, mask, offset) = match network {
        IpNet::V4(network) => {
            (network.network().octets().to_vec(), network.netmask().octets().to_vec(), if source { 12 } else { 16 })
        }
        IpNet::V6(network) => {
            (network.network().octets().to_vec(), network.netmask().octets().to_vec(), if source { 8 } else { 24 })
        }
    };
    let loaded = payload(NETWORK_HEADER, offset, bytes.len() as u32);
    let loaded = if network.prefix_len() == network.max_prefix_len() { loaded } else { loaded.and(masked(&mask)) };
    loaded.and(compare(operator, &bytes))
}

/// A name is compared with its padding, the start of one without.
fn interface(name: &str) -> Attributes {
    const IFNAMSIZ: usize = 16;
    match name.strip_suffix('+') {
        Some(start) => compare(EQUAL, start.as_bytes()),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(IFNAMSIZ, 0);
            compare(EQUAL, &bytes)
        }
    }
}

fn immediate(bytes: &[u8]) -> Attributes {
    const NFTA_IMMEDIATE_DREG: u16 = 1;
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    let data = Attributes::default().number(NFTA_IMMEDIATE_DREG, REGISTER).nested(NFTA_IMMEDIATE_DATA, value(bytes));
    expression("immediate", data)
}

fn verdict(code: i32, chain: Option<&str>) -> Attributes {
    const NFTA_IMMEDIATE_DREG: u16 = 1;
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFTA_VERDICT_CODE: u16 = 1;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    const VERDICT_REGISTER: u32 = 0;
    let mut inner = Attributes::default().bytes(NFTA_VERDICT_CODE, &code.to_be_bytes());
    if let Some(chain) = chain {
        inner = inner.text(NFTA_VERDICT_CHAIN, chain);
    }
    let data = Attributes::default()
        .number(NFTA_IMMEDIATE_DREG, VERDICT_REGISTER)
        .nested(NFTA_IMMEDIATE_DATA, Attributes::default().nested(NFTA_DATA_VERDICT, inner));
    expression("immediate", data)
}

fn verdict_expressions(what: &Verdict) -> Attributes {
    const DROP: i32 = 0;
    const JUMP: i32 = -3;
    const RETURN: i32 = -5;
    match what {
        Verdict::Return | Verdict::JumpTo(_) => verdict(RETURN, None),
        Verdict::Drop => verdict(DROP, None),
        Verdict::Jump(chain) => verdict(JUMP, Some(nft::chain_name(*chain))),
        Verdict::Redirect(port) => {
            const NFTA_REDIR_REG_PROTO_MIN: u16 = 1;
            const NFTA_REDIR_FLAGS: u16 = 3;
            const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
            let data = Attributes::default()
                .number(NFTA_REDIR_REG_PROTO_MIN, REGISTER)
                .number(NFTA_REDIR_FLAGS, NF_NAT_RANGE_PROTO_SPECIFIED);
            immediate(&port.to_be_bytes()).and(expression("redir", data))
        }
        Verdict::Zone(zone) => {
            const NFTA_CT_KEY: u16 = 2;
            const NFTA_CT_SREG: u16 = 4;
            const CT_ZONE: u32 = 17;
            let data = Attributes::default().number(NFTA_CT_KEY, CT_ZONE).number(NFTA_CT_SREG, REGISTER);
            immediate(&zone.to_ne_bytes()).and(expression("ct", data))
        }
        Verdict::Log { prefix, level } => {
            const NFTA_LOG_PREFIX: u16 = 2;
            const NFTA_LOG_LEVEL: u16 = 5;
            expression(
                "log",
                Attributes::default().text(NFTA_LOG_PREFIX, prefix).number(NFTA_LOG_LEVEL, u32::from(*level)),
            )
        }
    }
}
