//! MeshHTTPRoute (Kuma `pkg/plugins/policies/meshhttproute/api/v1alpha1`).
//!
//! The order of the fields is that of Kuma: route names are hashes of this JSON, see [`matches_hash`](crate::policy::route::matches_hash).

use serde::{Deserialize, Serialize};

use super::wire::is_default;
use super::{IntOrString, RouteBackendRef, TargetRef};

/// Where HTTP requests go, by path, method, headers and query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshHTTPRoute {
    /// The proxies that the policy applies to; absent means every proxy of the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Calls of these proxies, by destination.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<RouteTo>,
}

/// The rules for a destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteTo {
    /// Host names; for gateways only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostnames: Option<Vec<String>>,
    /// The destination.
    pub target_ref: TargetRef,
    /// The first rule that matches best applies.
    pub rules: Vec<RouteRule>,
}

/// What happens to some requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteRule {
    /// Any of these must hold.
    pub matches: Vec<RouteMatch>,
    /// What is done.
    pub default: RouteConf,
}

/// A condition on a request; all parts must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteMatch {
    /// On the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// On the method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<HttpMethod>,
    /// On parameters of the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_params: Option<Vec<QueryMatch>>,
    /// On headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<HeaderMatch>>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathMatch {
    /// What is expected.
    pub value: String,
    /// How it is compared.
    #[serde(rename = "type")]
    pub kind: PathMatchType,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathMatchType {
    /// Equal.
    Exact,
    /// Begins with, whole segments.
    PathPrefix,
    /// The whole path matches the RE2 expression.
    RegularExpression,
}

/// The methods that a rule may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "these are the methods of HTTP")]
pub enum HttpMethod {
    Connect,
    Delete,
    Get,
    Head,
    Options,
    Patch,
    Post,
    Put,
    Trace,
}

impl HttpMethod {
    /// As it stands in a request.
    pub fn as_str(self) -> &'static str {
        match self {
            HttpMethod::Connect => "CONNECT",
            HttpMethod::Delete => "DELETE",
            HttpMethod::Get => "GET",
            HttpMethod::Head => "HEAD",
            HttpMethod::Options => "OPTIONS",
            HttpMethod::Patch => "PATCH",
            HttpMethod::Post => "POST",
            HttpMethod::Put => "PUT",
            HttpMethod::Trace => "TRACE",
        }
    }
}

/// A condition on a parameter of the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueryMatch {
    /// How the value is compared.
    #[serde(rename = "type")]
    pub kind: QueryMatchType,
    /// Name of the parameter.
    pub name: String,
    /// What is expected.
    #[serde(default)]
    pub value: String,
}

/// How a parameter of the query is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QueryMatchType {
    /// Equal.
    Exact,
    /// The whole value matches the RE2 expression.
    RegularExpression,
}

/// A condition on a header (Kuma `HeaderMatch`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub kind: HeaderMatchType,
    /// Name of the header, lower case.
    pub name: String,
    /// What is expected; empty where the kind needs none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub value: String,
}

/// How a header is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HeaderMatchType {
    /// Equal.
    #[default]
    Exact,
    /// There is one.
    Present,
    /// The whole value matches the RE2 expression.
    RegularExpression,
    /// There is none.
    Absent,
    /// Begins with.
    Prefix,
}

/// What is done with a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteConf {
    /// What is changed on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<Vec<RouteFilter>>,
    /// Where it goes, by weight; by default to the destination itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<RouteBackendRef>>,
}

/// A change on the way. The field that belongs to `kind` must be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteFilter {
    /// Which change.
    #[serde(rename = "type")]
    pub kind: RouteFilterType,
    /// For [`RouteFilterType::RequestHeaderModifier`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// For [`RouteFilterType::ResponseHeaderModifier`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// For [`RouteFilterType::RequestRedirect`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// For [`RouteFilterType::URLRewrite`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// For [`RouteFilterType::RequestMirror`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
}

/// Which change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RouteFilterType {
    /// Of headers of the request.
    RequestHeaderModifier,
    /// Of headers of the response.
    ResponseHeaderModifier,
    /// The proxy answers with a redirect.
    RequestRedirect,
    /// Of host and path.
    URLRewrite,
    /// A copy goes elsewhere.
    RequestMirror,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderModifier {
    /// Set, whatever was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<HeaderKeyValue>>,
    /// Added to what was there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add: Option<Vec<HeaderKeyValue>>,
    /// Taken away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove: Option<Vec<String>>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeaderKeyValue {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A redirect; what is absent stays as in the request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// Port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u32>,
    /// 301, 302, 303, 307 or 308; 302 by default.
    #[serde(default = "found")]
    pub status_code: u32,
}

fn found() -> u32 {
    302
}

/// A change of the path. The field that belongs to `kind` must be there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathRewrite {
    /// Which change.
    #[serde(rename = "type")]
    pub kind: PathRewriteType,
    /// The whole new path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    /// What stands for the prefix that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

/// Which change of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathRewriteType {
    /// The whole path.
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}

/// A change of host and path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UrlRewrite {
    /// The new host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The new path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// For gateways only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_to_backend_hostname: Option<bool>,
}

/// A copy of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// Of how many, per cent; of all by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<IntOrString>,
    /// Where it goes.
    pub backend_ref: RouteBackendRef,
}
