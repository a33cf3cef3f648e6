//! Host names in addresses: proxies are given IP addresses only.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::lookup;
use crate::resource::{Dataplane, ZoneEgress, ZoneIngress};

/// The Dataplane with host names in its addresses replaced by what they resolve to now. A name that does not resolve stays, and the
/// proxies of the mesh do without that endpoint.
pub(super) async fn dataplane(dataplane: &Arc<Dataplane>) -> Arc<Dataplane> {
    let Some(networking) = &dataplane.networking else { return dataplane.clone() };
    let addresses = [&networking.address, &networking.advertised_address];
    let Some(found) = resolved(&addresses, "Dataplane").await else { return dataplane.clone() };
    let mut dataplane = Dataplane::clone(dataplane);
    if let Some(networking) = &mut dataplane.networking {
        replace(&mut [&mut networking.address, &mut networking.advertised_address], &found);
    }
    Arc::new(dataplane)
}

/// As [`dataplane`], for a zone ingress.
pub(super) async fn ingress(ingress: &Arc<ZoneIngress>) -> Arc<ZoneIngress> {
    let Some(networking) = &ingress.networking else { return ingress.clone() };
    let addresses = [&networking.address, &networking.advertised_address];
    let Some(found) = resolved(&addresses, "ZoneIngress").await else { return ingress.clone() };
    let mut ingress = ZoneIngress::clone(ingress);
    if let Some(networking) = &mut ingress.networking {
        replace(&mut [&mut networking.address, &mut networking.advertised_address], &found);
    }
    Arc::new(ingress)
}

/// As [`dataplane`], for a zone egress.
pub(super) async fn egress(egress: &Arc<ZoneEgress>) -> Arc<ZoneEgress> {
    let Some(networking) = &egress.networking else { return egress.clone() };
    let Some(found) = resolved(&[&networking.address], "ZoneEgress").await else { return egress.clone() };
    let mut egress = ZoneEgress::clone(egress);
    if let Some(networking) = &mut egress.networking {
        replace(&mut [&mut networking.address], &found);
    }
    Arc::new(egress)
}

/// What the names among the addresses resolve to; `None` when there is no name among them.
async fn resolved(addresses: &[&String], whose: &str) -> Option<BTreeMap<String, String>> {
    let is_name = |address: &&&String| !address.is_empty() && !crate::plan::is_ip(address);
    let names: Vec<&String> = addresses.iter().filter(is_name).copied().collect();
    if names.is_empty() {
        return None;
    }
    let mut resolved = BTreeMap::new();
    for name in names {
        match lookup::addresses(name).await {
            Ok(mut found) => {
                // IPv4 first, then in numerical order: the same answer in another order is no change.
                found.sort_by_key(|ip| (ip.is_ipv6(), *ip));
                if let Some(ip) = found.first() {
                    resolved.insert(name.clone(), ip.to_string());
                }
            }
            Err(error) => tracing::warn!(%error, "the address of a {whose} does not resolve"),
        }
    }
    Some(resolved)
}

fn replace(addresses: &mut [&mut String], resolved: &BTreeMap<String, String>) {
    for address in addresses {
        if let Some(ip) = resolved.get(address.as_str()) {
            address.clone_from(ip);
        }
    }
}
