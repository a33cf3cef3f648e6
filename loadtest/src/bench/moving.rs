//! Endpoints that change: an EDS file, replaced as a whole, and how soon requests follow it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;

use super::Bench;
use super::closed::Chain;
use super::figure::{Figure, Metric, Round};
use super::scenario::Work;
use super::setup::{Upstream, WorkDir};
use super::subject::{Proxy, Subject, get};
use crate::echo;

/// Longest wait for a request to reach the new endpoint.
const LIMIT: Duration = Duration::from_secs(20);
/// Updates whose median is the figure.
const UPDATES: usize = 15;

/// A file that EDS of the cluster `moving` comes from (`path_config_source`).
pub struct Endpoints {
    file: PathBuf,
    version: u64,
}

impl Endpoints {
    /// `endpoints.json` in the directory of certificates, where the bootstraps look for it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(dir: &WorkDir, ports: &[u16]) -> anyhow::Result<Self> {
        let mut endpoints = Self { file: dir.path().join("endpoints.json"), version: 0 };
        endpoints.set(ports)?;
        Ok(endpoints)
    }

    /// Replaces the endpoints: a new file takes the place of the old one, which is what both proxies watch for.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set(&mut self, ports: &[u16]) -> anyhow::Result<()> {
        self.version += 1;
        let part = self.file.with_extension("part");
        std::fs::write(&part, discovery_response(self.version, ports)).context("the file of endpoints")?;
        std::fs::rename(&part, &self.file).context("the file of endpoints")
    }
}

fn discovery_response(version: u64, ports: &[u16]) -> String {
    let endpoint = |port: &u16| serde_json::json!({ "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } } } });
    serde_json::json!({
        "version_info": version.to_string(),
        "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "moving",
            "endpoints": [{ "lb_endpoints": ports.iter().map(endpoint).collect::<Vec<_>>() }],
        }],
    })
    .to_string()
}

/// Two services that say who they are.
pub struct Two {
    /// The first.
    pub first: Upstream,
    /// The second.
    pub second: Upstream,
}

impl Two {
    /// Starts both.
    ///
    /// # Errors
    /// When no port is free or no thread can be had.
    pub fn start() -> anyhow::Result<Self> {
        let named = |name: &'static str| {
            let service = echo::Service { name: name.into(), reply: Bytes::from_static(name.as_bytes()) };
            Upstream::start_as(echo::Mode::Http, service)
        };
        Ok(Self { first: named("first")?, second: named("second")? })
    }

    /// Milliseconds from the replacement of the file to the first reply from the new endpoint: the median of some updates.
    ///
    /// # Errors
    /// When no reply comes from the new endpoint in time.
    pub fn time_updates(&self, endpoints: &mut Endpoints, listener: std::net::SocketAddr) -> anyhow::Result<f64> {
        let mut times = Vec::with_capacity(UPDATES);
        for update in 0..UPDATES {
            let (port, name) = if update % 2 == 0 { (self.second.port, "second") } else { (self.first.port, "first") };
            let begin = Instant::now();
            endpoints.set(&[port])?;
            while !get(listener, "/moving").is_ok_and(|reply| reply.status == 200 && reply.body == name) {
                ensure!(begin.elapsed() < LIMIT, "no reply came from the new endpoint within {LIMIT:?}");
            }
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        Figure::of(times).map(|figure| figure.median).context("no update was timed")
    }
}

impl Bench {
    /// One round with endpoints that are replaced `rate` times per second: one of two, then both, in turns.
    ///
    /// # Errors
    /// When a proxy does not start, any request fails, or an update is refused.
    pub async fn churn_round(&self, work: &Work, rate: u32, subject: &Subject) -> anyhow::Result<Round> {
        let two = Two::start()?;
        let mut endpoints = Endpoints::create(&self.dir, &[two.first.port])?;
        let chain = Chain::start(work, subject, &self.dir, two.first.port).await?;
        let (first, both) = ([two.first.port], [two.first.port, two.second.port]);
        let churn = tokio::spawn(async move {
            let mut turn = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
            loop {
                turn.tick().await;
                if let Err(error) = endpoints.set(&both) {
                    return error;
                }
                turn.tick().await;
                if let Err(error) = endpoints.set(&first) {
                    return error;
                }
            }
        });
        let plan = self.plan(work, chain.target)?;
        let (before, begin) = (updates(&chain.proxies)?, Instant::now());
        let measured = self.measure(&plan, &self.settings, &chain.proxies).await;
        let applied = (updates(&chain.proxies)? - before) as f64 / begin.elapsed().as_secs_f64();
        if churn.is_finished() {
            bail!("the updates ended: {:#}", churn.await?);
        }
        churn.abort();
        let (mut round, _) = measured?;
        round.insert(Metric::Updates, applied);
        Ok(round)
    }
}

/// Updates of the cluster's endpoints that the proxy has taken, by its own count.
fn updates(proxies: &[Proxy]) -> anyhow::Result<u64> {
    let proxy = proxies.first().context("there is no proxy")?;
    let reply = proxy.ask("/stats?filter=cluster.moving.update_")?;
    let count = |name: &str| {
        let line = reply.body.lines().find_map(|line| line.strip_prefix(&format!("cluster.moving.update_{name}: ")));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    ensure!(count("rejected").unwrap_or(0) == 0, "{} updates were refused", count("rejected").unwrap_or(0));
    count("success").with_context(|| format!("no cluster.moving.update_success in {:?}", reply.body))
}
