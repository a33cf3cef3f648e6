//! Listener filters, as what is looked at before a connection's chain is chosen.

use std::sync::Arc;

use shika_data::{
    model::listener::{Destinations, Inspect},
    stats::{HttpInspectorStats, Scope, TlsInspectorStats},
};
use shika_proto::{
    any,
    envoy::{
        config::listener::v3::{
            self as proto, listener_filter,
            listener_filter_chain_match_predicate::{MatchSet, Rule as MatchRule},
        },
        extensions::filters::listener::{
            http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, proxy_protocol::v3::ProxyProtocol,
            tls_inspector::v3::TlsInspector,
        },
    },
};

use super::{Compiled, Context, Fault, Within, flag, proxy_protocol, unpack};

/// Of all listeners together.
fn scope(prefix: &str) -> Scope {
    Scope { prefix: prefix.into(), stem: prefix.into(), tags: Vec::new() }
}

/// `listener_filters`
pub(crate) fn inspect(context: &Context<'_>, from: &proto::Listener) -> Compiled<Inspect> {
    let mut inspect = Inspect::default();
    for (index, filter) in from.listener_filters.iter().enumerate() {
        (|| {
            let content = match &filter.config_type {
                Some(listener_filter::ConfigType::TypedConfig(content)) => content,
                Some(listener_filter::ConfigType::ConfigDiscovery(_)) => {
                    return Err(Fault::new("config_discovery", "ECDS is not supported; use typed_config"));
                }
                None => return Err(Fault::new("typed_config", "value is required")),
            };
            let disabled = filter.filter_disabled.as_ref().map(|rule| destinations(rule, 0)).transpose();
            let disabled = disabled.within("filter_disabled")?;
            if any::is::<TlsInspector>(content) {
                inspect.tls = true;
                inspect.tls_disabled = disabled;
                inspect.tls_stats = Some(TlsInspectorStats::new(context.registry, scope("tls_inspector.")));
            } else if any::is::<HttpInspector>(content) {
                inspect.http = true;
                inspect.http_disabled = disabled;
                inspect.http_stats = Some(HttpInspectorStats::new(context.registry, scope("http_inspector.")));
            } else if disabled.is_some() {
                return Err(Fault::new("filter_disabled", "is supported for tls_inspector and http_inspector only"));
            } else if any::is::<OriginalDst>(content) {
                if inspect.proxy_protocol.is_some() {
                    return Err(Fault::new(
                        "typed_config",
                        "must come before proxy_protocol, which says where the connection went",
                    ));
                }
                inspect.original_dst = true;
            } else if any::is::<ProxyProtocol>(content) {
                let reason = if inspect.proxy_protocol.is_some() {
                    Some("a connection has one header of the PROXY protocol; leave the second filter out")
                } else if inspect.tls || inspect.http {
                    Some("the header comes before what tls_inspector and http_inspector look at; put this filter first")
                } else if flag(&from.use_original_dst, false) {
                    Some("is not supported together with use_original_dst; put it into the listeners that take over")
                } else {
                    None
                };
                if let Some(reason) = reason {
                    return Err(Fault::new("typed_config", reason));
                }
                let compiled = unpack(content).and_then(|config| proxy_protocol::downstream(context, &config));
                inspect.proxy_protocol = Some(Arc::new(compiled.within("typed_config")?));
            } else {
                return Err(Fault::new(
                    "typed_config",
                    format!("listener filter {} is not supported", content.type_url),
                ));
            }
            Ok(())
        })()
        .at("listener_filters", index)?;
    }
    Ok(inspect)
}

/// Deepest nesting of rules about listener filters.
const DEEPEST: usize = 64;

/// `ListenerFilterChainMatchPredicate`
fn destinations(from: &proto::ListenerFilterChainMatchPredicate, depth: usize) -> Compiled<Destinations> {
    if depth > DEEPEST {
        return Err(Fault::new("", format!("is nested deeper than {DEEPEST} rules")));
    }
    let set = |set: &MatchSet| {
        // Envoy's own bound.
        if set.rules.len() < 2 {
            return Err(Fault::new("rules", "value must contain at least 2 item(s)"));
        }
        let rules = set.rules.iter().enumerate();
        rules.map(|(index, rule)| destinations(rule, depth + 1).at("rules", index)).collect()
    };
    match &from.rule {
        Some(MatchRule::OrMatch(any)) => Ok(Destinations::Either(set(any).within("or_match")?)),
        Some(MatchRule::AndMatch(all)) => Ok(Destinations::All(set(all).within("and_match")?)),
        Some(MatchRule::NotMatch(not)) => {
            Ok(Destinations::Not(Box::new(destinations(not, depth + 1).within("not_match")?)))
        }
        Some(MatchRule::AnyMatch(true)) => Ok(Destinations::Any),
        Some(MatchRule::AnyMatch(false)) => Err(Fault::new("any_match", "value must equal true")),
        Some(MatchRule::DestinationPortRange(range)) => match (u32::try_from(range.start), u32::try_from(range.end)) {
            (Ok(start), Ok(end)) if start < end && end <= 65_536 => Ok(Destinations::Ports(start..end)),
            _ => Err(Fault::new(
                "destination_port_range",
                format!("range start {} and end {} must lie in 0 to 65536, start below end", range.start, range.end),
            )),
        },
        None => Err(Fault::new("rule", "value is required")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::compile::testing::yaml;

    fn compiled(text: &str) -> Result<Destinations, String> {
        destinations(&yaml(text), 0).map_err(|fault| format!("{}: {}", fault.path, fault.reason))
    }

    #[test]
    fn ports_at_which_a_filter_is_left_out() {
        let rule = compiled(
            "or_match: { rules: [{ destination_port_range: { start: 3306, end: 3308 } }, { and_match: { rules: [{ any_match: true }, { not_match: { \
             destination_port_range: { start: 1, end: 65536 } } }] } }] }",
        )
        .unwrap();
        for (destination, expected) in [
            (Some("10.0.0.1:3305"), false),
            (Some("10.0.0.1:3306"), true),
            (Some("[::1]:3307"), true),
            (Some("10.0.0.1:3308"), false),
            (Some("10.0.0.1:0"), true),
            (None, true),
        ] {
            let address = destination.map(|address| address.parse().unwrap());
            assert_eq!(rule.hold(address), expected, "{destination:?}");
        }
    }

    #[test]
    fn rules_that_are_refused() {
        for (text, expected) in [
            ("{}", "rule: value is required"),
            ("any_match: false", "any_match: value must equal true"),
            ("or_match: { rules: [{ any_match: true }] }", "or_match.rules: value must contain at least 2 item(s)"),
            (
                "not_match: { destination_port_range: { start: 5, end: 5 } }",
                "not_match.destination_port_range: range start 5 and end 5 must lie in 0 to 65536, start below end",
            ),
            ("and_match: { rules: [{ any_match: true }, {}] }", "and_match.rules[1].rule: value is required"),
        ] {
            assert_eq!(compiled(text), Err(expected.to_owned()), "{text}");
        }
    }
}
