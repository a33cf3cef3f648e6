//! The control plane's documents for what stands beside the proxy.
//!
//! Kuma sends them as a listener that answers `/dns`, `/meshmetric` and so on with fixed bodies, which kuma-dp polls. Here they are taken out of the
//! compiled configuration as it is published. Source: kuma `pkg/xds/dynconf/listener.go`.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::StatusCode;
use shika_data::{
    model::{
        listener::{Listener, Terminal},
        route::{PathMatch, RouteAction},
    },
    snapshot::Snapshot,
};

/// Names of the listener: Kuma's old and unified one.
const LISTENERS: [&str; 2] = ["_kuma:dynamicconfig", "system_dynamicconfig"];

/// The documents as last seen, by path.
#[derive(Default)]
pub struct Documents {
    seen: BTreeMap<Box<str>, Bytes>,
}

/// One that is new or has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// Listener that it came with.
    pub listener: Box<str>,
    /// Such as `/dns`.
    pub path: Box<str>,
    /// JSON.
    pub body: Bytes,
}

impl Documents {
    /// What is new in `snapshot`. One that is gone is forgotten, but what was made of it stays: kuma-dp, too, keeps what it fetched last.
    pub fn changed(&mut self, snapshot: &Snapshot) -> Vec<Document> {
        let mut changed = Vec::new();
        let mut now = BTreeMap::new();
        let listeners = snapshot.listeners.iter().flatten();
        for listener in listeners.filter(|listener| LISTENERS.contains(&&*listener.name)) {
            for (path, body) in documents(snapshot, listener) {
                if self.seen.get(&path) != Some(&body) {
                    changed.push(Document {
                        listener: (&*listener.name).into(),
                        path: path.clone(),
                        body: body.clone(),
                    });
                }
                now.insert(path, body);
            }
        }
        self.seen = now;
        changed
    }
}

/// Routes with an exact path that answer 200; the one before each answers 304 to who has its version.
fn documents(snapshot: &Snapshot, listener: &Listener) -> Vec<(Box<str>, Bytes)> {
    let chains = listener.chains.iter().map(|(_, chain)| chain).chain(listener.chains.default_chain());
    let mut documents = Vec::new();
    for chain in chains {
        let Terminal::Http(manager) = &chain.terminal else { continue };
        let Some(table) = snapshot.route_table(manager.routes) else { continue };
        for route in table.virtual_hosts.iter().flat_map(|host| &host.routes) {
            if let (PathMatch::Exact { value, .. }, RouteAction::Direct(direct)) = (&route.path, &route.action)
                && direct.status == StatusCode::OK
            {
                documents.push((value.clone(), direct.body.clone()));
            }
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use shika_data::stats::Registry;
    use shika_proto::{envoy::config::bootstrap::v3::Bootstrap, json};
    use shika_xds::{CompileOptions, Compiler};

    use super::*;

    fn snapshot(bodies: &[(&str, &str)]) -> std::sync::Arc<Snapshot> {
        let routes: String = bodies
            .iter()
            .map(|(path, body)| {
                format!(
                    "{{match: {{path: {path}, headers: [{{name: If-None-Match, string_match: {{exact: abc}}}}]}}, direct_response: {{status: 304}}}}, \
                     {{match: {{path: {path}}}, direct_response: {{status: 200, body: {{inline_string: '{body}'}}}}}}, "
                )
            })
            .collect();
        let bootstrap: Bootstrap = json::from_yaml(&format!(
            "static_resources: {{listeners: [{{name: '_kuma:dynamicconfig', address: {{pipe: {{path: /tmp/x.sock}}}}, filter_chains: [{{filters: [{{name: hcm, typed_config: \
             {{'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: d, \
             route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{routes}]}}]}}, \
             http_filters: [{{name: router, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}]}}]}}]}}"
        ))
        .expect("a bootstrap");
        let options = CompileOptions {
            hostname: String::new(),
            concurrency: 1,
            reject_unknown_dynamic_fields: false,
            log_sink: Box::new(|path| shika_data::model::access_log::LogSink::new(path, 1).0),
            span_sink: Box::new(|_| shika_data::model::tracing::SpanSink::new(1).0),
            log_collector: Box::new(|_| shika_data::model::access_log::LogSink::new("", 1).0),
        };
        let mut compiler = Compiler::new(Registry::new(1), options);
        compiler.load_static(&(&bootstrap).into(), Instant::now()).expect("accepted");
        compiler.build().expect("a plan").snapshot
    }

    #[test]
    fn bodies_by_path_once_for_each_change() {
        let mut documents = Documents::default();
        let listed = |changed: Vec<Document>| -> Vec<(String, String)> {
            changed
                .into_iter()
                .map(|document| (document.path.into_string(), String::from_utf8_lossy(&document.body).into_owned()))
                .collect()
        };
        let first = snapshot(&[("/dns", "{\"records\":[]}"), ("/meshmetric", "{}")]);
        assert_eq!(
            listed(documents.changed(&first)),
            [("/dns".into(), "{\"records\":[]}".into()), ("/meshmetric".into(), "{}".into())]
        );
        assert_eq!(documents.changed(&first), []);
        let second = snapshot(&[("/dns", "{\"records\":null}"), ("/meshmetric", "{}")]);
        assert_eq!(listed(documents.changed(&second)), [("/dns".into(), "{\"records\":null}".into())]);
        assert_eq!(documents.changed(&Snapshot::default()), []);
    }
}
