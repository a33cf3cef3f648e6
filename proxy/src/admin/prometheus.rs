//! Statistics in Prometheus' text format, named and labelled as by Envoy.
//!
//! Source: Envoy documentation, "Administration interface", `/stats/prometheus`; exposition format 0.0.4.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt::Write,
    rc::Rc,
    sync::{Arc, LazyLock},
};

use shika_data::stats::{BUCKETS, Def, Group, Kind, Reading, Value};

use super::{
    histogram::{self, QUANTILES},
    readings::{GroupStats, Orders},
    stats::Selection,
    tags::{Extracted, Tags},
};

/// Groups that are indexed before other work gets a turn.
const TURN: usize = 256;

/// What stands between labels and value of a histogram's lines: its bounds.
static BOUNDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    BUCKETS.iter().map(f64::to_string).chain(["+Inf".into()]).map(|bound| format!("le=\"{bound}\"}} ")).collect()
});

/// All samples by family, and a position in them.
pub struct Exposition {
    tags: Rc<Tags>,
    groups: Vec<Indexed>,
    /// Counters, then gauges, then histograms; each family by name, its samples by theirs.
    families: Vec<Family>,
    family: usize,
    sample: usize,
    /// Families that are not Envoy's, last.
    rest: String,
    /// Histograms are shown by their quantiles.
    summaries: bool,
}

/// A group, and the labels that all that it defines has, where that is so.
struct Indexed {
    stats: GroupStats,
    labels: Option<String>,
}

/// All samples of one name.
struct Family {
    /// Without the leading `envoy_`.
    name: String,
    kind: Kind,
    /// What the lines of a number, or of a histogram's buckets, begin with: `envoy_cluster_upstream_rq_total{`.
    number: String,
    bucket: String,
    /// Group and position in it.
    samples: Vec<(u32, u32)>,
}

impl Family {
    /// As in its `# TYPE` line, and its place among the sorts.
    fn sort(&self) -> (u8, &'static str) {
        match self.kind {
            Kind::Counter => (0, "counter"),
            Kind::Gauge | Kind::Level => (1, "gauge"),
            Kind::Histogram => (2, "histogram"),
        }
    }
}

/// Families in the order in which they are met.
#[derive(Default)]
struct Families {
    list: Vec<Family>,
    by_name: HashMap<(u8, String), usize>,
    /// Families of what a kind of group defines, by what is left of the prefix and the address of the definitions.
    of_defs: HashMap<(String, usize), Rc<[usize]>>,
}

impl Families {
    fn of(&mut self, name: &str, kind: Kind) -> usize {
        let name = sanitize(name).into_owned();
        let (number, bucket) = (format!("envoy_{name}{{"), format!("envoy_{name}_bucket{{"));
        let family = Family { name, kind, number, bucket, samples: Vec::new() };
        *self.by_name.entry((family.sort().0, family.name.clone())).or_insert_with(|| {
            self.list.push(family);
            self.list.len() - 1
        })
    }

    fn of_defs(&mut self, stem: &str, defs: &'static [Def]) -> Rc<[usize]> {
        let key = (stem.to_owned(), defs.as_ptr() as usize);
        if let Some(known) = self.of_defs.get(&key) {
            return known.clone();
        }
        let all: Rc<[usize]> = defs.iter().map(|def| self.of(&format!("{stem}.{}", def.name), def.kind)).collect();
        self.of_defs.insert(key, all.clone());
        all
    }
}

impl Exposition {
    /// Indexes what `selection` lets through. Yields now and then: 10,000 clusters have a million names.
    pub async fn new(groups: Vec<Arc<Group>>, tags: Rc<Tags>, selection: &Selection) -> Exposition {
        let mut orders = Orders::default();
        let mut indexed = Vec::with_capacity(groups.len());
        let mut families = Families::default();
        for (index, group) in groups.into_iter().enumerate() {
            let stats = GroupStats::new(group, &mut orders);
            let common = tags.of_cluster(stats.prefix(), stats.defs().iter().map(|def| def.name));
            let of_defs = common.as_ref().map(|common| families.of_defs(&common.name, stats.defs()));
            let common = common.map(|common| labels(&common));
            for at in 0..stats.len() {
                let Some(kind) = stats.kind(at) else { continue };
                let known = of_defs.as_ref().zip(stats.def(at)).and_then(|(of_defs, def)| of_defs.get(def));
                let family = match known {
                    // A name is made where it is looked at.
                    Some(family) if selection.filter.is_none() => {
                        if !selection.takes("", kind, || stats.used(at)) {
                            continue;
                        }
                        *family
                    }
                    Some(_) | None => {
                        let Some(name) = stats.name(at) else { continue };
                        if !selection.takes(&name, kind, || stats.used(at)) {
                            continue;
                        }
                        families.of(&tags.extract(&name).name, kind)
                    }
                };
                if let Some(family) = families.list.get_mut(family) {
                    family.samples.push((index as u32, at as u32));
                }
            }
            indexed.push(Indexed { stats, labels: common });
            if index % TURN == TURN - 1 {
                tokio::task::yield_now().await;
            }
        }
        let mut families = families.list;
        families.retain(|family| !family.samples.is_empty());
        families.sort_unstable_by(|a, b| (a.sort(), &a.name).cmp(&(b.sort(), &b.name)));
        Exposition { tags, groups: indexed, families, family: 0, sample: 0, rest: String::new(), summaries: false }
    }

    /// Shows histograms as summaries: their quantiles since the start instead of buckets.
    pub fn summarize(&mut self) {
        self.summaries = true;
    }

    /// Adds families in the same format, to be written last.
    pub fn push(&mut self, rest: &str) {
        self.rest.push_str(rest);
    }

    /// Appends about `limit` bytes; `false` when there is no more.
    pub fn write(&mut self, out: &mut String, limit: usize) -> bool {
        while out.len() < limit {
            let Some(family) = self.families.get(self.family) else {
                out.push_str(&std::mem::take(&mut self.rest));
                return false;
            };
            if self.sample == 0 {
                let kind = match family.kind {
                    Kind::Histogram if self.summaries => "summary",
                    _ => family.sort().1,
                };
                let _ = writeln!(out, "# TYPE envoy_{} {kind}", family.name);
            }
            let Some((group, at)) = family.samples.get(self.sample) else {
                self.family += 1;
                self.sample = 0;
                continue;
            };
            self.sample += 1;
            let Some(Indexed { stats, labels: common }) = self.groups.get(*group as usize) else { continue };
            let own = match common {
                Some(_) if stats.def(*at as usize).is_some() => None,
                Some(_) | None => {
                    let Some(name) = stats.name(*at as usize) else { continue };
                    Some(labels(&self.tags.extract(&name)))
                }
            };
            let labels = own.as_deref().or(common.as_deref()).unwrap_or_default();
            match stats.number(*at as usize) {
                Some(value) => line(out, &family.number, labels, "} ", value),
                None => {
                    let Some((_, reading)) = stats.read(*at as usize) else { continue };
                    sample(out, family, labels, &reading, self.summaries);
                }
            }
        }
        true
    }
}

fn labels(extracted: &Extracted<'_>) -> String {
    let mut labels = String::new();
    for (index, (tag, value)) in extracted.tags.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(labels, "{comma}{}=\"{}\"", sanitize(tag), escape(value));
    }
    labels
}

fn sample(out: &mut String, family: &Family, labels: &str, reading: &Reading, summaries: bool) {
    let name = &family.name;
    match &reading.value {
        Value::Number(value) => line(out, &family.number, labels, "} ", *value),
        Value::Histogram { buckets, sum } => {
            let comma = if labels.is_empty() { "" } else { "," };
            if summaries {
                for percent in QUANTILES {
                    let value = histogram::quantile(buckets, percent).unwrap_or(f64::NAN);
                    let quantile = percent / 100.0;
                    // Writing to a string does not fail.
                    let _ = writeln!(out, "envoy_{name}{{{labels}{comma}quantile=\"{quantile}\"}} {value}");
                }
            } else {
                let mut start = String::with_capacity(family.bucket.len() + labels.len() + 1);
                for part in [family.bucket.as_str(), labels, comma] {
                    start.push_str(part);
                }
                let mut count = 0;
                for (bound, bucket) in BOUNDS.iter().zip(buckets) {
                    count += bucket;
                    line(out, &start, "", bound, count);
                }
            }
            let _ = writeln!(out, "envoy_{name}_sum{{{labels}}} {sum}");
            let _ = writeln!(out, "envoy_{name}_count{{{labels}}} {}", buckets.iter().sum::<u64>());
        }
    }
}

/// One line. Put together from few parts: there are millions of them, and a formatter takes three times as long.
fn line(out: &mut String, start: &str, labels: &str, end: &str, value: u64) {
    for part in [start, labels, end] {
        out.push_str(part);
    }
    match u8::try_from(value) {
        Ok(digit @ 0..=9) => out.push(char::from(b'0' + digit)),
        // Writing to a string does not fail.
        _ => drop(write!(out, "{value}")),
    }
    out.push('\n');
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
