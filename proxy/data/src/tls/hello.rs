//! A ClientHello, gathered from TLS records as they come.

/// Content type of the records of a handshake (RFC 8446 section 5.1).
pub(crate) const HANDSHAKE: u8 = 22;
/// Type of a handshake message.
pub(crate) const CLIENT_HELLO: u8 = 1;
/// Most bytes of a record's content, with the room that compression once had (RFC 5246 section 6.2.3).
const LARGEST_RECORD: usize = (1 << 14) + 256;
/// Bytes before a handshake message's body: its type and its length.
pub(crate) const HEADER: usize = 4;

/// What a prefix of a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gathered {
    /// The beginning of a ClientHello, as far as can be seen.
    More,
    /// Something else. A wrong byte is found as soon as it is there.
    Other,
    /// All of a ClientHello, and maybe more.
    Whole,
}

/// How far the gathering has come. Every byte is looked at once, however many pieces they come in.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// The content of the records so far.
    content: Vec<u8>,
    /// Bytes of the connection that were taken.
    taken: usize,
    /// What is still to come of the current record.
    left: usize,
}

impl Gathering {
    /// Goes on with all that has come of the connection until now; what the last call took must still be at the begin.
    pub fn take(&mut self, bytes: &[u8]) -> Gathered {
        loop {
            if self.left == 0 {
                let header = bytes.get(self.taken..).unwrap_or_default();
                let header = header.get(..5).unwrap_or(header);
                if header.first().is_some_and(|kind| *kind != HANDSHAKE)
                    || header.get(1).is_some_and(|major| *major != 3)
                {
                    return Gathered::Other;
                }
                let &[_, _, _, high, low] = header else { return Gathered::More };
                self.left = usize::from(u16::from_be_bytes([high, low]));
                if self.left == 0 || self.left > LARGEST_RECORD {
                    return Gathered::Other;
                }
                self.taken += header.len();
            }
            let rest = bytes.get(self.taken..).unwrap_or_default();
            let new = rest.get(..self.left).unwrap_or(rest);
            if new.is_empty() {
                return Gathered::More;
            }
            self.content.extend_from_slice(new);
            self.taken += new.len();
            self.left -= new.len();
            if self.content.first() != Some(&CLIENT_HELLO) {
                return Gathered::Other;
            }
            if self.length().is_some_and(|length| self.content.len() >= length) {
                return Gathered::Whole;
            }
        }
    }

    /// Bytes of the whole message, with its header, once it has said so; of a ClientHello alone.
    pub fn length(&self) -> Option<usize> {
        let &[CLIENT_HELLO, a, b, c] = self.content.get(..HEADER)? else { return None };
        Some(HEADER + (usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)))
    }

    /// The message with its header, once it is whole.
    pub fn message(&self) -> Option<&[u8]> {
        self.content.get(..self.length()?)
    }

    /// The same, and how many bytes of the connection it took, if it ends where its last record ends.
    pub fn alone(&self) -> Option<(&[u8], usize)> {
        (self.left == 0 && self.content.len() == self.length()?).then_some((self.content.as_slice(), self.taken))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |content: &[u8]| [&[22, 3, 1, 0, u8::try_from(content.len()).unwrap()], content].concat();
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn a_hello_is_gathered_however_it_is_cut_and_however_it_comes() {
        let message = [&[CLIENT_HELLO, 0, 0, 60][..], &[7; 60]].concat();
        for (size, step) in [(1, 1), (7, 1), (64, 1), (1, 5), (7, 1000), (64, 3)] {
            let bytes = records(&message, size);
            let mut gathering = Gathering::default();
            let mut end = 0;
            while end + step < bytes.len() {
                end += step;
                assert_eq!(gathering.take(&bytes[..end]), Gathered::More, "{size} {step} {end}");
                assert_eq!(gathering.alone(), None);
            }
            assert_eq!(gathering.take(&bytes), Gathered::Whole);
            assert_eq!(gathering.message().unwrap(), message);
            assert_eq!(gathering.alone().unwrap(), (&message[..], bytes.len()));
        }
    }

    #[test]
    fn no_byte_is_gathered_twice() {
        let message = [&[CLIENT_HELLO, 0, 0, 250][..], &[7; 250]].concat();
        let bytes = records(&message, 254);
        let mut gathering = Gathering::default();
        for end in 0..bytes.len() {
            gathering.take(&bytes[..end]);
            assert_eq!(gathering.content.len(), end.saturating_sub(5));
            assert_eq!(gathering.taken, if end < 5 { 0 } else { end });
        }
    }

    #[test]
    fn what_shares_a_record_with_the_hello_is_told_apart() {
        let message = [CLIENT_HELLO, 0, 0, 2, 7, 7];
        for (more, alone) in [(&[][..], true), (&[9], false)] {
            let bytes = records(&[&message[..], more].concat(), 100);
            let mut gathering = Gathering::default();
            assert_eq!(gathering.take(&bytes), Gathered::Whole);
            assert_eq!((gathering.message().unwrap(), gathering.alone().is_some()), (&message[..], alone));
        }
        // The rest of the record is still to come.
        let mut gathering = Gathering::default();
        assert_eq!(gathering.take(&records(&[&message[..], &[9]].concat(), 100)[..11]), Gathered::Whole);
        assert_eq!(gathering.alone(), None);
    }

    #[test]
    fn a_wrong_byte_is_found_when_it_is_there() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            &[22, 2],
            &[21, 3, 1],
            &[22, 3, 1, 0, 0],
            &[22, 3, 1, 0xff, 0xff],
            &[22, 3, 1, 0, 1, 2],
        ] {
            assert_eq!(Gathering::default().take(bytes), Gathered::Other, "{bytes:?}");
        }
        assert_eq!(Gathering::default().take(&[]), Gathered::More);
    }
}
