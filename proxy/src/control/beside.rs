//! What the loop does for what stands beside a sidecar's proxy: documents of the control plane, and files with credentials.

use std::fs;

use shika_proto::type_url;
use shika_xds::Reject;
use tracing::{debug, info, warn};

use super::Control;
use crate::sidecar::credentials::{self, Watched};

/// Files that prove who is who between proxy and control plane.
#[derive(Default)]
pub struct Credentials {
    /// With the token.
    pub token: Option<Watched>,
    /// With the control plane's CA.
    pub ca: Option<Watched>,
}

impl Control {
    /// Hands the control plane's documents to what they are for. What of one cannot be used is refused like a resource: the control plane should know,
    /// and what was there before stays.
    pub(super) fn read_documents(&mut self) -> Vec<Reject> {
        let mut rejects = Vec::new();
        for document in self.documents.changed(&self.state.snapshot.borrow()) {
            let left_out = match (&*document.path, &self.state.dns, &self.state.metrics) {
                ("/dns", Some(dns), _) => dns.configure(&document.body),
                ("/meshmetric", _, Some(metrics)) => metrics.configure(&document.body),
                // Kuma sends what the proxy's features ask for. What else it has does no harm, but is said once for each version.
                _ => {
                    warn!("{} of {}: nothing here reads this document", document.path, document.listener);
                    continue;
                }
            };
            let refused = match left_out {
                Ok(left_out) => {
                    debug!("{} of {} is in force", document.path, document.listener);
                    left_out.into_iter().map(|what| format!("{what}; it is left out")).collect()
                }
                Err(error) => vec![format!("{error}; what was there before stays")],
            };
            for why in refused {
                let reject = Reject::new(type_url::LISTENER, &document.listener, &*document.path, why);
                warn!("{reject}");
                rejects.push(reject);
            }
        }
        rejects
    }

    /// Uses a token or CA that is another since it was looked at last.
    pub(super) fn look_at_credentials(&mut self) {
        if self.credentials.token.as_mut().is_some_and(Watched::changed) {
            self.subscriptions.renew_token();
        }
        let Some(ca) = self.credentials.ca.as_mut() else { return };
        if !ca.changed() {
            return;
        }
        let path = ca.path().display();
        let frame = self.state.encoded_bootstrap.frame().unwrap_or_default();
        let secrets = frame.static_resources.map_or_else(Vec::new, |resources| resources.secrets);
        let read = fs::read(ca.path()).map_err(|error| error.to_string());
        let replaced = read.and_then(|pem| match credentials::with_ca(&secrets, pem) {
            Some(secret) => {
                self.state.compiler.borrow_mut().replace_static_secret(&secret).map_err(|reject| reject.to_string())
            }
            None => Err("the bootstrap has no secret for it".into()),
        });
        match replaced {
            Ok(()) => info!("the control plane's CA has changed: {path} is used from the next connection on"),
            Err(error) => {
                warn!("the control plane's CA has changed and cannot be used: {path}: {error}; the old one stays")
            }
        }
    }
}
