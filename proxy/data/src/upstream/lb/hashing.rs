//! Rings and Maglev tables: the same hash leads to the same host, and most keep theirs when hosts come and go.
//!
//! Source: Envoy "Ring hash", "Maglev", `ThreadAwareLoadBalancerBase`, `RingHashLoadBalancer::Ring`, `MaglevTable`. A host has to lie where Envoy puts it:
//! proxies of both kinds send the requests of one client to one host.

use std::{fmt::Write, sync::Arc};

use crate::model::{
    cluster::{Endpoint, Locality, Priority},
    hash::{HashStats, Hashing, RingFunction, Spread, hash},
    labels::Label,
};

/// Key of `envoy.lb` metadata that says where a host lies.
const HASH_KEY: &str = "hash_key";

/// Hosts with their shares of all hashes, and where each hash leads.
#[derive(Debug)]
pub(crate) struct Table {
    hosts: Vec<Arc<Endpoint>>,
    /// Of 1.
    shares: Vec<f64>,
    /// Ring: hashes of the entries, ascending. Empty for Maglev.
    hashes: Vec<u64>,
    /// Which host an entry is.
    entries: Vec<u32>,
}

impl Table {
    /// Of hosts among which the weights of hosts count, and those of localities where `by_locality`. Without entries yet.
    pub(super) fn of(priority: &Priority, hosts: Vec<Arc<Endpoint>>, by_locality: bool) -> Self {
        let mut table = Table { hosts: Vec::new(), shares: Vec::new(), hashes: Vec::new(), entries: Vec::new() };
        if !by_locality || priority.localities.is_empty() {
            table.add(hosts, 1.0);
            return table;
        }
        let sum: f64 = priority.localities.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut localities: Vec<&(Arc<Locality>, u32)> = priority.localities.iter().collect();
        localities.sort_by(|(a, _), (b, _)| (&a.region, &a.zone, &a.sub_zone).cmp(&(&b.region, &b.zone, &b.sub_zone)));
        for (locality, weight) in localities.into_iter().filter(|(_, weight)| *weight > 0) {
            let here = hosts.iter().filter(|host| *host.locality == **locality).cloned().collect();
            table.add(here, f64::from(*weight) / sum);
        }
        table
    }

    fn add(&mut self, hosts: Vec<Arc<Endpoint>>, share: f64) {
        let sum: f64 = hosts.iter().map(|host| f64::from(host.weight)).sum();
        self.shares.extend(hosts.iter().map(|host| f64::from(host.weight) * share / sum));
        self.hosts.extend(hosts);
    }

    /// Whether it is about the same hosts, with the same shares.
    pub(crate) fn has_hosts_of(&self, other: &Table) -> bool {
        self.hosts.len() == other.hosts.len()
            && self.hosts.iter().zip(&other.hosts).all(|(a, b)| Arc::ptr_eq(a, b))
            && self.shares == other.shares
    }

    /// The host for a hash. `attempt` counts the choices before, of this request, that somebody did not like.
    pub(super) fn choose(&self, hash: u64, attempt: u32, spread: Spread) -> Option<&Arc<Endpoint>> {
        let size = self.entries.len() as u64;
        if size == 0 {
            return None;
        }
        let attempt = u64::from(attempt);
        let at = match spread {
            Spread::Ring { .. } => {
                let first = self.hashes.partition_point(|entry| *entry < hash) as u64 % size;
                (first + attempt) % size
            }
            Spread::Maglev { .. } if attempt > 0 => (hash ^ (u64::MAX - attempt + 1)) % size,
            Spread::Maglev { .. } => hash % size,
        };
        self.hosts.get(*self.entries.get(at as usize)? as usize)
    }

    /// With its entries.
    pub(crate) fn filled(mut self, hashing: &Hashing) -> Self {
        if !self.hosts.is_empty() {
            match hashing.spread {
                Spread::Ring { smallest, largest, function } => {
                    self.ring(smallest, largest, function, hashing.by_hostname)
                }
                Spread::Maglev { size } => self.maglev(size, hashing.by_hostname),
            }
        }
        self.count(&hashing.stats);
        self
    }

    fn ring(&mut self, smallest: u64, largest: u64, function: RingFunction, by_hostname: bool) {
        let least = self.shares.iter().copied().fold(1.0, f64::min);
        // The least host gets a whole number of entries, as long as the ring does not grow too large for it.
        let scale = ((least * smallest as f64).ceil() / least).min(largest as f64);
        let mut ring: Vec<(u64, u32)> = Vec::with_capacity(scale.ceil() as usize);
        let (mut made, mut due) = (0.0, 0.0);
        let mut name = String::new();
        for (index, (host, share)) in self.hosts.iter().zip(&self.shares).enumerate() {
            due += scale * share;
            name.clear();
            push_key(&mut name, host, by_hostname);
            name.push('_');
            let stem = name.len();
            let mut copy = 0u64;
            while made < due {
                name.truncate(stem);
                // Writing to a string does not fail.
                let _ = write!(name, "{copy}");
                ring.push((function.hash(name.as_bytes()), index as u32));
                copy += 1;
                made += 1.0;
            }
        }
        ring.sort_by_key(|(hash, _)| *hash);
        (self.hashes, self.entries) = ring.into_iter().unzip();
    }

    fn maglev(&mut self, size: u64, by_hostname: bool) {
        const FREE: u32 = u32::MAX;
        struct Turn {
            host: u32,
            offset: u64,
            skip: u64,
            share: f64,
            due: f64,
            next: u64,
        }
        let mut keys: Vec<(String, u32)> = Vec::with_capacity(self.hosts.len());
        for (index, host) in self.hosts.iter().enumerate() {
            let mut key = String::new();
            push_key(&mut key, host, by_hostname);
            keys.push((key, index as u32));
        }
        // Whoever comes first takes the place; so the order must not depend on who told of the hosts, and how.
        keys.sort();
        let most = self.shares.iter().copied().fold(0.0, f64::max);
        let mut turns: Vec<Turn> = keys
            .iter()
            .map(|(key, host)| Turn {
                host: *host,
                offset: hash(key.as_bytes()) % size,
                skip: xxhash_rust::xxh64::xxh64(key.as_bytes(), 1) % (size - 1) + 1,
                share: self.shares.get(*host as usize).copied().unwrap_or(0.0),
                due: 0.0,
                next: 0,
            })
            .collect();
        let mut entries = vec![FREE; size as usize];
        let mut filled = 0;
        let mut round = 1.0;
        while filled < size {
            for turn in &mut turns {
                if filled == size {
                    break;
                }
                // The host with the largest share takes a place in every round, one with a third of it in every third.
                if round * turn.share < turn.due {
                    continue;
                }
                turn.due += most;
                // A prime size makes every skip visit every place, so there is a free one among them.
                for _ in 0..size {
                    let place = (turn.offset + turn.skip * turn.next) % size;
                    turn.next += 1;
                    if let Some(entry) = entries.get_mut(place as usize).filter(|entry| **entry == FREE) {
                        *entry = turn.host;
                        break;
                    }
                }
                filled += 1;
            }
            round += 1.0;
        }
        self.entries = entries;
    }

    fn count(&self, stats: &HashStats) {
        let mut per_host = vec![0u64; self.hosts.len()];
        for entry in &self.entries {
            if let Some(count) = per_host.get_mut(*entry as usize) {
                *count += 1;
            }
        }
        let (least, most) = (per_host.iter().copied().min().unwrap_or(0), per_host.iter().copied().max().unwrap_or(0));
        match stats {
            HashStats::Ring(stats) => {
                stats.size().set(self.entries.len() as u64);
                stats.min_hashes_per_host().set(least);
                stats.max_hashes_per_host().set(most);
            }
            HashStats::Maglev(stats) => {
                stats.min_entries_per_host().set(least);
                stats.max_entries_per_host().set(most);
            }
        }
    }
}

/// Where a host lies.
fn push_key(out: &mut String, host: &Endpoint, by_hostname: bool) {
    if let Some(Label::Text(key)) = host.labels.as_ref().and_then(|labels| labels.value(HASH_KEY))
        && !key.is_empty()
    {
        out.push_str(key);
    } else if by_hostname {
        out.push_str(host.hostname.as_deref().unwrap_or_default());
    } else {
        let _ = write!(out, "{}", host.address);
    }
}

#[cfg(test)]
#[path = "hashing_tests.rs"]
mod tests;
