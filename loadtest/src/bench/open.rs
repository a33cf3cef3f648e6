//! Requests at a fixed rate, and how long after their moment each was answered.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::closed::Chain;
use super::figure::{Metric, Round};
use super::scenario::Work;
use super::setup::Upstream;
use super::subject::{Name, Subject};
use super::{Bench, Settings};
use crate::load::Plan;
use crate::text::note;

/// The shortest measured time: the 99.9th percentile needs some thousand requests.
const LEAST: Duration = Duration::from_secs(5);
/// The shortest warm-up: by its end every connection is open, also those between the sidecars with their handshakes.
const LEAST_WARMUP: Duration = Duration::from_secs(2);
/// How late the load itself may hand out requests, at its 99th percentile; beyond that the round says more about the machine than about
/// the proxy.
const LATEST: Duration = Duration::from_millis(3);
/// How long it is looked how much Envoy answers at most.
const SEARCH: Duration = Duration::from_secs(2);
/// Connections, so many that a request seldom waits for one: what is measured is the proxy's queue, not the client's.
const CONNECTIONS: usize = 100;

/// What Envoy answers at most, as found for one round of one scenario.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    share: f64,
    round: usize,
    rate: f64,
}

impl Bench {
    /// One round at `share` of what Envoy answers at most. That is found anew for each round, just before it: machines with
    /// neighbours are not equally fast all the time.
    ///
    /// # Errors
    /// When a proxy does not start, any request fails, or the load could not keep its schedule.
    pub async fn open_round(&self, work: &Work, share: f64, round: usize, subject: &Subject) -> anyhow::Result<Round> {
        let rate = match self.settings.rate {
            Some(rate) => rate,
            None => share * self.capacity(work, share, round).await?,
        };
        let upstream = Upstream::start(work.upstream)?;
        let chain = Chain::start(work, subject, &self.dir, upstream.port).await?;
        let plan = Plan { rate: Some(rate), connections: CONNECTIONS, ..self.plan(work, chain.target)? };
        let settings = Settings {
            duration: self.settings.duration.max(LEAST),
            warmup: self.settings.warmup.max(LEAST_WARMUP),
            ..self.settings.clone()
        };
        let (mut round, record) = self.measure(&plan, &settings, &chain.proxies).await?;
        let lateness = record.lateness.percentile(99.0);
        ensure!(
            lateness < LATEST,
            "the load was late itself: {lateness:.1?} at its p99, more than {LATEST:?}; something else takes its CPU"
        );
        let micros = |percent| record.latency.percentile(percent).as_secs_f64() * 1e6;
        round.extend([
            (Metric::P90, micros(90.0)),
            (Metric::P999, micros(99.9)),
            (Metric::Lateness, lateness.as_secs_f64() * 1e6),
        ]);
        Ok(round)
    }

    /// Requests per second that Envoy answers in a closed loop, the same for every subject of a round.
    async fn capacity(&self, work: &Work, share: f64, round: usize) -> anyhow::Result<f64> {
        let mut known = self.capacity.lock().await;
        if let Some(found) = known.filter(|known| known.share == share && known.round == round) {
            return Ok(found.rate);
        }
        let envoy = self.subjects.iter().find(|subject| subject.name == Name::Envoy);
        let subject = envoy.context("the rate is a share of what Envoy answers at most: add Envoy, or give --rate")?;
        let upstream = Upstream::start(work.upstream)?;
        let chain = Chain::start(work, subject, &self.dir, upstream.port).await?;
        let plan = Plan { connections: CONNECTIONS, rate: None, ..self.plan(work, chain.target)? };
        let settings = Settings { duration: SEARCH, ..self.settings.clone() };
        let (figures, _) = self.measure(&plan, &settings, &chain.proxies).await?;
        let rate = figures.get(&Metric::Rate).copied().unwrap_or_default();
        note(&format!("envoy answers {rate:.0} requests/s at most"));
        *known = Some(Capacity { share, round, rate });
        Ok(rate)
    }
}
