//! The application probe proxy: kubelets ask it, in the clear, about workloads that only take the mesh's mTLS.
//!
//! `/<port>/<path>?<query>` is an HTTP probe, `/tcp/<port>` a connect, `/grpc/<port>` a `grpc.health.v1.Health/Check`; control planes rewrite the probes
//! of a pod into these. Source: Kuma `app/kuma-dp/pkg/dataplane/probes`, `pkg/plugins/runtime/k8s/probes`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls_pki_types::ServerName;
use shika_data::model::tls::{ClientContext, ClientTlsSpec, Parameters};
use tokio::time::timeout;
use tracing::debug;

use super::{
    fetch,
    http_server::{self, Socket},
};
use crate::version;

/// Probes at once; more wait.
const MAX_CONNECTIONS: usize = 256;
/// As much of an answer is read, bytes.
const MAX_BODY: usize = 10 * 1024;
/// Bound on the timeout that a probe may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// Headers for this proxy and not for the workload begin so.
const PREFIX: &str = "x-kuma-probes-";
/// Timeout in seconds, default 1.
const TIMEOUT: HeaderName = HeaderName::from_static("x-kuma-probes-timeout");
/// `HTTPS` for TLS; the certificate is not looked at.
const SCHEME: HeaderName = HeaderName::from_static("x-kuma-probes-scheme");
/// `host` of the probe.
const HOST: HeaderName = HeaderName::from_static("x-kuma-probes-host");
/// Service of a gRPC health check.
const GRPC_SERVICE: HeaderName = HeaderName::from_static("x-kuma-probes-grpc-service");

/// How the proxy is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Port, on all addresses.
    pub port: u16,
    /// Where the workload is.
    pub address: IpAddr,
    /// Connections come from the address that is not redirected.
    pub transparent: bool,
}

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
enum Probe {
    Http { port: u16, path: String },
    Tcp { port: u16 },
    Grpc { port: u16 },
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Healthy,
    /// With the status of the workload's answer, if it gave one.
    Unhealthy(Option<StatusCode>),
    /// The probe makes no sense.
    Unknown,
}

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING`
const SERVING: i32 = 1;

/// Binds the port, on IPv6 and IPv4 where the host has both.
///
/// # Errors
/// The address and what the kernel says.
pub fn bind(setup: &Setup) -> Result<Socket, String> {
    let at = |ip: IpAddr| Socket::tcp("application probe proxy", SocketAddr::new(ip, setup.port));
    at(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| at(Ipv4Addr::UNSPECIFIED.into()))
}

/// Serves until the task is dropped. Has to run in a [`tokio::task::LocalSet`].
pub async fn serve(socket: Socket, setup: Setup) {
    let setup = Rc::new(setup);
    let answer = move |request: Request<Incoming>| {
        let setup = setup.clone();
        async move { reply(&setup.judge(request.uri(), request.headers()).await) }
    };
    http_server::serve("application probe proxy", socket, MAX_CONNECTIONS, answer).await;
}

impl Setup {
    async fn judge(&self, uri: &Uri, headers: &HeaderMap) -> Verdict {
        let Some(probe) = Probe::parse(uri) else { return Verdict::Unknown };
        let checked = async {
            match &probe {
                Probe::Http { port, path } => self.http(*port, path, headers).await,
                Probe::Tcp { port } => self.connect(*port).await.map(|_| Verdict::Healthy),
                Probe::Grpc { port } => self.grpc(*port, headers).await,
            }
        };
        let verdict = timeout(patience(headers), checked).await.unwrap_or_else(|_| Err("no answer in time".into()));
        verdict.unwrap_or_else(|error| {
            debug!("probe of {}: {error}", uri.path());
            Verdict::Unhealthy(None)
        })
    }

    async fn connect(&self, port: u16) -> Result<tokio::net::TcpStream, String> {
        fetch::connect(&self.address.to_string(), port, self.transparent)
            .await
            .map_err(|error| format!("cannot connect: {error}"))
    }

    async fn http(&self, port: u16, path: &str, asked: &HeaderMap) -> Result<Verdict, String> {
        let headers = self.headers(port, asked)?;
        let stream = self.connect(port).await?;
        let fetched = if asked.get(&SCHEME).is_some_and(|scheme| scheme == "HTTPS") {
            let context = tls()?;
            let name = ServerName::IpAddress(self.address.into());
            let stream = tokio_rustls::TlsConnector::from(context.config.clone())
                .connect(name, stream)
                .await
                .map_err(|error| format!("TLS handshake failed: {error}"))?;
            fetch::get(stream, path, headers, MAX_BODY).await?
        } else {
            fetch::get(stream, path, headers, MAX_BODY).await?
        };
        let good = fetched.status.is_success() || fetched.status.is_redirection();
        Ok(if good { Verdict::Healthy } else { Verdict::Unhealthy(Some(fetched.status)) })
    }

    /// The probe's own headers, and those that a kubelet would send.
    fn headers(&self, port: u16, asked: &HeaderMap) -> Result<HeaderMap, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in asked {
            let hop = [header::CONNECTION, header::HOST, header::TRANSFER_ENCODING, header::CONTENT_LENGTH];
            if !name.as_str().starts_with(PREFIX) && !hop.contains(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        let host = match asked.get(&HOST) {
            Some(host) => host.clone(),
            None => HeaderValue::from_str(&fetch::authority(&self.address.to_string(), port))
                .map_err(|error| error.to_string())?,
        };
        headers.insert(header::HOST, host);
        if !headers.contains_key(header::USER_AGENT) {
            headers.insert(header::USER_AGENT, agent("kuma-probe")?);
        }
        Ok(headers)
    }

    async fn grpc(&self, port: u16, asked: &HeaderMap) -> Result<Verdict, String> {
        let service = asked.get(&GRPC_SERVICE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let message = HealthCheckRequest { service }.encode_to_vec();
        // Length-prefixed and not compressed. gRPC over HTTP/2, "Length-Prefixed-Message".
        let mut body = BytesMut::with_capacity(5 + message.len());
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).map_err(|_| "the service's name is too long".to_owned())?);
        body.put_slice(&message);
        let authority = fetch::authority(&self.address.to_string(), port);
        let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .header(header::USER_AGENT, agent("kube-probe")?)
            .body(Full::new(body.freeze()))
            .map_err(|error| error.to_string())?;
        let stream = self.connect(port).await?;
        let failed = |error: hyper::Error| format!("no answer: {error}");
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(failed)?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(failed)?;
            let at_once = status(response.headers());
            let collected = Limited::new(response.into_body(), MAX_BODY).collect().await;
            let collected = collected.map_err(|error| format!("no whole answer: {error}"))?;
            let status = at_once.or_else(|| collected.trailers().and_then(status));
            match status.as_deref() {
                Some("0") => health(&collected.to_bytes()),
                Some(code) => Err(format!("gRPC status {code}")),
                None => Err("the answer has no grpc-status".into()),
            }
        };
        tokio::pin!(exchange);
        tokio::select! {
            result = &mut exchange => result,
            ended = connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(failed(error)),
            },
        }
    }
}

fn status(headers: &HeaderMap) -> Option<String> {
    headers.get("grpc-status").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn health(body: &[u8]) -> Result<Verdict, String> {
    let Some((&[0, _, _, _, _], message)) = body.split_first_chunk::<5>() else {
        return Err("the answer is no plain gRPC message".into());
    };
    let health = HealthCheckResponse::decode(message).map_err(|error| error.to_string())?;
    Ok(if health.status == SERVING { Verdict::Healthy } else { Verdict::Unhealthy(None) })
}

fn agent(name: &str) -> Result<HeaderValue, String> {
    HeaderValue::from_str(&format!("{name}/{}", version::SHIKA_VERSION)).map_err(|error| error.to_string())
}

/// Checks nothing, as kubelets do.
fn tls() -> Result<ClientContext, String> {
    ClientContext::build(&ClientTlsSpec {
        identity: None,
        validation: None,
        sni: None,
        alpn: vec![b"http/1.1".to_vec()],
        parameters: Parameters::default(),
        max_session_keys: 0,
    })
    .map_err(|error| error.to_string())
}

fn patience(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(&TIMEOUT).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    Duration::from_secs(seconds.filter(|seconds| *seconds > 0).unwrap_or(1)).min(MAX_TIMEOUT)
}

impl Probe {
    fn parse(uri: &Uri) -> Option<Probe> {
        let rest = uri.path().strip_prefix('/')?;
        let (kind, rest) = match rest.split_once('/') {
            Some((kind @ ("tcp" | "grpc"), rest)) => (kind, rest),
            _ => ("", rest),
        };
        let (port, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let digits = !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits)?;
        Some(match kind {
            "tcp" => Probe::Tcp { port },
            "grpc" => Probe::Grpc { port },
            _ => {
                let mut path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
                if let Some(query) = uri.query() {
                    path.push('?');
                    path.push_str(query);
                }
                Probe::Http { port, path }
            }
        })
    }
}

fn reply(verdict: &Verdict) -> Response<Full<Bytes>> {
    let (status, text) = match verdict {
        Verdict::Healthy => (StatusCode::OK, "HEALTHY\n"),
        Verdict::Unhealthy(status) => (status.unwrap_or(StatusCode::SERVICE_UNAVAILABLE), "UNHEALTHY\n"),
        Verdict::Unknown => (StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN\n"),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_kuma_writes_them() {
        let http = |port, path: &str| Some(Probe::Http { port, path: path.into() });
        for (uri, expected) in [
            ("/8080/healthz?full=1&x", http(8080, "/healthz?full=1&x")),
            ("/8080", http(8080, "/")),
            ("/8080/", http(8080, "/")),
            ("/8080?x=1", http(8080, "/?x=1")),
            ("/8080/a%20b/../c", http(8080, "/a%20b/../c")),
            ("/tcp/6379", Some(Probe::Tcp { port: 6379 })),
            ("/tcp/6379/x", Some(Probe::Tcp { port: 6379 })),
            ("/grpc/9000", Some(Probe::Grpc { port: 9000 })),
            ("/grpc/x", None),
            ("/tcp/", None),
            ("/tcp/65536", None),
            ("/65536/x", None),
            ("/+80/x", None),
            ("/http/8080", None),
            ("/", None),
        ] {
            assert_eq!(Probe::parse(&uri.parse().expect("a URI")), expected, "{uri}");
        }
    }

    #[test]
    fn timeouts() {
        for (value, seconds) in [(None, 1), (Some("5"), 5), (Some("soon"), 1), (Some("0"), 1), (Some("100000"), 300)] {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(TIMEOUT, HeaderValue::from_static(value));
            }
            assert_eq!(patience(&headers), Duration::from_secs(seconds), "{value:?}");
        }
    }

    #[test]
    fn the_workload_gets_the_probes_headers_only() {
        let setup = Setup { port: 9001, address: [10, 0, 0, 1].into(), transparent: false };
        let mut asked = HeaderMap::new();
        for (name, value) in
            [("host", "10.0.0.1:9001"), ("x-probe", "1"), ("x-kuma-probes-timeout", "3"), ("connection", "close")]
        {
            asked.insert(name, HeaderValue::from_static(value));
        }
        let headers = setup.headers(8080, &asked).expect("headers");
        assert_eq!(headers.get("host").expect("a host"), "10.0.0.1:8080");
        assert_eq!(headers.len(), 3, "{headers:?}");
        asked.insert(HOST, HeaderValue::from_static("app.example"));
        asked.insert("user-agent", HeaderValue::from_static("kube-probe/1.30"));
        let headers = setup.headers(8080, &asked).expect("headers");
        assert_eq!(
            (&headers["host"], &headers["user-agent"]),
            (&HeaderValue::from_static("app.example"), &HeaderValue::from_static("kube-probe/1.30"))
        );
    }

    #[test]
    fn health_messages() {
        assert_eq!(health(&[0, 0, 0, 0, 2, 8, 1]), Ok(Verdict::Healthy));
        assert_eq!(health(&[0, 0, 0, 0, 2, 8, 2]), Ok(Verdict::Unhealthy(None)));
        assert_eq!(health(&[0, 0, 0, 0, 0]), Ok(Verdict::Unhealthy(None)));
        for bad in [&[][..], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 1, 8]] {
            assert!(health(bad).is_err(), "{bad:?}");
        }
    }
}
