//! What stands on either side of the proxy.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A client or an upstream that speaks HTTP/1 byte by byte.
pub struct Client<S = TcpStream> {
    pub stream: S,
    pub rest: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Reads up to and with the end of a head.
    pub async fn head(&mut self) -> String {
        loop {
            if let Some(end) = self.rest.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = self.rest.drain(..end + 4).collect();
                return String::from_utf8(head).unwrap();
            }
            assert!(self.read().await > 0, "closed in the middle of a head: {:?}", String::from_utf8_lossy(&self.rest));
        }
    }

    pub async fn body(&mut self, length: usize) -> String {
        while self.rest.len() < length {
            assert!(self.read().await > 0, "closed in the middle of a body");
        }
        String::from_utf8(self.rest.drain(..length).collect()).unwrap()
    }

    pub async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let body = self.body(length).await;
        (head, body)
    }

    pub async fn read(&mut self) -> usize {
        tokio::time::timeout(Duration::from_secs(20), self.stream.read_buf(&mut self.rest))
            .await
            .expect("the other side answers")
            .unwrap()
    }
}

/// Accepts one connection at a time.
pub struct Upstream(pub TcpListener);

impl Upstream {
    pub async fn new() -> Self {
        Upstream(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub async fn accept(&self) -> Client {
        let (stream, _) =
            tokio::time::timeout(Duration::from_secs(20), self.0.accept()).await.expect("the proxy connects").unwrap();
        Client { stream, rest: Vec::new() }
    }
}

pub fn status(head: &str) -> u16 {
    head.split(' ').nth(1).unwrap().parse().unwrap()
}

pub const GET: &str = "GET /a?b=c HTTP/1.1\r\nhost: example.com\r\nx-mine: 1\r\n\r\n";
