//! Filters that need a file of their own.

pub(crate) mod rbac;
