//! The life of a request over real sockets: a snapshot built by hand, scripted upstreams, raw clients.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod connections;
mod ends;
mod peer;
mod pool;
mod requests;
mod setup;
