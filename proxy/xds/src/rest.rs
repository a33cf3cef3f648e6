//! REST discovery: a question is posted as JSON again and again; an answer is a whole state, or that nothing has changed.
//!
//! Source: Envoy documentation, "xDS REST and gRPC protocol", "REST-JSON polling subscriptions".

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Method, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rand::Rng;
use shika_data::model::cluster::{Cluster, UpstreamProtocol};
use shika_proto::{
    envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse},
    json::{self, Names},
    type_url,
};
use tokio::{sync::mpsc, time};

use crate::{
    ads::{Request, Response},
    client::{self, Event, LARGEST_MESSAGE},
};

/// Spread of the questions, as Envoy's: a fleet does not ask all at once.
const JITTER: Duration = Duration::from_secs(1);

/// `refresh_delay` and what is added to it at random: up to a second, but no more than the delay itself.
pub(crate) fn jittered(refresh: Duration) -> Duration {
    refresh + JITTER.min(refresh).mul_f64(rand::rng().random_range(0.0..1.0))
}

/// Where a type is asked for. Source: the `google.api.http` options of the discovery services.
pub(crate) fn path(kind: &str) -> Option<&'static str> {
    Some(match kind {
        type_url::CLUSTER => "/v3/discovery:clusters",
        type_url::ENDPOINT => "/v3/discovery:endpoints",
        type_url::LISTENER => "/v3/discovery:listeners",
        type_url::ROUTE => "/v3/discovery:routes",
        type_url::SECRET => "/v3/discovery:secrets",
        type_url::RUNTIME => "/v3/discovery:runtime",
        _ => return None,
    })
}

/// Questions about one type.
pub(crate) struct Poll {
    pub path: &'static str,
    pub refresh: Duration,
    pub timeout: Duration,
    pub cluster: Arc<Cluster>,
    pub next: Arc<AtomicUsize>,
}

/// A connection that questions go out on.
enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Poll {
    /// Asks until a question fails; why it did.
    pub async fn run(&self, events: &mpsc::Sender<Event>) -> String {
        let (requests, mut asked) = mpsc::channel(1);
        if events.send(Event::Connected { requests }).await.is_err() {
            return "shutting down".into();
        }
        // The names that the last answer was for.
        let (mut sender, mut accepted, mut answered) = (None, false, None);
        // What is wanted, and the version that is held: every acknowledgement brings it up to date.
        let Some(mut question) = newest(&mut asked).await else { return "shutting down".into() };
        loop {
            // A server without memory cannot know that the version which is held lacks names that are new: it is asked as if nothing was held.
            if answered.as_ref() != Some(&question.resource_names) {
                question.version_info.clear();
            }
            let answer = match time::timeout(self.timeout, self.ask(&mut sender, &question)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(reason)) => return reason,
                Err(_) => return format!("no answer to {} within {:?}", self.path, self.timeout),
            };
            if !std::mem::replace(&mut accepted, true) && events.send(Event::Accepted).await.is_err() {
                return "shutting down".into();
            }
            if let Some(mut answer) = answer {
                answered = Some(question.resource_names.clone());
                // Nothing but the path says of which type an answer is.
                answer.type_url.clone_from(&question.type_url);
                if events.send(Event::Response(Response::Sotw(answer))).await.is_err() {
                    return "shutting down".into();
                }
            }
            let pause = time::sleep(jittered(self.refresh));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    next = newest(&mut asked) => match next {
                        // Other names are asked for at once.
                        Some(next) if next.resource_names != question.resource_names => {
                            question = next;
                            break;
                        }
                        Some(next) => question = next,
                        None => return "shutting down".into(),
                    },
                }
            }
        }
    }

    /// `None`: nothing has changed.
    async fn ask(
        &self,
        sender: &mut Option<Sender>,
        question: &DiscoveryRequest,
    ) -> Result<Option<DiscoveryResponse>, String> {
        let failed = |what: &dyn std::fmt::Display| format!("{}: {what}", self.path);
        let body = json::to_json_value(question, Names::Proto).map_err(|error| failed(&error))?.to_string();
        let request = http::Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| failed(&error))?;
        if !sender.as_ref().is_some_and(Sender::usable) {
            *sender = Some(self.connect().await?);
        }
        let answer = match sender {
            Some(Sender::Http1(sender)) => sender.send_request(self.addressed(request, false)?).await,
            Some(Sender::Http2(sender)) => sender.send_request(self.addressed(request, true)?).await,
            None => return Err(failed(&"not connected")),
        }
        .map_err(|error| failed(&client::chain(&error)))?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED => return Ok(None),
            other => return Err(failed(&format_args!("the answer is {other}"))),
        }
        let body = Limited::new(answer.into_body(), LARGEST_MESSAGE).collect().await;
        let body = body.map_err(|error| failed(&client::chain(&*error)))?.to_bytes();
        let text = std::str::from_utf8(&body).map_err(|_| failed(&"the answer is not UTF-8"))?;
        json::from_json_str::<DiscoveryResponse>(text)
            .map(Some)
            .map_err(|errors| failed(&errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
    }

    /// Gives a question its place: the host is the cluster's name, as in Envoy.
    fn addressed<B>(&self, mut request: http::Request<B>, absolute: bool) -> Result<http::Request<B>, String> {
        let uri = if absolute { format!("http://{}{}", self.cluster.name, self.path) } else { self.path.to_owned() };
        let bad = || format!("cluster {:?} has a name that cannot be a host", self.cluster.name);
        *request.uri_mut() = uri.parse().map_err(|_| bad())?;
        if !absolute {
            request.headers_mut().insert(header::HOST, self.cluster.name.parse().map_err(|_| bad())?);
        }
        Ok(request)
    }

    async fn connect(&self) -> Result<Sender, String> {
        let failed = |error: &dyn std::error::Error| format!("{}: {}", self.path, client::chain(error));
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let http2 = self.cluster.protocol == UpstreamProtocol::Http2;
        let alpn: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
        let socket = time::timeout(self.cluster.connect_timeout, client::connect(&self.cluster, at, alpn)).await;
        let socket = socket.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        // The connection lives as long as its sender; how it ends shows in the next question.
        if http2 {
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
            let (sender, connection) = shaken.map_err(|error| failed(&error))?;
            tokio::spawn(connection);
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(|error| failed(&error))?;
            tokio::spawn(connection);
            Ok(Sender::Http1(sender))
        }
    }
}

impl Sender {
    fn usable(&self) -> bool {
        match self {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender) => sender.is_ready(),
        }
    }
}

/// The next question there is; `None` when nobody asks any more.
async fn newest(asked: &mut mpsc::Receiver<Request>) -> Option<DiscoveryRequest> {
    loop {
        if let Request::Sotw(question) = asked.recv().await? {
            return Some(question);
        }
    }
}
