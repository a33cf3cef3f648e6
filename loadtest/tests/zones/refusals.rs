//! What zone proxies refuse, and what they say of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use shika_cp::auth::ZoneScope;
use shika_cp::identity::ca::{self, CaPem, CertificateAuthority};
use shika_cp::identity::leaf::{self, Leaf, LeafRequest};
use shika_cp::resource::{Kind, ResourceKey};
use shika_cp::store::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::envoy::{application, get, until};
use super::stage::{HOUR, MESH, Part, Player, Stage, shika, zone};
use super::support::{Cp, PATIENCE, free_port};

/// A client does not ask who answers: it is the one who is judged.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a client says once its own side of the handshake is done.
#[derive(PartialEq)]
enum Then {
    Asks,
    /// A server that refuses may close upon an unread request, and its reset would overtake its alert.
    Listens,
}

/// Connects by that server name with that certificate; what the server says, or why it says nothing.
async fn call(port: u16, name: &str, leaf: Option<&Leaf>, then: Then) -> Result<String, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut config = match leaf {
        None => config.with_no_client_auth(),
        Some(leaf) => {
            let chain = vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"kuma".to_vec()];
    let exchange = async {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
        if then == Then::Asks {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await?;
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    };
    let result: Result<std::io::Result<String>, _> = tokio::time::timeout(PATIENCE, exchange).await;
    result.unwrap().map_err(|error| error.to_string())
}

/// The authority of a mesh, once it was made.
async fn authority(store: &Store, mesh: &str) -> CertificateAuthority {
    let text = async |name: String| {
        let key = ResourceKey::new(Kind::Secret, mesh, name);
        let search = async {
            loop {
                if let Some(found) = store.get(&key).await.unwrap() {
                    return String::from_utf8(found.secret().unwrap().data.clone()).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, search).await.unwrap()
    };
    let pem = CaPem {
        certificate: text(ca::certificate_secret(mesh, "ca-1")).await,
        key: text(ca::key_secret(mesh, "ca-1")).await,
    };
    CertificateAuthority::from_pem(mesh, &pem).unwrap()
}

/// A certificate of a mesh's client `web`, issued so many seconds from now.
fn web(authority: &CertificateAuthority, seconds: i64) -> Leaf {
    let mesh = authority.mesh();
    let request = LeafRequest {
        mesh: mesh.to_owned(),
        backend: "ca-1".to_owned(),
        authority: authority.fingerprint(),
        uris: vec![format!("spiffe://{mesh}/web"), "kuma://kuma.io/service/web".to_owned()],
        lifetime: HOUR,
    };
    leaf::issue(authority, &request, Utc::now() + chrono::TimeDelta::seconds(seconds)).unwrap()
}

/// The value of a counter of the listener on that port.
async fn counter(admin: u16, port: u16, name: &str) -> u64 {
    let (_, stats) = get(admin, &format!("/stats?filter={name}")).await.unwrap();
    let prefix = format!("listener.127.0.0.1_{port}.{name}: ");
    let line = stats.lines().find_map(|line| line.strip_prefix(prefix.as_str()));
    line.unwrap_or_else(|| panic!("no {prefix} in {stats}")).parse().unwrap()
}

/// Waits for a counter: a peer may learn that it is refused before the refusal is counted.
async fn counted(admin: u16, port: u16, name: &str, expected: u64) {
    let count = async {
        loop {
            match counter(admin, port, name).await {
                count if count < expected => tokio::time::sleep(Duration::from_millis(20)).await,
                count => return count,
            }
        }
    };
    let count = tokio::time::timeout(PATIENCE, count).await;
    assert_eq!(count.unwrap_or_else(|_| panic!("{name} stays below {expected}")), expected, "{name}");
}

/// One zone with both zone proxies, and a second mesh.
struct One {
    stage: Stage,
    cp: Cp,
    ingress: u16,
    egress: u16,
    admin: [u16; 2],
}

async fn one_zone() -> One {
    let mut stage = Stage::new(None);
    let cp = zone("east", stage.dir.path()).await;
    let [inbound, ingress, egress, ingress_admin, egress_admin] = std::array::from_fn(|_| free_port());
    let outside = application().await;
    cp.apply(MESH).await;
    cp.apply("{type: Mesh, name: other, mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}}").await;
    cp.apply(&format!(
        "
type: Dataplane
mesh: default
name: server-1
networking:
  address: 127.0.0.1
  inbound: [{{port: {inbound}, servicePort: 1, tags: {{kuma.io/service: server, kuma.io/protocol: http}}}}]
---
type: ZoneIngress
name: east-ingress
zone: east
networking: {{address: 127.0.0.1, port: {ingress}, admin: {{port: {ingress_admin}}}}}
availableServices: [{{mesh: default, instances: 1, tags: {{kuma.io/service: server, kuma.io/protocol: http}}}}]
---
type: ZoneEgress
name: east-egress
zone: east
networking: {{address: 127.0.0.1, port: {egress}, admin: {{port: {egress_admin}}}}}
---
type: MeshExternalService
mesh: default
name: outside
spec: {{match: {{port: 80, protocol: http}}, endpoints: [{{address: 127.0.0.1, port: {outside}}}]}}
"
    ))
    .await;
    for (name, proxy_type, scope, admin) in [
        ("east-ingress", "ingress", ZoneScope::Ingress, ingress_admin),
        ("east-egress", "egress", ZoneScope::Egress, egress_admin),
    ] {
        let token = cp.zone_token("east", &[scope], HOUR).await;
        stage.start(Player::Shika, Part { cp: &cp, name, proxy_type, token, admin }).await;
    }
    for (admin, port) in [(ingress_admin, ingress), (egress_admin, egress)] {
        let listener = format!("inbound:127.0.0.1:{port}");
        until(admin, "/listeners", |_, body| body.contains(&listener)).await;
    }
    One { stage, cp, ingress, egress, admin: [ingress_admin, egress_admin] }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_server_names_are_closed_counted_and_told_once_in_a_while() {
    let One { mut stage, cp, ingress, egress, admin: [ingress_admin, egress_admin] } = one_zone().await;
    for (port, admin, name) in [(ingress, ingress_admin, "east-ingress"), (egress, egress_admin, "east-egress")] {
        let begin = Instant::now();
        for _ in 0..20 {
            call(port, "unknown.example", None, Then::Asks).await.unwrap_err();
        }
        counted(admin, port, "no_filter_chain_match", 20).await;
        let log = stage.log(name);
        let lines: Vec<&str> = log.lines().filter(|line| line.contains("no filter chain matches")).collect();
        // The interval is ten seconds.
        let most = 1 + begin.elapsed().as_secs() / 10;
        assert!(!lines.is_empty() && lines.len() as u64 <= most, "{name}: {lines:#?}");
        assert!(lines[0].contains("unknown.example") && lines[0].contains(&port.to_string()), "{}", lines[0]);
    }
    stage.end().await;
    cp.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_good_certificate_do_not_leave_the_mesh() {
    let One { mut stage, cp, egress, admin: [_, admin], .. } = one_zone().await;
    let (own, other) = (authority(&cp.store, "default").await, authority(&cp.store, "other").await);
    let (_, dump) = until(admin, "/config_dump", |_, dump| dump.contains(".outside.80.default.mes")).await;
    let end = dump.find(".outside.80.default.mes").unwrap();
    let name = format!("{}.outside.80.default.mes", &dump[end - 17..end]);

    let good = web(&own, 0);
    let allowed = async {
        loop {
            match call(egress, &name, Some(&good), Then::Asks).await {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") => return,
                // The proxy may not have everything yet.
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, allowed).await.expect("a good certificate passes");
    // A warning comes once in a while; every refusal is told at level debug.
    for (leaf, sort, reason) in [
        (Some(web(&other, 0)), "ssl.fail_verify_error", "certificate is not signed by a trusted authority"),
        // The clock of the control plane that issued it is ten minutes ahead.
        (Some(web(&own, 600)), "ssl.fail_verify_error", "is not valid for another 5"),
        (None, "ssl.fail_verify_no_cert", "the peer showed no certificate, and one is required"),
    ] {
        let sort_so_far = counter(admin, egress, sort).await;
        let error = call(egress, &name, leaf.as_ref(), Then::Listens).await.unwrap_err();
        assert!(error.to_lowercase().contains("alert"), "{error}");
        counted(admin, egress, sort, sort_so_far + 1).await;
        let told = async {
            while !stage.log("east-egress").lines().any(|line| line.contains(reason) && line.contains(&name)) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, told).await.is_err() {
            panic!("{reason} expected in {}", stage.log("east-egress"));
        }
    }
    let log = stage.log("east-egress");
    let warned = log.lines().find(|line| line.contains("not signed by a trusted authority")).unwrap();
    assert!(warned.contains("spiffe://other/web") && warned.to_lowercase().contains("warn"), "{warned}");
    stage.end().await;
    cp.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn zone_proxies_with_a_wrong_token_end_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let cp = zone("east", dir.path()).await;
    cp.apply("{type: ZoneEgress, name: e, zone: east, networking: {address: 127.0.0.1, port: 10002}}").await;
    for (name, token, reason) in [
        (
            "other-zone",
            cp.zone_token("west", &[ZoneScope::Egress], HOUR).await,
            "zone from requestor: east is different than in token: west",
        ),
        ("expired", cp.expired_zone_token("east").await, "token is expired since"),
        ("early", cp.zone_token_between("east", 600, 3600).await, "s in the future. Check if the system clocks"),
        ("ingress", cp.zone_token("east", &[ZoneScope::Ingress], HOUR).await, "egress is out of token's scope"),
    ] {
        let part = Part { cp: &cp, name: "e", proxy_type: "egress", token, admin: 0 };
        let mut child = shika(&part, dir.path());
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        let log = std::fs::read_to_string(dir.path().join("e.log")).unwrap();
        assert_eq!(status.code(), Some(1), "{name}: {log}");
        assert!(log.contains(reason), "{name}: {reason} expected in {log}");
    }
    cp.stop().await;
}
