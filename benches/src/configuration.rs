//! Configurations that are compiled from Envoy's own form.

use std::{fs, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, anyhow};
use shika_data::{
    model::{access_log::LogSink, tracing::SpanSink},
    snapshot::Snapshot,
    stats::Registry,
};
use shika_proto::{
    envoy::config::{
        bootstrap::v3::Bootstrap,
        core::v3::{address::Address, socket_address::PortSpecifier},
    },
    json,
};
use shika_xds::{CompileOptions, Compiler};

/// Reads a bootstrap.
///
/// # Errors
/// What in the text is not a bootstrap, with its path.
pub fn bootstrap(yaml: &str) -> anyhow::Result<Bootstrap> {
    json::from_yaml(yaml).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })
}

/// A sidecar's bootstrap with `services` more services: the one in `yaml`, with its first cluster and its first listener as often as that again, under
/// names and ports of their own.
///
/// # Errors
/// As [`bootstrap`]; or it has no cluster, or no listener.
pub fn mesh(yaml: &str, services: u16) -> anyhow::Result<Bootstrap> {
    let mut bootstrap = bootstrap(yaml)?;
    let resources = bootstrap.static_resources.as_mut().context("no static_resources")?;
    let cluster = resources.clusters.first().context("no cluster")?.clone();
    let listener = resources.listeners.first().context("no listener")?.clone();
    for service in 0..services {
        let mut cluster = cluster.clone();
        cluster.name = format!("service-{service}");
        if let Some(assignment) = &mut cluster.load_assignment {
            assignment.cluster_name.clone_from(&cluster.name);
        }
        resources.clusters.push(cluster);
        let mut listener = listener.clone();
        listener.name = format!("outbound:service-{service}");
        let address = listener.address.as_mut().and_then(|address| address.address.as_mut());
        if let Some(Address::SocketAddress(address)) = address {
            address.port_specifier = Some(PortSpecifier::PortValue(20_000 + u32::from(service)));
        }
        resources.listeners.push(listener);
    }
    Ok(bootstrap)
}

/// Compiles a bootstrap from nothing, as a proxy does when it starts.
///
/// # Errors
/// What of it is refused.
pub fn compile(bootstrap: Bootstrap) -> anyhow::Result<(Arc<Registry>, Arc<Snapshot>)> {
    let registry = Registry::new(1);
    let options = CompileOptions {
        hostname: "bench".into(),
        concurrency: 1,
        reject_unknown_dynamic_fields: false,
        log_sink: Box::new(|path| LogSink::new(path, 1).0),
        span_sink: Box::new(|_| SpanSink::new(1).0),
        log_collector: Box::new(|_| LogSink::new("", 1).0),
    };
    let mut compiler = Compiler::new(registry.clone(), options);
    compiler.load_static(&(&bootstrap).into(), Instant::now()).map_err(|refused| {
        let lines: Vec<_> = refused.iter().map(ToString::to_string).collect();
        anyhow!("{}", lines.join("\n"))
    })?;
    let plan = compiler.build().context("there was nothing to build")?;
    Ok((registry, plan.snapshot))
}

macro_rules! certificates {
    ($($name:literal),*) => {
        [$(($name, include_str!(concat!("../certificates/", $name)))),*]
    };
}

/// A CA's certificate and, for the services `web` and `backend` of the mesh `default`, certificates and keys: RSA with 2,048 bits as Kuma's builtin CA
/// issues them. They are good for nothing else, and always the same: making keys, and working with other ones, takes other numbers of instructions.
const CERTIFICATES: [(&str, &str); 5] = certificates!["ca.crt", "web.crt", "web.key", "backend.crt", "backend.key"];

/// Writes `ca.crt`, and `.crt` and `.key` of `web` and `backend`.
///
/// # Errors
/// The directory cannot be written.
pub fn write_certificates(directory: &Path) -> anyhow::Result<()> {
    for (name, text) in CERTIFICATES {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}
