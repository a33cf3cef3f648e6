//! `core.v3.HeaderValueOption` and the header mutations of routes.

use http::{HeaderName, HeaderValue};
use shika_data::model::header::{AppendAction, HeaderAdd, HeaderMutations};
use shika_proto::envoy::config::core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction};

use super::{Compiled, Context, Fault, Within, enumeration, format, matcher::header_name, required};

/// The field names and contents of one level's mutations.
pub(crate) struct Mutations<'a> {
    /// `request` or `response`
    pub side: &'static str,
    /// `…_headers_to_add`
    pub add: &'a [HeaderValueOption],
    /// `…_headers_to_remove`
    pub remove: &'a [String],
}

/// One level's mutations.
pub(crate) fn mutations(context: &Context<'_>, from: Mutations<'_>) -> Compiled<HeaderMutations> {
    let (to_add, to_remove) = (format!("{}_headers_to_add", from.side), format!("{}_headers_to_remove", from.side));
    // Envoy takes at most 1000 of them.
    if from.add.len() > 1_000 {
        return Err(Fault::new(to_add, "value must contain no more than 1000 item(s)"));
    }
    let add = from
        .add
        .iter()
        .enumerate()
        .map(|(index, option)| one(context, option).at(&to_add, index))
        .collect::<Compiled<_>>()?;
    let remove = from
        .remove
        .iter()
        .enumerate()
        .map(|(index, name)| modifiable(name, "").at(&to_remove, index))
        .collect::<Compiled<_>>()?;
    Ok(HeaderMutations { add, remove })
}

/// Additions alone, of a filter: the content of `field`.
pub(crate) fn additions(context: &Context<'_>, from: &[HeaderValueOption], field: &str) -> Compiled<HeaderMutations> {
    if from.len() > 10 {
        return Err(Fault::new(field, "value must contain no more than 10 item(s)"));
    }
    let add = from
        .iter()
        .enumerate()
        .map(|(index, option)| one(context, option).at(field, index))
        .collect::<Compiled<_>>()?;
    Ok(HeaderMutations { add, remove: Vec::new() })
}

/// One addition.
pub(super) fn one(context: &Context<'_>, option: &HeaderValueOption) -> Compiled<HeaderAdd> {
    let header = required(&option.header, "header")?;
    let action = enumeration::<HeaderAppendAction>(option.append_action, "append_action")?;
    let append = match (&option.append, action) {
        (Some(_), action) if action != HeaderAppendAction::AppendIfExistsOrAdd => {
            return Err(Fault::new("append", "both append and append_action are set; give append_action only"));
        }
        (Some(append), _) if !append.value => AppendAction::OverwriteIfExistsOrAdd,
        (_, HeaderAppendAction::AppendIfExistsOrAdd) => AppendAction::AppendIfExistsOrAdd,
        (_, HeaderAppendAction::AddIfAbsent) => AppendAction::AddIfAbsent,
        (_, HeaderAppendAction::OverwriteIfExistsOrAdd) => AppendAction::OverwriteIfExistsOrAdd,
        (_, HeaderAppendAction::OverwriteIfExists) => AppendAction::OverwriteIfExists,
    };
    let name = modifiable(&header.key, "key").within("header")?;
    let value = match (header.value.as_str(), header.raw_value.as_slice()) {
        (text, []) => format::text(context, text).within("value").within("header")?,
        ("", raw) => {
            let text = std::str::from_utf8(raw).map_err(|_| Fault::new("header.raw_value", "must be UTF-8"))?;
            format::text(context, text).within("raw_value").within("header")?
        }
        _ => return Err(Fault::new("header", "only one of value and raw_value may be set")),
    };
    if let Some(text) = value.constant()
        && HeaderValue::from_str(text).is_err()
    {
        return Err(Fault::new("header.value", "is not a valid header value"));
    }
    Ok(HeaderAdd { name, value, append, keep_empty: option.keep_empty_value })
}

/// A header that routes may change: neither a pseudo-header nor `host`.
pub(super) fn modifiable(name: &str, field: &str) -> Compiled<HeaderName> {
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err(Fault::new(
            field,
            format!(":-prefixed or host headers may not be modified, but {name:?} is named"),
        ));
    }
    header_name(name, field)
}
