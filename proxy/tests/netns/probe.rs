//! Servers that say who they are and what they were called by, and calls to them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::space::Space;

/// Nothing here waits for so long unless a packet was lost for good.
const LIMIT: Duration = Duration::from_secs(30);

/// Serves TCP on a port of a namespace, IPv4 and IPv6: `name:port for destination`, the destination being the one before any redirection. The
/// threads end with the process.
pub fn serve_tcp(space: &Space, name: &str, port: u16) {
    for address in ["0.0.0.0", "::"] {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let listener = space.within(0, || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(true).unwrap();
            }
            socket.set_reuse_address(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(64).unwrap();
            TcpListener::from(socket)
        });
        let label = format!("{name}:{port}");
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let socket = Socket::from(stream);
                let original = if address.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
                let original = original.ok().and_then(|original| original.as_socket());
                let original = original.or_else(|| socket.local_addr().ok()?.as_socket());
                let text = format!("{label} for {}", original.map(plain).unwrap_or_default());
                let _ = (&socket).write_all(text.as_bytes());
            }
        });
    }
}

/// Without the scope that a link-local address has.
fn plain(address: SocketAddr) -> String {
    SocketAddr::new(address.ip(), address.port()).to_string()
}

/// Serves UDP at an address of a namespace, as a user: answers with its name.
pub fn serve_udp(space: &Space, name: &str, uid: u32, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let socket = space.within(uid, || UdpSocket::bind(address).unwrap());
    let label = name.to_owned();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(label.as_bytes(), from);
        }
    });
}

/// Who calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    pub uid: u32,
    pub mark: u32,
    /// Source address and port, where it matters.
    pub source: Option<SocketAddr>,
}

impl Caller {
    pub fn user(uid: u32) -> Caller {
        Caller { uid, ..Caller::default() }
    }

    pub fn from(self, source: &str) -> Caller {
        let source = source.parse().unwrap_or_else(|_| SocketAddr::new(source.parse::<IpAddr>().unwrap(), 0));
        Caller { source: Some(source), ..self }
    }

    pub fn marked(self, mark: u32) -> Caller {
        Caller { mark, ..self }
    }

    fn socket(self, kind: Type, protocol: Protocol, to: SocketAddr) -> Socket {
        let socket = Socket::new(Domain::for_address(to), kind, Some(protocol)).unwrap();
        if self.mark != 0 {
            socket.set_mark(self.mark).unwrap();
        }
        if let Some(source) = self.source {
            socket.set_reuse_address(true).unwrap();
            socket.bind(&source.into()).unwrap();
        }
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }
}

/// What answers a TCP connection: a server's text, or why there is none.
pub fn tcp(space: &Space, caller: Caller, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    // A mark may be set by root alone, and what counts is the user that a socket is made by: so root makes none but the marked.
    let uid = if caller.mark == 0 { caller.uid } else { 0 };
    space.within(uid, || {
        let mut socket = caller.socket(Type::STREAM, Protocol::TCP, to);
        if let Err(error) = socket.connect_timeout(&to.into(), LIMIT) {
            return kind(error.kind());
        }
        let mut text = String::new();
        match socket.read_to_string(&mut text) {
            Ok(_) => text,
            Err(error) => kind(error.kind()),
        }
    })
}

/// What answers a UDP query.
pub fn udp(space: &Space, caller: Caller, to: &str) -> String {
    let to: SocketAddr = to.parse().unwrap();
    let mut socket = space.within(caller.uid, || {
        let socket = caller.socket(Type::DGRAM, Protocol::UDP, to);
        socket.connect(&to.into()).unwrap();
        socket
    });
    if let Err(error) = socket.write_all(b"who?") {
        return kind(error.kind());
    }
    let mut buffer = [0; 512];
    match socket.read(&mut buffer) {
        Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
        Err(error) => kind(error.kind()),
    }
}

fn kind(kind: ErrorKind) -> String {
    match kind {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer".into(),
        other => format!("{other:?}"),
    }
}
