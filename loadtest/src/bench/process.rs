//! What the kernel says that processes have used: CPU time, context switches, memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// `/proc/<pid>/stat` counts in USER_HZ, which Linux fixes at 100 on the architectures supported here.
const TICK: Duration = Duration::from_millis(10);

/// What a set of processes had used at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds on a CPU by thread (`schedstat`); empty where the kernel does not count them.
    threads: BTreeMap<u32, u64>,
    /// User and system time of all threads, those that ended included, in steps of 10 ms.
    ticks: u64,
    /// Context switches, voluntary and not, of the threads that live.
    switches: u64,
}

impl Usage {
    /// Of these processes and of those that they started (nginx's workers).
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut usage = Self::default();
        for pid in with_children(pids) {
            let file = format!("/proc/{pid}/stat");
            let stat = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
            usage.ticks += ticks_of(&stat).with_context(|| format!("{file} has no CPU times"))?;
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))?;
            for task in tasks.flatten() {
                usage.add_thread(&task.path());
            }
        }
        Ok(usage)
    }

    /// A thread that ends meanwhile is left out: its time is in `ticks`.
    fn add_thread(&mut self, task: &Path) {
        let thread = task.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let nanos = std::fs::read_to_string(task.join("schedstat")).ok().and_then(|text| nanos_of(&text));
        if let Some((thread, nanos)) = thread.zip(nanos) {
            self.threads.insert(thread, nanos);
        }
        if let Ok(status) = std::fs::read_to_string(task.join("status")) {
            self.switches += switches_of(&status);
        }
    }

    /// CPU time since `earlier`: to the nanosecond when every thread of then still lives, in ticks otherwise.
    pub fn cpu_since(&self, earlier: &Self) -> Duration {
        let all_live = earlier.threads.keys().all(|thread| self.threads.contains_key(thread));
        if !all_live || earlier.threads.is_empty() {
            return TICK * u32::try_from(self.ticks.saturating_sub(earlier.ticks)).unwrap_or(u32::MAX);
        }
        let nanos = self
            .threads
            .iter()
            .map(|(thread, nanos)| nanos.saturating_sub(earlier.threads.get(thread).copied().unwrap_or(0)))
            .sum();
        Duration::from_nanos(nanos)
    }

    /// Context switches since `earlier`.
    pub fn switches_since(&self, earlier: &Self) -> u64 {
        self.switches.saturating_sub(earlier.switches)
    }
}

/// Resident memory of the processes and those they started, in MB (10⁶ bytes): what only they map, and their share of what they
/// share, where the kernel tells (`smaps_rollup`); `VmRSS` otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// Resident set.
    pub resident: f64,
    /// Proportional set.
    pub proportional: f64,
}

impl Memory {
    /// Of these processes and of those that they started.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut memory = Self::default();
        for pid in with_children(pids) {
            let file = format!("/proc/{pid}/status");
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
            let resident = kib_of(&text, "VmRSS:").with_context(|| format!("{file} has no VmRSS"))?;
            let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
            memory.resident += resident as f64 * 1.024e-3;
            memory.proportional += kib_of(&rollup, "Pss:").unwrap_or(resident) as f64 * 1.024e-3;
        }
        Ok(memory)
    }
}

/// The processes and, found by their parents, those that they started.
fn with_children(pids: &[u32]) -> Vec<u32> {
    let mut parents = Vec::new();
    if let Ok(processes) = std::fs::read_dir("/proc") {
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            parents.extend(parent_of(&stat).map(|parent| (pid, parent)));
        }
    }
    family(pids, &parents)
}

/// `roots` and all whose parent, or parent's parent, is one of them.
fn family(roots: &[u32], parents: &[(u32, u32)]) -> Vec<u32> {
    let mut all = roots.to_vec();
    let mut at = 0;
    while let Some(parent) = all.get(at).copied() {
        for (pid, of) in parents {
            if *of == parent && !all.contains(pid) {
                all.push(*pid);
            }
        }
        at += 1;
    }
    all
}

/// Fields of proc_pid_stat(5) after the name, which may contain blanks and brackets: the first of them is field 3.
fn fields_of(stat: &str) -> Option<impl Iterator<Item = &str>> {
    stat.rsplit_once(')').map(|(_, fields)| fields.split_ascii_whitespace())
}

/// Field 4.
fn parent_of(stat: &str) -> Option<u32> {
    fields_of(stat)?.nth(1)?.parse().ok()
}

/// Fields 14 and 15, utime and stime.
fn ticks_of(stat: &str) -> Option<u64> {
    let mut fields = fields_of(stat)?.skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The first of `schedstat`'s three numbers: nanoseconds on a CPU (Documentation/scheduler/sched-stats.rst).
fn nanos_of(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

fn switches_of(status: &str) -> u64 {
    ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"].iter().filter_map(|name| kib_of(status, name)).sum()
}

/// The number of the line that begins with `name`.
fn kib_of(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fields_follow_the_last_bracket() {
        let stat = "812 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 700 42 13 14 15";
        assert_eq!((ticks_of(stat), parent_of(stat)), (Some(742), Some(1)));
        assert_eq!((ticks_of("812 (x) S 1"), parent_of("812")), (None, None));
        let own = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert!(ticks_of(&own).is_some() && parent_of(&own).is_some(), "{own}");
    }

    #[test]
    fn numbers_of_status_and_schedstat() {
        let status = "Name:\tx\nVmRSS:\t   12345 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t5\n";
        assert_eq!(kib_of(status, "VmRSS:"), Some(12_345));
        assert_eq!(kib_of(status, "VmSize:"), None);
        assert_eq!(switches_of(status), 12);
        assert_eq!(nanos_of("337178 3834749 1\n"), Some(337_178));
        assert_eq!(nanos_of(""), None);
    }

    #[test]
    fn time_is_exact_while_the_threads_live_and_in_ticks_when_one_ended() {
        let usage =
            |threads: &[(u32, u64)], ticks| Usage { threads: threads.iter().copied().collect(), ticks, switches: 0 };
        let before = usage(&[(1, 1_000), (2, 500)], 10);
        // A new thread counts whole.
        assert_eq!(usage(&[(1, 1_700), (2, 500), (3, 40)], 11).cpu_since(&before), Duration::from_nanos(740));
        assert_eq!(usage(&[(1, 1_700)], 12).cpu_since(&before), Duration::from_millis(20));
        assert_eq!(usage(&[], 12).cpu_since(&usage(&[], 10)), Duration::from_millis(20));
    }

    #[test]
    fn workers_belong_to_their_master() {
        assert_eq!(family(&[10], &[(10, 1), (11, 10), (12, 11), (13, 1), (14, 10)]), [10, 11, 14, 12]);
    }

    #[test]
    fn this_process_has_used_something() {
        let own = [std::process::id()];
        let first = Usage::of(&own).unwrap();
        let mut sum = 0u64;
        while Usage::of(&own).unwrap().cpu_since(&first) == Duration::ZERO {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(Memory::of(&own).unwrap().resident > 0.5);
    }
}
