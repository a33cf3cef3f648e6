//! What a proxy takes without traffic: its start, its memory, and the memory of connections that are not used.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Bench;
use super::closed::Chain;
use super::figure::{Metric, Round};
use super::scenario::Work;
use super::setup::Upstream;
use super::subject::{Proxy, Subject, memory_of};
use crate::load::http1::{Connection, request_bytes};
use crate::load::{Load, Plan};

/// Time without traffic before memory is read: start-up work, and what ends with a connection, is over by then.
const REST: Duration = Duration::from_secs(3);
/// Connections of the load between the two readings of memory.
const LOAD_CONNECTIONS: usize = 64;
/// Connections that are opened at a time.
const OPENERS: usize = 16;

impl Bench {
    /// Start to the first byte; memory before any traffic, and after load whose connections are closed again.
    ///
    /// # Errors
    /// When the proxy does not start.
    pub async fn start_round(&self, work: &Work, subject: &Subject) -> anyhow::Result<Round> {
        let upstream = Upstream::start(work.upstream)?;
        let hop = work.hops.first().context("the scenario has no proxy")?;
        let template = hop.template(subject.name).context("the scenario is not for this subject")?;
        let rendered = self.dir.render(hop.name, template, hop.fragment, &[("upstream_port", upstream.port)])?;
        let begin = Instant::now();
        let mut proxy = Proxy::start(subject, &rendered, work.workers, &self.dir)?;
        proxy.wait_for_first_byte("/")?;
        let start = begin.elapsed();
        let proxies = [proxy];
        tokio::time::sleep(REST).await;
        let idle = memory_of(&proxies)?;
        let plan = Plan { connections: LOAD_CONNECTIONS, ..self.plan(work, rendered.listener)? };
        let load = Load::start(&plan);
        load.record();
        tokio::time::sleep(self.settings.duration).await;
        let failed = load.finish().await;
        ensure!(failed.failed() == 0, "{} requests failed", failed.failed());
        tokio::time::sleep(REST).await;
        Ok(Round::from([
            (Metric::Start, start.as_secs_f64() * 1e3),
            (Metric::IdleMemory, idle.resident),
            (Metric::Resident, memory_of(&proxies)?.resident),
        ]))
    }

    /// Memory of each of `count` connections that carried one request and are then left alone.
    ///
    /// # Errors
    /// When a connection cannot be opened or its request fails.
    pub async fn idle_round(&self, work: &Work, count: usize, subject: &Subject) -> anyhow::Result<Round> {
        let upstream = Upstream::start(work.upstream)?;
        let chain = Chain::start(work, subject, &self.dir, upstream.port).await?;
        let plan = self.plan(work, chain.target)?;
        // The first connections pay for what all share: pools, statistics, the connections to the upstream.
        let warm = open_all(&plan, OPENERS).await?;
        tokio::time::sleep(REST).await;
        let before = memory_of(&chain.proxies)?.resident;
        let begin = Instant::now();
        let held = open_all(&plan, count).await?;
        let opening = begin.elapsed();
        tokio::time::sleep(REST).await;
        let after = memory_of(&chain.proxies)?.resident;
        drop((warm, held));
        Ok(Round::from([
            (Metric::ConnectionMemory, (after - before) * 1e3 / count as f64),
            (Metric::Resident, after),
            (Metric::Rate, count as f64 / opening.as_secs_f64()),
        ]))
    }
}

/// Opens so many connections, some at a time, and sends one request over each.
async fn open_all(plan: &Plan, count: usize) -> anyhow::Result<Vec<Connection>> {
    let request = request_bytes(plan);
    let mut openers = tokio::task::JoinSet::new();
    for opener in 0..OPENERS {
        let share = count / OPENERS + usize::from(opener < count % OPENERS);
        let (plan, request) = (plan.clone(), request.clone());
        openers.spawn(async move {
            let mut open = Vec::with_capacity(share);
            for _ in 0..share {
                let mut connection = Connection::open(&plan.target, plan.reply).await?;
                let reply = connection.exchange(&request).await?;
                anyhow::ensure!(reply.status == 200, "a reply has status {}", reply.status);
                anyhow::ensure!(reply.keep_alive, "the connection was not kept");
                open.push(connection);
            }
            anyhow::Ok(open)
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(open) = openers.join_next().await {
        all.extend(open.context("an opener ended early")??);
    }
    Ok(all)
}
