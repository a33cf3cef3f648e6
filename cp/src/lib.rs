//! Shika's control plane: Kuma's resources, REST API and tokens on one side, Envoy's xDS on the other.
//!
//! Flow: [`api`] parses and checks a resource, puts it into the [`store`], whose watch wakes [`mesh`], which rebuilds the
//! view of that mesh, and [`services`], which makes MeshServices, addresses and names of its Dataplanes; every connected proxy then gets a new [`plan`], which [`emit`] turns into Envoy resources and
//! [`xds`] sends as far as the proxy does not hold them already. [`kds`] keeps control planes of several zones up to date.

pub mod api;
pub mod app;
pub mod auth;
pub mod config;
pub mod ctl;
pub mod defaults;
pub mod dp;
pub mod emit;
pub mod identity;
pub mod kds;
mod lookup;
pub mod mads;
pub mod mesh;
pub mod plan;
pub mod policy;
pub mod resource;
pub mod services;
pub mod store;
pub mod xds;
