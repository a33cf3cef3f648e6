//! `shikactl apply`: documents from files, a directory or standard input to the control plane.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use http::{Method, StatusCode};
use serde_json::Value;

use super::client::Client;
use super::config::pair;
use super::{Streams, path, template};
use crate::resource::{ResourceKey, documents, parse, validate};

/// Largest text that is read from standard input or from one file.
const MAX_INPUT_BYTES: u64 = 64 * 1024 * 1024;

/// Arguments of `shikactl apply`.
#[derive(Debug, Args)]
pub(super) struct Apply {
    /// File or directory (its .yaml, .yml and .json files) to apply, or - for standard input; may be given several times
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Variable to put in place of {{ NAME }}; may be given several times
    #[arg(short, long = "var", value_name = "NAME=VALUE", value_parser = pair)]
    variables: Vec<(String, String)>,
    /// Replaces the variables, checks the documents and prints them, but changes nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// A document and where it stands.
struct Document {
    source: String,
    key: ResourceKey,
    value: Value,
}

pub(super) async fn apply(apply: &Apply, client: Option<&Client>, streams: Streams<'_>) -> anyhow::Result<()> {
    let mut sources = Vec::new();
    for file in &apply.files {
        read(file, streams.input, &mut sources)?;
    }
    // All documents are read and checked before the first is sent: a typing error in the last one changes nothing.
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for (source, text) in &sources {
        match split(source, text, &apply.variables) {
            Ok(documents) => found.extend(documents),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        bail!("nothing was applied:\n{}", problems.join("\n"));
    }
    if found.is_empty() {
        bail!("no resource(s) passed to apply: {} holds none", list(&apply.files));
    }
    let Some(client) = client else {
        for document in found {
            writeln!(streams.output, "---\n{}", serde_yaml_ng::to_string(&document.value)?.trim_end())?;
        }
        return Ok(());
    };
    for Document { source, key, mut value } in found {
        // Absent means the default mesh, which the path then names.
        if key.kind.in_mesh()
            && let Value::Object(fields) = &mut value
        {
            fields.insert("mesh".to_owned(), Value::String(key.mesh.clone()));
        }
        let resource = format!("resource type=\"{}\" mesh={:?} name={:?}", key.kind, key.mesh, key.name);
        let reply = client.call(Method::PUT, &path(key.kind, &key.mesh, Some(&key.name)), Some(&value)).await?;
        let answer = reply.json().with_context(|| format!("{source}: {resource}: failed server side"))?;
        let action = if reply.status == StatusCode::CREATED { "Created" } else { "Updated" };
        writeln!(streams.output, "{resource} {action}")?;
        for warning in answer.get("warnings").and_then(Value::as_array).into_iter().flatten() {
            let warning = warning.as_str().map_or_else(|| warning.to_string(), str::to_owned);
            writeln!(streams.errors, "Warning: {source}: {warning}")?;
        }
    }
    Ok(())
}

/// Reads a file, the files of a directory in the order of their names, or standard input.
fn read(file: &Path, input: &mut (dyn Read + Send), sources: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    if file == Path::new("-") {
        let mut text = String::new();
        input.take(MAX_INPUT_BYTES + 1).read_to_string(&mut text).context("cannot read standard input")?;
        if text.len() as u64 > MAX_INPUT_BYTES {
            bail!("standard input is longer than {MAX_INPUT_BYTES} bytes");
        }
        sources.push(("standard input".to_owned(), text));
        return Ok(());
    }
    let at = || format!("cannot read {}", file.display());
    if file.to_string_lossy().starts_with("http://") || file.to_string_lossy().starts_with("https://") {
        bail!("{} is a URL; download it first, then apply the file", file.display());
    }
    let about = fs::metadata(file).with_context(at)?;
    if about.is_dir() {
        let mut entries = Vec::new();
        for entry in fs::read_dir(file).with_context(at)? {
            let path = entry.with_context(at)?.path();
            let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
            if matches!(extension.as_deref(), Some("yaml" | "yml" | "json")) && path.is_file() {
                entries.push(path);
            }
        }
        entries.sort();
        for path in entries {
            read(&path, input, sources)?;
        }
        return Ok(());
    }
    if about.len() > MAX_INPUT_BYTES {
        bail!("{} is longer than {MAX_INPUT_BYTES} bytes", file.display());
    }
    sources.push((file.display().to_string(), fs::read_to_string(file).with_context(at)?));
    Ok(())
}

/// The documents of a text. The problem names the source and the number of the document.
fn split(source: &str, text: &str, variables: &[(String, String)]) -> Result<Vec<Document>, String> {
    let rendered;
    let text = if variables.is_empty() {
        text
    } else {
        rendered = template::render(text, variables).map_err(|e| format!("{source}: {e}"))?;
        &rendered
    };
    let values = documents(text).map_err(|e| format!("{source}: {e}"))?;
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let source = format!("{source}, resource[{index}]");
        match parse(value.clone()) {
            Err(error) => problems.push(format!("{source}: {error}")),
            Ok(parsed) => {
                let key = parsed.resource.key();
                for violation in validate::meta(key.kind, &parsed.resource.meta) {
                    problems.push(format!("{source}: {violation}"));
                }
                found.push(Document { source, key, value });
            }
        }
    }
    if problems.is_empty() { Ok(found) } else { Err(problems.join("\n")) }
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}
