#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;

#[tokio::test]
async fn what_is_read_ahead_comes_in_order_and_is_let_go_of() {
    let (mut peer, io) = duplex(1 << 20);
    let mut io = Ahead::new(io);
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    peer.write_all(&sent).await.unwrap();
    drop(peer);
    let (mut got, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let n = io.read(&mut piece).await.unwrap();
        if n == 0 {
            break;
        }
        got.extend_from_slice(&piece[..n]);
    }
    assert!(got == sent);
    assert!(io.rest.is_empty());
}

#[tokio::test]
async fn no_more_is_waited_for_than_has_come() {
    let (mut peer, io) = duplex(1 << 20);
    let mut io = Ahead::new(io);
    peer.write_all(b"12345").await.unwrap();
    let mut piece = [0; 3];
    assert_eq!((io.read(&mut piece).await.unwrap(), &piece), (3, b"123"));
    assert_eq!(io.read(&mut piece).await.unwrap(), 2);
    assert!(futures_util::future::poll_immediate(io.read(&mut piece)).await.is_none());
    peer.write_all(b"6").await.unwrap();
    assert_eq!((io.read(&mut piece).await.unwrap(), piece[0]), (1, b'6'));
}
