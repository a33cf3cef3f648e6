//! DNS for clusters of type STRICT_DNS and LOGICAL_DNS: one task per name, on the control thread.
//!
//! Source: Envoy documentation, "Service discovery", and `config.cluster.v3.Cluster` (`dns_refresh_rate`, `respect_dns_ttl`, `dns_lookup_family`).

use std::{
    collections::BTreeMap,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use shika_xds::{DnsTarget, LookupFamily};
use tokio::{sync::mpsc, task::JoinHandle};
use tracing::{debug, warn};

/// Answers that may wait for the control loop.
const QUEUE: usize = 64;
/// A TTL of 0 must not make a busy loop.
const MIN_REFRESH: Duration = Duration::from_millis(500);

/// The answer for one name.
#[derive(Debug)]
pub struct Answer {
    /// Cluster that asked.
    pub cluster: Arc<str>,
    /// Host name.
    pub hostname: Arc<str>,
    /// Addresses; `None`: the lookup failed and nothing is known.
    pub addresses: Option<Vec<IpAddr>>,
}

/// Keeps the names of all clusters resolved.
pub struct Resolver {
    /// By cluster and host name.
    tasks: BTreeMap<(Arc<str>, Arc<str>), Task>,
    resolvers: Rc<Resolvers>,
    answers: mpsc::Sender<Answer>,
}

/// What keeps one name resolved.
struct Task {
    target: DnsTarget,
    handle: JoinHandle<()>,
}

/// One per lookup family, made when first needed; none keeps a cache, the refresh rate decides.
#[derive(Default)]
struct Resolvers {
    by_strategy: std::cell::RefCell<Vec<(LookupIpStrategy, TokioResolver)>>,
}

impl Resolver {
    /// A resolver that knows no name yet, and where its answers come out.
    pub fn new() -> (Resolver, mpsc::Receiver<Answer>) {
        let (answers, receiver) = mpsc::channel(QUEUE);
        (Resolver { tasks: BTreeMap::new(), resolvers: Rc::default(), answers }, receiver)
    }

    /// Resolves exactly these from now on. What is already being resolved the same way goes on.
    pub fn update(&mut self, targets: Vec<DnsTarget>) {
        let mut tasks = BTreeMap::new();
        for target in targets {
            let key = (target.cluster.clone(), target.hostname.clone());
            let kept = self.tasks.remove(&key).and_then(|Task { target: now, handle: task }| {
                if now == target && !task.is_finished() {
                    Some(task)
                } else {
                    task.abort();
                    None
                }
            });
            let task = kept.unwrap_or_else(|| {
                tokio::task::spawn_local(keep_resolved(target.clone(), self.resolvers.clone(), self.answers.clone()))
            });
            tasks.insert(key, Task { target, handle: task });
        }
        for task in std::mem::replace(&mut self.tasks, tasks).into_values() {
            task.handle.abort();
        }
    }
}

async fn keep_resolved(target: DnsTarget, resolvers: Rc<Resolvers>, answers: mpsc::Sender<Answer>) {
    let mut failing = false;
    loop {
        let (addresses, valid_until) = match lookup(&target, &resolvers).await {
            Ok((addresses, valid_until)) => {
                failing = false;
                (Some(addresses), Some(valid_until))
            }
            Err(error) => {
                // Once per outage: the name is tried again every few seconds.
                if !failing {
                    warn!(
                        "cluster {}: {} cannot be resolved: {error}; the last known addresses stay",
                        target.cluster, target.hostname
                    );
                }
                failing = true;
                (None, None)
            }
        };
        debug!(cluster = %target.cluster, hostname = %target.hostname, ?addresses, "resolved");
        let answer = Answer { cluster: target.cluster.clone(), hostname: target.hostname.clone(), addresses };
        if answers.send(answer).await.is_err() {
            return;
        }
        let refresh = match valid_until {
            Some(until) if target.respect_ttl => until.saturating_duration_since(Instant::now()),
            _ => target.refresh,
        };
        tokio::time::sleep(refresh.max(MIN_REFRESH)).await;
    }
}

async fn lookup(target: &DnsTarget, resolvers: &Resolvers) -> Result<(Vec<IpAddr>, Instant), String> {
    if let Ok(address) = target.hostname.parse::<IpAddr>() {
        return Ok((vec![address], Instant::now() + target.refresh));
    }
    let resolver = resolvers.of(strategy(target.family))?;
    match resolver.lookup_ip(target.hostname.as_ref()).await {
        Ok(found) => {
            let mut addresses: Vec<IpAddr> = found.iter().collect();
            // Round-robin DNS turns the order at each lookup; endpoints keep theirs.
            addresses.sort_unstable();
            addresses.dedup();
            if target.family == LookupFamily::All {
                addresses.sort_by_key(IpAddr::is_ipv6);
            }
            Ok((addresses, found.valid_until()))
        }
        // "No such name" is an answer: the cluster has no hosts.
        Err(error) if error.is_no_records_found() || error.is_nx_domain() => {
            Ok((Vec::new(), Instant::now() + target.refresh))
        }
        Err(error) => Err(error.to_string()),
    }
}

fn strategy(family: LookupFamily) -> LookupIpStrategy {
    match family {
        LookupFamily::Auto => LookupIpStrategy::Ipv6thenIpv4,
        LookupFamily::V4Only => LookupIpStrategy::Ipv4Only,
        LookupFamily::V6Only => LookupIpStrategy::Ipv6Only,
        LookupFamily::V4Preferred => LookupIpStrategy::Ipv4thenIpv6,
        LookupFamily::All => LookupIpStrategy::Ipv4AndIpv6,
    }
}

impl Resolvers {
    fn of(&self, strategy: LookupIpStrategy) -> Result<TokioResolver, String> {
        let mut known = self.by_strategy.borrow_mut();
        if let Some((_, resolver)) = known.iter().find(|(known, _)| *known == strategy) {
            return Ok(resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio().map_err(|error| format!("/etc/resolv.conf: {error}"))?;
        let options = builder.options_mut();
        options.ip_strategy = strategy;
        options.cache_size = 0;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        known.push((strategy, resolver.clone()));
        Ok(resolver)
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;

    fn target(hostname: &str, family: LookupFamily) -> DnsTarget {
        DnsTarget {
            cluster: "c".into(),
            hostname: hostname.into(),
            family,
            refresh: Duration::from_secs(3600),
            respect_ttl: false,
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn addresses_and_local_names_need_no_server() {
        LocalSet::new()
            .run_until(async {
                let (mut resolver, mut answers) = Resolver::new();
                resolver
                    .update(vec![target("192.0.2.7", LookupFamily::Auto), target("localhost", LookupFamily::V4Only)]);
                let mut found = BTreeMap::new();
                for _ in 0..2 {
                    let answer = answers.recv().await.expect("an answer");
                    found.insert(answer.hostname.to_string(), answer.addresses);
                }
                assert_eq!(found["192.0.2.7"], Some(vec![IpAddr::from([192, 0, 2, 7])]));
                assert_eq!(found["localhost"], Some(vec![IpAddr::from([127, 0, 0, 1])]));
                resolver.update(Vec::new());
                assert!(resolver.tasks.is_empty());
            })
            .await;
    }
}
