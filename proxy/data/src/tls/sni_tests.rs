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
    for name in ["backend".to_owned(), SUFFIX.clone(), format!("a{}", *SUFFIX), format!("a!{}", *SUFFIX)] {
        assert_eq!(original(name.as_bytes()), None, "{name}");
    }
    let shouted = stand_in(b"backend{mesh=demo}").unwrap().to_ascii_uppercase();
    assert_eq!(original(shouted.as_bytes()).unwrap(), b"backend{mesh=demo}", "DNS names have no case");
}

#[test]
fn nobody_else_can_say_a_stand_in() {
    // `backend{mesh=default}` in the stand-in's alphabet, with what a process' own stand-ins do not end in.
    let guessed = "mjqwg23fnzshw3lfonud2zdfmzqxk3dupu";
    for name in [
        format!("{guessed}.sni.shika.invalid"),
        format!("{}.SNI.SHIKA.INVALID", guessed.to_ascii_uppercase()),
        format!("{guessed}.aaaaaaaaaaaaaaaa.invalid"),
    ] {
        assert_eq!(shown(&name), name);
        let (asked, changed) = acceptable(&with_name(name.as_bytes())).unwrap();
        assert_eq!((asked.name.as_str(), changed), (&*name.to_ascii_lowercase(), None));
        assert!(asked.is_seen_as(Some(&name)));
    }
    let label = SUFFIX.strip_prefix('.').unwrap().strip_suffix(".invalid").unwrap();
    assert_eq!(label.len(), 16);
    assert_ne!(label, "a".repeat(16), "it was drawn");
    // And if it could be guessed, it would be taken for a name like any other.
    let guessed = stand_in(b"backend{mesh=default}").unwrap();
    for name in [guessed.clone(), guessed.to_ascii_uppercase()] {
        let (asked, changed) = acceptable(&with_name(name.as_bytes())).unwrap();
        assert_eq!(asked.name, guessed, "{name}");
        assert_eq!(*on_wire(&changed.unwrap()), with_name(name.as_bytes()));
    }
}

#[test]
fn what_was_asked_is_what_the_handshake_sees() {
    for (name, real, seen) in [
        ("Backend.Mesh", "backend.mesh", Some("backend.mesh")),
        ("10.0.0.1", "10.0.0.1", None),
        ("::1", "::1", None),
        ("Backend{k=V}", "backend{k=v}", Some(stand_in(b"Backend{k=V}").unwrap().as_str())),
    ] {
        let (asked, _) = acceptable(&with_name(name.as_bytes())).unwrap();
        assert_eq!(asked.name, real);
        assert!(asked.is_seen_as(seen), "{name}");
        assert!(!asked.is_seen_as(Some("other")), "{name}");
        assert_eq!(asked.is_seen_as(None), seen.is_none(), "{name}");
    }
    assert_eq!(acceptable(&hello(&[])), None);
}

#[test]
fn names_change_with_every_length_around_them() {
    for name in [&b"backend{mesh=demo}"[..], b"{", format!("not.a.stand-in{}", *SUFFIX).as_bytes()] {
        let theirs = with_name(name);
        let ours = acceptable(&theirs).unwrap().1.unwrap();
        assert_eq!(ours, with_name(stand_in(name).unwrap().as_bytes()));
        assert_eq!(*on_wire(&ours), theirs);
        // What follows in a transcript, and what the binder of a resumption leaves out, changes nothing.
        assert_eq!(*on_wire(&[&ours[..], &[2, 0, 0, 0]].concat()), [&theirs[..], &[2, 0, 0, 0]].concat());
        let cut = ours.len() - 33;
        assert_eq!(*on_wire(&ours[..cut]), theirs[..theirs.len() - 33]);
    }
    for fine in [with_name(b"backend.mesh"), with_name(b"10.0.0.1"), hello(&[]), with_name(&[b'{'; 150])] {
        assert_eq!(acceptable(&fine).and_then(|(_, changed)| changed), None);
        assert!(matches!(on_wire(&fine), Cow::Borrowed(_)));
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
