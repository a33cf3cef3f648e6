//! ExternalService (Kuma `api/mesh/v1alpha1/externalservice.proto`) and MeshExternalService
//! (`pkg/core/resources/apis/meshexternalservice`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::service::{HostnameAddress, HostnameGeneratorStatus, Vip};
use super::wire::is_default;
use super::{PROTOCOL_TAG, SERVICE_TAG};

/// A service outside the mesh, known by its tags.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalService {
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networking: Option<ExternalNetworking>,
    /// The tags, `kuma.io/service` among them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

impl ExternalService {
    /// The service, from the tag `kuma.io/service`.
    pub fn service(&self) -> Option<&str> {
        self.tags.get(SERVICE_TAG).map(String::as_str)
    }

    /// The protocol, from the tag `kuma.io/protocol`; empty without one.
    pub fn protocol(&self) -> &str {
        self.tags.get(PROTOCOL_TAG).map(String::as_str).unwrap_or_default()
    }

    /// Host and port of the address, the host without brackets.
    pub fn host_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.networking.as_ref()?.address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some((host, port.parse().ok()?))
    }
}

/// Where a service outside the mesh is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalNetworking {
    /// `host:port`; the host is an IP address or a DNS name.
    #[serde(skip_serializing_if = "is_default")]
    pub address: String,
    /// TLS towards it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ExternalTls>,
    /// Whether its own host name does not lead to its virtual address.
    #[serde(alias = "disable_host_dns_entry", rename = "disableHostDNSEntry", skip_serializing_if = "is_default")]
    pub disable_host_dns_entry: bool,
}

/// TLS towards an ExternalService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExternalTls {
    /// Whether the proxy speaks TLS.
    #[serde(skip_serializing_if = "is_default")]
    pub enabled: bool,
    /// Authorities that are trusted; absent means those of the system.
    #[serde(alias = "ca_cert", skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<DataSource>,
    /// Certificate to show.
    #[serde(alias = "client_cert", skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<DataSource>,
    /// Key of the certificate.
    #[serde(alias = "client_key", skip_serializing_if = "Option::is_none")]
    pub client_key: Option<DataSource>,
    /// Whether the server may renegotiate; unset means no.
    #[serde(alias = "allow_renegotiation", skip_serializing_if = "Option::is_none")]
    pub allow_renegotiation: Option<bool>,
    /// Server name to ask for; unset means the host of the address.
    #[serde(alias = "server_name", skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Whether the name in the certificate is not looked at; unset means that it is.
    #[serde(alias = "skip_hostname_verification", skip_serializing_if = "Option::is_none")]
    pub skip_hostname_verification: Option<bool>,
}

/// Where bytes come from; exactly one field is set.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DataSource {
    /// A Secret of the mesh, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// A file of the control plane, by path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The bytes, base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<String>,
    /// The text.
    #[serde(alias = "inline_string", skip_serializing_if = "Option::is_none")]
    pub inline_string: Option<String>,
}

impl std::fmt::Debug for DataSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // May hold a private key.
        match (&self.secret, &self.file) {
            (Some(secret), _) => write!(f, "DataSource(secret {secret:?})"),
            (None, Some(file)) => write!(f, "DataSource(file {file:?})"),
            (None, None) => write!(f, "DataSource(inline)"),
        }
    }
}

/// A service outside the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshExternalService {
    /// The port and protocol with which it is called.
    #[serde(rename = "match")]
    pub matches: ExternalMatch,
    /// Handled by an extension of the control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<Extension>,
    /// Where it is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<ExternalEndpoint>,
    /// TLS towards it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<MeshExternalTls>,
    /// What the control plane found out; no part of the specification.
    #[serde(skip)]
    pub status: MeshExternalServiceStatus,
}

/// The port and protocol with which a MeshExternalService is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalMatch {
    /// `HostnameGenerator`, the default: it is called by the names that HostnameGenerators give it.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// The port.
    pub port: u32,
    /// The protocol; empty means `tcp`.
    #[serde(skip_serializing_if = "is_default")]
    pub protocol: String,
}

/// An extension of the control plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extension {
    /// Its name.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
}

/// Where a MeshExternalService is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExternalEndpoint {
    /// An IP address or a DNS name.
    pub address: String,
    /// The port.
    pub port: u32,
    /// Higher numbers are used when lower ones are down; unset means 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
}

/// TLS towards a MeshExternalService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshExternalTls {
    /// Whether the proxy speaks TLS.
    pub enabled: bool,
    /// The versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<TlsVersions>,
    /// Whether the server may renegotiate.
    #[serde(skip_serializing_if = "is_default")]
    pub allow_renegotiation: bool,
    /// What is expected of the server and shown to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<TlsVerification>,
}

/// Versions of TLS: `TLSAuto`, `TLS10`, `TLS11`, `TLS12` or `TLS13`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsVersions {
    /// The lowest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<String>,
    /// The highest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
}

/// What is expected of a TLS server and shown to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsVerification {
    /// `Secured`, the default, `SkipSAN`, `SkipCA` or `SkipAll`.
    #[serde(skip_serializing_if = "is_default")]
    pub mode: String,
    /// Server name to ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// Names of which the certificate must have one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<SanMatch>,
    /// Authorities that are trusted; absent means those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<DataSource>,
    /// Certificate to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<DataSource>,
    /// Key of the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<DataSource>,
}

/// A name in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SanMatch {
    /// `Exact`, the default, or `Prefix`.
    #[serde(rename = "type", skip_serializing_if = "is_default")]
    pub kind: String,
    /// The name or its beginning.
    pub value: String,
}

/// What the control plane found out about a MeshExternalService.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshExternalServiceStatus {
    /// Virtual address in this zone.
    #[serde(skip_serializing_if = "is_default")]
    pub vip: Vip,
    /// Host names under which it is called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<HostnameAddress>,
    /// What became of each HostnameGenerator that selects it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostname_generators: Vec<HostnameGeneratorStatus>,
}
