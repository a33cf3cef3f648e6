//! `shikactl inspect`: the state of what runs.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::Client;
use super::get::pages;
use super::output::{Format, ago, document, table, tags};
use super::{Output, Streams, segment};
use crate::resource::{Dataplane, DataplaneInsight, DpStatus};

#[derive(Debug, Subcommand)]
pub(super) enum Inspect {
    /// Shows which data planes are connected, what was sent to them and when their certificates expire
    Dataplanes(Dataplanes),
}

#[derive(Debug, Args)]
pub(super) struct Dataplanes {
    /// Shows only those with that tag; may be given several times
    #[arg(long = "tag", value_name = "TAG=VALUE", value_parser = super::config::pair)]
    tags: Vec<(String, String)>,
    /// Shows only gateways
    #[arg(long)]
    gateway: bool,
    #[command(flatten)]
    output: Output,
}

const HEADERS: [&str; 17] = [
    "MESH",
    "NAME",
    "TAGS",
    "STATUS",
    "LAST CONNECTED AGO",
    "LAST UPDATED AGO",
    "TOTAL UPDATES",
    "TOTAL ERRORS",
    "CERT REGENERATED AGO",
    "CERT EXPIRATION",
    "CERT REGENERATIONS",
    "CERT BACKEND",
    "SUPPORTED CERT BACKENDS",
    "KUMA-DP VERSION",
    "ENVOY VERSION",
    "DEPENDENCIES VERSIONS",
    "NOTES",
];

pub(super) async fn inspect(
    inspect: &Inspect,
    client: &Client,
    mesh: &str,
    streams: Streams<'_>,
) -> anyhow::Result<()> {
    let Inspect::Dataplanes(arguments) = inspect;
    let mut parameters: Vec<String> =
        arguments.tags.iter().map(|(tag, value)| format!("tag={}%3A{}", segment(tag), segment(value))).collect();
    if arguments.gateway {
        parameters.push("gateway=true".to_owned());
    }
    let path = format!("/meshes/{}/dataplanes/_overview", segment(mesh));
    let list = pages(client, &path, &parameters, 0, None).await?;
    match arguments.output.format {
        Format::Table => {
            let now = Utc::now();
            table(streams.output, &HEADERS, list.items.iter().map(|item| row(item, now)).collect())
        }
        format @ (Format::Yaml | Format::Json) => document(streams.output, &list.to_json(), format),
    }
}

/// One overview as kumactl shows it.
fn row(overview: &Value, now: DateTime<Utc>) -> Vec<String> {
    let text = |field: &str| overview.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let part = |field: &str| overview.get(field).cloned().unwrap_or_default();
    let dataplane: Dataplane = serde_json::from_value(part("dataplane")).unwrap_or_default();
    let insight: DataplaneInsight = serde_json::from_value(part("dataplaneInsight")).unwrap_or_default();
    let (status, notes) = DpStatus::of(&dataplane, Some(&insight));
    let totals = |count: fn(&crate::resource::ServiceStats) -> u64| {
        insight.subscriptions.iter().map(|subscription| count(&subscription.status.total)).sum::<u64>().to_string()
    };
    let last = insight.last_subscription();
    let mtls = insight.mtls.clone().unwrap_or_default();
    let expiration = mtls.certificate_expiration_time;
    let version = last.and_then(|last| last.version.clone()).unwrap_or_default();
    let dependencies: Vec<String> =
        version.dependencies.iter().map(|(name, version)| format!("{name}: {version}")).collect();
    vec![
        text("mesh"),
        text("name"),
        tags(&dataplane.tags()),
        status.as_str().to_owned(),
        ago(last.and_then(|last| last.connect_time), now),
        ago(last.and_then(|last| last.status.last_update_time), now),
        totals(|stats| stats.responses_sent),
        totals(|stats| stats.responses_rejected),
        ago(mtls.last_certificate_regeneration, now),
        expiration.map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%d %H:%M:%S").to_string()),
        mtls.certificate_regenerations.to_string(),
        if insight.mtls.is_none() { "-".to_owned() } else { mtls.issued_backend },
        mtls.supported_backends.join(","),
        version.kuma_dp.version,
        version.envoy.version,
        if dependencies.is_empty() { "-".to_owned() } else { dependencies.join(", ") },
        notes.join(";"),
    ]
}
