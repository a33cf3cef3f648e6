//! What answers behind the last proxy: it runs at full speed outside valgrind, and answers each request or message at once with one write.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread,
};

use anyhow::Context;

use super::{http2, note};

/// What it speaks.
#[derive(Clone, Copy, Debug)]
pub enum Upstream {
    /// HTTP/1.1, with a body of so many bytes.
    Http1 {
        /// Bytes of each body.
        body: usize,
    },
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Sends back what it gets.
    Echo,
}

impl Upstream {
    /// Starts it and returns its port. It goes on until the process ends: measurements are few.
    ///
    /// # Errors
    /// There is no port, or no thread.
    pub fn start(self) -> anyhow::Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the upstream")?;
        let port = listener.local_addr()?.port();
        thread::Builder::new().name("upstream".into()).spawn(move || {
            for connection in listener.incoming() {
                match connection {
                    // Ends with its connection; that the proxy ended it is no error.
                    Ok(stream) => drop(thread::spawn(move || self.serve(stream))),
                    Err(error) => note(&format!("upstream: {error}")),
                }
            }
        })?;
        Ok(port)
    }

    fn serve(self, mut stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        match self {
            Upstream::Http1 { body } => answer(&mut stream, body),
            Upstream::Http2 => http2::serve(&mut stream),
            Upstream::Echo => {
                let mut buffer = [0; 16 << 10];
                loop {
                    let read = stream.read(&mut buffer)?;
                    if read == 0 {
                        return Ok(());
                    }
                    stream.write_all(buffer.get(..read).unwrap_or_default())?;
                }
            }
        }
    }
}

/// Answers requests without bodies.
fn answer(stream: &mut TcpStream, body: usize) -> anyhow::Result<()> {
    let mut reply =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {body}\r\n\r\n").into_bytes();
    reply.resize(reply.len() + body, b'x');
    let mut buffer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
        while let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            stream.write_all(&reply)?;
        }
    }
}
