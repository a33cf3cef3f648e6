//! Callgrind: how a program is started under it, and what it counted.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

/// Where the counts of one run go.
pub struct Output {
    file: PathBuf,
}

impl Output {
    /// In `directory`, under a name of its own.
    pub fn new(directory: &Path, name: &str) -> Self {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        Output { file: directory.join(format!("{name}.callgrind")) }
    }

    /// `program` under callgrind, without standard input and output. With the pattern of a function's name only what happens in it is counted.
    pub fn command(&self, program: &Path, only: Option<&str>) -> Command {
        let mut out = OsString::from("--callgrind-out-file=");
        out.push(&self.file);
        let mut command = Command::new("valgrind");
        command
            .args(["--tool=callgrind", "--quiet", "--separate-threads=yes"])
            .arg(out)
            .args(only.map(|only| format!("--toggle-collect={only}")))
            .arg("--")
            .arg(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Instructions of all threads.
    ///
    /// # Errors
    /// There are no counts: the program did not come to its end.
    pub fn total(&self) -> anyhow::Result<u64> {
        let directory = self.file.parent().unwrap_or(Path::new("."));
        let own = self.file.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned();
        let (mut sum, mut threads) = (0, 0);
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            // One file for each thread: `<name>-01` and so on.
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.strip_prefix(&own).is_some_and(|rest| rest.starts_with('-')) {
                continue;
            }
            sum += totals(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
            threads += 1;
        }
        if threads == 0 {
            bail!("callgrind wrote nothing to {}", self.file.display());
        }
        Ok(sum)
    }
}

/// The number in a file's `totals:` line.
fn totals(text: &str) -> anyhow::Result<u64> {
    let line = text.lines().rev().find_map(|line| line.strip_prefix("totals:")).context("no `totals:` line")?;
    line.trim().parse().with_context(|| format!("`totals:{line}`"))
}

/// What makes counts of two machines comparable: the compiler, the C library and compiler whose code is in the program, valgrind, and those features of
/// the CPU that it shows and that choose between implementations of copying and cryptography.
///
/// # Errors
/// One of the programs cannot be asked.
pub fn conditions() -> anyhow::Result<String> {
    let own = std::env::current_exe()?;
    let own = own.to_string_lossy();
    let features = first_line("valgrind", &["--tool=none", "--quiet", &own, "features"])?;
    Ok([
        first_line("rustc", &["--version"])?,
        format!("cc {}", first_line("cc", &["-dumpfullversion"])?),
        first_line("getconf", &["GNU_LIBC_VERSION"])?,
        first_line("valgrind", &["--version"])?,
        format!("{} with {features}", std::env::consts::ARCH),
    ]
    .join(", "))
}

fn first_line(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("{program} cannot be run"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().to_owned()),
        _ => bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// Features of the CPU that choose between implementations, as this process sees them.
#[cfg(target_arch = "x86_64")]
pub fn features() -> String {
    let mut seen = Vec::new();
    macro_rules! ask {
        ($($name:tt)*) => { $(if std::is_x86_feature_detected!($name) { seen.push($name); })* };
    }
    ask!("aes" "avx" "avx2" "avx512f" "bmi1" "bmi2" "adx" "fma" "pclmulqdq" "rdrand" "rdseed" "sha" "sse4.2" "ssse3" "vaes" "vpclmulqdq");
    seen.join(" ")
}

/// Features of the CPU that choose between implementations, as this process sees them.
#[cfg(not(target_arch = "x86_64"))]
pub fn features() -> String {
    "unknown features".into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn threads_are_added_up() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(directory.path(), "lb: round robin");
        assert!(output.total().is_err(), "nothing was written");
        for (thread, total) in [("01", 5), ("02", 70)] {
            let text = format!("events: Ir\nfn=(1) main\n1 {total}\n\ntotals: {total}\n");
            fs::write(directory.path().join(format!("lb--round-robin.callgrind-{thread}")), text).unwrap();
        }
        fs::write(directory.path().join("lb--round-robin.callgrind"), "").unwrap();
        fs::write(directory.path().join("other.callgrind-01"), "totals: 900\n").unwrap();
        assert_eq!(output.total().unwrap(), 75);
        fs::write(directory.path().join("lb--round-robin.callgrind-03"), "events: Ir\n").unwrap();
        assert!(output.total().is_err(), "a thread without a total");
    }
}
