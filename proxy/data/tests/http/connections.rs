//! Connections that become something else, that end, and that carry HTTP/2.

use std::time::Duration;

use bytes::Bytes;
use shika_data::{
    drain::{DrainScope, DrainStrategy},
    model::cluster::UpstreamProtocol,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use crate::{
    peer::{Client, GET, Upstream, status},
    setup::{Setup, snapshot, start},
};

#[tokio::test]
async fn an_upgraded_connection_outlives_a_publication() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.upgrades = vec![("websocket".into(), true)];
    let mut again = Setup::new(upstream.address());
    again.upgrades = setup.upgrades.clone();
    again.generation = 2;
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    assert!(
        head.contains("upgrade: websocket\r\n") && head.to_ascii_lowercase().contains("connection: upgrade\r\n"),
        "{head}"
    );
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(status(&head), 101);
    proxy.workers.publish(snapshot(&again, &proxy.registry, &proxy.cluster)).await;
    client.send("ping").await;
    assert_eq!(server.body(4).await, "ping");
    server.send("pong").await;
    assert_eq!(client.body(4).await, "pong");
}

#[tokio::test]
async fn draining_closes_after_the_next_response() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send("GET /direct HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.response().await;
    proxy.workers.drain(DrainScope::All, Some(DrainStrategy::Immediate), None).await;
    client.send("GET /direct HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let (head, _) = client.response().await;
    assert!(head.contains("connection: close\r\n"), "{head}");
    assert_eq!(client.read().await, 0);
}

#[tokio::test]
async fn http2_goes_in_and_out() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.protocol = UpstreamProtocol::Http2;
    let proxy = start(setup).await;
    let serve = tokio::spawn(async move {
        let (stream, _) = upstream.0.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = accepted.unwrap();
            assert_eq!(request.uri().to_string(), "http://example.com/x");
            assert!(request.headers().get("host").is_none());
            let mut stream = respond.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"two"), true).unwrap();
        }
    });
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    for _ in 0..3 {
        let request = http::Request::get("http://example.com/x").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        let mut body = response.into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "two");
        sender = sender.ready().await.unwrap();
    }
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
    drop(sender);
    driving.abort();
    serve.abort();
}

/// A name with a quote in it, which is none: h2 lets it through.
#[tokio::test]
async fn trailers_that_are_none_break_the_request_and_not_its_connection() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let request = http::Request::post("http://example.com/").body(()).unwrap();
    let (response, mut body) = sender.send_request(request, false).unwrap();
    let mut server = upstream.accept().await;
    assert!(server.head().await.starts_with("POST / HTTP/1.1\r\n"));
    let name = http::HeaderName::from_lowercase(b"x-a\"b").unwrap();
    body.send_trailers([(name, http::HeaderValue::from_static("1"))].into_iter().collect()).unwrap();
    assert_eq!(response.await.unwrap().status(), 400);
    while server.read().await > 0 {}
    assert!(!String::from_utf8_lossy(&server.rest).contains("\r\n\r\n"), "the upstream saw the request's end");

    let mut sender = sender.ready().await.unwrap();
    let request = http::Request::get("http://example.com/direct").body(()).unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    driving.abort();
}

/// The way to the upstream is cut: nothing comes back, and nothing says that the connection is of no use.
#[tokio::test]
async fn a_silent_http2_connection_gets_no_further_requests() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.protocol = UpstreamProtocol::Http2;
    // Long enough for the requests that are answered.
    setup.timeout = Some(Duration::from_secs(4));
    let proxy = start(setup).await;
    let serve = tokio::spawn(async move {
        let (stream, _) = upstream.0.accept().await.unwrap();
        let mut silent = h2::server::handshake(stream).await.unwrap();
        let (_, mut respond) = silent.accept().await.unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        // The second request is taken, and nobody goes on with the connection.
        let _taken = silent.accept().await.unwrap().unwrap();
        let (stream, _) = upstream.0.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(accepted) = connection.accept().await {
            let (_, mut respond) = accepted.unwrap();
            respond.send_response(http::Response::new(()), true).unwrap();
        }
    });
    let mut answers = Vec::new();
    while answers.len() < 10 && answers.iter().filter(|status| **status == 200).count() < 2 {
        let mut client = proxy.connect().await;
        client.send(GET).await;
        answers.push(status(&client.response().await.0));
    }
    assert_eq!((answers.first(), answers.get(1), answers.last()), (Some(&200), Some(&504), Some(&200)), "{answers:?}");
    serve.abort();
}

#[tokio::test]
async fn what_follows_an_upgrade_request_is_for_the_other_side_of_the_tunnel() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.upgrades = vec![("websocket".into(), true)];
    let proxy = start(setup).await;
    // In one piece with the head, and as the beginning of a request that never ends. Neither is HTTP, however much it looks like it.
    for early in ["BREW\n", "GE", "GET /never HTTP/1.1\r\nhost: a\r\n\r\n", "\0\r\0"] {
        let mut client = proxy.connect().await;
        client
            .send(&format!("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n{early}"))
            .await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 101);
        client.send("later").await;
        assert_eq!(server.body(early.len() + 5).await, format!("{early}later"));
        client.stream.shutdown().await.unwrap();
        while server.read().await > 0 {}
        assert_eq!(server.rest, b"", "after {early:?}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_leave_http_after_all_ends() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.upgrades = vec![("websocket".into(), true)];
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    // The bytes behind the head were not looked at, so they are not served.
    client
        .send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nGET /direct HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
    let (head, body) = client.response().await;
    assert_eq!((status(&head), body.as_str()), (200, "no"));
    assert!(head.contains("connection: close\r\n"), "{head}");
    while client.read().await > 0 {}
    assert_eq!(client.rest, b"");
}

#[tokio::test]
async fn connections_that_begin_with_a_client_are_for_that_client_alone() {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new(upstream.local_addr().unwrap());
    setup.proxied = true;
    let proxy = start(setup).await;
    let accept = async || Client { stream: upstream.accept().await.unwrap().0, rest: Vec::new() };
    let line = |client: &Client| {
        let client = client.stream.local_addr().unwrap();
        format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", client.port(), proxy.address.port())
    };

    let (mut first, mut second) = (proxy.connect().await, proxy.connect().await);
    first.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut for_first = accept().await;
    let head = for_first.head().await;
    assert!(head.starts_with(&format!("{}GET /a HTTP/1.1\r\n", line(&first))), "{head}");
    for_first.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1").await;
    assert_eq!(first.response().await.1, "1");

    // Another client does not get the connection that is idle now.
    second.send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut for_second = accept().await;
    let head = for_second.head().await;
    assert!(head.starts_with(&format!("{}GET /b HTTP/1.1\r\n", line(&second))), "{head}");
    for_second.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2").await;
    assert_eq!(second.response().await.1, "2");

    // The same client does, and nothing is said about it again.
    first.send("GET /c HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = for_first.head().await;
    assert!(head.starts_with("GET /c HTTP/1.1\r\n"), "{head}");
    for_first.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n3").await;
    assert_eq!(first.response().await.1, "3");

    // It ends with its client.
    drop(first);
    assert_eq!(for_first.read().await, 0);
    second.send("GET /d HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(for_second.head().await.starts_with("GET /d "));
}

#[tokio::test]
async fn a_client_that_resets_a_stalled_upload_does_not_leave_its_request_behind() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.timeout = None;
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    // The upstream reads nothing more, so the proxy stops reading too. A machine that is slow here ends the upload early, which is as good.
    let piece = vec![b'x'; 1 << 16];
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), client.stream.write(&piece)).await {
        written.unwrap();
    }
    assert_eq!(proxy.cluster.stats.upstream_rq_active().value(), 1);
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let ended = async {
        while proxy.cluster.stats.upstream_rq_active().value() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the request ends with its client");
}
