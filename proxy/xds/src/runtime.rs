//! Runtime values: the layers of `layered_runtime`, those of RTDS included, and what is done with the values that are read.
//!
//! Two are: `envoy.resource_limits.listener.<name>.connection_limit`, which Kuma sets for the listeners of its gateways, and
//! `overload.global_downstream_max_connections`, which is read at the start. A static layer may hold others (they are seen in `/runtime`); one that a
//! control plane sends is refused by its key, because it was sent to have an effect.
//!
//! Source: Envoy documentation, "Runtime", "Limits on connections of a listener".

use std::{collections::BTreeMap, sync::Arc};

use foldhash::HashMap;
use serde_json::{Map, Value};
use shika_data::model::listener::ConnectionLimit;

use crate::{
    bootstrap::Source,
    compile::{Compiled, Fault},
};

/// The limit on the connections of all listeners.
const GLOBAL_LIMIT: &str = "overload.global_downstream_max_connections";

/// One layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Its values, nested or by keys with dots.
    pub values: Value,
    /// Where its values come from, and under which name, if they are not the bootstrap's.
    pub(crate) rtds: Option<(Arc<str>, Source)>,
}

/// All layers; of a key that several have, the last one's value counts.
#[derive(Debug, Default)]
pub(crate) struct Runtime {
    pub layers: Vec<Layer>,
    limits: HashMap<Arc<str>, Arc<ConnectionLimit>>,
}

impl Runtime {
    /// The limit of a listener, which follows the value of its key.
    pub fn limit(&mut self, listener: &str) -> Arc<ConnectionLimit> {
        if let Some(known) = self.limits.get(listener) {
            return known.clone();
        }
        let limit = Arc::new(ConnectionLimit::default());
        limit.set(limit_of(&self.values(), listener));
        self.limits.insert(listener.into(), limit.clone());
        limit
    }

    /// Keeps only the limits of these listeners.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.limits.retain(|name, _| keep(name));
    }

    /// Puts the values in force.
    pub fn apply(&self) {
        let values = self.values();
        for (listener, limit) in &self.limits {
            limit.set(limit_of(&values, listener));
        }
    }

    /// The limit on the connections of all listeners, where a layer sets it.
    pub fn global_limit(&self) -> Option<u64> {
        self.values().get(GLOBAL_LIMIT).and_then(number)
    }

    /// Takes the values of an RTDS layer.
    pub fn update(&mut self, name: &str, values: Map<String, Value>) -> Compiled<()> {
        let values = Value::Object(values);
        let mut unknown = None;
        flatten("", &values, &mut |key, value| {
            let reason = if key == GLOBAL_LIMIT {
                // Connections are counted from the first one on, or not at all.
                "is read at the start only: give it in a static layer, or give the overload manager a limit".to_owned()
            } else if limited_listener(key).is_none() {
                "nothing reads a runtime value of this name".to_owned()
            } else if number(value).is_none() {
                format!("{value} is no number")
            } else {
                return;
            };
            unknown.get_or_insert_with(|| Fault::new(format!("layer[{key:?}]"), reason));
        });
        if let Some(fault) = unknown {
            return Err(fault);
        }
        for layer in &mut self.layers {
            if layer.rtds.as_ref().is_some_and(|(resource, _)| &**resource == name) {
                layer.values = values.clone();
            }
        }
        self.apply();
        Ok(())
    }

    fn values(&self) -> BTreeMap<String, Value> {
        let mut values = BTreeMap::new();
        for layer in &self.layers {
            flatten("", &layer.values, &mut |key, value| {
                values.insert(key.to_owned(), value.clone());
            });
        }
        values
    }
}

/// The listener whose limit a key is.
fn limited_listener(key: &str) -> Option<&str> {
    key.strip_prefix("envoy.resource_limits.listener.")?.strip_suffix(".connection_limit")
}

fn limit_of(values: &BTreeMap<String, Value>, listener: &str) -> Option<u64> {
    values.get(&format!("envoy.resource_limits.listener.{listener}.connection_limit")).and_then(number)
}

/// A number, or a text that is one: runtime values are texts in the end.
fn number(value: &Value) -> Option<u64> {
    match value {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked")]
        Value::Number(number) => {
            number.as_u64().or_else(|| number.as_f64().filter(|n| (0.0..=1e15).contains(n)).map(|n| n as u64))
        }
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// Nested structures are keys with dots.
pub fn flatten(prefix: &str, value: &Value, each: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, field, each);
            }
        }
        other => each(prefix, other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn layer(name: &str, rtds: bool, values: Value) -> Layer {
        let source = Source::Ads { initial_fetch_timeout: None };
        Layer { name: name.into(), values, rtds: rtds.then(|| (name.into(), source)) }
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn limits_follow_the_last_layer_that_has_them() {
        let mut runtime = Runtime {
            layers: vec![
                layer(
                    "static",
                    false,
                    json!({ "envoy": { "resource_limits": { "listener": { "a": { "connection_limit": 7 } } } } }),
                ),
                layer("rtds", true, json!({})),
            ],
            ..Runtime::default()
        };
        let (a, b) = (runtime.limit("a"), runtime.limit("b"));
        assert_eq!((a.limit(), b.limit()), (Some(7), None));
        let values = json!({ "envoy.resource_limits.listener.a.connection_limit": "9", "envoy.resource_limits.listener.b.connection_limit": 3.0 });
        assert!(runtime.update("rtds", object(values)).is_ok());
        assert_eq!((a.limit(), b.limit()), (Some(9), Some(3)));
        assert!(runtime.update("rtds", Map::new()).is_ok());
        assert_eq!((a.limit(), b.limit()), (Some(7), None));
    }

    #[test]
    fn what_nothing_reads_is_refused_with_its_key() {
        let mut runtime = Runtime { layers: vec![layer("rtds", true, json!({}))], ..Runtime::default() };
        let refused = |runtime: &mut Runtime, values: Value| {
            runtime.update("rtds", object(values)).err().map(|fault| format!("{}: {}", fault.path, fault.reason))
        };
        assert_eq!(
            refused(&mut runtime, json!({ "upstream": { "use_http2": true } })).as_deref(),
            Some("layer[\"upstream.use_http2\"]: nothing reads a runtime value of this name")
        );
        assert_eq!(
            refused(&mut runtime, json!({ "envoy.resource_limits.listener.a.connection_limit": "many" })).as_deref(),
            Some("layer[\"envoy.resource_limits.listener.a.connection_limit\"]: \"many\" is no number")
        );
        let global = refused(&mut runtime, json!({ GLOBAL_LIMIT: 5 })).unwrap_or_default();
        assert!(global.contains("is read at the start only"), "{global}");
        let fixed = Runtime { layers: vec![layer("static", false, json!({ GLOBAL_LIMIT: 5 }))], ..Runtime::default() };
        assert_eq!(fixed.global_limit(), Some(5));
    }
}
