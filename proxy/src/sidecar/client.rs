//! The bootstrap request: one POST over TLS, tried until the control plane answers.
//!
//! Source: kuma `app/kuma-dp/pkg/dataplane/envoy/remote_bootstrap.go`.

use std::{fs, sync::Arc, time::Duration};

use base64::Engine;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use shika_data::model::{
    matcher::StringMatcher,
    tls::{ClientContext, ClientTlsSpec, Parameters, SanKind, SanMatcher, Trust, Validation},
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{arguments::Arguments, request::SYSTEM_CA_PATHS};
use crate::lookup;

/// Largest answer that is read.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Bound on one try.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// First pause after a failed connection; doubles up to `--retry-backoff`.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Why a try failed.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// Another try makes sense.
    Retry(String),
    /// The same, but not soon: the control plane is there and does not know the Dataplane yet.
    NotFound(String),
    /// The request itself is refused.
    Final(String),
}

/// Where the control plane is.
struct Address {
    host: String,
    port: u16,
    tls: Option<Arc<ClientContext>>,
}

/// The control plane's answer.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The bootstrap, YAML.
    pub bootstrap: String,
    /// `kumaSidecarConfiguration`: what is not Envoy's; null where there is none.
    pub sidecar: Value,
}

/// Asks for the bootstrap.
///
/// # Errors
/// The request is refused, or nothing else came of it within `--retry-max-duration`.
pub async fn bootstrap(arguments: &Arguments, body: &Value) -> Result<Answer, String> {
    let address = Address::new(arguments)?;
    let body = Bytes::from(body.to_string());
    let deadline = Instant::now() + arguments.retry_max_duration;
    let mut pause = FIRST_PAUSE.min(arguments.retry_backoff);
    loop {
        let tried = tokio::time::timeout(TRY_TIMEOUT, ask(&address, body.clone())).await;
        let failure = match tried {
            Ok(Ok(answer)) => {
                info!("the control plane {} sent the bootstrap", arguments.cp_address);
                return Ok(answer);
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Retry(format!("no answer within {} s", TRY_TIMEOUT.as_secs())),
        };
        let (why, wait) = match failure {
            Failure::Final(why) => {
                return Err(format!("the control plane {} refuses the bootstrap request: {why}", arguments.cp_address));
            }
            Failure::NotFound(why) => (why, arguments.retry_backoff),
            Failure::Retry(why) => {
                let wait = pause;
                pause = (pause * 2).min(arguments.retry_backoff);
                (why, jittered(wait))
            }
        };
        if Instant::now() + wait > deadline {
            return Err(format!(
                "no bootstrap from the control plane {} within {} s: {why}",
                arguments.cp_address,
                arguments.retry_max_duration.as_secs()
            ));
        }
        warn!(
            "no bootstrap from the control plane {} yet: {why}; next try in {:.1} s",
            arguments.cp_address,
            wait.as_secs_f64()
        );
        tokio::time::sleep(wait).await;
    }
}

/// Within a quarter of the pause, so that many sidecars do not come back at once.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.75..1.25))
}

impl Address {
    fn new(arguments: &Arguments) -> Result<Address, String> {
        let bad = |why: &str| format!("--cp-address {}: {why}", arguments.cp_address);
        let uri: Uri = arguments.cp_address.parse().map_err(|error| bad(&format!("{error}")))?;
        let host =
            uri.host().ok_or_else(|| bad("names no host"))?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure { Some(Arc::new(context(arguments, &host)?)) } else { None };
        Ok(Address { host, port, tls })
    }
}

/// What the control plane's certificate has to prove.
fn context(arguments: &Arguments, host: &str) -> Result<ClientContext, String> {
    let is_ip = host.parse::<std::net::IpAddr>().is_ok();
    let validation = if arguments.skip_verify {
        warn!("the control plane's certificate is not checked because of --skip-verify");
        None
    } else {
        let (path, authorities) = authorities(arguments)?;
        let kind = if is_ip { SanKind::Ip } else { SanKind::Dns };
        let matcher = StringMatcher::Exact { value: host.to_ascii_lowercase().into(), ignore_case: true };
        Some(Validation {
            trust: Trust::Authorities(authorities),
            sans: vec![SanMatcher { kind, matcher }],
            spki_hashes: Vec::new(),
            certificate_hashes: Vec::new(),
            allow_expired: false,
            accept_untrusted: false,
            path: path.as_str().into(),
        })
    };
    let spec = ClientTlsSpec {
        identity: None,
        validation,
        sni: (!is_ip).then(|| host.to_owned()),
        alpn: vec![b"http/1.1".to_vec()],
        parameters: Parameters::default(),
        max_session_keys: 1,
    };
    ClientContext::build(&spec).map_err(|error| format!("TLS to the control plane: {error}"))
}

fn authorities(arguments: &Arguments) -> Result<(String, Vec<CertificateDer<'static>>), String> {
    let given = arguments.ca()?;
    let (path, pem) = if given.is_empty() {
        let found = SYSTEM_CA_PATHS.iter().find_map(|path| Some(((*path).to_owned(), fs::read(path).ok()?)));
        found.ok_or("no CA for the control plane's certificate: there is no system bundle; pass --ca-cert-file")?
    } else {
        let path =
            arguments.ca_cert_file.as_ref().map_or_else(|| "<inline>".to_owned(), |path| path.display().to_string());
        (path, given.into_bytes())
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok((path, certificates)),
        Ok(_) => Err(format!("{path}: holds no certificate in PEM form")),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

async fn ask(address: &Address, body: Bytes) -> Result<Answer, Failure> {
    let retry = |what: &str, error: &dyn std::fmt::Display| Failure::Retry(format!("{what}: {error}"));
    let socket = lookup::connect(&address.host, address.port).await.map_err(|error| retry("cannot connect", &error))?;
    let authority = if address.host.contains(':') {
        format!("[{}]:{}", address.host, address.port)
    } else {
        format!("{}:{}", address.host, address.port)
    };
    let request = Request::post("/bootstrap")
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Full::new(body))
        .map_err(|error| Failure::Final(error.to_string()))?;
    match &address.tls {
        None => exchange(socket, request).await,
        Some(context) => {
            let name = match &context.sni {
                Some(name) => name.clone(),
                None => {
                    ServerName::try_from(address.host.clone()).map_err(|error| Failure::Final(error.to_string()))?
                }
            };
            let stream = tokio_rustls::TlsConnector::from(context.config.clone())
                .connect(name, socket)
                .await
                .map_err(|error| retry("TLS handshake failed", &error))?;
            exchange(stream, request).await
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Answer, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let failed = |error: hyper::Error| Failure::Retry(format!("no answer: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| Failure::Retry(format!("no whole answer: {error}")))?;
        judge(status, &body.to_bytes())
    };
    tokio::pin!(exchange);
    tokio::select! {
        result = &mut exchange => result,
        // The connection may end first, with the answer already read.
        ended = connection => match ended {
            Ok(()) => exchange.await,
            Err(error) => Err(failed(error)),
        },
    }
}

/// What an answer means.
fn judge(status: StatusCode, body: &[u8]) -> Result<Answer, Failure> {
    let text = String::from_utf8_lossy(body);
    let said = text.trim();
    match status {
        StatusCode::OK => unpack(&text).map_err(Failure::Final),
        StatusCode::NOT_FOUND if said.is_empty() => {
            Err(Failure::NotFound("the Dataplane is not there yet (404)".into()))
        }
        StatusCode::NOT_FOUND => {
            Err(Failure::NotFound(format!("404: {said}; is this the data-plane server's port (5678)?")))
        }
        status if status.is_client_error() => Err(Failure::Final(format!("{status}: {said}"))),
        status => Err(Failure::Retry(format!("{status}: {said}"))),
    }
}

/// The YAML within the JSON answer; an answer that is no JSON is the YAML itself.
fn unpack(text: &str) -> Result<Answer, String> {
    if !text.trim_start().starts_with('{') {
        return Ok(Answer { bootstrap: text.to_owned(), sidecar: Value::Null });
    }
    let mut answer: Value = serde_json::from_str(text).map_err(|error| format!("its answer is no JSON: {error}"))?;
    let encoded = answer.get("bootstrap").and_then(Value::as_str).ok_or("its answer has no field bootstrap")?;
    let bytes =
        base64::engine::general_purpose::STANDARD.decode(encoded).map_err(|error| format!("bootstrap: {error}"))?;
    let bootstrap = String::from_utf8(bytes).map_err(|error| format!("bootstrap: {error}"))?;
    let sidecar = answer.get_mut("kumaSidecarConfiguration").map_or(Value::Null, Value::take);
    Ok(Answer { bootstrap, sidecar })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trap 3: of the 4xx only 404 is tried again.
    #[test]
    fn answers_and_what_follows() {
        let answer = |sidecar: Value| Ok(Answer { bootstrap: "node: {}".into(), sidecar });
        let full =
            br#"{"bootstrap":"bm9kZToge30=","kumaSidecarConfiguration":{"networking":{"address":"192.168.0.1"}}}"#;
        assert_eq!(judge(StatusCode::OK, full), answer(serde_json::json!({"networking": {"address": "192.168.0.1"}})));
        assert_eq!(judge(StatusCode::OK, br#"{"bootstrap":"bm9kZToge30="}"#), answer(Value::Null));
        assert_eq!(judge(StatusCode::OK, b"node: {}"), answer(Value::Null));
        assert!(matches!(judge(StatusCode::OK, b"{}"), Err(Failure::Final(_))));
        assert!(matches!(judge(StatusCode::NOT_FOUND, b""), Err(Failure::NotFound(_))));
        assert!(
            matches!(judge(StatusCode::NOT_FOUND, b"404: Page Not Found"), Err(Failure::NotFound(why)) if why.contains("5678"))
        );
        assert!(
            matches!(judge(StatusCode::UNPROCESSABLE_ENTITY, b"token expired"), Err(Failure::Final(why)) if why.contains("token expired"))
        );
        for status in (400..500).filter(|status| *status != 404) {
            assert!(matches!(judge(StatusCode::from_u16(status).expect("a status"), b"x"), Err(Failure::Final(_))));
        }
        assert!(matches!(judge(StatusCode::INTERNAL_SERVER_ERROR, b"x"), Err(Failure::Retry(_))));
    }
}
