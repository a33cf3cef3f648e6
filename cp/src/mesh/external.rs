//! Services outside the mesh: where they are and how they are called, with the bytes that their TLS needs.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Protocol;
use crate::resource::{
    DataSource, ExternalService, Kind, MeshExternalService, Meta, Resource, ResourceKey, SERVICE_TAG, SanMatch,
    TlsVersions,
};
use crate::store::{Store, StoreError};

/// Largest file that is read for a certificate or key, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The tag that tells apart the TLS of services with the same tags (Kuma `ExternalServiceTag`).
const EXTERNAL_SERVICE_TAG: &str = "kuma.io/external-service-name";

/// A service outside the mesh, or one of several with the same value of `kuma.io/service`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct External {
    /// Name of the resource.
    pub name: String,
    /// The service; empty for a MeshExternalService.
    pub service: String,
    /// Tags without `kuma.io/service`, or labels of a MeshExternalService.
    pub tags: BTreeMap<String, String>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where it is; at least one.
    pub hosts: Vec<ExternalHost>,
    /// TLS towards it.
    pub tls: Option<OriginatedTls>,
}

/// One place of a service outside the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalHost {
    /// An IP address or a DNS name.
    pub host: String,
    /// The port.
    pub port: u32,
    /// Higher numbers are used when lower ones are down.
    pub priority: u32,
}

/// TLS towards a service outside the mesh.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct OriginatedTls {
    /// Server name to ask for; empty means the host, if that is a name.
    pub server_name: String,
    /// Authorities that are trusted, PEM.
    pub ca: Option<Vec<u8>>,
    /// Whether those of the system are trusted if none are given. Otherwise the server is not verified.
    pub system_ca: bool,
    /// Certificate chain and key to show, PEM.
    pub client: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether the names in the certificate are not looked at.
    pub skip_names: bool,
    /// Whether the server may renegotiate.
    pub allow_renegotiation: bool,
    /// More names, of which the certificate may have one.
    pub names: Vec<ExternalName>,
    /// The lowest and the highest version, as Envoy calls them (`TLSv1_2`).
    pub versions: (Option<&'static str>, Option<&'static str>),
}

impl std::fmt::Debug for OriginatedTls {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OriginatedTls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// A name in a certificate, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ExternalName {
    /// The name.
    Exact(String),
    /// How it begins.
    Prefix(String),
}

/// An ExternalService with what its TLS needs. The inner error says what it cannot be used for.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn external_service(
    store: &Store,
    meta: &Meta,
    spec: &ExternalService,
) -> Result<Result<External, String>, StoreError> {
    let refusal = |reason: String| format!("ExternalService {:?}: {reason}; it is left out", meta.name);
    let (Some(service), Some((host, port))) = (spec.service(), spec.host_port()) else {
        return Ok(Err(refusal("it has no service or no address".to_owned())));
    };
    let mut tags = spec.tags.clone();
    tags.remove(SERVICE_TAG);
    let mut external = External {
        name: meta.name.clone(),
        service: service.to_owned(),
        tags,
        protocol: Protocol::parse(spec.protocol()),
        hosts: vec![ExternalHost { host: host.to_owned(), port: u32::from(port), priority: 0 }],
        tls: None,
    };
    let tls = spec.networking.as_ref().and_then(|networking| networking.tls.as_ref()).filter(|tls| tls.enabled);
    let Some(tls) = tls else { return Ok(Ok(external)) };
    external.tags.insert(EXTERNAL_SERVICE_TAG.to_owned(), meta.name.clone());
    let sources = [
        ("networking.tls.caCert", &tls.ca_cert),
        ("networking.tls.clientCert", &tls.client_cert),
        ("networking.tls.clientKey", &tls.client_key),
    ];
    let [ca, certificate, key] = match load(store, &meta.mesh, sources).await? {
        Ok(loaded) => loaded,
        Err(reason) => return Ok(Err(refusal(reason))),
    };
    external.tls = Some(OriginatedTls {
        server_name: tls.server_name.clone().unwrap_or_default(),
        ca,
        system_ca: false,
        client: certificate.zip(key),
        skip_names: tls.skip_hostname_verification.unwrap_or_default(),
        allow_renegotiation: tls.allow_renegotiation.unwrap_or_default(),
        ..OriginatedTls::default()
    });
    Ok(Ok(external))
}

/// A MeshExternalService with what its TLS needs. The inner error says what it cannot be used for.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn mesh_external_service(
    store: &Store,
    meta: &Meta,
    spec: &MeshExternalService,
) -> Result<Result<External, String>, StoreError> {
    let refusal = |reason: String| format!("MeshExternalService {:?}: {reason}; it is left out", meta.name);
    if let Some(extension) = &spec.extension {
        return Ok(Err(refusal(format!("spec.extension.type: {:?} is not supported", extension.kind))));
    }
    let hosts = spec.endpoints.iter().map(|endpoint| ExternalHost {
        host: endpoint.address.clone(),
        port: endpoint.port,
        priority: endpoint.priority.unwrap_or_default(),
    });
    let mut external = External {
        name: meta.name.clone(),
        service: String::new(),
        tags: meta.labels.clone(),
        protocol: Protocol::parse(&spec.matches.protocol),
        hosts: hosts.collect(),
        tls: None,
    };
    if external.hosts.is_empty() {
        return Ok(Err(refusal("spec.endpoints is empty".to_owned())));
    }
    let Some(tls) = spec.tls.as_ref().filter(|tls| tls.enabled) else { return Ok(Ok(external)) };
    let verification = tls.verification.clone().unwrap_or_default();
    let sources = [
        ("spec.tls.verification.caCert", &verification.ca_cert),
        ("spec.tls.verification.clientCert", &verification.client_cert),
        ("spec.tls.verification.clientKey", &verification.client_key),
    ];
    let [ca, certificate, key] = match load(store, &meta.mesh, sources).await? {
        Ok(loaded) => loaded,
        Err(reason) => return Ok(Err(refusal(reason))),
    };
    let names = verification.subject_alt_names.iter().map(|SanMatch { kind, value }| match kind.as_str() {
        "Prefix" => ExternalName::Prefix(value.clone()),
        _ => ExternalName::Exact(value.clone()),
    });
    let mut originated = OriginatedTls {
        server_name: verification.server_name.clone().unwrap_or_default(),
        ca,
        system_ca: true,
        client: certificate.zip(key),
        allow_renegotiation: tls.allow_renegotiation,
        names: names.collect(),
        versions: tls.version.as_ref().map(versions).unwrap_or_default(),
        ..OriginatedTls::default()
    };
    match verification.mode.as_str() {
        "SkipSAN" => originated.skip_names = true,
        "SkipCA" => (originated.ca, originated.system_ca) = (None, false),
        "SkipAll" => {
            originated = OriginatedTls {
                skip_names: true,
                allow_renegotiation: tls.allow_renegotiation,
                versions: originated.versions,
                ..OriginatedTls::default()
            };
        }
        _ => {}
    }
    if originated.skip_names {
        originated.names.clear();
    }
    external.tls = Some(originated);
    Ok(Ok(external))
}

fn versions(versions: &TlsVersions) -> (Option<&'static str>, Option<&'static str>) {
    let version = |text: &Option<String>| match text.as_deref() {
        Some("TLS10") => Some("TLSv1_0"),
        Some("TLS11") => Some("TLSv1_1"),
        Some("TLS12") => Some("TLSv1_2"),
        Some("TLS13") => Some("TLSv1_3"),
        _ => None,
    };
    (version(&versions.min), version(&versions.max))
}

type Loaded = Result<[Option<Vec<u8>>; 3], String>;

async fn load(store: &Store, mesh: &str, sources: [(&str, &Option<DataSource>); 3]) -> Result<Loaded, StoreError> {
    let mut loaded = [const { None }; 3];
    for ((field, source), place) in sources.into_iter().zip(&mut loaded) {
        let Some(source) = source else { continue };
        match bytes(store, mesh, source).await? {
            Ok(bytes) => *place = Some(bytes),
            Err(reason) => return Ok(Err(format!("{field}: {reason}"))),
        }
    }
    Ok(Ok(loaded))
}

async fn bytes(store: &Store, mesh: &str, source: &DataSource) -> Result<Result<Vec<u8>, String>, StoreError> {
    let DataSource { secret, file, inline, inline_string } = source;
    if let Some(name) = secret {
        let found = store.get(&ResourceKey::new(Kind::Secret, mesh, name)).await?;
        let secret = found.as_ref().and_then(Resource::secret);
        return Ok(secret.map(|secret| secret.data.clone()).ok_or_else(|| format!("Secret {name:?} does not exist")));
    }
    if let Some(path) = file {
        return Ok(read(path).await.map_err(|e| format!("file {path:?}: {e}")));
    }
    if let Some(text) = inline {
        return Ok(STANDARD.decode(text).map_err(|e| format!("inline is no base64: {e}")));
    }
    Ok(inline_string.as_ref().map(|text| text.clone().into_bytes()).ok_or_else(|| "it names no source".to_owned()))
}

async fn read(path: &str) -> std::io::Result<Vec<u8>> {
    let length = tokio::fs::metadata(path).await?.len();
    if length > MAX_FILE {
        return Err(std::io::Error::other(format!("it has {length} bytes, at most {MAX_FILE} are read")));
    }
    tokio::fs::read(path).await
}
