//! Permission checks.

use std::collections::HashMap;

use shika_proto::envoy::config::rbac::v3::principal::{Authenticated, Identifier, Set};
use shika_proto::envoy::config::rbac::v3::{Permission as Any, Policy, Principal, Rbac, permission, rbac};
use shika_proto::envoy::r#type::matcher::v3::StringMatcher;
use shika_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use shika_proto::google::protobuf::value::Kind;
use shika_proto::google::protobuf::{Struct, Value};

use super::{list, string, structure};
use crate::policy::permission::{Clients, Entry, Permission, TagMatch};
use crate::resource::{Action, SERVICE_TAG};

/// Name of the one policy, as Kuma's.
const POLICY: &str = "MeshTrafficPermission";

/// Whom a permission lets through: everyone else is denied, and without alternatives everyone is.
pub(super) fn rules(mesh: &str, permission: &Permission) -> Rbac {
    rbac(mesh, &permission.allowed(), rbac::Action::Allow)
}

/// Whom the shadow would deny, if there is one.
pub(super) fn shadow_rules(mesh: &str, permission: &Permission) -> Option<Rbac> {
    let denied = permission.shadow_denied();
    (!denied.is_empty()).then(|| rbac(mesh, &denied, rbac::Action::Deny))
}

fn rbac(mesh: &str, clients: &[Clients], action: rbac::Action) -> Rbac {
    let principals: Vec<Principal> = clients.iter().map(|clients| principal(mesh, clients)).collect();
    let mut policies = HashMap::new();
    if !principals.is_empty() {
        let permissions = vec![Any { rule: Some(permission::Rule::Any(true)) }];
        policies.insert(POLICY.to_owned(), Policy { permissions, principals, ..Policy::default() });
    }
    Rbac { action: action.into(), policies, ..Rbac::default() }
}

/// The tags of the clients and the negated ones, sorted together; negated combinations last.
fn principal(mesh: &str, clients: &Clients) -> Principal {
    let single = |set: &&Vec<TagMatch>| set.len() == 1;
    let negated = clients.except.iter().filter(single).flatten();
    let mut tags: Vec<(&TagMatch, bool)> =
        clients.all.iter().map(|tag| (tag, true)).chain(negated.map(|tag| (tag, false))).collect();
    tags.sort();
    let tags = tags.into_iter().map(|(tag, positive)| if positive { has(mesh, tag) } else { not(has(mesh, tag)) });
    let combinations = clients.except.iter().filter(|set| !single(set));
    let combinations = combinations.map(|set| not(all(set.iter().map(|tag| has(mesh, tag)).collect())));
    all(tags.chain(combinations).collect())
}

fn all(mut ids: Vec<Principal>) -> Principal {
    match ids.len() {
        0 => identifier(Identifier::Any(true)),
        1 => ids.swap_remove(0),
        _ => identifier(Identifier::AndIds(Set { ids })),
    }
}

fn not(principal: Principal) -> Principal {
    identifier(Identifier::NotId(Box::new(principal)))
}

/// The client has the tag, as a URI of its certificate says.
fn has(mesh: &str, tag: &TagMatch) -> Principal {
    let name = StringMatcher { match_pattern: Some(MatchPattern::Exact(uri(mesh, tag))), ..StringMatcher::default() };
    identifier(Identifier::Authenticated(Authenticated { principal_name: Some(name) }))
}

/// How a certificate says that its owner has the tag.
fn uri(mesh: &str, tag: &TagMatch) -> String {
    if tag.tag == SERVICE_TAG {
        format!("spiffe://{mesh}/{}", tag.value)
    } else {
        format!("kuma://{}/{}", tag.tag, tag.value)
    }
}

fn identifier(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

/// What decides, for whoever has to explain a denial: `rules` in the order in which they apply, a later one outranking an earlier one,
/// each with the URIs that a client's certificate must have for it to match, and what happens to clients that none of them matches.
pub(super) fn explanation(mesh: &str, permission: &Permission) -> Struct {
    let rules = permission.entries.iter().map(|Entry { policy, index, action, clients }| {
        let uris = list(clients.iter().map(|tag| string(uri(mesh, tag))));
        let clients: Vec<String> = clients.iter().map(|m| format!("{}={}", m.tag, m.value)).collect();
        let action = match action {
            Action::Allow => "Allow",
            Action::Deny => "Deny",
            Action::AllowWithShadowDeny => "AllowWithShadowDeny",
        };
        let from = if clients.is_empty() { "every client of the mesh".to_owned() } else { clients.join(",") };
        let text = format!("MeshTrafficPermission {policy} spec.from[{index}]: {action} {from}");
        let rule = structure([("rule", string(text)), ("uris", uris)]);
        Value { kind: Some(Kind::StructValue(rule)) }
    });
    let otherwise = if permission.entries.is_empty() {
        format!("Deny: no MeshTrafficPermission of mesh {mesh} selects this inbound")
    } else {
        "Deny: no rule matches the client".to_owned()
    };
    structure([("rules", list(rules)), ("otherwise", string(otherwise))])
}
