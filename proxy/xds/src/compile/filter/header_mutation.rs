//! `filters.http.header_mutation.v3.HeaderMutation`.

use shika_data::model::{
    header::{AppendAction, HeaderMutations},
    http_filter::{MessageMutations, QueryMutation},
};
use shika_proto::{
    envoy::{
        config::{
            common::mutation_rules::v3::{HeaderMutation, header_mutation::Action},
            core::v3::{KeyValueMutation, key_value_append::KeyValueAppendAction},
        },
        extensions::filters::http::header_mutation::v3::Mutations,
    },
    google::protobuf::value::Kind,
};

use super::super::{Compiled, Context, Fault, Within, enumeration, format, header, non_empty, required};

/// A filter's or a route's.
pub(crate) fn mutations(context: &Context<'_>, from: &Option<Mutations>) -> Compiled<MessageMutations> {
    let Some(from) = from else { return Ok(MessageMutations::default()) };
    (|| {
        Ok(MessageMutations {
            request: steps(context, &from.request_mutations, "request_mutations")?,
            query: from
                .query_parameter_mutations
                .iter()
                .enumerate()
                .map(|(index, one)| query(context, one).at("query_parameter_mutations", index))
                .collect::<Compiled<_>>()?,
            response: steps(context, &from.response_mutations, "response_mutations")?,
        })
    })()
    .within("mutations")
}

fn steps(context: &Context<'_>, from: &[HeaderMutation], field: &str) -> Compiled<Vec<HeaderMutations>> {
    let step = |one: &HeaderMutation| match &one.action {
        Some(Action::Append(option)) => {
            Ok(HeaderMutations { add: vec![header::one(context, option).within("append")?], remove: Vec::new() })
        }
        Some(Action::Remove(name)) => {
            Ok(HeaderMutations { add: Vec::new(), remove: vec![header::modifiable(name, "remove")?] })
        }
        Some(Action::RemoveOnMatch(_)) => Err(Fault::new("remove_on_match", "is not supported; use remove")),
        None => Err(Fault::new("action", "value is required")),
    };
    from.iter().enumerate().map(|(index, one)| step(one).at(field, index)).collect()
}

fn query(context: &Context<'_>, from: &KeyValueMutation) -> Compiled<QueryMutation> {
    let append = match (&from.append, from.remove.as_str()) {
        (None, "") => return Err(Fault::new("append", "one of append and remove is required")),
        (None, name) => return Ok(QueryMutation::Remove(name.into())),
        (Some(append), "") => append,
        (Some(_), _) => return Err(Fault::new("remove", "only one of append and remove may be set")),
    };
    (|| {
        let record = required(&append.record, "record")?;
        let text = match record.value.as_ref().and_then(|value| value.kind.as_ref()) {
            Some(Kind::StringValue(text)) => text,
            _ => return Err(Fault::new("record.value", "only a string is allowed")),
        };
        let append = match enumeration::<KeyValueAppendAction>(append.action, "action")? {
            KeyValueAppendAction::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
            KeyValueAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
            KeyValueAppendAction::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
            KeyValueAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
        };
        let mut value = format::text(context, text).within("value").within("record")?;
        value.omit_empty = true;
        Ok(QueryMutation::Put { name: non_empty(&record.key, "key").within("record")?.into(), value, append })
    })()
    .within("append")
}
