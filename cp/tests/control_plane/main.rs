//! The control plane from outside: its REST API over real connections, shikactl against it, and the whole process.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod api;
mod mads;
mod process;
mod shikactl;
mod support;
mod zones;
