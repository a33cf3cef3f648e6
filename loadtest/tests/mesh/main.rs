//! The whole mesh as its operator runs it: the control plane, its command line, sidecars of both makes, services and load, each a process of its own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

mod dashboards;
mod envoy;
mod outage;
mod process;
mod refusals;
mod world;
