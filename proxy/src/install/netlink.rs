//! The few netlink messages that the redirection needs: RFC 3549 framing, nfnetlink batches, one address.
//!
//! Written here rather than taken from a crate: those that know nf_tables either link C libraries, which an image without any has not, or are
//! under the GPL; the framing is small.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

// Linux, include/uapi/linux/netlink.h.
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Create what is not there.
pub const NLM_F_CREATE: u16 = 0x400;
/// Add to the end of a list.
pub const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
/// How long the kernel may take over a transaction: it may have to load modules.
const ANSWER: Duration = Duration::from_secs(30);

/// Attributes of a message.
#[derive(Default)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// An attribute with these bytes. They are few: names, addresses and the expressions of one rule.
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A number in network order, as nf_tables has them all.
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string and its terminator.
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Attributes within one.
    pub fn nested(self, kind: u16, value: Attributes) -> Self {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }

    /// Attributes one after another.
    pub fn and(mut self, other: Attributes) -> Self {
        self.0.extend_from_slice(&other.0);
        self
    }
}

/// A message without its netlink header.
pub struct Message {
    /// Type.
    pub kind: u16,
    /// Flags besides request and acknowledgement.
    pub flags: u16,
    /// The fixed part that the type asks for.
    pub head: Vec<u8>,
    /// The rest.
    pub attributes: Attributes,
}

/// Why the kernel did not do as told.
#[derive(Debug)]
pub struct Failure {
    /// Which message of those sent; none where it was not about one.
    pub message: Option<usize>,
    /// What the kernel said.
    pub error: io::Error,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure { message: None, error }
    }
}

/// A socket to one part of the kernel. Bound by the kernel on first use.
pub struct Netlink(Socket);

impl Netlink {
    /// Opens a socket of a netlink protocol.
    ///
    /// # Errors
    /// The kernel does not know the protocol.
    pub fn open(protocol: i32) -> io::Result<Netlink> {
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(Netlink(socket))
    }

    /// Sends the messages as one datagram and waits until the last one marked `acknowledge` is answered. The numbers given to the messages are
    /// their places plus one.
    ///
    /// # Errors
    /// The first failure that the kernel reports. It reports the failed messages of a batch in their order.
    pub fn talk(&mut self, messages: &[Message], acknowledge: usize) -> Result<(), Failure> {
        let mut out = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            let ack = if index == acknowledge { NLM_F_ACK } else { 0 };
            let length = HEADER + message.head.len() + message.attributes.0.len();
            out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
            out.extend_from_slice(&message.kind.to_ne_bytes());
            out.extend_from_slice(&(message.flags | NLM_F_REQUEST | ack).to_ne_bytes());
            out.extend_from_slice(&(index as u32 + 1).to_ne_bytes());
            out.extend_from_slice(&0_u32.to_ne_bytes());
            out.extend_from_slice(&message.head);
            out.extend_from_slice(&message.attributes.0);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        // A batch goes in one piece, and the default buffer holds some 500 rules. The kernel caps what is asked for.
        self.0.set_send_buffer_size(out.len().saturating_mul(2).max(1 << 16))?;
        self.0.write_all(&out)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = self.0.read(&mut buffer)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((kind, sequence, body, tail)) = next(rest) {
                rest = tail;
                let index = (sequence as usize).checked_sub(1);
                if kind == NLMSG_ERROR {
                    let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    if code != 0 {
                        return Err(Failure { message: index, error: io::Error::from_raw_os_error(-code) });
                    }
                    if index == Some(acknowledge) {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Type, sequence number and body of the first message, and what follows it.
fn next(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    Some((kind, sequence, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Adds an IPv6 address to an interface, or takes it away.
///
/// # Errors
/// What the kernel says; `AlreadyExists` and `AddrNotAvailable` for an address that is there already or not there.
pub fn change_address(add: bool, interface: u32, address: std::net::Ipv6Addr) -> io::Result<()> {
    // Linux, include/uapi/linux/rtnetlink.h and if_addr.h: struct ifaddrmsg is family, prefix length, flags, scope, index.
    const RTM_NEWADDR: u16 = 20;
    const RTM_DELADDR: u16 = 21;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const NLM_F_EXCL: u16 = 0x200;
    let mut head = vec![libc::AF_INET6 as u8, 128, 0, 0];
    head.extend_from_slice(&interface.to_ne_bytes());
    let message = Message {
        kind: if add { RTM_NEWADDR } else { RTM_DELADDR },
        flags: if add { NLM_F_CREATE | NLM_F_EXCL } else { 0 },
        head,
        attributes: Attributes::default().bytes(IFA_LOCAL, &address.octets()).bytes(IFA_ADDRESS, &address.octets()),
    };
    Netlink::open(libc::NETLINK_ROUTE)?.talk(&[message], 0).map_err(|failure| failure.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let inner = Attributes::default().bytes(2, &[0xaa]).number(3, 0x0102);
        let bytes = Attributes::default().nested(1, inner).text(4, "ab").0;
        let length = |n: u16| n.to_ne_bytes();
        let mut expected = Vec::new();
        expected.extend([length(20), length(0x8001)].concat());
        expected.extend([length(5), length(2)].concat());
        expected.extend([0xaa, 0, 0, 0]);
        expected.extend([length(8), length(3)].concat());
        expected.extend([0, 0, 1, 2]);
        expected.extend([length(7), length(4)].concat());
        expected.extend([b'a', b'b', 0, 0]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn broken_answers_end_the_reading() {
        let mut message = vec![];
        message.extend(20_u32.to_ne_bytes());
        message.extend(NLMSG_ERROR.to_ne_bytes());
        message.extend(0_u16.to_ne_bytes());
        message.extend(7_u32.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend((-2_i32).to_ne_bytes());
        let (kind, sequence, body, rest) = next(&message).expect("a whole message");
        assert_eq!((kind, sequence, body.len(), rest.len()), (NLMSG_ERROR, 7, 4, 0));
        assert!(next(&message[..19]).is_none(), "shorter than it says");
        assert!(next(&message[..3]).is_none());
        message[0] = 3;
        assert!(next(&message).is_none(), "shorter than its own header");
    }
}
