//! Instructions that an operation takes, counted by callgrind, and held against `benches/instructions.tsv`.
//!
//! Each scenario runs twice, the second time with twice as many turns: what the difference divided by the turns gives is one turn, without start, set-up
//! and end; there are so many turns that what differs between two starts, such as how long keys take, does not count. Scenarios
//! of [`shika_benches::inner`] run in this program, all others are connections and requests through the real proxy. System calls are not counted, only
//! the instructions around them.

mod baseline;
mod callgrind;
mod check;
mod http2;
mod load;
mod proxy;
mod upstream;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};

/// Counts instructions and compares them with the baseline.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Counts, and fails when a scenario takes over 3 % more than in the baseline (15 % where that depends on the machine).
    Check(Check),
    /// Names all scenarios.
    List,
    /// What `check` runs under valgrind.
    #[command(hide = true)]
    Turns {
        /// A scenario of `inner`.
        scenario: String,
        /// How often.
        turns: u64,
        /// Directory with certificates.
        certificates: PathBuf,
    },
    /// The CPU's features as this process sees them.
    #[command(hide = true)]
    Features,
}

#[derive(Args)]
struct Check {
    /// Write what was counted as the new baseline.
    #[arg(long)]
    bless: bool,
    /// Only scenarios whose name contains this; may be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// The proxy; without it the one beside this program.
    #[arg(long)]
    proxy: Option<PathBuf>,
    /// The baseline.
    #[arg(long, default_value = "benches/instructions.tsv")]
    baseline: PathBuf,
    /// Where callgrind's files are kept, for callgrind_annotate; without it they are thrown away.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Measurements at a time; they do not disturb each other.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

/// The baseline was made where instructions cannot be compared with ours.
const NOT_CHECKED: u8 = 75;

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Check(check) => check::run(&check),
        Command::List => list(),
        Command::Turns { scenario, turns, certificates } => take_turns(&scenario, turns, &certificates),
        Command::Features => say(&callgrind::features()).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        note(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

fn list() -> anyhow::Result<ExitCode> {
    for name in check::names() {
        say(name)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn take_turns(scenario: &str, turns: u64, certificates: &Path) -> anyhow::Result<ExitCode> {
    let mut operation = (shika_benches::inner::scenario(scenario)?.prepare)(certificates)?;
    turns_that_count(&mut operation, turns);
    Ok(ExitCode::SUCCESS)
}

/// Callgrind counts in here alone, by the name of the function: the keys that some scenarios prepare take millions of instructions more or less.
#[inline(never)]
fn turns_that_count(operation: &mut dyn FnMut(), turns: u64) {
    for _ in 0..turns {
        operation();
    }
}

/// [`turns_that_count`] as callgrind finds it.
const COUNTED: &str = "*turns_that_count*";

/// Writes one line to standard output.
fn say(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

/// Writes one line to standard error; a closed one is no reason to stop.
fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
