//! `shikactl get` and `shikactl delete`.

use chrono::{DateTime, Utc};
use clap::Args;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::client::Client;
use super::output::{Format, ago, document, table, tags, time};
use super::{Output, Streams, parse_kind, path};
use crate::resource::{Kind, Resource, parse};

/// Items that are asked for at once.
const PAGE_SIZE: usize = 1000;

/// Arguments of `shikactl get`.
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Type of resource, singular or plural, such as meshes, dataplanes, meshservices, zones, meshtrafficpermissions, secrets
    #[arg(value_name = "TYPE", value_parser = parse_kind)]
    kind: Kind,
    /// Name of one resource; without it, all are shown
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Shows at most so many resources; without it, all of them
    #[arg(long, value_name = "NUMBER")]
    size: Option<usize>,
    /// Leaves out so many resources at the beginning
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    offset: usize,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `shikactl delete`.
#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Type of resource, such as mesh, dataplane, meshtrafficpermission, secret, globalsecret
    #[arg(value_name = "TYPE", value_parser = parse_kind)]
    kind: Kind,
    /// Name of the resource
    #[arg(value_name = "NAME")]
    name: String,
}

pub(super) async fn get(get: &Get, client: &Client, mesh: &str, streams: Streams<'_>) -> anyhow::Result<()> {
    let kind = get.kind;
    let now = Utc::now();
    match &get.name {
        Some(name) => {
            let reply = client.call(Method::GET, &path(kind, mesh, Some(name)), None).await?;
            let found = reply.json().map_err(|error| explain(error, reply.status, kind, mesh, name))?;
            match get.output.format {
                Format::Table => table(streams.output, headers(kind), vec![row(kind, &found, now)]),
                format @ (Format::Yaml | Format::Json) => document(streams.output, &found, format),
            }
        }
        None => {
            let list = pages(client, &path(kind, mesh, None), &[], get.offset, get.size).await?;
            match get.output.format {
                Format::Table => {
                    let rows = list.items.iter().map(|item| row(kind, item, now)).collect();
                    table(streams.output, headers(kind), rows)
                }
                format @ (Format::Yaml | Format::Json) => document(streams.output, &list.to_json(), format),
            }
        }
    }
}

pub(super) async fn delete(delete: &Delete, client: &Client, mesh: &str, streams: Streams<'_>) -> anyhow::Result<()> {
    let Delete { kind, name } = delete;
    let reply = client.call(Method::DELETE, &path(*kind, mesh, Some(name)), None).await?;
    reply.check().map_err(|error| explain(error, reply.status, *kind, mesh, name))?;
    writeln!(streams.output, "deleted {kind} {name:?}")?;
    Ok(())
}

/// Not found: says what, and in which mesh.
fn explain(error: anyhow::Error, status: StatusCode, kind: Kind, mesh: &str, name: &str) -> anyhow::Error {
    if status != StatusCode::NOT_FOUND {
        return error;
    }
    if kind.in_mesh() {
        anyhow::anyhow!("there is no {kind} {name:?} in mesh {mesh:?}; another mesh is named with --mesh")
    } else {
        anyhow::anyhow!("there is no {kind} {name:?}; see: shikactl get {}", kind.path())
    }
}

/// All items of a list, read page by page.
pub(super) struct List {
    pub(super) items: Vec<Value>,
    total: u64,
}

impl List {
    pub(super) fn to_json(&self) -> Value {
        json!({"total": self.total, "items": self.items, "next": null})
    }
}

pub(super) async fn pages(
    client: &Client,
    path: &str,
    parameters: &[String],
    offset: usize,
    limit: Option<usize>,
) -> anyhow::Result<List> {
    let mut list = List { items: Vec::new(), total: 0 };
    loop {
        let wanted = limit.map_or(PAGE_SIZE, |limit| limit.saturating_sub(list.items.len()).min(PAGE_SIZE));
        if wanted == 0 {
            return Ok(list);
        }
        let mut query = vec![format!("size={wanted}"), format!("offset={}", offset + list.items.len())];
        query.extend_from_slice(parameters);
        let page = client.get_json(&format!("{path}?{}", query.join("&"))).await?;
        list.total = page.get("total").and_then(Value::as_u64).unwrap_or_default();
        let items = page.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
        let last = items.is_empty() || page.get("next").is_none_or(Value::is_null);
        list.items.extend(items);
        if last {
            return Ok(list);
        }
    }
}

fn headers(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Mesh => &["NAME", "mTLS", "LOCALITY", "ZONEEGRESS", "AGE"],
        Kind::Dataplane => &["MESH", "NAME", "TAGS", "ADDRESS", "AGE"],
        kind if kind.in_mesh() => &["MESH", "NAME", "AGE"],
        _ => &["NAME", "AGE"],
    }
}

fn row(kind: Kind, item: &Value, now: DateTime<Utc>) -> Vec<String> {
    let text = |field: &str| item.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let age = ago(time(item.get("creationTime")), now);
    // A resource of a newer control plane that cannot be read here still has its name.
    let resource: Option<Resource> = parse(item.clone()).ok().map(|parsed| parsed.resource);
    match kind {
        Kind::Mesh => {
            let mesh = resource.as_ref().and_then(Resource::mesh);
            let backend = mesh.and_then(|mesh| mesh.enabled_backend());
            let mtls = backend.map_or_else(|| "off".to_owned(), |backend| format!("{}/{}", backend.kind, backend.name));
            let routing = mesh.and_then(|mesh| mesh.routing.clone()).unwrap_or_default();
            let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
            vec![text("name"), mtls, switch(routing.locality_aware_load_balancing), switch(routing.zone_egress), age]
        }
        Kind::Dataplane => {
            let dataplane = resource.as_ref().and_then(Resource::dataplane);
            let shown = dataplane.map(|dataplane| tags(&dataplane.tags())).unwrap_or_default();
            let address = dataplane.map(|dataplane| dataplane.address().to_owned()).unwrap_or_default();
            vec![text("mesh"), text("name"), shown, address, age]
        }
        kind if kind.in_mesh() => vec![text("mesh"), text("name"), age],
        _ => vec![text("name"), age],
    }
}
