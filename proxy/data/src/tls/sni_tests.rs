#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

/// A ClientHello with these extensions.
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, content) in extensions {
        list.extend(kind.to_be_bytes());
        list.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        list.extend(content);
    }
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([2, 9, 9]);
    body.extend([0, 2, 0x13, 0x01]);
    body.extend([1, 0]);
    body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
    body.extend(list);
    let mut message = vec![1];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    message
}

fn sni(name: &[u8]) -> (u16, Vec<u8>) {
    let length = |more: usize| u16::try_from(name.len() + more).unwrap().to_be_bytes();
    (0, [&length(3)[..], &[0], &length(0), name].concat())
}

fn with_name(name: &[u8]) -> Vec<u8> {
    hello(&[(43, vec![2, 3, 4]), sni(name), (41, vec![1; 40])])
}

#[test]
fn stand_ins_are_dns_names_and_lead_back() {
    for name in ["backend{mesh=demo}", "{", "a b", "x", "ab", "abc", "\u{e9}{k=v}", &"long{k=v},".repeat(13)] {
        let stand_in = stand_in(name.as_bytes()).unwrap();
        assert!(DnsName::try_from(stand_in.as_str()).is_ok(), "{stand_in}");
        assert_eq!(original(stand_in.as_bytes()).unwrap(), name.as_bytes());
        assert_eq!(shown(&stand_in), name);
    }
    let every: Vec<u8> = (0..=255).collect();
    for bytes in every.chunks(64) {
        assert_eq!(original(stand_in(bytes).unwrap().as_bytes()).unwrap(), bytes);
    }
    assert_eq!(stand_in(&[b'{'; 150]), None, "too long for a DNS name");
    assert_eq!(stand_in(b""), None);
    for name in ["backend", ".sni.shika.invalid", "a.sni.shika.invalid", "a!.sni.shika.invalid", "AB.sni.shika.invalid"]
    {
        assert_eq!(original(name.as_bytes()), None, "{name}");
    }
}

#[test]
fn names_change_with_every_length_around_them() {
    for name in [&b"backend{mesh=demo}"[..], b"{", b"not.a.stand-in.sni.shika.invalid"] {
        let theirs = with_name(name);
        let ours = acceptable(&theirs).unwrap();
        assert_eq!(ours, with_name(stand_in(name).unwrap().as_bytes()));
        assert_eq!(*on_wire(&ours), theirs);
        // What follows in a transcript, and what the binder of a resumption leaves out, changes nothing.
        assert_eq!(*on_wire(&[&ours[..], &[2, 0, 0, 0]].concat()), [&theirs[..], &[2, 0, 0, 0]].concat());
        let cut = ours.len() - 33;
        assert_eq!(*on_wire(&ours[..cut]), theirs[..theirs.len() - 33]);
    }
    for fine in [with_name(b"backend.mesh"), with_name(b"10.0.0.1"), hello(&[]), with_name(&[b'{'; 150])] {
        assert_eq!(acceptable(&fine), None);
        assert!(matches!(on_wire(&fine), Cow::Borrowed(_)));
    }
}

#[test]
fn hellos_are_gathered_however_they_are_cut() {
    let message = with_name(b"backend{mesh=demo}");
    for size in [1, 7, message.len()] {
        let mut bytes = Vec::new();
        for content in message.chunks(size) {
            bytes.extend([22, 3, 1, 0, u8::try_from(content.len()).unwrap()]);
            bytes.extend(content);
        }
        for end in 0..bytes.len() {
            assert!(matches!(gather(&bytes[..end]), Gathered::More), "{size} {end}");
        }
        bytes.extend(b"rest");
        let Gathered::Hello { message: found, consumed } = gather(&bytes) else { panic!("{size}") };
        assert_eq!((found.as_slice(), consumed), (&message[..], bytes.len() - 4));
    }
    for other in
        [&b"GET / HTTP/1.1"[..], &[22, 2], &[22, 3, 1, 0, 1, 2], &[22, 3, 1, 0, 0], &[22, 3, 1, 0, 5, 1, 0, 0, 0, 9]]
    {
        assert!(matches!(gather(other), Gathered::Other), "{other:?}");
    }
}

#[test]
fn any_bytes_are_survived() {
    let message = with_name(b"backend{mesh=demo}");
    for at in 0..message.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut broken = message.clone();
            broken[at] = value;
            let _ = (acceptable(&broken), on_wire(&broken).len(), on_wire(&broken[..at]).len());
        }
    }
}
