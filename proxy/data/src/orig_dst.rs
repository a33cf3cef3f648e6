//! The original destination of a redirected connection.

use std::net::SocketAddr;

use socket2::SockRef;

use crate::io::Socket;

/// What the client wanted to reach before the kernel redirected it (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`). `None` for a connection that was not
/// redirected, for Unix sockets, and where connection tracking is not available.
///
/// Source: Envoy `Network::Utility::getOriginalDst`.
pub fn original_destination(socket: &Socket) -> Option<SocketAddr> {
    let Socket::Tcp(tcp) = socket else { return None };
    let local = tcp.local_addr().ok()?;
    let socket = SockRef::from(tcp);
    // A v4 connection on a dual-stack socket is tracked as v4.
    let original =
        if local.ip().to_canonical().is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    let original = original.ok()?.as_socket()?;
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (canonical(original) != canonical(local)).then_some(original)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_direct_connection_has_none() -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let (client, accepted) =
            tokio::join!(tokio::net::TcpStream::connect(listener.local_addr()?), listener.accept());
        let (_client, (accepted, _)) = (client?, accepted?);
        assert_eq!(original_destination(&Socket::Tcp(accepted)), None);
        let (unix, _other) = tokio::net::UnixStream::pair()?;
        assert_eq!(original_destination(&Socket::Unix(unix)), None);
        Ok(())
    }
}
