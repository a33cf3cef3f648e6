//! `core.v3.Metadata`, as far as balancing and TLS look at it.

use std::sync::Arc;

use shika_data::model::labels::{Label, Labels};
use shika_proto::{
    envoy::config::core::v3::Metadata,
    google::protobuf::{Struct, Value, value::Kind},
};

/// The namespace that subset load balancing reads.
pub(crate) const LB: &str = "envoy.lb";
/// The namespace that `transport_socket_matches` read.
pub(crate) const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// One namespace of some metadata; `None` if it is empty or not there.
pub(crate) fn namespace(metadata: Option<&Metadata>, name: &str) -> Option<Arc<Labels>> {
    let labels = labels(metadata?.filter_metadata.get(name)?);
    (!labels.is_empty()).then(|| Arc::new(labels))
}

/// A struct.
pub(crate) fn labels(from: &Struct) -> Labels {
    Labels::new(from.fields.iter().map(|(key, value)| (key.as_str().into(), label(value))))
}

fn label(from: &Value) -> Label {
    match &from.kind {
        None | Some(Kind::NullValue(_)) => Label::Null,
        Some(Kind::StringValue(text)) => Label::Text(text.as_str().into()),
        Some(Kind::NumberValue(number)) => Label::Number(number.to_bits()),
        Some(Kind::BoolValue(value)) => Label::Bool(*value),
        Some(Kind::ListValue(list)) => Label::List(list.values.iter().map(label).collect()),
        Some(Kind::StructValue(nested)) => Label::Struct(labels(nested)),
    }
}
