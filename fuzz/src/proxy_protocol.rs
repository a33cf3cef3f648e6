//! The header of the PROXY protocol.

use shika_data::proxy_protocol::{Accepts, Parser, Progress, Version, write};

/// The first byte says what is accepted; the rest is the connection. However the bytes come, the verdict is the same, and a header that is taken can be
/// written and read again.
pub fn proxy_protocol(data: &[u8]) {
    let Some((mode, bytes)) = data.split_first() else { return };
    let accepts = Accepts { v1: mode & 1 == 0, v2: mode & 2 == 0, nothing: mode & 4 != 0 };
    let whole = Parser::default().parse(bytes, accepts);
    let mut parser = Parser::default();
    let step = usize::from(mode >> 3).max(1);
    let mut pieces = Progress::More;
    let ends = (1..=bytes.len()).filter(|end| end % step == 0 || *end == bytes.len());
    for end in ends {
        pieces = parser.parse(bytes.get(..end).unwrap_or_default(), accepts);
        if pieces != Progress::More {
            break;
        }
    }
    assert_eq!(pieces, whole, "pieces of {step} bytes");

    let Progress::Header(header) = whole else { return };
    assert!(header.length <= bytes.len());
    assert!(if header.version == Version::V1 { accepts.v1 } else { accepts.v2 });
    let mut written = Vec::new();
    if !write(header.version, header.addresses, &header.tlvs, &mut written) {
        panic!("a header that fitted does not fit");
    }
    let again = Parser::default().parse(&written, Accepts { v1: true, v2: true, nothing: false });
    let Progress::Header(again) = again else { panic!("{again:?}: {written:?}") };
    assert_eq!((again.length, again.addresses, again.tlvs), (written.len(), header.addresses, header.tlvs));
}
