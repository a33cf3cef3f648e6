//! `POST /bootstrap` (Kuma `pkg/xds/bootstrap/handler.go`): what a proxy says of itself in, an Envoy bootstrap out.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Shared, admit, tls};
use crate::auth::TokenError;
use crate::emit::bootstrap::{self as emit, Bootstrap};
use crate::resource::{Kind, ProxyType, Resource, ResourceKey, SERVICE_TAG, Spec};

/// Announced by proxies that speak the delta variant of ADS.
const DELTA_FEATURE: &str = "feature-delta-grpc";

/// The request, as kuma-dp sends it. What is not listed here has no influence on the bootstrap.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BootstrapRequest {
    mesh: String,
    name: String,
    proxy_type: String,
    dataplane_token: String,
    dataplane_resource: String,
    version: Value,
    ca_cert: String,
    dynamic_metadata: Map<String, Value>,
    dns_port: u32,
    readiness_port: u32,
    /// The name is a historical accident: true means that the probe proxy is enabled.
    app_probe_proxy_disabled: bool,
    features: Vec<String>,
    workdir: String,
    metrics_resources: MetricsResources,
    system_ca_path: String,
    dataplane_config: Value,
    ipv6_enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MetricsResources {
    cert_path: String,
    key_path: String,
}

/// Why there is no bootstrap.
#[derive(Debug)]
enum Refusal {
    /// The request makes no sense, or the proxy could not use the answer.
    BadRequest(String),
    /// The Dataplane is not there yet; the proxy asks again.
    NotFound,
    /// The proxy may not have it: what it says is not valid, or its token does not prove it.
    Unprocessable(String),
    /// The control plane failed.
    Internal(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Refusal::BadRequest(text) => (StatusCode::BAD_REQUEST, text),
            Refusal::NotFound => (StatusCode::NOT_FOUND, String::new()),
            Refusal::Unprocessable(text) => (StatusCode::UNPROCESSABLE_ENTITY, text),
            Refusal::Internal(text) => {
                tracing::error!(error = text, "could not make a bootstrap");
                (StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        };
        (status, text).into_response()
    }
}

/// The route.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().route("/bootstrap", post(handle)).with_state(shared)
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Refusal> {
    let request: BootstrapRequest =
        serde_json::from_slice(&body).map_err(|e| Refusal::BadRequest(format!("the request is not valid: {e}")))?;
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let asked = asked.or_else(|| uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
    let Made { bootstrap, address, aggregate } = make(&shared, &request, asked).await?;
    shared.stats.bootstrap();
    let yaml = serde_yaml_ng::to_string(&bootstrap).map_err(|e| Refusal::Internal(e.to_string()))?;
    let version = ("kuma-bootstrap-version", "3");
    let wants_json = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|accept| accept.to_str().is_ok_and(|accept| accept.contains("application/json")));
    if !wants_json {
        return Ok(([(header::CONTENT_TYPE.as_str(), "text/x-yaml"), version], yaml).into_response());
    }
    let answer = json!({
        "bootstrap": STANDARD.encode(yaml),
        "kumaSidecarConfiguration": {
            "networking": {"address": address},
            "metrics": {"aggregate": aggregate},
        },
    });
    Ok(([(header::CONTENT_TYPE.as_str(), "application/json"), version], answer.to_string()).into_response())
}

/// What a proxy is answered.
struct Made {
    bootstrap: Value,
    /// Address of the Dataplane.
    address: String,
    /// Applications whose metrics it passes on, if no MeshMetric says otherwise.
    aggregate: Vec<Value>,
}

async fn make(shared: &Shared, request: &BootstrapRequest, asked: &str) -> Result<Made, Refusal> {
    let proxy_type = ProxyType::parse(&request.proxy_type).ok_or_else(|| {
        let written = &request.proxy_type;
        Refusal::Unprocessable(format!("proxyType: {written:?} is not known; it is dataplane, ingress or egress"))
    })?;
    let host = match &shared.config.xds_host {
        Some(host) => host.clone(),
        None => host_of(asked).to_owned(),
    };
    if request.ca_cert.is_empty() && !shared.identity.covers(&host) {
        let names: Vec<&str> = shared.identity.names.iter().map(String::as_str).collect();
        return Err(Refusal::BadRequest(format!(
            "the proxy reaches the control plane as {host:?}, but the certificate of the data-plane server is only valid \
             for [{}]; use one of these in --cp-address, or give the control plane a certificate for {host:?}",
            names.join(", ")
        )));
    }
    if !request.ca_cert.is_empty()
        && !tls::is_ca(&request.ca_cert).map_err(|e| Refusal::BadRequest(format!("caCert: {e}")))?
    {
        return Err(Refusal::BadRequest(
            "caCert: the certificate is no certificate authority (basicConstraints CA:FALSE)".to_owned(),
        ));
    }
    let resource = proxy(shared, proxy_type, request).await?;
    let token = request.dataplane_token.trim();
    if shared.config.require_token {
        if token.is_empty() {
            return Err(Refusal::Unprocessable(format!(
                "dataplaneToken: token is required; generate one with 'shikactl generate {}' and pass it with \
                     --dataplane-token-file",
                if proxy_type == ProxyType::Dataplane { "dataplane-token" } else { "zone-token" }
            )));
        }
        admit::check_token(shared, token, &resource).await.map_err(|e| match e {
            TokenError::Store(error) => Refusal::Internal(error.to_string()),
            other => Refusal::Unprocessable(format!("dataplaneToken: {other}")),
        })?;
    }
    let Described { cluster, address, admin_port } = describe(&resource);
    let admin_port = admin_port.unwrap_or(shared.config.admin_port);
    let bootstrap = emit::bootstrap(&Bootstrap {
        mesh: &resource.meta.mesh,
        name: &request.name,
        cluster: &cluster,
        metadata: metadata(request, proxy_type, admin_port, shared.config.admin_unix_socket),
        host: &host,
        port: shared.port,
        ca: if request.ca_cert.is_empty() { &shared.identity.ca } else { &request.ca_cert },
        token,
        delta: request.features.iter().any(|feature| feature == DELTA_FEATURE),
        admin_port,
        admin_socket: shared.config.admin_unix_socket,
        work_dir: &request.workdir,
    });
    let aggregate = aggregate(shared, &resource).await?;
    Ok(Made { bootstrap, address, aggregate })
}

/// The applications that `metrics` of the mesh and of the Dataplane name (Kuma `getMetricsConfig` in `pkg/xds/bootstrap/generator.go`).
async fn aggregate(shared: &Shared, resource: &Resource) -> Result<Vec<Value>, Refusal> {
    let Some(dataplane) = resource.dataplane() else { return Ok(Vec::new()) };
    let mesh = shared.store.get(&ResourceKey::global(Kind::Mesh, &resource.meta.mesh)).await;
    let mesh = mesh.map_err(|e| Refusal::Internal(e.to_string()))?;
    let Some(conf) = mesh.as_ref().and_then(Resource::mesh).and_then(|mesh| mesh.prometheus_of(dataplane)) else {
        return Ok(Vec::new());
    };
    let conf = conf.map_err(Refusal::Unprocessable)?;
    let entries = conf.enabled().map(|entry| {
        let own = dataplane.address();
        let address = if entry.address.is_empty() { own } else { entry.address.as_str() };
        json!({"name": entry.name, "address": address, "port": entry.port, "path": entry.path})
    });
    Ok(entries.collect())
}

/// What the bootstrap takes from the resource that describes the proxy.
struct Described {
    /// `node.cluster`: the first service of a Dataplane, or the type of a zone proxy.
    cluster: String,
    address: String,
    admin_port: Option<u16>,
}

fn describe(resource: &Resource) -> Described {
    let (cluster, address, admin) = match &resource.spec {
        Spec::ZoneIngress(ingress) => {
            let networking = ingress.networking.clone().unwrap_or_default();
            ("ingress".to_owned(), networking.address, networking.admin)
        }
        Spec::ZoneEgress(egress) => {
            let networking = egress.networking.clone().unwrap_or_default();
            ("egress".to_owned(), networking.address, networking.admin)
        }
        Spec::Dataplane(dataplane) => {
            let tags = dataplane.tags();
            let service = tags.get(SERVICE_TAG).and_then(|services| services.first());
            let admin = dataplane.networking.as_ref().and_then(|networking| networking.admin.clone());
            let cluster = service.map_or_else(|| "unknown".to_owned(), String::clone);
            (cluster, dataplane.address().to_owned(), admin)
        }
        _ => ("unknown".to_owned(), String::new(), None),
    };
    let admin_port = admin.and_then(|admin| u16::try_from(admin.port).ok()).filter(|port| *port != 0);
    Described { cluster, address, admin_port }
}

/// The resource of the request that describes the proxy, or the stored one.
async fn proxy(shared: &Shared, proxy_type: ProxyType, request: &BootstrapRequest) -> Result<Resource, Refusal> {
    let internal = |e: crate::store::StoreError| Refusal::Internal(e.to_string());
    // A zone ingress or a zone egress serves all meshes; what kuma-dp names as its mesh does not count.
    let mesh = if proxy_type == ProxyType::Dataplane { request.mesh.as_str() } else { "" };
    if request.dataplane_resource.trim().is_empty() {
        let key = ResourceKey::new(proxy_type.kind(), mesh, &request.name);
        return shared.store.get(&key).await.map_err(internal)?.ok_or(Refusal::NotFound);
    }
    let resource = admit::read_proxy(shared, &request.dataplane_resource, proxy_type, mesh, &request.name)
        .map_err(|reason| Refusal::Unprocessable(format!("dataplaneResource: {reason}")))?;
    if proxy_type != ProxyType::Dataplane {
        admit::check_zone(shared, &resource).map_err(Refusal::Unprocessable)?;
        return Ok(resource);
    }
    let stored = shared.store.get(&ResourceKey::global(Kind::Mesh, mesh)).await.map_err(internal)?;
    match stored.as_ref().and_then(Resource::mesh) {
        None => Err(Refusal::Unprocessable(format!("mesh: mesh {mesh:?} does not exist; create it first"))),
        Some(stored) => {
            admit::check_membership(mesh, stored, &resource).map_err(Refusal::Unprocessable)?;
            Ok(resource)
        }
    }
}

/// `node.metadata`: ports and booleans as strings, as Kuma's readers expect them.
fn metadata(request: &BootstrapRequest, proxy_type: ProxyType, admin_port: u16, admin_socket: bool) -> Value {
    let mut metadata = Map::new();
    let mut put = |key: &str, value: Value| {
        metadata.insert(key.to_owned(), value);
    };
    if admin_port != 0 {
        put("dataplane.admin.port", json!(admin_port.to_string()));
        put("dataplane.admin.address", json!("127.0.0.1"));
    }
    if admin_socket && !request.workdir.is_empty() {
        put("dataplane.admin.socketPath", json!(emit::admin_socket(&request.workdir)));
    }
    if request.dns_port != 0 {
        put("dataplane.dns.port", json!(request.dns_port.to_string()));
    }
    if request.readiness_port != 0 {
        put("dataplane.readinessReporter.port", json!(request.readiness_port.to_string()));
    }
    if request.app_probe_proxy_disabled {
        put("dataplane.appProbeProxy.enabled", json!("true"));
    }
    put("dataplane.proxyType", json!(proxy_type.as_str()));
    if !request.dataplane_resource.is_empty() {
        put("dataplane.resource", json!(request.dataplane_resource));
    }
    if !request.dynamic_metadata.is_empty() {
        put("dynamicMetadata", Value::Object(request.dynamic_metadata.clone()));
    }
    put("features", json!(request.features));
    put("ipv6Enabled", json!(request.ipv6_enabled.unwrap_or(false)));
    put("metricsCertPath", json!(request.metrics_resources.cert_path));
    put("metricsKeyPath", json!(request.metrics_resources.key_path));
    put("systemCaPath", json!(request.system_ca_path));
    if request.dataplane_config.is_object() {
        put("transparentProxy", request.dataplane_config.clone());
    }
    if request.version.is_object() {
        put("version", request.version.clone());
    }
    put("workdir", json!(request.workdir));
    Value::Object(metadata)
}

/// The host of `host:port`, `[v6]:port`, `host` or `v6`.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match authority.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn hosts() {
        for (authority, host) in [
            ("cp:5678", "cp"),
            ("cp", "cp"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("[::1]:5678", "::1"),
            ("::1", "::1"),
            ("", ""),
        ] {
            assert_eq!(host_of(authority), host, "{authority}");
        }
    }
}
