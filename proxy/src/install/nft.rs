//! The rules as nftables has them: which chains a family's table holds, and the table's text.
//!
//! Everything sits in a table of our own per family, so that nobody else's rules are read or changed and removing the table removes all. Where Kuma
//! inserts before or appends after the rules of others, the priority of a chain does so here. Two things differ in form from iptables, not in effect:
//! a `return` of `output_first` has to be said again in `output_last`, and the proxy's DNS queries need no jump to Docker's chain, because what our
//! chains leave alone comes to it anyway.

use std::fmt::Write;

use super::{
    redirection::{PortRange, Transport},
    rules::{Chain, Family, Match, Rule, Ruleset, Verdict},
};

/// Name of our table in each family.
pub const TABLE: &str = "shika";

/// A chain of our table.
pub struct NftChain {
    /// Its name.
    pub name: &'static str,
    /// Where packets enter it; none where only jumps do.
    pub hook: Option<Hook>,
    /// Its rules, each with no more than one port or range of ports.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Clone, Copy)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    /// On arrival, else on leaving.
    pub arrival: bool,
    /// Place among the chains of all tables; lower is earlier.
    pub priority: i32,
}

// Linux, include/uapi/linux/netfilter_ipv4.h, enum nf_ip_hook_priorities.
const RAW: i32 = -300;
const MANGLE: i32 = -150;
const DSTNAT: i32 = -100;

/// Name of a chain that is jumped to.
pub fn chain_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Inbound => "inbound",
        Chain::Outbound => "outbound",
        Chain::InboundRedirect => "inbound_redirect",
        Chain::OutboundRedirect => "outbound_redirect",
    }
}

/// The chains of a family's table; those without rules are left out.
pub fn chains(ruleset: &Ruleset) -> Vec<NftChain> {
    let own = |chain, rules| (chain_name(chain), None, rules);
    let hooked = |name, kind, arrival, priority, rules| (name, Some(Hook { kind, arrival, priority }), rules);
    let around = |first: bool| if first { DSTNAT - 1 } else { DSTNAT + 1 };
    // The last chain sees TCP alone.
    let spared = |rule: &&Rule| {
        matches!(rule.verdict, Verdict::Return) && !rule.matches.contains(&Match::Transport(Transport::Udp))
    };
    let output_last = if ruleset.output_last.is_empty() {
        Vec::new()
    } else {
        ruleset.output_first.iter().filter(spared).chain(&ruleset.output_last).cloned().collect()
    };
    let chains = [
        own(Chain::InboundRedirect, &ruleset.inbound_redirect),
        own(Chain::OutboundRedirect, &ruleset.outbound_redirect),
        own(Chain::Inbound, &ruleset.inbound),
        own(Chain::Outbound, &ruleset.outbound),
        hooked("raw_prerouting", "filter", true, RAW, &ruleset.raw_prerouting),
        hooked("raw_output", "filter", false, RAW, &ruleset.raw_output),
        hooked("mangle_prerouting", "filter", true, MANGLE, &ruleset.mangle_prerouting),
        hooked("prerouting", "nat", true, around(ruleset.prerouting_first), &ruleset.prerouting),
        hooked("output_first", "nat", false, around(true), &ruleset.output_first),
        hooked("output_last", "nat", false, around(false), &output_last),
    ];
    chains
        .into_iter()
        .filter(|(_, _, rules)| !rules.is_empty())
        .map(|(name, hook, rules)| NftChain { name, hook, rules: rules.iter().flat_map(one_port_each).collect() })
        .collect()
}

/// Without a set, a rule can name one range; a list of ranges becomes as many rules.
fn one_port_each(rule: &Rule) -> Vec<Rule> {
    let Some(at) = rule.matches.iter().position(|part| matches!(part, Match::DestinationPorts(_))) else {
        return vec![rule.clone()];
    };
    let Match::DestinationPorts(ranges) = &rule.matches[at] else { return Vec::new() };
    let with = |range: &PortRange| {
        let mut rule = rule.clone();
        rule.matches[at] = if range.first == range.last {
            Match::DestinationPort(range.first)
        } else {
            Match::DestinationPorts(vec![*range])
        };
        rule
    };
    ranges.iter().map(with).collect()
}

/// A script for `nft -f`: replaces whatever an earlier installation left, in one transaction.
pub fn text(rulesets: &[Ruleset], comments: bool) -> String {
    let mut out = String::new();
    for family in [Family::V4, Family::V6] {
        // A table has to be there to be deleted.
        let keyword = keyword(family);
        let _ = writeln!(out, "table {keyword} {TABLE}\ndelete table {keyword} {TABLE}");
    }
    for ruleset in rulesets {
        let _ = writeln!(out, "\ntable {} {TABLE} {{", keyword(ruleset.family));
        for (index, chain) in chains(ruleset).iter().enumerate() {
            let _ = writeln!(out, "{}\tchain {} {{", if index == 0 { "" } else { "\n" }, chain.name);
            if let Some(Hook { kind, arrival, priority }) = chain.hook {
                let hook = if arrival { "prerouting" } else { "output" };
                let _ = writeln!(out, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;");
            }
            for rule in &chain.rules {
                let _ = writeln!(out, "\t\t{}", rule_text(rule, ruleset.family, comments));
            }
            out.push_str("\t}\n");
        }
        out.push_str("}\n");
    }
    out
}

/// nft's word for a family.
pub fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// A rule as nft prints it.
pub fn rule_text(rule: &Rule, family: Family, comments: bool) -> String {
    let mut words: Vec<String> = rule.matches.iter().filter_map(|part| match_text(part, rule, family)).collect();
    words.push(match &rule.verdict {
        // What we leave alone comes to the chains of others in any case.
        Verdict::Return | Verdict::JumpTo(_) => "return".into(),
        Verdict::Jump(chain) => format!("jump {}", chain_name(*chain)),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        Verdict::Zone(zone) => format!("ct zone set {zone}"),
        Verdict::Drop => "drop".into(),
        Verdict::Log { prefix, level } => format!("log prefix \"{prefix}\" level {}", level_name(*level)),
    });
    if comments && !rule.comment.is_empty() {
        words.push(format!("comment \"{}\"", rule.comment));
    }
    words.join(" ")
}

fn match_text(part: &Match, rule: &Rule, family: Family) -> Option<String> {
    let ip = keyword(family);
    let transport = rule.matches.iter().find_map(|part| match part {
        Match::Transport(Transport::Tcp) => Some("tcp"),
        Match::Transport(Transport::Udp) => Some("udp"),
        _ => None,
    });
    let transport = transport.unwrap_or("th");
    Some(match part {
        Match::Transport(_) => {
            // A port says it already.
            let has_port = rule.matches.iter().any(|part| {
                matches!(part, Match::DestinationPort(_) | Match::DestinationPorts(_) | Match::SourcePort(_))
            });
            return (!has_port).then(|| format!("meta l4proto {transport}"));
        }
        Match::DestinationPort(port) => format!("{transport} dport {port}"),
        Match::DestinationPorts(ranges) => {
            let ranges: Vec<String> = ranges.iter().map(|range| format!("{}-{}", range.first, range.last)).collect();
            format!("{transport} dport {}", ranges.join(", "))
        }
        Match::SourcePort(port) => format!("{transport} sport {port}"),
        Match::Source(network) => format!("{ip} saddr {network}"),
        Match::Destination(network) => format!("{ip} daddr {network}"),
        Match::NotDestination(network) => format!("{ip} daddr != {network}"),
        Match::InInterface(name) => format!("iifname \"{}\"", name.replace('+', "*")),
        Match::OutInterface(name) => format!("oifname \"{}\"", name.replace('+', "*")),
        Match::Owner(uids) if uids.first == uids.last => format!("meta skuid {}", uids.first),
        Match::Owner(uids) => format!("meta skuid {}-{}", uids.first, uids.last),
        Match::NotOwner(uid) => format!("meta skuid != {uid}"),
        Match::Mark(mark) => format!("meta mark {mark:#x}"),
        Match::NotMark(mark) => format!("meta mark != {mark:#x}"),
        Match::Invalid => "ct state invalid".into(),
    })
}

fn level_name(level: u8) -> &'static str {
    ["emerg", "alert", "crit", "err", "warn", "notice", "info"].get(usize::from(level)).copied().unwrap_or("debug")
}
