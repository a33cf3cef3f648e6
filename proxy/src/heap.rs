//! The heap, given back after work that needed much of it for a moment.
//!
//! glibc's allocator keeps what is freed below the end of its heap, and reading a configuration frees most of what it takes: after a bootstrap of ten
//! thousand clusters 20 of 53 MB were free and still resident. This is the program's only `unsafe`.

/// Bytes of resources in one update, or of one answer of the admin interface, from which on giving back is worth its walk over the heap.
pub const LARGE: usize = 256 * 1024;

/// Connections that have come to rest since it was last given back, from which on giving back is worth its walk: some 20 KB each.
pub const CROWD: usize = 500;

/// Returns free pages of all arenas to the system. Takes some milliseconds per 100 MB, so it is for the control thread and seldom.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointer, touches free memory only, locks the arenas itself and may be called by any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators than glibc's give back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn give_back() {}
