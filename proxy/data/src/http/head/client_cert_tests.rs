#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use http::Request;

use super::*;
use crate::model::rbac::PeerNames;

fn peer(uri: &str) -> PeerTls {
    PeerTls {
        told: Default::default(),
        names: Some(PeerNames { uris: vec![uri.into()], dns: Vec::new(), subject: "CN=\"a\"".into() }),
        fingerprint: Some([0xab; 32]),
        chain: Vec::new(),
        own_uri: Some(Arc::from("spiffe://mesh/own")),
        version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256",
        resumed: false,
    }
}

#[test]
fn nothing_that_a_peer_says_of_itself_keeps_the_header_from_being_ours() {
    use ForwardClientCertMode::*;
    let hash = "ab".repeat(32);
    let plain = format!("By=spiffe://mesh/own;Hash={hash};Subject=\"CN=\\\"a\\\"\";URI=spiffe://mesh/a");
    let broken = format!("By=spiffe://mesh/own;Hash={hash};Subject=\"CN=\\\"a\\\"\";URI=spiffe://mesh/a%0A%00%C3%BC");
    let (good, bad) = ("spiffe://mesh/a", "spiffe://mesh/a\n\0\u{fc}");
    for (mode, uri, expected) in [
        (Sanitize, Some(good), None),
        (SanitizeSet, Some(good), Some(plain.clone())),
        (SanitizeSet, Some(bad), Some(broken.clone())),
        (SanitizeSet, None, None),
        (AppendForward, Some(good), Some(format!("By=forged,{plain}"))),
        (AppendForward, Some(bad), Some(format!("By=forged,{broken}"))),
        (AppendForward, None, None),
        (ForwardOnly, Some(bad), Some("By=forged".into())),
        (ForwardOnly, None, None),
        (AlwaysForwardOnly, None, Some("By=forged".into())),
    ] {
        let request = Request::builder().uri("/").header(names::CLIENT_CERT, "By=forged").body(()).unwrap();
        let mut head = Head::new(request).0;
        let what = ForwardClientCert { mode, subject: true, cert: false, chain: false, dns: true, uri: true };
        head.client_certificate(what, uri.map(peer).as_ref());
        let values: Vec<_> =
            head.headers.get_all(names::CLIENT_CERT).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(values, expected.iter().collect::<Vec<_>>(), "{mode:?} {uri:?}");
    }
}

#[test]
fn the_next_request_of_a_connection_is_told_the_same_and_other_settings_count_at_once() {
    let peer = peer("spiffe://mesh/a");
    let ask = |subject: bool, forged: Option<&str>| {
        let mut request = Request::builder().uri("/");
        if let Some(forged) = forged {
            request = request.header(names::CLIENT_CERT, forged).header(names::CLIENT_CERT, "By=second");
        }
        let mut head = Head::new(request.body(()).unwrap()).0;
        let mode = ForwardClientCertMode::SanitizeSet;
        let what = ForwardClientCert { mode, subject, cert: false, chain: false, dns: false, uri: true };
        head.client_certificate(what, Some(&peer));
        let values: Vec<_> = head.headers.get_all(names::CLIENT_CERT).iter().cloned().collect();
        values.iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let hash = "ab".repeat(32);
    let short = vec![format!("By=spiffe://mesh/own;Hash={hash};URI=spiffe://mesh/a")];
    let long = vec![format!("By=spiffe://mesh/own;Hash={hash};Subject=\"CN=\\\"a\\\"\";URI=spiffe://mesh/a")];
    assert_eq!(ask(false, None), short);
    assert_eq!(ask(false, Some("By=forged")), short);
    assert_eq!(ask(true, None), long);
    assert_eq!(ask(true, Some("By=forged")), long);
    assert_eq!(ask(false, Some("By=forged")), short);
}
