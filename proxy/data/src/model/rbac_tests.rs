#![allow(clippy::unwrap_used)]

use super::*;
use crate::testing::exactly;

fn peer(uris: &[&str], dns: &[&str], subject: &str) -> PeerNames {
    let names = |names: &[&str]| names.iter().map(|name| (*name).into()).collect();
    PeerNames { uris: names(uris), dns: names(dns), subject: subject.into() }
}

fn subject(peer: Option<&PeerNames>) -> Subject<'_> {
    Subject {
        peer,
        destination: Some("10.0.0.1:8080".parse().unwrap()),
        remote: Some("192.0.2.7:1".parse().unwrap()),
        direct_remote: Some("[::ffff:198.51.100.7]:1".parse().unwrap()),
        server_name: "backend.mesh",
        request: None,
    }
}

fn named(name: &str) -> Principal {
    Principal::Authenticated(Some(exactly(name)))
}

fn net(net: &str) -> IpNet {
    net.parse().unwrap()
}

#[test]
fn principals() {
    let frontend = peer(&["spiffe://mesh/frontend", "kuma://version/1"], &["frontend.mesh"], "CN=frontend");
    let bare = peer(&[], &[], "CN=bare");
    let nobody = subject(None);
    for (principal, peer, expected) in [
        (Principal::Any, None, true),
        (Principal::Authenticated(None), None, false),
        (Principal::Authenticated(None), Some(&bare), true),
        (named("spiffe://mesh/frontend"), Some(&frontend), true),
        (named("kuma://version/1"), Some(&frontend), true),
        (named("frontend.mesh"), Some(&frontend), true),
        (named("spiffe://mesh/front"), Some(&frontend), false),
        (named("CN=bare"), Some(&bare), true),
        (named("spiffe://mesh/frontend"), None, false),
        (Principal::Not(Box::new(named("spiffe://mesh/frontend"))), None, true),
        (Principal::And(vec![Principal::Any, named("CN=bare")]), Some(&bare), true),
        (Principal::And(vec![Principal::Any, named("CN=bare")]), Some(&frontend), false),
        (Principal::Or(vec![named("CN=bare"), named("frontend.mesh")]), Some(&frontend), true),
        (Principal::Or(Vec::new()), Some(&frontend), false),
        (Principal::RemoteIp(net("192.0.2.0/24")), None, true),
        (Principal::DirectRemoteIp(net("192.0.2.0/24")), None, false),
        // A v4 address on a dual-stack socket is a v4 address.
        (Principal::DirectRemoteIp(net("198.51.100.0/24")), None, true),
        (Principal::UrlPath(exactly("/")), Some(&frontend), false),
    ] {
        assert_eq!(principal.matches(&Subject { peer, ..nobody }), expected, "{principal:?} {peer:?}");
    }
}

#[test]
fn permissions() {
    let subject = subject(None);
    for (permission, expected) in [
        (Permission::Any, true),
        (Permission::DestinationPort(8080..8081), true),
        (Permission::DestinationPort(8081..9000), false),
        (Permission::DestinationPort(0..65536), true),
        (Permission::DestinationIp(net("10.0.0.0/8")), true),
        (Permission::DestinationIp(net("11.0.0.0/8")), false),
        (Permission::ServerName(exactly("backend.mesh")), true),
        (Permission::ServerName(exactly("")), false),
        (Permission::Not(Box::new(Permission::Any)), false),
        (Permission::And(vec![Permission::Any, Permission::DestinationPort(8080..8081)]), true),
        (Permission::And(Vec::new()), true),
        (Permission::Or(vec![Permission::DestinationPort(1..2), Permission::Any]), true),
        (Permission::Or(Vec::new()), false),
        (Permission::UrlPath(exactly("/")), false),
    ] {
        assert_eq!(permission.matches(&subject), expected, "{permission:?}");
    }
}

#[test]
fn actions_and_the_policy_that_decides() {
    let policy = |name: &str, principal| Policy {
        name: name.into(),
        permissions: vec![Permission::Any],
        principals: vec![principal],
        allows: name != "b",
    };
    let policies = || {
        vec![
            policy("a", named("spiffe://mesh/a")),
            policy("b", named("spiffe://mesh/b")),
            policy("c", named("spiffe://mesh/b")),
        ]
    };
    let a = peer(&["spiffe://mesh/b"], &[], "");
    for (action, peer, allowed, decided) in [
        (Action::Allow, Some(&a), true, Some("b")),
        (Action::Allow, None, false, None),
        (Action::Deny, Some(&a), false, Some("b")),
        (Action::Deny, None, true, None),
        (Action::Log, Some(&a), true, Some("b")),
        (Action::Log, None, true, None),
        (Action::ByPolicy, Some(&a), false, Some("b")),
        (Action::ByPolicy, Some(&peer(&["spiffe://mesh/a"], &[], "")), true, Some("a")),
        (Action::ByPolicy, None, false, None),
    ] {
        let decision = Rules { action, policies: policies() }.decide(&subject(peer));
        assert_eq!((decision.allowed, decision.policy.as_deref()), (allowed, decided), "{action:?} {peer:?}");
    }
    let empty = Rules { action: Action::Allow, policies: Vec::new() };
    assert!(!empty.decide(&subject(None)).allowed, "rules without policies allow nobody");
}
