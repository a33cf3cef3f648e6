//! Header mutations of routes.
//!
//! Source: Envoy `core.v3.HeaderValueOption`, "HTTP header manipulation: custom request/response headers".

use http::HeaderName;

use super::format::Format;

/// What one level (route, virtual host, route table) does to a header map: removals come after additions of the same level.
#[derive(Clone, Debug, Default)]
pub struct HeaderMutations {
    /// Added or set, in order.
    pub add: Vec<HeaderAdd>,
    /// Removed.
    pub remove: Vec<HeaderName>,
}

impl HeaderMutations {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// Envoy `HeaderValueOption`.
#[derive(Clone, Debug)]
pub struct HeaderAdd {
    /// Which header; `:path`, `:authority` and other pseudo-headers are refused by the compiler, `host` is refused too.
    pub name: HeaderName,
    /// Its value.
    pub value: Format,
    /// What to do when it is there already.
    pub append: AppendAction,
    /// Add even when the value is empty.
    pub keep_empty: bool,
}

/// Envoy `HeaderValueOption.HeaderAppendAction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAction {
    /// Append, or add. The default.
    AppendIfExistsOrAdd,
    /// Leave an existing one alone.
    AddIfAbsent,
    /// Replace, or add.
    OverwriteIfExistsOrAdd,
    /// Replace only.
    OverwriteIfExists,
}
