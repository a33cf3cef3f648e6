#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::install::{
    config::Config,
    host::Host,
    redirection::{PortRange, Redirection},
    rules::{Family, compile},
};

fn rules(yaml: &str) -> String {
    let mut config = Config::default();
    config.merge_file(yaml).unwrap();
    let host = Host { passwd: None, loopback: "ifPlaceholder".into(), ipv6: false, docker_dns: false };
    let (redirection, _) = Redirection::new(&config, &host).unwrap();
    text(&[compile(&redirection, Family::V4)], false)
}

/// The chains that every installation has, with the parts that settings change.
fn expected(
    first: &str,
    prerouting_and_output: &str,
    inbound: &str,
    outbound: &str,
    uid: u32,
    ports: (u16, u16),
) -> String {
    format!(
        "### IPv4 ###

{first}* nat
-N KUMA_MESH_INBOUND
-N KUMA_MESH_OUTBOUND
-N KUMA_MESH_INBOUND_REDIRECT
-N KUMA_MESH_OUTBOUND_REDIRECT
{prerouting_and_output}{inbound}-A KUMA_MESH_INBOUND -p tcp -j KUMA_MESH_INBOUND_REDIRECT
{outbound}-A KUMA_MESH_OUTBOUND -s 127.0.0.6/32 -o ifPlaceholder -j RETURN
-A KUMA_MESH_OUTBOUND -p tcp -o ifPlaceholder ! -d 127.0.0.1/32 -m owner --uid-owner {uid} -j KUMA_MESH_INBOUND_REDIRECT
-A KUMA_MESH_OUTBOUND -p tcp -o ifPlaceholder -m owner ! --uid-owner {uid} -j RETURN
-A KUMA_MESH_OUTBOUND -m owner --uid-owner {uid} -j RETURN
-A KUMA_MESH_OUTBOUND -d 127.0.0.1/32 -j RETURN
-A KUMA_MESH_OUTBOUND -j KUMA_MESH_OUTBOUND_REDIRECT
-A KUMA_MESH_INBOUND_REDIRECT -p tcp -j REDIRECT --to-ports {}
-A KUMA_MESH_OUTBOUND_REDIRECT -p tcp -j REDIRECT --to-ports {}
COMMIT
",
        ports.0, ports.1
    )
}

const JUMPS: &str = "-A PREROUTING -p tcp -j KUMA_MESH_INBOUND\n-A OUTPUT -p tcp -j KUMA_MESH_OUTBOUND\n";

/// Trap 28: the addresses 127.0.0.6 and ::6 and the proxy's UID are exempt, and a call to oneself comes back by the inbound port.
#[test]
fn the_rules_are_kumas_word_for_word() {
    let zones = "* raw
-A PREROUTING -p udp --sport 53 -j CT --zone 1
-A OUTPUT -p udp --dport 53 -m owner --uid-owner 5678 -j CT --zone 1
-A OUTPUT -p udp --sport 12345 -m owner --uid-owner 5678 -j CT --zone 2
-A OUTPUT -p udp --dport 53 -j CT --zone 2
COMMIT
";
    let dns = "-A PREROUTING -p tcp -j KUMA_MESH_INBOUND
-I OUTPUT 1 -p udp --dport 53 -m owner --uid-owner 5678 -j RETURN
-I OUTPUT 2 -p udp --dport 53 -j REDIRECT --to-ports 12345
-A OUTPUT -p tcp --dport 53 -m owner ! --uid-owner 5678 -j RETURN
-A OUTPUT -p tcp -j KUMA_MESH_OUTBOUND
";
    let exclusions = "-A PREROUTING -p tcp -j KUMA_MESH_INBOUND
-I OUTPUT 1 -m multiport -p tcp --dport 1900,1902,1000:2000 -m owner --uid-owner 106:108 -j RETURN
-I OUTPUT 2 -m multiport -p tcp --dport 1:65535 -m owner --uid-owner 123 -j RETURN
-I OUTPUT 3 -m multiport -p udp --dport 1:65535 -m owner --uid-owner 123 -j RETURN
-I OUTPUT 4 -d 10.0.0.0/8 -j RETURN
-A OUTPUT -p tcp -j KUMA_MESH_OUTBOUND
";
    let default = (15006, 15001);
    for (yaml, expected) in [
        ("kumaDPUser: '0'", expected("", JUMPS, "", "", 0, default)),
        (
            "redirect: {outbound: {port: 12345, excludePorts: '2000,2001'}, inbound: {port: 12346, excludePorts: '1000,1001'}}",
            expected(
                "",
                JUMPS,
                "-A KUMA_MESH_INBOUND -p tcp --dport 1000 -j RETURN\n-A KUMA_MESH_INBOUND -p tcp --dport 1001 -j RETURN\n",
                "-A KUMA_MESH_OUTBOUND -p tcp --dport 2000 -j RETURN\n-A KUMA_MESH_OUTBOUND -p tcp --dport 2001 -j RETURN\n",
                5678,
                (12346, 12345),
            ),
        ),
        ("redirect: {dns: {captureAll: true, port: 12345}}", expected(zones, dns, "", "", 5678, default)),
        (
            "redirect: {dns: {captureAll: true, port: 12345, skipConntrackZoneSplit: true}}",
            expected("", dns, "", "", 5678, default),
        ),
        (
            "redirect: {outbound: {excludePortsForUIDs: ['tcp:1900,1902,1000-2000:106-108', '123'], excludePortsForIPs: [10.1.2.3/8]}}",
            expected("", exclusions, "", "", 5678, default),
        ),
    ] {
        assert_eq!(rules(yaml), expected, "{yaml}");
    }
}

#[test]
fn more_than_fifteen_ports_take_further_rules() {
    let ranges = (1..=11).map(|n| PortRange { first: n * 100, last: n * 100 + (n % 2) }).collect();
    let rule =
        Rule { matches: vec![Match::DestinationPorts(ranges)], verdict: Verdict::Return, comment: String::new() };
    let lists: Vec<String> = words(&rule, true);
    assert_eq!(
        lists,
        [
            "-m multiport --dport 100:101,200,300:301,400,500:501,600,700:701,800,900:901,1000 -j RETURN",
            "-m multiport --dport 1100:1101 -j RETURN",
        ]
        .map(str::to_owned)
    );
}

/// Kuma's own cases, where the collection of its test data is at hand.
#[test]
fn kumas_cases() {
    use crate::install::{Action, flags};
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/kuma-2.14-policy-vectors/transparent-proxy-iptables");
    let Ok(cases) = std::fs::read_dir(&root) else { return };
    let mut compared = 0;
    for case in cases {
        let directory = case.unwrap().path();
        let entry = std::fs::read_to_string(directory.join("entry.go.txt")).unwrap();
        let arguments = entry.split_once("extraArgs: []string{").unwrap().1.split_once('}').unwrap().0;
        let mut words = vec!["shika-proxy".into(), "install".into(), "transparent-proxy".into()];
        words
            .extend(arguments.split(['"', '\n', '\t']).filter(|word| !matches!(word.trim(), "" | ",")).map(Into::into));
        let config = flags::config(&flags::parse(&words, Action::Install).unwrap(), |_| None);
        if entry.contains("errorMatcher: Equal(\"Error: ") {
            assert!(config.is_err(), "{}: accepted", directory.display());
            compared += 1;
            continue;
        }
        let passwd = Some("root:x:0:0::/root:/bin/sh\n".to_owned());
        let host = Host { passwd, loopback: "ifPlaceholder".into(), ipv6: false, docker_dns: false };
        let (redirection, _) = Redirection::new(&config.unwrap(), &host).unwrap();
        let golden = std::fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path()).find(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("install-") && name.ends_with(".txt")
        });
        let expected = std::fs::read_to_string(golden.unwrap()).unwrap();
        let found = text(&[compile(&redirection, Family::V4)], false);
        assert_eq!(found.trim(), expected.trim(), "{}", directory.display());
        compared += 1;
    }
    assert!(compared > 3, "{compared} cases");
}
