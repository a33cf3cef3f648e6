//! The admin interface's socket.

use std::{
    convert::Infallible,
    fs, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::SocketAddr as UnixAddress,
        },
    },
    path::Path,
    rc::Rc,
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use shika_data::model::listener::BindAddress;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tracing::debug;

use super::{Access, HEADER_TIMEOUT, answer, listeners::display};
use crate::state::State;

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;

/// A bound admin socket.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Pipe.
    Unix(UnixListener),
}

impl Listener {
    /// Binds. A stale socket file is removed first, as Envoy does.
    ///
    /// # Errors
    /// The address and what the kernel says.
    pub fn bind(address: &BindAddress) -> Result<Listener, String> {
        let failed = |error: io::Error| format!("admin: cannot bind '{}': {}", display(address), describe(&error));
        match address {
            BindAddress::Ip { address, .. } => {
                let listener = std::net::TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                TcpListener::from_std(listener).map(Listener::Tcp).map_err(failed)
            }
            BindAddress::Udp(address) => Err(format!("admin: '{address}': the admin interface needs TCP")),
            BindAddress::Unix { path, mode } => bind_unix(path, *mode).map(Listener::Unix).map_err(failed),
        }
    }

    /// Where it really listens, as written to `--admin-address-path`.
    pub fn address(&self) -> Option<String> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(|address| address.to_string()),
            Listener::Unix(listener) => listener
                .local_addr()
                .ok()
                .and_then(|address| address.as_pathname().map(|path| path.display().to_string())),
        }
    }
}

/// The kernel's text without Rust's number behind it.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn bind_unix(path: &Path, mode: Option<u32>) -> io::Result<UnixListener> {
    let listener = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => std::os::unix::net::UnixListener::bind_addr(&UnixAddress::from_abstract_name(name)?)?,
        None => {
            if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
                fs::remove_file(path)?;
            }
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            if let Some(mode) = mode {
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            }
            listener
        }
    };
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Serves until the task is dropped. Has to run in a [`tokio::task::LocalSet`].
pub async fn serve(listener: Listener, state: Rc<State>, access: Access) {
    let slots = Rc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Never closed, so never an error.
        let _ = slots.acquire().await.map(tokio::sync::SemaphorePermit::forget);
        let accepted = match &listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(socket, _)| spawn(socket, &state, &slots, access)),
            Listener::Unix(listener) => {
                listener.accept().await.map(|(socket, _)| spawn(socket, &state, &slots, access))
            }
        };
        if let Err(error) = accepted {
            slots.add_permits(1);
            debug!(%error, "admin: accept failed");
            // Out of descriptors, most likely: trying at once would only burn the thread.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

fn spawn(
    socket: impl AsyncRead + AsyncWrite + Unpin + 'static,
    state: &Rc<State>,
    slots: &Rc<Semaphore>,
    access: Access,
) {
    let (state, slots) = (state.clone(), slots.clone());
    tokio::task::spawn_local(async move {
        let service = service_fn(|request| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(answer(&state, request, access).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .half_close(true)
            .serve_connection(TokioIo::new(socket), service)
            .await;
        if let Err(error) = served {
            debug!(%error, "admin: connection ended");
        }
        slots.add_permits(1);
    });
}
