//! The service as `envoy.service.auth.v3.Authorization`.

use std::{borrow::Cow, net::SocketAddr, time::SystemTime};

use http::{HeaderName, HeaderValue, StatusCode, Version};

use super::{
    super::{
        super::path::percent_encoded_pem,
        call::{CallError, unary},
        may_change,
        protobuf::{Fields, Malformed, Value, Writer},
    },
    Changes, Denial, PARTIAL_BODY, Question, Verdict,
};
use crate::{
    connection::PeerTls,
    model::{header::AppendAction, header_view::HeaderView, http_filter::GrpcCall},
    snapshot::Snapshot,
};

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Asks it.
pub(super) async fn ask(
    snapshot: &Snapshot,
    service: &GrpcCall,
    question: &Question<'_>,
) -> Result<Verdict, CallError> {
    let answer = unary(snapshot, service, METHOD, request(question)).await?;
    Ok(read(&answer)?)
}

/// `CheckRequest`
fn request(question: &Question<'_>) -> Vec<u8> {
    let mut message = Writer::default();
    message.message(1, |attributes| {
        let connection = &question.exchange.connection;
        let tls = connection.tls.as_deref();
        attributes.message(1, |peer| {
            address(peer, connection.remote);
            let cluster = question.head.headers.get("x-envoy-downstream-service-cluster");
            peer.bytes(2, cluster.map(HeaderValue::as_bytes).unwrap_or_default());
            peer.bytes(4, principal(tls));
            if question.filter.peer_certificate
                && let Some(certificate) = tls.and_then(|tls| tls.chain.first())
            {
                peer.bytes(5, percent_encoded_pem(certificate));
            }
        });
        attributes.message(2, |peer| {
            address(peer, connection.local);
            peer.bytes(4, tls.and_then(|tls| tls.own_uri.as_deref()).unwrap_or_default());
        });
        attributes.message(4, |request| {
            let since = SystemTime::now().checked_sub(question.exchange.start.elapsed());
            let since = since.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).unwrap_or_default();
            request.message(1, |time| {
                time.number(1, since.as_secs());
                time.number(2, u64::from(since.subsec_nanos()));
            });
            request.message(2, |http| self::http(http, question));
        });
        for (key, value) in question.settings.iter().flat_map(|settings| &settings.context) {
            attributes.entry(10, &**key, &**value);
        }
        attributes.message(11, |_| {});
        if question.filter.tls_session && tls.is_some() {
            attributes.message(12, |session| session.bytes(1, &*connection.sni));
        }
        attributes.message(13, |_| {});
    });
    message.finish()
}

/// `Peer.address`
fn address(peer: &mut Writer, address: Option<SocketAddr>) {
    let Some(address) = address else { return };
    peer.message(1, |to| {
        to.message(1, |socket| {
            socket.bytes(2, address.ip().to_canonical().to_string());
            socket.number(3, u64::from(address.port()));
        });
    });
}

/// The first URI SAN, else the first DNS SAN, else the subject.
fn principal(tls: Option<&PeerTls>) -> &str {
    let Some(names) = tls.and_then(|tls| tls.names.as_ref()) else { return "" };
    names.uris.first().or(names.dns.first()).unwrap_or(&names.subject)
}

/// `AttributeContext.HttpRequest`
fn http(http: &mut Writer, question: &Question<'_>) {
    let head = question.head;
    let view = head.view();
    http.bytes(1, question.exchange.connection.id.to_string());
    http.bytes(2, view.method);
    let pseudo =
        [(":authority", view.authority), (":path", view.path), (":method", view.method), (":scheme", view.scheme)];
    let partial = question.partial.map(|partial| (PARTIAL_BODY, if partial { "true" } else { "false" }));
    let shows = |name: &str| name != "host" && question.shows(name, || question.filter.allowed_headers.is_none());
    if question.filter.raw_headers {
        http.message(13, |map| {
            let mut put = |name: &str, value: &[u8]| {
                map.message(1, |header| {
                    header.bytes(1, name);
                    header.bytes(3, value);
                });
            };
            for (name, value) in pseudo.into_iter().filter(|(name, _)| shows(name)) {
                put(name, value.as_bytes());
            }
            for (name, value) in head.headers.iter().filter(|(name, _)| shows(name.as_str())) {
                put(name.as_str(), value.as_bytes());
            }
            if let Some((name, value)) = partial {
                put(name, value.as_bytes());
            }
        });
    } else {
        for (name, value) in pseudo.into_iter().filter(|(name, _)| shows(name)) {
            http.entry(3, name, value);
        }
        for name in head.headers.keys().filter(|name| shows(name.as_str())) {
            let value = HeaderView::from(&head.headers).joined(name).unwrap_or_else(|| lossy(&head.headers, name));
            http.entry(3, name.as_str(), &*value);
        }
        if let Some((name, value)) = partial {
            http.entry(3, name, value);
        }
    }
    http.bytes(4, view.path);
    http.bytes(5, view.authority);
    http.bytes(6, view.scheme);
    // As far as it has come.
    http.number(9, question.exchange.progress.as_ref().map_or(0, |progress| progress.bytes()));
    http.bytes(
        10,
        match head.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        },
    );
    match &question.body {
        Some((body, true)) => http.bytes(12, body),
        Some((body, false)) => http.bytes(11, &*String::from_utf8_lossy(body)),
        None => {}
    }
}

/// A text has to be UTF-8.
fn lossy<'a>(headers: &'a http::HeaderMap, name: &HeaderName) -> Cow<'a, str> {
    let values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    Cow::Owned(values.collect::<Vec<_>>().join(","))
}

/// `CheckResponse`
fn read(message: &[u8]) -> Result<Verdict, Malformed> {
    let (mut code, mut ok, mut denied) = (0, None, None);
    for field in Fields(message) {
        match field? {
            (1, status) => {
                for field in status.fields()? {
                    if let (1, value) = field? {
                        code = value.number()?;
                    }
                }
            }
            (2 | 5, value) => denied = Some(value.fields()?),
            (3, value) => ok = Some(value.fields()?),
            _ => {}
        }
    }
    if code == 0 {
        return Ok(Verdict::Allowed(Box::new(ok.map(changes).transpose()?.unwrap_or_default())));
    }
    Ok(Verdict::Denied(Box::new(denied.map(denial).transpose()?.unwrap_or_default())))
}

/// `OkHttpResponse`
fn changes(fields: Fields<'_>) -> Result<Changes, Malformed> {
    let mut changes = Changes::default();
    for field in fields {
        match field? {
            (2, value) => {
                // As in Envoy append_action says nothing about headers of requests.
                match option(value)? {
                    Some((name, value, How::Append(Some(true)))) => {
                        changes.append_to_present.push((name, value, Some(",")));
                    }
                    Some((name, value, _)) => changes.put.push((name, value, AppendAction::OverwriteIfExistsOrAdd)),
                    None => {}
                }
            }
            (5, value) => changes.remove.extend(HeaderName::from_bytes(value.bytes()?).ok()),
            (6, value) => {
                if let Some((name, value, how)) = option(value)? {
                    let action = match how {
                        How::Append(Some(false)) => AppendAction::OverwriteIfExistsOrAdd,
                        How::Append(_) => AppendAction::AppendIfExistsOrAdd,
                        How::Action(action) => action,
                    };
                    changes.response.push((name, value, action));
                }
            }
            (7, value) => {
                let (mut key, mut text) = (String::new(), String::new());
                for field in value.fields()? {
                    match field? {
                        (1, value) => key = value.text()?.to_owned(),
                        (2, value) => text = value.text()?.to_owned(),
                        _ => {}
                    }
                }
                changes.set_parameters.push((key, text));
            }
            (8, value) => changes.remove_parameters.push(value.text()?.to_owned()),
            _ => {}
        }
    }
    Ok(changes)
}

/// `DeniedHttpResponse`
fn denial(fields: Fields<'_>) -> Result<Denial, Malformed> {
    let mut denial = Denial::default();
    for field in fields {
        match field? {
            (1, value) => {
                for field in value.fields()? {
                    if let (1, code) = field? {
                        let code = u16::try_from(code.number()?).ok().filter(|code| (200..600).contains(code));
                        denial.status = code.and_then(|code| StatusCode::from_u16(code).ok());
                    }
                }
            }
            (2, value) => {
                if let Some((name, value, how)) = option(value)?
                    && may_change(&name)
                    // As in Envoy: there is nothing yet to append to.
                    && !matches!(how, How::Append(Some(true)))
                {
                    denial.headers.append(name, value);
                }
            }
            (3, value) => denial.body = String::from_utf8_lossy(value.bytes()?).into_owned(),
            _ => {}
        }
    }
    Ok(denial)
}

/// How a `HeaderValueOption` is to be added.
#[derive(Clone, Copy, Debug)]
enum How {
    /// By the older field, or by neither.
    Append(Option<bool>),
    Action(AppendAction),
}

/// `HeaderValueOption`; `None` for one that is no header.
fn option(value: Value<'_>) -> Result<Option<(HeaderName, HeaderValue, How)>, Malformed> {
    let (mut name, mut text, mut append, mut action) = (&[][..], &[][..], None, 0);
    for field in value.fields()? {
        match field? {
            (1, header) => {
                for field in header.fields()? {
                    match field? {
                        (1, value) => name = value.bytes()?,
                        (2 | 3, value) => text = value.bytes()?,
                        _ => {}
                    }
                }
            }
            (2, value) => {
                let mut said = false;
                for field in value.fields()? {
                    if let (1, value) = field? {
                        said = value.number()? != 0;
                    }
                }
                append = Some(said);
            }
            (3, value) => action = value.number()?,
            _ => {}
        }
    }
    let how = match (append, action) {
        (None, 1) => How::Action(AppendAction::AddIfAbsent),
        (None, 2) => How::Action(AppendAction::OverwriteIfExistsOrAdd),
        (None, 3) => How::Action(AppendAction::OverwriteIfExists),
        (append, _) => How::Append(append),
    };
    let header = HeaderName::from_bytes(name).ok().zip(HeaderValue::from_bytes(text).ok());
    Ok(header.map(|(name, value)| (name, value, how)))
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
