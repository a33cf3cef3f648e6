//! When a proxy gets a new certificate. Decides only; the caller issues and keeps the time.
//!
//! ```text
//!            request differs, 4/5 of life over, content wanted but not known
//!   Held ───────────────────────────────────────────────────────────────────▶ due ──issue──▶ Held
//!    ▲                                                                         │  ▲
//!    │ adopt: the proxy still holds what an earlier instance issued     failed │  │ back-off over (5 s … 5 min)
//!    └─────────────────────────────────────────────────────────────────────────┴──┘
//! ```

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::leaf::{Leaf, LeafRequest};
use crate::xds::Version;

/// First pause after an attempt failed (Kuma `general.certGenerationBaseBackoff`).
pub const FIRST_BACKOFF: Duration = Duration::from_secs(5);
/// Longest pause between attempts (Kuma `general.certGenerationMaxBackoff`).
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(5 * 60);

/// A certificate that the proxy holds.
#[derive(Debug, Clone)]
struct Held {
    request: LeafRequest,
    issued: DateTime<Utc>,
    expires: DateTime<Utc>,
    /// Absent when an earlier instance of the control plane issued it: the proxy has it, this process never saw it.
    leaf: Option<Leaf>,
}

/// The certificate of one proxy over the life of its stream.
#[derive(Debug, Default)]
pub struct Rotation {
    held: Option<Held>,
    failures: u32,
    retry_at: Option<DateTime<Utc>>,
    last_error: Option<String>,
}

/// What to do about the certificate now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Issue one.
    Now,
    /// Nothing before this moment.
    At(DateTime<Utc>),
}

impl Rotation {
    /// A proxy without a certificate.
    pub fn new() -> Self {
        Rotation::default()
    }

    /// Takes up a certificate that another instance, or this one before a restart, issued for the same request at `issued`. The proxy
    /// still has it, so none is made or sent as long as the proxy names its [`version`](Self::version) when it connects.
    ///
    /// The moment comes from the DataplaneInsight. If anything in the request changed since, the versions differ and a new certificate
    /// is issued as usual.
    pub fn adopt(&mut self, request: LeafRequest, issued: DateTime<Utc>) {
        let expires = DateTime::from_timestamp(issued.timestamp(), 0).unwrap_or(issued) + request.lifetime;
        self.held = Some(Held { request, issued, expires, leaf: None });
    }

    /// When a certificate must be issued, given what it would have to say now. `need_content` is true when the proxy asks for the
    /// certificate itself and naming the version is not enough.
    pub fn due(&self, request: &LeafRequest, need_content: bool, now: DateTime<Utc>) -> Due {
        let renewal = match &self.held {
            Some(held) if held.request == *request && !(need_content && held.leaf.is_none()) => {
                renewal_time(held.issued, held.expires)
            }
            _ => now,
        };
        let earliest = match self.retry_at {
            Some(retry_at) => renewal.max(retry_at),
            None => renewal,
        };
        if earliest <= now { Due::Now } else { Due::At(earliest) }
    }

    /// Records a certificate that was issued.
    pub fn issued(&mut self, request: LeafRequest, leaf: Leaf) {
        self.failures = 0;
        self.retry_at = None;
        self.last_error = None;
        self.held = Some(Held { request, issued: leaf.issued, expires: leaf.expires, leaf: Some(leaf) });
    }

    /// Records an attempt that failed and returns when to try again. What the proxy holds stays valid for as long as it lives.
    pub fn failed(&mut self, reason: String, now: DateTime<Utc>) -> DateTime<Utc> {
        let pause = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(LONGEST_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.last_error = Some(reason);
        let retry_at = now + pause;
        self.retry_at = Some(retry_at);
        retry_at
    }

    /// The certificate, if this process issued it.
    pub fn leaf(&self) -> Option<&Leaf> {
        self.held.as_ref().and_then(|held| held.leaf.as_ref())
    }

    /// When the certificate was issued and when it expires.
    pub fn validity(&self) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        self.held.as_ref().map(|held| (held.issued, held.expires))
    }

    /// The last error, until an attempt succeeds.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Version under which the certificate travels over SDS: what it says, who issued it and when. It does not depend on the key, so it
    /// can be computed again after a restart.
    pub fn version(&self) -> Option<Version> {
        self.held.as_ref().map(|held| Version::of(&(&held.request, held.issued.timestamp())))
    }
}

/// When four fifths of a certificate's life are over (Kuma `pkg/xds/secrets/secrets.go`).
fn renewal_time(issued: DateTime<Utc>, expires: DateTime<Utc>) -> DateTime<Utc> {
    issued + TimeDelta::milliseconds((expires - issued).num_milliseconds() / 5 * 4)
}

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod tests;
