//! The command line of `install` and `uninstall`, made from the table of settings.

use std::{ffi::OsString, fs, io::Read};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{
    Action,
    config::{Config, ENVIRONMENT, IpFamilyMode, KEYS, Key},
};

/// Names that this command had before, and the settings that they have become.
const FORMER: [(&str, &str); 3] = [
    ("ipv6-disabled", ""),
    ("exclude-outbound-tcp-ports-for-uids", "tcp:"),
    ("exclude-outbound-udp-ports-for-uids", "udp:"),
];

/// Flags that `uninstall` has too.
const OF_UNINSTALL: [&str; 3] = ["dry-run", "verbose", "iptables-executables"];

/// Reads the arguments, the program's name first.
///
/// # Errors
/// Help was asked for, or an argument is wrong.
pub fn parse(arguments: &[OsString], action: Action) -> Result<ArgMatches, clap::Error> {
    let (name, about) = match action {
        Action::Install => ("install", "Redirect this host's traffic to the proxy"),
        Action::Uninstall => ("uninstall", "Remove the redirection"),
    };
    let transparent_proxy = KEYS
        .iter()
        .filter(|key| !key.flag.is_empty())
        .filter(|key| action == Action::Install || OF_UNINSTALL.contains(&key.flag))
        .map(argument)
        .chain((action == Action::Install).then(former_and_files).into_iter().flatten())
        .fold(Command::new("transparent-proxy"), Command::arg)
        .about(about)
        .after_help(
            "Settings come from --config files, then from the environment (KUMA_TRANSPARENT_PROXY_…, named after the keys of the file), then from flags; \
             the later is the stronger.",
        );
    Command::new("shika-proxy")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new(name)
                .about(about)
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(transparent_proxy),
        )
        .try_get_matches_from(arguments)
        .map(|matches| {
            let inner = |matches: &ArgMatches| matches.subcommand().map(|(_, inner)| inner.clone()).unwrap_or_default();
            inner(&inner(&matches))
        })
}

fn argument(key: &Key) -> Arg {
    let argument = Arg::new(key.flag).long(key.flag).help(key.help);
    let argument = if key.flag == "kuma-dp-user" { argument.alias("kuma-dp-uid") } else { argument };
    if key.is_switch() { switch(argument) } else { argument.action(ArgAction::Append).value_name("VALUE") }
}

/// As in Go: `--flag` and `--flag=false`, never `--flag false`.
fn switch(argument: Arg) -> Arg {
    argument
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .action(ArgAction::Append)
        .value_name("true|false")
        .hide_possible_values(true)
}

fn former_and_files() -> Vec<Arg> {
    let former = FORMER.iter().map(|(name, prefix)| {
        let argument = Arg::new(*name).long(*name).hide(true).action(ArgAction::Append);
        if prefix.is_empty() { switch(argument) } else { argument }
    });
    let files = Arg::new("config")
        .long("config")
        .alias("config-file")
        .action(ArgAction::Append)
        .value_name("FILE")
        .help("Settings in YAML or JSON, or `-` for standard input; may be repeated or separated by commas, the later is the stronger");
    former.chain([files]).collect()
}

/// The settings from files, environment and flags.
///
/// # Errors
/// Where the setting came from, its name, and what is wrong with it.
pub fn config(matches: &ArgMatches, variable: impl Fn(&str) -> Option<String>) -> Result<Config, String> {
    let mut config = Config::default();
    let given = |name: &str| -> Vec<String> {
        let values = matches.try_get_many::<String>(name).ok().flatten();
        values.map(|values| values.cloned().collect()).unwrap_or_default()
    };
    for path in given("config").iter().flat_map(|paths| paths.split(',')).map(str::trim).filter(|path| !path.is_empty())
    {
        let text = if path == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        } else {
            fs::read_to_string(path)
        };
        let text = text.map_err(|error| format!("--config {path}: {error}"))?;
        config.merge_file(&text).map_err(|error| format!("--config {path}: {error}"))?;
    }
    config.merge_environment(variable)?;
    for key in KEYS.iter().filter(|key| !key.flag.is_empty()) {
        let values = given(key.flag);
        if !values.is_empty() {
            config.set(key, &values).map_err(|error| format!("--{}: {error}", key.flag))?;
        }
    }
    let on = |name: &str| given(name).last().is_some_and(|value| value == "true");
    if on("redirect-dns") && on("redirect-all-dns-traffic") {
        return Err("only one of --redirect-dns and --redirect-all-dns-traffic can be given".into());
    }
    for (name, prefix) in FORMER {
        if prefix.is_empty() {
            if on(name) {
                config.ip_family_mode = IpFamilyMode::Ipv4;
            }
        } else {
            let values = given(name).into_iter().map(|value| format!("{prefix}{value}"));
            config.outbound.exclude_ports_for_uids.extend(values);
        }
    }
    Ok(config)
}

/// Variables that look like settings but are none.
pub fn unknown_variables(variables: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    variables
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.strip_prefix(ENVIRONMENT).is_some_and(|rest| KEYS.iter().all(|key| key.variable != rest)))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parsed(flags: &[&str]) -> Result<Config, String> {
        let words = ["shika-proxy", "install", "transparent-proxy"].iter().chain(flags);
        let arguments: Vec<OsString> = words.map(OsString::from).collect();
        let matches = parse(&arguments, Action::Install).map_err(|error| error.to_string())?;
        config(&matches, |name| (name == "KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_PORT").then(|| "3333".to_owned()))
    }

    #[test]
    fn flags_are_stronger_than_environment_and_files() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("1.yaml"), directory.path().join("2.json"));
        fs::write(
            &first,
            "{wait: 1, waitInterval: 1, redirect: {inbound: {port: 1111}, vnet: {networks: ['a:10.0.0.0/8']}}}",
        )
        .unwrap();
        fs::write(&second, "{\"wait\": 2, \"redirect\": {\"outbound\": {\"port\": 2222}}}").unwrap();
        let files = format!("{},{}", first.display(), second.display());
        let config = parsed(&["--config", &files]).unwrap();
        assert_eq!((config.wait, config.wait_interval, config.inbound.port, config.outbound.port), (2, 1, 3333, 2222));
        let config = parsed(&[
            "--config",
            &files,
            "--redirect-inbound-port=4444",
            "--vnet",
            "b:10.0.0.0/8",
            "--vnet",
            "c:10.0.0.0/8",
        ])
        .unwrap();
        assert_eq!(config.inbound.port, 4444);
        assert_eq!(config.networks, ["b:10.0.0.0/8", "c:10.0.0.0/8"], "a flag replaces the file's list");
    }

    #[test]
    fn forms_of_flags() {
        let config = parsed(&[
            "--redirect-inbound=false",
            "--redirect-all-dns-traffic",
            "--exclude-inbound-ports",
            "22,80",
            "--kuma-dp-uid",
            "77",
            "--ipv6-disabled",
            "--exclude-outbound-tcp-ports-for-uids",
            "80:1",
            "--exclude-outbound-ports-for-uids",
            "udp:53:2",
            "--sleep-between-retries",
            "250ms",
            "--proxy-mark",
            "0x10",
        ])
        .unwrap();
        assert!(!config.inbound.enabled && config.dns.capture_all);
        assert_eq!(config.inbound.exclude_ports, [22, 80]);
        assert_eq!((config.kuma_dp_user.as_str(), config.ip_family_mode), ("77", IpFamilyMode::Ipv4));
        assert_eq!(config.outbound.exclude_ports_for_uids, ["udp:53:2", "tcp:80:1"]);
        assert_eq!((config.sleep_between_retries.as_millis(), config.proxy_mark), (250, 16));
    }

    #[test]
    fn refusals_name_the_flag() {
        for (flags, needle) in [
            (&["--redirect-dns", "--redirect-all-dns-traffic"][..], "only one of --redirect-dns"),
            (&["--redirect-inbound-port", "0"], "--redirect-inbound-port: `0`"),
            (&["--redirect-inbound", "false"], "false"),
            (&["--nonsense"], "--nonsense"),
            (&["--config", "/does/not/exist"], "--config /does/not/exist: "),
            (&["--wait", "-1"], "-1"),
        ] {
            let error = parsed(flags).unwrap_err();
            assert!(error.contains(needle), "{flags:?}: {error}");
        }
    }

    #[test]
    fn variables_without_effect() {
        let names = ["KUMA_TRANSPARENT_PROXY_WAIT", "KUMA_TRANSPARENT_PROXY_WEIGHT", "KUMA_X", "PATH"];
        let unknown = unknown_variables(names.iter().map(|name| (OsString::from(name), OsString::new())));
        assert_eq!(unknown, ["KUMA_TRANSPARENT_PROXY_WEIGHT"]);
    }
}
