//! A DNS query and its answer: one question, addresses from the table.
//!
//! Codes are those of Envoy's filter, and byte for byte so are the messages: a name without addresses of the wanted family does not exist
//! (`NXDOMAIN`), other types than A, AAAA and SRV are not implemented, names are not compressed. One thing is done otherwise: a message that is
//! itself a response gets none, or two servers could keep each other busy for ever.
//!
//! Source: RFC 1035, section 4.1; Envoy documentation, "DNS Filter".

use std::time::Duration;

use crate::model::dns::DnsTable;

const HEADER: usize = 12;
/// Longest name, in the form of the wire.
const MAX_NAME: usize = 255;
/// Longest reply, as there is no EDNS.
const MAX_REPLY: usize = 512;
/// Most addresses in one reply.
const MAX_ANSWERS: usize = 8;

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const IN: u16 = 1;

const NO_ERROR: u8 = 0;
const FORMAT_ERROR: u8 = 1;
const NAME_ERROR: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;

/// The one question of a message.
struct Question<'a> {
    /// Name, type and class as they came.
    wire: &'a [u8],
    /// Length of the name in it.
    name_length: usize,
    /// Labels with dots between, as the table has names.
    name: String,
    kind: u16,
}

/// The reply to a datagram. `None`: it is a response itself. `random` chooses which addresses come first.
pub(super) fn answer(table: &DnsTable, datagram: &[u8], random: u64) -> Option<Vec<u8>> {
    let stats = &table.stats;
    stats.downstream_rx_bytes().record(datagram.len() as u64);
    stats.downstream_rx_queries().inc();
    let is_response = datagram.get(2).is_some_and(|flags| flags & 0x80 != 0);
    let reply = match question(table, datagram) {
        Some(question) => reply(table, datagram, &question, random),
        None => {
            stats.downstream_rx_invalid_queries().inc();
            if is_response {
                return None;
            }
            header(datagram, FORMAT_ERROR, 0, 0)
        }
    };
    stats.downstream_tx_responses().inc();
    stats.downstream_tx_bytes().record(reply.len() as u64);
    Some(reply)
}

/// Id, opcode and RD are the query's, as far as it has them.
fn header(datagram: &[u8], code: u8, questions: u8, answers: u8) -> Vec<u8> {
    let whole = datagram.len() >= 4;
    let byte = |at: usize| datagram.get(at).copied().unwrap_or(0);
    let id = if datagram.len() >= 2 { [byte(0), byte(1)] } else { [0, 0] };
    let flags = if whole { byte(2) & 0x79 } else { 0 };
    vec![id[0], id[1], 0x80 | flags, code, 0, questions, 0, answers, 0, 0, 0, 0]
}

/// Reads a query. `None`: it is none; what was wrong is counted.
fn question<'a>(table: &DnsTable, datagram: &'a [u8]) -> Option<Question<'a>> {
    let stats = &table.stats;
    let Some(&[_, _, flags, _, qd0, qd1, an0, an1, ns0, ns1, ar0, ar1]) = datagram.first_chunk::<HEADER>() else {
        stats.query_buffer_underflow().inc();
        return None;
    };
    if flags & 0x80 != 0 || [an0, an1, ns0, ns1] != [0; 4] {
        stats.queries_with_ans_or_authority_rrs().inc();
        return None;
    }
    // RFC 9619: exactly one.
    if [qd0, qd1] != [0, 1] {
        return None;
    }
    let Some(mut question) = datagram.get(HEADER..).and_then(parse) else {
        stats.query_parsing_failure().inc();
        return None;
    };
    question.name = table.folded(question.name);
    if [ar0, ar1] != [0, 0] {
        stats.queries_with_additional_rrs().inc();
    }
    Some(question)
}

fn parse(rest: &[u8]) -> Option<Question<'_>> {
    let mut name = String::new();
    let mut at = 0;
    loop {
        // A length above 63 would be a pointer; nothing stands before the question that it could point to.
        let length = usize::from(*rest.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        let label = rest.get(at..at + length).filter(|label| label.len() < 64)?;
        at += length;
        if at >= MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        // A label may hold any byte; one that is no text is no name of the table.
        name.push_str(&String::from_utf8_lossy(label));
    }
    let &[k0, k1, c0, c1] = rest.get(at..)?.first_chunk::<4>()?;
    // The root is a name that no table has, and Envoy takes it for none.
    (u16::from_be_bytes([c0, c1]) == IN && !name.is_empty()).then_some(())?;
    Some(Question { wire: rest.get(..at + 4)?, name_length: at, name, kind: u16::from_be_bytes([k0, k1]) })
}

fn reply(table: &DnsTable, datagram: &[u8], question: &Question<'_>, random: u64) -> Vec<u8> {
    let stats = &table.stats;
    match question.kind {
        A => stats.a_record_queries().inc(),
        AAAA => stats.aaaa_record_queries().inc(),
        SRV => stats.srv_record_queries().inc(),
        _ => stats.unsupported_queries().inc(),
    }
    if table.knows(&question.name) {
        stats.known_domain_queries().inc();
    }
    let found = table.look_up(&question.name);
    let mut reply = header(datagram, NO_ERROR, 1, 0);
    reply.extend_from_slice(question.wire);
    let answers = match (question.kind, found) {
        (A, Some((addresses, ttl))) => {
            stats.local_a_record_answers().add(addresses.v4.len() as u64);
            records(&mut reply, question, ttl, addresses.v4.iter().map(|ip| ip.octets()), random)
        }
        (AAAA, Some((addresses, ttl))) => {
            stats.local_aaaa_record_answers().add(addresses.v6.len() as u64);
            records(&mut reply, question, ttl, addresses.v6.iter().map(|ip| ip.octets()), random)
        }
        _ => 0,
    };
    if answers == 0 {
        stats.unanswered_queries().inc();
    }
    let code = match (question.kind, answers) {
        (A | AAAA | SRV, 0) => NAME_ERROR,
        (A | AAAA | SRV, _) => NO_ERROR,
        _ => NOT_IMPLEMENTED,
    };
    let head = header(datagram, code, 1, answers);
    reply.splice(..HEADER, head);
    reply
}

/// Appends records from a random one on, as many as may be and fit. Returns how many.
fn records<const N: usize>(
    reply: &mut Vec<u8>,
    question: &Question<'_>,
    ttl: Duration,
    addresses: impl ExactSizeIterator<Item = [u8; N]> + Clone,
    random: u64,
) -> u8 {
    let count = addresses.len();
    let Some(first) = random.checked_rem(count as u64) else { return 0 };
    let ttl = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).to_be_bytes();
    // Name, type and class are those of the question.
    let record_length = question.name_length + 4 + ttl.len() + 2 + N;
    let mut answers = 0;
    for address in addresses.cycle().skip(first as usize).take(count.min(MAX_ANSWERS)) {
        if reply.len() + record_length > MAX_REPLY {
            break;
        }
        reply.extend_from_slice(question.wire);
        reply.extend_from_slice(&ttl);
        reply.extend_from_slice(&(N as u16).to_be_bytes());
        reply.extend_from_slice(&address);
        answers += 1;
    }
    answers
}

#[cfg(test)]
#[path = "dns_tests.rs"]
mod tests;
