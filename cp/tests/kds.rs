//! The global control plane as zones see it: who is let in, and what becomes of what they send.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::net::SocketAddr;
use std::time::Duration;

use shika_cp::auth::{ZoneScope, ZoneTokens};
use shika_cp::kds::ZoneNode;
use shika_cp::kds::global::{GlobalConfig, GlobalServer};
use shika_cp::kds::zone::{ZoneClient, ZoneConfig};
use shika_cp::resource::{Kind, Resource, ResourceKey, documents, parse};
use shika_cp::store::{Expect, Store, Watch};
use shika_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use shika_proto::kuma::mesh::v1alpha1::ZoneHealthCheckRequest;
use shika_proto::kuma::mesh::v1alpha1::global_kds_service_client::GlobalKdsServiceClient;
use shika_proto::kuma::mesh::v1alpha1::kds_sync_service_client::KdsSyncServiceClient;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// Upper bound for anything that is waited for; nothing is expected to take as long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Global {
    store: Store,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Global {
    async fn start(store: Store, require_token: bool) -> Global {
        Global::start_at(store, require_token, "127.0.0.1:0").await
    }

    async fn start_at(store: Store, require_token: bool, address: &str) -> Global {
        let directory = tempfile::tempdir().unwrap();
        let mut config = GlobalConfig::new(directory.path());
        (config.with_tls, config.require_token) = (false, require_token);
        config.insight_interval = Duration::from_millis(10);
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = GlobalServer::new(store.clone(), config, listener).unwrap();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            server.serve(async { drop(stopped.await) }).await.unwrap();
        });
        Global { store, address, stop: Some(stop), served, _directory: directory }
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        self.served.await.unwrap();
    }

    /// A connection of its own.
    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
}

async fn apply(store: &Store, yaml: &str) {
    for document in documents(yaml).unwrap() {
        store.put(parse(document).unwrap().resource, Expect::Any).await.unwrap();
    }
}

fn request<T>(message: T, metadata: &[(&'static str, &str)]) -> Request<T> {
    let mut request = Request::new(message);
    for (key, value) in metadata {
        request.metadata_mut().append(*key, value.parse().unwrap());
    }
    request
}

const EAST: [(&str, &str); 2] = [("client-id", "east"), ("features", "hash-suffix")];

async fn down(
    channel: Channel,
    metadata: &[(&'static str, &str)],
) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>), Status> {
    let (requests, queue) = mpsc::channel(16);
    let mut client = KdsSyncServiceClient::new(channel);
    let response = client.global_to_zone_sync(request(ReceiverStream::new(queue), metadata)).await?;
    Ok((requests, response.into_inner()))
}

async fn ask(requests: &mpsc::Sender<DeltaDiscoveryRequest>, kind: &str) {
    let request = DeltaDiscoveryRequest {
        type_url: kind.to_owned(),
        resource_names_subscribe: vec!["*".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    requests.send(request).await.unwrap();
}

async fn next(stream: &mut Streaming<DeltaDiscoveryResponse>) -> DeltaDiscoveryResponse {
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn zones_prove_their_names() {
    let store = Store::memory();
    shika_cp::defaults::ensure(&store, false).await.unwrap();
    let global = Global::start(store.clone(), true).await;
    let tokens = ZoneTokens::new(store);
    let hour = Duration::from_secs(3600);
    let control_plane = [ZoneScope::ControlPlane];
    let good = tokens.issue("east", &control_plane, hour).await.unwrap();
    let of_west = tokens.issue("west", &control_plane, hour).await.unwrap();
    let of_proxies = tokens.issue("east", &[ZoneScope::Ingress, ZoneScope::Egress], hour).await.unwrap();
    for (metadata, code, expected) in [
        (vec![], Code::InvalidArgument, "the name of the zone is expected"),
        (vec![("client-id", "East!")], Code::InvalidArgument, "the name of the zone is expected"),
        (vec![("client-id", "east")], Code::FailedPrecondition, "hash-suffix"),
        (EAST.to_vec(), Code::Unauthenticated, "shikactl generate zone-token --zone east --scope cp"),
        (
            [&EAST[..], &[("authorization", of_west.as_str())]].concat(),
            Code::Unauthenticated,
            "different than in token: west",
        ),
        (
            [&EAST[..], &[("authorization", of_proxies.as_str())]].concat(),
            Code::Unauthenticated,
            "cp is out of token's scope",
        ),
        ([&EAST[..], &[("authorization", "a.b.c")]].concat(), Code::Unauthenticated, "not a JWT"),
        // Ten minutes off: the reason why a token may be refused is said too.
        (
            [&EAST[..], &[("authorization", "a.b.c"), ("shika-time", "1000")]].concat(),
            Code::Unauthenticated,
            "s behind that of global",
        ),
    ] {
        let error = down(global.channel().await, &metadata).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(expected), "{expected:?} expected: {error}");
        let mut client = GlobalKdsServiceClient::new(global.channel().await);
        let error = client.health_check(request(ZoneHealthCheckRequest {}, &metadata)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    assert_eq!(global.store.list(Kind::Zone, None).await.unwrap(), [], "nobody was let in");
    for prefix in ["", "Bearer "] {
        let token = format!("{prefix}{good}");
        let metadata = [&EAST[..], &[("authorization", token.as_str())]].concat();
        let mut client = GlobalKdsServiceClient::new(global.channel().await);
        let answer = client.health_check(request(ZoneHealthCheckRequest {}, &metadata)).await.unwrap();
        assert!(answer.metadata().get("shika-time").is_some());
        assert_eq!(answer.into_inner().interval.unwrap().seconds, 30);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_zones_with_one_name_are_told() {
    let global = Global::start(Store::memory(), false).await;
    let first = global.channel().await;
    let with = |instance: &'static str| [&EAST[..], &[("control-plane-id", instance)]].concat();
    let (requests, mut stream) = down(first.clone(), &with("cp-1")).await.unwrap();
    ask(&requests, "Mesh").await;
    assert_eq!(next(&mut stream).await.type_url, "Mesh");
    // More streams on the same connection are of the same control plane.
    let _second = down(first, &with("cp-1")).await.unwrap();
    for other in [with("cp-2"), EAST.to_vec()] {
        let error = down(global.channel().await, &other).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert!(error.message().contains("zone \"east\" is connected already"), "{error}");
        assert!(error.message().contains("--zone-name"), "{error}");
    }
    // The same process on a new connection may be faster than the end of its old one.
    let again = down(global.channel().await, &with("cp-1")).await.unwrap();
    // Another name is nobody's.
    let west = [("client-id", "west"), ("features", "hash-suffix")];
    down(global.channel().await, &west).await.unwrap();
    drop((requests, stream, again, _second));
    // Once the zone is gone, another may have its name.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = down(global.channel().await, &with("cp-2")).await {
        assert_eq!(error.code(), Code::AlreadyExists);
        assert!(tokio::time::Instant::now() < deadline, "{error}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_is_that_of_delta_xds() {
    let global = Global::start(Store::memory(), false).await;
    let (requests, mut stream) = down(global.channel().await, &EAST).await.unwrap();
    // A kind that nobody here knows is not answered: with nothing, the zone would delete what it has.
    ask(&requests, "MeshGateway").await;
    ask(&requests, "Mesh").await;
    let first = next(&mut stream).await;
    assert_eq!(
        (first.type_url.as_str(), first.resources.len()),
        ("Mesh", 0),
        "the first answer comes also when it is empty"
    );
    // Nothing more of that kind before it is answered; what happened meanwhile comes then, once.
    apply(&global.store, "{type: Mesh, name: a}\n---\n{type: Mesh, name: b}").await;
    ask(&requests, "MeshTrafficPermission").await;
    assert_eq!(next(&mut stream).await.type_url, "MeshTrafficPermission");
    let answer = async |nonce: &str, error: Option<&str>| {
        let error =
            error.map(|text| shika_proto::google::rpc::Status { message: text.to_owned(), ..Default::default() });
        let request = DeltaDiscoveryRequest {
            type_url: "Mesh".to_owned(),
            response_nonce: nonce.to_owned(),
            error_detail: error,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(request).await.unwrap();
    };
    answer("not-a-nonce", None).await;
    answer(&first.nonce, None).await;
    let mut second = next(&mut stream).await;
    let names = |response: &DeltaDiscoveryResponse| {
        response.resources.iter().map(|resource| resource.name.clone()).collect::<Vec<_>>()
    };
    let mut told = names(&second);
    if told == ["a."] {
        // The answer overtook the news of the other one.
        answer(&second.nonce, None).await;
        second = next(&mut stream).await;
        told.extend(names(&second));
    }
    assert_eq!(told, ["a.", "b."]);
    // Refused: sent again, all of it.
    answer(&second.nonce, Some("no")).await;
    let third = next(&mut stream).await;
    assert_eq!(names(&third), ["a.", "b."]);
    answer(&third.nonce, None).await;
    global.store.delete(&ResourceKey::global(Kind::Mesh, "a")).await.unwrap();
    let fourth = next(&mut stream).await;
    assert_eq!((names(&fourth).len(), fourth.removed_resources), (0, vec!["a.".to_owned()]));
}

struct Zone {
    store: Store,
    stop: watch::Sender<bool>,
    connected: watch::Receiver<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Zone {
    fn start(name: &str, store: Store, global: SocketAddr) -> Zone {
        let node = ZoneNode { zone: name.to_owned(), instance: format!("{name}-1"), ..ZoneNode::default() };
        let config =
            ZoneConfig { global_address: format!("grpc://{global}"), root_ca_file: None, token_file: None, node };
        let client = ZoneClient::new(store.clone(), config).unwrap();
        let connected = client.connected();
        let (stop, stopped) = watch::channel(false);
        Zone { store, stop, connected, task: tokio::spawn(client.run(stopped)) }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

/// Waits until the store has what is wanted.
async fn until(store: &Store, mut watch: Watch, key: &ResourceKey, wanted: impl Fn(Option<&Resource>) -> bool) {
    let search = async {
        while !wanted(store.get(key).await.unwrap().as_ref()) {
            watch.next().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("{key} does not come or go"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_that_joins_gives_up_what_is_globals_and_keeps_its_own() {
    let global = Global::start(Store::memory(), false).await;
    apply(
        &global.store,
        "{type: Mesh, name: default}\n---\n{type: Secret, mesh: default, name: shared, data: QQ==}\n---\n\
         {type: Secret, mesh: default, name: theirs, data: QQ==}",
    )
    .await;
    let store = Store::memory();
    apply(
        &store,
        "{type: Mesh, name: default}\n---\n{type: Mesh, name: only-here}\n---\n\
         {type: Secret, mesh: default, name: shared, data: Qg==}\n---\n\
         {type: MeshTrafficPermission, mesh: default, name: mine, spec: {}}\n---\n\
         {type: MeshTrafficPermission, mesh: default, name: old-x, labels: {kuma.io/origin: global}, spec: {}}",
    )
    .await;
    let mut zone = Zone::start("east", store, global.address);
    tokio::time::timeout(PATIENCE, zone.connected.wait_for(|connected| *connected)).await.unwrap().unwrap();
    let here = |kind, name: &str| ResourceKey::new(kind, "default", name);
    until(&zone.store, zone.store.watch(), &ResourceKey::global(Kind::Mesh, "only-here"), |found| found.is_none())
        .await;
    until(&zone.store, zone.store.watch(), &here(Kind::Secret, "theirs"), |found| found.is_some()).await;
    until(&zone.store, zone.store.watch(), &here(Kind::MeshTrafficPermission, "old-x"), |found| found.is_none()).await;
    // Two secrets of one name: the zone keeps its own and says so; nothing else is held up by it.
    let shared = zone.store.get(&here(Kind::Secret, "shared")).await.unwrap().unwrap();
    assert_eq!(shared.secret().unwrap().data, b"B");
    let mine = ResourceKey::new(
        Kind::MeshTrafficPermission,
        "default",
        shika_cp::kds::hashed_name("default", "mine", &["east"]),
    );
    until(&global.store, global.store.watch(), &mine, |found| found.is_some()).await;
    // A refusal that is still on its way when the zone stops is lost with its connection, so that it is waited for first.
    let insight = ResourceKey::global(Kind::ZoneInsight, "east");
    until(&global.store, global.store.watch(), &insight, |found| {
        found.and_then(Resource::zone_insight).is_some_and(|insight| {
            insight.is_online()
                && insight.subscriptions.iter().any(|subscription| {
                    subscription.zone_instance_id == "east-1"
                        && subscription.status.stat.get("Secret").is_some_and(|stats| stats.responses_rejected > 0)
                })
        })
    })
    .await;
    zone.stop().await;
    until(&global.store, global.store.watch(), &insight, |found| {
        found.and_then(Resource::zone_insight).is_some_and(|insight| !insight.is_online())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_goes_on_without_global_and_catches_up() {
    let store = Store::memory();
    apply(&store, "{type: Mesh, name: default}\n---\n{type: Secret, mesh: default, name: s-1, data: QQ==}").await;
    let global = Global::start(store.clone(), false).await;
    let address = global.address;
    let mut zone = Zone::start("east", Store::memory(), address);
    let secret = |name: &str| ResourceKey::new(Kind::Secret, "default", name);
    until(&zone.store, zone.store.watch(), &secret("s-1"), |found| found.is_some()).await;
    global.stop().await;
    tokio::time::timeout(PATIENCE, zone.connected.wait_for(|connected| !*connected)).await.unwrap().unwrap();
    assert!(zone.store.get(&secret("s-1")).await.unwrap().is_some(), "it stays");
    // Both sides change meanwhile.
    apply(&store, "{type: Secret, mesh: default, name: s-2, data: QQ==}").await;
    store.delete(&secret("s-1")).await.unwrap();
    let dataplane = "{type: Dataplane, mesh: default, name: d, networking: {address: 10.0.0.1, inbound: [{port: 1, tags: {kuma.io/service: a}}]}}";
    apply(&zone.store, dataplane).await;
    let global = Global::start_at(store, false, &address.to_string()).await;
    until(&zone.store, zone.store.watch(), &secret("s-2"), |found| found.is_some()).await;
    until(&zone.store, zone.store.watch(), &secret("s-1"), |found| found.is_none()).await;
    let sent = ResourceKey::new(Kind::Dataplane, "default", shika_cp::kds::hashed_name("default", "d", &["east"]));
    until(&global.store, global.store.watch(), &sent, |found| found.is_some()).await;
    // Deleted with its mesh at global, it is refused there, which holds nothing else up.
    global.store.delete(&ResourceKey::global(Kind::Mesh, "default")).await.unwrap();
    until(&zone.store, zone.store.watch(), &ResourceKey::global(Kind::Mesh, "default"), |found| found.is_none()).await;
    apply(&global.store, "{type: Mesh, name: second}").await;
    until(&zone.store, zone.store.watch(), &ResourceKey::global(Kind::Mesh, "second"), |found| found.is_some()).await;
    zone.stop().await;
}
