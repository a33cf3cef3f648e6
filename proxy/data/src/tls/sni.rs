//! Server names that are no DNS names.
//!
//! RFC 6066 allows only DNS names as SNI. BoringSSL, and so Envoy, sends and takes any text, and Kuma makes use of it: `backend{mesh=default}` is what its
//! proxies say to each other. rustls neither sends such a name nor goes on when it gets one. So rustls sees a stand-in, a DNS name made of the real one's
//! bytes, while the peer sees the real one: the ClientHello is changed on its way, and changed back wherever the handshake is hashed or signed, so that
//! both sides agree on what was said.
//!
//! A HelloRetryRequest after such a name ends the handshake. Peers that share a default group, as all of Envoy's and rustls' do, never send one.

use std::{borrow::Cow, io, ops::Range, sync::LazyLock};

use bytes::{Bytes, BytesMut};
use rustls::{
    SignatureAlgorithm, SignatureScheme, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
    crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs, hash},
    sign::{Signer, SigningKey},
};
use rustls_pki_types::{DnsName, ServerName};
use tokio::io::AsyncReadExt;

use crate::io::Inspected;

/// What stand-ins end with. The top-level domain is reserved: RFC 2606.
const SUFFIX: &str = ".sni.shika.invalid";
/// Longest DNS name.
const LONGEST: usize = 253;
/// Most symbols of a label.
const LONGEST_LABEL: usize = 63;
/// Five bits each, in lower case, as rustls turns names into lower case. Source: RFC 4648 section 6.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Largest ClientHello that is looked at, with its record headers: as much as rustls takes.
const LARGEST_HELLO: usize = 0xffff;
/// Type of a handshake message.
const CLIENT_HELLO: u8 = 1;
/// Most bytes of a record's content.
const LARGEST_RECORD: usize = 1 << 14;

/// The DNS name that stands for `name`; `None` where it would be too long.
pub(super) fn stand_in(name: &[u8]) -> Option<String> {
    let mut symbols = Vec::with_capacity(name.len() * 8 / 5 + 1);
    for group in name.chunks(5) {
        let bits = group.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte)) << (8 * (5 - group.len()));
        for at in 0..(group.len() * 8).div_ceil(5) {
            symbols.push(*ALPHABET.get((bits >> (35 - 5 * at) & 31) as usize)?);
        }
    }
    let mut text = String::with_capacity(LONGEST);
    for label in symbols.chunks(LONGEST_LABEL) {
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|symbol| char::from(*symbol)));
    }
    text.push_str(SUFFIX);
    (text.len() <= LONGEST && !name.is_empty()).then_some(text)
}

/// The name that a stand-in stands for; `None` for any other name.
pub(super) fn original(name: &[u8]) -> Option<Vec<u8>> {
    let labels = name.strip_suffix(SUFFIX.as_bytes())?;
    let mut symbols = Vec::with_capacity(labels.len());
    for label in labels.split(|byte| *byte == b'.') {
        for symbol in label {
            symbols.push(ALPHABET.iter().position(|known| known == symbol)? as u64);
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
    matches!(name, ServerName::DnsName(name) if name.as_ref().ends_with(SUFFIX))
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

/// A ClientHello at the begin of TLS records, and how many bytes the records have.
enum Gathered {
    More,
    Other,
    Hello { message: Vec<u8>, consumed: usize },
}

fn gather(bytes: &[u8]) -> Gathered {
    let mut message: Vec<u8> = Vec::new();
    let mut cursor = Cursor { bytes, at: 0 };
    loop {
        match (bytes.get(cursor.at), bytes.get(cursor.at + 1)) {
            (Some(22), Some(3) | None) => {}
            (None, _) => return Gathered::More,
            _ => return Gathered::Other,
        }
        cursor.at += 3;
        let Some(length) = cursor.number(2) else { return Gathered::More };
        let Some(content) = bytes.get(cursor.at..cursor.at + length) else { return Gathered::More };
        cursor.at += length;
        message.extend_from_slice(content);
        match (message.first(), message.get(1..4)) {
            (Some(&CLIENT_HELLO), Some(&[a, b, c])) => {
                let wanted = 4 + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
                if message.len() == wanted {
                    return Gathered::Hello { message, consumed: cursor.at };
                }
                if message.len() > wanted {
                    return Gathered::Other;
                }
            }
            (Some(&CLIENT_HELLO), None) if length > 0 => {}
            _ => return Gathered::Other,
        }
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

/// The records of a ClientHello that rustls made, with the real name in it.
pub(super) fn outgoing(bytes: Vec<u8>) -> Vec<u8> {
    match gather(&bytes) {
        Gathered::Hello { message, consumed } => match on_wire(&message) {
            Cow::Owned(message) => {
                let mut changed = records(&message);
                changed.extend_from_slice(bytes.get(consumed..).unwrap_or_default());
                changed.into()
            }
            Cow::Borrowed(_) => bytes,
        },
        Gathered::More | Gathered::Other => bytes,
    }
}

/// Reads the ClientHello of a peer and puts a stand-in where rustls would not take the name. Everything else is left to rustls to judge.
///
/// # Errors
/// Reading failed.
pub(super) async fn incoming(io: &mut Inspected) -> io::Result<()> {
    let mut head = BytesMut::from(std::mem::take(&mut io.head));
    loop {
        match gather(&head) {
            Gathered::Hello { message, consumed } => {
                if let Some(message) = acceptable(&message) {
                    let mut changed = records(&message);
                    changed.extend_from_slice(head.get(consumed..).unwrap_or_default());
                    head = changed;
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
    Ok(())
}

/// The message with a stand-in; `None` where it can stay as it is.
fn acceptable(message: &[u8]) -> Option<Vec<u8>> {
    let place = place(message)?;
    let name = message.get(place.name.clone())?;
    let text = std::str::from_utf8(name).ok();
    // An address is taken for no name, and so is a DNS name for itself, unless it looks like a stand-in.
    let plain = DnsName::try_from(name).is_ok() || text.is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok());
    if plain && !name.ends_with(SUFFIX.as_bytes()) {
        return None;
    }
    renamed(message, &place, stand_in(name)?.as_bytes())
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
