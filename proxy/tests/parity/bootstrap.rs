//! Builds the bootstrap of a case: a skeleton, the case's parts merged onto it, placeholders filled in.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_yaml_ng::{Mapping, Value};

use crate::case::{Case, Protocol};

/// Values of `${NAME}` in a run.
pub type Placeholders = BTreeMap<String, String>;

const HCM: &str = "
name: envoy.filters.network.http_connection_manager
typed_config:
  '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
  stat_prefix: ingress
  route_config:
    name: local
    virtual_hosts:
    - name: all
      domains: ['*']
      routes:
      - match: {prefix: /}
        route: {cluster: upstream}
  http_filters:
  - name: envoy.filters.http.router
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
";

const SKELETON: &str = "
node: {id: parity, cluster: parity}
admin:
  address:
    socket_address: {address: 127.0.0.1, port_value: 0}
static_resources:
  listeners:
  - name: main
    address:
      socket_address: {address: 127.0.0.1, port_value: '${LISTENER}'}
  clusters: []
";

const HTTP2_OPTIONS: &str = "
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config:
      http2_protocol_options: {}
";

/// The bootstrap of a case, as JSON: every string quoted, so that a `yes` of the case is not a boolean to a reader of YAML 1.1.
pub fn build(case: &Case, placeholders: &Placeholders) -> Result<String> {
    let config = &case.config;
    let mut bootstrap = parse(SKELETON)?;

    let mut hcm = parse(HCM)?;
    if let Some(routes) = &config.routes {
        set_routes(&mut hcm, routes.clone())?;
    }
    if let Some(format) = &config.access_log {
        merge(&mut hcm, &parse(&format!("typed_config: {{access_log: [{}]}}", file_log(format)?))?);
    }
    if let Some(http) = &config.http {
        merge(at(&mut hcm, "typed_config")?, http);
    }

    let chains = match (&config.filter_chains, &config.filter_chain) {
        (Some(_), Some(_)) => bail!("config: filter_chain and filter_chains exclude each other"),
        (Some(chains), None) => chains.clone(),
        (None, Some(chain)) => vec![chain.clone()],
        (None, None) => vec![Value::Mapping(Mapping::new())],
    };
    let chains = chains.into_iter().map(|chain| complete_chain(chain, &hcm)).collect::<Result<Vec<_>>>()?;

    let resources = at(&mut bootstrap, "static_resources")?;
    let listener = resources
        .get_mut("listeners")
        .and_then(|listeners| listeners.get_mut(0))
        .context("the skeleton has one listener")?;
    set(listener, "filter_chains", Value::Sequence(chains))?;
    if let Some(patch) = &config.listener {
        let mut patch = patch.clone();
        if let Some(default_chain) = patch.as_mapping_mut().and_then(|map| map.remove("default_filter_chain")) {
            set(listener, "default_filter_chain", complete_chain(default_chain, &hcm)?)?;
        }
        merge(listener, &patch);
    }

    let mut clusters = Vec::new();
    let names: std::collections::BTreeSet<&String> = case.upstreams.keys().chain(config.clusters.keys()).collect();
    for name in names {
        clusters.push(cluster(case, name)?);
    }
    set(resources, "clusters", Value::Sequence(clusters))?;
    if let Some(patch) = &config.bootstrap {
        merge(&mut bootstrap, patch);
    }
    fill(&mut bootstrap, placeholders)?;
    Ok(serde_json::to_string_pretty(&bootstrap)?)
}

/// A cluster: STATIC with the upstream of its name, then what the case says.
fn cluster(case: &Case, name: &str) -> Result<Value> {
    let endpoint = if case.upstreams.contains_key(name) { name } else { "upstream" };
    let mut cluster = parse(&format!(
        "
name: {name}
connect_timeout: 5s
type: STATIC
load_assignment:
  cluster_name: {name}
  endpoints:
  - lb_endpoints:
    - endpoint:
        address:
          socket_address: {{address: 127.0.0.1, port_value: '${{{}}}'}}
",
        placeholder(endpoint)
    ))?;
    if case.upstreams.get(endpoint).is_some_and(|upstream| upstream.protocol == Protocol::H2) {
        merge(&mut cluster, &parse(HTTP2_OPTIONS)?);
    }
    if let Some(patch) = case.config.clusters.get(name) {
        merge(&mut cluster, patch);
    }
    Ok(cluster)
}

/// A chain without filters gets the connection manager; `http` and `routes` of the chain go into it.
fn complete_chain(mut chain: Value, hcm: &Value) -> Result<Value> {
    let map = chain.as_mapping_mut().context("config: a filter chain is a map")?;
    let http = map.remove("http");
    let routes = map.remove("routes");
    if !map.contains_key("filters") {
        let mut hcm = hcm.clone();
        if let Some(routes) = routes {
            set_routes(&mut hcm, routes)?;
        }
        if let Some(http) = http {
            merge(at(&mut hcm, "typed_config")?, &http);
        }
        map.insert("filters".into(), Value::Sequence(vec![hcm]));
    } else if let Some(Value::Sequence(filters)) = map.get_mut("filters") {
        // The word `http` among filters stands for the connection manager, so that network filters can precede it.
        for filter in filters.iter_mut().filter(|filter| filter.as_str() == Some("http")) {
            *filter = hcm.clone();
        }
    }
    Ok(chain)
}

fn set_routes(hcm: &mut Value, routes: Value) -> Result<()> {
    let host = at(at(hcm, "typed_config")?, "route_config")?
        .get_mut("virtual_hosts")
        .and_then(|hosts| hosts.get_mut(0))
        .context("the skeleton has one virtual host")?;
    set(host, "routes", routes)
}

/// A file access log at `${LOG}` in flow style.
pub fn file_log(format: &str) -> Result<String> {
    Ok(format!(
        "{{name: envoy.access_loggers.file, typed_config: {{'@type': \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: '${{LOG}}', \
         log_format: {{text_format_source: {{inline_string: {}}}}}}}}}",
        serde_json::to_string(&format!("{format}\n"))?
    ))
}

/// The placeholder of an upstream: `foo-bar` → `FOO_BAR`.
pub fn placeholder(upstream: &str) -> String {
    upstream.to_ascii_uppercase().replace('-', "_")
}

/// Merges maps key by key; everything else in `patch` replaces what is there.
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Mapping(target), Value::Mapping(patch)) => {
            for (key, value) in patch {
                match target.get_mut(key) {
                    Some(existing) => merge(existing, value),
                    None => {
                        target.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// Fills placeholders in every string; a string that is one placeholder with a number becomes a number.
fn fill(value: &mut Value, placeholders: &Placeholders) -> Result<()> {
    match value {
        Value::String(text) if text.contains("${") => {
            let filled = fill_text(text, placeholders)?;
            let whole = text.starts_with("${") && text.ends_with('}') && text.matches('$').count() == 1;
            *value = match filled.parse::<u64>() {
                Ok(number) if whole => number.into(),
                Ok(_) | Err(_) => filled.into(),
            };
        }
        Value::Sequence(items) => {
            for item in items {
                fill(item, placeholders)?;
            }
        }
        Value::Mapping(map) => {
            for (_, item) in map.iter_mut() {
                fill(item, placeholders)?;
            }
        }
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::Tagged(_) => {}
    }
    Ok(())
}

/// A part of a case's configuration with its placeholders filled in, as JSON.
pub fn filled(value: &Value, placeholders: &Placeholders) -> Result<serde_json::Value> {
    let mut value = value.clone();
    fill(&mut value, placeholders)?;
    Ok(serde_json::to_value(value)?)
}

/// Fills the placeholders of a text.
pub fn fill_text(text: &str, placeholders: &Placeholders) -> Result<String> {
    let mut out = text.to_owned();
    for (name, value) in placeholders {
        out = out.replace(&format!("${{{name}}}"), value);
    }
    if let Some(at) = out.find("${") {
        bail!("unknown placeholder in {:?}", &out[at..]);
    }
    Ok(out)
}

fn parse(yaml: &str) -> Result<Value> {
    serde_yaml_ng::from_str(yaml).with_context(|| format!("in the skeleton:\n{yaml}"))
}

fn at<'v>(value: &'v mut Value, key: &str) -> Result<&'v mut Value> {
    value.get_mut(key).with_context(|| format!("no `{key}` to merge into"))
}

fn set(value: &mut Value, key: &str, entry: Value) -> Result<()> {
    value.as_mapping_mut().with_context(|| format!("`{key}` goes into a map"))?.insert(key.into(), entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(yaml: &str) -> Value {
        parse(yaml).expect(yaml)
    }

    #[test]
    fn merging_goes_into_maps_and_replaces_the_rest() {
        let mut target = value("{a: {b: 1, c: [1, 2]}, d: 1}");
        merge(&mut target, &value("{a: {c: [3], e: 5}, d: {f: 1}}"));
        assert_eq!(target, value("{a: {b: 1, c: [3], e: 5}, d: {f: 1}}"));
    }

    #[test]
    fn placeholders() {
        let placeholders: Placeholders = [("LISTENER".to_owned(), "80".to_owned())].into();
        let mut filled = value("{a: '${LISTENER}', b: 'x:${LISTENER}', c: plain}");
        fill(&mut filled, &placeholders).expect("known placeholders");
        assert_eq!(filled, value("{a: 80, b: 'x:80', c: plain}"));
        assert!(fill(&mut value("{a: '${OTHER}'}"), &placeholders).is_err());
    }

    #[test]
    fn a_case_gets_the_skeleton_with_its_parts() {
        let source = "
describe: x
config:
  routes: [{match: {path: /a}, direct_response: {status: 200}}]
  clusters: {second: {lb_policy: LEAST_REQUEST}}
connections: [{}]
";
        let path = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(path.path(), source).expect("writing it");
        let case = crate::case::read(path.path()).expect("a case");
        let ports: Placeholders =
            [("LISTENER".to_owned(), "1".to_owned()), ("UPSTREAM".to_owned(), "2".to_owned())].into();
        let built = value(&build(&case, &ports).expect("a bootstrap"));
        let resources = &built["static_resources"];
        assert_eq!(resources["clusters"][0]["name"], "second");
        assert_eq!(resources["clusters"][0]["lb_policy"], "LEAST_REQUEST");
        assert_eq!(
            resources["clusters"][1]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
                ["port_value"],
            2
        );
        let hcm = &resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
        assert_eq!(hcm["route_config"]["virtual_hosts"][0]["routes"][0]["match"]["path"], "/a");
    }
}
