#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    ContextError,
    accept::{AcceptError, Accepted, accept},
    connect::connect,
};
use crate::{
    error::ConnectError,
    inspect::replay,
    io::{Socket, UpstreamIo},
    model::tls::{
        ClientContext, ClientTls, ClientTlsSpec, Identity, Parameters, SanKind, ServerContext, ServerTls,
        ServerTlsSpec, TlsVersion, Trust, Validation,
    },
    stats::{Registry, SslFactoryStats, SslStats},
    testing::{self, Ca, Leaf, exact, no_validation, server_spec},
    upstream::connect::AlpnChoice,
};

pub(super) fn client_spec(identity: Option<Identity>, validation: Option<Validation>) -> ClientTlsSpec {
    ClientTlsSpec {
        identity,
        validation,
        sni: Some("backend.mesh".into()),
        alpn: Vec::new(),
        parameters: Parameters::default(),
        max_session_keys: 1,
    }
}

pub(super) struct Sides {
    pub(super) client: ClientTls,
    pub(super) server: Arc<ServerTls>,
}

/// Handshakes that failed, each counted once.
fn failures(stats: &SslStats) -> u64 {
    let all = [
        stats.connection_error(),
        stats.fail_verify_error(),
        stats.fail_verify_san(),
        stats.fail_verify_cert_hash(),
        stats.fail_verify_no_cert(),
    ];
    all.map(|counter| counter.total()).iter().sum()
}

pub(super) fn sides(client: &ClientTlsSpec, server: &ServerTlsSpec) -> Sides {
    let registry = Registry::new(1);
    Sides {
        client: ClientTls {
            context: ArcSwapOption::from_pointee(ClientContext::build(client).unwrap()),
            stats: SslStats::new(&registry, testing::scope("cluster.test.ssl.")),
            factory: SslFactoryStats::new(&registry, testing::scope("cluster.test.client_ssl_socket_factory.")),
        },
        server: testing::server_tls(&registry, server),
    }
}

impl Sides {
    /// One handshake and, where both sides think it went well, one byte each way: a TLS 1.3 client learns only then that it was refused.
    pub(super) async fn shake(&self) -> (Result<UpstreamIo, ConnectError>, Result<Accepted, AcceptError>) {
        let (client, server) = testing::pair().await;
        let peer = server.peer_addr().ok();
        let endpoint = testing::endpoint(client.peer_addr().unwrap());
        let server = async {
            let mut accepted =
                accept(&self.server, replay(Default::default(), Socket::Tcp(server.into())), peer).await?;
            accepted.stream.write_all(b"x").await.unwrap();
            accepted.stream.flush().await.unwrap();
            Ok(accepted)
        };
        let client = async {
            let mut io = connect(&self.client, Socket::Tcp(client.into()), &endpoint, AlpnChoice::Configured).await?;
            let _ = io.read(&mut [0]).await;
            Ok(io)
        };
        tokio::join!(client, server)
    }
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let ca = Ca::new("ca");
    let server = server_spec(ca.issue(&["spiffe://mesh/backend", "backend.mesh"]), Some(ca.validation(Vec::new())));
    let client = client_spec(
        Some(ca.issue(&["spiffe://mesh/frontend"])),
        Some(ca.validation(vec![exact(SanKind::Uri, "spiffe://mesh/backend")])),
    );
    let sides = sides(&client, &server);
    let (client, accepted) = sides.shake().await;
    client.unwrap();
    let accepted = accepted.unwrap();
    assert_eq!(accepted.peer.names.as_ref().unwrap().uris, ["spiffe://mesh/frontend".into()]);
    assert_eq!(&*accepted.sni, "backend.mesh");
    assert_eq!(accepted.peer.version, "TLSv1.3");
    assert_eq!(accepted.peer.cipher, "TLS_AES_128_GCM_SHA256");
    assert_eq!(accepted.peer.own_uri.as_deref(), Some("spiffe://mesh/backend"));
    assert!(accepted.peer.fingerprint.is_some() && accepted.alpn.is_none() && !accepted.peer.resumed);
    assert_eq!((sides.server.stats.handshake().total(), sides.client.stats.handshake().total()), (1, 1));

    // The second handshake resumes the session and still knows the peer.
    let (client, accepted) = sides.shake().await;
    client.unwrap();
    let accepted = accepted.unwrap();
    assert!(accepted.peer.resumed);
    assert_eq!(accepted.peer.names.unwrap().uris, ["spiffe://mesh/frontend".into()]);
    assert_eq!((sides.server.stats.session_reused().total(), sides.client.stats.session_reused().total()), (1, 1));
}

#[tokio::test]
async fn names_that_are_no_dns_names_are_said_as_they_are() {
    let ca = Ca::new("ca");
    let name = "backend{mesh=demo}";
    for maximum in [TlsVersion::V1_2, TlsVersion::V1_3] {
        let server = server_spec(ca.issue(&["spiffe://mesh/backend"]), Some(ca.validation(Vec::new())));
        let client = ClientTlsSpec {
            sni: Some(name.into()),
            parameters: Parameters { maximum: Some(maximum), ..Parameters::default() },
            ..client_spec(Some(ca.issue(&["spiffe://mesh/frontend"])), Some(ca.validation(Vec::new())))
        };
        let sides = sides(&client, &server);
        for resumed in [false, true] {
            let (client, accepted) = sides.shake().await;
            client.unwrap();
            let accepted = accepted.unwrap();
            assert_eq!((&*accepted.sni, accepted.peer.resumed), (name, resumed), "{maximum:?}");
        }
        // A peer that is not ours sees that name, and only that.
        let (client, mut server) = testing::pair().await;
        let endpoint = testing::endpoint(client.peer_addr().unwrap());
        let peer = async {
            let mut bytes = vec![0; 16 * 1024];
            let n = server.read(&mut bytes).await.unwrap();
            drop(server);
            String::from_utf8_lossy(&bytes[..n]).into_owned()
        };
        let connecting = connect(&sides.client, Socket::Tcp(client.into()), &endpoint, AlpnChoice::Configured);
        let (result, seen) = tokio::join!(connecting, peer);
        assert!(result.unwrap_err().to_string().contains(name));
        assert!(seen.contains(name) && !seen.contains("invalid"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_name_in_the_stand_ins_alphabet_is_no_other_name() {
    let ca = Ca::new("ca");
    // `backend{mesh=default}`, as a client would write it that hopes to be taken for it.
    let name = "MJQWG23FNZSHW3LFONUD2ZDFMZQXK3DUPU.SNI.SHIKA.INVALID";
    let client = ClientTlsSpec { sni: Some(name.into()), ..client_spec(None, None) };
    let (client, accepted) = sides(&client, &server_spec(ca.issue(&["backend.mesh"]), None)).shake().await;
    client.unwrap();
    assert_eq!(*accepted.unwrap().sni, *name.to_ascii_lowercase());
}

#[tokio::test]
async fn a_second_hello_says_the_real_name_too() {
    let ca = Ca::new("ca");
    let name = "backend{mesh=demo}";
    let client = ClientTlsSpec { sni: Some(name.into()), ..client_spec(None, None) };
    let sides = sides(&client, &server_spec(ca.issue(&["backend.mesh"]), None));
    let (client, mut server) = testing::pair().await;
    let endpoint = testing::endpoint(client.peer_addr().unwrap());
    let peer = async {
        let mut first = vec![0; 16 * 1024];
        let n = server.read(&mut first).await.unwrap();
        // A HelloRetryRequest for secp256r1 (RFC 8446 section 4.1.4), with the session id that the client made up.
        let session = &first[43..44 + usize::from(first[43])];
        let random = b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91\xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c";
        let extensions = [0, 12, 0, 0x2b, 0, 2, 3, 4, 0, 0x33, 0, 2, 0, 0x17];
        let body = [&[3, 3][..], random, session, &[0x13, 2, 0], &extensions].concat();
        let retry = [&[22, 3, 3, 0, body.len() as u8 + 4, 2, 0, 0, body.len() as u8][..], &body].concat();
        server.write_all(&retry).await.unwrap();
        server.shutdown().await.unwrap();
        let mut second = Vec::new();
        server.read_to_end(&mut second).await.unwrap();
        [&first[..n], &second].map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    let (result, seen) =
        tokio::join!(connect(&sides.client, Socket::Tcp(client.into()), &endpoint, AlpnChoice::Configured), peer);
    assert!(result.is_err());
    for hello in seen {
        assert!(hello.contains(name) && !hello.contains("invalid"), "{hello:?}");
    }
}

/// A connection whose client has said this already.
async fn accept_after(server: &ServerTls, hello: &[u8]) -> Result<Accepted, AcceptError> {
    let (mut client, socket) = testing::pair().await;
    client.write_all(hello).await.unwrap();
    client.shutdown().await.unwrap();
    accept(server, replay(Default::default(), Socket::Tcp(socket.into())), None).await
}

#[tokio::test]
async fn reasons_stay_within_their_line() {
    let ca = Ca::new("ca");
    let sides = sides(&client_spec(None, None), &server_spec(ca.issue(&["backend.mesh"]), None));
    // A ClientHello that offers nothing but a name.
    let name = b"evil{\nforged line";
    let extension =
        [&[0, 0, 0, name.len() as u8 + 5, 0, name.len() as u8 + 3, 0, 0, name.len() as u8][..], name].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0, 0, extension.len() as u8], &extension].concat();
    let hello = [&[22, 3, 1, 0, body.len() as u8 + 4, 1, 0, 0, body.len() as u8][..], &body].concat();
    let reason = accept_after(&sides.server, &hello).await.unwrap_err().to_string();
    assert!(reason.contains("SNI evil{\\nforged line: "), "{reason}");
    assert!(!reason.contains('\n'), "{reason:?}");
}

#[tokio::test]
async fn refusals_say_what_was_expected_and_what_was_shown() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let frontend = || Some(ca.issue(&["spiffe://mesh/frontend"]));
    let backend = || ca.issue(&["spiffe://mesh/backend"]);
    let client_usage = vec![ExtendedKeyUsagePurpose::ClientAuth];
    for (name, client, server, client_text, server_text) in [
        (
            "wrong name of the server",
            client_spec(frontend(), Some(ca.validation(vec![exact(SanKind::Uri, "spiffe://mesh/database")]))),
            server_spec(backend(), Some(ca.validation(Vec::new()))),
            Some(
                "SNI backend.mesh: CERTIFICATE_VERIFY_FAILED: the peer's name does not match; expected any of: URI:spiffe://mesh/database; presented: URI:spiffe://mesh/backend",
            ),
            None,
        ),
        (
            "unknown authority of the client",
            client_spec(Some(other.issue(&["spiffe://mesh/frontend"])), None),
            server_spec(backend(), Some(ca.validation(Vec::new()))),
            None,
            Some(
                "SNI backend.mesh: CERTIFICATE_VERIFY_FAILED: the certificate is not signed by a trusted authority; presented: URI:spiffe://mesh/frontend",
            ),
        ),
        (
            "no client certificate",
            client_spec(None, None),
            server_spec(backend(), Some(ca.validation(Vec::new()))),
            None,
            Some("the peer showed no certificate, and one is required"),
        ),
        (
            "expired client",
            client_spec(
                Some(ca.issue_leaf(&Leaf {
                    names: &["spiffe://mesh/frontend"],
                    usages: Vec::new(),
                    expired: true,
                    until: None,
                })),
                None,
            ),
            server_spec(backend(), Some(ca.validation(Vec::new()))),
            None,
            Some("has expired"),
        ),
        (
            "server with a certificate for clients",
            client_spec(None, Some(ca.validation(Vec::new()))),
            server_spec(
                ca.issue_leaf(&Leaf { names: &["backend.mesh"], usages: client_usage, expired: false, until: None }),
                None,
            ),
            Some("extended key usage"),
            None,
        ),
        (
            "wrong hash",
            client_spec(None, Some(Validation { certificate_hashes: vec![[7; 32]], ..no_validation() })),
            server_spec(backend(), None),
            Some("the certificate's hash is not among the expected ones"),
            None,
        ),
        (
            "no bundle for the trust domain",
            client_spec(frontend(), None),
            server_spec(
                backend(),
                Some(Validation {
                    trust: Trust::Spiffe(vec![("elsewhere".into(), vec![ca.der()])]),
                    ..no_validation()
                }),
            ),
            None,
            Some("no trust bundle for trust domain \"mesh\""),
        ),
    ] {
        let sides = sides(&client, &server);
        let (client, accepted) = sides.shake().await;
        match client_text {
            Some(text) => {
                let error = client.unwrap_err().to_string();
                assert!(error.contains(text), "{name}: {error}");
                assert!(error.contains("peer 127.0.0.1:"), "{name}: {error}");
                assert_eq!(failures(&sides.client.stats), 1, "{name}");
            }
            None => {
                let error = accepted.unwrap_err().to_string();
                let text = server_text.unwrap();
                assert!(error.contains(text), "{name}: {error}");
                assert_eq!(failures(&sides.server.stats), 1, "{name}");
            }
        }
        let stats = [&sides.client.stats, &sides.server.stats];
        let judged = stats.iter().map(|stats| failures(stats) - stats.connection_error().total()).sum::<u64>();
        assert!(judged <= 1, "{name}: what is refused for its certificate is no error of the connection beside");
        let sum = |counter: fn(&SslStats) -> u64| stats.iter().map(|stats| counter(stats)).sum::<u64>();
        let counted = (
            sum(|s| s.fail_verify_san().total()),
            sum(|s| s.fail_verify_cert_hash().total()),
            sum(|s| s.fail_verify_no_cert().total()),
            sum(|s| s.fail_verify_error().total()),
        );
        let expected = match name {
            "wrong name of the server" => (1, 0, 0, 0),
            "wrong hash" => (0, 1, 0, 0),
            "no client certificate" => (0, 0, 1, 0),
            _ => (0, 0, 0, 1),
        };
        assert_eq!(counted, expected, "{name}");
    }
}

#[tokio::test]
async fn what_is_allowed_goes_through() {
    let ca = Ca::new("ca");
    let frontend = || Some(ca.issue(&["spiffe://mesh/frontend"]));
    let expired = || {
        Some(ca.issue_leaf(&Leaf {
            names: &["spiffe://mesh/frontend"],
            usages: Vec::new(),
            expired: true,
            until: None,
        }))
    };
    let pinned = ca.issue(&["pinned.example"]);
    let spiffe = Trust::Spiffe(vec![("other".into(), Vec::new()), ("mesh".into(), vec![ca.der()])]);
    for (name, client, validation) in [
        ("trust domain with a bundle", frontend(), Validation { trust: spiffe, ..no_validation() }),
        ("expired but allowed", expired(), Validation { allow_expired: true, ..ca.validation(Vec::new()) }),
        (
            "untrusted but accepted",
            frontend(),
            Validation { accept_untrusted: true, ..Ca::new("other").validation(Vec::new()) },
        ),
        (
            "the leaf itself is trusted",
            Some(pinned.clone()),
            Validation { trust: Trust::Authorities(vec![Ca::new("x").der()]), ..no_validation() },
        ),
        (
            "no trust, a name",
            frontend(),
            Validation { sans: vec![exact(SanKind::Uri, "spiffe://mesh/frontend")], ..no_validation() },
        ),
    ] {
        let mut validation = validation;
        if name.starts_with("the leaf itself") {
            validation.trust = Trust::Authorities(vec![pinned.chain[0].clone()]);
        }
        let server = server_spec(ca.issue(&["backend.mesh"]), Some(validation));
        let (client, accepted) = sides(&client_spec(client, None), &server).shake().await;
        assert!(client.is_ok() && accepted.is_ok(), "{name}: {client:?} {accepted:?}");
    }
}

#[tokio::test]
async fn a_client_without_certificate_is_served_where_none_is_required() {
    let ca = Ca::new("ca");
    let server = ServerTlsSpec {
        require_client_certificate: false,
        ..server_spec(ca.issue(&["backend.mesh"]), Some(ca.validation(Vec::new())))
    };
    let sides = sides(&client_spec(None, None), &server);
    let (client, accepted) = sides.shake().await;
    client.unwrap();
    assert!(accepted.unwrap().peer.names.is_none());
    assert_eq!(sides.server.stats.no_certificate().total(), 1);
}

#[tokio::test]
async fn alpn_is_agreed_or_left_out() {
    let ca = Ca::new("ca");
    let list = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
    for (ours, theirs, agreed) in [
        (&["h2", "http/1.1"][..], &["http/1.1", "h2"][..], Some("h2")),
        (&["http/1.1"], &["h2", "http/1.1"], Some("http/1.1")),
        (&["h2"], &["kuma"], None),
        (&[], &["h2"], None),
        (&["h2"], &[], None),
    ] {
        let server = ServerTlsSpec { alpn: list(ours), ..server_spec(ca.issue(&["backend.mesh"]), None) };
        let client = ClientTlsSpec { alpn: list(theirs), ..client_spec(None, None) };
        let (io, accepted) = sides(&client, &server).shake().await;
        let agreed = agreed.map(str::as_bytes);
        assert_eq!(accepted.unwrap().alpn.as_deref(), agreed, "{ours:?} {theirs:?}");
        assert_eq!(io.unwrap().negotiated_alpn(), agreed, "{ours:?} {theirs:?}");
    }
}

#[tokio::test]
async fn the_certificate_follows_the_server_name() {
    let ca = Ca::new("ca");
    let mut server = server_spec(ca.issue(&["first.mesh"]), None);
    server.identities.push(ca.issue(&["*.second.mesh"]));
    for (sni, shown) in [
        ("first.mesh", "first.mesh"),
        ("a.second.mesh", "*.second.mesh"),
        ("a.b.second.mesh", "first.mesh"),
        ("other", "first.mesh"),
    ] {
        let validation = Validation {
            sans: vec![exact(SanKind::Dns, if shown.starts_with('*') { "a.second.mesh" } else { shown })],
            ..no_validation()
        };
        let client = ClientTlsSpec { sni: Some(sni.into()), ..client_spec(None, Some(validation)) };
        let (client, _) = sides(&client, &server).shake().await;
        assert!(client.is_ok(), "{sni}: {client:?}");
    }
}

#[tokio::test]
async fn versions_are_kept() {
    let ca = Ca::new("ca");
    let at_most = |maximum| Parameters { maximum: Some(maximum), ..Parameters::default() };
    let server = server_spec(ca.issue(&["backend.mesh"]), None);
    let client = ClientTlsSpec { parameters: at_most(TlsVersion::V1_2), ..client_spec(None, None) };
    let (_, accepted) = sides(&client, &server).shake().await;
    let peer = accepted.unwrap().peer;
    assert_eq!((peer.version, peer.cipher), ("TLSv1.2", "ECDHE-ECDSA-AES128-GCM-SHA256"));

    let strict =
        ServerTlsSpec { parameters: Parameters { minimum: Some(TlsVersion::V1_3), ..Parameters::default() }, ..server };
    let (client, accepted) = sides(&client, &strict).shake().await;
    assert!(client.is_err() && accepted.is_err());
}

#[tokio::test]
async fn without_a_secret_there_is_no_handshake() {
    let ca = Ca::new("ca");
    let sides = sides(&client_spec(None, None), &server_spec(ca.issue(&["backend.mesh"]), None));
    sides.server.context.store(None);
    let (_, accepted) = sides.shake().await;
    assert_eq!(accepted.unwrap_err(), AcceptError::NotReady);
    assert_eq!(sides.server.factory.downstream_secrets_not_ready().total(), 1);
    sides.client.context.store(None);
    assert_eq!(sides.shake().await.0.unwrap_err(), ConnectError::SecretMissing);
}

#[test]
fn contexts_that_cannot_work_are_refused() {
    let ca = Ca::new("ca");
    let good = ca.issue(&["backend.mesh"]);
    let stranger = ca.issue(&["other.mesh"]);
    let server = |identity| ServerContext::build(&server_spec(identity, None)).unwrap_err().to_string();
    assert_eq!(
        server(Identity { key: stranger.key.clone_key(), ..good.clone() }),
        "<inline>: the private key does not belong to the certificate (DNS:backend.mesh)"
    );
    assert_eq!(server(Identity { chain: Vec::new(), ..good.clone() }), "<inline>: the certificate chain is empty");
    assert!(server(Identity { chain: vec![b"garbage".to_vec().into()], ..good.clone() }).starts_with("<inline>: "));
    assert!(
        server(Identity { key: PrivateKeyDer::Pkcs8(b"garbage".to_vec().into()), ..good.clone() })
            .contains("the private key cannot be used")
    );
    let mut none = server_spec(good.clone(), None);
    none.identities.clear();
    assert_eq!(ServerContext::build(&none).unwrap_err(), ContextError::NoCertificate);
    let bad_authority = Validation { trust: Trust::Authorities(vec![b"garbage".to_vec().into()]), ..no_validation() };
    assert!(matches!(
        ServerContext::build(&server_spec(good, Some(bad_authority))),
        Err(ContextError::Authority { .. })
    ));
    let long = "{".repeat(150);
    let bad_sni = ClientTlsSpec { sni: Some(long.clone()), ..client_spec(None, None) };
    assert_eq!(ClientContext::build(&bad_sni).unwrap_err(), ContextError::Sni(long));
    let contradiction =
        Parameters { minimum: Some(TlsVersion::V1_3), maximum: Some(TlsVersion::V1_2), ..Parameters::default() };
    assert!(ClientContext::build(&ClientTlsSpec { parameters: contradiction, ..client_spec(None, None) }).is_err());
}

/// Waits until so many bytes have arrived that nobody has read.
async fn arrived(socket: &Socket, bytes: usize) {
    let Socket::Tcp(tcp) = socket else { panic!("no TCP") };
    let mut buffer = vec![0; bytes];
    while tcp.peek(&mut buffer).await.unwrap() < bytes {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn records_that_have_arrived_come_at_once_and_what_is_wrong_after_them() {
    /// Header and tag of a record of TLS 1.3, with its content type.
    const OVERHEAD: usize = 5 + 16 + 1;
    let ca = Ca::new("ca");
    let sides = sides(&client_spec(None, None), &server_spec(ca.issue(&["backend.mesh"]), None));
    let (client, accepted) = sides.shake().await;
    let (mut client, mut server) = (client.unwrap(), accepted.unwrap().stream);
    let sent: Vec<u8> = (0..60_000_u32).map(|i| (i % 251) as u8).collect();
    for record in sent.chunks(10_000) {
        server.write_all(record).await.unwrap();
        server.flush().await.unwrap();
    }
    arrived(client.socket(), 6 * (10_000 + OVERHEAD)).await;
    let mut got = vec![0; 64 * 1024];
    assert_eq!(client.read(&mut got).await.unwrap(), sent.len(), "six records in one read");
    assert!(got.starts_with(&sent));

    // No more than fits is given out, and the rest is not lost.
    server.write_all(&sent[..20_000]).await.unwrap();
    server.flush().await.unwrap();
    arrived(client.socket(), 20_000 + 2 * OVERHEAD).await;
    let mut got = [0; 15_000];
    assert_eq!(client.read(&mut got).await.unwrap(), 15_000);
    assert!(sent.starts_with(&got));
    assert_eq!(client.read(&mut got).await.unwrap(), 5_000);
    assert_eq!(got[..5_000], sent[15_000..20_000]);

    // Good records, then one that nobody who has the keys wrote. rustls tells of it in the place of the record before.
    for record in sent[..20_000].chunks(10_000) {
        server.write_all(record).await.unwrap();
        server.flush().await.unwrap();
    }
    let mut forged = vec![23, 3, 3, 0, 100];
    forged.resize(105, 7);
    server.get_mut().0.write_all(&forged).await.unwrap();
    arrived(client.socket(), 2 * (10_000 + OVERHEAD) + forged.len()).await;
    assert_eq!(client.read(&mut got).await.unwrap(), 10_000);
    assert_eq!(client.read(&mut got).await.unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}
