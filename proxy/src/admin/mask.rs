//! Field masks of `/config_dump`.
//!
//! Source: `google.protobuf.FieldMask`: comma-separated paths of field names.

use serde_json::Value;

/// Which fields stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(Vec<Vec<String>>);

impl Mask {
    /// From its text.
    pub fn parse(text: &str) -> Mask {
        Mask(
            text.split(',')
                .filter(|path| !path.is_empty())
                .map(|path| path.split('.').map(str::to_owned).collect())
                .collect(),
        )
    }

    /// Whether anything of this field stays.
    pub fn has(&self, field: &str) -> bool {
        self.0.iter().any(|path| path.first().is_some_and(|first| first == field))
    }

    /// Removes all other fields; `@type` stays.
    pub fn apply(&self, value: &mut Value) {
        let paths: Vec<&[String]> = self.0.iter().map(Vec::as_slice).collect();
        apply(value, &paths);
    }
}

fn apply(value: &mut Value, paths: &[&[String]]) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| name == "@type" || paths.iter().any(|path| path.first() == Some(name)));
            for (name, field) in fields.iter_mut() {
                let inner: Vec<&[String]> = paths
                    .iter()
                    .filter_map(|path| path.split_first())
                    .filter(|(first, _)| *first == name)
                    .map(|(_, rest)| rest)
                    .collect();
                // A path that ends here keeps all below.
                if name != "@type" && inner.iter().all(|rest| !rest.is_empty()) {
                    apply(field, &inner);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| apply(item, paths)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_paths_and_types() {
        let mut value = json!({"@type": "t", "cluster": {"@type": "c", "name": "a", "x": 1}, "last_updated": "now", "list": [{"p": 1, "q": 2}]});
        Mask::parse("cluster.name,list.q").apply(&mut value);
        assert_eq!(value, json!({"@type": "t", "cluster": {"@type": "c", "name": "a"}, "list": [{"q": 2}]}));
        let mut whole = json!({"a": {"b": 1}, "c": 2});
        Mask::parse("a").apply(&mut whole);
        assert_eq!(whole, json!({"a": {"b": 1}}));
    }
}
