//! Consistent hashing: `RouteAction.HashPolicy`, `type.v3.HashPolicy`, `Cluster.RingHashLbConfig`, `Cluster.MaglevLbConfig`.

use shika_data::model::hash::{HashCookie, HashPolicy, HashSource, RingFunction, Spread};
use shika_proto::envoy::{
    config::{
        cluster::v3::cluster::{LbConfig, MaglevLbConfig, RingHashLbConfig, ring_hash_lb_config::HashFunction},
        route::v3::route_action::{self, hash_policy::PolicySpecifier},
    },
    r#type::v3 as kinds,
};

use super::{Compiled, Fault, Within, duration, enumeration, matcher, non_empty};

/// Most entries of a ring.
const LARGEST_RING: u64 = 1 << 23;
/// Most entries of a Maglev table.
const LARGEST_MAGLEV: u64 = 5_000_011;

/// The policies of a route.
pub(crate) fn policies(from: &[route_action::HashPolicy]) -> Compiled<Vec<HashPolicy>> {
    let mut policies = Vec::with_capacity(from.len());
    for (index, one) in from.iter().enumerate() {
        let source = source(one).at("hash_policy", index)?;
        policies.extend(source.map(|source| HashPolicy { source, terminal: one.terminal }));
    }
    Ok(policies)
}

/// `None`: it hashes nothing.
fn source(from: &route_action::HashPolicy) -> Compiled<Option<HashSource>> {
    Ok(Some(match &from.policy_specifier {
        Some(PolicySpecifier::Header(header)) => {
            let rewrite = header.regex_rewrite.as_ref().map(matcher::substitution).transpose();
            HashSource::Header {
                name: matcher::header_ref(&header.header_name, "header_name").within("header")?,
                rewrite: rewrite.within("regex_rewrite").within("header")?,
            }
        }
        Some(PolicySpecifier::Cookie(cookie)) => {
            let mut attributes = Vec::with_capacity(cookie.attributes.len());
            for (index, attribute) in cookie.attributes.iter().enumerate() {
                let name = non_empty(&attribute.name, "name").at("attributes", index).within("cookie")?;
                attributes.push((name.into(), attribute.value.as_str().into()));
            }
            HashSource::Cookie(HashCookie {
                name: non_empty(&cookie.name, "name").within("cookie")?.into(),
                lifetime: duration(&cookie.ttl, "ttl").within("cookie")?.map(|ttl| ttl.as_secs()),
                path: cookie.path.as_str().into(),
                attributes,
            })
        }
        Some(PolicySpecifier::ConnectionProperties(properties)) => {
            return Ok(properties.source_ip.then_some(HashSource::SourceIp));
        }
        Some(PolicySpecifier::QueryParameter(query)) => {
            HashSource::Query(non_empty(&query.name, "name").within("query_parameter")?.into())
        }
        Some(PolicySpecifier::FilterState(_)) => {
            return Err(Fault::new("filter_state", "no filter state is made that could be hashed"));
        }
        None => return Err(Fault::new("policy_specifier", "value is required")),
    }))
}

/// Whether a `tcp_proxy` hashes the client's address.
pub(crate) fn source_ip(from: &[kinds::HashPolicy]) -> Compiled<bool> {
    use kinds::hash_policy::PolicySpecifier;
    match from {
        [] => Ok(false),
        [one] => match &one.policy_specifier {
            Some(PolicySpecifier::SourceIp(_)) => Ok(true),
            Some(PolicySpecifier::FilterState(_)) => {
                Err(Fault::new("hash_policy[0].filter_state", "no filter state is made that could be hashed"))
            }
            None => Err(Fault::new("hash_policy[0].policy_specifier", "value is required")),
        },
        more => {
            Err(Fault::new("hash_policy", format!("value must contain no more than 1 item(s), not {}", more.len())))
        }
    }
}

/// `lb_policy: RING_HASH`
pub(crate) fn ring(config: Option<&LbConfig>) -> Compiled<Spread> {
    let config = match config {
        Some(LbConfig::RingHashLbConfig(config)) => *config,
        _ => RingHashLbConfig::default(),
    };
    let size = |value: Option<u64>, field: &str, default: u64| match value {
        Some(size) if size > LARGEST_RING => Err(Fault::new(
            format!("ring_hash_lb_config.{field}"),
            format!("value must be less than or equal to {LARGEST_RING}, not {size}"),
        )),
        size => Ok(size.unwrap_or(default)),
    };
    let smallest = size(config.minimum_ring_size.map(|size| size.value), "minimum_ring_size", 1024)?;
    let largest = size(config.maximum_ring_size.map(|size| size.value), "maximum_ring_size", LARGEST_RING)?;
    if smallest > largest {
        return Err(Fault::new(
            "ring_hash_lb_config",
            format!("ring hash: minimum_ring_size ({smallest}) > maximum_ring_size ({largest})"),
        ));
    }
    let function = match enumeration(config.hash_function, "ring_hash_lb_config.hash_function")? {
        HashFunction::XxHash => RingFunction::Xx,
        HashFunction::MurmurHash2 => RingFunction::Murmur2,
    };
    Ok(Spread::Ring { smallest, largest, function })
}

/// `lb_policy: MAGLEV`
pub(crate) fn maglev(config: Option<&LbConfig>) -> Compiled<Spread> {
    let size = match config {
        Some(LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) })) => size.value,
        _ => 65_537,
    };
    let fault = |reason: String| Err(Fault::new("maglev_lb_config.table_size", reason));
    match size {
        _ if size > LARGEST_MAGLEV => {
            fault(format!("value must be less than or equal to {LARGEST_MAGLEV}, not {size}"))
        }
        _ if !is_prime(size) => fault(format!("The table size of maglev must be prime number, not {size}")),
        size => Ok(Spread::Maglev { size }),
    }
}

fn is_prime(number: u64) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use shika_proto::google::protobuf::UInt64Value;

    use super::*;

    #[test]
    fn sizes_are_checked() {
        let table = |size| {
            maglev(Some(&LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(UInt64Value { value: size }) })))
        };
        for (size, fine) in [
            (65_537, true),
            (2, true),
            (7, true),
            (0, false),
            (1, false),
            (9, false),
            (5_000_011, true),
            (5_000_023, false),
        ] {
            assert_eq!(table(size).is_ok(), fine, "{size}");
        }
        let size = |value| Some(UInt64Value { value });
        for (smallest, largest, fine) in [
            (None, None, true),
            (Some(64), Some(1024), true),
            (Some(2000), Some(1000), false),
            (None, Some(100), false),
            (Some(LARGEST_RING + 1), None, false),
        ] {
            let config = RingHashLbConfig {
                minimum_ring_size: smallest.and_then(size),
                maximum_ring_size: largest.and_then(size),
                ..Default::default()
            };
            assert_eq!(ring(Some(&LbConfig::RingHashLbConfig(config))).is_ok(), fine, "{smallest:?} {largest:?}");
        }
    }
}
