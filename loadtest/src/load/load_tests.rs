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
        target,
        protocol,
        host: "service".into(),
        path: "/".into(),
        payload: 0,
        connections: 3,
        streams: 2,
        rate: None,
        new_connection: false,
        timeout: Duration::from_secs(20),
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
            Protocol::Tcp => Client::Tcp(tcp::Client::new(&Arc::new(plan))),
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
async fn a_schedule_keeps_its_pace_and_charges_the_wait() {
    let begin = Instant::now();
    let due = begin.checked_sub(Duration::from_secs(1)).unwrap();
    let mut late = Schedule { due, interval: Duration::from_millis(100) };
    assert_eq!(late.next().await, due, "a lane that is behind is timed from the moment it was due");
    assert_eq!(late.next().await, due + Duration::from_millis(100));
    let mut early = Schedule { due: begin + Duration::from_millis(1), interval: Duration::from_millis(100) };
    assert!(early.next().await >= begin + Duration::from_millis(1), "a lane in time waits until it is due");
    for lane in 0..4 {
        let schedule = Schedule::new(begin, 1_000.0, lane, 4);
        assert_eq!(schedule.interval, Duration::from_millis(4));
        assert_eq!(schedule.due - begin, Duration::from_millis(lane as u64));
    }
}
