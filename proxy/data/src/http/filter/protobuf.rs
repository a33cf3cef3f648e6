//! The wire format of protocol buffers, as far as calls that filters make need it: this crate sees no generated messages.
//!
//! Source: Protocol Buffers documentation, "Encoding".

/// Writes one message.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// The message.
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn key(&mut self, field: u32, kind: u32) {
        self.varint(u64::from(field << 3 | kind));
    }

    /// An integer, an enum or a boolean; 0 is left out.
    pub(super) fn number(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.key(field, 0);
            self.varint(number);
        }
    }

    /// A text or bytes; an empty one is left out.
    pub(super) fn bytes(&mut self, field: u32, bytes: impl AsRef<[u8]>) {
        if !bytes.as_ref().is_empty() {
            self.some_bytes(field, bytes.as_ref());
        }
    }

    fn some_bytes(&mut self, field: u32, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A message, also an empty one.
    pub(super) fn message(&mut self, field: u32, write: impl FnOnce(&mut Writer)) {
        let mut inner = Writer::default();
        write(&mut inner);
        self.some_bytes(field, &inner.0);
    }

    /// An entry of a map of texts.
    pub(super) fn entry(&mut self, field: u32, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.message(field, |entry| {
            entry.bytes(1, key);
            entry.bytes(2, value);
        });
    }
}

/// What is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// An integer, an enum or a boolean; also numbers of fixed width, which no field that is read has.
    Number(u64),
    /// A text, bytes or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// Of a numeric field.
    pub(super) fn number(self) -> Result<u64, Malformed> {
        if let Value::Number(number) = self { Ok(number) } else { Err(Malformed) }
    }

    /// Of a field of text.
    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    /// Of a field of bytes.
    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        if let Value::Bytes(bytes) = self { Ok(bytes) } else { Err(Malformed) }
    }

    /// Of a field that is a message: its fields.
    pub(super) fn fields(self) -> Result<Fields<'a>, Malformed> {
        self.bytes().map(Fields)
    }
}

/// Reads the fields of one message, in the order in which they stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or(Malformed)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| Malformed)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Value<'a>), Malformed> {
        let key = self.varint()?;
        let field = u32::try_from(key >> 3).map_err(|_| Malformed)?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => Value::Number(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Malformed)?)),
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Malformed)?))),
            _ => return Err(Malformed),
        };
        Ok((field, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.number(1, 0);
        writer.number(2, 300);
        writer.bytes(3, "text");
        writer.bytes(4, "");
        writer.message(5, |_| {});
        writer.entry(600, "k", "v");
        let bytes = writer.finish();
        assert_eq!(bytes[..3], [0x10, 0xac, 0x02], "as in the documentation's example");
        let fields: Vec<_> = Fields(&bytes).map(Result::unwrap).collect();
        assert_eq!(fields[0], (2, Value::Number(300)));
        assert_eq!(fields[1], (3, Value::Bytes(b"text")));
        assert_eq!(fields[2], (5, Value::Bytes(b"")));
        assert_eq!(fields[3].0, 600);
        let entry: Vec<_> = fields[3].1.fields().unwrap().map(Result::unwrap).collect();
        assert_eq!(entry, [(1, Value::Bytes(b"k")), (2, Value::Bytes(b"v"))]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            &[0x08][..],
            &[0x0a, 5, 1],
            &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0xff; 12],
            &[0x0b],
            &[0x0d, 1, 2],
        ] {
            assert_eq!(Fields(bytes).last(), Some(Err(Malformed)), "{bytes:?}");
        }
        assert_eq!(Value::Number(1).bytes(), Err(Malformed));
        assert_eq!(Value::Bytes(&[0xff]).text(), Err(Malformed));
    }
}
