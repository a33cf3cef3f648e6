//! The dashboards of `docs/grafana` show metrics that exist, with the labels that they are grouped and selected by.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::process::{free_port, get, until};
use super::world::{Make, World};

/// Labels that Prometheus itself puts on what it scraped.
const SCRAPED: [&str; 2] = ["job", "instance"];

/// Names of metrics with names of labels.
type Series = BTreeMap<String, BTreeSet<String>>;

/// Every metric of a dashboard, with the labels that are asked of it.
fn shown(dashboard: &str) -> Series {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/grafana").join(dashboard);
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut expressions = Vec::new();
    collect(&dashboard, &mut expressions);
    assert!(expressions.len() > 5, "{expressions:?}");
    let metric = Regex::new(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{([^}]*)\}").unwrap();
    let label = Regex::new(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)").unwrap();
    let groups = Regex::new(r"\bby\s*\(([^)]*)\)").unwrap();
    let variable = Regex::new(r"^label_values\((\w+)(\{[^}]*\})?,\s*(\w+)\)$").unwrap();
    let mut shown = Series::new();
    for expression in expressions {
        let mut grouped: BTreeSet<String> = groups
            .captures_iter(&expression)
            .flat_map(|found| found[1].split(',').map(|label| label.trim().to_owned()).collect::<Vec<_>>())
            .collect();
        if let Some(found) = variable.captures(&expression) {
            grouped.insert(found[3].to_owned());
            shown.entry(found[1].to_owned()).or_default().extend(grouped.clone());
        }
        let metrics: Vec<_> = metric.captures_iter(&expression).collect();
        assert!(!metrics.is_empty() || variable.is_match(&expression), "no metric in {expression}");
        for found in metrics {
            let labels = label.captures_iter(&found[2]).map(|label| label[1].to_owned());
            shown.entry(found[1].to_owned()).or_default().extend(labels.chain(grouped.clone()));
        }
    }
    for labels in shown.values_mut() {
        labels.retain(|label| !SCRAPED.contains(&label.as_str()));
    }
    shown
}

/// Expressions of panels, and queries of variables.
fn collect(value: &Value, expressions: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                match (field.as_str(), value) {
                    ("expr", Value::String(text)) => expressions.push(text.clone()),
                    ("query", Value::String(text)) if text.contains('(') => expressions.push(text.clone()),
                    _ => collect(value, expressions),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, expressions)),
        _ => {}
    }
}

/// The metrics of an exposition in the Prometheus text format.
fn exposed(text: &str, series: &mut Series) {
    let label = Regex::new(r#"([a-zA-Z_][a-zA-Z0-9_]*)="(?:[^"\\]|\\.)*""#).unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let end = line.find(['{', ' ']).unwrap();
        let labels = label.captures_iter(&line[end..]).map(|label| label[1].to_owned());
        series.entry(line[..end].to_owned()).or_default().extend(labels);
    }
}

/// What of the dashboards is not there.
fn missing(dashboards: &[&str], exposed: &Series) -> Vec<String> {
    let mut missing = Vec::new();
    for dashboard in dashboards {
        for (metric, labels) in shown(dashboard) {
            match exposed.get(&metric) {
                None => missing.push(format!("{dashboard}: there is no {metric}")),
                Some(there) => {
                    let lacks =
                        labels.difference(there).map(|label| format!("{dashboard}: {metric} has no label {label}"));
                    missing.extend(lacks);
                }
            }
        }
    }
    missing
}

#[test]
fn dashboards_show_metrics_that_exist() {
    let world = World::start(Make::Shika, Make::Shika);
    let ports = [("web", free_port()), ("backend", free_port())];
    for (service, port) in ports {
        world.cp.apply(&format!(
            "type: MeshMetric\nmesh: demo\nname: {service}\nspec:\n  targetRef: {{kind: MeshSubset, tags: {{kuma.io/service: {service}}}}}\n  \
             default:\n    sidecar: {{includeUnused: true}}\n    backends: [{{type: Prometheus, prometheus: {{port: {port}}}}}]\n"
        ));
    }
    let proxies = until("the metrics of both proxies", || {
        assert_eq!(world.call().map(|(status, _)| status), Some(200));
        let mut series = Series::new();
        for (_, port) in ports {
            let (_, text) = get(port, "/metrics").filter(|(status, _)| *status == 200)?;
            exposed(&text, &mut series);
        }
        // The reply to a call is counted after it was sent.
        series.contains_key("envoy_cluster_upstream_rq_xx").then_some(series)
    });
    assert_eq!(missing(&["shika-proxy.json", "shika-mesh.json"], &proxies), Vec::<String>::new());

    let control_plane = until("the certificates in the metrics of the control plane", || {
        let (_, text) = get(world.cp.diagnostics, "/metrics")?;
        let mut series = Series::new();
        exposed(&text, &mut series);
        // Told by insights, which are written now and then.
        series.contains_key("shika_certificate_expiration_seconds").then_some(series)
    });
    assert_eq!(missing(&["shika-control-plane.json"], &control_plane), Vec::<String>::new());

    // The comparison can fail.
    let mut lacking = control_plane.clone();
    lacking.remove("cp_info");
    lacking.get_mut("xds_nacks_total").unwrap().remove("type_url");
    assert_eq!(missing(&["shika-control-plane.json"], &lacking).len(), 2);
}
