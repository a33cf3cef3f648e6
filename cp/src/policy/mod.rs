//! Policies: which of them concern a proxy, in which order, and what they add up to.
//!
//! * [`select`]: the top-level `targetRef`, and the order in which policies outrank each other.
//! * [`permission`]: MeshTrafficPermission, who may call an inbound.

pub mod permission;
pub mod select;
