#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use crate::resource::{Mesh, Meta, Resource, Secret, Spec};
use crate::store::Expect;

async fn put_secret(store: &Store, mesh: &str, name: &str, data: Vec<u8>) {
    let spec = Arc::new(Secret::new(data));
    let spec = if mesh.is_empty() { Spec::GlobalSecret(spec) } else { Spec::Secret(spec) };
    store.put(Resource::new(Meta::new(mesh, name), spec), Expect::Any).await.unwrap();
}

async fn store_with_mesh(mesh: &str) -> Store {
    let store = Store::memory();
    let resource = Resource::new(Meta::new("", mesh), Spec::Mesh(Arc::new(Mesh::default())));
    store.put(resource, Expect::Absent).await.unwrap();
    put_secret(&store, mesh, &format!("dataplane-token-signing-key-{mesh}-1"), new_signing_key().unwrap()).await;
    store
}

fn tags(tags: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
    tags.iter().map(|(tag, values)| ((*tag).to_owned(), values.iter().map(|v| (*v).to_owned()).collect())).collect()
}

fn claims(token: &str) -> serde_json::Value {
    jsonwebtoken::dangerous::insecure_decode_claims(token).unwrap()
}

/// Trap 4: names of claims are those of Go fields, and `kid` is the number of the key.
#[tokio::test]
async fn a_token_has_kumas_header_and_claims() {
    let store = store_with_mesh("default").await;
    let tokens = DataplaneTokens::new(store);
    let identity = DataplaneIdentity {
        name: "web-1".to_owned(),
        mesh: "default".to_owned(),
        tags: tags(&[("kuma.io/service", &["web", "api"])]),
        ..DataplaneIdentity::default()
    };
    let token = tokens.issue(&identity, Duration::from_secs(3600)).await.unwrap();
    let header = jsonwebtoken::decode_header(&token).unwrap();
    assert_eq!((header.alg, header.kid.as_deref()), (Algorithm::RS256, Some("1")));
    let claims = claims(&token);
    assert_eq!(claims["Name"], "web-1");
    assert_eq!(claims["Mesh"], "default");
    assert_eq!(claims["Tags"]["kuma.io/service"], serde_json::json!(["api", "web"]));
    let (iat, nbf, exp) = (claims["iat"].as_i64(), claims["nbf"].as_i64(), claims["exp"].as_i64());
    assert_eq!(iat, nbf);
    assert_eq!(exp.unwrap() - iat.unwrap(), 3605, "issued 5 s in the past, valid for an hour from now");
    assert_eq!(claims["jti"].as_str().unwrap().len(), 36);
}

#[tokio::test]
async fn a_token_lets_in_whom_it_was_made_for() {
    let store = store_with_mesh("default").await;
    let tokens = DataplaneTokens::new(store);
    let web = tags(&[("kuma.io/service", &["web"]), ("version", &["v1"])]);
    let identity = |name: &str, bound: &[(&str, &[&str])], kind: &str, workload: &str| DataplaneIdentity {
        name: name.to_owned(),
        mesh: "default".to_owned(),
        tags: tags(bound),
        kind: kind.to_owned(),
        workload: workload.to_owned(),
    };
    let cases = [
        (identity("", &[], "", ""), None, None),
        (identity("web-1", &[], "dataplane", ""), None, None),
        (
            identity("web-2", &[], "", ""),
            None,
            Some("proxy name from requestor: web-1 is different than in token: web-2"),
        ),
        (identity("", &[("kuma.io/service", &["web", "api"])], "", ""), None, None),
        (
            identity("", &[("kuma.io/service", &["api"])], "", ""),
            None,
            Some("dataplane contains tag \"kuma.io/service\" with value \"web\" which is not allowed with this token"),
        ),
        (identity("", &[("team", &["a"])], "", ""), None, Some("dataplane has no tag \"team\" required by the token")),
        (identity("", &[], "ingress", ""), None, Some("token is of type \"ingress\"")),
        (identity("", &[], "", "shop"), None, Some("dataplane has no label \"kuma.io/workload\"")),
        (identity("", &[], "", "shop"), Some("web"), Some("dataplane workload \"web\" is not allowed")),
        (identity("", &[], "", "shop"), Some("shop"), None),
    ];
    for (identity, workload, expected) in cases {
        let token = tokens.issue(&identity, Duration::from_secs(60)).await.unwrap();
        let result = tokens.validate(&token, "default", "web-1", &web, workload).await;
        match (result, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error} in {identity:?}"),
            (result, expected) => panic!("{identity:?}: {result:?}, expected {expected:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_said() {
    let store = store_with_mesh("default").await;
    let tokens = DataplaneTokens::new(store.clone());
    let ring = KeyRing::of_mesh("default");
    let claims = |now: SystemTime, mesh: &str| {
        let Registered { iat, nbf, exp, jti } = Registered::new(now, Duration::from_secs(60));
        DataplaneClaims { mesh: mesh.to_owned(), exp, nbf, iat, jti, ..DataplaneClaims::default() }
    };
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let expired = sign(&store, &ring, &claims(now - hour, "default")).await.unwrap();
    let future = sign(&store, &ring, &claims(now + hour, "default")).await.unwrap();
    let other_mesh = sign(&store, &ring, &claims(now, "other")).await.unwrap();
    let elsewhere = store_with_mesh("default").await;
    let forged = sign(&elsewhere, &ring, &claims(now, "default")).await.unwrap();
    let good = sign(&store, &ring, &claims(now, "default")).await.unwrap();
    let no_expiry = sign(&store, &ring, &serde_json::json!({"Mesh": "default"})).await.unwrap();
    let mut tampered: Vec<&str> = good.split('.').collect();
    let other: Vec<&str> = expired.split('.').collect();
    tampered[1] = other[1];
    let tampered = tampered.join(".");
    let symmetric = jsonwebtoken::encode(
        &Header { kid: Some("1".to_owned()), ..Header::new(Algorithm::HS256) },
        &claims(now, "default"),
        &EncodingKey::from_secret(b"guess"),
    )
    .unwrap();
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some("../1".to_owned());
    let (_, key) = ring.latest(&store).await.unwrap();
    let odd_kid =
        jsonwebtoken::encode(&header, &claims(now, "default"), &EncodingKey::from_rsa_der(key.pkcs1())).unwrap();
    let long = "a".repeat(MAX_TOKEN_BYTES + 1);
    for (token, expected) in [
        (expired.as_str(), "token is expired since"),
        (&future, "token is not yet valid"),
        (&other_mesh, "proxy mesh from requestor: default is different than in token: other"),
        (&forged, "signature of the token is invalid"),
        (&tampered, "signature of the token is invalid"),
        (&no_expiry, "exp"),
        (&symmetric, "unsupported token alg HS256"),
        (&odd_kid, "there is no signing key with KID ../1"),
        ("", "no dataplane token given"),
        ("a.b", "not a JWT"),
        ("not a token", "not a JWT"),
        (&long, "longer than"),
    ] {
        let error = tokens.validate(token, "default", "web-1", &BTreeMap::new(), None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected:?} expected, found: {error}");
    }
    tokens.validate(&good, "default", "web-1", &BTreeMap::new(), None).await.unwrap();
}

/// Trap 4: the highest number signs.
#[tokio::test]
async fn the_newest_key_signs_and_every_stored_key_verifies() {
    let store = store_with_mesh("default").await;
    let tokens = DataplaneTokens::new(store.clone());
    let identity = DataplaneIdentity { mesh: "default".to_owned(), ..DataplaneIdentity::default() };
    let hour = Duration::from_secs(3600);
    let first = tokens.issue(&identity, hour).await.unwrap();
    // Ten is newer than nine: numbers count, not texts. What has no number is no key.
    put_secret(&store, "default", "dataplane-token-signing-key-default-9", new_signing_key().unwrap()).await;
    put_secret(&store, "default", "dataplane-token-signing-key-default-10", new_signing_key().unwrap()).await;
    put_secret(&store, "default", "dataplane-token-signing-key-default-zz", b"no key".to_vec()).await;
    let second = tokens.issue(&identity, hour).await.unwrap();
    assert_eq!(jsonwebtoken::decode_header(&second).unwrap().kid.as_deref(), Some("10"));
    for token in [&first, &second] {
        tokens.validate(token, "default", "web-1", &BTreeMap::new(), None).await.unwrap();
    }
    store.delete(&KeyRing::of_mesh("default").secret("1")).await.unwrap();
    let error = tokens.validate(&first, "default", "web-1", &BTreeMap::new(), None).await.unwrap_err();
    assert!(matches!(error, TokenError::NoSigningKey { .. }), "{error}");
    tokens.validate(&second, "default", "web-1", &BTreeMap::new(), None).await.unwrap();
}

/// Trap 5: the list is documented as a Secret of the mesh and read as a GlobalSecret.
#[tokio::test]
async fn a_revoked_token_is_refused_from_either_list() {
    let store = store_with_mesh("default").await;
    let tokens = DataplaneTokens::new(store.clone());
    let identity = DataplaneIdentity { mesh: "default".to_owned(), ..DataplaneIdentity::default() };
    for mesh in ["default", ""] {
        let token = tokens.issue(&identity, Duration::from_secs(60)).await.unwrap();
        let jti = claims(&token)["jti"].as_str().unwrap().to_owned();
        tokens.validate(&token, "default", "web-1", &BTreeMap::new(), None).await.unwrap();
        put_secret(&store, mesh, "dataplane-token-revocations-default", format!("x,{jti}\n").into_bytes()).await;
        let error = tokens.validate(&token, "default", "web-1", &BTreeMap::new(), None).await.unwrap_err();
        assert!(error.to_string().contains("is revoked"), "{error}");
    }
}

#[tokio::test]
async fn a_user_token_carries_name_and_groups() {
    let store = Store::memory();
    let tokens = UserTokens::new(store.clone());
    let user = User { name: "jane".to_owned(), groups: vec!["team-a".to_owned()] };
    assert!(matches!(tokens.issue(&user, Duration::from_secs(60)).await, Err(TokenError::NoSigningKey { .. })));
    put_secret(&store, "", "user-token-signing-key-1", new_signing_key().unwrap()).await;
    let token = tokens.issue(&user, Duration::from_secs(60)).await.unwrap();
    let found = tokens.validate(&token).await.unwrap();
    assert_eq!((found.name.as_str(), found.is_admin()), ("jane", false));
    assert_eq!(found.groups, ["team-a", "mesh-system:authenticated"]);
    assert!(tokens.validate("nonsense").await.is_err());
}

#[test]
fn keys_are_read_from_pem_and_from_der() {
    let pem = new_signing_key().unwrap();
    let key = keys::SigningKey::read(&pem).unwrap();
    assert_eq!(key.public().modulus.len(), 256);
    let again = keys::SigningKey::read(key.pkcs1()).unwrap();
    assert_eq!(again.public(), key.public());
    let pkcs8 = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    keys::SigningKey::read(pkcs8.serialize_pem().as_bytes()).unwrap();
    for damaged in
        [&b""[..], b"-----BEGIN", &pem[..pem.len() / 2], &key.pkcs1()[..100], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]]
    {
        assert!(keys::SigningKey::read(damaged).is_err());
    }
}

#[test]
fn a_public_key_is_what_openssl_and_kuma_write() {
    let pem = new_signing_key().unwrap();
    let public = public_of_private(&pem).unwrap();
    assert!(public.starts_with(b"-----BEGIN RSA PUBLIC KEY-----\n"));
    assert_eq!(keys::PublicKey::read(&public).unwrap(), keys::SigningKey::read(&pem).unwrap().public());
    // SubjectPublicKeyInfo, as `openssl rsa -pubout` writes it.
    let pair = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let read = keys::PublicKey::read(pair.public_key_pem().as_bytes()).unwrap();
    assert_eq!(read, keys::SigningKey::read(pair.serialize_pem().as_bytes()).unwrap().public());
    for damaged in
        [&b""[..], b"-----BEGIN RSA PUBLIC KEY-----\nAAAA\n-----END RSA PUBLIC KEY-----", &pem, &public[..200]]
    {
        assert!(keys::PublicKey::read(damaged).is_err());
    }
    assert!(public_of_private(&public).is_err());
}

#[tokio::test]
async fn a_zone_token_is_good_for_its_zone_and_scope() {
    let store = Store::memory();
    let key = new_signing_key().unwrap();
    put_secret(&store, "", "zone-token-signing-key-1", key.clone()).await;
    let tokens = ZoneTokens::new(store.clone());
    let hour = Duration::from_secs(3600);
    let both = [ZoneScope::Ingress, ZoneScope::Egress];
    let token = tokens.issue("east", &both, hour).await.unwrap();
    let found = claims(&token);
    assert_eq!((&found["Zone"], &found["Scope"]), (&"east".into(), &serde_json::json!(["ingress", "egress"])));
    let any = tokens.issue("", &[ZoneScope::ControlPlane], hour).await.unwrap();
    let ring = KeyRing::of_zones();
    let Registered { iat, nbf, exp, jti } = Registered::new(SystemTime::now() - hour, Duration::from_secs(60));
    let expired = ZoneClaims { zone: "east".to_owned(), scope: None, exp, nbf, iat, jti };
    let expired = sign(&store, &ring, &expired).await.unwrap();
    // A zone with a global control plane has the public half only, and can check tokens with it but not make any.
    let zone = Store::memory();
    put_secret(&zone, "", "zone-token-signing-public-key-1", public_of_private(&key).unwrap()).await;
    let in_zone = ZoneTokens::new(zone);
    assert!(matches!(in_zone.issue("east", &both, hour).await, Err(TokenError::NoSigningKey { .. })));
    let stranger = ZoneTokens::new(Store::memory());
    for tokens in [&tokens, &in_zone] {
        for (token, zone, scope, expected) in [
            (token.as_str(), "east", ZoneScope::Ingress, None),
            (&token, "east", ZoneScope::Egress, None),
            (&any, "west", ZoneScope::ControlPlane, None),
            (&token, "west", ZoneScope::Egress, Some("zone from requestor: west is different than in token: east")),
            (&token, "east", ZoneScope::ControlPlane, Some("cp is out of token's scope: [ingress egress]")),
            (&expired, "east", ZoneScope::Egress, Some("token is expired since")),
            ("", "east", ZoneScope::Egress, Some("shikactl generate zone-token --zone east --scope egress")),
            ("x", "east", ZoneScope::Egress, Some("not a JWT")),
        ] {
            match (tokens.validate(token, zone, scope).await, expected) {
                (Ok(_), None) => {}
                (Err(error), Some(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (result, expected) => panic!("{result:?}, expected {expected:?}"),
            }
        }
    }
    let error = stranger.validate(&token, "east", ZoneScope::Egress).await.unwrap_err();
    assert!(matches!(error, TokenError::NoSigningKey { .. }), "{error}");
    let jti = found["jti"].as_str().unwrap();
    put_secret(&store, "", "zone-token-revocations", jti.into()).await;
    let error = tokens.validate(&token, "east", ZoneScope::Egress).await.unwrap_err();
    assert!(error.to_string().contains("is revoked"), "{error}");
}
