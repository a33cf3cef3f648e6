//! What Kuma emits, from the shared corpora where they are at hand: how much of it compiles, and why the rest is refused.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::{collections::BTreeMap, path::Path, time::Instant};

use shika_data::{model::access_log::LogSink, stats::Registry};
use shika_proto::{envoy::config::bootstrap::v3::Bootstrap, google::protobuf::Any, json, type_url};
use shika_xds::{CompileOptions, Compiler, Resource, Update, UpdateKind};

fn files(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

/// What takes the place of secrets that were blanked.
struct Substitutes {
    certificate: String,
    key: String,
}

impl Substitutes {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["corpus".to_owned()]).unwrap();
        Substitutes { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }
}

/// A real certificate and key in the place of those that were blanked, or that stood for one in the test they come from.
fn unblank(value: &mut serde_json::Value, with: &Substitutes) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                let pem = match name.as_str() {
                    "certificateChain" | "certificate_chain" | "trustedCa" | "trusted_ca" | "trustBundle"
                    | "trust_bundle" => &with.certificate,
                    "privateKey" | "private_key" => &with.key,
                    _ => {
                        unblank(field, with);
                        continue;
                    }
                };
                let real = field.as_object().is_some_and(|source| {
                    source.values().any(|text| {
                        // PEM, or PEM in base64.
                        text.as_str().is_some_and(|text| text.starts_with("-----BEGIN") || text.starts_with("LS0tLS1"))
                    })
                });
                if !real {
                    *field = serde_json::json!({ "inlineString": pem });
                }
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| unblank(item, with)),
        _ => {}
    }
}

fn missing_cluster(reason: &str) -> Option<&str> {
    reason.strip_prefix("route: unknown cluster '")?.strip_suffix('\'')
}

fn update(kind: &str, resource: Any) -> Update {
    Update {
        type_url: kind.into(),
        resources: vec![Resource { name: String::new(), version: "1".into(), resource }],
        removed: Vec::new(),
        kind: UpdateKind::Delta,
        version: "1".into(),
    }
}

/// Types of resources in the order in which they are given to the compiler: what others lead to comes first.
const KINDS: [&str; 6] =
    [type_url::CLUSTER, type_url::ENDPOINT, type_url::SECRET, type_url::RUNTIME, type_url::ROUTE, type_url::LISTENER];

/// A chain of a listener, which some documents hold alone.
const FILTER_CHAIN: &str = "type.googleapis.com/envoy.config.listener.v3.FilterChain";

fn compiler() -> Compiler {
    let options = CompileOptions {
        hostname: String::new(),
        concurrency: 1,
        reject_unknown_dynamic_fields: false,
        log_sink: Box::new(|path| LogSink::new(path, 1).0),
        span_sink: Box::new(|_| shika_data::model::tracing::SpanSink::new(1).0),
        log_collector: Box::new(|_| LogSink::new("", 1).0),
    };
    Compiler::new(Registry::new(1), options)
}

/// What of a document is refused: path and reason.
#[derive(Default)]
struct Outcome {
    taken: usize,
    refused: Vec<(String, String)>,
}

/// Gives all resources of a document to a compiler.
fn resources(document: &serde_yaml_ng::Value, with: &Substitutes) -> Outcome {
    let mut outcome = Outcome::default();
    let mut resources = Vec::new();
    for entry in document.get("resources").and_then(|list| list.as_sequence()).into_iter().flatten() {
        let (Some(kind), Some(resource)) =
            (entry.get("type_url").and_then(|kind| kind.as_str()), entry.get("resource"))
        else {
            outcome.refused.push((String::new(), "an entry without type or resource".into()));
            continue;
        };
        let mut value = serde_json::to_value(resource).unwrap();
        unblank(&mut value, with);
        let kind = if kind == FILTER_CHAIN {
            let address = serde_json::json!({ "socket_address": { "address": "127.0.0.1", "port_value": 1 } });
            value = serde_json::json!({ "name": "alone", "address": address, "filter_chains": [value] });
            type_url::LISTENER
        } else {
            kind
        };
        let Some(order) = KINDS.iter().position(|known| *known == kind) else {
            outcome.refused.push((kind.to_owned(), "a type that is never asked for".into()));
            continue;
        };
        value.as_object_mut().unwrap().insert("@type".into(), kind.into());
        match json::from_json_value::<Any>(&value) {
            Ok(any) => resources.push((order, any)),
            Err(error) => outcome.refused.push((kind.to_owned(), format!("{error:?}"))),
        }
    }
    resources.sort_by_key(|(order, _)| *order);
    let mut compiler = compiler();
    for (order, any) in resources {
        let mut applied = compiler.apply(update(KINDS[order], any.clone()), Instant::now());
        // Some documents hold a listener without the clusters that it leads to; Envoy was given those.
        while let Some(missing) = applied.rejects.iter().find_map(|reject| missing_cluster(&reject.reason)) {
            let cluster = serde_json::json!({ "@type": type_url::CLUSTER, "name": missing, "type": "STATIC" });
            let cluster = json::from_json_value::<Any>(&cluster).unwrap();
            assert!(compiler.apply(update(type_url::CLUSTER, cluster), Instant::now()).rejects.is_empty());
            applied = compiler.apply(update(KINDS[order], any.clone()), Instant::now());
        }
        match applied.rejects.as_slice() {
            [] => outcome.taken += 1,
            [first, ..] => outcome.refused.push((first.field_path.clone(), first.reason.clone())),
        }
    }
    outcome
}

/// Gives a bootstrap to a compiler.
fn bootstrap(document: &serde_yaml_ng::Value, with: &Substitutes) -> Outcome {
    let mut outcome = Outcome::default();
    for entry in document.get("resources").and_then(|list| list.as_sequence()).into_iter().flatten() {
        let mut value = serde_json::to_value(entry.get("resource").unwrap()).unwrap();
        unblank(&mut value, with);
        match json::from_json_value::<Bootstrap>(&value) {
            Ok(bootstrap) => match compiler().load_static(&(&bootstrap).into(), Instant::now()) {
                Ok(_) => outcome.taken += 1,
                Err(rejects) => {
                    outcome.refused.push((rejects[0].field_path.clone(), rejects[0].reason.clone()));
                }
            },
            Err(error) => outcome.refused.push((String::new(), format!("{error:?}"))),
        }
    }
    outcome
}

/// Every resource that Envoy takes is taken. What Envoy itself refuses says nothing.
#[test]
fn corpora() {
    let with = Substitutes::new();
    let mut all_refused = 0;
    for corpus in ["kuma-xds-corpus", "kuma-2.14-xds-corpus"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(corpus);
        if !root.is_dir() {
            println!("{} is not there: skipped", root.display());
            continue;
        }
        let mut paths = Vec::new();
        files(&root, &mut paths);
        let (mut documents, mut passed_over, mut taken, mut refused) = (0, 0, 0, 0);
        let mut reasons: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for path in paths {
            // Addresses were blanked in some documents.
            let text = std::fs::read_to_string(&path)
                .unwrap()
                .replace("IP_REDACTED", "10.0.0.1")
                .replace("ADMIN_REDACTED", "10.0.0.2");
            let document: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).unwrap();
            let field = |name: &str| document.get(name).and_then(|value| value.as_str());
            let accepted = document.get("envoy_check").and_then(|check| check.get("result")?.as_str());
            if accepted != Some("accepted") {
                passed_over += 1;
                continue;
            }
            let outcome = match field("kind") {
                Some("bootstrap") => bootstrap(&document, &with),
                _ => resources(&document, &with),
            };
            documents += 1;
            taken += outcome.taken;
            refused += outcome.refused.len();
            for (path_in_it, reason) in outcome.refused {
                let field: String = path_in_it.chars().filter(|c| !c.is_ascii_digit()).collect();
                let first = path.strip_prefix(&root).unwrap_or(&path).display();
                reasons
                    .entry(format!("{field}: {}", reason.chars().take(200).collect::<String>()))
                    .or_insert_with(|| (0, first.to_string()))
                    .0 += 1;
            }
        }
        println!(
            "{corpus}: {documents} documents, {taken} resources compile, {refused} are refused; {passed_over} documents that Envoy does not take"
        );
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (reason, (count, first)) in reasons.iter().take(60) {
            println!("  {count:5} {reason} ({first})");
        }
        assert!(taken > 0, "{corpus}: nothing was checked");
        all_refused += refused;
    }
    assert_eq!(all_refused, 0, "resources are refused that Envoy takes; they are listed above");
}
