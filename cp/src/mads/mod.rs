//! The monitoring assignment server on 5676: Prometheus (`kuma_sd_configs`) asks it which proxies to fetch metrics from (Kuma `pkg/mads`).
//!
//! It serves what Kuma serves: `POST /v3/discovery:monitoringassignments`, a DiscoveryRequest and a DiscoveryResponse as JSON over HTTP/1.1
//! or HTTP/2. A request that names the version of the current answer waits for another one, `fetch-timeout` at the longest, and is answered
//! 304 without a body when there is none. Unlike Kuma's, a version is a hash of the assignments: after a restart, or from another instance,
//! the same assignments are no change.

mod assignments;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use parking_lot::Mutex;
use shika_proto::envoy::service::discovery::v3::DiscoveryRequest;
use shika_proto::json::{Options, Parsed, from_json_str_with};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::api::ApiError;
use crate::api::server::{Answer, Request};
use crate::mesh::{MeshViews, ZoneView};
use crate::resource::parse_go_duration;
use assignments::Assignments;

/// Where assignments are asked for.
pub const PATH: &str = "/v3/discovery:monitoringassignments";
/// How long a request waits for a change unless it says (Kuma `monitoringAssignmentServer.defaultFetchTimeout`).
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request may wait at most.
const MAX_FETCH_TIMEOUT: Duration = Duration::from_secs(600);
/// Changes that come closer together than this are told together (Kuma `monitoringAssignmentServer.assignmentRefreshInterval`).
const REFRESH: Duration = Duration::from_secs(1);
/// How long a request that wants no waiting may wait for a control plane that has only just started.
const START_UP: Duration = Duration::from_secs(5);

/// The monitoring assignment server.
#[derive(Debug)]
pub struct Mads {
    views: Arc<MeshViews>,
    /// The assignments that were made last, and what of.
    last: Mutex<Option<(Arc<ZoneView>, Arc<Assignments>)>>,
}

impl Mads {
    /// A server that tells of the proxies of these meshes.
    pub fn new(views: Arc<MeshViews>) -> Mads {
        Mads { views, last: Mutex::default() }
    }

    /// Answers a request. Whoever waits for a change when `stop` becomes true is told that there is none.
    pub async fn answer(&self, request: Request, stop: watch::Receiver<bool>) -> Answer {
        match self.try_answer(&request, stop).await {
            Ok(answer) => answer,
            Err(error) => error.into(),
        }
    }

    async fn try_answer(&self, request: &Request, mut stop: watch::Receiver<bool>) -> Result<Answer, ApiError> {
        if request.path() != PATH {
            return Err(ApiError::not_found(format!("there is only POST {PATH}")));
        }
        if request.method != Method::POST {
            return Err(ApiError::method_not_allowed("only POST is allowed"));
        }
        let discovery = discovery(&request.body)
            .map_err(|reason| ApiError::new(StatusCode::BAD_REQUEST, "Could not parse request body", reason))?;
        let timeout = fetch_timeout(request.parameter("fetch-timeout").as_deref())
            .map_err(|reason| ApiError::new(StatusCode::BAD_REQUEST, "Could not parse fetch-timeout", reason))?;
        let client = discovery.node.as_ref().map(|node| node.id.as_str()).unwrap_or_default();
        if let Some(error) = &discovery.error_detail {
            tracing::warn!(client, reason = error.message, "a Prometheus refuses its monitoring assignments");
        }
        let now = Instant::now();
        let end = now + timeout;
        // Before the store was read there are no targets. To say so would make Prometheus forget those it has.
        if timeout_at(now + timeout.max(START_UP), self.views.read()).await.is_err() {
            let reason = "the control plane has not read its store yet";
            return Err(ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "Could not fetch MonitoringAssignments",
                reason,
            ));
        }
        let mut zone = self.views.follow_zone();
        let mut is_last = timeout.is_zero();
        loop {
            let view = zone.borrow_and_update().clone();
            let assignments = self.assignments(view);
            let told = assignments.of(client);
            if told.version != discovery.version_info {
                return Ok(answer(StatusCode::OK, told.body.clone()));
            }
            if is_last {
                return Ok(answer(StatusCode::NOT_MODIFIED, Bytes::new()));
            }
            let refresh_at = Instant::now() + REFRESH;
            let changed = async {
                match zone.changed().await {
                    Ok(()) => sleep_until(refresh_at).await,
                    // No view will follow.
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(end) => is_last = true,
                _ = stop.wait_for(|stop| *stop) => is_last = true,
            }
        }
    }

    /// The assignments that this view makes; made once for all who ask.
    fn assignments(&self, view: Arc<ZoneView>) -> Arc<Assignments> {
        let mut last = self.last.lock();
        if let Some((made_of, assignments)) = last.as_ref()
            && Arc::ptr_eq(made_of, &view)
        {
            return Arc::clone(assignments);
        }
        let known = last.as_ref().map(|(_, assignments)| assignments.warnings.as_slice()).unwrap_or_default();
        let assignments = Arc::new(Assignments::of_zone(&view));
        for warning in assignments.warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!("{warning}");
        }
        *last = Some((view, Arc::clone(&assignments)));
        assignments
    }
}

fn answer(status: StatusCode, body: Bytes) -> Answer {
    Answer { status, content_type: "application/json", body }
}

/// Reads the request. Fields that are not known yet are none of ours: they may be those of a newer Envoy.
fn discovery(body: &[u8]) -> Result<DiscoveryRequest, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    match from_json_str_with(text, Options { allow_unknown_fields: true }) {
        Ok(Parsed { message, .. }) => Ok(message),
        Err(errors) => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}

/// Reads a duration as Go writes it; zero and less mean not to wait.
fn fetch_timeout(text: Option<&str>) -> Result<Duration, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(FETCH_TIMEOUT) };
    match text.strip_prefix('-') {
        Some(rest) if !rest.starts_with('+') => parse_go_duration(rest).map(|_| Duration::ZERO),
        _ => parse_go_duration(text).map(|timeout| timeout.min(MAX_FETCH_TIMEOUT)),
    }
}

#[cfg(test)]
#[path = "mads_tests.rs"]
mod tests;
