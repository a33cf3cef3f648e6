//! The resolvers of `/etc/resolv.conf`: which is asked, how long it is waited for, and what is said about one that does not answer.
//!
//! The client reads the same file and gives up after its `timeout`. So this is the bound for all tries together here, a little less, so that the client
//! learns of the failure: `attempts` rounds over the servers share it. A server that did not answer is asked last for a while.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_server::proto::op::{Message, MessageType, Query, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    time::{Instant, timeout},
};
use tracing::{info, warn};

use super::{Dns, message, resolv_conf::ResolvConf};

/// How long a server that did not answer is asked last.
const DOWN: Duration = Duration::from_secs(10);
/// Room for an answer over UDP where the query allows none, bytes. RFC 1035, section 4.2.1.
const UDP_ANSWER: usize = 512;

/// The resolvers as of one reading of the file.
pub struct Upstreams {
    servers: Vec<Server>,
    /// For one query, all tries together.
    budget: Duration,
    attempts: usize,
    rotate: bool,
    tcp_only: bool,
    next: Cell<usize>,
    dns: Arc<Dns>,
}

struct Server {
    address: SocketAddr,
    down_until: Cell<Option<Instant>>,
}

/// Our own queries that are out, by port: id. What comes back in with both is one of them, sent here by a redirection.
#[derive(Default)]
pub struct Outgoing(RefCell<HashMap<u16, u16>>);

/// A query on its way out.
pub struct Question<'a> {
    /// The message as the client sent it; its id is replaced.
    pub raw: &'a [u8],
    /// Its question.
    pub query: &'a Query,
    /// Answer that the client takes over UDP, bytes.
    pub max_payload: u16,
    /// Where queries that are out are noted.
    pub outgoing: &'a Outgoing,
}

impl Upstreams {
    /// From the file, without `own` addresses of this server.
    pub fn new(conf: ResolvConf, own: &[SocketAddr], dns: Arc<Dns>) -> Upstreams {
        let mut servers = Vec::new();
        for address in conf.servers {
            if is_own(address, own) {
                warn!("{}: {address} is this server itself and is not asked", dns.resolv_conf.display());
                continue;
            }
            servers.push(Server { address, down_until: Cell::new(None) });
        }
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        dns.metrics.resolvers(&addresses);
        info!("names outside the mesh are resolved by {addresses:?} ({})", dns.resolv_conf.display());
        Upstreams {
            servers,
            budget: conf.timeout.mul_f64(0.9),
            attempts: conf.attempts as usize,
            rotate: conf.rotate,
            tcp_only: conf.tcp_only,
            next: Cell::new(0),
            dns,
        }
    }

    /// Asks until one answers.
    ///
    /// # Errors
    /// Why the last one did not; within the time of the module's description.
    pub async fn ask(&self, question: &Question<'_>) -> Result<Message, String> {
        let deadline = Instant::now() + self.budget;
        let order = self.order();
        let tries = order.len() * self.attempts;
        let mut refusal = None;
        let mut why = format!("{} names no other server", self.dns.resolv_conf.display());
        for (number, server) in order.iter().cycle().take(tries).enumerate() {
            // Who answers with an error in the first round answers so again.
            if number == order.len() && refusal.is_some() {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(tries - number).unwrap_or(1);
            why = match timeout(share, self.exchange(server.address, question)).await {
                Ok(Ok(message)) => {
                    self.answered(server);
                    match message.metadata.response_code {
                        ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused => {
                            refusal = Some(message);
                            continue;
                        }
                        _ => return Ok(message),
                    }
                }
                Ok(Err(error)) => error,
                Err(_) => format!("no answer within {} ms", share.as_millis()),
            };
            self.failed(server, &why);
        }
        refusal.ok_or(why)
    }

    /// In the file's order or rotated, with those last that did not answer lately.
    fn order(&self) -> Vec<&Server> {
        let count = self.servers.len();
        let first =
            if self.rotate && count > 0 { self.next.replace(self.next.get().wrapping_add(1)) % count } else { 0 };
        let now = Instant::now();
        let down = |server: &&Server| server.down_until.get().is_some_and(|until| now < until);
        let mut order: Vec<_> = self.servers.iter().cycle().skip(first).take(count).collect();
        order.sort_by_key(down);
        order
    }

    fn answered(&self, server: &Server) {
        if server.down_until.take().is_some() {
            info!("the resolver {} answers again", server.address);
            self.dns.metrics.resolver(server.address, true);
        }
    }

    fn failed(&self, server: &Server, why: &str) {
        // Once per outage.
        if server.down_until.replace(Some(Instant::now() + DOWN)).is_none() {
            warn!("the resolver {} ({}) does not answer: {why}", server.address, self.dns.resolv_conf.display());
            self.dns.metrics.resolver(server.address, false);
        }
    }

    async fn exchange(&self, server: SocketAddr, question: &Question<'_>) -> Result<Message, String> {
        if !self.tcp_only {
            let answer = over_udp(server, question).await?;
            if !answer.metadata.truncation {
                return Ok(answer);
            }
        }
        over_tcp(server, question).await
    }
}

/// The server's address is one of those that this process listens on.
fn is_own(server: SocketAddr, own: &[SocketAddr]) -> bool {
    own.iter().any(|own| {
        own.port() == server.port()
            && (own.ip() == server.ip()
                // Bound to all addresses: any that this host has.
                || own.ip().is_unspecified() && std::net::UdpSocket::bind((server.ip(), 0)).is_ok())
    })
}

async fn over_udp(server: SocketAddr, question: &Question<'_>) -> Result<Message, String> {
    let failed = |error: io::Error| error.to_string();
    // A port of the kernel's choice for each query, and an id of ours: both have to be guessed by who wants to slip an answer in.
    let socket = UdpSocket::bind(any_address(server)).await.map_err(failed)?;
    socket.connect(server).await.map_err(failed)?;
    let id: u16 = rand::random();
    let _out = question.outgoing.note(socket.local_addr().map_err(failed)?.port(), id);
    socket.send(&with_id(question.raw, id)).await.map_err(failed)?;
    let mut buffer = vec![0; usize::from(question.max_payload).max(UDP_ANSWER) + 1];
    loop {
        let length = socket.recv(&mut buffer).await.map_err(failed)?;
        let Some(bytes) = buffer.get(..length) else { continue };
        // What is not the answer is not waited for less.
        let Ok(mut answer) = message::parse(bytes) else { continue };
        if belongs(&answer, id, question.query) {
            answer.metadata.truncation |= length == buffer.len();
            return Ok(answer);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Question<'_>) -> Result<Message, String> {
    let failed = |error: io::Error| format!("over TCP: {error}");
    let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    let mut stream = socket.connect(server).await.map_err(failed)?;
    let id: u16 = rand::random();
    let _out = question.outgoing.note(stream.local_addr().map_err(failed)?.port(), id);
    let query = with_id(question.raw, id);
    let length = u16::try_from(query.len()).map_err(|_| "the query is too long for TCP".to_owned())?;
    stream.write_all(&[&length.to_be_bytes()[..], &query].concat()).await.map_err(failed)?;
    let length = stream.read_u16().await.map_err(failed)?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.map_err(failed)?;
    let answer = message::parse(&bytes).map_err(|error| format!("over TCP: no DNS message: {error}"))?;
    if belongs(&answer, id, question.query) { Ok(answer) } else { Err("over TCP: the answer to another query".into()) }
}

fn any_address(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn with_id(raw: &[u8], id: u16) -> Vec<u8> {
    [&id.to_be_bytes()[..], raw.get(2..).unwrap_or_default()].concat()
}

/// The answer has the query's id and repeats its question.
fn belongs(answer: &Message, id: u16, query: &Query) -> bool {
    answer.metadata.id == id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries.first().is_some_and(|answered| {
            answered.name() == query.name()
                && answered.query_type() == query.query_type()
                && answered.query_class() == query.query_class()
        })
}

impl Outgoing {
    /// Notes a query as long as the value lives.
    pub fn note(&self, port: u16, id: u16) -> Out<'_> {
        self.0.borrow_mut().insert(port, id);
        Out(self, port)
    }

    /// The message is one of ours.
    pub fn is_ours(&self, from: SocketAddr, id: u16) -> bool {
        self.0.borrow().get(&from.port()) == Some(&id)
    }
}

/// A query that is out.
pub struct Out<'a>(&'a Outgoing, u16);

impl Drop for Out<'_> {
    fn drop(&mut self) {
        self.0.0.borrow_mut().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_not_asked() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let own = [at("127.0.0.1:15053"), at("0.0.0.0:53")];
        for (server, expected) in
            [("127.0.0.1:15053", true), ("127.0.0.2:15053", false), ("127.0.0.53:53", true), ("192.0.2.1:53", false)]
        {
            assert_eq!(is_own(at(server), &own), expected, "{server}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_asked_last() {
        let dns = Arc::new(Dns::new("/nowhere".into()));
        let conf =
            ResolvConf::parse("nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\noptions rotate");
        let upstreams = Upstreams::new(conf, &[], dns);
        let order = || upstreams.order().iter().map(|server| server.address.ip().to_string()).collect::<Vec<_>>();
        assert_eq!(order(), ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(order(), ["192.0.2.2", "192.0.2.3", "192.0.2.1"]);
        upstreams.failed(&upstreams.servers[2], "a test");
        assert_eq!(order(), ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(order(), ["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        tokio::time::advance(DOWN).await;
        assert_eq!(order(), ["192.0.2.2", "192.0.2.3", "192.0.2.1"]);
        upstreams.answered(&upstreams.servers[2]);
        assert!(upstreams.servers[2].down_until.get().is_none());
    }
}
