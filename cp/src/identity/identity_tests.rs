#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use x509_parser::extensions::GeneralName;

use super::ca::{self, CertificateAuthority};
use super::leaf::{self, LeafRequest};
use super::*;

fn request(authority: &CertificateAuthority, uris: Vec<String>) -> LeafRequest {
    LeafRequest {
        mesh: "demo".to_owned(),
        backend: "ca-1".to_owned(),
        authority: authority.fingerprint(),
        uris,
        lifetime: Duration::from_secs(3600),
    }
}

/// Trap 9: one SPIFFE identity for each service and one name for each tag, and a key that is made here.
#[test]
fn authority_and_leaf_read_back() {
    let now: DateTime<Utc> = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let pem = ca::create("demo", 2048, Duration::from_secs(1_000_000), now).unwrap();
    assert!(pem.key.starts_with("-----BEGIN RSA PRIVATE KEY-----"), "PKCS#1, as Kuma stores it");
    let authority = CertificateAuthority::from_pem("demo", &pem).unwrap();
    assert_eq!(authority.expires(), now + Duration::from_secs(1_000_000));

    let tags = BTreeMap::from([
        ("kuma.io/service".to_owned(), BTreeSet::from(["web".to_owned(), "api".to_owned()])),
        ("version".to_owned(), BTreeSet::from(["v1".to_owned()])),
    ]);
    let uris = leaf::uris("demo", &tags);
    let expected = [
        "spiffe://demo/api",
        "spiffe://demo/web",
        "kuma://kuma.io/service/api",
        "kuma://kuma.io/service/web",
        "kuma://version/v1",
    ];
    assert_eq!(uris, expected);
    let issued = leaf::issue(&authority, &request(&authority, uris), now).unwrap();
    assert_eq!(issued.expires, now + Duration::from_secs(3600));

    let (_, ca_document) = x509_parser::pem::parse_x509_pem(pem.certificate.as_bytes()).unwrap();
    let root = ca_document.parse_x509().unwrap();
    let subject = root.subject();
    assert_eq!(subject.iter_common_name().next().unwrap().as_str().unwrap(), "demo");
    assert_eq!(subject.iter_organization().next().unwrap().as_str().unwrap(), "Kuma");
    assert_eq!(subject.iter_organizational_unit().next().unwrap().as_str().unwrap(), "Mesh");
    assert_eq!(root.validity().not_before.timestamp(), now.timestamp() - 10);
    let usage = root.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());

    let (_, document) = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).unwrap();
    let certificate = document.parse_x509().unwrap();
    certificate.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(certificate.subject().iter().count(), 0);
    assert_eq!(certificate.validity().not_before.timestamp(), now.timestamp() - 10);
    assert_eq!(certificate.validity().not_after.timestamp(), issued.expires.timestamp());
    assert!(!certificate.is_ca() && certificate.basic_constraints().unwrap().is_some());
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "an empty subject makes the names critical (RFC 5280 section 4.2.1.6)");
    let found: Vec<&str> = names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::URI(uri) => *uri,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found, expected);
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && usage.key_agreement() && !usage.key_cert_sign());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth);
    let another = leaf::issue(&authority, &request(&authority, vec!["spiffe://demo/a".to_owned()]), now).unwrap();
    assert_ne!(another.key, issued.key);
}

#[test]
fn what_is_no_authority_is_refused() {
    let now = Utc::now();
    let pem = ca::create("demo", 0, ca::DEFAULT_EXPIRATION, now).unwrap();
    let authority = CertificateAuthority::from_pem("demo", &pem).unwrap();
    let leaf = leaf::issue(&authority, &request(&authority, vec!["spiffe://demo/a".to_owned()]), now).unwrap();
    let no_ca = ca::CaPem { certificate: leaf.certificate.clone(), key: leaf.key };
    let error = CertificateAuthority::from_pem("demo", &no_ca).unwrap_err();
    assert!(error.to_string().contains("CA:TRUE"), "{error}");
    let other = ca::create("demo", 0, ca::DEFAULT_EXPIRATION, now).unwrap();
    let mixed = ca::CaPem { certificate: pem.certificate.clone(), key: other.key };
    let error = CertificateAuthority::from_pem("demo", &mixed).unwrap_err();
    assert!(error.to_string().contains("does not belong"), "{error}");
    assert!(ca::create("demo", 1024, ca::DEFAULT_EXPIRATION, now).is_err());

    let bad_name = request(&authority, vec!["spiffe://demo/größe".to_owned()]);
    assert!(matches!(leaf::issue(&authority, &bad_name, now), Err(IdentityError::BadUri { .. })));
    let late = now + Duration::from_secs(20 * 365 * 24 * 3600);
    let expired = leaf::issue(&authority, &request(&authority, Vec::new()), late);
    assert!(matches!(expired, Err(IdentityError::AuthorityExpired { .. })));
}

#[test]
fn keys_are_written_as_pkcs1_if_they_are_rsa() {
    // SEQUENCE { 0, SEQUENCE { rsaEncryption, NULL }, OCTET STRING { 30 00 } }
    let mut pkcs8 =
        vec![0x30, 0x16, 0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01];
    pkcs8.extend([0x01, 0x01, 0x05, 0x00, 0x04, 0x02, 0x30, 0x00]);
    assert_eq!(pkcs1_inside(&pkcs8), Some(&[0x30, 0x00][..]));
    assert_eq!(pkcs1_inside(&pkcs8[..20]), None);
    assert_eq!(pkcs1_inside(&[]), None);
    assert_eq!(pkcs1_inside(&[0x30, 0x85, 1, 1, 1, 1, 1]), None);
    assert!(rsa_key_pem(&[1, 2, 3]).starts_with("-----BEGIN PRIVATE KEY-----"));
}
