//! The metrics endpoint that control planes route Prometheus to: the proxy's own and the workload's applications' in one answer.
//!
//! HTTP on a Unix socket in the work directory. `/meshmetric…` is MeshMetric's: applications and what is shown come from the document of that name.
//! Any other path is that of Kuma's older `Mesh.metrics`: the applications of the bootstrap answer. Source: Kuma `app/kuma-dp/pkg/dataplane/metrics`.

mod config;
mod exposition;
mod own;
mod profile;

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::Full;
use tracing::{info, warn};

use super::{
    fetch,
    http_server::{self, Socket},
};
use crate::state::State;
pub use config::Application;
use config::Config;
use exposition::{Family, Format, Kind, Merged, Sample, Writer, escape, parse, render};

/// Scrapes at once; more wait.
const MAX_CONNECTIONS: usize = 16;
/// Largest answer of an application, bytes.
const MAX_BODY: usize = 64 * 1024 * 1024;
/// Applications asked at once.
const MAX_AT_ONCE: usize = 16;
/// How long an application may take where the scraper does not say how long it waits itself.
const TIMEOUT: Duration = Duration::from_secs(8);
/// What Prometheus says how long it waits, seconds.
const SCRAPE_TIMEOUT: HeaderName = HeaderName::from_static("x-prometheus-scrape-timeout-seconds");

/// What the endpoint has to know of the sidecar.
pub struct Setup {
    /// The socket's file.
    pub socket: PathBuf,
    /// The proxy's address, where applications are that name none of their own.
    pub address: Option<String>,
    /// Connections come from the address that is not redirected.
    pub transparent: bool,
    /// Applications of the bootstrap.
    pub aggregate: Vec<Application>,
}

/// The endpoint. Lives on the control thread.
pub struct Metrics {
    setup: Setup,
    config: RefCell<Arc<Config>>,
    /// Whether an application answered last time.
    answers: RefCell<BTreeMap<String, bool>>,
}

impl Metrics {
    /// Without MeshMetric's document: no applications, the profile `Basic`.
    pub fn new(setup: Setup) -> Metrics {
        Metrics { setup, config: RefCell::default(), answers: RefCell::default() }
    }

    /// Puts the control plane's document in force. Returns what of it was left out, with its place.
    ///
    /// # Errors
    /// It is not the document that it should be; the one before it stays.
    pub fn configure(&self, document: &[u8]) -> Result<Vec<String>, String> {
        let (config, left_out) = Config::parse(document)?;
        // What is not asked any more is neither up nor down.
        self.answers.borrow_mut().retain(|key, _| {
            config.applications.iter().chain(&self.setup.aggregate).any(|application| application.key() == *key)
        });
        *self.config.borrow_mut() = Arc::new(config);
        Ok(left_out)
    }
}

/// Binds the socket.
///
/// # Errors
/// The path and what the kernel says.
pub fn bind(metrics: &Metrics) -> Result<Socket, String> {
    Socket::unix("metrics", &metrics.setup.socket)
}

/// Serves until the task is dropped. Has to run in a [`tokio::task::LocalSet`].
pub async fn serve(socket: Socket, metrics: Rc<Metrics>, state: Rc<State>) {
    let answer = move |request: Request<hyper::body::Incoming>| {
        let (metrics, state) = (metrics.clone(), state.clone());
        async move {
            if request.uri().path().starts_with("/meshmetric") {
                metrics.mesh_metric(&state, request.headers()).await
            } else {
                metrics.aggregate(&state, request.uri().query().unwrap_or_default(), request.headers()).await
            }
        }
    };
    http_server::serve("metrics", socket, MAX_CONNECTIONS, answer).await;
}

/// An application's answer.
struct Scraped {
    format: Option<Format>,
    body: Bytes,
}

impl Metrics {
    /// MeshMetric: parsed, filtered, labelled, merged by family.
    async fn mesh_metric(&self, state: &Rc<State>, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let config = self.config.borrow().clone();
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let format = Format::accepted(accept);
        // What an application gives besides is not needed: all are read as text.
        let mut forwarded = HeaderMap::new();
        forwarded.insert(header::ACCEPT, HeaderValue::from_static("text/plain;version=0.0.4;q=0.9,*/*;q=0.1"));
        let scraped = self.scrape(&config.applications, forwarded, headers).await;
        let mut merged = Merged::default();
        merged.add(vec![self.up()]);
        if let Some(dns) = &state.dns {
            merged.add(parse(&dns.exposition(), Format::Text).unwrap_or_default());
        }
        for (application, scraped) in config.applications.iter().zip(scraped) {
            let Some(scraped) = scraped else { continue };
            let text = String::from_utf8_lossy(&scraped.body);
            match parse(&text, scraped.format.unwrap_or(Format::Text)) {
                Ok(mut families) => {
                    for family in &mut families {
                        family.add_labels(&config.extra_labels);
                    }
                    let left_out = merged.add(families);
                    if left_out > 0 {
                        tracing::debug!(
                            "metrics of {}: {left_out} samples are another application's too",
                            application.key()
                        );
                    }
                }
                Err(error) => self.note(application, Err(format!("its metrics cannot be read: {error}"))),
            }
            tokio::task::yield_now().await;
        }
        let mut writer = Writer::new(format);
        let mut own = own::Families::new(state, config.include_unused, "").await;
        while let Some(mut family) = own.next().await {
            let name = family.name.clone();
            let admitted = config.profile.admit(&mut family);
            if admitted {
                family.add_labels(&config.extra_labels);
            }
            let other = merged.take(&name);
            match (admitted, other) {
                (true, Some(other)) => {
                    let mut both = Merged::default();
                    both.add(vec![family]);
                    both.add(vec![other]);
                    both.rest().for_each(|family| writer.write(&family));
                }
                (true, None) => writer.write(&family),
                (false, Some(other)) => writer.write(&other),
                (false, None) => {}
            }
        }
        for family in merged.rest() {
            writer.write(&family);
        }
        response(format, writer.finish())
    }

    /// `Mesh.metrics`: everything the proxy has, and the applications' texts as they are.
    async fn aggregate(&self, state: &Rc<State>, query: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let mut forwarded = HeaderMap::new();
        for name in [header::ACCEPT, header::USER_AGENT, SCRAPE_TIMEOUT] {
            if let Some(value) = headers.get(&name) {
                forwarded.insert(name, value.clone());
            }
        }
        let scraped = self.scrape(&self.setup.aggregate, forwarded, headers).await;
        // The best that an answer is in; the proxy's own is text.
        let format = scraped.iter().flatten().filter_map(|scraped| scraped.format).max().unwrap_or(Format::Text);
        let mut writer = Writer::new(Format::Text);
        let mut own = own::Families::new(state, true, query).await;
        while let Some(mut family) = own.next().await {
            own::merge_clusters(&mut family);
            writer.write(&family);
        }
        writer.write(&self.up());
        let mut text = writer.finish();
        if let Some(dns) = &state.dns {
            text.push_str(&dns.exposition());
        }
        for scraped in scraped.into_iter().flatten() {
            let body = String::from_utf8_lossy(&scraped.body);
            let body = body.trim_end();
            for line in body.strip_suffix("# EOF").unwrap_or(body).lines().filter(|line| !line.trim().is_empty()) {
                text.push_str(line);
                text.push('\n');
            }
        }
        if format != Format::Text {
            text.push_str("# EOF\n");
        }
        response(format, text)
    }

    /// Asks all applications, in time for the scraper to get an answer. One that fails has none.
    async fn scrape(
        &self,
        applications: &[Application],
        forwarded: HeaderMap,
        asked: &HeaderMap,
    ) -> Vec<Option<Scraped>> {
        let patience = asked
            .get(SCRAPE_TIMEOUT)
            .and_then(|value| value.to_str().ok()?.parse::<f64>().ok())
            .and_then(|seconds| Duration::try_from_secs_f64(seconds * 0.8).ok());
        let patience = patience.unwrap_or(TIMEOUT).clamp(Duration::from_millis(100), Duration::from_secs(60));
        let deadline = tokio::time::Instant::now() + patience;
        let mut all = Vec::with_capacity(applications.len());
        for group in applications.chunks(MAX_AT_ONCE) {
            let scrapes = group.iter().map(|application| async {
                let scraped = tokio::time::timeout_at(deadline, self.ask(application, &forwarded)).await;
                let scraped = scraped.unwrap_or_else(|_| Err(format!("no answer within {} ms", patience.as_millis())));
                match scraped {
                    Ok(scraped) => {
                        self.note(application, Ok(()));
                        Some(scraped)
                    }
                    Err(error) => {
                        self.note(application, Err(error));
                        None
                    }
                }
            });
            all.extend(join_all(scrapes).await);
        }
        all
    }

    async fn ask(&self, application: &Application, forwarded: &HeaderMap) -> Result<Scraped, String> {
        let host = match (&application.address, &self.setup.address) {
            (Some(address), _) | (None, Some(address)) => address.as_str(),
            (None, None) => return Err("its address is not known".into()),
        };
        let mut headers = forwarded.clone();
        let authority = HeaderValue::from_str(&fetch::authority(host, application.port));
        headers.insert(header::HOST, authority.map_err(|error| format!("address {host:?}: {error}"))?);
        let stream = fetch::connect(host, application.port, self.setup.transparent)
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let fetched = fetch::get(stream, &application.path, headers, MAX_BODY).await?;
        if fetched.status != http::StatusCode::OK {
            return Err(format!("it answers {}", fetched.status));
        }
        if fetched.cut {
            return Err(format!("it answers with more than {MAX_BODY} bytes"));
        }
        let content_type = fetched.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        Ok(Scraped { format: content_type.and_then(Format::of_content_type), body: fetched.body })
    }

    /// Says once when an application stops or starts giving metrics.
    fn note(&self, application: &Application, result: Result<(), String>) {
        let before = self.answers.borrow_mut().insert(application.key(), result.is_ok());
        match result {
            Ok(()) if before == Some(false) => info!("metrics of {} are there again", application.key()),
            Err(error) if before != Some(false) => warn!("no metrics of {}: {error}", application.key()),
            Ok(()) | Err(_) => {}
        }
    }

    /// Which applications answered: a scrape succeeds without them.
    fn up(&self) -> Family {
        let answers = self.answers.borrow();
        let samples = answers.iter().map(|(key, up)| Sample {
            name: "shika_application_metrics_up".into(),
            labels: render([("application", escape(key).as_str())]),
            value: u8::from(*up).to_string(),
            timestamp: None,
        });
        Family {
            name: "shika_application_metrics_up".into(),
            kind: Kind::Gauge,
            help: "Whether the application gave its metrics last time.".into(),
            samples: samples.collect(),
        }
    }
}

fn response(format: Format, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response
}
