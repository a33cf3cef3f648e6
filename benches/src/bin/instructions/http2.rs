//! As much of HTTP/2 as it takes to send requests and to answer them: fixed header blocks, no flow control beyond a window that is large enough.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::bail;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Added to the window of a connection, which is enough for all that is sent over it here.
const WINDOW: u32 = 1 << 30;

/// `:method: GET`, `:scheme: http`, `:path: /`; then `:authority` and `user-agent`, which go to the table.
const FIRST_REQUEST: &[u8] = b"\x82\x86\x84\x41\x0cbackend.mesh\x7a\x09bench/1.0";
/// The same with the last two from the table.
const FURTHER_REQUEST: &[u8] = b"\x82\x86\x84\xbf\xbe";
/// `:status: 200`, and `content-length: 2`, which goes to the table.
const FIRST_REPLY: &[u8] = b"\x88\x5c\x012";
/// The same from the table.
const FURTHER_REPLY: &[u8] = b"\x88\xbe";
const BODY: &[u8] = b"ok";

fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(length.to_be_bytes().get(1..).unwrap_or_default());
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A frame's kind, flags and stream; its payload is only looked at where it has to be sent back.
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// Reads frames.
#[derive(Default)]
struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Takes the next complete frame out of what has been read.
    fn next(&mut self) -> Option<Frame> {
        let head = self.buffer.first_chunk::<9>()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let payload = self.buffer.get(9..9 + length)?.to_vec();
        self.buffer.drain(..9 + length);
        Some(Frame { kind, flags, stream, payload })
    }

    /// Reads more; `false` at the end of the stream.
    fn read(&mut self, stream: &mut TcpStream) -> anyhow::Result<bool> {
        let mut piece = [0; 16 << 10];
        let read = stream.read(&mut piece)?;
        self.buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
        Ok(read > 0)
    }
}

/// Answers what both sides have to answer.
fn acknowledge(frame: &Frame, out: &mut Vec<u8>) -> anyhow::Result<()> {
    match frame.kind {
        SETTINGS | PING if frame.flags & ACK == 0 => {
            let payload = if frame.kind == PING { frame.payload.as_slice() } else { &[] };
            put(out, frame.kind, ACK, 0, payload);
        }
        RESET => bail!("stream {} was reset: {:?}", frame.stream, frame.payload),
        _ => {}
    }
    Ok(())
}

/// Answers requests until the peer goes.
///
/// # Errors
/// The connection fails, or the peer resets a stream.
pub fn serve(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface)?;
    if preface != *PREFACE {
        bail!("no preface of HTTP/2");
    }
    let mut out = Vec::new();
    put(&mut out, SETTINGS, 0, 0, &[]);
    put(&mut out, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
    let mut frames = Frames::default();
    let mut reply = FIRST_REPLY;
    loop {
        while let Some(frame) = frames.next() {
            acknowledge(&frame, &mut out)?;
            if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                put(&mut out, HEADERS, END_HEADERS, frame.stream, reply);
                put(&mut out, DATA, END_STREAM, frame.stream, BODY);
                reply = FURTHER_REPLY;
            }
        }
        stream.write_all(&out)?;
        out.clear();
        if !frames.read(stream)? {
            return Ok(());
        }
    }
}

/// A client's connection.
pub struct Client {
    stream: TcpStream,
    frames: Frames,
    next: u32,
}

impl Client {
    /// Begins HTTP/2 on a connection.
    ///
    /// # Errors
    /// The connection fails.
    pub fn new(mut stream: TcpStream) -> anyhow::Result<Self> {
        let mut out = PREFACE.to_vec();
        put(&mut out, SETTINGS, 0, 0, &[]);
        put(&mut out, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        stream.write_all(&out)?;
        Ok(Client { stream, frames: Frames::default(), next: 1 })
    }

    /// Sends so many requests in one write and waits until all are answered.
    ///
    /// # Errors
    /// The connection fails or ends, or a stream is reset.
    pub fn ask(&mut self, requests: u32) -> anyhow::Result<()> {
        let mut out = Vec::new();
        for _ in 0..requests {
            let block = if self.next == 1 { FIRST_REQUEST } else { FURTHER_REQUEST };
            put(&mut out, HEADERS, END_HEADERS | END_STREAM, self.next, block);
            self.next += 2;
        }
        self.stream.write_all(&out)?;
        let mut answered = 0;
        while answered < requests {
            let Some(frame) = self.frames.next() else {
                if !self.frames.read(&mut self.stream)? {
                    bail!("the proxy closed the connection");
                }
                continue;
            };
            let mut out = Vec::new();
            acknowledge(&frame, &mut out)?;
            self.stream.write_all(&out)?;
            match frame.kind {
                GOAWAY => bail!("the proxy goes away: {:?}", frame.payload),
                HEADERS | DATA if frame.flags & END_STREAM != 0 => answered += 1,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn client_and_server_understand_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = thread::spawn(move || serve(&mut listener.accept().unwrap().0));
        let mut client = Client::new(TcpStream::connect(address).unwrap()).unwrap();
        client.ask(1).unwrap();
        client.ask(10).unwrap();
        drop(client);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn half_a_frame_is_waited_for() {
        let mut out = Vec::new();
        put(&mut out, DATA, END_STREAM, 5, BODY);
        let mut frames = Frames::default();
        for byte in out.iter().take(out.len() - 1) {
            frames.buffer.push(*byte);
            assert!(frames.next().is_none());
        }
        frames.buffer.extend(out.last());
        let frame = frames.next().unwrap();
        assert_eq!((frame.kind, frame.flags, frame.stream, frame.payload.as_slice()), (DATA, END_STREAM, 5, BODY));
    }
}
