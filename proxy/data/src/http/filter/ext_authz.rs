//! Requests that a service has to allow.
//!
//! Source: Envoy "External Authorization" filter, `service.auth.v3`.

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{
    super::{
        body::Inbound, exchange::Exchange, forward::choose_cluster, head::Head, headers as names, local_reply::Refusal,
        request::Matched,
    },
    buffer, effects, may_change,
};
use crate::{
    error::ResponseFlag,
    model::{
        ext_authz::{AuthzService, CheckSettings, ExtAuthz},
        header::AppendAction,
        http_filter::FilterSetting,
        route::RouteAction,
    },
    snapshot::Snapshot,
    worker,
};

mod grpc;
mod http_service;

const FAILURE_MODE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// What a service says.
#[derive(Debug, PartialEq)]
enum Verdict {
    Allowed(Box<Changes>),
    Denied(Box<Denial>),
}

/// What an allowing answer changes.
#[derive(Debug, Default, PartialEq)]
struct Changes {
    /// Headers of the request.
    put: Vec<(HeaderName, HeaderValue, AppendAction)>,
    /// Likewise, beside those that are there; without one nothing happens. With a separator it is one header in the end.
    append_to_present: Vec<(HeaderName, HeaderValue, Option<&'static str>)>,
    remove: Vec<HeaderName>,
    /// Headers of the response.
    response: Vec<(HeaderName, HeaderValue, AppendAction)>,
    set_parameters: Vec<(String, String)>,
    remove_parameters: Vec<String>,
}

/// A refusing answer.
#[derive(Debug, Default, PartialEq)]
struct Denial {
    status: Option<StatusCode>,
    headers: HeaderMap,
    body: String,
}

/// A request as it is told to a service.
struct Question<'a> {
    filter: &'a ExtAuthz,
    exchange: &'a Exchange,
    head: &'a Head,
    settings: Option<&'a CheckSettings>,
    /// The body as far as it is told, and whether as bytes instead of as a text.
    body: Option<(Vec<u8>, bool)>,
    /// Whether there is more of it; `None` if the service does not see bodies, or there is none.
    partial: Option<bool>,
}

/// Asks the service about a request. The error is the refusal.
pub(super) async fn ask(
    filter: &Arc<ExtAuthz>,
    setting: Option<&FilterSetting>,
    exchange: &mut Exchange,
    head: &mut Head,
    inbound: &mut Inbound,
    matched: Option<Matched<'_>>,
    snapshot: &Snapshot,
) -> Result<(), Refusal> {
    // As in Envoy: without a route there is nothing to protect.
    let Some(matched) = matched else { return Ok(()) };
    let cluster = match &matched.route.action {
        RouteAction::Forward(action) => choose_cluster(snapshot, &action.clusters, matched.weighted, head),
        RouteAction::Redirect(_) | RouteAction::Direct(_) | RouteAction::NonForwarding => None,
    };
    let in_cluster = cluster.as_ref().map(|cluster| cluster.stats.ext_authz());
    let refuse = |details| Refusal::new(filter.status_on_error, "", details).flag(ResponseFlag::Unauthorized);
    if !filter.enabled.holds(worker::random()) {
        filter.stats.disabled().inc();
        return if filter.deny_at_disable { Err(refuse("ext_authz_error")) } else { Ok(()) };
    }
    let settings = match setting {
        Some(FilterSetting::ExtAuthz(settings)) => Some(&**settings),
        _ => None,
    };
    let wanted = settings.and_then(|settings| settings.body).unwrap_or(filter.body);
    let as_bytes = filter.body.is_some_and(|body| body.as_bytes);
    let (body, partial) = match wanted.filter(|_| !inbound.is_empty() && head.upgrade.is_none()) {
        None => (None, None),
        Some(wanted) => {
            let most = wanted.most as usize;
            // A part is sent as soon as it is there, without waiting for what follows.
            let limit = if wanted.partial { most.saturating_sub(1) } else { most };
            let whole = buffer::hold(limit, exchange, head, inbound).await?;
            if !whole && !wanted.partial {
                return Err(buffer::too_large(exchange));
            }
            let mut bytes = Vec::with_capacity(inbound.held_bytes().min(most));
            for piece in inbound.held() {
                let room = most - bytes.len();
                bytes.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
            }
            let partial = inbound.held_bytes() > bytes.len() || !inbound.is_whole();
            (Some((bytes, as_bytes)), Some(partial))
        }
    };
    let begun = Instant::now();
    let question = Question { filter, exchange, head, settings, body, partial };
    let answer = match &filter.service {
        AuthzService::Grpc(service) => grpc::ask(snapshot, service, &question).await,
        AuthzService::Http(service) => http_service::ask(snapshot, service, &question).await,
    };
    exchange.held += begun.elapsed();
    match answer {
        Ok(Verdict::Allowed(changes)) => {
            filter.stats.ok().inc();
            if let Some(stats) = &in_cluster {
                stats.ok().inc();
            }
            apply(*changes, exchange, head);
            Ok(())
        }
        Ok(Verdict::Denied(denial)) => {
            filter.stats.denied().inc();
            let Denial { status, headers, mut body } = *denial;
            let status = status.unwrap_or(StatusCode::FORBIDDEN);
            if let (Some(stats), Some(cluster)) = (&in_cluster, &cluster) {
                stats.denied().inc();
                if filter.charge_cluster {
                    cluster.stats.count_code(crate::stats::Origin::Internal, status.as_u16());
                }
            }
            if filter.longest_denial > 0 {
                let most = body.floor_char_boundary(filter.longest_denial as usize);
                body.truncate(most);
            }
            let mut refusal = Refusal::new(status, body, "ext_authz_denied").flag(ResponseFlag::Unauthorized);
            refusal.headers = (!headers.is_empty()).then(|| Box::new(headers));
            Err(refusal)
        }
        Err(error) => {
            tracing::debug!(?error, "the authorization service gave no answer");
            filter.stats.error().inc();
            if let Some(stats) = &in_cluster {
                stats.error().inc();
            }
            if !filter.failure_mode_allow {
                return Err(refuse("ext_authz_error"));
            }
            filter.stats.failure_mode_allowed().inc();
            if let Some(stats) = &in_cluster {
                stats.failure_mode_allowed().inc();
            }
            if filter.failure_mode_header {
                head.headers.insert(FAILURE_MODE_ALLOWED, HeaderValue::from_static("true"));
            }
            Ok(())
        }
    }
}

/// Changes a request as the service wants it.
fn apply(changes: Changes, exchange: &mut Exchange, head: &mut Head) {
    for (name, value, append) in changes.put {
        if may_change(&name) {
            names::put(&mut head.headers, &name, value, append);
        }
    }
    for (name, value, separator) in changes.append_to_present {
        if !may_change(&name) || !head.headers.contains_key(&name) {
            continue;
        }
        match separator {
            Some(separator) => {
                names::append(&mut head.headers, name, &String::from_utf8_lossy(value.as_bytes()), separator);
            }
            None => {
                head.headers.append(name, value);
            }
        }
    }
    for name in changes.remove.iter().filter(|name| may_change(name)) {
        head.headers.remove(name);
    }
    if !(changes.set_parameters.is_empty() && changes.remove_parameters.is_empty()) {
        super::header_mutation::set_query(head, changes.set_parameters, changes.remove_parameters);
    }
    let response = changes.response.into_iter().filter(|(name, ..)| may_change(name));
    // Before the first of them there may be no effects at all.
    for header in response {
        effects(exchange).put.push(header);
    }
}

impl Question<'_> {
    /// Whether the service sees a header. Names are in lower case.
    fn shows(&self, name: &str, by_default: impl FnOnce() -> bool) -> bool {
        let allowed = match &self.filter.allowed_headers {
            Some(allowed) => allowed.iter().any(|matcher| matcher.matches(name)) || by_default(),
            None => by_default(),
        };
        allowed && !self.filter.disallowed_headers.iter().any(|matcher| matcher.matches(name))
    }
}
