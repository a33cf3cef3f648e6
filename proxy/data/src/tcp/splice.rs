//! Bulk that the kernel passes from socket to socket through a pipe, without a copy into the process and back.
//!
//! A transfer of 10 MB costs half the CPU time; a message that is a few kB long does not gain, as it takes two calls either way. So a direction is spliced
//! from the moment on that reads are large, until little comes at once. A pipe is borrowed from the worker while bytes are in it: an idle
//! connection has none.
//!
//! Source: splice(2).

use std::{
    cell::RefCell,
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::{io::Interest, net::TcpStream};

use crate::io::{DownstreamIo, Inspected, Socket, UpstreamIo};

/// Bytes asked for at once. A pipe has a place for each 4 kB of its size and takes a piece of up to 32 kB from a socket into each; where memory is
/// fragmented pieces have 4 kB, and the 16 places that a pipe has by default would hold 64 kB.
const MOST: usize = 512 * 1024;
/// A copying read of so much is a large one.
const LARGE: usize = 32 * 1024;
/// Large reads in a row that make bulk.
const LARGE_READS: u8 = 2;
/// Less than this at once is no bulk any more.
const LITTLE: usize = 8 * 1024;
/// Pipes that a worker keeps for the next transfer.
const KEPT_PIPES: usize = 16;

thread_local! {
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// A stream that may be nothing but a TCP socket.
pub trait MaybeTcp {
    /// The socket, when the next byte to be read is read from it as it is.
    fn source(&self) -> Option<&TcpStream>;

    /// The socket, when the next byte to be written is written to it as it is.
    fn sink(&self) -> Option<&TcpStream>;
}

impl MaybeTcp for TcpStream {
    fn source(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn sink(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl MaybeTcp for Socket {
    fn source(&self) -> Option<&TcpStream> {
        match self {
            Socket::Tcp(tcp) => Some(tcp),
            Socket::Unix(_) => None,
            #[cfg(feature = "fuzzing")]
            Socket::Memory(_) => None,
        }
    }

    fn sink(&self) -> Option<&TcpStream> {
        match self {
            Socket::Tcp(tcp) => tcp.bare(),
            Socket::Unix(_) => None,
            #[cfg(feature = "fuzzing")]
            Socket::Memory(_) => None,
        }
    }
}

impl MaybeTcp for Inspected {
    fn source(&self) -> Option<&TcpStream> {
        self.socket.source().filter(|_| self.head.is_empty())
    }

    fn sink(&self) -> Option<&TcpStream> {
        self.socket.sink()
    }
}

impl MaybeTcp for DownstreamIo {
    fn source(&self) -> Option<&TcpStream> {
        match self {
            DownstreamIo::Plain(plain) => plain.source(),
            DownstreamIo::Tls(_) => None,
        }
    }

    fn sink(&self) -> Option<&TcpStream> {
        match self {
            DownstreamIo::Plain(plain) => plain.sink(),
            DownstreamIo::Tls(_) => None,
        }
    }
}

impl MaybeTcp for UpstreamIo {
    fn source(&self) -> Option<&TcpStream> {
        match self {
            UpstreamIo::Plain(socket) => socket.source(),
            UpstreamIo::Tls(_) => None,
        }
    }

    fn sink(&self) -> Option<&TcpStream> {
        match self {
            UpstreamIo::Plain(socket) => socket.sink(),
            UpstreamIo::Tls(_) => None,
        }
    }
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    fn borrow() -> io::Result<Pipe> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Best effort: there is a limit for each user, above which a pipe keeps its 16 places.
        let _ = fcntl_setpipe_size(&write, MOST);
        Ok(Pipe { read, write })
    }

    /// Gives an empty pipe back.
    fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < KEPT_PIPES {
                pipes.push(self);
            }
        });
    }
}

/// What a step has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes were passed on, or splicing is over: go on.
    Moved,
    /// The reader said that nothing more comes.
    Ended,
}

/// Bulk of one direction.
#[derive(Debug, Default)]
pub(super) struct Bulk {
    /// With bytes in it.
    pipe: Option<Pipe>,
    held: usize,
    large_reads: u8,
    /// Splicing does not work here: no descriptors, or a kernel without it.
    off: bool,
}

impl Bulk {
    /// A copying read brought so many bytes.
    pub(super) fn saw_read(&mut self, n: usize) {
        self.large_reads = if n >= LARGE { self.large_reads.saturating_add(1) } else { 0 };
    }

    /// The next bytes are to be spliced, if both sides are sockets.
    pub(super) fn goes_on(&self) -> bool {
        self.large_reads >= LARGE_READS && !self.off
    }

    /// Passes on what is there. An error says whether reading was at fault.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        moved: &mut dyn FnMut(usize),
    ) -> Poll<Result<Step, (bool, io::Error)>> {
        ready!(self.poll_out(cx, to, moved)).map_err(|error| (false, error))?;
        loop {
            ready!(from.poll_read_ready(cx)).map_err(|error| (true, error))?;
            let Ok(pipe) = Pipe::borrow() else {
                self.off = true;
                return Poll::Ready(Ok(Step::Moved));
            };
            match from.try_io(Interest::READABLE, || Ok(splice(from, None, &pipe.write, None, MOST, flags())?)) {
                Ok(0) => {
                    pipe.give_back();
                    return Poll::Ready(Ok(Step::Ended));
                }
                Ok(n) => {
                    (self.pipe, self.held) = (Some(pipe), n);
                    if n < LITTLE {
                        self.large_reads = 0;
                    }
                    ready!(self.poll_out(cx, to, moved)).map_err(|error| (false, error))?;
                    return Poll::Ready(Ok(Step::Moved));
                }
                Err(error) => {
                    pipe.give_back();
                    match error.kind() {
                        // The socket is empty, for an empty pipe cannot be full: waits above.
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                        io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => {
                            self.off = true;
                            return Poll::Ready(Ok(Step::Moved));
                        }
                        _ => return Poll::Ready(Err((true, error))),
                    }
                }
            }
        }
    }

    /// Empties the pipe.
    pub(super) fn poll_out(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
        moved: &mut dyn FnMut(usize),
    ) -> Poll<io::Result<()>> {
        while let Some(pipe) = self.pipe.as_ref().filter(|_| self.held > 0) {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || Ok(splice(&pipe.read, None, to, None, self.held, flags())?)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.held = self.held.saturating_sub(n);
                    moved(n);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes wait in the pipe.
    pub(super) fn holds(&self) -> bool {
        self.held > 0
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::NONBLOCK | SpliceFlags::MOVE
}
