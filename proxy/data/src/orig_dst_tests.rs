#![allow(clippy::unwrap_used, clippy::panic)]

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{
    model::{
        ListenerId,
        listener::{BindAddress, Terminal},
    },
    stats::Registry,
    testing::{self, chain, snapshot},
    worker,
};

#[tokio::test]
async fn a_direct_connection_has_none() {
    let (_client, accepted) = testing::pair().await;
    assert_eq!(original_destination(&Socket::Tcp(accepted.into())), None);
    let (unix, _other) = tokio::net::UnixStream::pair().unwrap();
    assert_eq!(original_destination(&Socket::Unix(unix)), None);
}

#[test]
fn addresses_of_this_host_are_told_from_others() {
    for (ip, ours) in [("127.0.0.1", true), ("127.9.9.9", true), ("::1", true), ("192.0.2.1", false)] {
        assert_eq!(is_local(ip.parse().unwrap()), ours, "{ip}");
    }
}

/// As Kuma lays them out: gates on 15001 and 15006 in both families, virtual listeners by address.
fn mesh() -> Arc<crate::snapshot::Snapshot> {
    let registry = Registry::new(1);
    let listener = |id: u32, address: &str, bound: bool, direction: TrafficDirection| {
        let mut listener = testing::listener(&registry, id, chain(0, Terminal::Close));
        listener.id = ListenerId(id);
        listener.addresses = vec![BindAddress::Ip { address: address.parse().unwrap(), ipv4_compat: false }];
        (listener.bind_to_port, listener.use_original_dst, listener.direction) = (bound, bound, direction);
        listener
    };
    use TrafficDirection::{Inbound, Outbound};
    snapshot(
        vec![
            listener(0, "0.0.0.0:15001", true, Outbound),
            listener(1, "[::]:15001", true, Outbound),
            listener(2, "0.0.0.0:15006", true, Inbound),
            listener(3, "[::]:15006", true, Inbound),
            listener(4, "240.0.0.1:80", false, Outbound),
            listener(5, "[fd00:fd00::1]:80", false, Outbound),
            listener(6, "10.0.0.5:8080", false, Inbound),
            listener(7, "[fd00::5]:8080", false, Inbound),
            listener(8, "0.0.0.0:9000", false, Outbound),
        ],
        Vec::new(),
    )
}

#[tokio::test]
async fn a_redirected_connection_finds_its_listener() {
    worker::enter_for_test(mesh());
    let snapshot = worker::snapshot();
    let (_client, accepted) = testing::pair().await;
    let socket = Socket::Tcp(accepted.into());
    for (accepted_by, destination, expected) in [
        // By address, and by wildcard.
        (0, "240.0.0.1:80", Ok(4)),
        (1, "[fd00:fd00::1]:80", Ok(5)),
        (2, "10.0.0.5:8080", Ok(6)),
        (3, "[fd00::5]:8080", Ok(7)),
        (0, "198.51.100.7:9000", Ok(8)),
        // By nobody: it stays.
        (0, "198.51.100.7:443", Ok(0)),
        (1, "[2001:db8::7]:443", Ok(1)),
        (2, "10.0.0.5:22", Ok(2)),
        // One redirection for both directions: the workload's own addresses are inbound.
        (0, "10.0.0.5:8080", Ok(6)),
        (0, "10.0.0.5:22", Ok(2)),
        (1, "[fd00::5]:22", Ok(3)),
        // The proxy of another host is none of ours.
        (0, "198.51.100.7:15001", Ok(0)),
        (0, "198.51.100.7:15006", Ok(0)),
        // Our own is.
        (0, "10.0.0.5:15001", Err(Loop::OwnListener)),
        (0, "10.0.0.5:15006", Err(Loop::OwnListener)),
        (1, "[fd00::5]:15001", Err(Loop::OwnListener)),
        (0, "127.0.0.1:15001", Err(Loop::OwnListener)),
        (2, "127.0.0.1:15006", Err(Loop::OwnListener)),
    ] {
        let accepting = snapshot.listener(ListenerId(accepted_by)).unwrap();
        let owner = match owner(&snapshot, accepting, Some(destination.parse().unwrap()), &socket, None) {
            Owner::Listener(listener) => Ok(listener.id.0),
            Owner::Loop(why) => Err(why),
        };
        assert_eq!(owner, expected, "{destination} by {accepted_by}");
        // Not redirected, it stays where it came in.
        match super::owner(&snapshot, accepting, None, &socket, None) {
            Owner::Listener(listener) => assert_eq!(listener.id.0, accepted_by),
            Owner::Loop(why) => panic!("{why}"),
        }
    }
}

#[tokio::test]
async fn a_connection_passed_on_that_comes_back_is_a_loop_as_long_as_it_lives() {
    worker::enter_for_test(mesh());
    let snapshot = worker::snapshot();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let socket = Socket::Tcp(socket.into());
    let accepting = snapshot.listener(ListenerId(0)).unwrap();
    let looped = || {
        let owner = owner(&snapshot, accepting, Some(([198, 51, 100, 7], 443).into()), &socket, Some(peer));
        matches!(owner, Owner::Loop(Loop::OwnConnection))
    };
    assert!(!looped());
    let passed_on = PassedOn::new(client.local_addr().unwrap());
    assert!(looped());
    drop(passed_on);
    assert!(!looped());
}
