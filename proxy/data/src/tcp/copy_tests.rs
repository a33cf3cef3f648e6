#![allow(clippy::unwrap_used, clippy::panic)]

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use tokio::{
    io::DuplexStream,
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::io::Socket;

impl MaybeTcp for DuplexStream {
    fn source(&self) -> Option<&TcpStream> {
        None
    }

    fn sink(&self) -> Option<&TcpStream> {
        None
    }
}

/// Both ends of a TCP connection.
async fn connection() -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (client.unwrap(), Socket::Tcp(accepted.unwrap().0.into()))
}

/// Bytes that tell where they stand.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn unlimited() -> Limits {
    Limits { idle: None, until: None, upstream_ends: false, downstream_ends: false }
}

#[tokio::test]
async fn bytes_go_both_ways_and_half_closes_are_passed_on() {
    let (mut client, mut down) = duplex(64);
    let (mut up, mut server) = duplex(64);
    let copying = tokio::spawn(async move {
        let mut copied = Copied::default();
        let end = copy(&mut down, &mut up, unlimited(), None, &mut copied).await;
        (end, copied)
    });
    // More than the pipe holds, so that the rest has to wait.
    let question = vec![7; 100_000];
    let sent = question.clone();
    let (_, heard) = tokio::join!(
        async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        },
        async {
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            heard
        }
    );
    assert_eq!(heard, question);
    // The other direction still works after the half-close.
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"answer");
    let (end, copied) = copying.await.unwrap();
    assert!(matches!(end, End::Finished(Side::Downstream)), "{end:?}");
    assert_eq!(copied, Copied { to_upstream: 100_000, to_downstream: 6 });
}

#[tokio::test]
async fn the_end_of_the_upstream_is_the_end_where_that_is_asked_for() {
    let (mut client, mut down) = duplex(64);
    let (mut up, mut server) = duplex(64);
    let limits = Limits { upstream_ends: true, ..unlimited() };
    let copying = tokio::spawn(async move { copy(&mut down, &mut up, limits, None, &mut Copied::default()).await });
    // The client's end is passed on, and not the tunnel's.
    let answer = vec![7; 1000];
    let sent = answer.clone();
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    let (_, heard) = tokio::join!(
        async {
            server.write_all(&sent).await.unwrap();
            drop(server);
        },
        async {
            let mut heard = Vec::new();
            client.read_to_end(&mut heard).await.unwrap();
            heard
        }
    );
    assert_eq!(heard, answer);
    assert!(matches!(copying.await.unwrap(), End::Finished(Side::Downstream)));

    let (mut client, mut down) = duplex(64);
    let (mut up, server) = duplex(64);
    let copying = tokio::spawn(async move { copy(&mut down, &mut up, limits, None, &mut Copied::default()).await });
    drop(server);
    assert!(matches!(copying.await.unwrap(), End::Finished(Side::Upstream)));
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn the_end_of_the_downstream_is_the_end_where_that_is_asked_for() {
    let (mut client, mut down) = duplex(64);
    let (mut up, mut server) = duplex(64);
    let limits = Limits { upstream_ends: true, downstream_ends: true, ..unlimited() };
    let copying = tokio::spawn(async move { copy(&mut down, &mut up, limits, None, &mut Copied::default()).await });
    // More than the pipes hold, to a server that says nothing: all of it arrives before the end does.
    let said = vec![7; 1000];
    let sent = said.clone();
    let (_, heard) = tokio::join!(
        async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        },
        async {
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            heard
        }
    );
    assert_eq!(heard, said);
    assert!(matches!(copying.await.unwrap(), End::Finished(Side::Downstream)));
}

#[tokio::test(start_paused = true)]
async fn idle_counts_from_the_last_byte_in_either_direction() {
    let (mut client, mut down) = duplex(64);
    let (mut up, mut server) = duplex(64);
    let limits = Limits { idle: Some(Duration::from_secs(10)), ..unlimited() };
    let begin = Instant::now();
    let copying = tokio::spawn(async move { copy(&mut down, &mut up, limits, None, &mut Copied::default()).await });
    let mut byte = [0];
    for turn in 0..3 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        if turn % 2 == 0 {
            client.write_all(b"x").await.unwrap();
            server.read_exact(&mut byte).await.unwrap();
        } else {
            server.write_all(b"x").await.unwrap();
            client.read_exact(&mut byte).await.unwrap();
        }
    }
    assert!(matches!(copying.await.unwrap(), End::Idle));
    assert_eq!(begin.elapsed().as_secs(), 27 + 10);
}

#[tokio::test(start_paused = true)]
async fn a_connection_lives_no_longer_than_it_may() {
    let (_client, mut down) = duplex(64);
    let (mut up, _server) = duplex(64);
    let limits = Limits {
        idle: Some(Duration::from_secs(100)),
        until: Some(Instant::now() + Duration::from_secs(5)),
        ..unlimited()
    };
    let begin = Instant::now();
    assert!(matches!(copy(&mut down, &mut up, limits, None, &mut Copied::default()).await, End::MaxDuration));
    assert_eq!(begin.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn a_watch_ends_it() {
    let (_client, mut down) = duplex(64);
    let (mut up, _server) = duplex(64);
    let watch = std::sync::Arc::new(Watch::new(0));
    let copying = tokio::spawn({
        let watch = watch.clone();
        async move { copy(&mut down, &mut up, unlimited(), Some(&watch), &mut Copied::default()).await }
    });
    tokio::task::yield_now().await;
    watch.set(Phase::Draining);
    tokio::task::yield_now().await;
    assert!(!copying.is_finished(), "a raw connection goes on while it drains");
    watch.set(Phase::Closing);
    assert!(matches!(copying.await.unwrap(), End::Closing));
}

#[tokio::test]
async fn a_slow_receiver_holds_one_buffer_at_most() {
    let (mut client, mut down) = duplex(1 << 20);
    let (mut up, _server) = duplex(16);
    client.write_all(&vec![1; 1 << 20]).await.unwrap();
    let mut half = Half::default();
    let mut taken = 0;
    let polled = poll_fn(|cx| Poll::Ready(half.poll(cx, &mut down, &mut up, &mut |n| taken += n).is_pending())).await;
    assert!(polled);
    assert_eq!(taken, 16);
    assert_eq!(half.rest.len(), SCRATCH - 16);
}

#[tokio::test]
async fn the_future_stays_small() {
    let (mut client, mut server) = crate::testing::pair().await;
    let mut meter = Copied::default();
    let future = copy(&mut client, &mut server, unlimited(), None, &mut meter);
    let size = std::mem::size_of_val(&future);
    assert!(size <= 700, "{size} bytes");
}

#[tokio::test]
async fn bulk_between_sockets_arrives_whole_in_both_directions() {
    const LENGTH: usize = 20_000_000;
    let ((mut client, mut down), (mut server, mut up)) = (connection().await, connection().await);
    let copying = tokio::spawn(async move {
        let mut copied = Copied::default();
        let end = copy(&mut down, &mut up, unlimited(), None, &mut copied).await;
        (end, copied)
    });
    let sent = pattern(LENGTH);
    let (mut client_reads, mut client_writes) = client.split();
    let (mut server_reads, mut server_writes) = server.split();
    let (mut heard_up, mut heard_down) = (Vec::new(), Vec::new());
    tokio::join!(
        async {
            client_writes.write_all(&sent).await.unwrap();
            // Little after much, and then the end.
            client_writes.write_all(b"last").await.unwrap();
            client_writes.shutdown().await.unwrap();
        },
        async {
            // A receiver that is slower than the sender.
            let mut piece = [0; 10_007];
            loop {
                match server_reads.read(&mut piece).await.unwrap() {
                    0 => break,
                    n => heard_up.extend_from_slice(&piece[..n]),
                }
            }
        },
        async {
            server_writes.write_all(&sent).await.unwrap();
            server_writes.shutdown().await.unwrap();
        },
        async {
            client_reads.read_to_end(&mut heard_down).await.unwrap();
        },
    );
    assert!(heard_up == [sent.as_slice(), b"last"].concat());
    assert!(heard_down == sent);
    let (end, copied) = copying.await.unwrap();
    assert!(matches!(end, End::Finished(_)), "{end:?}");
    assert_eq!(copied, Copied { to_upstream: LENGTH as u64 + 4, to_downstream: LENGTH as u64 });
}

#[tokio::test]
async fn little_and_much_in_turn_stay_in_order() {
    tokio::spawn(crate::io::outbox::serve());
    let ((mut client, mut down), (mut server, mut up)) = (connection().await, connection().await);
    // Little room, so that what is left of a piece is anything from one byte on.
    let Socket::Tcp(tcp) = &up else { panic!("no TCP") };
    socket2::SockRef::from(&**tcp).set_send_buffer_size(20_000).unwrap();
    let copying =
        tokio::spawn(async move { copy(&mut down, &mut up, unlimited(), None, &mut Copied::default()).await });
    let sent = pattern(3_000_000);
    let (_, mut client_writes) = client.split();
    let (mut server_reads, mut server_writes) = server.split();
    let mut heard = Vec::new();
    tokio::join!(
        async {
            let (mut rest, mut length) = (sent.as_slice(), 1);
            while !rest.is_empty() {
                let (piece, others) = rest.split_at(rest.len().min(length));
                client_writes.write_all(piece).await.unwrap();
                rest = others;
                length = (length * 7 + 3) % 300_000;
                if length % 5 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            client_writes.shutdown().await.unwrap();
        },
        async {
            let mut piece = [0; 30_011];
            loop {
                match server_reads.read(&mut piece).await.unwrap() {
                    0 => break,
                    n => heard.extend_from_slice(&piece[..n]),
                }
            }
            server_writes.shutdown().await.unwrap();
        },
    );
    assert!(heard == sent);
    assert!(matches!(copying.await.unwrap(), End::Finished(_)));
}

#[tokio::test]
async fn a_receiver_that_is_gone_ends_bulk() {
    let ((mut client, mut down), (mut server, mut up)) = (connection().await, connection().await);
    let copying =
        tokio::spawn(async move { copy(&mut down, &mut up, unlimited(), None, &mut Copied::default()).await });
    let sending = tokio::spawn(async move { while client.write_all(&pattern(1_000_000)).await.is_ok() {} });
    let mut piece = vec![0; 100_000];
    for _ in 0..50 {
        assert!(server.read(&mut piece).await.unwrap() > 0);
    }
    drop(server);
    let end = copying.await.unwrap();
    assert!(matches!(end, End::Failed(Side::Upstream, _)), "{end:?}");
    sending.await.unwrap();
}
