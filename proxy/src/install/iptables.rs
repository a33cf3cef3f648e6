//! The rules as iptables has them: Kuma's tables, chains and order, in the text that iptables-restore reads, and how it is applied.
//!
//! iptables-restore commits each table whole or not at all, so what an earlier installation left goes and what is new comes in one commit per table.
//! When a later table fails the earlier ones are put back as they were saved.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::{
    redirection::Transport,
    rules::{Chain, Family, Match, Rule, Ruleset, Verdict},
};

/// Start of the names of our chains, as in Kuma, so that kumactl can remove what was installed here and the other way round.
pub const CHAIN_PREFIX: &str = "KUMA_MESH";
/// Start of every comment.
const COMMENT_PREFIX: &str = "kuma/mesh/transparent/proxy";
const TABLES: [&str; 3] = ["raw", "nat", "mangle"];
/// iptables-restore can match so many ports in one rule, a range counting as two (iptables-extensions(8), multiport).
const PORTS_PER_RULE: usize = 15;
/// iptables(8): the exit code for "another app holds the lock" and other shortages.
const RESOURCE_PROBLEM: i32 = 4;

/// How iptables-restore is run.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Seconds to wait for the lock of iptables-legacy; 0 for ever.
    pub wait: u32,
    /// Microseconds between two looks at it; 0 for the program's default.
    pub wait_interval: u32,
    /// Further tries.
    pub max_retries: u32,
    /// Between two tries.
    pub sleep: Duration,
    /// Paths that were given, by name.
    pub executables: BTreeMap<String, String>,
}

/// The programs for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    save: PathBuf,
    restore: PathBuf,
}

/// Name of a chain.
fn chain_name(chain: Chain) -> &'static str {
    match chain {
        Chain::Inbound => "KUMA_MESH_INBOUND",
        Chain::Outbound => "KUMA_MESH_OUTBOUND",
        Chain::InboundRedirect => "KUMA_MESH_INBOUND_REDIRECT",
        Chain::OutboundRedirect => "KUMA_MESH_OUTBOUND_REDIRECT",
    }
}

/// The lines of one table, without its frame; chains of our own are declared apart.
struct Table {
    name: &'static str,
    chains: Vec<&'static str>,
    lines: Vec<String>,
}

fn tables(ruleset: &Ruleset, comments: bool) -> Vec<Table> {
    let append = |chain: &str, rules: &[Rule]| -> Vec<String> {
        rules.iter().flat_map(|rule| words(rule, comments)).map(|rule| format!("-A {chain} {rule}")).collect()
    };
    let insert = |chain: &str, rules: &[Rule]| -> Vec<String> {
        let rules = rules.iter().flat_map(|rule| words(rule, comments));
        rules.enumerate().map(|(index, rule)| format!("-I {chain} {} {rule}", index + 1)).collect()
    };
    // The order in which Kuma prints them.
    let own = [
        (Chain::Inbound, &ruleset.inbound),
        (Chain::Outbound, &ruleset.outbound),
        (Chain::InboundRedirect, &ruleset.inbound_redirect),
        (Chain::OutboundRedirect, &ruleset.outbound_redirect),
    ];
    let mut nat = match ruleset.prerouting_first {
        true => insert("PREROUTING", &ruleset.prerouting),
        false => append("PREROUTING", &ruleset.prerouting),
    };
    nat.extend(insert("OUTPUT", &ruleset.output_first));
    nat.extend(append("OUTPUT", &ruleset.output_last));
    nat.extend(own.iter().flat_map(|(chain, rules)| append(chain_name(*chain), rules)));
    let mut raw = append("PREROUTING", &ruleset.raw_prerouting);
    raw.extend(append("OUTPUT", &ruleset.raw_output));
    [
        Table { name: "raw", chains: Vec::new(), lines: raw },
        Table { name: "nat", chains: own.iter().map(|(chain, _)| chain_name(*chain)).collect(), lines: nat },
        Table { name: "mangle", chains: Vec::new(), lines: append("PREROUTING", &ruleset.mangle_prerouting) },
    ]
    .into_iter()
    .filter(|table| !table.lines.is_empty())
    .collect()
}

/// What iptables-restore would read on a host without earlier rules of ours, in Kuma's form.
pub fn text(rulesets: &[Ruleset], comments: bool) -> String {
    let mut out = String::new();
    for (index, ruleset) in rulesets.iter().enumerate() {
        let _ = writeln!(out, "{}### {} ###\n", if index == 0 { "" } else { "\n" }, ruleset.family.name());
        for table in tables(ruleset, comments) {
            let _ = writeln!(out, "* {}", table.name);
            table.chains.iter().for_each(|chain| {
                let _ = writeln!(out, "-N {chain}");
            });
            table.lines.iter().for_each(|line| {
                let _ = writeln!(out, "{line}");
            });
            out.push_str("COMMIT\n");
        }
    }
    out
}

/// A rule in the words of iptables; more than one where it has more ports than one can match.
fn words(rule: &Rule, comments: bool) -> Vec<String> {
    let comment = if comments && !rule.comment.is_empty() {
        format!("-m comment --comment \"{COMMENT_PREFIX}/{}\" ", rule.comment)
    } else {
        String::new()
    };
    let target = match &rule.verdict {
        Verdict::Return => "-j RETURN".into(),
        Verdict::Jump(chain) => format!("-j {}", chain_name(*chain)),
        Verdict::JumpTo(chain) => format!("-j {chain}"),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::Zone(zone) => format!("-j CT --zone {zone}"),
        Verdict::Drop => "-j DROP".into(),
        Verdict::Log { prefix, level } => format!("-j LOG --log-prefix {prefix} --log-level {level}"),
    };
    port_lists(rule)
        .into_iter()
        .map(|ports| {
            let multiport = if ports.is_empty() { "" } else { "-m multiport " };
            let matches: String = rule.matches.iter().map(|part| match_words(part, &ports) + " ").collect();
            format!("{comment}{multiport}{matches}{target}")
        })
        .collect()
}

/// The rule's port lists, cut to what one rule holds; one empty list where it has none.
fn port_lists(rule: &Rule) -> Vec<String> {
    let ranges = rule.matches.iter().find_map(|part| match part {
        Match::DestinationPorts(ranges) => Some(ranges),
        _ => None,
    });
    let Some(ranges) = ranges else { return vec![String::new()] };
    let mut lists: Vec<String> = Vec::new();
    let mut room = 0;
    for range in ranges {
        let (text, size) = if range.first == range.last {
            (range.first.to_string(), 1)
        } else {
            (format!("{}:{}", range.first, range.last), 2)
        };
        match lists.last_mut() {
            Some(list) if room >= size => {
                list.push(',');
                list.push_str(&text);
                room -= size;
            }
            _ => {
                lists.push(text);
                room = PORTS_PER_RULE - size;
            }
        }
    }
    lists
}

fn match_words(part: &Match, ports: &str) -> String {
    match part {
        Match::Transport(Transport::Tcp) => "-p tcp".into(),
        Match::Transport(Transport::Udp) => "-p udp".into(),
        Match::DestinationPort(port) => format!("--dport {port}"),
        Match::DestinationPorts(_) => format!("--dport {ports}"),
        Match::SourcePort(port) => format!("--sport {port}"),
        // With its prefix length, as iptables-save prints it.
        Match::Source(network) => format!("-s {}/{}", network.addr(), network.prefix_len()),
        Match::Destination(network) => format!("-d {}/{}", network.addr(), network.prefix_len()),
        Match::NotDestination(network) => format!("! -d {}/{}", network.addr(), network.prefix_len()),
        Match::InInterface(name) => format!("-i {name}"),
        Match::OutInterface(name) => format!("-o {name}"),
        Match::Owner(uids) if uids.first == uids.last => format!("-m owner --uid-owner {}", uids.first),
        Match::Owner(uids) => format!("-m owner --uid-owner {}:{}", uids.first, uids.last),
        Match::NotOwner(uid) => format!("-m owner ! --uid-owner {uid}"),
        Match::Mark(mark) => format!("-m mark --mark {mark:#x}"),
        Match::NotMark(mark) => format!("-m mark ! --mark {mark:#x}"),
        Match::Invalid => "-m conntrack --ctstate INVALID".into(),
    }
}

/// What an earlier installation left in a table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    /// Lines that take our rules out of the chains of others.
    removals: Vec<String>,
    /// Our chains.
    chains: Vec<String>,
}

/// Our rules in the output of iptables-save, by table.
///
/// # Errors
/// Our chains are there but the rules carry no comments: nothing tells ours from others'.
fn ours(saved: &str) -> Result<BTreeMap<String, Left>, String> {
    let mut found: BTreeMap<String, Left> = BTreeMap::new();
    let mut table = String::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            name.trim().clone_into(&mut table);
        } else if let Some(rest) = line.strip_prefix(':') {
            let chain = rest.split(' ').next().unwrap_or_default();
            if chain.starts_with(CHAIN_PREFIX) {
                found.entry(table.clone()).or_default().chains.push(chain.to_owned());
            }
        } else if let Some(rest) = line.strip_prefix("-A ")
            && !rest.starts_with(CHAIN_PREFIX)
            && rest.contains(COMMENT_PREFIX)
        {
            found.entry(table.clone()).or_default().removals.push(format!("-D {rest}"));
        }
    }
    if found.values().any(|left| !left.chains.is_empty()) && !saved.contains(COMMENT_PREFIX) {
        return Err(format!(
            "there are {CHAIN_PREFIX} chains whose rules carry no comments (--disable-comments), so that they cannot be told from the rules of \
             others: remove them by hand"
        ));
    }
    Ok(found)
}

/// The programs that exist for a family, those for nf_tables first.
fn variants(family: Family, settings: &Settings) -> Result<Vec<Programs>, String> {
    let name = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let given = |part: &str| settings.executables.get(&format!("{name}{part}"));
    match (given("-save"), given("-restore"), given("")) {
        (Some(save), Some(restore), Some(_)) => {
            for path in [save, restore] {
                if !Path::new(path).is_file() {
                    return Err(format!("iptablesExecutables: {path}: there is no such file"));
                }
            }
            return Ok(vec![Programs { save: save.into(), restore: restore.into() }]);
        }
        (None, None, None) => {}
        _ => {
            return Err(format!(
                "iptablesExecutables: {name}, {name}-save and {name}-restore belong together: give all three or none"
            ));
        }
    }
    let programs = ["-nft", "-legacy", ""].into_iter().filter_map(|variant| {
        let save = find(&format!("{name}{variant}-save"))?;
        let restore = find(&format!("{name}{variant}-restore"))?;
        Some(Programs { save, restore })
    });
    Ok(programs.collect())
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let known = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(known).map(|directory| directory.join(name)).find(|path| path.is_file())
}

impl Programs {
    fn is_legacy(&self) -> bool {
        self.save.to_string_lossy().contains("-legacy")
    }

    /// All tables of ours as they are. iptables-legacy makes a table by looking at it, so it is asked only for those it has.
    fn save(&self, family: Family) -> Result<String, String> {
        let mut saved = String::new();
        for table in TABLES {
            if self.is_legacy() && !legacy_tables(family).iter().any(|name| name == table) {
                continue;
            }
            saved.push_str(&run(Command::new(&self.save).args(["-t", table]), None)?);
        }
        Ok(saved)
    }

    fn restore(&self, text: &str, settings: &Settings, keep: bool) -> Result<(), String> {
        let mut tries = 0;
        loop {
            let mut command = Command::new(&self.restore);
            if keep {
                command.arg("--noflush");
            }
            if self.is_legacy() {
                command.arg(if settings.wait == 0 { "--wait".into() } else { format!("--wait={}", settings.wait) });
                if settings.wait_interval > 0 {
                    command.arg(format!("--wait-interval={}", settings.wait_interval));
                }
            }
            match run(&mut command, Some(text)) {
                Ok(_) => return Ok(()),
                Err(error) if tries < settings.max_retries && error.contains(&exit_text(RESOURCE_PROBLEM)) => {
                    tries += 1;
                    thread::sleep(settings.sleep);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether iptables-legacy has this chain in its nat table.
pub fn legacy_has_chain(chain: &str) -> bool {
    let settings = Settings::default();
    let programs = variants(Family::V4, &settings).unwrap_or_default();
    let legacy = programs.iter().find(|programs| programs.is_legacy());
    let saved = legacy.and_then(|programs| programs.save(Family::V4).ok()).unwrap_or_default();
    saved.lines().any(|line| line.strip_prefix(':').is_some_and(|rest| rest.split(' ').next() == Some(chain)))
}

fn legacy_tables(family: Family) -> Vec<String> {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn exit_text(code: i32) -> String {
    format!("exit code {code}:")
}

fn run(command: &mut Command, input: Option<&str>) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{name}: {error}"))?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that ends early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let code = output.status.code().map_or("killed:".into(), exit_text);
    Err(format!("{name}: {code} {said}"))
}

/// The programs to use for both families: iptables-nft, unless only iptables-legacy is there or has rules already, as Kuma chooses.
fn choose(settings: &Settings) -> Result<Programs, String> {
    let variants = variants(Family::V4, settings)?;
    let has_rules = |programs: &Programs| {
        programs.save(Family::V4).is_ok_and(|saved| saved.lines().any(|line| line.starts_with("-A ")))
    };
    let legacy = variants.iter().find(|programs| programs.is_legacy());
    let other = variants.iter().find(|programs| !programs.is_legacy());
    match (other, legacy) {
        (Some(other), Some(legacy)) => {
            let usable = other.save(Family::V4).is_ok();
            Ok(if !usable || (has_rules(legacy) && !has_rules(other)) { legacy } else { other }.clone())
        }
        (Some(one), None) | (None, Some(one)) => Ok(one.clone()),
        (None, None) => {
            Err("there is no iptables-save and iptables-restore in PATH, /usr/sbin, /sbin, /usr/bin or /bin".into())
        }
    }
}

fn counterpart(v4: &Programs, settings: &Settings) -> Result<Programs, String> {
    let variants = variants(Family::V6, settings)?;
    let same = variants.iter().find(|programs| programs.is_legacy() == v4.is_legacy());
    same.or(variants.first()).cloned().ok_or("there is no ip6tables-save and ip6tables-restore".into())
}

/// Puts the rules in place of those that an earlier installation left; says which program did so.
///
/// # Errors
/// What failed; what was there before is there again.
pub fn install(rulesets: &[Ruleset], comments: bool, settings: &Settings) -> Result<String, String> {
    let v4 = choose(settings)?;
    let mut touched: Vec<(Family, Programs, String)> = Vec::new();
    for ruleset in rulesets {
        let family = ruleset.family;
        let named = |error: String| format!("{}: {error}", family.name());
        let programs = match family {
            Family::V4 => Ok(v4.clone()),
            Family::V6 => counterpart(&v4, settings),
        };
        let applied = programs.and_then(|programs| {
            let saved = programs.save(family)?;
            let text = replacement(ruleset, comments, &ours(&saved)?);
            touched.push((family, programs.clone(), saved));
            programs.restore(&text, settings, true)
        });
        if let Err(error) = applied.map_err(named) {
            return Err(undo(&touched, settings, error));
        }
    }
    Ok(v4.name())
}

/// What is ours, removed and made anew in one commit for each table.
fn replacement(ruleset: &Ruleset, comments: bool, found: &BTreeMap<String, Left>) -> String {
    let mut out = String::new();
    let new = tables(ruleset, comments);
    for name in TABLES {
        let table = new.iter().find(|table| table.name == name);
        let old = found.get(name);
        if table.is_none() && old.is_none() {
            continue;
        }
        let _ = writeln!(out, "*{name}");
        // Declaring a chain empties it where it exists.
        let declared: Vec<&str> = table.iter().flat_map(|table| table.chains.iter().copied()).collect();
        declared.iter().for_each(|chain| {
            let _ = writeln!(out, ":{chain} - [0:0]");
        });
        if let Some(Left { removals, chains }) = old {
            let stale: Vec<_> = chains.iter().filter(|chain| !declared.contains(&chain.as_str())).collect();
            out.extend(removals.iter().map(|line| format!("{line}\n")));
            out.extend(stale.iter().map(|chain| format!("-F {chain}\n")));
            out.extend(stale.iter().map(|chain| format!("-X {chain}\n")));
        }
        out.extend(table.iter().flat_map(|table| &table.lines).map(|line| format!("{line}\n")));
        out.push_str("COMMIT\n");
    }
    out
}

/// Families that were touched are put back whole, table by table, as they were saved. Returns the error, with what this could not do.
fn undo(touched: &[(Family, Programs, String)], settings: &Settings, mut error: String) -> String {
    for (family, programs, saved) in touched {
        let undone = programs.save(*family).and_then(|now| {
            // What sits in tables that were not there before.
            programs.restore(&removal(&ours(&now)?), settings, true)?;
            programs.restore(saved, settings, false)
        });
        if let Err(problem) = undone {
            let _ = write!(error, "; and what was there before could not be put back: {problem}");
        }
    }
    error
}

fn removal(found: &BTreeMap<String, Left>) -> String {
    let mut out = String::new();
    for (table, Left { removals, chains }) in found {
        let _ = writeln!(out, "*{table}");
        out.extend(removals.iter().map(|line| format!("{line}\n")));
        out.extend(chains.iter().map(|chain| format!("-F {chain}\n")));
        out.extend(chains.iter().map(|chain| format!("-X {chain}\n")));
        out.push_str("COMMIT\n");
    }
    out
}

/// What [`uninstall`] would feed to iptables-restore, for each family and kind of iptables that has rules of ours.
///
/// # Errors
/// A given program is not there.
pub fn removals(settings: &Settings) -> Result<Vec<(Programs, String)>, String> {
    let mut all: Vec<(Programs, String)> = Vec::new();
    for family in [Family::V4, Family::V6] {
        for programs in variants(family, settings)? {
            // A program of a kind that this kernel does not have cannot have left anything.
            let Ok(saved) = programs.save(family) else { continue };
            let text = removal(&ours(&saved)?);
            // Plain `iptables` is one of the other two.
            if !text.is_empty()
                && !all.iter().any(|(other, known)| other.is_legacy() == programs.is_legacy() && *known == text)
            {
                all.push((programs, text));
            }
        }
    }
    Ok(all)
}

impl Programs {
    /// The program that would be run.
    pub fn name(&self) -> String {
        self.restore.display().to_string()
    }
}

/// Removes our rules and chains from both families and both kinds of iptables; says which programs did so.
///
/// # Errors
/// What could not be removed.
pub fn uninstall(settings: &Settings) -> Result<Vec<String>, String> {
    let removals = removals(settings)?;
    removals.iter().map(|(programs, text)| programs.restore(text, settings, true).map(|()| programs.name())).collect()
}

#[cfg(test)]
#[path = "iptables_tests.rs"]
mod tests;
