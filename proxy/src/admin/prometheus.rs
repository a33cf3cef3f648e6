//! Statistics in Prometheus' text format, named and labelled as by Envoy.
//!
//! Source: Envoy documentation, "Administration interface", `/stats/prometheus`; exposition format 0.0.4.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::{self, Write},
    rc::Rc,
    sync::Arc,
};

use shika_data::stats::{BUCKETS, Group, Kind, Reading, Value};

use super::{
    readings::{GroupStats, Orders},
    stats::Selection,
    tags::Tags,
};

/// Groups that are indexed before other work gets a turn.
const TURN: usize = 256;

/// All samples by family, and a position in them.
pub struct Exposition {
    tags: Rc<Tags>,
    groups: Vec<GroupStats>,
    /// Counters, then gauges, then histograms; each family by name, its samples by theirs.
    families: Vec<Family>,
    family: usize,
    sample: usize,
    /// Families that are not Envoy's, last.
    rest: String,
}

/// All samples of one name.
struct Family {
    /// Without the leading `envoy_`.
    name: String,
    /// As in its `# TYPE` line.
    kind: &'static str,
    /// Group and position in it.
    samples: Vec<(u32, u32)>,
}

impl Exposition {
    /// Indexes what `selection` lets through. Yields now and then: 10,000 clusters have a million names.
    pub async fn new(groups: Vec<Arc<Group>>, tags: Rc<Tags>, selection: &Selection) -> Exposition {
        let mut orders = Orders::default();
        let mut indexed = Vec::with_capacity(groups.len());
        let mut kinds: [BTreeMap<String, Vec<(u32, u32)>>; 3] = Default::default();
        for (index, group) in groups.into_iter().enumerate() {
            let stats = GroupStats::new(group, &mut orders);
            for at in 0..stats.len() {
                let (Some(name), Some((kind, reading))) = (stats.name(at), stats.read(at)) else { continue };
                if !selection.takes(&name, kind, &reading) {
                    continue;
                }
                let slot = match kind {
                    Kind::Counter => &mut kinds[0],
                    Kind::Gauge | Kind::Level => &mut kinds[1],
                    Kind::Histogram => &mut kinds[2],
                };
                let extracted = tags.extract(&name);
                let family = sanitize(&extracted.name);
                let sample = (index as u32, at as u32);
                match slot.get_mut(family.as_ref()) {
                    Some(samples) => samples.push(sample),
                    None => {
                        slot.insert(family.into_owned(), vec![sample]);
                    }
                }
            }
            indexed.push(stats);
            if index % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        let families = kinds
            .into_iter()
            .zip(["counter", "gauge", "histogram"])
            .flat_map(|(families, kind)| {
                families.into_iter().map(move |(name, samples)| Family { name, kind, samples })
            })
            .collect();
        Exposition { tags, groups: indexed, families, family: 0, sample: 0, rest: String::new() }
    }

    /// Adds families in the same format, to be written last.
    pub fn push(&mut self, rest: &str) {
        self.rest.push_str(rest);
    }

    /// Appends about `limit` bytes; `false` when there is no more.
    pub fn write(&mut self, out: &mut String, limit: usize) -> bool {
        while out.len() < limit {
            let Some(Family { name: family, kind, samples }) = self.families.get(self.family) else {
                out.push_str(&std::mem::take(&mut self.rest));
                return false;
            };
            if self.sample == 0 {
                let _ = writeln!(out, "# TYPE envoy_{family} {kind}");
            }
            let Some((group, at)) = samples.get(self.sample) else {
                self.family += 1;
                self.sample = 0;
                continue;
            };
            self.sample += 1;
            let Some(stats) = self.groups.get(*group as usize) else { continue };
            let (Some(name), Some((_, reading))) = (stats.name(*at as usize), stats.read(*at as usize)) else {
                continue;
            };
            // Writing to a string does not fail.
            let _ = sample(out, family, &labels(&self.tags, &name), &reading);
        }
        true
    }
}

fn labels(tags: &Tags, name: &str) -> String {
    let mut labels = String::new();
    for (index, (tag, value)) in tags.extract(name).tags.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(labels, "{comma}{}=\"{}\"", sanitize(tag), escape(value));
    }
    labels
}

fn sample(out: &mut String, family: &str, labels: &str, reading: &Reading) -> fmt::Result {
    match &reading.value {
        Value::Number(value) => writeln!(out, "envoy_{family}{{{labels}}} {value}"),
        Value::Histogram { buckets, sum } => {
            let comma = if labels.is_empty() { "" } else { "," };
            let mut count = 0;
            for (bound, bucket) in BUCKETS.iter().zip(buckets) {
                count += bucket;
                writeln!(out, "envoy_{family}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}")?;
            }
            let count: u64 = buckets.iter().sum();
            writeln!(out, "envoy_{family}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}")?;
            writeln!(out, "envoy_{family}_sum{{{labels}}} {sum}")?;
            writeln!(out, "envoy_{family}_count{{{labels}}} {count}")
        }
    }
}

/// A name with everything but letters, digits and `_` replaced.
pub fn sanitize(name: &str) -> Cow<'_, str> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.chars().all(good) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.chars().map(|c| if good(c) { c } else { '_' }).collect())
    }
}

fn escape(value: &str) -> Cow<'_, str> {
    if value.contains(['\\', '"', '\n']) {
        Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    } else {
        Cow::Borrowed(value)
    }
}

#[cfg(test)]
mod tests {
    use shika_data::stats::{ClusterStats, Origin, Registry, Scope, ServerStats};

    use super::*;

    async fn render(selection: &Selection, groups: Vec<Arc<Group>>) -> String {
        let mut exposition = Exposition::new(groups, Rc::new(Tags::new(true, &[], &[])), selection).await;
        let mut out = String::new();
        let mut text = String::new();
        // Small pieces, so that the position between them is tested too.
        while exposition.write(&mut out, 10) {
            text.push_str(&std::mem::take(&mut out));
        }
        text + &out
    }

    #[tokio::test(flavor = "current_thread")]
    async fn families_are_whole_and_typed() {
        let registry = Registry::new(1);
        let scope = |prefix: &str| Scope { prefix: prefix.into(), ..Scope::default() };
        let a = ClusterStats::new(&registry, scope("cluster.a."));
        let b = ClusterStats::new(&registry, scope("cluster.b\"."));
        let server = ServerStats::new(&registry, scope("server."));
        a.upstream_cx_total().inc();
        b.upstream_cx_total().add(2);
        a.count_code(Origin::Internal, 200);
        a.upstream_rq_time().record(3);
        server.live().set(1);
        let text = render(&Selection { used_only: true, ..Selection::default() }, registry.groups()).await;
        let start: Vec<_> = text.lines().take(14).collect();
        assert_eq!(
            start,
            [
                "# TYPE envoy_cluster_internal_upstream_rq counter",
                "envoy_cluster_internal_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"a\"} 1",
                "# TYPE envoy_cluster_internal_upstream_rq_completed counter",
                "envoy_cluster_internal_upstream_rq_completed{envoy_cluster_name=\"a\"} 1",
                "# TYPE envoy_cluster_internal_upstream_rq_xx counter",
                "envoy_cluster_internal_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"a\"} 1",
                "# TYPE envoy_cluster_upstream_cx_total counter",
                "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"a\"} 1",
                "envoy_cluster_upstream_cx_total{envoy_cluster_name=\"b\\\"\"} 2",
                "# TYPE envoy_cluster_upstream_rq counter",
                "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"a\"} 1",
                "# TYPE envoy_cluster_upstream_rq_completed counter",
                "envoy_cluster_upstream_rq_completed{envoy_cluster_name=\"a\"} 1",
                "# TYPE envoy_cluster_upstream_rq_xx counter",
            ]
        );
        for line in [
            "# TYPE envoy_server_live gauge",
            "envoy_server_live{} 1",
            "# TYPE envoy_cluster_upstream_rq_time histogram",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"1\"} 0",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"5\"} 1",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"a\",le=\"+Inf\"} 1",
            "envoy_cluster_upstream_rq_time_sum{envoy_cluster_name=\"a\"} 3",
            "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"a\"} 1",
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line}\n{text}");
        }
    }
}
