#![allow(clippy::unwrap_used)]

use super::*;

fn given(mesh: &str, dataplane: &str) -> Option<Result<LegacyPrometheus, String>> {
    let mesh: Mesh = serde_yaml_ng::from_str(mesh).unwrap();
    mesh.prometheus_of(&serde_yaml_ng::from_str(dataplane).unwrap())
}

#[test]
fn only_the_backend_in_use_counts() {
    for mesh in [
        "{}",
        "metrics: {backends: [{name: p, type: prometheus}]}",
        "metrics: {enabledBackend: q, backends: [{name: p, type: prometheus}]}",
        "metrics: {enabledBackend: p, backends: [{name: p, type: other}]}",
    ] {
        assert_eq!(given(mesh, "{}"), None, "{mesh}");
    }
}

#[test]
fn defaults_are_those_of_kuma() {
    let conf = given("metrics: {enabledBackend: p, backends: [{name: p, type: prometheus}]}", "{}").unwrap().unwrap();
    assert_eq!((conf.port, conf.path.as_str(), conf.tls_mode()), (5670, "/metrics", LegacyTlsMode::ActiveMtlsBackend));
    for (conf, mode) in [
        ("{skipMTLS: true}", LegacyTlsMode::Disabled),
        ("{skipMTLS: false}", LegacyTlsMode::ActiveMtlsBackend),
        ("{tls: {mode: providedTLS}}", LegacyTlsMode::ProvidedTls),
        ("{skipMTLS: true, tls: {mode: providedTLS}}", LegacyTlsMode::ProvidedTls),
    ] {
        let mesh = format!("metrics: {{enabledBackend: p, backends: [{{name: p, type: prometheus, conf: {conf}}}]}}");
        assert_eq!(given(&mesh, "{}").unwrap().unwrap().tls_mode(), mode, "{conf}");
    }
}

#[test]
fn a_dataplane_has_the_last_word() {
    let mesh = "metrics: {enabledBackend: p, backends: [{name: p, type: prometheus, conf: {port: '1234', path: /of-mesh, \
        tls: {mode: disabled}, aggregate: [{name: a, port: 1}, {name: b, port: 2}], envoy: {filterRegex: x, usedOnly: true}}}]}";
    let dataplane = "metrics: {type: prometheus, conf: {path: /own, tls: {mode: activeMTLSBackend}, \
        aggregate: [{name: b, port: 3, enabled: false}, {name: c, port: 4}], envoy: {filterRegex: y, usedOnly: false}}}";
    let conf = given(mesh, dataplane).unwrap().unwrap();
    assert_eq!((conf.port, conf.path.as_str()), (1234, "/own"));
    let envoy = conf.envoy.clone().unwrap();
    // Protobuf does not tell a field that is false or the first of its enum from one that was not set.
    assert_eq!((envoy.filter_regex.as_str(), envoy.used_only), ("y", Some(true)));
    assert_eq!(conf.tls_mode(), LegacyTlsMode::Disabled);
    let enabled: Vec<_> = conf.enabled().map(|aggregate| (aggregate.name.as_str(), aggregate.port)).collect();
    assert_eq!(enabled, [("a", 1), ("c", 4)]);

    assert_eq!(given(mesh, "metrics: {type: other, conf: {port: 1}}").unwrap().unwrap().port, 1234);
    let broken = given(mesh, "metrics: {type: prometheus, conf: {port: many}}").unwrap().unwrap_err();
    assert!(broken.starts_with("metrics: conf.port: "), "{broken}");
}
