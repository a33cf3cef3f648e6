//! The gRPC services of the data-plane server: protobuf in and out, [`session`] in between.

use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use futures_util::{Stream, StreamExt as _};
use shika_proto::envoy::config::core::v3::ControlPlane;
use shika_proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use shika_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use shika_proto::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::session::{self, Incoming, Outgoing, StreamState};
use super::{Connection, Shared};
use crate::xds::delta::{DeltaRequest, DeltaStream};
use crate::xds::sotw::{SotwRequest, SotwStream};

/// Largest request. The first one of a proxy that reconnects names every resource it holds.
const MAX_REQUEST: usize = 16 * 1024 * 1024;
/// Responses that may wait for a slow connection. More wait in the session, which then makes no new ones.
const QUEUE: usize = 4;

/// The services.
#[derive(Clone)]
struct Services {
    shared: Arc<Shared>,
}

/// The routes of the services.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let services = Services { shared };
    let ads = AggregatedDiscoveryServiceServer::new(services.clone()).max_decoding_message_size(MAX_REQUEST);
    let sds = SecretDiscoveryServiceServer::new(services).max_decoding_message_size(MAX_REQUEST);
    Routes::new(ads).add_service(sds).prepare().into_axum_router()
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Services {
    fn delta(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Responses<DeltaDiscoveryResponse>, Status> {
        let token = token(request.metadata())?;
        let connection = request.extensions().get::<Connection>().cloned();
        let incoming = request.into_inner().map(|request| request.map(delta_request));
        let control_plane = self.control_plane();
        let responses = self.open(token, connection, incoming, StreamState::Delta(DeltaStream::new()));
        Ok(Box::pin(responses.filter_map(move |response| {
            let response = match response {
                Ok(Outgoing::Delta(response)) => Some(Ok(delta_response(response, control_plane.clone()))),
                Ok(Outgoing::Sotw(_)) => None,
                Err(status) => Some(Err(status)),
            };
            std::future::ready(response)
        })))
    }

    fn sotw(&self, request: Request<Streaming<DiscoveryRequest>>) -> Result<Responses<DiscoveryResponse>, Status> {
        let token = token(request.metadata())?;
        let connection = request.extensions().get::<Connection>().cloned();
        let incoming = request.into_inner().map(|request| request.map(sotw_request));
        let control_plane = self.control_plane();
        let responses = self.open(token, connection, incoming, StreamState::Sotw(SotwStream::new()));
        Ok(Box::pin(responses.filter_map(move |response| {
            let response = match response {
                Ok(Outgoing::Sotw(response)) => Some(Ok(sotw_response(response, control_plane.clone()))),
                Ok(Outgoing::Delta(_)) => None,
                Err(status) => Some(Err(status)),
            };
            std::future::ready(response)
        })))
    }

    /// Starts the session. It ends when the proxy or the receiver of its responses is gone, or when the server stops.
    fn open(
        &self,
        token: Option<String>,
        connection: Option<Connection>,
        incoming: impl Stream<Item = Result<Incoming, Status>> + Send + Unpin + 'static,
        state: StreamState,
    ) -> ReceiverStream<Result<Outgoing, Status>> {
        let (responses, queue) = mpsc::channel(QUEUE);
        tokio::spawn(session::run(self.shared.clone(), token, connection, incoming, responses, state));
        ReceiverStream::new(queue)
    }

    fn control_plane(&self) -> ControlPlane {
        ControlPlane { identifier: self.shared.config.instance_id.clone() }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Services {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.sotw(request).map(Response::new)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.delta(request).map(Response::new)
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Services {
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Responses<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        self.delta(request).map(Response::new)
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        self.sotw(request).map(Response::new)
    }

    async fn fetch_secrets(&self, _: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are served on streams only: use StreamSecrets or DeltaSecrets"))
    }
}

/// The bare JWT of the metadata `authorization`, given at most once.
fn token(metadata: &MetadataMap) -> Result<Option<String>, Status> {
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Status::unauthenticated("authorization is given more than once"));
    }
    let token = value.to_str().map_err(|_| Status::unauthenticated("authorization is not text"))?;
    Ok(Some(token.trim().to_owned()))
}

fn delta_request(request: DeltaDiscoveryRequest) -> Incoming {
    let error = request.error_detail.map(|status| status.message);
    let body = DeltaRequest {
        subscribe: request.resource_names_subscribe,
        unsubscribe: request.resource_names_unsubscribe,
        initial_versions: request.initial_resource_versions,
        nonce: request.response_nonce,
        error,
    };
    Incoming { type_url: request.type_url, node: request.node, body: session::Body::Delta(body) }
}

fn sotw_request(request: DiscoveryRequest) -> Incoming {
    let error = request.error_detail.map(|status| status.message);
    let body = SotwRequest {
        version: request.version_info,
        names: request.resource_names,
        nonce: request.response_nonce,
        error,
    };
    Incoming { type_url: request.type_url, node: request.node, body: session::Body::Sotw(body) }
}

fn delta_response(response: crate::xds::delta::DeltaResponse, control_plane: ControlPlane) -> DeltaDiscoveryResponse {
    let resources = response.resources.into_iter().map(|(name, resource)| Resource {
        name,
        version: resource.version.to_string(),
        resource: resource.body.clone(),
        ..Resource::default()
    });
    DeltaDiscoveryResponse {
        type_url: response.kind.url().to_owned(),
        resources: resources.collect(),
        removed_resources: response.removed,
        nonce: response.nonce,
        control_plane: Some(control_plane),
        ..DeltaDiscoveryResponse::default()
    }
}

fn sotw_response(response: crate::xds::sotw::SotwResponse, control_plane: ControlPlane) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: response.version,
        resources: response.resources.into_iter().filter_map(|(_, resource)| resource.body.clone()).collect(),
        type_url: response.kind.url().to_owned(),
        nonce: response.nonce,
        control_plane: Some(control_plane),
        ..DiscoveryResponse::default()
    }
}
