#![allow(clippy::unwrap_used, clippy::panic)]

use std::{pin::Pin, time::Instant};

use shika_proto::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    type_url,
};
use tokio::net::TcpListener;
use tonic::{Response as Reply, Streaming};

use super::*;
use crate::{
    ads::Ads,
    compile::testing::{ADS, compiler, load},
    compiler::Wanted,
};

/// A control plane that hands every request to the test and sends what the test gives it.
struct Scripted {
    requests: mpsc::Sender<(Option<String>, DeltaDiscoveryRequest)>,
    responses: Arc<tokio::sync::Mutex<mpsc::Receiver<DeltaDiscoveryResponse>>>,
}

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Scripted {
    type StreamAggregatedResourcesStream = Sent<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Sent<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: tonic::Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Reply<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: tonic::Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Reply<Self::DeltaAggregatedResourcesStream>, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut incoming = request.into_inner();
        let (requests, responses) = (self.requests.clone(), self.responses.clone());
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut responses = responses.lock().await;
            loop {
                tokio::select! {
                    request = incoming.next() => match request {
                        Some(Ok(request)) => drop(requests.send((token.clone(), request)).await),
                        _ => return,
                    },
                    response = responses.recv() => match response {
                        // An empty nonce ends the stream.
                        Some(response) if response.nonce.is_empty() => return,
                        Some(response) => drop(sender.send(Ok(response)).await),
                        None => return,
                    },
                }
            }
        });
        Ok(Reply::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A scripted control plane: its port, the requests that it gets with their tokens, and what it is to say.
async fn control_plane()
-> (u16, mpsc::Receiver<(Option<String>, DeltaDiscoveryRequest)>, mpsc::Sender<DeltaDiscoveryResponse>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (requests, seen) = mpsc::channel(16);
    let (respond, responses) = mpsc::channel(16);
    let scripted = Scripted { requests, responses: Arc::new(tokio::sync::Mutex::new(responses)) };
    let server = tonic::transport::Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(scripted))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(server);
    (port, seen, respond)
}

#[tokio::test]
async fn asks_answers_and_comes_back() {
    let (port, mut seen, respond) = control_plane().await;

    let mut compiler = compiler();
    let text = ADS.replace("port_value: 5678", &format!("port_value: {port}")).replace(
        "grpc_services: [{ envoy_grpc: { cluster_name: ads } }]",
        "grpc_services: [{ envoy_grpc: { cluster_name: ads }, initial_metadata: [{ key: authorization, value: token-1 }] }]",
    );
    let plan = load(&mut compiler, &text).unwrap();
    compiler.build().unwrap();
    let config = plan.ads.unwrap();
    let cluster = compiler.cluster("ads");
    let (events, mut events_in) = mpsc::channel(16);
    tokio::spawn(run(config.clone(), None, move || cluster.clone(), events));
    let mut ads = Ads::new(&config, plan.node);
    ads.want(type_url::CLUSTER, Wanted::All);

    let Some(Event::Connected { requests }) = events_in.recv().await else { panic!("connected") };
    ads.connected();
    requests.send(ads.next_request().unwrap()).await.unwrap();
    let (token, first) = seen.recv().await.unwrap();
    assert_eq!((token.as_deref(), first.node.unwrap().id.as_str()), (Some("token-1"), "node"));

    let resource = shika_proto::any::pack(&shika_proto::envoy::config::cluster::v3::Cluster {
        name: "c".into(),
        ..Default::default()
    });
    let resource = shika_proto::envoy::service::discovery::v3::Resource {
        name: "c".into(),
        version: "v1".into(),
        resource: Some(resource),
        ..Default::default()
    };
    let response = DeltaDiscoveryResponse {
        type_url: type_url::CLUSTER.into(),
        nonce: "1".into(),
        resources: vec![resource],
        ..Default::default()
    };
    respond.send(response).await.unwrap();
    let Some(Event::Accepted) = events_in.recv().await else { panic!("accepted") };
    let Some(Event::Response(response)) = events_in.recv().await else { panic!("a response") };
    let (update, receipt) = ads.received(response).unwrap();
    let applied = compiler.apply(update, Instant::now());
    assert!(applied.changed && applied.rejects.is_empty());
    assert!(compiler.build().is_some());
    ads.acknowledge(receipt, &applied.rejects);
    requests.send(ads.next_request().unwrap()).await.unwrap();
    let (_, ack) = seen.recv().await.unwrap();
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("1", None));

    respond.send(DeltaDiscoveryResponse::default()).await.unwrap();
    let Some(Event::Disconnected { reason, pause }) = events_in.recv().await else { panic!("disconnected") };
    assert_eq!(reason, "the control plane closed the stream");
    assert!(pause <= FIRST_PAUSE);
    ads.disconnected();
    drop(requests);
    let Some(Event::Connected { requests }) = events_in.recv().await else { panic!("connected again") };
    ads.connected();
    requests.send(ads.next_request().unwrap()).await.unwrap();
    let (_, again) = seen.recv().await.unwrap();
    assert_eq!(again.initial_resource_versions["c"], "v1", "what is held is named");
}

/// The token of Kuma's proxies on Kubernetes: the file changes before the token in it runs out.
#[tokio::test]
async fn google_grpc_reads_its_token_for_every_stream() {
    let (port, mut seen, respond) = control_plane().await;
    let directory = tempfile::tempdir().unwrap();
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, "token-1\n").unwrap();
    let google = format!(
        "grpc_services: [{{ google_grpc: {{ target_uri: '127.0.0.1:{port}', stat_prefix: ads, \
         credentials_factory_name: envoy.grpc_credentials.file_based_metadata, \
         call_credentials: [{{ from_plugin: {{ name: envoy.grpc_credentials.file_based_metadata, typed_config: {{ \
         '@type': type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig, \
         secret_data: {{ filename: '{}' }} }} }} }}] }} }}]",
        token_file.display()
    );
    let bootstrap = ADS.replace("grpc_services: [{ envoy_grpc: { cluster_name: ads } }]", &google);
    assert!(bootstrap.contains("google_grpc"));
    let mut compiler = compiler();
    let plan = load(&mut compiler, &bootstrap).unwrap();
    compiler.build().unwrap();
    let config = plan.ads.unwrap();
    let cluster = compiler.cluster("google_grpc.ads");
    assert!(cluster.is_some() && config.cluster == "google_grpc.ads");
    let mut ads = Ads::new(&config, plan.node);
    ads.want(type_url::CLUSTER, Wanted::All);
    let (events, mut events_in) = mpsc::channel(1);
    tokio::spawn(run(config, None, move || cluster.clone(), events));
    for token in ["token-1", "token-2"] {
        let Some(Event::Connected { requests }) = events_in.recv().await else { panic!("connected") };
        ads.connected();
        requests.send(ads.next_request().unwrap()).await.unwrap();
        assert_eq!(seen.recv().await.unwrap().0.as_deref(), Some(token));
        std::fs::write(&token_file, "token-2").unwrap();
        respond.send(DeltaDiscoveryResponse::default()).await.unwrap();
        let Some(Event::Accepted) = events_in.recv().await else { panic!("accepted") };
        let Some(Event::Disconnected { .. }) = events_in.recv().await else { panic!("disconnected") };
        ads.disconnected();
    }
    std::fs::remove_file(&token_file).unwrap();
    let Some(Event::Disconnected { reason, .. }) = events_in.recv().await else { panic!("no token") };
    assert!(reason.contains(&token_file.display().to_string()), "{reason}");
}

#[tokio::test]
async fn says_why_it_cannot_connect() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut compiler = compiler();
    let plan = load(&mut compiler, &ADS.replace("5678", &port.to_string())).unwrap();
    compiler.build().unwrap();
    let cluster = compiler.cluster("ads");
    let (events, mut events_in) = mpsc::channel(1);
    tokio::spawn(run(plan.ads.unwrap(), None, move || cluster.clone(), events));
    let Some(Event::Disconnected { reason, .. }) = events_in.recv().await else { panic!("disconnected") };
    assert!(reason.contains(&format!("127.0.0.1:{port}")) && reason.contains("refused"), "{reason}");
}
