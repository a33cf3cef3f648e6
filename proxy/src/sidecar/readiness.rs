//! The readiness server: `GET /ready` on port 9902.
//!
//! Source: kuma `app/kuma-dp/pkg/dataplane/readiness`. Anything else is 404 on purpose: the port may be reachable from outside.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use http::{HeaderValue, Response, StatusCode, header};
use shika_data::model::listener::BindAddress;
use shika_xds::bootstrap::Admin;
use tracing::warn;

use super::{
    Sidecar,
    http_server::{self, Socket},
    socket_path,
};
use crate::{
    admin,
    state::{ServerState, State},
};

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// Trap 22: the first DNS configuration is not waited for longer.
const DNS_WAIT: Duration = Duration::from_secs(15);
/// Name of the socket that Kuma up to 2.13 leads to.
const SOCKET: &str = "kuma-readiness-reporter";

/// Binds the port, where it is not turned off, and the Unix socket.
///
/// # Errors
/// The address and what the kernel says.
pub fn bind(sidecar: &Sidecar, admin: Option<&Admin>) -> Result<Vec<Socket>, String> {
    let mut sockets = vec![Socket::unix("readiness", &socket_path(&sidecar.work_directory, SOCKET))?];
    if sidecar.readiness_port != 0 {
        sockets.push(Socket::tcp("readiness", SocketAddr::new(host(sidecar, admin), sidecar.readiness_port))?);
    }
    Ok(sockets)
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

/// Serves until the task is dropped. Has to run in a [`tokio::task::LocalSet`].
pub async fn serve(socket: Socket, state: Rc<State>) {
    let answer =
        move |request: http::Request<hyper::body::Incoming>| std::future::ready(answer(&state, request.uri().path()));
    http_server::serve("readiness", socket, MAX_CONNECTIONS, answer).await;
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
            access_log_pipe: "/nowhere".into(),
            metrics: None,
            probes: None,
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
