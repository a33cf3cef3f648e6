//! RBAC filters of both levels: `config.rbac.v3.RBAC` (`rules`) and the matcher form.
//!
//! The matcher form decides by the first predicate that holds: each entry, and `on_no_match` at the end, becomes a policy that says what its match means;
//! what no policy takes is denied.

use std::sync::Arc;

use shika_data::{
    model::{
        http_filter::RbacRules,
        rbac::{Action, Permission, Policy, Principal, Rbac, Rules},
    },
    stats::{RbacStats, Scope},
};
use shika_proto::{
    any,
    envoy::{
        config::rbac::v3::{self as proto, permission::Rule, principal::Identifier, rbac as proto_rbac},
        extensions::{
            filters::{
                http::rbac::v3::{Rbac as HttpRbac, RbacPerRoute},
                network::rbac::v3::{Rbac as NetworkRbac, rbac::EnforcementType},
            },
            matching::common_inputs::{network::v3::ServerNameInput, ssl::v3::UriSanInput},
        },
        r#type::matcher::v3::{self as matchers, path_matcher},
    },
    xds::r#type::matcher::v3::{
        self as xds, Matcher,
        matcher::{
            MatcherType, OnMatch,
            matcher_list::{
                Predicate,
                predicate::{MatchType, SinglePredicate, single_predicate},
            },
            on_match,
        },
    },
};

use super::super::{Compiled, Context, Fault, Within, address, enumeration, matcher, non_empty, required, unpack};

/// Deepest nesting of rules.
const DEEPEST: usize = 64;

/// `filters.network.rbac.v3.RBAC`
pub(crate) fn network(context: &Context<'_>, from: &NetworkRbac) -> Compiled<Rbac> {
    non_empty(&from.stat_prefix, "stat_prefix")?;
    // Both kinds look at what can be known of a connection; a live connection is looked at again when the rules change.
    match enumeration(from.enforcement_type, "enforcement_type")? {
        EnforcementType::OneTimeOnFirstByte | EnforcementType::Continuous => {}
    }
    let name = from.stat_prefix.trim_end_matches('.').to_owned();
    let scope = Scope {
        // As Envoy joins them: with one dot between.
        prefix: format!("{}.rbac.", from.stat_prefix.strip_suffix('.').unwrap_or(&from.stat_prefix)),
        stem: "rbac.".into(),
        tags: vec![("envoy.rbac_prefix", name)],
    };
    let enforced = either(&from.rules, &from.matcher, "rules", "matcher")?;
    let shadow = either(&from.shadow_rules, &from.shadow_matcher, "shadow_rules", "shadow_matcher")?;
    for rules in [&enforced, &shadow].into_iter().flatten() {
        connection_only(rules)?;
    }
    Ok(Rbac { enforced, shadow, stats: RbacStats::new(context.registry, scope) })
}

/// `filters.http.rbac.v3.RBAC` in the connection manager with this `stat_prefix`.
pub(crate) fn http(context: &Context<'_>, from: &HttpRbac, stat_prefix: &str) -> Compiled<Rbac> {
    let scope = Scope {
        prefix: format!("http.{stat_prefix}.rbac.{}", from.rules_stat_prefix),
        stem: "http.rbac.".into(),
        tags: vec![("envoy.http_conn_manager_prefix", stat_prefix.to_owned())],
    };
    let enforced = either(&from.rules, &from.matcher, "rules", "matcher")?;
    let shadow = either(&from.shadow_rules, &from.shadow_matcher, "shadow_rules", "shadow_matcher")?;
    Ok(Rbac { enforced, shadow, stats: RbacStats::new(context.registry, scope) })
}

/// `filters.http.rbac.v3.RBACPerRoute`; without rules nothing is asked.
pub(crate) fn per_route(from: &RbacPerRoute) -> Compiled<RbacRules> {
    let none = HttpRbac::default();
    let from = from.rbac.as_ref().unwrap_or(&none);
    Ok(RbacRules {
        enforced: either(&from.rules, &from.matcher, "rules", "matcher").within("rbac")?,
        shadow: either(&from.shadow_rules, &from.shadow_matcher, "shadow_rules", "shadow_matcher").within("rbac")?,
    })
}

fn either(
    rules: &Option<proto::Rbac>,
    matcher: &Option<Matcher>,
    in_rules: &str,
    in_matcher: &str,
) -> Compiled<Option<Rules>> {
    match (rules, matcher) {
        (Some(_), Some(_)) => {
            Err(Fault::new(in_matcher, format!("both {in_rules} and {in_matcher} are set; give one")))
        }
        (Some(rules), None) => Ok(Some(self::rules(rules).within(in_rules)?)),
        (None, Some(matcher)) => Ok(Some(ordered(matcher).within(in_matcher)?)),
        (None, None) => Ok(None),
    }
}

fn rules(from: &proto::Rbac) -> Compiled<Rules> {
    let action = match enumeration(from.action, "action")? {
        proto_rbac::Action::Allow => Action::Allow,
        proto_rbac::Action::Deny => Action::Deny,
        proto_rbac::Action::Log => Action::Log,
    };
    let mut named: Vec<_> = from.policies.iter().collect();
    named.sort_by(|a, b| a.0.cmp(b.0));
    let policies = named
        .into_iter()
        .map(|(name, policy)| self::policy(name, policy).at_key("policies", name))
        .collect::<Compiled<_>>()?;
    Ok(Rules { action, policies })
}

fn policy(name: &str, from: &proto::Policy) -> Compiled<Policy> {
    if from.permissions.is_empty() {
        return Err(Fault::new("permissions", "value must contain at least 1 item(s)"));
    }
    if from.principals.is_empty() {
        return Err(Fault::new("principals", "value must contain at least 1 item(s)"));
    }
    Ok(Policy {
        name: name.into(),
        permissions: permissions(&from.permissions, "permissions", 0)?,
        principals: principals(&from.principals, "principals", 0)?,
        // The action of the whole set decides.
        allows: true,
    })
}

fn permissions(from: &[proto::Permission], field: &str, depth: usize) -> Compiled<Vec<Permission>> {
    from.iter().enumerate().map(|(index, one)| permission(one, depth).at(field, index)).collect()
}

fn too_deep(depth: usize) -> Compiled<()> {
    if depth > DEEPEST { Err(Fault::new("", format!("is nested deeper than {DEEPEST} rules"))) } else { Ok(()) }
}

fn at_least_one<T>(list: &[T], field: &str) -> Compiled<()> {
    if list.is_empty() { Err(Fault::new(field, "value must contain at least 1 item(s)")) } else { Ok(()) }
}

fn permission(from: &proto::Permission, depth: usize) -> Compiled<Permission> {
    too_deep(depth)?;
    let unsupported = |field: &str| Err(Fault::new(field, "this permission is not supported"));
    match &from.rule {
        Some(Rule::Any(true)) => Ok(Permission::Any),
        Some(Rule::Any(false)) => Err(Fault::new("any", "value must equal true")),
        Some(Rule::AndRules(set)) => {
            at_least_one(&set.rules, "and_rules.rules")?;
            Ok(Permission::And(permissions(&set.rules, "rules", depth + 1).within("and_rules")?))
        }
        Some(Rule::OrRules(set)) => {
            at_least_one(&set.rules, "or_rules.rules")?;
            Ok(Permission::Or(permissions(&set.rules, "rules", depth + 1).within("or_rules")?))
        }
        Some(Rule::NotRule(not)) => Ok(Permission::Not(Box::new(permission(not, depth + 1).within("not_rule")?))),
        Some(Rule::Header(header)) => Ok(Permission::Header(matcher::header(header).within("header")?)),
        Some(Rule::UrlPath(path)) => Ok(Permission::UrlPath(url_path(path).within("url_path")?)),
        Some(Rule::DestinationIp(range)) => {
            Ok(Permission::DestinationIp(address::cidr(range).within("destination_ip")?))
        }
        Some(Rule::DestinationPort(port)) => {
            if *port > 65_535 {
                return Err(Fault::new(
                    "destination_port",
                    format!("value must be less than or equal to 65535, not {port}"),
                ));
            }
            Ok(Permission::DestinationPort(*port..*port + 1))
        }
        Some(Rule::DestinationPortRange(range)) => {
            let ends = (u32::try_from(range.start), u32::try_from(range.end));
            match ends {
                (Ok(start), Ok(end)) if start < end && end <= 65_536 => Ok(Permission::DestinationPort(start..end)),
                _ => Err(Fault::new(
                    "destination_port_range",
                    format!(
                        "range start {} and end {} must lie in 0 to 65536, start below end",
                        range.start, range.end
                    ),
                )),
            }
        }
        Some(Rule::RequestedServerName(name)) => {
            Ok(Permission::ServerName(matcher::string(name).within("requested_server_name")?))
        }
        Some(Rule::Metadata(_)) => unsupported("metadata"),
        Some(Rule::Matcher(_)) => unsupported("matcher"),
        Some(Rule::UriTemplate(_)) => unsupported("uri_template"),
        Some(Rule::SourcedMetadata(_)) => unsupported("sourced_metadata"),
        None => Err(Fault::new("rule", "value is required")),
    }
}

fn principals(from: &[proto::Principal], field: &str, depth: usize) -> Compiled<Vec<Principal>> {
    from.iter().enumerate().map(|(index, one)| principal(one, depth).at(field, index)).collect()
}

fn principal(from: &proto::Principal, depth: usize) -> Compiled<Principal> {
    too_deep(depth)?;
    let unsupported = |field: &str| Err(Fault::new(field, "this principal is not supported"));
    match &from.identifier {
        Some(Identifier::Any(true)) => Ok(Principal::Any),
        Some(Identifier::Any(false)) => Err(Fault::new("any", "value must equal true")),
        Some(Identifier::AndIds(set)) => {
            at_least_one(&set.ids, "and_ids.ids")?;
            Ok(Principal::And(principals(&set.ids, "ids", depth + 1).within("and_ids")?))
        }
        Some(Identifier::OrIds(set)) => {
            at_least_one(&set.ids, "or_ids.ids")?;
            Ok(Principal::Or(principals(&set.ids, "ids", depth + 1).within("or_ids")?))
        }
        Some(Identifier::NotId(not)) => Ok(Principal::Not(Box::new(principal(not, depth + 1).within("not_id")?))),
        Some(Identifier::Authenticated(authenticated)) => {
            let name = authenticated.principal_name.as_ref().map(matcher::string).transpose();
            Ok(Principal::Authenticated(name.within("principal_name").within("authenticated")?))
        }
        Some(Identifier::SourceIp(range)) => Ok(Principal::RemoteIp(address::cidr(range).within("source_ip")?)),
        Some(Identifier::RemoteIp(range)) => Ok(Principal::RemoteIp(address::cidr(range).within("remote_ip")?)),
        Some(Identifier::DirectRemoteIp(range)) => {
            Ok(Principal::DirectRemoteIp(address::cidr(range).within("direct_remote_ip")?))
        }
        Some(Identifier::Header(header)) => Ok(Principal::Header(matcher::header(header).within("header")?)),
        Some(Identifier::UrlPath(path)) => Ok(Principal::UrlPath(url_path(path).within("url_path")?)),
        Some(Identifier::Metadata(_)) => unsupported("metadata"),
        Some(Identifier::FilterState(_)) => unsupported("filter_state"),
        Some(Identifier::SourcedMetadata(_)) => unsupported("sourced_metadata"),
        Some(Identifier::Custom(_)) => unsupported("custom"),
        None => Err(Fault::new("identifier", "value is required")),
    }
}

fn url_path(from: &matchers::PathMatcher) -> Compiled<shika_data::model::matcher::StringMatcher> {
    match &from.rule {
        Some(path_matcher::Rule::Path(path)) => matcher::string(path).within("path"),
        None => Err(Fault::new("rule", "value is required")),
    }
}

/// A network filter has no request to look at: Envoy matches such rules against empty headers, where `not` turns them into a grant.
fn connection_only(rules: &Rules) -> Compiled<()> {
    fn permission(one: &Permission) -> bool {
        match one {
            Permission::And(list) | Permission::Or(list) => list.iter().any(permission),
            Permission::Not(not) => permission(not),
            Permission::Header(_) | Permission::UrlPath(_) => true,
            Permission::Any
            | Permission::DestinationIp(_)
            | Permission::DestinationPort(_)
            | Permission::ServerName(_) => false,
        }
    }
    fn principal(one: &Principal) -> bool {
        match one {
            Principal::And(list) | Principal::Or(list) => list.iter().any(principal),
            Principal::Not(not) => principal(not),
            Principal::Header(_) | Principal::UrlPath(_) => true,
            Principal::Any
            | Principal::Authenticated(_)
            | Principal::DirectRemoteIp(_)
            | Principal::RemoteIp(_)
            | Principal::UriSan(_)
            | Principal::ServerName(_) => false,
        }
    }
    for policy in &rules.policies {
        if policy.permissions.iter().any(permission) || policy.principals.iter().any(principal) {
            return Err(Fault::new(
                format!("rules.policies[{:?}]", policy.name),
                "headers and paths cannot be matched in a network filter; use the HTTP RBAC filter",
            ));
        }
    }
    Ok(())
}

/// The matcher form.
fn ordered(from: &Matcher) -> Compiled<Rules> {
    let entries = match &from.matcher_type {
        None => &[][..],
        Some(MatcherType::MatcherList(list)) => list.matchers.as_slice(),
        Some(MatcherType::MatcherTree(_)) => {
            return Err(Fault::new("matcher_tree", "is not supported; use matcher_list"));
        }
    };
    let policy = |(name, allows): (Arc<str>, bool), who| Policy {
        name,
        permissions: vec![Permission::Any],
        principals: vec![who],
        allows,
    };
    let mut policies = Vec::with_capacity(entries.len() + 1);
    for (index, entry) in entries.iter().enumerate() {
        let compiled = (|| {
            let on_match = required(&entry.on_match, "on_match")?;
            let action = action(on_match).within("on_match")?;
            let who = predicate(required(&entry.predicate, "predicate")?, 0).within("predicate")?;
            Ok(policy(action, who))
        })();
        policies.push(compiled.at("matchers", index).within("matcher_list")?);
    }
    if let Some(on_no_match) = &from.on_no_match {
        policies.push(policy(action(on_no_match).within("on_no_match")?, Principal::Any));
    }
    Ok(Rules { action: Action::ByPolicy, policies })
}

/// The name of an action and whether it lets through.
fn action(from: &OnMatch) -> Compiled<(Arc<str>, bool)> {
    let config = match &from.on_match {
        Some(on_match::OnMatch::Action(config)) => config,
        Some(on_match::OnMatch::Matcher(_)) => return Err(Fault::new("matcher", "nested matchers are not supported")),
        None => return Err(Fault::new("on_match", "value is required")),
    };
    (|| {
        let action: proto::Action = unpack(required(&config.typed_config, "typed_config")?).within("typed_config")?;
        let allows = match enumeration(action.action, "action").within("typed_config")? {
            proto_rbac::Action::Allow | proto_rbac::Action::Log => true,
            proto_rbac::Action::Deny => false,
        };
        Ok((action.name.as_str().into(), allows))
    })()
    .within("action")
}

pub(super) fn predicate(from: &Predicate, depth: usize) -> Compiled<Principal> {
    too_deep(depth)?;
    let list = |predicates: &[Predicate]| -> Compiled<Vec<Principal>> {
        if predicates.len() < 2 {
            return Err(Fault::new("predicate", "value must contain at least 2 item(s)"));
        }
        predicates.iter().enumerate().map(|(index, one)| predicate(one, depth + 1).at("predicate", index)).collect()
    };
    match &from.match_type {
        Some(MatchType::SinglePredicate(single)) => self::single(single).within("single_predicate"),
        Some(MatchType::OrMatcher(any)) => Ok(Principal::Or(list(&any.predicate).within("or_matcher")?)),
        Some(MatchType::AndMatcher(all)) => Ok(Principal::And(list(&all.predicate).within("and_matcher")?)),
        Some(MatchType::NotMatcher(not)) => {
            Ok(Principal::Not(Box::new(predicate(not, depth + 1).within("not_matcher")?)))
        }
        None => Err(Fault::new("match_type", "value is required")),
    }
}

fn single(from: &SinglePredicate) -> Compiled<Principal> {
    let matcher = match &from.matcher {
        Some(single_predicate::Matcher::ValueMatch(value)) => {
            matcher::string(&string_matcher(value)).within("value_match")?
        }
        Some(single_predicate::Matcher::CustomMatch(_)) => {
            return Err(Fault::new("custom_match", "custom matchers are not supported"));
        }
        None => return Err(Fault::new("matcher", "value is required")),
    };
    let input = required(&from.input, "input")?;
    let content = required(&input.typed_config, "typed_config").within("input")?;
    if any::is::<UriSanInput>(content) {
        Ok(Principal::UriSan(matcher))
    } else if any::is::<ServerNameInput>(content) {
        Ok(Principal::ServerName(matcher))
    } else {
        Err(Fault::new(
            "input.typed_config",
            format!("input {} is not supported; UriSanInput and ServerNameInput are", content.type_url),
        ))
    }
}

/// The xDS form of a string matcher says the same as Envoy's.
fn string_matcher(from: &xds::StringMatcher) -> matchers::StringMatcher {
    use matchers::string_matcher::MatchPattern as To;
    use xds::string_matcher::MatchPattern as From;
    let match_pattern = from.match_pattern.as_ref().map(|pattern| match pattern {
        From::Exact(text) => To::Exact(text.clone()),
        From::Prefix(text) => To::Prefix(text.clone()),
        From::Suffix(text) => To::Suffix(text.clone()),
        From::Contains(text) => To::Contains(text.clone()),
        From::SafeRegex(regex) => {
            To::SafeRegex(matchers::RegexMatcher { regex: regex.regex.clone(), engine_type: None })
        }
        From::Custom(custom) => To::Custom(custom.clone()),
    });
    matchers::StringMatcher { ignore_case: from.ignore_case, match_pattern }
}

#[cfg(test)]
#[path = "rbac_tests.rs"]
mod tests;
