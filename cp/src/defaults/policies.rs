//! The policies that a new mesh starts with (Kuma `pkg/defaults/mesh`, 2.14).

use serde_json::{Value, json};

use crate::resource::{Resource, parse};

/// An entry of `skipCreatingInitialPolicies` that stands for all of them.
const ALL: &str = "*";

/// The policies of a new mesh, without those whose type is in `skipped`.
///
/// # Errors
/// What is wrong with a policy, in words; there is nothing wrong with them.
pub(crate) fn policies(mesh: &str, skipped: &[String]) -> Result<Vec<Resource>, String> {
    if skipped.iter().any(|skipped| skipped == ALL) {
        return Ok(Vec::new());
    }
    let wanted = documents(mesh).into_iter().filter(|document| !skipped.iter().any(|kind| document["type"] == **kind));
    wanted.map(|document| parse(document).map(|parsed| parsed.resource).map_err(|e| e.to_string())).collect()
}

fn documents(mesh: &str) -> [Value; 4] {
    let everything = json!({"kind": "Mesh"});
    let proxies = |kind: &str| json!({"kind": "Mesh", "proxyTypes": [kind]});
    let retries = json!({
        "numRetries": 5,
        "perTryTimeout": "16s",
        "backOff": {"baseInterval": "25ms", "maxInterval": "250ms"},
    });
    [
        json!({
            "type": "MeshTimeout", "mesh": mesh, "name": format!("mesh-timeout-all-{mesh}"),
            "spec": {
                "targetRef": proxies("Sidecar"),
                "to": [{"targetRef": everything, "default": {
                    "connectionTimeout": "5s",
                    "idleTimeout": "1h",
                    "http": {"requestTimeout": "15s", "streamIdleTimeout": "30m"},
                }}],
                // Longer than those of the caller, so that it is the caller who gives up.
                "from": [{"targetRef": everything, "default": {
                    "connectionTimeout": "10s",
                    "idleTimeout": "2h",
                    "http": {"requestTimeout": "0s", "streamIdleTimeout": "1h", "maxStreamDuration": "0s"},
                }}],
            },
        }),
        json!({
            "type": "MeshTimeout", "mesh": mesh, "name": format!("mesh-gateways-timeout-all-{mesh}"),
            "spec": {
                "targetRef": proxies("Gateway"),
                "to": [{"targetRef": everything, "default": {
                    "idleTimeout": "1h",
                    "http": {"streamIdleTimeout": "5s"},
                }}],
                "from": [{"targetRef": everything, "default": {
                    "idleTimeout": "5m",
                    "http": {"streamIdleTimeout": "5s", "requestHeadersTimeout": "500ms"},
                }}],
            },
        }),
        json!({
            "type": "MeshCircuitBreaker", "mesh": mesh, "name": format!("mesh-circuit-breaker-all-{mesh}"),
            "spec": {
                "targetRef": everything,
                "to": [{"targetRef": everything, "default": {"connectionLimits": {
                    "maxConnections": 1024,
                    "maxPendingRequests": 1024,
                    "maxRequests": 1024,
                    "maxRetries": 3,
                }}}],
            },
        }),
        json!({
            "type": "MeshRetry", "mesh": mesh, "name": format!("mesh-retry-all-{mesh}"),
            "spec": {
                "targetRef": everything,
                "to": [{"targetRef": everything, "default": {
                    "tcp": {"maxConnectAttempt": 5},
                    "http": retries,
                    "grpc": retries,
                }}],
            },
        }),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::resource::validate;

    /// Trap 32.
    #[test]
    fn a_new_mesh_has_four_policies_that_are_valid_and_take_effect() {
        let policies = policies("m", &[]).unwrap();
        let names: Vec<_> = policies.iter().map(|policy| policy.meta.name.as_str()).collect();
        let expected =
            ["mesh-timeout-all-m", "mesh-gateways-timeout-all-m", "mesh-circuit-breaker-all-m", "mesh-retry-all-m"];
        assert_eq!(names, expected);
        for policy in &policies {
            assert_eq!(policy.meta.mesh, "m");
            assert_eq!(validate::resource(policy), Vec::new(), "{}", policy.meta.name);
            assert_eq!(validate::without_effect(policy), Vec::<String>::new(), "{}", policy.meta.name);
        }
    }

    #[test]
    fn policies_are_skipped_by_type_or_all_at_once() {
        let skip = |kinds: &[&str]| {
            let kinds: Vec<String> = kinds.iter().map(ToString::to_string).collect();
            policies("m", &kinds).unwrap().len()
        };
        assert_eq!((skip(&["MeshTimeout"]), skip(&["MeshRetry", "MeshTimeout"]), skip(&["*"])), (2, 1, 0));
    }

    #[test]
    fn their_documents_have_no_field_that_is_not_known() {
        for document in documents("m") {
            assert_eq!(parse(document).unwrap().warnings, Vec::<String>::new());
        }
    }
}
