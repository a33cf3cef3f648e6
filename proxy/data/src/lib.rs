//! The code that moves bytes.
//!
//! Everything here works on plain structs that were compiled once, off the path (see [`model`]); nothing here sees protobuf. Two functions tell the
//! story: [`connection::serve`] holds the life of a connection, `http::request` the life of a request.

pub mod connection;
mod datagram;
pub mod denial;
pub mod drain;
pub mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod http;
pub mod inspect;
pub mod io;
pub mod listen;
pub mod model;
mod notice;
pub mod orig_dst;
pub mod outcome;
mod pacing;
pub mod proxy_protocol;
pub mod record;
pub mod snapshot;
pub mod stats;
pub mod tcp;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod token_bucket;
pub mod upstream;
pub mod worker;
