//! The settings of the redirection in Kuma's shape: defaults, configuration files, environment and flags, each stronger than the one before.
//!
//! One table, [`KEYS`], names every setting three times: its path in a configuration file, its environment variable and its flag. Source: kuma
//! `pkg/transparentproxy/config/config.go` and `app/kumactl/cmd/install/install_transparent_proxy.go`.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;

/// Start of every environment variable.
pub const ENVIRONMENT: &str = "KUMA_TRANSPARENT_PROXY_";

/// All settings, as given: nothing is looked up or checked against the host yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name or number of the user that runs the proxy; empty means 5678 or `kuma-dp`.
    pub kuma_dp_user: String,
    /// Packets with this firewall mark are the proxy's too; 0 means that the user alone tells.
    pub proxy_mark: u32,
    /// Which addresses are redirected.
    pub ip_family_mode: IpFamilyMode,
    /// Traffic that comes to this host.
    pub inbound: Flow,
    /// Traffic that this host sends.
    pub outbound: Flow,
    /// DNS queries that this host sends.
    pub dns: Dns,
    /// Virtual networks, `interface:CIDR`, whose traffic is redirected like this host's own.
    pub networks: Vec<String>,
    /// Whether packets that belong to no connection are dropped.
    pub drop_invalid_packets: bool,
    /// Whether the kernel logs what passes the redirection.
    pub log_enabled: bool,
    /// syslog level of these lines, 0 to 7.
    pub log_level: u32,
    /// Seconds to wait for the lock of iptables-legacy.
    pub wait: u32,
    /// Microseconds between two looks at that lock.
    pub wait_interval: u32,
    /// Further tries after a failure that may pass.
    pub max_retries: u32,
    /// Time between two tries.
    pub sleep_between_retries: Duration,
    /// Ask firewalld to keep the rules.
    pub store_firewalld: bool,
    /// Leave the comments out of the rules.
    pub comments_disabled: bool,
    /// Paths of the iptables programs, by name.
    pub executables: BTreeMap<String, String>,
    /// Which of the kernel's firewalls is set.
    pub backend: Backend,
    /// eBPF instead of a firewall.
    pub ebpf_enabled: bool,
    /// The rules are set for another host's namespace, so the user need not exist here.
    pub cni_mode: bool,
    /// Say what is done.
    pub verbose: bool,
    /// Print the rules and change nothing.
    pub dry_run: bool,
}

/// One direction of TCP traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Whether it is redirected.
    pub enabled: bool,
    /// The proxy's port.
    pub port: u16,
    /// Where not empty, only these ports are redirected and `exclude_ports` has no meaning.
    pub include_ports: Vec<u16>,
    /// Ports that are left alone.
    pub exclude_ports: Vec<u16>,
    /// `protocol:ports:uids` that are left alone; outbound only.
    pub exclude_ports_for_uids: Vec<String>,
    /// Addresses or networks that are left alone: sources inbound, destinations outbound.
    pub exclude_ports_for_ips: Vec<String>,
    /// Whether the redirection comes before what others redirect.
    pub insert_redirect_instead_of_append: bool,
}

/// DNS queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Whether they are redirected.
    pub enabled: bool,
    /// The proxy's port.
    pub port: u16,
    /// Queries to any server, not only to those of `resolv_config_path`.
    pub capture_all: bool,
    /// Keep the queries of applications and of the proxy in one conntrack zone.
    pub skip_conntrack_zone_split: bool,
    /// The file that names this host's DNS servers.
    pub resolv_config_path: String,
    /// With iptables: the chain that the proxy's own queries go on to.
    pub upstream_target_chain: String,
}

/// Which addresses are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilyMode {
    /// IPv4, and IPv6 where the host has it.
    DualStack,
    /// IPv4 alone.
    Ipv4,
}

/// Which of the kernel's firewalls is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// nftables; iptables where the kernel has no nftables.
    Auto,
    /// nftables, over netlink: no program is needed.
    Nftables,
    /// The programs iptables-restore and ip6tables-restore.
    Iptables,
}

impl Default for Config {
    fn default() -> Self {
        let flow = |port| Flow {
            enabled: true,
            port,
            include_ports: Vec::new(),
            exclude_ports: Vec::new(),
            exclude_ports_for_uids: Vec::new(),
            exclude_ports_for_ips: Vec::new(),
            insert_redirect_instead_of_append: false,
        };
        Config {
            kuma_dp_user: String::new(),
            proxy_mark: 0,
            ip_family_mode: IpFamilyMode::DualStack,
            inbound: flow(15006),
            outbound: flow(15001),
            dns: Dns {
                enabled: false,
                port: 15053,
                capture_all: false,
                skip_conntrack_zone_split: false,
                resolv_config_path: "/etc/resolv.conf".into(),
                upstream_target_chain: String::new(),
            },
            networks: Vec::new(),
            drop_invalid_packets: false,
            log_enabled: false,
            log_level: 7,
            wait: 5,
            wait_interval: 0,
            max_retries: 4,
            sleep_between_retries: Duration::from_secs(2),
            store_firewalld: false,
            comments_disabled: false,
            executables: BTreeMap::new(),
            backend: Backend::Auto,
            ebpf_enabled: false,
            cni_mode: false,
            verbose: false,
            dry_run: false,
        }
    }
}

/// Where a setting's value goes, which says how it is read.
enum Field<'a> {
    Switch(&'a mut bool),
    Port(&'a mut u16),
    Ports(&'a mut Vec<u16>),
    List(&'a mut Vec<String>),
    Text(&'a mut String),
    Number(&'a mut u32),
    Time(&'a mut Duration),
    Family(&'a mut IpFamilyMode),
    Backend(&'a mut Backend),
    Programs(&'a mut BTreeMap<String, String>),
    /// Of no effect here.
    Unused,
}

/// A setting.
pub struct Key {
    /// In a configuration file.
    pub path: &'static str,
    /// Environment variable without its prefix; empty where there is none.
    pub variable: &'static str,
    /// Flag without its dashes; empty where there is none.
    pub flag: &'static str,
    /// What `--help` says of the flag.
    pub help: &'static str,
    field: fn(&mut Config) -> Field<'_>,
}

impl Key {
    /// A flag that may stand without a value.
    pub fn is_switch(&self) -> bool {
        matches!((self.field)(&mut Config::default()), Field::Switch(_))
    }

    /// A flag that may be given more than once.
    pub fn is_list(&self) -> bool {
        matches!((self.field)(&mut Config::default()), Field::List(_))
    }
}

macro_rules! key {
    ($path:literal, $variable:literal, $flag:literal, $kind:ident($($field:tt)+), $help:literal) => {
        Key {
            path: $path,
            variable: $variable,
            flag: $flag,
            help: $help,
            field: |config| Field::$kind(&mut config.$($field)+),
        }
    };
}

/// Every setting.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key!("kumaDPUser", "KUMA_DP_USER", "kuma-dp-user", Text(kuma_dp_user),
        "Name or UID of the user that runs the proxy; its traffic is not redirected [default: UID 5678, else the user kuma-dp]"),
    key!("proxyMark", "PROXY_MARK", "proxy-mark", Number(proxy_mark),
        "Firewall mark that tells the proxy's own packets besides its user; 0 for none [default: 0]"),
    key!("ipFamilyMode", "IP_FAMILY_MODE", "ip-family-mode", Family(ip_family_mode),
        "`dualstack` or `ipv4` [default: dualstack]"),
    key!("redirect.inbound.enabled", "REDIRECT_INBOUND_ENABLED", "redirect-inbound", Switch(inbound.enabled),
        "Redirect incoming traffic; turn it off for a gateway [default: true]"),
    key!("redirect.inbound.port", "REDIRECT_INBOUND_PORT", "redirect-inbound-port", Port(inbound.port),
        "Port that incoming traffic is redirected to; the outbound port may serve both [default: 15006]"),
    key!("redirect.inbound.includePorts", "REDIRECT_INBOUND_INCLUDE_PORTS", "", Ports(inbound.include_ports), ""),
    key!("redirect.inbound.excludePorts", "REDIRECT_INBOUND_EXCLUDE_PORTS", "exclude-inbound-ports", Ports(inbound.exclude_ports),
        "Incoming ports that are not redirected, separated by commas"),
    key!("redirect.inbound.excludePortsForUIDs", "REDIRECT_INBOUND_EXCLUDE_PORTS_FOR_UIDS", "", List(inbound.exclude_ports_for_uids), ""),
    key!("redirect.inbound.excludePortsForIPs", "REDIRECT_INBOUND_EXCLUDE_PORTS_FOR_IPS", "exclude-inbound-ips", List(inbound.exclude_ports_for_ips),
        "Source addresses or networks whose incoming traffic is not redirected; may be repeated or separated by commas"),
    key!("redirect.inbound.insertRedirectInsteadOfAppend", "REDIRECT_INBOUND_INSERT_REDIRECT_INSTEAD_OF_APPEND", "redirect-inbound-insert-instead-of-append",
        Switch(inbound.insert_redirect_instead_of_append), "Redirect incoming traffic before the rules of others get at it"),
    key!("redirect.outbound.enabled", "REDIRECT_OUTBOUND_ENABLED", "redirect-outbound", Switch(outbound.enabled),
        "Redirect outgoing traffic [default: true]"),
    key!("redirect.outbound.port", "REDIRECT_OUTBOUND_PORT", "redirect-outbound-port", Port(outbound.port),
        "Port that outgoing traffic is redirected to [default: 15001]"),
    key!("redirect.outbound.includePorts", "REDIRECT_OUTBOUND_INCLUDE_PORTS", "", Ports(outbound.include_ports), ""),
    key!("redirect.outbound.excludePorts", "REDIRECT_OUTBOUND_EXCLUDE_PORTS", "exclude-outbound-ports", Ports(outbound.exclude_ports),
        "Outgoing ports that are not redirected, separated by commas"),
    key!("redirect.outbound.excludePortsForUIDs", "REDIRECT_OUTBOUND_EXCLUDE_PORTS_FOR_UIDS", "exclude-outbound-ports-for-uids",
        List(outbound.exclude_ports_for_uids), "`protocol:ports:uids` that is not redirected, e.g. `tcp:53,3000-5000:106-108`, `53:106` or `106`; may be repeated"),
    key!("redirect.outbound.excludePortsForIPs", "REDIRECT_OUTBOUND_EXCLUDE_PORTS_FOR_IPS", "exclude-outbound-ips", List(outbound.exclude_ports_for_ips),
        "Destination addresses or networks to which traffic is not redirected; may be repeated or separated by commas"),
    key!("redirect.outbound.insertRedirectInsteadOfAppend", "REDIRECT_OUTBOUND_INSERT_REDIRECT_INSTEAD_OF_APPEND", "redirect-outbound-insert-instead-of-append",
        Switch(outbound.insert_redirect_instead_of_append), "Redirect outgoing traffic before the rules of others get at it"),
    key!("redirect.dns.enabled", "REDIRECT_DNS_ENABLED", "redirect-dns", Switch(dns.enabled),
        "Redirect DNS queries to the servers of resolv.conf"),
    key!("redirect.dns.captureAll", "REDIRECT_DNS_CAPTURE_ALL", "redirect-all-dns-traffic", Switch(dns.capture_all),
        "Redirect DNS queries to any server"),
    key!("redirect.dns.port", "REDIRECT_DNS_PORT", "redirect-dns-port", Port(dns.port),
        "Port that DNS queries are redirected to [default: 15053]"),
    key!("redirect.dns.skipConntrackZoneSplit", "REDIRECT_DNS_SKIP_CONNTRACK_ZONE_SPLIT", "skip-dns-conntrack-zone-split", Switch(dns.skip_conntrack_zone_split),
        "Keep DNS queries of applications and of the proxy in one conntrack zone"),
    key!("redirect.dns.resolvConfigPath", "REDIRECT_DNS_RESOLV_CONFIG_PATH", "redirect-dns-resolv-config-path", Text(dns.resolv_config_path),
        "File that names the DNS servers [default: /etc/resolv.conf]"),
    key!("redirect.dns.upstreamTargetChain", "REDIRECT_DNS_UPSTREAM_TARGET_CHAIN", "redirect-dns-upstream-target-chain", Text(dns.upstream_target_chain),
        "With iptables: the chain that the proxy's own DNS queries go on to [default: RETURN, or DOCKER_OUTPUT where it exists]"),
    key!("redirect.vnet.networks", "REDIRECT_VNET_NETWORKS", "vnet", List(networks),
        "`interface:CIDR` of a virtual network whose traffic is redirected like the host's own, e.g. `docker0:172.17.0.0/16` or `br+:172.18.0.0/16`; may be repeated"),
    key!("dropInvalidPackets", "DROP_INVALID_PACKETS", "drop-invalid-packets", Switch(drop_invalid_packets),
        "Drop packets that conntrack finds invalid before they reach an application unredirected"),
    key!("log.enabled", "LOG_ENABLED", "iptables-logs", Switch(log_enabled), "Let the kernel log what passes the redirection"),
    key!("log.level", "LOG_LEVEL", "", Number(log_level), ""),
    key!("wait", "WAIT", "wait", Number(wait), "Seconds to wait for the lock of iptables-legacy; 0 for ever [default: 5]"),
    key!("waitInterval", "WAIT_INTERVAL", "wait-interval", Number(wait_interval), "Microseconds between two looks at that lock [default: 0]"),
    key!("retry.maxRetries", "RETRY_MAX_RETRIES", "max-retries", Number(max_retries), "Further tries after a failure that may pass [default: 4]"),
    key!("retry.sleepBetweenRetries", "RETRY_SLEEP_BETWEEN_RETRIES", "sleep-between-retries", Time(sleep_between_retries),
        "Time between two tries [default: 2s]"),
    key!("storeFirewalld", "STORE_FIREWALLD", "store-firewalld", Switch(store_firewalld), "Refused: firewalld leaves these rules alone"),
    key!("comments.disabled", "COMMENTS_DISABLED", "disable-comments", Switch(comments_disabled), "Leave comments out of the rules"),
    key!("iptablesExecutables", "IPTABLES_EXECUTABLES", "iptables-executables", Programs(executables),
        "Paths of the iptables programs, `name:path[,name:path]`; all three of a family: iptables, iptables-save, iptables-restore, or the same with ip6tables"),
    key!("backend", "BACKEND", "backend", Backend(backend),
        "`nftables`, `iptables`, or `auto`: iptables only where the kernel has no nftables or --iptables-executables is given [default: auto]"),
    key!("cniMode", "CNI_MODE", "", Switch(cni_mode), ""),
    key!("verbose", "VERBOSE", "verbose", Switch(verbose), "Say what is done"),
    key!("dryRun", "DRY_RUN", "dry-run", Switch(dry_run), "Print the rules and change nothing"),
    key!("ebpf.enabled", "EBPF_ENABLED", "ebpf-enabled", Switch(ebpf_enabled), "Refused: there is no eBPF mode"),
    Key { path: "ebpf.instanceIP", variable: "EBPF_INSTANCE_IP", flag: "", help: "", field: |_| Field::Unused },
    Key { path: "ebpf.instanceIPEnvVarName", variable: "EBPF_INSTANCE_IP_ENV_VAR_NAME", flag: "", help: "", field: |_| Field::Unused },
    Key { path: "ebpf.bpffsPath", variable: "EBPF_BPFFS_PATH", flag: "", help: "", field: |_| Field::Unused },
    Key { path: "ebpf.cgroupPath", variable: "EBPF_CGROUP_PATH", flag: "", help: "", field: |_| Field::Unused },
    Key { path: "ebpf.tcAttachIface", variable: "EBPF_TC_ATTACH_IFACE", flag: "", help: "", field: |_| Field::Unused },
    Key { path: "ebpf.programsSourcePath", variable: "EBPF_PROGRAMS_SOURCE_PATH", flag: "", help: "", field: |_| Field::Unused },
];

impl Config {
    /// Reads one configuration file, YAML or JSON, over what is set so far.
    ///
    /// # Errors
    /// Each error names the path of the key.
    pub fn merge_file(&mut self, text: &str) -> Result<(), String> {
        let value: Value = serde_yaml_ng::from_str(text).map_err(|error| format!("neither YAML nor JSON: {error}"))?;
        match value {
            Value::Null => Ok(()),
            Value::Object(_) => self.merge("", &value),
            _ => Err("not an object of settings".into()),
        }
    }

    fn merge(&mut self, path: &str, value: &Value) -> Result<(), String> {
        if let Some(key) = KEYS.iter().find(|key| key.path == path) {
            return (key.field)(self).read(value).map_err(|error| format!("{path}: {error}"));
        }
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        if !KEYS.iter().any(|key| key.path.starts_with(&prefix)) {
            return Err(format!("{path}: there is no such setting"));
        }
        match value {
            Value::Object(members) => {
                members.iter().try_for_each(|(name, value)| self.merge(&format!("{prefix}{name}"), value))
            }
            Value::Null => Ok(()),
            _ => Err(format!("{path}: not an object of settings")),
        }
    }

    /// Takes the environment over what is set so far.
    ///
    /// # Errors
    /// The variable's name and what is wrong with its value.
    pub fn merge_environment(&mut self, variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
        for key in KEYS.iter().filter(|key| !key.variable.is_empty()) {
            let name = format!("{ENVIRONMENT}{}", key.variable);
            if let Some(text) = variable(&name) {
                // As in Kuma, commas part the entries of a list here; an entry that needs its own is for a file or a flag.
                let texts = if key.is_list() { text.split(',').map(str::to_owned).collect() } else { vec![text] };
                self.set(key, &texts).map_err(|error| format!("{name}: {error}"))?;
            }
        }
        Ok(())
    }

    /// Takes one setting from text. A list takes all of its values; anything else the last.
    ///
    /// # Errors
    /// What is wrong with the value.
    pub fn set(&mut self, key: &Key, texts: &[String]) -> Result<(), String> {
        (key.field)(self).read_texts(texts)
    }
}

impl Field<'_> {
    fn read(self, value: &Value) -> Result<(), String> {
        let texts = match value {
            Value::Null => return Ok(()),
            Value::Bool(value) => vec![value.to_string()],
            Value::Number(value) => vec![value.to_string()],
            Value::String(value) => vec![value.clone()],
            Value::Array(values) => {
                if !matches!(self, Field::Ports(_) | Field::List(_) | Field::Unused) {
                    return Err("a list where one value belongs".into());
                }
                values.iter().map(scalar).collect::<Result<Vec<String>, String>>()?
            }
            Value::Object(members) => {
                let Field::Programs(_) = self else { return Err("an object where a value belongs".into()) };
                members.iter().map(|(name, path)| scalar(path).map(|path| format!("{name}:{path}"))).collect::<Result<
                    Vec<String>,
                    String,
                >>(
                )?
            }
        };
        self.read_texts(&texts)
    }

    fn read_texts(self, texts: &[String]) -> Result<(), String> {
        let last = texts.last().map_or("", |text| text.trim());
        match self {
            Field::Switch(field) => *field = switch(last)?,
            Field::Port(field) => *field = port(last)?,
            Field::Ports(field) => *field = words(texts).map(port).collect::<Result<_, _>>()?,
            Field::List(field) => *field = texts.iter().filter(|text| !text.trim().is_empty()).cloned().collect(),
            Field::Text(field) => *field = last.to_owned(),
            Field::Number(field) => *field = number(last)?,
            Field::Time(field) => *field = time(last)?,
            Field::Family(field) => {
                *field = match last.to_ascii_lowercase().as_str() {
                    "" | "dualstack" => IpFamilyMode::DualStack,
                    "ipv4" => IpFamilyMode::Ipv4,
                    _ => return Err(format!("`{last}` is not one of `dualstack`, `ipv4`")),
                }
            }
            Field::Backend(field) => {
                *field = match last.to_ascii_lowercase().as_str() {
                    "" | "auto" => Backend::Auto,
                    "nftables" | "nft" => Backend::Nftables,
                    "iptables" => Backend::Iptables,
                    _ => return Err(format!("`{last}` is not one of `auto`, `nftables`, `iptables`")),
                }
            }
            // Sources complete each other: one may name iptables, another ip6tables.
            Field::Programs(field) => {
                for word in words(texts) {
                    let (name, path) = word.split_once(':').ok_or(format!("`{word}` is not `name:path`"))?;
                    if !PROGRAMS.contains(&name) {
                        return Err(format!("`{name}` is not one of {}", PROGRAMS.join(", ")));
                    }
                    field.insert(name.to_owned(), path.to_owned());
                }
            }
            Field::Unused => {}
        }
        Ok(())
    }
}

/// What `--iptables-executables` can name.
pub const PROGRAMS: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];

fn words(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

fn scalar(value: &Value) -> Result<String, String> {
    match value {
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(value) => Ok(value.to_string()),
        Value::String(value) => Ok(value.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err("a list or an object where a value belongs".into()),
    }
}

/// As Go's `strconv.ParseBool`.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("`{text}` is neither `true` nor `false`")),
    }
}

/// A port, 1 to 65535.
pub fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("`{text}` is not a port (1 to 65535)")),
        Ok(port) => Ok(port),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{text}` is not a number (0 to {})", u32::MAX))
}

/// As Go's `time.ParseDuration`, without a sign: `300ms`, `1m30s`. Bare digits are nanoseconds, as in Go's JSON.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as `500ms` or `2s`");
    if let Ok(nanoseconds) = text.parse::<u64>() {
        return Ok(Duration::from_nanos(nanoseconds));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (count, tail) = rest.split_at(digits);
        let count: f64 = count.parse().map_err(|_| wrong())?;
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += Duration::try_from_secs_f64(count * seconds).map_err(|_| wrong())?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
