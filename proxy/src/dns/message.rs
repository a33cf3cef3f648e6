//! Queries as they come in, and replies as they go out.

use std::net::SocketAddr;

use hickory_server::{
    net::xfer::Protocol,
    proto::{
        op::{Edns, Message, Metadata, ResponseCode},
        rr::Record,
        serialize::binary::BinEncoder,
    },
    server::Request,
    zone_handler::MessageResponseBuilder,
};

/// Length of a message's header.
const HEADER: usize = 12;
/// Shortest record there can be: root name, type, class, TTL, length.
const SHORTEST_RECORD: usize = 11;
/// What is said to be taken over UDP, bytes. DNS flag day 2020.
const UDP_PAYLOAD: u16 = 1232;
/// Largest reply over UDP, whatever the client takes.
const MAX_UDP: u16 = 4096;

/// What came in.
#[expect(clippy::large_enum_variant, reason = "taken apart at once; a box would be one more allocation for each query")]
pub enum Read {
    /// A query with one question.
    Query(Request),
    /// Something that is answered with an error.
    Refuse(Vec<u8>),
    /// Something that gets no answer: a response, or no message at all.
    Ignore,
}

/// Reads a message from a client.
pub fn read(raw: Vec<u8>, from: SocketAddr, protocol: Protocol) -> Read {
    let &[id0, id1, flags, flags2, qd0, qd1, ..] = raw.as_slice() else { return Read::Ignore };
    if raw.len() < HEADER || flags & 0x80 != 0 {
        return Read::Ignore;
    }
    // Id, opcode and RD are the query's.
    let refuse = |code: ResponseCode| {
        let mut reply = vec![id0, id1, 0x80 | (flags & 0x79), (flags2 & 0x10) | (code.low() & 0x0f)];
        reply.resize(HEADER, 0);
        Read::Refuse(reply)
    };
    if (flags >> 3) & 0x0f != 0 {
        return refuse(ResponseCode::NotImp);
    }
    // RFC 9619: exactly one question.
    if u16::from_be_bytes([qd0, qd1]) != 1 || !plausible(&raw) {
        return refuse(ResponseCode::FormErr);
    }
    match Request::from_bytes(raw, from, protocol) {
        Ok(request) => Read::Query(request),
        Err(_) => refuse(ResponseCode::FormErr),
    }
}

/// Reads a resolver's answer.
///
/// # Errors
/// It is no DNS message.
pub fn parse(raw: &[u8]) -> Result<Message, String> {
    if !plausible(raw) {
        return Err("counts more records than it holds".into());
    }
    Message::from_vec(raw).map_err(|error| error.to_string())
}

/// The counts in the header can be true: nothing is reserved for records that are not there.
fn plausible(raw: &[u8]) -> bool {
    let Some(&[_, _, _, _, qd0, qd1, an0, an1, ns0, ns1, ar0, ar1]) = raw.first_chunk::<HEADER>() else { return false };
    let records: usize =
        [[an0, an1], [ns0, ns1], [ar0, ar1]].into_iter().map(|count| usize::from(u16::from_be_bytes(count))).sum();
    u16::from_be_bytes([qd0, qd1]) <= 1 && records.saturating_mul(SHORTEST_RECORD) <= raw.len()
}

/// The content of a reply, for any client that asks the same.
#[derive(Clone, Debug)]
pub struct Reply {
    /// RCODE.
    pub code: ResponseCode,
    /// AA.
    pub authoritative: bool,
    /// RA.
    pub recursion_available: bool,
    /// AD.
    pub authentic: bool,
    /// Sections, as they came or were made.
    pub answers: Vec<Record>,
    /// Authority.
    pub authorities: Vec<Record>,
    /// Additional, without OPT.
    pub additionals: Vec<Record>,
    /// OPT of the resolver.
    pub edns: Option<Edns>,
}

impl Reply {
    /// Without records.
    pub fn of(code: ResponseCode) -> Reply {
        Reply {
            code,
            authoritative: false,
            recursion_available: true,
            authentic: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
            edns: None,
        }
    }

    /// The mesh's own.
    pub fn mesh(answers: Vec<Record>) -> Reply {
        Reply { authoritative: true, answers, ..Reply::of(ResponseCode::NoError) }
    }

    /// A resolver's, passed on.
    pub fn forwarded(message: Message) -> Reply {
        Reply {
            code: message.metadata.response_code,
            authoritative: message.metadata.authoritative,
            recursion_available: message.metadata.recursion_available,
            authentic: message.metadata.authentic_data,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
            edns: message.edns,
        }
    }

    /// The reply to `request`, `age` seconds after it was received: the question as the client wrote it, TTLs that have run on, cut to what the client
    /// takes. Over UDP what does not fit is left out and TC set, so that the client comes back over TCP.
    pub fn encode(&self, request: &Request, age: u32) -> Vec<u8> {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = self.code;
        metadata.authoritative = self.authoritative;
        metadata.recursion_available = self.recursion_available;
        metadata.authentic_data = self.authentic;
        let owner = request.queries.queries().first().map(|query| query.original().name());
        let aged = |records: &[Record]| -> Vec<Record> {
            let mut records = records.to_vec();
            for record in &mut records {
                record.decrement_ttl(age);
                // Names are equal whatever their case; a client that mixes it (0x20) sees its own again.
                if let Some(owner) = owner.filter(|owner| **owner == record.name) {
                    record.name = owner.clone();
                }
            }
            records
        };
        let (answers, authorities, additionals) =
            (aged(&self.answers), aged(&self.authorities), aged(&self.additionals));
        // RFC 6891, section 6.1.1: an OPT record if, and only if, the client sent one.
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = self.edns.clone().unwrap_or_default();
            edns.set_max_payload(UDP_PAYLOAD).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &answers, &authorities, [], &additionals);
        let mut bytes = Vec::with_capacity(512);
        let mut encoder = BinEncoder::new(&mut bytes);
        encoder.set_max_size(match request.protocol() {
            Protocol::Udp => request.max_payload().min(MAX_UDP),
            _ => u16::MAX,
        });
        match response.destructive_emit(&mut encoder) {
            Ok(_) => bytes,
            Err(error) => {
                tracing::warn!("a DNS answer cannot be written: {error}");
                let id = request.metadata.id.to_be_bytes();
                let mut reply = vec![id[0], id[1], 0x80, ResponseCode::ServFail.low()];
                reply.resize(HEADER, 0);
                reply
            }
        }
    }
}
