//! `shika-proxy install transparent-proxy` and `uninstall transparent-proxy`: the kernel is told to hand this host's traffic to the proxy.
//!
//! Settings ([`config`]) and the host ([`host`]) give one plain [`Redirection`]; [`rules`] makes the rules of it, and they go to the kernel as one
//! nftables transaction ([`nft_kernel`]), or as text to iptables-restore ([`iptables`]). Flags, keys, variables and effect are Kuma's (kumactl
//! `install transparent-proxy`).

mod config;
mod flags;
mod host;
mod iptables;
mod iptables_text;
mod netlink;
mod nft;
mod nft_expression;
mod nft_kernel;
mod redirection;
mod rules;

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
    thread,
};

use config::{Backend, Config};
use host::Host;
use iptables::Settings;
use nft_kernel::Refusal;
use redirection::Redirection;
use rules::{Family, Ruleset};

use crate::{fail, print, usage};

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Set the rules.
    Install,
    /// Remove them.
    Uninstall,
}

/// Runs `install` or `uninstall`. `arguments` are the program's, both words included.
pub fn main(arguments: &[OsString], action: Action) -> ExitCode {
    let parsed = match flags::parse(arguments, action) {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    let result =
        flags::config(&parsed, |name| std::env::var(name).ok()).map_err(|error| vec![error]).and_then(|config| {
            flags::unknown_variables(std::env::vars_os()).iter().for_each(|name| say(&format!("{name} has no effect")));
            match action {
                Action::Install => install(&config),
                Action::Uninstall => uninstall(&config).map_err(|error| vec![error]),
            }
        });
    match result {
        Ok(text) => print(&text),
        Err(errors) => fail(&errors.join("\n")),
    }
}

/// A line for whoever runs the command.
fn say(text: &str) {
    // Nothing can be done about a closed terminal.
    let _ = writeln!(io::stderr(), "# {text}");
}

fn settings(config: &Config) -> Settings {
    Settings {
        wait: config.wait,
        wait_interval: config.wait_interval,
        max_retries: config.max_retries,
        sleep: config.sleep_between_retries,
        executables: config.executables.clone(),
    }
}

/// Returns what goes to standard output: the rules of a dry run.
fn install(config: &Config) -> Result<String, Vec<String>> {
    let mut host = Host::read();
    host.docker_dns = (config.dns.enabled || config.dns.capture_all) && has_chain("DOCKER_OUTPUT");
    let (redirection, notes) = Redirection::new(config, &host)?;
    notes.iter().for_each(|note| say(note));
    let families = rules::families(&redirection);
    let rulesets: Vec<Ruleset> = families.iter().map(|family| rules::compile(&redirection, *family)).collect();
    let backend = match config.backend {
        Backend::Auto if !config.executables.is_empty() => Backend::Iptables,
        backend => backend,
    };
    let text = match backend {
        Backend::Auto | Backend::Nftables => nft::text(&rulesets, redirection.comments),
        Backend::Iptables => iptables_text::text(&rulesets, redirection.comments),
    };
    if config.dry_run {
        return Ok(text);
    }
    if config.verbose {
        say("the rules:");
        text.lines().for_each(say);
    }
    let added = add_inbound_source(&redirection).map_err(|error| vec![error])?;
    match apply(config, &redirection, backend, &rulesets) {
        Ok(with) => {
            say(&format!("traffic of this host is redirected to the proxy of UID {} ({with})", redirection.uid));
            Ok(String::new())
        }
        Err(error) => {
            if added {
                remove_inbound_source();
            }
            Err(vec![error])
        }
    }
}

/// Sets the rules with one of the two firewalls, then removes what an earlier installation left in the other.
fn apply(config: &Config, redirection: &Redirection, backend: Backend, rulesets: &[Ruleset]) -> Result<String, String> {
    let settings = settings(config);
    let with_iptables = || {
        let program = iptables::install(rulesets, redirection.comments, &settings)?;
        // Where nf_tables cannot be asked there is no table of ours in it.
        if nft_kernel::is_installed().unwrap_or(false) {
            nft_kernel::uninstall().map_err(|refusal| refusal.text())?;
        }
        Ok(program)
    };
    if backend == Backend::Iptables {
        return with_iptables();
    }
    match with_retries(config, || nft_kernel::install(rulesets, redirection.comments)) {
        Ok(()) => {
            if has_chain("KUMA_MESH_OUTBOUND") {
                let removed = iptables::uninstall(&settings)?;
                if removed.is_empty() {
                    say(
                        "iptables has chains KUMA_MESH_… of an earlier installation, and there is no iptables program to remove them",
                    );
                }
            }
            Ok("nftables".into())
        }
        Err(Refusal::Unsupported(error)) if backend == Backend::Auto => {
            say(&format!("nftables cannot be used: {error}; trying iptables"));
            with_iptables().map_err(|second| format!("nftables: {error}\niptables: {second}"))
        }
        Err(refusal) => Err(format!("nothing was changed: {}", refusal.text())),
    }
}

fn with_retries(config: &Config, mut install: impl FnMut() -> Result<(), Refusal>) -> Result<(), Refusal> {
    let mut left = config.max_retries;
    loop {
        match install() {
            Err(Refusal::Transient(error)) if left > 0 => {
                say(&format!("{error}; trying again"));
                left -= 1;
                thread::sleep(config.sleep_between_retries);
            }
            result => return result,
        }
    }
}

impl Refusal {
    fn text(self) -> String {
        match self {
            Refusal::Unsupported(text) | Refusal::Transient(text) | Refusal::Failed(text) => text,
        }
    }
}

/// Whether iptables, of either kind, has a chain in its nat table.
fn has_chain(chain: &str) -> bool {
    nft_kernel::has_chain(Family::V4, "nat", chain).unwrap_or(false) || iptables::legacy_has_chain(chain)
}

fn inbound_source() -> Option<std::net::Ipv6Addr> {
    redirection::INBOUND_SOURCE_V6.split('/').next()?.parse().ok()
}

/// Linux answers for all of 127.0.0.0/8 but, in IPv6, for ::1 alone: the proxy's own source has to be given to the loopback. True where it was
/// not there before.
fn add_inbound_source(redirection: &Redirection) -> Result<bool, String> {
    let Some(address) = inbound_source().filter(|_| redirection.ipv6) else { return Ok(false) };
    match netlink::change_address(true, host::LOOPBACK_INDEX, address) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(format!(
            "{address} cannot be given to the interface {}: {error}: run this as root (capability NET_ADMIN) with IPv6 enabled on it (sysctl \
             net.ipv6.conf.{}.disable_ipv6=0), or redirect IPv4 alone with --ip-family-mode=ipv4",
            redirection.loopback, redirection.loopback
        )),
    }
}

fn remove_inbound_source() {
    if let Some(address) = inbound_source() {
        match netlink::change_address(false, host::LOOPBACK_INDEX, address) {
            Ok(()) => {}
            // It was not there, or there is no IPv6.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) => say(&format!("{address} cannot be taken from the loopback interface: {error}")),
        }
    }
}

/// Returns what goes to standard output: what a dry run would remove.
///
/// Connections that were redirected end with the rules where nothing else on the host uses NAT: the kernel translates no more. A new installation over an
/// old one spares them.
fn uninstall(config: &Config) -> Result<String, String> {
    let settings = settings(config);
    let installed = match nft_kernel::is_installed() {
        Ok(installed) => installed,
        Err(Refusal::Unsupported(_)) => false,
        Err(refusal) => return Err(refusal.text()),
    };
    if config.dry_run {
        let mut out = String::new();
        if installed {
            for family in [Family::V4, Family::V6] {
                out.push_str(&format!("delete table {} {}\n", nft::keyword(family), nft::TABLE));
            }
        }
        for (programs, text) in iptables::removals(&settings)? {
            out.push_str(&format!("### {} ###\n{text}", programs.name()));
        }
        return Ok(out);
    }
    let mut removed = iptables::uninstall(&settings)?;
    if installed && nft_kernel::uninstall().map_err(|refusal| refusal.text())? {
        removed.push("nftables".into());
    }
    if removed.is_empty() {
        say("there are no rules to remove");
    } else {
        remove_inbound_source();
        say(&format!("the redirection is removed ({})", removed.join(", ")));
    }
    Ok(String::new())
}
