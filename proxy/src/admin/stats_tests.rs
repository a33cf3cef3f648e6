#![allow(clippy::panic)]

use shika_data::stats::{ClusterStats, Registry, Scope};

use super::*;

fn registry() -> (Arc<Registry>, ClusterStats) {
    let registry = Registry::new(1);
    let cluster = ClusterStats::new(&registry, Scope { prefix: "cluster.a.".into(), ..Scope::default() });
    cluster.upstream_cx_total().add(7);
    cluster.upstream_rq_time().record(1);
    (registry, cluster)
}

fn render(query: &str, json: bool, limit: usize) -> String {
    let (registry, _cluster) = registry();
    let query = Query::parse(query);
    let mut listing = Listing::new(
        registry.groups(),
        Selection::new(&query).expect("a selection"),
        display(&query).expect("a display"),
        json,
    );
    let (mut text, mut out) = (String::new(), String::new());
    while listing.write(&mut out, limit) {
        text.push_str(&std::mem::take(&mut out));
    }
    text + &out
}

#[test]
fn text_is_sorted_with_histograms_last() {
    let text = render("usedonly", false, 16);
    assert_eq!(
        text,
        "cluster.a.upstream_cx_total: 7\ncluster.a.upstream_rq_time: P0(nan,0.5) P25(nan,0.625) P50(nan,0.75) P75(nan,0.875) P90(nan,0.95) \
         P95(nan,0.975) P99(nan,0.995) P99.5(nan,0.9975) P99.9(nan,0.9995) P100(nan,1)\n"
    );
}

#[test]
fn filters_and_kinds() {
    assert_eq!(render("filter=cx_total$", false, 1024), "cluster.a.upstream_cx_total: 7\n");
    assert_eq!(render("type=TextReadouts", false, 1024), "");
    assert!(!render("filter=cx_total$&invert_filter", false, 1024).contains("cx_total:"));
    assert!(
        render("type=Histograms", false, 1024)
            .lines()
            .all(|line| line.contains(": P0(") || line.ends_with("No recorded values"))
    );
    for (query, error) in [("filter=(", "Invalid re2 regex:"), ("type=Nonsense", "invalid &type= param")] {
        let found = Selection::new(&Query::parse(query)).expect_err("a refusal");
        assert!(found.starts_with(error), "{found}");
    }
}

#[test]
fn json_is_whole_however_it_is_cut() {
    for query in
        ["usedonly", "", "type=Histograms", "type=TextReadouts", "type=Counters", "histogram_buckets=cumulative"]
    {
        for limit in [16, 64, 4096, 1 << 20] {
            let text = render(query, true, limit);
            let value: serde_json::Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{query} {limit}: {error}: {text}"));
            assert!(value["stats"].is_array());
        }
    }
    let value: serde_json::Value = serde_json::from_str(&render("usedonly", true, 16)).expect("JSON");
    assert_eq!(value["stats"][0], serde_json::json!({"name": "cluster.a.upstream_cx_total", "value": 7}));
    assert_eq!(value["stats"][1]["histograms"]["computed_quantiles"][0]["values"][9]["cumulative"], 1.0);
}
