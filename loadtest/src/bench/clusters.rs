//! Cost by the number of clusters: start, memory, scrapes, updates and requests.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Bench;
use super::figure::{Metric, Round};
use super::moving::{Endpoints, Two};
use super::subject::{Name, Proxy, Subject, memory_of, usage_of};
use crate::load::stream::Peer;
use crate::load::{Plan, Protocol};

/// Time without traffic before memory is read.
const REST: Duration = Duration::from_secs(1);

impl Bench {
    /// One round with so many clusters beside one whose endpoints come from a file.
    ///
    /// # Errors
    /// When the proxy does not start or any request fails.
    pub async fn clusters_round(&self, number: usize, subject: &Subject) -> anyhow::Result<Round> {
        let two = Two::start()?;
        let mut endpoints = Endpoints::create(&self.dir, &[two.first.port])?;
        let text = bootstrap(number);
        let rendered = self.dir.render("clusters", &text, "", &[("upstream_port", two.first.port)])?;
        let begin = Instant::now();
        let mut proxy = Proxy::start(subject, &rendered, 1, &self.dir)?;
        proxy.wait_for_first_byte("/")?;
        let start = begin.elapsed();
        let proxies = [proxy];
        tokio::time::sleep(REST).await;
        let idle = memory_of(&proxies)?.resident;
        let plan = Plan {
            target: Peer { spread: true, ..Peer::plain(rendered.listener) },
            // The last of them: looking it up must not take longer than the first.
            host: format!("service-{}", number - 1),
            connections: self.settings.connections,
            ..Plan::to(rendered.listener, Protocol::Http1)
        };
        let (mut round, _) = self.measure(&plan, &self.settings, &proxies).await?;
        let [proxy] = &proxies;
        let (all, size) = scrape(proxy, "/stats/prometheus")?;
        let (used, _) = scrape(proxy, "/stats/prometheus?usedonly")?;
        let update = two.time_updates(&mut endpoints, rendered.listener)?;
        round.extend([
            (Metric::Start, start.as_secs_f64() * 1e3),
            (Metric::IdleMemory, idle),
            (Metric::ScrapeAll, all),
            (Metric::ScrapeSize, size),
            (Metric::ScrapeUsed, used),
            (Metric::Update, update),
        ]);
        if let Some(each) = self.memory_per_cluster(subject.name, number, idle) {
            round.insert(Metric::ClusterMemory, each);
        }
        Ok(round)
    }

    /// kB per cluster beyond what the same subject takes with one; none before that was measured in this run.
    fn memory_per_cluster(&self, subject: Name, number: usize, idle: f64) -> Option<f64> {
        let mut with_one = self.with_one_cluster.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if number == 1 {
            with_one.insert(subject, idle);
            return None;
        }
        with_one.get(&subject).map(|one| (idle - one) * 1e3 / (number - 1) as f64)
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
