//! What may not join, and what may not be stored: the text says why, and nothing changes.

use std::time::{Duration, SystemTime};

use super::process::{Process, free_port, get, until};
use super::world::{ControlPlane, join};

/// All resources of the mesh as the API shows them.
fn everything(cp: &ControlPlane) -> String {
    ["/meshes", "/meshes/demo/dataplanes", "/meshes/demo/meshtrafficpermissions", "/meshes/demo/dataplanes/_overview"]
        .map(|path| {
            let (status, body) = get(cp.api, path).unwrap();
            assert_eq!(status, 200, "{path}: {body}");
            body
        })
        .join("\n")
}

fn with_meshes() -> (tempfile::TempDir, ControlPlane) {
    let directory = tempfile::tempdir().unwrap();
    let cp = ControlPlane::start(directory.path());
    let mtls = "mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}";
    cp.apply(&format!("type: Mesh\nname: demo\n{mtls}\n---\ntype: Mesh\nname: other\n{mtls}\n"));
    (directory, cp)
}

#[test]
fn who_cannot_prove_to_belong_does_not_join() {
    let (directory, cp) = with_meshes();
    let before = everything(&cp);
    let short = cp.token("demo", "web-1", "1s");
    let made = SystemTime::now();
    let good = cp.token("demo", "web-1", "1h");
    let dataplane =
        |more: &str| format!("type: Dataplane\nmesh: demo\nname: web-1\nnetworking:\n  address: 127.0.0.1\n  {more}\n");
    let port = free_port();
    let whole = dataplane(&format!("inbound: [{{port: {port}, tags: {{kuma.io/service: web}}}}]"));
    let untagged = dataplane(&format!("inbound: [{{port: {port}, tags: {{kuma.io/protocol: http}}}}]"));
    let mut altered = good.clone();
    // The last but one character: the last may hold bits that mean nothing.
    let at = altered.len() - 2;
    altered.replace_range(at..=at, if altered.as_bytes()[at] == b'A' { "B" } else { "A" });
    until("the end of the short token's life", || {
        made.elapsed().is_ok_and(|passed| passed > Duration::from_secs(3)).then_some(())
    });
    let cases: [(&str, &str, &str, &[&str]); 7] = [
        ("no token", "not-a-token", &whole, &["dataplaneToken", "token"]),
        ("altered token", &altered, &whole, &["dataplaneToken", "signature"]),
        ("token of another mesh", &cp.token("other", "web-1", "1h"), &whole, &["dataplaneToken", "other", "demo"]),
        ("token of another name", &cp.token("demo", "web-2", "1h"), &whole, &["dataplaneToken", "web-1", "web-2"]),
        ("expired token", &short, &whole, &["dataplaneToken", "expired"]),
        ("no inbound", &good, &dataplane("outbound: []"), &["networking", "inbound"]),
        ("no service", &good, &untagged, &["networking.inbound[0].tags", "kuma.io/service"]),
    ];
    for (what, token, dataplane, expected) in cases {
        let (token_file, file) = (directory.path().join("token"), directory.path().join("dataplane.yaml"));
        std::fs::write(&token_file, token).unwrap();
        std::fs::write(&file, dataplane).unwrap();
        let mut command = join(&cp, &token_file);
        let mut proxy = Process::start(what, directory.path(), command.arg("--dataplane-file").arg(&file));
        let status = proxy.wait();
        let said = proxy.log();
        assert_eq!(status.code(), Some(1), "{what}: {said}");
        for text in expected {
            assert!(said.contains(text), "{what}: {text:?} is not in:\n{said}");
        }
        assert_eq!(everything(&cp), before, "{what} changes nothing");
    }
}

#[test]
fn what_is_wrong_is_named_and_not_stored() {
    let (_directory, cp) = with_meshes();
    let before = everything(&cp);
    let good = "type: MeshTrafficPermission\nmesh: demo\nname: fine\nspec: {targetRef: {kind: Mesh}, from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]}";
    let cases: [(&str, &[&str]); 7] = [
        ("type: Mesh\nname: [", &["standard input: invalid YAML or JSON"]),
        ("type: Dataplane\nmesh: demo\nname: web-1\nnetworking: {address: 127.0.0.1}", &["networking", "inbound"]),
        (
            "type: Dataplane\nmesh: demo\nname: web-1\nnetworking: {address: 127.0.0.1, inbound: [{port: 70000, tags: {kuma.io/service: web}}]}",
            &["networking.inbound[0].port"],
        ),
        (
            "type: Dataplane\nmesh: nowhere\nname: web-1\nnetworking: {address: 127.0.0.1, inbound: [{port: 1, tags: {kuma.io/service: web}}]}",
            &["nowhere"],
        ),
        (
            "type: MeshTrafficPermission\nmesh: demo\nname: p\nspec: {from: [{targetRef: {kind: Mesh}, default: {action: Maybe}}]}",
            &["spec.from[0].default.action", "Maybe"],
        ),
        ("type: TrafficRoute\nmesh: demo\nname: r", &["TrafficRoute"]),
        (
            &format!("{good}\n---\ntype: Mesh\nname: demo\nmtls: {{backends: [{{mode: strict}}]}}"),
            &["mtls.backends[0].mode"],
        ),
    ];
    for (yaml, expected) in cases {
        let (accepted, said) = cp.ctl(&["apply", "-f", "-"], yaml);
        assert!(!accepted, "{yaml}\n{said}");
        for text in expected {
            assert!(said.contains(text), "{text:?} is not in:\n{said}\n{yaml}");
        }
        assert_eq!(everything(&cp), before, "{yaml}");
    }

    // Kuma passes unknown fields over; so does Shika, but not without a word.
    let (accepted, said) = cp.ctl(&["apply", "-f", "-"], &good.replace("spec: {", "spec: {form: [], "));
    assert!(accepted && said.contains("Warning") && said.contains("spec.form: unknown field"), "{said}");
}
