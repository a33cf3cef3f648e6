//! Prometheus' text formats: read, merged, written.
//!
//! Families are held as text format 0.0.4 has them: a counter's name has its `_total`. OpenMetrics is turned into that and back. Source: Prometheus
//! documentation, "Exposition formats"; OpenMetrics 1.0.0.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
};

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `counter`
    Counter,
    /// `gauge`
    Gauge,
    /// `histogram`
    Histogram,
    /// `summary`
    Summary,
    /// `untyped`, `unknown`
    Untyped,
}

/// Which format a text is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// Text format 0.0.4.
    Text,
    /// OpenMetrics 0.0.1.
    OpenMetrics001,
    /// OpenMetrics 1.0.0.
    OpenMetrics100,
}

/// All samples of one name.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Escaped, as in the text; may be empty.
    pub help: String,
    /// In order.
    pub samples: Vec<Sample>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The family's, perhaps with a suffix.
    pub name: String,
    /// Between the braces, without a comma at the end.
    pub labels: String,
    /// As in the text.
    pub value: String,
    /// Milliseconds.
    pub timestamp: Option<i64>,
}

impl Format {
    /// Of a `content-type`; `None` for anything else. Envoy and many exporters give text without a version.
    pub fn of_content_type(value: &str) -> Option<Format> {
        let mut parts = value.split(';').map(|part| part.trim().to_ascii_lowercase());
        let kind = parts.next()?;
        let version = parts.find_map(|part| part.strip_prefix("version=").map(str::to_owned)).unwrap_or_default();
        match (kind.as_str(), version.as_str()) {
            ("text/plain", _) => Some(Format::Text),
            ("application/openmetrics-text", "0.0.1" | "") => Some(Format::OpenMetrics001),
            ("application/openmetrics-text", "1.0.0") => Some(Format::OpenMetrics100),
            _ => None,
        }
    }

    /// What an `accept` header prefers of these; text if it says nothing of them.
    pub fn accepted(accept: &str) -> Format {
        let mut best = (0.0, Format::Text);
        for range in accept.split(',') {
            let Some(format) = Format::of_content_type(range) else { continue };
            let quality = range.split(';').find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok());
            let quality = quality.unwrap_or(1.0);
            if quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The `content-type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics001 => "application/openmetrics-text; version=0.0.1; charset=utf-8",
            Format::OpenMetrics100 => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Reads a text.
///
/// # Errors
/// The line and what is wrong with it.
pub fn parse(text: &str, format: Format) -> Result<Vec<Family>, String> {
    let mut reader = Reader { families: Vec::new(), by_name: HashMap::new(), open_metrics: format != Format::Text };
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            reader.comment(comment.trim_start());
        } else {
            reader.sample(line).map_err(|error| format!("line {}: {error}", number + 1))?;
        }
    }
    reader.families.retain(|family| !family.samples.is_empty());
    Ok(reader.families)
}

struct Reader {
    families: Vec<Family>,
    by_name: HashMap<String, usize>,
    open_metrics: bool,
}

impl Reader {
    fn family(&mut self, name: &str) -> Option<&mut Family> {
        let next = self.families.len();
        let at = *self.by_name.entry(name.to_owned()).or_insert(next);
        if at == next {
            self.families.push(Family {
                name: name.to_owned(),
                kind: Kind::Untyped,
                help: String::new(),
                samples: Vec::new(),
            });
        }
        self.families.get_mut(at)
    }

    fn comment(&mut self, comment: &str) {
        let mut words = comment.splitn(3, char::is_whitespace);
        let (word, name, rest) = (words.next(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match word {
            Some("TYPE") => {
                let kind = match rest.trim() {
                    "counter" => Kind::Counter,
                    "gauge" | "info" | "stateset" => Kind::Gauge,
                    "histogram" => Kind::Histogram,
                    "summary" => Kind::Summary,
                    _ => Kind::Untyped,
                };
                // In OpenMetrics the type is of the name without these.
                let suffix = match (self.open_metrics, rest.trim()) {
                    (true, "counter") => "_total",
                    (true, "info") => "_info",
                    _ => "",
                };
                let help = if suffix.is_empty() { String::new() } else { self.help(name) };
                if let Some(family) = self.family(&format!("{name}{suffix}")) {
                    family.kind = kind;
                    if family.help.is_empty() {
                        family.help = help;
                    }
                }
            }
            Some("HELP") => {
                // After the type in OpenMetrics, before it elsewhere.
                let total = format!("{name}_total");
                let name = if self.open_metrics && self.by_name.contains_key(&total) { &total } else { name };
                if let Some(family) = self.family(name) {
                    family.help = rest.to_owned();
                }
            }
            Some(_) | None => {}
        }
    }

    fn help(&self, name: &str) -> String {
        let at = self.by_name.get(name);
        at.and_then(|at| self.families.get(*at)).map(|family| family.help.clone()).unwrap_or_default()
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let (name, labels, rest) = split(line)?;
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(name_char) {
            return Err(format!("{name:?} is no metric name"));
        }
        // An exemplar follows.
        let rest = if self.open_metrics { rest.split(" # ").next().unwrap_or_default() } else { rest };
        let mut words = rest.split_whitespace();
        let value = words.next().ok_or_else(|| format!("{name}: no value"))?;
        if value.parse::<f64>().is_err() {
            return Err(format!("{name}: {value:?} is no number"));
        }
        let timestamp = match words.next() {
            None => None,
            Some(text) => {
                let number: f64 = text.parse().map_err(|_| format!("{name}: {text:?} is no timestamp"))?;
                Some(if self.open_metrics { (number * 1000.0) as i64 } else { number as i64 })
            }
        };
        let Some(family) = self.family_of(name) else { return Ok(()) };
        let labels = labels.trim().trim_end_matches(',').to_owned();
        let sample = Sample { name: name.to_owned(), labels, value: value.to_owned(), timestamp };
        if let Some(family) = self.family(&family) {
            family.samples.push(sample);
        }
        Ok(())
    }

    /// The family that a sample of this name belongs to; `None` for what text format has no place for.
    fn family_of(&self, name: &str) -> Option<String> {
        let known = |name: &str| self.by_name.get(name).and_then(|at| self.families.get(*at));
        for (suffix, histogram, summary) in
            [("_bucket", true, false), ("_sum", true, true), ("_count", true, true), ("_created", true, true)]
        {
            let Some(stem) = name.strip_suffix(suffix) else { continue };
            let kind = known(stem).map(|family| family.kind);
            if histogram && kind == Some(Kind::Histogram) || summary && kind == Some(Kind::Summary) {
                return (suffix != "_created").then(|| stem.to_owned());
            }
            if suffix == "_created" && self.open_metrics && known(&format!("{stem}_total")).is_some() {
                return None;
            }
        }
        Some(name.to_owned())
    }
}

fn name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// Name, labels and the rest of a line.
fn split(line: &str) -> Result<(&str, &str, &str), String> {
    let end = line.find(|c: char| c == '{' || c.is_whitespace()).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let Some(inner) = rest.strip_prefix('{') else { return Ok((name, "", rest)) };
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in inner.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => {
                return Ok((name, inner.get(..at).unwrap_or_default(), inner.get(at + 1..).unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err(format!("{name}: the labels have no end"))
}

/// Names and escaped values of labels.
pub fn labels(text: &str) -> Vec<(&str, &str)> {
    let mut labels = Vec::new();
    let mut rest = text;
    while let Some((name, tail)) = rest.split_once("=\"") {
        let mut escaped = false;
        let end = tail.char_indices().find(|(_, c)| match c {
            _ if escaped => {
                escaped = false;
                false
            }
            '\\' => {
                escaped = true;
                false
            }
            '"' => true,
            _ => false,
        });
        let Some((end, _)) = end else { break };
        labels.push((name.trim_start_matches([',', ' ']).trim(), tail.get(..end).unwrap_or_default()));
        rest = tail.get(end + 1..).unwrap_or_default();
    }
    labels
}

/// The labels' text. Values are escaped already.
pub fn render<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string does not fail.
        let _ = write!(text, "{comma}{name}=\"{value}\"");
    }
    text
}

/// Makes a value fit between quotes.
pub fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Family {
    /// Adds labels, in place of those of the same name. Values are escaped already.
    pub fn add_labels(&mut self, extra: &[(String, String)]) {
        if extra.is_empty() {
            return;
        }
        for sample in &mut self.samples {
            let own = labels(&sample.labels);
            let own = own.into_iter().filter(|(name, _)| extra.iter().all(|(added, _)| added != name));
            let all = own.chain(extra.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            sample.labels = render(all);
        }
    }
}

/// Families of several sources by name.
#[derive(Default)]
pub struct Merged(BTreeMap<String, Family>);

impl Merged {
    /// Adds a source's families. What another source has already (a series, or a name with another type) is left out; returns how many samples were.
    pub fn add(&mut self, families: Vec<Family>) -> usize {
        families.into_iter().map(|family| self.add_family(family)).sum()
    }

    fn add_family(&mut self, family: Family) -> usize {
        let Some(known) = self.0.get_mut(&family.name) else {
            self.0.insert(family.name.clone(), family);
            return 0;
        };
        let before = family.samples.len();
        if known.kind != family.kind {
            return before;
        }
        let mut seen: HashSet<(String, String)> =
            known.samples.iter().map(|sample| (sample.name.clone(), sample.labels.clone())).collect();
        let new: Vec<_> = family
            .samples
            .into_iter()
            .filter(|sample| seen.insert((sample.name.clone(), sample.labels.clone())))
            .collect();
        let left_out = before - new.len();
        known.samples.extend(new);
        left_out
    }

    /// Takes one out.
    pub fn take(&mut self, name: &str) -> Option<Family> {
        self.0.remove(name)
    }

    /// Takes all that are left, by name.
    pub fn rest(self) -> impl Iterator<Item = Family> {
        self.0.into_values()
    }
}

/// Writes families one after the other.
pub struct Writer {
    /// What is written so far.
    pub text: String,
    format: Format,
    /// Names in use, where they have to be told apart.
    names: HashSet<String>,
}

impl Writer {
    /// In this format.
    pub fn new(format: Format) -> Writer {
        Writer { text: String::new(), format, names: HashSet::new() }
    }

    /// Writes one family.
    pub fn write(&mut self, family: &Family) {
        // Writing to a string does not fail.
        let _ = self.family(family);
    }

    fn family(&mut self, family: &Family) -> std::fmt::Result {
        if family.samples.is_empty() {
            return Ok(());
        }
        let (mut name, mut kind) = (family.name.as_str(), family.kind);
        let open_metrics = self.format != Format::Text;
        if open_metrics {
            // OpenMetrics has no counter without `_total`, and Envoy has many.
            match (kind, name.strip_suffix("_total")) {
                (Kind::Counter, Some(stem)) if !stem.is_empty() && !self.names.contains(stem) => name = stem,
                (Kind::Counter, _) => kind = Kind::Untyped,
                _ => {}
            }
            if !self.names.insert(name.to_owned()) {
                return Ok(());
            }
        }
        let kind = match (kind, open_metrics) {
            (Kind::Counter, _) => "counter",
            (Kind::Gauge, _) => "gauge",
            (Kind::Histogram, _) => "histogram",
            (Kind::Summary, _) => "summary",
            (Kind::Untyped, false) => "untyped",
            (Kind::Untyped, true) => "unknown",
        };
        if !family.help.is_empty() {
            writeln!(self.text, "# HELP {name} {}", family.help)?;
        }
        writeln!(self.text, "# TYPE {name} {kind}")?;
        for sample in &family.samples {
            self.text.push_str(&sample.name);
            if !sample.labels.is_empty() {
                write!(self.text, "{{{}}}", sample.labels)?;
            }
            write!(self.text, " {}", sample.value)?;
            match sample.timestamp {
                Some(millis) if open_metrics => write!(self.text, " {}", millis as f64 / 1000.0)?,
                Some(millis) => write!(self.text, " {millis}")?,
                None => {}
            }
            self.text.push('\n');
        }
        Ok(())
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format != Format::Text {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
