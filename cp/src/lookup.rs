//! Addresses of a host, asked for once: by /etc/hosts and the name servers of /etc/resolv.conf.
//!
//! Not by the C library: a statically linked one loads the modules of the host's nsswitch.conf at run time, which may be built for another C
//! library, and without that file it asks DNS before /etc/hosts.

use std::io;
use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use tokio::net::TcpStream;

/// The addresses of a host name, IPv4 first, or the address that it is.
///
/// # Errors
/// No address, no answer, or no readable /etc/resolv.conf; with the name.
pub async fn addresses(host: &str) -> io::Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("cannot resolve {host:?}: {error}"));
    let mut builder = TokioResolver::builder_tokio().map_err(|error| failed(&format!("/etc/resolv.conf: {error}")))?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    let resolver = builder.build().map_err(|error| failed(&error))?;
    let found = resolver.lookup_ip(host).await.map_err(|error| failed(&error))?;
    let mut addresses: Vec<IpAddr> = found.iter().collect();
    // Stable: within a family the name server's order stays, which spreads load.
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(addresses)
}

/// Connects to the first address of a host that takes the connection.
///
/// # Errors
/// Those of [`addresses`], or the last address's.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host:?} has no address"));
    for address in addresses(host).await? {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[tokio::test]
    async fn literals_and_local_names_need_no_server() {
        for (host, expected) in [("192.0.2.7", "192.0.2.7"), ("::1", "::1"), ("localhost", "127.0.0.1")] {
            let found = addresses(host).await.expect(host);
            assert_eq!(found.first().map(IpAddr::to_string).as_deref(), Some(expected), "{host}");
        }
    }

    #[tokio::test]
    async fn an_error_names_the_host() {
        let error = addresses("no such name").await.expect_err("an error");
        assert!(error.to_string().contains("\"no such name\""), "{error}");
    }

    #[tokio::test]
    async fn every_address_is_tried() {
        // Listens on IPv4 or IPv6 alone; localhost is both.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        assert_eq!(connect("localhost", port).await.expect("a connection").peer_addr().expect("a peer").port(), port);
        drop(listener);
        let error = connect("localhost", port).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    }
}
