//! Secrets, and the TLS contexts that are built anew of them.

use std::{collections::BTreeSet, sync::Arc};

use shika_data::model::tls::{ClientContext, ServerContext};
use shika_proto::envoy::extensions::transport_sockets::tls::v3::Secret;

use crate::{
    compile::{
        Compiled, Fault, secret,
        tls::{ClientBinding, SecretRef, ServerBinding},
    },
    compiler::Compiler,
};

impl Compiler {
    /// Takes a secret: everything that uses it has to work with it, or it is refused.
    pub(super) fn secret(&mut self, from: &Secret, name: &str) -> Compiled<()> {
        let value = secret::secret(from)?;
        let old = self.secrets.dynamic.insert(name.into(), value);
        match self.contexts_with(name) {
            Ok(contexts) => {
                for context in contexts {
                    context.put_in_force();
                }
                Ok(())
            }
            Err(reason) => {
                match old {
                    Some(old) => self.secrets.dynamic.insert(name.into(), old),
                    None => self.secrets.dynamic.remove(name),
                };
                Err(Fault::new(secret::content_field(from), reason))
            }
        }
    }

    pub(crate) fn contexts_with(&self, name: &str) -> Result<Vec<NewContext<'_>>, String> {
        let uses = |secrets: BTreeSet<SecretRef>| secrets.iter().any(|secret| &*secret.name == name);
        let mut contexts = Vec::new();
        for state in self.clusters.states() {
            for tls in &state.compiled.tls {
                if uses(tls.secrets())
                    && let Some(context) = tls.build(&self.secrets)?
                {
                    contexts.push(NewContext::Client(tls, context));
                }
            }
        }
        for state in self.listeners.values().flat_map(|slot| slot.active.iter().chain(&slot.warming)) {
            for tls in state.compiled.chains.iter().filter_map(|chain| chain.tls.as_ref()) {
                if uses(tls.secrets())
                    && let Some(context) = tls.build(&self.secrets)?
                {
                    contexts.push(NewContext::Server(tls, context));
                }
            }
        }
        Ok(contexts)
    }
}

/// A TLS context that was built and is to be put in force.
pub(crate) enum NewContext<'a> {
    Client(&'a ClientBinding, Arc<ClientContext>),
    Server(&'a ServerBinding, Arc<ServerContext>),
}

impl NewContext<'_> {
    pub(crate) fn put_in_force(self) {
        match self {
            NewContext::Client(tls, context) => {
                tls.handle.context.store(Some(context));
                tls.handle.factory.context_update_by_sds().inc();
            }
            NewContext::Server(tls, context) => {
                tls.put_in_force(Some(context));
                tls.handle.factory.context_update_by_sds().inc();
            }
        }
    }
}
