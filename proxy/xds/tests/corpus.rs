//! What Kuma emits, from the shared corpora where they are at hand: how much of it compiles, and why the rest is refused.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::{collections::BTreeMap, path::Path, time::Instant};

use shika_data::{model::access_log::LogSink, stats::Registry};
use shika_proto::{google::protobuf::Any, json, type_url};
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

/// A real certificate and key in the place of those that were blanked, or that stood for one in the test they come from.
fn unblank(value: &mut serde_json::Value, certificate: &str, key: &str) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                let pem = match name.as_str() {
                    "certificateChain" | "certificate_chain" | "trustedCa" | "trusted_ca" => certificate,
                    "privateKey" | "private_key" => key,
                    _ => {
                        unblank(field, certificate, key);
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
        serde_json::Value::Array(items) => items.iter_mut().for_each(|item| unblank(item, certificate, key)),
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

#[test]
fn corpora() {
    let made = rcgen::generate_simple_self_signed(vec!["corpus".to_owned()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    for corpus in ["kuma-xds-corpus", "kuma-2.14-xds-corpus"] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(corpus);
        if !root.is_dir() {
            println!("{} is not there: skipped", root.display());
            continue;
        }
        let mut paths = Vec::new();
        files(&root, &mut paths);
        let (mut taken, mut refused) = (0, 0);
        let mut reasons: BTreeMap<String, (usize, String)> = BTreeMap::new();
        for path in paths {
            // Addresses were blanked in some documents.
            let text = std::fs::read_to_string(&path)
                .unwrap()
                .replace("IP_REDACTED", "10.0.0.1")
                .replace("ADMIN_REDACTED", "10.0.0.2");
            let document: serde_yaml_ng::Value = match serde_yaml_ng::from_str(&text) {
                Ok(document) => document,
                Err(_) => continue,
            };
            // What Envoy itself refuses says nothing.
            if document.get("envoy_check").and_then(|check| check.get("result")).and_then(|result| result.as_str())
                != Some("accepted")
            {
                continue;
            }
            let Some(resources) = document.get("resources").and_then(|list| list.as_sequence()) else { continue };
            let options = CompileOptions {
                hostname: String::new(),
                concurrency: 1,
                reject_unknown_dynamic_fields: false,
                log_sink: Box::new(|path| LogSink::new(path, 1).0),
                span_sink: Box::new(|_| shika_data::model::tracing::SpanSink::new(1).0),
                log_collector: Box::new(|_| LogSink::new("", 1).0),
            };
            let mut compiler = Compiler::new(Registry::new(1), options);
            for entry in resources {
                let (Some(kind), Some(resource)) =
                    (entry.get("type_url").and_then(|kind| kind.as_str()), entry.get("resource"))
                else {
                    continue;
                };
                if ![type_url::CLUSTER, type_url::LISTENER].contains(&kind) {
                    continue;
                }
                let mut value = serde_json::to_value(resource).unwrap();
                unblank(&mut value, &certificate, &key);
                let Some(object) = value.as_object_mut() else { continue };
                object.insert("@type".into(), kind.into());
                let Ok(any) = json::from_json_value::<Any>(&value) else { continue };
                let mut applied = compiler.apply(update(kind, any.clone()), Instant::now());
                // Some documents hold a listener without the clusters that it leads to; Envoy was given those.
                while let Some(missing) = applied.rejects.iter().find_map(|reject| missing_cluster(&reject.reason)) {
                    let cluster = serde_json::json!({ "@type": type_url::CLUSTER, "name": missing, "type": "STATIC" });
                    let cluster = json::from_json_value::<Any>(&cluster).unwrap();
                    assert!(compiler.apply(update(type_url::CLUSTER, cluster), Instant::now()).rejects.is_empty());
                    applied = compiler.apply(update(kind, any.clone()), Instant::now());
                }
                if applied.rejects.is_empty() {
                    taken += 1;
                } else {
                    refused += 1;
                }
                for reject in applied.rejects {
                    let field: String = reject.field_path.chars().filter(|c| !c.is_ascii_digit()).collect();
                    let field = field.rsplit('.').next().unwrap_or_default().to_owned();
                    let first = path.strip_prefix(&root).unwrap_or(&path).display();
                    reasons
                        .entry(format!("{field}: {}", reject.reason.chars().take(100).collect::<String>()))
                        .or_insert_with(|| (0, first.to_string()))
                        .0 += 1;
                }
            }
        }
        println!("{corpus}: {taken} compile, {refused} are refused");
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (reason, (count, first)) in reasons.iter().take(60) {
            println!("  {count:5} {reason} ({first})");
        }
        assert!(taken > refused, "{corpus}");
    }
}
