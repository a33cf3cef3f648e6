//! The command line: version, help, validation, and every kind of bad static input.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::net::TcpListener;

use common::{cluster, file, http_listener, run};

#[test]
fn version_help_and_bad_flags() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let build = text.lines().find_map(|line| line.split_once("version: ")).unwrap().1;
    assert_eq!(build.split('/').count(), 5, "{build}");
    let output = run(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for flag in
        ["--config-path", "--config-yaml", "--drain-time-s", "--mode", "--component-log-level", "--admin-address-path"]
    {
        assert!(text.contains(flag), "{flag}");
    }
    for args in [&["--nonsense"][..], &["-c", "x", "--mode", "dance"], &[], &["run", "--proxy-type", "gateway"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn validation_says_ok_or_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let listener =
        |routes: &str| format!("static_resources:\n  listeners:{}", http_listener("web", "127.0.0.1:0", routes));
    let route = "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}";
    let good = file(directory.path(), "good.yaml", &listener(route));
    let output = run(&["-c", &good, "--mode", "validate"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("configuration '{good}' OK\n"));
    assert_eq!(output.status.code(), Some(0));

    let key = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
        (
            file(directory.path(), &format!("{name}.pem"), &pem),
            file(directory.path(), &format!("{name}.key"), &key.serialize_pem()),
        )
    };
    let ((certificate, _), (_, other_key)) = (key("a"), key("b"));
    let tls = format!(
        "{}      transport_socket: {{name: tls, typed_config: {{'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, \
         common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {certificate}}}, private_key: {{filename: {other_key}}}}}]}}}}}}\n",
        listener(route)
    );
    let rbac = "static_resources: {listeners: [{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, filter_chains: [{filters: [\
        {name: rbac, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r., rules: {policies: {p: \
        {permissions: [{any: true}], principals: [{authenticated: {principal_name: {safe_regex: {regex: '('}}}}]}}}}},\
        {name: echo, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo}}]}]}]}";
    for (name, text, needles) in [
        ("broken", "static_resources: [".to_owned(), &["bad YAML"][..]),
        ("unknown-field", "static_resources: {listenerz: []}".into(), &["static_resources.listenerz", "unknown field"]),
        ("rbac-regex", rbac.into(), &["static_resources.listeners[0].filter_chains[0].filters[0]", "regex"]),
        ("key-mismatch", tls, &["static_resources.listeners[0].filter_chains[0].transport_socket", "key"]),
        (
            "port",
            format!("static_resources:\n  clusters:{}", cluster("c", "127.0.0.1:70000")),
            &["static_resources.clusters[0].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.port_value", "65535"],
        ),
        (
            "unknown-any",
            "static_resources: {listeners: [{name: l, address: {socket_address: {address: 127.0.0.1, port_value: 0}}, filter_chains: [{filters: [{name: x, \
             typed_config: {'@type': type.googleapis.com/no.such.Type}}]}]}]}"
                .into(),
            &["static_resources.listeners[0].filter_chains[0].filters[0].typed_config", "no.such.Type"],
        ),
    ] {
        let path = file(directory.path(), &format!("{name}.yaml"), &text);
        for mode in ["validate", "serve"] {
            let output = run(&["-c", &path, "--mode", mode]);
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{name} {mode}: {errors}");
            for needle in needles {
                assert!(errors.contains(needle), "{name} {mode}: {needle} is not in: {errors}");
            }
        }
    }
}

#[test]
fn a_taken_port_ends_the_start_with_address_and_reason() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let routes = "route_config: {virtual_hosts: []}";
    let path = file(
        directory.path(),
        "b.yaml",
        &format!("static_resources:\n  listeners:{}", http_listener("web", &address, routes)),
    );
    let output = run(&["-c", &path]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains(&address) && errors.contains("Address already in use") && errors.contains("web"),
        "{errors}"
    );
}
