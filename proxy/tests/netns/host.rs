//! A host with a redirection, its neighbour, and a guest in a virtual network behind it.
//!
//! ```text
//! app 10.77.0.1, fd77::1 ──── peer 10.77.0.2, fd77::2, and far away: 192.0.2.1, 2001:db8::1
//!  │ br-guest 10.88.0.1, fd88::1
//! guest 10.88.0.2, fd88::2
//! ```

use std::{collections::BTreeMap, fs, process::Output};

use crate::{
    probe::{self, Caller},
    space::Space,
};

/// The program under test.
const PROXY: &str = env!("CARGO_BIN_EXE_shika-proxy");
/// The user that the proxy runs with.
pub const PROXY_UID: u32 = 5678;

/// How the rules are set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

pub const BACKENDS: [Backend; 3] = [Backend::Nftables, Backend::IptablesNft, Backend::IptablesLegacy];

pub struct Host {
    pub app: Space,
    pub peer: Space,
    pub guest: Space,
    pub directory: tempfile::TempDir,
    pub backend: Backend,
}

impl Host {
    pub fn new(backend: Backend) -> Host {
        let host = Host {
            app: Space::new(),
            peer: Space::new(),
            guest: Space::new(),
            directory: tempfile::tempdir().unwrap(),
            backend,
        };
        let Host { app, peer, guest, .. } = &host;
        app.cable("eth0", peer, "eth0");
        for (space, v4, v6) in [(app, "10.77.0.1/24", "fd77::1/64"), (peer, "10.77.0.2/24", "fd77::2/64")] {
            space.address("eth0", v4);
            space.address("eth0", v6);
        }
        peer.address("lo", "192.0.2.1/32");
        peer.address("lo", "2001:db8::1/128");
        app.sh("ip route add default via 10.77.0.2");
        app.sh("ip -6 route add default via fd77::2");
        app.cable("br-guest", guest, "eth0");
        for (space, interface, v4, v6) in
            [(app, "br-guest", "10.88.0.1/24", "fd88::1/64"), (guest, "eth0", "10.88.0.2/24", "fd88::2/64")]
        {
            space.address(interface, v4);
            space.address(interface, v6);
        }
        guest.sh("ip route add default via 10.88.0.1");
        guest.sh("ip -6 route add default via fd88::1");
        app.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        peer.sh("ip route add 10.88.0.0/24 via 10.77.0.1");
        peer.sh("ip -6 route add fd88::/64 via fd77::1");
        host
    }

    /// Servers in the place of the proxy, of applications and of the world.
    pub fn with_servers(self) -> Host {
        for port in [15001, 15006] {
            probe::serve_tcp(&self.app, "app", port);
        }
        for address in ["127.0.0.1:15053", "[::1]:15053", "10.88.0.1:15053", "[fd88::1]:15053"] {
            probe::serve_udp(&self.app, "proxy's DNS", PROXY_UID, address);
        }
        self.with_applications()
    }

    /// Servers in the place of applications and of the world.
    pub fn with_applications(self) -> Host {
        for port in [22, 80, 8080] {
            probe::serve_tcp(&self.app, "app", port);
        }
        for port in [22, 53, 80, 443, 444, 8080] {
            probe::serve_tcp(&self.peer, "peer", port);
        }
        for address in ["10.77.0.2:53", "[fd77::2]:53", "192.0.2.1:53", "[2001:db8::1]:53"] {
            probe::serve_udp(&self.peer, "peer's DNS", 0, address);
        }
        self
    }

    /// `shika-proxy install transparent-proxy` with these flags.
    pub fn install(&self, flags: &str) -> Output {
        let mut words = vec![PROXY, "install", "transparent-proxy"];
        words.extend(self.backend_flags());
        words.extend(flags.split_ascii_whitespace());
        self.app.run(&words)
    }

    /// The same; it has to succeed.
    pub fn must_install(&self, flags: &str) {
        let output = self.install(flags);
        assert!(output.status.success(), "{:?} {flags}: {}", self.backend, String::from_utf8_lossy(&output.stderr));
    }

    pub fn uninstall(&self) {
        self.app.sh(&format!("{PROXY} uninstall transparent-proxy"));
    }

    fn backend_flags(&self) -> Vec<&'static str> {
        match self.backend {
            Backend::Nftables => vec!["--backend=nftables"],
            Backend::IptablesNft => vec!["--backend=iptables", "--iptables-executables", IPTABLES_NFT],
            Backend::IptablesLegacy => vec!["--backend=iptables", "--iptables-executables", IPTABLES_LEGACY],
        }
    }

    /// A rule of somebody else's in the firewall that the rules are set in: `iptables -t TABLE …`.
    pub fn foreign(&self, rule: &str) {
        let program = if self.backend == Backend::IptablesLegacy { "iptables-legacy" } else { "iptables-nft" };
        self.app.sh(&format!("{program} {rule}"));
    }

    /// All rules of all firewalls, without counters, each after its table and chain. An empty chain of iptables' own is as good as none: it makes
    /// them by looking.
    pub fn all_rules(&self) -> String {
        // In the order of places: firewalls list tables in the order of their making.
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let (mut table, mut chain) = (String::new(), String::new());
        for line in self.app.sh("nft list ruleset").lines() {
            if let Some(name) = line.strip_prefix("table ").and_then(|line| line.strip_suffix(" {")) {
                name.clone_into(&mut table);
            } else if let Some(name) = line.strip_prefix("\tchain ").and_then(|line| line.strip_suffix(" {")) {
                name.clone_into(&mut chain);
            } else if let Some(rule) = line.strip_prefix("\t\t") {
                let of_iptables =
                    ["raw", "nat", "mangle", "filter"].iter().any(|name| table.ends_with(&format!(" {name}")));
                if !of_iptables {
                    all.entry(format!("{table} {chain}")).or_default().push(rule.to_owned());
                }
            }
        }
        for program in ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
            for line in self.app.sh(program).lines() {
                if let Some(name) = line.strip_prefix('*') {
                    name.clone_into(&mut table);
                } else if line.starts_with("-A ") || (line.starts_with(':') && line.contains(" - [")) {
                    let line = line.split(" - [").next().unwrap_or_default();
                    all.entry(format!("{program} {table}")).or_default().push(line.to_owned());
                }
            }
        }
        let lines = all.iter().flat_map(|(place, rules)| rules.iter().map(move |rule| format!("{place}: {rule}")));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// A file with this text.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

const IPTABLES_NFT: &str = "iptables:/usr/sbin/iptables-nft,iptables-save:/usr/sbin/iptables-nft-save,iptables-restore:/usr/sbin/iptables-nft-restore,ip6tables:/usr/sbin/ip6tables-nft,ip6tables-save:/usr/sbin/ip6tables-nft-save,ip6tables-restore:/usr/sbin/ip6tables-nft-restore";
const IPTABLES_LEGACY: &str = "iptables:/usr/sbin/iptables-legacy,iptables-save:/usr/sbin/iptables-legacy-save,iptables-restore:/usr/sbin/iptables-legacy-restore,ip6tables:/usr/sbin/ip6tables-legacy,ip6tables-save:/usr/sbin/ip6tables-legacy-save,ip6tables-restore:/usr/sbin/ip6tables-legacy-restore";

/// An application's user.
pub const APPLICATION: u32 = 1000;

/// Where a call comes from.
#[derive(Clone, Copy, Debug)]
pub enum From {
    /// The host with the redirection, some caller.
    App(Caller),
    /// Its neighbour.
    Peer,
    /// The guest.
    Guest,
}

impl Host {
    /// What a TCP call reaches.
    pub fn tcp(&self, from: From, to: &str) -> String {
        match from {
            From::App(caller) => probe::tcp(&self.app, caller, to),
            From::Peer => probe::tcp(&self.peer, Caller::default(), to),
            From::Guest => probe::tcp(&self.guest, Caller::default(), to),
        }
    }

    /// What a UDP query reaches.
    pub fn udp(&self, from: From, to: &str) -> String {
        match from {
            From::App(caller) => probe::udp(&self.app, caller, to),
            From::Peer => probe::udp(&self.peer, Caller::default(), to),
            From::Guest => probe::udp(&self.guest, Caller::default(), to),
        }
    }
}
