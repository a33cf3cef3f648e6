//! Secrets that change under load: certificates and authorities of listeners and of clusters, however the proxy is subscribed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use common::{
    LIMIT, Proxy, answer,
    control_plane::{Streams, control_plane},
    eventually, get, http_listener,
    planes::{Variant, authorities, certificate, cluster_of, leads_to, listener, listener_of},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned, crypto::aws_lc_rs,
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use shika_proto::{google::protobuf::Any, type_url};

/// An authority, and the key of all its leaves: what rotates is the certificate.
struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    key: KeyPair,
}

impl Ca {
    fn new(name: &str) -> Ca {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Ca { issuer, key: KeyPair::generate().unwrap() }
    }

    fn leaf(&self, number: u32) -> rcgen::Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("leaf-{number}."));
        params.subject_alt_names.push(SanType::DnsName("mesh.test".try_into().unwrap()));
        params.signed_by(&self.key, &self.issuer).unwrap()
    }

    /// The secret `name` with the leaf of this number.
    fn secret(&self, name: &str, number: u32) -> Any {
        certificate(name, &self.leaf(number).pem(), &self.key.serialize_pem())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn identity(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.leaf(0).der().clone()], PrivateKeyDer::try_from(self.key.serialize_der()).unwrap())
    }
}

/// `leaf-<number>.` in a certificate's subject.
fn number_of(leaf: &CertificateDer<'_>) -> u32 {
    let found = leaf.windows(5).position(|part| part == b"leaf-").unwrap() + 5;
    leaf[found..]
        .iter()
        .take_while(|digit| digit.is_ascii_digit())
        .fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
}

/// A client that shows a certificate of `own` and believes `peers`.
fn client(own: &Ca, peers: &Ca) -> Arc<ClientConfig> {
    let (chain, key) = own.identity();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(peers.roots())
        .with_client_auth_cert(chain, key)
        .unwrap();
    // Every handshake is a whole one.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

type Tls = BufReader<StreamOwned<ClientConnection, TcpStream>>;

fn connect(address: &str, config: &Arc<ClientConfig>) -> Tls {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let connection = ClientConnection::new(config.clone(), ServerName::try_from("mesh.test").unwrap()).unwrap();
    BufReader::new(StreamOwned::new(connection, socket))
}

/// One request on a connection; the body and the number of the certificate that the proxy shows.
fn exchange(tls: &mut Tls) -> (String, u32) {
    tls.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let found = answer(tls);
    assert_eq!(found.status, 200, "{found:?}");
    (found.body, number_of(&tls.get_ref().conn.peer_certificates().unwrap()[0]))
}

/// A listener with mutual TLS whose secrets come by SDS from this source.
fn tls_listener(source: &str) -> Any {
    let plain = http_listener(
        "web",
        "127.0.0.1:0",
        "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: ok}}}]}]}",
    );
    listener_of(&format!(
        "{plain}      transport_socket:
        name: tls
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs: [{{name: identity, sds_config: {source}}}]
            combined_validation_context:
              default_validation_context: {{match_typed_subject_alt_names: [{{san_type: DNS, matcher: {{exact: mesh.test}}}}]}}
              validation_context_sds_secret_config: {{name: peers, sds_config: {source}}}
"
    ))
}

/// New secrets, acknowledged: the next handshake is made with them.
async fn rotate(streams: &mut Streams, number: u32, identity: Any, peers: Any) {
    let ack = streams.send(type_url::SECRET, &number.to_string(), vec![("identity", identity), ("peers", peers)]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
}

/// Rotates the secrets of a listener while clients connect anew all the time and one connection stays open.
async fn listener_rotations(variant: Variant, rotations: u32) {
    let (servers, clients, others) = (Ca::new("servers"), Ca::new("clients"), Ca::new("others"));
    // The authority of the clients is always among those that are believed; what stands beside it changes.
    let believed = |number: u32| match number % 3 {
        0 => clients.issuer.pem(),
        1 => format!("{}{}", clients.issuer.pem(), others.issuer.pem()),
        _ => format!("{}{}", others.issuer.pem(), clients.issuer.pem()),
    };
    let (proxy, mut streams) = variant.start("", &[]).await;
    streams.send(type_url::CLUSTER, "1", vec![]).await;
    let ack = streams.send(type_url::LISTENER, "1", vec![("web", tls_listener(&variant.source("0s")))]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    // It waits for its secrets: nothing listens.
    let mut asked = streams.asked_for(type_url::SECRET, "identity").await;
    if !asked.names.contains(&"peers".to_owned()) {
        asked = streams.asked_for(type_url::SECRET, "peers").await;
    }
    assert!(asked.names.contains(&"peers".to_owned()), "{variant:?} {asked:?}");
    assert_eq!(get(&proxy.admin, "/listeners").body, "", "{variant:?}");
    rotate(&mut streams, 0, servers.secret("identity", 0), authorities("peers", &believed(0))).await;
    let web = proxy.listener("web");
    let config = client(&clients, &servers);

    let mut old = connect(&web, &config);
    assert_eq!(exchange(&mut old), ("ok".into(), 0));
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (web, config, stop, made) = (web.clone(), config.clone(), stop.clone(), made.clone());
        thread::spawn(move || {
            let mut last = 0;
            while !stop.load(Ordering::Relaxed) {
                let (body, number) = exchange(&mut connect(&web, &config));
                // Two workers take a new certificate one after the other, but none takes an old one again.
                assert!(body == "ok" && number + 1 >= last, "{number} after {last}");
                last = last.max(number);
                made.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    for number in 1..=rotations {
        rotate(&mut streams, number, servers.secret("identity", number), authorities("peers", &believed(number))).await;
    }
    // Acknowledged means in force.
    assert_eq!(exchange(&mut connect(&web, &config)), ("ok".into(), rotations), "{variant:?}");
    let before = made.load(Ordering::Relaxed);
    eventually("handshakes after the last rotation", || (made.load(Ordering::Relaxed) > before + 2).then_some(()));
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    // What was connected first is connected still.
    assert_eq!(exchange(&mut old), ("ok".into(), 0), "{variant:?}");
    let whole = made.load(Ordering::Relaxed) + 2;
    eventually("handshakes", || (proxy.stat(&handshakes(&proxy)) == whole).then_some(()));
    assert_eq!(proxy.stat("http.web.downstream_cx_total"), whole, "{variant:?}");
    eprintln!("{variant:?}: {whole} handshakes, none failed, during {rotations} rotations");

    // A client of an authority that is believed no more is kept out; a secret that cannot be used changes nothing.
    let nack = streams
        .send(type_url::SECRET, "bad", vec![("identity", certificate("identity", "no certificate", "no key"))])
        .await;
    let detail = nack.error_detail.expect("a refusal").message;
    assert!(detail.starts_with("Secret \"identity\": tls_certificate.certificate_chain"), "{variant:?} {detail}");
    assert!(!detail.contains("no key"), "{detail}");
    assert_eq!(exchange(&mut connect(&web, &config)), ("ok".into(), rotations), "{variant:?}");
    rotate(
        &mut streams,
        rotations + 1,
        servers.secret("identity", rotations + 1),
        authorities("peers", &others.issuer.pem()),
    )
    .await;
    let mut refused = connect(&web, &config);
    // With TLS 1.3 the client learns of it from the first read.
    let written = refused.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(written.is_err() || refused.read(&mut [0; 1]).is_err(), "{variant:?}: let in");
    let mut let_in = connect(&web, &client(&others, &servers));
    assert_eq!(exchange(&mut let_in), ("ok".into(), rotations + 1), "{variant:?}");
}

fn handshakes(proxy: &Proxy) -> String {
    let text = get(&proxy.admin, "/stats?filter=ssl.handshake$").body;
    text.lines()
        .find_map(|line| line.strip_prefix("listener."))
        .map_or_else(String::new, |line| format!("listener.{}", line.rsplit_once(": ").unwrap().0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_of_a_listeners_secrets_fail_no_handshake_in_delta() {
    listener_rotations(Variant::DeltaAds, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_rotations_of_a_listeners_secrets_fail_no_handshake_in_state_of_the_world() {
    listener_rotations(Variant::Ads, 1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_rotate_from_a_server_of_their_own() {
    listener_rotations(Variant::Delta, 100).await;
    listener_rotations(Variant::Grpc, 100).await;
}

/// Wants a certificate of `clients` and answers with its number; every answer ends the connection.
fn tls_upstream(servers: &Ca, clients: &Ca) -> SocketAddr {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(clients.roots(), provider.clone()).build().unwrap();
    let (chain, key) = servers.identity();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (socket, config) = (socket.unwrap(), config.clone());
            thread::spawn(move || {
                let mut tls = StreamOwned::new(ServerConnection::new(config).unwrap(), socket);
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    // A connection that fails here fails the request that the test asserts on.
                    if tls.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    head.push(byte[0]);
                }
                let number = number_of(&tls.conn.peer_certificates().unwrap()[0]).to_string();
                let _ = write!(
                    tls,
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{number}",
                    number.len()
                );
                tls.conn.send_close_notify();
                let _ = tls.flush();
            });
        }
    });
    address
}

/// A cluster with mutual TLS whose secrets come by SDS.
fn tls_cluster(variant: Variant, address: SocketAddr) -> Any {
    let (plain, source) = (common::cluster("backend", &address.to_string()), variant.source("0s"));
    cluster_of(&format!(
        "{plain}    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: mesh.test
        common_tls_context:
          tls_certificate_sds_secret_configs: [{{name: identity, sds_config: {source}}}]
          validation_context_sds_secret_config: {{name: peers, sds_config: {source}}}
"
    ))
}

async fn cluster_rotations(variant: Variant, rotations: u32) {
    let (servers, clients, others) = (Ca::new("servers"), Ca::new("clients"), Ca::new("others"));
    let upstream = tls_upstream(&servers, &clients);
    let believed = |number: u32| match number % 2 {
        0 => servers.issuer.pem(),
        _ => format!("{}{}", others.issuer.pem(), servers.issuer.pem()),
    };
    let (proxy, mut streams) = variant.start("", &[]).await;
    streams.send(type_url::CLUSTER, "1", vec![("backend", tls_cluster(variant, upstream))]).await;
    streams.asked_for(type_url::SECRET, "identity").await;
    assert!(get(&proxy.admin, "/init_dump").body.contains("backend"), "{variant:?}");
    rotate(&mut streams, 0, clients.secret("identity", 0), authorities("peers", &believed(0))).await;
    let routed = listener(&format!("route_config: {{virtual_hosts: [{}]}}", leads_to("backend")));
    let ack = streams.send(type_url::LISTENER, "1", vec![("web", routed)]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let web = proxy.listener("web");
    let shown = |web: &str| -> u32 {
        let found = get(web, "/");
        assert_eq!(found.status, 200, "{found:?}");
        found.body.parse().unwrap()
    };
    assert_eq!(shown(&web), 0, "{variant:?}");
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (web, stop) = (web.clone(), stop.clone());
        thread::spawn(move || {
            let mut made = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                shown(&web);
                made += 1;
            }
            made
        })
    };
    for number in 1..=rotations {
        rotate(&mut streams, number, clients.secret("identity", number), authorities("peers", &believed(number))).await;
    }
    assert_eq!(shown(&web), rotations, "{variant:?}");
    stop.store(true, Ordering::Relaxed);
    let made = load.join().unwrap();
    assert!(made > 0);
    assert_eq!(proxy.stat("cluster.backend.upstream_cx_connect_fail"), 0, "{variant:?}");
    assert_eq!(proxy.stat("cluster.backend.ssl.fail_verify_error"), 0, "{variant:?}");
    eprintln!("{variant:?}: {made} requests on new connections, none failed, during {rotations} rotations");

    // An upstream that is believed no more gets no request.
    rotate(&mut streams, rotations + 1, clients.secret("identity", 1), authorities("peers", &others.issuer.pem()))
        .await;
    let refused = get(&web, "/");
    assert_eq!(refused.status, 503, "{variant:?} {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_of_a_cluster_rotate_and_no_request_fails() {
    cluster_rotations(Variant::DeltaAds, 200).await;
    cluster_rotations(Variant::Ads, 200).await;
    cluster_rotations(Variant::Delta, 50).await;
    cluster_rotations(Variant::Grpc, 50).await;
}

/// As Kuma sets up SPIRE: the mesh's resources by ADS, secrets by a stream of their own from an agent that CDS brings, at a Unix socket in production.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_come_from_an_agent_that_the_control_plane_names() {
    let (servers, clients) = (Ca::new("servers"), Ca::new("clients"));
    let (proxy, mut streams) = Variant::DeltaAds.start("", &[]).await;
    let (agent, sessions) = control_plane().await;
    let mut agents = Streams::new(sessions);
    streams.send(type_url::CLUSTER, "1", vec![]).await;
    let source = "{api_config_source: {api_type: GRPC, grpc_services: [{envoy_grpc: {cluster_name: system_identity_sds-spire-agent}}]}}";
    let ack = streams.send(type_url::LISTENER, "1", vec![("web", tls_listener(source))]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    // The listener may come before the cluster of the agent.
    let plain = common::cluster("system_identity_sds-spire-agent", &agent.to_string());
    let cluster = cluster_of(&format!(
        "{plain}    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
"
    ));
    streams.send(type_url::CLUSTER, "2", vec![("system_identity_sds-spire-agent", cluster)]).await;
    let asked = agents.asked_for(type_url::SECRET, "identity").await;
    assert_eq!(asked.node.unwrap().id, "mesh.proxy");
    assert_eq!(asked.names, ["identity", "peers"]);
    let session = agents.of(type_url::SECRET).await;
    assert_eq!(session.method, "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets");
    rotate(&mut agents, 0, servers.secret("identity", 0), authorities("peers", &clients.issuer.pem())).await;
    let web = proxy.listener("web");
    let config = client(&clients, &servers);
    assert_eq!(exchange(&mut connect(&web, &config)), ("ok".into(), 0));
    // The agent goes away and comes back with another certificate.
    agents.cut();
    assert_eq!(exchange(&mut connect(&web, &config)), ("ok".into(), 0));
    let again = agents.request(type_url::SECRET).await;
    assert_eq!((again.version_info.as_str(), again.response_nonce.as_str()), ("0", ""));
    rotate(&mut agents, 1, servers.secret("identity", 1), authorities("peers", &clients.issuer.pem())).await;
    assert_eq!(exchange(&mut connect(&web, &config)), ("ok".into(), 1));
}
