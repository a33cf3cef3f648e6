//! The data-plane server as proxies see it: bootstrap endpoint and ADS, over real TLS.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

#[path = "dp/support.rs"]
mod support;

use std::collections::HashMap;

use base64::Engine as _;
use serde_json::{Value, json};
use shika_cp::resource::{Kind, ResourceKey};
use shika_cp::store::{Expect, Store};
use shika_cp::xds::ResourceType;
use shika_proto::envoy::config::bootstrap::v3::Bootstrap;
use shika_proto::envoy::config::core::v3::Node;
use shika_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use shika_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use shika_proto::google::protobuf::{Struct, Value as ProtoValue, value};
use support::{Cp, PATIENCE, two_services};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

fn node(name: &str) -> Node {
    Node { id: format!("default.{name}"), ..Node::default() }
}

/// One delta stream of which the test holds the sender.
struct Delta {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Delta {
    async fn open(cp: &Cp, name: &str, token: &str) -> Result<Delta, Status> {
        let (requests, queue) = mpsc::channel(16);
        let mut request = tonic::Request::new(ReceiverStream::new(queue));
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        let first = DeltaDiscoveryRequest {
            node: Some(node(name)),
            type_url: ResourceType::Cluster.url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(cp.channel().await);
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Delta { requests, responses })
    }

    async fn subscribe(&self, kind: ResourceType, names: &[&str], held: &HashMap<String, String>) {
        let request = DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
            initial_resource_versions: held.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, acknowledged.
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response = tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a response in time")?;
        let response = response.ok_or_else(|| Status::ok("end"))?;
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await.unwrap();
        Ok(response)
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn versions(response: &DeltaDiscoveryResponse) -> HashMap<String, String> {
    response.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_answers() {
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    cp.apply(&two_services(10001, 10002, 10003, 10004)).await;
    let (token, other) = (cp.token("server-1").await, cp.token("web-1").await);
    let request = |extra: Value| {
        let mut request =
            json!({"mesh": "default", "name": "server-1", "dataplaneToken": token, "workdir": "/w", "features": []});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        request.to_string()
    };
    let file = |text: &str| json!({"name": "new-1", "dataplaneToken": "x", "dataplaneResource": text});
    let no_inbound = "{type: Dataplane, mesh: default, name: new-1, networking: {address: 127.0.0.1}}";
    let other_name = "{type: Dataplane, mesh: default, name: other, networking: {address: 127.0.0.1, inbound: [{port: 1, tags: {kuma.io/service: a}}]}}";
    let cases = [
        ("not JSON", "{".to_owned(), 400, "not valid"),
        ("not stored", request(json!({"name": "absent"})), 404, ""),
        ("no token", request(json!({"dataplaneToken": ""})), 422, "token is required"),
        ("forged token", request(json!({"dataplaneToken": "a.b.c"})), 422, "dataplaneToken"),
        ("token of another", request(json!({"dataplaneToken": other})), 422, "dataplaneToken"),
        ("no inbound", request(file(no_inbound)), 422, "networking"),
        ("another name", request(file(other_name)), 422, "name: \"other\""),
        ("not a CA", request(json!({"caCert": "x"})), 400, "caCert"),
        ("unknown type", request(json!({"proxyType": "gateway"})), 422, "proxyType"),
        ("unknown ingress", request(json!({"proxyType": "ingress"})), 404, ""),
    ];
    for (name, body, status, text) in cases {
        let (found, _, answer) = cp.bootstrap("application/json", &body).await;
        let answer = String::from_utf8(answer).unwrap();
        assert_eq!(found, status, "{name}: {answer}");
        assert!(answer.contains(text), "{name}: {answer}");
    }

    let (status, head, body) =
        cp.bootstrap("application/json", &request(json!({"features": ["feature-delta-grpc"]}))).await;
    assert_eq!(status, 200);
    assert!(head.contains("kuma-bootstrap-version: 3"), "{head}");
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(answer["kumaSidecarConfiguration"]["networking"]["address"], "127.0.0.1");
    let yaml = base64::engine::general_purpose::STANDARD.decode(answer["bootstrap"].as_str().unwrap()).unwrap();
    let yaml = String::from_utf8(yaml).unwrap();
    let strict: Bootstrap = shika_proto::json::from_yaml(&yaml).unwrap_or_else(|errors| panic!("{errors:?}\n{yaml}"));
    assert_eq!(strict.node.unwrap().id, "default.server-1");
    assert!(yaml.contains("DELTA_GRPC"), "{yaml}");
    // Trap 4: the token goes as it is, without "Bearer".
    let document: Value = serde_yaml_ng::from_str(&yaml).unwrap();
    let metadata = &document["dynamicResources"]["adsConfig"]["grpcServices"][0]["initialMetadata"];
    assert_eq!(*metadata, json!([{"key": "authorization", "value": token}]));

    let (status, head, yaml) = cp.bootstrap("*/*", &request(json!({}))).await;
    assert_eq!(status, 200);
    assert!(head.contains("text/x-yaml"), "{head}");
    assert!(String::from_utf8(yaml.clone()).unwrap().contains("apiType: GRPC"));
    if let Some(envoy) = support::envoy() {
        let path = dir.path().join("bootstrap.yaml");
        std::fs::write(&path, yaml).unwrap();
        let output =
            tokio::process::Command::new(envoy).args(["--mode", "validate", "-c"]).arg(&path).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    cp.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    cp.apply(&two_services(10001, 10002, 10003, 10004)).await;
    let token = cp.token("server-1").await;
    let with_scheme = format!("Bearer {token}");
    for (name, token, code) in [
        ("server-1", "forged", Code::Unauthenticated),
        // Trap 4.
        ("server-1", with_scheme.as_str(), Code::Unauthenticated),
        ("web-1", token.as_str(), Code::Unauthenticated),
        ("absent", token.as_str(), Code::NotFound),
    ] {
        let outcome = match Delta::open(&cp, name, token).await {
            Ok(mut stream) => stream.next().await.map(|_| ()),
            Err(status) => Err(status),
        };
        let status = outcome.expect_err(name);
        assert_eq!(status.code(), code, "{name}: {status}");
    }
    cp.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_nothing_is_sent_again_but_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    cp.apply(&two_services(10001, 10002, 10003, 10004)).await;
    let token = cp.token("server-1").await;
    let mut stream = Delta::open(&cp, "server-1", &token).await.unwrap();
    let clusters = stream.next().await.unwrap();
    assert_eq!(names(&clusters), ["localhost:10002"]);
    let none = HashMap::new();
    let wanted = ["identity_cert:secret:default", "mesh_ca:secret:default"];
    stream.subscribe(ResourceType::Listener, &[], &none).await;
    stream.subscribe(ResourceType::Secret, &wanted, &none).await;
    let (mut listeners, mut secrets) = (HashMap::new(), HashMap::new());
    while listeners.is_empty() || secrets.len() < 2 {
        let response = stream.next().await.unwrap();
        let into = if response.type_url == ResourceType::Listener.url() { &mut listeners } else { &mut secrets };
        into.extend(versions(&response));
    }
    assert_eq!(listeners.keys().collect::<Vec<_>>(), ["inbound:127.0.0.1:10001"]);
    let insight = cp.insight("server-1").await.unwrap();
    let mtls = insight.insight().unwrap().mtls.clone().unwrap();
    assert_eq!((mtls.certificate_regenerations, mtls.issued_backend.as_str()), (1, "ca-1"));
    drop(stream);
    let store = cp.stop().await;

    let cp = Cp::start(store, dir.path()).await;
    let mut stream = Delta::open(&cp, "server-1", &token).await.unwrap();
    // The first request did not say what is held, so the cluster comes again; the others do.
    assert_eq!(names(&stream.next().await.unwrap()), ["localhost:10002"]);
    stream.subscribe(ResourceType::Listener, &[], &listeners).await;
    stream.subscribe(ResourceType::Secret, &wanted, &secrets).await;
    let permission = ResourceKey::new(Kind::MeshTrafficPermission, "default", "web-to-server");
    cp.store.delete(&permission).await.unwrap();
    let changed = stream.next().await.unwrap();
    assert_eq!(
        (changed.type_url.as_str(), names(&changed)),
        (ResourceType::Listener.url(), vec!["inbound:127.0.0.1:10001"])
    );
    // What is sent is counted a moment later.
    let counted = async {
        while cp.stats.streams().pop().unwrap().1.resources_sent(ResourceType::Listener) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.unwrap();
    let (_, stats) = cp.stats.streams().pop().unwrap();
    assert_eq!(stats.resources_sent(ResourceType::Listener), 1, "only the listener that changed");
    assert_eq!(stats.resources_sent(ResourceType::Secret), 0, "the certificate is held and still good");
    assert_eq!(cp.stats.certificates(), 0);
    cp.stop().await;
}

/// A control plane that cannot plan after its restart takes nothing away from the proxies that come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_authority_takes_nothing_away() {
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    cp.apply(&two_services(10001, 10002, 10003, 10004)).await;
    let token = cp.token("server-1").await;
    let none = HashMap::new();
    let mut stream = Delta::open(&cp, "server-1", &token).await.unwrap();
    stream.next().await.unwrap();
    stream.subscribe(ResourceType::Listener, &[], &none).await;
    let listeners = versions(&stream.next().await.unwrap());
    drop(stream);
    let store = cp.stop().await;

    let key = ResourceKey::new(Kind::Secret, "default", "default.ca-builtin-key-ca-1");
    let good = store.get(&key).await.unwrap().unwrap();
    let mut broken = good.clone();
    broken.spec = shika_cp::resource::Spec::Secret(std::sync::Arc::new(shika_cp::resource::Secret::new("junk")));
    store.put(broken, Expect::Any).await.unwrap();
    let cp = Cp::start(store, dir.path()).await;
    let mut stream = Delta::open(&cp, "server-1", &token).await.unwrap();
    stream.subscribe(ResourceType::Listener, &[], &listeners).await;
    cp.store.put(good, Expect::Any).await.unwrap();
    let clusters = stream.next().await.unwrap();
    assert_eq!((names(&clusters), clusters.removed_resources.len()), (vec!["localhost:10002"], 0));
    let (_, stats) = cp.stats.streams().pop().unwrap();
    assert_eq!(stats.removed, [0; 5]);
    cp.stop().await;
}

/// Opens a stream for a proxy that brings its Dataplane along.
async fn bring(
    cp: &Cp,
    channel: tonic::transport::Channel,
    name: &str,
) -> (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>) {
    let token = cp.token(name).await;
    let text = format!(
        "{{type: Dataplane, mesh: default, name: {name}, networking: {{address: 127.0.0.1, inbound: [{{port: 9, servicePort: 8, \
         tags: {{kuma.io/service: job}}}}]}}}}"
    );
    let metadata = Struct {
        fields: HashMap::from([(
            "dataplane.resource".to_owned(),
            ProtoValue { kind: Some(value::Kind::StringValue(text)) },
        )]),
    };
    let (requests, queue) = mpsc::channel::<DiscoveryRequest>(4);
    let mut request = tonic::Request::new(ReceiverStream::new(queue));
    request.metadata_mut().insert("authorization", token.parse().unwrap());
    let first = DiscoveryRequest {
        node: Some(Node { metadata: Some(metadata), ..node(name) }),
        type_url: ResourceType::Listener.url().to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(first).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    (requests, client.stream_aggregated_resources(request).await.unwrap().into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dataplane_that_its_proxy_brings_comes_and_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = shika_cp::dp::DpConfig {
        deregistration_delay: std::time::Duration::ZERO,
        ..shika_cp::dp::DpConfig::new(dir.path())
    };
    let cp = Cp::start_with(Store::memory(), config).await;
    let mut watch = cp.store.watch();
    let (requests, mut responses) = bring(&cp, cp.channel().await, "job-1").await;
    let listeners: DiscoveryResponse = responses.message().await.unwrap().unwrap();
    assert_eq!(listeners.resources.len(), 1);
    assert_eq!(listeners.version_info.len(), 16);
    assert!(cp.insight("job-1").await.unwrap().insight().unwrap().is_online());
    drop((requests, responses));
    let key = ResourceKey::new(Kind::Dataplane, "default", "job-1");
    let gone = async {
        while let Some(event) = watch.next().await {
            if event == shika_cp::store::Event::Deleted(key.clone()) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert!(cp.store.get(&key).await.unwrap().is_none());
    cp.stop().await;
}

/// When the network of the control plane fails, all connections break. Those who come back first must not be told that the others are gone.
#[tokio::test(flavor = "multi_thread")]
async fn while_all_connections_are_broken_nobody_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let config = shika_cp::dp::DpConfig {
        deregistration_delay: std::time::Duration::ZERO,
        ..shika_cp::dp::DpConfig::new(dir.path())
    };
    let cp = Cp::start_with(Store::memory(), config).await;
    let cable = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = (cable.local_addr().unwrap().port(), cp.port);
    let cable = tokio::spawn(async move {
        let (mut near, _) = cable.accept().await.unwrap();
        let mut far = tokio::net::TcpStream::connect(("127.0.0.1", far)).await.unwrap();
        tokio::io::copy_bidirectional(&mut near, &mut far).await
    });
    let (_requests, mut responses) = bring(&cp, cp.channel_by(near).await, "job-1").await;
    responses.message().await.unwrap().unwrap();
    cable.abort();
    let offline = async {
        while cp.insight("job-1").await.unwrap().insight().unwrap().is_online() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, offline).await.unwrap();
    let mut watch = cp.store.watch();
    let (_requests, mut others) = bring(&cp, cp.channel().await, "job-2").await;
    others.message().await.unwrap().unwrap();
    let key = |name| ResourceKey::new(Kind::Dataplane, "default", name);
    let (came, gone) = (shika_cp::store::Event::Changed(key("job-2")), shika_cp::store::Event::Deleted(key("job-1")));
    let mut seen = Vec::new();
    while !seen.contains(&gone) {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        if event == came || event == gone {
            seen.push(event);
        }
    }
    assert_eq!(seen, [came, gone]);
    cp.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_due_is_replaced_on_the_stream() {
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    cp.apply(&two_services(10001, 10002, 10003, 10004)).await;
    let token = cp.token("server-1").await;
    let mut stream = Delta::open(&cp, "server-1", &token).await.unwrap();
    stream.next().await.unwrap();
    stream.subscribe(ResourceType::Secret, &["identity_cert:secret:default"], &HashMap::new()).await;
    let first = versions(&stream.next().await.unwrap());
    // Another tag is another certificate.
    let key = ResourceKey::new(Kind::Dataplane, "default", "server-1");
    let mut resource = cp.store.get(&key).await.unwrap().unwrap();
    let shika_cp::resource::Spec::Dataplane(dataplane) = &mut resource.spec else { panic!("a Dataplane") };
    let networking = std::sync::Arc::make_mut(dataplane).networking.as_mut().unwrap();
    networking.inbound[0].tags.insert("version".to_owned(), "v2".to_owned());
    cp.store.put(resource, Expect::Any).await.unwrap();
    let second = loop {
        let response = stream.next().await.unwrap();
        if response.type_url == ResourceType::Secret.url() {
            break versions(&response);
        }
    };
    assert_ne!(first, second);
    assert_eq!(cp.stats.certificates(), 2);
    cp.stop().await;
}

/// What a zone proxy says of itself.
fn zone_node(name: &str, proxy_type: &str, resource: &str) -> Node {
    let text = |text: &str| ProtoValue { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let fields = [("dataplane.proxyType", proxy_type), ("dataplane.resource", resource)];
    let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), text(value))).collect();
    Node { id: format!(".{name}"), metadata: Some(Struct { fields }), ..Node::default() }
}

/// Opens a stream as a zone proxy; the error that ends it at once, or the stream.
async fn open_zone_proxy(
    cp: &Cp,
    node: Node,
    token: &str,
) -> (mpsc::Sender<DeltaDiscoveryRequest>, Result<Streaming<DeltaDiscoveryResponse>, Status>) {
    let (requests, queue) = mpsc::channel(16);
    let mut request = tonic::Request::new(ReceiverStream::new(queue));
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", token.parse().unwrap());
    }
    let type_url = ResourceType::Cluster.url().to_owned();
    requests
        .send(DeltaDiscoveryRequest { node: Some(node), type_url, ..DeltaDiscoveryRequest::default() })
        .await
        .unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(cp.channel().await);
    (requests, client.delta_aggregated_resources(request).await.map(tonic::Response::into_inner))
}

#[tokio::test(flavor = "multi_thread")]
async fn zone_proxies_join_with_zone_tokens() {
    use shika_cp::auth::ZoneScope::{ControlPlane, Egress, Ingress};
    let dir = tempfile::tempdir().unwrap();
    let mut config = shika_cp::dp::DpConfig::new(dir.path());
    config.zone = "east".to_owned();
    config.deregistration_delay = std::time::Duration::ZERO;
    let cp = Cp::start_with(Store::memory(), config).await;
    let hour = std::time::Duration::from_secs(3600);
    let ingress = "{type: ZoneIngress, name: zi-1, networking: {address: 127.0.0.1, port: 10001, advertisedAddress: 192.0.2.1, \
                   advertisedPort: 20001, admin: {port: 9902}}}";
    let of_west = "{type: ZoneIngress, name: zi-1, zone: west, networking: {port: 10001}}";
    let egress = "{type: ZoneEgress, name: ze-1, networking: {address: 127.0.0.1, port: 10002}}";
    let good = cp.zone_token("east", &[Ingress, Egress], hour).await;
    let tokens = [
        ("", "token"),
        (
            &cp.zone_token("west", &[Ingress, Egress], hour).await,
            "zone from requestor: east is different than in token: west",
        ),
        (&cp.zone_token("east", &[Egress, ControlPlane], hour).await, "ingress is out of token's scope"),
        (&cp.expired_zone_token("east").await, "token is expired since"),
        // Issued where the clock is ten minutes ahead.
        (&cp.zone_token_between("east", 600, 3600).await, "token is not yet valid: its 'nbf' lies "),
        (&cp.token("zi-1").await, "signature of the token is invalid"),
        ("a.b.c", "not a JWT"),
    ];
    let bootstrap = |token: &str, proxy_type: &str, resource: &str, name: &str| {
        json!({"mesh": "ignored", "name": name, "proxyType": proxy_type, "dataplaneToken": token, "dataplaneResource": resource})
            .to_string()
    };
    for (token, expected) in tokens {
        let (status, _, body) = cp.bootstrap("application/json", &bootstrap(token, "ingress", ingress, "zi-1")).await;
        let body = String::from_utf8(body).unwrap();
        assert_eq!(status, 422, "{body}");
        assert!(body.contains(expected), "{expected:?} expected: {body}");
        let (_requests, opened) = open_zone_proxy(&cp, zone_node("zi-1", "ingress", ingress), token).await;
        let error = match opened {
            Err(error) => error,
            Ok(mut stream) => stream.message().await.unwrap_err(),
        };
        assert_eq!(error.code(), Code::Unauthenticated, "{error}");
        assert!(error.message().contains(expected) || expected == "token", "{expected:?} expected: {error}");
    }
    assert_eq!(cp.store.list(Kind::ZoneIngress, None).await.unwrap(), [], "nobody was let in");

    let (status, _, body) = cp.bootstrap("application/json", &bootstrap(&good, "ingress", of_west, "zi-1")).await;
    let body = String::from_utf8(body).unwrap();
    assert_eq!(status, 422);
    assert!(body.contains("is in zone \"west\", and this is the control plane of zone \"east\""), "{body}");

    let (status, _, body) = cp.bootstrap("application/json", &bootstrap(&good, "ingress", ingress, "zi-1")).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let yaml = base64::engine::general_purpose::STANDARD.decode(answer["bootstrap"].as_str().unwrap()).unwrap();
    let document: Value = serde_yaml_ng::from_slice(&yaml).unwrap();
    let node = &document["node"];
    assert_eq!((&node["id"], &node["cluster"]), (&json!(".zi-1"), &json!("ingress")));
    assert_eq!(node["metadata"]["dataplane.proxyType"], "ingress");
    assert_eq!(node["metadata"]["dataplane.admin.port"], "9902");

    // Both are let in and registered, and their insights say that they are connected, and at the end that they are not.
    for (proxy_type, resource, name, kind, insight) in [
        ("ingress", ingress, "zi-1", Kind::ZoneIngress, Kind::ZoneIngressInsight),
        ("egress", egress, "ze-1", Kind::ZoneEgress, Kind::ZoneEgressInsight),
    ] {
        let mut watch = cp.store.watch();
        let (requests, stream) = open_zone_proxy(&cp, zone_node(name, proxy_type, resource), &good).await;
        let insight = ResourceKey::global(insight, name);
        let online = async |cp: &Cp| {
            let stored = cp.store.get(&insight).await.unwrap();
            stored
                .as_ref()
                .and_then(|resource| resource.zone_proxy_insight())
                .is_some_and(|insight| insight.is_online())
        };
        while !online(&cp).await {
            tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        }
        let stored = cp.store.get(&ResourceKey::global(kind, name)).await.unwrap().unwrap();
        assert_eq!(stored.to_document()["zone"], "east");
        drop((requests, stream));
        while cp.store.get(&stored.key()).await.unwrap().is_some() {
            tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
        }
        assert_eq!(cp.store.get(&insight).await.unwrap(), None, "it goes with its proxy");
    }
}
