#![allow(clippy::unwrap_used)]

use super::*;
use crate::resource::Dataplane;

fn build(policies: &[(&str, &str)]) -> (Permission, Vec<String>) {
    let policies: Vec<(Meta, MeshTrafficPermission)> = policies
        .iter()
        .map(|(name, spec)| (Meta::new("default", *name), serde_yaml_ng::from_str(spec).unwrap()))
        .collect();
    let dataplane: Dataplane = serde_yaml_ng::from_str(
        "networking: {address: 10.0.0.1, inbound: [{port: 80, tags: {kuma.io/service: server}}]}",
    )
    .unwrap();
    let meta = Meta::new("default", "server-1");
    let target = Target { meta: &meta, dataplane: &dataplane };
    let mut warnings = Vec::new();
    let refs = policies.iter().map(|(meta, policy)| (meta, policy));
    (permission(refs, target, &dataplane.inbounds()[0], &mut warnings), warnings)
}

/// Writes clients as `a=1,b=2,!c=3,!(d=4,e=5)`; `*` for every client.
fn text(clients: &[Clients]) -> Vec<String> {
    let tags = |tags: &[TagMatch]| {
        tags.iter()
            .map(|m| format!("{}={}", m.tag.trim_start_matches("kuma.io/"), m.value))
            .collect::<Vec<_>>()
            .join(",")
    };
    clients
        .iter()
        .map(|clients| {
            let all = Some(tags(&clients.all)).filter(|all| !all.is_empty());
            let except = clients
                .except
                .iter()
                .map(|e| if e.len() == 1 { format!("!{}", tags(e)) } else { format!("!({})", tags(e)) });
            let parts: Vec<String> = all.into_iter().chain(except).collect();
            if parts.is_empty() { "*".to_owned() } else { parts.join(",") }
        })
        .collect()
}

/// What is shown, the policies, who is allowed, and who would be denied by the shadow.
type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

#[test]
fn what_is_allowed() {
    let cases: &[Case<'_>] = &[
        ("no policy denies everyone", &[], &[], &[]),
        (
            "all of the mesh",
            &[("p", "{targetRef: {kind: Mesh}, from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]}")],
            &["*"],
            &[],
        ),
        (
            "services, the golden rules/from-tags/03",
            &[(
                "p",
                "from: [{targetRef: {kind: MeshService, name: backend}, default: {action: Allow}}, \
                 {targetRef: {kind: MeshService, name: web}, default: {action: Deny}}, \
                 {targetRef: {kind: MeshService, name: api}, default: {action: AllowWithShadowDeny}}, \
                 {targetRef: {kind: MeshService, name: orders}, default: {action: Deny}}]",
            )],
            &["service=backend", "service=api"],
            &["service=api"],
        ),
        (
            "a version of a service is taken out, the golden legacy_rbac_configurer_test L157",
            &[(
                "p",
                "from: [{targetRef: {kind: MeshService, name: backend}, default: {action: Allow}}, \
                 {targetRef: {kind: MeshServiceSubset, name: backend, tags: {version: v2}}, default: {action: Deny}}]",
            )],
            &["service=backend,!version=v2"],
            &[],
        ),
        (
            "two denials that do not overlap both hold",
            &[(
                "p",
                "from: [{targetRef: {kind: Mesh}, default: {action: Allow}}, \
                 {targetRef: {kind: MeshService, name: a}, default: {action: Deny}}, \
                 {targetRef: {kind: MeshService, name: b}, default: {action: Deny}}]",
            )],
            &["!service=a,!service=b"],
            &[],
        ),
        (
            "a denial before a permission has no effect on it",
            &[(
                "p",
                "from: [{targetRef: {kind: MeshService, name: a}, default: {action: Deny}}, \
                 {targetRef: {kind: Mesh}, default: {action: Allow}}]",
            )],
            &["*"],
            &[],
        ),
        (
            "the later policy takes everything away: of two that select alike, the smaller name outranks",
            &[
                ("b", "from: [{targetRef: {kind: MeshService, name: a}, default: {action: Allow}}]"),
                ("a", "from: [{targetRef: {kind: Mesh}, default: {action: Deny}}]"),
            ],
            &[],
            &[],
        ),
        (
            "the more specific policy outranks, the golden rules/from-tags/mtp-overrides the other way round",
            &[
                ("a", "from: [{targetRef: {kind: Mesh}, default: {action: Deny}}]"),
                (
                    "b",
                    "{targetRef: {kind: MeshService, name: server}, \
                     from: [{targetRef: {kind: MeshSubset, tags: {app: ui}}, default: {action: Allow}}, \
                     {targetRef: {kind: MeshSubset, tags: {app: order}}, default: {action: Allow}}]}",
                ),
            ],
            &["app=order", "app=ui"],
            &[],
        ),
        (
            "shadow denials of what is allowed outright later are none",
            &[(
                "p",
                "from: [{targetRef: {kind: Mesh}, default: {action: AllowWithShadowDeny}}, \
                 {targetRef: {kind: MeshSubset, tags: {app: a, ns: n}}, default: {action: Allow}}]",
            )],
            &["app=a,ns=n", "*"],
            &["!(app=a,ns=n)"],
        ),
    ];
    for (name, policies, allowed, shadow) in cases {
        let (permission, warnings) = build(policies);
        assert_eq!(text(&permission.allowed()), *allowed, "{name}");
        assert_eq!(text(&permission.shadow_denied()), *shadow, "{name}: shadow");
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
    }
}

/// Every list of up to three entries over two tags, against every client: the alternatives say what the last match says.
#[test]
fn alternatives_agree_with_the_last_match() {
    let sets: Vec<Vec<TagMatch>> = ["", "s=1", "s=2", "v=1", "s=1,v=1", "s=2,v=2"]
        .iter()
        .map(|set| {
            set.split(',')
                .filter_map(|pair| pair.split_once('='))
                .map(|(tag, value)| TagMatch { tag: tag.to_owned(), value: value.to_owned() })
                .collect()
        })
        .collect();
    let actions = [Action::Allow, Action::Deny, Action::AllowWithShadowDeny];
    let entries: Vec<Entry> = sets
        .iter()
        .flat_map(|clients| {
            actions.map(|action| Entry { policy: "p".to_owned(), index: 0, action, clients: clients.clone() })
        })
        .collect();
    let clients: Vec<BTreeMap<String, String>> = (0..9)
        .map(|n| [("s", n / 3), ("v", n % 3)].into_iter().map(|(k, v)| (k.to_owned(), v.to_string())).collect())
        .collect();
    let holds =
        |set: &[TagMatch], client: &BTreeMap<String, String>| set.iter().all(|m| client.get(&m.tag) == Some(&m.value));
    let any = |list: &[Clients], client: &BTreeMap<String, String>| {
        list.iter().any(|c| holds(&c.all, client) && !c.except.iter().any(|e| holds(e, client)))
    };
    let mut checked = 0;
    for a in &entries {
        for b in &entries {
            for c in &entries {
                let permission = Permission { entries: vec![a.clone(), b.clone(), c.clone()] };
                let (allowed, shadow) = (permission.allowed(), permission.shadow_denied());
                for client in &clients {
                    let action = match permission.decide(client) {
                        Decision::By(entry) => entry.action,
                        Decision::DefaultDeny => Action::Deny,
                    };
                    assert_eq!(any(&allowed, client), action != Action::Deny, "{permission:?} for {client:?}");
                    assert_eq!(
                        any(&shadow, client),
                        action == Action::AllowWithShadowDeny,
                        "{permission:?} for {client:?}"
                    );
                    checked += 1;
                }
            }
        }
    }
    assert_eq!(checked, 18 * 18 * 18 * 9);
}

#[test]
fn the_deciding_entry_is_named() {
    let (permission, _) = build(&[(
        "p",
        "from: [{targetRef: {kind: Mesh}, default: {action: Allow}}, \
         {targetRef: {kind: MeshService, name: a}, default: {action: Deny}}]",
    )]);
    let client = |service: &str| BTreeMap::from([(SERVICE_TAG.to_owned(), service.to_owned())]);
    assert!(matches!(permission.decide(&client("a")), Decision::By(Entry { index: 1, action: Action::Deny, .. })));
    assert!(matches!(permission.decide(&client("b")), Decision::By(Entry { index: 0, action: Action::Allow, .. })));
    assert_eq!(Permission::default().decide(&client("a")), Decision::DefaultDeny);
}

/// Trap 13: `rules` are for MeshIdentity, which is not there; they add up to nothing rather than to something else.
#[test]
fn what_is_not_applied_is_said() {
    let (permission, warnings) =
        build(&[("p", "rules: [{default: {allow: [{spiffeID: {type: Exact, value: 'spiffe://a/b'}}]}}]")]);
    assert!(permission.entries.is_empty());
    assert!(warnings[0].contains("MeshTrafficPermission \"p\": spec.rules"), "{warnings:?}");
}
