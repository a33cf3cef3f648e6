//! A real proxy process and a plain HTTP client.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

pub mod control_plane;
pub mod planes;
pub mod sidecar;
pub mod upstream;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The program under test.
pub const PROXY: &str = env!("CARGO_BIN_EXE_shika-proxy");
/// Bound on everything that is waited for.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Output {
    Command::new(PROXY).args(args).env_clear().output().unwrap()
}

/// A running proxy; ends with the value.
pub struct Proxy {
    pub child: Child,
    pub admin: String,
    pub directory: tempfile::TempDir,
    pub log: PathBuf,
}

impl Proxy {
    /// Starts one and waits for its admin interface. `admin` is added to the bootstrap.
    pub fn start(bootstrap: &str, args: &[&str]) -> Proxy {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap.yaml");
        fs::write(
            &path,
            format!("admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}\n{bootstrap}"),
        )
        .unwrap();
        let address = directory.path().join("admin");
        let log = directory.path().join("log");
        let child = Command::new(PROXY)
            .arg("-c")
            .arg(&path)
            .arg("--admin-address-path")
            .arg(&address)
            .args(["--concurrency", "2"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut proxy = Proxy { child, admin: String::new(), directory, log };
        proxy.admin = eventually("the admin address", || {
            let address = fs::read_to_string(&address).ok().filter(|text| !text.is_empty())?;
            TcpStream::connect(&address).ok().map(|_| address)
        });
        proxy
    }

    /// Waits until it serves.
    pub fn live(self) -> Proxy {
        eventually("LIVE", || (get(&self.admin, "/ready").status == 200).then_some(()));
        self
    }

    /// Where a listener listens.
    pub fn listener(&self, name: &str) -> String {
        eventually(&format!("listener {name}"), || {
            let text = get(&self.admin, "/listeners").body;
            text.lines().find_map(|line| line.strip_prefix(&format!("{name}::"))).map(str::to_owned)
        })
    }

    /// A statistic.
    pub fn stat(&self, name: &str) -> u64 {
        let text = get(&self.admin, "/stats").body;
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("{name}: ")))
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        assert!(
            Command::new("sh").args(["-c", &format!("kill -s {name} {}", self.child.id())]).status().unwrap().success()
        );
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

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("log of the proxy:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Looks again and again until there is a result.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come within {LIMIT:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// One GET on its own connection.
pub fn get(address: &str, path: &str) -> Answer {
    request(address, "GET", path)
}

/// One POST on its own connection.
pub fn post(address: &str, path: &str) -> Answer {
    request(address, "POST", path)
}

fn request(address: &str, method: &str, path: &str) -> Answer {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    write!(socket, "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap();
    answer(&mut BufReader::new(socket))
}

/// Reads one answer, by length, chunks or to the end.
pub fn answer(reader: &mut impl BufRead) -> Answer {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "no whole head: {head:?}");
    }
    let head = head.to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|length| length.parse().unwrap());
    let mut body = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        body.resize(length, 0);
        reader.read_exact(&mut body).unwrap();
    } else {
        reader.read_to_end(&mut body).unwrap();
    }
    Answer { status, head, body: String::from_utf8(body).unwrap() }
}

/// A static bootstrap with one HTTP listener, whose connection manager has these virtual host fields.
pub fn http_listener(name: &str, address: &str, routes: &str) -> String {
    format!(
        r#"
  - name: {name}
    address: {{socket_address: {{address: {host}, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          {routes}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
"#,
        host = address.rsplit_once(':').unwrap().0,
        port = address.rsplit_once(':').unwrap().1,
    )
}

/// A cluster with one endpoint.
pub fn cluster(name: &str, address: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap();
    format!(
        "\n  - name: {name}\n    type: STATIC\n    connect_timeout: 5s\n    load_assignment: {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{endpoint: \
         {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}]}}]}}\n"
    )
}

/// Writes a file and gives its name.
pub fn file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
