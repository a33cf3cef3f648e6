//! Zone ingress and zone egress between sidecars, fed by the control plane: this proxy and the real Envoy in each place. Traffic crosses zones
//! and leaves the mesh, and is allowed or refused on the way, whoever stands where.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

mod crossing;
#[path = "../../../cp/tests/dp/envoy.rs"]
mod envoy;
mod refusals;
mod stage;
#[path = "../../../cp/tests/dp/support.rs"]
mod support;
