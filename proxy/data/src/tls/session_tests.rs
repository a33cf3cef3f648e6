#![allow(clippy::unwrap_used, clippy::panic)]

use chrono::{Days, Utc};
use rustls::client::Resumption;

use super::{
    super::handshake_tests::{Sides, client_spec, sides},
    *,
};
use crate::{
    model::tls::{
        ClientContext, ClientTlsSpec, Identity, Parameters, SanKind, ServerContext, ServerTlsSpec, TlsVersion,
        Validation,
    },
    testing::{Ca, Leaf, exact, no_validation, server_spec},
};

const BOTH: [TlsVersion; 2] = [TlsVersion::V1_2, TlsVersion::V1_3];

fn at_most(version: TlsVersion, spec: ClientTlsSpec) -> ClientTlsSpec {
    ClientTlsSpec { parameters: Parameters { maximum: Some(version), ..Parameters::default() }, ..spec }
}

/// A mesh of one client and one server that know each other.
struct Mesh {
    ca: Ca,
    frontend: Identity,
    backend: Identity,
}

impl Mesh {
    fn new() -> Self {
        let ca = Ca::new("ca");
        Mesh { frontend: ca.issue(&["spiffe://mesh/frontend"]), backend: ca.issue(&["spiffe://mesh/backend"]), ca }
    }

    fn client(&self, version: TlsVersion) -> ClientTlsSpec {
        let expected = vec![exact(SanKind::Uri, "spiffe://mesh/backend")];
        at_most(version, client_spec(Some(self.frontend.clone()), Some(self.ca.validation(expected))))
    }

    fn server(&self) -> ServerTlsSpec {
        let expected = vec![exact(SanKind::Uri, "spiffe://mesh/frontend")];
        server_spec(self.backend.clone(), Some(self.ca.validation(expected)))
    }
}

/// Whether a handshake resumed a session, as both sides see it.
async fn resumes(sides: &Sides) -> bool {
    let before = sides.client.stats.session_reused().total();
    let (client, accepted) = sides.shake().await;
    client.unwrap();
    let resumed = accepted.unwrap().peer.resumed;
    assert_eq!(sides.client.stats.session_reused().total() - before, u64::from(resumed), "both sides agree");
    resumed
}

#[tokio::test]
async fn no_session_outlives_what_it_was_judged_by() {
    let mesh = Mesh::new();
    let other = Ca::new("other");
    for version in BOTH {
        let (client, server) = (|| mesh.client(version), || mesh.server());
        let both_trusted = |validation: Option<Validation>| {
            Some(Validation {
                trust: crate::model::tls::Trust::Authorities(vec![mesh.ca.der(), other.der()]),
                ..validation.unwrap()
            })
        };
        // What changes on the server, and what on the client; both would still be accepted in a full handshake.
        for (name, server_then, client_then) in [
            ("nothing", None, None),
            (
                "the server's certificate",
                Some(ServerTlsSpec { identities: vec![mesh.ca.issue(&["spiffe://mesh/backend"])], ..server() }),
                None,
            ),
            (
                "whom the server trusts",
                Some(ServerTlsSpec { validation: both_trusted(server().validation), ..server() }),
                None,
            ),
            (
                "which names the server lets in",
                Some(ServerTlsSpec { validation: Some(mesh.ca.validation(Vec::new())), ..server() }),
                None,
            ),
            (
                "the client's certificate",
                None,
                Some(ClientTlsSpec { identity: Some(mesh.ca.issue(&["spiffe://mesh/frontend"])), ..client() }),
            ),
            (
                "whom the client trusts",
                None,
                Some(ClientTlsSpec { validation: both_trusted(client().validation), ..client() }),
            ),
            (
                "which names the client expects",
                None,
                Some(ClientTlsSpec { validation: Some(mesh.ca.validation(Vec::new())), ..client() }),
            ),
        ] {
            let sides = sides(&client(), &server());
            assert!(!resumes(&sides).await, "{name}, {version:?}: the first");
            assert!(resumes(&sides).await, "{name}, {version:?}: the second");
            let changed = server_then.is_some() || client_then.is_some();
            if let Some(spec) = server_then {
                sides.server.context.store(Some(ServerContext::build(&spec).unwrap().into()));
            }
            if let Some(spec) = client_then {
                sides.client.context.store(Some(ClientContext::build(&spec).unwrap().into()));
            }
            assert_eq!(resumes(&sides).await, !changed, "{name}, {version:?}: after the change");
            assert!(resumes(&sides).await, "{name}, {version:?}: the new one");
        }
    }
}

#[tokio::test]
async fn a_rule_that_refuses_the_peer_is_not_bypassed_by_its_session() {
    let mesh = Mesh::new();
    for version in BOTH {
        let sides = sides(&mesh.client(version), &mesh.server());
        assert!(!resumes(&sides).await);
        let strict = mesh.ca.validation(vec![exact(SanKind::Uri, "spiffe://mesh/other")]);
        let strict = ServerTlsSpec { validation: Some(strict), ..mesh.server() };
        sides.server.context.store(Some(ServerContext::build(&strict).unwrap().into()));
        let (_, accepted) = sides.shake().await;
        assert!(accepted.unwrap_err().to_string().contains("does not match"), "{version:?}");
        assert_eq!((sides.server.stats.fail_verify_san().total(), sides.server.stats.session_reused().total()), (1, 0));
    }
}

#[tokio::test]
async fn a_resumed_session_knows_the_peer_and_counts_as_the_first() {
    let mesh = Mesh::new();
    for (version, group) in [(TlsVersion::V1_2, NamedGroup::X25519), (TlsVersion::V1_3, NamedGroup::X25519MLKEM768)] {
        let sides = sides(&mesh.client(version), &mesh.server());
        for resumed in [false, true, true] {
            let (client, accepted) = sides.shake().await;
            client.unwrap();
            let peer = accepted.unwrap().peer;
            assert_eq!(peer.resumed, resumed);
            assert_eq!(peer.names.unwrap().uris, ["spiffe://mesh/frontend".into()]);
            assert!(peer.fingerprint.is_some());
        }
        let names = [super::super::group_name(group).unwrap(), "ecdsa_secp256r1_sha256"];
        for stats in [&sides.client.stats, &sides.server.stats] {
            for (kind, name) in ["curves", "sigalgs"].into_iter().zip(names) {
                assert_eq!(stats.chosen(&format!("{kind}.{name}")), 3, "{kind}.{name}, {version:?}");
            }
        }
    }
}

/// Seals nothing, so that a test sees what is in a ticket and can say what is.
#[derive(Debug)]
struct Glass;

impl ProducesTickets for Glass {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::MAX
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        Some(plain.to_vec())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        Some(cipher.to_vec())
    }
}

fn end_of(ticket: &[u8]) -> u64 {
    Facts::unsealed(ticket.last_chunk().unwrap()).good_until.unwrap()
}

#[tokio::test]
async fn a_ticket_ends_with_what_was_proved_however_often_it_is_renewed() {
    let tickets = Tickets::new(Arc::new(Glass), 1000);
    let begin = now();
    let ends = |expiry: Option<u64>| {
        let tickets = &tickets;
        async move {
            observed(async {
                if let Some(seconds) = expiry {
                    note_expiry(seconds);
                }
                note_proof(SignatureScheme::ED25519);
                tickets.encrypt(b"session").unwrap()
            })
            .await
            .0
        }
    };
    let unbounded = ends(None).await;
    assert!((begin + 1000..=now() + 1000).contains(&end_of(&unbounded)));
    let bounded = ends(Some(begin + 500)).await;
    assert_eq!(end_of(&bounded), begin + 500);
    // The certificate has expired: there is no session any more.
    assert_eq!(tickets.decrypt(&ends(Some(begin - 1)).await), None);
    // A renewed ticket ends when the first would have, and stands for the same proof.
    let (renewed, course) = observed(async {
        assert_eq!(tickets.decrypt(&bounded).unwrap(), b"session");
        tickets.encrypt(b"session").unwrap()
    })
    .await;
    assert_eq!(end_of(&renewed), begin + 500);
    assert_eq!(course.scheme(), Some(SignatureScheme::ED25519));
    // If the session is not taken after all and the peer proves itself again, the new proof counts.
    let (anew, course) = observed(async {
        tickets.decrypt(&bounded).unwrap();
        note_expiry(begin + 700);
        note_proof(SignatureScheme::RSA_PSS_SHA256);
        tickets.encrypt(b"session").unwrap()
    })
    .await;
    assert_eq!((end_of(&anew), course.scheme()), (begin + 700, Some(SignatureScheme::RSA_PSS_SHA256)));
    // What is not a ticket of ours is none.
    for short in [&b""[..], &[0; SEALED - 1]] {
        assert_eq!(tickets.decrypt(short), None);
    }
}

#[tokio::test]
async fn sessions_end_with_the_certificates_on_both_sides() {
    let ca = Ca::new("ca");
    let day = Utc::now().date_naive() + Days::new(2);
    let until = u64::try_from(day.and_hms_opt(0, 0, 0).unwrap().and_utc().timestamp()).unwrap();
    let leaf = |name| ca.issue_leaf(&Leaf { names: &[name], usages: Vec::new(), expired: false, until: Some(day) });
    let (frontend, backend) = (leaf("spiffe://mesh/frontend"), leaf("spiffe://mesh/backend"));
    for version in BOTH {
        let server = server_spec(backend.clone(), Some(ca.validation(Vec::new())));
        let client = at_most(version, client_spec(Some(frontend.clone()), Some(ca.validation(Vec::new()))));
        let sides = sides(&client, &server);
        let store = Arc::new(Sessions::new(1));
        let mut context = ClientContext::build(&client).unwrap();
        let mut config = (*context.config).clone();
        config.resumption = Resumption::store(store.clone());
        context.config = Arc::new(config);
        sides.client.context.store(Some(context.into()));
        assert!(!resumes(&sides).await && resumes(&sides).await);
        let end = |kept: &Kept| match version {
            TlsVersion::V1_2 => kept.tls12.as_ref().unwrap().1.good_until,
            TlsVersion::V1_3 => kept.tls13_facts.good_until,
        };
        assert_eq!(end(&store.kept.lock()), Some(until), "{version:?}");
        let expire = |kept: &mut Kept| match version {
            TlsVersion::V1_2 => kept.tls12.as_mut().unwrap().1.good_until = Some(1),
            TlsVersion::V1_3 => kept.tls13_facts.good_until = Some(1),
        };
        expire(&mut store.kept.lock());
        assert!(!resumes(&sides).await, "{version:?}: the server's certificate has expired");
        assert!(resumes(&sides).await, "{version:?}");
        assert_eq!(end(&store.kept.lock()), Some(until), "{version:?}");

        // The server's side: the ticket says the same of the client's certificate.
        let mut context = ServerContext::build(&server).unwrap();
        let mut config = (*context.config).clone();
        let seen = Arc::new(Drawer::default());
        config.ticketer = Arc::new(Tickets::new(seen.clone(), u32::MAX));
        context.config = Arc::new(config.clone());
        context.config_without_alpn = Arc::new(config);
        sides.server.context.store(Some(context.into()));
        assert!(!resumes(&sides).await && resumes(&sides).await);
        let ends: Vec<_> = seen.0.lock().iter().map(|ticket| end_of(ticket)).collect();
        assert!(ends.len() >= 2 && ends.iter().all(|end| *end == until), "{version:?}: {ends:?} {until}");
    }
}

/// Tickets that stay with the server, which is as good as sealing them.
#[derive(Debug, Default)]
struct Drawer(Mutex<Vec<Vec<u8>>>);

impl ProducesTickets for Drawer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        7200
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut all = self.0.lock();
        all.push(plain.to_vec());
        Some((all.len() as u32 - 1).to_be_bytes().to_vec())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let at = u32::from_be_bytes(cipher.try_into().ok()?);
        self.0.lock().get(at as usize).cloned()
    }
}

#[tokio::test]
async fn where_resumption_is_off_every_handshake_is_full() {
    let mesh = Mesh::new();
    for version in BOTH {
        let never = ServerTlsSpec { resumption: None, ..mesh.server() };
        let forgetful = ClientTlsSpec { max_session_keys: 0, ..mesh.client(version) };
        for (client, server) in [(mesh.client(version), never), (forgetful, mesh.server())] {
            let sides = sides(&client, &server);
            assert!(!resumes(&sides).await && !resumes(&sides).await && !resumes(&sides).await, "{version:?}");
        }
    }
}

#[tokio::test]
async fn what_is_accepted_for_ever_ends_with_the_timeout_alone() {
    let ca = Ca::new("ca");
    let old =
        ca.issue_leaf(&Leaf { names: &["spiffe://mesh/frontend"], usages: Vec::new(), expired: true, until: None });
    for validation in [
        Validation { allow_expired: true, ..ca.validation(Vec::new()) },
        Validation { accept_untrusted: true, ..ca.validation(Vec::new()) },
        no_validation(),
    ] {
        let server = server_spec(ca.issue(&["backend.mesh"]), Some(validation));
        for version in BOTH {
            let sides = sides(&at_most(version, client_spec(Some(old.clone()), None)), &server);
            assert!(!resumes(&sides).await && resumes(&sides).await, "{version:?}");
        }
    }
}
