#![allow(clippy::panic)]

use super::*;

const BOTH: Accepts = Accepts { v1: true, v2: true, nothing: false };
const OPTIONAL: Accepts = Accepts { nothing: true, ..BOTH };
const MALFORMED_V1: Progress = Progress::Malformed(Some(Version::V1));
const MALFORMED_V2: Progress = Progress::Malformed(Some(Version::V2));
const NO_HEADER: Progress = Progress::Malformed(None);

fn parse(bytes: &[u8], accepts: Accepts) -> Progress {
    Parser::default().parse(bytes, accepts)
}

fn addresses(source: &str, destination: &str) -> Option<Addresses> {
    Some(Addresses {
        source: source.parse().expect("an address"),
        destination: destination.parse().expect("an address"),
    })
}

fn v1_header(length: usize, addresses: Option<Addresses>) -> Progress {
    Progress::Header(Header { version: Version::V1, length, addresses, tlvs: Vec::new() })
}

/// Version 2: the byte of version and command, that of family and protocol, and what follows.
fn v2_bytes(version: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("a length").to_be_bytes();
    [V2_SIGNATURE, &[version, family][..], &length, rest].concat()
}

const V4: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 0, 80, 1, 187];

#[test]
fn a_line_of_version_1() {
    let four = addresses("1.2.3.4:80", "5.6.7.8:443");
    for (line, expected) in [
        ("PROXY TCP4 1.2.3.4 5.6.7.8 80 443\r\n", v1_header(35, four)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 80 443\r\nGET / HTTP/1.1\r\n", v1_header(35, four)),
        // Blanks at the end are not looked at; a port may be nought.
        ("PROXY TCP4 1.2.3.4 5.6.7.8 80 443 \t\r\n", v1_header(37, four)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n", v1_header(32, addresses("1.2.3.4:0", "5.6.7.8:0"))),
        ("PROXY TCP6 2001:db8::1 ::1 80 443\r\n", v1_header(35, addresses("[2001:db8::1]:80", "[::1]:443"))),
        ("PROXY UNKNOWN\r\n", v1_header(15, None)),
        ("PROXY UNKNOWN whatever follows\r\n", v1_header(32, None)),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 80 443\n", Progress::More),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 80\r\n", MALFORMED_V1),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 80 443 1\r\n", MALFORMED_V1),
        ("PROXY TCP4  1.2.3.4 5.6.7.8 80 443\r\n", MALFORMED_V1),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 80 65536\r\n", MALFORMED_V1),
        ("PROXY TCP4 1.2.3.400 5.6.7.8 80 443\r\n", MALFORMED_V1),
        ("PROXY TCP4 ::1 5.6.7.8 80 443\r\n", MALFORMED_V1),
        ("PROXY TCP6 1.2.3.4 ::1 80 443\r\n", MALFORMED_V1),
        ("PROXY UDP4 1.2.3.4 5.6.7.8 80 443\r\n", MALFORMED_V1),
        ("PROXY TCP4 0.0.0.0 5.6.7.8 80 443\r\n", MALFORMED_V1),
        ("PROXY TCP4 224.0.0.1 5.6.7.8 80 443\r\n", MALFORMED_V1),
        ("PROXY TCP4 1.2.3.4 255.255.255.255 80 443\r\n", MALFORMED_V1),
        ("PROXY TCP6 ff02::1 ::1 80 443\r\n", MALFORMED_V1),
        ("PROXY\r\n", NO_HEADER),
        ("HELLO\r\n", NO_HEADER),
        ("PR\0::1 80 443\r\n", NO_HEADER),
        ("PR\0::1 80 443\r\n\x7f", NO_HEADER),
        ("GET / HTTP/1.1\r\n", NO_HEADER),
        ("GET / HTTP/1.1 ", Progress::More),
        ("\r\n", Progress::More),
        ("\r\nGET / HTTP/1.1\r\n", NO_HEADER),
        ("", Progress::More),
    ] {
        assert_eq!(parse(line.as_bytes(), BOTH), expected, "{line:?}");
    }
    let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16));
    assert_eq!(parse(line(108).as_bytes(), BOTH), v1_header(108, None));
    assert_eq!(parse(line(109).as_bytes(), BOTH), NO_HEADER);
    assert_eq!(parse(line(300).as_bytes(), BOTH), NO_HEADER);
    assert_eq!(parse(b"PROXY TCP4 \xff\xff\r\n", BOTH), MALFORMED_V1);
}

#[test]
fn the_bytes_of_version_2() {
    let header = |extra: usize, addresses, tlvs: &[(u8, &'static [u8])]| {
        let tlvs = tlvs.iter().map(|(kind, value)| Tlv { kind: *kind, value: Bytes::from_static(value) }).collect();
        Progress::Header(Header { version: Version::V2, length: 16 + extra, addresses, tlvs })
    };
    let four = addresses("1.2.3.4:80", "5.6.7.8:443");
    let with = |more: &[u8]| [&V4[..], more].concat();
    let mut six = [0; 36];
    (six[0], six[15], six[16], six[31], six[33], six[35]) = (0x20, 1, 0x20, 2, 1, 2);
    for (bytes, expected) in [
        (v2_bytes(0x21, 0x11, &V4), header(12, four, &[])),
        // Datagrams, as in Envoy.
        (v2_bytes(0x21, 0x12, &V4), header(12, four, &[])),
        (v2_bytes(0x21, 0x21, &six), header(36, addresses("[2000::1]:1", "[2000::2]:2"), &[])),
        (v2_bytes(0x21, 0x11, &with(&[2, 0, 1, 7, 5, 0, 0])), header(19, four, &[(2, &[7]), (5, &[])])),
        (v2_bytes(0x21, 0x11, &with(&[2, 0])), MALFORMED_V2),
        (v2_bytes(0x21, 0x11, &with(&[2, 0, 2, 7])), MALFORMED_V2),
        // What a proxy says of its own connections is passed over.
        (v2_bytes(0x20, 0, &[]), header(0, None, &[])),
        (v2_bytes(0x20, 0x11, &with(&[9])), header(13, None, &[])),
        (v2_bytes(0x31, 0x11, &V4), MALFORMED_V2),
        (v2_bytes(0x22, 0x11, &V4), MALFORMED_V2),
        (v2_bytes(0x21, 0x10, &V4), MALFORMED_V2),
        (v2_bytes(0x21, 0x13, &V4), MALFORMED_V2),
        // Unix sockets.
        (v2_bytes(0x21, 0x31, &[0; 216]), MALFORMED_V2),
        (v2_bytes(0x21, 0x11, &V4[..11]), MALFORMED_V2),
        (v2_bytes(0x21, 0x11, &[0; 12]), MALFORMED_V2),
        (V2_SIGNATURE.to_vec(), Progress::More),
        (v2_bytes(0x21, 0x11, &V4)[..27].to_vec(), Progress::More),
    ] {
        assert_eq!(parse(&bytes, BOTH), expected, "{bytes:?}");
    }
}

#[test]
fn what_is_not_taken() {
    let v1 = b"PROXY TCP4 1.2.3.4 5.6.7.8 80 443\r\n";
    let v2 = v2_bytes(0x21, 0x11, &V4);
    let only_v2 = |accepts| Accepts { v1: false, ..accepts };
    let only_v1 = |accepts| Accepts { v2: false, ..accepts };
    assert_eq!(parse(v1, only_v2(BOTH)), Progress::Disallowed(Version::V1));
    assert_eq!(parse(&v2, only_v1(BOTH)), Progress::Disallowed(Version::V2));
    // Where no header is needed, one of a version that is not taken is not looked for.
    assert_eq!(parse(v1, only_v2(OPTIONAL)), Progress::Nothing);
    assert_eq!(parse(&v2, only_v1(OPTIONAL)), Progress::Nothing);
    assert_eq!(parse(b"G", OPTIONAL), Progress::Nothing);
    assert_eq!(parse(b"P", OPTIONAL), Progress::More);
    assert_eq!(parse(b"POST", OPTIONAL), Progress::Nothing);
    assert_eq!(parse(b"\r\n\r\n", OPTIONAL), Progress::More);
    assert_eq!(parse(b"", OPTIONAL), Progress::More);
    assert_eq!(parse(b"PROXY nonsense\r\n", OPTIONAL), MALFORMED_V1);
}

#[test]
fn a_header_is_read_as_its_bytes_come() {
    let v2 = v2_bytes(0x21, 0x11, &[&V4[..], &[4, 0, 3, 1, 2, 3]].concat());
    for bytes in [b"PROXY TCP4 1.2.3.4 5.6.7.8 80 443\r\n".to_vec(), b"PROXY UNKNOWN\r\n".to_vec(), v2] {
        for step in [1, 2, 3, 7] {
            let mut parser = Parser::default();
            let mut end = 0;
            while end + step < bytes.len() {
                end += step;
                assert_eq!(parser.parse(&bytes[..end], BOTH), Progress::More, "{end} of {bytes:?}");
            }
            assert_eq!(parser.parse(&bytes, BOTH), parse(&bytes, BOTH));
        }
    }
}

#[test]
fn what_is_written_is_read() {
    let tlvs = [Tlv { kind: 1, value: Bytes::from_static(b"h2") }, Tlv { kind: 0xea, value: Bytes::new() }];
    for (source, destination) in [("1.2.3.4:80", "5.6.7.8:443"), ("[2001:db8::1]:1", "[::1]:65535")] {
        let addresses = addresses(source, destination);
        for version in [Version::V1, Version::V2] {
            let mut bytes = Vec::new();
            assert!(write(version, addresses, &tlvs, &mut bytes));
            let Progress::Header(header) = parse(&bytes, BOTH) else { panic!("{bytes:?}") };
            assert_eq!((header.version, header.length, header.addresses), (version, bytes.len(), addresses));
            assert_eq!(header.tlvs, if version == Version::V2 { &tlvs[..] } else { &[] });
        }
    }
    let mut line = Vec::new();
    write(Version::V1, addresses("1.2.3.4:80", "5.6.7.8:443"), &[], &mut line);
    assert_eq!(line, b"PROXY TCP4 1.2.3.4 5.6.7.8 80 443\r\n");
    // Nothing to say, or nothing that can be said.
    for addresses in [None, addresses("1.2.3.4:80", "[::1]:1")] {
        let (mut v1, mut v2) = (Vec::new(), Vec::new());
        assert!(write(Version::V1, addresses, &tlvs, &mut v1) && write(Version::V2, addresses, &tlvs, &mut v2));
        assert_eq!((v1.as_slice(), v2), (&b"PROXY UNKNOWN\r\n"[..], v2_bytes(0x20, 0, &[])));
    }
}

#[test]
fn a_tlv_for_which_there_is_no_room_is_left_out() {
    let tlv = |kind, length| Tlv { kind, value: vec![kind; length].into() };
    let mut bytes = Vec::new();
    let most = V2_MOST - 12 - 3;
    assert!(write(Version::V2, addresses("1.2.3.4:80", "5.6.7.8:443"), &[tlv(1, most)], &mut bytes));
    assert_eq!(bytes.len(), 16 + V2_MOST);
    let mut bytes = Vec::new();
    let tlvs = [tlv(1, most - 10), tlv(2, 8), tlv(3, 7), tlv(4, 70_000)];
    assert!(!write(Version::V2, addresses("1.2.3.4:80", "5.6.7.8:443"), &tlvs, &mut bytes));
    let Progress::Header(header) = parse(&bytes, BOTH) else { panic!("{} bytes", bytes.len()) };
    assert_eq!(header.tlvs.iter().map(|tlv| tlv.kind).collect::<Vec<_>>(), [1, 3]);
}
