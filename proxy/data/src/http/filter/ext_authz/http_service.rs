//! The service as an HTTP server: it sees the request's head, and its answer is the verdict.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};

use super::{
    super::{
        super::headers::ENVOY_UPSTREAM_TIME,
        call::{Answer, Call, CallError, envoy_headers, send},
        may_change,
    },
    Changes, Denial, PARTIAL_BODY, Question, Verdict,
};
use crate::{
    model::{ext_authz::HttpAuthz, header::AppendAction, header_view::HeaderView, matcher::StringMatcher},
    snapshot::Snapshot,
};

/// Asks it.
pub(super) async fn ask(
    snapshot: &Snapshot,
    service: &HttpAuthz,
    question: &Question<'_>,
) -> Result<Verdict, CallError> {
    let head = question.head;
    let path = match &service.path_override {
        Some(path) => path.to_string(),
        None => format!("{}{}", service.path_prefix, head.path.as_str()),
    };
    let body = question.body.as_ref().map(|(body, _)| body.clone()).unwrap_or_default();
    let call = Call {
        cluster: service.cluster,
        method: head.method.clone(),
        path: Uri::try_from(path).map_err(|_| CallError::Malformed)?,
        authority: head.authority.clone(),
        headers: headers(service, question, body.len()),
        body: body.into(),
        timeout: Some(service.timeout),
    };
    verdict(service, send(snapshot, call).await?)
}

fn headers(service: &HttpAuthz, question: &Question<'_>, length: usize) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    for name in question.head.headers.keys() {
        if may_change(name)
            && question.shows(name.as_str(), || name == header::AUTHORIZATION)
            && let Some(value) = HeaderView::from(&question.head.headers).joined(name)
            && let Ok(value) = HeaderValue::from_str(&value)
        {
            headers.insert(name, value);
        }
    }
    if let Some(partial) = question.partial {
        headers.insert(PARTIAL_BODY, HeaderValue::from_static(if partial { "true" } else { "false" }));
    }
    for (name, value) in &service.headers {
        headers.insert(name, value.clone());
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    envoy_headers(&mut headers, Some(service.timeout));
    headers
}

fn verdict(service: &HttpAuthz, answer: Answer) -> Result<Verdict, CallError> {
    let Answer { status, mut headers, body, took, .. } = answer;
    headers.insert(ENVOY_UPSTREAM_TIME, HeaderValue::from(took.as_millis() as u64));
    if status.is_server_error() {
        return Err(CallError::Status(status.as_u16()));
    }
    let listed = |matchers: &[StringMatcher], name: &HeaderName| {
        may_change(name) && matchers.iter().any(|matcher| matcher.matches(name.as_str()))
    };
    if status != StatusCode::OK {
        let shown = |name: &HeaderName| match service.to_client.as_slice() {
            [] => may_change(name),
            matchers => listed(matchers, name) || *name == header::WWW_AUTHENTICATE || *name == header::LOCATION,
        };
        let mut denial = Denial { status: Some(status), headers: HeaderMap::new(), body: String::new() };
        for (name, value) in headers.iter().filter(|(name, _)| shown(name)) {
            denial.headers.append(name, value.clone());
        }
        denial.body = String::from_utf8_lossy(&body).into_owned();
        return Ok(Verdict::Denied(Box::new(denial)));
    }
    let mut changes = Changes::default();
    for (name, value) in &headers {
        if listed(&service.to_upstream, name) {
            changes.put.push((name.clone(), value.clone(), AppendAction::OverwriteIfExistsOrAdd));
        }
        if listed(&service.append_to_upstream, name) {
            changes.append_to_present.push((name.clone(), value.clone(), None));
        }
        if listed(&service.to_client_on_success, name) {
            changes.response.push((name.clone(), value.clone(), AppendAction::OverwriteIfExistsOrAdd));
        }
    }
    Ok(Verdict::Allowed(Box::new(changes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::Duration;

    use super::*;
    use crate::model::ClusterId;

    fn exact(name: &str) -> StringMatcher {
        StringMatcher::Exact { value: name.into(), ignore_case: false }
    }

    fn service(to_client: &[&str]) -> HttpAuthz {
        HttpAuthz {
            cluster: ClusterId(0),
            name: "authz".into(),
            timeout: Duration::from_secs(1),
            path_prefix: "".into(),
            path_override: None,
            headers: Vec::new(),
            to_upstream: vec![exact("x-up")],
            append_to_upstream: vec![exact("x-app")],
            to_client: to_client.iter().map(|name| exact(name)).collect(),
            to_client_on_success: vec![exact("x-ok")],
        }
    }

    fn answer(status: u16, headers: &[(&'static str, &'static str)]) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect(),
            trailers: HeaderMap::new(),
            body: "body".into(),
            took: Duration::ZERO,
        }
    }

    #[test]
    fn only_200_allows() {
        let said = [("x-up", "1"), ("x-app", "2"), ("x-ok", "3"), ("x-other", "4")];
        let Verdict::Allowed(changes) = verdict(&service(&[]), answer(200, &said)).unwrap() else { panic!() };
        let names = |list: &[(HeaderName, HeaderValue, AppendAction)]| -> Vec<String> {
            list.iter().map(|(name, ..)| name.to_string()).collect()
        };
        assert_eq!((names(&changes.put), names(&changes.response)), (vec!["x-up".into()], vec!["x-ok".into()]));
        assert_eq!(changes.append_to_present.len(), 1);
        assert_eq!(verdict(&service(&[]), answer(503, &[])).unwrap_err(), CallError::Status(503));
        assert!(matches!(verdict(&service(&[]), answer(204, &[])).unwrap(), Verdict::Denied(_)));
    }

    #[test]
    fn what_a_refused_client_sees() {
        let said = [("x-a", "1"), ("location", "/l"), ("www-authenticate", "basic"), ("content-length", "4")];
        for (listed, expected) in [
            (&[][..], vec!["location", "www-authenticate", "x-a", "x-envoy-upstream-service-time"]),
            (&["x-b"], vec!["location", "www-authenticate"]),
        ] {
            let Verdict::Denied(denial) = verdict(&service(listed), answer(401, &said)).unwrap() else { panic!() };
            let mut names: Vec<_> = denial.headers.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, expected);
            assert_eq!((denial.status.unwrap().as_u16(), denial.body.as_str()), (401, "body"));
        }
    }
}
