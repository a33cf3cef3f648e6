//! Cross-origin requests: what a browser may do with an answer, and whether it may ask at all.
//!
//! Source: Envoy "CORS"; Fetch standard, "HTTP CORS protocol".

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::{
    super::{exchange::Exchange, head::Head, local_reply::Refusal, request::Matched},
    effects,
};
use crate::{
    model::{
        http_filter::{CorsPolicy, FilterSetting},
        route::RouteAction,
    },
    stats::CorsStats,
    worker,
};

const TRUE: HeaderValue = HeaderValue::from_static("true");
const ASK_PRIVATE_NETWORK: &str = "access-control-request-private-network";
const ALLOW_PRIVATE_NETWORK: &str = "access-control-allow-private-network";

/// What the answer to an allowed origin says.
#[derive(Debug)]
pub(super) struct Allowed {
    origin: HeaderValue,
    credentials: bool,
    expose: Option<HeaderValue>,
}

impl Allowed {
    /// Puts it on a response.
    pub(super) fn allow(&self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if let Some(expose) = &self.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

/// Judges a request by the policies of its route, of which the most specific comes first. The error is the answer to a preflight.
pub(super) fn judge(
    stats: &CorsStats,
    name: &str,
    exchange: &mut Exchange,
    head: &Head,
    matched: Option<Matched<'_>>,
) -> Result<(), Refusal> {
    // As in Envoy, a redirect or a direct response has no policy.
    let Some(matched) = matched.filter(|matched| matches!(matched.route.action, RouteAction::Forward(_))) else {
        return Ok(());
    };
    let policies: Vec<&CorsPolicy> = matched
        .filter_settings(name)
        .filter_map(|setting| match setting {
            FilterSetting::Cors(policy) => Some(&**policy),
            _ => None,
        })
        .collect();
    let Some(first) = policies.first() else { return Ok(()) };
    let enabled = first.enabled.holds(worker::random());
    if !enabled && !first.shadow.holds(worker::random()) {
        return Ok(());
    }
    let Some(origin) = head.headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else { return Ok(()) };
    let allowed = is_allowed(&policies, origin);
    match allowed {
        true => stats.origin_valid().inc(),
        false => stats.origin_invalid().inc(),
    }
    if !enabled {
        return Ok(());
    }
    if allowed {
        effects(exchange).cors = Some(Allowed {
            origin: origin.clone(),
            credentials: credentials(&policies),
            expose: policies.iter().find_map(|policy| policy.expose.clone()),
        });
    }
    match preflight(&policies, head, origin, allowed) {
        None => Ok(()),
        Some(headers) => {
            let mut answer = Refusal::new(StatusCode::OK, "", "cors_response");
            answer.headers = Some(Box::new(headers));
            answer.bare = true;
            Err(answer)
        }
    }
}

fn is_allowed(policies: &[&CorsPolicy], origin: &HeaderValue) -> bool {
    let origin = origin.to_str().unwrap_or("");
    let matchers = policies.iter().map(|policy| &policy.origins).find(|origins| !origins.is_empty());
    matchers.is_some_and(|matchers| matchers.iter().any(|matcher| matcher.matches("*") || matcher.matches(origin)))
}

fn credentials(policies: &[&CorsPolicy]) -> bool {
    policies.iter().find_map(|policy| policy.credentials).unwrap_or(false)
}

/// The headers of the answer to a preflight; `None` if the request is none, or is passed on.
fn preflight(policies: &[&CorsPolicy], head: &Head, origin: &HeaderValue, allowed: bool) -> Option<HeaderMap> {
    if head.method != Method::OPTIONS {
        return None;
    }
    let method = head.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).filter(|method| !method.is_empty())?;
    if !allowed && policies.iter().find_map(|policy| policy.forward_not_matching).unwrap_or(true) {
        return None;
    }
    let mut headers = HeaderMap::new();
    if allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    if credentials(policies) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
    }
    let asked_headers = head.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
    let empty = HeaderValue::from_static("");
    for (name, said, asked) in [
        (header::ACCESS_CONTROL_ALLOW_METHODS, policies.iter().find_map(|policy| policy.methods.as_ref()), method),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            policies.iter().find_map(|policy| policy.headers.as_ref()),
            asked_headers.unwrap_or(&empty),
        ),
    ] {
        if let Some(said) = said {
            headers.insert(name, if said == "*" { asked.clone() } else { said.clone() });
        }
    }
    if let Some(age) = policies.iter().find_map(|policy| policy.max_age.as_ref()) {
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, age.clone());
    }
    if policies.iter().find_map(|policy| policy.private_network).unwrap_or(false)
        && head.headers.get(ASK_PRIVATE_NETWORK).is_some_and(|asked| asked == "true")
    {
        headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::Request;

    use super::*;
    use crate::model::{matcher::StringMatcher, route::Fraction};

    fn policy(change: impl FnOnce(&mut CorsPolicy)) -> CorsPolicy {
        let mut policy = CorsPolicy {
            origins: Vec::new(),
            methods: None,
            headers: None,
            expose: None,
            max_age: None,
            credentials: None,
            private_network: None,
            forward_not_matching: None,
            enabled: Fraction { numerator: 100, denominator: 100 },
            shadow: Fraction { numerator: 0, denominator: 100 },
        };
        change(&mut policy);
        policy
    }

    fn exact(origin: &str) -> Vec<StringMatcher> {
        vec![StringMatcher::Exact { value: origin.into(), ignore_case: false }]
    }

    #[test]
    fn the_most_specific_level_with_origins_names_them() {
        let (none, a, all) = (
            policy(|_| {}),
            policy(|policy| policy.origins = exact("a")),
            policy(|policy| policy.origins = exact("*")),
        );
        for (levels, origin, expected) in [
            (vec![&a], "a", true),
            (vec![&a], "b", false),
            (vec![&none, &a], "a", true),
            (vec![&a, &all], "b", false),
            (vec![&all, &a], "b", true),
            (vec![&none], "a", false),
        ] {
            assert_eq!(is_allowed(&levels, &HeaderValue::from_static(origin)), expected, "{origin}");
        }
    }

    #[test]
    fn what_answers_a_preflight() {
        let origin = HeaderValue::from_static("https://a");
        let answer = |policy: &CorsPolicy, method: &str, asked: &[(&'static str, &'static str)], allowed: bool| {
            let mut request = Request::builder().method(method).uri("/");
            for (name, value) in asked {
                request = request.header(*name, *value);
            }
            let (head, _, ()) = Head::new(request.body(()).unwrap());
            preflight(&[policy], &head, &origin, allowed).map(|headers| {
                let mut lines: Vec<_> = headers
                    .iter()
                    .map(|(name, value)| {
                        let name = name.as_str().trim_start_matches("access-control-allow-");
                        format!("{name}={}", value.to_str().unwrap())
                    })
                    .collect();
                lines.sort();
                lines.join(" ")
            })
        };
        let ask = [("access-control-request-method", "PUT"), ("access-control-request-headers", "x-a,x-b")];
        let any = policy(|policy| {
            (policy.methods, policy.headers) =
                (Some(HeaderValue::from_static("*")), Some(HeaderValue::from_static("*")));
        });
        let strict = policy(|policy| {
            policy.methods = Some(HeaderValue::from_static("GET"));
            policy.forward_not_matching = Some(false);
            policy.credentials = Some(true);
        });
        assert_eq!(answer(&any, "GET", &ask, true), None, "only OPTIONS asks");
        assert_eq!(answer(&any, "OPTIONS", &[], true), None, "without a method it is no preflight");
        assert_eq!(answer(&any, "OPTIONS", &ask, false), None, "passed on");
        assert_eq!(answer(&any, "OPTIONS", &ask, true).unwrap(), "headers=x-a,x-b methods=PUT origin=https://a");
        assert_eq!(answer(&strict, "OPTIONS", &ask, false).unwrap(), "credentials=true methods=GET");
    }
}
