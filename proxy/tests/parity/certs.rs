//! Certificates of a run, made anew for each run of the suite, and the rustls configurations that use them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::case::{ClientTls, ServerTls};

/// A certificate that cases name: its CA, DNS names, URI names, validity end.
struct Leaf {
    name: &'static str,
    ca: &'static str,
    dns: &'static [&'static str],
    uri: &'static [&'static str],
    ip: &'static [[u8; 4]],
    expired: bool,
}

const LEAVES: &[Leaf] = &[
    Leaf {
        name: "server",
        ca: "ca",
        dns: &["parity.example"],
        uri: &["spiffe://parity/server"],
        ip: &[],
        expired: false,
    },
    Leaf {
        name: "server-b",
        ca: "ca",
        dns: &["b.parity.example"],
        uri: &["spiffe://parity/server-b"],
        ip: &[],
        expired: false,
    },
    Leaf {
        name: "backend",
        ca: "ca",
        dns: &["backend.example"],
        uri: &["spiffe://parity/backend"],
        ip: &[[127, 0, 0, 1]],
        expired: false,
    },
    Leaf {
        name: "client-a",
        ca: "ca",
        dns: &["a.client.example"],
        uri: &["spiffe://parity/client-a"],
        ip: &[],
        expired: false,
    },
    Leaf { name: "client-b", ca: "ca", dns: &[], uri: &["spiffe://parity/client-b"], ip: &[], expired: false },
    Leaf {
        name: "expired",
        ca: "ca",
        dns: &["parity.example"],
        uri: &["spiffe://parity/client-a"],
        ip: &[],
        expired: true,
    },
    Leaf {
        name: "foreign",
        ca: "other-ca",
        dns: &["backend.example"],
        uri: &["spiffe://parity/client-a"],
        ip: &[],
        expired: false,
    },
    Leaf {
        name: "other-domain",
        ca: "other-ca",
        dns: &[],
        uri: &["spiffe://elsewhere/client-c"],
        ip: &[],
        expired: false,
    },
];

/// Names of all files that are made.
pub fn files() -> impl Iterator<Item = String> {
    let cas = CAS.iter().map(|name| format!("{name}.pem"));
    cas.chain(LEAVES.iter().flat_map(|leaf| ["pem", "key"].map(|kind| format!("{}.{kind}", leaf.name))))
}

const CAS: [&str; 2] = ["ca", "other-ca"];

const ONLY_12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const ONLY_13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn versions(only: Option<&str>) -> Result<&'static [&'static SupportedProtocolVersion]> {
    match only {
        None => Ok(rustls::ALL_VERSIONS),
        Some("1.2") => Ok(ONLY_12),
        Some("1.3") => Ok(ONLY_13),
        Some(other) => bail!("TLS version `{other}` is neither 1.2 nor 1.3"),
    }
}

/// Everything that was made: `<name>.pem` and `<name>.key` files for the subject, the same in memory for us.
pub struct Certs {
    chains: BTreeMap<&'static str, (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    cas: BTreeMap<&'static str, CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Certs {
    /// Makes all certificates and writes them to `dir`.
    pub fn make(dir: &Path) -> Result<Self> {
        let mut issuers = BTreeMap::new();
        let mut cas = BTreeMap::new();
        for name in CAS {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.distinguished_name.push(DnType::CommonName, name);
            let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
            std::fs::write(dir.join(format!("{name}.pem")), issuer.pem())?;
            cas.insert(name, issuer.der().clone());
            issuers.insert(name, issuer);
        }
        // What a control plane is shown by a proxy whose token is a file.
        std::fs::write(dir.join("token"), "the-token-in-the-file")?;
        let mut chains = BTreeMap::new();
        for leaf in LEAVES {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, leaf.name);
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            for uri in leaf.uri {
                params.subject_alt_names.push(SanType::URI((*uri).try_into()?));
            }
            for dns in leaf.dns {
                params.subject_alt_names.push(SanType::DnsName((*dns).try_into()?));
            }
            params.subject_alt_names.extend(leaf.ip.iter().map(|ip| SanType::IpAddress((*ip).into())));
            if leaf.expired {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
            let key = KeyPair::generate()?;
            let issuer = issuers.get(leaf.ca).context("a leaf names its CA")?;
            let certificate = params.signed_by(&key, issuer)?;
            std::fs::write(dir.join(format!("{}.pem", leaf.name)), certificate.pem())?;
            std::fs::write(dir.join(format!("{}.key", leaf.name)), key.serialize_pem())?;
            let key_der = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes())?;
            chains.insert(leaf.name, (vec![certificate.der().clone()], key_der));
        }
        Ok(Certs { chains, cas, provider: Arc::new(aws_lc_rs::default_provider()) })
    }

    /// The name that cases use for a certificate.
    pub fn name_of(&self, certificate: &CertificateDer<'_>) -> String {
        self.chains
            .iter()
            .find(|(_, (chain, _))| chain.first().is_some_and(|own| own == certificate))
            .map_or_else(|| "unknown".to_owned(), |(name, _)| (*name).to_owned())
    }

    fn chain(&self, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let (chain, key) = self.chains.get(name).with_context(|| format!("no certificate `{name}`"))?;
        Ok((chain.clone(), key.clone_key()))
    }

    /// A scripted client. It takes whatever certificate the subject presents: which one came is an observation.
    pub fn client(&self, tls: &ClientTls) -> Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(versions(tls.version.as_deref())?)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TakeAny(self.provider.clone())));
        let mut config = match &tls.cert {
            Some(name) => {
                let (chain, key) = self.chain(name)?;
                builder.with_client_auth_cert(chain, key)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = tls.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        config.enable_sni = tls.sni.is_some();
        Ok(config)
    }

    /// A scripted upstream.
    pub fn server(&self, tls: &ServerTls) -> Result<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(versions(tls.version.as_deref())?)?;
        let builder = match &tls.client_ca {
            Some(name) => {
                let mut roots = RootCertStore::empty();
                roots.add(self.cas.get(name.as_str()).with_context(|| format!("no CA `{name}`"))?.clone())?;
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build()?,
                )
            }
            None => builder.with_no_client_auth(),
        };
        let (chain, key) = self.chain(&tls.cert)?;
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = tls.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        Ok(config)
    }
}

/// Takes any server certificate, but still checks that its key signed the handshake.
#[derive(Debug)]
struct TakeAny(Arc<CryptoProvider>);

impl ServerCertVerifier for TakeAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
