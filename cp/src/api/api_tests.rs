#![allow(clippy::unwrap_used, clippy::panic)]

use http::HeaderMap;

use super::*;
use crate::resource::{Mesh, Meta, Resource, Spec};
use crate::store::Expect;

fn request(method: Method, uri: &str, peer: &str, headers: &[(&str, &str)]) -> Request {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    Request { method, uri: uri.parse().unwrap(), headers: map, peer: peer.parse().unwrap(), body: bytes::Bytes::new() }
}

#[tokio::test]
async fn only_direct_callers_on_this_host_are_administrators_without_a_token() {
    let api = Api::new(Store::memory());
    type Headers = &'static [(&'static str, &'static str)];
    let cases: &[(&str, Headers, bool)] = &[
        ("127.0.0.1:1", &[("host", "localhost:5681")], true),
        ("127.0.0.1:1", &[("host", "LOCALHOST.")], true),
        ("[::1]:1", &[("host", "[::1]:5681")], true),
        ("[::ffff:127.0.0.1]:1", &[("host", "127.0.0.1:5681")], true),
        ("10.0.0.1:1", &[("host", "localhost:5681")], false),
        ("127.0.0.1:1", &[], false),
        ("127.0.0.1:1", &[("host", "mesh.example.com")], false),
        ("127.0.0.1:1", &[("host", "localhost:")], false),
        ("127.0.0.1:1", &[("host", "localhost:0")], false),
        ("127.0.0.1:1", &[("host", "a@localhost")], false),
        ("127.0.0.1:1", &[("host", "localhost"), ("x-forwarded-for", "1.2.3.4")], false),
        ("127.0.0.1:1", &[("host", "localhost"), ("forwarded", "for=1.2.3.4")], false),
        ("127.0.0.1:1", &[("host", "localhost"), ("x-real-ip", "1.2.3.4")], false),
        ("127.0.0.1:1", &[("host", "localhost"), ("sec-fetch-site", "cross-site")], false),
        ("127.0.0.1:1", &[("host", "localhost"), ("sec-fetch-site", "same-origin")], true),
        ("127.0.0.1:1", &[("host", "localhost:5681"), ("origin", "http://localhost:5681")], true),
        ("127.0.0.1:1", &[("host", "localhost:5681"), ("origin", "http://localhost:8080")], false),
        ("127.0.0.1:1", &[("host", "localhost:5681"), ("origin", "http://evil.example.com")], false),
        ("127.0.0.1:1", &[("host", "localhost:5681"), ("origin", "null")], false),
    ];
    for (peer, headers, admin) in cases {
        let user = access::authenticate(&api, &request(Method::GET, "/secrets", peer, headers)).await.unwrap();
        assert_eq!(user.is_admin(), *admin, "{peer} {headers:?} {user}");
    }
    let api = Api { localhost_is_admin: false, ..Api::new(Store::memory()) };
    let local = request(Method::GET, "/secrets", "127.0.0.1:1", &[("host", "localhost")]);
    assert!(!access::authenticate(&api, &local).await.unwrap().is_admin());
}

#[tokio::test]
async fn every_path_answers_or_says_that_it_is_not_there() {
    let store = Store::memory();
    let mesh = Resource::new(Meta::new("", "default"), Spec::Mesh(Arc::new(Mesh::default())));
    store.put(mesh, Expect::Absent).await.unwrap();
    let api = Arc::new(Api::new(store));
    for (method, path, status) in [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/config", 200),
        ("GET", "/policies", 200),
        ("GET", "/_resources", 200),
        ("GET", "/who-am-i", 200),
        ("GET", "/meshes", 200),
        ("GET", "/meshes/", 200),
        ("GET", "/meshes/default", 200),
        ("GET", "/meshes/%64efault", 200),
        ("GET", "/meshes/default?format=universal", 200),
        ("GET", "/meshes/default?format=kubernetes", 200),
        ("GET", "/_kri/kri_m____default_?format=k8s", 200),
        ("GET", "/meshes/default?format=helm", 400),
        // Trap 19: a mesh has none of the parts in the middle; what follows the last one is the name of a section, whatever it holds.
        ("GET", "/_kri/kri_m____default_", 200),
        ("GET", "/_kri/kri_m____default_a_b", 200),
        ("GET", "/_kri/kri_m____default", 400),
        ("GET", "/_kri/kri_m____none_", 404),
        ("GET", "/_kri/kri_x____default_", 400),
        ("GET", "/_kri/default", 400),
        ("GET", "/meshes/default/dataplanes", 200),
        ("GET", "/meshes/default/dataplanes/_overview", 200),
        ("GET", "/meshes/default/dataplanes+insights", 200),
        ("GET", "/meshes/default/dataplanes/none/_overview", 404),
        ("GET", "/meshes/default/dataplane-insights", 200),
        ("GET", "/meshes/default/meshtrafficpermissions", 200),
        ("GET", "/meshes/default/secrets", 200),
        ("GET", "/meshes/none/dataplanes", 404),
        ("GET", "/meshes/default/dataplanes/none", 404),
        ("GET", "/dataplanes", 200),
        ("GET", "/dataplanes/_overview", 200),
        ("GET", "/dataplanes+insights", 200),
        ("GET", "/meshtrafficpermissions", 200),
        ("GET", "/globalsecrets", 200),
        ("GET", "/global-secrets", 200),
        ("GET", "/meshes/default/meshes", 404),
        ("GET", "/meshes/default/traffic-routes", 404),
        // Trap 33.
        ("GET", "/versions", 404),
        ("GET", "/%ff", 400),
        ("POST", "/meshes", 405),
        ("PATCH", "/meshes/default", 405),
        ("PUT", "/meshes/default/dataplane-insights/x", 405),
        ("DELETE", "/meshes/default/dataplane-insights/x", 405),
        ("PUT", "/meshes/none/dataplanes/x", 404),
        ("DELETE", "/meshes/default/dataplanes/none", 404),
        ("DELETE", "/meshes/none", 404),
        ("POST", "/tokens/zone", 400),
        // Trap 27: the GUI and kumactl use the aliases.
        ("GET", "/zone-ingresses", 200),
        ("GET", "/zone-ingresses/_overview", 200),
        ("GET", "/zone-ingresses/none/_overview", 404),
        ("GET", "/zoneingresses+insights", 200),
        ("GET", "/zoneegressoverviews", 200),
        ("GET", "/zoneegresses/_overview", 200),
        ("GET", "/zones", 200),
        ("GET", "/zones+insights", 200),
        ("GET", "/zones+insights/none", 404),
        ("GET", "/zones/_overview", 200),
        ("GET", "/zone-insights", 200),
        ("PUT", "/zone-insights/x", 405),
        ("DELETE", "/zone-ingress-insights/x", 405),
        ("GET", "/external-services", 200),
        ("GET", "/hostnamegenerators", 200),
        ("GET", "/meshes/default/meshservices", 200),
        ("GET", "/meshes/default/zones", 404),
        ("GET", "/meshes/default/meshservices/_overview", 404),
        ("GET", "/meshservices/_overview", 404),
        ("GET", "/meshes/default/zones/_overview", 404),
        ("GET", "/tokens/dataplane", 404),
    ] {
        let method: Method = method.parse().unwrap();
        let answer = api.answer(request(method.clone(), path, "127.0.0.1:1", &[("host", "localhost")])).await;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {body}");
        if status >= 400 {
            let error: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(error["status"], status, "{method} {path}");
            assert!(error["title"].is_string() && error["detail"] == error["details"], "{method} {path}: {body}");
        }
    }
}
