//! `/listeners`.
//!
//! Source: Envoy `envoy.admin.v3.Listeners`.

use std::{fmt::Write, sync::Arc};

use serde_json::{Value, json};
use shika_data::model::listener::BindAddress;

/// One line per address.
pub fn text(listeners: &[(Arc<str>, Vec<BindAddress>)]) -> String {
    let mut out = String::new();
    for (name, addresses) in listeners {
        for address in addresses {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{name}::{}", display(address));
        }
    }
    out
}

/// `listener_statuses`
pub fn json(listeners: &[(Arc<str>, Vec<BindAddress>)]) -> Value {
    let statuses: Vec<_> = listeners
        .iter()
        .map(|(name, addresses)| {
            let mut addresses = addresses.iter().map(socket_address);
            let mut status = json!({"name": name.as_ref(), "local_address": addresses.next()});
            let additional: Vec<_> = addresses.collect();
            if !additional.is_empty() {
                status["additional_local_addresses"] = additional.into();
            }
            status
        })
        .collect();
    json!({"listener_statuses": statuses})
}

/// As Envoy prints addresses.
pub fn display(address: &BindAddress) -> String {
    match address {
        BindAddress::Ip { address, .. } | BindAddress::Udp(address) => address.to_string(),
        BindAddress::Unix { path, .. } => path.display().to_string(),
    }
}

/// `core.v3.Address`
pub fn socket_address(address: &BindAddress) -> Value {
    match address {
        BindAddress::Ip { address, .. } => {
            json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
        }
        BindAddress::Udp(address) => {
            json!({"socket_address": {"protocol": "UDP", "address": address.ip().to_string(), "port_value": address.port()}})
        }
        BindAddress::Unix { path, mode } => match mode {
            Some(mode) => json!({"pipe": {"path": path.display().to_string(), "mode": mode}}),
            None => json!({"pipe": {"path": path.display().to_string()}}),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let ip = |text: &str| BindAddress::Ip { address: text.parse().expect("an address"), ipv4_compat: false };
        let listeners = [
            (Arc::from("a"), vec![ip("127.0.0.1:80"), ip("[::1]:81")]),
            (Arc::from("b"), vec![BindAddress::Unix { path: "/tmp/x".into(), mode: Some(0o600) }]),
        ];
        assert_eq!(text(&listeners), "a::127.0.0.1:80\na::[::1]:81\nb::/tmp/x\n");
        assert_eq!(
            json(&listeners),
            json!({"listener_statuses": [
                {"name": "a", "local_address": {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
                 "additional_local_addresses": [{"socket_address": {"address": "::1", "port_value": 81}}]},
                {"name": "b", "local_address": {"pipe": {"path": "/tmp/x", "mode": 384}}},
            ]})
        );
    }
}
