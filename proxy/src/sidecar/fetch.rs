//! One GET to a workload: for its metrics and its probes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
};

use crate::lookup;

/// Where connections to the workload come from under transparent proxying: the rules let these pass. Trap 28; kuma
/// `app/kuma-dp/pkg/dataplane/probes/component.go`.
const PASSTHROUGH: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(127, 0, 0, 6), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// An answer.
#[derive(Debug)]
pub struct Fetched {
    /// Status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, as much of it as was wanted.
    pub body: Bytes,
    /// There was more.
    pub cut: bool,
}

/// Connects to a workload. `transparent`: from the address that is not redirected.
///
/// # Errors
/// The kernel's.
pub async fn connect(host: &str, port: u16, transparent: bool) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in lookup::addresses(host).await? {
        let address = SocketAddr::new(address, port);
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if transparent {
            let source = match address.ip() {
                IpAddr::V4(_) => IpAddr::V4(PASSTHROUGH.0),
                IpAddr::V6(_) => IpAddr::V6(PASSTHROUGH.1),
            };
            socket.bind(SocketAddr::new(source, 0))?;
        }
        match socket.connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Sends a GET on a connection of its own and reads at most `limit` bytes of the answer's body. `headers` name the host. Bound it in time.
///
/// # Errors
/// What went wrong, in words.
pub async fn get<S>(stream: S, target: &str, mut headers: HeaderMap, limit: usize) -> Result<Fetched, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let mut request =
        Request::get(target).body(Empty::<Bytes>::new()).map_err(|error| format!("path {target:?}: {error}"))?;
    *request.headers_mut() = headers;
    let failed = |error: hyper::Error| format!("no answer: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let exchange = async move {
        let response = sender.send_request(request).await.map_err(failed)?;
        let (head, mut body) = response.into_parts();
        let (body, cut) = read(&mut body, limit).await?;
        Ok(Fetched { status: head.status, headers: head.headers, body, cut })
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

async fn read(body: &mut Incoming, limit: usize) -> Result<(Bytes, bool), String> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("no whole answer: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            let room = limit.saturating_sub(bytes.len());
            bytes.extend_from_slice(data.get(..room).unwrap_or_default());
            return Ok((bytes.freeze(), true));
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), false))
}

/// The value of `host`.
pub fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}
