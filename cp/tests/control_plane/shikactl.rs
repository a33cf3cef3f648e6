//! shikactl against a control plane.

use std::path::Path;

use clap::Parser;
use serde_json::{Value, json};
use shika_cp::ctl::{self, Arguments, Streams};
use shika_cp::store::Store;

use crate::support::{Server, dataplane};

/// What a command wrote, or why it failed.
struct Run {
    output: String,
    errors: String,
    result: Result<(), String>,
}

impl Run {
    fn ok(self) -> String {
        self.result.unwrap_or_else(|error| panic!("{error}"));
        self.output
    }

    fn error(self) -> String {
        self.result.expect_err("the command succeeded")
    }
}

async fn shikactl(config: &Path, arguments: &[&str], input: &str) -> Run {
    let config = config.to_str().unwrap();
    let arguments = ["shikactl", "--config-file", config].into_iter().chain(arguments.iter().copied());
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return Run { output: String::new(), errors: String::new(), result: Err(error.to_string()) },
    };
    let (mut input, mut output, mut errors) = (input.as_bytes(), Vec::new(), Vec::new());
    let streams = Streams { input: &mut input, output: &mut output, errors: &mut errors };
    let result = ctl::run(arguments, streams).await.map_err(|error| format!("{error:#}"));
    Run { output: String::from_utf8(output).unwrap(), errors: String::from_utf8(errors).unwrap(), result }
}

/// A control plane, and a configuration that knows it.
async fn control_plane() -> (Server, tempfile::TempDir, std::path::PathBuf) {
    let server = Server::start(Store::memory()).await;
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("deep/config");
    let added =
        shikactl(&config, &["config", "control-planes", "add", "--name", "test", "--address", &server.url()], "").await;
    assert_eq!(added.ok(), "added Control Plane \"test\"\nswitched active Control Plane to \"test\"\n");
    (server, directory, config)
}

const DATAPLANE: &str = "type: Dataplane
mesh: default
name: {{ name }}
networking:
  address: {{ip}}
  inbound:
  - {port: 80, tags: {kuma.io/service: web, version: v1}}
";

#[tokio::test]
async fn resources_are_applied_shown_and_deleted() {
    let (cp, directory, config) = control_plane().await;
    let run = async |arguments: &[&str], input: &str| shikactl(&config, arguments, input).await;
    let file = directory.path().join("dataplane.yaml");
    std::fs::write(&file, DATAPLANE).unwrap();
    let file = file.to_str().unwrap();
    let applied = run(&["apply", "-f", file, "-v", "name=web-1", "--var", "ip=10.0.0.1"], "").await;
    assert_eq!(applied.ok(), "resource type=\"Dataplane\" mesh=\"default\" name=\"web-1\" Created\n");
    let again = run(&["apply", "-f", file, "-v", "name=web-1", "--var", "ip=10.0.0.2"], "").await;
    assert_eq!(again.ok(), "resource type=\"Dataplane\" mesh=\"default\" name=\"web-1\" Updated\n");

    let table = run(&["get", "dataplanes"], "").await.ok();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["MESH", "NAME", "TAGS", "ADDRESS", "AGE"]);
    assert!(lines[1].starts_with("default   web-1   kuma.io/service=web version=v1   10.0.0.2"), "{table}");
    let one: Value = serde_json::from_str(&run(&["get", "dataplane", "web-1", "-o", "json"], "").await.ok()).unwrap();
    assert_eq!(one["networking"]["address"], "10.0.0.2");
    let yaml = run(&["get", "dataplane", "web-1", "-o", "yaml"], "").await.ok();
    assert_eq!(
        run(&["apply", "-f", "-"], &yaml).await.ok(),
        "resource type=\"Dataplane\" mesh=\"default\" name=\"web-1\" Updated\n"
    );

    let inspected = run(&["inspect", "dataplanes", "--tag", "version=v1"], "").await.ok();
    let line = inspected.lines().nth(1).unwrap();
    assert!(line.contains("Offline") && line.contains("never"), "{inspected}");
    assert_eq!(run(&["inspect", "dataplanes", "--gateway"], "").await.ok().lines().count(), 1);
    let overviews: Value = serde_json::from_str(&run(&["inspect", "dataplanes", "-o", "json"], "").await.ok()).unwrap();
    assert_eq!(overviews["items"][0]["type"], "DataplaneOverview");

    assert_eq!(run(&["delete", "dataplane", "web-1"], "").await.ok(), "deleted Dataplane \"web-1\"\n");
    let missing = run(&["get", "dataplane", "web-1"], "").await.error();
    assert_eq!(missing, "there is no Dataplane \"web-1\" in mesh \"default\"; another mesh is named with --mesh");
    assert_eq!(run(&["delete", "dataplane", "web-1"], "").await.error(), missing);
    assert!(cp.store.list(shika_cp::resource::Kind::Dataplane, None).await.unwrap().is_empty());
}

#[tokio::test]
async fn many_documents_are_applied_in_order() {
    let (_cp, directory, config) = control_plane().await;
    let resources = directory.path().join("resources");
    std::fs::create_dir(&resources).unwrap();
    std::fs::write(
        resources.join("1-mesh.yaml"),
        "type: Mesh\nname: demo\nmtls: {enabledBackend: ca, backends: [{name: ca, type: builtin}]}\n",
    )
    .unwrap();
    std::fs::write(resources.join("2.json"), dataplane("demo", "d", "web").to_string()).unwrap();
    std::fs::write(resources.join("notes.txt"), "no resource").unwrap();
    let permission = "---\ntype: MeshTrafficPermission\nname: all\nmesh: demo\nspec: {from: [{targetRef: {kind: Mesh}, default: {action: Allow}}]}\n---\ntype: Secret\nmesh: demo\nname: s\ndata: eA==\n";
    std::fs::write(resources.join("3.yml"), permission).unwrap();
    let applied = shikactl(&config, &["apply", "-f", resources.to_str().unwrap()], "").await.ok();
    assert_eq!(
        applied,
        "resource type=\"Mesh\" mesh=\"\" name=\"demo\" Created\nresource type=\"Dataplane\" mesh=\"demo\" name=\"d\" Created\n\
         resource type=\"MeshTrafficPermission\" mesh=\"demo\" name=\"all\" Created\nresource type=\"Secret\" mesh=\"demo\" name=\"s\" Created\n"
    );
    let meshes = shikactl(&config, &["get", "meshes"], "").await.ok();
    let rows: Vec<Vec<&str>> = meshes.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "mTLS", "LOCALITY", "ZONEEGRESS", "AGE"]);
    assert_eq!(rows[1][..4], ["default", "off", "off", "off"]);
    assert_eq!(rows[2][..4], ["demo", "builtin/ca", "off", "off"]);
    for (kind, count) in [("meshtrafficpermissions", 1), ("secrets", 2), ("dataplane-insights", 0)] {
        let list = shikactl(&config, &["get", kind, "--mesh", "demo", "-o", "json"], "").await.ok();
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(
            (list["total"].as_u64(), list["items"].as_array().map(Vec::len)),
            (Some(count), Some(count as usize)),
            "{kind}"
        );
    }
    assert!(shikactl(&config, &["get", "globalsecrets"], "").await.ok().contains("admin-user-token"));
}

#[tokio::test]
async fn nothing_is_applied_when_a_document_is_wrong() {
    let (cp, _directory, config) = control_plane().await;
    let good = "type: Mesh\nname: good\n---\n";
    for (bad, expected) in [
        ("type: Mesh\n  name: x", "standard input: invalid YAML or JSON"),
        ("type: Nonsense\nname: x", "standard input, resource[1]: type: unknown resource type \"Nonsense\""),
        ("type: Mesh\nname: X", "standard input, resource[1]: name: invalid characters"),
        (
            "type: Dataplane\nname: x\nnetworking: {inbound: [{port: many}]}",
            "standard input, resource[1]: networking.inbound[0].port: expected a whole number",
        ),
    ] {
        let error = shikactl(&config, &["apply", "-f", "-"], &format!("{good}{bad}")).await.error();
        assert!(error.starts_with("nothing was applied:\n") && error.contains(expected), "{error}");
    }
    let error =
        shikactl(&config, &["apply", "-f", "-", "--var", "a=b"], "type: Mesh\nname: {{ name }}\n").await.error();
    assert!(error.contains("line 2: variable \"name\" is not given; give it with --var name=VALUE"), "{error}");
    assert!(shikactl(&config, &["apply", "-f", "-"], "").await.error().starts_with("no resource(s) passed to apply"));
    assert!(
        shikactl(&config, &["apply", "-f", "/nowhere.yaml"], "").await.error().starts_with("cannot read /nowhere.yaml")
    );
    let meshes = cp.get("/meshes").await.json();
    assert_eq!(meshes["total"], 1, "only the default mesh");
    // What only the control plane can know is refused there, with its words and the document's place.
    let error = shikactl(&config, &["apply", "-f", "-"], "type: Dataplane\nname: d\nnetworking: {address: 1.1.1.1}\n")
        .await
        .error();
    assert_eq!(
        error,
        "standard input, resource[0]: resource type=\"Dataplane\" mesh=\"default\" name=\"d\": failed server side: Failed to create a \
         resource (Resource is not valid)\n* networking: has to contain at least one inbound interface or gateway"
    );
}

#[tokio::test]
async fn warnings_are_shown_and_a_dry_run_changes_nothing() {
    let (cp, _directory, config) = control_plane().await;
    let run = shikactl(&config, &["apply", "-f", "-"], "type: Mesh\nname: m\nmtsl: {}\n").await;
    assert_eq!(run.errors, "Warning: standard input, resource[0]: mtsl: unknown field, ignored\n");
    assert_eq!(run.ok(), "resource type=\"Mesh\" mesh=\"\" name=\"m\" Created\n");
    let dry = shikactl(&config, &["apply", "--dry-run", "-f", "-", "-v", "n=dry"], "type: Mesh\nname: {{n}}\n").await;
    assert_eq!(dry.ok(), "---\ntype: Mesh\nname: dry\n");
    assert_eq!(cp.get("/meshes/dry").await.status, 404);
}

#[tokio::test]
async fn tokens_are_made() {
    let (cp, _directory, config) = control_plane().await;
    let arguments = [
        "generate",
        "dataplane-token",
        "--name",
        "web-1",
        "--tag",
        "kuma.io/service=web&api",
        "--tag",
        "version=v1",
        "--valid-for",
        "1h",
    ];
    let token = shikactl(&config, &arguments, "").await.ok();
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(&token).unwrap();
    assert_eq!(claims["Name"], "web-1");
    assert_eq!(claims["Tags"], json!({"kuma.io/service": ["api", "web"], "version": ["v1"]}));
    let user = ["generate", "user-token", "--name", "jane", "--group", "mesh-system:admin", "--valid-for", "1h"];
    let token = shikactl(&config, &user, "").await.ok();
    let add = [
        "config",
        "control-planes",
        "add",
        "--name",
        "jane",
        "--address",
        &cp.url(),
        "--auth-type",
        "tokens",
        "--auth-conf",
    ];
    let auth = format!("token={token}");
    shikactl(&config, &[&add[..], &[auth.as_str()]].concat(), "").await.ok();
    assert!(shikactl(&config, &["get", "secrets"], "").await.ok().contains("dataplane-token-signing-key-default-1"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&config).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "a token is in it");
    let missing = shikactl(&config, &["generate", "dataplane-token", "--name", "x"], "").await.error();
    assert!(missing.contains("--valid-for <DURATION>"), "{missing}");
    let wrong = shikactl(&config, &["generate", "dataplane-token", "--valid-for", "1 day"], "").await.error();
    assert!(wrong.contains("write numbers with the units h, m, s"), "{wrong}");
    let nowhere =
        shikactl(&config, &["generate", "dataplane-token", "--mesh", "nowhere", "--valid-for", "1h"], "").await.error();
    assert!(nowhere.starts_with("Signing Key not found"), "{nowhere}");
}

#[tokio::test]
async fn control_planes_are_managed() {
    let (cp, _directory, config) = control_plane().await;
    let run = async |arguments: &[&str]| shikactl(&config, arguments, "").await;
    let add = ["config", "control-planes", "add", "--address", &cp.url(), "--name"];
    let twice = run(&[&add[..], &["test"]].concat()).await.error();
    assert_eq!(twice, "Control Plane with name \"test\" already exists. Use --overwrite to replace an existing one.");
    run(&[&add[..], &["test", "--overwrite"]].concat()).await.ok();
    run(&[&add[..], &["second"]].concat()).await.ok();
    run(&["config", "control-planes", "switch", "--name", "test"]).await.ok();
    let list = run(&["config", "control-planes", "list"]).await.ok();
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [vec!["ACTIVE", "NAME", "ADDRESS"], vec!["*", "test", &cp.url()], vec!["second", &cp.url()]]);
    assert!(
        run(&["config", "control-planes", "switch", "--name", "third"])
            .await
            .error()
            .contains("no control plane \"third\"")
    );
    assert!(
        run(&["--context", "third", "get", "meshes"])
            .await
            .error()
            .contains("no control plane \"third\" in the configuration, only [\"test\", \"second\"]")
    );
    run(&["--context", "second", "get", "meshes"]).await.ok();
    run(&["config", "control-planes", "remove", "--name", "test"]).await.ok();
    assert!(
        run(&["config", "control-planes", "remove", "--name", "test"])
            .await
            .error()
            .contains("no control plane \"test\"")
    );
    // kumactl's names of the fields, so that either can read the other's file.
    let view: Value = serde_yaml_ng::from_str(&run(&["config", "view"]).await.ok()).unwrap();
    assert_eq!(
        view,
        json!({
            "contexts": [{"name": "second", "controlPlane": "second"}],
            "controlPlanes": [{"name": "second", "coordinates": {"apiServer": {"url": cp.url()}}}],
            "currentContext": "",
        })
    );
    assert!(run(&["version"]).await.ok().starts_with("Client: Shika "));
}

#[tokio::test]
async fn a_control_plane_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    // A port that was free a moment ago, and on which nobody listens.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let add = ["config", "control-planes", "add", "--name", "gone", "--address", &url];
    let error = shikactl(&config, &add, "").await.error();
    assert!(error.starts_with("the control plane was not added (--skip-check adds it anyway)"), "{error}");
    shikactl(&config, &[&add[..], &["--skip-check"]].concat(), "").await.ok();
    let error = shikactl(&config, &["get", "meshes"], "").await.error();
    assert!(error.starts_with(&format!("cannot call the control plane at {url}; is it running")), "{error}");
    std::fs::write(&config, "contexts: 1").unwrap();
    let error = shikactl(&config, &["get", "meshes"], "").await.error();
    assert!(error.contains("is damaged; correct or remove it"), "{error}");
}

#[test]
fn every_argument_is_explained() {
    fn explained(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        assert!(command.get_about().is_some(), "{path} says nothing");
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{path}: {} says nothing", argument.get_id());
        }
        for command in command.get_subcommands() {
            explained(command, &path);
        }
    }
    let command = <Arguments as clap::CommandFactory>::command();
    command.clone().debug_assert();
    explained(&command, "");
}
