//! Fuzz targets: one function each, which takes any bytes and panics if a promise is broken. `fuzz_targets/` runs them under libFuzzer, the test
//! `corpus` runs them over the inputs kept in `corpus/`. `README.md` says how.
//!
//! Nothing here opens a socket, and time is the runtime's own, so the same bytes always do the same.

// A broken promise is told by a panic.
#![allow(clippy::panic)]

mod client_hello;
mod config;
mod http;
mod memory;
mod proxy_protocol;
mod upstream;

pub use client_hello::client_hello;
pub use config::{bootstrap, compile};
pub use http::{http1, http2};
pub use proxy_protocol::proxy_protocol;
pub use upstream::{upstream_http1, upstream_http2};

/// A target by the name of its directory in `corpus/`.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    Some(match name {
        "bootstrap" => bootstrap,
        "compile" => compile,
        "http1" => http1,
        "http2" => http2,
        "upstream_http1" => upstream_http1,
        "upstream_http2" => upstream_http2,
        "client_hello" => client_hello,
        "proxy_protocol" => proxy_protocol,
        _ => return None,
    })
}
