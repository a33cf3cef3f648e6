#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::install::{
    config::Config,
    host::Host,
    redirection::{PortRange, Redirection},
    rules::compile,
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

#[test]
fn what_an_earlier_installation_left() {
    let saved = "# Generated
*nat
:PREROUTING ACCEPT [0:0]
:KUMA_MESH_INBOUND - [0:0]
:KUMA_MESH_OLD - [0:0]
:OTHER - [0:0]
-A PREROUTING -p tcp -m comment --comment \"kuma/mesh/transparent/proxy/incoming TCP\" -j KUMA_MESH_INBOUND
-A PREROUTING -p tcp -j OTHER
-A KUMA_MESH_INBOUND -p tcp -m comment --comment \"kuma/mesh/transparent/proxy/x\" -j RETURN
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m conntrack --ctstate INVALID -m comment --comment \"kuma/mesh/transparent/proxy/y\" -j DROP
COMMIT
";
    let left = ours(saved).unwrap();
    assert_eq!(
        removal(&left),
        "*mangle
-D PREROUTING -m conntrack --ctstate INVALID -m comment --comment \"kuma/mesh/transparent/proxy/y\" -j DROP
COMMIT
*nat
-D PREROUTING -p tcp -m comment --comment \"kuma/mesh/transparent/proxy/incoming TCP\" -j KUMA_MESH_INBOUND
-F KUMA_MESH_INBOUND
-F KUMA_MESH_OLD
-X KUMA_MESH_INBOUND
-X KUMA_MESH_OLD
COMMIT
"
    );
    assert!(ours("*nat\n:OTHER - [0:0]\nCOMMIT\n").unwrap().is_empty());
    let error = ours("*nat\n:KUMA_MESH_INBOUND - [0:0]\nCOMMIT\n").unwrap_err();
    assert!(error.contains("by hand"), "{error}");
}
