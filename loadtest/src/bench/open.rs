//! Requests at a fixed rate, and how long after their moment each was answered.

use std::time::Duration;

use super::closed::Chain;
use super::figure::{Metric, Round};
use super::scenario::Work;
use super::setup::Upstream;
use super::subject::{Name, Subject};
use super::{Bench, Settings};
use crate::text::note;

/// The shortest measured time: the 99.9th percentile needs some thousand requests.
const LEAST: Duration = Duration::from_secs(5);
/// Connections, so many that a request seldom waits for one: what is measured is the proxy's queue, not the client's.
const CONNECTIONS: usize = 100;

impl Bench {
    /// One round at `share` of what Envoy answers at most.
    ///
    /// # Errors
    /// When a proxy does not start, or any request fails.
    pub async fn open_round(&self, work: &Work, share: f64, subject: &Subject) -> anyhow::Result<Round> {
        let rate = match self.settings.rate {
            Some(rate) => rate,
            None => share * *self.capacity.get_or_try_init(|| self.find_capacity(work)).await?,
        };
        let upstream = Upstream::start(work.upstream)?;
        let chain = Chain::start(work, subject, &self.dir, upstream.port).await?;
        let mut plan = self.plan(work, chain.target)?;
        (plan.rate, plan.connections) = (Some(rate), CONNECTIONS);
        let settings = Settings { duration: self.settings.duration.max(LEAST), ..self.settings.clone() };
        let (mut round, record) = self.measure(&plan, &settings, &chain.proxies).await?;
        let micros = |percent| record.latency.percentile(percent).as_secs_f64() * 1e6;
        round.extend([
            (Metric::P90, micros(90.0)),
            (Metric::P999, micros(99.9)),
            (Metric::Lateness, record.lateness.percentile(99.0).as_secs_f64() * 1e6),
        ]);
        Ok(round)
    }

    /// Requests per second that Envoy, or the only subject there is, answers in a closed loop.
    async fn find_capacity(&self, work: &Work) -> anyhow::Result<f64> {
        let envoy = self.subjects.iter().find(|subject| subject.name == Name::Envoy);
        let Some(subject) = envoy.or(self.subjects.first()) else { anyhow::bail!("there is no subject") };
        let upstream = Upstream::start(work.upstream)?;
        let chain = Chain::start(work, subject, &self.dir, upstream.port).await?;
        let (round, _) = self.measure(&self.plan(work, chain.target)?, &self.settings, &chain.proxies).await?;
        let rate = round.get(&Metric::Rate).copied().unwrap_or_default();
        note(&format!("{} answers {rate:.0} requests/s at most", subject.name));
        Ok(rate)
    }
}
