//! Names that a UDP listener answers for.
//!
//! Source: Envoy `filters.udp.dns_filter.v3.DnsFilterConfig` and `data.dns.v3.DnsTable`.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use crate::stats::DnsFilterStats;

/// TTL of an answer for a name that the table has not as such, but only by a wildcard. Envoy's.
pub const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// Envoy `filters.udp.dns_filter`: queries are answered from this table alone.
#[derive(Debug)]
pub struct DnsTable {
    /// Whether `A` and `a` are the same (`case_insensitive`); Envoy's default is that they are not.
    case_insensitive: bool,
    /// By name, in lower case where case does not count. One that begins with a dot holds for every name that ends in it.
    names: HashMap<Box<str>, Addresses>,
    /// The last two labels of all names: `known_domain_queries` counts queries below them.
    suffixes: HashSet<Box<str>>,
    /// `dns_filter.<stat_prefix>.*`
    pub stats: DnsFilterStats,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// A records.
    pub v4: Vec<Ipv4Addr>,
    /// AAAA records.
    pub v6: Vec<Ipv6Addr>,
    /// How long a client may keep them; Envoy's default 300 s.
    pub ttl: Duration,
}

impl DnsTable {
    /// An empty one.
    pub fn new(case_insensitive: bool, stats: DnsFilterStats) -> Self {
        DnsTable { case_insensitive, names: HashMap::new(), suffixes: HashSet::new(), stats }
    }

    /// Adds a name, `*.suffix` and `.suffix` for every name below. Addresses of a name that is there already are added to it, and its TTL stays.
    pub fn add(&mut self, name: &str, addresses: Addresses) {
        let name = self.folded(name.strip_prefix('*').unwrap_or(name).to_owned());
        self.suffixes.insert(suffix(&name).into());
        match self.names.entry(name.into()) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(addresses);
            }
            std::collections::hash_map::Entry::Occupied(mut known) => {
                known.get_mut().v4.extend(addresses.v4);
                known.get_mut().v6.extend(addresses.v6);
            }
        }
    }

    /// A name as the table has it.
    pub fn folded(&self, mut name: String) -> String {
        if self.case_insensitive {
            name.make_ascii_lowercase();
        }
        name
    }

    /// Whether the table has any [folded](DnsTable::folded) name with the last two labels of this one.
    pub fn knows(&self, name: &str) -> bool {
        self.suffixes.contains(suffix(name))
    }

    /// The addresses of a [folded](DnsTable::folded) name, and the TTL: that of the name itself, not of a wildcard that stands for it.
    pub fn look_up(&self, name: &str) -> Option<(&Addresses, Duration)> {
        if let Some(exact) = self.names.get(name) {
            return Some((exact, exact.ttl));
        }
        let wildcard = name.match_indices('.').find_map(|(at, _)| self.names.get(name.get(at..)?));
        wildcard.map(|addresses| (addresses, DEFAULT_TTL))
    }
}

/// The last two labels.
fn suffix(name: &str) -> &str {
    let name = name.strip_prefix('.').unwrap_or(name);
    let mut dots = name.rmatch_indices('.');
    dots.next();
    dots.next().and_then(|(at, _)| name.get(at + 1..)).unwrap_or(name)
}
