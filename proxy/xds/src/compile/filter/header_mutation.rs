//! `filters.http.header_mutation.v3.HeaderMutation`.

use shika_data::model::{header::HeaderMutations, http_filter::MessageMutations};
use shika_proto::envoy::{
    config::common::mutation_rules::v3::{HeaderMutation, header_mutation::Action},
    extensions::filters::http::header_mutation::v3::Mutations,
};

use super::super::{Compiled, Context, Fault, Within, header};

/// A filter's or a route's.
pub(crate) fn mutations(context: &Context<'_>, from: &Option<Mutations>) -> Compiled<MessageMutations> {
    let Some(from) = from else { return Ok(MessageMutations::default()) };
    (|| {
        Ok(MessageMutations {
            request: steps(context, &from.request_mutations, "request_mutations")?,
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
