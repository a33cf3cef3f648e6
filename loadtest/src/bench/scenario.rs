//! What is measured: the proxies of a scenario, the load on them, and the target ratio.

use crate::echo::Mode;
use crate::load::Protocol;

/// One proxy of a scenario.
pub struct Hop {
    /// Name of the rendered bootstrap.
    pub name: &'static str,
    /// The bootstrap's template.
    pub template: &'static str,
}

/// A chain of proxies under one kind of load.
pub struct Scenario {
    /// Name on the command line and in the report.
    pub name: &'static str,
    /// One line for `--list`.
    pub what: &'static str,
    /// Proxies from the client's side to the upstream's; CPU time is the sum over all.
    pub hops: &'static [Hop],
    /// What the client speaks.
    pub protocol: Protocol,
    /// Bytes per request body or message.
    pub payload: usize,
    /// Whether each request opens a new connection.
    pub new_connection: bool,
    /// What stands behind the last hop.
    pub upstream: Mode,
    /// Most CPU time per request that Shika may take, as a fraction of Envoy's.
    pub target: Option<f64>,
}

macro_rules! hop {
    ($name:literal) => {
        Hop { name: $name, template: include_str!(concat!("../../bootstraps/", $name, ".yaml")) }
    };
}

/// Plain HTTP/1.1 throughout: the first scenario, also used for start-up time and memory.
const HTTP1_ONE_HOP: Scenario = Scenario {
    name: "http1_one_hop",
    what: "HTTP/1.1 to HTTP/1.1, keep-alive",
    hops: &[hop!("one_hop_http1")],
    protocol: Protocol::Http1,
    payload: 0,
    new_connection: false,
    upstream: Mode::Http,
    target: Some(0.55),
};

/// A message of 64 bytes and its echo.
const TCP_ONE_HOP: Scenario = Scenario {
    name: "tcp_one_hop",
    what: "TCP, 64 bytes there and back over open connections",
    hops: &[hop!("one_hop_tcp")],
    protocol: Protocol::Tcp,
    payload: 64,
    new_connection: false,
    upstream: Mode::Tcp,
    target: Some(0.9),
};

/// A message of 64 bytes and its echo through two sidecars.
const PAIR_MTLS_TCP: Scenario = Scenario {
    name: "pair_mtls_tcp",
    what: "two sidecars, mutual TLS between them, TCP, 64 bytes there and back",
    hops: &[hop!("pair_client_tcp"), hop!("pair_server_tcp")],
    ..TCP_ONE_HOP
};

/// All scenarios in the order of the report.
pub const SCENARIOS: &[Scenario] = &[
    HTTP1_ONE_HOP,
    Scenario {
        name: "http2_one_hop",
        what: "HTTP/2 to HTTP/2, several streams per connection",
        hops: &[hop!("one_hop_http2")],
        protocol: Protocol::Http2,
        target: None,
        ..HTTP1_ONE_HOP
    },
    TCP_ONE_HOP,
    Scenario {
        name: "http1_conn_per_request",
        what: "HTTP/1.1 with a new client connection per request",
        new_connection: true,
        target: None,
        ..HTTP1_ONE_HOP
    },
    Scenario {
        name: "pair_mtls_http1",
        what: "two sidecars, mutual TLS between them, HTTP/1.1 throughout",
        hops: &[hop!("pair_client_http1"), hop!("pair_server_http1")],
        target: Some(0.5),
        ..HTTP1_ONE_HOP
    },
    Scenario {
        name: "pair_mtls_http2",
        what: "two sidecars, mutual TLS between them, HTTP/2 throughout",
        hops: &[hop!("pair_client_http2"), hop!("pair_server_http2")],
        protocol: Protocol::Http2,
        target: Some(0.5),
        ..HTTP1_ONE_HOP
    },
    PAIR_MTLS_TCP,
    Scenario {
        name: "handshake",
        what: "two sidecars, a new connection and so a new mutual TLS handshake per round trip",
        new_connection: true,
        target: None,
        ..PAIR_MTLS_TCP
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_only_what_is_rendered() {
        for hop in SCENARIOS.iter().flat_map(|scenario| scenario.hops) {
            let mut rest = hop.template;
            while let Some((_, tail)) = rest.split_once("{{") {
                let (name, tail) = tail.split_once("}}").expect("each {{ has its }}");
                assert!(
                    ["listener_port", "upstream_port", "admin_port", "certs"].contains(&name),
                    "{}: {name} is not rendered",
                    hop.name
                );
                rest = tail;
            }
        }
    }
}
