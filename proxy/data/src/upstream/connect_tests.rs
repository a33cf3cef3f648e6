#![allow(clippy::unwrap_used, clippy::panic)]

use arc_swap::ArcSwapOption;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    inspect::replay,
    model::{
        proxy_protocol::{PassThrough, UpstreamProxyProtocol},
        tls::{ClientContext, ClientTls, ClientTlsSpec, Parameters, SanKind},
    },
    proxy_protocol::Version,
    stats::{Registry, SslFactoryStats, SslStats, UpstreamProxyProtocolStats},
    testing::{self, Ca, endpoint, exact, server_spec, server_tls},
    tls::accept::accept,
};

/// A connection that is made for nobody names its own ends in version 1; the header comes before TLS.
#[tokio::test]
async fn the_proxy_protocol_comes_before_tls() {
    let registry = Registry::new(1);
    let ca = Ca::new("ca");
    let server = server_tls(&registry, &server_spec(ca.issue(&["backend.mesh"]), None));
    let spec = ClientTlsSpec {
        identity: None,
        validation: Some(ca.validation(vec![exact(SanKind::Dns, "backend.mesh")])),
        sni: Some("backend.mesh".into()),
        alpn: Vec::new(),
        parameters: Parameters::default(),
        max_session_keys: 0,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut cluster = testing::cluster(&registry, 0, "test", vec![endpoint(address)]);
    cluster.tls = Some(Arc::new(ClientTls {
        context: ArcSwapOption::from_pointee(ClientContext::build(&spec).unwrap()),
        stats: SslStats::new(&registry, testing::scope("cluster.test.ssl.")),
        factory: SslFactoryStats::new(&registry, testing::scope("cluster.test.client_ssl_socket_factory.")),
    }));
    cluster.proxy_protocol = Some(Box::new(UpstreamProxyProtocol {
        version: Version::V1,
        pass_through: PassThrough::None,
        added: Vec::new(),
        stats: UpstreamProxyProtocolStats::new(&registry, testing::scope("cluster.test.upstream.proxyprotocol.")),
    }));
    let cluster = Arc::new(cluster);
    let endpoint = cluster.endpoints.load().all().next().unwrap().clone();

    let serving = async {
        let (mut socket, peer) = listener.accept().await.unwrap();
        let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", peer.port(), address.port());
        let mut line = vec![0; expected.len()];
        socket.read_exact(&mut line).await.unwrap();
        assert_eq!(String::from_utf8(line).unwrap(), expected);
        let mut accepted = accept(&server, replay(Default::default(), Socket::Tcp(socket.into())), None).await.unwrap();
        accepted.stream.write_all(b"x").await.unwrap();
        accepted.stream.flush().await.unwrap();
    };
    let connecting = async {
        let mut connection = connect(&cluster, &endpoint, AlpnChoice::Configured, None).await.unwrap();
        assert!(matches!(connection.io, UpstreamIo::Tls(_)));
        assert_eq!(connection.io.read_u8().await.unwrap(), b'x');
    };
    tokio::join!(serving, connecting);
}
