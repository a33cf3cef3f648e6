//! Names of the mesh, for whatever answers DNS beside the workload.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::{ProxyFeatures, Redirection};
use crate::resource::Meta;

/// How long an answer may be kept, seconds. Gateways in front of a mesh depend on this value (Kuma issue 13463).
pub(crate) const TTL: u32 = 30;
/// The document of the dynamic configuration with the records.
pub const DNS_PATH: &str = "/dns";

/// A name with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Record {
    /// The name, without a dot at the end.
    pub name: String,
    /// Its addresses.
    pub ips: Vec<String>,
}

/// How names reach a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DnsPlan {
    /// As the document [`DNS_PATH`] of the dynamic configuration, JSON: the proxy answers DNS itself.
    Document(String),
    /// As a UDP listener on this port of loopback, behind which CoreDNS forwards what is not there.
    Filter {
        /// The port.
        port: u32,
        /// The records, sorted by name.
        records: Vec<Record>,
    },
}

/// The document with the records (Kuma `pkg/dns/dpapi`).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    records: &'a [Record],
    ttl: u32,
    extra_labels: BTreeMap<&'static str, &'a str>,
}

/// What a proxy is told of names: those whose address it has a listener for. `names` are pairs of address and name. Nothing without
/// redirection: names lead to addresses that nothing else takes in.
pub(super) fn dns<'a>(
    meta: &Meta,
    redirection: Redirection,
    features: &ProxyFeatures,
    listening: &BTreeSet<IpAddr>,
    names: impl Iterator<Item = (IpAddr, &'a str)>,
) -> Option<DnsPlan> {
    if features.dns_port == 0 {
        return None;
    }
    let mut known: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (address, name) in names {
        if !listening.contains(&address) {
            continue;
        }
        let ips = known.entry(name).or_default();
        // A client that asks for an IPv6 address gets the IPv4 one in IPv6 notation: its connection is IPv4 all the same.
        let mapped = match address {
            IpAddr::V4(v4) if redirection.ipv6 => Some(mapped(v4)),
            _ => None,
        };
        for ip in [Some(address.to_string()), mapped].into_iter().flatten() {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    let records: Vec<Record> = known.into_iter().map(|(name, ips)| Record { name: name.to_owned(), ips }).collect();
    if !features.embedded_dns {
        return Some(DnsPlan::Filter { port: features.dns_port, records });
    }
    let labels = [
        ("k8s_kuma_io_namespace", "k8s.kuma.io/namespace"),
        ("kuma_io_zone", "kuma.io/zone"),
        ("kuma_workload", "kuma.io/workload"),
    ];
    let mut extra_labels: BTreeMap<&'static str, &str> = labels
        .into_iter()
        .filter_map(|(key, label)| Some((key, meta.labels.get(label).filter(|value| !value.is_empty())?.as_str())))
        .collect();
    extra_labels.insert("mesh", &meta.mesh);
    let document = Document { records: &records, ttl: TTL, extra_labels };
    // Strings and numbers always have a JSON form.
    serde_json::to_string(&document).ok().map(DnsPlan::Document)
}

/// An IPv4 address in IPv6 notation, as Kuma writes it (`util/net.ToV6`).
fn mapped(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets().map(u32::from);
    format!("::ffff:{:x}:{:x}", a << 8 | b, c << 8 | d)
}
