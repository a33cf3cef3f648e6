//! Original destinations, with a kernel that redirects: in a network namespace of its own, as root. Skipped, with a line that says so, where that cannot be.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    process::{Command, Output},
    thread,
    time::Instant,
};

use common::{LIMIT, Proxy, eventually};
use socket2::{Domain, Socket, Type};

/// Set in the run inside the namespace.
const INSIDE: &str = "SHIKA_TEST_IN_NETNS";

fn shell(script: &str) -> Output {
    Command::new("sh").args(["-ec", script]).output().unwrap()
}

/// A namespace that ends with the value.
struct Namespace(String);

impl Namespace {
    /// `None` where namespaces or nftables are not to be had, with the reason printed.
    fn new(name: &str) -> Option<Self> {
        let namespace = Namespace(format!("{name}-{}", std::process::id()));
        let made = shell(&format!(
            "ip netns add {0}; ip netns exec {0} sh -ec '
             ip link set lo up; ip link add host0 type veth peer name host1; ip link set host0 up; ip link set host1 up
             ip addr add 10.0.0.5/24 dev host0; ip addr add fd00::5/64 dev host0 nodad
             ip addr add 198.51.100.7/32 dev lo; ip addr add 2001:db8::7/128 dev lo nodad; ip addr add ::6/128 dev lo nodad
             ip route add default dev host0; ip -6 route add default dev host0
             nft add table inet probe; nft delete table inet probe'",
            namespace.0
        ));
        if made.status.success() {
            return Some(namespace);
        }
        let why = String::from_utf8_lossy(&made.stderr).into_owned();
        eprintln!("SKIPPED, original destinations are NOT tested: it needs root, ip and nft: {why}");
        None
    }

    /// Runs one test of this program inside.
    fn run(&self, test: &str) {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.0])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        shell(&format!("ip netns delete {}", self.0));
    }
}

/// Connections from these ports are the workload's, and redirected; all others are the proxy's and its upstreams'. Ports may be fixed here: the namespace
/// is the test's own.
const REDIRECT: &str = "
sysctl -qw net.ipv4.ip_local_port_range='20000 49999'
nft -f - <<'RULES'
table inet mesh {
  chain out {
    type nat hook output priority -100;
    tcp sport 50000-50999 redirect to :15001
    tcp sport 51000-51999 redirect to :15006
    tcp sport 52000-52999 redirect to :15011
    tcp dport 4433 redirect to :15001
  }
}
RULES";
const OUTBOUND: u16 = 50_000;
const INBOUND: u16 = 51_000;
const DUAL_STACK: u16 = 52_000;

/// A server that greets each client with the address it was reached at and the address that it sees.
fn greeter(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let bound = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap().ip());
            client.write_all(format!("{local} from {peer}\n").as_bytes()).unwrap();
        }
    });
    bound
}

/// Connects from the `n`-th port of a range and reads until the end. Says nothing: servers here speak first.
fn read_all(range: u16, n: u16, destination: &str) -> String {
    let destination: SocketAddr = destination.parse().unwrap();
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM, None).unwrap();
    let any: IpAddr = if destination.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    socket.bind(&SocketAddr::new(any, range + n).into()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.connect(&destination.into()).unwrap();
    let mut text = String::new();
    match std::net::TcpStream::from(socket).read_to_string(&mut text) {
        Ok(_) => text.trim_end().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => "reset".into(),
        Err(error) => panic!("{destination}: {error}"),
    }
}

struct Listener<'a> {
    name: &'a str,
    address: &'a str,
    port: u16,
    bound: bool,
    direction: &'a str,
    cluster: &'a str,
    more: &'a str,
}

fn listener(listener: &Listener<'_>) -> String {
    let Listener { name, address, port, bound, direction, cluster, more } = listener;
    format!(
        r#"
  - name: {name}
    address: {{socket_address: {{address: "{address}", port_value: {port}{compat}}}}}
    traffic_direction: {direction}
    bind_to_port: {bound}
    use_original_dst: {bound}
    {more}
    filter_chains:
    - filters:
      - name: tcp
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: {name}, cluster: {cluster}}}
"#,
        compat = if *name == "dual_stack" { ", ipv4_compat: true" } else { "" },
    )
}

fn bootstrap(app: SocketAddr, service: SocketAddr) -> String {
    let inspected = "listener_filters_timeout: 0s
    listener_filters: [{name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]";
    let mut listeners = String::new();
    for (name, address, port, bound, direction, cluster, more) in [
        ("outbound_v4", "0.0.0.0", 15001, true, "OUTBOUND", "pass_through", ""),
        ("outbound_v6", "::", 15001, true, "OUTBOUND", "pass_through", ""),
        ("inbound_v4", "0.0.0.0", 15006, true, "INBOUND", "inbound_v4", ""),
        ("inbound_v6", "::", 15006, true, "INBOUND", "inbound_v6", ""),
        ("dual_stack", "::", 15011, true, "OUTBOUND", "pass_through", ""),
        ("service_v4", "240.0.0.1", 80, false, "OUTBOUND", "service", ""),
        ("service_v6", "fd00:fd00::1", 80, false, "OUTBOUND", "service", ""),
        ("service_inspected", "240.0.0.1", 25, false, "OUTBOUND", "service", inspected),
        ("app_v4", "10.0.0.5", 8080, false, "INBOUND", "app", ""),
        ("app_v6", "fd00::5", 8080, false, "INBOUND", "app", ""),
    ] {
        listeners.push_str(&self::listener(&Listener { name, address, port, bound, direction, cluster, more }));
    }
    let original = |name: &str, more: &str| {
        format!("\n  - {{name: {name}, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 5s{more}}}\n")
    };
    let from =
        |source: &str| format!(", upstream_bind_config: {{source_address: {{address: '{source}', port_value: 0}}}}");
    format!(
        "static_resources:\n  listeners:{listeners}\n  clusters:{}{}{}{}{}",
        original("pass_through", ""),
        original("inbound_v4", &from("127.0.0.6")),
        original("inbound_v6", &from("::6")),
        common::cluster("app", &app.to_string()),
        common::cluster("service", &service.to_string()),
    )
}

#[test]
fn redirected_connections_reach_their_original_destination() {
    if std::env::var_os(INSIDE).is_none() {
        if let Some(namespace) = Namespace::new("shika-data") {
            namespace.run("redirected_connections_reach_their_original_destination");
        }
        return;
    }
    let redirected = shell(REDIRECT);
    assert!(redirected.status.success(), "{}", String::from_utf8_lossy(&redirected.stderr));
    let (app, service) = (greeter("127.0.0.1:0"), greeter("127.0.0.1:0"));
    for address in ["198.51.100.7:7070", "[2001:db8::7]:7070", "10.0.0.5:2222", "[fd00::5]:2222"] {
        greeter(address);
    }
    let proxy = Proxy::start(&bootstrap(app, service), &[]).live();
    let to = |server: SocketAddr, from: &str| format!("{server} from {from}");

    for (n, (range, destination, expected)) in [
        // By service address, in both families, and where the listener has to find out what is spoken.
        (OUTBOUND, "240.0.0.1:80", to(service, "127.0.0.1")),
        (OUTBOUND, "[fd00:fd00::1]:80", to(service, "127.0.0.1")),
        (OUTBOUND, "240.0.0.1:25", to(service, "127.0.0.1")),
        (DUAL_STACK, "240.0.0.1:80", to(service, "127.0.0.1")),
        (DUAL_STACK, "[fd00:fd00::1]:80", to(service, "127.0.0.1")),
        // Passed through to where nobody listens for.
        (OUTBOUND, "198.51.100.7:7070", "198.51.100.7:7070 from 198.51.100.7".into()),
        (OUTBOUND, "[2001:db8::7]:7070", "[2001:db8::7]:7070 from 2001:db8::7".into()),
        (DUAL_STACK, "198.51.100.7:7070", "198.51.100.7:7070 from 198.51.100.7".into()),
        // Inbound, to a declared port and to one that is not; and the same through the outbound listener.
        (INBOUND, "10.0.0.5:8080", to(app, "127.0.0.1")),
        (INBOUND, "[fd00::5]:8080", to(app, "127.0.0.1")),
        (INBOUND, "10.0.0.5:2222", "10.0.0.5:2222 from 127.0.0.6".into()),
        (INBOUND, "[fd00::5]:2222", "[fd00::5]:2222 from ::6".into()),
        (OUTBOUND, "10.0.0.5:8080", to(app, "127.0.0.1")),
        (OUTBOUND, "10.0.0.5:2222", "10.0.0.5:2222 from 127.0.0.6".into()),
        (OUTBOUND, "[fd00::5]:2222", "[fd00::5]:2222 from ::6".into()),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(read_all(range, n as u16, destination), expected, "{destination} from {range}+{n}");
    }

    // The proxy's own listener, by any address, is no destination.
    let begin = Instant::now();
    let loops = |listener: &str| proxy.stat(&format!("listener.{listener}.downstream_cx_redirect_loop"));
    for (n, (range, destination)) in [
        (OUTBOUND, "10.0.0.5:15001"),
        (OUTBOUND, "10.0.0.5:15006"),
        (OUTBOUND, "198.51.100.7:15001"),
        (INBOUND, "10.0.0.5:15006"),
        (OUTBOUND, "[fd00::5]:15001"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(["", "reset"].contains(&&*read_all(range, 100 + n as u16, destination)), "{destination}");
    }
    eventually("the loops", || {
        (loops("0.0.0.0_15001") == 3 && loops("0.0.0.0_15006") == 1 && loops("[__]_15001") == 1).then_some(())
    });

    // A rule that forgets to exempt the proxy: its own connection comes back and is refused, instead of going round until descriptors run out.
    assert!(["", "reset"].contains(&&*read_all(OUTBOUND, 200, "203.0.113.9:4433")));
    eventually("the loop", || (loops("0.0.0.0_15001") > 3).then_some(()));
    assert!(proxy.stat("cluster.pass_through.upstream_cx_total") < 10);
    let log = proxy.logged();
    let told = log.matches("closed: the destination is the proxy's own listener").count() as u64;
    // Once per listener, and again after ten seconds.
    let most = 3 * (1 + begin.elapsed().as_secs() / 10);
    assert!((3..=most).contains(&told), "{told} times: {log}");

    // Not redirected, a connection is the listener's own: it has no original destination to go to.
    assert_eq!(read_all(40_000, 0, "10.0.0.5:15001"), "");
    assert_eq!(proxy.stat("cluster.pass_through.upstream_cx_none_healthy"), 1);
}
