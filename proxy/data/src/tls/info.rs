//! What certificates say. The only place that parses them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer,
    x509::{AttributeTypeAndValue, X509Name},
};

use crate::model::{
    rbac::PeerNames,
    tls::{CertificateInfo, SubjectAltName},
};

/// A certificate that is not DER or not X.509.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an X.509 certificate: {0}")]
pub struct BadCertificate(pub String);

/// Reads a certificate for `/certs` and the expiry statistics. `path` says where it came from.
pub fn certificate_info(der: &CertificateDer<'_>, path: &Arc<str>) -> Result<CertificateInfo, BadCertificate> {
    let certificate = parse(der)?;
    Ok(CertificateInfo {
        path: path.clone(),
        serial: serial(&certificate),
        sans: names(&certificate),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// The names that principals and `x-forwarded-client-cert` look at.
pub fn peer_names(der: &CertificateDer<'_>) -> Result<PeerNames, BadCertificate> {
    let certificate = parse(der)?;
    let mut peer = PeerNames { subject: rfc2253(certificate.subject()).into(), ..PeerNames::default() };
    for name in names(&certificate) {
        match name {
            SubjectAltName::Uri(uri) => peer.uris.push(uri.into()),
            SubjectAltName::Dns(dns) => peer.dns.push(dns.into()),
            SubjectAltName::Ip(_) | SubjectAltName::Email(_) => {}
        }
    }
    Ok(peer)
}

/// All subject alternative names, in order.
pub fn subject_alt_names(der: &CertificateDer<'_>) -> Result<Vec<SubjectAltName>, BadCertificate> {
    Ok(names(&parse(der)?))
}

/// SHA-256 of the certificate.
pub fn fingerprint(der: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(der).into()
}

/// SHA-256 of the certificate's `SubjectPublicKeyInfo`.
pub fn spki_fingerprint(der: &CertificateDer<'_>) -> Result<[u8; 32], BadCertificate> {
    Ok(Sha256::digest(parse(der)?.public_key().raw).into())
}

/// Not before and not after, Unix time in seconds.
pub fn validity(der: &CertificateDer<'_>) -> Result<(i64, i64), BadCertificate> {
    let certificate = parse(der)?;
    Ok((certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp()))
}

/// A name for messages: the alternative names, else the subject.
pub fn describe(der: &CertificateDer<'_>) -> String {
    let Ok(certificate) = parse(der) else { return "a certificate that cannot be read".into() };
    let names = names(&certificate);
    if names.is_empty() {
        return format!("subject \"{}\" without alternative names", rfc2253(certificate.subject()));
    }
    let names: Vec<_> = names.iter().map(display).collect();
    names.join(", ")
}

/// `URI:spiffe://…`, `DNS:…`
pub fn display(name: &SubjectAltName) -> String {
    match name {
        SubjectAltName::Uri(uri) => format!("URI:{uri}"),
        SubjectAltName::Dns(dns) => format!("DNS:{dns}"),
        SubjectAltName::Ip(ip) => format!("IP:{ip}"),
        SubjectAltName::Email(email) => format!("email:{email}"),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, BadCertificate> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(BadCertificate(error.to_string())),
    }
}

/// Lower-case hex of the number, without the sign octet that DER puts before a high bit.
fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    let bytes = match bytes {
        [0, rest @ ..] if !rest.is_empty() => rest,
        all => all,
    };
    hex(bytes)
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)] as char, DIGITS[usize::from(byte & 15)] as char])
        .collect()
}

fn names(certificate: &X509Certificate<'_>) -> Vec<SubjectAltName> {
    // A certificate that carries the extension twice is malformed; it has no names.
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some(SubjectAltName::Uri((*uri).to_owned())),
        GeneralName::DNSName(dns) => Some(SubjectAltName::Dns((*dns).to_owned())),
        GeneralName::RFC822Name(email) => Some(SubjectAltName::Email((*email).to_owned())),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets).ok().map(|octets| SubjectAltName::Ip(IpAddr::V4(Ipv4Addr::from(octets)))),
            16 => {
                <[u8; 16]>::try_from(*octets).ok().map(|octets| SubjectAltName::Ip(IpAddr::V6(Ipv6Addr::from(octets))))
            }
            _ => None,
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

/// A distinguished name as RFC 2253 writes it: the most specific part first.
fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter().map(|rdn| rdn.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    // RFC 2253 section 2.3, and the further short names that OpenSSL prints.
    let key = match oid.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "0.9.2342.19200300.100.1.25" => "DC",
        "0.9.2342.19200300.100.1.1" => "UID",
        "1.2.840.113549.1.9.1" => "emailAddress",
        other => other,
    };
    match attribute.as_str() {
        Ok(value) => format!("{key}={}", escape(value)),
        Err(_) => format!("{key}=#{}", hex(attribute.as_slice())),
    }
}

/// RFC 2253 section 2.4; what is not ASCII as OpenSSL writes it with `-nameopt RFC2253`, which is Envoy's way.
fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.chars().count().saturating_sub(1);
    for (at, character) in value.chars().enumerate() {
        let special = matches!(character, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
        let edge = (at == 0 && matches!(character, ' ' | '#')) || (at == last && character == ' ');
        if special || edge {
            text.push('\\');
            text.push(character);
        } else if character.is_ascii_control() {
            text.push_str(&format!("\\{:02X}", character as u32));
        } else if character.is_ascii() {
            text.push(character);
        } else {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                text.push_str(&format!("\\{byte:02X}"));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc2253_escapes() {
        for (value, expected) in [
            ("plain", "plain"),
            ("a,b+c", "a\\,b\\+c"),
            (" both ", "\\ both\\ "),
            ("#1", "\\#1"),
            ("a#b", "a#b"),
            ("line\nbreak", "line\\0Abreak"),
            ("", ""),
            ("ü", "\\C3\\BC"),
        ] {
            assert_eq!(escape(value), expected);
        }
    }

    #[test]
    fn names_of_a_certificate() -> Result<(), Box<dyn std::error::Error>> {
        let mut params = rcgen::CertificateParams::new(vec!["a.example".into(), "10.1.2.3".into()])?;
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://mesh/backend".try_into()?));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Acme, Inc.");
        params.distinguished_name.push(rcgen::DnType::CommonName, "backend");
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0xca, 0xfe]));
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2040, 1, 1);
        let key = rcgen::KeyPair::generate()?;
        let der = params.self_signed(&key)?.der().clone();
        let names = peer_names(&der)?;
        assert_eq!(names.uris, ["spiffe://mesh/backend".into()]);
        assert_eq!(names.dns, ["a.example".into()]);
        assert_eq!(&*names.subject, "CN=backend,O=Acme\\, Inc.");
        let info = certificate_info(&der, &"<inline>".into())?;
        assert_eq!(info.serial, "cafe");
        assert_eq!((info.not_before, info.not_after), (1577836800, 2208988800));
        assert_eq!(info.sans.len(), 3);
        assert_eq!(describe(&der), "DNS:a.example, IP:10.1.2.3, URI:spiffe://mesh/backend");
        Ok(())
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&b""[..], b"\x30", b"\x30\x82\xff\xff", b"hello"] {
            assert!(peer_names(&CertificateDer::from(bytes)).is_err());
        }
    }
}
