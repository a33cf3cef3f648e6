//! What two proxies' pages have not in common.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    pages::{Exposition, Pages},
    table::{Section, Table},
};

/// What a comparison found.
#[derive(Debug, Default)]
pub struct Found {
    /// Rows of the table that were needed.
    pub used: BTreeSet<usize>,
    /// What no row covers, ready to print.
    pub unlisted: Vec<String>,
    /// Families that shika-proxy showed.
    pub families: BTreeSet<String>,
}

impl Found {
    fn note(&mut self, table: &Table, section: Section, name: &str, line: impl FnOnce() -> String) {
        match table.covers(section, name) {
            Some(row) => drop(self.used.insert(row)),
            None => self.unlisted.push(line()),
        }
    }
}

/// Compares all pages.
pub fn compare(envoy: &Pages, shika: &Pages, table: &Table) -> Found {
    let mut found = Found { families: shika.prometheus.types.keys().cloned().collect(), ..Found::default() };
    let text = |pages: &Pages| pages.text.keys().cloned().collect();
    names(&mut found, table, "/stats", &text(envoy), &text(shika));
    names(&mut found, table, "/stats?format=json", &envoy.json, &shika.json);
    let whole = |page: &Exposition| page.samples.keys().filter(|name| !is_bucket(name)).cloned().collect();
    names(&mut found, table, "/stats/prometheus", &whole(&envoy.prometheus), &whole(&shika.prometheus));
    types(&mut found, &envoy.prometheus.types, &shika.prometheus.types);
    values(&mut found, table, &envoy.prometheus.samples, &shika.prometheus.samples);
    used(&mut found, table, envoy, shika);
    within(&mut found, envoy, "Envoy");
    within(&mut found, shika, "shika-proxy");
    found
}

/// Buckets are looked at with their histogram: the bounds are the same, and counts depend on time.
fn is_bucket(sample: &str) -> bool {
    sample.contains("_bucket{")
}

fn names(found: &mut Found, table: &Table, page: &str, envoy: &BTreeSet<String>, shika: &BTreeSet<String>) {
    for name in envoy.difference(shika) {
        found.note(table, Section::Missing, name, || format!("{page}: Envoy has {name}, shika-proxy has not"));
    }
    for name in shika.difference(envoy) {
        found.note(table, Section::Extra, name, || format!("{page}: shika-proxy has {name}, Envoy has not"));
    }
}

fn types(found: &mut Found, envoy: &BTreeMap<String, String>, shika: &BTreeMap<String, String>) {
    for (family, kind) in envoy {
        if let Some(other) = shika.get(family)
            && kind != other
        {
            found.unlisted.push(format!("{family}: a {kind} on Envoy, a {other} on shika-proxy"));
        }
    }
}

fn values(found: &mut Found, table: &Table, envoy: &BTreeMap<String, String>, shika: &BTreeMap<String, String>) {
    // Sums and buckets are times.
    for (name, value) in envoy.iter().filter(|(name, _)| !is_bucket(name) && !name.contains("_sum{")) {
        if let Some(other) = shika.get(name)
            && value != other
        {
            found.note(table, Section::Values, name, || format!("{name}: {value} on Envoy, {other} on shika-proxy"));
        }
    }
}

/// Of what both have: whether it counts as used.
fn used(found: &mut Found, table: &Table, envoy: &Pages, shika: &Pages) {
    let both = envoy.prometheus.samples.keys().filter(|name| shika.prometheus.samples.contains_key(*name));
    for name in both.filter(|name| !is_bucket(name)) {
        let (on_envoy, on_shika) = (envoy.used.samples.contains_key(name), shika.used.samples.contains_key(name));
        if on_envoy != on_shika {
            let word = |used: bool| if used { "used" } else { "unused" };
            let line = || format!("{name}: {} on Envoy, {} on shika-proxy", word(on_envoy), word(on_shika));
            found.note(table, Section::Used, name, line);
        }
    }
}

/// The pages of one proxy among themselves.
fn within(found: &mut Found, pages: &Pages, subject: &str) {
    for name in pages.text.keys().filter(|name| !pages.json.contains(*name)) {
        // Envoy's text lists histograms without values, its JSON does not.
        if pages.text[name] != "No recorded values" {
            found.unlisted.push(format!("{subject}: {name} is in /stats and not in its JSON"));
        }
    }
    for name in pages.used.samples.keys().filter(|name| !pages.prometheus.samples.contains_key(*name)) {
        found.unlisted.push(format!("{subject}: {name} is used and not on the whole page"));
    }
}
