//! Sessions that can be resumed: where they are kept, for how long, and what of the first handshake is known again in the later ones.
//!
//! A resumed handshake checks no certificate: that it comes from a session in which one was checked is its proof. So a session is good no longer than the
//! certificates that were checked, nor than `session_timeout` after they were, however often it is resumed; after that there is a full handshake. A context
//! has its own ticket keys and its own store, and is built anew when a certificate, an authority or a rule changes: no session outlives what it was
//! judged by.
//!
//! The library asks for tickets, verifications and key exchanges one by one, without saying for which connection. They all happen while the handshake
//! is polled, so [`observed`] gives each handshake a place of its own for what they have to say.

use std::{cell::Cell, collections::VecDeque, fmt, sync::Arc};

use parking_lot::Mutex;
use rustls::{
    NamedGroup, SignatureScheme,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    crypto::{ActiveKeyExchange, SupportedKxGroup},
    ffdhe_groups::FfdheGroup,
    server::ProducesTickets,
};
use rustls_pki_types::{ServerName, UnixTime};

/// TLS 1.3 tickets that a client keeps at least: each serves one connection, and connections are opened in groups.
const LEAST_TICKETS: usize = 8;
/// Bytes of [`Facts`] in a ticket.
const SEALED: usize = 12;

/// What was found out in a full handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// How the peer signed; `None` if it did not.
    pub scheme: Option<SignatureScheme>,
    /// The group of the key exchange.
    pub group: Option<NamedGroup>,
    /// Unix time in seconds of the last moment in which what was checked is still true; `None` if nothing ends it.
    good_until: Option<u64>,
}

/// What happens in one handshake.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Course {
    own: Facts,
    /// Those of the session that is resumed, or that was offered.
    earlier: Option<Facts>,
    /// The peer has signed: this is no resumption.
    proved: bool,
}

tokio::task_local! {
    static COURSE: Cell<Course>;
}

/// Runs a handshake and says what happened in it.
pub(super) async fn observed<T>(handshake: impl Future<Output = T>) -> (T, Course) {
    let place = Cell::new(Course::default());
    COURSE
        .scope(place, async {
            let result = handshake.await;
            (result, COURSE.with(Cell::get))
        })
        .await
}

/// The course of the handshake that is being polled; a blank one outside.
fn course() -> Course {
    COURSE.try_with(Cell::get).unwrap_or_default()
}

fn note(change: impl FnOnce(&mut Course)) {
    // Tickets of TLS 1.3 come after the handshake. There is nothing to note then.
    let _ = COURSE.try_with(|place| {
        let mut course = place.get();
        change(&mut course);
        place.set(course);
    });
}

/// The peer's certificates were accepted, and are no longer when this moment has passed.
pub(super) fn note_expiry(seconds: u64) {
    note(|course| course.own.good_until = Some(course.own.good_until.map_or(seconds, |known| known.min(seconds))));
}

/// The peer has proved by this signature that its certificate is its own.
pub(super) fn note_proof(scheme: SignatureScheme) {
    note(|course| (course.own.scheme, course.proved) = (Some(scheme), true));
}

impl Course {
    /// What a session that comes out of this handshake stands for: what was found out in it, or else in the one that it resumes.
    fn facts(&self) -> Facts {
        match self.earlier {
            Some(earlier) if !self.proved => earlier,
            _ => self.own,
        }
    }

    /// How the peer has signed, now or in the handshake that was resumed.
    pub(super) fn scheme(&self) -> Option<SignatureScheme> {
        self.facts().scheme
    }

    /// The group of the session that was resumed. Only TLS 1.3 agrees on a new one.
    pub(super) fn earlier_group(&self) -> Option<NamedGroup> {
        self.earlier.and_then(|earlier| earlier.group)
    }
}

impl Facts {
    fn good_at(&self, now: u64) -> bool {
        self.good_until.is_none_or(|end| now <= end)
    }

    fn sealed(&self) -> [u8; SEALED] {
        let mut bytes = [0; SEALED];
        let (end, names) = bytes.split_at_mut(8);
        let (scheme, group) = names.split_at_mut(2);
        end.copy_from_slice(&self.good_until.unwrap_or(u64::MAX).to_be_bytes());
        scheme.copy_from_slice(&self.scheme.map_or(0, u16::from).to_be_bytes());
        group.copy_from_slice(&self.group.map_or(0, u16::from).to_be_bytes());
        bytes
    }

    fn unsealed(bytes: &[u8; SEALED]) -> Facts {
        let [end @ .., a, b, c, d] = *bytes;
        let (scheme, group) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        Facts {
            scheme: (scheme != 0).then(|| scheme.into()),
            group: (group != 0).then(|| group.into()),
            good_until: Some(u64::from_be_bytes(end)),
        }
    }
}

fn now() -> u64 {
    UnixTime::now().as_secs()
}

/// A server's tickets: sealed by the library, with the facts of the handshake in them.
#[derive(Debug)]
pub(super) struct Tickets {
    seal: Arc<dyn ProducesTickets>,
    longest: u32,
}

impl Tickets {
    /// `longest`: seconds from a full handshake to the last resumption of its session.
    pub(super) fn new(seal: Arc<dyn ProducesTickets>, longest: u32) -> Self {
        Tickets { seal, longest }
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.seal.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.longest.min(self.seal.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut facts = course().facts();
        let end = now().saturating_add(self.longest.into());
        facts.good_until = Some(facts.good_until.map_or(end, |known| known.min(end)));
        self.seal.encrypt(&[plain, &facts.sealed()].concat())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut plain = self.seal.decrypt(cipher)?;
        let facts = Facts::unsealed(plain.last_chunk()?);
        if !facts.good_at(now()) {
            return None;
        }
        note(|course| course.earlier = Some(facts));
        plain.truncate(plain.len() - SEALED);
        Some(plain)
    }
}

/// A client's sessions with the servers of one context, all of which it calls by one name.
///
/// Source: Envoy `UpstreamTlsContext.max_session_keys`; a session of TLS 1.2 serves any number of connections, so the newest is enough.
pub(super) struct Sessions {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    group: Option<NamedGroup>,
    tls12: Option<(Tls12ClientSessionValue, Facts)>,
    /// Oldest first.
    tls13: VecDeque<Tls13ClientSessionValue>,
    /// Of all of `tls13`: the first moment in which one of them ends. Tickets come without saying which handshake they belong to.
    tls13_facts: Facts,
}

impl Sessions {
    pub(super) fn new(most: usize) -> Self {
        Sessions { most: most.max(LEAST_TICKETS), kept: Mutex::default() }
    }
}

impl Kept {
    fn drop_expired_tickets(&mut self) {
        if !self.tls13_facts.good_at(now()) {
            self.tls13.clear();
            self.tls13_facts.good_until = None;
        }
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("most", &self.most).finish_non_exhaustive()
    }
}

impl ClientSessionStore for Sessions {
    /// The library says this at the end of each handshake of TLS 1.3, before tickets come.
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        let mut kept = self.kept.lock();
        kept.group = Some(group);
        kept.drop_expired_tickets();
        let Facts { scheme, good_until, .. } = course().facts();
        let known = kept.tls13_facts.good_until;
        let good_until = [known, good_until].into_iter().flatten().min();
        kept.tls13_facts = Facts { scheme, good_until, group: None };
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.lock().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept.lock().tls12 = Some((session, course().facts()));
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        let mut kept = self.kept.lock();
        let (_, facts) = kept.tls12.as_ref()?;
        let facts = *facts;
        if !facts.good_at(now()) {
            kept.tls12 = None;
        }
        note(|course| course.earlier = Some(facts));
        kept.tls12.as_ref().map(|(session, _)| session.clone())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.kept.lock().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut kept = self.kept.lock();
        if kept.tls13.len() >= self.most {
            kept.tls13.pop_front();
        }
        kept.tls13.push_back(ticket);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut kept = self.kept.lock();
        kept.drop_expired_tickets();
        let ticket = kept.tls13.pop_back()?;
        let facts = kept.tls13_facts;
        note(|course| course.earlier = Some(facts));
        Some(ticket)
    }
}

/// A group that notes its use: a session of TLS 1.2 does not say later which one it came from.
#[derive(Debug)]
pub(super) struct Group(pub(super) &'static dyn SupportedKxGroup);

impl SupportedKxGroup for Group {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, rustls::Error> {
        note(|course| course.own.group = Some(self.0.name()));
        self.0.start()
    }

    fn start_and_complete(&self, peer_pub_key: &[u8]) -> Result<rustls::crypto::CompletedKeyExchange, rustls::Error> {
        note(|course| course.own.group = Some(self.0.name()));
        self.0.start_and_complete(peer_pub_key)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        self.0.ffdhe_group()
    }

    fn name(&self) -> NamedGroup {
        self.0.name()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }

    fn usable_for_version(&self, version: rustls::ProtocolVersion) -> bool {
        self.0.usable_for_version(version)
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
