//! `/server_info`, `/memory`, `/runtime`, `/init_dump`, `/unsupported`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use shika_proto::json::Names;
use shika_xds::runtime::flatten;

use crate::{server_stats::Memory, state::State, version};

/// What `/hot_restart_version` and `--hot-restart-version` print. Hot restart is not supported, so this fits no other process.
pub const HOT_RESTART_VERSION: &str = "disabled";

/// `envoy.admin.v3.ServerInfo`
pub fn server(state: &State) -> Value {
    let uptime = format!("{}s", state.start.elapsed().as_secs());
    let node = shika_proto::json::to_json_value(&state.plan.node, Names::Proto).unwrap_or_default();
    json!({
        "version": version::build(),
        "state": state.server_state().name(),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": HOT_RESTART_VERSION,
        "command_line_options": state.options.json(),
        "node": node,
    })
}

/// `envoy.admin.v3.Memory`. The allocator keeps no account that could be read without stopping it: what is allocated is told by the pages in use.
pub fn memory() -> Value {
    let memory = Memory::read();
    json!({
        "allocated": memory.anonymous.to_string(),
        "heap_size": memory.anonymous.to_string(),
        "pageheap_unmapped": "0",
        "pageheap_free": "0",
        "total_thread_cache": "0",
        "total_physical_bytes": memory.resident.to_string(),
    })
}

/// Layers in order and, per key, the value of each layer and the last one that is set.
pub fn runtime(state: &State) -> Value {
    let compiler = state.compiler.borrow();
    let layers: Vec<&str> = compiler.runtime_layers().iter().map(|layer| layer.name.as_str()).collect();
    let mut entries: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (index, layer) in compiler.runtime_layers().iter().enumerate() {
        flatten("", &layer.values, &mut |key, value| {
            let row = entries.entry(key.to_owned()).or_insert_with(|| vec![String::new(); layers.len()]);
            if let Some(cell) = row.get_mut(index) {
                *cell = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            }
        });
    }
    let entries: Map<String, Value> = entries
        .into_iter()
        .map(|(key, values)| {
            let last = values.iter().rev().find(|value| !value.is_empty()).cloned().unwrap_or_default();
            (key, json!({"layer_values": values, "final_value": last}))
        })
        .collect();
    json!({"layers": layers, "entries": entries})
}

/// Harmless fields that were met, and why passing them over is harmless.
pub fn unsupported(state: &State) -> Value {
    let compiler = state.compiler.borrow();
    let harmless = compiler.harmless();
    let fields: Vec<_> = harmless
        .iter()
        .map(|(field, seen)| json!({"field": field, "count": seen.count, "example": seen.example, "why": seen.why}))
        .collect();
    json!({"ignored_fields": fields, "unlisted": harmless.unlisted()})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_runtime_keys_are_dotted() {
        let mut found = Vec::new();
        flatten(
            "",
            &json!({"re2": {"max_program_size": {"warn_level": 1000}}, "a.b": "x", "c": true}),
            &mut |key, value| found.push(format!("{key}={value}")),
        );
        assert_eq!(found, ["re2.max_program_size.warn_level=1000", "a.b=\"x\"", "c=true"]);
    }
}
