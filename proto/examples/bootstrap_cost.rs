//! What reading a bootstrap costs: `cargo run --release -p shika-proto --example bootstrap_cost [clusters]`.

#![allow(clippy::print_stdout)]

use std::fmt::Write;
use std::time::Instant;

use shika_proto::envoy::config::bootstrap::v3::Bootstrap;
use shika_proto::json::{self, FieldError, Names};

fn main() -> Result<(), Vec<FieldError>> {
    let clusters = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let (one, many) = (bootstrap(1), bootstrap(clusters));

    let start = Instant::now();
    json::from_yaml::<Bootstrap>(&one)?;
    println!("first message of the process, from YAML of {} bytes: {:?}", one.len(), start.elapsed());

    for round in 1..=5 {
        let start = Instant::now();
        let read = json::from_json_str::<Bootstrap>(&many)?;
        let parsed = start.elapsed();
        let start = Instant::now();
        let value = json::to_json_value(&read, Names::Proto);
        let printed = start.elapsed();
        let count = read.static_resources.map_or(0, |resources| resources.clusters.len());
        let fine = value.is_ok();
        println!(
            "round {round}: {} bytes of JSON with {count} clusters read in {parsed:?}, to a JSON tree in {printed:?} ({fine})",
            many.len()
        );
    }
    let start = Instant::now();
    json::from_yaml::<Bootstrap>(&many)?;
    println!("the same document read as YAML in {:?}", start.elapsed());
    Ok(())
}

/// A bootstrap with clusters as Kuma emits them: EDS over ADS, mTLS by SDS, HTTP/2.
fn bootstrap(clusters: usize) -> String {
    let mut text = r#"{"node": {"id": "n", "cluster": "c"}, "static_resources": {"clusters": ["#.to_owned();
    for i in 0..clusters {
        let comma = if i > 0 { "," } else { "" };
        // A write to a String does not fail.
        let _ = write!(
            text,
            r#"{comma}{{"name": "service-{i}", "type": "EDS", "connect_timeout": "5s",
            "eds_cluster_config": {{"eds_config": {{"ads": {{}}, "resource_api_version": "V3"}}}},
            "circuit_breakers": {{"thresholds": [{{"max_connections": 1024, "max_requests": 1024, "max_retries": 3}}]}},
            "transport_socket": {{"name": "envoy.transport_sockets.tls", "typed_config": {{
              "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
              "common_tls_context": {{"alpn_protocols": ["kuma"],
                "tls_certificate_sds_secret_configs": [{{"name": "identity_cert:secret:default",
                  "sds_config": {{"ads": {{}}, "resource_api_version": "V3"}}}}],
                "combined_validation_context": {{
                  "default_validation_context": {{"match_typed_subject_alt_names": [
                    {{"san_type": "URI", "matcher": {{"exact": "spiffe://default/service-{i}"}}}}]}},
                  "validation_context_sds_secret_config": {{"name": "mesh_ca:secret:default",
                    "sds_config": {{"ads": {{}}, "resource_api_version": "V3"}}}}}}}},
              "sni": "service-{i}{{mesh=default}}"}}}},
            "typed_extension_protocol_options": {{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {{
              "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
              "explicit_http_config": {{"http2_protocol_options": {{}}}}}}}}}}"#
        );
    }
    text.push_str("]}}");
    text
}
