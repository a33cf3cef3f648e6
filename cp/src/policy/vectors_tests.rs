//! Kuma's own cases for matching and merging, from `../shared/data` beside the repository.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::merge::merge;
use super::route::{MergedRule, merge_rules};
use super::rules::{OutboundRules, Policy, Referable, catch_all, inbound_rules, selected, to_entries};
use super::select::{self, Target};
use super::*;
use crate::resource::{Dataplane, Kind, MeshTrafficPermission, TargetRef, documents, parse};

const SETS: [&str; 2] = ["kuma-2.14-policy-vectors", "kuma-policy-vectors"];

/// Cases that are not run, each with the reason.
const NOT_RUN: [(&str, &str); 15] = [
    ("kuma-2.14-policy-vectors/rules/from-tags/04", "MeshAccessLog is no kind here yet"),
    ("kuma-2.14-policy-vectors/rules/from-tags/05", "MeshAccessLog is no kind here yet"),
    ("kuma-2.14-policy-vectors/rules/proxyconf/06", "MeshTrace is no kind here yet"),
    ("kuma-2.14-policy-vectors/rules/to-tags/meshtcproute", "MeshTCPRoute is no kind here yet"),
    ("kuma-2.14-policy-vectors/matched-policies/egress-fromtorules/01", "policies for external services on an egress"),
    ("kuma-2.14-policy-vectors/matched-policies/egress-torules/02", "MeshLoadBalancingStrategy is no kind here yet"),
    ("kuma-2.14-policy-vectors/matched-policies/meshgateways/02", "MeshGateway is no kind here"),
    (
        "kuma-2.14-policy-vectors/matched-policies/meshgateways/policies_from_different_zones",
        "MeshGateway is no kind here",
    ),
    (
        "kuma-2.14-policy-vectors/matched-policies/meshgateways/policies_from_different_zones_no_zone_label",
        "MeshGateway is no kind here",
    ),
    ("kuma-policy-vectors/rules/inboundrules/mtls-from", "MeshTLS is no kind here yet"),
    ("kuma-policy-vectors/rules/inboundrules/mtls-mixed", "MeshTLS is no kind here yet"),
    ("kuma-policy-vectors/rules/proxyconf/06", "MeshTrace is no kind here yet"),
    // MeshTrafficPermission does not enumerate combinations of tags as Kuma does: see the tests beside it.
    ("from-tags of MeshTrafficPermission", "compared by effect in permission_tests.rs"),
    ("fromrules of MeshTrafficPermission", "compared by effect in permission_tests.rs"),
    ("sort of the 3.0 line", "run as those of 2.14"),
];

struct Case {
    name: String,
    dir: PathBuf,
    case: Value,
}

impl Case {
    fn input(&self, role: &str) -> Vec<Resource> {
        let inputs = self.case["inputs"].as_array().unwrap();
        let input = inputs.iter().find(|input| input["role"] == role).unwrap();
        let text = fs::read_to_string(self.dir.join(input["file"].as_str().unwrap())).unwrap();
        // In one file a separator is missing; Go takes the last of what is given twice.
        let documents_of = |text: &str| {
            let start = text.rfind("\ntype:").map_or(0, |position| position + 1);
            documents(&text[start..]).unwrap()
        };
        let all = text.split("\n---").flat_map(documents_of);
        all.map(|document| parse(document).unwrap().resource).collect()
    }

    /// Variants with their expected output.
    fn expected(&self) -> Vec<(String, Value)> {
        self.case["expected"]
            .as_array()
            .unwrap()
            .iter()
            .map(|expected| {
                let text = fs::read_to_string(self.dir.join(expected["file"].as_str().unwrap())).unwrap();
                (expected["variant"].as_str().unwrap().to_owned(), serde_yaml_ng::from_str(&text).unwrap())
            })
            .collect()
    }
}

/// The cases of a family in both sets; empty if the data is not at hand.
fn cases(family: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for set in SETS {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(set).join(family);
        let Ok(found) = fs::read_dir(&root) else {
            if set == SETS[0] || !root.parent().is_some_and(Path::exists) {
                eprintln!("skipped: {} is not there", root.display());
            }
            continue;
        };
        let mut dirs: Vec<PathBuf> = found.map(|entry| entry.unwrap().path()).collect();
        dirs.sort();
        for dir in dirs {
            let name = format!("{set}/{family}/{}", dir.file_name().unwrap().to_str().unwrap());
            if NOT_RUN.iter().any(|(known, _)| *known == name) {
                continue;
            }
            let case = serde_yaml_ng::from_str(&fs::read_to_string(dir.join("case.yaml")).unwrap()).unwrap();
            cases.push(Case { name, dir, case });
        }
    }
    cases
}

/// Applies a metadata builder of Kuma's tests, such as `sync-k8s(zone-uni)`.
fn build(builder: &str, meta: &Meta) -> Meta {
    let with = |mut meta: Meta, labels: &[(&str, &str)]| {
        for (label, value) in labels {
            meta.labels.entry((*label).to_owned()).or_insert_with(|| (*value).to_owned());
        }
        meta
    };
    if let Some((outer, inner)) = builder.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
        let mut inner = build(inner, meta);
        match outer {
            "sync-uni" => inner.name = hashed(&inner),
            "sync-k8s" => inner.name = format!("{}.kuma-system", hashed(&inner)),
            "system" => {
                inner.labels.insert("kuma.io/policy-role".to_owned(), "system".to_owned());
                inner.labels.insert("k8s.kuma.io/namespace".to_owned(), "kuma-system".to_owned());
            }
            "producer" => drop(inner.labels.insert("kuma.io/policy-role".to_owned(), "producer".to_owned())),
            other => panic!("unknown builder {other}"),
        }
        return inner;
    }
    let name = meta.name.clone();
    let global = [("kuma.io/origin", "global"), ("kuma.io/display-name", name.as_str())];
    let k8s = [("k8s.kuma.io/namespace", "ns-k8s"), ("kuma.io/mesh", meta.mesh.as_str())];
    let zone = |zone: &'static str| {
        [("kuma.io/origin", "zone"), ("kuma.io/zone", zone), ("kuma.io/display-name", name.as_str())]
    };
    let mut built = match builder {
        "global-uni" => with(meta.clone(), &global),
        "global-k8s" => with(with(meta.clone(), &global), &k8s),
        "zone-uni" => with(meta.clone(), &zone("zone-uni")),
        "zone-k8s" => with(with(meta.clone(), &zone("zone-k8s")), &k8s),
        other => panic!("unknown builder {other}"),
    };
    if builder.ends_with("k8s") {
        built.name = format!("{name}.ns-k8s");
    }
    built
}

/// The name that a synchronised resource gets (Kuma `HashedName`).
fn hashed(meta: &Meta) -> String {
    let label = |name: &str| meta.labels.get(name).map(String::as_str).unwrap_or_default();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let name = label("kuma.io/display-name");
    for part in [&meta.mesh, name, label("kuma.io/zone"), label("k8s.kuma.io/namespace")] {
        for byte in part.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    let letters = b"bcdfghjklmnpqrstvwxz2456789";
    let digits = format!("{hash:016x}");
    let suffix: String = digits.bytes().map(|b| char::from(letters[usize::from(b) % 27])).collect();
    format!("{name}-{suffix}")
}

#[test]
fn hashed_names_are_those_of_kuma() {
    let meta = build("sync-uni(zone-uni)", &Meta::new("mesh-1", "matched-for-rules-mt-1"));
    assert_eq!(meta.name, "matched-for-rules-mt-1-484ffbf4cvf7b447");
}

/// A kind of policy whose rules Kuma's cases show.
trait Shown: Policy + Sized {
    type Merged;
    fn of(policies: &Policies) -> &[(Meta, Arc<Self>)];
    fn combine(entries: &[super::rules::ToEntry<'_, Self::Conf>]) -> Self::Merged;
    fn conf(merged: &Self::Merged) -> Value;
    /// Hash of matches with the policy that has the last word.
    fn origins(_: &Self::Merged) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

macro_rules! shown {
    ($kind:ty, $conf:ty, $field:ident) => {
        impl Shown for $kind {
            type Merged = $conf;
            fn of(policies: &Policies) -> &[(Meta, Arc<Self>)] {
                &policies.$field
            }
            fn combine(entries: &[super::rules::ToEntry<'_, $conf>]) -> $conf {
                merge(entries.iter().map(|entry| entry.conf)).unwrap()
            }
            fn conf(merged: &$conf) -> Value {
                serde_json::to_value(merged).unwrap()
            }
        }
    };
}
shown!(MeshTimeout, crate::resource::Timeout, timeouts);
shown!(MeshRetry, crate::resource::Retry, retries);

impl Shown for MeshHTTPRoute {
    type Merged = Vec<MergedRule>;
    fn of(policies: &Policies) -> &[(Meta, Arc<Self>)] {
        &policies.routes
    }
    fn combine(entries: &[super::rules::ToEntry<'_, Self::Conf>]) -> Vec<MergedRule> {
        merge_rules(entries)
    }
    fn conf(merged: &Vec<MergedRule>) -> Value {
        json!({"rules": merged.iter().map(|merged| serde_json::to_value(&merged.rule).unwrap()).collect::<Vec<_>>()})
    }
    fn origins(merged: &Vec<MergedRule>) -> BTreeMap<String, String> {
        merged.iter().map(|merged| (merged.hash.clone(), merged.origin.name.clone())).collect()
    }
}

/// Names of policies with positions, as Kuma shows origins: of rules for resources, or of rules by tags.
fn origins(shown: &Value) -> Vec<(String, usize)> {
    let origin = |origin: &Value| {
        let resource = if origin["Resource"].is_object() { &origin["Resource"] } else { origin };
        let name = resource.get("Name").or_else(|| resource.get("name")).unwrap();
        let index = origin["RuleIndex"].as_u64().unwrap_or_default();
        (name.as_str().unwrap().to_owned(), usize::try_from(index).unwrap())
    };
    shown.as_array().unwrap().iter().map(origin).collect()
}

fn check_resource_rules<P: Shown>(name: &str, rules: &OutboundRules<P::Merged>, expected: &Value) {
    let keys: BTreeSet<String> = rules.resources().keys().map(ToString::to_string).collect();
    let expected = expected.as_object().unwrap();
    assert_eq!(keys, expected.keys().cloned().collect(), "{name}");
    for (id, rule) in rules.resources() {
        let shown = &expected[&id.to_string()];
        assert_eq!(json!([P::conf(&rule.conf)]), shown["Conf"], "{name} {id}");
        assert_eq!(rule.origins, origins(&shown["Origin"]), "{name} {id}");
        let by_matches: BTreeMap<String, String> = shown["OriginByMatches"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(hash, origin)| {
                let labels = &origin["Resource"]["Labels"];
                (hash.clone(), labels["kuma.io/display-name"].as_str().unwrap().to_owned())
            })
            .collect();
        assert_eq!(P::origins(&rule.conf), by_matches, "{name} {id}");
    }
}

/// The rules by tags: what Kuma says of each subset must be what is found for a destination in it.
fn check_rules_by_tags<P: Shown>(name: &str, rules: &OutboundRules<P::Merged>, expected: &Value) {
    for shown in expected.as_array().unwrap() {
        let tag = |key: &str| {
            let tags = shown["Subset"].as_array().unwrap().iter();
            tags.filter(|tag| tag["Key"] == key && tag["Not"] == false).map(|tag| tag["Value"].as_str().unwrap()).next()
        };
        let service = tag("kuma.io/service").unwrap_or("of-another-name");
        let found = match tag("__rule-matches-hash__") {
            Some(hash) => rules.service_route(service, hash),
            None => rules.service(service),
        };
        let found = found.unwrap_or_else(|| panic!("{name}: nothing for {}", shown["Subset"]));
        assert_eq!(P::conf(&found.conf), shown["Conf"], "{name} {}", shown["Subset"]);
        let names = |origins: Vec<(String, usize)>| origins.into_iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
        assert_eq!(names(found.origins.clone()), names(origins(&shown["Origin"])), "{name}");
    }
    if expected.as_array().unwrap().is_empty() {
        assert!(rules.service("any").is_none(), "{name}");
    }
}

/// Only policies whose name begins so are looked at in these families.
fn is_looked_at(meta: &Meta) -> bool {
    select::display_name(meta).starts_with("matched-for-rules-")
}

fn resource_rules<P: Shown>(case: &Case, resources: &[Resource]) -> usize {
    let expected = case.expected();
    for (variant, golden) in &expected {
        let builder = case.case["parameters"]["variants"][variant]["meta"].as_str().unwrap();
        let mut policies = Policies::default();
        for resource in resources {
            let mut resource = resource.clone();
            if resource.kind() != Kind::Mesh {
                resource.meta = build(builder, &resource.meta);
            }
            policies.add(&resource);
        }
        let looked_at: Vec<(&Meta, &P)> = P::of(&policies)
            .iter()
            .filter(|(meta, _)| is_looked_at(meta))
            .map(|(meta, spec)| (meta, spec.as_ref()))
            .collect();
        let referable = Referable { mesh: "mesh-1", services: &policies.services, routes: &policies.routes };
        let rules = OutboundRules::build(&looked_at, referable, P::combine);
        check_resource_rules::<P>(&format!("{} {variant}", case.name), &rules, golden);
    }
    expected.len()
}

#[test]
fn rules_for_resources() {
    let mut run = 0;
    for case in cases("rules/resourcerules") {
        let resources = case.input("resources");
        let looked_at = resources.iter().find(|resource| is_looked_at(&resource.meta)).unwrap().kind();
        run += match looked_at {
            Kind::MeshTimeout => resource_rules::<MeshTimeout>(&case, &resources),
            Kind::MeshRetry => resource_rules::<MeshRetry>(&case, &resources),
            Kind::MeshHTTPRoute => resource_rules::<MeshHTTPRoute>(&case, &resources),
            other => panic!("{}: {other}", case.name),
        };
    }
    eprintln!("rules/resourcerules: {run} variants hold");
}

/// Trap 12.
#[test]
fn entries_are_sorted() {
    for case in cases("rules/sort") {
        let mut policies = Policies::default();
        case.input("resources").iter().for_each(|resource| policies.add(resource));
        let all: Vec<(&Meta, &MeshTimeout)> =
            policies.timeouts.iter().map(|(meta, spec)| (meta, spec.as_ref())).collect();
        let sorted: Vec<Value> = to_entries(&all)
            .into_iter()
            .map(|(_, target, entry)| json!([entry.policy.name, entry.index, target, entry.conf]))
            .collect();
        let (_, golden) = case.expected().remove(0);
        let expected: Vec<Value> = golden
            .as_array()
            .unwrap()
            .iter()
            .map(|shown| {
                let entry = &shown["Entry"];
                json!([shown["Meta"]["name"], shown["RuleIndex"], entry["targetRef"], entry["default"]])
            })
            .collect();
        assert_eq!(sorted, expected, "{}", case.name);
    }
}

fn shown_inbound_rules(policies: &[(&Meta, &MeshTimeout)]) -> Vec<Value> {
    let shown = |rule: &super::rules::InboundRule<'_, crate::resource::Timeout>| {
        json!([rule.conf, rule.matches, rule.policy.name, rule.index])
    };
    inbound_rules(policies).iter().map(shown).collect()
}

fn golden_inbound_rules(golden: &Value) -> Vec<Value> {
    let shown = |rule: &Value| {
        let origin = &rule["origin"];
        json!([rule["conf"], rule["match"], origin["Resource"]["name"], origin["RuleIndex"]])
    };
    golden.as_array().unwrap().iter().map(shown).collect()
}

#[test]
fn rules_for_inbounds() {
    let sorted = |policies: &Policies| -> Vec<(Meta, Arc<MeshTimeout>)> {
        let mut all = policies.timeouts.clone();
        all.sort_by(|a, b| select::order((&a.0, a.1.target_ref.as_ref()), (&b.0, b.1.target_ref.as_ref())));
        all
    };
    for case in cases("rules/inboundrules").into_iter().chain(cases("rules/from-tags")) {
        let resources = case.input("resources");
        if resources.iter().all(|resource| resource.kind() == Kind::MeshTrafficPermission) {
            continue;
        }
        let mut policies = Policies::default();
        resources.iter().for_each(|resource| policies.add(resource));
        let policies = sorted(&policies);
        let policies: Vec<(&Meta, &MeshTimeout)> = policies.iter().map(|(meta, spec)| (meta, spec.as_ref())).collect();
        let (_, golden) = case.expected().remove(0);
        let rules = golden.get("rules").unwrap_or_else(|| &golden["InboundRules"]["127.0.0.1:80"]);
        assert_eq!(shown_inbound_rules(&policies), golden_inbound_rules(rules), "{}", case.name);
        if let Some(merged) = golden["Rules"]["127.0.0.1:80"].as_array() {
            let conf = catch_all(&inbound_rules(&policies));
            assert_eq!(serde_json::to_value(conf).unwrap(), merged[0]["Conf"], "{}", case.name);
        }
    }
}

#[test]
fn rules_by_tags() {
    for case in cases("rules/to-tags") {
        let mut policies = Policies::default();
        case.input("resources").iter().for_each(|resource| policies.add(resource));
        let referable = Referable { mesh: "mesh-1", services: &[], routes: &policies.routes };
        let (_, golden) = case.expected().remove(0);
        // Kuma builds these without the resources that a reference to a gateway would need, so only what is said by tags is compared.
        if policies.retries.is_empty() {
            let all: Vec<_> = policies.timeouts.iter().map(|(meta, spec)| (meta, spec.as_ref())).collect();
            let rules = OutboundRules::build(&all, referable, MeshTimeout::combine);
            let shown = &golden["Rules"][0];
            let hash = shown["Subset"][0]["Value"].as_str().unwrap();
            assert_eq!(serde_json::to_value(&rules.service_route("any", hash).unwrap().conf).unwrap(), shown["Conf"]);
        } else {
            let all: Vec<_> = policies.retries.iter().map(|(meta, spec)| (meta, spec.as_ref())).collect();
            let rules = OutboundRules::build(&all, referable, MeshRetry::combine);
            check_rules_by_tags::<MeshRetry>(&case.name, &rules, &golden["Rules"]);
        }
    }
}

fn matched<P: Shown + Clone>(case: &Case, resources: &[Resource], meta: &Meta, dataplane: &Dataplane) {
    let mut policies = Policies::default();
    resources.iter().for_each(|resource| policies.add(resource));
    let target = Target { meta, dataplane };
    let selected: Vec<(&Meta, &P)> = selected(P::of(&policies), target, &policies.routes);
    let (_, golden) = case.expected().remove(0);
    let referable = Referable { mesh: &meta.mesh, services: &policies.services, routes: &policies.routes };
    let rules = OutboundRules::build(&selected, referable, P::combine);
    if golden.get("Rules").is_some() {
        check_rules_by_tags::<P>(&case.name, &rules, &golden["Rules"]);
    }
    // There is no Mesh among the resources, and so nothing that Kuma could resolve a reference to it to.
    for (id, shown) in golden["ResourceRules"].as_object().unwrap() {
        let (_, rule) = rules.resources().iter().find(|(found, _)| found.to_string() == *id).unwrap();
        assert_eq!(json!([P::conf(&rule.conf)]), shown["Conf"], "{} {id}", case.name);
        let mut found = rule.origins.clone();
        found.retain(|(policy, _)| {
            let (_, policy) = selected.iter().find(|(meta, _)| meta.name == *policy).unwrap();
            policy.to().iter().any(|(target, _)| target.kind != Some(TargetRefKind::Mesh))
        });
        assert_eq!(found, origins(&shown["Origin"]), "{} {id}", case.name);
    }
    let only_mesh = rules.resources().keys().filter(|id| id.kind != TargetRefKind::Mesh).count();
    assert_eq!(only_mesh, golden["ResourceRules"].as_object().unwrap().len(), "{}", case.name);
}

#[test]
fn rules_of_matched_policies() {
    for family in ["matched-policies/torules", "matched-policies/meshexternalservice"] {
        for case in cases(family) {
            let dataplane = case.input("dataplane").remove(0);
            let (meta, dataplane) = (&dataplane.meta, dataplane.dataplane().unwrap().clone());
            let mut resources = case.input("policies");
            if family.ends_with("meshexternalservice") {
                resources.extend(case.input("mes"));
                matched::<MeshRetry>(&case, &resources, meta, &dataplane);
            } else {
                matched::<MeshTimeout>(&case, &resources, meta, &dataplane);
            }
        }
    }
}

/// Which policies select the Dataplane, the least specific first.
fn selected_names(resources: &[Resource], meta: &Meta, dataplane: &Dataplane) -> Vec<String> {
    let mut policies = Policies::default();
    resources.iter().for_each(|resource| policies.add(resource));
    let target = Target { meta, dataplane };
    let permissions: Vec<(&Meta, &MeshTrafficPermission)> =
        resources.iter().filter_map(|resource| Some((&resource.meta, resource.permission()?.as_ref()))).collect();
    let mut found: Vec<(&Meta, Option<&TargetRef>)> = if permissions.is_empty() {
        policies.timeouts.iter().map(|(meta, spec)| (meta, spec.target_ref.as_ref())).collect()
    } else {
        permissions.into_iter().map(|(meta, spec)| (meta, spec.target_ref.as_ref())).collect()
    };
    found.retain(|(meta, top)| select::selects_proxy(meta, *top, target, &policies.routes));
    found.sort_by(|a, b| select::order(*a, *b));
    found.into_iter().map(|(meta, _)| meta.name.clone()).collect()
}

fn golden_names(golden: &Value) -> Vec<String> {
    golden["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn policies_select_dataplanes() {
    let mut run = 0;
    for case in cases("matched-policies/dataplanepolicies") {
        let dataplane = case.input("dataplane").remove(0);
        let names = selected_names(&case.input("policies"), &dataplane.meta, dataplane.dataplane().unwrap());
        assert_eq!(names, golden_names(&case.expected()[0].1), "{}", case.name);
        run += 1;
    }
    for case in cases("matched-policies/dataplane-kind") {
        for (variant, golden) in case.expected() {
            let parameters = &case.case["parameters"]["variants"][&variant];
            let builder = |key: &str| parameters[key].as_str().unwrap();
            let dataplane = case.input("dataplane").remove(0);
            let meta = build(builder("dataplane_meta"), &dataplane.meta);
            let mut policies = case.input("policies");
            for policy in &mut policies {
                policy.meta = build(builder("policy_meta"), &policy.meta);
            }
            let names = selected_names(&policies, &meta, dataplane.dataplane().unwrap());
            assert_eq!(names, golden_names(&golden), "{} {variant}", case.name);
            run += 1;
        }
    }
    eprintln!("matched-policies: {run} variants hold");
}
