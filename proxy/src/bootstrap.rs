//! The bootstrap as given on the command line.
//!
//! Source: Envoy documentation, "Command line options" (`--config-path`, `--config-yaml`) and "Bootstrap".

use std::{fs, path::Path};

use prost::{Message, Name};
use shika_proto::{
    bootstrap::EncodedBootstrap,
    envoy::config::{
        bootstrap::v3::Bootstrap,
        core::v3::{Locality, Node},
    },
    json,
};

use crate::options::Options;

/// Reads file and inline YAML and merges them.
///
/// # Errors
/// Every error with file and field path.
pub fn load(options: &Options) -> Result<EncodedBootstrap, Vec<String>> {
    let mut bootstrap = match &options.config_path {
        Some(path) => EncodedBootstrap::new(file(path, options)?),
        None => EncodedBootstrap::default(),
    };
    if let Some(text) = options.config_yaml.as_deref().filter(|text| !text.trim().is_empty()) {
        // Protobuf's own merge, as in Envoy: set fields replace, lists are appended.
        bootstrap.merge(&yaml("--config-yaml", text, options)?);
    }
    let frame = bootstrap.frame().map_err(|error| vec![error.to_string()])?;
    bootstrap.merge(&completion(&frame, options).encode_to_vec());
    Ok(bootstrap)
}

/// A bootstrap in protobuf's binary form.
fn file(path: &Path, options: &Options) -> Result<Vec<u8>, Vec<String>> {
    let name = path.display().to_string();
    let unreadable = |error: std::io::Error| vec![format!("unable to read file: {name}: {error}")];
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("pb") => {
            let bytes = fs::read(path).map_err(unreadable)?;
            let decoded = Bootstrap::decode(bytes.as_slice())
                .map_err(|error| vec![format!("'{name}': not a Bootstrap in protobuf's binary form: {error}")])?;
            // The decoder leaves out what it does not know; otherwise the compiler refuses it by its number.
            Ok(if options.allow_unknown_static_fields { decoded.encode_to_vec() } else { bytes })
        }
        Some("pb_text" | "pb_textproto" | "textproto") => Err(vec![format!(
            "'{name}': protobuf's text format is not read; give the bootstrap as YAML, JSON or binary (.pb)"
        )]),
        Some("json") => {
            let text = fs::read_to_string(path).map_err(unreadable)?;
            let parsed = json::json_str_to_wire(&Bootstrap::full_name(), &text, parse_options(options))
                .map_err(|errors| named(&name, &errors))?;
            note_unknown(&name, &parsed.ignored);
            Ok(parsed.message)
        }
        _ => yaml(&name, &fs::read_to_string(path).map_err(unreadable)?, options),
    }
}

fn yaml(name: &str, text: &str, options: &Options) -> Result<Vec<u8>, Vec<String>> {
    let parsed = json::yaml_to_wire(&Bootstrap::full_name(), text, parse_options(options))
        .map_err(|errors| named(name, &errors))?;
    note_unknown(name, &parsed.ignored);
    Ok(parsed.message)
}

fn parse_options(options: &Options) -> json::Options {
    json::Options { allow_unknown_fields: options.allow_unknown_static_fields }
}

fn named(name: &str, errors: &[json::FieldError]) -> Vec<String> {
    errors.iter().map(|error| format!("'{name}': {error}")).collect()
}

fn note_unknown(name: &str, ignored: &[String]) {
    for path in ignored {
        tracing::warn!("'{name}': {path}: unknown field, ignored because of --allow-unknown-static-fields");
    }
}

/// What the command line says about the node and the bootstrap does not.
fn completion(bootstrap: &Bootstrap, options: &Options) -> Bootstrap {
    let default = Node::default();
    let node = bootstrap.node.as_ref().unwrap_or(&default);
    let zone = node.locality.as_ref().map_or("", |locality| locality.zone.as_str());
    let missing = |known: &str, told: &String| if known.is_empty() { told.clone() } else { String::new() };
    let zone = missing(zone, &options.service_zone);
    let node = Node {
        id: missing(&node.id, &options.service_node),
        cluster: missing(&node.cluster, &options.service_cluster),
        locality: (!zone.is_empty()).then(|| Locality { zone, ..Locality::default() }),
        ..Node::default()
    };
    Bootstrap { node: (node != default).then_some(node), ..Bootstrap::default() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn options(args: &[&str]) -> Options {
        Options::try_parse_from(std::iter::once(&"shika-proxy").chain(args)).expect("good arguments")
    }

    #[test]
    fn inline_yaml_is_merged_over_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("b.yaml");
        fs::write(&path, "node: {id: file, cluster: c}\nstatic_resources: {clusters: [{name: a}]}\n").expect("a file");
        let path = path.to_str().expect("UTF-8");
        let bootstrap = load(&options(&[
            "-c",
            path,
            "--config-yaml",
            "node: {id: inline}\nstatic_resources: {clusters: [{name: b}]}",
            "--service-cluster",
            "x",
            "--service-zone",
            "z",
        ]))
        .expect("a bootstrap");
        let bootstrap = Bootstrap::decode(bootstrap.bytes()).expect("a bootstrap");
        let node = bootstrap.node.expect("a node");
        assert_eq!((node.id.as_str(), node.cluster.as_str()), ("inline", "c"));
        assert_eq!(node.locality.expect("a locality").zone, "z");
        let clusters: Vec<_> =
            bootstrap.static_resources.expect("resources").clusters.into_iter().map(|cluster| cluster.name).collect();
        assert_eq!(clusters, ["a", "b"]);
    }

    #[test]
    fn errors_name_file_and_field() {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text, needle) in [
            ("b.yaml", "static_resources: [", "bad YAML"),
            ("b.yaml", "static_resources: {clusters: [{nam: a}]}", "static_resources.clusters[0].nam"),
            ("b.json", "{\"node\": {\"idd\": \"x\"}}", "node.idd"),
            ("b.pb", "\u{7f}\u{7f}", "binary form"),
            ("b.pb_text", "", "text format"),
        ] {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("a file");
            let errors = load(&options(&["-c", path.to_str().expect("UTF-8")])).expect_err("an error");
            assert!(errors.iter().any(|error| error.contains(needle) && error.contains(name)), "{errors:?}");
        }
        let errors = load(&options(&["-c", "/nowhere/b.yaml"])).expect_err("an error");
        assert!(errors[0].contains("unable to read file: /nowhere/b.yaml"), "{errors:?}");
    }

    #[test]
    fn unknown_fields_can_be_allowed() {
        assert!(load(&options(&["--config-yaml", "nope: 1"])).is_err());
        assert!(load(&options(&["--config-yaml", "nope: 1", "--allow-unknown-static-fields"])).is_ok());
    }
}
