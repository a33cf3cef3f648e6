#![allow(clippy::unwrap_used, clippy::panic)]

use std::{future::Future, os::unix::net::UnixListener as StdUnixListener};

use super::*;
use crate::{
    model::listener::Terminal,
    stats::Registry,
    testing::{chain, listener},
};

fn with(addresses: Vec<BindAddress>, reuse_port: bool) -> Listener {
    Listener { addresses, reuse_port, ..listener(&Registry::new(1), 0, chain(0, Terminal::Close)) }
}

fn ip(text: &str) -> BindAddress {
    BindAddress::Ip { address: text.parse().unwrap(), ipv4_compat: false }
}

#[test]
fn failures_of_accept_are_sorted() {
    for (errno, expected) in [
        (24, AcceptFailure::Exhausted),   // EMFILE
        (23, AcceptFailure::Exhausted),   // ENFILE
        (105, AcceptFailure::Exhausted),  // ENOBUFS
        (12, AcceptFailure::Exhausted),   // ENOMEM
        (103, AcceptFailure::Connection), // ECONNABORTED
        (104, AcceptFailure::Connection), // ECONNRESET
        (113, AcceptFailure::Connection), // EHOSTUNREACH
        (1, AcceptFailure::Connection),   // EPERM, from a firewall rule
        (9, AcceptFailure::Fatal),        // EBADF
        (22, AcceptFailure::Fatal),       // EINVAL
    ] {
        assert_eq!(sort_failure(Some(errno)), expected, "{errno}");
    }
    assert_eq!(sort_failure(None), AcceptFailure::Connection);
}

#[test]
fn pauses_grow_and_are_logged_once_per_period() {
    let mut back_off = BackOff::default();
    let now = Instant::now();
    let pauses: Vec<_> = (0..10).map(|_| back_off.failed(now)).collect();
    assert_eq!(pauses[0], (FIRST_PAUSE, true));
    assert_eq!(pauses[1], (FIRST_PAUSE * 2, false));
    assert_eq!(pauses[9], (LONGEST_PAUSE, false));
    back_off.succeeded();
    assert_eq!(back_off.failed(now + LOG_PERIOD), (FIRST_PAUSE, true));
}

#[test]
fn every_worker_gets_a_socket_on_the_same_port() {
    for reuse_port in [true, false] {
        let bound = bind(&with(vec![ip("127.0.0.1:0"), ip("[::1]:0")], reuse_port), 3).unwrap();
        assert_eq!(bound.addresses.len(), 2);
        for worker in &bound.per_worker {
            let ports: Vec<_> = worker
                .iter()
                .map(|socket| match socket {
                    Bound::Tcp(tcp) => tcp.local_addr().ok(),
                    Bound::Udp(udp) => udp.local_addr().ok(),
                    Bound::Unix(_) => None,
                })
                .collect();
            assert_eq!(ports, bound.addresses);
        }
    }
}

#[test]
fn datagrams_are_shared_only_if_the_port_may_be() {
    for (reuse_port, sockets) in [(true, [1, 1, 1]), (false, [1, 0, 0])] {
        let udp = BindAddress::Udp("127.0.0.1:0".parse().unwrap());
        let bound = bind(&with(vec![udp], reuse_port), 3).unwrap();
        assert_eq!(bound.per_worker.iter().map(Vec::len).collect::<Vec<_>>(), sockets);
        assert_ne!(bound.addresses[0].unwrap().port(), 0);
    }
}

#[test]
fn a_taken_port_is_an_error_with_address_and_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(&with(vec![ip(&address.to_string())], true), 1).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot bind '{address}': Address already in use"));
}

#[test]
fn a_virtual_listener_binds_nothing() {
    let bound = bind(&Listener { bind_to_port: false, ..with(vec![ip("10.9.8.7:1")], true) }, 2).unwrap();
    assert!(bound.addresses.is_empty() && bound.per_worker.iter().all(Vec::is_empty));
}

#[test]
fn an_address_of_nobody_needs_freebind() {
    let nobody = || vec![ip("192.0.2.1:0")];
    assert!(bind(&with(nobody(), true), 1).unwrap_err().to_string().contains("Cannot assign requested address"));
    bind(&Listener { freebind: true, ..with(nobody(), true) }, 1).unwrap();
}

#[test]
fn only_a_dead_socket_file_is_removed() {
    let directory =
        std::env::temp_dir().join(format!("shika-listen-{}-{:x}", std::process::id(), rand::random::<u64>()));
    fs::create_dir(&directory).unwrap();
    let unix = |name: &str, mode| with(vec![BindAddress::Unix { path: directory.join(name), mode }], true);

    drop(StdUnixListener::bind(directory.join("dead")).unwrap());
    let bound = bind(&unix("dead", Some(0o600)), 2).unwrap();
    assert_eq!(fs::metadata(directory.join("dead")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(bind(&unix("dead", None), 1).is_err(), "somebody answers now");
    drop(bound);

    fs::write(directory.join("file"), "text").unwrap();
    assert!(bind(&unix("file", None), 1).is_err());
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "text");
    fs::remove_dir_all(directory).unwrap();

    let name = format!("@shika-{:x}", rand::random::<u64>());
    let listener = with(vec![BindAddress::Unix { path: name.into(), mode: None }], true);
    let bound = bind(&listener, 1).unwrap();
    assert!(bind(&listener, 1).is_err());
    drop(bound);
    bind(&listener, 1).unwrap();
}

#[tokio::test]
async fn a_panicking_task_is_counted_and_ends_alone() {
    let server = ServerStats::new(&Registry::new(1), crate::testing::scope("server."));
    for panics in [false, true] {
        let guard = PanicCount(server.clone());
        let task = tokio::spawn(async move {
            let _guard = guard;
            tokio::task::yield_now().await;
            assert!(!panics, "on purpose");
        });
        assert_eq!(task.await.is_err(), panics);
        assert_eq!(server.worker_panic().total(), u64::from(panics));
    }
}

#[tokio::test]
async fn what_waits_is_accepted_and_what_comes_later_too() {
    let Bound::Tcp(socket) = bind(&with(vec![ip("127.0.0.1:0")], false), 1).unwrap().per_worker.remove(0).remove(0)
    else {
        panic!("not TCP")
    };
    let address = socket.local_addr().unwrap();
    let mut acceptor = TcpAcceptor::new(socket).unwrap();
    // One, several in one go, and again after none was left: the event loop tells of each of these once.
    for waiting in [1, 5, 2, 1] {
        let clients: Vec<_> = (0..waiting).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        for client in &clients {
            let (mut stream, peer) = acceptor.accept().await.unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
            std::io::Write::write_all(&mut &*client, b"x").unwrap();
            assert_eq!(tokio::io::AsyncReadExt::read_u8(&mut stream).await.unwrap(), b'x');
        }
        let none = std::future::poll_fn(|cx| {
            let mut next = std::pin::pin!(acceptor.accept());
            std::task::Poll::Ready(next.as_mut().poll(cx).is_pending())
        });
        assert!(none.await);
    }
}
