//! Denials in words: which permission refused a peer.
//!
//! A control plane folds the permissions of many authors into one RBAC policy, whose name is all that Envoy's code details can tell. Shika's own control
//! plane says beside it, in the filter chain's metadata under `io.shika.policy`, which permissions these were; here they are matched with the peer.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{connection::Connection, model::rbac::PeerNames};

/// Least time between two lines of one chain: whoever is refused must not be able to fill a disk.
const PAUSE: Duration = Duration::from_secs(1);

/// What stands behind the permission check of a filter chain.
#[derive(Debug)]
pub struct Denials {
    /// In the order in which they apply: a later one outranks an earlier one.
    rules: Vec<Rule>,
    /// What holds for a peer that no rule matches.
    otherwise: Box<str>,
    lines: Mutex<Lines>,
}

/// One rule of one permission.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Resource, field, and what it says.
    pub text: Box<str>,
    /// URI SANs that a peer must have, all of them, for the rule to match it; none: it matches every peer.
    pub uris: Vec<Box<str>>,
}

#[derive(Debug, Default)]
struct Lines {
    last: Option<Instant>,
    /// Denials since the last line.
    unlogged: u64,
}

impl Denials {
    /// Explains by these rules.
    pub fn new(rules: Vec<Rule>, otherwise: Box<str>) -> Self {
        Denials { rules, otherwise, lines: Mutex::default() }
    }

    /// What decides about a peer.
    pub fn reason(&self, peer: Option<&PeerNames>) -> &str {
        let has = |uri: &str| peer.is_some_and(|peer| peer.uris.iter().any(|own| **own == *uri));
        let decisive = self.rules.iter().rev().find(|rule| rule.uris.iter().all(|uri| has(uri)));
        decisive.map_or(&self.otherwise, |rule| &rule.text)
    }

    /// Writes that `connection`, of the listener with this name, was refused. At most one line a second; the next one tells how many were left out.
    pub(crate) fn log(&self, connection: &Connection, listener: &str) {
        let Some(unlogged) = self.lines.lock().admit(Instant::now()) else { return };
        let names = connection.tls.as_ref().and_then(|tls| tls.names.as_ref());
        let peer = names.and_then(|names| names.uris.first()).map_or("without a URI SAN", |uri| uri);
        let address = connection.remote.map_or_else(|| "unknown address".to_owned(), |address| address.to_string());
        let reason = self.reason(names);
        match unlogged {
            0 => tracing::info!("RBAC: denied {peer} ({address}) on {listener}: {reason}"),
            more => tracing::info!(
                "RBAC: denied {peer} ({address}) on {listener}: {reason} ({more} more denials since the last such line)"
            ),
        }
    }
}

impl Lines {
    /// How many lines were left out before this one; `None`: this one is left out.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            self.unlogged += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uris: &[&str]) -> PeerNames {
        PeerNames { uris: uris.iter().map(|uri| (*uri).into()).collect(), ..PeerNames::default() }
    }

    #[test]
    fn the_last_rule_that_matches_the_peer_decides() {
        let rule = |text: &str, uris: &[&str]| Rule {
            text: text.into(),
            uris: uris.iter().map(|uri| (*uri).into()).collect(),
        };
        let denials = Denials::new(
            vec![
                rule("all", &[]),
                rule("web", &["spiffe://m/web"]),
                rule("web v2", &["spiffe://m/web", "kuma://version/2"]),
            ],
            "nothing matches".into(),
        );
        for (uris, expected) in [
            (&["spiffe://m/other"][..], "all"),
            (&["spiffe://m/web"][..], "web"),
            (&["spiffe://m/web", "kuma://version/1"][..], "web"),
            (&["kuma://version/2", "spiffe://m/web"][..], "web v2"),
        ] {
            assert_eq!(denials.reason(Some(&peer(uris))), expected, "{uris:?}");
        }
        assert_eq!(denials.reason(None), "all");
        let denials = Denials::new(vec![rule("web", &["spiffe://m/web"])], "nothing matches".into());
        assert_eq!(denials.reason(Some(&peer(&["spiffe://m/webs"]))), "nothing matches");
        assert_eq!(denials.reason(None), "nothing matches");
    }

    #[test]
    fn lines_keep_their_distance_and_count_what_they_left_out() {
        let begin = Instant::now();
        let mut lines = Lines::default();
        let at = |lines: &mut Lines, millis| lines.admit(begin + Duration::from_millis(millis));
        assert_eq!(at(&mut lines, 0), Some(0));
        assert_eq!(at(&mut lines, 1), None);
        assert_eq!(at(&mut lines, 999), None);
        assert_eq!(at(&mut lines, 1_000), Some(2));
        assert_eq!(at(&mut lines, 1_999), None);
        assert_eq!(at(&mut lines, 5_000), Some(1));
        assert_eq!(at(&mut lines, 9_000), Some(0));
    }
}
