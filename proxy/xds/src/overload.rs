//! `config.overload.v3.OverloadManager`, as far as Kuma gives it to gateways: a limit on all downstream connections, and what is done when memory
//! runs short.
//!
//! Source: Envoy documentation, "Overload manager".

use std::time::Duration;

use prost::{Message, Name};
use shika_proto::{
    any,
    envoy::{
        config::overload::v3::{OverloadAction, OverloadManager, Trigger, resource_monitor, trigger},
        extensions::resource_monitors::{
            downstream_connections::v3::DownstreamConnectionsConfig, fixed_heap::v3::FixedHeapConfig,
        },
    },
    google::protobuf::Any,
};

use crate::compile::{Compiled, Fault, Within, non_empty, positive, required, unpack};

const CONNECTIONS: &str = "envoy.resource_monitors.global_downstream_max_connections";

/// What is watched, and what follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Overload {
    /// How often memory is looked at; Envoy's default 1 s.
    pub refresh_interval: Duration,
    /// Most downstream connections of the process.
    pub most_connections: Option<u64>,
    /// Memory.
    pub heap: Option<Heap>,
}

impl Default for Overload {
    /// Nothing is watched.
    fn default() -> Self {
        Overload { refresh_interval: Duration::from_secs(1), most_connections: None, heap: None }
    }
}

/// Envoy `fixed_heap`. Envoy knows how much its allocator has; here it is the memory of the process that no file stands behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Heap {
    /// Name of the monitor, for statistics.
    pub monitor: String,
    /// `max_heap_size_bytes`
    pub most: u64,
    /// Actions.
    pub actions: Vec<Action>,
}

/// What is done above a share of the memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// What.
    pub kind: ActionKind,
    /// From which share of `most` on.
    pub threshold: f64,
}

/// The actions that are supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// `envoy.overload_actions.shrink_heap`: the allocator gives memory back as it becomes free, so there is nothing to do but to say so.
    ShrinkHeap,
    /// `envoy.overload_actions.stop_accepting_requests`
    StopRequests,
}

impl ActionKind {
    /// Envoy's name.
    pub fn name(self) -> &'static str {
        match self {
            ActionKind::ShrinkHeap => "envoy.overload_actions.shrink_heap",
            ActionKind::StopRequests => "envoy.overload_actions.stop_accepting_requests",
        }
    }
}

/// Reads the message.
pub(crate) fn overload(from: &OverloadManager) -> Compiled<Overload> {
    let mut overload = Overload::default();
    if let Some(interval) = positive(&from.refresh_interval, "refresh_interval")? {
        overload.refresh_interval = interval;
    }
    for (index, monitor) in from.resource_monitors.iter().enumerate() {
        (|| {
            let name = non_empty(&monitor.name, "name")?;
            let Some(resource_monitor::ConfigType::TypedConfig(content)) = &monitor.config_type else {
                return Err(Fault::new("typed_config", "value is required"));
            };
            if let Some(config) = content_of::<DownstreamConnectionsConfig>(content)? {
                let most = u64::try_from(config.max_active_downstream_connections).ok().filter(|most| *most > 0);
                let path = "typed_config.max_active_downstream_connections";
                let most = most.ok_or_else(|| Fault::new(path, "value must be greater than 0"))?;
                overload.most_connections = Some(most);
            } else if let Some(config) = content_of::<FixedHeapConfig>(content)? {
                if config.max_heap_size_bytes == 0 {
                    return Err(Fault::new("typed_config.max_heap_size_bytes", "value must be greater than 0"));
                }
                overload.heap =
                    Some(Heap { monitor: name.to_owned(), most: config.max_heap_size_bytes, actions: Vec::new() });
            } else {
                return Err(Fault::new(
                    "typed_config",
                    format!("resource monitor {} is not supported", content.type_url),
                ));
            }
            Ok(())
        })()
        .at("resource_monitors", index)?;
    }
    for (index, from) in from.actions.iter().enumerate() {
        action(from, &mut overload).at("actions", index)?;
    }
    Ok(overload)
}

fn content_of<M: Message + Name + Default>(content: &Any) -> Compiled<Option<M>> {
    if any::is::<M>(content) { unpack(content).map(Some).within("typed_config") } else { Ok(None) }
}

fn action(from: &OverloadAction, overload: &mut Overload) -> Compiled<()> {
    let kind = [ActionKind::ShrinkHeap, ActionKind::StopRequests]
        .into_iter()
        .find(|kind| kind.name() == from.name)
        .ok_or_else(|| Fault::new("name", format!("overload action {:?} is not supported", from.name)))?;
    if from.triggers.is_empty() {
        return Err(Fault::new("triggers", "value must contain at least 1 item(s)"));
    }
    for (index, trigger) in from.triggers.iter().enumerate() {
        (|| {
            let threshold = threshold(trigger)?;
            match &mut overload.heap {
                Some(heap) if heap.monitor == trigger.name => heap.actions.push(Action { kind, threshold }),
                _ if trigger.name == CONNECTIONS => {
                    return Err(Fault::new(
                        "name",
                        "the limit on connections turns connections away and triggers nothing else",
                    ));
                }
                _ => {
                    return Err(Fault::new(
                        "name",
                        format!("Unknown trigger resource {} for overload action {}", trigger.name, from.name),
                    ));
                }
            }
            Ok(())
        })()
        .at("triggers", index)?;
    }
    Ok(())
}

/// The share from which on an action is in full force.
fn threshold(from: &Trigger) -> Compiled<f64> {
    let (value, field) = match required(&from.trigger_oneof, "trigger_oneof")? {
        trigger::TriggerOneof::Threshold(threshold) => (threshold.value, "threshold.value"),
        trigger::TriggerOneof::Scaled(scaled) => (scaled.saturation_threshold, "scaled.saturation_threshold"),
    };
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(Fault::new(field, format!("value must be inside range [0, 1], not {value}")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn compiled(value: &Value) -> Result<Overload, String> {
        let message: OverloadManager = shika_proto::json::from_json_value(value).expect("a message");
        overload(&message).map_err(|fault| format!("{}: {}", fault.path, fault.reason))
    }

    fn heap(threshold: Value, action: &str) -> Value {
        json!({
            "refresh_interval": "0.25s",
            "resource_monitors": [
                { "name": "envoy.resource_monitors.fixed_heap", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": 1000
                } },
                { "name": CONNECTIONS, "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    "max_active_downstream_connections": 5
                } }
            ],
            "actions": [{ "name": action, "triggers": [{ "name": "envoy.resource_monitors.fixed_heap", "threshold": { "value": threshold } }] }]
        })
    }

    #[test]
    fn what_kuma_gives_to_gateways() {
        let overload =
            compiled(&heap(json!(0.98), "envoy.overload_actions.stop_accepting_requests")).expect("is taken");
        assert_eq!((overload.refresh_interval, overload.most_connections), (Duration::from_millis(250), Some(5)));
        let heap = overload.heap.expect("a heap");
        assert_eq!((heap.most, heap.actions), (1000, vec![Action { kind: ActionKind::StopRequests, threshold: 0.98 }]));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_path() {
        for (value, expected) in [
            (
                heap(json!(1.5), "envoy.overload_actions.shrink_heap"),
                "actions[0].triggers[0].threshold.value: value must be inside range [0, 1], not 1.5",
            ),
            (
                heap(json!(0.5), "envoy.overload_actions.reduce_timeouts"),
                "actions[0].name: overload action \"envoy.overload_actions.reduce_timeouts\" is not supported",
            ),
            (
                json!({ "actions": [{ "name": "envoy.overload_actions.shrink_heap", "triggers": [{ "name": "x", "threshold": { "value": 1 } }] }] }),
                "actions[0].triggers[0].name: Unknown trigger resource x for overload action envoy.overload_actions.shrink_heap",
            ),
            (
                json!({ "resource_monitors": [{ "name": "x", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.cgroup_memory.v3.CgroupMemoryConfig" } }] }),
                "resource_monitors[0].typed_config: resource monitor type.googleapis.com/envoy.extensions.resource_monitors.cgroup_memory.v3.CgroupMemoryConfig is not supported",
            ),
        ] {
            assert_eq!(compiled(&value).err().as_deref(), Some(expected));
        }
    }
}
