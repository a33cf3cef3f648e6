//! Memory that the process holds and no longer needs, given back to the system. Home of the program's only `unsafe`.
//!
//! Two kinds are worth it:
//!
//! - glibc's allocator keeps what is freed below the end of its heap, and reading a configuration frees most of what it takes: after a bootstrap of ten
//!   thousand clusters 20 of 53 MB were free and still resident.
//! - What starts a process is most of its code: flags, YAML, JSON, protobuf, compilers, the self-tests of the cryptography. The kernel maps 64 KiB around
//!   each page of it that runs, 10 MB in all, and takes none back until memory is short.

/// Bytes of resources in one update, or of one answer of the admin interface, from which on giving back is worth its walk over the heap.
pub const LARGE: usize = 256 * 1024;

/// Connections that have come to rest since it was last given back, from which on giving back is worth its walk: some 20 KB each.
pub const CROWD: usize = 100;

/// Returns free pages of all arenas to the system. Takes some milliseconds per 100 MB, so it is for the control thread and seldom.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn give_back_heap() {
    // SAFETY: malloc_trim(3) takes no pointer, touches free memory only, locks the arenas itself and may be called by any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators than glibc's give back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back_heap() {}

/// Unmaps the pages of programs and libraries. Those that are needed come back from the page cache one by one, some microseconds each, so this is for
/// once, when the start is over.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub fn give_back_code() {
    // Without /proc everything stays as it is.
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in clean_files(&maps) {
        // SAFETY: madvise(2): a page of a private file mapping is read from its file again when it is next used. `clean_files` names mappings that nobody
        // may write to and that have no page of their own, so that what is read is what was there.
        unsafe { libc::madvise(std::ptr::without_provenance_mut(start), length, libc::MADV_DONTNEED) };
    }
}

/// Only Linux tells what is mapped where.
#[cfg(not(target_os = "linux"))]
pub fn give_back_code() {}

/// Where mappings of files begin and how long they are, of those that cannot be written to and of which no page differs from the file: relocated data
/// does, as does code in which a debugger has set a breakpoint. `smaps` is proc_pid_smaps(5).
#[cfg(any(target_os = "linux", test))]
fn clean_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if first.ends_with(':') {
            match first {
                // In memory or swapped out: `Swap` follows `Anonymous`.
                "Anonymous:" if words.next() != Some("0") => at = None,
                "Swap:" if words.next() == Some("0") => found.extend(at.take()),
                _ => {}
            }
            continue;
        }
        // start-end permissions offset device inode path
        let range = first.split_once('-').and_then(|(start, end)| {
            let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
            Some((start, end.checked_sub(start)?))
        });
        let is_fixed = matches!(words.next(), Some("r--p" | "r-xp"));
        let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
        at = range.filter(|_| is_fixed && is_file);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0a0000000-55d0a0588000 r--p 00000000 fe:00 1234 /usr/bin/shika proxy
Size:               5664 kB
Rss:                2112 kB
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
55d0a0588000-55d0a1675000 r-xp 00587000 fe:00 1234 /usr/bin/shika proxy
Rss:                9896 kB
Anonymous:             0 kB
Swap:                  0 kB
55d0a1676000-55d0a1710000 r--p 01674000 fe:00 1234 /usr/bin/shika proxy
Anonymous:           616 kB
Swap:                  0 kB
55d0a1710000-55d0a1715000 rw-p 0170d000 fe:00 1234 /usr/bin/shika proxy
Anonymous:             0 kB
Swap:                  0 kB
7e0000000000-7e0000010000 r--p 00000000 fe:00 98 /usr/lib/swapped out.so
Anonymous:             0 kB
Swap:                 64 kB
7f0000000000-7f0000021000 rw-p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
7f1000000000-7f1000001000 r--s 00000000 fe:00 99 /var/shared
Anonymous:             0 kB
Swap:                  0 kB
7ffc00000000-7ffc00002000 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
Swap:                  0 kB
";

    #[test]
    fn only_what_the_file_still_says_is_unmapped() {
        assert_eq!(clean_files(SMAPS), [(0x55d0_a000_0000, 0x58_8000), (0x55d0_a058_8000, 0x10e_d000)]);
        assert_eq!(clean_files("garbage\n-\nffff-0 r-xp 0 0 0 /x\nAnonymous: 0 kB\nSwap: 0 kB\n"), []);
    }

    #[test]
    fn code_runs_on_after_it_was_unmapped() {
        give_back_code();
        assert_eq!(clean_files(SMAPS).len(), 2);
        give_back_heap();
    }
}
