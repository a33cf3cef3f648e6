//! What Shika's control plane says, in a filter chain's metadata, of the permissions behind the chain's check.

use shika_data::denial::{Denials, Rule};
use shika_proto::{
    envoy::config::core::v3::Metadata,
    google::protobuf::{Value, value::Kind},
};

/// Key of the filter chain metadata in which Shika's control plane explains a permission check.
const POLICY_METADATA: &str = "io.shika.policy";

/// `None` without an explanation, or if somebody else wrote under its key.
pub(crate) fn denials(metadata: &Metadata) -> Option<Denials> {
    let from = metadata.filter_metadata.get(POLICY_METADATA)?;
    fn text(value: &Value) -> Option<&str> {
        match value.kind.as_ref()? {
            Kind::StringValue(text) => Some(text),
            _ => None,
        }
    }
    fn list(value: &Value) -> Option<&[Value]> {
        match value.kind.as_ref()? {
            Kind::ListValue(list) => Some(&list.values),
            _ => None,
        }
    }
    let rule = |value: &Value| {
        let Kind::StructValue(rule) = value.kind.as_ref()? else { return None };
        let uris = list(rule.fields.get("uris")?)?.iter().map(|uri| text(uri).map(Box::from));
        Some(Rule { text: text(rule.fields.get("rule")?)?.into(), uris: uris.collect::<Option<_>>()? })
    };
    let rules = list(from.fields.get("rules")?)?.iter().map(rule).collect::<Option<_>>()?;
    Some(Denials::new(rules, text(from.fields.get("otherwise")?)?.into()))
}
