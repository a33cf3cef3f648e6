#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::mpsc;

use shika_proto::type_url::CLUSTER;

use super::*;

const ONE: &str =
    "version_info: '7'\nresources:\n- { '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a }\n";

#[test]
fn reads_a_discovery_response() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cds.yaml");
    let name = path.to_str().unwrap();
    assert!(matches!(read(name, CLUSTER), Err(FileError::Read { .. })));
    std::fs::write(&path, ONE).unwrap();
    let update = read(name, CLUSTER).unwrap();
    assert_eq!((update.version.as_str(), update.resources.len(), update.kind), ("7", 1, UpdateKind::FullState));
    let error = read(name, shika_proto::type_url::LISTENER).unwrap_err().to_string();
    assert!(error.contains("holds a resource of type type.googleapis.com/envoy.config.cluster.v3.Cluster"), "{error}");
    std::fs::write(&path, "resources: [{ '@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, nope: 1 }]")
        .unwrap();
    let error = read(name, CLUSTER).unwrap_err().to_string();
    assert!(error.contains("resources[0].nope"), "{error}");
}

#[test]
fn a_move_into_place_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cds.yaml");
    let (changed, changes) = mpsc::channel();
    let _watch = watch(path.to_str().unwrap(), None, move || changed.send(()).unwrap_or_default()).unwrap();
    let new = directory.path().join("new");
    std::fs::write(&new, ONE).unwrap();
    std::fs::rename(&new, &path).unwrap();
    changes.recv().unwrap();
    assert!(watch("/nonexistent/x.yaml", None, || {}).is_err());
}
