//! The report as Markdown.

use super::figure::{Metric, number};
use super::report::Report;
use super::scenario::{SCENARIOS, Section};
use super::subject::Name;

/// What is shown of requests, each a table.
const TABLES: &[(Metric, &str)] = &[
    (Metric::Cpu, "CPU µs per request, median (min–max)"),
    (Metric::Rate, "requests/s, median (min–max)"),
    (Metric::P50, "p50 of latency, µs"),
    (Metric::P99, "p99 of latency, µs"),
    (Metric::Switches, "context switches per request"),
    (Metric::Resident, "RSS under load, MB"),
];

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for (section, title) in [(Section::Requests, "Requests"), (Section::Variations, "Variations")] {
        let names = report.of_section(section);
        if !names.is_empty() {
            text.push_str(&format!("## {title}\n\n"));
            text.push_str(&by_metric(report, &names));
        }
    }
    for (section, title) in [
        (Section::Latency, "Latency at a fixed rate, from the moment that a request was due"),
        (Section::Processes, "Start and memory"),
        (Section::Clusters, "Clusters"),
    ] {
        let names = report.of_section(section);
        if !names.is_empty() {
            text.push_str(&format!("## {title}\n\n"));
            text.push_str(&by_scenario(report, &names));
        }
    }
    text.push_str(&verdicts(report));
    text.push_str(&circumstances(report));
    text
}

/// A table for each metric, a row for each scenario.
fn by_metric(report: &Report, names: &[&str]) -> String {
    let subjects = report.subjects(names);
    let mut text = String::new();
    for (metric, title) in TABLES {
        let rows: Vec<_> =
            names.iter().filter(|name| subjects.iter().any(|s| report.figure(name, *s, *metric).is_some())).collect();
        if rows.is_empty() {
            continue;
        }
        text.push_str(&head(title, &subjects));
        for name in rows {
            text.push_str(&row(report, name, name, *metric, &subjects));
        }
        text.push('\n');
    }
    text
}

/// One table, a row for each metric of each scenario.
fn by_scenario(report: &Report, names: &[&str]) -> String {
    let subjects = report.subjects(names);
    let mut text = head("median (min–max)", &subjects);
    for name in names {
        for metric in report.metrics(name) {
            text.push_str(&row(report, name, &format!("{name}: {}", metric.label()), metric, &subjects));
        }
    }
    text.push('\n');
    text
}

fn head(title: &str, subjects: &[Name]) -> String {
    let names: String = subjects.iter().map(|subject| format!(" {subject} |")).collect();
    format!("| {title} |{names} shika ÷ envoy | bar |\n|---|{}---|---|\n", "---|".repeat(subjects.len()))
}

fn row(report: &Report, scenario: &str, title: &str, metric: Metric, subjects: &[Name]) -> String {
    let mut text = format!("| {title} |");
    for subject in subjects {
        let shown = report.figure(scenario, *subject, metric).map_or_else(|| "–".into(), |figure| figure.shown());
        text.push_str(&format!(" {shown} |"));
    }
    let ratio = report.ratio(scenario, metric).map_or_else(|| "–".into(), |ratio| format!("**{ratio:.2}**"));
    let bars: Vec<String> = report
        .bars(scenario, metric)
        .iter()
        .map(|bar| format!("{}: {}", bar.limit, if bar.held { "held" } else { "**missed**" }))
        .collect();
    text.push_str(&format!(" {ratio} | {} |\n", if bars.is_empty() { "–".into() } else { bars.join("; ") }));
    text
}

/// Held and missed bars, then rounds that do not count.
fn verdicts(report: &Report) -> String {
    let judged = report.judged();
    let mut text = String::new();
    if !judged.is_empty() {
        let held = judged.iter().filter(|(_, _, bar)| bar.held).count();
        text.push_str(&format!("## Bars: {held} of {} held\n\n", judged.len()));
        for (scenario, metric, bar) in judged.iter().filter(|(_, _, bar)| !bar.held) {
            let (metric, reached) = (metric.label(), number(bar.reached));
            text.push_str(&format!("- missed: {scenario}, {metric}: {reached}, bar {}\n", bar.limit));
        }
        text.push('\n');
    }
    for (name, measured) in &report.scenarios {
        for void in &measured.void {
            text.push_str(&format!("- void: {name}, {void}\n"));
        }
    }
    text
}

/// Machines, versions and settings, each with the scenarios that they are of.
fn circumstances(report: &Report) -> String {
    let mut seen: Vec<(String, Vec<&str>)> = Vec::new();
    for scenario in SCENARIOS {
        let Some(measured) = report.scenarios.get(scenario.name) else { continue };
        let versions: Vec<String> =
            measured.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let text = format!("{}; {}; {}", measured.machine, measured.settings, versions.join(", "));
        match seen.iter_mut().find(|(known, _)| *known == text) {
            Some((_, names)) => names.push(scenario.name),
            None => seen.push((text, vec![scenario.name])),
        }
    }
    let lines: String = seen.iter().map(|(text, names)| format!("- {text}: {}\n", names.join(", "))).collect();
    format!("\n## Measured on\n\n{lines}")
}
