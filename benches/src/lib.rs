//! What is measured, and on what.

pub mod configuration;
pub mod fixtures;
pub mod inner;
