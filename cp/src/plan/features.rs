//! What a proxy announced that changes what it is given, and how its host redirects traffic to it.

use std::net::Ipv4Addr;

use crate::resource::Networking;

/// What the proxy announced that changes what it is given (Kuma `pkg/core/xds/metadata.go` and `pkg/core/xds/types/features.go`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyFeatures {
    /// `feature-reuse-port`: listeners share their port between workers.
    pub reuse_port: bool,
    /// `ipv6Enabled` of the node metadata.
    pub ipv6: bool,
    /// `feature-strict-inbound-ports`: redirected inbound traffic is passed on to declared ports only, if mutual TLS is strict.
    pub strict_inbound_ports: bool,
    /// `feature-bind-outbounds`: there is no redirection, outbound listeners bind their addresses instead.
    pub bind_outbounds: bool,
    /// `feature-embedded-dns`: the proxy answers DNS itself, from the document `/dns`.
    pub embedded_dns: bool,
    /// `workdir`: where the sockets of the proxy are; empty means the directory it was started in.
    pub work_dir: String,
    /// `dataplane.dns.port`: the port of the proxy that answers DNS, 0 for none.
    pub dns_port: u32,
    /// `transparentProxy`, if `feature-transparent-proxy-in-dataplane-metadata` is announced: it outranks what the Dataplane says.
    pub redirection: Option<Redirection>,
    /// `dataplane.admin.*`: the admin interface of the proxy, if there is one.
    pub admin: Option<AdminEndpoint>,
    /// `dataplane.readinessReporter.port`: where the proxy says whether it is ready, 0 for nowhere.
    pub readiness_port: u32,
    /// `dataplane.appProbeProxy.enabled`: the proxy sends probes on to the workload by itself.
    pub app_probe_proxy: bool,
    /// `metricsCertPath`: file with the certificate chain that the proxy shows to Prometheus, empty if it named none.
    pub metrics_cert_path: String,
    /// `metricsKeyPath`: file with the key that belongs to it.
    pub metrics_key_path: String,
    /// `systemCaPath`: the trust store of the proxy's host, empty if it named none.
    pub system_ca_path: String,
}

impl Default for ProxyFeatures {
    fn default() -> Self {
        ProxyFeatures {
            reuse_port: false,
            ipv6: true,
            strict_inbound_ports: false,
            bind_outbounds: false,
            embedded_dns: false,
            work_dir: String::new(),
            dns_port: 0,
            redirection: None,
            admin: None,
            readiness_port: 0,
            app_probe_proxy: false,
            metrics_cert_path: String::new(),
            metrics_key_path: String::new(),
            system_ca_path: String::new(),
        }
    }
}

/// The admin interface of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AdminEndpoint {
    /// Address as announced; empty means loopback.
    pub address: String,
    /// Port. With a socket it only says on which port of the Dataplane's address the interface is offered.
    pub port: u32,
    /// Path of a UNIX socket; empty if the interface is on TCP.
    pub socket: String,
}

/// How traffic is redirected to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Redirection {
    /// Port to which inbound connections are redirected, 0 for none.
    pub inbound: u32,
    /// Port to which outbound connections are redirected, 0 for none.
    pub outbound: u32,
    /// Whether IPv6 is redirected too.
    pub ipv6: bool,
}

impl Default for Redirection {
    /// Kuma's defaults.
    fn default() -> Self {
        Redirection { inbound: 15006, outbound: 15001, ipv6: true }
    }
}

impl Redirection {
    /// Whether an `ipFamilyMode` includes IPv6: every mode but `IPv4` does.
    pub fn includes_ipv6(ip_family_mode: &str) -> bool {
        !ip_family_mode.eq_ignore_ascii_case("ipv4")
    }

    /// What applies to a proxy, if anything is redirected to it (Kuma `GetDataplaneConfig`): what it announced, else what its Dataplane
    /// says. A redirection of IPv4 alone has no effect on a proxy whose address is of another kind.
    pub(super) fn of(networking: &Networking, features: &ProxyFeatures) -> Option<Self> {
        let declared = networking.transparent_proxying.as_ref().map(|settings| Redirection {
            inbound: settings.redirect_port_inbound,
            outbound: settings.redirect_port_outbound,
            ipv6: Self::includes_ipv6(&settings.ip_family_mode),
        });
        let redirection = features.redirection.or(declared)?;
        let any = redirection.inbound != 0 || redirection.outbound != 0;
        let fits = redirection.ipv6 || networking.address.parse::<Ipv4Addr>().is_ok();
        (any && fits && !features.bind_outbounds).then_some(redirection)
    }
}
