//! MeshMetric: which metrics a proxy offers, and to whom.

use super::Policies;
use super::merge::merge;
use super::rules::{Policy, selected};
use super::select::Target;
use crate::resource::{MeshMetric, Metric, MetricsBackendType, PrometheusBackend, RuleMatch, TargetRef};

impl Policy for MeshMetric {
    type Conf = Metric;

    fn target_ref(&self) -> Option<&TargetRef> {
        self.target_ref.as_ref()
    }

    fn to(&self) -> Vec<(&TargetRef, &Metric)> {
        Vec::new()
    }

    fn inbound(&self) -> Vec<(&[RuleMatch], &Metric)> {
        Vec::new()
    }
}

/// What the MeshMetrics of a mesh add up to for a proxy; `None` if none concerns it or none names a backend.
pub fn metric(policies: &Policies, target: Target<'_>) -> Option<Metric> {
    let selected = selected(&policies.metrics, target, &policies.routes);
    let conf = merge(selected.iter().map(|(_, policy)| &policy.default))?;
    conf.backends.as_ref().is_some_and(|backends| !backends.is_empty()).then_some(conf)
}

/// The Prometheus servers that fetch the metrics.
pub fn prometheus(conf: &Metric) -> impl Iterator<Item = &PrometheusBackend> {
    conf.backends
        .iter()
        .flatten()
        .filter(|backend| backend.kind == MetricsBackendType::Prometheus)
        .filter_map(|backend| backend.prometheus.as_ref())
}
