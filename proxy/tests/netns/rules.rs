//! What the rules do, per user, port, address and family: each case with nftables, iptables-nft and iptables-legacy.

use crate::{
    host::{APPLICATION, BACKENDS, Backend, From, Host, PROXY_UID},
    probe::{self, Caller},
    space::{Space, available},
};

const MARK: u32 = 0x539;
const USER: &str = "--kuma-dp-user=5678";

fn application() -> From {
    From::App(Caller::user(APPLICATION))
}

fn proxy() -> From {
    From::App(Caller::user(PROXY_UID))
}

/// A call and the server that it has to reach. The server's text is `place:port`; where it is not the destination's own, the original destination
/// is told to it.
type Call = (From, &'static str, &'static str);

fn check(host: &Host, settings: &str, calls: &[Call]) {
    for (from, to, expected) in calls {
        let found = host.tcp(*from, to);
        assert_eq!(found, format!("{expected} for {to}"), "{:?}, {settings}: {from:?} to {to}", host.backend);
    }
}

/// Flags, text of a configuration file, calls.
fn cases() -> Vec<(&'static str, &'static str, Vec<Call>)> {
    let marked = From::App(Caller::user(0).marked(MARK));
    let source_v4 = From::App(Caller::user(APPLICATION).from("127.0.0.6"));
    let source_v6 = From::App(Caller::user(APPLICATION).from("::6"));
    let user = |uid| From::App(Caller::user(uid));
    vec![
        (
            "",
            "",
            vec![
                (application(), "10.77.0.2:80", "app:15001"),
                (application(), "[fd77::2]:80", "app:15001"),
                // Nobody listens there but the proxy.
                (application(), "10.77.0.2:12345", "app:15001"),
                (user(0), "10.77.0.2:80", "app:15001"),
                (marked, "10.77.0.2:80", "app:15001"),
                (proxy(), "10.77.0.2:80", "peer:80"),
                (proxy(), "[fd77::2]:80", "peer:80"),
                (application(), "127.0.0.1:80", "app:80"),
                (application(), "[::1]:80", "app:80"),
                (application(), "10.77.0.1:80", "app:80"),
                (application(), "[fd77::1]:80", "app:80"),
                (proxy(), "127.0.0.1:80", "app:80"),
                (proxy(), "[::1]:80", "app:80"),
                // Trap 28: the proxy calls its own host through an address of it, for an application that calls itself by its VIP.
                (proxy(), "10.77.0.1:80", "app:15006"),
                (proxy(), "[fd77::1]:80", "app:15006"),
                // Trap 28: from these sources the proxy calls the application that a connection was meant for.
                (source_v4, "10.77.0.1:80", "app:80"),
                (source_v6, "[fd77::1]:80", "app:80"),
                (From::Peer, "10.77.0.1:80", "app:15006"),
                (From::Peer, "10.77.0.1:12345", "app:15006"),
                (From::Peer, "[fd77::1]:80", "app:15006"),
                (From::Guest, "10.88.0.1:80", "app:15006"),
            ],
        ),
        (
            "--redirect-inbound-port=15001",
            "",
            vec![
                (application(), "10.77.0.2:80", "app:15001"),
                (proxy(), "10.77.0.1:80", "app:15001"),
                (From::Peer, "10.77.0.1:80", "app:15001"),
                (From::Peer, "[fd77::1]:80", "app:15001"),
            ],
        ),
        (
            "--ip-family-mode=ipv4",
            "",
            vec![
                (application(), "10.77.0.2:80", "app:15001"),
                (application(), "[fd77::2]:80", "peer:80"),
                (From::Peer, "10.77.0.1:80", "app:15006"),
                (From::Peer, "[fd77::1]:80", "app:80"),
            ],
        ),
        (
            "--exclude-inbound-ports=22,8080 --exclude-outbound-ports=443",
            "",
            vec![
                (From::Peer, "10.77.0.1:22", "app:22"),
                (From::Peer, "[fd77::1]:8080", "app:8080"),
                (From::Peer, "10.77.0.1:80", "app:15006"),
                (application(), "10.77.0.2:443", "peer:443"),
                (application(), "[fd77::2]:443", "peer:443"),
                (application(), "10.77.0.2:22", "app:15001"),
            ],
        ),
        (
            "",
            "redirect: {inbound: {includePorts: [80], excludePorts: [80]}, outbound: {includePorts: [80, 443], excludePorts: [80]}}",
            vec![
                (From::Peer, "10.77.0.1:80", "app:15006"),
                (From::Peer, "10.77.0.1:8080", "app:8080"),
                (application(), "10.77.0.2:80", "app:15001"),
                (application(), "[fd77::2]:443", "app:15001"),
                (application(), "10.77.0.2:8080", "peer:8080"),
                (proxy(), "10.77.0.2:80", "peer:80"),
            ],
        ),
        (
            "--redirect-inbound=false",
            "",
            vec![
                (From::Peer, "10.77.0.1:80", "app:80"),
                (application(), "10.77.0.2:80", "app:15001"),
                (proxy(), "10.77.0.1:80", "app:15006"),
            ],
        ),
        (
            "",
            "redirect: {outbound: {enabled: false}}",
            vec![
                (From::Peer, "10.77.0.1:80", "app:15006"),
                (application(), "10.77.0.2:80", "peer:80"),
                (proxy(), "10.77.0.1:80", "app:80"),
            ],
        ),
        (
            "--exclude-outbound-ports-for-uids=tcp:80,440-443:1001-1002 --exclude-outbound-ports-for-uids=1004 --exclude-outbound-ports-for-uids=udp:8080:1001",
            "",
            vec![
                (user(1000), "10.77.0.2:80", "app:15001"),
                (user(1001), "10.77.0.2:80", "peer:80"),
                (user(1002), "[fd77::2]:443", "peer:443"),
                (user(1002), "10.77.0.2:444", "app:15001"),
                (user(1001), "10.77.0.2:8080", "app:15001"),
                (user(1003), "10.77.0.2:80", "app:15001"),
                (user(1004), "10.77.0.2:8080", "peer:8080"),
            ],
        ),
        (
            "--exclude-outbound-ips=192.0.2.0/24,2001:db8::1 --exclude-inbound-ips=10.77.0.2 --exclude-inbound-ips=fd77::/64",
            "",
            vec![
                (application(), "192.0.2.1:80", "peer:80"),
                (application(), "[2001:db8::1]:80", "peer:80"),
                (application(), "10.77.0.2:80", "app:15001"),
                (application(), "[fd77::2]:80", "app:15001"),
                (From::Peer, "10.77.0.1:80", "app:80"),
                (From::Peer, "[fd77::1]:80", "app:80"),
                (From::Guest, "10.77.0.1:80", "app:15006"),
            ],
        ),
        (
            "--proxy-mark=0x539",
            "",
            vec![
                (marked, "10.77.0.2:80", "peer:80"),
                (marked, "[fd77::2]:80", "peer:80"),
                (marked, "10.77.0.1:80", "app:15006"),
                (marked, "127.0.0.1:80", "app:80"),
                (From::App(Caller::user(0).marked(7)), "10.77.0.2:80", "app:15001"),
                (proxy(), "10.77.0.2:80", "peer:80"),
                (application(), "10.77.0.2:80", "app:15001"),
                (application(), "10.77.0.1:80", "app:80"),
            ],
        ),
        (
            "--vnet=br-+:10.88.0.0/24 --vnet=br-guest:fd88::/64",
            "",
            vec![
                (From::Guest, "192.0.2.1:80", "app:15001"),
                (From::Guest, "[2001:db8::1]:80", "app:15001"),
                (From::Guest, "10.88.0.1:80", "app:15006"),
                (From::Peer, "10.77.0.1:80", "app:15006"),
            ],
        ),
        (
            "--drop-invalid-packets --iptables-logs",
            "",
            vec![(application(), "10.77.0.2:80", "app:15001"), (From::Peer, "10.77.0.1:80", "app:15006")],
        ),
        ("--disable-comments", "", vec![(application(), "10.77.0.2:80", "app:15001")]),
    ]
}

fn effect(backend: Backend) {
    if !available(&format!("the effect of the rules with {backend:?}")) {
        return;
    }
    let host = Host::new(backend).with_servers();
    for (flags, file, calls) in cases() {
        // iptables has nothing but comments to tell whose rules are whose.
        if flags.contains("--disable-comments") && backend != Backend::Nftables {
            continue;
        }
        let file = host.file("config.yaml", file);
        let settings = format!("{USER} --config={file} {flags}");
        // Each over what the case before left, and twice: the second finds its own rules.
        host.must_install(&settings);
        let once = host.all_rules();
        host.must_install(&settings);
        assert_eq!(host.all_rules(), once, "{backend:?}: {flags}: installing twice");
        check(&host, &settings, &calls);
    }
    host.uninstall();
    check(
        &host,
        "uninstalled",
        &[
            (application(), "10.77.0.2:80", "peer:80"),
            (application(), "[fd77::2]:80", "peer:80"),
            (From::Peer, "10.77.0.1:80", "app:80"),
            (From::Peer, "[fd77::1]:80", "app:80"),
            (From::Guest, "192.0.2.1:80", "peer:80"),
        ],
    );
}

#[test]
fn effect_with_nftables() {
    effect(Backend::Nftables);
}

#[test]
fn effect_with_iptables_nft() {
    effect(Backend::IptablesNft);
}

#[test]
fn effect_with_iptables_legacy() {
    effect(Backend::IptablesLegacy);
}

#[test]
fn dns_goes_to_the_proxy() {
    if !available("the redirection of DNS") {
        return;
    }
    for backend in BACKENDS {
        let host = Host::new(backend).with_servers();
        let resolv_conf = host.file("resolv.conf", "nameserver 192.0.2.1\nnameserver 2001:db8::1\n");
        let config =
            host.file("config.yaml", &format!("redirect: {{dns: {{enabled: true, resolvConfigPath: {resolv_conf}}}}}"));
        let excluded = From::App(Caller::user(1001));
        let all = "--redirect-all-dns-traffic --exclude-outbound-ports-for-uids=udp:53:1001";
        for (flags, queries) in [
            (
                format!("--config={config}"),
                vec![
                    (application(), "192.0.2.1:53", "proxy's DNS"),
                    (application(), "[2001:db8::1]:53", "proxy's DNS"),
                    (proxy(), "192.0.2.1:53", "peer's DNS"),
                    (proxy(), "[2001:db8::1]:53", "peer's DNS"),
                    (application(), "10.77.0.2:53", "peer's DNS"),
                    (application(), "[fd77::2]:53", "peer's DNS"),
                ],
            ),
            (
                all.into(),
                vec![
                    (application(), "192.0.2.1:53", "proxy's DNS"),
                    (application(), "10.77.0.2:53", "proxy's DNS"),
                    (application(), "[fd77::2]:53", "proxy's DNS"),
                    (proxy(), "10.77.0.2:53", "peer's DNS"),
                    (proxy(), "[fd77::2]:53", "peer's DNS"),
                    (excluded, "10.77.0.2:53", "peer's DNS"),
                ],
            ),
            (
                "--redirect-all-dns-traffic --skip-dns-conntrack-zone-split --vnet=br-guest:10.88.0.0/24 --vnet=br-guest:fd88::/64".into(),
                vec![
                    (application(), "10.77.0.2:53", "proxy's DNS"),
                    (proxy(), "10.77.0.2:53", "peer's DNS"),
                    (From::Guest, "192.0.2.1:53", "proxy's DNS"),
                    (From::Guest, "[2001:db8::1]:53", "proxy's DNS"),
                ],
            ),
        ] {
            let flags = format!("{USER} {flags}");
            host.must_install(&flags);
            for (from, to, expected) in queries {
                assert_eq!(host.udp(from, to), expected, "{backend:?} {flags}: {from:?} to {to}");
            }
            // DNS over TCP is not redirected: an application's goes on to its server, and so does the proxy's.
            check(&host, &flags, &[(application(), "192.0.2.1:53", "peer:53"), (proxy(), "192.0.2.1:53", "peer:53")]);
        }
    }
}

/// An application and the proxy ask one server from one port shortly after another, as happens where both draw from the same range.
#[test]
fn conntrack_zones_keep_queries_apart() {
    if !available("conntrack zones") {
        return;
    }
    for backend in BACKENDS {
        let host = Host::new(backend).with_servers();
        host.must_install(&format!("{USER} --redirect-all-dns-traffic"));
        // What conntrack knows of the first query outlives its socket, so the second meets it.
        for (uid, expected) in [(APPLICATION, "proxy's DNS"), (PROXY_UID, "peer's DNS"), (APPLICATION, "proxy's DNS")] {
            let caller = Caller::user(uid).from("10.77.0.1:40000");
            assert_eq!(host.udp(From::App(caller), "192.0.2.1:53"), expected, "{backend:?}: user {uid}");
        }
    }
}

/// Docker rewrites queries to 127.0.0.11 to a port of its own: applications are redirected before that, the proxy's queries get there.
#[test]
fn dockers_dns_is_reached() {
    if !available("DNS beside Docker's") {
        return;
    }
    for backend in BACKENDS {
        let host = Host::new(backend).with_servers();
        probe::serve_udp(&host.app, "Docker's DNS", 0, "127.0.0.11:40053");
        host.foreign("-t nat -N DOCKER_OUTPUT");
        host.foreign("-t nat -A OUTPUT -d 127.0.0.11/32 -j DOCKER_OUTPUT");
        host.foreign(
            "-t nat -A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp --dport 53 -j DNAT --to-destination 127.0.0.11:40053",
        );
        let before = host.all_rules();
        let resolv_conf = host.file("resolv.conf", "nameserver 127.0.0.11\noptions ndots:0\n");
        let config =
            host.file("config.yaml", &format!("redirect: {{dns: {{enabled: true, resolvConfigPath: {resolv_conf}}}}}"));
        for flags in [format!("--config={config}"), "--redirect-all-dns-traffic".into()] {
            host.must_install(&format!("{USER} {flags}"));
            assert_eq!(host.udp(application(), "127.0.0.11:53"), "proxy's DNS", "{backend:?} {flags}");
            assert_eq!(host.udp(proxy(), "127.0.0.11:53"), "Docker's DNS", "{backend:?} {flags}");
        }
        host.uninstall();
        assert_eq!(host.udp(application(), "127.0.0.11:53"), "Docker's DNS", "{backend:?}");
        assert_eq!(host.all_rules(), before, "{backend:?}: the rules of others");
    }
}

/// What others redirect is theirs, unless the redirection is to come first.
#[test]
fn the_rules_of_others_come_first_or_last() {
    if !available("the order among the rules of others") {
        return;
    }
    for backend in BACKENDS {
        let host = Host::new(backend).with_servers();
        host.foreign("-t nat -A PREROUTING -p tcp --dport 8080 -j REDIRECT --to-ports 80");
        host.foreign("-t nat -A OUTPUT -p tcp -d 10.77.0.2 --dport 8080 -j DNAT --to-destination 10.77.0.2:80");
        host.must_install(USER);
        check(
            &host,
            "appended",
            &[
                (From::Peer, "10.77.0.1:8080", "app:80"),
                (From::Peer, "10.77.0.1:443", "app:15006"),
                (application(), "10.77.0.2:443", "app:15001"),
            ],
        );
        assert!(host.tcp(application(), "10.77.0.2:8080").starts_with("peer:80 "), "{backend:?}");
        host.must_install(&format!(
            "{USER} --redirect-inbound-insert-instead-of-append --redirect-outbound-insert-instead-of-append"
        ));
        check(
            &host,
            "inserted",
            &[(From::Peer, "10.77.0.1:8080", "app:15006"), (application(), "10.77.0.2:8080", "app:15001")],
        );
    }
}

#[test]
fn uninstalling_leaves_what_was_there() {
    if !available("uninstalling") {
        return;
    }
    for backend in BACKENDS {
        let host = Host::new(backend);
        host.app.feed(
            &["nft", "-f", "-"],
            "table inet other { chain input { type filter hook input priority 0; tcp dport 9 drop; }\n}\n",
        );
        host.foreign("-t nat -A PREROUTING -p tcp --dport 1 -j REDIRECT --to-ports 2");
        host.foreign("-t raw -A OUTPUT -p udp --dport 3 -j CT --zone 4");
        host.foreign("-t mangle -A PREROUTING -p tcp --dport 5 -j DROP");
        let v6 = |host: &Host| host.app.sh("ip -6 address show dev lo");
        let (before, address_before) = (host.all_rules(), v6(&host));
        host.must_install(&format!("{USER} --redirect-all-dns-traffic --drop-invalid-packets --vnet=x:10.0.0.0/8"));
        let during = host.all_rules();
        assert!(during.len() > before.len() && v6(&host).contains("::6/128"), "{backend:?}: {during}");
        host.uninstall();
        assert_eq!(host.all_rules(), before, "{backend:?}");
        assert_eq!(v6(&host), address_before, "{backend:?}");
        // A second time there is nothing to do.
        host.uninstall();
        assert_eq!(host.all_rules(), before, "{backend:?}");
    }
}

#[test]
fn a_failure_leaves_what_was_there() {
    if !available("what a failure leaves") {
        return;
    }
    let calls: [Call; 2] = [(application(), "10.77.0.2:80", "app:15001"), (From::Peer, "10.77.0.1:80", "app:15006")];
    for backend in BACKENDS {
        let host = Host::new(backend).with_servers();
        for earlier in ["nothing", "an installation"] {
            if earlier == "an installation" {
                host.must_install(&format!("{USER} --redirect-all-dns-traffic"));
            }
            let before = host.all_rules();
            let many: Vec<String> = (1..60000).map(|port| port.to_string()).collect();
            let (config, needle) = if backend == Backend::Nftables {
                (format!("redirect: {{outbound: {{excludePorts: [{}]}}}}", many.join(",")), "one transaction")
            } else {
                // The table raw is done when nat fails.
                (
                    "redirect: {dns: {captureAll: true, port: 1053, upstreamTargetChain: NO_SUCH_CHAIN}}".into(),
                    "NO_SUCH_CHAIN",
                )
            };
            let output =
                host.install(&format!("{USER} --max-retries=0 --config={}", host.file("config.yaml", &config)));
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains(needle), "{backend:?} over {earlier}: {said}");
            assert_eq!(host.all_rules(), before, "{backend:?} over {earlier}");
            if earlier == "an installation" {
                check(&host, "after the failure", &calls);
            } else {
                assert!(!host.app.sh("ip -6 address show dev lo").contains("::6/128"), "{backend:?}");
            }
        }
    }
}

/// What kumactl left is ours to replace, and each firewall's rules go when the other's come.
#[test]
fn one_firewall_takes_over_from_the_other() {
    if !available("changing the firewall") {
        return;
    }
    let mut host = Host::new(Backend::IptablesNft).with_servers();
    let calls: [Call; 3] = [
        (application(), "10.77.0.2:80", "app:15001"),
        (application(), "10.77.0.2:443", "peer:443"),
        (From::Peer, "10.77.0.1:80", "app:15006"),
    ];
    use Backend::{IptablesLegacy, IptablesNft, Nftables};
    for backend in [IptablesNft, Nftables, IptablesLegacy, Nftables, IptablesNft, IptablesLegacy, IptablesNft] {
        host.backend = backend;
        host.must_install(&format!("{USER} --exclude-outbound-ports=443"));
        check(&host, "taken over", &calls);
        let rules = host.all_rules();
        let found = [
            rules.contains("ip shika ") && rules.contains("ip6 shika "),
            rules.contains("\niptables-nft-save nat: -A KUMA_MESH")
                && rules.contains("ip6tables-nft-save nat: -A KUMA_MESH"),
            rules.contains("\niptables-legacy-save nat: -A KUMA_MESH")
                && rules.contains("ip6tables-legacy-save nat: -A KUMA_MESH"),
        ];
        assert_eq!(found, [Nftables, IptablesNft, IptablesLegacy].map(|one| one == backend), "{rules}");
    }
}

/// The text of a dry run, fed to nft, gives the rules that netlink sets.
#[test]
fn the_printed_rules_are_those_that_are_set() {
    if !available("the printed rules") {
        return;
    }
    let (set, fed) = (Host::new(Backend::Nftables), Host::new(Backend::Nftables));
    let flags = "--redirect-all-dns-traffic --vnet=br-+:10.88.0.0/24 --vnet=br-guest:fd88::/64 --drop-invalid-packets --iptables-logs \
         --exclude-inbound-ports=22 --exclude-outbound-ports-for-uids=tcp:53,3000-5000:106-108 --exclude-outbound-ips=10.0.0.0/9,fd00::/8 \
         --proxy-mark=0x539 --exclude-inbound-ips=10.3.0.0/17,10.0.0.1 --redirect-outbound-insert-instead-of-append";
    for flags in [USER.to_owned(), format!("{USER} {flags}"), format!("{USER} {flags} --disable-comments")] {
        set.must_install(&flags);
        let output = fed.install(&format!("{flags} --dry-run"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fed.app.feed(&["nft", "-f", "-"], &String::from_utf8_lossy(&output.stdout));
        assert_eq!(set.all_rules(), fed.all_rules(), "{flags}");
    }
}

#[test]
fn without_the_right_it_says_which_one() {
    if !available("missing rights") {
        return;
    }
    let space = Space::new();
    let proxy = env!("CARGO_BIN_EXE_shika-proxy");
    let bare = ["setpriv", "--reuid=1000", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", proxy];
    for action in ["install", "uninstall"] {
        let mut words = bare.to_vec();
        words.extend([action, "transparent-proxy"]);
        words.extend((action == "install").then_some(USER));
        let output = space.run(&words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("NET_ADMIN"), "{action}: {said}");
    }
    // Printing needs no right.
    let mut words = bare.to_vec();
    words.extend(["install", "transparent-proxy", USER, "--dry-run"]);
    let output = space.run(&words);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("redirect to :15001"));
}
