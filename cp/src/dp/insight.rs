//! What is known of a proxy, written to its insight: at once when it comes, goes or gets a certificate, otherwise every few
//! seconds if there is news.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SubsecRound as _, Utc};
use tokio::time::Instant;

use crate::resource::{
    DataplaneInsight, InsightVersion, Kind, Meta, MtlsInsight, Resource, ResourceKey, ServiceStats, Spec, Subscription,
    ZoneProxyInsight,
};
use crate::store::{Expect, Store, StoreError};
use crate::xds::ResourceType;

/// Subscriptions that are kept (Kuma `metrics.dataplane.subscriptionLimit`).
const SUBSCRIPTION_LIMIT: usize = 2;

/// Writes the insight of one proxy for one stream.
#[derive(Debug)]
pub(super) struct InsightWriter {
    store: Store,
    /// The proxy.
    proxy: ResourceKey,
    /// Its insight.
    key: ResourceKey,
    subscription: Subscription,
    mtls: Option<MtlsInsight>,
    /// Whether this stream changed `mtls`. A stream that did not must not undo what a newer one wrote.
    mtls_changed: bool,
    metadata: serde_json::Value,
    interval: Duration,
    /// When news must be written; `None` without news.
    due: Option<Instant>,
}

impl InsightWriter {
    /// A writer for a stream that begins now.
    pub(super) fn new(
        store: Store,
        proxy: ResourceKey,
        insight: Kind,
        instance: &str,
        interval: Duration,
        version: Option<InsightVersion>,
        metadata: serde_json::Value,
    ) -> Self {
        let subscription = Subscription {
            id: uuid::Uuid::new_v4().to_string(),
            control_plane_instance_id: instance.to_owned(),
            connect_time: Some(now()),
            version,
            ..Subscription::default()
        };
        let key = ResourceKey::new(insight, &proxy.mesh, &proxy.name);
        InsightWriter {
            store,
            proxy,
            key,
            subscription,
            mtls: None,
            mtls_changed: false,
            metadata,
            interval,
            due: None,
        }
    }

    /// The certificate that an earlier stream noted: when it was issued, and by which backend.
    pub(super) async fn last_certificate(&mut self) -> Result<Option<(DateTime<Utc>, String)>, StoreError> {
        let stored = self.store.get(&self.key).await?;
        self.mtls = stored.as_ref().and_then(Resource::insight).and_then(|insight| insight.mtls.clone());
        let noted = self.mtls.as_ref();
        Ok(noted.and_then(|mtls| Some((mtls.last_certificate_regeneration?, mtls.issued_backend.clone()))))
    }

    /// Notes a certificate that was issued; written with the next [`write`](Self::write).
    pub(super) fn certificate(&mut self, backend: &str, issued: DateTime<Utc>, expires: DateTime<Utc>) {
        let before = self.mtls.take().map_or(0, |mtls| mtls.certificate_regenerations);
        self.mtls = Some(MtlsInsight {
            certificate_expiration_time: Some(expires),
            last_certificate_regeneration: Some(issued),
            certificate_regenerations: before.saturating_add(1),
            issued_backend: backend.to_owned(),
            supported_backends: vec![backend.to_owned()],
        });
        self.mtls_changed = true;
        self.due = Some(Instant::now());
    }

    /// Notes that mutual TLS is off: the proxy has no certificate of the mesh any more.
    pub(super) fn no_certificate(&mut self) {
        if self.mtls.take().is_some() {
            self.mtls_changed = true;
            self.news();
        }
    }

    /// Notes a response that was sent.
    pub(super) fn sent(&mut self, kind: ResourceType) {
        self.count(kind, |stats| &mut stats.responses_sent);
    }

    /// Notes a response that was accepted.
    pub(super) fn acknowledged(&mut self, kind: ResourceType) {
        self.count(kind, |stats| &mut stats.responses_acknowledged);
    }

    /// Notes a response that was refused.
    pub(super) fn rejected(&mut self, kind: ResourceType) {
        self.count(kind, |stats| &mut stats.responses_rejected);
    }

    fn count(&mut self, kind: ResourceType, counter: impl Fn(&mut ServiceStats) -> &mut u64) {
        let status = &mut self.subscription.status;
        status.last_update_time = Some(now());
        *counter(&mut status.total) += 1;
        let of_type = match kind {
            ResourceType::Cluster => Some(&mut status.cds),
            ResourceType::Endpoint => Some(&mut status.eds),
            ResourceType::Listener => Some(&mut status.lds),
            ResourceType::Route => Some(&mut status.rds),
            // Kuma counts secrets in the total only.
            ResourceType::Secret => None,
        };
        if let Some(of_type) = of_type {
            *counter(of_type) += 1;
        }
        self.news();
    }

    fn news(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + self.interval);
    }

    /// When [`write`](Self::write) should be called, if there is news.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what is known. A failure is logged and tried again after the interval.
    pub(super) async fn write(&mut self) {
        self.subscription.generation = self.subscription.generation.saturating_add(1);
        self.due = None;
        match self.try_write().await {
            Ok(()) => self.mtls_changed = false,
            Err(error) => {
                tracing::warn!(insight = %self.key, %error, "could not write the insight of a proxy");
                self.news();
            }
        }
    }

    /// Writes that the stream ended.
    pub(super) async fn end(mut self) {
        self.subscription.disconnect_time = Some(now());
        match self.try_write().await {
            Ok(()) => {}
            // The proxy, or its mesh, was deleted, and the insight with it.
            Err(StoreError::NoMesh { .. }) => {}
            Err(error) => tracing::warn!(insight = %self.key, %error, "could not write that a proxy left"),
        }
    }

    async fn try_write(&self) -> Result<(), StoreError> {
        // Without its proxy an insight would stay for ever.
        if self.store.get(&self.proxy).await?.is_none() {
            return Ok(());
        }
        // Streams of one proxy overlap while it reconnects, so each changes its own subscription only.
        for _ in 0..5 {
            let stored = self.store.get(&self.key).await?;
            let mut insight = stored.as_ref().map(read).unwrap_or_default();
            match insight.subscriptions.iter_mut().find(|subscription| subscription.id == self.subscription.id) {
                Some(found) => found.clone_from(&self.subscription),
                None => insight.subscriptions.push(self.subscription.clone()),
            }
            let surplus = insight.subscriptions.len().saturating_sub(SUBSCRIPTION_LIMIT);
            insight.subscriptions.drain(..surplus);
            if self.mtls_changed {
                insight.mtls.clone_from(&self.mtls);
            }
            insight.metadata = Some(self.metadata.clone());
            let meta = Meta::new(&self.key.mesh, &self.key.name);
            let expect = stored.map_or(Expect::Absent, |stored| Expect::Version(stored.meta.version));
            match self.store.put(Resource::new(meta, spec(self.key.kind, insight)), expect).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. } | StoreError::Exists(_) | StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Database("others write the same insight all the time".to_owned()))
    }
}

/// What is stored, whatever the kind of proxy. Zone ingresses and zone egresses have no certificate of a mesh in their insight.
fn read(stored: &Resource) -> DataplaneInsight {
    match &stored.spec {
        Spec::DataplaneInsight(insight) => insight.as_ref().clone(),
        Spec::ZoneIngressInsight(insight) | Spec::ZoneEgressInsight(insight) => DataplaneInsight {
            subscriptions: insight.subscriptions.clone(),
            metadata: insight.metadata.clone(),
            mtls: None,
        },
        _ => DataplaneInsight::default(),
    }
}

/// The other way round.
fn spec(kind: Kind, insight: DataplaneInsight) -> Spec {
    let DataplaneInsight { subscriptions, metadata, .. } = insight;
    match kind {
        Kind::ZoneIngressInsight => Spec::ZoneIngressInsight(Arc::new(ZoneProxyInsight { subscriptions, metadata })),
        Kind::ZoneEgressInsight => Spec::ZoneEgressInsight(Arc::new(ZoneProxyInsight { subscriptions, metadata })),
        _ => Spec::DataplaneInsight(Arc::new(DataplaneInsight { subscriptions, metadata, ..insight })),
    }
}

/// Now, as precise as a database keeps it.
fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}
