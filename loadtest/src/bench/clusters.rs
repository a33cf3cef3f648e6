//! Cost by the number of clusters: start, memory, scrapes, updates and requests.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Bench;
use super::figure::{Metric, Round};
use super::moving::{Endpoints, Two};
use super::subject::{Proxy, Subject, memory_of, usage_of};
use crate::load::stream::Peer;
use crate::load::{Plan, Protocol};

/// Time without traffic before memory is read.
const REST: Duration = Duration::from_secs(3);

/// A proxy that has served requests with some number of clusters.
struct Served {
    proxies: [Proxy; 1],
    listener: SocketAddr,
    /// Start to the first byte.
    start: Duration,
    /// Resident MB before any traffic.
    idle: f64,
    /// What its requests cost.
    round: Round,
}

impl Bench {
    /// One round with so many clusters beside one whose endpoints come from a file. Just before it the same with one cluster, so that
    /// growth does not depend on how fast the machine was at another time.
    ///
    /// # Errors
    /// When the proxy does not start or any request fails.
    pub async fn clusters_round(&self, number: usize, subject: &Subject) -> anyhow::Result<Round> {
        let two = Two::start()?;
        let mut endpoints = Endpoints::create(&self.dir, &[two.first.port])?;
        let one = match number {
            1 => None,
            _ => {
                let served = self.serve_clusters(1, subject, &two).await?;
                Some((served.idle, served.round.get(&Metric::Cpu).copied().unwrap_or_default()))
            }
        };
        let served = self.serve_clusters(number, subject, &two).await?;
        let ([proxy], mut round) = (&served.proxies, served.round.clone());
        let (all, size) = scrape(proxy, "/stats/prometheus")?;
        let (used, _) = scrape(proxy, "/stats/prometheus?usedonly")?;
        let update = two.time_updates(&mut endpoints, served.listener)?;
        round.extend([
            (Metric::Start, served.start.as_secs_f64() * 1e3),
            (Metric::IdleMemory, served.idle),
            (Metric::ScrapeAll, all),
            (Metric::ScrapeSize, size),
            (Metric::ScrapeUsed, used),
            (Metric::Update, update),
        ]);
        if let Some((idle, cpu)) = one {
            let own = round.get(&Metric::Cpu).copied().unwrap_or_default();
            ensure!(cpu > 0.0, "requests with one cluster took no time");
            round.insert(Metric::ClusterMemory, (served.idle - idle) * 1e3 / (number - 1) as f64);
            round.insert(Metric::Growth, own / cpu);
        }
        Ok(round)
    }

    /// Starts the proxy with so many clusters and loads it.
    async fn serve_clusters(&self, number: usize, subject: &Subject, two: &Two) -> anyhow::Result<Served> {
        let rendered = self.dir.render("clusters", &bootstrap(number), "", &[("upstream_port", two.first.port)])?;
        let begin = Instant::now();
        let mut proxy = Proxy::start(subject, &rendered, 1, &self.dir)?;
        proxy.wait_for_first_byte("/")?;
        let start = begin.elapsed();
        let (proxies, listener) = ([proxy], rendered.listener);
        tokio::time::sleep(REST).await;
        let idle = memory_of(&proxies)?.resident;
        let plan = Plan {
            target: Peer { spread: true, ..Peer::plain(listener) },
            // The last of them: looking it up must not take longer than the first.
            host: format!("service-{}", number - 1),
            connections: self.settings.connections,
            ..Plan::to(listener, Protocol::Http1)
        };
        let (round, _) = self.measure(&plan, &self.settings, &proxies).await?;
        Ok(Served { proxies, listener, start, idle, round })
    }
}

/// CPU milliseconds of all threads for one GET, and the reply's size in MB.
fn scrape(proxy: &Proxy, path: &str) -> anyhow::Result<(f64, f64)> {
    let proxies = std::slice::from_ref(proxy);
    let before = usage_of(proxies)?;
    let reply = proxy.ask(path).with_context(|| path.to_owned())?;
    let after = usage_of(proxies)?;
    ensure!(reply.status == 200 && reply.body.contains("# TYPE envoy_"), "{path} answers {}", reply.status);
    Ok((after.cpu_since(&before).as_secs_f64() * 1e3, reply.body.len() as f64 / 1e6))
}

/// A bootstrap with `number` STATIC clusters, a virtual host for each, and the cluster `moving` for `/moving`.
fn bootstrap(number: usize) -> String {
    let (mut hosts, mut clusters) = (String::new(), String::new());
    for at in 0..number {
        let _ = write!(
            hosts,
            "
                    - name: service-{at}
                      domains: [service-{at}]
                      routes: [{{ match: {{ prefix: / }}, route: {{ cluster: service-{at}, timeout: 15s }} }}]"
        );
        let _ = write!(
            clusters,
            "
    - name: service-{at}
      type: STATIC
      connect_timeout: 5s
      load_assignment:
        cluster_name: service-{at}
        endpoints:
          - lb_endpoints:
              - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {{{{upstream_port}}}} }} }} }}"
        );
    }
    include_str!("../../bootstraps/clusters.yaml").replace("{{hosts}}", &hosts).replace("{{clusters}}", &clusters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cluster_has_its_host() {
        let text = bootstrap(3);
        for at in 0..3 {
            assert!(text.contains(&format!("domains: [service-{at}]")), "{text}");
            assert!(text.contains(&format!("cluster_name: service-{at}\n")), "{text}");
        }
        assert!(!text.contains("{{hosts}}") && !text.contains("{{clusters}}"), "{text}");
        assert!(text.contains("port_value: {{upstream_port}} } } }"), "{text}");
    }
}
