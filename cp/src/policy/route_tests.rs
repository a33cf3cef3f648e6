#![allow(clippy::unwrap_used)]

use super::*;
use crate::resource::Meta;

fn one(yaml: &str) -> RouteMatch {
    serde_yaml_ng::from_str(yaml).unwrap()
}

/// The hashes of Kuma's golden files.
#[test]
fn hashes_are_those_of_kuma() {
    for (yaml, hash) in [
        ("[{path: {type: PathPrefix, value: /}}]", "9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo="),
        ("[{path: {type: Exact, value: /}}]", "JNNc6//C3P17nUsOJm5f4kqG+U3v8pXhS0od9C3+oss="),
        ("[{path: {type: PathPrefix, value: /v1}}, {method: POST}]", "OTqJZOueoDIMeYnpSETLYoaD2htefPQ7CcHHRBgrODk="),
        ("[{path: {type: PathPrefix, value: /v1}}]", "bzv64o+joRk33jfDADgGv5ar4QyONO0NEVKnoBfJW/E="),
    ] {
        let matches: Vec<RouteMatch> = serde_yaml_ng::from_str(yaml).unwrap();
        assert_eq!(matches_hash(&matches), hash, "{yaml}");
    }
    let escaped = matches_hash(&[one("{path: {type: Exact, value: '/<&>'}}")]);
    let json = r#"[{"path":{"value":"/\u003c\u0026\u003e","type":"Exact"}}]"#;
    assert_eq!(escaped, STANDARD.encode(Sha256::digest(json)), "as Go's encoding/json escapes");
}

#[test]
fn the_most_specific_match_comes_first() {
    let sorted = [
        "{path: {type: Exact, value: /a}, method: GET}",
        "{path: {type: Exact, value: /a}, headers: [{name: a, value: b}]}",
        "{path: {type: Exact, value: /a}}",
        "{path: {type: PathPrefix, value: /abc}}",
        "{path: {type: PathPrefix, value: /ab}, method: GET}",
        "{path: {type: PathPrefix, value: /ab}, headers: [{name: a, value: b}, {name: c, value: d}]}",
        "{path: {type: PathPrefix, value: /ab}, headers: [{name: a, value: b}]}",
        "{path: {type: PathPrefix, value: /ab}, queryParams: [{type: Exact, name: a, value: b}]}",
        "{path: {type: PathPrefix, value: /ab}}",
        "{path: {type: RegularExpression, value: '/a.*'}}",
        "{path: {type: RegularExpression, value: '/.*'}}",
        "{method: GET}",
        "{headers: [{name: a, value: b}]}",
    ];
    let matches: Vec<RouteMatch> = sorted.iter().map(|yaml| one(yaml)).collect();
    for (index, pair) in matches.windows(2).enumerate() {
        assert_eq!(compare(&pair[0], &pair[1]), Ordering::Less, "{} before {}", sorted[index], sorted[index + 1]);
    }
}

/// Trap 13.
#[test]
fn equal_matches_merge_and_the_first_rule_ranks_highest() {
    let rules = |yaml: &str| -> Vec<RouteRule> { serde_yaml_ng::from_str(yaml).unwrap() };
    let rule = |path: &str, service: &str| {
        format!(
            "{{matches: [{{path: {{type: Exact, value: {path}}}}}], default: {{backendRefs: [{{kind: MeshService, name: {service}}}]}}}}"
        )
    };
    let low = rules(&format!("[{}, {}]", rule("/a", "low"), rule("/b", "low")));
    let high = rules(&format!(
        "[{}, {{matches: [{{path: {{type: Exact, value: /b}}}}], default: {{filters: [{{type: RequestRedirect, requestRedirect: {{}}}}]}}}}]",
        rule("/c", "high")
    ));
    let (low_meta, high_meta) = (Meta::new("m", "low"), Meta::new("m", "high"));
    let entries =
        [ToEntry { policy: &low_meta, index: 0, conf: &low }, ToEntry { policy: &high_meta, index: 0, conf: &high }];
    let merged: Vec<(String, bool, Option<String>, String)> = merge_rules(&entries)
        .into_iter()
        .map(|merged| {
            let RouteRule { matches, default } = merged.rule;
            let path = matches[0].path.as_ref().unwrap().value.clone();
            let backend = default.backend_refs.and_then(|refs| refs[0].name.clone());
            (path, default.filters.is_some(), backend, merged.origin.name)
        })
        .collect();
    let text = |path: &str, filters, backend: &str, origin: &str| {
        (path.to_owned(), filters, Some(backend.to_owned()), origin.to_owned())
    };
    assert_eq!(
        merged,
        [text("/c", false, "high", "high"), text("/b", true, "low", "high"), text("/a", false, "low", "low")],
        "/b has the filter of one policy and the backend of the other"
    );
}

struct Fixed;

impl Backends for Fixed {
    fn backend(&mut self, reference: &RouteBackendRef, _: &MergedRule) -> Option<Split> {
        let cluster = reference.name.clone().filter(|name| name != "gone")?;
        let weight = reference.weight.filter(|weight| *weight > 0)?;
        Some(Split { cluster, weight, external: false })
    }

    fn destination(&mut self) -> Option<Split> {
        Some(Split { cluster: "itself".to_owned(), weight: 100, external: false })
    }
}

#[test]
fn there_is_always_a_route_for_the_rest() {
    let found = |yaml: &str, resource: bool| -> Vec<String> {
        let rules: Vec<RouteRule> = serde_yaml_ng::from_str(yaml).unwrap();
        let meta = Meta::new("m", "r");
        let merged = merge_rules(&[ToEntry { policy: &meta, index: 0, conf: &rules }]);
        routes(&merged, resource, &mut Fixed)
            .into_iter()
            .map(|(route, _)| {
                let clusters: Vec<String> =
                    route.backends.iter().map(|split| format!("{}={}", split.cluster, split.weight)).collect();
                let path = route.r#match.path.unwrap().value;
                format!("{path} {} {}", clusters.join(","), route.name)
            })
            .collect()
    };
    let rest = "/ itself=100 9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo=";
    assert_eq!(found("[]", false), [rest]);
    let v1 = "[{matches: [{path: {type: PathPrefix, value: /v1}}], default: {backendRefs: [{kind: MeshService, name: a, weight: 3}, {kind: MeshService, name: gone}]}}]";
    assert_eq!(found(v1, false), ["/v1 a=3 bzv64o+joRk33jfDADgGv5ar4QyONO0NEVKnoBfJW/E=", rest]);
    assert_eq!(found(v1, true), ["/v1 a=3 kri_mhttpr_m___r_", rest]);
    let nowhere = "[{matches: [{path: {type: PathPrefix, value: /v1}}], default: {backendRefs: [{kind: MeshService, name: a, weight: 0}]}}]";
    assert_eq!(found(nowhere, false), [rest], "a route that leads nowhere is none");
    let own =
        "[{matches: [{path: {type: PathPrefix, value: /}}], default: {backendRefs: [{kind: MeshService, name: a}]}}]";
    assert_eq!(found(own, false), ["/ a=1 9Zuf5Tg79OuZcQITwBbQykxAk2u4fRKrwYn3//AL4Yo="]);
    let method = "[{matches: [{method: GET}], default: {}}]";
    assert_eq!(found(method, true)[0], "/ itself=100 kri_mhttpr_m___r_", "without a path: every path");
}
