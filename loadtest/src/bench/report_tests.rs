#![allow(clippy::unwrap_used)]
use super::*;
use crate::bench::{html, markdown};

fn measured(rows: &[(Name, &[f64])]) -> Measured {
    let mut measured = Measured { machine: "m".into(), settings: "s".into(), ..Measured::default() };
    for (subject, values) in rows {
        measured.versions.insert(*subject, "1".into());
        for value in *values {
            measured.add(*subject, Round::from([(Metric::Cpu, *value), (Metric::P99, 100.0)]));
        }
    }
    measured
}

fn report(shika: f64) -> Report {
    let mut report = Report::new();
    let rows: &[(Name, &[f64])] = &[
        (Name::Envoy, &[50.0, 49.0, 52.0]),
        (Name::Shika, &[shika]),
        (Name::Haproxy, &[18.0]),
        (Name::Nginx, &[20.0]),
    ];
    report.scenarios.insert("http1_one_hop".into(), measured(rows));
    report
}

#[test]
fn bars_are_held_or_missed() {
    // Envoy's median is 50 and the better peer took 18: the bars are 22.5 and 21.6.
    for (shika, of_envoy, of_peer) in [(20.0, true, true), (22.0, true, false), (23.0, false, false)] {
        let held: Vec<bool> = report(shika).judged().iter().map(|(_, _, bar)| bar.held).collect();
        assert_eq!(held, [of_envoy, of_peer], "{shika} µs");
    }
    assert!(Report::new().judged().is_empty(), "a bar without figures is not judged");
}

#[test]
fn the_table_shows_medians_ratio_and_verdict() {
    let text = markdown::render(&report(23.0));
    assert!(text.contains("| http1_one_hop | 50.0 (49.0–52.0) | 23.0 | 18.0 | 20.0 | **0.46** |"), "{text}");
    assert!(text.contains("≤ 0.45 of Envoy: **missed**"), "{text}");
    assert!(text.contains("## Bars: 0 of 2 held"), "{text}");
    let columns: Vec<usize> =
        text.lines().filter(|line| line.starts_with('|')).take(3).map(|line| line.matches('|').count()).collect();
    assert_eq!(columns, [columns[0]; 3], "{text}");
}

#[test]
fn the_page_is_whole_and_draws_the_bar() {
    let page = html::render(&report(23.0));
    assert!(page.contains("<svg") && page.ends_with("</html>\n"), "{page}");
    assert!(page.contains("shika: 23.0 = 0.46 of Envoy"), "{page}");
    assert!(page.contains("stroke-width=\"2\""), "the bar's line is missing: {page}");
    assert_eq!(page.matches("<g>").count(), page.matches("</g>").count());
}

#[test]
fn a_later_run_replaces_its_scenarios_alone() {
    let mut earlier = report(20.0);
    earlier.scenarios.insert("tcp_one_hop".into(), measured(&[(Name::Envoy, &[10.0])]));
    earlier.merge(report(30.0));
    assert_eq!(earlier.figure("http1_one_hop", Name::Shika, Metric::Cpu).unwrap().median, 30.0);
    assert_eq!(earlier.figure("tcp_one_hop", Name::Envoy, Metric::Cpu).unwrap().median, 10.0);
}

#[test]
fn what_is_written_is_read_again() {
    let text = serde_json::to_string(&report(20.0)).unwrap();
    let again: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
    assert_eq!(again.ratio("http1_one_hop", Metric::Cpu), Some(0.4));
}

#[test]
fn latency_and_growth_are_drawn() {
    let mut report = Report::new();
    let figures = [(Metric::P50, 100.0), (Metric::P999, 900.0), (Metric::Start, 70.0), (Metric::Growth, 1.2)];
    for name in ["latency_70", "clusters_1", "clusters_10000"] {
        let mut measured = Measured::default();
        measured.add(Name::Shika, Round::from(figures));
        report.scenarios.insert(name.into(), measured);
    }
    let page = html::render(&report);
    for title in [
        "latency_70: percentiles",
        "start to first byte, ms by number",
        "CPU per request, times that with one cluster by number",
    ] {
        assert!(page.contains(title), "{title} is missing: {page}");
    }
    assert!(!page.contains("endpoint update to use, ms by number"), "what was not measured is not drawn: {page}");
    // The bars at 10,000 clusters: 1.1 times the CPU time with one, 400 ms.
    let judged: Vec<_> = report.judged().into_iter().map(|(name, metric, bar)| (name, metric, bar.held)).collect();
    assert_eq!(judged, [("clusters_10000", Metric::Growth, false), ("clusters_10000", Metric::Start, true)]);
}
