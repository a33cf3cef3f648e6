//! What is known of one request while it lives, and what is counted and logged when it ends.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};

use super::{
    body::{Progress, broken_by_protocol, cut_short},
    filter::Effects,
    head::{Head, Path},
    request::Matched,
    trace::{self, Trace, TrySpan},
};
use crate::{
    connection::Connection,
    error::{ResponseFlag, ResponseFlags},
    model::{
        cluster::{Cluster, Endpoint},
        header_view::KeptHeaders,
        http::HttpConnectionManager,
        rbac::RequestView,
    },
    record::{self, Record},
    snapshot::Snapshot,
    stats::Origin,
    upstream::outlier::{self, Report},
};

/// A request's state. Dropping it ends the request: counters fall and the access log is written, whichever way it went.
#[derive(Debug)]
pub struct Exchange {
    /// The connection it came over.
    pub connection: Arc<Connection>,
    /// The configuration it is served by, from start to end.
    pub manager: Arc<HttpConnectionManager>,
    /// When it came.
    pub start: Instant,
    /// Its protocol.
    pub version: Version,
    /// Whether it came from inside.
    pub origin: Origin,
    /// A copy of its head, kept if a log or a header value may ask for it.
    pub request: Option<Box<RequestHead>>,
    /// Copies of the response's headers that logs ask for.
    pub response: Option<KeptHeaders>,
    /// A copy of its trailers, kept for logs.
    pub trailers: Option<Box<HeaderMap>>,
    /// Response code; 0 until there is one.
    pub status: u16,
    /// Why that code.
    pub details: Option<Cow<'static, str>>,
    /// What went wrong.
    pub flags: ResponseFlags,
    /// Name of the route taken.
    pub route: Option<Arc<str>>,
    /// Name of the virtual host.
    pub virtual_host: Option<Arc<str>>,
    /// The try that is under way or was the last.
    pub upstream: Option<UpstreamRequest>,
    /// The cluster chosen, also when it has no host.
    pub cluster: Option<Arc<Cluster>>,
    /// Why the last connection failed.
    pub upstream_failure: Option<String>,
    /// Tries made.
    pub attempts: u32,
    /// First byte of the response, since `start`.
    pub response_start: Option<Duration>,
    /// How far the request's body has come; `None` if it has none.
    pub progress: Option<Arc<Progress>>,
    /// Body bytes sent to the downstream.
    pub bytes_sent: u64,
    /// Behind its upgrade. Of its body, `progress` counts.
    pub bytes_received: u64,
    /// Who asks, as far as `x-forwarded-for` is trusted.
    pub remote: Option<SocketAddr>,
    /// The request has more to come that nobody reads: a body, or what follows an upgrade.
    pub unfinished: bool,
    /// Of HTTP/1.0: the client asked for the connection to be kept.
    pub keep_alive: bool,
    /// The request is gRPC, and a refusal takes its form.
    pub grpc: bool,
    /// The span of the request, if its connection manager traces.
    pub trace: Option<Box<Trace>>,
    /// Made for clusters that hash, and sent with the response.
    pub set_cookies: Vec<HeaderValue>,
    /// The request is a health check, as a filter found: its response is not counted among those of the listener or the cluster.
    pub health_check: bool,
    /// Which Kuma resource the route stands for, if a filter asked for it.
    pub route_kri: Option<Arc<str>>,
    /// How long filters held the request back.
    pub held: Duration,
    /// What filters have to do with the response; `None` without such filters.
    pub(super) effects: Option<Box<Effects>>,
    complete: bool,
}

/// A request's head as logs and header values see it.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// `:method`
    pub method: Method,
    /// `:path`
    pub path: Path,
    /// `:authority`
    pub authority: HeaderValue,
    /// `:scheme`
    pub scheme: &'static str,
    /// Of the rest what may be asked for.
    pub headers: KeptHeaders,
}

impl RequestHead {
    /// For matchers and formats.
    pub fn view(&self) -> RequestView<'_> {
        RequestView {
            method: self.method.as_str(),
            path: self.path.as_str(),
            authority: self.authority.to_str().unwrap_or(""),
            scheme: self.scheme,
            headers: self.headers.view(),
        }
    }
}

/// One try at an upstream. Dropping it takes its share of the gauges and limits away.
#[derive(Debug)]
pub struct UpstreamRequest {
    /// Where.
    pub cluster: Arc<Cluster>,
    /// To whom.
    pub endpoint: Arc<Endpoint>,
    /// When it was sent.
    pub start: Instant,
    /// Protocol spoken.
    pub version: Version,
    /// Our address on the connection.
    pub local: Option<SocketAddr>,
    /// Its span, where tries have spans of their own.
    pub(super) span: Option<Box<TrySpan>>,
    high_priority: bool,
    released: bool,
}

impl UpstreamRequest {
    /// Counts a request that is about to be sent.
    pub fn new(cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>, high_priority: bool) -> Self {
        let limits = if high_priority { &cluster.high_limits } else { &cluster.limits };
        limits.requests.fetch_add(1, Relaxed);
        cluster.stats.upstream_rq_active().inc();
        endpoint.stats.rq_total.fetch_add(1, Relaxed);
        endpoint.stats.rq_active.fetch_add(1, Relaxed);
        UpstreamRequest {
            cluster: cluster.clone(),
            endpoint: endpoint.clone(),
            start: Instant::now(),
            version: Version::HTTP_11,
            local: None,
            span: None,
            high_priority,
            released: false,
        }
    }

    /// Counts the outcome for the endpoint, and tells outlier detection.
    pub(super) fn ended(&mut self, report: Report) {
        if let (Some(span), Report::Response(code)) = (&mut self.span, report) {
            span.status = code;
        }
        let stats = &self.endpoint.stats;
        let ok = matches!(report, Report::Response(code) if code < 500);
        if ok { &stats.rq_success } else { &stats.rq_error }.fetch_add(1, Relaxed);
        if let Report::Response(_) = report {
            outlier::report(&self.cluster, &self.endpoint, Report::Connected);
        }
        outlier::report(&self.cluster, &self.endpoint, report);
    }

    /// Takes its share of the gauges and limits away; done by `Drop` at the latest.
    pub(super) fn release(&mut self) {
        if std::mem::replace(&mut self.released, true) {
            return;
        }
        let limits = if self.high_priority { &self.cluster.high_limits } else { &self.cluster.limits };
        limits.requests.fetch_sub(1, Relaxed);
        self.cluster.stats.upstream_rq_active().dec();
        self.endpoint.stats.rq_active.fetch_sub(1, Relaxed);
    }
}

impl Drop for UpstreamRequest {
    fn drop(&mut self) {
        self.release();
    }
}

impl Exchange {
    /// A request that has just come in. On the heap from the start: it is handed on from function to function until its response is sent.
    pub fn new(connection: Arc<Connection>, manager: Arc<HttpConnectionManager>, version: Version) -> Box<Self> {
        let stats = &manager.stats;
        stats.downstream_rq_total().inc();
        stats.downstream_rq_active().inc();
        match version {
            Version::HTTP_2 => stats.downstream_rq_http2_total().inc(),
            _ => stats.downstream_rq_http1_total().inc(),
        }
        Box::new(Exchange {
            remote: connection.remote,
            connection,
            manager,
            start: Instant::now(),
            version,
            origin: Origin::External,
            request: None,
            response: None,
            trailers: None,
            status: 0,
            details: None,
            flags: ResponseFlags::default(),
            route: None,
            virtual_host: None,
            upstream: None,
            cluster: None,
            upstream_failure: None,
            attempts: 0,
            response_start: None,
            progress: None,
            bytes_sent: 0,
            bytes_received: 0,
            unfinished: false,
            keep_alive: false,
            grpc: false,
            trace: None,
            set_cookies: Vec::new(),
            health_check: false,
            route_kri: None,
            held: Duration::ZERO,
            effects: None,
            complete: false,
        })
    }

    /// How much of a request may be kept, by its listener.
    pub(super) fn buffer_limit(&self, snapshot: &Snapshot) -> Option<u32> {
        snapshot.listener(self.connection.listener).map(|listener| listener.buffer_limit)
    }

    /// Whether all of the request is here.
    pub fn has_whole_request(&self) -> bool {
        !self.unfinished && self.progress.as_ref().is_none_or(|progress| progress.done().is_some())
    }

    /// Whether all of the request is in the upstream connection.
    pub fn is_handed_over(&self) -> bool {
        self.has_whole_request() && self.progress.as_ref().is_none_or(|progress| progress.is_handed_over())
    }

    /// Whether a log will want copies of heads and trailers.
    pub fn logs(&self) -> bool {
        !self.manager.access_log.is_empty() || self.is_traced()
    }

    /// The response is sent as far as we are concerned.
    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// A time limit ended the response after its headers were sent.
    pub fn abort(&mut self, flag: ResponseFlag) {
        self.complete = true;
        if flag != ResponseFlag::DurationTimeout {
            self.flags.set(flag);
        }
        let (details, cluster) = (&mut self.details, self.cluster.as_ref());
        match flag {
            ResponseFlag::StreamIdleTimeout => {
                self.manager.stats.downstream_rq_idle_timeout().inc();
                *details = Some("stream_idle_timeout".into());
            }
            ResponseFlag::UpstreamMaxStreamDuration => {
                if let Some(cluster) = cluster {
                    cluster.stats.upstream_rq_max_duration_reached().inc();
                }
                *details = Some("upstream_max_stream_duration_reached".into());
            }
            ResponseFlag::DurationTimeout => {
                self.manager.stats.downstream_rq_max_duration_reached().inc();
                *details = Some("max_duration_timeout".into());
            }
            _ => {
                if let Some(cluster) = cluster {
                    cluster.stats.upstream_rq_timeout().inc();
                }
                *details = Some("upstream_response_timeout".into());
            }
        }
        self.manager.stats.rq_reset_after_downstream_response_started().inc();
    }

    /// The upstream ended the response in its middle.
    pub fn upstream_broke_off(&mut self, error: &hyper::Error) {
        let text = error.to_string();
        let (flag, details) = if text.contains("stream error") || text.contains("reset") {
            (ResponseFlag::UpstreamRemoteReset, "upstream_reset_after_response_started{connection_termination}")
        } else if broken_by_protocol(error) || cut_short(error) {
            return self.upstream_went_wrong();
        } else {
            (
                ResponseFlag::UpstreamConnectionTermination,
                "upstream_reset_after_response_started{connection_termination}",
            )
        };
        self.upstream_reset(flag, details);
    }

    /// The response went on in a way that no message does.
    pub fn upstream_went_wrong(&mut self) {
        let details = "upstream_reset_after_response_started{protocol_error}";
        self.upstream_reset(ResponseFlag::UpstreamProtocolError, details);
    }

    fn upstream_reset(&mut self, flag: ResponseFlag, details: &'static str) {
        self.complete = true;
        self.flags.set(flag);
        self.details = Some(details.into());
        self.manager.stats.rq_reset_after_downstream_response_started().inc();
        if let Some(upstream) = &self.upstream {
            upstream.cluster.stats.upstream_rq_rx_reset().inc();
        }
    }

    /// Keeps of the request what may be asked for after it is gone: what logs show, and all of it for a trace or for headers of the response, which may
    /// show any.
    pub(super) fn keep_request(&mut self, head: &Head, matched: Option<Matched<'_>>) {
        let quotes = self.effects.as_ref().is_some_and(|effects| effects.quote_request());
        let all = quotes || self.is_traced() || matched.is_some_and(|matched| matched.has_response_headers());
        let headers = match all {
            true => KeptHeaders::All(head.headers.clone()),
            false if self.logs() || self.manager.always_set_request_id_in_response => {
                KeptHeaders::of(&head.headers, self.manager.access_log.request_headers())
            }
            false => return,
        };
        self.request = Some(Box::new(head.copy(headers)));
    }

    /// Keeps of the response's headers what logs show; all of them for a trace, whose tags may show any.
    pub fn keep_response(&mut self, headers: &HeaderMap) {
        self.response = Some(match self.is_traced() {
            true => KeptHeaders::All(headers.clone()),
            false => KeptHeaders::of(headers, self.manager.access_log.response_headers()),
        });
    }

    /// Whether its spans are sent.
    fn is_traced(&self) -> bool {
        self.trace.as_ref().is_some_and(|trace| trace.is_sent())
    }

    /// Keeps trailers for the log.
    pub fn keep_trailers(&mut self, trailers: Option<&HeaderMap>) {
        if self.logs() {
            self.trailers = trailers.cloned().map(Box::new);
        }
    }

    /// What logs and header values can ask for, as of now.
    pub fn record(&self) -> Record<'_> {
        let duration = self.start.elapsed();
        Record {
            connection: &self.connection,
            remote: self.remote,
            request: self.request.as_ref().map(|request| request.view()),
            version: Some(self.version),
            response: self.response.as_ref().map(KeptHeaders::view),
            trailers: self.trailers.as_deref(),
            status: self.status,
            details: self.details.as_deref(),
            termination: None,
            flags: self.flags,
            start: self.start,
            start_time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            request_done: match &self.progress {
                Some(progress) => progress.done(),
                None => Some(Duration::ZERO),
            },
            response_start: self.response_start,
            duration,
            bytes_received: self.bytes_received + self.progress.as_ref().map_or(0, |progress| progress.bytes()),
            bytes_sent: self.bytes_sent,
            route: self.route.as_deref(),
            virtual_host: self.virtual_host.as_deref(),
            cluster: self.cluster.as_deref(),
            endpoint: self.upstream.as_ref().map(|upstream| &*upstream.endpoint),
            upstream_version: self.upstream.as_ref().map(|upstream| upstream.version),
            upstream_local: self.upstream.as_ref().and_then(|upstream| upstream.local),
            upstream_failure: self.upstream_failure.as_deref(),
            downstream_failure: None,
            attempts: self.attempts,
            traced: self.trace.as_ref().is_some_and(|trace| trace.forced),
            trace: self.trace.as_ref().map(|trace| trace.ids()),
            only_connected: false,
            route_kri: self.route_kri.as_deref(),
        }
    }
}

impl Exchange {
    /// Ends the request's span, and that of its last try.
    fn end_trace(&mut self) {
        if let Some(mut upstream) = self.upstream.take() {
            trace::finish_try(self, &mut upstream, false);
            self.upstream = Some(upstream);
        }
        if let Some(trace) = self.trace.take()
            && let Some(tracing) = &self.manager.tracing
        {
            trace.finish(tracing, &self.record());
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(progress) = self.progress.as_ref().filter(|progress| progress.done().is_none()) {
            progress.abandon();
        }
        let stats = &self.manager.stats;
        stats.downstream_rq_active().dec();
        if !self.complete {
            if self.version == Version::HTTP_2 && !self.connection.gone.load(Relaxed) {
                self.flags.set(ResponseFlag::DownstreamRemoteReset);
                self.details = Some("http2.remote_reset".into());
            } else {
                self.flags.set(ResponseFlag::DownstreamConnectionTermination);
                self.details = Some("downstream_remote_disconnect".into());
            }
            stats.downstream_rq_rx_reset().inc();
            if let Some(upstream) = &self.upstream
                && self.status == 0
            {
                upstream.cluster.stats.upstream_rq_cancelled().inc();
            }
        }
        if self.status > 0 && !self.health_check {
            stats.downstream_rq_completed().inc();
            match StatusCode::from_u16(self.status).map_or(5, |status| status.as_u16() / 100) {
                1 => stats.downstream_rq_1xx().inc(),
                2 => stats.downstream_rq_2xx().inc(),
                3 => stats.downstream_rq_3xx().inc(),
                4 => stats.downstream_rq_4xx().inc(),
                _ => stats.downstream_rq_5xx().inc(),
            }
        }
        let now = Instant::now();
        stats.downstream_rq_time().record((now - self.start).as_millis() as u64);
        if let Some(upstream) = &self.upstream
            && self.response_start.is_some()
        {
            let took = (now - upstream.start).as_millis() as u64;
            upstream.cluster.stats.record_time(self.origin, took);
        }
        if self.logs() {
            record::write(&self.manager.access_log, &self.record());
        }
        if self.trace.is_some() {
            self.end_trace();
        }
    }
}
