//! A control plane for scenes: it sends what the node's metadata holds, step by step, each when the one before is answered.

use anyhow::{Context as _, Result};
use prost::Message as _;
use serde_json::Value;
use shika_proto::{
    google::protobuf::Any,
    json::{self, Names, Options},
};
use tokio::sync::{mpsc, watch};

use crate::common::control_plane::{Asked, Session};

/// Serves the first stream; `done` becomes true when everything was sent and answered.
pub async fn serve(mut sessions: mpsc::Receiver<Session>, done: watch::Sender<bool>) -> Result<()> {
    let mut session = sessions.recv().await.context("no stream came")?;
    let first = session.request(&url("envoy.config.cluster.v3.Cluster")).await;
    let mut asked: Vec<String> = vec!["envoy.config.cluster.v3.Cluster".to_owned()];
    for (version, step) in steps(&first)?.iter().enumerate() {
        let kind = step["type"].as_str().context("a step has a type")?;
        if !asked.iter().any(|known| known == kind) {
            session.request(&url(kind)).await;
            asked.push(kind.to_owned());
        }
        let mut resources = Vec::new();
        for resource in step["resources"].as_array().context("a step has resources")? {
            let name =
                resource["name"].as_str().or(resource["cluster_name"].as_str()).context("a resource has a name")?;
            let value = json::json_value_to_wire(kind, resource, Options::default())
                .map_err(|errors| anyhow::anyhow!("{name}: {errors:?}"))?;
            resources.push((name, Any { type_url: url(kind), value }));
        }
        session.send(&url(kind), &version.to_string(), resources).await;
    }
    done.send_replace(true);
    // The stream lives as long as the test.
    std::future::pending().await
}

fn url(kind: &str) -> String {
    format!("type.googleapis.com/{kind}")
}

fn steps(request: &Asked) -> Result<Vec<Value>> {
    let metadata = request.node.as_ref().and_then(|node| node.metadata.as_ref()).context("the node has metadata")?;
    let value = json::wire_to_json_value("google.protobuf.Struct", &metadata.encode_to_vec(), Names::Proto)?;
    Ok(value["steps"].as_array().context("the metadata has steps")?.clone())
}
