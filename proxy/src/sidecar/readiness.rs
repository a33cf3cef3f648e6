//! The readiness server: `GET /ready` on port 9902.
//!
//! Source: kuma `app/kuma-dp/pkg/dataplane/readiness`. Anything else is 404 on purpose: the port may be reachable from outside.

use std::{
    convert::Infallible,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    rc::Rc,
    time::Duration,
};

use http::{HeaderValue, Response, StatusCode, header};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use shika_data::model::listener::BindAddress;
use shika_xds::bootstrap::Admin;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tracing::{debug, warn};

use super::{Sidecar, socket_path};
use crate::{
    admin,
    state::{ServerState, State},
};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Trap 22: the first DNS configuration is not waited for longer.
const DNS_WAIT: Duration = Duration::from_secs(15);
/// Name of the socket that Kuma up to 2.13 leads to.
const SOCKET: &str = "kuma-readiness-reporter";

/// A bound readiness socket.
pub enum Listener {
    /// Port 9902.
    Tcp(TcpListener),
    /// In the work directory.
    Unix(UnixListener),
}

impl Listener {
    /// Binds the port, where it is not turned off, and the Unix socket.
    ///
    /// # Errors
    /// The address and what the kernel says.
    pub fn bind(sidecar: &Sidecar, admin: Option<&Admin>) -> Result<Vec<Listener>, String> {
        let mut listeners = vec![unix(&socket_path(&sidecar.work_directory, SOCKET))?];
        if sidecar.readiness_port != 0 {
            let address = SocketAddr::new(host(sidecar, admin), sidecar.readiness_port);
            let bind = || -> io::Result<TcpListener> {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener)
            };
            let bound = bind().map_err(|error| format!("readiness: cannot bind '{address}': {error}"))?;
            listeners.push(Listener::Tcp(bound));
        }
        Ok(listeners)
    }
}

/// The admin interface's address if it has one; else all addresses in a pod, where the kubelet has to come in, and loopback elsewhere; in the family of
/// the proxy's own address.
fn host(sidecar: &Sidecar, admin: Option<&Admin>) -> IpAddr {
    if let Some(BindAddress::Ip { address, .. }) = admin.map(|admin| &admin.address) {
        return address.ip();
    }
    match (sidecar.in_pod, sidecar.address.is_some_and(|address| address.is_ipv6())) {
        (true, true) => Ipv6Addr::UNSPECIFIED.into(),
        (true, false) => Ipv4Addr::UNSPECIFIED.into(),
        (false, true) => Ipv6Addr::LOCALHOST.into(),
        (false, false) => Ipv4Addr::LOCALHOST.into(),
    }
}

fn unix(path: &Path) -> Result<Listener, String> {
    let bind = || -> io::Result<UnixListener> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener)
    };
    bind().map(Listener::Unix).map_err(|error| format!("readiness: cannot bind '{}': {error}", path.display()))
}

/// Serves until the task is dropped. Has to run in a [`tokio::task::LocalSet`].
pub async fn serve(listener: Listener, state: Rc<State>) {
    let slots = Rc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed, so never an error.
        let _ = slots.acquire().await.map(tokio::sync::SemaphorePermit::forget);
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(socket, _)| spawn(socket, &state, &slots)),
            Listener::Unix(listener) => listener.accept().await.map(|(socket, _)| spawn(socket, &state, &slots)),
        };
        if let Err(error) = accepted {
            slots.add_permits(1);
            debug!(%error, "readiness: accept failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn spawn(socket: impl AsyncRead + AsyncWrite + Unpin + 'static, state: &Rc<State>, slots: &Rc<Semaphore>) {
    let (state, slots) = (state.clone(), slots.clone());
    tokio::task::spawn_local(async move {
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
            let answer = answer(&state, request.uri().path());
            async move { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(socket), service);
        if let Err(error) = connection.await {
            debug!(%error, "readiness: connection ended");
        }
        slots.add_permits(1);
    });
}

fn answer(state: &State, path: &str) -> Response<admin::Body> {
    if path != "/ready" {
        let mut response = text(StatusCode::NOT_FOUND, "404 page not found\n");
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        return response;
    }
    let live = state.server_state() == ServerState::Live;
    let (status, name) = if state.terminating.get() {
        (StatusCode::SERVICE_UNAVAILABLE, "TERMINATING")
    } else if waits_for_dns(state) {
        (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY")
    } else if matches!(state.plan.admin.as_ref().map(|admin| &admin.address), Some(BindAddress::Unix { .. })) {
        // Kuma passes on what the admin interface says where only this port leads to it.
        return admin::ready(state);
    } else if live {
        (StatusCode::OK, "READY")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "NOT_READY")
    };
    let mut response = text(status, name);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert("x-powered-by", HeaderValue::from_static("kuma-dp"));
    response
}

/// Names of the mesh should resolve before the workload starts, but a control plane that has none to send must not hold it up.
fn waits_for_dns(state: &State) -> bool {
    let Some(dns) = &state.dns else { return false };
    if dns.configured() {
        return false;
    }
    if state.start.elapsed() < DNS_WAIT {
        return true;
    }
    if !state.dns_wait_over.replace(true) {
        warn!("no DNS configuration came within {} s; readiness does not wait for it any longer", DNS_WAIT.as_secs());
    }
    false
}

fn text(status: StatusCode, text: &'static str) -> Response<admin::Body> {
    let mut response = Response::new(admin::Body::Text(Some(text.into())));
    *response.status_mut() = status;
    // Known before the first piece, so that the answer is not chunked.
    response.headers_mut().insert(header::CONTENT_LENGTH, text.len().into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_it_listens() {
        let sidecar = |in_pod, address: Option<&str>| Sidecar {
            readiness_port: 9902,
            in_pod,
            address: address.and_then(|address| address.parse().ok()),
            work_directory: "/nowhere".into(),
            token_file: None,
            ca_file: None,
            dns: None,
        };
        for (in_pod, address, expected) in [
            (true, Some("10.0.0.1"), "0.0.0.0"),
            (true, Some("fd00::1"), "::"),
            (false, Some("10.0.0.1"), "127.0.0.1"),
            (false, Some("fd00::1"), "::1"),
            (false, None, "127.0.0.1"),
        ] {
            assert_eq!(host(&sidecar(in_pod, address), None).to_string(), expected);
        }
        let address = BindAddress::Ip { address: ([127, 0, 0, 2], 9901).into(), ipv4_compat: false };
        let admin = Admin { address, access_log: Vec::new() };
        assert_eq!(host(&sidecar(true, None), Some(&admin)).to_string(), "127.0.0.2");
    }
}
