//! The rules as iptables has them: Kuma's tables, chains and order, in the text that iptables-restore reads.

use std::fmt::Write;

use super::{
    redirection::Transport,
    rules::{Chain, Match, Rule, Ruleset, Verdict},
};

/// Start of every comment, as in Kuma.
pub const COMMENT_PREFIX: &str = "kuma/mesh/transparent/proxy";
/// iptables-restore can match so many ports in one rule, a range counting as two (iptables-extensions(8), multiport).
const PORTS_PER_RULE: usize = 15;

/// Name of a chain.
fn chain_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Inbound => "KUMA_MESH_INBOUND",
        Chain::Outbound => "KUMA_MESH_OUTBOUND",
        Chain::InboundRedirect => "KUMA_MESH_INBOUND_REDIRECT",
        Chain::OutboundRedirect => "KUMA_MESH_OUTBOUND_REDIRECT",
    }
}

/// The lines of one table, without its frame.
pub struct Table {
    /// `raw`, `nat` or `mangle`.
    pub name: &'static str,
    /// Chains of our own that are to be made.
    pub chains: Vec<&'static str>,
    /// The rules.
    pub lines: Vec<String>,
}

/// The tables of a family that hold rules.
pub fn tables(ruleset: &Ruleset, comments: bool) -> Vec<Table> {
    let append = |chain: &str, rules: &[Rule]| -> Vec<String> {
        rules.iter().flat_map(|rule| words(rule, comments)).map(|rule| format!("-A {chain} {rule}")).collect()
    };
    let insert = |chain: &str, rules: &[Rule]| -> Vec<String> {
        let rules = rules.iter().flat_map(|rule| words(rule, comments));
        rules.enumerate().map(|(index, rule)| format!("-I {chain} {} {rule}", index + 1)).collect()
    };
    // The order in which Kuma prints them.
    let own = [
        (Chain::Inbound, &ruleset.inbound),
        (Chain::Outbound, &ruleset.outbound),
        (Chain::InboundRedirect, &ruleset.inbound_redirect),
        (Chain::OutboundRedirect, &ruleset.outbound_redirect),
    ];
    let mut nat = match ruleset.prerouting_first {
        true => insert("PREROUTING", &ruleset.prerouting),
        false => append("PREROUTING", &ruleset.prerouting),
    };
    nat.extend(insert("OUTPUT", &ruleset.output_first));
    nat.extend(append("OUTPUT", &ruleset.output_last));
    nat.extend(own.iter().flat_map(|(chain, rules)| append(chain_name(*chain), rules)));
    let mut raw = append("PREROUTING", &ruleset.raw_prerouting);
    raw.extend(append("OUTPUT", &ruleset.raw_output));
    [
        Table { name: "raw", chains: Vec::new(), lines: raw },
        Table { name: "nat", chains: own.iter().map(|(chain, _)| chain_name(*chain)).collect(), lines: nat },
        Table { name: "mangle", chains: Vec::new(), lines: append("PREROUTING", &ruleset.mangle_prerouting) },
    ]
    .into_iter()
    .filter(|table| !table.lines.is_empty())
    .collect()
}

/// What iptables-restore would read on a host without earlier rules of ours, in Kuma's form.
pub fn text(rulesets: &[Ruleset], comments: bool) -> String {
    let mut out = String::new();
    for (index, ruleset) in rulesets.iter().enumerate() {
        let _ = writeln!(out, "{}### {} ###\n", if index == 0 { "" } else { "\n" }, ruleset.family.name());
        for table in tables(ruleset, comments) {
            let _ = writeln!(out, "* {}", table.name);
            table.chains.iter().for_each(|chain| {
                let _ = writeln!(out, "-N {chain}");
            });
            table.lines.iter().for_each(|line| {
                let _ = writeln!(out, "{line}");
            });
            out.push_str("COMMIT\n");
        }
    }
    out
}

/// A rule in the words of iptables; more than one where it has more ports than one can match.
fn words(rule: &Rule, comments: bool) -> Vec<String> {
    let comment = if comments && !rule.comment.is_empty() {
        format!("-m comment --comment \"{COMMENT_PREFIX}/{}\" ", rule.comment)
    } else {
        String::new()
    };
    let target = match &rule.verdict {
        Verdict::Return => "-j RETURN".into(),
        Verdict::Jump(chain) => format!("-j {}", chain_name(*chain)),
        Verdict::JumpTo(chain) => format!("-j {chain}"),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::Zone(zone) => format!("-j CT --zone {zone}"),
        Verdict::Drop => "-j DROP".into(),
        Verdict::Log { prefix, level } => format!("-j LOG --log-prefix {prefix} --log-level {level}"),
    };
    port_lists(rule)
        .into_iter()
        .map(|ports| {
            let multiport = if ports.is_empty() { "" } else { "-m multiport " };
            let matches: String = rule.matches.iter().map(|part| match_words(part, &ports) + " ").collect();
            format!("{comment}{multiport}{matches}{target}")
        })
        .collect()
}

/// The rule's port lists, cut to what one rule holds; one empty list where it has none.
fn port_lists(rule: &Rule) -> Vec<String> {
    let ranges = rule.matches.iter().find_map(|part| match part {
        Match::DestinationPorts(ranges) => Some(ranges),
        _ => None,
    });
    let Some(ranges) = ranges else { return vec![String::new()] };
    let mut lists: Vec<String> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let (text, size) = if range.first == range.last {
            (range.first.to_string(), 1)
        } else {
            (format!("{}:{}", range.first, range.last), 2)
        };
        match lists.last_mut() {
            Some(list) if room >= size => {
                list.push(',');
                list.push_str(&text);
                room -= size;
            }
            _ => {
                lists.push(text);
                room = PORTS_PER_RULE - size;
            }
        }
    }
    lists
}

fn match_words(part: &Match, ports: &str) -> String {
    match part {
        Match::Transport(Transport::Tcp) => "-p tcp".into(),
        Match::Transport(Transport::Udp) => "-p udp".into(),
        Match::DestinationPort(port) => format!("--dport {port}"),
        Match::DestinationPorts(_) => format!("--dport {ports}"),
        Match::SourcePort(port) => format!("--sport {port}"),
        // With its prefix length, as iptables-save prints it.
        Match::Source(network) => format!("-s {}/{}", network.addr(), network.prefix_len()),
        Match::Destination(network) => format!("-d {}/{}", network.addr(), network.prefix_len()),
        Match::NotDestination(network) => format!("! -d {}/{}", network.addr(), network.prefix_len()),
        Match::InInterface(name) => format!("-i {name}"),
        Match::OutInterface(name) => format!("-o {name}"),
        Match::Owner(uids) if uids.first == uids.last => format!("-m owner --uid-owner {}", uids.first),
        Match::Owner(uids) => format!("-m owner --uid-owner {}:{}", uids.first, uids.last),
        Match::NotOwner(uid) => format!("-m owner ! --uid-owner {uid}"),
        Match::Mark(mark) => format!("-m mark --mark {mark:#x}"),
        Match::NotMark(mark) => format!("-m mark ! --mark {mark:#x}"),
        Match::Invalid => "-m conntrack --ctstate INVALID".into(),
    }
}

#[cfg(test)]
#[path = "iptables_text_tests.rs"]
mod tests;
