//! `transport_sockets.tls.v3`: `Secret`, `TlsCertificate`, `CertificateValidationContext`.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use shika_data::model::tls::{Identity, SanKind, SanMatcher, Trust, Validation};
use shika_proto::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, SubjectAltNameMatcher, TlsCertificate,
    certificate_validation_context::TrustChainVerification, secret, subject_alt_name_matcher::SanType,
};

use super::{Compiled, Fault, Within, enumeration, matcher, non_empty, required, source, unpack};

/// Most certificates in one chain or bundle.
const MOST_CERTIFICATES: usize = 4_096;

/// What a secret holds.
#[derive(Clone, Debug)]
pub(crate) enum SecretValue {
    /// `tls_certificate`
    Certificate(Identity),
    /// `validation_context`
    Validation(Validation),
}

/// A secret, its files read and everything in it parsed.
pub(crate) fn secret(from: &Secret) -> Compiled<SecretValue> {
    match &from.r#type {
        Some(secret::Type::TlsCertificate(certificate)) => {
            Ok(SecretValue::Certificate(identity(certificate).within("tls_certificate")?))
        }
        Some(secret::Type::ValidationContext(context)) => {
            Ok(SecretValue::Validation(validation(context).within("validation_context")?))
        }
        Some(secret::Type::SessionTicketKeys(_)) => Err(Fault::new(
            "session_ticket_keys",
            "session ticket keys are not supported; tickets use keys of this process",
        )),
        Some(secret::Type::GenericSecret(_)) => {
            Err(Fault::new("generic_secret", "nothing that is supported uses generic secrets"))
        }
        None => Err(Fault::new("type", "value is required")),
    }
}

/// The field that holds what the secret is; a fault of the whole of it is there.
pub(crate) fn content_field(from: &Secret) -> &'static str {
    match &from.r#type {
        Some(secret::Type::TlsCertificate(_)) => "tls_certificate",
        Some(secret::Type::ValidationContext(_)) => "validation_context",
        Some(secret::Type::SessionTicketKeys(_)) => "session_ticket_keys",
        Some(secret::Type::GenericSecret(_)) => "generic_secret",
        None => "type",
    }
}

/// A certificate chain and its key.
pub(crate) fn identity(from: &TlsCertificate) -> Compiled<Identity> {
    let chain = source::data(required(&from.certificate_chain, "certificate_chain")?).within("certificate_chain")?;
    let certificates = certificates(&chain).within("certificate_chain")?;
    let key = source::data(required(&from.private_key, "private_key")?).within("private_key")?;
    // The bytes themselves never appear in a message.
    let key = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|_| {
        Fault::new(
            "private_key",
            format!("Failed to load private key from {}: no PEM private key without a passphrase", key.path),
        )
    })?;
    Ok(Identity { chain: certificates, key, path: Arc::from(chain.path) })
}

/// Certificates in PEM form, at least one.
fn certificates(data: &source::Data) -> Compiled<Vec<CertificateDer<'static>>> {
    let fail =
        |why: &dyn std::fmt::Display| Fault::new("", format!("Failed to load certificates from {}: {why}", data.path));
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&data.bytes) {
        let certificate = certificate.map_err(|error| fail(&error))?;
        x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| fail(&format_args!("certificate {} cannot be parsed: {error}", found.len() + 1)))?;
        if found.len() == MOST_CERTIFICATES {
            return Err(fail(&format_args!("more than {MOST_CERTIFICATES}")));
        }
        found.push(certificate);
    }
    if found.is_empty() {
        return Err(fail(&"no PEM certificate in it"));
    }
    Ok(found)
}

/// How a peer certificate is judged.
pub(crate) fn validation(from: &CertificateValidationContext) -> Compiled<Validation> {
    let mut path = String::new();
    let mut trust = Trust::None;
    if let Some(ca) = &from.trusted_ca {
        let data = source::data(ca).within("trusted_ca")?;
        trust = Trust::Authorities(certificates(&data).within("trusted_ca")?);
        path = data.path;
    }
    if let Some(validator) = &from.custom_validator_config {
        let content = required(&validator.typed_config, "typed_config").within("custom_validator_config")?;
        let config: SpiffeCertValidatorConfig =
            unpack(content).within("typed_config").within("custom_validator_config")?;
        trust = Trust::Spiffe(spiffe(&config).within("typed_config").within("custom_validator_config")?);
        path = "<inline>".into();
    }
    let mut sans = Vec::new();
    for (index, entry) in from.match_typed_subject_alt_names.iter().enumerate() {
        sans.push(san(entry).at("match_typed_subject_alt_names", index)?);
    }
    // The deprecated list applies to every kind of name.
    for (index, entry) in from.match_subject_alt_names.iter().enumerate() {
        let matcher = matcher::string(entry).at("match_subject_alt_names", index)?;
        for kind in [SanKind::Dns, SanKind::Uri, SanKind::Ip, SanKind::Email] {
            sans.push(SanMatcher { kind, matcher: matcher.clone() });
        }
    }
    let spki_hashes = hashes(&from.verify_certificate_spki, "verify_certificate_spki", base64)?;
    let certificate_hashes = hashes(&from.verify_certificate_hash, "verify_certificate_hash", hex)?;
    let accept_untrusted = match enumeration(from.trust_chain_verification, "trust_chain_verification")? {
        TrustChainVerification::VerifyTrustChain => false,
        TrustChainVerification::AcceptUntrusted => true,
    };
    Ok(Validation {
        trust,
        sans,
        spki_hashes,
        certificate_hashes,
        allow_expired: from.allow_expired_certificate,
        accept_untrusted,
        path: path.into(),
    })
}

fn spiffe(config: &SpiffeCertValidatorConfig) -> Compiled<Vec<(Box<str>, Vec<CertificateDer<'static>>)>> {
    if config.trust_domains.is_empty() {
        return Err(Fault::new("trust_domains", "value must contain at least 1 item(s)"));
    }
    let mut domains: Vec<(Box<str>, Vec<CertificateDer<'static>>)> = Vec::with_capacity(config.trust_domains.len());
    for (index, domain) in config.trust_domains.iter().enumerate() {
        let bundle = || {
            let name = non_empty(&domain.name, "name")?;
            if domains.iter().any(|(other, _)| &**other == name) {
                return Err(Fault::new(
                    "name",
                    format!("Multiple trust bundles are given for one trust domain for {name}"),
                ));
            }
            let data = source::data(required(&domain.trust_bundle, "trust_bundle")?).within("trust_bundle")?;
            Ok((name.into(), certificates(&data).within("trust_bundle")?))
        };
        let bundle = bundle().at("trust_domains", index)?;
        domains.push(bundle);
    }
    Ok(domains)
}

fn san(from: &SubjectAltNameMatcher) -> Compiled<SanMatcher> {
    let kind = match enumeration(from.san_type, "san_type")? {
        SanType::Dns => SanKind::Dns,
        SanType::Uri => SanKind::Uri,
        SanType::IpAddress => SanKind::Ip,
        SanType::Email => SanKind::Email,
        SanType::OtherName => return Err(Fault::new("san_type", "OTHER_NAME is not supported")),
        SanType::Unspecified => return Err(Fault::new("san_type", "value must be one of DNS, URI, IP_ADDRESS, EMAIL")),
    };
    Ok(SanMatcher { kind, matcher: matcher::string(required(&from.matcher, "matcher")?).within("matcher")? })
}

fn hashes(texts: &[String], field: &str, decode: fn(&str) -> Option<[u8; 32]>) -> Compiled<Vec<[u8; 32]>> {
    texts
        .iter()
        .enumerate()
        .map(|(index, text)| decode(text).ok_or_else(|| Fault::new("", "is not a SHA-256 hash")).at(field, index))
        .collect()
}

/// SHA-256 in hex, with or without colons.
fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    if digits.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// SHA-256 in base64 (RFC 4648), padded.
fn base64(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_suffix('=').filter(|digits| digits.len() == 43)?;
    let mut bits: u32 = 0;
    let mut held = 0;
    let mut bytes = Vec::with_capacity(32);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes.try_into().ok()
}

/// What a dynamic validation context makes of a default one: lists are joined, single values of the dynamic one win where they are set.
pub(crate) fn combine(default: &Validation, dynamic: &Validation) -> Validation {
    let dynamic_trust = !matches!(dynamic.trust, Trust::None);
    let join = |a: &[[u8; 32]], b: &[[u8; 32]]| a.iter().chain(b).copied().collect();
    Validation {
        trust: if dynamic_trust { dynamic.trust.clone() } else { default.trust.clone() },
        sans: default.sans.iter().chain(&dynamic.sans).cloned().collect(),
        spki_hashes: join(&default.spki_hashes, &dynamic.spki_hashes),
        certificate_hashes: join(&default.certificate_hashes, &dynamic.certificate_hashes),
        allow_expired: default.allow_expired || dynamic.allow_expired,
        accept_untrusted: default.accept_untrusted || dynamic.accept_untrusted,
        path: if dynamic_trust { dynamic.path.clone() } else { default.path.clone() },
    }
}
