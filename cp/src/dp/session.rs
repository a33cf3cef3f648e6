//! One ADS stream from its first request to its end.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{SubsecRound as _, Utc};
use futures_util::{Stream, StreamExt as _};
use shika_proto::envoy::config::core::v3::Node;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::admit::{Opened, open};
use super::certificates::Certificates;
use super::insight::InsightWriter;
use super::node::ProxyNode;
use super::source::Source;
use super::{Connection, Shared, stopped};
use crate::emit;
use crate::identity::IdentityError;
use crate::identity::leaf::{Leaf, LeafRequest};
use crate::plan::{PlanError, ProxyPlan};
use crate::store::StoreError;
use crate::xds::delta::{DeltaRequest, DeltaResponse, DeltaStream};
use crate::xds::sotw::{SotwRequest, SotwResponse, SotwStream};
use crate::xds::{Answer, ResourceType, Snapshot, StreamError};

/// How long the first request may take after the stream opened.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// A request, whatever the variant.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) type_url: String,
    pub(super) node: Option<Node>,
    pub(super) body: Body,
}

/// What differs between the variants.
#[derive(Debug)]
pub(super) enum Body {
    Delta(DeltaRequest),
    Sotw(SotwRequest),
}

/// A response, whatever the variant.
#[derive(Debug)]
pub(super) enum Outgoing {
    Delta(DeltaResponse),
    Sotw(SotwResponse),
}

/// State of the protocol.
#[derive(Debug)]
pub(super) enum StreamState {
    Delta(DeltaStream),
    Sotw(SotwStream),
}

impl StreamState {
    fn request(&mut self, kind: ResourceType, body: Body, now: Instant) -> Result<Answer, StreamError> {
        match (self, body) {
            (StreamState::Delta(stream), Body::Delta(request)) => stream.request(kind, request, now),
            (StreamState::Sotw(stream), Body::Sotw(request)) => stream.request(kind, request, now),
            // A stream has requests of its own variant only.
            (StreamState::Delta(_), Body::Sotw(_)) | (StreamState::Sotw(_), Body::Delta(_)) => Ok(Answer::None),
        }
    }

    fn next(&mut self, snapshot: &Snapshot, now: Instant) -> Option<Outgoing> {
        match self {
            StreamState::Delta(stream) => stream.next(snapshot, now).map(Outgoing::Delta),
            StreamState::Sotw(stream) => stream.next(snapshot, now).map(Outgoing::Sotw),
        }
    }

    fn take_missing_content(&mut self) -> bool {
        match self {
            StreamState::Delta(stream) => stream.take_missing_content(),
            StreamState::Sotw(stream) => stream.take_missing_content(),
        }
    }

    fn wake_at(&self) -> Option<Instant> {
        match self {
            StreamState::Delta(stream) => stream.wake_at(),
            StreamState::Sotw(stream) => stream.wake_at(),
        }
    }
}

/// Serves one stream to its end.
pub(super) async fn run(
    shared: Arc<Shared>,
    token: Option<String>,
    connection: Option<Connection>,
    mut requests: impl Stream<Item = Result<Incoming, Status>> + Send + Unpin,
    responses: mpsc::Sender<Result<Outgoing, Status>>,
    state: StreamState,
) {
    let first = tokio::select! {
        first = tokio::time::timeout(FIRST_REQUEST, requests.next()) => first,
        () = responses.closed() => return,
    };
    let Ok(Some(Ok(first))) = first else { return };
    let opened = match open(&shared, token, &first).await {
        Ok(opened) => opened,
        Err(status) => {
            let node = first.node.as_ref().map(|node| node.id.as_str()).unwrap_or_default();
            tracing::warn!(node, reason = status.message(), "refused a proxy");
            let _ = responses.send(Err(status)).await;
            return;
        }
    };
    let Opened { node, source, brought } = opened;
    let delta = matches!(state, StreamState::Delta(_));
    let stream = shared.stats.open(&node.mesh, &node.name, delta);
    let key = node.key();
    shared.registry.connected(&key, stream);
    tracing::info!(proxy = %key, delta, stream, "proxy connected");
    let insight = InsightWriter::new(
        shared.store.clone(),
        key.clone(),
        node.proxy_type.insight(),
        &shared.config.instance_id,
        shared.config.insight_interval,
        node.version.clone(),
        node.metadata.clone(),
    );
    let mut session = Session {
        shared: shared.clone(),
        stream,
        source,
        state,
        insight,
        responses,
        plan: None,
        plan_error: None,
        certificates: Certificates::default(),
        snapshot: Snapshot::default(),
        node,
    };
    let mut ended = session.serve(first, &mut requests).await;
    let Session { insight, responses, .. } = session;
    if matches!(ended, End::ProxyLeft) {
        ended = last_word(&mut requests).await;
        // Given up because it did not answer, which looks like a stream that was cancelled.
        if connection.is_some_and(|connection| connection.is_silent()) {
            ended = End::Broken;
        }
    }
    shared.registry.ended();
    match &ended {
        End::ProxyLeft => tracing::info!(proxy = %key, stream, "proxy disconnected"),
        End::Broken => tracing::info!(proxy = %key, stream, "the connection of a proxy broke"),
        End::Stopping => {}
        End::Refused(status) => {
            tracing::warn!(proxy = %key, stream, reason = status.message(), "ended a stream");
            let _ = responses.send(Err(status.clone())).await;
        }
    }
    drop(responses);
    shared.stats.close(stream);
    insight.end().await;
    if !brought {
        shared.registry.forget(&key, stream);
        return;
    }
    if matches!(ended, End::Stopping) {
        return;
    }
    // What the proxy brought along goes with it, unless it comes back in time.
    let mut stopping = shared.stopping.subscribe();
    tokio::select! {
        () = patience(&shared, matches!(ended, End::Broken)) => {}
        () = stopped(&mut stopping) => return,
    }
    if shared.registry.forget(&key, stream) {
        match shared.store.delete(&key).await {
            Ok(()) | Err(StoreError::NotFound(_)) => {
                tracing::info!(proxy = %key, "proxy is gone, deleted what it brought along")
            }
            Err(error) => {
                tracing::warn!(proxy = %key, %error, "could not delete what a proxy that is gone brought along")
            }
        }
    }
}

/// How much longer than the deregistration delay proxies may take to come back after all were lost: they try again every 30 s at last.
const RETURN: u32 = 4;
/// How long the reason for the end of a stream may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Waits until a proxy whose stream ended counts as gone. While no proxy at all is connected and their connections broke, it is the network of this
/// control plane that is at fault rather than each of them: what they brought stays, so that those which come back first are not told that
/// the others are gone.
async fn patience(shared: &Shared, broken: bool) {
    let delay = shared.config.deregistration_delay;
    tokio::time::sleep(delay).await;
    let mut live = shared.registry.live();
    while broken && *live.borrow_and_update() == 0 {
        // The sender is part of what is shared.
        let _ = live.wait_for(|live| *live > 0).await;
        tokio::time::sleep(delay * RETURN).await;
    }
}

/// How a stream ended of which one half is gone: a proxy that leaves ends it or cancels it.
async fn last_word(requests: &mut (impl Stream<Item = Result<Incoming, Status>> + Unpin)) -> End {
    let word = async {
        loop {
            match requests.next().await {
                Some(Ok(_)) => {}
                Some(Err(status)) => return end_of(&status),
                None => return End::ProxyLeft,
            }
        }
    };
    tokio::time::timeout(LAST_WORD, word).await.unwrap_or(End::ProxyLeft)
}

fn end_of(status: &Status) -> End {
    if status.code() == Code::Cancelled { End::ProxyLeft } else { End::Broken }
}

/// Why a stream ended.
#[derive(Debug)]
enum End {
    ProxyLeft,
    /// The connection is gone without a word.
    Broken,
    Stopping,
    Refused(Status),
}

/// A stream that was let in.
struct Session {
    shared: Arc<Shared>,
    node: ProxyNode,
    stream: u64,
    source: Source,
    state: StreamState,
    insight: InsightWriter,
    responses: mpsc::Sender<Result<Outgoing, Status>>,
    /// The last plan that could be made.
    plan: Option<ProxyPlan>,
    plan_error: Option<PlanError>,
    certificates: Certificates,
    snapshot: Snapshot,
}

impl Session {
    /// The life of a stream: wait for the proxy, the mesh, a certificate or a moment; plan; send.
    async fn serve(
        &mut self,
        first: Incoming,
        requests: &mut (impl Stream<Item = Result<Incoming, Status>> + Send + Unpin),
    ) -> End {
        let mut stopping = self.shared.stopping.subscribe();
        match self.insight.last_certificate().await {
            Ok(noted) => self.certificates.adopt(noted),
            Err(error) => return End::Refused(Status::unavailable(error.to_string())),
        }
        self.insight.write().await;
        self.replan();
        if let Err(end) = self.take(first) {
            return end;
        }
        loop {
            self.refresh();
            if self.send().await.is_err() {
                return End::ProxyLeft;
            }
            let wake = self.wake_at();
            let alarm = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopped(&mut stopping) => return End::Stopping,
                () = self.responses.closed() => return End::ProxyLeft,
                request = requests.next() => match request {
                    Some(Ok(request)) => if let Err(end) = self.take(request) {
                        return end;
                    },
                    Some(Err(status)) => return end_of(&status),
                    None => return End::ProxyLeft,
                },
                changed = self.source.changed(&self.node) => match changed {
                    Ok(()) => self.replan(),
                    Err(status) => return End::Refused(status),
                },
                (request, result) = self.certificates.next() => self.certificate(request, result).await,
                () = alarm => {}
            }
            if self.insight.due().is_some_and(|due| due <= tokio::time::Instant::now()) {
                self.insight.write().await;
            }
        }
    }

    /// Takes in a request.
    fn take(&mut self, request: Incoming) -> Result<(), End> {
        let id = self.node.id();
        if let Some(node) = request.node.filter(|node| !node.id.is_empty() && node.id != id) {
            let message = format!("node.id changed from {id:?} to {:?}; a stream serves one proxy", node.id);
            return Err(End::Refused(Status::invalid_argument(message)));
        }
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            tracing::warn!(
                node = id,
                type_url = request.type_url,
                "proxy asks for a type that is not served; it gets no answer"
            );
            return Ok(());
        };
        match self.state.request(kind, request.body, Instant::now()) {
            Ok(Answer::None) => {}
            Ok(Answer::Acknowledged(kind)) => {
                self.shared.stats.acknowledged(self.stream, kind);
                self.insight.acknowledged(kind);
            }
            Ok(Answer::Rejected(kind, message)) => {
                tracing::warn!(node = id, type_url = kind.url(), message, "proxy refused its configuration");
                self.shared.stats.rejected(self.stream, kind, &message);
                self.insight.rejected(kind);
            }
            Err(error) => return Err(End::Refused(Status::resource_exhausted(error.to_string()))),
        }
        Ok(())
    }

    /// Plans anew from the current view. What cannot be planned leaves the proxy with what it has.
    fn replan(&mut self) {
        let planned = self.source.plan(&self.node);
        let (mesh, name) = (&self.node.mesh, &self.node.name);
        match planned {
            Ok(new) => {
                let known = self.plan.as_ref().map(|plan| &plan.warnings);
                for warning in
                    new.warnings.iter().filter(|warning| !known.is_some_and(|known| known.contains(*warning)))
                {
                    tracing::warn!(mesh, dataplane = name, "{warning}");
                }
                self.plan = Some(new);
                self.plan_error = None;
            }
            Err(error) => {
                if self.plan_error.as_ref() != Some(&error) {
                    // What was stored a moment ago is in the next view.
                    let missing = matches!(error, PlanError::NoDataplane { .. } | PlanError::NoZoneProxy { .. });
                    let expected = self.plan.is_none() && missing;
                    if !expected {
                        tracing::error!(mesh, dataplane = name, %error, "the proxy keeps its configuration");
                    }
                }
                self.plan_error = Some(error);
            }
        }
    }

    /// Sees to the certificates and emits what changed.
    fn refresh(&mut self) {
        let Some(plan) = &self.plan else { return };
        if plan.mtls.is_empty() {
            self.insight.no_certificate();
        }
        self.certificates.refresh(&plan.mtls, |mesh| self.source.authority(mesh), &self.shared.issuer);
        self.snapshot = emit::snapshot(plan, self.certificates.identities(), &self.snapshot);
    }

    /// Takes in the outcome of issuing a certificate.
    async fn certificate(&mut self, request: LeafRequest, result: Result<Leaf, IdentityError>) {
        let (mesh, dataplane) = (&request.mesh, &self.node.name);
        self.shared.stats.certificate(result.is_ok());
        match result {
            Ok(mut leaf) => {
                // The insight keeps no more than this, and the version must be the same when it is read back.
                leaf.issued = leaf.issued.trunc_subsecs(0);
                tracing::info!(mesh, dataplane, expires = %leaf.expires, "issued a certificate");
                self.insight.certificate(&request.backend, leaf.issued, leaf.expires);
                self.certificates.issued(request, leaf);
                // Written before it is sent: a control plane that dies in between must know what the proxy holds.
                self.insight.write().await;
            }
            Err(error) => {
                let (retry_at, expires) = self.certificates.failed(&request, error.to_string());
                let expires = expires.map(|expires| expires.to_rfc3339());
                tracing::error!(
                    mesh, dataplane, %error, retry_at = %retry_at, held_until = expires.as_deref().unwrap_or("none"),
                    "could not issue a certificate; the proxy keeps the one it has"
                );
            }
        }
    }

    /// Sends everything that the proxy lacks. An error means that the proxy is gone.
    async fn send(&mut self) -> Result<(), ()> {
        // An incomplete snapshot would take away from a proxy that reconnects what it lives on. So nothing is sent before there is a
        // plan, and with mutual TLS a certificate.
        let Some(plan) = &self.plan else { return Ok(()) };
        if !self.certificates.complete(&plan.mtls) {
            return Ok(());
        }
        while let Some(response) = self.state.next(&self.snapshot, Instant::now()) {
            let (kind, resources, removed) = match &response {
                Outgoing::Delta(response) => (response.kind, response.resources.len(), response.removed.len()),
                Outgoing::Sotw(response) => (response.kind, response.resources.len(), 0),
            };
            self.responses.send(Ok(response)).await.map_err(|_| ())?;
            self.shared.stats.sent(self.stream, kind, resources, removed);
            self.insight.sent(kind);
        }
        if self.state.take_missing_content() && self.certificates.need_content() {
            self.refresh();
        }
        Ok(())
    }

    /// When something is to be done although nothing happens.
    fn wake_at(&self) -> Option<Instant> {
        let insight = self.insight.due().map(tokio::time::Instant::into_std);
        let wanted = self.plan.as_ref().map(|plan| plan.mtls.as_slice()).unwrap_or_default();
        let due = self.certificates.due(wanted, |mesh| self.source.authority(mesh).is_some());
        let certificate = due.map(|at| Instant::now() + (at - Utc::now()).to_std().unwrap_or_default());
        [self.state.wake_at(), insight, certificate].into_iter().flatten().min()
    }
}
