//! Whether the cases show all of what Kuma emits: every message, field and arm of `surface.txt` must be set in the configuration of some
//! case that both subjects serve, or say in that file why no case shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use serde_yaml_ng::Value;

use crate::case::{Case, Step};

/// One line of the surface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Full name of the message, or `operators`.
    pub message: String,
    /// Path of the field inside the message up to the next `Any`; empty: the message itself.
    pub field: String,
    /// One value of the field that must be shown.
    pub value: Option<String>,
    /// Why no case shows it.
    pub reason: Option<String>,
}

impl Entry {
    fn name(&self) -> String {
        match &self.value {
            Some(value) => format!("{} {} = {value}", self.message, self.field),
            None => format!("{} {}", self.message, self.field).trim_end().to_owned(),
        }
    }
}

/// The block of access-log operators.
const OPERATORS: &str = "operators";

/// Reads `surface.txt`. A reason on a message holds for all that is in it.
pub fn read(text: &str) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut message = (String::new(), None);
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let (what, reason) = match line.split_once(" -- ") {
            Some((what, reason)) => (what, Some(reason.trim().to_owned())),
            None => (line, None),
        };
        if reason.as_ref().is_some_and(|reason| reason.len() < 10) {
            bail!("`{what}` has no reason");
        }
        if !line.starts_with(' ') {
            message = (what.trim().to_owned(), reason.clone());
            let message = message.0.clone();
            entries.push(Entry { message, field: String::new(), value: None, reason });
            continue;
        }
        let (field, value) = match what.split_once(" = ") {
            Some((field, value)) => (field, Some(value.trim().to_owned())),
            None => (what, None),
        };
        let (message, whole) = message.clone();
        let entry = Entry { message, field: field.trim().to_owned(), value, reason: reason.or(whole) };
        if entries.contains(&entry) {
            bail!("`{}` stands there twice", entry.name());
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// The messages of one case's configuration, by full name, and its text.
#[derive(Debug)]
pub struct Configured {
    messages: Vec<(String, Value)>,
    text: String,
}

impl Configured {
    /// Takes a case's bootstrap and what its control planes send apart.
    pub fn new(case: &Case, bootstrap: &Value) -> Result<Self> {
        let mut messages = vec![("envoy.config.bootstrap.v3.Bootstrap".to_owned(), bootstrap.clone())];
        collect(bootstrap, &mut messages);
        let resources = bootstrap.get("static_resources");
        for (list, name) in [
            ("listeners", "envoy.config.listener.v3.Listener"),
            ("clusters", "envoy.config.cluster.v3.Cluster"),
            ("secrets", "envoy.extensions.transport_sockets.tls.v3.Secret"),
        ] {
            let items = resources.and_then(|resources| resources.get(list)).and_then(Value::as_sequence);
            messages.extend(items.into_iter().flatten().map(|item| (name.to_owned(), item.clone())));
        }
        for value in case.upstreams.values().flat_map(|upstream| &upstream.xds) {
            collect(value, &mut messages);
        }
        let steps = case.connections.iter().flat_map(|connection| &connection.steps);
        for step in steps {
            if let Step::Xds(update) = step {
                update.set.iter().for_each(|value| collect(value, &mut messages));
            }
        }
        // Messages that stand inside of others, and also on their own where a control plane sends them.
        for (name, value) in messages.clone() {
            let (field, inner) = match name.rsplit('.').next() {
                Some("Listener") => ("filter_chains", "envoy.config.listener.v3.FilterChain"),
                Some("HttpConnectionManager") => ("route_config", "envoy.config.route.v3.RouteConfiguration"),
                Some("Cluster") => ("load_assignment", "envoy.config.endpoint.v3.ClusterLoadAssignment"),
                Some(_) | None => continue,
            };
            match value.get(field) {
                Some(Value::Sequence(items)) => {
                    messages.extend(items.iter().map(|item| (inner.to_owned(), item.clone())))
                }
                Some(item) => messages.push((inner.to_owned(), item.clone())),
                None => {}
            }
        }
        Ok(Configured { text: case.source.clone(), messages })
    }

    /// Whether the configuration sets this.
    pub fn sets(&self, entry: &Entry) -> bool {
        if entry.message == OPERATORS {
            // `%NAME%`, `%NAME(…)%` and `%NAME:…%` are one operator.
            let name = entry.field.trim_end_matches('%');
            return entry.field.is_empty()
                || ["%", "(", ":"].iter().any(|after| self.text.contains(&format!("{name}{after}")));
        }
        self.messages
            .iter()
            .filter(|(name, _)| *name == entry.message)
            .any(|(_, message)| entry.field.is_empty() || reaches(message, &entry.field, entry.value.as_deref()))
    }
}

/// Every value with a type of its own.
fn collect(value: &Value, messages: &mut Vec<(String, Value)>) {
    match value {
        Value::Mapping(map) => {
            if let Some(name) = map.get("@type").and_then(Value::as_str) {
                messages.push((name.rsplit('/').next().unwrap_or(name).to_owned(), value.clone()));
            }
            map.values().for_each(|value| collect(value, messages));
        }
        Value::Sequence(items) => items.iter().for_each(|item| collect(item, messages)),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::Tagged(_) => {}
    }
}

/// Whether something stands at a path such as `a.b[].c{}`, with this value if one is given.
fn reaches(value: &Value, path: &str, wanted: Option<&str>) -> bool {
    if path.is_empty() {
        return wanted.is_none_or(|wanted| match value {
            Value::String(text) => text == wanted,
            Value::Number(number) => number.to_string() == wanted,
            Value::Bool(bool) => bool.to_string() == wanted,
            Value::Null | Value::Sequence(_) | Value::Mapping(_) | Value::Tagged(_) => false,
        });
    }
    if let Some(rest) = path.strip_prefix("[]") {
        return value.as_sequence().is_some_and(|items| items.iter().any(|item| reaches(item, rest, wanted)));
    }
    if let Some(rest) = path.strip_prefix("{}") {
        return value.as_mapping().is_some_and(|map| map.values().any(|item| reaches(item, rest, wanted)));
    }
    let path = path.strip_prefix('.').unwrap_or(path);
    let end = path.find(['.', '[', '{']).unwrap_or(path.len());
    let (key, rest) = path.split_at(end);
    value.get(key).is_some_and(|item| reaches(item, rest, wanted))
}

/// What was found.
#[derive(Debug, Default)]
pub struct Coverage {
    /// Per entry, the number of cases that set it.
    cases: Vec<(Entry, usize)>,
}

impl Coverage {
    /// Counts the cases for each entry.
    pub fn new(surface: &[Entry], cases: &[Configured]) -> Self {
        let count = |entry: &Entry| cases.iter().filter(|case| case.sets(entry)).count();
        Coverage { cases: surface.iter().map(|entry| (entry.clone(), count(entry))).collect() }
    }

    /// What no case sets and no reason excuses; reasons for what a case sets after all.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (entry, cases) in &self.cases {
            match (&entry.reason, cases) {
                (None, 0) => faults.push(format!("no case sets {}", entry.name())),
                // The skeleton may hold a part of a message that as a whole is not shown.
                (Some(_), cases) if *cases > 0 => {
                    faults.push(format!("{} is in {cases} cases: take its reason out of surface.txt", entry.name()));
                }
                (None | Some(_), _) => {}
            }
        }
        faults
    }

    /// The table: per message the cases, the fields and arms that some case sets, all of them, those with a reason.
    pub fn table(&self) -> String {
        let mut rows: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
        for (entry, cases) in &self.cases {
            let row = rows.entry(&entry.message).or_default();
            if entry.field.is_empty() {
                row[0] = *cases;
            } else {
                row[1] += usize::from(*cases > 0);
                row[2] += 1;
                row[3] += usize::from(entry.reason.is_some());
            }
        }
        let mut out = format!("\n{:<90} {:>6} {:>12} {:>8}\n", "message", "cases", "fields", "excused");
        let mut sums = [0; 4];
        for (message, [cases, shown, all, excused]) in rows {
            let _ = writeln!(out, "{message:<90} {cases:>6} {:>12} {excused:>8}", format!("{shown}/{all}"));
            sums = [sums[0] + usize::from(cases > 0), sums[1] + shown, sums[2] + all, sums[3] + excused];
        }
        let messages = self.cases.iter().filter(|(entry, _)| entry.field.is_empty()).count();
        let [seen, shown, all, excused] = sums;
        let _ = writeln!(
            out,
            "\nsurface: {seen} of {messages} messages and {shown} of {all} fields and arms are in some parity case, {excused} have a \
             reason"
        );
        out
    }

    /// Each entry with its number of cases.
    pub fn detail(&self) -> String {
        self.cases.iter().map(|(entry, cases)| format!("{cases:>4} {}\n", entry.name())).collect()
    }
}

/// Fields of a shared table (`message`, `field`, …, a line each, with a heading) that the surface does not name.
pub fn unnamed(surface: &[Entry], table: &str) -> Result<Vec<String>> {
    let named: BTreeSet<(&str, &str)> = surface.iter().map(|entry| (&*entry.message, &*entry.field)).collect();
    let mut unnamed = Vec::new();
    for line in table.lines().skip(1) {
        let mut columns = line.split('\t');
        let message = columns.next().context("a message")?;
        let field = columns.next().context("a field")?;
        let field = if field.starts_with('(') { "" } else { field };
        if !named.contains(&(message, field)) {
            unnamed.push(format!("{message} {field}"));
        }
    }
    Ok(unnamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(yaml: &str) -> Configured {
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(path.path(), "{describe: '%REQ(x)% %DURATION%', connections: [{}]}").expect("writing it");
        let case = crate::case::read(path.path()).expect("a case");
        Configured::new(&case, &serde_yaml_ng::from_str(yaml).expect(yaml)).expect("messages")
    }

    #[test]
    fn entries_are_found_by_message_path_and_value() {
        let configured = configured(
            "{node: {id: a}, static_resources: {listeners: [{name: x, filter_chains: [{filters: [{typed_config: \
             {'@type': t/some.Filter, on: {a: [{b: GET}]}}}]}]}]}}",
        );
        let surface = read(
            "envoy.config.listener.v3.Listener\n  filter_chains[].filters[].typed_config\n  filter_chains[].name\nsome.Filter\n  \
             on{}[].b = GET\n  on.a[].b = PUT\nother.Filter -- it is not for this test\n  x\noperators\n  %REQ%\n  %DURATION%\n  \
             %RESP%\nenvoy.config.listener.v3.FilterChain\n",
        )
        .expect("a surface");
        let coverage = Coverage::new(&surface, &[configured]);
        assert_eq!(
            coverage.faults(),
            [
                "no case sets envoy.config.listener.v3.Listener filter_chains[].name",
                "no case sets some.Filter on.a[].b = PUT",
                "no case sets operators %RESP%"
            ]
        );
        assert!(
            coverage.table().contains("surface: 4 of 5 messages and 4 of 8 fields and arms"),
            "{}",
            coverage.table()
        );
    }

    #[test]
    fn a_reason_for_what_a_case_sets_is_stale() {
        let surface =
            read("envoy.config.bootstrap.v3.Bootstrap\n  node.id -- nobody could show it\n").expect("a surface");
        let faults = Coverage::new(&surface, &[configured("{node: {id: a}}")]).faults();
        assert_eq!(
            faults,
            ["envoy.config.bootstrap.v3.Bootstrap node.id is in 1 cases: take its reason out of surface.txt"]
        );
        assert!(read("a.B -- short\n").is_err());
        assert!(read("a.B\n  c\n  c\n").is_err());
    }

    #[test]
    fn a_table_is_compared_field_by_field() {
        let surface = read("a.B\n  c\n").expect("a surface");
        let unnamed =
            unnamed(&surface, "message\tfield\nd.E\t(no fields set)\t1\na.B\tc\t2\na.B\td\t3\n").expect("a table");
        assert_eq!(unnamed, ["d.E ", "a.B d"]);
    }
}
