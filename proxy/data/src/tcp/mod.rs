//! Raw TCP: Envoy's `tcp_proxy`.

pub(crate) mod copy;
pub mod proxy;
pub(crate) mod splice;
