//! Consistent hashing: what of a request is hashed, and how hosts lie on a ring or in a Maglev table.
//!
//! Source: Envoy `RouteAction.HashPolicy`, `Cluster.RingHashLbConfig`, `Cluster.MaglevLbConfig`.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use regex::Regex;
use xxhash_rust::xxh64::xxh64;

use super::matcher::HeaderRef;
use crate::{
    stats::{MaglevStats, Registry, RingHashStats, Scope},
    upstream::lb::hashing::Table,
};

/// Envoy `RouteAction.HashPolicy`: one thing that is hashed.
#[derive(Clone, Debug)]
pub struct HashPolicy {
    /// What.
    pub source: HashSource,
    /// Nothing after it is hashed once there is a hash.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Clone, Debug)]
pub enum HashSource {
    /// `header`: all values, sorted.
    Header {
        /// Which.
        name: HeaderRef,
        /// `regex_rewrite`: what of each value, in the regex crate's syntax.
        rewrite: Option<(Regex, Box<str>)>,
    },
    /// `cookie`
    Cookie(HashCookie),
    /// `connection_properties.source_ip`: who asks, without the port.
    SourceIp,
    /// `query_parameter`: the first value, as written in the URL.
    Query(Box<str>),
}

/// Envoy `RouteAction.HashPolicy.Cookie`.
#[derive(Clone, Debug)]
pub struct HashCookie {
    /// Name.
    pub name: Box<str>,
    /// A request without it gets one that lives this many seconds, 0 as long as the client's session. `None`: it gets none.
    pub lifetime: Option<u64>,
    /// Where the client sends it.
    pub path: Box<str>,
    /// More attributes, with their values.
    pub attributes: Vec<(Box<str>, Box<str>)>,
}

impl HashCookie {
    /// The `set-cookie` of a value made by us, as Envoy writes it.
    pub fn set(&self, value: &str) -> String {
        use std::fmt::Write;
        let mut text = format!("{}=\"{value}\"", self.name);
        // Writing to a string does not fail.
        if let Some(lifetime) = self.lifetime.filter(|lifetime| *lifetime > 0) {
            let _ = write!(text, "; Max-Age={lifetime}");
        }
        if !self.path.is_empty() {
            let _ = write!(text, "; Path={}", self.path);
        }
        for (name, value) in &self.attributes {
            let equals = if value.is_empty() { "" } else { "=" };
            let _ = write!(text, "; {name}{equals}{value}");
        }
        text.push_str("; HttpOnly");
        text
    }
}

/// A hash so far, and the hash of one more thing. Turned first, so that two equal things do not cancel each other out.
pub fn combine(so_far: Option<u64>, more: u64) -> u64 {
    so_far.map_or(0, |so_far| so_far.rotate_left(1)) ^ more
}

/// The hash of everything that Envoy hashes but rings of [`RingFunction::Murmur2`].
pub fn hash(bytes: &[u8]) -> u64 {
    xxh64(bytes, 0)
}

/// The hash of several texts, each of which seeds that of the next.
pub fn hash_all<'a>(texts: impl Iterator<Item = &'a str>) -> u64 {
    texts.fold(0, |seed, text| xxh64(text.as_bytes(), seed))
}

/// How hosts are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// `RING_HASH`
    Ring {
        /// At least so many entries, more where weights ask for it. Envoy's default 1024.
        smallest: u64,
        /// At most so many. Envoy's default 8 Mi.
        largest: u64,
        /// Hash of the entries.
        function: RingFunction,
    },
    /// `MAGLEV`
    Maglev {
        /// Entries, a prime number. Envoy's default 65,537.
        size: u64,
    },
}

/// Envoy `RingHashLbConfig.HashFunction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFunction {
    /// `XX_HASH`
    Xx,
    /// `MURMUR_HASH_2`, in its 64-bit form.
    Murmur2,
}

impl RingFunction {
    /// The hash of an entry's name.
    pub fn hash(self, bytes: &[u8]) -> u64 {
        match self {
            RingFunction::Xx => hash(bytes),
            RingFunction::Murmur2 => murmur2(bytes),
        }
    }
}

/// Consistent hashing of one cluster.
#[derive(Debug)]
pub struct Hashing {
    /// How hosts are spread.
    pub spread: Spread,
    /// `use_hostname_for_hashing`: a host lies where its name says, not its address.
    pub by_hostname: bool,
    /// Sizes of the tables.
    pub stats: HashStats,
    /// Tables in use, so that workers with the same hosts share one: a table is too large to have many. Looked at when the hosts change.
    pub(crate) tables: Mutex<Vec<Weak<Table>>>,
}

/// `cluster.<name>.ring_hash_lb.` or `.maglev_lb.`
#[derive(Clone, Debug)]
pub enum HashStats {
    /// Of a ring.
    Ring(RingHashStats),
    /// Of a Maglev table.
    Maglev(MaglevStats),
}

impl Hashing {
    /// For a cluster whose statistics are in `cluster`.
    pub fn new(registry: &Registry, cluster: &Scope, spread: Spread, by_hostname: bool) -> Self {
        let scope = |name: &str| Scope {
            prefix: format!("{}{name}.", cluster.prefix),
            stem: format!("{}{name}.", cluster.stem),
            tags: cluster.tags.clone(),
        };
        let stats = match spread {
            Spread::Ring { .. } => HashStats::Ring(RingHashStats::new(registry, scope("ring_hash_lb"))),
            Spread::Maglev { .. } => HashStats::Maglev(MaglevStats::new(registry, scope("maglev_lb"))),
        };
        Hashing { spread, by_hostname, stats, tables: Mutex::default() }
    }

    /// The table of these hosts, made if no worker has it yet.
    pub(crate) fn table(&self, wanted: Table) -> Arc<Table> {
        let mut tables = self.tables.lock();
        let mut found = None;
        tables.retain(|table| match table.upgrade() {
            Some(table) => {
                if table.has_hosts_of(&wanted) {
                    found = Some(table);
                }
                true
            }
            None => false,
        });
        found.unwrap_or_else(|| {
            let table = Arc::new(wanted.filled(self));
            tables.push(Arc::downgrade(&table));
            table
        })
    }
}

/// MurmurHash2 in its 64-bit form, with the seed that Envoy (and libstdc++ before it) has.
fn murmur2(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(MULTIPLIER);
    let mut words = bytes.chunks_exact(8);
    for word in words.by_ref() {
        let word = word.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)).wrapping_mul(MULTIPLIER);
        hash = (hash ^ (word ^ word >> 47).wrapping_mul(MULTIPLIER)).wrapping_mul(MULTIPLIER);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        let word = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        hash = (hash ^ word).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ hash >> 47).wrapping_mul(MULTIPLIER);
    hash ^ hash >> 47
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Envoy's own tests of its hash functions.
    #[test]
    fn hashes_are_envoys() {
        for (text, value) in [("foo", 3_728_699_739_546_630_719), ("bar", 5_234_164_152_756_840_025)] {
            assert_eq!(hash(text.as_bytes()), value, "{text}");
        }
        for (text, value) in [("foo", 9_631_199_822_919_835_226), ("bar", 11_474_628_671_133_349_555)] {
            assert_eq!(murmur2(text.as_bytes()), value, "{text}");
        }
    }

    #[test]
    fn several_texts_are_not_one() {
        assert_eq!(hash_all(["foo"].into_iter()), hash(b"foo"));
        assert_ne!(hash_all(["foo", "bar"].into_iter()), hash(b"foobar"));
        assert_eq!(hash_all(["foo", "bar"].into_iter()), xxh64(b"bar", hash(b"foo")));
    }

    #[test]
    fn equal_things_do_not_cancel_each_other_out() {
        assert_eq!(combine(None, 5), 5);
        assert_eq!(combine(Some(5), 5), 10 ^ 5);
        assert_eq!(combine(Some(1 << 63), 0), 1);
    }

    #[test]
    fn cookies_are_written_as_envoy_writes_them() {
        let cookie = |lifetime, path: &str, attributes: &[(&str, &str)]| HashCookie {
            name: "sticky".into(),
            lifetime,
            path: path.into(),
            attributes: attributes.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        };
        for (cookie, text) in [
            (cookie(Some(60), "/a", &[]), "sticky=\"0f\"; Max-Age=60; Path=/a; HttpOnly"),
            (cookie(Some(0), "", &[]), "sticky=\"0f\"; HttpOnly"),
            (
                cookie(Some(1), "/", &[("Secure", ""), ("SameSite", "Lax")]),
                "sticky=\"0f\"; Max-Age=1; Path=/; Secure; SameSite=Lax; HttpOnly",
            ),
        ] {
            assert_eq!(cookie.set("0f"), text);
        }
    }
}
