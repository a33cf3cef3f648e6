//! The mesh DNS: what CoreDNS and Envoy's DNS filter, or kuma-dp's embedded DNS proxy, do beside Kuma's Envoy.
//!
//! Names of the mesh are answered from a table that the control thread publishes; everything else goes to the resolvers of `/etc/resolv.conf`. The
//! server has a thread of its own, so that neither a slow resolver nor a burst of queries holds up the data path or the control loop. Messages are
//! hickory-server's; the sockets are served here, because every queue has to have a bound. Source: Kuma `app/kuma-dp/pkg/dataplane/dnsproxy`,
//! `pkg/dns/dpapi`; RFC 1034, 1035, 2308, 6891, 7766.

mod cache;
mod forward;
mod message;
pub mod metrics;
mod resolv_conf;
mod server;
pub mod table;
mod upstream;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use arc_swap::ArcSwap;

pub use server::{Addresses, Sockets, run};

use metrics::Metrics;
use table::Table;

/// What the control thread and the server's thread share.
pub struct Dns {
    /// Names of the mesh. Replaced as a whole; a query reads it once.
    pub table: ArcSwap<Table>,
    /// Counters.
    pub metrics: Metrics,
    /// File with the resolvers for everything else.
    pub resolv_conf: PathBuf,
    configured: AtomicBool,
    started: Instant,
}

impl Dns {
    /// With an empty table.
    pub fn new(resolv_conf: PathBuf) -> Dns {
        Dns {
            table: ArcSwap::default(),
            metrics: Metrics::default(),
            resolv_conf,
            configured: AtomicBool::new(false),
            started: Instant::now(),
        }
    }

    /// Puts the control plane's document in force. Returns what of it was left out, with its place.
    ///
    /// # Errors
    /// It is not the document that it should be; the table before it stays.
    pub fn configure(&self, document: &[u8]) -> Result<Vec<String>, String> {
        let (table, left_out) = Table::parse(document)?;
        self.metrics.entries(table.len() as u64);
        self.table.store(table.into());
        if !self.configured.swap(true, Relaxed) {
            tracing::info!("the first DNS configuration is there: {} names", self.table.load().len());
            self.metrics.config_ready_wait.record(self.started.elapsed());
        }
        Ok(left_out)
    }

    /// All counters in Prometheus' text format, with the labels that the control plane wants.
    pub fn exposition(&self) -> String {
        let table = self.table.load();
        let mut labels = String::new();
        for (name, value) in &table.labels {
            if !labels.is_empty() {
                labels.push(',');
            }
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            labels.push_str(&format!("{}=\"{value}\"", name.replace(|c: char| !c.is_ascii_alphanumeric(), "_")));
        }
        let mut text = String::new();
        self.metrics.write(&mut text, &labels);
        text
    }

    /// A table has arrived.
    pub fn configured(&self) -> bool {
        self.configured.load(Relaxed)
    }
}
