//! Calls of the control plane's REST API.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::config::ApiServer;
use crate::lookup;

/// Largest answer that is read: a page of a thousand resources is far below it.
const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

/// Calls one control plane. One connection for each call.
pub(super) struct Client {
    server: ApiServer,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    timeout: Duration,
}

/// An answer of the control plane.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Client {
    pub(super) fn new(server: ApiServer, timeout: Duration) -> anyhow::Result<Client> {
        let url: Uri = server.url.parse().with_context(|| format!("{:?} is not a URL", server.url))?;
        let host = url.host().with_context(|| format!("{:?} has no host; write http://HOST:PORT", server.url))?;
        let (default_port, tls) = match url.scheme_str() {
            Some("http") => (5681, None),
            Some("https") => (5682, Some(Arc::new(tls_config(&server)?))),
            _ => bail!("{:?} is neither http:// nor https://", server.url),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Client { port: url.port_u16().unwrap_or(default_port), host, tls, server, timeout })
    }

    /// Calls the control plane and returns whatever it answers.
    pub(super) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Reply> {
        let url = &self.server.url;
        match tokio::time::timeout(self.timeout, self.exchange(method, path, body)).await {
            Ok(reply) => reply.with_context(|| {
                format!("cannot call the control plane at {url}; is it running, and is this its address? (shikactl config control-planes list)")
            }),
            Err(_) => Err(anyhow!(
                "the control plane at {url} did not answer within {:?}; is it overloaded? (--api-timeout)",
                self.timeout
            )),
        }
    }

    /// Reads a document.
    pub(super) async fn get_json(&self, path: &str) -> anyhow::Result<Value> {
        let reply = self.call(Method::GET, path, None).await?;
        reply.json()
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Reply> {
        let stream = lookup::connect(&self.host, self.port).await?;
        let request = self.request(method, path, body)?;
        match &self.tls {
            None => exchange_on(stream, request).await,
            Some(config) => {
                let name = ServerName::try_from(self.host.clone()).context("the host is no valid server name")?;
                let stream = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
                exchange_on(stream.context("TLS handshake failed")?, request).await
            }
        }
    }

    fn request(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Request<Full<Bytes>>> {
        let base: Uri = self.server.url.parse()?;
        let target = format!("{}{path}", base.path().trim_end_matches('/'));
        let host = base.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
        request = request.header(header::ACCEPT, "application/json").header(header::CONTENT_TYPE, "application/json");
        for header in &self.server.headers {
            request = request.header(&header.key, &header.value);
        }
        if self.server.auth_type == "tokens"
            && let Some(token) = self.server.auth_conf.get("token")
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        request.body(Full::new(body.into())).context("a header or the path is not valid")
    }
}

impl Reply {
    /// The document, or the error that the control plane answered instead.
    pub(super) fn json(&self) -> anyhow::Result<Value> {
        self.check()?;
        serde_json::from_slice(&self.body).context("the control plane answered with something that is not JSON")
    }

    /// The text, or the error that the control plane answered instead.
    pub(super) fn text(&self) -> anyhow::Result<String> {
        self.check()?;
        String::from_utf8(self.body.to_vec()).context("the control plane answered with something that is not text")
    }

    /// Whether the control plane did as asked.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.status.is_success() {
            return Ok(());
        }
        let error: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |field: &str| error.get(field).and_then(Value::as_str);
        let (Some(title), Some(detail)) = (text("title"), text("detail")) else {
            bail!("the control plane answered {}: {}", self.status, String::from_utf8_lossy(&self.body).trim());
        };
        let mut message = format!("{title} ({detail})");
        for parameter in error.get("invalid_parameters").and_then(Value::as_array).into_iter().flatten() {
            let text = |field: &str| parameter.get(field).and_then(Value::as_str).unwrap_or_default();
            message.push_str(&format!("\n* {}: {}", text("field"), text("reason")));
        }
        bail!(message)
    }
}

async fn exchange_on<S>(stream: S, request: Request<Full<Bytes>>) -> anyhow::Result<Reply>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| anyhow!("the answer broke off: {error}"))?.to_bytes();
        anyhow::Ok(Reply { status, body })
    };
    tokio::pin!(exchange);
    // The connection carries the exchange; when it ends first, the exchange fails by itself.
    tokio::select! {
        reply = &mut exchange => reply,
        ended = connection => {
            ended?;
            exchange.await
        }
    }
}

fn tls_config(server: &ApiServer) -> anyhow::Result<ClientConfig> {
    if server.skip_verify {
        bail!(
            "skipVerify is not supported: anybody could then read the tokens that are sent to {}; give the certificate of \
             the control plane with --ca-cert-file instead",
            server.url
        );
    }
    if !server.client_cert_file.is_empty() || !server.client_key_file.is_empty() {
        bail!("client certificates are not supported; use a user token (--auth-type tokens --auth-conf token=…)");
    }
    if server.ca_cert_file.is_empty() {
        bail!("{} needs the certificate of its authority: add the control plane again with --ca-cert-file", server.url);
    }
    let pem = fs::read(&server.ca_cert_file).with_context(|| format!("cannot read {}", server.ca_cert_file))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.with_context(|| format!("{} is no PEM file", server.ca_cert_file))?;
        roots.add(certificate).with_context(|| format!("{} holds an unusable certificate", server.ca_cert_file))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}
