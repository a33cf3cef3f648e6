//! Small HTTP/1.1 servers beside the proxy: readiness, metrics, probes. All on the control thread, each with a bound on its connections.

use std::{convert::Infallible, fs, io, net::SocketAddr, path::Path, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
};
use tracing::debug;

/// How long a client may take for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: out of descriptors, most likely.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A bound socket.
pub enum Socket {
    /// A port.
    Tcp(TcpListener),
    /// A file.
    Unix(UnixListener),
}

impl Socket {
    /// Binds a port.
    ///
    /// # Errors
    /// Who (`what`) cannot bind which address, and what the kernel says.
    pub fn tcp(what: &str, address: SocketAddr) -> Result<Socket, String> {
        let bind = || -> io::Result<TcpListener> {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        bind().map(Socket::Tcp).map_err(|error| format!("{what}: cannot bind '{address}': {error}"))
    }

    /// Binds a file; one that is left from before is removed.
    ///
    /// # Errors
    /// Likewise.
    pub fn unix(what: &str, path: &Path) -> Result<Socket, String> {
        let bind = || -> io::Result<UnixListener> {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let listener = std::os::unix::net::UnixListener::bind(path)?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        bind().map(Socket::Unix).map_err(|error| format!("{what}: cannot bind '{}': {error}", path.display()))
    }
}

/// Serves until the task is dropped, `most` connections at once; more wait to be accepted. Has to run in a [`tokio::task::LocalSet`].
pub async fn serve<F, A, B>(what: &'static str, socket: Socket, most: usize, answer: F)
where
    F: Fn(Request<Incoming>) -> A + Clone + 'static,
    A: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let slots = Rc::new(Semaphore::new(most));
    loop {
        // Never closed, so never an error.
        let _ = slots.acquire().await.map(tokio::sync::SemaphorePermit::forget);
        let accepted = match &socket {
            Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| spawn(what, stream, &slots, &answer)),
            Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| spawn(what, stream, &slots, &answer)),
        };
        if let Err(error) = accepted {
            slots.add_permits(1);
            debug!(%error, "{what}: accept failed");
            tokio::time::sleep(BACK_OFF).await;
        }
    }
}

fn spawn<F, A, B>(
    what: &'static str,
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    slots: &Rc<Semaphore>,
    answer: &F,
) where
    F: Fn(Request<Incoming>) -> A + Clone + 'static,
    A: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes, Error = Infallible> + 'static,
{
    let (slots, answer) = (slots.clone(), answer.clone());
    tokio::task::spawn_local(async move {
        let service = service_fn(|request| {
            let answer = answer(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            debug!(%error, "{what}: connection ended");
        }
        slots.add_permits(1);
    });
}
