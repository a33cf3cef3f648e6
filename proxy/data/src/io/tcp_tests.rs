#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    future::poll_fn,
    io::{Read, Write},
    net::{self, TcpListener},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
};

use super::*;

/// Makes this thread one whose writes wait for the end of its turns.
async fn serve_outbox() {
    tokio::spawn(outbox::serve());
    yield_now().await;
}

/// A socket and its peer, which never waits.
fn pair() -> (Tcp, net::TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    ours.set_nonblocking(true).unwrap();
    peer.set_nonblocking(true).unwrap();
    (TcpStream::from_std(ours).unwrap().into(), peer)
}

/// The same, ready to be written to.
async fn ready_pair() -> (Tcp, net::TcpStream) {
    let (ours, peer) = pair();
    ours.writable().await.unwrap();
    (ours, peer)
}

/// What has come; nothing of it is on its way on loopback.
fn received(peer: &mut net::TcpStream) -> Vec<u8> {
    let (mut all, mut some) = (Vec::new(), [0; 65536]);
    while let Ok(n @ 1..) = peer.read(&mut some) {
        all.extend_from_slice(&some[..n]);
    }
    all
}

/// Writes without being asked again.
async fn write(socket: &mut Tcp, bytes: &[u8]) -> Poll<io::Result<usize>> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *socket).poll_write(cx, bytes))).await
}

async fn flush(socket: &mut Tcp) -> Poll<io::Result<()>> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *socket).poll_flush(cx))).await
}

fn is_taken(written: Poll<io::Result<usize>>, length: usize) {
    match written {
        Poll::Ready(Ok(n)) => assert_eq!(n, length),
        other => panic!("not taken: {other:?}"),
    }
}

/// A socket that has no room, which nobody has noticed, and how much it took.
async fn full() -> (Tcp, net::TcpStream, usize) {
    let (ours, peer) = ready_pair().await;
    SockRef::from(&*ours).set_send_buffer_size(4096).unwrap();
    let (piece, mut length) = ([b'x'; 16384], 0);
    while let Ok(n) = SockRef::from(&*ours).send(&piece) {
        length += n;
    }
    (ours, peer, length)
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.unwrap()
}

#[tokio::test]
async fn small_writes_go_out_together_at_the_end_of_the_turn() {
    serve_outbox().await;
    let ((mut one, mut peer_of_one), (mut two, mut peer_of_two)) = (ready_pair().await, ready_pair().await);
    is_taken(write(&mut one, b"first ").await, 6);
    is_taken(write(&mut two, b"other").await, 5);
    is_taken(write(&mut one, b"second").await, 6);
    assert!(matches!(flush(&mut one).await, Poll::Ready(Ok(()))), "as if the kernel had it");
    assert_eq!((received(&mut peer_of_one), received(&mut peer_of_two)), (Vec::new(), Vec::new()));
    yield_now().await;
    assert_eq!(received(&mut peer_of_one), b"first second");
    assert_eq!(received(&mut peer_of_two), b"other");
    is_taken(write(&mut one, b"third").await, 5);
    yield_now().await;
    assert_eq!(received(&mut peer_of_one), b"third");
}

#[tokio::test]
async fn elsewhere_nothing_waits() {
    let (mut ours, mut peer) = ready_pair().await;
    is_taken(write(&mut ours, b"now").await, 3);
    assert_eq!(received(&mut peer), b"now");
    // Nor does anything once a worker has ended.
    let outbox = tokio::spawn(outbox::serve());
    yield_now().await;
    is_taken(write(&mut ours, b"later").await, 5);
    outbox.abort();
    assert!(outbox.await.unwrap_err().is_cancelled());
    assert_eq!(received(&mut peer), b"later");
    is_taken(write(&mut ours, b"now").await, 3);
    assert_eq!(received(&mut peer), b"now");
}

#[tokio::test]
async fn a_long_write_goes_out_at_once_behind_what_waits() {
    serve_outbox().await;
    let (mut ours, mut peer) = ready_pair().await;
    is_taken(write(&mut ours, b"short").await, 5);
    is_taken(write(&mut ours, &[b'l'; 5000]).await, 5000);
    assert_eq!(received(&mut peer), [&b"short"[..], &[b'l'; 5000]].concat());
    is_taken(write(&mut ours, b"short").await, 5);
    let pieces = [IoSlice::new(&[b'm'; 3000]), IoSlice::new(&[b'n'; 3000])];
    let written = poll_fn(|cx| Poll::Ready(Pin::new(&mut ours).poll_write_vectored(cx, &pieces))).await;
    is_taken(written, 6000);
    assert_eq!(received(&mut peer), [&b"short"[..], &[b'm'; 3000], &[b'n'; 3000]].concat());
    // For the next bytes to go to the socket itself.
    is_taken(write(&mut ours, b"short").await, 5);
    assert!(ours.bare().is_some());
    assert_eq!(received(&mut peer), b"short");
}

#[tokio::test]
async fn pieces_wait_as_one() {
    serve_outbox().await;
    let (mut ours, mut peer) = ready_pair().await;
    let pieces = [IoSlice::new(b"head "), IoSlice::new(b""), IoSlice::new(b"body")];
    let written = poll_fn(|cx| Poll::Ready(Pin::new(&mut ours).poll_write_vectored(cx, &pieces))).await;
    is_taken(written, 9);
    yield_now().await;
    assert_eq!(received(&mut peer), b"head body");
}

#[tokio::test]
async fn no_more_than_so_many_wait() {
    serve_outbox().await;
    let mut all = Vec::new();
    for _ in 0..40 {
        all.push(ready_pair().await);
    }
    for (at, (ours, _)) in all.iter_mut().enumerate() {
        is_taken(write(ours, format!("{at}").as_bytes()).await, format!("{at}").len());
    }
    let sent = all.iter_mut().filter_map(|(_, peer)| peer.peek(&mut [0]).ok()).count();
    assert_eq!(sent, 32, "twice sixteen");
    // Many small writes of one connection are bounded as well.
    let (ours, peer) = &mut all[39];
    for _ in 0..20 {
        is_taken(write(ours, &[b'm'; 4096]).await, 4096);
    }
    assert!(received(peer).len() >= 65536);
    yield_now().await;
    for (at, (_, peer)) in all.iter_mut().enumerate().take(39) {
        assert_eq!(received(peer), format!("{at}").as_bytes());
    }
}

#[tokio::test]
async fn what_the_kernel_does_not_take_is_sent_when_it_does() {
    serve_outbox().await;
    let (mut ours, mut peer, length) = full().await;
    is_taken(write(&mut ours, b"tail").await, 4);
    is_taken(write(&mut ours, b" of it").await, 6);
    yield_now().await;
    // It is known now, and holds up what follows.
    assert!(write(&mut ours, b"next").await.is_pending());
    assert!(flush(&mut ours).await.is_pending());
    assert!(ours.bare().is_none());
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.set_nonblocking(false).unwrap();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    within(ours.flush()).await.unwrap();
    within(ours.write_all(b", next")).await.unwrap();
    within(ours.shutdown()).await.unwrap();
    let all = reader.join().unwrap();
    assert_eq!(all.len(), length + 16);
    assert!(all.ends_with(b"xtail of it, next"));
}

#[tokio::test]
async fn nothing_is_taken_for_sent_where_there_is_no_room() {
    serve_outbox().await;
    let (mut ours, mut peer) = ready_pair().await;
    SockRef::from(&*ours).set_send_buffer_size(4096).unwrap();
    let (piece, mut length) = ([b'x'; 16384], 0);
    while let Poll::Ready(written) = write(&mut ours, &piece).await {
        length += written.unwrap();
    }
    assert!(write(&mut ours, b"tail").await.is_pending());
    while length > 0 {
        length -= received(&mut peer).len();
    }
    // There is room again; the first write that finds it goes out at once.
    within(ours.write_all(b"tail")).await.unwrap();
    assert_eq!(received(&mut peer), b"tail");
    is_taken(write(&mut ours, b"more").await, 4);
    assert_eq!(received(&mut peer), b"");
}

#[tokio::test]
async fn a_shutdown_comes_behind_everything() {
    serve_outbox().await;
    let (mut ours, mut peer) = ready_pair().await;
    is_taken(write(&mut ours, b"bye").await, 3);
    ours.shutdown().await.unwrap();
    assert_eq!(received(&mut peer), b"bye");
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    // Also behind what the kernel has no room for.
    let (mut ours, peer, length) = full().await;
    is_taken(write(&mut ours, b"bye").await, 3);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.set_nonblocking(false).unwrap();
        (&peer).read_to_end(&mut all).unwrap();
        all
    });
    within(ours.shutdown()).await.unwrap();
    assert_eq!(reader.join().unwrap().len(), length + 3);
}

#[tokio::test]
async fn a_failed_write_is_told_by_the_next_call() {
    /// A socket whose write was taken and then failed.
    async fn broken() -> Tcp {
        let (mut ours, mut peer) = ready_pair().await;
        // Read to the end, as it always is before a write.
        peer.write_all(b"?").unwrap();
        assert_eq!(ours.read(&mut [0; 2]).await.unwrap(), 1);
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        is_taken(write(&mut ours, b"!").await, 1);
        yield_now().await;
        ours
    }
    let lost = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];

    serve_outbox().await;
    let mut ours = broken().await;
    let error = within(ours.read(&mut [0; 2])).await.unwrap_err();
    assert!(lost.contains(&error.kind()), "no end of what the peer has to say: {error:?}");
    let error = within(broken().await.write_all(b"more")).await.unwrap_err();
    assert!(lost.contains(&error.kind()), "{error:?}");
    assert!(within(broken().await.flush()).await.is_err());
    assert!(within(broken().await.shutdown()).await.is_err());
    // Said once; then the socket says it.
    let mut ours = broken().await;
    assert!(within(ours.flush()).await.is_err());
    is_taken(write(&mut ours, b"more").await, 4);
    yield_now().await;
    assert!(within(ours.flush()).await.is_err());
}

#[tokio::test]
async fn what_waits_is_sent_although_its_owner_is_gone() {
    serve_outbox().await;
    let (mut ours, mut peer) = ready_pair().await;
    is_taken(write(&mut ours, b"bye").await, 3);
    drop(ours);
    yield_now().await;
    assert_eq!(received(&mut peer), b"bye");
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "and then it is closed");
}

#[tokio::test]
async fn the_last_bytes_of_a_dropped_socket_are_not_lost_to_what_it_has_not_read() {
    serve_outbox().await;
    let ((mut ours, mut peer), (mut other, _peer)) = (ready_pair().await, ready_pair().await);
    peer.write_all(b"never read").unwrap();
    // More than once in the outbox, and the end comes behind all of it.
    is_taken(write(&mut ours, b"good ").await, 5);
    is_taken(write(&mut other, b"x").await, 1);
    is_taken(write(&mut ours, b"bye").await, 3);
    assert!(matches!(poll_fn(|cx| Poll::Ready(ours.poll_parting(cx))).await, Poll::Ready(Ok(()))));
    drop(ours);
    yield_now().await;
    assert_eq!(received(&mut peer), b"good bye");
    assert!(matches!(peer.read(&mut [0]), Ok(0) | Err(_)), "and then it is closed");
}

#[tokio::test]
async fn the_last_bytes_of_a_dropped_socket_wait_for_room() {
    serve_outbox().await;
    let ((mut ours, mut peer, length), (mut other, _peer)) = (full().await, ready_pair().await);
    is_taken(write(&mut ours, b"good ").await, 5);
    is_taken(write(&mut other, b"x").await, 1);
    is_taken(write(&mut ours, b"bye").await, 3);
    drop(ours);
    yield_now().await;
    let all = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        peer.set_nonblocking(false).unwrap();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    let all = within(all).await.unwrap();
    assert_eq!((all.len(), all.ends_with(b"xgood bye")), (length + 8, true));
}

#[tokio::test]
async fn what_is_held_does_not_outlive_its_owner() {
    serve_outbox().await;
    let (mut ours, peer, length) = full().await;
    is_taken(write(&mut ours, b"tail").await, 4);
    yield_now().await;
    assert!(flush(&mut ours).await.is_pending());
    drop(ours);
    yield_now().await;
    let all = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        peer.set_nonblocking(false).unwrap();
        (&peer).read_to_end(&mut all).unwrap();
        all
    });
    assert!(within(all).await.unwrap().len() < length + 4);
}

#[tokio::test]
async fn a_reset_is_no_end_although_bytes_still_wait() {
    serve_outbox().await;
    for room in [true, false] {
        let (mut ours, mut peer) = ready_pair().await;
        let mut length = 0;
        if !room {
            (ours, peer, length) = full().await;
        }
        let (mut other, _peer) = ready_pair().await;
        is_taken(write(&mut ours, b"cut ").await, 4);
        is_taken(write(&mut other, b"x").await, 1);
        is_taken(write(&mut ours, b"off").await, 3);
        ours.reset_on_close();
        drop(ours);
        yield_now().await;
        // The reset takes along what it overtakes.
        let all = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            peer.set_nonblocking(false).unwrap();
            let error = peer.read_to_end(&mut all).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            all
        });
        let all = within(all).await.unwrap();
        assert!(b"cut off".starts_with(&all[length.min(all.len())..]), "room: {room}");
    }
}
