//! HTTP: from a connection's bytes to requests, and from requests to upstreams.

pub mod body;
pub mod connection;
pub mod exchange;
mod failure;
mod filter;
mod forward;
mod grpc_timeout;
mod guard;
mod hash;
mod head;
mod headers;
mod life;
mod limits;
mod local_reply;
mod mirror;
mod path;
mod present;
pub mod request;
mod retry;
pub mod route;
mod strict;
pub mod trace;
mod upgrade;
mod wire;

pub use head::own_address;
pub use headers::{mutate, values as header_values};
