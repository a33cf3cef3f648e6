//! How the rules get into iptables and out again, where the kernel has no nftables.
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
    iptables_text::{COMMENT_PREFIX, tables},
    rules::{Family, Ruleset},
};

/// Start of the names of our chains, as in Kuma, so that kumactl can remove what was installed here and the other way round.
pub const CHAIN_PREFIX: &str = "KUMA_MESH";
const TABLES: [&str; 3] = ["raw", "nat", "mangle"];
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
    // IPv6 may not be redirected any more, and the other kind of iptables may have been used before.
    let kept: Vec<_> = touched.iter().map(|(family, programs, _)| (*family, programs.is_legacy())).collect();
    remove(&removals_but(settings, &kept)?, settings)?;
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

/// Text that removes our rules, for each family and kind of iptables that has some.
///
/// # Errors
/// A given program is not there, or our rules cannot be told from others'.
pub fn removals(settings: &Settings) -> Result<Vec<(Programs, String)>, String> {
    removals_but(settings, &[])
}

/// The same without those of some families in some kinds of iptables.
fn removals_but(settings: &Settings, kept: &[(Family, bool)]) -> Result<Vec<(Programs, String)>, String> {
    let mut all: Vec<(Programs, String)> = Vec::new();
    for family in [Family::V4, Family::V6] {
        // Where programs were given, those that are installed may have been used before.
        let given = variants(family, settings)?.into_iter().chain(variants(family, &Settings::default())?);
        let mut seen: Vec<(bool, String)> = Vec::new();
        for programs in given.filter(|programs| !kept.contains(&(family, programs.is_legacy()))) {
            // A program of a kind that this kernel does not have cannot have left anything.
            let Ok(saved) = programs.save(family) else { continue };
            // Plain `iptables` is one of the other two.
            let found = (programs.is_legacy(), removal(&ours(&saved)?));
            if !found.1.is_empty() && !seen.contains(&found) {
                all.push((programs, found.1.clone()));
                seen.push(found);
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
    remove(&removals(settings)?, settings)
}

fn remove(removals: &[(Programs, String)], settings: &Settings) -> Result<Vec<String>, String> {
    removals.iter().map(|(programs, text)| programs.restore(text, settings, true).map(|()| programs.name())).collect()
}

#[cfg(test)]
#[path = "iptables_tests.rs"]
mod tests;
