//! The real proxy under callgrind, alone or as a pair of sidecars.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::Child,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    baseline::TOLERANCE,
    callgrind::Output,
    load::{self, Load},
    upstream::Upstream,
};

/// Connections or requests through proxies.
pub struct Proxied {
    /// Its name in the baseline.
    pub name: &'static str,
    /// Bootstraps from the client's side to the upstream's. All their instructions count.
    pub hops: &'static [&'static str],
    /// What one turn is.
    pub load: Load,
    /// Turns that are enough for a figure.
    pub turns: u64,
    /// What answers.
    pub upstream: Upstream,
    /// A text in the bootstraps, and what stands in its place.
    pub edit: Option<(&'static str, &'static str)>,
    /// Most by which it may exceed its baseline.
    pub tolerance: f64,
}

/// For what depends on how fast the machine is beside the instructions: how many seconds' worth of clocks and counters a turn sees, in how many pieces the
/// kernel hands a body over. Between two runs of one build up to 8 % were seen.
const LOOSE: f64 = 0.15;

macro_rules! bootstrap {
    ($name:literal) => {
        include_str!(concat!("../../../../loadtest/bootstraps/", $name, ".yaml"))
    };
}

const ONE_HOP: Proxied = Proxied {
    name: "proxy: HTTP/1.1",
    hops: &[bootstrap!("one_hop_http1")],
    load: Load::Http1,
    turns: 500,
    upstream: Upstream::Http1 { body: 2 },
    edit: None,
    tolerance: TOLERANCE,
};

/// Keys take millions of instructions more or less from start to start, and so does a handshake: turns of pairs are as many as take 300 million.
const PAIR_TCP: Proxied = Proxied {
    name: "pair: TCP, 64 bytes",
    hops: &[bootstrap!("pair_client_tcp"), bootstrap!("pair_server_tcp")],
    load: Load::Tcp,
    turns: 10_000,
    upstream: Upstream::Echo,
    edit: None,
    tolerance: TOLERANCE,
};

/// All scenarios of this kind; pairs speak mutual TLS with each other.
pub const SCENARIOS: &[Proxied] = &[
    Proxied { name: "page of 1,000 clusters", load: Load::Metrics, turns: 2, tolerance: LOOSE, ..ONE_HOP },
    Proxied { name: "start: one of 1,000 clusters", load: Load::Cluster, turns: 1_000, ..ONE_HOP },
    ONE_HOP,
    Proxied {
        name: "proxy: HTTP/1.1, 64 KiB",
        upstream: Upstream::Http1 { body: 64 << 10 },
        turns: 200,
        tolerance: LOOSE,
        ..ONE_HOP
    },
    Proxied { name: "proxy: HTTP/1.1, new connection", load: Load::Http1Fresh, turns: 200, ..ONE_HOP },
    Proxied {
        name: "proxy: HTTP/2",
        hops: &[bootstrap!("one_hop_http2")],
        load: Load::Http2,
        upstream: Upstream::Http2,
        ..ONE_HOP
    },
    Proxied { name: "proxy: TCP, 64 bytes", hops: &[bootstrap!("one_hop_tcp")], ..PAIR_TCP },
    Proxied {
        name: "pair: HTTP/1.1",
        hops: &[bootstrap!("pair_client_http1"), bootstrap!("pair_server_http1")],
        turns: 2_500,
        ..ONE_HOP
    },
    Proxied {
        name: "pair: HTTP/2",
        hops: &[bootstrap!("pair_client_http2"), bootstrap!("pair_server_http2")],
        load: Load::Http2,
        upstream: Upstream::Http2,
        turns: 2_500,
        ..ONE_HOP
    },
    PAIR_TCP,
    Proxied { name: "pair: TCP, resumed handshake", load: Load::TcpFresh, turns: 400, ..PAIR_TCP },
    Proxied {
        name: "pair: TCP, full handshake",
        load: Load::TcpFresh,
        turns: 40,
        edit: Some(("          sni:", "          max_session_keys: 0\n          sni:")),
        ..PAIR_TCP
    },
    Proxied {
        name: "pair: HTTP/1.1 with all policies",
        hops: &[
            include_str!("../../../bootstraps/sidecar_client.yaml"),
            include_str!("../../../bootstraps/sidecar_server.yaml"),
        ],
        turns: 1_500,
        ..ONE_HOP
    },
];

/// Longest that a proxy may take to serve, or to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a measurement finds and leaves its files.
pub struct Place<'a> {
    /// The proxy.
    pub program: &'a Path,
    /// Certificates.
    pub certificates: &'a Path,
    /// For bootstraps and counts.
    pub directory: &'a Path,
}

impl Proxied {
    /// Instructions of all its proxies, from start to end, with so many turns.
    ///
    /// # Errors
    /// A proxy does not start, does not serve or does not end.
    pub fn count(&self, place: &Place<'_>, turns: u64) -> anyhow::Result<u64> {
        let mut running = Vec::new();
        let mut port = self.upstream.start()?;
        for (at, template) in self.hops.iter().enumerate().rev() {
            let proxy = self.start(place, template, &format!("{} {turns} {at}", self.name), port, turns)?;
            port = proxy.port;
            running.push(proxy);
        }
        let Some(first) = running.last() else { bail!("no proxy") };
        let done = self.load.drive(first.port, first.admin, turns);
        // The client's side first: the other would count the end of its connections otherwise.
        let mut sum = 0;
        for proxy in running.into_iter().rev() {
            sum += proxy.end()?;
        }
        done?;
        Ok(sum)
    }

    fn start(
        &self,
        place: &Place<'_>,
        template: &str,
        name: &str,
        upstream: u16,
        turns: u64,
    ) -> anyhow::Result<Running> {
        let [port, admin] = ports()?;
        let mut text = template.to_owned();
        if let Some((old, new)) = self.edit {
            text = text.replace(old, new);
        }
        text = text
            .replace("{{listener_port}}", &port.to_string())
            .replace("{{upstream_port}}", &upstream.to_string())
            .replace("{{admin_port}}", &admin.to_string())
            .replace("{{certs}}", &place.certificates.to_string_lossy())
            // A first handshake alone may take longer than that under valgrind on a busy machine.
            .replace("connect_timeout: 5s", "connect_timeout: 600s")
            .replace("connect_timeout: 10s", "connect_timeout: 600s")
            .replace(" timeout: 15s", " timeout: 600s");
        let clusters = match self.load {
            Load::Cluster => turns,
            Load::Metrics => 1_000,
            _ => 0,
        };
        for cluster in 0..clusters {
            // The list of clusters ends each bootstrap.
            text.push_str(&format!(
                "    - {{name: service-{cluster}, type: STATIC, connect_timeout: 5s, load_assignment: {{cluster_name: service-{cluster}, endpoints: \
                 [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}}}]}}]}}}}\n"
            ));
        }
        let file = place.directory.join(format!("{port}.yaml"));
        fs::write(&file, text)?;
        let output = Output::new(place.directory, name);
        let child = output
            .command(place.program, None)
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "1", "-l", "error"])
            .spawn()
            .context("valgrind cannot be started")?;
        let mut running = Running { child, output, port, admin };
        running.serves()?;
        Ok(running)
    }
}

/// A proxy under callgrind.
struct Running {
    child: Child,
    output: Output,
    port: u16,
    admin: u16,
}

impl Running {
    /// Waits until its listener accepts. Asking before costs the proxy nothing.
    fn serves(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        // One connection, gone at once, in every run.
        while load::connect(self.port).is_err() {
            if self.child.try_wait()?.is_some() {
                bail!("the proxy ended: {}", self.errors());
            }
            if Instant::now() > deadline {
                bail!("the proxy does not serve after {PATIENCE:?}");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it and gives its instructions.
    fn end(mut self) -> anyhow::Result<u64> {
        let mut stream = load::connect(self.admin).context("admin")?;
        stream.write_all(
            b"POST /quitquitquit HTTP/1.1\r\nhost: admin\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        )?;
        // The answer may be cut off.
        let _ = stream.read_to_end(&mut Vec::new());
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return self.output.total(),
                Some(status) => bail!("the proxy ended with {status}: {}", self.errors()),
                None if Instant::now() > deadline => bail!("the proxy does not end after {PATIENCE:?}"),
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// What it wrote to standard error, once it has ended.
    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two ports that were free a moment ago, and that no other measurement of this process was given.
fn ports() -> anyhow::Result<[u16; 2]> {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut held = Vec::new();
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
        let port = listener.local_addr()?.port();
        held.push((listener, given.insert(port).then_some(port)));
        let new: Vec<u16> = held.iter().filter_map(|(_, port)| *port).collect();
        if let [first, second] = new.as_slice() {
            return Ok([*first, *second]);
        }
    }
}
