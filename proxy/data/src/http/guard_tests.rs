use super::*;

fn guard() -> Guard {
    Guard::new(1024, false)
}

#[test]
fn methods_are_in_order() {
    assert!(METHODS.is_sorted());
}

#[test]
fn what_two_hops_may_read_differently_is_refused_wherever_the_reads_end() {
    use Refused::*;
    for (bytes, expected) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", None),
        ("\r\n\r\nGET / HTTP/1.1\nhost: a\n\n", None),
        ("POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbodyGET / HTTP/1.1\r\n\r\n", None),
        ("POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\nGET / HTTP/1.1\r\n\r\n", None),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: CHUNKED\r\n\r\n4;a=b\r\nbody\r\n0\r\nx: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            None,
        ),
        ("POST / HTTP/1.1\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n", Some(Malformed)),
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n", Some(Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\n", Some(Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length: 4, 4\r\n\r\n", Some(Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length: +4\r\n\r\n", Some(Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length:\r\n\r\n", Some(Malformed)),
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked, chunked\r\n\r\n", Some(Coding)),
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", Some(Coding)),
        ("POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", Some(Coding)),
        ("GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n", Some(Malformed)),
        ("BREW / HTTP/1.1\r\n\r\n", Some(Malformed)),
        ("get / HTTP/1.1\r\n\r\n", Some(Malformed)),
        ("GET /a b HTTP/1.1\r\n\r\n", Some(Malformed)),
        ("GET / HTTP/1.0\r\n\r\n", Some(Version)),
        ("GET / HTTP/9.9\r\n\r\n", Some(Version)),
        ("GET /\r\n\r\n", Some(Version)),
        ("GET /a#b HTTP/1.1\r\n\r\n", Some(Fragment)),
        // Behind a body, in the same read.
        ("POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nbodyBREW / HTTP/1.1\r\n\r\n", Some(Malformed)),
        (
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nBREW / HTTP/1.1\r\n",
            Some(Malformed),
        ),
    ] {
        let whole = guard().inspect(bytes.as_bytes());
        let expected = expected.map(Fault::Head);
        assert_eq!(whole.err().map(|(_, fault)| fault), expected, "{bytes:?}");
        if let Err((sound, _)) = whole {
            assert!(sound < bytes.len(), "{bytes:?}");
        }
        let mut guard = guard();
        let pieces = bytes.as_bytes().chunks(1).find_map(|piece| guard.inspect(piece).err());
        assert_eq!(pieces.map(|(_, fault)| fault), expected, "{bytes:?} in pieces");
    }
}

#[test]
fn a_head_is_bounded_whether_it_ends_or_not() {
    let head = |size: usize, end: &str| format!("GET / HTTP/1.1\r\nx: {}{end}", "a".repeat(size));
    for (size, end, refused) in [(900, "\r\n\r\n", false), (1100, "\r\n\r\n", true), (900, "", false), (1100, "", true)]
    {
        let outcome = guard().inspect(head(size, end).as_bytes());
        assert_eq!(outcome.is_err_and(|(_, fault)| fault == Fault::Head(Refused::TooLarge)), refused, "{size} {end:?}");
    }
    let mut guard = guard();
    for _ in 0..100 {
        assert_eq!(guard.inspect(head(900, "\r\n\r\n").as_bytes()), Ok(()));
    }
}

#[test]
fn a_head_under_way_is_known() {
    let mut guard = guard();
    assert!(!guard.in_head());
    for (bytes, expected) in [
        ("GE", true),
        ("T / HTTP/1.1\r\n", true),
        ("\r\n", false),
        ("GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\n", false),
        ("x", false),
    ] {
        assert_eq!(guard.inspect(bytes.as_bytes()), Ok(()));
        assert_eq!(guard.in_head(), expected, "{bytes:?}");
    }
}

#[test]
fn a_client_may_say_that_no_request_follows() {
    for (bytes, expected) in [
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nconnection: keep-alive\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nconnection: te, Close\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nx-connection: close\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", false),
        ("POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\nx", false),
        ("POST / HTTP/1.1\r\nconnection: close\r\ncontent-length: 2\r\n\r\nxy", true),
        // It does not keep its word.
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\nGET / HTTP/1.1\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\nG", false),
    ] {
        let mut guard = Guard::new(1024, true);
        assert_eq!(guard.inspect(bytes.as_bytes()), Ok(()), "{bytes:?}");
        assert_eq!(guard.is_over(), expected, "{bytes:?}");
    }
}

#[test]
fn chunked_bodies_are_followed_as_hyper_follows_them_or_not_at_all() {
    const HEAD: &str = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n";
    let zeros = "0".repeat(18_000) + "3\r\nabc\r\n0\r\n\r\n";
    let spaces = "3".to_owned() + &" ".repeat(18_000) + "\r\nabc\r\n0\r\n\r\n";
    for (body, sound) in [
        ("3\r\nabc\r\n0\r\n\r\n", true),
        ("003 \t\r\nabc\r\n0\r\n\r\n", true),
        ("3 ;a=b;c=\"d\"\r\nabc\r\n0;e\r\nx: y\r\nz: \r\n\r\n", true),
        // A bare LF.
        ("3\nabc\r\n0\r\n\r\n", false),
        ("3;a\nabc\r\n0\r\n\r\n", false),
        ("3\r\nabc\n0\r\n\r\n", false),
        ("3\r\nabc\r\n0\n\r\n", false),
        ("0\r\n\n", false),
        ("0\r\nx: y\n\n", false),
        ("0\r\nx: y\r\n\n", false),
        ("0\r\nx: y\n\r\n", false),
        // A stray CR.
        ("3;a\rb\r\nabc\r\n0\r\n\r\n", false),
        ("3\r\r\nabc\r\n0\r\n\r\n", false),
        ("0\r\nx: y\rz\r\n\r\n", false),
        // No size, or one that is none.
        ("\r\nabc\r\n0\r\n\r\n", false),
        ("g\r\nabc\r\n0\r\n\r\n", false),
        ("-3\r\nabc\r\n0\r\n\r\n", false),
        ("3 x\r\nabc\r\n0\r\n\r\n", false),
        ("10000000000000000\r\nabc\r\n0\r\n\r\n", false),
        // More in a chunk than its size.
        ("3\r\nabcd\r\n0\r\n\r\n", false),
        // Lines longer than are followed.
        (&zeros, false),
        (&spaces, false),
    ] {
        // A request behind the body is seen by nobody but the guard, or by nobody at all.
        let bytes = format!("{HEAD}{body}GET /next HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut whole = guard();
        let outcome = whole.inspect(bytes.as_bytes());
        assert_eq!(outcome.map_err(|(_, fault)| fault), if sound { Ok(()) } else { Err(Fault::Body) }, "{bytes:.99?}");
        assert_eq!(whole.is_between_requests(), sound, "{bytes:.99?}");
        if let Err((sound, _)) = outcome {
            assert!(sound < bytes.len(), "{bytes:.99?}");
        }
        let mut guard = guard();
        let pieces = bytes.as_bytes().chunks(1).find_map(|piece| guard.inspect(piece).err());
        assert_eq!(pieces, (!sound).then_some((0, Fault::Body)), "{bytes:.99?} in pieces");
    }
}

#[test]
fn nothing_is_looked_at_behind_a_head_that_asks_to_leave_http() {
    for (head, leaves) in [
        ("GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n", true),
        ("GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n", true),
        ("GET / HTTP/1.1\r\nconnection: keep-alive\r\nconnection: upgrade\r\nupgrade: websocket\r\n", true),
        ("GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n", true),
        ("GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c, websocket\r\n", true),
        ("POST / HTTP/1.1\r\ncontent-length: 4\r\nconnection: upgrade\r\nupgrade: websocket\r\n", true),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n", true),
        ("GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: H2C\r\n", false),
        ("GET / HTTP/1.1\r\nconnection: upgrade\r\n", false),
        ("GET / HTTP/1.1\r\nconnection: upgrades, x-upgrade\r\nupgrade: websocket\r\n", false),
        ("GET / HTTP/1.1\r\nupgrade: websocket\r\n", false),
        ("GET / HTTP/1.1\r\nx-connection: upgrade\r\nupgrade: websocket\r\n", false),
    ] {
        let bytes = format!("GET /first HTTP/1.1\r\nconnection: upgrade\r\n\r\n{head}\r\nBREW\n\0\r\n");
        let mut whole = guard();
        let expected = if leaves { Ok(()) } else { Err(Fault::Head(Refused::Malformed)) };
        assert_eq!(whole.inspect(bytes.as_bytes()).map_err(|(_, fault)| fault), expected, "{head}");
        assert_eq!(whole.leaving(), leaves.then_some(2), "{head}");
        // What comes later is no head either, so that none is ever late.
        if leaves {
            let mut guard = guard();
            bytes.as_bytes().chunks(1).for_each(|piece| assert_eq!(guard.inspect(piece), Ok(()), "{head}"));
            assert!(!guard.in_head() && !guard.is_between_requests(), "{head}");
        }
    }
}
