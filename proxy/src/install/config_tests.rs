#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn from_file(text: &str) -> Result<Config, String> {
    let mut config = Config::default();
    config.merge_file(text).map(|()| config)
}

#[test]
fn every_key_is_named_once() {
    for names in [
        KEYS.iter().map(|key| key.path).collect::<Vec<_>>(),
        KEYS.iter().map(|key| key.variable).filter(|name| !name.is_empty()).collect(),
        KEYS.iter().map(|key| key.flag).filter(|name| !name.is_empty()).collect(),
    ] {
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }
    assert!(KEYS.iter().all(|key| key.flag.is_empty() == key.help.is_empty()));
}

#[test]
fn a_file_in_yaml_or_json() {
    let yaml = "
kumaDPUser: kuma-dp
ipFamilyMode: ipv4
redirect:
  inbound: {enabled: true, port: 15006, excludePorts: '22, 80', excludePortsForIPs: [10.0.0.1]}
  outbound:
    port: '12345'
    includePorts: [80, '443']
    excludePortsForUIDs: ['tcp:53,80:106-108', '1000']
  dns: {enabled: true, captureAll: true, resolvConfigPath: /run/resolv.conf}
  vnet: {networks: [docker0:172.17.0.0/16]}
wait: 7
retry: {maxRetries: 1, sleepBetweenRetries: 1m1.5s}
log: {enabled: true, level: 4}
iptablesExecutables: {iptables-save: /x/save, iptables: /x/iptables}
ebpf: {enabled: false, instanceIP: 1.2.3.4}
";
    let config = from_file(yaml).unwrap();
    let json = serde_json::to_string(&serde_yaml_ng::from_str::<Value>(yaml).unwrap()).unwrap();
    assert_eq!(from_file(&json).unwrap(), config);
    let expected = Config {
        kuma_dp_user: "kuma-dp".into(),
        ip_family_mode: IpFamilyMode::Ipv4,
        inbound: Flow {
            exclude_ports: vec![22, 80],
            exclude_ports_for_ips: vec!["10.0.0.1".into()],
            ..Config::default().inbound
        },
        outbound: Flow {
            port: 12345,
            include_ports: vec![80, 443],
            exclude_ports_for_uids: vec!["tcp:53,80:106-108".into(), "1000".into()],
            ..Config::default().outbound
        },
        dns: Dns {
            enabled: true,
            capture_all: true,
            resolv_config_path: "/run/resolv.conf".into(),
            ..Config::default().dns
        },
        networks: vec!["docker0:172.17.0.0/16".into()],
        wait: 7,
        max_retries: 1,
        sleep_between_retries: Duration::from_millis(61_500),
        log_enabled: true,
        log_level: 4,
        executables: [("iptables", "/x/iptables"), ("iptables-save", "/x/save")]
            .map(|(name, path)| (name.to_owned(), path.to_owned()))
            .into(),
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn an_empty_file_changes_nothing() {
    for text in ["", "---\n", "{}", "redirect: {}", "redirect:\n"] {
        assert_eq!(from_file(text).unwrap(), Config::default(), "{text:?}");
    }
}

#[test]
fn refusals_name_the_path() {
    for (text, needles) in [
        ("redirect: {inbound: {excludePortz: [1]}}", &["redirect.inbound.excludePortz", "no such setting"][..]),
        ("redirect: {inbound: {port: 0}}", &["redirect.inbound.port", "`0`"]),
        ("redirect: {inbound: {port: 65536}}", &["redirect.inbound.port", "`65536`"]),
        ("redirect: {inbound: [1]}", &["redirect.inbound", "object"]),
        ("redirect: {outbound: {excludePorts: [22, ssh]}}", &["redirect.outbound.excludePorts", "`ssh`"]),
        ("verbose: maybe", &["verbose", "`maybe`"]),
        ("verbose: [true]", &["verbose", "list"]),
        ("ipFamilyMode: ipv6", &["ipFamilyMode", "`ipv6`", "dualstack"]),
        ("retry: {sleepBetweenRetries: soon}", &["retry.sleepBetweenRetries", "`soon`"]),
        ("retry: {sleepBetweenRetries: 3}", &[]),
        ("iptablesExecutables: {nft: /usr/sbin/nft}", &["iptablesExecutables", "`nft`"]),
        ("- 1", &["object"]),
        ("a: [", &["YAML"]),
    ] {
        match from_file(text) {
            Ok(_) => assert!(needles.is_empty(), "{text}: accepted"),
            Err(error) => {
                assert!(!needles.is_empty() && needles.iter().all(|needle| error.contains(needle)), "{text}: {error}");
            }
        }
    }
}

#[test]
fn the_environment_is_stronger_than_the_file() {
    let mut config = from_file("{redirect: {inbound: {port: 1111}, outbound: {port: 2222}}}").unwrap();
    let variable = |name: &str| {
        [
            ("KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_PORT", "3333"),
            ("KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_EXCLUDE_PORTS_FOR_UIDS", "1000"),
            ("KUMA_TRANSPARENT_PROXY_REDIRECT_DNS_ENABLED", "True"),
            ("KUMA_TRANSPARENT_PROXY_IPTABLES_EXECUTABLES", "ip6tables:/y"),
        ]
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, value)| (*value).to_owned())
    };
    config.merge_environment(variable).unwrap();
    assert_eq!((config.inbound.port, config.outbound.port, config.dns.enabled), (3333, 2222, true));
    assert_eq!(config.outbound.exclude_ports_for_uids, ["1000"]);
    assert_eq!(config.executables.get("ip6tables").map(String::as_str), Some("/y"));
    let error = config
        .merge_environment(|name| (name == "KUMA_TRANSPARENT_PROXY_WAIT").then(|| "long".to_owned()))
        .unwrap_err();
    assert!(error.contains("KUMA_TRANSPARENT_PROXY_WAIT") && error.contains("`long`"), "{error}");
}
