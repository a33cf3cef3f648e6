//! One request and its answer.

use std::time::Duration;

use crate::{
    peer::{GET, Upstream, status},
    setup::{Setup, start},
};

#[tokio::test]
async fn requests_go_over_one_pooled_connection() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let mut server = upstream.accept().await;
    for turn in 0..3 {
        let head = server.head().await;
        assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{head}");
        for expected in [
            "host: example.com\r\n",
            "x-mine: 1\r\n",
            "x-forwarded-proto: http\r\n",
            "x-request-id: ",
            "x-envoy-expected-rq-timeout-ms: 15000\r\n",
        ] {
            assert!(head.contains(expected), "{expected} in {head}");
        }
        server.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nserver: mine\r\nconnection: keep-alive\r\n\r\nhi").await;
        let (head, body) = client.response().await;
        assert_eq!((status(&head), body.as_str()), (200, "hi"));
        assert!(head.contains("server: envoy\r\n") && head.contains("x-envoy-upstream-service-time: "), "{head}");
        assert!(!head.contains("connection:"), "{head}");
        if turn < 2 {
            client.send(GET).await;
        }
    }
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
    assert_eq!(proxy.cluster.stats.upstream_rq_total().total(), 3);
    assert_eq!(proxy.cluster.stats.upstream_rq_active().value(), 0);
}

#[tokio::test]
async fn a_chunked_request_and_response_pass() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let mut server = upstream.accept().await;
    let head = server.head().await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    assert_eq!(server.body(13).await, "3\r\nabc\r\n0\r\n\r\n");
    server.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    assert_eq!(client.body(12).await, "2\r\nhi\r\n0\r\n\r\n");
}

#[tokio::test]
async fn a_pooled_connection_that_the_upstream_closed_costs_no_request() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.limits.max_connections = 1;
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    for _ in 0..5 {
        client.send(GET).await;
        let mut server = upstream.accept().await;
        server.head().await;
        server.send("HTTP/1.1 204 No Content\r\n\r\n").await;
        let (head, _) = client.response().await;
        assert_eq!(status(&head), 204);
        drop(server);
    }
    // A connection that turned out to be closed is not in the way of the one that is made instead.
    assert_eq!(proxy.cluster.stats.upstream_cx_overflow().total(), 0);
}

#[tokio::test]
async fn answers_of_its_own() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    for (request, expected, body) in [
        ("GET /direct HTTP/1.1\r\nhost: a\r\n\r\n", 200, "direct"),
        ("GET /missing-cluster HTTP/1.1\r\nhost: a\r\n\r\n", 503, ""),
        ("GET / HTTP/1.1\r\n\r\n", 400, ""),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "Bad Request"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400, "Bad Request"),
        ("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 403, ""),
    ] {
        // Some of them end their connection.
        let mut client = proxy.connect().await;
        client.send(request).await;
        let (head, text) = client.response().await;
        assert_eq!((status(&head), text.as_str()), (expected, body), "{request}");
    }
}

#[tokio::test]
async fn a_refused_connection_is_explained() {
    let upstream = Upstream::new().await;
    let address = upstream.address();
    drop(upstream);
    let proxy = start(Setup::new(address)).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let (head, body) = client.response().await;
    assert_eq!(status(&head), 503);
    // How the transport failed is for the log, not for clients.
    assert!(body.ends_with("reset reason: remote connection failure"), "{body}");
}

#[tokio::test]
async fn an_upstream_that_closes_without_a_word_is_explained() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let mut server = upstream.accept().await;
    server.head().await;
    drop(server);
    let (head, body) = client.response().await;
    assert_eq!(status(&head), 503);
    assert!(body.ends_with("reset reason: connection termination"), "{body}");
}

#[tokio::test]
async fn a_silent_upstream_times_out() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.timeout = Some(Duration::from_millis(50));
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    client.send(GET).await;
    let (head, body) = client.response().await;
    assert_eq!((status(&head), body.as_str()), (504, "upstream request timeout"));
    assert_eq!(proxy.cluster.stats.upstream_rq_timeout().total(), 1);
}

#[tokio::test]
async fn the_circuit_breaker_refuses_beyond_its_limits() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.limits.max_requests = 1;
    let proxy = start(setup).await;
    let mut first = proxy.connect().await;
    first.send(GET).await;
    let mut server = upstream.accept().await;
    server.head().await;
    let mut second = proxy.connect().await;
    second.send(GET).await;
    let (head, body) = second.response().await;
    assert_eq!(status(&head), 503);
    assert!(body.ends_with("reset reason: overflow") && head.contains("x-envoy-overloaded: true"), "{head}{body}");
}

#[tokio::test]
async fn a_request_waits_for_a_connection_when_no_more_may_be_opened() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.limits.max_connections = 1;
    let proxy = start(setup).await;
    let mut first = proxy.connect().await;
    first.send(GET).await;
    let mut server = upstream.accept().await;
    server.head().await;
    let mut second = proxy.connect().await;
    second.send(GET).await;
    // The second request waits; the first one's answer frees the connection.
    while proxy.cluster.stats.upstream_rq_pending_active().value() == 0 {
        tokio::task::yield_now().await;
    }
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1").await;
    assert_eq!(first.response().await.1, "1");
    server.head().await;
    server.send("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n2").await;
    assert_eq!(second.response().await.1, "2");
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
}

#[tokio::test]
async fn a_chunked_body_ends_for_all_in_the_same_place_or_not_at_all() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let zeros = "0".repeat(18_000) + "3\r\nabc\r\n0\r\n\r\n";
    for body in
        ["0\r\n\n", "0\r\nx: y\n\n", "0\r\nx: y\n\r\n", "3\r\nabc\n0\r\n\r\n", "3;a\rb\r\nabc\r\n0\r\n\r\n", &zeros]
    {
        let mut client = proxy.connect().await;
        client.send("POST /first HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let mut server = upstream.accept().await;
        assert!(server.head().await.starts_with("POST /first "));
        client.send(&format!("{body}GET /victim HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        let (head, _) = client.response().await;
        assert_eq!(status(&head), 400, "{body:.40?}");
        while client.read().await > 0 {}
        assert_eq!(client.rest, b"", "{body:.40?}");
        // The upstream's connection ends inside the body.
        while server.read().await > 0 {}
        assert!(!String::from_utf8_lossy(&server.rest).contains("victim"), "{body:.40?}");
    }
}

#[tokio::test]
async fn bodies_of_unusual_methods_pass() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    for method in ["GET", "HEAD", "DELETE", "POST"] {
        let mut client = proxy.connect().await;
        client
            .send(&format!("{method} / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))
            .await;
        let mut server = upstream.accept().await;
        let head = server.head().await;
        assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
        assert_eq!(server.body(13).await, "3\r\nabc\r\n0\r\n\r\n", "{method}");
        // Closes, so that the next request does not find this connection.
        server.send("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
        assert_eq!(status(&client.head().await), 204);
    }
}
