//! How connections end for clients that are slow, or say nothing, or say more than they should.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::{PrivateKeyDer, ServerName};
use shika_data::{
    drain::{DrainScope, DrainStrategy},
    model::tls::Identity,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

use crate::{
    peer::{Client, Upstream, status},
    setup::{Proxy, Setup, start},
};

const PIECE: usize = 3_000;
const ENDLESS: usize = 10_000;

/// A client that has little room for what it does not read.
async fn narrow(proxy: &Proxy) -> Client {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&proxy.address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    Client { stream: TcpStream::from_std(socket.into()).unwrap(), rest: Vec::new() }
}

/// The same, speaking TLS with whom it trusts.
async fn narrow_tls(proxy: &Proxy, identity: &Identity) -> Client<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity.chain[0].clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from("a").unwrap(), narrow(proxy).await.stream).await.unwrap();
    Client { stream, rest: Vec::new() }
}

fn identity() -> Identity {
    let signed = rcgen::generate_simple_self_signed(vec!["a".into()]).unwrap();
    Identity {
        chain: vec![signed.cert.der().clone()],
        key: PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap(),
        path: "<inline>".into(),
    }
}

/// Sends `request`, whose answer has a body of so many pieces, and reads nothing; how many were taken while nobody read.
async fn ask<S>(client: &mut Client<S>, request: &str, proxy: &Proxy, upstream: &Upstream, pieces: usize) -> usize
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    client.send(request).await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send(&format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", pieces * PIECE)).await;
    let (sent, mut taken) = (proxy.sent(), pieces);
    for piece in 1..=pieces {
        server.send(&"y".repeat(PIECE)).await;
        if taken < pieces {
            continue;
        }
        let passed_on = async {
            while proxy.sent() < sent + (piece * PIECE) as u64 {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(Duration::from_millis(300), passed_on).await.is_err() {
            taken = piece - 1;
            // What does not fit is there as well, unless there is no end to it.
            if pieces == ENDLESS {
                break;
            }
        }
    }
    taken
}

const KEEP: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const CLOSE: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_slow_reader_gets_the_end_of_a_response_that_closes_its_connection() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    // How many pieces fit into the kernel's buffers.
    let fit = ask(&mut narrow(&proxy).await, CLOSE, &proxy, &upstream, ENDLESS).await;
    // The last of them does not.
    for pieces in fit.saturating_sub(2)..fit + 2 {
        let mut client = narrow(&proxy).await;
        ask(&mut client, CLOSE, &proxy, &upstream, pieces).await;
        client.head().await;
        client.body(pieces * PIECE).await;
        assert_eq!(client.read().await, 0);
    }
}

#[tokio::test]
async fn a_slow_reader_gets_the_end_of_a_response_over_tls() {
    let upstream = Upstream::new().await;
    let identity = identity();
    let setup = Setup { tls: Some(identity.clone()), ..Setup::new(upstream.address()) };
    let proxy = start(setup).await;
    // How many pieces fit into the kernel's buffers and those of TLS. Where the end of the answer is in the latter, hyper is done with it.
    let fit = ask(&mut narrow_tls(&proxy, &identity).await, CLOSE, &proxy, &upstream, ENDLESS).await;
    for pieces in [fit.saturating_sub(12), fit.saturating_sub(2), fit - 1, fit, fit + 1] {
        for request in [KEEP, CLOSE] {
            let mut client = narrow_tls(&proxy, &identity).await;
            ask(&mut client, request, &proxy, &upstream, pieces).await;
            // Slow: the connection would rest if its answer were sent.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            client.head().await;
            client.body(pieces * PIECE).await;
            if request == CLOSE {
                assert_eq!(client.read().await, 0);
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_not_waited_for_once_its_connection_is_to_end() {
    let upstream = Upstream::new().await;
    let setup = Setup { idle: Duration::from_millis(200), ..Setup::new(upstream.address()) };
    let proxy = start(setup).await;
    let stats = proxy.stats();
    let mut client = narrow(&proxy).await;
    let fit = ask(&mut client, KEEP, &proxy, &upstream, ENDLESS).await;
    drop(client);
    until("its connection ends with the client", || stats.downstream_cx_active().value() == 0).await;
    // All of the answer is in hyper's hands, so that no request is under way, and its end stays there.
    let mut client = narrow(&proxy).await;
    ask(&mut client, KEEP, &proxy, &upstream, fit + 2).await;
    until("the connection is idle for too long", || stats.downstream_cx_idle_timeout().total() == 1).await;
    until("and does not stay", || stats.downstream_cx_active().value() == 0).await;
    assert_eq!(stats.downstream_cx_delayed_close_timeout().total(), 1);
    drop(client);
}

#[tokio::test]
async fn the_last_answer_is_not_lost_to_requests_that_come_behind_its_own() {
    let upstream = Upstream::new().await;
    let setup = Setup { max_client_requests: Some(1), ..Setup::new(upstream.address()) };
    let proxy = start(setup).await;
    let fit = ask(&mut narrow(&proxy).await, KEEP, &proxy, &upstream, ENDLESS).await;
    let mut client = narrow(&proxy).await;
    // One comes with the first, one when the answer is written and the proxy would be done.
    ask(&mut client, &KEEP.repeat(2), &proxy, &upstream, fit - 2).await;
    client.send(KEEP).await;
    assert!(client.head().await.contains("connection: close\r\n"));
    client.body((fit - 2) * PIECE).await;
    assert_eq!(client.read().await, 0);
}

#[tokio::test]
async fn the_beginning_of_http2_and_nothing_else_holds_no_connection() {
    let upstream = Upstream::new().await;
    // By the drain.
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send("PRI * HTTP").await;
    until("it has come", || proxy.stats().downstream_cx_active().value() == 1).await;
    proxy.workers.drain(DrainScope::All, Some(DrainStrategy::Immediate), None).await;
    assert_eq!(client.read().await, 0);
    assert_eq!(proxy.stats().downstream_cx_drain_close().total(), 1);
    // By the idle timeout.
    let proxy = start(Setup { idle: Duration::from_millis(200), ..Setup::new(upstream.address()) }).await;
    for text in ["PRI * HTTP", ""] {
        let mut client = proxy.connect().await;
        client.send(text).await;
        assert_eq!(client.read().await, 0);
    }
    until("counted", || proxy.stats().downstream_cx_idle_timeout().total() == 2).await;
    // As a request whose head does not end in time.
    let limit = Some(Duration::from_millis(200));
    let proxy = start(Setup { request_headers: limit, ..Setup::new(upstream.address()) }).await;
    let mut client = proxy.connect().await;
    client.send("PRI * HTTP").await;
    let (head, body) = client.response().await;
    assert_eq!((status(&head), &*body), (408, "request header timeout"));
    assert_eq!(client.read().await, 0);
}
