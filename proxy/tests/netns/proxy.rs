//! The real proxy in a namespace, with the listeners and clusters that Kuma gives a transparent sidecar.

use std::{
    fs::{self, File, Permissions},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use crate::{
    common::{self, eventually},
    host::{Host, PROXY_UID},
    space::Space,
};

const ADMIN: &str = "127.0.0.1:9901";

/// The static resources of a sidecar at 10.77.0.1, listeners and clusters. Inbounds 80 and, with a TLS inspector, 3306; outbounds 240.0.0.1:80 (to the peer's 80), 240.0.0.2:80
/// (to this very sidecar's inbound) and the peer's 10.77.0.2:8080 (to 192.0.2.1:443, which tells them apart); the same in IPv6. With `pass_through`,
/// outgoing connections that no listener names go on to their original destination.
pub fn resources(pass_through: bool) -> (String, String) {
    let mut listeners = String::new();
    let mut clusters = String::new();
    for (family, any, source) in [("ipv4", "0.0.0.0", "127.0.0.6"), ("ipv6", "'::'", "'::6'")] {
        clusters.push_str(&format!(
            "
  - name: inbound:passthrough:{family}
    alt_stat_name: inbound_passthrough_{family}
    type: ORIGINAL_DST
    lb_policy: CLUSTER_PROVIDED
    connect_timeout: 5s
    upstream_bind_config: {{source_address: {{address: {source}, port_value: 0}}}}
  - name: outbound:passthrough:{family}
    alt_stat_name: outbound_passthrough_{family}
    connect_timeout: 5s
    {kind}",
            kind = if pass_through { "type: ORIGINAL_DST\n    lb_policy: CLUSTER_PROVIDED" } else { "type: STATIC" },
        ));
        for (direction, port) in [("OUTBOUND", 15001), ("INBOUND", 15006)] {
            let name = format!("{}:passthrough:{family}", direction.to_lowercase());
            listeners.push_str(&format!(
                "
  - name: {name}
    address: {{socket_address: {{address: {any}, port_value: {port}}}}}
    traffic_direction: {direction}
    use_original_dst: true
    filter_chains: [{{filters: [{proxy}]}}]",
                proxy = tcp_proxy(&name),
            ));
        }
    }
    for (name, to, to_port, source) in [
        ("localhost_80", "127.0.0.1", 80, "127.0.0.6"),
        ("localhost6_80", "::1", 80, "::6"),
        ("localhost_3306", "127.0.0.1", 3306, "127.0.0.6"),
        ("web", "10.77.0.2", 80, ""),
        ("web6", "fd77::2", 80, ""),
        ("self", "10.77.0.1", 80, ""),
        ("self6", "fd77::1", 80, ""),
        ("far", "192.0.2.1", 443, ""),
        ("far6", "2001:db8::1", 443, ""),
    ] {
        let bind = if source.is_empty() {
            String::new()
        } else {
            format!("upstream_bind_config: {{source_address: {{address: '{source}', port_value: 0}}}}")
        };
        clusters.push_str(&format!(
            "
  - name: {name}
    type: STATIC
    connect_timeout: 5s
    {bind}
    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: '{to}', port_value: {to_port}}}}}}}}}]}}]}}"
        ));
    }
    for (direction, address, port, cluster) in [
        ("INBOUND", "10.77.0.1", 80, "localhost_80"),
        ("INBOUND", "fd77::1", 80, "localhost6_80"),
        ("OUTBOUND", "240.0.0.1", 80, "web"),
        ("OUTBOUND", "fd00:fd00::1", 80, "web6"),
        ("OUTBOUND", "240.0.0.2", 80, "self"),
        ("OUTBOUND", "fd00:fd00::2", 80, "self6"),
        ("OUTBOUND", "10.77.0.2", 8080, "far"),
        ("OUTBOUND", "fd77::2", 8080, "far6"),
    ] {
        listeners.push_str(&format!(
            "
  - name: '{name}:{address}:{port}'
    address: {{socket_address: {{address: '{address}', port_value: {port}}}}}
    traffic_direction: {direction}
    bind_to_port: false
    filter_chains: [{{filters: [{proxy}]}}]",
            name = direction.to_lowercase(),
            proxy = tcp_proxy(cluster),
        ));
    }
    // As in a mesh with permissive mutual TLS: whether a client speaks TLS is found out, and a client of a database speaks second.
    listeners.push_str(&format!(
        "
  - name: inbound:10.77.0.1:3306
    address: {{socket_address: {{address: 10.77.0.1, port_value: 3306}}}}
    traffic_direction: INBOUND
    bind_to_port: false
    listener_filters: [{{name: envoy.filters.listener.tls_inspector, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]
    filter_chains:
    - filter_chain_match: {{transport_protocol: raw_buffer}}
      filters: [{plain}]
    - filter_chain_match: {{transport_protocol: tls}}
      filters: [{tls}]",
        plain = tcp_proxy("localhost_3306"),
        tls = tcp_proxy("localhost_80"),
    ));
    (listeners, clusters)
}

fn bootstrap(pass_through: bool) -> String {
    let (listeners, clusters) = resources(pass_through);
    format!(
        "node: {{id: default.app, cluster: app}}
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 9901}}}}}}
static_resources:
  listeners:{listeners}
  clusters:{clusters}
"
    )
}

fn tcp_proxy(cluster: &str) -> String {
    format!(
        "{{name: envoy.filters.network.tcp_proxy, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: '{cluster}', stat_prefix: '{}'}}}}",
        cluster.replace(':', "_")
    )
}

/// A running proxy of user 5678; ends with the value.
pub struct Proxy<'a> {
    space: &'a Space,
    child: Child,
    log: PathBuf,
}

impl<'a> Proxy<'a> {
    pub fn start(host: &'a Host, pass_through: bool) -> Proxy<'a> {
        // The proxy's user has to get at its file.
        fs::set_permissions(host.directory.path(), Permissions::from_mode(0o755)).unwrap();
        let bootstrap = host.file("bootstrap.yaml", &bootstrap(pass_through));
        let log = host.directory.path().join("proxy.log");
        let child = Command::new("ip")
            .args(["netns", "exec", &host.app.name, "setpriv", "--clear-groups", "--reuid"])
            .arg(PROXY_UID.to_string())
            .args([env!("CARGO_BIN_EXE_shika-proxy"), "-c", &bootstrap, "--concurrency", "2"])
            .stdout(Stdio::null())
            .stderr(File::options().create(true).append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let proxy = Proxy { space: &host.app, child, log };
        eventually("the proxy to serve", || {
            assert!(!proxy.logged().contains("error initializing"), "{}", proxy.logged());
            // While an earlier one still holds the port nobody else answers there.
            let ready =
                host.app.within(0, || TcpStream::connect(ADMIN).is_ok().then(|| common::get(ADMIN, "/ready").status));
            (ready == Some(200)).then_some(())
        });
        proxy
    }

    /// A statistic.
    pub fn stat(&self, name: &str) -> u64 {
        let text = self.space.within(0, || common::get(ADMIN, "/stats").body);
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Dies at once, without goodbye.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("log of the proxy:\n{}", self.logged());
        }
    }
}
