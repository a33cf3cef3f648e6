//! Connections that stay on this host are not paced.
//!
//! A congestion control that paces (BBR) lets each burst wait for a timer. Over a network that spares queues; on loopback there is none to spare, and the
//! timers take nearly half of what a transfer of 10 MB costs. So where the system paces, sockets that reach nothing but this host take Reno, which every
//! process may choose. All others keep what the system is set to.
//!
//! Source: tcp(7), `TCP_CONGESTION`; Documentation/networking/ip-sysctl.rst, `tcp_allowed_congestion_control`.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
};

const UNKNOWN: u8 = 0;
const PACES: u8 = 1;
const DOES_NOT: u8 = 2;

/// What the system's congestion control does. Looked up with the first socket: it is asked for at start, and seldom changed.
static SYSTEM: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Takes pacing from a TCP socket that will listen on, or connect to, this address, if that is a loopback address. To be called before either: a
/// connection that once was paced stays so. Best effort.
pub(crate) fn spare(socket: &socket2::Socket, address: IpAddr) {
    if !address.to_canonical().is_loopback() || SYSTEM.load(Relaxed) == DOES_NOT {
        return;
    }
    let Ok(name) = socket.tcp_congestion() else { return };
    SYSTEM.store(if paces(&name) { PACES } else { DOES_NOT }, Relaxed);
    if paces(&name) {
        let _ = socket.set_tcp_congestion(b"reno");
    }
}

/// Of those that Linux has, BBR and what descends from it pace by themselves. A name may be followed by NUL bytes.
fn paces(name: &[u8]) -> bool {
    name.starts_with(b"bbr")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn what_paces() {
        for (name, expected) in [
            (b"bbr\0\0\0".as_slice(), true),
            (b"bbr2", true),
            (b"bbr", true),
            (b"cubic\0", false),
            (b"reno", false),
            (b"", false),
        ] {
            assert_eq!(paces(name), expected, "{name:?}");
        }
    }

    #[test]
    fn loopback_alone_is_spared() {
        for (address, spared) in [
            ("127.0.0.1", true),
            ("127.0.0.6", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("192.0.2.1", false),
        ] {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let system = socket.tcp_congestion().unwrap();
            spare(&socket, address.parse().unwrap());
            let now = socket.tcp_congestion().unwrap();
            match spared {
                true => assert!(!paces(&now), "{address}: {now:?}"),
                false => assert_eq!(now, system, "{address}"),
            }
        }
    }
}
