//! What global knows of a zone, written to its ZoneInsight: at once when the zone comes or goes, otherwise every few seconds if there
//! is news.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::outbox::Happened;
use crate::resource::{
    HealthCheck, KdsStream, KdsStreams, KdsSubscription, Kind, Meta, Resource, ResourceKey, ServiceStats, Spec, Zone,
    ZoneInsight,
};
use crate::store::{Expect, Store, StoreError};

/// Connections that are kept (Kuma `metrics.zone.subscriptionLimit`).
const SUBSCRIPTION_LIMIT: usize = 10;

/// Creates the Zone of that name unless it is there.
pub(super) async fn ensure_zone(store: &Store, zone: &str) -> Result<(), StoreError> {
    let spec = Spec::Zone(Arc::new(Zone { enabled: Some(true) }));
    match store.put(Resource::new(Meta::new("", zone), spec), Expect::Absent).await {
        Ok(_) => {
            tracing::info!(zone, "a zone came for the first time");
            Ok(())
        }
        Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Changes the insight of a zone. Without its zone an insight would stay for ever, so that there is none then.
pub(super) async fn change(store: &Store, zone: &str, change: impl Fn(&mut ZoneInsight)) -> Result<(), StoreError> {
    let key = ResourceKey::global(Kind::ZoneInsight, zone);
    for _ in 0..5 {
        if store.get(&ResourceKey::global(Kind::Zone, zone)).await?.is_none() {
            return Ok(());
        }
        let stored = store.get(&key).await?;
        let mut insight =
            stored.as_ref().and_then(Resource::zone_insight).map(|i| i.as_ref().clone()).unwrap_or_default();
        change(&mut insight);
        let expect = stored.as_ref().map_or(Expect::Absent, |stored| Expect::Version(stored.meta.version));
        match store.put(Resource::new(Meta::new("", zone), Spec::ZoneInsight(Arc::new(insight))), expect).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict { .. } | StoreError::Exists(_) | StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Database("others write the same insight all the time".to_owned()))
}

/// Notes that a zone said that it is there.
pub(super) async fn alive(store: &Store, zone: &str) -> Result<(), StoreError> {
    let time = Some(now());
    change(store, zone, |insight| insight.health_check = Some(HealthCheck { time })).await
}

/// Notes that no zone is connected: what a control plane that died left open.
pub(super) async fn close_all(store: &Store) -> Result<(), StoreError> {
    for zone in store.list(Kind::ZoneInsight, None).await? {
        if zone.zone_insight().is_some_and(|insight| insight.is_online()) {
            let ended = now();
            change(store, &zone.meta.name, |insight| {
                let open =
                    insight.subscriptions.iter_mut().filter(|subscription| subscription.disconnect_time.is_none());
                open.for_each(|subscription| subscription.disconnect_time = Some(ended));
            })
            .await?;
        }
    }
    Ok(())
}

/// Keeps account of one connection until nothing more comes.
pub(super) async fn keep(
    store: Store,
    zone: String,
    instance: String,
    with_token: bool,
    interval: Duration,
    mut happened: mpsc::Receiver<Happened>,
) {
    let mut subscription = KdsSubscription {
        id: uuid::Uuid::new_v4().to_string(),
        global_instance_id: instance.clone(),
        connect_time: Some(now()),
        auth_token_provided: with_token,
        ..KdsSubscription::default()
    };
    let stream = KdsStream { global_instance_id: instance, connect_time: subscription.connect_time };
    let streams =
        KdsStreams { global_to_zone: Some(stream.clone()), zone_to_global: Some(stream), ..KdsStreams::default() };
    let mut due = Some(Instant::now());
    loop {
        let alarm = async {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            next = happened.recv() => {
                let Some(next) = next else { break };
                // Who it is should be seen at once.
                let wait = if matches!(next, Happened::Node(_)) { Duration::ZERO } else { interval };
                count(&mut subscription, next);
                let at = Instant::now() + wait;
                due = Some(due.map_or(at, |due| due.min(at)));
            }
            () = alarm => {
                due = None;
                subscription.generation = subscription.generation.saturating_add(1);
                write(&store, &zone, &subscription, &streams).await;
            }
        }
    }
    subscription.disconnect_time = Some(now());
    write(&store, &zone, &subscription, &streams).await;
}

fn count(subscription: &mut KdsSubscription, happened: Happened) {
    let (kind, counter): (Kind, fn(&mut ServiceStats) -> &mut u64) = match happened {
        Happened::Node(node) => {
            if !node.instance.is_empty() {
                subscription.version = Some(node.version_json());
                subscription.zone_instance_id = node.instance;
                subscription.config = node.config;
            }
            return;
        }
        Happened::Sent(kind) => (kind, |stats| &mut stats.responses_sent),
        Happened::Accepted(kind) => (kind, |stats| &mut stats.responses_acknowledged),
        Happened::Refused(kind) => (kind, |stats| &mut stats.responses_rejected),
    };
    let status = &mut subscription.status;
    status.last_update_time = Some(now());
    *counter(&mut status.total) += 1;
    *counter(status.stat.entry(kind.name().to_owned()).or_default()) += 1;
}

async fn write(store: &Store, zone: &str, subscription: &KdsSubscription, streams: &KdsStreams) {
    let written = change(store, zone, |insight| {
        match insight.subscriptions.iter_mut().find(|known| known.id == subscription.id) {
            Some(known) => known.clone_from(subscription),
            None => insight.subscriptions.push(subscription.clone()),
        }
        let surplus = insight.subscriptions.len().saturating_sub(SUBSCRIPTION_LIMIT);
        insight.subscriptions.drain(..surplus);
        if subscription.disconnect_time.is_none() {
            insight.kds_streams = Some(streams.clone());
        }
    });
    if let Err(error) = written.await {
        tracing::warn!(zone, %error, "could not write the insight of a zone");
    }
}

/// Now, as precise as a database keeps it.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}
