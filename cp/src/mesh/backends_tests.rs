#![allow(clippy::unwrap_used)]

use super::*;

/// Trap 10: the server name of a service resource, with Kuma's vectors.
#[test]
fn server_names_are_those_of_kuma() {
    for (name, mesh, port, kind, expected) in [
        ("backend", "demo", 8080, Kind::MeshService, "ae10a8071b8a8eeb8.backend.8080.demo.ms"),
        ("backend", "default", 80, Kind::MeshService, "a601e0c00295a9fbe.backend.80.default.ms"),
        ("backend2", "default", 80, Kind::MeshService, "aec60634adf0f45d6.backend2.80.default.ms"),
        ("example", "default", 9090, Kind::MeshExternalService, "afce62f771ed74b78.example.9090.default.mes"),
        ("multi-backend", "default", 80, Kind::MeshMultiZoneService, "a6844c35bc637ba96.multi-backend.80.default.mzms"),
    ] {
        assert_eq!(sni(name, mesh, port, kind), expected);
    }
    let long = "n".repeat(63);
    assert!(sni(&long, "m", 80, Kind::MeshService).contains(&format!(".{}x.80.", "n".repeat(62))));
    let fits = "n".repeat(62);
    assert!(sni(&fits, "m", 80, Kind::MeshService).contains(&format!(".{fits}.80.")));
    // Never inside of a character.
    assert_eq!(cut(&format!("{}é", "n".repeat(61))), format!("{}x", "n".repeat(61)));
}

#[test]
fn server_names_go_by_the_zone_of_origin() {
    let meta = |labels: &[(&str, &str)]| {
        let mut meta = Meta::new("default", "backend-x2w5");
        meta.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        meta
    };
    let (display, namespace) = ((DISPLAY_NAME_LABEL, "backend"), (NAMESPACE_LABEL, "shop"));
    for (labels, expected) in [
        (vec![], "backend-x2w5"),
        (vec![display, (ORIGIN_LABEL, "zone")], "backend-x2w5"),
        (vec![display, (ORIGIN_LABEL, "zone"), namespace], "backend-x2w5.shop"),
        (vec![display, (ORIGIN_LABEL, "global")], "backend"),
        (vec![display, (ORIGIN_LABEL, "global"), namespace], "backend.shop"),
    ] {
        assert_eq!(sni_name(Kind::MeshService, &meta(&labels)), expected, "{labels:?}");
    }
    assert_eq!(sni_name(Kind::MeshExternalService, &meta(&[display])), "backend");
}
