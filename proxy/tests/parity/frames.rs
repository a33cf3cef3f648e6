//! Watches the HTTP/2 frames that a peer sends: the `h2` crate acts on GOAWAY and SETTINGS without showing all of them.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::{End, Io};

/// What a peer sent (RFC 9113 section 6).
#[derive(Debug, Default)]
pub struct Frames {
    partial: Vec<u8>,
    /// Bytes of payload to pass over.
    skip: usize,
    /// The connection preface is still to come (server side).
    preface: usize,
    /// Settings of all SETTINGS frames, the last value of each.
    pub settings: BTreeMap<u16, u32>,
    /// Error codes of GOAWAY frames, in order.
    pub goaway: Vec<u32>,
    /// How the stream ended, once it has.
    pub end: Option<End>,
}

impl Frames {
    fn feed(&mut self, mut bytes: &[u8]) {
        let preface = self.preface.min(bytes.len());
        self.preface -= preface;
        bytes = &bytes[preface..];
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.partial.extend(&bytes[skipped..]);
        loop {
            let [a, b, c, kind, flags, _, _, _, _, payload @ ..] = self.partial.as_slice() else { return };
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let (kind, flags) = (*kind, *flags);
            let wanted = kind == 4 || kind == 7;
            if !wanted {
                let here = payload.len().min(length);
                self.skip = length - here;
                self.partial.drain(..9 + here);
                continue;
            }
            if payload.len() < length {
                return;
            }
            let payload = payload[..length].to_vec();
            self.partial.drain(..9 + length);
            match kind {
                4 if flags & 1 == 0 => {
                    for pair in payload.chunks_exact(6) {
                        let id = u16::from_be_bytes([pair[0], pair[1]]);
                        self.settings.insert(id, u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]));
                    }
                }
                7 => {
                    if let Some(code) = payload.get(4..8) {
                        self.goaway.push(u32::from_be_bytes([code[0], code[1], code[2], code[3]]));
                    }
                }
                _ => {}
            }
        }
    }
}

/// Names of settings as RFC 9113 section 6.5.2 and RFC 8441 give them.
pub fn setting_name(id: u16) -> String {
    match id {
        1 => "header_table_size".into(),
        2 => "enable_push".into(),
        3 => "max_concurrent_streams".into(),
        4 => "initial_window_size".into(),
        5 => "max_frame_size".into(),
        6 => "max_header_list_size".into(),
        8 => "enable_connect_protocol".into(),
        other => format!("setting-{other}"),
    }
}

/// A transport whose incoming frames are watched.
pub struct Watched {
    io: Box<dyn Io>,
    frames: Arc<Mutex<Frames>>,
}

impl Watched {
    /// `server`: the peer sends the connection preface first.
    pub fn new(io: Box<dyn Io>, server: bool) -> (Self, Arc<Mutex<Frames>>) {
        let preface = if server { 24 } else { 0 };
        let frames = Arc::new(Mutex::new(Frames { preface, ..Frames::default() }));
        (Watched { io, frames: frames.clone() }, frames)
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.io).poll_read(cx, buf);
        let mut frames = self.frames.lock();
        match &poll {
            Poll::Ready(Ok(())) if buf.filled().len() > before => frames.feed(&buf.filled()[before..]),
            Poll::Ready(Ok(())) => frames.end = Some(End::Closed),
            Poll::Ready(Err(error)) => frames.end = Some(End::of(error)),
            Poll::Pending => {}
        }
        poll
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_seen_whatever_the_pieces() {
        let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        wire.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100]);
        wire.extend([0, 0, 0, 4, 1, 0, 0, 0, 0]);
        wire.extend([0, 0, 5, 0, 1, 0, 0, 0, 1, 7, 7, 7, 7, 7]);
        wire.extend([0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 11]);
        for piece in 1..wire.len() {
            let mut frames = Frames { preface: 24, ..Frames::default() };
            wire.chunks(piece).for_each(|bytes| frames.feed(bytes));
            assert_eq!(frames.settings, BTreeMap::from([(3, 100)]), "in pieces of {piece}");
            assert_eq!(frames.goaway, vec![11], "in pieces of {piece}");
        }
    }
}
