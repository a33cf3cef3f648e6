//! What leaves the process besides traffic.

pub mod access_log;
mod gather;
mod log_streamer;
pub mod telemetry;
