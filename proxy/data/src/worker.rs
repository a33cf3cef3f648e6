//! Workers: one thread each, with a current-thread runtime, its own pools and its own copy of the snapshot's root.
//!
//! The control thread publishes; a worker takes a publication between two polls, so a request sees one configuration from start to end. All that a
//! worker owns is reached through a thread-local: the futures that use it stay `Send`, and nothing on the path takes a lock.

mod health;
mod local;
mod overload;
mod pool;
mod tasks;

pub use health::{health_failed, set_health_failed};
#[cfg(feature = "fuzzing")]
pub(crate) use local::forget;
pub(crate) use local::with_pools_while_open;
pub(crate) use local::{Registered, number, register, with_balances};
pub use local::{SnapshotRef, date, enter_for_test, random, snapshot, with_pools};
pub(crate) use overload::{Place, place, stops_requests};
pub use overload::{set_connection_limit, set_stop_requests};
pub use pool::{WorkerConfig, Workers};
pub(crate) use tasks::Tasks;
