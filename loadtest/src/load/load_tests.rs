#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::echo::{self, Mode, Service};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn start_echo(mode: Mode) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(echo::serve(listener, mode, Service::default()));
    address
}

fn plan(target: SocketAddr, protocol: Protocol) -> Plan {
    Plan {
        host: "service".into(),
        connections: 3,
        streams: 2,
        timeout: Duration::from_secs(20),
        ..Plan::to(target, protocol)
    }
}

/// Runs a load until it has at least `wanted` good replies.
async fn run_until(plan: &Plan, wanted: u64) -> Record {
    let load = Load::start(plan);
    load.record();
    while load.progress().completed() < wanted {
        tokio::task::yield_now().await;
    }
    load.finish().await
}

#[tokio::test]
async fn every_protocol_reaches_the_echo_service() {
    let http = start_echo(Mode::Http).await;
    let tcp = start_echo(Mode::Tcp).await;
    for (protocol, target) in [(Protocol::Http1, http), (Protocol::Http2, http), (Protocol::Tcp, tcp)] {
        for (payload, new_connection) in [(0, false), (100, false), (0, true)] {
            let plan = Plan { payload, new_connection, ..plan(target, protocol) };
            let record = run_until(&plan, 50).await;
            assert_eq!(record.failed(), 0, "{protocol:?}: {:?}", record.first_failure);
            assert!(record.latency.count() >= 50, "{protocol:?}: {} replies", record.latency.count());
        }
    }
}

#[tokio::test]
async fn a_status_that_is_not_2xx_is_a_failure() {
    let target = start_echo(Mode::Http).await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        // Without an Upgrade header the service answers 426.
        let plan = Plan { path: "/ws".into(), connections: 1, streams: 1, ..plan(target, protocol) };
        let mut client = match protocol {
            Protocol::Http1 => Client::Http1(http1::Client::new(&Arc::new(plan))),
            _ => Client::Http2(http2::Client::new(http2::Shared::new(Arc::new(plan)))),
        };
        let failure = client.exchange().await.unwrap_err();
        assert_eq!(failure.kind(), "status_426", "{protocol:?}: {failure}");
    }
}

#[tokio::test]
async fn a_closed_port_counts_as_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    drop(listener);
    for protocol in [Protocol::Http1, Protocol::Http2, Protocol::Tcp] {
        let plan = plan(target, protocol);
        let mut client = match protocol {
            Protocol::Http1 => Client::Http1(http1::Client::new(&Arc::new(plan))),
            Protocol::Http2 => Client::Http2(http2::Client::new(http2::Shared::new(Arc::new(plan)))),
            _ => Client::Tcp(tcp::Client::new(&Arc::new(plan))),
        };
        let failure = client.exchange().await.unwrap_err();
        assert_eq!(failure.kind(), "connect", "{protocol:?}: {failure}");
    }
}

/// Answers the first connection with these bytes, then closes it.
async fn start_scripted(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await.unwrap();
        stream.write_all(answer).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    address
}

#[tokio::test]
async fn replies_of_a_scripted_peer() {
    let rows: &[(&'static [u8], &str)] = &[
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", "good"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nt: v\r\n\r\n", "good"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", "good"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", "good"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel", "closed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", "closed"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "protocol"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", "protocol"),
        (b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "status_503"),
        (b"", "closed"),
    ];
    for (answer, expected) in rows {
        let target = start_scripted(answer).await;
        let mut client = http1::Client::new(&Arc::new(plan(target, Protocol::Http1)));
        let outcome = client.exchange().await.map_or_else(|failure| failure.kind(), |()| "good".into());
        assert_eq!(outcome, *expected, "{}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn other_bytes_are_a_mismatch() {
    let target = start_scripted(b"y").await;
    let mut client = tcp::Client::new(&Arc::new(plan(target, Protocol::Tcp)));
    assert_eq!(client.exchange().await.unwrap_err().kind(), "mismatch");
}

#[tokio::test]
async fn messages_and_bulk_transfers() {
    let (grpc, bulk, http) = (start_echo(Mode::Grpc).await, start_echo(Mode::Bulk).await, start_echo(Mode::Http).await);
    for (protocol, target, payload, reply) in [
        (Protocol::Grpc, grpc, 64, 64),
        (Protocol::Grpc, grpc, 200_000, 200_000),
        (Protocol::GrpcStream, grpc, 64, 64),
        (Protocol::Bulk, bulk, 0, 3_000_000),
        (Protocol::Bulk, bulk, 3_000_000, 1),
        (Protocol::WebSocket, http, 64, 64),
    ] {
        let plan = Plan { payload, reply, ..plan(target, protocol) };
        let record = run_until(&plan, 20).await;
        assert_eq!(record.failed(), 0, "{protocol:?}: {:?}", record.first_failure);
    }
}

#[tokio::test]
async fn a_post_is_read_whole_and_a_reply_has_the_wanted_length() {
    let target = start_echo(Mode::Http).await;
    for (payload, path) in [(1_000_000, "/"), (0, "/bytes?n=300000")] {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let plan = Plan { payload, path: path.into(), ..plan(target, protocol) };
            let record = run_until(&plan, 20).await;
            assert_eq!(record.failed(), 0, "{protocol:?}: {:?}", record.first_failure);
        }
    }
}

#[tokio::test]
async fn an_open_loop_charges_the_wait_for_a_lane() {
    // The one lane answers once in 20 ms, the schedule wants 1,000 per second: the backlog shows in the latency.
    let target = start_echo(Mode::Http).await;
    let plan =
        Plan { connections: 1, rate: Some(1_000.0), path: "/slow?ms=20".into(), ..plan(target, Protocol::Http1) };
    let record = run_until(&plan, 5).await;
    assert_eq!(record.failed(), 0, "{:?}", record.first_failure);
    assert!(record.latency.max() >= Duration::from_millis(80), "the longest took {:?}", record.latency.max());
    assert!(record.lateness.count() > record.latency.count(), "more was due than was sent");
}
