//! What is sent to `/bootstrap`.
//!
//! Source: kuma `pkg/xds/bootstrap/types/bootstrap_request.go`.

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{
    arguments::{Arguments, ProxyType},
    template,
    transparent::TransparentProxy,
};
use crate::version;

/// The kuma-dp release whose flags and behaviour are followed.
const KUMA_VERSION: &str = "2.14.0";
/// Where distributions keep their CA bundle, in the order in which they are tried.
pub const SYSTEM_CA_PATHS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
];
/// Largest resource read from a file or standard input.
const MAX_RESOURCE: u64 = 1024 * 1024;

/// Who the sidecar is.
#[derive(Debug, PartialEq)]
pub struct Proxy {
    /// Mesh.
    pub mesh: String,
    /// Name within the mesh.
    pub name: String,
    /// The resource as JSON text; empty where the control plane has it.
    pub resource: String,
    /// The resource says that traffic is redirected.
    pub redirected: bool,
}

impl Proxy {
    /// From the resource, else from `--name` and `--mesh`.
    ///
    /// # Errors
    /// The resource cannot be read, rendered or parsed, or there is no name.
    pub fn new(arguments: &Arguments) -> Result<Proxy, String> {
        let (source, text) = match (&arguments.dataplane, &arguments.dataplane_file) {
            (Some(text), _) => ("--dataplane".to_owned(), text.clone()),
            (None, Some(path)) => (format!("--dataplane-file {}", path.display()), read(path)?),
            (None, None) => return Proxy::named(arguments),
        };
        let rendered = template::render(&text, &arguments.variables()).map_err(|error| format!("{source}: {error}"))?;
        let resource: Value = serde_yaml_ng::from_str(&rendered).map_err(|error| format!("{source}: {error}"))?;
        Proxy::of(arguments.proxy_type, resource).map_err(|error| format!("{source}: {error}"))
    }

    fn of(kind: ProxyType, mut resource: Value) -> Result<Proxy, String> {
        let field = |name: &str| resource.get(name).and_then(Value::as_str).map(str::to_owned);
        let expected = kind.resource();
        match field("type") {
            Some(given) if given == expected => {}
            Some(other) => {
                return Err(format!("type: {other:?}, expected {expected} with --proxy-type {}", kind.name()));
            }
            None => return Err(format!("type: required; expected {expected}")),
        }
        let name = field("name").filter(|name| !name.is_empty()).ok_or("name: required")?;
        let redirected = resource.pointer("/networking/transparentProxying").is_some();
        // Zone proxies are of no mesh.
        let mesh = match kind {
            ProxyType::Ingress | ProxyType::Egress => String::new(),
            ProxyType::Dataplane => field("mesh").filter(|mesh| !mesh.is_empty()).unwrap_or_else(|| "default".into()),
        };
        if let (ProxyType::Dataplane, Value::Object(fields)) = (kind, &mut resource) {
            fields.insert("mesh".into(), mesh.as_str().into());
        }
        Ok(Proxy { mesh, name, resource: resource.to_string(), redirected })
    }

    fn named(arguments: &Arguments) -> Result<Proxy, String> {
        let pod = || Some(format!("{}.{}", std::env::var("POD_NAME").ok()?, std::env::var("POD_NAMESPACE").ok()?));
        let name = arguments
            .name
            .clone()
            .or_else(pod)
            .ok_or("give the Dataplane resource with --dataplane-file or --dataplane, or its --name and --mesh")?;
        let mesh = match arguments.proxy_type {
            ProxyType::Ingress | ProxyType::Egress => String::new(),
            ProxyType::Dataplane => arguments.mesh.clone().unwrap_or_else(|| "default".into()),
        };
        Ok(Proxy { mesh, name, resource: String::new(), redirected: false })
    }
}

fn read(path: &Path) -> Result<String, String> {
    let failed = |error: io::Error| format!("--dataplane-file {}: {error}", path.display());
    let mut text = String::new();
    if path == Path::new("-") {
        io::stdin().take(MAX_RESOURCE).read_to_string(&mut text).map_err(failed)?;
    } else {
        fs::File::open(path).map_err(failed)?.take(MAX_RESOURCE).read_to_string(&mut text).map_err(failed)?;
    }
    Ok(text)
}

/// What stands beside the proxy.
pub struct Beside<'a> {
    /// Redirected traffic.
    pub transparent: Option<&'a TransparentProxy>,
    /// Port of the DNS server.
    pub dns_port: Option<u16>,
    /// Directory of its sockets.
    pub work_directory: &'a Path,
}

/// The request's body.
///
/// # Errors
/// The CA file cannot be read.
pub fn body(arguments: &Arguments, proxy: &Proxy, token: Option<&str>, beside: &Beside<'_>) -> Result<Value, String> {
    let system_ca = arguments
        .system_ca_path
        .clone()
        .or_else(|| SYSTEM_CA_PATHS.iter().find(|path| Path::new(path).exists()).map(|path| (*path).to_owned()));
    let mut dynamic = Map::new();
    if let Ok(host) = std::env::var("HOST_IP") {
        dynamic.insert("HOST_IP".into(), host.into());
    }
    let mut body = json!({
        "mesh": proxy.mesh,
        "name": proxy.name,
        "proxyType": arguments.proxy_type.name(),
        "dataplaneToken": token.unwrap_or_default(),
        // Without a path the control plane puts the token itself into the bootstrap: the file is read again here, not by a gRPC credentials plugin.
        "dataplaneTokenPath": "",
        "dataplaneResource": proxy.resource,
        "version": {
            "kumaDp": {"version": KUMA_VERSION, "gitTag": format!("shika-{}", version::SHIKA_VERSION), "gitCommit": version::REVISION, "buildDate": ""},
            "envoy": {"version": version::ENVOY_VERSION, "build": version::build(), "kumaDpCompatible": true},
        },
        "caCert": arguments.ca()?,
        "dynamicMetadata": dynamic,
        "readinessPort": arguments.readiness_port,
        // Trap 2: true means that there is one, in spite of the name.
        "appProbeProxyDisabled": arguments.application_probe_proxy_port != 0,
        "operatingSystem": std::env::consts::OS,
        "features": features(arguments, beside),
        "resources": {"maxHeapSizeBytes": arguments.max_memory_bytes},
        "workdir": beside.work_directory.display().to_string(),
        "metricsResources": {"certPath": arguments.metrics_cert_path, "keyPath": arguments.metrics_key_path},
        "systemCaPath": system_ca.unwrap_or_default(),
        "ipv6Enabled": arguments.ipv6_enabled && Path::new("/proc/net/if_inet6").exists(),
    });
    if let Value::Object(fields) = &mut body {
        if let Some(port) = beside.dns_port {
            fields.insert("dnsPort".into(), port.into());
        }
        if let Some(transparent) = beside.transparent {
            fields.insert("dataplaneConfig".into(), transparent.to_json());
        }
    }
    Ok(body)
}

/// What the control plane may rely on: it generates other configuration for each. Trap 7: only what is there.
fn features(arguments: &Arguments, beside: &Beside<'_>) -> Vec<&'static str> {
    let mut features = vec!["feature-tcp-accesslog-via-named-pipe"];
    for (given, feature) in [
        (arguments.xds_variant != "GRPC", "feature-delta-grpc"),
        (beside.dns_port.is_some(), "feature-embedded-dns"),
        (beside.transparent.is_some(), "feature-transparent-proxy-in-dataplane-metadata"),
        (arguments.bind_outbounds, "feature-bind-outbounds"),
        (arguments.unified_resource_naming, "feature-unified-resource-naming"),
        (arguments.strict_inbound_ports, "feature-strict-inbound-ports"),
        (arguments.reuse_port, "feature-reuse-port"),
    ] {
        if given {
            features.push(feature);
        }
    }
    features
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn arguments(args: &[&str]) -> Arguments {
        Arguments::try_parse_from(std::iter::once(&"run").chain(args)).expect("good arguments")
    }

    #[test]
    fn the_resource_names_the_proxy() {
        let yaml = "type: Dataplane\nname: '{{ name }}'\nnetworking: {address: 127.0.0.1}\n";
        let proxy = Proxy::new(&arguments(&["--dataplane", yaml, "--dataplane-var", "name=web-01"])).expect("a proxy");
        assert_eq!((proxy.mesh.as_str(), proxy.name.as_str()), ("default", "web-01"));
        let resource: Value = serde_json::from_str(&proxy.resource).expect("JSON");
        assert_eq!(
            resource,
            json!({"type": "Dataplane", "name": "web-01", "networking": {"address": "127.0.0.1"}, "mesh": "default"})
        );
    }

    #[test]
    fn bad_resources_say_what_is_wrong() {
        for (yaml, needle) in [
            ("type: Mesh\nname: x", "expected Dataplane"),
            ("name: x", "type: required"),
            ("type: Dataplane", "name: required"),
            ("type: [", "--dataplane:"),
            ("type: Dataplane\nname: {{ x }}", "variable 'x'"),
        ] {
            let error = Proxy::new(&arguments(&["--dataplane", yaml])).expect_err("an error");
            assert!(error.contains(needle), "{error}");
        }
        let error = Proxy::new(&arguments(&["--dataplane-file", "/nowhere"])).expect_err("an error");
        assert!(error.contains("--dataplane-file /nowhere"), "{error}");
    }

    #[test]
    fn the_body_has_kumas_keys() {
        let arguments = arguments(&["--name", "a", "--mesh", "m"]);
        let proxy = Proxy::new(&arguments).expect("a proxy");
        let beside = Beside { transparent: None, dns_port: None, work_directory: Path::new("/w") };
        let body = body(&arguments, &proxy, Some("jwt"), &beside).expect("a body");
        assert_eq!(
            (&body["mesh"], &body["name"], &body["dataplaneToken"], &body["workdir"]),
            (&json!("m"), &json!("a"), &json!("jwt"), &json!("/w"))
        );
        assert_eq!(
            body["features"],
            json!([
                "feature-tcp-accesslog-via-named-pipe",
                "feature-delta-grpc",
                "feature-strict-inbound-ports",
                "feature-reuse-port"
            ])
        );
        assert_eq!(body["readinessPort"], 9902);
        assert_eq!(body["appProbeProxyDisabled"], false);
        assert!(body.get("dnsPort").is_none() && body.get("dataplaneConfig").is_none());
    }

    #[test]
    fn what_stands_beside_is_told() {
        let arguments = arguments(&["--name", "a", "--xds-variant=GRPC", "--application-probe-proxy-port=9001"]);
        let proxy = Proxy::new(&arguments).expect("a proxy");
        let transparent = TransparentProxy::default();
        let beside = Beside { transparent: Some(&transparent), dns_port: Some(15053), work_directory: Path::new("/w") };
        let body = body(&arguments, &proxy, None, &beside).expect("a body");
        // Traps 2 and 7.
        assert_eq!(body["appProbeProxyDisabled"], true);
        assert_eq!(
            body["features"],
            json!([
                "feature-tcp-accesslog-via-named-pipe",
                "feature-embedded-dns",
                "feature-transparent-proxy-in-dataplane-metadata",
                "feature-strict-inbound-ports",
                "feature-reuse-port"
            ])
        );
        assert_eq!(
            (&body["dnsPort"], &body["dataplaneConfig"]["redirect"]["outbound"]["port"]),
            (&json!(15053), &json!(15001))
        );
    }

    #[test]
    fn zone_proxies_are_of_no_mesh() {
        let yaml = "type: ZoneIngress\nname: ingress-1\nnetworking: {address: 10.0.0.1, port: 10001}\n";
        let proxy = Proxy::new(&arguments(&["--proxy-type", "ingress", "--dataplane", yaml])).expect("a proxy");
        assert_eq!((proxy.mesh.as_str(), proxy.name.as_str()), ("", "ingress-1"));
        assert!(!proxy.resource.contains("mesh"));
        let error = Proxy::new(&arguments(&["--proxy-type", "egress", "--dataplane", yaml])).expect_err("an error");
        assert!(error.contains("expected ZoneEgress"), "{error}");
        let named = Proxy::new(&arguments(&["--proxy-type", "egress", "--name", "e"])).expect("a proxy");
        assert_eq!((named.mesh.as_str(), named.name.as_str()), ("", "e"));
    }
}
