//! Sockets of the DNS server, and the life of a query.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hickory_server::{
    net::xfer::Protocol,
    proto::{
        op::ResponseCode,
        rr::{DNSClass, RecordType},
    },
    server::Request,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};
use tracing::{debug, error, info, warn};

use super::{
    Dns,
    forward::{Forwarder, Found, Waiting},
    message::{self, Read, Reply},
    metrics::Source,
    resolv_conf::ResolvConf,
    upstream::Upstreams,
};

/// Largest query over UDP that is read, bytes; RFC 6891 lets one be as long as an answer.
const MAX_QUERY: usize = 4096;
/// Receive buffer of a UDP socket, bytes: a burst waits here.
const UDP_BUFFER: usize = 4 * 1024 * 1024;
/// TCP connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// A TCP connection without a query is closed after this. RFC 7766, section 6.2.3.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// A TCP client that takes no answer is given up after this.
const TCP_WRITE: Duration = Duration::from_secs(10);
/// How often the file with the resolvers is looked at.
const RESOLV_CONF_INTERVAL: Duration = Duration::from_secs(2);
/// Pause after a socket error that another try does not help.
const BACK_OFF: Duration = Duration::from_millis(100);

/// Where the server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// In order; IPv6 ones are left out where the host has none.
    pub addresses: Vec<IpAddr>,
    /// For UDP and TCP.
    pub port: u16,
}

impl Addresses {
    /// Kuma's rule. Without transparent proxying: all IPv4 addresses. With it: loopback, where redirected queries arrive, unless there are networks of
    /// containers (`vnet`), whose queries arrive at their interface. Source: kuma `app/kuma-dp/cmd/run.go`, `dnsProxyAddresses`.
    pub fn new(port: u16, transparent: bool, dual_stack: bool, vnet: bool) -> Addresses {
        // A reply has to leave from the address that the query came to, or the redirection does not know it. On the more exact socket that is loopback,
        // for the host's own redirected queries; others come to their interface's address.
        const ALL_V4: &[IpAddr] = &[IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::LOCALHOST)];
        const ALL_V6: &[IpAddr] = &[IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let (v4, v6): (&[IpAddr], &[IpAddr]) = match (transparent, vnet) {
            (false, _) => (ALL_V4, &[]),
            (true, true) => (ALL_V4, ALL_V6),
            (true, false) => (&[IpAddr::V4(Ipv4Addr::LOCALHOST)], &[IpAddr::V6(Ipv6Addr::LOCALHOST)]),
        };
        let v6 = if dual_stack { v6 } else { &[] };
        Addresses { addresses: v4.iter().chain(v6).copied().collect(), port }
    }
}

/// Bound sockets.
#[derive(Debug)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Binds all of them; port 0 is the same free port for all.
    ///
    /// # Errors
    /// The address and what the kernel says.
    pub fn bind(wanted: &Addresses) -> Result<Sockets, String> {
        let mut sockets = Sockets { udp: Vec::new(), tcp: Vec::new() };
        let mut port = wanted.port;
        for ip in &wanted.addresses {
            // The unspecified address takes loopback's TCP connections too, and answers from where they came to.
            let covered = ip.is_loopback() && wanted.addresses.contains(&unspecified(*ip));
            match sockets.add(*ip, port, covered) {
                Ok(bound) => port = bound,
                Err(error) if ip.is_ipv6() && no_ipv6(&error) => {
                    info!("DNS: this host has no {ip}, only IPv4 is served")
                }
                Err(error) => return Err(format!("DNS: cannot bind '{}': {error}", SocketAddr::new(*ip, port))),
            }
        }
        Ok(sockets)
    }

    fn add(&mut self, ip: IpAddr, port: u16, covered: bool) -> io::Result<u16> {
        let mut port = port;
        if !covered {
            let listener = socket(SocketAddr::new(ip, port), Type::STREAM)?;
            listener.listen(1024)?;
            let listener = TcpListener::from(listener);
            port = listener.local_addr()?.port();
            self.tcp.push(listener);
        }
        self.udp.push(socket(SocketAddr::new(ip, port), Type::DGRAM)?.into());
        Ok(port)
    }

    /// Every address, once for UDP.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.udp.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }
}

fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn socket(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::DGRAM {
        // Two of ours share a port, one for an address and one for all. Unlike SO_REUSEADDR this keeps other users out, and a second process of this
        // user is kept out by the TCP socket.
        socket.set_reuse_port(true)?;
        // The kernel gives what it allows.
        socket.set_recv_buffer_size(UDP_BUFFER)?;
    } else {
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&match address {
        SocketAddr::V4(v4) => SocketAddrV4::new(*v4.ip(), v4.port()).into(),
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0).into(),
    })?;
    Ok(socket)
}

/// Serves until the thread ends. Has to run in a [`tokio::task::LocalSet`].
pub async fn run(sockets: Sockets, dns: Arc<Dns>) {
    let own = sockets.addresses();
    let conf = ResolvConf::read(&dns.resolv_conf).unwrap_or_else(|error| {
        error!("{error}; names outside the mesh are asked of 127.0.0.1 until it can be read");
        ResolvConf::parse("")
    });
    let upstreams = Upstreams::new(conf.clone(), &own, dns.clone());
    let server = Rc::new(Server { forwarder: Rc::new(Forwarder::new(dns.clone(), upstreams)), dns });
    info!("DNS is served on {own:?}");
    for socket in sockets.udp {
        match tokio::net::UdpSocket::from_std(socket) {
            Ok(socket) => drop(tokio::task::spawn_local(serve_udp(server.clone(), socket))),
            Err(error) => error!("DNS: {error}"),
        }
    }
    for listener in sockets.tcp {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => drop(tokio::task::spawn_local(serve_tcp(server.clone(), listener))),
            Err(error) => error!("DNS: {error}"),
        }
    }
    follow(&server, conf, &own).await;
}

/// Reads the file with the resolvers again whenever it has changed. Looked at, not watched: in a container it is a mount of its own, replaced from
/// outside.
async fn follow(server: &Server, mut conf: ResolvConf, own: &[SocketAddr]) {
    let path = &server.dns.resolv_conf;
    let stamp = || {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len()))
    };
    let mut known = stamp();
    let mut interval = tokio::time::interval(RESOLV_CONF_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let now = stamp();
        if now == known {
            continue;
        }
        known = now;
        match ResolvConf::read(path) {
            Ok(read) if read == conf => {}
            Ok(read) => {
                conf = read;
                server.forwarder.replace(Upstreams::new(conf.clone(), own, server.dns.clone()));
            }
            Err(error) => warn!("{error}; the resolvers stay as they were"),
        }
    }
}

struct Server {
    forwarder: Rc<Forwarder>,
    dns: Arc<Dns>,
}

/// What becomes of a message.
enum Step {
    /// This is sent back.
    Answer(Vec<u8>),
    /// A resolver is asked.
    Wait(Box<(Request, Waiting, Instant)>),
    /// Nothing.
    Ignore,
}

impl Server {
    /// The life of a query, up to where a resolver is waited for.
    fn take(&self, raw: Vec<u8>, from: SocketAddr, protocol: Protocol) -> Step {
        let start = Instant::now();
        let request = match message::read(raw, from, protocol) {
            Read::Query(request) => request,
            Read::Refuse(reply) => {
                self.dns.metrics.refused(ResponseCode::FormErr);
                return Step::Answer(reply);
            }
            Read::Ignore => return Step::Ignore,
        };
        let Some(query) = request.queries.queries().first() else { return Step::Ignore };
        let kind = query.query_type();
        let done = |reply: &Reply, source: Source, age: u32| {
            self.dns.metrics.answered(kind, source, reply.code, start.elapsed());
            Step::Answer(reply.encode(&request, age))
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return done(&Reply::of(ResponseCode::BADVERS), Source::Local, 0);
        }
        if query.query_class() == DNSClass::IN {
            let owner = query.original().name();
            if let Some(answers) = self.dns.table.load().look_up(query.name(), owner, kind) {
                return done(&Reply::mesh(answers), Source::Local, 0);
            }
        }
        if self.forwarder.outgoing.is_ours(from, request.metadata.id) {
            warn!(
                "a query to a resolver came back to this server: the redirection of DNS does not exempt the user that the proxy runs as"
            );
            return done(&Reply::of(ResponseCode::ServFail), Source::Upstream, 0);
        }
        match self.forwarder.look_up(&request, query) {
            Found::Now(entry) => done(&entry.reply, Source::Upstream, entry.age()),
            Found::Overloaded => done(&Reply::of(ResponseCode::ServFail), Source::Upstream, 0),
            Found::Later(waiting) => Step::Wait(Box::new((request, waiting, start))),
        }
    }

    /// The rest of it. `None`: the server stops.
    async fn finish(&self, request: &Request, waiting: Waiting, start: Instant) -> Option<Vec<u8>> {
        let entry = waiting.await.ok()?;
        let kind = request.queries.queries().first().map_or(RecordType::ZERO, |query| query.query_type());
        self.dns.metrics.answered(kind, Source::Upstream, entry.reply.code, start.elapsed());
        Some(entry.reply.encode(request, entry.age()))
    }
}

async fn serve_udp(server: Rc<Server>, socket: tokio::net::UdpSocket) {
    let socket = Rc::new(socket);
    let mut buffer = vec![0; MAX_QUERY];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!("DNS over UDP: {error}");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        let raw = buffer.get(..length).unwrap_or_default().to_vec();
        match server.take(raw, from, Protocol::Udp) {
            Step::Answer(reply) => send(&socket, &reply, from).await,
            Step::Wait(waiting) => {
                let (server, socket) = (server.clone(), socket.clone());
                tokio::task::spawn_local(async move {
                    let (request, waiting, start) = *waiting;
                    if let Some(reply) = server.finish(&request, waiting, start).await {
                        send(&socket, &reply, from).await;
                    }
                });
            }
            Step::Ignore => {}
        }
    }
}

async fn send(socket: &tokio::net::UdpSocket, reply: &[u8], to: SocketAddr) {
    // A client that is gone, most likely; it asks again if it still wants to know.
    if let Err(error) = socket.send_to(reply, to).await {
        debug!("DNS over UDP: {to}: {error}");
    }
}

async fn serve_tcp(server: Rc<Server>, listener: tokio::net::TcpListener) {
    let slots = Rc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed, so never an error.
        let _ = slots.acquire().await.map(tokio::sync::SemaphorePermit::forget);
        match listener.accept().await {
            Ok((stream, from)) => {
                let (server, slots) = (server.clone(), slots.clone());
                tokio::task::spawn_local(async move {
                    if let Err(error) = serve_connection(&server, stream, from).await {
                        debug!("DNS over TCP: {from}: {error}");
                    }
                    slots.add_permits(1);
                });
            }
            Err(error) => {
                slots.add_permits(1);
                debug!("DNS over TCP: {error}");
                // Out of descriptors, most likely.
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// One query after the other, each answered before the next is read.
async fn serve_connection(server: &Server, mut stream: tokio::net::TcpStream, from: SocketAddr) -> io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut raw = vec![0; length.into()];
            stream.read_exact(&mut raw).await?;
            Ok::<_, io::Error>(raw)
        };
        let raw = match timeout(TCP_IDLE, read).await {
            Ok(Ok(raw)) => raw,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        };
        let reply = match server.take(raw, from, Protocol::Tcp) {
            Step::Answer(reply) => reply,
            Step::Wait(waiting) => {
                let (request, waiting, start) = *waiting;
                match server.finish(&request, waiting, start).await {
                    Some(reply) => reply,
                    None => return Ok(()),
                }
            }
            Step::Ignore => return Ok(()),
        };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        timeout(TCP_WRITE, stream.write_all(&framed)).await??;
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
