//! Route tables that stand in listeners: `static_route_configs` of `/config_dump`.

use serde_json::{Map, Value};
use shika_proto::type_url;

use crate::state::State;

/// Keys of the inline tables, by listener and place in it, whose names are wanted.
pub fn keys(state: &State, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut keys = Vec::new();
    let compiler = state.compiler.borrow();
    let Some(listeners) = compiler.store().of(type_url::LISTENER) else { return keys };
    for (name, stored) in listeners.fixed.iter().chain(&listeners.dynamic) {
        let listener = super::config_dump::any(&stored.resource);
        for (at, table) in tables(&listener).into_iter().enumerate() {
            if wanted(table.get("name").and_then(Value::as_str).unwrap_or_default()) {
                keys.push(format!("{at}/{name}"));
            }
        }
    }
    keys
}

/// The table of a key from [`keys`] as an element of the dump; `None` if it is gone by now.
pub fn entry(state: &State, key: &str) -> Option<Map<String, Value>> {
    let (at, name) = key.split_once('/')?;
    let compiler = state.compiler.borrow();
    let listeners = compiler.store().of(type_url::LISTENER)?;
    let stored = listeners.fixed.get(name).or_else(|| listeners.dynamic.get(name))?;
    let listener = super::config_dump::any(&stored.resource);
    let table = tables(&listener).into_iter().nth(at.parse().ok()?)?.as_object()?;
    let mut typed = Map::new();
    typed.insert("@type".into(), type_url::ROUTE.into());
    typed.extend(table.clone());
    let mut entry = Map::new();
    entry.insert("route_config".into(), typed.into());
    entry.insert("last_updated".into(), super::config_dump::time(stored.last_updated).into());
    Some(entry)
}

fn tables(listener: &Value) -> Vec<&Value> {
    let chains = listener.get("filter_chains").and_then(Value::as_array).into_iter().flatten();
    chains
        .chain(listener.get("default_filter_chain"))
        .filter_map(|chain| chain.get("filters")?.as_array())
        .flatten()
        .filter_map(|filter| filter.get("typed_config")?.get("route_config"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_of_all_chains_are_found_in_order() {
        let chain =
            |name: &str| json!({"filters": [{"typed_config": {}}, {"typed_config": {"route_config": {"name": name}}}]});
        let listener =
            json!({"filter_chains": [chain("a"), {"filters": []}, chain("b")], "default_filter_chain": chain("c")});
        let names: Vec<_> = tables(&listener).into_iter().filter_map(|table| table["name"].as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
