#![allow(clippy::unwrap_used, clippy::panic)]

use crate::resource::{documents, parse};

fn check(yaml: &str, expected: &[&str]) {
    let resource = parse(documents(yaml).unwrap().remove(0)).unwrap().resource;
    let found: Vec<String> = super::resource(&resource).iter().map(ToString::to_string).collect();
    assert_eq!(found, expected, "{yaml}");
}

const PORT: &str = "port must be in the range [1, 65535]";

#[test]
fn zone_proxies() {
    let port = format!("networking.port: {PORT}");
    let ingress = |fields: &str| format!("type: ZoneIngress\nname: zi\n{fields}");
    check(&ingress("networking: {port: 10001}"), &[]);
    check(&ingress("networking: {address: 10.0.0.1, port: 1, advertisedAddress: x.org, advertisedPort: 2}"), &[]);
    check(&ingress("zone: east"), &[&port]);
    check(
        &ingress("networking: {port: 1, advertisedPort: 2}"),
        &["networking.advertisedAddress: has to be defined with advertisedPort"],
    );
    check(
        &ingress("networking: {port: 1, advertisedAddress: 192.0.2.1}"),
        &["networking.advertisedPort: has to be defined with advertisedAddress"],
    );
    check(&ingress("networking: {address: 0.0.0.0, port: 1}"), &["networking.address: must not be 0.0.0.0 or ::"]);
    check(
        &ingress("networking: {address: 127.0.0.1, port: 9901, admin: {port: 9901}}"),
        &["networking.admin.port: must differ from port"],
    );
    check(&ingress("networking: {address: 10.0.0.1, port: 9901, admin: {port: 9901}}"), &[]);
    check(
        &ingress("networking: {port: 1}\navailableServices: [{tags: {version: v1}}]"),
        &["availableService[0].tags: mandatory tag \"kuma.io/service\" is missing"],
    );
    let egress = |fields: &str| format!("type: ZoneEgress\nname: ze\n{fields}");
    check(&egress("networking: {address: '::1', port: 10002}"), &[]);
    check(&egress("networking: {port: 0}"), &[&port]);
    check(
        &egress("networking: {address: 'a b', port: 1}"),
        &["networking.address: address has to be valid IP address or domain name"],
    );
}

#[test]
fn external_services() {
    let tags = "tags: {kuma.io/service: es, kuma.io/protocol: http}";
    let at = |address: &str| format!("type: ExternalService\nname: es\nnetworking: {{address: '{address}'}}\n{tags}");
    check(&at("example.com:443"), &[]);
    check(&at("192.0.2.1:443"), &[]);
    check(&at("[2001:db8::1]:443"), &[]);
    for (address, messages) in [
        ("", &["address can't be empty"][..]),
        ("example.com", &["unable to parse address"]),
        ("a b:1", &["address has to be a valid IP address or a domain name"]),
        ("2001:db8::1:443", &["address has to be a valid IP address or a domain name"]),
        ("[example.com]:1", &["address has to be a valid IP address or a domain name"]),
        ("example.com:x", &["unable to parse port in address"]),
        ("example.com:0", &[PORT]),
    ] {
        let expected: Vec<String> = messages.iter().map(|message| format!("networking.address: {message}")).collect();
        check(&at(address), &expected.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let tls = |tls: &str| {
        format!("type: ExternalService\nname: es\nnetworking: {{address: 'x.org:1', tls: {{{tls}}}}}\n{tags}")
    };
    check(&tls("enabled: true, caCert: {secret: ca}, serverName: y.org"), &[]);
    check(&tls("serverName: ''"), &["networking.tls.serverName: cannot be empty"]);
    check(&tls("clientKey: {}"), &["networking.tls.clientKey: data source cannot be empty"]);
    check(
        "type: ExternalService\nname: es",
        &["networking: should have networking", "tags: mandatory tag \"kuma.io/service\" is missing"],
    );
    check(
        "type: ExternalService\nname: es\nnetworking: {address: 'es:1'}\ntags: {kuma.io/service: es}",
        &["tags[\"kuma.io/service\"]: cannot be the same as networking.address"],
    );
    check(
        "type: ExternalService\nname: es\nnetworking: {address: 'x:1'}\ntags: {kuma.io/service: es, kuma.io/protocol: smtp}",
        &[
            "tags[\"kuma.io/protocol\"]: tag \"kuma.io/protocol\" has an invalid value \"smtp\". Allowed values: grpc, http, \
           http2, kafka, tcp",
        ],
    );
}

#[test]
fn mesh_external_services() {
    let of = |spec: &str| format!("type: MeshExternalService\nname: mes\nspec: {{{spec}}}");
    let good = "match: {port: 80, protocol: http}";
    check(&of(good), &[]);
    check(
        &of("match: {type: Other, port: 0, protocol: kafka}"),
        &[
            "spec.match.type: unrecognized type 'Other' - only 'HostnameGenerator' is supported",
            "spec.match.port: port must be a valid (1-65535)",
            "spec.match.protocol: \"protocol\" must be one of [tcp, grpc, http, http2]",
        ],
    );
    check(
        &of(&format!("{good}, endpoints: [{{address: 'a b', port: 0}}, {{address: x.org, port: 70000}}]")),
        &[
            "spec.endpoints[0].address: address has to be a valid IP or hostname",
            "spec.endpoints[1].port: port must be a valid (1-65535)",
        ],
    );
    check(
        &of(&format!(
            "{good}, tls: {{version: {{min: TLS13, max: TLS12}}, verification: {{mode: Lax, serverName: 'a b', \
             subjectAltNames: [{{type: Suffix, value: x}}], clientKey: {{secret: k}}, caCert: {{}}}}}}"
        )),
        &[
            "spec.tls.version.min: min version must be lower than max",
            "spec.tls.verification.serverName: must be a valid DNS name",
            "spec.tls.verification.mode: \"mode\" must be one of [SkipSAN, SkipCA, SkipAll, Secured]",
            "spec.tls.verification.subjectAltNames[0].type: \"type\" must be one of [Prefix, Exact]",
            "spec.tls.verification.clientCert: must be defined when clientKey is defined",
            "spec.tls.verification.caCert: data source cannot be empty",
        ],
    );
    check(&of(&format!("{good}, extension: {{type: ''}}")), &["spec.extension.type: must not be empty"]);
}

#[test]
fn mesh_services_and_their_names() {
    let of = |spec: &str| format!("type: MeshService\nname: web\nspec: {{{spec}}}");
    check(&of("ports: [{port: 80}, {port: 80, appProtocol: http}]"), &[]);
    check(
        &of("selector: {dataplaneTags: {a: b}, dataplaneRef: {name: x}}"),
        &["spec.selector: must specify only one of: dataplaneTags, dataplaneRef, or dataplaneLabels"],
    );
    check(
        &of("ports: [{port: 0, targetPort: 70000, appProtocol: smtp}, {port: 1, targetPort: ''}, {port: 1}]"),
        &[
            &format!("spec.ports[0].port: {PORT}"),
            &format!("spec.ports[0].targetPort: {PORT}"),
            "spec.ports[0].appProtocol: \"appProtocol\" must be one of [grpc, http, http2, kafka, tcp]",
            "spec.ports[1].targetPort: must not be empty",
            "spec.ports[2]: port and appProtocol are already used by another port",
        ],
    );
    let long = "a".repeat(64);
    check(&format!("type: MeshService\nname: {long}"), &["name: must be no longer than 63 characters"]);
    check(
        "type: MeshMultiZoneService\nname: all",
        &["spec.selector.meshService.matchLabels: cannot be empty", "spec.ports: cannot be empty"],
    );
    let named = |template: &str| {
        format!("type: HostnameGenerator\nname: g\nspec: {{selector: {{meshService: {{}}}}, template: '{template}'}}")
    };
    check(&named("{{ .DisplayName }}.{{ label \"x\" }}.mesh"), &[]);
    check(&named(""), &["spec.template: must not be empty"]);
    check(&named("{{ .Zone"), &["spec.template: couldn't parse template: \"{{ .Zone\" is not closed with \"}}\""]);
    check(
        "type: HostnameGenerator\nname: g\nspec: {template: x}",
        &["spec.selector: exact one selector (meshService, meshExternalService, meshMultiZoneService) must be defined"],
    );
    let resource = parse(documents(&named("{{ .Zone }}_x")).unwrap().remove(0)).unwrap().resource;
    let found = super::resource(&resource);
    assert!(found[0].message.starts_with("template renders to \"zone_x\" which is not a valid DNS name"), "{found:?}");
}
