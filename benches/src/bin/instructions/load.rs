//! What a client does: one connection, the next request when the last is answered, so that the proxy finds the same work at every wake-up.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, bail};

use super::http2;

/// What one turn is.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// A request of HTTP/1.1 on one connection.
    Http1,
    /// The same on a connection of its own.
    Http1Fresh,
    /// A request of HTTP/2; ten are sent at once, and the next ten when those are answered.
    Http2,
    /// 64 bytes there and back on one connection.
    Tcp,
    /// The same on a connection of its own.
    TcpFresh,
    /// A page of all statistics.
    Metrics,
    /// One more cluster at the start.
    Cluster,
}

/// Requests of HTTP/2 at a time.
const STREAMS: u32 = 10;

/// Nothing takes that long, even under valgrind on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

impl Load {
    /// Does it `turns` times. `admin` is the port of the admin interface.
    ///
    /// # Errors
    /// The proxy does not answer, or answers other than 200.
    pub fn drive(self, port: u16, admin: u16, turns: u64) -> anyhow::Result<()> {
        match self {
            Load::Http1 => {
                let mut client = Http1 { stream: connect(port)?, buffer: Vec::new() };
                (0..turns).try_for_each(|_| client.ask("/", "keep-alive"))
            }
            Load::Http1Fresh => (0..turns).try_for_each(|_| {
                let mut client = Http1 { stream: connect(port)?, buffer: Vec::new() };
                client.ask("/", "close")?;
                ended(&mut client.stream)
            }),
            Load::Http2 => {
                let mut client = http2::Client::new(connect(port)?)?;
                (0..turns.div_ceil(u64::from(STREAMS))).try_for_each(|_| client.ask(STREAMS))
            }
            Load::Tcp => {
                let mut stream = connect(port)?;
                (0..turns).try_for_each(|_| echo(&mut stream))
            }
            Load::TcpFresh => (0..turns).try_for_each(|_| {
                let mut stream = connect(port)?;
                echo(&mut stream)?;
                stream.shutdown(Shutdown::Write)?;
                ended(&mut stream)
            }),
            Load::Metrics => (0..turns).try_for_each(|_| {
                let mut stream = connect(admin)?;
                stream.write_all(b"GET /stats/prometheus HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n")?;
                let mut page = Vec::new();
                stream.read_to_end(&mut page)?;
                if page.len() < 1_000 || !page.starts_with(b"HTTP/1.1 200") {
                    bail!("no page: {}", String::from_utf8_lossy(page.get(..200).unwrap_or(&page)));
                }
                Ok(())
            }),
            // That it serves is all there is to it.
            Load::Cluster => connect(port).map(drop),
        }
    }
}

/// Connects over loopback.
///
/// # Errors
/// Nobody listens.
pub fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn echo(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(&[b'm'; 64])?;
    Ok(stream.read_exact(&mut [0; 64])?)
}

/// Waits until the peer has ended the connection.
fn ended(stream: &mut TcpStream) -> anyhow::Result<()> {
    match stream.read(&mut [0; 16])? {
        0 => Ok(()),
        more => bail!("{more} bytes more than expected"),
    }
}

/// A client's connection of HTTP/1.1.
struct Http1 {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Http1 {
    fn ask(&mut self, path: &str, connection: &str) -> anyhow::Result<()> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: backend.mesh\r\nuser-agent: bench/1.0\r\naccept: */*\r\nconnection: {connection}\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        let end = loop {
            match self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => break end + 4,
                None => self.read()?,
            }
        };
        let head = String::from_utf8_lossy(self.buffer.get(..end).unwrap_or_default()).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200") {
            bail!("not answered well: {head}");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).context("no content-length")?;
        let length: usize = length.trim().parse()?;
        while self.buffer.len() < end + length {
            self.read()?;
        }
        self.buffer.drain(..end + length);
        Ok(())
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let mut piece = [0; 64 << 10];
        let read = self.stream.read(&mut piece)?;
        if read == 0 {
            bail!("the proxy closed the connection");
        }
        self.buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
        Ok(())
    }
}
