//! Binding and accepting.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{SocketFlags, acceptfrom_with},
};
use socket2::{Domain, SockAddr, Type};
use tokio::{
    io::Interest,
    net::{TcpStream, UdpSocket, UnixListener},
    task::AbortHandle,
};

use crate::{
    connection, datagram,
    io::{Socket, canonical},
    model::{
        ListenerId,
        listener::{BindAddress, Listener},
    },
    pacing,
    stats::ServerStats,
    upstream::connect::errno_text,
    worker,
};

/// Envoy's default is the kernel's `somaxconn`; the kernel cuts this down to it.
const DEFAULT_BACKLOG: i32 = i32::MAX;

/// The bound sockets of a listener, ready for [`crate::worker::Workers::listen`].
#[derive(Debug)]
pub struct BoundListener {
    /// Whose they are.
    pub id: ListenerId,
    /// Actual addresses, port 0 resolved, in the order of [`Listener::addresses`]. `None` for Unix sockets.
    pub addresses: Vec<Option<SocketAddr>>,
    /// By worker.
    pub(crate) per_worker: Vec<Vec<Bound>>,
}

/// One socket that listens.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(std::net::TcpListener),
    Udp(std::net::UdpSocket),
    Unix(std::os::unix::net::UnixListener),
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot bind '{address}': {}", errno_text(source))]
pub struct BindError {
    /// Which.
    pub address: String,
    /// What the kernel says.
    pub source: io::Error,
}

/// Binds all addresses of a listener and listens on them, for so many workers. A virtual listener (`bind_to_port: false`) gives no sockets.
pub fn bind(listener: &Listener, workers: usize) -> Result<BoundListener, BindError> {
    let workers = workers.max(1);
    let mut bound = BoundListener {
        id: listener.id,
        addresses: Vec::new(),
        per_worker: (0..workers).map(|_| Vec::new()).collect(),
    };
    if !listener.bind_to_port {
        return Ok(bound);
    }
    for address in &listener.addresses {
        match address {
            BindAddress::Ip { address, ipv4_compat } => {
                let fail = |source| BindError { address: address.to_string(), source };
                let first = bind_tcp(listener, *address, *ipv4_compat).map_err(fail)?;
                let actual = first.local_addr().map_err(fail)?;
                bound.addresses.push(Some(actual));
                let mut sockets = vec![first];
                while sockets.len() < workers {
                    let next = if listener.reuse_port {
                        bind_tcp(listener, actual, *ipv4_compat)
                    } else {
                        sockets[0].try_clone()
                    };
                    sockets.push(next.map_err(fail)?);
                }
                for (worker, socket) in bound.per_worker.iter_mut().zip(sockets) {
                    worker.push(Bound::Tcp(socket));
                }
            }
            BindAddress::Udp(address) => {
                let fail = |source| BindError { address: address.to_string(), source };
                let first = bind_udp(listener, *address).map_err(fail)?;
                let actual = first.local_addr().map_err(fail)?;
                bound.addresses.push(Some(actual));
                let mut first = Some(first);
                for worker in &mut bound.per_worker {
                    // A socket that is not shared is served by one worker.
                    let socket = match first.take() {
                        Some(first) => first,
                        None if listener.reuse_port => bind_udp(listener, actual).map_err(fail)?,
                        None => break,
                    };
                    worker.push(Bound::Udp(socket));
                }
            }
            BindAddress::Unix { path, mode } => {
                let fail = |source| BindError { address: path.display().to_string(), source };
                let first = bind_unix(listener, path, *mode).map_err(fail)?;
                bound.addresses.push(None);
                for worker in &mut bound.per_worker {
                    worker.push(Bound::Unix(first.try_clone().map_err(fail)?));
                }
            }
        }
    }
    Ok(bound)
}

fn bind_tcp(listener: &Listener, address: SocketAddr, ipv4_compat: bool) -> io::Result<std::net::TcpListener> {
    let socket = open(listener, address, Type::STREAM, ipv4_compat)?;
    socket.bind(&address.into())?;
    socket.listen(backlog(listener))?;
    Ok(socket.into())
}

fn bind_udp(listener: &Listener, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = open(listener, address, Type::DGRAM, false)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A socket with the listener's options.
fn open(listener: &Listener, address: SocketAddr, kind: Type, ipv4_compat: bool) -> io::Result<socket2::Socket> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, kind.nonblocking(), None)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
        // Accepted connections take both over.
        socket.set_tcp_nodelay(true)?;
        pacing::spare(&socket, address.ip());
    }
    if listener.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if domain == Domain::IPV6 {
        socket.set_only_v6(!ipv4_compat)?;
        if listener.freebind {
            socket.set_freebind_v6(true)?;
        }
    } else if listener.freebind {
        socket.set_freebind_v4(true)?;
    }
    if listener.transparent {
        if domain == Domain::IPV6 { set_transparent_v6(&socket)? } else { socket.set_ip_transparent_v4(true)? }
    }
    Ok(socket)
}

/// `IPV6_TRANSPARENT` is the same switch as `IP_TRANSPARENT` inside the kernel, which lets it be set through either level on a v6 socket.
fn set_transparent_v6(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_ip_transparent_v4(true)
}

fn bind_unix(listener: &Listener, path: &Path, mode: Option<u32>) -> io::Result<std::os::unix::net::UnixListener> {
    let text = path.as_os_str().as_encoded_bytes();
    let address = match text.strip_prefix(b"@") {
        // An abstract address begins with a NUL byte and leaves nothing in the file system.
        Some(name) => SockAddr::unix(format!("\0{}", String::from_utf8_lossy(name)))?,
        None => {
            remove_stale(path)?;
            SockAddr::unix(path)?
        }
    };
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&address)?;
    if let (Some(mode), false) = (mode, text.starts_with(b"@")) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    socket.listen(backlog(listener))?;
    Ok(socket.into())
}

/// Removes what a process that died left behind: a socket file that nobody answers on. Anything else stays, and the bind fails.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn backlog(listener: &Listener) -> i32 {
    listener.backlog.map_or(DEFAULT_BACKLOG, |backlog| i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// What to do after `accept(2)` failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptFailure {
    /// The one connection is lost; the next may be fine.
    Connection,
    /// The process or the host is out of something: wait before the next try, or this loop would spin.
    Exhausted,
    /// The socket is not usable.
    Fatal,
}

/// Source: accept(2), "Error handling": network errors of the new socket are passed on and should be treated like `EAGAIN`.
fn sort_failure(errno: Option<i32>) -> AcceptFailure {
    const ENOMEM: i32 = 12;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    const ENOBUFS: i32 = 105;
    const EBADF: i32 = 9;
    const EFAULT: i32 = 14;
    const EINVAL: i32 = 22;
    const ENOTSOCK: i32 = 88;
    const EOPNOTSUPP: i32 = 95;
    match errno {
        Some(ENOMEM | ENFILE | EMFILE | ENOBUFS) => AcceptFailure::Exhausted,
        Some(EBADF | EFAULT | EINVAL | ENOTSOCK | EOPNOTSUPP) => AcceptFailure::Fatal,
        _ => AcceptFailure::Connection,
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A shortage is logged once per this time.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// How long to wait for what is short, and whether to say so.
#[derive(Debug, Default)]
struct BackOff {
    pause: Option<Duration>,
    logged: Option<Instant>,
}

impl BackOff {
    /// The next pause, twice the one before.
    fn failed(&mut self, now: Instant) -> (Duration, bool) {
        let pause = self.pause.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LONGEST_PAUSE));
        self.pause = Some(pause);
        let log = self.logged.is_none_or(|last| now.duration_since(last) >= LOG_PERIOD);
        if log {
            self.logged = Some(now);
        }
        (pause, log)
    }

    fn succeeded(&mut self) {
        self.pause = None;
    }
}

/// Accepts from one socket, on one worker.
#[derive(Debug)]
struct Acceptor {
    id: ListenerId,
    socket: Accepting,
    server: ServerStats,
}

#[derive(Debug)]
enum Accepting {
    Tcp(TcpAcceptor),
    Unix(UnixListener),
}

/// Serves a socket until the task is aborted. To be called in the worker's runtime.
pub(crate) fn start(id: ListenerId, bound: Bound, server: ServerStats) -> io::Result<AbortHandle> {
    let socket = match bound {
        Bound::Tcp(tcp) => Accepting::Tcp(TcpAcceptor::new(tcp)?),
        Bound::Unix(unix) => {
            unix.set_nonblocking(true)?;
            Accepting::Unix(UnixListener::from_std(unix)?)
        }
        Bound::Udp(udp) => return Ok(tokio::spawn(datagram::serve(UdpSocket::from_std(udp)?, id)).abort_handle()),
    };
    Ok(tokio::spawn(Acceptor { id, socket, server }.run()).abort_handle())
}

impl Acceptor {
    /// Accepts until the task is aborted. Takes all that waits before it goes back to the event loop, as far as the runtime's budget per turn allows.
    async fn run(mut self) {
        let mut back_off = BackOff::default();
        loop {
            match self.accept().await {
                Ok((socket, peer)) => {
                    back_off.succeeded();
                    let server = self.server.clone();
                    tokio::spawn(connection::serve(socket, peer, self.id, PanicCount(server)));
                }
                Err(error) => match sort_failure(error.raw_os_error()) {
                    AcceptFailure::Connection => {
                        tracing::debug!(listener = self.id.0, %error, "connection lost before it was accepted")
                    }
                    AcceptFailure::Exhausted => {
                        let (pause, log) = back_off.failed(Instant::now());
                        if let Some(listener) = worker::snapshot().listener(self.id) {
                            listener.stats.downstream_cx_overload_reject().inc();
                            if log {
                                tracing::error!(listener = %listener.name, %error, "cannot accept; raise the limit of open files or lower the load");
                            }
                        }
                        tokio::time::sleep(pause).await;
                    }
                    AcceptFailure::Fatal => {
                        tracing::error!(listener = self.id.0, %error, "listening socket failed; no more connections are accepted on it");
                        return;
                    }
                },
            }
        }
    }

    /// A connection and its peer's address; `None` for Unix sockets.
    async fn accept(&mut self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match &mut self.socket {
            Accepting::Tcp(tcp) => {
                let (stream, peer) = tcp.accept().await?;
                Ok((Socket::Tcp(stream.into()), Some(canonical(peer))))
            }
            Accepting::Unix(unix) => Ok((Socket::Unix(unix.accept().await?.0), None)),
        }
    }
}

/// Counts `server.worker_panic` if its task panics; the runtime ends that task alone.
#[derive(Debug)]
pub(crate) struct PanicCount(pub(crate) ServerStats);

impl Drop for PanicCount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.worker_panic().inc();
        }
    }
}

/// Accepts from a TCP socket for as long as a connection waits. accept(2) makes the new file before it looks for a connection, so that finding none costs it
/// as much as finding one, and poll(2) less. tokio's own listener, moreover, has every new connection read before its first bytes can be there.
#[derive(Debug)]
struct TcpAcceptor {
    /// A socket that listens, as what lets us say what is to be done when it is ready.
    socket: TcpStream,
    /// A connection has been taken since the event loop said that some wait, so it may have been the last.
    taken: bool,
}

impl TcpAcceptor {
    /// To be called in the worker's runtime. The socket must not block.
    fn new(socket: std::net::TcpListener) -> io::Result<Self> {
        let socket = std::net::TcpStream::from(OwnedFd::from(socket));
        Ok(TcpAcceptor { socket: TcpStream::from_std(socket)?, taken: false })
    }

    /// The next connection and where it comes from; the errors are those of accept(2).
    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let TcpAcceptor { socket, taken } = self;
        let accept = || {
            if *taken && !waits(socket)? {
                *taken = false;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let accepted = acceptfrom_with(&*socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
            *taken = accepted.is_ok();
            Ok(accepted?)
        };
        let (stream, peer) = socket.async_io(Interest::READABLE, accept).await?;
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(io::ErrorKind::ConnectionAborted)?;
        Ok((TcpStream::from_std(stream.into())?, peer))
    }
}

/// Whether a connection waits to be accepted.
fn waits(socket: &TcpStream) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&now))? > 0)
}

#[cfg(test)]
#[path = "listen_tests.rs"]
mod tests;
