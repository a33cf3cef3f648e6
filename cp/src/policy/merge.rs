//! How settings of several policies become one (Kuma `pkg/plugins/policies/core/rules/merge`).
//!
//! As a merge patch (RFC 7396) of their JSON: objects merge field by field, everything else is replaced, lists too. Lists whose name begins
//! with `append` add up. A field that is absent changes nothing.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Merges settings, a later one outranking an earlier one. `None` if there are none.
pub fn merge<'a, C>(confs: impl IntoIterator<Item = &'a C>) -> Option<C>
where
    C: Clone + Serialize + DeserializeOwned + 'a,
{
    let mut confs = confs.into_iter();
    let first = confs.next()?;
    // The usual case: nothing to merge.
    let Some(second) = confs.next() else { return Some(first.clone()) };
    let mut merged = to_json(first);
    let mut last = second;
    patch(&mut merged, to_json(second));
    for conf in confs {
        patch(&mut merged, to_json(conf));
        last = conf;
    }
    // What is made of fields of C is a C: every field has the type that it had, and those that are required are in each of them.
    Some(serde_json::from_value(merged).unwrap_or_else(|error| {
        tracing::error!(%error, "settings of several policies do not merge; the one of the highest rank applies alone");
        last.clone()
    }))
}

fn to_json<C: Serialize>(conf: &C) -> Value {
    // These types hold text, numbers, lists and maps with text keys: JSON has a form for each of them.
    serde_json::to_value(conf).unwrap_or_default()
}

fn patch(target: &mut Value, change: Value) {
    match (target, change) {
        (Value::Object(target), Value::Object(change)) => patch_fields(target, change),
        (target, change) => *target = change,
    }
}

fn patch_fields(target: &mut Map<String, Value>, change: Map<String, Value>) {
    for (name, value) in change {
        match (target.get_mut(&name), value) {
            (_, Value::Null) => {
                target.remove(&name);
            }
            (Some(Value::Array(list)), Value::Array(more)) if name.starts_with("append") => list.extend(more),
            (Some(found), value) => patch(found, value),
            (None, value) => {
                target.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::resource::{Metric, Retry, Timeout};

    fn merged<C: Clone + Serialize + DeserializeOwned>(confs: &[Value]) -> Value {
        let confs: Vec<C> = confs.iter().map(|conf| serde_json::from_value(conf.clone()).unwrap()).collect();
        serde_json::to_value(merge(&confs).unwrap()).unwrap()
    }

    #[test]
    fn objects_merge_and_the_rest_is_replaced() {
        let base = json!({"connectionTimeout": "1s", "http": {"requestTimeout": "2s", "streamIdleTimeout": "3s"}});
        let over = json!({"idleTimeout": "4s", "http": {"requestTimeout": "5s"}});
        assert_eq!(
            merged::<Timeout>(&[base, over]),
            json!({"connectionTimeout": "1s", "idleTimeout": "4s", "http": {"requestTimeout": "5s", "streamIdleTimeout": "3s"}})
        );
        let retries = [json!({"http": {"retryOn": ["5xx", "Reset"]}}), json!({"http": {"retryOn": ["503"]}})];
        assert_eq!(merged::<Retry>(&retries), json!({"http": {"retryOn": ["503"]}}));
        assert_eq!(merge(&Vec::<Timeout>::new()), None);
    }

    /// Trap 13.
    #[test]
    fn lists_named_append_add_up() {
        let profile = |name: &str| json!({"sidecar": {"profiles": {"appendProfiles": [{"name": name}], "include": [{"type": "Exact", "match": name}]}}});
        assert_eq!(
            merged::<Metric>(&[profile("Basic"), profile("None"), json!({"sidecar": {"includeUnused": true}})]),
            json!({"sidecar": {
                "includeUnused": true,
                "profiles": {
                    "appendProfiles": [{"name": "Basic"}, {"name": "None"}],
                    "include": [{"type": "Exact", "match": "None"}],
                },
            }})
        );
    }
}
