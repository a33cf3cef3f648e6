//! The readiness server: `GET /ready` on port 9902.
//!
//! Source: kuma `app/kuma-dp/pkg/dataplane/readiness`. Anything else is 404 on purpose: the port may be reachable from outside.

use std::{convert::Infallible, net::SocketAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tracing::debug;

use super::Sidecar;
use crate::state::{ServerState, State};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// A bound readiness socket.
pub struct Listener(TcpListener);

impl Listener {
    /// Binds, on all addresses in a pod and on loopback elsewhere; `None` where it is turned off.
    ///
    /// # Errors
    /// The address and what the kernel says.
    pub fn bind(sidecar: &Sidecar) -> Result<Option<Listener>, String> {
        if sidecar.readiness_port == 0 {
            return Ok(None);
        }
        let host = if sidecar.in_pod { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
        let address = SocketAddr::from((host, sidecar.readiness_port));
        let bind = || -> std::io::Result<TcpListener> {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        bind()
            .map(|listener| Some(Listener(listener)))
            .map_err(|error| format!("readiness: cannot bind '{address}': {error}"))
    }
}

/// Serves until the task is dropped. Has to run in a [`tokio::task::LocalSet`].
pub async fn serve(listener: Listener, state: Rc<State>) {
    let slots = Rc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed, so never an error.
        let _ = slots.acquire().await.map(tokio::sync::SemaphorePermit::forget);
        match listener.0.accept().await {
            Ok((socket, _)) => {
                let (state, slots) = (state.clone(), slots.clone());
                tokio::task::spawn_local(async move {
                    let service = service_fn(|request| {
                        let answer = answer(&state, &request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(Duration::from_secs(10))
                        .serve_connection(TokioIo::new(socket), service);
                    if let Err(error) = connection.await {
                        debug!(%error, "readiness: connection ended");
                    }
                    slots.add_permits(1);
                });
            }
            Err(error) => {
                slots.add_permits(1);
                debug!(%error, "readiness: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn answer<B>(state: &State, request: &http::Request<B>) -> Response<Full<Bytes>> {
    let (status, text) = if request.uri().path() != "/ready" {
        (StatusCode::NOT_FOUND, "404 page not found\n")
    } else if *request.method() != Method::GET && *request.method() != Method::HEAD {
        (StatusCode::METHOD_NOT_ALLOWED, "")
    } else if state.terminating.get() {
        (StatusCode::SERVICE_UNAVAILABLE, "TERMINATING")
    } else if state.server_state() == ServerState::Live {
        (StatusCode::OK, "READY")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY")
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
    headers.insert("x-powered-by", header::HeaderValue::from_static("kuma-dp"));
    response
}
