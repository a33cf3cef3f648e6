//! Ground for a measurement: a directory with certificates and rendered configurations, free ports, CPUs, and the upstream.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use tokio::sync::oneshot;

use crate::echo;
use crate::text::note;

/// What a template may name between two pairs of braces.
#[cfg(test)]
pub const PLACES: &[&str] =
    &["listener_port", "upstream_port", "sink_port", "admin_port", "nginx_stream", "certs", "hcm"];

/// Longest wait for room in the table of tracked connections: a little more than the life of an entry.
const CONNTRACK_WAIT: Duration = Duration::from_secs(130);
/// Pause between two looks at it.
const CONNTRACK_STEP: Duration = Duration::from_secs(2);

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

    /// Writes a configuration with free ports of its own and those of others in the `places` that are named so. `fragment` stands in for
    /// `# {{hcm}}`.
    ///
    /// # Errors
    /// When no port is free or the file cannot be written.
    pub fn render(
        &self,
        name: &str,
        template: &str,
        fragment: &str,
        places: &[(&str, u16)],
    ) -> anyhow::Result<Rendered> {
        let [listener_port, admin_port] = free_ports()?;
        let mut text = template.replace("                # {{hcm}}\n", fragment);
        for (place, port) in
            places.iter().copied().chain([("listener_port", listener_port), ("admin_port", admin_port)])
        {
            text = text.replace(&format!("{{{{{place}}}}}"), &port.to_string());
        }
        let text = text.replace("{{nginx_stream}}", nginx_stream()).replace("{{certs}}", &self.path.to_string_lossy());
        let file = self.path.join(format!("{name}-{listener_port}.yaml"));
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Rendered { file, listener: loopback(listener_port), admin: loopback(admin_port) })
    }
}

/// Debian builds nginx's stream module as a library of its own.
fn nginx_stream() -> &'static str {
    if Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists() {
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;"
    } else {
        ""
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Waits until the kernel's table of tracked connections, where it keeps one, has room for a round that opens many: entries stay for two
/// minutes after their connection, and a full table drops packets, which looks as if a proxy failed.
pub async fn wait_for_conntrack() {
    let begin = Instant::now();
    while begin.elapsed() < CONNTRACK_WAIT && conntrack_is_crowded() == Some(true) {
        if begin.elapsed() < CONNTRACK_STEP {
            note("waiting until nf_conntrack has room for the connections of the next round");
        }
        tokio::time::sleep(CONNTRACK_STEP).await;
    }
}

/// Whether more than half of the table is taken; none where connections are not tracked.
fn conntrack_is_crowded() -> Option<bool> {
    let number = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    Some(number("count")? > number("max")? / 2)
}

/// A configuration that is ready to run.
pub struct Rendered {
    /// The file.
    pub file: PathBuf,
    /// Its only listener.
    pub listener: SocketAddr,
    /// The admin endpoint, where the proxy has one.
    pub admin: SocketAddr,
}

/// Which CPUs the proxies and the load have, in taskset's form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpus {
    /// Those of the proxies.
    pub proxy: String,
    /// All, for proxies with several workers.
    pub all: String,
    /// That of the load and the upstream.
    pub load: usize,
}

impl Cpus {
    /// The first CPU for the load, the last for the proxies unless others are given; none on a machine with one.
    pub fn choose(proxy: Option<&str>) -> Option<Self> {
        let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
        let proxy = proxy.map_or_else(|| last.to_string(), str::to_owned);
        (last > 0).then(|| Self { proxy, all: format!("0-{last}"), load: 0 })
    }

    /// Binds this thread, and with it the threads and processes that it starts from now on, to the load's CPU.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bind_load(&self) -> anyhow::Result<()> {
        let mut set = rustix::thread::CpuSet::new();
        set.set(self.load);
        rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("cannot move to CPU {}", self.load))
    }
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
        Self::start_as(mode, echo::Service::default())
    }

    /// Starts a service that says who it is.
    ///
    /// # Errors
    /// As [`Upstream::start`].
    pub fn start_as(mode: echo::Mode, service: echo::Service) -> anyhow::Result<Self> {
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
                    never = echo::serve(listener, mode, service) => match never {},
                    _ = ended => {}
                }
            });
        })?;
        Ok(Self { port, _end: end })
    }
}
