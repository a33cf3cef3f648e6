//! A zone's side: connects to global, keeps both directions going, and connects again when that ends.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryFutureExt as _};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use shika_proto::kuma::mesh::v1alpha1::ZoneHealthCheckRequest;
use shika_proto::kuma::mesh::v1alpha1::global_kds_service_client::GlobalKdsServiceClient;
use shika_proto::kuma::mesh::v1alpha1::kds_sync_service_client::KdsSyncServiceClient;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::CompressionEncoding;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::inbox::{Inbox, InboxError};
use super::outbox::Outbox;
use super::{
    CLIENT_ID, Direction, FEATURES, INSTANCE, KDS_VERSION, MAX_MESSAGE, TIME, ZoneNode, skew, told_to_stop, unix_time,
};
use crate::lookup;
use crate::store::Store;

/// Requests for every kind fit into the queue before the call is made.
const QUEUE: usize = 64;
/// First and longest pause before the next attempt.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A connection that lasted so long makes the next pause a short one.
const STABLE: Duration = Duration::from_secs(30);
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How often an idle connection is asked whether it still lives, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// How often this zone says that it is there until global has said how often.
const HEALTH_CHECK: Duration = Duration::from_secs(300);

/// Where global is, and how this zone proves who it is.
#[derive(Clone, Debug)]
pub struct ZoneConfig {
    /// `grpcs://host:port`, or `grpc://host:port` without TLS (Kuma `multizone.zone.globalAddress`).
    pub global_address: String,
    /// What to trust, PEM file (Kuma `multizone.zone.kds.rootCaFile`). Needed with TLS.
    pub root_ca_file: Option<PathBuf>,
    /// Zone token of scope `cp`, file; read again for every connection.
    pub token_file: Option<PathBuf>,
    /// What this zone says of itself.
    pub node: ZoneNode,
}

/// Connects a zone to global.
#[derive(Debug)]
pub struct ZoneClient {
    store: Store,
    config: ZoneConfig,
    target: Target,
    connected: watch::Sender<bool>,
}

/// Where global is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    host: String,
    port: u16,
    tls: bool,
}

impl Target {
    fn parse(address: &str) -> Result<Target, String> {
        let expected = || format!("{address:?} is not the address of a global control plane: use grpcs://HOST:5685");
        let (scheme, rest) = address.split_once("://").ok_or_else(expected)?;
        let tls = match scheme {
            "grpcs" => true,
            "grpc" => false,
            _ => return Err(format!("unsupported scheme {scheme:?} in {address:?}; use grpcs, or grpc without TLS")),
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or_else(expected)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().map_err(|_| expected())?;
        if host.is_empty() { Err(expected()) } else { Ok(Target { host: host.to_owned(), port, tls }) }
    }
}

impl ZoneClient {
    /// Checks the address; nothing is connected yet.
    ///
    /// # Errors
    /// A text that says what is wrong with the address, or that TLS has nothing to trust.
    pub fn new(store: Store, config: ZoneConfig) -> Result<ZoneClient, String> {
        let target = Target::parse(&config.global_address)?;
        if target.tls && config.root_ca_file.is_none() {
            return Err(format!(
                "{} needs --kds-root-ca-file: the certificate authority of the global control plane, which it names when it \
                 starts",
                config.global_address
            ));
        }
        Ok(ZoneClient { store, config, target, connected: watch::Sender::new(false) })
    }

    /// Whether the zone is connected.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Keeps connected until `stopping`. What is stored stays as it is while global cannot be reached.
    pub async fn run(self, mut stopping: watch::Receiver<bool>) {
        let mut pause = PAUSE.0;
        loop {
            let began = tokio::time::Instant::now();
            let reason = tokio::select! {
                reason = self.connect() => reason,
                () = told_to_stop(&mut stopping) => return,
            };
            self.connected.send_replace(false);
            if began.elapsed() > STABLE {
                pause = PAUSE.0;
            }
            tracing::warn!(
                global = self.config.global_address,
                reason,
                again_in = ?pause,
                "not connected to global; the zone goes on with what it has"
            );
            // Many zones that lost the same global do not all come back in the same moment.
            let jitter = rand::random_range(0.8..1.2);
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
                () = told_to_stop(&mut stopping) => return,
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Holds one connection; returns why it ended.
    async fn connect(&self) -> String {
        let channel = match self.channel().await {
            Ok(channel) => channel,
            Err(reason) => return reason,
        };
        let metadata = match self.metadata() {
            Ok(metadata) => metadata,
            Err(reason) => return reason,
        };
        // When one of them ends all of them are begun anew.
        tokio::select! {
            reason = self.down(channel.clone(), &metadata) => reason,
            reason = self.up(channel.clone(), &metadata) => reason,
            reason = self.health(channel, &metadata) => reason,
        }
    }

    async fn channel(&self) -> Result<Channel, String> {
        let Target { host, port, tls } = &self.target;
        let tls = if *tls { Some(self.connector()?) } else { None };
        let target = (host.clone(), *port);
        let connector = tower::service_fn(move |_: http::Uri| {
            let (tls, target) = (tls.clone(), target.clone());
            async move {
                let stream = lookup::connect(&target.0, target.1).await?;
                stream.set_nodelay(true)?;
                match tls {
                    None => Ok::<_, io::Error>(TokioIo::new(MaybeTls::Plain(stream))),
                    Some(tls) => {
                        let name = ServerName::try_from(target.0).map_err(io::Error::other)?;
                        let stream = tls.connect(name, stream).await.map_err(with_hint)?;
                        Ok(TokioIo::new(MaybeTls::Tls(Box::new(stream))))
                    }
                }
            }
        });
        let endpoint = Endpoint::from_static("http://global")
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let connecting = tokio::time::timeout(CONNECT, endpoint.connect_with_connector(connector)).await;
        match connecting {
            Err(_) => Err(format!("no answer within {} s", CONNECT.as_secs())),
            Ok(Err(error)) => Err(innermost(&error)),
            Ok(Ok(channel)) => Ok(channel),
        }
    }

    fn connector(&self) -> Result<tokio_rustls::TlsConnector, String> {
        let file = self.config.root_ca_file.as_ref().ok_or("there is no --kds-root-ca-file")?;
        let text = std::fs::read(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|e| format!("{}: {e}", file.display()))?;
            roots.add(certificate).map_err(|e| format!("{}: {e}", file.display()))?;
        }
        if roots.is_empty() {
            return Err(format!("{} has no certificate", file.display()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
    }

    fn metadata(&self) -> Result<MetadataMap, String> {
        let mut metadata = MetadataMap::new();
        let value = |text: &str| MetadataValue::try_from(text).map_err(|e| format!("{text:?} cannot be sent: {e}"));
        metadata.insert(CLIENT_ID, value(&self.config.node.zone)?);
        metadata.insert(KDS_VERSION.0, value(KDS_VERSION.1)?);
        metadata.insert("version", value(&self.config.node.version)?);
        metadata.insert(INSTANCE, value(&self.config.node.instance)?);
        for feature in ["zone-ping-health", "hash-suffix"] {
            metadata.append(FEATURES, value(feature)?);
        }
        if let Some(file) = &self.config.token_file {
            let token = std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
            metadata.insert("authorization", value(token.trim())?);
        }
        Ok(metadata)
    }

    /// Resources from global.
    async fn down(&self, channel: Channel, metadata: &MetadataMap) -> String {
        let (requests, queue) = mpsc::channel(QUEUE);
        let request = with(metadata, ReceiverStream::new(queue));
        let mut client = sync_client(channel);
        let connected = self.connected.clone();
        // A server may answer the call only once it has something to send, so that the requests have to be on their way before.
        let call = async move {
            let response = client.global_to_zone_sync(request).await?;
            if let Some(ahead) = response.metadata().get(TIME).and_then(|time| time.to_str().ok()).and_then(skew) {
                let (seconds, which) = (ahead.unsigned_abs(), if ahead > 0 { "behind" } else { "ahead of" });
                tracing::error!(
                    "the clock of this zone is {seconds} s {which} that of global: certificates and tokens will be refused; \
                     set both clocks by NTP"
                );
            }
            tracing::info!("connected to global");
            connected.send_replace(true);
            Ok::<_, Status>(response.into_inner())
        };
        let responses = call.try_flatten_stream().boxed();
        let direction = Direction::ToZone(self.config.node.zone.clone());
        match Inbox::new(self.store.clone(), direction, &self.config.node).run(responses, requests).await {
            Ok(()) | Err(InboxError::Gone) => "global ended the stream".to_owned(),
            Err(InboxError::Store(error)) => format!("what global sent cannot be stored: {error}"),
            Err(InboxError::Stream(status)) => explain(&status),
        }
    }

    /// Resources to global.
    async fn up(&self, channel: Channel, metadata: &MetadataMap) -> String {
        let (responses, queue) = mpsc::channel(QUEUE);
        let request = with(metadata, ReceiverStream::new(queue));
        let mut client = sync_client(channel);
        let call = async move { Ok::<_, Status>(client.zone_to_global_sync(request).await?.into_inner()) };
        let requests = call.try_flatten_stream().boxed();
        let zone = &self.config.node.zone;
        let outbox = Outbox::new(self.store.clone(), Direction::ToGlobal(zone.clone()), zone);
        match outbox.run(requests, responses, |_| {}).await {
            Ok(()) => "global ended the stream".to_owned(),
            Err(status) => explain(&status),
        }
    }

    /// Says that the zone is there, as often as global wants to hear it.
    async fn health(&self, channel: Channel, metadata: &MetadataMap) -> String {
        let mut client = GlobalKdsServiceClient::new(channel).accept_compressed(CompressionEncoding::Gzip);
        let mut interval = HEALTH_CHECK;
        loop {
            match client.health_check(with(metadata, ZoneHealthCheckRequest {})).await {
                Ok(response) => {
                    let wanted = response.into_inner().interval.map_or(0, |interval| interval.seconds);
                    if let Some(wanted) = u64::try_from(wanted).ok().filter(|wanted| *wanted > 0) {
                        interval = Duration::from_secs(wanted);
                    }
                }
                Err(status) if status.code() == Code::Unimplemented => return std::future::pending().await,
                Err(status) => return explain(&status),
            }
            tokio::time::sleep(interval).await;
        }
    }
}

fn sync_client(channel: Channel) -> KdsSyncServiceClient<Channel> {
    KdsSyncServiceClient::new(channel)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

fn with<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    metadata.clone_into(request.metadata_mut());
    request.metadata_mut().insert(TIME, unix_time().into());
    request
}

fn explain(status: &Status) -> String {
    let reason = if status.message().is_empty() { innermost(status) } else { status.message().to_owned() };
    format!("{} ({:?})", reason, status.code())
}

/// The reason at the bottom, which is the one that helps.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Says with a failed handshake what to look at.
fn with_hint(error: io::Error) -> io::Error {
    use rustls::{CertificateError as Certificate, Error};
    let hint = match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(
            Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. }
            | Certificate::Expired
            | Certificate::ExpiredContext { .. },
        )) => "is the clock of this host right? Set it by NTP, as that of global",
        Some(Error::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature)) => {
            "--kds-root-ca-file has not the certificate authority of this global control plane, which it names when it starts"
        }
        Some(Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. })) => {
            "--kds-global-address has to be a name or an address that the certificate of global has"
        }
        Some(Error::InvalidMessage(_)) => {
            "what answers there speaks no TLS: the port for zones is 5685 unless --kds-port says otherwise"
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{error}: {hint}"))
}

/// A connection with or without TLS.
enum MaybeTls {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl tokio::io::AsyncRead for MaybeTls {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => std::pin::Pin::new(stream).poll_read(context, buffer),
            MaybeTls::Tls(stream) => std::pin::Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl tokio::io::AsyncWrite for MaybeTls {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => std::pin::Pin::new(stream).poll_write(context, bytes),
            MaybeTls::Tls(stream) => std::pin::Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => std::pin::Pin::new(stream).poll_flush(context),
            MaybeTls::Tls(stream) => std::pin::Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Plain(stream) => std::pin::Pin::new(stream).poll_shutdown(context),
            MaybeTls::Tls(stream) => std::pin::Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, Error, InvalidMessage};

    use super::*;

    #[test]
    fn addresses_of_global() {
        let target = |host: &str, port, tls| Ok(Target { host: host.to_owned(), port, tls });
        for (address, expected) in [
            ("grpcs://global:5685", target("global", 5685, true)),
            ("grpc://10.0.0.1:1/", target("10.0.0.1", 1, false)),
            ("grpcs://[2001:db8::1]:5685", target("2001:db8::1", 5685, true)),
            ("https://global:5685", Err("unsupported scheme \"https\"")),
            ("global:5685", Err("use grpcs://HOST:5685")),
            ("grpcs://global", Err("use grpcs://HOST:5685")),
            ("grpcs://:1", Err("use grpcs://HOST:5685")),
        ] {
            match (Target::parse(address), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, expected) => assert_eq!(found.map_err(|_| ""), expected, "{address}"),
            }
        }
    }

    #[test]
    fn a_failed_handshake_says_what_to_look_at() {
        for (error, expected) in [
            (Error::InvalidCertificate(CertificateError::NotValidYet), "clock"),
            (Error::InvalidCertificate(CertificateError::Expired), "clock"),
            (Error::InvalidCertificate(CertificateError::UnknownIssuer), "--kds-root-ca-file"),
            (Error::InvalidCertificate(CertificateError::BadSignature), "--kds-root-ca-file"),
            (Error::InvalidCertificate(CertificateError::NotValidForName), "--kds-global-address"),
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "5685"),
        ] {
            let reason = error.to_string();
            let found = with_hint(io::Error::new(io::ErrorKind::InvalidData, error)).to_string();
            assert!(found.starts_with(&reason) && found.contains(expected), "{found}");
        }
        assert_eq!(with_hint(io::Error::other("closed")).to_string(), "closed");
    }
}
