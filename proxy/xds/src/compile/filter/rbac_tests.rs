#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;

use shika_data::model::rbac::{PeerNames, Subject};

use super::*;
use crate::compile::testing::{compiler, yaml};

fn network_rules(text: &str) -> Compiled<Rbac> {
    let config: NetworkRbac = yaml(text);
    compiler().with_context(|context, _| network(context, &config))
}

fn allowed(rbac: &Rbac, uri: Option<&str>, sni: &str) -> bool {
    let names = uri.map(|uri| PeerNames { uris: vec![Arc::from(uri)], ..Default::default() });
    let subject = Subject {
        peer: names.as_ref(),
        destination: None,
        remote: None,
        direct_remote: None,
        server_name: sni,
        request: None,
    };
    rbac.enforced.as_ref().unwrap().decide(&subject).allowed
}

fn entry(predicate: &str, name: &str, action: &str) -> String {
    format!(
        "{{ predicate: {predicate}, on_match: {{ action: {{ name: a, typed_config: {{ '@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: {name}, action: {action} }} }} }} }}"
    )
}

fn uri(matcher: &str) -> String {
    format!(
        "{{ single_predicate: {{ input: {{ name: i, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput }} }}, value_match: {matcher} }} }}"
    )
}

const DENY: &str = "on_no_match: { action: { name: a, typed_config: { '@type': type.googleapis.com/envoy.config.rbac.v3.Action, name: default, action: DENY } } }";

#[test]
fn the_first_entry_that_holds_decides() {
    let list = [
        entry(&uri("{ exact: 'spiffe://m/bad' }"), "deny-bad", "DENY"),
        entry(&uri("{ prefix: 'spiffe://m/' }"), "mesh", "ALLOW"),
        entry(&uri("{ exact: 'spiffe://n/late' }"), "late", "DENY"),
        entry(&uri("{ prefix: 'spiffe://n/' }"), "other", "ALLOW"),
    ];
    let rbac = network_rules(&format!(
        "{{ stat_prefix: s., matcher: {{ {DENY}, matcher_list: {{ matchers: [{}] }} }} }}",
        list.join(", ")
    ))
    .unwrap();
    for (peer, expected) in [
        (Some("spiffe://m/good"), true),
        (Some("spiffe://m/bad"), false),
        (Some("spiffe://n/late"), false),
        (Some("spiffe://n/x"), true),
        (Some("spiffe://z/x"), false),
        (None, false),
    ] {
        assert_eq!(allowed(&rbac, peer, ""), expected, "{peer:?}");
    }
    let decided = |uri: &str| {
        let names = PeerNames { uris: vec![Arc::from(uri)], ..Default::default() };
        let subject = Subject {
            peer: Some(&names),
            destination: None,
            remote: None,
            direct_remote: None,
            server_name: "",
            request: None,
        };
        rbac.enforced.as_ref().unwrap().decide(&subject).policy
    };
    for (peer, name) in [("spiffe://m/bad", "deny-bad"), ("spiffe://m/good", "mesh"), ("spiffe://z/x", "default")] {
        assert_eq!(decided(peer).as_deref(), Some(name), "the entry that decides names the decision");
    }
    let nobody = network_rules(&format!("{{ stat_prefix: s., matcher: {{ {DENY} }} }}")).unwrap();
    assert!(!allowed(&nobody, Some("spiffe://m/good"), ""), "no list denies everyone");
}

#[test]
fn rules_by_policy() {
    let text = "{ stat_prefix: s., rules: { policies: { p: { permissions: [{ any: true }], principals: [{ authenticated: { principal_name: { exact: 'spiffe://m/a' } } }] } } } }";
    let rbac = network_rules(text).unwrap();
    assert!(allowed(&rbac, Some("spiffe://m/a"), ""));
    assert!(!allowed(&rbac, Some("spiffe://m/b"), ""));
    assert!(!allowed(&network_rules("{ stat_prefix: s., rules: {} }").unwrap(), None, ""), "no policy allows nobody");
}

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    let policy = |permission: &str, principal: &str| {
        format!(
            "{{ stat_prefix: s., rules: {{ policies: {{ p: {{ permissions: [{permission}], principals: [{principal}] }} }} }} }}"
        )
    };
    for (text, path, reason) in [
        (
            policy("{ any: true }", "{ authenticated: { principal_name: { safe_regex: { regex: 'a(' } } } }"),
            "rules.policies[\"p\"].principals[0].authenticated.principal_name.safe_regex.regex",
            "invalid regex 'a(': unclosed group",
        ),
        (
            policy("{ destination_port: 70000 }", "{ any: true }"),
            "rules.policies[\"p\"].permissions[0].destination_port",
            "value must be less than or equal to 65535, not 70000",
        ),
        (
            policy("{ any: true }", "{ not_id: { direct_remote_ip: { address_prefix: 10.0.0.0, prefix_len: 33 } } }"),
            "rules.policies[\"p\"].principals[0].not_id.direct_remote_ip.prefix_len",
            "value must be less than or equal to 32, not 33",
        ),
        (
            policy("{ not_rule: { header: { name: x } } }", "{ any: true }"),
            "rules.policies[\"p\"]",
            "headers and paths cannot be matched in a network filter; use the HTTP RBAC filter",
        ),
        ("{ rules: {} }".to_owned(), "stat_prefix", "value length must be at least 1 characters"),
    ] {
        let fault = network_rules(&text).unwrap_err();
        assert_eq!((fault.path.as_str(), fault.reason.as_str()), (path, reason));
    }
}
