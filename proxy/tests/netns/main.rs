//! Transparent redirection in network namespaces of its own, as root. Without root every test says loudly that it checked nothing.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod dns;
mod host;
mod kuma;
mod probe;
mod proxy;
mod rules;
mod space;
mod traffic;
