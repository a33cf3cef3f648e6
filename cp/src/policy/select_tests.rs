#![allow(clippy::unwrap_used)]

use super::*;
use crate::resource::MeshTrafficPermission;

fn target_ref(yaml: &str) -> TargetRef {
    serde_yaml_ng::from_str(yaml).unwrap()
}

fn labelled(name: &str, labels: &[(&str, &str)]) -> Meta {
    let mut meta = Meta::new("default", name);
    meta.labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    meta
}

#[test]
fn top_level_references() {
    let dataplane: Dataplane = serde_yaml_ng::from_str(
        "networking: {address: 10.0.0.1, inbound: [{port: 80, name: web, tags: {kuma.io/service: backend, version: v1}}]}",
    )
    .unwrap();
    let meta = labelled("backend-1", &[("team", "a")]);
    let target = Target { meta: &meta, dataplane: &dataplane };
    let cases = [
        ("{kind: Mesh}", true),
        ("{kind: Mesh, proxyTypes: [Sidecar]}", true),
        ("{kind: Mesh, proxyTypes: [Gateway]}", false),
        ("{kind: Dataplane}", true),
        ("{kind: Dataplane, name: backend-1}", true),
        ("{kind: Dataplane, name: backend-2}", false),
        ("{kind: Dataplane, labels: {team: a}}", true),
        ("{kind: Dataplane, labels: {team: b}}", false),
        ("{kind: Dataplane, sectionName: web}", true),
        ("{kind: Dataplane, sectionName: '80'}", true),
        ("{kind: Dataplane, sectionName: other}", false),
        ("{kind: Dataplane, name: backend-1, namespace: ns}", false),
        ("{kind: MeshSubset, tags: {version: v1}}", true),
        ("{kind: MeshSubset, tags: {version: v2}}", false),
        ("{kind: MeshSubset}", true),
        ("{kind: MeshService, name: backend}", true),
        ("{kind: MeshService, name: web}", false),
        ("{kind: MeshServiceSubset, name: backend, tags: {version: v1}}", true),
        ("{kind: MeshServiceSubset, name: backend, tags: {version: v2}}", false),
        ("{kind: MeshGateway, name: gw}", false),
    ];
    for (yaml, expected) in cases {
        let found = selects(&labelled("p", &[]), Some(&target_ref(yaml)), target, &dataplane.inbounds()[0]);
        assert_eq!(found, expected, "{yaml}");
    }
    assert!(selects(&labelled("p", &[]), None, target, &dataplane.inbounds()[0]));
    let shadow = labelled("p", &[("kuma.io/effect", "shadow")]);
    assert!(!selects(&shadow, None, target, &dataplane.inbounds()[0]));
    let of_others = labelled("p", &[("kuma.io/policy-role", "workload-owner"), ("k8s.kuma.io/namespace", "ns")]);
    assert!(!selects(&of_others, None, target, &dataplane.inbounds()[0]));
}

#[test]
fn later_policies_outrank_earlier_ones() {
    let sorted = [
        (labelled("b", &[]), "{kind: Mesh}"),
        (labelled("a", &[]), "{kind: Mesh}"),
        (labelled("b", &[("kuma.io/origin", "zone")]), "{kind: Mesh}"),
        (labelled("a", &[("kuma.io/origin", "zone"), ("kuma.io/policy-role", "consumer")]), "{kind: Mesh}"),
        (labelled("a", &[]), "{kind: Dataplane, labels: {team: a}}"),
        (labelled("a", &[]), "{kind: Dataplane, labels: {team: a}, sectionName: x}"),
        (labelled("a", &[]), "{kind: Dataplane, name: a}"),
        (labelled("z", &[]), "{kind: MeshSubset, tags: {a: b}}"),
        (labelled("a", &[]), "{kind: MeshService, name: a}"),
        (labelled("a", &[]), "{kind: MeshServiceSubset, name: a}"),
    ];
    for pair in sorted.windows(2) {
        let refs: Vec<TargetRef> = pair.iter().map(|(_, yaml)| target_ref(yaml)).collect();
        let found = order((&pair[0].0, Some(&refs[0])), (&pair[1].0, Some(&refs[1])));
        assert_eq!(found, Ordering::Less, "{:?} before {:?}", pair[0].1, pair[1].1);
    }
    assert!(MeshTrafficPermission::default().target_ref.is_none(), "an absent reference ranks as Mesh");
    assert_eq!(order((&sorted[0].0, None), (&sorted[1].0, Some(&target_ref("{kind: Mesh}")))), Ordering::Less);
}
