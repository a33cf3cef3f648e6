//! Requests as fast as they are answered, and what they cost.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, ensure};

use super::figure::{Metric, Round};
use super::scenario::{Handshake, Work};
use super::setup::{Upstream, WorkDir, loopback, wait_for_conntrack};
use super::subject::{Proxy, Subject, memory_of, usage_of};
use super::{Bench, Settings, tls};
use crate::echo::Mode;
use crate::load::stream::Peer;
use crate::load::{Load, Plan, Record};

/// Proxies that run, and where their first hop listens.
pub struct Chain {
    /// From the last hop to the first.
    pub proxies: Vec<Proxy>,
    /// The first hop's listener.
    pub target: SocketAddr,
    /// Takes spans and keeps nothing.
    _sink: Upstream,
}

impl Chain {
    /// Starts the proxies from the last hop to the first and waits until each serves.
    ///
    /// # Errors
    /// When one cannot be configured or started.
    pub async fn start(work: &Work, subject: &Subject, dir: &WorkDir, upstream: u16) -> anyhow::Result<Self> {
        let sink = Upstream::start(Mode::Sink)?;
        let sink_port = sink.port;
        let mut chain = Self { proxies: Vec::new(), target: loopback(upstream), _sink: sink };
        for hop in work.hops.iter().rev() {
            let template = hop.template(subject.name).with_context(|| format!("{} cannot do this", subject.name))?;
            let places = [("upstream_port", chain.target.port()), ("sink_port", sink_port)];
            let rendered = dir.render(hop.name, template, hop.fragment, &places)?;
            let mut proxy = Proxy::start(subject, &rendered, work.workers, dir)?;
            proxy.wait_until_live().await?;
            chain.target = rendered.listener;
            chain.proxies.push(proxy);
        }
        Ok(chain)
    }
}

impl Bench {
    /// What the load sends in this scenario.
    ///
    /// # Errors
    /// When the client's certificates cannot be read.
    pub fn plan(&self, work: &Work, target: SocketAddr) -> anyhow::Result<Plan> {
        let tls = work.tls.map(|handshake| tls::client(&self.dir, handshake == Handshake::Resumed)).transpose()?;
        Ok(Plan {
            target: Peer { address: target, tls, spread: true },
            path: work.path.into(),
            payload: work.payload,
            reply: work.reply,
            connections: work.connections.unwrap_or(self.settings.connections),
            streams: self.settings.streams,
            rate: self.settings.rate,
            new_connection: work.new_connection,
            ..Plan::to(target, work.protocol)
        })
    }

    /// One round of one subject in fresh processes.
    ///
    /// # Errors
    /// When a proxy does not start, or any request fails: the round is void.
    pub async fn closed_round(&self, work: &Work, subject: &Subject) -> anyhow::Result<Round> {
        if work.new_connection {
            wait_for_conntrack().await;
        }
        let upstream = Upstream::start(work.upstream)?;
        let chain = Chain::start(work, subject, &self.dir, upstream.port).await?;
        let plan = self.plan(work, chain.target)?;
        let (round, _) = self.measure(&plan, &self.settings, &chain.proxies).await?;
        if let Some((tls, handshake)) = plan.target.tls.zip(work.tls) {
            tls::check(&tls.handshakes, handshake == Handshake::Resumed)?;
        }
        Ok(round)
    }

    /// Loads the proxies by the plan: a warm-up, then the time that counts.
    ///
    /// # Errors
    /// When a proxy ends or any request fails.
    pub async fn measure(
        &self,
        plan: &Plan,
        settings: &Settings,
        proxies: &[Proxy],
    ) -> anyhow::Result<(Round, Record)> {
        let load = Load::start(plan);
        tokio::time::sleep(settings.warmup).await;
        load.record();
        let (begin, first, first_count) = (Instant::now(), usage_of(proxies)?, load.progress().completed());
        tokio::time::sleep(settings.duration).await;
        let (elapsed, last, last_count) = (begin.elapsed(), usage_of(proxies)?, load.progress().completed());
        let memory = memory_of(proxies)?;
        let record = load.finish().await;
        ensure!(
            record.failed() == 0,
            "{} requests failed, the first: {}",
            record.failed(),
            record.first_failure.as_deref().unwrap_or("unknown")
        );
        let requests = (last_count - first_count) as f64;
        ensure!(requests > 0.0, "no request was answered");
        let micros = |percent| record.latency.percentile(percent).as_secs_f64() * 1e6;
        let round = Round::from([
            (Metric::Cpu, last.cpu_since(&first).as_secs_f64() * 1e6 / requests),
            (Metric::Rate, requests / elapsed.as_secs_f64()),
            (Metric::P50, micros(50.0)),
            (Metric::P99, micros(99.0)),
            (Metric::Switches, last.switches_since(&first) as f64 / requests),
            (Metric::Resident, memory.resident),
            (Metric::Proportional, memory.proportional),
        ]);
        Ok((round, record))
    }
}
