//! What the tables of this crate share.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use prost::{Message, Name};
use shika_data::{model::access_log::LogSink, stats::Registry};
use shika_proto::{any, envoy::config::bootstrap::v3::Bootstrap, json};

use crate::compiler::{Applied, CompileOptions, Compiler, Resource, Update, UpdateKind};

/// A compiler without resources.
pub(crate) fn compiler() -> Compiler {
    Compiler::new(
        Registry::new(1),
        CompileOptions {
            hostname: "host-1".into(),
            concurrency: 1,
            reject_unknown_dynamic_fields: false,
            log_sink: Box::new(|path| LogSink::new(path, 16).0),
            span_sink: Box::new(|_| shika_data::model::tracing::SpanSink::new(1).0),
            log_collector: Box::new(|_| LogSink::new("", 1).0),
        },
    )
}

/// A message from YAML.
pub(crate) fn yaml<M: Message + Name + Default>(text: &str) -> M {
    json::from_yaml(text).unwrap_or_else(|errors| panic!("{errors:?}\n{text}"))
}

/// A delta update of resources of one type, all of version `version`.
pub(crate) fn delta<M: Message + Name + Default>(version: &str, texts: &[&str]) -> Update {
    Update {
        type_url: shika_proto::type_url::of::<M>(),
        resources: texts
            .iter()
            .map(|text| Resource {
                name: String::new(),
                version: version.into(),
                resource: any::pack(&yaml::<M>(text)),
            })
            .collect(),
        removed: Vec::new(),
        kind: UpdateKind::Delta,
        version: version.into(),
    }
}

/// Applies resources of one type.
pub(crate) fn apply<M: Message + Name + Default>(compiler: &mut Compiler, now: Instant, texts: &[&str]) -> Applied {
    compiler.apply(delta::<M>("1", texts), now)
}

/// Loads a bootstrap; refusals as text.
pub(crate) fn load(compiler: &mut Compiler, text: &str) -> Result<crate::bootstrap::BootstrapPlan, Vec<String>> {
    let bootstrap: Bootstrap = yaml(text);
    compiler
        .load_static(&(&bootstrap).into(), Instant::now())
        .map_err(|rejects| rejects.iter().map(|reject| format!("{}: {}", reject.field_path, reject.reason)).collect())
}

/// A bootstrap that takes everything from ADS.
pub(crate) const ADS: &str = "
node: { id: node, cluster: c }
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: [{ envoy_grpc: { cluster_name: ads } }]
  cds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s }
  lds_config: { ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s }
static_resources:
  clusters:
  - name: ads
    type: STATIC
    load_assignment:
      cluster_name: ads
      endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: 127.0.0.1, port_value: 5678 } } } }] }]
";

/// A self-signed certificate for `name` and its key, as PEM.
pub(crate) fn certificate(name: &str) -> (String, String) {
    let key = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    (key.cert.pem(), key.signing_key.serialize_pem())
}

/// Text as a YAML block, indented to fit under a key.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}
