//! `shikactl generate`: tokens, made by the control plane.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand};
use http::Method;
use serde_json::json;

use super::Streams;
use super::client::Client;
use super::config::pair;
use crate::resource::parse_go_duration;

#[derive(Debug, Subcommand)]
pub(super) enum Generate {
    /// Makes a token with which a data plane joins a mesh
    #[command(name = "dataplane-token")]
    Dataplane(DataplaneToken),
    /// Makes a token with which a user calls the REST API
    #[command(name = "user-token")]
    User(UserToken),
    /// Makes a token with which a zone ingress, a zone egress or the control plane of a zone connects
    #[command(name = "zone-token")]
    Zone(ZoneToken),
}

#[derive(Debug, Args)]
pub(super) struct DataplaneToken {
    /// Name of the Dataplane; without it, the token is good for any name
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    name: String,
    /// Tag that the Dataplane must have, and the values it may have; may be given several times
    #[arg(long = "tag", value_name = "TAG=VALUE[&VALUE]", value_parser = pair)]
    tags: Vec<(String, String)>,
    /// Type of proxy
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    proxy_type: String,
    /// Workload that the Dataplane must belong to
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    workload: String,
    /// How long the token is valid, such as 24h or 30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    valid_for: String,
}

#[derive(Debug, Args)]
pub(super) struct UserToken {
    /// Name of the user
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Group of the user, such as mesh-system:admin; may be given several times
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
    /// How long the token is valid, such as 24h or 30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    valid_for: String,
}

#[derive(Debug, Args)]
pub(super) struct ZoneToken {
    /// Name of the zone
    #[arg(long, value_name = "NAME")]
    zone: String,
    /// What the token is good for: ingress, egress or cp; may be given several times
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', default_values = ["ingress", "egress"],
          value_parser = ["ingress", "egress", "cp"])]
    scope: Vec<String>,
    /// How long the token is valid, such as 24h or 30m
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    valid_for: String,
}

/// Checks a duration here, and leaves it as it was typed: the control plane reads the same grammar.
fn duration(text: &str) -> Result<String, String> {
    parse_go_duration(text).map(|_| text.to_owned())
}

pub(super) async fn generate(
    generate: Generate,
    client: &Client,
    mesh: &str,
    streams: Streams<'_>,
) -> anyhow::Result<()> {
    let (path, body) = match generate {
        Generate::Dataplane(DataplaneToken { name, tags, proxy_type, workload, valid_for }) => {
            let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for (tag, value) in tags {
                values.entry(tag).or_default().extend(value.split('&').map(str::to_owned));
            }
            let body = json!({
                "name": name,
                "mesh": mesh,
                "tags": values,
                "type": proxy_type,
                "workload": workload,
                "validFor": valid_for,
            });
            ("/tokens/dataplane", body)
        }
        Generate::User(UserToken { name, groups, valid_for }) => {
            ("/tokens/user", json!({"name": name, "groups": groups, "validFor": valid_for}))
        }
        Generate::Zone(ZoneToken { zone, scope, valid_for }) => {
            ("/tokens/zone", json!({"zone": zone, "scope": scope, "validFor": valid_for}))
        }
    };
    let reply = client.call(Method::POST, path, Some(&body)).await?;
    // The token alone, without a line end: it is written to a file as it is.
    write!(streams.output, "{}", reply.text()?.trim())?;
    Ok(())
}
