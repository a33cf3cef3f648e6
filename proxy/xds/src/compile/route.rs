//! `config.route.v3.RouteConfiguration`.

use std::sync::Arc;

use bytes::Bytes;
use foldhash::{HashMap, HashSet};
use http::StatusCode;
use shika_data::model::{
    RouteTableId,
    access_log::LogFormat,
    route::{
        self as route_model, DirectResponse, Domains, Fraction, PathMatch, PathRewrite, Redirect, RedirectPath,
        RequireTls, Route, RouteAction, RouteTable, VirtualHost,
    },
};
use shika_proto::envoy::{
    config::route::v3::{
        self as proto, RouteConfiguration,
        redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
        route as proto_route,
        route_action::RequestMirrorPolicy,
        route_match::PathSpecifier,
        virtual_host::TlsRequirementType,
    },
    r#type::{
        matcher::v3::{FilterStateMatcher, filter_state_matcher},
        v3::{FractionalPercent, fractional_percent::DenominatorType},
    },
};

use super::{
    Compiled, Context, Fault, Within, enumeration, filter, flag, format,
    header::{self, Mutations},
    matcher, non_empty, required, retry, source, tracing, wrapped,
};

mod forward;

use forward::{Host, forward, header_value};

/// What holds for the whole table.
struct Table<'t> {
    name: &'t str,
    validate_clusters: bool,
    largest_body: usize,
    mirrors: &'t [RequestMirrorPolicy],
}

/// A route table. `inline`: it stands in a connection manager, where Envoy checks by default that clusters exist.
pub(crate) fn table(
    context: &mut Context<'_>,
    from: &RouteConfiguration,
    id: RouteTableId,
    inline: bool,
) -> Compiled<RouteTable> {
    let table = Table {
        name: &from.name,
        validate_clusters: flag(&from.validate_clusters, inline),
        largest_body: wrapped(&from.max_direct_response_body_size_bytes).unwrap_or(4096) as usize,
        mirrors: &from.request_mirror_policies,
    };
    let mut domains = Domains::default();
    let mut virtual_hosts = Vec::with_capacity(from.virtual_hosts.len());
    let mut names = HashSet::default();
    for (index, host) in from.virtual_hosts.iter().enumerate() {
        if !names.insert(host.name.as_str()) {
            return Err(Fault::new(
                format!("virtual_hosts[{index}].name"),
                format!("virtual host names must be unique, but {:?} occurs twice", host.name),
            ));
        }
        virtual_hosts.push(virtual_host(context, &table, host, index as u32, &mut domains).at("virtual_hosts", index)?);
    }
    for (lengths, keys) in
        [(&mut domains.suffix_lengths, &domains.suffix), (&mut domains.prefix_lengths, &domains.prefix)]
    {
        lengths.extend(keys.keys().map(|key| key.len()));
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
    }
    Ok(RouteTable {
        id,
        name: from.name.as_str().into(),
        virtual_hosts,
        domains,
        ignore_port: from.ignore_port_in_host_matching,
        request_headers: header::mutations(
            context,
            Mutations { side: "request", add: &from.request_headers_to_add, remove: &from.request_headers_to_remove },
        )?,
        response_headers: header::mutations(
            context,
            Mutations {
                side: "response",
                add: &from.response_headers_to_add,
                remove: &from.response_headers_to_remove,
            },
        )?,
        most_specific_wins: from.most_specific_header_mutations_wins,
        filters: filter::settings(context, &from.typed_per_filter_config)?,
    })
}

fn virtual_host(
    context: &mut Context<'_>,
    table: &Table<'_>,
    from: &proto::VirtualHost,
    index: u32,
    domains: &mut Domains,
) -> Compiled<VirtualHost> {
    non_empty(&from.name, "name")?;
    if from.domains.is_empty() {
        return Err(Fault::new("domains", "value must contain at least 1 item(s)"));
    }
    for (at, domain) in from.domains.iter().enumerate() {
        self::domain(domains, domain, index, table.name).at("domains", at)?;
    }
    let require_tls = match enumeration(from.require_tls, "require_tls")? {
        TlsRequirementType::None => RequireTls::No,
        TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
        TlsRequirementType::All => RequireTls::All,
    };
    let mut routes = Vec::with_capacity(from.routes.len());
    if let Some(policy) = &from.retry_policy {
        retry::policy(policy).within("retry_policy")?;
    }
    let host = Host {
        retry: from.retry_policy.as_ref(),
        mirrors: if from.request_mirror_policies.is_empty() { table.mirrors } else { &from.request_mirror_policies },
        buffer_limit: buffer_limit(&from.per_request_buffer_limit_bytes, &from.request_body_buffer_limit),
    };
    for (at, route) in from.routes.iter().enumerate() {
        routes.push(self::route(context, table, &host, route).at("routes", at)?);
    }
    Ok(VirtualHost {
        name: from.name.as_str().into(),
        routes,
        require_tls,
        request_headers: header::mutations(
            context,
            Mutations { side: "request", add: &from.request_headers_to_add, remove: &from.request_headers_to_remove },
        )?,
        response_headers: header::mutations(
            context,
            Mutations {
                side: "response",
                add: &from.response_headers_to_add,
                remove: &from.response_headers_to_remove,
            },
        )?,
        filters: filter::settings(context, &from.typed_per_filter_config)?,
        rate_limits: filter::ratelimit::of_host(context, &from.rate_limits)?,
    })
}

fn domain(domains: &mut Domains, domain: &str, index: u32, table: &str) -> Compiled<()> {
    let lower = domain.to_ascii_lowercase();
    if lower.is_empty() || lower.bytes().any(|b| b.is_ascii_control()) {
        return Err(Fault::new("", "must be a host name, *, *suffix or prefix*"));
    }
    if lower == "*" {
        return match domains.any.replace(index) {
            None => Ok(()),
            Some(_) => Err(Fault::new("", format!("Only a single wildcard domain is permitted in route {table}"))),
        };
    }
    let (map, key): (&mut HashMap<Box<str>, u32>, &str) = match (lower.strip_prefix('*'), lower.strip_suffix('*')) {
        (Some(suffix), _) => (&mut domains.suffix, suffix),
        (None, Some(prefix)) => (&mut domains.prefix, prefix),
        (None, None) => (&mut domains.exact, &lower),
    };
    match map.insert(key.into(), index) {
        None => Ok(()),
        Some(_) => Err(Fault::new(
            "",
            format!(
                "Only unique values for domains are permitted. Duplicate entry of domain {domain} in route {table}"
            ),
        )),
    }
}

fn route(context: &mut Context<'_>, table: &Table<'_>, host: &Host<'_>, from: &proto::Route) -> Compiled<Route> {
    let matched = required(&from.r#match, "match")?;
    let ignore_case = !flag(&matched.case_sensitive, true);
    let text = |value: &str| -> Box<str> { if ignore_case { value.to_ascii_lowercase().into() } else { value.into() } };
    let path = (|| {
        Ok(match &matched.path_specifier {
            Some(PathSpecifier::Prefix(value)) => PathMatch::Prefix { value: text(value), ignore_case },
            Some(PathSpecifier::Path(value)) => PathMatch::Exact { value: text(value), ignore_case },
            Some(PathSpecifier::PathSeparatedPrefix(value)) => {
                if value.len() < 2 || value.contains(['?', '#']) || value.ends_with('/') {
                    return Err(Fault::new("path_separated_prefix", "must not hold ? or #, nor end with /"));
                }
                PathMatch::SeparatedPrefix { value: text(value), ignore_case }
            }
            Some(PathSpecifier::SafeRegex(regex)) => PathMatch::Regex(matcher::full_regex(regex).within("safe_regex")?),
            Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
            Some(PathSpecifier::PathMatchPolicy(_)) => return Err(Fault::new("path_match_policy", "is not supported")),
            None => return Err(Fault::new("path_specifier", "value is required")),
        })
    })()
    .within("match")?;
    let headers = matched
        .headers
        .iter()
        .enumerate()
        .map(|(index, one)| matcher::header(one).at("headers", index))
        .collect::<Compiled<_>>();
    let query = matched
        .query_parameters
        .iter()
        .enumerate()
        .map(|(index, one)| matcher::query(one).at("query_parameters", index))
        .collect::<Compiled<_>>();
    let filter_state = matched
        .filter_state
        .iter()
        .enumerate()
        .map(|(index, one)| self::filter_state(one).at("filter_state", index))
        .collect::<Compiled<_>>();
    let fraction = match matched.runtime_fraction.as_ref() {
        None => None,
        Some(fraction) => {
            let value =
                required(&fraction.default_value, "default_value").within("runtime_fraction").within("match")?;
            Some(self::fraction(value).within("default_value").within("runtime_fraction").within("match")?)
        }
    };
    let action = match &from.action {
        Some(proto_route::Action::Route(action)) => {
            let mut forward = forward(context, table, host, action).within("route")?;
            forward.buffer_limit = buffer_limit(&from.per_request_buffer_limit_bytes, &from.request_body_buffer_limit)
                .or(host.buffer_limit);
            RouteAction::Forward(forward)
        }
        Some(proto_route::Action::Redirect(action)) => RouteAction::Redirect(redirect(action).within("redirect")?),
        Some(proto_route::Action::DirectResponse(action)) => {
            RouteAction::Direct(direct(context, table, action).within("direct_response")?)
        }
        Some(proto_route::Action::NonForwardingAction(_)) => RouteAction::NonForwarding,
        Some(proto_route::Action::FilterAction(_)) => return Err(Fault::new("filter_action", "is not supported")),
        None => return Err(Fault::new("action", "value is required")),
    };
    Ok(Route {
        name: from.name.as_str().into(),
        path,
        headers: headers.within("match")?,
        query: query.within("match")?,
        grpc_only: matched.grpc.is_some(),
        filter_state: filter_state.within("match")?,
        fraction,
        action,
        request_headers: header::mutations(
            context,
            Mutations { side: "request", add: &from.request_headers_to_add, remove: &from.request_headers_to_remove },
        )?,
        response_headers: header::mutations(
            context,
            Mutations {
                side: "response",
                add: &from.response_headers_to_add,
                remove: &from.response_headers_to_remove,
            },
        )?,
        filters: filter::settings(context, &from.typed_per_filter_config)?,
        kri: from.metadata.as_ref().and_then(filter::lua::route_kri),
        tracing: tracing::of_route(context, from)?,
    })
}

fn filter_state(from: &FilterStateMatcher) -> Compiled<route_model::FilterStateMatcher> {
    let value = match &from.matcher {
        Some(filter_state_matcher::Matcher::StringMatch(value)) => matcher::string(value).within("string_match")?,
        Some(filter_state_matcher::Matcher::AddressMatch(_)) => {
            return Err(Fault::new("address_match", "is not supported; use string_match"));
        }
        None => return Err(Fault::new("matcher", "value is required")),
    };
    Ok(route_model::FilterStateMatcher { key: non_empty(&from.key, "key")?.into(), value })
}

/// `per_request_buffer_limit_bytes`, or the newer field in its place.
fn buffer_limit(
    old: &Option<shika_proto::google::protobuf::UInt32Value>,
    new: &Option<shika_proto::google::protobuf::UInt64Value>,
) -> Option<u32> {
    new.as_ref().map(|limit| u32::try_from(limit.value).unwrap_or(u32::MAX)).or(wrapped(old))
}

/// A fraction.
pub(crate) fn fraction(from: &FractionalPercent) -> Compiled<Fraction> {
    let denominator = match enumeration(from.denominator, "denominator")? {
        DenominatorType::Hundred => 100,
        DenominatorType::TenThousand => 10_000,
        DenominatorType::Million => 1_000_000,
    };
    Ok(Fraction { numerator: from.numerator.min(denominator), denominator })
}

/// A reference to a cluster by name; that it exists is checked when the table asks for it.
fn cluster(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &str,
) -> Compiled<(shika_data::model::ClusterId, Arc<str>)> {
    if table.validate_clusters && !(context.cluster_exists)(name) {
        return Err(Fault::new("", format!("route: unknown cluster '{name}'")));
    }
    Ok(context.clusters.intern(name))
}

fn redirect(from: &proto::RedirectAction) -> Compiled<Redirect> {
    let status = match enumeration(from.response_code, "response_code")? {
        RedirectResponseCode::MovedPermanently => StatusCode::MOVED_PERMANENTLY,
        RedirectResponseCode::Found => StatusCode::FOUND,
        RedirectResponseCode::SeeOther => StatusCode::SEE_OTHER,
        RedirectResponseCode::TemporaryRedirect => StatusCode::TEMPORARY_REDIRECT,
        RedirectResponseCode::PermanentRedirect => StatusCode::PERMANENT_REDIRECT,
    };
    let scheme = match &from.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => (!scheme.is_empty()).then(|| scheme.as_str().into()),
    };
    let path = match &from.path_rewrite_specifier {
        None => RedirectPath::Keep,
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            header_value(path, "path_redirect")?;
            if path.is_empty() { RedirectPath::Keep } else { RedirectPath::Path(path.as_str().into()) }
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            header_value(prefix, "prefix_rewrite")?;
            RedirectPath::Rewrite(PathRewrite::Prefix(prefix.as_str().into()))
        }
        Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
            let (pattern, substitution) = matcher::substitution(rewrite).within("regex_rewrite")?;
            RedirectPath::Rewrite(PathRewrite::Regex { pattern, substitution })
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return Err(Fault::new("path_rewrite", "is not supported")),
    };
    header_value(&from.host_redirect, "host_redirect")?;
    let port = match from.port_redirect {
        0 => None,
        port => Some(u16::try_from(port).map_err(|_| {
            Fault::new("port_redirect", format!("value must be less than or equal to 65535, not {port}"))
        })?),
    };
    let host = (!from.host_redirect.is_empty()).then(|| from.host_redirect.as_str().into());
    Ok(Redirect { status, scheme, host, port, path, strip_query: from.strip_query })
}

fn direct(context: &Context<'_>, table: &Table<'_>, from: &proto::DirectResponseAction) -> Compiled<DirectResponse> {
    let status = u16::try_from(from.status)
        .ok()
        .filter(|status| (200..600).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| Fault::new("status", format!("value must be inside range [200, 600), not {}", from.status)))?;
    let body = match &from.body {
        None => Bytes::new(),
        Some(body) => Bytes::from(source::data(body).within("body")?.bytes),
    };
    if body.len() > table.largest_body {
        let (size, largest) = (body.len(), table.largest_body);
        return Err(Fault::new("body", format!("response body size is {size} bytes; maximum is {largest}")));
    }
    let format = match &from.body_format {
        None => None,
        Some(format) => match format::substitution(context, format).within("body_format")? {
            LogFormat::Text(format) => Some(format),
            LogFormat::Json(_) => {
                return Err(Fault::new("body_format.json_format", "is not supported; use text_format_source"));
            }
        },
    };
    Ok(DirectResponse { status, body, format })
}
