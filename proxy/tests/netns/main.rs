//! Transparent redirection in network namespaces of its own, as root. Without root every test says loudly that it checked nothing.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

mod host;
mod probe;
mod rules;
mod space;
