//! The original destination of a redirected connection, and whose connection it is therefore.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, LazyLock},
};

use foldhash::{HashSet, HashSetExt};
use parking_lot::Mutex;
use socket2::SockRef;

use crate::{
    io::{Socket, canonical},
    model::listener::{Listener, TrafficDirection},
    worker::SnapshotRef,
};

/// What the client wanted to reach before the kernel redirected it (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`). `None` for a connection that was not
/// redirected, for Unix sockets, and where connection tracking is not available.
///
/// Source: Envoy `Network::Utility::getOriginalDst`.
pub fn original_destination(socket: &Socket) -> Option<SocketAddr> {
    let Socket::Tcp(tcp) = socket else { return None };
    let local = canonical(tcp.local_addr().ok()?);
    let socket = SockRef::from(&**tcp);
    // A v4 connection on a dual-stack socket is tracked as v4.
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = canonical(original.ok()?.as_socket()?);
    (original != local).then_some(original)
}

/// What becomes of a connection that has been accepted.
pub(crate) enum Owner<'a> {
    /// This listener serves it.
    Listener(&'a Arc<Listener>),
    /// Serving it would bring it back here, for ever.
    Loop(Loop),
}

/// Why a redirected connection is a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loop {
    /// Its destination is a listener that takes redirected connections, on this host.
    OwnListener,
    /// It comes from this process, which passes a connection on to its original destination.
    OwnConnection,
}

impl fmt::Display for Loop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OwnListener => "the destination is the proxy's own listener for redirected connections; connect to a service's port instead",
            Self::OwnConnection => {
                "the proxy's own connection was redirected back to it; exempt the proxy's user (and its source addresses 127.0.0.6 and ::6) in the redirection rules"
            }
        })
    }
}

/// Whose connection it is. A redirected one that came in by a listener with `use_original_dst` belongs to
/// 1. the listener with the very address of its original destination, else the one with the wildcard address and that port;
/// 2. the listener for inbound connections without a listener of their own, if its destination is an address of the workload: so one redirection to the
///    outbound listener suffices for both directions;
/// 3. the listener that accepted it.
///
/// Source: Envoy `ActiveTcpSocket::newConnection` for 1 and 3. Envoy has no rule against loops: it would serve them until it is out of descriptors.
pub(crate) fn owner<'a>(
    snapshot: &'a SnapshotRef,
    accepting: &'a Arc<Listener>,
    original: Option<SocketAddr>,
    socket: &Socket,
    peer: Option<SocketAddr>,
) -> Owner<'a> {
    let Some(destination) = original.filter(|_| accepting.use_original_dst) else { return Owner::Listener(accepting) };
    if peer.is_some_and(|peer| PASSED_ON.lock().contains(&peer)) {
        return Owner::Loop(Loop::OwnConnection);
    }
    let local = socket.local_address();
    let owner = snapshot.listener_for(destination);
    let to_redirected = match owner {
        Some(owner) => owner.takes_redirected(),
        None => local.is_some_and(|local| local.port() == destination.port()),
    };
    match owner {
        // Another host's proxy may well have the same port.
        _ if to_redirected => {
            let ip = destination.ip();
            let ours = local.is_some_and(|local| local.ip() == ip) || snapshot.is_inbound_address(ip) || is_local(ip);
            if ours { Owner::Loop(Loop::OwnListener) } else { Owner::Listener(accepting) }
        }
        Some(owner) => Owner::Listener(owner),
        None if accepting.direction == TrafficDirection::Outbound && snapshot.is_inbound_address(destination.ip()) => {
            Owner::Listener(snapshot.inbound_pass_through(destination).unwrap_or(accepting))
        }
        None => Owner::Listener(accepting),
    }
}

/// Whether an address is one of this host's: the kernel then chooses it as the source of packets to itself. Nothing is sent.
fn is_local(ip: IpAddr) -> bool {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let chosen = UdpSocket::bind((any, 0)).and_then(|probe| {
        probe.connect((ip, 9))?;
        probe.local_addr()
    });
    ip.is_loopback() || ip.is_unspecified() || chosen.is_ok_and(|chosen| chosen.ip() == ip)
}

/// Source addresses of the connections that pass others on to their original destination. Touched once per such connection.
static PASSED_ON: LazyLock<Mutex<HashSet<SocketAddr>>> = LazyLock::new(|| Mutex::new(HashSet::new()));

/// Marks an upstream connection as one of [`PASSED_ON`] as long as it lives.
#[derive(Debug)]
pub(crate) struct PassedOn(SocketAddr);

impl PassedOn {
    /// `source` is our end of it.
    pub(crate) fn new(source: SocketAddr) -> Self {
        PASSED_ON.lock().insert(canonical(source));
        PassedOn(canonical(source))
    }
}

impl Drop for PassedOn {
    fn drop(&mut self) {
        PASSED_ON.lock().remove(&self.0);
    }
}

#[cfg(test)]
#[path = "orig_dst_tests.rs"]
mod tests;
