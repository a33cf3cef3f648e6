#![allow(clippy::unwrap_used)]

use std::time::Instant;

use shika_proto::{
    envoy::config::{cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment},
    type_url,
};

use crate::{
    compile::testing::{ADS, apply, compiler, load},
    compiler::{Compiler, Update, UpdateKind},
};

/// A cluster whose endpoints are those of an assignment.
fn cluster(name: &str, assignment: &str) -> String {
    format!(
        "{{ name: {name}, type: EDS, eds_cluster_config: {{ service_name: {assignment}, eds_config: {{ ads: {{}}, resource_api_version: V3 }} }} }}"
    )
}

/// An assignment of one endpoint.
fn assignment(name: &str, port: u16) -> String {
    format!(
        "{{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }} }}] }}] }}"
    )
}

fn clusters(compiler: &mut Compiler, texts: &[String]) {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(apply::<Cluster>(compiler, Instant::now(), &texts).rejects, []);
    compiler.build();
}

fn endpoints(compiler: &mut Compiler, name: &str, port: u16) -> bool {
    let applied = apply::<ClusterLoadAssignment>(compiler, Instant::now(), &[&assignment(name, port)]);
    assert_eq!(applied.rejects, []);
    compiler.build();
    applied.changed
}

fn remove(compiler: &mut Compiler, name: &str) {
    let update = Update {
        type_url: type_url::CLUSTER.into(),
        resources: Vec::new(),
        removed: vec![name.into()],
        kind: UpdateKind::Delta,
        version: String::new(),
    };
    compiler.apply(update, Instant::now());
    compiler.build();
}

fn port(compiler: &Compiler, name: &str) -> Option<String> {
    let set = compiler.cluster(name)?.endpoints.load_full();
    let endpoint = set.all().next()?;
    Some(endpoint.address.to_string())
}

#[test]
fn clusters_are_found_by_the_assignment_that_they_ask_for() {
    let mut compiler = compiler();
    load(&mut compiler, ADS).unwrap();
    assert!(!endpoints(&mut compiler, "x", 1), "nobody asks for it yet");
    assert!(!compiler.clusters.ask_for("x"));

    // Two take theirs from one assignment, a third from another.
    clusters(&mut compiler, &[cluster("a", "x"), cluster("b", "x"), cluster("c", "u")]);
    assert_eq!(compiler.clusters.waiting().count(), 3);
    assert!(endpoints(&mut compiler, "x", 1));
    assert_eq!(compiler.clusters.waiting().map(|(name, _)| &**name).collect::<Vec<_>>(), ["c"]);
    assert!(endpoints(&mut compiler, "u", 2));
    assert_eq!(compiler.clusters.waiting().count(), 0);
    let ports = |compiler: &Compiler| ["a", "b", "c"].map(|name| port(compiler, name).unwrap_or_default());
    assert_eq!(ports(&compiler), ["127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2"]);

    // While the next version waits for another assignment, the one in force still takes its own.
    clusters(&mut compiler, &[cluster("a", "z")]);
    assert_eq!(compiler.clusters.that_ask_for("x").count(), 2);
    assert_eq!(compiler.clusters.that_ask_for("z").count(), 1);
    assert!(endpoints(&mut compiler, "x", 3));
    assert_eq!(ports(&compiler), ["127.0.0.1:3", "127.0.0.1:3", "127.0.0.1:2"]);
    assert!(endpoints(&mut compiler, "z", 4));
    assert_eq!(compiler.clusters.that_ask_for("x").count(), 1);
    assert!(endpoints(&mut compiler, "x", 5));
    assert_eq!(ports(&compiler), ["127.0.0.1:4", "127.0.0.1:5", "127.0.0.1:2"]);

    // A version that waits is replaced by one that asks for something else: what nobody asks for any more is forgotten.
    clusters(&mut compiler, &[cluster("a", "w")]);
    clusters(&mut compiler, &[cluster("a", "z")]);
    assert!(!compiler.clusters.ask_for("w"));
    remove(&mut compiler, "b");
    assert!(!compiler.clusters.ask_for("x") && !compiler.assignments.contains_key("x"));
    assert!(!endpoints(&mut compiler, "x", 6), "nobody asks for it any more");
    // Asked for anew, it has to come anew.
    clusters(&mut compiler, &[cluster("b", "x")]);
    assert_eq!(port(&compiler, "b"), None);
    assert!(endpoints(&mut compiler, "x", 6));
    assert_eq!(ports(&compiler), ["127.0.0.1:4", "127.0.0.1:6", "127.0.0.1:2"]);
    for name in ["a", "b", "c"] {
        remove(&mut compiler, name);
    }
    assert!(compiler.clusters.by_assignment.is_empty() && compiler.clusters.waiting.is_empty());
    assert_eq!(compiler.clusters.len(), 1, "the static one");
}
