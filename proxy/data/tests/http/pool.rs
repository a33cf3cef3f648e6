//! Who waits for a connection, and what becomes of connections behind a request.

use std::{future::Future, time::Duration};

use shika_data::model::cluster::UpstreamProtocol;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

use crate::{
    peer::{Client, GET, Upstream, status},
    setup::{Proxy, Setup, start},
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

/// A client that has sent a request.
async fn asks(proxy: &Proxy) -> Client {
    let mut client = proxy.connect().await;
    client.send(GET).await;
    client
}

/// Goes on when so many requests wait for a connection.
async fn waiting(proxy: &Proxy, requests: u64) {
    within(async {
        while proxy.cluster.stats.upstream_rq_pending_active().value() != requests {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("in time")
}

#[tokio::test]
async fn who_gives_up_keeps_nobody_waiting() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.limits.max_connections = 1;
    setup.timeout = None;
    let proxy = start(setup).await;
    let mut first = asks(&proxy).await;
    let mut server = upstream.accept().await;
    server.head().await;
    let second = asks(&proxy).await;
    waiting(&proxy, 1).await;
    let mut third = asks(&proxy).await;
    waiting(&proxy, 2).await;
    drop(second);
    waiting(&proxy, 1).await;
    server.send(OK).await;
    assert_eq!(first.response().await.1, "hi");
    server.head().await;
    server.send(OK).await;
    assert_eq!(third.response().await.1, "hi");
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
}

/// A listener of which no connection is established until somebody accepts: its queue is full.
async fn busy() -> (TcpListener, TcpStream) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from("127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap())).unwrap();
    socket.listen(0).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(socket.into()).unwrap();
    let first = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener, first)
}

#[tokio::test]
async fn a_connection_that_never_comes_about_makes_room_for_the_next() {
    let (listener, _in_the_way) = busy().await;
    let mut setup = Setup::new(listener.local_addr().unwrap());
    setup.limits.max_connections = 1;
    setup.timeout = None;
    let proxy = start(setup).await;
    let first = asks(&proxy).await;
    waiting(&proxy, 1).await;
    let mut second = asks(&proxy).await;
    waiting(&proxy, 2).await;
    // Its connection is being made; it goes with the request that wants it.
    drop(first);
    waiting(&proxy, 1).await;
    let upstream = Upstream(listener);
    let _in_the_way = upstream.accept().await;
    let mut server = upstream.accept().await;
    // The first one's attempt may have been answered after it was given up.
    if within(server.stream.peek(&mut [0])).await.unwrap_or(0) == 0 {
        server = upstream.accept().await;
    }
    server.head().await;
    server.send(OK).await;
    assert_eq!(second.response().await.1, "hi");
}

#[tokio::test]
async fn a_request_waits_for_a_stream_when_no_more_may_be_opened() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.protocol = UpstreamProtocol::Http2;
    setup.max_streams = Some(1);
    setup.limits.max_connections = 1;
    setup.timeout = None;
    let proxy = start(setup).await;
    let mut first = asks(&proxy).await;
    let (stream, _) = within(upstream.0.accept()).await.unwrap();
    let mut connection = within(h2::server::handshake(stream)).await.unwrap();
    let (_, mut respond) = within(connection.accept()).await.unwrap().unwrap();
    // The connection goes on only while it is asked for more.
    let serve = async {
        let mut second = asks(&proxy).await;
        waiting(&proxy, 1).await;
        respond.send_response(http::Response::new(()), true).unwrap();
        assert_eq!(status(&first.head().await), 200);
        assert_eq!(status(&second.head().await), 200);
    };
    let accept = async {
        while let Some(accepted) = connection.accept().await {
            accepted.unwrap().1.send_response(http::Response::new(()), true).unwrap();
        }
    };
    tokio::select! {
        () = within(serve) => {}
        () = accept => panic!("the connection ended"),
    }
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
}

#[tokio::test]
async fn an_http2_connection_that_is_used_up_makes_room_for_the_next() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.protocol = UpstreamProtocol::Http2;
    setup.max_requests = Some(2);
    setup.limits.max_connections = 1;
    setup.timeout = None;
    let proxy = start(setup).await;
    let serve = async {
        loop {
            let (stream, _) = upstream.0.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(accepted) = connection.accept().await {
                accepted.unwrap().1.send_response(http::Response::new(()), true).unwrap();
            }
        }
    };
    let ask = async {
        let mut client = proxy.connect().await;
        for _ in 0..5 {
            client.send(GET).await;
            assert_eq!(status(&client.head().await), 200);
        }
    };
    tokio::select! {
        () = within(ask) => {}
        () = serve => {}
    }
    let stats = &proxy.cluster.stats;
    assert_eq!((stats.upstream_cx_total().total(), stats.upstream_cx_max_requests().total()), (3, 2));
}

#[tokio::test]
async fn a_response_that_ends_in_trailers_leaves_its_connection_behind() {
    let upstream = Upstream::new().await;
    let proxy = start(Setup::new(upstream.address())).await;
    let mut client = asks(&proxy).await;
    let mut server = upstream.accept().await;
    for _ in 0..3 {
        server.head().await;
        server
            .send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nhi\r\n0\r\nx-t: 1\r\n\r\n")
            .await;
        client.head().await;
        client.body("2\r\nhi\r\n0\r\n\r\n".len()).await;
        client.send(GET).await;
    }
    server.head().await;
    assert_eq!(proxy.cluster.stats.upstream_cx_total().total(), 1);
}

#[tokio::test]
async fn a_tunnel_is_a_connection_to_its_end() {
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.upgrades = vec![("websocket".into(), true)];
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    client.send("GET /ws HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    let mut server = upstream.accept().await;
    server.head().await;
    server.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.head().await;
    client.send("ping").await;
    server.body(4).await;
    server.send("pong").await;
    client.body(4).await;
    let stats = &proxy.cluster.stats;
    assert_eq!((stats.upstream_cx_active().value(), stats.upstream_cx_destroy().total()), (1, 0));
    drop(client);
    while server.read().await > 0 {}
    drop(server);
    within(async {
        while stats.upstream_cx_active().value() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(stats.upstream_cx_destroy().total(), 1);
}

/// The upstream answers at once and reads later; the client reads nothing until all that it has sent is there.
#[tokio::test]
async fn a_held_upload_goes_on_while_the_client_reads_nothing() {
    // Each more than all sockets on its way have room for.
    const LENGTH: usize = 16 << 20;
    const RESPONSE: usize = 64 << 20;
    let upstream = Upstream::new().await;
    let mut setup = Setup::new(upstream.address());
    setup.holds = Some(LENGTH as u32);
    setup.timeout = None;
    let proxy = start(setup).await;
    let mut client = proxy.connect().await;
    let body = vec![b'x'; RESPONSE];
    client.send(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n")).await;
    client.stream.write_all(&body[..LENGTH]).await.unwrap();
    let mut server = upstream.accept().await;
    server.head().await;
    server.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {RESPONSE}\r\n\r\n")).await;
    // Until nobody on the way takes any more of it.
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), server.stream.write(&body[sent..])).await {
        sent += written.unwrap();
        assert!(sent < RESPONSE, "all of the response was taken from the upstream");
    }
    while server.rest.len() < LENGTH {
        assert!(server.read().await > 0, "the upload breaks off");
    }
    let rest = async { server.stream.write_all(&body[sent..]).await.unwrap() };
    let ((), (_, body)) = tokio::join!(rest, client.response());
    assert_eq!(body.len(), RESPONSE);
}
