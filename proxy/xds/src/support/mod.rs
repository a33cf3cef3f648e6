//! Which fields of Envoy's messages are honoured, which are harmless, which are refused: the one table that decides, and from which
//! `docs/xds-support.md` is made.
//!
//! A set field of a message that the table does not mention is refused. So is every message that is not in the table: a new Envoy field or extension
//! can never be passed over in silence.

mod cluster;
mod common;
mod filter;
mod http;
mod listener;
mod telemetry;

/// One message.
#[derive(Debug)]
pub struct Message {
    /// Full name.
    pub name: &'static str,
    /// Fields that are read and acted on, separated by blanks.
    pub honoured: &'static str,
    /// Fields that may be set and are passed over, with the reason why that is harmless.
    pub harmless: &'static [(&'static str, &'static str)],
    /// Fields that are refused, with more to say than that they are not supported.
    pub refused: &'static [(&'static str, &'static str)],
}

const INFO: &str = "informative only: nothing that is supported reads it";
const STATS: &str = "changes which statistics are kept, not what is done with traffic";
const CODEC: &str = "a bound inside the codec, which has bounds of its own";
const DESCRIPTORS: &str = "read by limits with descriptors only, which are refused";
const NO_RUNTIME: &str = "the key of a runtime value that nothing overrides: the default value counts";
const ENGINE: &str = "the only engine";
const NAME: &str = "extensions are known by their type";

/// The table.
pub fn table() -> impl Iterator<Item = &'static Message> {
    [common::TABLE, cluster::TABLE, listener::TABLE, http::TABLE, filter::TABLE, telemetry::TABLE].into_iter().flatten()
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
