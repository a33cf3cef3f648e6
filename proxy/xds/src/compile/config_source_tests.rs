#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::compile::testing::yaml;

fn servers() -> Servers {
    Servers { ads: true, primary: ["cp".to_owned()].into() }
}

fn source(text: &str, through: Through) -> Result<Source, String> {
    config(&yaml(text), &servers(), through).map_err(|fault| format!("{}: {}", fault.path, fault.reason))
}

fn api_of(source: Source) -> ApiConfig {
    match source {
        Source::Api { api, .. } => ApiConfig::clone(&api),
        other => panic!("{other:?}"),
    }
}

#[test]
fn servers_of_one_type_and_how_they_are_asked() {
    let grpc = "{ api_config_source: { api_type: GRPC, transport_api_version: V3, set_node_on_first_message_only: true,
        grpc_services: [{ envoy_grpc: { cluster_name: cp, authority: a }, initial_metadata: [{ key: Token, value: t }] }] }, initial_fetch_timeout: 0s }";
    let Source::Api { api, initial_fetch_timeout } = source(grpc, Through::Primary).unwrap() else { panic!() };
    assert_eq!(initial_fetch_timeout, None);
    assert_eq!(
        *api,
        ApiConfig {
            api_type: ApiType::Grpc,
            cluster: "cp".into(),
            authority: "a".into(),
            metadata: vec![("token".into(), "t".into())],
            node_on_first_message_only: true,
            token_file: None,
            keepalive: None,
            largest_message: LARGEST_MESSAGE,
        }
    );
    let delta = grpc.replace("api_type: GRPC", "api_type: DELTA_GRPC");
    assert_eq!(api_of(source(&delta, Through::Primary).unwrap()).api_type, ApiType::DeltaGrpc);
    // As Kuma emits it for SPIRE: no transport_api_version, and a cluster from CDS.
    let spire = "{ api_config_source: { api_type: GRPC, grpc_services: [{ envoy_grpc: { cluster_name: system_identity_sds-spire-agent } }] } }";
    assert_eq!(api_of(source(spire, Through::Any).unwrap()).cluster, "system_identity_sds-spire-agent");
    let rest = "{ api_config_source: { api_type: REST, transport_api_version: V3, cluster_names: [cp], refresh_delay: 0.5s } }";
    let expected = ApiType::Rest { refresh: Duration::from_millis(500), timeout: Duration::from_secs(1) };
    assert_eq!(api_of(source(rest, Through::Primary).unwrap()).api_type, expected);
    let rest = rest.replace("refresh_delay: 0.5s", "refresh_delay: 1s, request_timeout: 3s");
    let expected = ApiType::Rest { refresh: Duration::from_secs(1), timeout: Duration::from_secs(3) };
    assert_eq!(api_of(source(&rest, Through::Primary).unwrap()).api_type, expected);
    for aggregated in ["AGGREGATED_GRPC", "AGGREGATED_DELTA_GRPC"] {
        let text = format!("{{ api_config_source: {{ api_type: {aggregated} }} }}");
        assert!(matches!(source(&text, Through::Primary), Ok(Source::Ads { .. })), "{aggregated}");
    }
}

#[test]
fn what_cannot_be_asked_is_refused_with_its_path() {
    let services = "grpc_services: [{ envoy_grpc: { cluster_name: cp } }]";
    for (fields, expected) in [
        ("api_type: GRPC".to_owned(), "grpc_services: value must contain exactly 1 item(s), not 0"),
        (
            format!("api_type: GRPC, {services}, cluster_names: [cp]"),
            "cluster_names: (DELTA_)GRPC must not have a cluster name specified",
        ),
        (
            format!("api_type: DELTA_GRPC, transport_api_version: V2, {services}"),
            "transport_api_version: V2 is no longer supported; use V3",
        ),
        (
            "api_type: GRPC, grpc_services: [{ envoy_grpc: { cluster_name: dynamic } }]".to_owned(),
            "grpc_services[0].envoy_grpc.cluster_name: Unknown cluster 'dynamic': it has to be in static_resources, and not a cluster of EDS",
        ),
        (
            "api_type: GRPC, grpc_services: [{ google_grpc: { target_uri: 'cp:1', stat_prefix: cp } }]".to_owned(),
            "grpc_services[0].google_grpc: is supported for ADS alone; use envoy_grpc with a cluster",
        ),
        (
            "api_type: REST, refresh_delay: 1s".to_owned(),
            "cluster_names: must have a singleton cluster name specified for REST, not 0",
        ),
        (
            "api_type: REST, cluster_names: [cp]".to_owned(),
            "refresh_delay: is required for REST API configuration sources",
        ),
        (
            "api_type: REST, cluster_names: [cp], refresh_delay: 0s".to_owned(),
            "refresh_delay: value must be greater than 0s",
        ),
        (
            "api_type: REST, cluster_names: [other], refresh_delay: 1s".to_owned(),
            "cluster_names[0]: Unknown cluster 'other': it has to be in static_resources, and not a cluster of EDS",
        ),
        (
            format!("api_type: REST, cluster_names: [cp], refresh_delay: 1s, {services}"),
            "grpc_services: REST must not have a gRPC service specified",
        ),
    ] {
        let found = source(&format!("{{ api_config_source: {{ {fields} }} }}"), Through::Primary).unwrap_err();
        assert_eq!(found, format!("api_config_source.{expected}"), "{fields}");
    }
}

#[test]
fn ads_needs_ads_config_and_a_server_a_cluster_that_is_there_without_it() {
    let bootstrap = yaml(
        "static_resources: { clusters: [{ name: a }, { name: b, type: EDS, eds_cluster_config: { eds_config: { ads: {} } } },
            { name: c, type: EDS, eds_cluster_config: { eds_config: { path_config_source: { path: /c } } } }] }",
    );
    let heads = shika_proto::bootstrap::EncodedBootstrap::from(&bootstrap);
    let found = Servers::of(&bootstrap, heads.cluster_heads().flatten());
    assert_eq!(found.primary, ["a".to_owned(), "c".to_owned()].into());
    let refused = config(&yaml("ads: {}"), &found, Through::Primary).unwrap_err();
    assert_eq!(
        (refused.path.as_str(), refused.reason.as_str()),
        ("ads", "ADS is not configured: dynamic_resources.ads_config of the bootstrap is not set")
    );
}
