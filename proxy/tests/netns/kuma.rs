//! The settings of Kuma's own test data for its iptables rules: whoever calls whatever reaches the same with nftables.
//!
//! That the rules for iptables are Kuma's, word for word, is compared in `src/install/iptables_text_tests.rs`; here they are set, and what becomes of
//! connections is compared.

use crate::{
    host::{APPLICATION, Backend, From, Host},
    probe::{self, Caller},
    space::available,
};

/// Source: Kuma `app/kumactl/cmd/install/testdata`, `install-transparent-proxy.*`, and a sidecar's usual ones.
const SETTINGS: &[&str] = &[
    "--kuma-dp-user=0",
    "--kuma-dp-user=root",
    "--kuma-dp-user=root --exclude-outbound-ports-for-uids=tcp:*:0",
    "--kuma-dp-user=root --redirect-outbound-port=12345 --redirect-inbound-port=12346 --exclude-outbound-ports=2000,2001 --exclude-inbound-ports=1000,1001",
    "--kuma-dp-user=root --redirect-outbound-port=12345 --redirect-inbound-port=12346 --exclude-outbound-ports=2000,2001 --exclude-inbound-ports=1000,1001 \
     --ip-family-mode=ipv4",
    "--kuma-dp-user=5678 --redirect-all-dns-traffic --exclude-outbound-ports-for-uids=tcp:1900,1902,1000-2000:1000-1001 --exclude-outbound-ips=192.0.2.0/24",
];

/// With servers on every port that the settings name.
fn host(backend: Backend) -> Host {
    let host = Host::new(backend).with_servers();
    for port in [1000, 1001, 2000, 2001, 12345, 12346] {
        probe::serve_tcp(&host.app, "app", port);
    }
    for port in [1000, 1001, 1900, 2000, 2001] {
        probe::serve_tcp(&host.peer, "peer", port);
    }
    host
}

/// What everybody reaches everywhere.
fn reached(host: &Host) -> Vec<String> {
    let user = |uid| From::App(Caller::user(uid));
    let callers = [user(0), user(APPLICATION), user(1001), user(5678), From::Peer, From::Guest];
    let mut reached = Vec::new();
    for from in callers {
        let addresses = match from {
            From::App(_) => {
                ["10.77.0.2", "[fd77::2]", "192.0.2.1", "10.77.0.1", "[fd77::1]", "127.0.0.1", "[::1]"].as_slice()
            }
            From::Peer => &["10.77.0.1", "[fd77::1]"],
            From::Guest => &["10.88.0.1", "[fd88::1]", "10.77.0.2", "[2001:db8::1]"],
        };
        for address in addresses {
            for port in [80, 1000, 1001, 1900, 2000, 2001, 8080] {
                let to = format!("{address}:{port}");
                reached.push(format!("{from:?} to {to}: {}", host.tcp(from, &to)));
            }
        }
    }
    reached
}

#[test]
fn kumas_settings_have_kumas_effect() {
    if !available("the effect of Kuma's settings") {
        return;
    }
    let (kumas, ours) = (host(Backend::IptablesNft), host(Backend::Nftables));
    for settings in SETTINGS {
        kumas.must_install(settings);
        ours.must_install(settings);
        let (expected, found) = (reached(&kumas), reached(&ours));
        let other: Vec<_> = expected.iter().zip(&found).filter(|(expected, found)| expected != found).collect();
        assert!(other.is_empty(), "{settings}: iptables and nftables differ: {other:#?}");
        // Both directions are redirected at all.
        for port in [
            if settings.contains("12345") { 12345 } else { 15001 },
            if settings.contains("12346") { 12346 } else { 15006 },
        ] {
            assert!(
                found.iter().any(|line| line.contains(&format!(" app:{port} for "))),
                "{settings}: {port}: {found:#?}"
            );
        }
    }
}
