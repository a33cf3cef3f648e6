//! Envoy's v3 types, and what is done with them as data: packing into `Any`, JSON and YAML, and walks over encoded
//! messages that tell which fields they set.
//!
//! The types are those of the crate `envoy-types`, re-exported here, so that no other package names it. `google.protobuf`
//! and the `xds` types are among them.
//!
//! ```
//! use shika_proto::envoy::config::cluster::v3::Cluster;
//! use shika_proto::json::{self, Names};
//!
//! let cluster: Cluster = json::from_yaml("{ name: backend, type: EDS, connectTimeout: 0.25s }").unwrap();
//! let value = json::to_json_value(&cluster, Names::Proto).unwrap();
//! assert_eq!(value["connect_timeout"], "0.250s");
//!
//! let errors = json::from_yaml::<Cluster>("{ name: backend, load_assignment: { endpoints: [{ lb: 1 }] } }").unwrap_err();
//! assert_eq!(
//!     errors[0].to_string(),
//!     "load_assignment.endpoints[0].lb: unknown field of envoy.config.endpoint.v3.LocalityLbEndpoints"
//! );
//! ```
//!
//! # The schema
//!
//! `envoy-types` ships the descriptor set that its types were made from. `build.rs` finds it at build time and writes
//! constant tables (0.4 MB) that one generic transcoder and the walks read in place: nothing is decoded at start-up,
//! where building a descriptor pool of the same set takes 96 ms. Measured in a release build without link-time
//! optimisation, on two shared cores (`cargo run --release -p shika-proto --example bootstrap_cost`):
//!
//! | what | time |
//! |---|---|
//! | first message of the process, from 1.5 kB of YAML: text to typed bootstrap, first use of the tables included | 0.28 ms |
//! | 14.5 MB of JSON with 10,000 clusters (EDS, mTLS by SDS, HTTP/2) to the typed bootstrap | 0.16 to 0.21 s |
//! | the same document through the YAML reader | 0.83 s |
//! | the typed bootstrap of 10,000 clusters to a JSON tree, every `Any` expanded | 0.16 to 0.20 s |
//!
//! What comes over ADS is binary and meets this code only in the walks.

pub mod any;
pub mod bootstrap;
pub mod json;
mod path;
mod schema;
pub mod type_url;
pub mod walk;
mod wire;

pub use envoy_types::pb::{cel, envoy, google, io, opentelemetry, ratelimit, udpa, validate, xds};
pub use path::FieldPath;

/// What Kuma's control planes say to each other (Kuma `api/mesh/v1alpha1/kds.proto`).
pub mod kuma {
    /// The messages and services of synchronisation.
    pub mod mesh {
        /// The messages and services of synchronisation.
        #[allow(missing_docs, clippy::all, clippy::pedantic, clippy::unwrap_used, rust_2018_idioms)]
        pub mod v1alpha1 {
            include!(concat!(env!("OUT_DIR"), "/kuma.mesh.v1alpha1.rs"));
        }
    }
}

/// Whether the schema has a message with this full name, such as `envoy.config.cluster.v3.Cluster`.
pub fn is_known_message(full_name: &str) -> bool {
    schema::Message::find(full_name).is_some()
}

/// Names of all fields of a message, in the order of the schema; empty for a message that the schema does not have.
pub fn fields_of(full_name: &str) -> impl Iterator<Item = &'static str> {
    let message = schema::Message::find(full_name);
    message
        .into_iter()
        .flat_map(|message| (0..).map_while(move |index| message.field_at(index)))
        .map(schema::Field::name)
}
