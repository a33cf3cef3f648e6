//! A real `shika-proxy run` under a scripted control plane: its bootstrap over HTTP, its resources over ADS.
#![allow(dead_code)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use base64::Engine;
use serde_json::{Value, json};
use shika_proto::{
    any,
    envoy::config::{bootstrap::v3::bootstrap::StaticResources, listener::v3::Listener},
    google::protobuf::Any,
};
use tokio::sync::mpsc;

use super::{
    Answer, LIMIT, PROXY, answer,
    control_plane::{Session, control_plane_on, session},
    eventually,
};

/// A running sidecar; ends with the value.
pub struct Sidecar {
    pub child: Child,
    pub directory: tempfile::TempDir,
    /// The bootstrap request.
    pub request: Value,
    pub sessions: mpsc::Receiver<Session>,
    pub dns_port: u16,
    pub readiness_port: u16,
    log: PathBuf,
}

/// How one is started.
#[derive(Default)]
pub struct Setup<'a> {
    /// More flags.
    pub args: &'a [&'a str],
    /// `kumaSidecarConfiguration`
    pub configuration: Value,
    /// Added to the bootstrap's static resources, `  listeners: …` and so on.
    pub resources: &'a str,
    /// DNS is on.
    pub dns: bool,
    /// Somewhere else than here.
    pub place: Option<Place<'a>>,
}

/// Where a sidecar and its control plane are, and who it is.
pub struct Place<'a> {
    /// What starts a program there, as this user.
    pub launch: &'a [&'a str],
    /// The user.
    pub uid: u32,
    /// Listens on loopback there.
    pub listen: &'a dyn Fn() -> TcpListener,
}

/// A port that nothing listens on, for TCP and UDP. Below the range from which the kernel takes ports, so that nobody else is given it before it is used.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 9_000).unwrap();
    for _ in 0..2_000 {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}

impl Sidecar {
    /// Starts one; it has asked for its bootstrap when this returns. Its work directory is `directory`.
    pub async fn start(setup: Setup<'_>) -> Sidecar {
        let directory = tempfile::tempdir().unwrap();
        let listen =
            || setup.place.as_ref().map_or_else(|| TcpListener::bind("127.0.0.1:0").unwrap(), |place| (place.listen)());
        let (ads, sessions) = control_plane_on(listen());
        let bootstrap = bootstrap(ads, directory.path().to_str().unwrap(), setup.resources);
        let (address, request) = bootstrap_server(listen(), &bootstrap, &setup.configuration);
        let log = directory.path().join("log");
        let (dns_port, readiness_port) = (free_port(), free_port());
        let token = directory.path().join("token");
        fs::write(&token, "first\n").unwrap();
        let launch = setup.place.as_ref().map_or(&[][..], |place| place.launch);
        let program = [launch, &[PROXY]].concat();
        if let Some(place) = &setup.place {
            for path in [directory.path(), &token] {
                std::os::unix::fs::chown(path, Some(place.uid), None).unwrap();
            }
        }
        let mut command = Command::new(program[0]);
        command
            .args(&program[1..])
            .args(["run", "--name", "backend-1", "--mesh", "default", "--concurrency", "1"])
            .args(["--cp-address", &format!("http://{address}")])
            .args(["--work-dir", directory.path().to_str().unwrap()])
            .args(["--dataplane-token-file", token.to_str().unwrap()])
            .env("KUMA_READINESS_PORT", readiness_port.to_string());
        if setup.dns {
            command.args(["--transparent-proxy", "--dns-enabled", "--dns-proxy-port", &dns_port.to_string()]);
        }
        let child =
            command.args(setup.args).stdout(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut sidecar = Sidecar { child, directory, request: Value::Null, sessions, dns_port, readiness_port, log };
        sidecar.request =
            tokio::task::spawn_blocking(move || eventually("the bootstrap request", || request.lock().unwrap().take()))
                .await
                .unwrap();
        sidecar
    }

    /// The next ADS stream.
    pub async fn session(&mut self) -> Session {
        session(&mut self.sessions).await
    }

    /// A path in the work directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// GET on the readiness port; `None` while it does not listen.
    pub fn readiness(&self) -> Option<Answer> {
        let socket = TcpStream::connect(("127.0.0.1", self.readiness_port)).ok()?;
        Some(exchange(socket, "GET", "/ready", ""))
    }

    /// A request on a Unix socket of the work directory.
    pub fn unix(&self, socket: &str, method: &str, path: &str, headers: &str) -> Answer {
        let path_of = self.path(socket);
        let socket = eventually(socket, || UnixStream::connect(&path_of).ok());
        exchange(socket, method, path, headers)
    }

    /// The admin interface.
    pub fn admin(&self, path: &str) -> Answer {
        self.unix("kuma-envoy-admin.sock", "GET", path, "")
    }

    /// Where a listener listens.
    pub fn listener(&self, name: &str) -> String {
        eventually(&format!("listener {name}"), || {
            let text = self.admin("/listeners").body;
            text.lines().find_map(|line| line.strip_prefix(&format!("{name}::"))).map(str::to_owned)
        })
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let kill = Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.child.id())]).status().unwrap();
        assert!(kill.success());
    }

    /// Waits for the end; the exit status.
    pub fn exit_code(&mut self) -> Option<i32> {
        eventually("the exit", || self.child.try_wait().unwrap()).code()
    }

    /// What it logged so far.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("log of the sidecar:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// One request on its own connection. `headers` are whole lines.
pub fn exchange(mut socket: impl Read + Write, method: &str, path: &str, headers: &str) -> Answer {
    write!(socket, "{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}connection: close\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    answer(&mut BufReader::new(socket))
}

/// Kuma's dynamic configuration listener with these documents.
pub fn documents(directory: &str, documents: &[(&str, &str)]) -> Any {
    let routes: String = documents
        .iter()
        .map(|(path, body)| {
            let body = body.replace('\'', "''");
            format!(
                "{{match: {{path: {path}}}, direct_response: {{status: 200, body: {{inline_string: '{body}'}}}}}}, "
            )
        })
        .collect();
    let text = format!(
        "listeners: [{{name: '_kuma:dynamicconfig', address: {{pipe: {{path: {directory}/kuma-mesh-metric-config.sock}}}}, filter_chains: [{{filters: [{{name: hcm, \
         typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, \
         stat_prefix: _kuma_dynamicconfig, route_config: {{max_direct_response_body_size_bytes: 1000000, virtual_hosts: [{{name: d, domains: ['*'], routes: [{routes}]}}]}}, \
         http_filters: [{{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}]"
    );
    let resources: StaticResources = shika_proto::json::from_yaml(&text).unwrap();
    any::pack::<Listener>(&resources.listeners[0])
}

/// Kuma's bootstrap as far as it matters.
fn bootstrap(ads: SocketAddr, directory: &str, resources: &str) -> String {
    format!(
        "node: {{id: default.backend-1, cluster: backend}}
admin: {{address: {{pipe: {{path: {directory}/kuma-envoy-admin.sock, mode: 384}}}}}}
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    set_node_on_first_message_only: true
    grpc_services: [{{envoy_grpc: {{cluster_name: ads_cluster}}, initial_metadata: [{{key: authorization, value: first}}]}}]
  cds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
  lds_config: {{ads: {{}}, resource_api_version: V3, initial_fetch_timeout: 0s}}
static_resources:
  clusters:
  - name: ads_cluster
    type: STATIC
    connect_timeout: 1s
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: ads_cluster, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {}}}}}}}}}]}}]}}
{resources}",
        ads.port()
    )
}

/// Answers every request with the bootstrap and keeps the first one's body.
fn bootstrap_server(
    listener: TcpListener,
    bootstrap: &str,
    configuration: &Value,
) -> (SocketAddr, Arc<Mutex<Option<Value>>>) {
    let address = listener.local_addr().unwrap();
    let request = Arc::new(Mutex::new(None));
    let body = json!({
        "bootstrap": base64::engine::general_purpose::STANDARD.encode(bootstrap),
        "kumaSidecarConfiguration": configuration,
    })
    .to_string();
    let kept = request.clone();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                let start = head.len();
                reader.read_line(&mut head).unwrap();
                if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut bytes = vec![0; length];
            reader.read_exact(&mut bytes).unwrap();
            kept.lock().unwrap().get_or_insert_with(|| serde_json::from_slice(&bytes).unwrap());
            write!(
                socket,
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
        }
    });
    (address, request)
}
