//! From xDS to the model of `shika-data`.
//!
//! Three layers, each usable alone:
//!
//! - [`Compiler`] turns Envoy resources into a [`shika_data::snapshot::Snapshot`]: pure, no I/O, time is passed in. What cannot be honoured is a
//!   [`Reject`] that names resource, field path and reason; what may be ignored without harm is counted ([`harmless`]).
//! - [`delta`] and [`sotw`] hold the protocol state of a subscription, sans-io.
//! - [`client`] and [`files`] are the shells that talk to a control plane and watch files.

// Envoy goes on honouring fields that it calls deprecated, and so does the compiler.
#![allow(deprecated)]

pub mod ads;
mod apply;
mod asked;
pub mod bootstrap;
pub mod client;
mod clusters;
mod compile;
pub mod compiler;
pub mod delta;
pub mod files;
mod fixed;
mod google_grpc;
pub mod harmless;
pub mod overload;
pub mod reject;
mod rest;
pub mod runtime;
pub mod sotw;
pub mod store;
mod subscription;
pub mod support;
mod update;
mod warm;

pub use bootstrap::BootstrapPlan;
pub use compiler::{
    Applied, CompileOptions, Compiler, DnsTarget, LookupFamily, Plan, Resource, Update, UpdateKind, Wanted, Warming,
};
pub use reject::Reject;
