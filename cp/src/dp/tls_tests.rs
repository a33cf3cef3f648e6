#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn the_self_made_certificate_is_kept_and_covers_local_names() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        DpConfig { extra_names: vec!["CP.example".to_owned(), "not a name".to_owned()], ..DpConfig::new(dir.path()) };
    let first = ServerIdentity::load(&config).unwrap();
    first.acceptor().unwrap();
    for name in ["localhost", "127.0.0.1", "::1", "cp.example"] {
        assert!(first.covers(name), "{name} in {:?}", first.names);
    }
    assert!(!first.covers("other.example"));
    let again = ServerIdentity::load(&config).unwrap();
    assert_eq!((first.certificate.clone(), first.ca.clone()), (again.certificate, again.ca));
    assert!(is_ca(&first.ca).unwrap());
    assert!(!is_ca(&first.certificate).unwrap());

    let more = DpConfig { extra_names: vec!["new.example".to_owned()], ..config };
    let third = ServerIdentity::load(&more).unwrap();
    assert!(third.covers("new.example"));
    assert_eq!(third.ca, first.ca, "proxies keep trusting the authority");
}

#[test]
fn a_certificate_that_does_not_match_its_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    ServerIdentity::load(&DpConfig::new(dir.path())).unwrap();
    let tls = Some((dir.path().join("dp-server-cert.pem"), dir.path().join("dp-server-ca-key.pem")));
    let own = ServerIdentity::load(&DpConfig { tls, ..DpConfig::new(dir.path()) }).unwrap();
    assert!(own.acceptor().is_err());
    let tls = Some((dir.path().join("absent.pem"), dir.path().join("dp-server-key.pem")));
    let error = ServerIdentity::load(&DpConfig { tls, ..DpConfig::new(dir.path()) }).unwrap_err();
    assert!(error.to_string().contains("absent.pem"), "{error}");
}

#[test]
fn addresses_of_the_machine() {
    let trie =
        "        |-- 10.1.2.3\n           /32 host LOCAL\n        |-- 10.1.2.255\n           /32 link BROADCAST\n";
    assert_eq!(local_v4(trie), ["10.1.2.3"]);
    let table =
        "fd000000000000000000000000000001 02 40 00 80 eth0\nfe800000000000000000000000000001 02 40 20 80 eth0\n";
    assert_eq!(local_v6(table), ["fd00::1"]);
}
