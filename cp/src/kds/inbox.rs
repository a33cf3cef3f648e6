//! The receiving side: stores what the other side sends, and says whether that worked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use shika_proto::envoy::config::core::v3::Node;
use shika_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use shika_proto::google::rpc;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::transform::{came_from, from_zone};
use super::wire::{key_of_wire, unpack};
use super::{Direction, ZoneNode, last_word};
use crate::resource::{Kind, Resource, ResourceKey, set_status, status_to_value};
use crate::store::{Expect, Store, StoreError};

/// How long resources wait for their mesh, which comes on the same stream.
const MESH_PATIENCE: Duration = Duration::from_secs(2);
/// Reasons that are put into one refusal.
const MAX_REASONS: usize = 8;

/// The receiving side of one stream.
#[derive(Debug)]
pub(super) struct Inbox {
    store: Store,
    direction: Direction,
    /// What this side says of itself with its first requests.
    node: Node,
    /// Kinds whose first response came: until then what is missing in a response is to be deleted.
    begun: BTreeSet<Kind>,
    /// Responses whose mesh is not there yet, in the order in which they came.
    waiting: Vec<(Kind, DeltaDiscoveryResponse)>,
    waiting_since: Option<Instant>,
}

/// Why a stream ends.
#[derive(Debug)]
pub(super) enum InboxError {
    /// The other side is gone.
    Gone,
    /// The store failed; nothing is known about what was sent.
    Store(StoreError),
    /// The stream broke.
    Stream(tonic::Status),
}

/// What became of a response.
enum Outcome {
    Stored,
    Refused(String),
    NoMesh(String),
}

impl Inbox {
    /// For one stream on which `node` speaks.
    pub(super) fn new(store: Store, direction: Direction, node: &ZoneNode) -> Inbox {
        Inbox {
            store,
            direction,
            node: node.to_node(),
            begun: BTreeSet::new(),
            waiting: Vec::new(),
            waiting_since: None,
        }
    }

    /// Asks for every kind and stores what comes, until the other side is gone.
    ///
    /// # Errors
    /// Why it ended.
    pub(super) async fn run(
        mut self,
        mut responses: impl Stream<Item = Result<DeltaDiscoveryResponse, tonic::Status>> + Unpin,
        requests: mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), InboxError> {
        match self.exchange(&mut responses, &requests).await {
            Err(InboxError::Gone) => Err(last_word(&mut responses).await.map_or(InboxError::Gone, InboxError::Stream)),
            ended => ended,
        }
    }

    async fn exchange(
        &mut self,
        responses: &mut (impl Stream<Item = Result<DeltaDiscoveryResponse, tonic::Status>> + Unpin),
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), InboxError> {
        for kind in self.direction.kinds() {
            let request = DeltaDiscoveryRequest {
                node: Some(self.node.clone()),
                type_url: kind.name().to_owned(),
                resource_names_subscribe: vec!["*".to_owned()],
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(request).await.map_err(|_| InboxError::Gone)?;
        }
        loop {
            let next = match self.waiting_since {
                None => Ok(responses.next().await),
                Some(since) => tokio::time::timeout_at(since + MESH_PATIENCE, responses.next()).await,
            };
            match next {
                Ok(None) => return Ok(()),
                Ok(Some(Err(status))) => return Err(InboxError::Stream(status)),
                Ok(Some(Ok(response))) => {
                    let Some(kind) = self.direction.kinds().find(|kind| kind.name() == response.type_url) else {
                        tracing::warn!(
                            kind = response.type_url,
                            "another control plane sends a kind that nobody asked for"
                        );
                        continue;
                    };
                    match self.store(kind, &response).await? {
                        // Nothing else of that kind comes before this is answered, so that no more than one of each kind waits.
                        // Meshes come from global, so that global does not wait for any.
                        Outcome::NoMesh(_)
                            if matches!(self.direction, Direction::ToZone(_))
                                && !self.waiting.iter().any(|(other, _)| *other == kind) =>
                        {
                            self.waiting.push((kind, response));
                            self.waiting_since.get_or_insert_with(Instant::now);
                        }
                        outcome => self.answer(kind, &response, outcome, requests).await?,
                    }
                    if kind == Kind::Mesh {
                        self.retry(requests, false).await?;
                    }
                }
                // The mesh did not come: what waits for it is refused, and will be sent again.
                Err(_) => self.retry(requests, true).await?,
            }
        }
    }

    async fn retry(&mut self, requests: &mpsc::Sender<DeltaDiscoveryRequest>, last: bool) -> Result<(), InboxError> {
        for (kind, response) in std::mem::take(&mut self.waiting) {
            match self.store(kind, &response).await? {
                Outcome::NoMesh(_) if !last => self.waiting.push((kind, response)),
                outcome => self.answer(kind, &response, outcome, requests).await?,
            }
        }
        if self.waiting.is_empty() {
            self.waiting_since = None;
        }
        Ok(())
    }

    async fn answer(
        &mut self,
        kind: Kind,
        response: &DeltaDiscoveryResponse,
        outcome: Outcome,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), InboxError> {
        let mut request = DeltaDiscoveryRequest {
            node: Some(Node { id: self.node.id.clone(), ..Node::default() }),
            type_url: kind.name().to_owned(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        if let Outcome::Refused(reason) | Outcome::NoMesh(reason) = outcome {
            tracing::warn!(zone = self.direction.zone(), %kind, reason, "refused resources of the other control plane");
            request.resource_names_subscribe = vec!["*".to_owned()];
            request.error_detail = Some(rpc::Status { message: reason, ..rpc::Status::default() });
        }
        requests.send(request).await.map_err(|_| InboxError::Gone)
    }

    /// Stores what a response has. What is wrong with one resource does not keep the others away.
    async fn store(&mut self, kind: Kind, response: &DeltaDiscoveryResponse) -> Result<Outcome, InboxError> {
        let mut wrong = Vec::new();
        let mut upstream: BTreeMap<ResourceKey, Resource> = BTreeMap::new();
        let mut invalid: BTreeSet<ResourceKey> = BTreeSet::new();
        for wire in &response.resources {
            match unpack(kind, wire) {
                Ok(mut resource) => {
                    if let Direction::ToGlobal(zone) = &self.direction {
                        from_zone(zone, &mut resource);
                    }
                    upstream.insert(resource.key(), resource);
                }
                Err((key, reason)) => {
                    wrong.push(format!("{key}: {reason}"));
                    invalid.insert(key);
                }
            }
        }
        let first = !self.begun.contains(&kind);
        let gone: Vec<ResourceKey> = if first {
            let stored = self.store.list(kind, None).await.map_err(InboxError::Store)?;
            let of_other_side = stored.into_iter().filter(|resource| came_from(&self.direction, resource));
            of_other_side.map(|resource| resource.key()).filter(|key| !invalid.contains(key)).collect()
        } else {
            response.removed_resources.iter().map(|name| key_of_wire(kind, name)).collect()
        };
        for key in gone.into_iter().filter(|key| !upstream.contains_key(key)) {
            self.delete(&key).await?;
        }
        let mut no_mesh = None;
        for (key, resource) in upstream {
            match self.put(resource).await {
                Ok(()) => {}
                Err(StoreError::NoMesh { mesh, .. }) => no_mesh = Some(format!("{key}: mesh {mesh:?} is not here")),
                Err(StoreError::Database(reason)) => return Err(InboxError::Store(StoreError::Database(reason))),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        if let Some(reason) = no_mesh {
            wrong.truncate(MAX_REASONS);
            wrong.push(reason);
            return Ok(Outcome::NoMesh(wrong.join("; ")));
        }
        self.begun.insert(kind);
        if wrong.is_empty() {
            return Ok(Outcome::Stored);
        }
        let more = wrong.len().saturating_sub(MAX_REASONS);
        wrong.truncate(MAX_REASONS);
        if more > 0 {
            wrong.push(format!("and {more} more"));
        }
        Ok(Outcome::Refused(wrong.join("; ")))
    }

    /// Deletes what came from the other side. What was created here under that name stays.
    async fn delete(&self, key: &ResourceKey) -> Result<(), InboxError> {
        let stored = self.store.get(key).await.map_err(InboxError::Store)?;
        if stored.is_none_or(|stored| !came_from(&self.direction, &stored)) {
            return Ok(());
        }
        match self.store.delete(key).await {
            Ok(()) => {
                tracing::info!(resource = %key, "deleted with its original");
                Ok(())
            }
            Err(StoreError::NotFound(_)) => Ok(()),
            Err(error) => Err(InboxError::Store(error)),
        }
    }

    async fn put(&self, mut resource: Resource) -> Result<(), StoreError> {
        let key = resource.key();
        // Others write the status in the meantime; their writes are not undone.
        for _ in 0..5 {
            let stored = self.store.get(&key).await?;
            let expect = match &stored {
                None => Expect::Absent,
                Some(stored) => {
                    if !came_from(&self.direction, stored) {
                        return Err(StoreError::Exists(key));
                    }
                    if matches!(self.direction, Direction::ToZone(_))
                        && let Some(status) = status_to_value(&stored.spec)
                    {
                        set_status(&mut resource.spec, status).map_err(|e| StoreError::Database(e.to_string()))?;
                    }
                    if stored.spec == resource.spec && stored.meta.labels == resource.meta.labels {
                        return Ok(());
                    }
                    Expect::Version(stored.meta.version)
                }
            };
            match self.store.put(resource.clone(), expect).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. } | StoreError::Exists(_) | StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Exists(key))
    }
}
