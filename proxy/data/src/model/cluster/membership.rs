//! Endpoints that come, go, and change their health.

use std::sync::{Arc, atomic::Ordering};

use foldhash::HashSet;

use super::{Cluster, Discovery, Endpoint, EndpointAddress, EndpointSet, Health, Priority};

impl Cluster {
    /// Puts a set of endpoints in force and tells `membership_*`. Endpoints that are healthy stay although they are not in it, as long as their health
    /// checks say so, unless the configuration says otherwise: whoever tells of endpoints may be cut off from them.
    pub fn put_endpoints(&self, mut endpoints: EndpointSet) {
        let before = self.endpoints.load();
        if self.health.as_ref().is_some_and(|health| !health.removes_healthy) {
            let named: HashSet<&EndpointAddress> = endpoints.all().map(|endpoint| &endpoint.address).collect();
            let kept: Vec<(usize, Arc<Endpoint>)> = before
                .priorities
                .iter()
                .enumerate()
                .flat_map(|(at, priority)| priority.endpoints.iter().map(move |endpoint| (at, endpoint)))
                .filter(|(_, endpoint)| !endpoint.checked.has_failed() && !named.contains(&endpoint.address))
                .map(|(at, endpoint)| (at, endpoint.clone()))
                .collect();
            for endpoint in endpoints.all() {
                endpoint.checked.set_removed(false);
            }
            for (at, endpoint) in kept {
                endpoint.checked.set_removed(true);
                if endpoints.priorities.len() <= at {
                    endpoints.priorities.resize_with(at + 1, Priority::default);
                }
                if let Some(priority) = endpoints.priorities.get_mut(at) {
                    priority.weighted |= priority.endpoints.iter().any(|other| other.weight != endpoint.weight);
                    priority.endpoints.push(endpoint);
                }
            }
        }
        self.install(endpoints);
    }

    /// Takes out the endpoints that stayed only because they were healthy, and no longer are.
    pub fn drop_removed(&self) {
        let set = self.endpoints.load();
        let is_gone = |endpoint: &Arc<Endpoint>| endpoint.checked.is_removed() && endpoint.checked.has_failed();
        if !set.all().any(is_gone) {
            return;
        }
        let priorities = set.priorities.iter().map(|priority| Priority {
            endpoints: priority.endpoints.iter().filter(|endpoint| !is_gone(endpoint)).cloned().collect(),
            weighted: priority.weighted,
            localities: priority.localities.clone(),
        });
        self.install(EndpointSet { priorities: priorities.collect(), overprovisioning: set.overprovisioning });
    }

    fn install(&self, endpoints: EndpointSet) {
        let before = self.endpoints.load();
        let total = endpoints.all().count() as u64;
        if self.stats.membership_total().value() != total
            || before.all().zip(endpoints.all()).any(|(before, after)| before.address != after.address)
        {
            self.stats.membership_change().inc();
        }
        for endpoint in endpoints.all() {
            match &self.health {
                Some(_) if endpoint.check.as_ref().is_some_and(|check| check.disabled) => endpoint.checked.forget(),
                Some(_) => endpoint.checked.await_first(),
                None => endpoint.checked.forget(),
            }
        }
        if self.discovery != Discovery::Static {
            // Envoy works it out for what may change.
            let heaviest = endpoints.all().map(|one| one.weight).max().unwrap_or(0);
            self.stats.max_host_weight().set(u64::from(heaviest));
        }
        self.endpoints.store(Arc::new(endpoints));
        self.count_membership();
        if let Some(health) = &self.health {
            health.changed.notify_one();
        }
    }

    /// Whether an endpoint has not answered its first health check yet, nor failed it.
    pub fn awaits_checks(&self) -> bool {
        self.health.is_some() && self.endpoints.load().all().any(|endpoint| endpoint.checked.is_awaited())
    }

    /// Tells how many endpoints there are, by health.
    pub fn count_membership(&self) {
        let (mut total, mut healthy, mut degraded, mut excluded) = (0, 0, 0, 0);
        for endpoint in self.endpoints.load().all() {
            total += 1;
            excluded += u64::from(self.excludes(endpoint));
            match endpoint.health() {
                Health::Healthy => healthy += 1,
                Health::Degraded => degraded += 1,
                Health::Unhealthy => {}
            }
        }
        let stats = &self.stats;
        stats.membership_total().set(total);
        stats.membership_healthy().set(healthy);
        stats.membership_degraded().set(degraded);
        stats.membership_excluded().set(excluded);
        if let Some(health) = &self.health {
            health
                .stats
                .degraded()
                .set(self.endpoints.load().all().filter(|one| one.checked.is_degraded()).count() as u64);
            health
                .stats
                .healthy()
                .set(self.endpoints.load().all().filter(|one| !one.checked.has_failed()).count() as u64);
        }
    }

    /// An endpoint has failed a check, or was ejected: connections of the pools to it get no further requests, and with
    /// `close_connections_on_host_health_failure` TCP connections to it end.
    ///
    /// Source: Envoy `ClusterManagerImpl::postThreadLocalHealthFailure`.
    pub(crate) fn endpoint_failed(&self, endpoint: &Endpoint) {
        endpoint.failures.fetch_add(1, Ordering::Relaxed);
        if let Some(told) = &self.close_on_failure {
            told.notify_waiters();
        }
    }

    /// Resolves when an endpoint has failed more than `before` times. Without `close_connections_on_host_health_failure` it never does.
    pub(crate) async fn closes(&self, endpoint: &Endpoint, before: u32) {
        let Some(told) = &self.close_on_failure else { return std::future::pending().await };
        loop {
            let mut next = std::pin::pin!(told.notified());
            // From here on no news is missed.
            next.as_mut().enable();
            if endpoint.failures.load(Ordering::Relaxed) != before {
                return;
            }
            next.await;
        }
    }

    /// Whether an endpoint does not even count, because nobody knows yet how it is (`ignore_new_hosts_until_first_hc`).
    pub fn excludes(&self, endpoint: &Endpoint) -> bool {
        self.health.as_ref().is_some_and(|health| health.ignore_new) && endpoint.checked.is_awaited()
    }
}
