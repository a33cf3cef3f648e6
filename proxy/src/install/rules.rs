//! The rules of one address family, in the order of Kuma's, for any firewall: [`compile`] is the only place that decides what is redirected.
//!
//! Source: kuma `pkg/transparentproxy/iptables/builder`. A connection is decided by its first packet:
//!
//! ```text
//! prerouting ─► [virtual networks] ─► inbound ─► inbound_redirect  : REDIRECT to the inbound port
//! output     ─► first: exclusions, DNS
//!            ─► last : outbound ─► outbound_redirect               : REDIRECT to the outbound port
//!                              └─► inbound_redirect                (the proxy calls its own host through an address of it)
//! ```

use std::net::IpAddr;

use ipnet::IpNet;

use super::redirection::{
    Exclusion, INBOUND_SOURCE_V4, INBOUND_SOURCE_V6, PortRange, Queries, Redirection, Transport, UidRange,
};

/// The port that DNS servers listen on (RFC 1035).
const DNS_PORT: u16 = 53;
/// Conntrack zone of queries between the proxy and its servers.
const ZONE_UPSTREAM: u16 = 1;
/// Conntrack zone of queries between applications and the proxy.
const ZONE_APPLICATION: u16 = 2;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A chain of our own that rules jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// Decides about incoming connections.
    Inbound,
    /// Decides about outgoing connections.
    Outbound,
    /// To the inbound port.
    InboundRedirect,
    /// To the outbound port.
    OutboundRedirect,
}

/// All rules of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Which.
    pub family: Family,
    /// Before connection tracking, packets that arrive.
    pub raw_prerouting: Vec<Rule>,
    /// Before connection tracking, packets that leave.
    pub raw_output: Vec<Rule>,
    /// Packets that arrive.
    pub mangle_prerouting: Vec<Rule>,
    /// Connections that arrive.
    pub prerouting: Vec<Rule>,
    /// Whether `prerouting` comes before the rules of others.
    pub prerouting_first: bool,
    /// Connections that leave, before the rules of others. A `Return` here ends `output_last` too.
    pub output_first: Vec<Rule>,
    /// Connections that leave, after the rules of others.
    pub output_last: Vec<Rule>,
    /// [`Chain::Inbound`]
    pub inbound: Vec<Rule>,
    /// [`Chain::Outbound`]
    pub outbound: Vec<Rule>,
    /// [`Chain::InboundRedirect`]
    pub inbound_redirect: Vec<Rule>,
    /// [`Chain::OutboundRedirect`]
    pub outbound_redirect: Vec<Rule>,
}

/// What is done with the packets that match all of `matches`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold.
    pub matches: Vec<Match>,
    /// What is done.
    pub verdict: Verdict,
    /// For the reader of the kernel's rules.
    pub comment: String,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Protocol.
    Transport(Transport),
    /// Destination port; after a `Transport`.
    DestinationPort(u16),
    /// Destination port in one of these ranges; after a `Transport`.
    DestinationPorts(Vec<PortRange>),
    /// Source port; after a `Transport`.
    SourcePort(u16),
    /// Source address.
    Source(IpNet),
    /// Destination address.
    Destination(IpNet),
    /// Destination address is another.
    NotDestination(IpNet),
    /// Interface that the packet came in by; `+` at the end stands for any rest.
    InInterface(String),
    /// Interface that the packet leaves by.
    OutInterface(String),
    /// User of the sending socket.
    Owner(UidRange),
    /// The sending socket is another user's.
    NotOwner(u32),
    /// Firewall mark.
    Mark(u32),
    /// Firewall mark is another.
    NotMark(u32),
    /// Conntrack finds the packet invalid.
    Invalid,
}

/// What is done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it alone, here.
    Return,
    /// On to one of our chains.
    Jump(Chain),
    /// On to a chain that is not ours; iptables only.
    JumpTo(String),
    /// To a port of this host.
    Redirect(u16),
    /// Into a conntrack zone.
    Zone(u16),
    /// Away.
    Drop,
    /// Into the kernel's log, and on to the next rule.
    Log {
        /// Start of the line.
        prefix: &'static str,
        /// syslog level.
        level: u8,
    },
}

fn rule(matches: Vec<Match>, verdict: Verdict, comment: impl Into<String>) -> Rule {
    Rule { matches, verdict, comment: comment.into() }
}

const TCP: Match = Match::Transport(Transport::Tcp);
const UDP: Match = Match::Transport(Transport::Udp);

impl Family {
    fn has(self, network: &IpNet) -> bool {
        matches!((self, network), (Family::V4, IpNet::V4(_)) | (Family::V6, IpNet::V6(_)))
    }

    fn localhost(self) -> IpNet {
        IpNet::from(match self {
            Family::V4 => IpAddr::from(std::net::Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        })
    }

    fn inbound_source(self) -> IpNet {
        let text = match self {
            Family::V4 => INBOUND_SOURCE_V4,
            Family::V6 => INBOUND_SOURCE_V6,
        };
        text.parse().unwrap_or_else(|_| self.localhost())
    }

    /// Name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// The families that are redirected.
pub fn families(redirection: &Redirection) -> &'static [Family] {
    if redirection.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
}

/// The rules of one family.
pub fn compile(redirection: &Redirection, family: Family) -> Ruleset {
    let (prerouting, prerouting_first) = prerouting(redirection, family);
    let (output_first, output_last) = output(redirection, family);
    let (raw_prerouting, raw_output) = zones(redirection, family);
    let redirect = |port| vec![rule(vec![TCP], Verdict::Redirect(port), format!("to the proxy, port {port}"))];
    Ruleset {
        family,
        raw_prerouting,
        raw_output,
        mangle_prerouting: if redirection.drop_invalid {
            vec![rule(vec![Match::Invalid], Verdict::Drop, "not of any connection: would pass by the redirection")]
        } else {
            Vec::new()
        },
        prerouting,
        prerouting_first,
        output_first,
        output_last,
        inbound: inbound(redirection, family),
        outbound: outbound(redirection, family),
        inbound_redirect: redirect(redirection.inbound.port),
        outbound_redirect: redirect(redirection.outbound.port),
    }
}

/// A rule for what the proxy sends: one by its user, and one by its mark where it sets one.
fn by_proxy(redirection: &Redirection, before: &[Match], verdict: &Verdict, comment: &str) -> Vec<Rule> {
    let owner = Match::Owner(UidRange { first: redirection.uid, last: redirection.uid });
    std::iter::once(owner)
        .chain(redirection.mark.map(Match::Mark))
        .map(|proxy| rule([before, &[proxy]].concat(), verdict.clone(), comment))
        .collect()
}

/// A rule for what others than the proxy send.
fn not_by_proxy(redirection: &Redirection, mut matches: Vec<Match>, verdict: Verdict, comment: &str) -> Rule {
    matches.push(Match::NotOwner(redirection.uid));
    matches.extend(redirection.mark.map(Match::NotMark));
    rule(matches, verdict, comment)
}

fn prerouting(redirection: &Redirection, family: Family) -> (Vec<Rule>, bool) {
    let mut rules = Vec::new();
    if let Some(level) = redirection.log_level {
        rules.push(rule(Vec::new(), Verdict::Log { prefix: "PREROUTING:", level }, "log incoming packets"));
    }
    let mut networks = redirection.networks.iter().filter(|network| family.has(&network.cidr)).peekable();
    let first = networks.peek().is_some() || redirection.inbound.first;
    for network in networks {
        let interface = Match::InInterface(network.interface.clone());
        rules.push(rule(
            vec![interface.clone(), UDP, Match::DestinationPort(DNS_PORT)],
            Verdict::Redirect(redirection.dns_port),
            "DNS of a virtual network",
        ));
        rules.push(rule(
            vec![Match::NotDestination(network.cidr), interface, TCP],
            Verdict::Redirect(redirection.outbound.port),
            "out of a virtual network",
        ));
    }
    rules.push(rule(vec![TCP], Verdict::Jump(Chain::Inbound), "incoming TCP"));
    (rules, first)
}

fn output(redirection: &Redirection, family: Family) -> (Vec<Rule>, Vec<Rule>) {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    if let Some(level) = redirection.log_level {
        first.push(rule(Vec::new(), Verdict::Log { prefix: "OUTPUT:", level }, "log outgoing packets"));
    }
    for exclusion in &redirection.outbound.exclusions {
        match exclusion {
            Exclusion::Owner { transport, ports, uids } => first.push(rule(
                vec![Match::Transport(*transport), Match::DestinationPorts(ports.clone()), Match::Owner(*uids)],
                Verdict::Return,
                "excluded ports of users",
            )),
            Exclusion::Destination(network) if family.has(network) => {
                first.push(rule(vec![Match::Destination(*network)], Verdict::Return, "excluded address"));
            }
            Exclusion::Destination(_) => {}
        }
    }
    if let Some((queries, dns)) = queries(redirection, family).zip(redirection.dns.as_ref()) {
        let to_dns = [UDP, Match::DestinationPort(DNS_PORT)];
        // As in Kuma, IPv4 alone: Docker's chain for instance has no twin in IPv6.
        let chain = dns.upstream_chain.clone().filter(|_| family == Family::V4);
        let onwards = chain.map_or(Verdict::Return, Verdict::JumpTo);
        first.extend(by_proxy(redirection, &to_dns, &onwards, "DNS of the proxy"));
        last.push(not_by_proxy(
            redirection,
            vec![TCP, Match::DestinationPort(DNS_PORT)],
            Verdict::Return,
            "DNS over TCP of applications",
        ));
        for server in queries {
            let matches = server.into_iter().map(Match::Destination).chain(to_dns.clone()).collect();
            first.push(rule(matches, Verdict::Redirect(redirection.dns_port), "DNS of applications"));
        }
    }
    let outbound = rule(vec![TCP], Verdict::Jump(Chain::Outbound), "outgoing TCP");
    if redirection.outbound.first {
        first.push(outbound)
    } else {
        last.push(outbound)
    }
    (first, last)
}

/// The servers whose queries are redirected, `None` for any. No value where DNS of this family is left alone.
fn queries(redirection: &Redirection, family: Family) -> Option<Vec<Option<IpNet>>> {
    match &redirection.dns.as_ref()?.queries {
        Queries::All => Some(vec![None]),
        Queries::To(servers) => {
            let servers: Vec<_> =
                servers.iter().copied().map(IpNet::from).filter(|server| family.has(server)).map(Some).collect();
            (!servers.is_empty()).then_some(servers)
        }
    }
}

fn inbound(redirection: &Redirection, family: Family) -> Vec<Rule> {
    let inbound = &redirection.inbound;
    if !inbound.enabled {
        return vec![rule(vec![TCP], Verdict::Return, "incoming traffic is not redirected")];
    }
    let redirect = Verdict::Jump(Chain::InboundRedirect);
    let mut rules: Vec<Rule> = inbound
        .exclude_sources
        .iter()
        .filter(|network| family.has(network))
        .map(|network| rule(vec![Match::Source(*network)], Verdict::Return, "excluded source"))
        .collect();
    let port = |port: u16| vec![TCP, Match::DestinationPort(port)];
    if inbound.include_ports.is_empty() {
        rules.extend(inbound.exclude_ports.iter().map(|&p| rule(port(p), Verdict::Return, "excluded port")));
        rules.push(rule(vec![TCP], redirect, "all other incoming TCP"));
    } else {
        rules.extend(inbound.include_ports.iter().map(|&p| rule(port(p), redirect.clone(), "included port")));
    }
    rules
}

fn outbound(redirection: &Redirection, family: Family) -> Vec<Rule> {
    let outbound = &redirection.outbound;
    if !outbound.enabled {
        return vec![rule(vec![TCP], Verdict::Return, "outgoing traffic is not redirected")];
    }
    let port = |port: u16| vec![TCP, Match::DestinationPort(port)];
    let lo = Match::OutInterface(redirection.loopback.clone());
    let localhost = family.localhost();
    let mut rules = Vec::new();
    if outbound.include_ports.is_empty() {
        rules.extend(outbound.exclude_ports.iter().map(|&p| rule(port(p), Verdict::Return, "excluded port")));
    }
    rules.push(rule(
        vec![Match::Source(family.inbound_source()), lo.clone()],
        Verdict::Return,
        "from the proxy to an application here",
    ));
    // An application that calls its own service through the mesh comes back in by the inbound port.
    rules.extend(by_proxy(
        redirection,
        &[TCP, lo.clone(), Match::NotDestination(localhost)],
        &Verdict::Jump(Chain::InboundRedirect),
        "from the proxy to an address of this host",
    ));
    rules.push(not_by_proxy(redirection, vec![TCP, lo], Verdict::Return, "among applications here"));
    rules.extend(by_proxy(redirection, &[], &Verdict::Return, "from the proxy"));
    rules.push(rule(vec![Match::Destination(localhost)], Verdict::Return, "to localhost"));
    let redirect = Verdict::Jump(Chain::OutboundRedirect);
    if outbound.include_ports.is_empty() {
        rules.push(rule(Vec::new(), redirect, "all other outgoing TCP"));
    } else {
        rules.extend(outbound.include_ports.iter().map(|&p| rule(port(p), redirect.clone(), "included port")));
    }
    rules
}

/// An application's query and the proxy's own may leave from one source port to one server. In one zone the second would clash with the
/// first and be lost or sent from another port, so each side is tracked in a zone of its own.
fn zones(redirection: &Redirection, family: Family) -> (Vec<Rule>, Vec<Rule>) {
    let (mut prerouting, mut output) = (Vec::new(), Vec::new());
    let Some(queries) = queries(redirection, family) else { return (prerouting, output) };
    if redirection.dns.as_ref().is_none_or(|dns| !dns.zone_split) {
        return (prerouting, output);
    }
    let (upstream, application) = (Verdict::Zone(ZONE_UPSTREAM), Verdict::Zone(ZONE_APPLICATION));
    let to_dns = [UDP, Match::DestinationPort(DNS_PORT)];
    output.extend(by_proxy(redirection, &to_dns, &upstream, "queries of the proxy"));
    output.extend(by_proxy(
        redirection,
        &[UDP, Match::SourcePort(redirection.dns_port)],
        &application,
        "answers of the proxy",
    ));
    for server in queries {
        let with = |address: fn(IpNet) -> Match, rest: &[Match]| {
            server.map(address).into_iter().chain(rest.iter().cloned()).collect::<Vec<_>>()
        };
        output.push(rule(with(Match::Destination, &to_dns), application.clone(), "queries of applications"));
        // A server on this host answers through OUTPUT, from a port that its own rewriting may have changed (Docker's).
        if let Some(local) = server.filter(|server| server.addr().is_loopback()) {
            output.push(rule(
                vec![Match::Source(local), Match::Destination(family.localhost()), UDP],
                upstream.clone(),
                "answers of a server on this host",
            ));
        }
        prerouting.push(rule(
            with(Match::Source, &[UDP, Match::SourcePort(DNS_PORT)]),
            upstream.clone(),
            "answers to the proxy",
        ));
    }
    (prerouting, output)
}
