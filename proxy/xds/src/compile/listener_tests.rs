#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Instant;

use shika_data::model::rbac::PeerNames;
use shika_proto::envoy::config::listener::v3::Listener as ProtoListener;

use crate::compile::testing::{apply, compiler};

fn refused(body: &str) -> String {
    let text = format!("name: l\naddress: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }}\n{body}");
    let applied = apply::<ProtoListener>(&mut compiler(), Instant::now(), &[&text]);
    applied
        .rejects
        .iter()
        .map(|reject| format!("{}: {}", reject.field_path, reject.reason))
        .collect::<Vec<_>>()
        .join("\n")
}

fn filter(config: &str) -> String {
    format!("filter_chains: [{{ filters: [{{ name: f, typed_config: {config} }}] }}]")
}

#[test]
fn what_is_wrong_is_refused_with_its_path() {
    let tcp = "'@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
    let hcm = "'@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let config = "filter_chains[0].filters[0].typed_config";
    for (body, expected) in [
        (filter(&format!("{{ {tcp}, stat_prefix: s }}")), format!("{config}.cluster_specifier: value is required")),
        (
            filter(&format!("{{ {tcp}, cluster: c, stat_prefix: s, tunneling_config: {{ hostname: x }} }}")),
            format!("{config}.tunneling_config: tunnelling over HTTP is not supported"),
        ),
        (
            filter(&format!("{{ {hcm}, stat_prefix: s, route_config: {{}}, tracing: {{ verbose: true }} }}")),
            format!("{config}.tracing.verbose: events within spans are not supported"),
        ),
        (
            filter(&format!("{{ {hcm}, stat_prefix: s, route_config: {{}} }}")),
            format!("{config}.http_filters: at least one filter is required: the router"),
        ),
        (
            filter("{ '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo }") + "\nlistener_filters: [{ name: x, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo } }]",
            "listener_filters[0].typed_config: listener filter type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo is not supported".to_owned(),
        ),
        ("filter_chains: [{ filter_chain_match: { server_names: ['a*b'] } }]".to_owned(), "filter_chains[0].filter_chain_match.server_names[0]: \"a*b\": partial wildcards are not supported in \"server_names\"; give a name or *.suffix".to_owned()),
        ("filter_chains: [{}, { name: again }]".to_owned(), "filter_chains[1].filter_chain_match: error adding listener 'l': filter chain 'again' has the same matching rules defined as filter_chains[0]".to_owned()),
        ("filter_chains: [{}]\naccess_log: [{ name: x, typed_config: { '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /x, log_format: { text_format_source: { inline_string: 'a %NOPE% b' } } } }]".to_owned(), "access_log[0].typed_config.log_format.text_format_source: Not supported field in StreamInfo: NOPE".to_owned()),
    ] {
        assert_eq!(refused(&body), expected, "{body}");
    }
}

#[test]
fn what_stands_behind_a_permission_check_is_kept() {
    let reason = |metadata: &str| {
        let text = format!(
            "name: l\naddress: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }}\n\
             filter_chains: [{{ metadata: {{ filter_metadata: {{ io.shika.policy: {metadata} }} }} }}]"
        );
        let mut compiler = compiler();
        let applied = apply::<ProtoListener>(&mut compiler, Instant::now(), &[&text]);
        assert!(applied.rejects.is_empty(), "{:?}", applied.rejects);
        let plan = compiler.build().unwrap();
        let listener = plan.snapshot.listeners.iter().flatten().next().unwrap();
        let chain = plan.snapshot.chain(listener.id, shika_data::model::ChainId(0)).unwrap();
        let peer = PeerNames { uris: vec!["spiffe://m/web".into()], ..PeerNames::default() };
        chain.denials.as_ref().map(|denials| denials.reason(Some(&peer)).to_owned())
    };
    let rule = "{ rule: no web, uris: ['spiffe://m/web'] }";
    assert_eq!(reason(&format!("{{ rules: [{rule}], otherwise: none }}")).as_deref(), Some("no web"));
    assert_eq!(reason("{ rules: [{ rule: x, uris: [a] }], otherwise: none }").as_deref(), Some("none"));
    // What somebody else wrote there explains nothing, and harms nothing.
    for other in [
        "{}",
        "{ rules: [text], otherwise: none }",
        "{ rules: [], otherwise: 1 }",
        "{ rules: [{ rule: x, uris: [1] }], otherwise: none }",
    ] {
        assert_eq!(reason(other), None, "{other}");
    }
}

/// The filter is unknown to the schema, so it comes as bytes.
#[test]
fn a_filter_that_counts_kafka_messages_is_left_out_and_one_that_does_more_refused() {
    use shika_proto::{any, envoy::config::listener::v3::filter::ConfigType, google::protobuf::Any};
    let text = "name: l
address: { socket_address: { address: 127.0.0.1, port_value: 1 } }
filter_chains:
- filters:
  - { name: kafka, typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo } }
  - name: tcp
    typed_config: { '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: c, stat_prefix: s }";
    let mut listener: ProtoListener = crate::compile::testing::yaml(text);
    let mut kafka = |value: &[u8]| {
        listener.filter_chains[0].filters[0].config_type = Some(ConfigType::TypedConfig(Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.network.kafka_broker.v3.KafkaBroker".into(),
            value: value.to_vec(),
        }));
        let update = crate::compiler::Update {
            type_url: shika_proto::type_url::LISTENER.into(),
            resources: vec![crate::compiler::Resource {
                name: String::new(),
                version: "1".into(),
                resource: any::pack(&listener),
            }],
            removed: Vec::new(),
            kind: crate::compiler::UpdateKind::Delta,
            version: "1".into(),
        };
        compiler().apply(update, Instant::now()).rejects.iter().map(|reject| reject.to_string()).collect::<String>()
    };
    // `stat_prefix: "k"`; then with `force_response_rewrite: true`; then no message at all.
    assert_eq!(kafka(b"\x0a\x01k"), "");
    let refused = kafka(b"\x0a\x01k\x10\x01");
    assert!(
        refused.contains("filter_chains[0].filters[0].typed_config") && refused.contains("nothing but stat_prefix"),
        "{refused}"
    );
    assert!(kafka(b"\x0a").contains("nothing but stat_prefix"));
}
