//! Ground for a measurement: a directory with certificates and rendered bootstraps, free ports, and the upstream.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use tokio::sync::oneshot;

use super::scenario::Hop;
use crate::echo;

/// `127.0.0.1` with this port.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A temporary directory, removed at the end.
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Makes the directory and, in it, a CA and the leaf certificates of the services `web` and `backend` of mesh `default`.
    ///
    /// # Errors
    /// When the directory cannot be written or key generation fails.
    pub fn create() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("shika-bench-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let dir = Self { path };
        dir.write_certificates().context("cannot make certificates")?;
        Ok(dir)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// RSA-2048 as Kuma's builtin CA issues (pkg/core/ca/issuer/issuer.go), one SPIFFE URI per service.
    fn write_certificates(&self) -> anyhow::Result<()> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, "default");
        ca.subject_alt_names = vec![SanType::URI("spiffe://default".try_into()?)];
        let ca = CertifiedIssuer::self_signed(ca, rsa_key()?)?;
        std::fs::write(self.path.join("ca.crt"), ca.pem())?;
        for service in ["web", "backend"] {
            let mut leaf = CertificateParams::default();
            leaf.subject_alt_names = vec![SanType::URI(format!("spiffe://default/{service}").as_str().try_into()?)];
            leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            leaf.use_authority_key_identifier_extension = true;
            let key = rsa_key()?;
            let leaf = leaf.signed_by(&key, &ca)?;
            std::fs::write(self.path.join(format!("{service}.crt")), leaf.pem())?;
            std::fs::write(self.path.join(format!("{service}.key")), key.serialize_pem())?;
        }
        Ok(())
    }

    /// Writes the hop's bootstrap with free ports, leading to `upstream_port`.
    ///
    /// # Errors
    /// When no port is free or the file cannot be written.
    pub fn render(&self, hop: &Hop, upstream_port: u16) -> anyhow::Result<Rendered> {
        let [listener_port, admin_port] = free_ports()?;
        let text = hop
            .template
            .replace("{{listener_port}}", &listener_port.to_string())
            .replace("{{upstream_port}}", &upstream_port.to_string())
            .replace("{{admin_port}}", &admin_port.to_string())
            .replace("{{certs}}", &self.path.to_string_lossy());
        let file = self.path.join(format!("{}-{listener_port}.yaml", hop.name));
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Rendered { file, listener_port, admin_port })
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// A bootstrap that is ready to run.
pub struct Rendered {
    /// The bootstrap.
    pub file: PathBuf,
    /// Port of its only listener.
    pub listener_port: u16,
    /// Port of the admin endpoint.
    pub admin_port: u16,
}

fn rsa_key() -> anyhow::Result<KeyPair> {
    Ok(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?)
}

/// Ports that were free a moment ago; all are held together, so they differ.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    let held = [TcpListener::bind(loopback(0))?, TcpListener::bind(loopback(0))?];
    Ok([held[0].local_addr()?.port(), held[1].local_addr()?.port()])
}

/// The service behind the last hop, on a thread of its own; ends when dropped.
pub struct Upstream {
    /// Where it listens on loopback.
    pub port: u16,
    _end: oneshot::Sender<()>,
}

impl Upstream {
    /// Starts the echo service.
    ///
    /// # Errors
    /// When no port is free or no thread can be had.
    pub fn start(mode: echo::Mode) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(loopback(0)).context("cannot listen for the upstream")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (end, ended) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        std::thread::Builder::new().name("upstream".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    never = echo::serve(listener, mode, echo::Service::default()) => match never {},
                    _ = ended => {}
                }
            });
        })?;
        Ok(Self { port, _end: end })
    }
}
