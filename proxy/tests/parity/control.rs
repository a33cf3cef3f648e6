//! A scripted control plane: an `h2` upstream that hands resources out over ADS, as state of the world or as deltas, whichever the subject
//! asks for. Answers of the subject are waited for by their version, so that a step after an update finds it applied or refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::{Buf as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use serde_json::{Map, Value, json};
use shika_proto::json::{self as proto, Names, Options};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::case::Update;
use crate::run::Run;
use crate::wire::PATIENCE;

/// Types of which a subject wants all there are when it names none.
const WILDCARD: [&str; 2] = ["envoy.config.listener.v3.Listener", "envoy.config.cluster.v3.Cluster"];

/// What a control plane serves now: by type and name.
#[derive(Debug, Default, Clone)]
pub struct Served {
    /// Raised with each update; it is the version of every answer.
    version: u64,
    resources: BTreeMap<(String, String), Value>,
}

impl Served {
    /// From the resources of a case, placeholders filled in.
    pub fn new(resources: &[Value]) -> Result<Self> {
        let mut served = Served { version: 1, ..Served::default() };
        for resource in resources {
            served.resources.insert(key(resource)?, resource.clone());
        }
        Ok(served)
    }

    fn of_type(&self, kind: &str) -> BTreeMap<&str, &Value> {
        let of_type = self.resources.iter().filter(|((of, _), _)| of == kind);
        of_type.map(|((_, name), value)| (name.as_str(), value)).collect()
    }
}

/// Type and name of a resource.
fn key(resource: &Value) -> Result<(String, String)> {
    let text = |key: &str| resource.get(key).and_then(Value::as_str).map(str::to_owned);
    let kind = text("@type").context("a resource has an `@type`")?;
    let name = text("name").or(text("cluster_name")).context("a resource has a name")?;
    Ok((kind.rsplit('/').next().unwrap_or_default().to_owned(), name))
}

/// What a subject said about one type.
#[derive(Debug, Default, Clone)]
pub struct Answer {
    /// The last version that it took or refused.
    version: u64,
    refused: bool,
    /// Names that it has ever asked for; none: all.
    names: BTreeSet<String>,
}

/// Replaces, adds and removes resources, and waits until the subject has answered for their types.
pub async fn update(run: &Run, update: &Update, path: &str) {
    let miss = |what: String| run.recorder.miss(format!("{path}: {what}"));
    let (Some(serving), Some(seen)) = (run.serving.get(&update.upstream), run.seen.get(&update.upstream)) else {
        return miss(format!("no control plane `{}`", update.upstream));
    };
    let mut types = BTreeSet::new();
    serving.send_modify(|served| {
        served.version += 1;
        for resource in &update.set {
            match run.filled(resource).and_then(|resource| Ok((key(&resource)?, resource))) {
                Ok((key, resource)) => {
                    types.insert(key.0.clone());
                    served.resources.insert(key, resource);
                }
                Err(error) => miss(format!("{error:#}")),
            }
        }
        served.resources.retain(|(kind, name), _| {
            let removed = update.remove.contains(name);
            if removed {
                types.insert(kind.clone());
            }
            !removed
        });
    });
    let version = serving.borrow().version;
    for kind in types {
        let mut answered = seen.subscribe();
        let answer = timeout(
            PATIENCE,
            answered.wait_for(|seen| seen.answers.get(&kind).is_some_and(|answer| answer.version >= version)),
        )
        .await;
        let refused = match &answer {
            Ok(Ok(seen)) => seen.answers.get(&kind).is_some_and(|answer| answer.refused),
            Ok(Err(_)) | Err(_) => {
                miss(format!("no answer for {kind}"));
                continue;
            }
        };
        let short = kind.rsplit('.').next().unwrap_or_default();
        run.recorder.note(&format!("{path}.{short}"), if refused { "refused" } else { "taken" });
        run.recorder.expect_text(&format!("{path}.{short}"), if update.refused { "refused" } else { "taken" });
    }
}

/// Notes what the subject asked for and how it took it, once it has answered for all that it was sent.
pub async fn settle(run: &Run, name: &str) {
    let (Some(serving), Some(seen)) = (run.serving.get(name), run.seen.get(name)) else { return };
    let path = format!("upstream.{name}.xds");
    let version = serving.borrow().version;
    let kinds: BTreeSet<String> = serving.borrow().resources.keys().map(|(kind, _)| kind.clone()).collect();
    let answered = |answers: &BTreeMap<String, Answer>| {
        kinds.iter().all(|kind| answers.get(kind).is_some_and(|answer| answer.version >= 1))
    };
    if timeout(PATIENCE, seen.subscribe().wait_for(|seen| answered(&seen.answers))).await.is_err() {
        let answers = seen.borrow().answers.clone();
        run.recorder.miss(format!("{path}: not everything is answered at version {version}: {answers:?}"));
    }
    for (kind, answer) in &seen.borrow().answers {
        let names = answer.names.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        run.recorder.note(&format!("{path}.{kind}"), if names.is_empty() { "all" } else { &names });
    }
}

/// Whether this is the path of a discovery stream.
pub fn is_discovery(path: &str) -> bool {
    path.starts_with("/envoy.service.discovery.v3.AggregatedDiscoveryService/")
}

/// Serves one stream until the subject ends it.
pub async fn serve(run: Arc<Run>, name: String, request: http::Request<RecvStream>, respond: SendResponse<Bytes>) {
    let delta = request.uri().path().ends_with("DeltaAggregatedResources");
    let path = format!("upstream.{name}.stream");
    run.recorder.note(&format!("{path}.path"), request.uri().path());
    // Which other headers a gRPC client sends is its own affair.
    for header in ["authorization", "content-type", "te"] {
        let value = request.headers().get(header).and_then(|value| value.to_str().ok()).unwrap_or("(none)");
        run.recorder.note(&format!("{path}.header.{header}"), value);
    }
    if let Err(error) = stream(&run, &name, delta, request.into_body(), respond).await {
        run.recorder.miss(format!("{path}: {error:#}"));
    }
}

/// One type on one stream.
#[derive(Debug, Default)]
struct Subscription {
    names: BTreeSet<String>,
    /// What was sent of it: version and text of each resource.
    sent: BTreeMap<String, String>,
    /// Version of the last response, and whether there was one.
    version: u64,
}

async fn stream(
    run: &Run,
    name: &str,
    delta: bool,
    mut body: RecvStream,
    mut respond: SendResponse<Bytes>,
) -> Result<()> {
    let serving = run.serving.get(name).context("no resources")?;
    let seen = run.seen.get(name).context("no such upstream")?;
    let mut changes: watch::Receiver<Served> = serving.subscribe();
    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let mut out = respond.send_response(head, false)?;
    let mut subscriptions: BTreeMap<String, Subscription> = BTreeMap::new();
    let mut buffer = BytesMut::new();
    loop {
        tokio::select! {
            chunk = body.data() => {
                // However the subject ends the stream, it is over.
                let Some(Ok(chunk)) = chunk else { return Ok(()) };
                let _ = body.flow_control().release_capacity(chunk.len());
                buffer.extend_from_slice(&chunk);
                while let Some(message) = next_message(&mut buffer) {
                    let kind = if delta { "DeltaDiscoveryRequest" } else { "DiscoveryRequest" };
                    let request = proto::wire_to_json_value(&format!("envoy.service.discovery.v3.{kind}"), &message, Names::Proto)?;
                    let kind = request.get("type_url").and_then(Value::as_str).unwrap_or_default();
                    let kind = kind.rsplit('/').next().unwrap_or_default().to_owned();
                    let subscription = subscriptions.entry(kind.clone()).or_default();
                    note_request(run, name, &request);
                    let asked = subscribe(subscription, &request, delta);
                    if let Some(version) = request.get("response_nonce").and_then(Value::as_str).and_then(|nonce| nonce.parse::<u64>().ok()) {
                        let refused = request.get("error_detail").is_some();
                        seen.send_modify(|seen| {
                            let answer = seen.answers.entry(kind.clone()).or_default();
                            answer.version = version;
                            answer.refused = refused;
                        });
                    }
                    let names = subscription.names.clone();
                    seen.send_modify(|seen| seen.answers.entry(kind.clone()).or_default().names.extend(names));
                    if asked {
                        let served = changes.borrow().clone();
                        send(&mut out, &kind, subscription, &served, delta, true)?;
                    }
                }
            }
            changed = changes.changed() => {
                changed?;
                let served = changes.borrow_and_update().clone();
                for (kind, subscription) in &mut subscriptions {
                    send(&mut out, kind, subscription, &served, delta, false)?;
                }
            }
        }
    }
}

/// The node comes with the first request of a stream.
fn note_request(run: &Run, name: &str, request: &Value) {
    if let Some(node) = request.get("node") {
        for key in ["id", "cluster"] {
            let value = node.get(key).and_then(Value::as_str).unwrap_or("(none)");
            run.recorder.note(&format!("upstream.{name}.node.{key}"), value);
        }
    }
}

/// Takes the names of a request; says whether it asks for anything new.
fn subscribe(subscription: &mut Subscription, request: &Value, delta: bool) -> bool {
    let names = |key: &str| -> BTreeSet<String> {
        let list = request.get(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let first = subscription.version == 0;
    if delta {
        let (new, old) = (names("resource_names_subscribe"), names("resource_names_unsubscribe"));
        let asked = !new.is_empty();
        for name in &new {
            // A name that is asked for again is sent again.
            subscription.sent.remove(name);
        }
        subscription.names.extend(new.into_iter().filter(|name| name != "*"));
        for name in &old {
            subscription.names.remove(name);
            subscription.sent.remove(name);
        }
        return first || asked;
    }
    let names = names("resource_names");
    let changed = names != subscription.names;
    subscription.names = names;
    first || changed
}

/// Sends what the subject does not have. `asked`: an answer is owed, even if an empty one, where all of a type is wanted.
fn send(
    out: &mut SendStream<Bytes>,
    kind: &str,
    subscription: &mut Subscription,
    served: &Served,
    delta: bool,
    asked: bool,
) -> Result<()> {
    let all = served.of_type(kind);
    let wildcard = subscription.names.is_empty() && WILDCARD.contains(&kind);
    let wanted: BTreeMap<&str, &Value> =
        all.into_iter().filter(|(name, _)| wildcard || subscription.names.contains(*name)).collect();
    let texts: BTreeMap<String, String> =
        wanted.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect();
    if !asked && texts == subscription.sent || wanted.is_empty() && !wildcard && subscription.sent.is_empty() {
        return Ok(());
    }
    let type_url = format!("type.googleapis.com/{kind}");
    let version = served.version.to_string();
    let (message, response) = if delta {
        let changed = wanted.iter().filter(|(name, _)| subscription.sent.get(**name) != texts.get(**name));
        let changed: Vec<Value> =
            changed.map(|(name, value)| json!({"name": name, "version": version, "resource": value})).collect();
        let removed: Vec<&String> = subscription.sent.keys().filter(|name| !texts.contains_key(*name)).collect();
        (
            "DeltaDiscoveryResponse",
            object(&type_url, &version, json!({"resources": changed, "removed_resources": removed})),
        )
    } else {
        let resources: Vec<&Value> = wanted.values().copied().collect();
        ("DiscoveryResponse", object(&type_url, &version, json!({"resources": resources, "version_info": version})))
    };
    let bytes = proto::json_value_to_wire(
        &format!("envoy.service.discovery.v3.{message}"),
        &Value::Object(response),
        Options::default(),
    )
    .map_err(|errors| anyhow::anyhow!("no {message}: {errors:?}"))?;
    let mut frame = Vec::with_capacity(bytes.len() + 5);
    frame.push(0);
    frame.extend((bytes.len() as u32).to_be_bytes());
    frame.extend(bytes);
    // Whether the subject still takes it shows in its answer.
    let _ = out.send_data(Bytes::from(frame), false);
    subscription.sent = texts;
    subscription.version = served.version;
    Ok(())
}

fn object(type_url: &str, nonce: &str, rest: Value) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("type_url".into(), type_url.into());
    map.insert("nonce".into(), nonce.into());
    if let Value::Object(rest) = rest {
        map.extend(rest);
    }
    map
}

/// The next whole gRPC message of a stream.
fn next_message(buffer: &mut BytesMut) -> Option<Vec<u8>> {
    let length = u32::from_be_bytes(buffer.get(1..5)?.try_into().ok()?) as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(length).to_vec())
}
