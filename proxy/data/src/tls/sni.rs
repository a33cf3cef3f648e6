//! Server names that are no DNS names.
//!
//! RFC 6066 allows only DNS names as SNI. BoringSSL, and so Envoy, sends and takes any text, and Kuma makes use of it: `backend{mesh=default}` is what its
//! proxies say to each other. rustls neither sends such a name nor goes on when it gets one. So rustls sees a stand-in, a DNS name made of the real one's
//! bytes, while the peer sees the real one: the ClientHello is changed on its way, and changed back wherever the handshake is hashed or signed, so that
//! both sides agree on what was said. Stand-ins end in a label that is drawn by lot for each process and never leaves it: nobody else can make one, so no
//! name that a peer says is ever taken for another.
//!
//! A client may be asked for a second ClientHello, which is changed like the first. A server that has to ask for one, because it shares no group with the
//! first, ends the handshake when that comes with such a name.

use std::{borrow::Cow, io, ops::Range, sync::LazyLock};

use bytes::{Bytes, BytesMut};
use rustls::{
    SignatureAlgorithm, SignatureScheme, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
    crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs, hash},
    sign::{Signer, SigningKey},
};
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::AsyncReadExt;

use super::hello::{CLIENT_HELLO, Gathered, Gathering};
use crate::io::Inspected;

/// What stand-ins end with: 80 random bits, and a top-level domain that is reserved by RFC 2606.
static SUFFIX: LazyLock<String> = LazyLock::new(|| {
    let mut bits = [0; 10];
    // Without random numbers there are no handshakes either, so no name is ever seen.
    let _ = aws_lc_rs::default_provider().secure_random.fill(&mut bits);
    format!(".{}.invalid", symbols(&bits))
});
/// Longest DNS name.
const LONGEST: usize = 253;
/// Most symbols of a label.
const LONGEST_LABEL: usize = 63;
/// Five bits each, in lower case, as rustls turns names into lower case. Source: RFC 4648 section 6.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Largest ClientHello that is looked at, with its record headers: as much as rustls takes.
const LARGEST_HELLO: usize = 0xffff;
/// Most bytes of a record's content.
const LARGEST_RECORD: usize = 1 << 14;

/// Source: RFC 4648 section 6, without padding.
fn symbols(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    for group in bytes.chunks(5) {
        let bits = group.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)) << (8 * (5 - group.len()));
        for at in 0..(group.len() * 8).div_ceil(5) {
            text.extend(ALPHABET.get((bits >> (35 - 5 * at) & 31) as usize).map(|symbol| char::from(*symbol)));
        }
    }
    text
}

/// The DNS name that stands for `name`; `None` where it would be too long.
pub(super) fn stand_in(name: &[u8]) -> Option<String> {
    if name.is_empty() || name.len() > LONGEST {
        return None;
    }
    let mut text = String::with_capacity(LONGEST);
    for (at, symbol) in symbols(name).chars().enumerate() {
        if at > 0 && at % LONGEST_LABEL == 0 {
            text.push('.');
        }
        text.push(symbol);
    }
    text.push_str(&SUFFIX);
    (text.len() <= LONGEST).then_some(text)
}

/// Whether a name ends as stand-ins do. DNS names have no case.
fn ends_as_stand_in(name: &[u8]) -> bool {
    let end = name.len().checked_sub(SUFFIX.len()).and_then(|at| name.get(at..));
    end.is_some_and(|end| end.eq_ignore_ascii_case(SUFFIX.as_bytes()))
}

/// The name that a stand-in stands for; `None` for any other name.
pub(super) fn original(name: &[u8]) -> Option<Vec<u8>> {
    if !ends_as_stand_in(name) {
        return None;
    }
    let labels = name.get(..name.len().checked_sub(SUFFIX.len())?)?;
    let mut symbols = Vec::with_capacity(labels.len());
    for label in labels.split(|byte| *byte == b'.') {
        for symbol in label {
            symbols.push(ALPHABET.iter().position(|known| *known == symbol.to_ascii_lowercase())? as u64);
        }
    }
    let mut bytes = Vec::with_capacity(symbols.len());
    for group in symbols.chunks(8) {
        let bits = group.iter().fold(0, |bits, symbol| bits << 5 | symbol) << (5 * (8 - group.len()));
        bytes.extend(bits.to_be_bytes().iter().skip(3).take(group.len() * 5 / 8));
    }
    (!bytes.is_empty()).then_some(bytes)
}

/// The name as the peer knows it.
pub(super) fn shown(name: &str) -> Cow<'_, str> {
    original(name.as_bytes()).map_or(Cow::Borrowed(name), |name| String::from_utf8_lossy(&name).into_owned().into())
}

/// Whether the peer knows this server by another name.
pub(super) fn is_stand_in(name: &ServerName<'_>) -> bool {
    matches!(name, ServerName::DnsName(name) if ends_as_stand_in(name.as_ref().as_bytes()))
}

/// The name under which rustls sends `name`; `None` if it can neither be sent nor stood in for.
pub(super) fn server_name(name: &str) -> Option<ServerName<'static>> {
    let name = match ServerName::try_from(name) {
        Ok(name) => return Some(name.to_owned()),
        Err(_) => stand_in(name.as_bytes())?,
    };
    ServerName::try_from(name).ok()
}

/// Where a ClientHello says its server name.
struct Place {
    /// Of all fields of two bytes that count the name's bytes.
    lengths: [usize; 4],
    name: Range<usize>,
}

/// Reads numbers and skips vectors.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn number(&mut self, width: usize) -> Option<usize> {
        let field = self.bytes.get(self.at..self.at.checked_add(width)?)?;
        self.at += width;
        Some(field.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// A vector behind its length.
    fn skip(&mut self, width: usize) -> Option<()> {
        self.at += self.number(width)?;
        Some(())
    }
}

/// Source: RFC 8446 section 4.1.2, RFC 6066 section 3. The message may end early, behind the name.
fn place(message: &[u8]) -> Option<Place> {
    let mut cursor = Cursor { bytes: message, at: 0 };
    if cursor.number(1)? != usize::from(CLIENT_HELLO) {
        return None;
    }
    // Length, version, random.
    cursor.at += 3 + 2 + 32;
    cursor.skip(1)?;
    cursor.skip(2)?;
    cursor.skip(1)?;
    let extensions = cursor.at;
    let end = cursor.number(2)? + cursor.at;
    while cursor.at < end {
        let kind = cursor.number(2)?;
        let extension = cursor.at;
        if kind != 0 {
            cursor.skip(2)?;
            continue;
        }
        cursor.number(2)?;
        let list = cursor.at;
        cursor.number(2)?;
        if cursor.number(1)? != 0 {
            return None;
        }
        let length = cursor.at;
        let size = cursor.number(2)?;
        let name = cursor.at..cursor.at + size;
        message.get(name.clone())?;
        return Some(Place { lengths: [extensions, extension, list, length], name });
    }
    None
}

/// The ClientHello with another server name.
fn renamed(message: &[u8], place: &Place, name: &[u8]) -> Option<Vec<u8>> {
    let mut changed = Vec::with_capacity(message.len() + name.len());
    changed.extend_from_slice(message.get(..place.name.start)?);
    changed.extend_from_slice(name);
    changed.extend_from_slice(message.get(place.name.end..)?);
    let counts = place.lengths.iter().map(|at| *at..*at + 2).chain(std::iter::once(1..4));
    for field in counts {
        let field = changed.get_mut(field)?;
        let count = field.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
        let count = (count + name.len()).checked_sub(place.name.len())?;
        let bytes = u32::try_from(count).ok()?.to_be_bytes();
        let (unused, bytes) = bytes.split_at(4 - field.len());
        if unused.iter().any(|byte| *byte != 0) {
            return None;
        }
        field.copy_from_slice(bytes);
    }
    Some(changed)
}

/// Handshake messages as they are on the wire: if the first is a ClientHello with a stand-in, it gets the real name back.
pub(super) fn on_wire(messages: &[u8]) -> Cow<'_, [u8]> {
    let real = || {
        let place = place(messages)?;
        let name = original(messages.get(place.name.clone())?)?;
        renamed(messages, &place, &name)
    };
    match messages.first() {
        Some(&CLIENT_HELLO) => real().map_or(Cow::Borrowed(messages), Cow::Owned),
        _ => Cow::Borrowed(messages),
    }
}

/// Cuts a message into records.
fn records(message: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(message.len() + 16);
    for content in message.chunks(LARGEST_RECORD) {
        bytes.extend_from_slice(&[22, 3, 1]);
        bytes.extend_from_slice(&u16::try_from(content.len()).unwrap_or_default().to_be_bytes());
        bytes.extend_from_slice(content);
    }
    bytes
}

/// What rustls writes, with the real name in it if it is a ClientHello with a stand-in.
pub(super) fn outgoing(bytes: Vec<u8>) -> Vec<u8> {
    let mut gathering = Gathering::default();
    gathering.take(&bytes);
    let Some((message, consumed)) = gathering.alone() else { return bytes };
    match on_wire(message) {
        Cow::Owned(message) => {
            let mut changed = records(&message);
            changed.extend_from_slice(bytes.get(consumed..).unwrap_or_default());
            changed.into()
        }
        Cow::Borrowed(_) => bytes,
    }
}

/// Which server a peer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The name in its ClientHello, in lower case.
    pub name: String,
    /// What rustls takes for it; `None` where that takes it for none, as it does addresses.
    told: Option<String>,
}

impl Asked {
    /// Whether this is what rustls has read.
    pub fn is_seen_as(&self, seen: Option<&str>) -> bool {
        match (&self.told, seen) {
            (Some(told), Some(seen)) => told.eq_ignore_ascii_case(seen),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

/// Reads the ClientHello of a peer and puts a stand-in where rustls would not take the name. Everything else is left to rustls to judge. Returns the name
/// that the peer said; `None` if it said none or if there is no ClientHello that could be read.
///
/// # Errors
/// Reading failed.
pub(super) async fn incoming(io: &mut Inspected) -> io::Result<Option<Asked>> {
    let mut head = BytesMut::from(std::mem::take(&mut io.head));
    let mut gathering = Gathering::default();
    let mut asked = None;
    loop {
        match gathering.take(&head) {
            Gathered::Whole => {
                if let Some((message, consumed)) = gathering.alone() {
                    let (name, message) = acceptable(message).unzip();
                    asked = name;
                    if let Some(message) = message.flatten() {
                        let mut changed = records(&message);
                        changed.extend_from_slice(head.get(consumed..).unwrap_or_default());
                        head = changed;
                    }
                }
                break;
            }
            Gathered::More if head.len() < LARGEST_HELLO => {
                head.reserve(if head.is_empty() { 2048 } else { head.len() });
                if io.socket.read_buf(&mut head).await? == 0 {
                    break;
                }
            }
            Gathered::More | Gathered::Other => break,
        }
    }
    io.head = if head.is_empty() { Bytes::new() } else { head.freeze() };
    Ok(asked)
}

/// The name in a ClientHello, if there is one, and the message with a stand-in where it cannot stay as it is.
fn acceptable(message: &[u8]) -> Option<(Asked, Option<Vec<u8>>)> {
    let place = place(message)?;
    let name = message.get(place.name.clone())?;
    let real = String::from_utf8_lossy(name).to_ascii_lowercase();
    if real.parse::<std::net::IpAddr>().is_ok() {
        return Some((Asked { name: real, told: None }, None));
    }
    // A DNS name is taken for itself, unless it looks like a stand-in.
    if DnsName::try_from(name).is_ok() && !ends_as_stand_in(name) {
        return Some((Asked { told: Some(real.clone()), name: real }, None));
    }
    let told = stand_in(name);
    let changed = told.as_ref().and_then(|told| renamed(message, &place, told.as_bytes()));
    Some((Asked { name: real, told: told.filter(|_| changed.is_some()) }, changed))
}

/// aws-lc-rs, with hashes that see handshakes as they are on the wire.
pub(super) fn provider() -> CryptoProvider {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
        // A few hundred bytes, once in the life of the process: rustls wants its suites to be there for ever.
        let common = |from: &CipherSuiteCommon| CipherSuiteCommon {
            suite: from.suite,
            hash_provider: Box::leak(Box::new(WireHash(from.hash_provider))),
            confidentiality_limit: from.confidentiality_limit,
        };
        let suite = |from: &SupportedCipherSuite| match from {
            SupportedCipherSuite::Tls12(from) => SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                common: common(&from.common),
                ..**from
            }))),
            SupportedCipherSuite::Tls13(from) => SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                common: common(&from.common),
                ..**from
            }))),
        };
        aws_lc_rs::default_provider().cipher_suites.iter().map(suite).collect()
    });
    CryptoProvider { cipher_suites: SUITES.clone(), ..aws_lc_rs::default_provider() }
}

/// Hashes what [`on_wire`] says. rustls hands over whole messages, a ClientHello always at the begin.
struct WireHash(&'static dyn hash::Hash);

impl hash::Hash for WireHash {
    fn start(&self) -> Box<dyn hash::Context> {
        Box::new(WireContext(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> hash::Output {
        self.0.hash(&on_wire(data))
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> hash::HashAlgorithm {
        self.0.algorithm()
    }
}

struct WireContext(Box<dyn hash::Context>);

impl hash::Context for WireContext {
    fn fork_finish(&self) -> hash::Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn hash::Context> {
        Box::new(WireContext(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> hash::Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(&on_wire(data));
    }
}

/// A client's key. In TLS 1.2 the client signs all messages so far, not their hash.
#[derive(Debug)]
pub(super) struct WireKey(pub std::sync::Arc<dyn SigningKey>);

impl SigningKey for WireKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        self.0.choose_scheme(offered).map(|signer| Box::new(WireSigner(signer)) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }
}

#[derive(Debug)]
struct WireSigner(Box<dyn Signer>);

impl Signer for WireSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.0.sign(&on_wire(message))
    }

    fn scheme(&self) -> SignatureScheme {
        self.0.scheme()
    }
}

#[cfg(test)]
#[path = "sni_tests.rs"]
mod tests;
