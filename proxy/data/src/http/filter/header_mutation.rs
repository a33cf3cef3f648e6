//! Headers and query parameters that filters and routes change.
//!
//! Source: Envoy "Header mutation".

use std::{borrow::Cow, sync::Arc};

use super::{
    super::{
        exchange::Exchange,
        head::{Head, Path},
        request::Matched,
    },
    add_to_request, effects,
};
use crate::{
    model::{
        format::Format,
        header::AppendAction,
        http_filter::{FilterSetting, MessageMutations, QueryMutation},
    },
    record,
};

/// The filter's own, then those of routes.
pub(super) fn change(
    all: &Arc<MessageMutations>,
    most_specific_wins: bool,
    name: &str,
    exchange: &mut Exchange,
    head: &mut Head,
    matched: Option<Matched<'_>>,
) {
    let levels = matched.into_iter().flat_map(|matched| matched.filter_settings(name)).filter_map(|said| match said {
        FilterSetting::HeaderMutation(mutations) => Some(mutations),
        _ => None,
    });
    let mut list: Vec<&Arc<MessageMutations>> = levels.collect();
    if most_specific_wins {
        list.reverse();
    }
    list.insert(0, all);
    for mutations in &list {
        for step in &mutations.request {
            add_to_request(exchange, head, step);
        }
        change_query(&mutations.query, exchange, head);
    }
    // Responses pass filters the other way round.
    let responses: Vec<_> = list.into_iter().filter(|mutations| !mutations.response.is_empty()).cloned().collect();
    if !responses.is_empty() {
        effects(exchange).mutations.splice(0..0, responses);
    }
}

fn change_query(mutations: &[QueryMutation], exchange: &Exchange, head: &mut Head) {
    if mutations.is_empty() {
        return;
    }
    let values: Vec<String> = {
        let mut record = exchange.record();
        record.request = Some(head.view());
        let value = |mutation: &QueryMutation| {
            let mut value = String::new();
            if let QueryMutation::Put { value: format, .. } = mutation {
                record::render(format, &record, &mut value);
            }
            value
        };
        mutations.iter().map(value).collect()
    };
    head.path = Path::Changed(with_query(head.path.as_str(), mutations, &values));
}

/// Sets and removes parameters of the query.
pub(super) fn set_query(head: &mut Head, set: Vec<(String, String)>, removed: Vec<String>) {
    let append = AppendAction::OverwriteIfExistsOrAdd;
    let (mut mutations, mut values) = (Vec::new(), Vec::new());
    for (name, value) in set {
        mutations.push(QueryMutation::Put { name: name.into(), value: Format::default(), append });
        values.push(value);
    }
    for name in removed {
        mutations.push(QueryMutation::Remove(name.into()));
        values.push(String::new());
    }
    head.path = Path::Changed(with_query(head.path.as_str(), &mutations, &values));
}

/// The path with its query changed. As in Envoy parameters are sorted by name then, and each has a `=`. What stays is passed on as it was written.
fn with_query(path: &str, mutations: &[QueryMutation], values: &[String]) -> String {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (name.to_owned(), value.to_owned())
    };
    let mut pairs: Vec<(String, String)> =
        query.into_iter().flat_map(|query| query.split_terminator('&')).map(pair).collect();
    for (mutation, value) in mutations.iter().zip(values) {
        match mutation {
            QueryMutation::Remove(name) => pairs.retain(|(known, _)| *decoded(known) != *name.as_bytes()),
            QueryMutation::Put { name, append, .. } => {
                let exists = pairs.iter().any(|(known, _)| *decoded(known) == *name.as_bytes());
                match append {
                    AppendAction::AppendIfExistsOrAdd => {}
                    AppendAction::AddIfAbsent if exists => continue,
                    AppendAction::OverwriteIfExists if !exists => continue,
                    AppendAction::AddIfAbsent
                    | AppendAction::OverwriteIfExists
                    | AppendAction::OverwriteIfExistsOrAdd => {
                        pairs.retain(|(known, _)| *decoded(known) != *name.as_bytes())
                    }
                }
                pairs.push((encoded(name), encoded(value)));
            }
        }
    }
    pairs.sort_by(|(a, _), (b, _)| decoded(a).cmp(&decoded(b)));
    let mut changed = path.to_owned();
    for (at, (name, value)) in pairs.iter().enumerate() {
        changed.push(if at == 0 { '?' } else { '&' });
        changed.push_str(name);
        changed.push('=');
        changed.push_str(value);
    }
    changed
}

fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escape = text.get(at + 1..at + 3).filter(|_| *byte == b'%');
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// Envoy leaves letters, digits and `-_.*` as they are.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'*' => out.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_change() {
        let put = |name: &str, append| QueryMutation::Put { name: name.into(), value: Format::default(), append };
        for (path, mutation, value, expected) in [
            ("/a", put("x", AppendAction::AppendIfExistsOrAdd), "1", "/a?x=1"),
            ("/a?x=0&b", put("x", AppendAction::AppendIfExistsOrAdd), "1", "/a?b=&x=0&x=1"),
            ("/a?x=0", put("x", AppendAction::AddIfAbsent), "1", "/a?x=0"),
            ("/a?%78=0", put("x", AppendAction::AddIfAbsent), "1", "/a?%78=0"),
            ("/a?y=0", put("x", AppendAction::AddIfAbsent), "1", "/a?x=1&y=0"),
            ("/a?x=0&x=2", put("x", AppendAction::OverwriteIfExists), "1", "/a?x=1"),
            ("/a?y=0", put("x", AppendAction::OverwriteIfExists), "1", "/a?y=0"),
            ("/a?x=0&y=%26", put("x", AppendAction::OverwriteIfExistsOrAdd), "a b&é", "/a?x=a%20b%26%C3%A9&y=%26"),
            ("/a?x=0&y=1", QueryMutation::Remove("x".into()), "", "/a?y=1"),
            ("/a?&&y&", QueryMutation::Remove("x".into()), "", "/a?=&=&y="),
            ("/a?", QueryMutation::Remove("x".into()), "", "/a"),
            ("/a?x", QueryMutation::Remove("x".into()), "", "/a"),
            ("/a?%é=1&%", QueryMutation::Remove("x".into()), "", "/a?%=&%é=1"),
        ] {
            assert_eq!(with_query(path, &[mutation], &[value.to_owned()]), expected, "{path}");
        }
    }
}
