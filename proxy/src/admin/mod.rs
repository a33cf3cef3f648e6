//! The admin interface: Envoy's endpoints on port 9901 or a pipe.
//!
//! Runs on the control thread and reads what the workers publish; nothing here takes a lock that the data path waits for. Long answers are made piece
//! by piece as the client takes them. Source: Envoy documentation, "Administration interface".

mod body;
pub mod certs;
mod clusters;
mod config_dump;
mod help;
mod histogram;
pub mod info;
mod inline_routes;
mod json;
mod listeners;
mod logging;
mod mask;
pub mod prometheus;
mod query;
mod readings;
mod redact;
mod server;
mod stats;
pub mod tags;

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Method, Request, Response, StatusCode, Uri, header};
use tokio::sync::oneshot;

pub use body::Body;
pub use server::{Listener, serve};

use crate::{
    server_stats,
    state::{Command, ServerState, State},
};
use query::Query;

const TEXT: &str = "text/plain; charset=UTF-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=UTF-8";

/// What a socket of the interface lets its clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// Nothing that changes the process.
    ReadOnly,
}

/// Answers one request.
pub async fn answer<B>(state: &Rc<State>, request: Request<B>, access: Access) -> Response<Body> {
    let (method, uri) = (request.method(), request.uri());
    let path = match uri.path() {
        "" => "/",
        path => path,
    };
    let Some(endpoint) = help::ENDPOINTS.iter().find(|endpoint| endpoint.path == path) else {
        return reply(StatusCode::NOT_FOUND, TEXT, format!("invalid path. {}", help::text()));
    };
    if endpoint.post && access == Access::ReadOnly {
        return reply(
            StatusCode::FORBIDDEN,
            TEXT,
            format!("{path} changes the process, which only the admin interface's Unix socket may do.\n"),
        );
    }
    if endpoint.post && *method != Method::POST {
        return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, format!("Method {method} not allowed, POST required."));
    }
    if *method != Method::GET && *method != Method::POST && *method != Method::HEAD {
        return reply(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            format!("Method {method} not allowed, GET or POST required."),
        );
    }
    route(state, endpoint.path, uri).await
}

async fn route(state: &Rc<State>, path: &str, uri: &Uri) -> Response<Body> {
    let query = Query::parse(uri.query().unwrap_or_default());
    match path {
        "/" => reply(StatusCode::OK, HTML, help::page()),
        "/help" => reply(StatusCode::OK, TEXT, help::text()),
        "/ready" => ready(state),
        "/server_info" => reply(StatusCode::OK, JSON, json::document(&info::server(state))),
        "/memory" => reply(StatusCode::OK, JSON, json::document(&info::memory())),
        "/runtime" => reply(StatusCode::OK, JSON, json::document(&info::runtime(state))),
        "/init_dump" => reply(StatusCode::OK, JSON, json::document(&init_dump(state))),
        "/unsupported" => reply(StatusCode::OK, JSON, json::document(&info::unsupported(state))),
        "/hot_restart_version" => reply(StatusCode::OK, TEXT, info::HOT_RESTART_VERSION.into()),
        "/certs" => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs() as i64);
            reply(StatusCode::OK, JSON, json::document(&certs::json(&state.snapshot.borrow(), now)))
        }
        "/listeners" => match query.value("format") {
            Some("json") => reply(StatusCode::OK, JSON, json::document(&listeners::json(&state.listeners()))),
            _ => reply(StatusCode::OK, TEXT, listeners::text(&state.listeners())),
        },
        "/clusters" => clusters(state, &query),
        "/config_dump" => match config_dump::Dump::new(state.clone(), &query) {
            Ok(dump) => streamed(JSON, Body::ConfigDump(Box::new(dump))),
            Err(config_dump::DumpError::Bad(text)) => reply(StatusCode::BAD_REQUEST, TEXT, text),
            Err(config_dump::DumpError::NotFound(text)) => reply(StatusCode::NOT_FOUND, TEXT, text),
        },
        "/stats" => match stats::format(&query) {
            Ok(stats::Format::Prometheus) => prometheus_stats(state, &query).await,
            Ok(format) => all_stats(state, &query, format == stats::Format::Json),
            Err(text) => reply(StatusCode::BAD_REQUEST, TEXT, text),
        },
        "/stats/prometheus" => prometheus_stats(state, &query).await,
        "/stats/recentlookups" => reply(
            StatusCode::OK,
            TEXT,
            "Lookups of stat names are not recorded: names are resolved when configuration is compiled.\n".into(),
        ),
        "/reset_counters" => {
            for group in state.registry.groups() {
                group.reset_counters();
            }
            ok()
        }
        "/logging" => logging::answer(&state.logging, &query),
        "/reopen_logs" => {
            state.access_logs.reopen();
            state.logging.reopen();
            ok()
        }
        "/healthcheck/fail" => {
            command(state, Command::FailHealthCheck).await;
            ok()
        }
        "/healthcheck/ok" => {
            command(state, Command::PassHealthCheck).await;
            ok()
        }
        "/drain_listeners" => {
            let (inbound_only, graceful, skip_exit) =
                (query.has("inboundonly"), query.has("graceful"), query.has("skip_exit"));
            command(state, |done| Command::DrainListeners { inbound_only, graceful, skip_exit, done }).await;
            ok()
        }
        "/quitquitquit" => {
            // A full queue means that the loop is about to read; the answer may go out first.
            let _ = state.commands.send(Command::Quit).await;
            ok()
        }
        "/contention" => reply(
            StatusCode::OK,
            TEXT,
            "Mutex contention tracing is not enabled: the data path takes no locks that could be traced.\n".into(),
        ),
        "/runtime_modify" => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, "No admin layer specified".into()),
        "/cpuprofiler" | "/heapprofiler" | "/heap_dump" => reply(
            StatusCode::NOT_IMPLEMENTED,
            TEXT,
            format!("{path}: not supported; use the system's tools (perf, heaptrack) on this process\n"),
        ),
        _ => reply(StatusCode::NOT_FOUND, TEXT, format!("invalid path. {}", help::text())),
    }
}

async fn command(state: &State, make: impl FnOnce(oneshot::Sender<()>) -> Command) {
    let (done, wait) = oneshot::channel();
    if state.commands.send(make(done)).await.is_ok() {
        // The loop may be ending; then what was asked for is happening anyway.
        let _ = wait.await;
    }
}

/// `/ready`
pub fn ready(state: &State) -> Response<Body> {
    let now = state.server_state();
    let status = if now == ServerState::Live { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    reply(status, TEXT, format!("{}\n", now.name()))
}

fn init_dump(state: &State) -> serde_json::Value {
    if state.initialized.get() {
        return serde_json::json!({});
    }
    let warming: Vec<_> = state
        .warming
        .borrow()
        .iter()
        .map(|warming| serde_json::json!({"name": format!("{} {}", warming.type_url, warming.name), "target_names": warming.waits_for}))
        .collect();
    serde_json::json!({"unready_targets_dumps": warming})
}

fn all_stats(state: &State, query: &Query, as_json: bool) -> Response<Body> {
    let (selection, display) =
        match stats::Selection::new(query).and_then(|selection| Ok((selection, stats::display(query)?))) {
            Ok(parameters) => parameters,
            Err(text) => return reply(StatusCode::BAD_REQUEST, TEXT, text),
        };
    server_stats::refresh(state);
    let listing = stats::Listing::new(state.registry.groups(), selection, display, as_json);
    streamed(if as_json { JSON } else { TEXT }, Body::Stats(Box::new(listing)))
}

async fn prometheus_stats(state: &State, query: &Query) -> Response<Body> {
    let selection = match stats::Selection::new(query) {
        Ok(selection) => selection,
        Err(text) => return reply(StatusCode::BAD_REQUEST, TEXT, text),
    };
    let summaries = match query.value("histogram_buckets") {
        None | Some("" | "cumulative") => false,
        Some("summary") => true,
        Some(_) => return reply(StatusCode::BAD_REQUEST, TEXT, "unsupported prometheus histogram bucket mode".into()),
    };
    server_stats::refresh(state);
    let mut exposition = prometheus::Exposition::new(state.registry.groups(), state.tags.clone(), &selection).await;
    if summaries {
        exposition.summarize();
    }
    if let Some(dns) = &state.dns
        && query.value("filter").is_none_or(str::is_empty)
    {
        exposition.push(&dns.exposition());
    }
    streamed(TEXT, Body::Prometheus(Box::new(exposition)))
}

/// What `/stats?format=prometheus` would write, for the metrics endpoint of a sidecar; `None` where the query is refused.
pub async fn own_metrics(state: &State, unused: bool, query: &str) -> Option<prometheus::Exposition> {
    let mut selection = stats::Selection::new(&Query::parse(query)).ok()?;
    selection.used_only |= !unused;
    server_stats::refresh(state);
    Some(prometheus::Exposition::new(state.registry.groups(), state.tags.clone(), &selection).await)
}

fn clusters(state: &State, query: &Query) -> Response<Body> {
    let filter = match query.value("filter").filter(|filter| !filter.is_empty()).map(regex::Regex::new) {
        None => None,
        Some(Ok(filter)) => Some(filter),
        Some(Err(_)) => return reply(StatusCode::BAD_REQUEST, TEXT, "Invalid re2 regex\n".into()),
    };
    let snapshot = Arc::clone(&state.snapshot.borrow());
    let clusters = snapshot
        .clusters
        .iter()
        .flatten()
        .filter(|cluster| filter.as_ref().is_none_or(|filter| filter.is_match(&cluster.name)))
        .cloned()
        .collect();
    let dynamic = {
        let compiler = state.compiler.borrow();
        compiler
            .store()
            .of(shika_proto::type_url::CLUSTER)
            .map(|store| store.dynamic.keys().cloned().collect())
            .unwrap_or_default()
    };
    let as_json = query.value("format") == Some("json");
    streamed(
        if as_json { JSON } else { TEXT },
        Body::Clusters(Box::new(clusters::Listing::new(clusters, dynamic, as_json))),
    )
}

fn ok() -> Response<Body> {
    reply(StatusCode::OK, TEXT, "OK\n".into())
}

fn reply(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    let mut response = streamed(content_type, Body::Text(Some(text.into())));
    *response.status_mut() = status;
    response
}

fn streamed(content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-cache, max-age=0"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::SERVER, "envoy"),
    ] {
        headers.insert(name, header::HeaderValue::from_static(value));
    }
    response
}

/// How long a client may take for the head of a request.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
