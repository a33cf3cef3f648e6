//! `stats.yaml`: in which statistics shika-proxy and Envoy differ, and why; and the page made from it.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::observe::glob;

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Names that Envoy has alone.
    Missing,
    /// Names that shika-proxy has alone.
    Extra,
    /// Samples whose values differ.
    Values,
    /// Samples that `usedonly` shows on one of them.
    Used,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// `*` stands for any run of characters. A name of `/stats`; or, with `envoy_` before it, a name and labels of `/stats/prometheus`.
    names: Vec<String>,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    missing: Vec<Row>,
    extra: Vec<Row>,
    values: Vec<Row>,
    used: Vec<Row>,
}

/// Reads it.
pub fn read(path: &Path) -> Result<Table> {
    let source = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let table: Table = serde_yaml_ng::from_str(&source).with_context(|| format!("in {}", path.display()))?;
    for row in table.sections().iter().flat_map(|(_, rows)| rows.iter()) {
        if row.reason.trim().len() < 10 || row.names.is_empty() {
            bail!("{}: the row of {:?} has no reason", path.display(), row.names);
        }
    }
    Ok(table)
}

impl Table {
    fn sections(&self) -> [(Section, &[Row]); 4] {
        [
            (Section::Missing, &self.missing),
            (Section::Extra, &self.extra),
            (Section::Values, &self.values),
            (Section::Used, &self.used),
        ]
    }

    /// All names of all rows, in order: their positions are what [`Table::covers`] gives.
    fn names(&self) -> impl Iterator<Item = (Section, &str)> {
        let rows = self.sections().into_iter().flat_map(|(section, rows)| rows.iter().map(move |row| (section, row)));
        rows.flat_map(|(section, row)| row.names.iter().map(move |name| (section, name.as_str())))
    }

    /// How many names there are.
    pub fn rows(&self) -> usize {
        self.names().count()
    }

    /// The position of the name that covers this one.
    pub fn covers(&self, section: Section, name: &str) -> Option<usize> {
        let covers =
            |pattern: &str| glob(pattern, name) || (name.starts_with("envoy_") && glob(&in_prometheus(pattern), name));
        self.names().position(|(of, pattern)| of == section && covers(pattern))
    }

    /// Names that nothing needed. Whether values differ is a matter of the moment for some, so only rows of names have to be needed.
    pub fn stale(&self, used: &[bool]) -> Vec<String> {
        let stale = self
            .names()
            .zip(used)
            .filter(|((section, _), used)| !**used && matches!(section, Section::Missing | Section::Extra));
        stale.map(|((section, name), _)| format!("stats.yaml: {section:?}: {name} is not needed any more")).collect()
    }
}

/// What a name of `/stats` looks like in the Prometheus format, where the parts that `*` stands for are labels.
fn in_prometheus(pattern: &str) -> String {
    if pattern.starts_with("envoy_") {
        return pattern.to_owned();
    }
    let parts: Vec<&str> = pattern.split('.').filter(|part| *part != "*").collect();
    let name: String = parts.join("_").chars().map(|c| if c.is_alphanumeric() || c == '*' { c } else { '_' }).collect();
    format!("envoy_{name}{}{{*", if name.ends_with('*') { "" } else { "*" })
}

const HEAD: &str = "\
# Statistics beside Envoy's

Made from `proxy/tests/metrics/stats.yaml`. A test plays the same traffic on Envoy 1.40 and on shika-proxy, one bootstrap after the other
(`proxy/tests/metrics/scenes`), and compares `/stats` as text and as JSON and `/stats/prometheus`: names, types, labels, values, and what `usedonly` shows. What is not
listed here is the same. `*` stands for any text.
";

fn page(table: &Table) -> String {
    let mut page = HEAD.to_owned();
    for (section, rows) in table.sections() {
        let (title, column) = match section {
            Section::Missing => ("What Envoy has and Shika has not", "name"),
            Section::Extra => ("What Shika has and Envoy has not", "name"),
            Section::Values => ("What may have another value", "sample"),
            Section::Used => ("What counts as used on one of them only", "sample"),
        };
        let _ = writeln!(page, "\n## {title}\n\n| {column} | why |\n|---|---|");
        for row in rows {
            let names: Vec<String> = row.names.iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(page, "| {} | {} |", names.join(", "), row.reason.trim().replace('\n', " "));
        }
    }
    page
}

/// Whether `docs/stats.md` is what is made from the table.
pub fn check_page(table: &Table) -> Result<Option<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/stats.md");
    let page = page(table);
    if std::env::var_os("SHIKA_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page)?;
    }
    let same = std::fs::read_to_string(&path).unwrap_or_default() == page;
    Ok((!same).then(|| "docs/stats.md is not what stats.yaml says: run this test with SHIKA_WRITE_DOCS=1".to_owned()))
}

/// What the dashboards of `dashboards.txt` ask for and no scene has shown, and what is said to be missing and is there.
pub fn dashboards(path: &Path, families: &BTreeSet<String>) -> Result<Vec<String>> {
    let list = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut wrong = Vec::new();
    for line in list.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        // In OpenMetrics, which some of them expect, counters end with `_total`.
        let is_there = |name: &str| {
            families.contains(name) || name.strip_suffix("_total").is_some_and(|name| families.contains(name))
        };
        match line.strip_prefix("- ") {
            None if !is_there(line) => wrong.push(format!("dashboards.txt: no scene has shown {line}")),
            None => {}
            Some(missing) => {
                let (name, _) = missing.split_once(": ").with_context(|| format!("no reason: {line}"))?;
                if is_there(name) {
                    wrong.push(format!("dashboards.txt: {name} is not missing any more"));
                }
            }
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_page_on_the_other() {
        for (pattern, name) in [
            ("cluster.*.lb_*", "envoy_cluster_lb_zone_routing_all_directly{envoy_cluster_name=\"a\"}"),
            ("server.live", "envoy_server_live{}"),
            ("listener.*.worker_*", "envoy_listener_worker_0_downstream_cx_total{envoy_listener_address=\"a\"}"),
            ("http.*.time", "envoy_http_time_count{}"),
        ] {
            assert!(glob(&in_prometheus(pattern), name), "{pattern} {name}");
        }
        assert!(!glob(&in_prometheus("cluster.*.lb_*"), "envoy_cluster_lib{}"));
    }
}
