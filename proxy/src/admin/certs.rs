//! `/certs`: certificates in use and their expiry.
//!
//! Source: Envoy `envoy.admin.v3.Certificates`.

use std::collections::BTreeSet;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use shika_data::{
    model::tls::{CertificateInfo, SubjectAltName},
    snapshot::Snapshot,
};

/// `certificates`: one entry per TLS context, equal ones once.
pub fn json(snapshot: &Snapshot, now: i64) -> Value {
    let mut seen = BTreeSet::new();
    let mut certificates = Vec::new();
    contexts(snapshot, |served, trusted| {
        let list = |infos: &[CertificateInfo]| infos.iter().map(|info| details(info, now)).collect::<Vec<_>>();
        let entry = json!({"ca_cert": list(trusted), "cert_chain": list(served)});
        if seen.insert(entry.to_string()) {
            certificates.push(entry);
        }
    });
    json!({"certificates": certificates})
}

/// All certificates in use, our own and authorities.
pub fn served(snapshot: &Snapshot) -> Vec<CertificateInfo> {
    let mut all = Vec::new();
    contexts(snapshot, |served, trusted| all.extend(served.iter().chain(trusted).cloned()));
    all
}

/// Whole days until `expiry`, 0 if it has passed. Both are Unix time in seconds.
pub fn days_until(expiry: i64, now: i64) -> u64 {
    u64::try_from(expiry.saturating_sub(now) / 86_400).unwrap_or(0)
}

fn contexts(snapshot: &Snapshot, mut each: impl FnMut(&[CertificateInfo], &[CertificateInfo])) {
    for listener in snapshot.listeners.iter().flatten() {
        let chains = listener.chains.iter().map(|(_, chain)| chain).chain(listener.chains.default_chain());
        for tls in chains.filter_map(|chain| chain.tls.as_ref()) {
            if let Some(context) = tls.context.load().as_deref() {
                each(&context.certificates, &context.authorities);
            }
        }
    }
    for tls in snapshot.clusters.iter().flatten().flat_map(|cluster| cluster.all_tls()) {
        if let Some(context) = tls.context.load().as_deref() {
            each(&context.certificates, &context.authorities);
        }
    }
}

fn details(info: &CertificateInfo, now: i64) -> Value {
    let sans: Vec<_> = info
        .sans
        .iter()
        .filter_map(|san| match san {
            SubjectAltName::Uri(uri) => Some(json!({"uri": uri})),
            SubjectAltName::Dns(dns) => Some(json!({"dns": dns})),
            SubjectAltName::Ip(ip) => Some(json!({"ip_address": ip.to_string()})),
            // The message has no place for it.
            SubjectAltName::Email(_) => None,
        })
        .collect();
    json!({
        "path": info.path.as_ref(),
        "serial_number": info.serial,
        "subject_alt_names": sans,
        "days_until_expiration": days_until(info.not_after, now).to_string(),
        "valid_from": time(info.not_before),
        "expiration_time": time(info.not_after),
    })
}

fn time(seconds: i64) -> String {
    DateTime::<Utc>::from_timestamp(seconds, 0).unwrap_or_default().to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_as_in_the_message() {
        let info = CertificateInfo {
            path: "<inline>".into(),
            serial: "0a".into(),
            sans: vec![
                SubjectAltName::Uri("spiffe://default/backend".into()),
                SubjectAltName::Ip([127, 0, 0, 1].into()),
            ],
            not_before: 0,
            not_after: 86_400 * 3 + 5,
        };
        assert_eq!(
            details(&info, 0),
            json!({"path": "<inline>", "serial_number": "0a",
                "subject_alt_names": [{"uri": "spiffe://default/backend"}, {"ip_address": "127.0.0.1"}],
                "days_until_expiration": "3", "valid_from": "1970-01-01T00:00:00Z", "expiration_time": "1970-01-04T00:00:05Z"})
        );
        assert_eq!(days_until(5, 10), 0);
    }
}
