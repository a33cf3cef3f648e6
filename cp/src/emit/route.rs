//! Routes of an outbound listener, as MeshHTTPRoute, MeshTimeout and MeshRetry make them
//! (Kuma `pkg/plugins/policies/meshhttproute/xds`).
//!
//! Two deliberate differences. Where a prefix is replaced and more of the path follows, Kuma cuts the slash between the two
//! (`/v1/a` becomes `/v2a` when `/v1` is replaced by `/v2`); here it stays. And `RequestRedirect` is the last word about a request, where
//! Kuma fails to build any listener if a `URLRewrite` or `RequestMirror` follows it.

use shika_proto::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use shika_proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption, RuntimeFractionalPercent};
use shika_proto::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use shika_proto::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use shika_proto::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use shika_proto::envoy::config::route::v3::route_action::{
    ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy,
};
use shika_proto::envoy::config::route::v3::route_match::PathSpecifier;
use shika_proto::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use shika_proto::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RedirectAction, Route, RouteAction, RouteConfiguration,
    RouteMatch as EnvoyMatch, VirtualHost, WeightedCluster, route,
};
use shika_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use shika_proto::envoy::r#type::matcher::v3::{RegexMatchAndSubstitute, RegexMatcher, StringMatcher};
use shika_proto::envoy::r#type::v3::FractionalPercent;
use shika_proto::envoy::r#type::v3::fractional_percent::DenominatorType;
use shika_proto::google::protobuf::{BoolValue, UInt32Value};

use super::{duration, retry, seconds};
use crate::policy::route::{HttpRoute, Mirror, Split};
use crate::policy::timeout::RouteTimeouts;
use crate::resource::{
    HeaderMatch, HeaderMatchType, HeaderModifier, IntOrString, PathMatch, PathMatchType, PathRewrite, PathRewriteType,
    QueryMatchType, RequestRedirect, RouteFilter, RouteFilterType, RouteMatch,
};

/// The routes of a listener, for requests to any host.
pub(super) fn configuration(name: String, host: &str, routes: &[HttpRoute]) -> RouteConfiguration {
    RouteConfiguration {
        name,
        validate_clusters: Some(BoolValue { value: false }),
        virtual_hosts: vec![VirtualHost {
            name: host.to_owned(),
            domains: vec!["*".to_owned()],
            routes: routes.iter().flat_map(envoy_routes).collect(),
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

/// What is set for requests on a route; without a policy there is no limit.
pub(super) fn limits(action: &mut RouteAction, timeouts: Option<RouteTimeouts>) {
    action.timeout = timeouts.map_or_else(|| seconds(0), |timeouts| Some(duration(timeouts.request)));
    action.idle_timeout = timeouts.map(|timeouts| duration(timeouts.stream_idle));
}

/// What part of a path a route is about.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    /// All of it, which is the prefix that a rule asks for.
    WholePrefix,
    /// The prefix with the slash after it; more follows.
    LeadingPrefix,
    /// Something else than a prefix.
    Other,
}

/// One route for each way in which a path can match: a prefix of whole segments is the path itself, or that with a slash and more.
fn envoy_routes(plan: &HttpRoute) -> Vec<Route> {
    let paths = match &plan.r#match.path {
        None => vec![(PathSpecifier::Prefix("/".to_owned()), Part::Other)],
        Some(PathMatch { value, kind }) => match kind {
            PathMatchType::Exact => vec![(PathSpecifier::Path(value.clone()), Part::Other)],
            PathMatchType::RegularExpression => vec![(PathSpecifier::SafeRegex(regex(value)), Part::Other)],
            PathMatchType::PathPrefix if value == "/" => {
                vec![(PathSpecifier::Prefix(value.clone()), Part::LeadingPrefix)]
            }
            PathMatchType::PathPrefix => {
                let path = value.strip_suffix('/').unwrap_or(value);
                vec![
                    (PathSpecifier::Path(path.to_owned()), Part::WholePrefix),
                    (PathSpecifier::Prefix(format!("{path}/")), Part::LeadingPrefix),
                ]
            }
        },
    };
    paths.into_iter().map(|(path, part)| envoy_route(plan, path, part)).collect()
}

fn envoy_route(plan: &HttpRoute, path: PathSpecifier, part: Part) -> Route {
    let HttpRoute { name, r#match, filters, mirrors, backends, timeouts, retry } = plan;
    let mut action = RouteAction {
        cluster_specifier: Some(cluster(backends)),
        request_mirror_policies: mirrors.iter().map(mirror).collect(),
        retry_policy: retry.as_ref().map(retry::policy),
        ..RouteAction::default()
    };
    limits(&mut action, *timeouts);
    if backends.iter().any(|split| split.external) {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true }));
    }
    let mut route = Route { name: name.clone(), r#match: Some(envoy_match(r#match, path)), ..Route::default() };
    let mut redirected = None;
    for filter in filters {
        apply(filter, part, &mut action, &mut redirected, &mut route);
    }
    route.action = Some(match redirected {
        Some(redirect) => route::Action::Redirect(redirect),
        None => route::Action::Route(action),
    });
    route
}

fn cluster(backends: &[Split]) -> ClusterSpecifier {
    if let [split] = backends {
        return ClusterSpecifier::Cluster(split.cluster.clone());
    }
    let clusters = backends.iter().map(|split| ClusterWeight {
        name: split.cluster.clone(),
        weight: Some(UInt32Value { value: split.weight }),
        ..ClusterWeight::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect(), ..WeightedCluster::default() })
}

fn mirror(mirror: &Mirror) -> RequestMirrorPolicy {
    let percentage = mirror.percentage.as_ref().and_then(IntOrString::number);
    RequestMirrorPolicy {
        cluster: mirror.cluster.clone(),
        runtime_fraction: percentage.map(|percentage| RuntimeFractionalPercent {
            default_value: Some(fraction(percentage)),
            ..RuntimeFractionalPercent::default()
        }),
        ..RequestMirrorPolicy::default()
    }
}

/// Per cent with as coarse a denominator as it needs, at most millionths.
fn fraction(percent: f64) -> FractionalPercent {
    let (numerator, denominator) = if percent.fract() == 0.0 {
        (percent, DenominatorType::Hundred)
    } else if (percent * 100.0).fract() == 0.0 {
        (percent * 100.0, DenominatorType::TenThousand)
    } else {
        ((percent * 10_000.0).round(), DenominatorType::Million)
    };
    // Validation lets nothing pass that is below 0 or above 100.
    FractionalPercent { numerator: numerator.clamp(0.0, 1e6) as u32, denominator: denominator.into() }
}

fn envoy_match(found: &RouteMatch, path: PathSpecifier) -> EnvoyMatch {
    let RouteMatch { path: _, method, query_params, headers } = found;
    let method = method.map(|method| exact_header(":method", method.as_str()));
    let mut names = Vec::new();
    let mut first = |name: &str| {
        let first = !names.iter().any(|known| known == name);
        names.push(name.to_owned());
        first
    };
    let headers: Vec<_> = headers.iter().flatten().filter(|header| first(&header.name)).map(header_matcher).collect();
    let query = query_params.iter().flatten().map(|query| QueryParameterMatcher {
        name: query.name.clone(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(string(match query.kind {
            QueryMatchType::Exact => MatchPattern::Exact(query.value.clone()),
            QueryMatchType::RegularExpression => MatchPattern::SafeRegex(regex(&query.value)),
        }))),
    });
    EnvoyMatch {
        path_specifier: Some(path),
        headers: method.into_iter().chain(headers).collect(),
        query_parameters: query.collect(),
        ..EnvoyMatch::default()
    }
}

/// A condition on a header.
pub(super) fn header_matcher(header: &HeaderMatch) -> HeaderMatcher {
    let HeaderMatch { kind, name, value } = header;
    let specifier = match kind {
        HeaderMatchType::Exact => return exact_header(name, value),
        HeaderMatchType::Present => HeaderMatchSpecifier::PresentMatch(true),
        HeaderMatchType::Absent => HeaderMatchSpecifier::PresentMatch(false),
        HeaderMatchType::RegularExpression => {
            HeaderMatchSpecifier::StringMatch(string(MatchPattern::SafeRegex(regex(value))))
        }
        // Envoy refuses an empty prefix.
        HeaderMatchType::Prefix if value.is_empty() => HeaderMatchSpecifier::PresentMatch(true),
        HeaderMatchType::Prefix => HeaderMatchSpecifier::StringMatch(string(MatchPattern::Prefix(value.clone()))),
    };
    HeaderMatcher { name: name.clone(), header_match_specifier: Some(specifier), ..HeaderMatcher::default() }
}

/// The header has this value.
pub(super) fn exact_header(name: &str, value: &str) -> HeaderMatcher {
    let pattern = HeaderMatchSpecifier::StringMatch(string(MatchPattern::Exact(value.to_owned())));
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(pattern), ..HeaderMatcher::default() }
}

fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..StringMatcher::default() }
}

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.to_owned(), ..RegexMatcher::default() }
}

fn apply(
    filter: &RouteFilter,
    part: Part,
    action: &mut RouteAction,
    redirected: &mut Option<RedirectAction>,
    route: &mut Route,
) {
    let RouteFilter {
        kind,
        request_header_modifier,
        response_header_modifier,
        request_redirect,
        url_rewrite,
        request_mirror: _,
    } = filter;
    match kind {
        RouteFilterType::RequestHeaderModifier => {
            if let Some(modifier) = request_header_modifier {
                let (add, remove) = header_changes(modifier);
                route.request_headers_to_add.extend(add);
                route.request_headers_to_remove.extend(remove);
            }
        }
        RouteFilterType::ResponseHeaderModifier => {
            if let Some(modifier) = response_header_modifier {
                let (add, remove) = header_changes(modifier);
                route.response_headers_to_add.extend(add);
                route.response_headers_to_remove.extend(remove);
            }
        }
        RouteFilterType::RequestRedirect => *redirected = request_redirect.as_ref().map(|to| redirect(to, part)),
        RouteFilterType::URLRewrite => {
            let Some(rewrite) = url_rewrite else { return };
            if let Some(host) = &rewrite.hostname {
                action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host.clone()));
            }
            match rewrite.path.as_ref().and_then(|path| new_path(path, part)) {
                Some(NewPath::Whole(path)) => action.regex_rewrite = Some(whole_path(path)),
                Some(NewPath::Prefix(prefix)) => action.prefix_rewrite = prefix,
                None => {}
            }
        }
        // See `HttpRoute::mirrors`.
        RouteFilterType::RequestMirror => {}
    }
}

fn header_changes(modifier: &HeaderModifier) -> (Vec<HeaderValueOption>, Vec<String>) {
    let HeaderModifier { set, add, remove } = modifier;
    let option = |header: &crate::resource::HeaderKeyValue, action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue { key: header.name.clone(), value: header.value.clone(), ..HeaderValue::default() }),
        append_action: action.into(),
        ..HeaderValueOption::default()
    };
    let set = set.iter().flatten().map(|header| option(header, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = add.iter().flatten().map(|header| option(header, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), remove.clone().unwrap_or_default())
}

/// What stands in the place of a path.
enum NewPath {
    /// Of all of it.
    Whole(String),
    /// Of the prefix that matched.
    Prefix(String),
}

fn new_path(path: &PathRewrite, part: Part) -> Option<NewPath> {
    match path.kind {
        PathRewriteType::ReplaceFullPath => path.replace_full_path.clone().map(NewPath::Whole),
        PathRewriteType::ReplacePrefixMatch => {
            let prefix = path.replace_prefix_match.clone()?;
            match part {
                Part::WholePrefix => Some(NewPath::Whole(prefix)),
                Part::LeadingPrefix if prefix.ends_with('/') => Some(NewPath::Prefix(prefix)),
                Part::LeadingPrefix => Some(NewPath::Prefix(format!("{prefix}/"))),
                Part::Other => None,
            }
        }
    }
}

fn whole_path(path: String) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(regex(".*")), substitution: path }
}

fn redirect(to: &RequestRedirect, part: Part) -> RedirectAction {
    let RequestRedirect { scheme, hostname, path, port, status_code } = to;
    RedirectAction {
        host_redirect: hostname.clone().unwrap_or_default(),
        port_redirect: port.unwrap_or_default(),
        scheme_rewrite_specifier: scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path.as_ref().and_then(|path| new_path(path, part)).map(|path| match path {
            NewPath::Whole(path) => PathRewriteSpecifier::RegexRewrite(whole_path(path)),
            NewPath::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
        }),
        response_code: match status_code {
            301 => RedirectResponseCode::MovedPermanently,
            303 => RedirectResponseCode::SeeOther,
            307 => RedirectResponseCode::TemporaryRedirect,
            308 => RedirectResponseCode::PermanentRedirect,
            // 302; validation lets no other pass.
            _ => RedirectResponseCode::Found,
        }
        .into(),
        ..RedirectAction::default()
    }
}
