//! Contexts and what they are built from, anew when a secret changes.

use std::{collections::BTreeSet, sync::Arc};

use foldhash::HashMap;
use shika_data::{
    model::tls::{
        CertificateInfo, ClientContext, ClientTls, ClientTlsSpec, Identity, ServerContext, ServerTls, ServerTlsSpec,
        Validation,
    },
    stats::{CertificateStats, Registry, Scope},
};

use super::{Common, IdentityFrom, SecretRef, ValidationFrom, check_sans};
use crate::compile::secret::{self, SecretValue};

/// A downstream context and what it is built from.
#[derive(Debug)]
pub(crate) struct ServerBinding {
    /// What the chain holds.
    pub handle: Arc<ServerTls>,
    /// Hash of all that a peer has to prove.
    pub demands: u64,
    pub(super) expiry: Expiry,
    pub(super) common: Common,
    pub(super) require_client_certificate: bool,
    pub(super) resumption: Option<u32>,
}

/// An upstream context and what it is built from.
#[derive(Debug)]
pub(crate) struct ClientBinding {
    /// What the cluster holds.
    pub handle: Arc<ClientTls>,
    pub(super) common: Common,
    pub(super) sni: Option<String>,
    pub(super) max_session_keys: usize,
}

/// `listener.<..>.ssl.certificate.<name>.expiration_unix_time_seconds`, by the secret's name.
#[derive(Debug)]
pub(super) struct Expiry {
    /// In the order of the certificates.
    own: Vec<CertificateStats>,
    trusted: Option<CertificateStats>,
}

impl Expiry {
    /// `scope` is that of `ssl.`.
    pub(super) fn new(registry: &Registry, scope: &Scope, common: &Common) -> Expiry {
        // Envoy's words for what has no name.
        let stats = |secret: Option<&SecretRef>, unnamed: &str| {
            let name = secret.map_or_else(|| unnamed.to_owned(), |secret| secret.name.replace(':', "_"));
            let scope = Scope {
                prefix: format!("{}certificate.{name}.", scope.prefix),
                stem: format!("{}certificate.", scope.stem),
                tags: [&scope.tags[..], &[("envoy.tls_certificate", name)]].concat(),
            };
            CertificateStats::new(registry, scope)
        };
        let own = common.identities.iter().map(|identity| match identity {
            IdentityFrom::Inline(_) => stats(None, "unnamed_cert_e3b0c442"),
            IdentityFrom::Secret(secret) => stats(Some(secret), ""),
        });
        let trusted = match &common.validation {
            ValidationFrom::None => None,
            ValidationFrom::Inline(_) => Some(stats(None, "unnamed_ca_cert_e3b0c442")),
            ValidationFrom::Secret(secret) | ValidationFrom::Combined(_, secret) => Some(stats(Some(secret), "")),
        };
        Expiry { own: own.collect(), trusted }
    }

    fn note(&self, context: &ServerContext) {
        let seconds = |certificate: &CertificateInfo| u64::try_from(certificate.not_after).unwrap_or(0);
        for (stats, certificate) in self.own.iter().zip(&context.certificates) {
            stats.expiration_unix_time_seconds().set(seconds(certificate));
        }
        if let Some(stats) = &self.trusted
            && let Some(first) = context.authorities.iter().map(seconds).min()
        {
            stats.expiration_unix_time_seconds().set(first);
        }
    }
}

/// Secrets by name, static ones apart.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    /// From the bootstrap.
    pub fixed: HashMap<Arc<str>, SecretValue>,
    /// From SDS.
    pub dynamic: HashMap<Arc<str>, SecretValue>,
}

impl Secrets {
    fn find(&self, secret: &SecretRef) -> Option<&SecretValue> {
        match secret.source {
            None => self.fixed.get(&secret.name),
            Some(_) => self.dynamic.get(&secret.name),
        }
    }
}

impl Common {
    fn secrets(&self) -> BTreeSet<SecretRef> {
        let mut secrets: BTreeSet<SecretRef> = BTreeSet::new();
        for identity in &self.identities {
            if let IdentityFrom::Secret(secret) = identity {
                secrets.insert(secret.clone());
            }
        }
        match &self.validation {
            ValidationFrom::Secret(secret) | ValidationFrom::Combined(_, secret) => {
                secrets.insert(secret.clone());
            }
            ValidationFrom::None | ValidationFrom::Inline(_) => {}
        }
        secrets
    }

    /// `None`: a secret is missing.
    fn identities(&self, secrets: &Secrets) -> Result<Option<Vec<Identity>>, String> {
        let mut identities = Vec::with_capacity(self.identities.len());
        for from in &self.identities {
            identities.push(match from {
                IdentityFrom::Inline(identity) => identity.clone(),
                IdentityFrom::Secret(secret) => match secrets.find(secret) {
                    Some(SecretValue::Certificate(identity)) => identity.clone(),
                    Some(SecretValue::Validation(_)) => {
                        return Err(format!("secret {:?} holds no certificate", secret.name));
                    }
                    None => return Ok(None),
                },
            });
        }
        Ok(Some(identities))
    }

    /// `None`: a secret is missing.
    fn validation(&self, secrets: &Secrets) -> Result<Option<Option<Validation>>, String> {
        let dynamic = |secret: &SecretRef| match secrets.find(secret) {
            Some(SecretValue::Validation(validation)) => Ok(Some(validation)),
            Some(SecretValue::Certificate(_)) => Err(format!("secret {:?} holds no validation context", secret.name)),
            None => Ok(None),
        };
        let validation = match &self.validation {
            ValidationFrom::None => return Ok(Some(None)),
            ValidationFrom::Inline(validation) => validation.clone(),
            ValidationFrom::Secret(secret) => match dynamic(secret)? {
                Some(validation) => validation.clone(),
                None => return Ok(None),
            },
            ValidationFrom::Combined(default, secret) => match dynamic(secret)? {
                Some(validation) => secret::combine(default, validation),
                None => return Ok(None),
            },
        };
        check_sans(&validation).map_err(|fault| fault.reason)?;
        Ok(Some(Some(validation)))
    }
}

impl ServerBinding {
    /// Secrets that it needs.
    pub fn secrets(&self) -> BTreeSet<SecretRef> {
        self.common.secrets()
    }

    /// Builds the context from the secrets there are, without putting it in force. `None`: a secret is missing.
    pub fn build(&self, secrets: &Secrets) -> Result<Option<Arc<ServerContext>>, String> {
        let (Some(identities), Some(validation)) = (self.common.identities(secrets)?, self.common.validation(secrets)?)
        else {
            return Ok(None);
        };
        let spec = ServerTlsSpec {
            identities,
            validation,
            require_client_certificate: self.require_client_certificate,
            alpn: self.common.alpn.clone(),
            parameters: self.common.parameters.clone(),
            resumption: self.resumption,
        };
        ServerContext::build(&spec).map(|context| Some(Arc::new(context))).map_err(|error| error.to_string())
    }

    /// Puts a context in force.
    pub fn put_in_force(&self, context: Option<Arc<ServerContext>>) {
        if let Some(context) = &context {
            self.expiry.note(context);
        }
        self.handle.context.store(context);
    }
}

impl ClientBinding {
    /// Secrets that it needs.
    pub fn secrets(&self) -> BTreeSet<SecretRef> {
        self.common.secrets()
    }

    /// Builds the context from the secrets there are, without putting it in force. `None`: a secret is missing.
    pub fn build(&self, secrets: &Secrets) -> Result<Option<Arc<ClientContext>>, String> {
        let (Some(identities), Some(validation)) = (self.common.identities(secrets)?, self.common.validation(secrets)?)
        else {
            return Ok(None);
        };
        let spec = ClientTlsSpec {
            identity: identities.into_iter().next(),
            validation,
            sni: self.sni.clone(),
            alpn: self.common.alpn.clone(),
            parameters: self.common.parameters.clone(),
            max_session_keys: self.max_session_keys,
        };
        ClientContext::build(&spec).map(|context| Some(Arc::new(context))).map_err(|error| error.to_string())
    }
}
