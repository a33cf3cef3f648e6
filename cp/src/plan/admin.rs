//! The admin interface and the readiness of a proxy, as they are offered on the proxy's own address.

use super::{Cidr, ProxyFeatures};

/// What is offered of the admin interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AdminPlan {
    /// Where to listen; absent if the admin interface itself is there.
    pub listen: Option<(String, u32)>,
    /// Where the admin interface is.
    pub admin: AdminTarget,
    /// Where readiness is, on loopback.
    pub readiness: (String, u32),
    /// Whether workers share the port.
    pub reuse_port: bool,
    /// Addresses that count as internal.
    pub internal: Vec<Cidr>,
}

/// Where an admin interface is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AdminTarget {
    /// On TCP.
    Tcp(String, u32),
    /// On a UNIX socket with this path.
    Socket(String),
}

/// What is offered on `address`, the proxy's own. Nothing for a proxy without an admin interface, or without a port for its readiness.
///
/// # Errors
/// When the proxy claims that its admin interface is elsewhere than on its own host: what it proxies to is not its choice.
pub(super) fn admin(address: &str, features: &ProxyFeatures) -> Result<Option<AdminPlan>, String> {
    let Some(admin) = features.admin.as_ref().filter(|admin| admin.port != 0) else { return Ok(None) };
    if features.readiness_port == 0 {
        return Ok(None);
    }
    let loopback = match admin.address.as_str() {
        "" | "127.0.0.1" | "0.0.0.0" => "127.0.0.1",
        "::1" | "::" => "::1",
        other => {
            return Err(format!(
                "node.metadata[\"dataplane.admin.address\"] is {other:?}; only 127.0.0.1, 0.0.0.0, ::1 and :: are possible, \
                 so the admin interface is not offered on {address}"
            ));
        }
    };
    let target = if admin.socket.is_empty() {
        AdminTarget::Tcp(loopback.to_owned(), admin.port)
    } else {
        AdminTarget::Socket(admin.socket.clone())
    };
    let listen = (super::is_ip(address) && address != loopback).then(|| (address.to_owned(), admin.port));
    Ok(Some(AdminPlan {
        listen,
        admin: target,
        readiness: (loopback.to_owned(), features.readiness_port),
        reuse_port: features.reuse_port,
        internal: super::loopback_addresses(features.ipv6),
    }))
}
