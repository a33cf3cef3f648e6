//! Endpoints: which one, and a connection to it.

pub mod connect;
pub mod health;
pub mod lb;
pub mod metered;
pub(crate) mod outlier;
pub mod pick;
pub mod pool;
