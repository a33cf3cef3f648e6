//! Network filters that decide about a connection: RBAC, on a new one and on live ones after a change, and what is done before its first bytes.

use std::sync::Arc;

use super::{Connection, filter_state};
use crate::{
    model::{
        listener::{FilterChain, NetworkFilter},
        rbac::Action,
    },
    snapshot::Snapshot,
    stats::RbacStats,
};

/// What a publication means for a live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Keep,
    /// Its listener or chain is gone, or asks something else of the peer now.
    Drain,
    /// A policy no longer allows it.
    Close,
}

/// Judges a live connection by a new configuration. Only a change is judged: what was gone before drains already.
pub(crate) fn judge(connection: &Connection, old: &Snapshot, new: &Snapshot) -> Verdict {
    let before = old.chain(connection.listener, connection.chain).filter(|chain| chain.demands == connection.demands);
    let after = new.chain(connection.listener, connection.chain).filter(|chain| chain.demands == connection.demands);
    match (before, after) {
        (Some(before), Some(after)) if Arc::ptr_eq(before, after) => Verdict::Keep,
        (Some(_), None) => Verdict::Drain,
        (None, None) => Verdict::Keep,
        (_, Some(after)) => match denial(after, connection) {
            Some(denial) => {
                denial.stats.denied().inc();
                tracing::info!(connection = connection.id, chain = %after.name, "closed: a changed policy denies it: {}", denial.details());
                explain(after, connection, new);
                Verdict::Close
            }
            None => Verdict::Keep,
        },
    }
}

/// Lets a new connection in, and keeps of it what the chain's filters want kept. `Some` is why it is closed at once.
pub(super) fn admit(chain: &FilterChain, connection: &mut Connection) -> Option<&'static str> {
    for filter in &chain.filters {
        match filter {
            NetworkFilter::Rbac(_) => {}
            NetworkFilter::LocalRateLimit(limit) if !limit.bucket.take() => {
                limit.stats.rate_limited().inc();
                return Some("local_ratelimit_close_over_limit");
            }
            NetworkFilter::LocalRateLimit(_) => {}
            NetworkFilter::SetFilterState(rules) => filter_state::apply(connection, &rules.on_connection),
        }
    }
    None
}

/// Keeps of a connection what its handshake has shown.
pub(super) fn keep(chain: &FilterChain, connection: &mut Connection) {
    for filter in &chain.filters {
        if let NetworkFilter::SetFilterState(rules) = filter {
            filter_state::apply(connection, &rules.on_handshake);
        }
    }
}

/// A network RBAC filter that says no.
pub(super) struct Denial<'a> {
    stats: &'a RbacStats,
    policy: Option<Arc<str>>,
}

impl Denial<'_> {
    /// `%CONNECTION_TERMINATION_DETAILS%`. Source: Envoy `RBAC::responseDetail`.
    fn details(&self) -> String {
        format!("rbac_access_denied_matched_policy[{}]", self.policy.as_deref().unwrap_or("none"))
    }
}

/// Says which permission refused the connection, where that is known.
pub(crate) fn explain(chain: &FilterChain, connection: &Connection, snapshot: &Snapshot) {
    if let Some(denials) = &chain.denials {
        denials.log(
            connection,
            snapshot.listener(connection.listener).map_or("a removed listener", |listener| &listener.name),
        );
    }
}

/// The first network RBAC filter of a chain that denies the connection.
pub(super) fn denial<'a>(chain: &'a FilterChain, connection: &Connection) -> Option<Denial<'a>> {
    let subject = connection.subject();
    chain.filters.iter().find_map(|filter| match filter {
        NetworkFilter::Rbac(rbac) => {
            let decision = rbac.enforced.as_ref()?.decide(&subject);
            (!decision.allowed).then_some(Denial { stats: &rbac.stats, policy: decision.policy })
        }
        NetworkFilter::LocalRateLimit(_) | NetworkFilter::SetFilterState(_) => None,
    })
}

/// Asks every network RBAC filter, and counts. `Some` is why the connection is denied.
pub(super) fn decide(chain: &FilterChain, connection: &Connection) -> Option<String> {
    let subject = connection.subject();
    for filter in &chain.filters {
        match filter {
            NetworkFilter::Rbac(rbac) => {
                if let Some(shadow) = &rbac.shadow {
                    if shadow.decide(&subject).allowed {
                        rbac.stats.shadow_allowed().inc()
                    } else {
                        rbac.stats.shadow_denied().inc()
                    }
                }
                let Some(enforced) = &rbac.enforced else { continue };
                let decision = enforced.decide(&subject);
                if !decision.allowed {
                    rbac.stats.denied().inc();
                    return Some(Denial { stats: &rbac.stats, policy: decision.policy }.details());
                }
                rbac.stats.allowed().inc();
                if enforced.action == Action::Log {
                    if decision.policy.is_some() {
                        rbac.stats.log().logged().inc()
                    } else {
                        rbac.stats.log().not_logged().inc()
                    }
                }
            }
            NetworkFilter::LocalRateLimit(_) | NetworkFilter::SetFilterState(_) => {}
        }
    }
    None
}
