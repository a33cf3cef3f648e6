//! `x-forwarded-client-cert`.
//!
//! Source: Envoy "HTTP header manipulation", `x-forwarded-client-cert`, and `forward_client_cert_details`.

use std::fmt::Write;

use http::HeaderValue;

use super::Head;
use crate::{
    connection::PeerTls,
    http::{headers as names, path, present::Present},
    model::http::{ForwardClientCert, ForwardClientCertMode},
    record::hex,
};

impl Head {
    fn drop_client_certificate(&mut self) {
        if self.present.has(Present::CLIENT_CERT) {
            self.headers.remove(&names::CLIENT_CERT);
        }
    }

    /// Makes `x-forwarded-client-cert` say of the peer what the listener wants it to.
    pub(super) fn client_certificate(&mut self, what: ForwardClientCert, peer: Option<&PeerTls>) {
        let peer = peer.filter(|tls| tls.fingerprint.is_some());
        match what.mode {
            ForwardClientCertMode::AlwaysForwardOnly => return,
            ForwardClientCertMode::ForwardOnly if peer.is_some() => return,
            ForwardClientCertMode::Sanitize | ForwardClientCertMode::ForwardOnly => {
                self.drop_client_certificate();
                return;
            }
            _ if peer.is_none() => {
                self.drop_client_certificate();
                return;
            }
            ForwardClientCertMode::AppendForward | ForwardClientCertMode::SanitizeSet => {}
        }
        let Some(peer) = peer else { return };
        let text = || path::percent_encoded_controls(element(what, peer));
        if what.mode == ForwardClientCertMode::AppendForward {
            names::append(&mut self.headers, names::CLIENT_CERT.clone(), &text(), ",");
            return;
        }
        let value = match peer.told.get() {
            Some(told) if told.0 == what => Ok(told.1.clone()),
            _ => HeaderValue::from_str(&text()).inspect(|value| {
                // A connection that outlives its settings goes on without.
                let _ = peer.told.set(Box::new((what, value.clone())));
            }),
        };
        match value {
            Ok(value) => {
                self.headers.insert(names::CLIENT_CERT, value);
            }
            // What the peer sent goes, whatever becomes of ours.
            Err(_) => self.drop_client_certificate(),
        }
    }
}

/// What the header says of one hop.
fn element(what: ForwardClientCert, peer: &PeerTls) -> String {
    let mut text = String::with_capacity(256);
    if let Some(uri) = &peer.own_uri {
        text.push_str("By=");
        text.push_str(uri);
    }
    if let Some(fingerprint) = &peer.fingerprint {
        if !text.is_empty() {
            text.push(';');
        }
        text.push_str("Hash=");
        text.push_str(&hex(fingerprint));
    }
    if what.cert
        && let Some(leaf) = peer.chain.first()
    {
        let _ = write!(text, ";Cert=\"{}\"", path::percent_encoded_pem(leaf));
    }
    if what.chain {
        text.push_str(";Chain=\"");
        peer.chain.iter().for_each(|certificate| text.push_str(&path::percent_encoded_pem(certificate)));
        text.push('"');
    }
    if let Some(names) = &peer.names {
        if what.subject {
            text.push_str(";Subject=\"");
            text.push_str(&names.subject.replace('"', "\\\""));
            text.push('"');
        }
        if what.uri {
            for uri in &names.uris {
                text.push_str(";URI=");
                text.push_str(uri);
            }
            if names.uris.is_empty() {
                text.push_str(";URI=");
            }
        }
        if what.dns {
            for dns in &names.dns {
                text.push_str(";DNS=");
                text.push_str(dns);
            }
        }
    }
    text
}

#[cfg(test)]
#[path = "client_cert_tests.rs"]
mod tests;
