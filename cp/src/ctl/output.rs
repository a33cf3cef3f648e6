//! How results are written: tables, YAML, JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use chrono::{DateTime, Utc};
use clap::ValueEnum;
use serde_json::Value;

/// How a result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns.
    Table,
    /// YAML.
    Yaml,
    /// JSON.
    Json,
}

/// Writes a document as YAML or JSON.
pub(super) fn document(out: &mut dyn Write, document: &Value, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(document)?)?,
        Format::Yaml | Format::Table => write!(out, "{}", serde_yaml_ng::to_string(document)?)?,
    }
    Ok(())
}

/// Writes columns, three spaces apart.
pub(super) fn table(out: &mut dyn Write, headers: &[&str], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headers = headers.iter().map(|header| (*header).to_owned()).collect();
    for row in std::iter::once(headers).chain(rows) {
        let row: Vec<String> = row;
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// How long ago something was, in its largest unit; `never` without a time.
pub(super) fn ago(time: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
    let Some(time) = time else { return "never".to_owned() };
    let seconds = (now - time).num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        86_400..31_536_000 => format!("{}d", seconds / 86_400),
        _ => format!("{}y", seconds / 31_536_000),
    }
}

/// A time of a document.
pub(super) fn time(value: Option<&Value>) -> Option<DateTime<Utc>> {
    value?.as_str()?.parse().ok()
}

/// Tags with all their values: `kuma.io/service=api,web version=v1`.
pub(super) fn tags(tags: &BTreeMap<String, BTreeSet<String>>) -> String {
    let text = |(tag, values): (&String, &BTreeSet<String>)| {
        format!("{tag}={}", values.iter().map(String::as_str).collect::<Vec<_>>().join(","))
    };
    tags.iter().map(text).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ages_are_in_their_largest_unit() {
        let now: DateTime<Utc> = "2026-11-22T12:00:00Z".parse().unwrap();
        for (time, expected) in [
            ("2026-11-22T11:59:30Z", "30s"),
            ("2026-11-22T11:58:00Z", "2m"),
            ("2026-11-22T09:00:00Z", "3h"),
            ("2026-11-20T12:00:00Z", "2d"),
            ("2024-11-20T12:00:00Z", "2y"),
            ("2026-11-22T12:00:05Z", "0s"),
        ] {
            assert_eq!(ago(Some(time.parse().unwrap()), now), expected, "{time}");
        }
        assert_eq!(ago(None, now), "never");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let rows = vec![vec!["default".to_owned(), "x".to_owned()], vec!["a".to_owned(), "y".to_owned()]];
        table(&mut out, &["MESH", "NAME"], rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "MESH      NAME\ndefault   x\na         y\n");
    }
}
