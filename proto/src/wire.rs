//! Protobuf's wire format: writing nested messages without knowing their length first, and reading hostile bytes.
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

/// Wire types.
pub(crate) const VARINT: u8 = 0;
pub(crate) const FIXED64: u8 = 1;
pub(crate) const LEN: u8 = 2;
pub(crate) const FIXED32: u8 = 5;

/// Writes a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Writes a field's tag.
pub(crate) fn put_tag(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

/// Writes a length-delimited field.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, LEN);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Begins a length-delimited field's payload; hand the returned mark to [`close`] after the payload.
pub(crate) fn open(out: &mut Vec<u8>) -> usize {
    out.push(0);
    out.len()
}

/// Ends a payload. One byte was kept for the length; a longer length moves the payload up.
pub(crate) fn close(out: &mut Vec<u8>, start: usize) {
    let end = out.len();
    let length = end.saturating_sub(start);
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        if let Some(byte) = out.get_mut(start - 1) {
            *byte = short;
        }
        return;
    }
    put_varint(out, length as u64);
    let width = out.len() - end;
    // The length was written behind the payload: turn it to the front, over the byte that was kept.
    out[start..].rotate_right(width);
    out.remove(start - 1);
}

/// A value as the wire has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Len(&'a [u8]),
    /// A deprecated group, skipped whole.
    Group,
}

impl Wire<'_> {
    /// The value that an unset field would have.
    pub(crate) fn is_zero(self) -> bool {
        match self {
            Wire::Varint(number) | Wire::Fixed64(number) => number == 0,
            Wire::Fixed32(number) => number == 0,
            Wire::Len(bytes) => bytes.is_empty(),
            Wire::Group => false,
        }
    }
}

/// The bytes are not protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads the fields of one message.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next field's number and value; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Malformed> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let (number, wire_type) = self.tag()?;
        let value = match wire_type {
            3 => {
                self.skip_group(number)?;
                Wire::Group
            }
            _ => self.value(wire_type)?,
        };
        Ok(Some((number, value)))
    }

    /// Reads one bare varint, as in a packed list.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            // The tenth byte holds the last bit only.
            if i == 9 && *byte > 1 {
                return Err(Malformed);
            }
            number |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.0 = self.0.get(i + 1..).ok_or(Malformed)?;
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    /// Reads one value of a wire type that is not a group.
    pub(crate) fn value(&mut self, wire_type: u8) -> Result<Wire<'a>, Malformed> {
        match wire_type {
            VARINT => Ok(Wire::Varint(self.varint()?)),
            FIXED64 => Ok(Wire::Fixed64(u64::from_le_bytes(self.array()?))),
            FIXED32 => Ok(Wire::Fixed32(u32::from_le_bytes(self.array()?))),
            LEN => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
                self.0 = rest;
                Ok(Wire::Len(bytes))
            }
            _ => Err(Malformed),
        }
    }

    fn tag(&mut self) -> Result<(u32, u8), Malformed> {
        let tag = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        let number = tag >> 3;
        if number == 0 {
            return Err(Malformed);
        }
        Ok((number, (tag & 7) as u8))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*bytes)
    }

    /// Skips to the end of a group; nested groups are counted, not recursed into.
    fn skip_group(&mut self, number: u32) -> Result<(), Malformed> {
        let mut open = vec![number];
        while let Some(innermost) = open.last().copied() {
            match self.tag()? {
                (number, 3) if open.len() < 100 => open.push(number),
                (number, 4) if number == innermost => {
                    open.pop();
                }
                (_, 3 | 4) => return Err(Malformed),
                (_, wire_type) => {
                    self.value(wire_type)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_width() {
        for length in [0usize, 1, 127, 128, 300, 16_383, 16_384, 3_000_000] {
            let mut out = vec![7, 7];
            put_tag(&mut out, 5, LEN);
            let start = open(&mut out);
            out.extend((0..length).map(|i| i as u8));
            close(&mut out, start);
            let mut reader = Reader(&out[2..]);
            let body: Vec<u8> = (0..length).map(|i| i as u8).collect();
            assert_eq!(reader.next(), Ok(Some((5, Wire::Len(&body)))), "{length}");
            assert_eq!(reader.next(), Ok(None));
        }
    }

    #[test]
    fn varints() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, number);
            assert_eq!(Reader(&out).varint(), Ok(number));
        }
        assert_eq!(Reader(&[0xff; 10]).varint(), Err(Malformed));
        assert_eq!(Reader(&[0x80; 3]).varint(), Err(Malformed));
    }

    #[test]
    fn refuses_what_is_not_protobuf() {
        let cases: &[(&str, &[u8])] = &[
            ("field number 0", &[0x00, 0x01]),
            ("wire type 6", &[0x0e, 0x01]),
            ("length beyond the end", &[0x0a, 0x05, 0x01]),
            ("cut fixed64", &[0x09, 0x01]),
            ("end of a group that was not begun", &[0x0c]),
            ("group that does not end", &[0x0b, 0x08, 0x01]),
            ("group ended by another", &[0x0b, 0x14]),
        ];
        for (what, bytes) in cases {
            assert_eq!(Reader(bytes).next(), Err(Malformed), "{what}");
        }
        let mut reader = Reader(&[0x0b, 0x13, 0x08, 0x01, 0x14, 0x0c, 0x10, 0x02]);
        assert_eq!(reader.next(), Ok(Some((1, Wire::Group))));
        assert_eq!(reader.next(), Ok(Some((2, Wire::Varint(2)))));
    }
}
