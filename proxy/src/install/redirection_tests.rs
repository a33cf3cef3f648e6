#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn host() -> Host {
    Host {
        passwd: Some("kuma-dp:x:5678:5678::/:/bin/false".into()),
        loopback: "lo".into(),
        ipv6: true,
        docker_dns: false,
    }
}

fn parse(yaml: &str) -> Result<(Redirection, Vec<String>), Vec<String>> {
    parse_on(yaml, &host())
}

fn parse_on(yaml: &str, host: &Host) -> Result<(Redirection, Vec<String>), Vec<String>> {
    let mut config = Config::default();
    config.merge_file(yaml).unwrap();
    Redirection::new(&config, host)
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange { first, last }
}

#[test]
fn defaults_are_kumas() {
    let (redirection, notes) = parse("").unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!((redirection.uid, redirection.mark, redirection.ipv6, redirection.dns), (5678, None, true, None));
    // Trap 33: IPv6 has no port of its own any more, 15010.
    assert_eq!((redirection.inbound.port, redirection.outbound.port, redirection.dns_port), (15006, 15001, 15053));
}

#[test]
fn exclusions_of_users() {
    use Transport::{Tcp, Udp};
    let all = vec![ports(1, 65535)];
    for (entry, transports, expected_ports, uids) in [
        ("1000", &[Tcp, Udp][..], all.clone(), (1000, 1000)),
        ("*:*:0", &[Tcp, Udp], all.clone(), (0, 0)),
        ("tcp:*:0", &[Tcp], all, (0, 0)),
        ("53:106-108", &[Tcp, Udp], vec![ports(53, 53)], (106, 108)),
        (
            "udp:3900,3902,4000-6000:303",
            &[Udp],
            vec![ports(3900, 3900), ports(3902, 3902), ports(4000, 6000)],
            (303, 303),
        ),
        ("tcp,udp:53:70000", &[Tcp, Udp], vec![ports(53, 53)], (70000, 70000)),
    ] {
        let expected: Vec<Exclusion> = transports
            .iter()
            .map(|&transport| Exclusion::Owner {
                transport,
                ports: expected_ports.clone(),
                uids: UidRange { first: uids.0, last: uids.1 },
            })
            .collect();
        assert_eq!(owner_exclusions(entry).unwrap(), expected, "{entry}");
    }
}

#[test]
fn all_errors_at_once_with_their_paths() {
    let errors = parse(
        "
kumaDPUser: nobody-here
storeFirewalld: true
ebpf: {enabled: true}
log: {level: 9}
redirect:
  inbound: {excludePortsForUIDs: ['1'], excludePortsForIPs: [10.0.0.256]}
  outbound: {excludePortsForUIDs: ['a3000-5000:1', 'http:1:1', '1:1:*', '1:1:1,2', '9-1:1', '1:2:3:4', '5-4'], excludePortsForIPs: ['::/129']}
  dns: {enabled: true, resolvConfigPath: /does/not/exist}
  vnet: {networks: [docker0, 'docker0:x', 'bad name:10.0.0.0/8', 'muchtoolongforaname:10.0.0.0/8']}
",
    )
    .unwrap_err();
    for needle in [
        "kumaDPUser: there is no user `nobody-here`",
        "storeFirewalld: ",
        "ebpf.enabled: ",
        "log.level: ",
        "redirect.inbound.excludePortsForUIDs: ",
        "redirect.inbound.excludePortsForIPs: `10.0.0.256`",
        "`a3000-5000:1`: `a3000` is not a port",
        "`http:1:1`: `http` is neither `tcp` nor `udp`",
        "`1:1:*`: `*` is not allowed for UIDs",
        "`1:1:1,2`: `1,2`: one UID or one range",
        "`9-1:1`: `9-1`: the range ends",
        "`1:2:3:4`: expected `protocol:ports:uids`",
        "`5-4`: 5-4: the range ends",
        "redirect.outbound.excludePortsForIPs: `::/129`",
        "redirect.dns.resolvConfigPath: /does/not/exist: ",
        "`docker0`: expected `interface:CIDR`",
        "`docker0:x`: `x` is not a network",
        "`bad name` is not the name",
        "`muchtoolongforaname` is not the name",
    ] {
        assert!(errors.iter().any(|error| error.contains(needle)), "{needle} is missing in {errors:#?}");
    }
    assert_eq!(errors.len(), 19, "{errors:#?}");
}

#[test]
fn dns_servers_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("resolv.conf");
    fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
    let yaml = format!("redirect: {{dns: {{enabled: true, resolvConfigPath: {}}}}}", path.display());
    let (redirection, notes) = parse(&yaml).unwrap();
    let expected =
        Dns { queries: Queries::To(vec!["10.0.0.1".parse().unwrap()]), zone_split: true, upstream_chain: None };
    assert_eq!(redirection.dns, Some(expected));
    assert!(notes.len() == 1 && notes[0].contains("no IPv6 server"), "{notes:?}");
}

#[test]
fn captures_all_dns_and_spares_dockers() {
    let docker = Host { docker_dns: true, ..host() };
    for (yaml, host, zone_split, chain) in [
        ("captureAll: true", host(), true, None),
        ("captureAll: true, skipConntrackZoneSplit: true", host(), false, None),
        ("captureAll: true", docker.clone(), false, Some("DOCKER_OUTPUT")),
        ("captureAll: true, upstreamTargetChain: RETURN", docker, false, None),
        ("captureAll: true, upstreamTargetChain: MY_DNS", host(), true, Some("MY_DNS")),
    ] {
        let (redirection, _) = parse_on(&format!("redirect: {{dns: {{{yaml}}}}}"), &host).unwrap();
        let expected = Dns { queries: Queries::All, zone_split, upstream_chain: chain.map(str::to_owned) };
        assert_eq!(redirection.dns, Some(expected), "{yaml}");
    }
    let errors = parse("redirect: {dns: {captureAll: true, upstreamTargetChain: 'X -j ACCEPT'}}").unwrap_err();
    assert!(errors[0].contains("redirect.dns.upstreamTargetChain"), "{errors:?}");
}

#[test]
fn without_ipv6_it_says_so() {
    let (redirection, notes) = parse_on("", &Host { ipv6: false, ..host() }).unwrap();
    assert!(!redirection.ipv6 && notes[0].contains("IPv6 is not redirected"), "{notes:?}");
    let (redirection, notes) = parse("ipFamilyMode: ipv4").unwrap();
    assert!(!redirection.ipv6 && notes.is_empty(), "{notes:?}");
}

#[test]
fn networks_come_by_interface_name() {
    let (redirection, _) = parse(
        "{proxyMark: 0x539, redirect: {vnet: {networks: ['docker0:172.17.0.5/16', 'br+:172.18.0.0/16', 'iface:::1/64']}}}",
    )
    .unwrap();
    let networks: Vec<_> =
        redirection.networks.iter().map(|network| format!("{} {}", network.interface, network.cidr)).collect();
    assert_eq!(networks, ["br+ 172.18.0.0/16", "docker0 172.17.0.0/16", "iface ::/64"]);
    assert_eq!(redirection.mark, Some(1337));
}
