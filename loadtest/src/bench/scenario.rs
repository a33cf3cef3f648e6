//! What is measured: the proxies of each scenario and what is done to them.

use super::subject::Name;
use crate::echo::Mode;
use crate::load::Protocol;

/// One proxy of a scenario, as each subject is told it.
pub struct Hop {
    /// Name of the rendered configuration.
    pub name: &'static str,
    /// The bootstrap of Envoy and Shika.
    pub bootstrap: &'static str,
    /// Lines that stand for `# {{hcm}}` in the HTTP connection manager of the bootstrap.
    pub fragment: &'static str,
    /// nginx's configuration, where it can do the same.
    pub nginx: Option<&'static str>,
    /// HAProxy's configuration, where it can do the same.
    pub haproxy: Option<&'static str>,
}

impl Hop {
    /// The subject's template; none when it cannot do this.
    pub fn template(&self, subject: Name) -> Option<&'static str> {
        match subject {
            Name::Envoy | Name::Shika => Some(self.bootstrap),
            Name::Nginx => self.nginx,
            Name::Haproxy => self.haproxy,
        }
    }
}

/// Requests and the proxies that they pass.
pub struct Work {
    /// Proxies from the client's side to the upstream's; CPU time is the sum over all.
    pub hops: &'static [Hop],
    /// What the client speaks.
    pub protocol: Protocol,
    /// What stands behind the last hop.
    pub upstream: Mode,
    /// Path of the request.
    pub path: &'static str,
    /// Bytes per request body or message.
    pub payload: usize,
    /// Bytes that come back.
    pub reply: usize,
    /// Client connections; none takes what the command line says.
    pub connections: Option<usize>,
    /// Whether each request opens a new connection.
    pub new_connection: bool,
    /// What the client's own TLS is to do; none is plain.
    pub tls: Option<Handshake>,
    /// Worker threads of the proxy.
    pub workers: usize,
}

/// TLS between the client of the load and the first hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Every handshake is a full one.
    Full,
    /// Sessions are resumed, all but the first.
    Resumed,
}

/// How a scenario is measured.
pub enum Kind {
    /// As fast as replies come; CPU time per request.
    Closed(Work),
    /// At this share of what Envoy answers at most; latency from the moment that a request was due.
    Open(Work, f64),
    /// Start to the first byte, memory before any traffic and after load.
    Start(Work),
    /// So many connections that were used once and are then left alone; memory of each.
    Idle(Work, usize),
    /// As fast as replies come, with endpoints that change so many times per second.
    Churn(Work, u32),
    /// A bootstrap with so many clusters: start, memory, scrapes, an update of endpoints, and requests.
    Clusters(usize),
}

/// Which table of the report a scenario belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The bars' scenarios.
    Requests,
    /// Sizes of bodies, numbers of connections, other protocols, more filters.
    Variations,
    /// Fixed rates.
    Latency,
    /// Start, memory, idle connections.
    Processes,
    /// Numbers of clusters.
    Clusters,
}

/// Something to measure.
pub struct Scenario {
    /// Name on the command line and in the report.
    pub name: &'static str,
    /// One line for `--list` and the report.
    pub what: &'static str,
    /// Its table.
    pub section: Section,
    /// How it is measured.
    pub kind: Kind,
}

impl Scenario {
    /// Whether the subject can do it.
    pub fn is_for(&self, subject: Name) -> bool {
        match &self.kind {
            Kind::Closed(work) | Kind::Start(work) => work.hops.iter().all(|hop| hop.template(subject).is_some()),
            // These ask Envoy's admin endpoint, or are made against Envoy.
            Kind::Open(..) | Kind::Idle(..) | Kind::Churn(..) | Kind::Clusters(_) => {
                matches!(subject, Name::Envoy | Name::Shika)
            }
        }
    }
}

macro_rules! bootstrap {
    ($name:literal) => {
        include_str!(concat!("../../bootstraps/", $name, ".yaml"))
    };
}

macro_rules! hop {
    ($name:literal) => {
        hop!($name, $name)
    };
    ($name:literal, $bootstrap:literal) => {
        hop!($name, $bootstrap, "")
    };
    ($name:literal, $bootstrap:literal, $fragment:expr) => {
        Hop { name: $name, bootstrap: bootstrap!($bootstrap), fragment: $fragment, nginx: None, haproxy: None }
    };
}

macro_rules! fragment {
    ($name:literal) => {
        include_str!(concat!("../../bootstraps/fragments/", $name, ".yaml"))
    };
}

const KIB_64: usize = 64 << 10;
const MB_10: usize = 10_000_000;

const ONE_HOP_HTTP1: &[Hop] = &[Hop {
    nginx: Some(include_str!("../../bootstraps/peers/nginx_http1.conf")),
    haproxy: Some(include_str!("../../bootstraps/peers/haproxy_http1.cfg")),
    ..hop!("one_hop_http1")
}];
const ONE_HOP_TCP: &[Hop] = &[Hop {
    nginx: Some(include_str!("../../bootstraps/peers/nginx_tcp.conf")),
    haproxy: Some(include_str!("../../bootstraps/peers/haproxy_tcp.cfg")),
    ..hop!("one_hop_tcp")
}];
const PAIR_HTTP1: &[Hop] = &[hop!("pair_client_http1"), hop!("pair_server_http1")];
const PAIR_HTTP2: &[Hop] = &[hop!("pair_client_http2"), hop!("pair_server_http2")];
const SERVER_TCP: &[Hop] = &[hop!("pair_server_tcp")];
const PAIR_TCP: &[Hop] = &[hop!("pair_client_tcp"), hop!("pair_server_tcp")];

/// Small requests over kept HTTP/1.1 connections.
const HTTP1: Work = Work {
    hops: ONE_HOP_HTTP1,
    protocol: Protocol::Http1,
    upstream: Mode::Http,
    path: "/",
    payload: 0,
    reply: 0,
    connections: None,
    new_connection: false,
    tls: None,
    workers: 1,
};
/// Small requests over kept HTTP/2 connections.
const HTTP2: Work = Work { hops: &[hop!("one_hop_http2")], protocol: Protocol::Http2, ..HTTP1 };
/// 64 bytes there and back over kept connections.
const TCP: Work =
    Work { hops: ONE_HOP_TCP, protocol: Protocol::Tcp, upstream: Mode::Tcp, payload: 64, reply: 64, ..HTTP1 };
/// 10 MB to the client.
const TCP_DOWN: Work = Work {
    hops: ONE_HOP_TCP,
    protocol: Protocol::Bulk,
    upstream: Mode::Bulk,
    reply: MB_10,
    connections: Some(4),
    ..HTTP1
};
/// As [`HTTP1`], for Envoy and Shika alone.
const HTTP1_BOTH: Work = Work { hops: &[hop!("one_hop_http1")], ..HTTP1 };
const HTTP1_DOWN: Work = Work { path: "/bytes?n=10000000", reply: MB_10, connections: Some(4), ..HTTP1 };
const HTTP1_UP: Work = Work { payload: MB_10, connections: Some(4), ..HTTP1 };

const fn closed(name: &'static str, what: &'static str, work: Work) -> Scenario {
    Scenario { name, what, section: Section::Requests, kind: Kind::Closed(work) }
}

const fn varied(name: &'static str, what: &'static str, work: Work) -> Scenario {
    Scenario { name, what, section: Section::Variations, kind: Kind::Closed(work) }
}

const fn connecting(name: &'static str, what: &'static str, tls: Option<Handshake>) -> Scenario {
    let hops = if tls.is_some() { SERVER_TCP } else { ONE_HOP_TCP };
    varied(name, what, Work { hops, tls, new_connection: true, ..TCP })
}

const fn open(name: &'static str, what: &'static str, share: f64) -> Scenario {
    let kind = Kind::Open(Work { hops: PAIR_HTTP1, ..HTTP1 }, share);
    Scenario { name, what, section: Section::Latency, kind }
}

const fn process(name: &'static str, what: &'static str, kind: Kind) -> Scenario {
    Scenario { name, what, section: Section::Processes, kind }
}

const fn clusters(name: &'static str, what: &'static str, number: usize) -> Scenario {
    Scenario { name, what, section: Section::Clusters, kind: Kind::Clusters(number) }
}

/// All scenarios in the order of the report.
pub const SCENARIOS: &[Scenario] = &[
    closed("http1_one_hop", "HTTP/1.1 to HTTP/1.1, small reply", HTTP1),
    closed("http2_one_hop", "HTTP/2 to HTTP/2, small reply, several streams per connection", HTTP2),
    closed("tcp_one_hop", "TCP, 64 bytes there and back", TCP),
    closed("tcp_one_hop_10mb", "TCP, 10 MB to the client", TCP_DOWN),
    closed(
        "http1_64k",
        "HTTP/1.1, a reply of 64 KiB",
        Work { path: "/bytes?n=65536", reply: KIB_64, connections: Some(16), ..HTTP1 },
    ),
    closed("http1_64k_post", "HTTP/1.1, a request of 64 KiB", Work { payload: KIB_64, connections: Some(16), ..HTTP1 }),
    closed(
        "http1_conn_per_request",
        "HTTP/1.1, a new client connection per request",
        Work { new_connection: true, ..HTTP1 },
    ),
    closed("pair_mtls_http1", "two sidecars, mTLS, HTTP/1.1 throughout", Work { hops: PAIR_HTTP1, ..HTTP1 }),
    closed("pair_mtls_http2", "two sidecars, mTLS, HTTP/2 throughout", Work { hops: PAIR_HTTP2, ..HTTP2 }),
    closed(
        "pair_mtls_http1_over_http2",
        "two sidecars, mTLS, HTTP/2 between them, HTTP/1.1 to the applications",
        Work { hops: &[hop!("pair_client_http2"), hop!("pair_server_http1")], ..HTTP1 },
    ),
    closed(
        "pair_mtls_grpc",
        "two sidecars, mTLS, unary gRPC calls of 64 bytes",
        Work {
            hops: PAIR_HTTP2,
            protocol: Protocol::Grpc,
            upstream: Mode::Grpc,
            payload: 64,
            path: "/echo.Echo/Unary",
            ..HTTP2
        },
    ),
    closed("pair_mtls_tcp", "two sidecars, mTLS, TCP, 64 bytes there and back", Work { hops: PAIR_TCP, ..TCP }),
    closed("pair_mtls_tcp_10mb", "two sidecars, mTLS, TCP, 10 MB to the client", Work { hops: PAIR_TCP, ..TCP_DOWN }),
    closed(
        "handshake",
        "two sidecars, a new connection and so a new mTLS handshake per round trip; sessions may resume",
        Work { hops: PAIR_TCP, new_connection: true, ..TCP },
    ),
    closed(
        "sidecar_stack",
        "two sidecars as Kuma configures them: RBAC, fault, rate limit, retries, access logs, stats tags; HTTP/2 between them",
        Work { hops: &[hop!("sidecar_client"), hop!("sidecar_server")], ..HTTP1 },
    ),
    varied("http1_1k", "HTTP/1.1, a reply of 1 KiB", Work { path: "/bytes?n=1024", reply: 1_024, ..HTTP1 }),
    varied("http1_10mb", "HTTP/1.1, a reply of 10 MB", HTTP1_DOWN),
    varied("http1_10mb_post", "HTTP/1.1, a request of 10 MB", HTTP1_UP),
    varied("tcp_one_hop_10mb_up", "TCP, 10 MB from the client", Work { payload: MB_10, reply: 1, ..TCP_DOWN }),
    varied("http1_1_connection", "HTTP/1.1 over one connection", Work { connections: Some(1), ..HTTP1 }),
    varied("http1_50_connections", "HTTP/1.1 over 50 connections", Work { connections: Some(50), ..HTTP1 }),
    varied("http1_1000_connections", "HTTP/1.1 over 1,000 connections", Work { connections: Some(1_000), ..HTTP1 }),
    varied(
        "pair_mtls_grpc_stream",
        "two sidecars, mTLS, messages of 64 bytes each way over open gRPC streams",
        Work {
            hops: PAIR_HTTP2,
            protocol: Protocol::GrpcStream,
            upstream: Mode::Grpc,
            payload: 64,
            path: "/echo.Echo/Stream",
            ..HTTP2
        },
    ),
    varied(
        "websocket",
        "messages of 64 bytes each way over upgraded connections",
        Work {
            hops: &[hop!("one_hop_websocket", "one_hop_http1", fragment!("websocket"))],
            protocol: Protocol::WebSocket,
            payload: 64,
            ..HTTP1
        },
    ),
    varied(
        "http1_access_log",
        "HTTP/1.1 with an access log to a file in Kuma's default format",
        Work { hops: &[hop!("one_hop_access_log", "one_hop_http1", fragment!("access_log"))], ..HTTP1 },
    ),
    varied(
        "http1_tracing",
        "HTTP/1.1 with every request traced over OTLP, as Kuma's MeshTrace sets it",
        Work { hops: &[hop!("one_hop_tracing")], ..HTTP1 },
    ),
    connecting("connect_tcp", "a new TCP connection per round trip; requests/s are connections/s", None),
    connecting(
        "connect_mtls_full",
        "a new connection with a full mTLS handshake per round trip",
        Some(Handshake::Full),
    ),
    connecting(
        "connect_mtls_resumed",
        "a new connection with a resumed mTLS session per round trip",
        Some(Handshake::Resumed),
    ),
    Scenario {
        name: "churn",
        what: "HTTP/1.1 while the cluster's endpoints are replaced 100 times per second",
        section: Section::Variations,
        kind: Kind::Churn(Work { hops: &[hop!("one_hop_churn")], ..HTTP1 }, 100),
    },
    varied("workers_1", "HTTP/1.1, one worker, for comparison with two", HTTP1_BOTH),
    varied("workers_2", "HTTP/1.1, two workers that share both CPUs with the load", Work { workers: 2, ..HTTP1_BOTH }),
    open("latency_30", "two sidecars, mTLS, HTTP/1.1, at 30 % of what Envoy answers at most", 0.3),
    open("latency_70", "two sidecars, mTLS, HTTP/1.1, at 70 % of what Envoy answers at most", 0.7),
    process("start", "start to first byte and memory, one hop", Kind::Start(HTTP1)),
    process("idle_plain", "10,000 HTTP/1.1 connections that are not used", Kind::Idle(HTTP1, 10_000)),
    process(
        "idle_mtls",
        "10,000 HTTP/1.1 connections over mTLS that are not used, at the server's sidecar",
        Kind::Idle(Work { hops: &[hop!("pair_server_http1")], tls: Some(Handshake::Full), ..HTTP1 }, 10_000),
    ),
    clusters("clusters_1", "one cluster and one from EDS", 1),
    clusters("clusters_100", "100 clusters and one from EDS", 100),
    clusters("clusters_1000", "1,000 clusters and one from EDS", 1_000),
    clusters("clusters_10000", "10,000 clusters and one from EDS", 10_000),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_only_what_is_rendered() {
        let works = SCENARIOS.iter().filter_map(|scenario| match &scenario.kind {
            Kind::Closed(work)
            | Kind::Open(work, _)
            | Kind::Churn(work, _)
            | Kind::Start(work)
            | Kind::Idle(work, _) => Some(work),
            Kind::Clusters(_) => None,
        });
        for hop in works.flat_map(|work| work.hops) {
            for template in [Some(hop.bootstrap), Some(hop.fragment), hop.nginx, hop.haproxy].into_iter().flatten() {
                let mut rest = template;
                while let Some((_, tail)) = rest.split_once("{{") {
                    let (name, tail) = tail.split_once("}}").expect("each {{ has its }}");
                    assert!(crate::bench::setup::PLACES.contains(&name), "{}: {name} is not rendered", hop.name);
                    rest = tail;
                }
            }
            assert!(
                hop.fragment.is_empty() || hop.bootstrap.contains("# {{hcm}}"),
                "{}: its fragment has no place",
                hop.name
            );
        }
    }

    #[test]
    fn names_are_unique() {
        for (at, scenario) in SCENARIOS.iter().enumerate() {
            assert!(SCENARIOS.iter().skip(at + 1).all(|other| other.name != scenario.name), "{}", scenario.name);
        }
    }
}
