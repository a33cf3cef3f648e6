//! `/stats` and `/stats/prometheus`.
//!
//! Source: Envoy documentation, "Administration interface".

use std::fmt::Write;

use regex::Regex;
use shika_data::stats::{Group, Kind, Value};
use std::sync::Arc;

use super::{
    histogram::{self, Display, QUANTILES},
    query::Query,
    readings::Sorted,
};

/// Which statistics are asked for.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only those ever written.
    pub used_only: bool,
    /// Names that match, or do not.
    pub filter: Option<(Regex, bool)>,
    /// Only of this kind.
    pub kind: Kinds,
}

/// Envoy's `type` parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kinds {
    /// All.
    #[default]
    All,
    /// Counters.
    Counters,
    /// Gauges.
    Gauges,
    /// Histograms.
    Histograms,
    /// Text readouts: there are none.
    TextReadouts,
}

/// Envoy's `format` parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines.
    Text,
    /// One JSON object.
    Json,
    /// Prometheus' text.
    Prometheus,
}

impl Selection {
    /// From the parameters of a request.
    ///
    /// # Errors
    /// The text of the 400 reply.
    pub fn new(query: &Query) -> Result<Selection, String> {
        let filter = match query.value("filter") {
            None | Some("") => None,
            Some(pattern) => {
                let regex = Regex::new(pattern)
                    .map_err(|error| format!("Invalid re2 regex: {}", last_line(&error.to_string())))?;
                Some((regex, query.has("invert_filter")))
            }
        };
        let kind = match query.value("type") {
            None | Some("All" | "") => Kinds::All,
            Some("Counters") => Kinds::Counters,
            Some("Gauges") => Kinds::Gauges,
            Some("Histograms") => Kinds::Histograms,
            Some("TextReadouts") => Kinds::TextReadouts,
            Some(_) => return Err("invalid &type= param".into()),
        };
        Ok(Selection { used_only: query.has("usedonly"), filter, kind })
    }

    /// Whether a statistic belongs to it.
    pub fn takes(&self, name: &str, kind: Kind, used: impl FnOnce() -> bool) -> bool {
        let kind = match self.kind {
            Kinds::All => true,
            Kinds::Counters => kind == Kind::Counter,
            Kinds::Gauges => matches!(kind, Kind::Gauge | Kind::Level),
            Kinds::Histograms => kind == Kind::Histogram,
            Kinds::TextReadouts => false,
        };
        kind && (!self.used_only || used())
            && self.filter.as_ref().is_none_or(|(regex, invert)| regex.is_match(name) != *invert)
    }
}

/// A regex error's last line says what is wrong; the others draw it.
fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or(text)
}

/// The `histogram_buckets` parameter.
///
/// # Errors
/// The text of the 400 reply.
pub fn display(query: &Query) -> Result<Display, String> {
    match query.value("histogram_buckets") {
        None | Some("" | "summary" | "none") => Ok(Display::Summary),
        Some("cumulative") => Ok(Display::Cumulative),
        Some("disjoint") => Ok(Display::Disjoint),
        Some(_) => Err("usage: /stats?histogram_buckets=(summary|cumulative|disjoint)\n".into()),
    }
}

/// The `format` parameter.
///
/// # Errors
/// The text of the 400 reply.
pub fn format(query: &Query) -> Result<Format, String> {
    match query.value("format") {
        // The HTML forms show the same statistics in a page; text is what a page-less tool can use.
        None | Some("" | "text" | "html" | "active-html") => Ok(Format::Text),
        Some("json") => Ok(Format::Json),
        Some("prometheus") => Ok(Format::Prometheus),
        Some(_) => Err("usage: /stats?format=(html|active-html|json|prometheus|text)\n\n".into()),
    }
}

/// `/stats` as text or JSON, made piece by piece.
pub struct Listing {
    stats: Sorted,
    selection: Selection,
    display: Display,
    json: bool,
    /// The opening was written.
    started: bool,
    /// An element was written, so that the next one needs a comma.
    comma: bool,
    finished: bool,
    /// JSON puts histograms at the end, in one object.
    histograms: Vec<serde_json::Value>,
    /// Text too puts them behind all others.
    histogram_lines: String,
}

impl Listing {
    /// Of these groups, which are in the order of their prefixes.
    pub fn new(groups: Vec<Arc<Group>>, selection: Selection, display: Display, json: bool) -> Listing {
        Listing {
            stats: Sorted::new(groups),
            selection,
            display,
            json,
            started: false,
            comma: false,
            finished: false,
            histograms: Vec::new(),
            histogram_lines: String::new(),
        }
    }

    /// Appends about `limit` bytes; `false` when there is no more.
    pub fn write(&mut self, out: &mut String, limit: usize) -> bool {
        if self.finished {
            return false;
        }
        if self.json && !self.started {
            out.push_str("{\"stats\":[");
        }
        self.started = true;
        // Bounded by names as well as bytes: a filter may let nothing through.
        for _ in 0..limit / 16 {
            if out.len() >= limit {
                break;
            }
            let Some(stat) = self.stats.next() else {
                self.finished = true;
                self.end(out);
                break;
            };
            if !self.selection.takes(&stat.name, stat.kind, || stat.reading.used) {
                continue;
            }
            // Writing to a string does not fail.
            match &stat.reading.value {
                Value::Number(value) if self.json => {
                    let comma = if self.comma { "," } else { "" };
                    let _ = write!(out, "{comma}{{\"name\":{},\"value\":{value}}}", serde_json::Value::from(stat.name));
                    self.comma = true;
                }
                Value::Number(value) => {
                    let _ = writeln!(out, "{}: {value}", stat.name);
                }
                Value::Histogram { buckets, .. } if self.json => {
                    self.histograms.push(histogram::json(&stat.name, buckets, self.display))
                }
                Value::Histogram { buckets, .. } => {
                    let _ = write!(self.histogram_lines, "{}: ", stat.name);
                    histogram::text(buckets, self.display, &mut self.histogram_lines);
                    self.histogram_lines.push('\n');
                }
            }
        }
        true
    }

    fn end(&mut self, out: &mut String) {
        if !self.json {
            out.push_str(&std::mem::take(&mut self.histogram_lines));
            return;
        }
        if !self.histograms.is_empty() {
            let histograms = std::mem::take(&mut self.histograms);
            let value = match self.display {
                Display::Summary => {
                    serde_json::json!({"supported_quantiles": QUANTILES, "computed_quantiles": histograms})
                }
                Display::Cumulative | Display::Disjoint => histograms.into(),
            };
            let comma = if self.comma { "," } else { "" };
            let _ = write!(out, "{comma}{{\"histograms\":{value}}}");
        }
        out.push_str("]}");
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
