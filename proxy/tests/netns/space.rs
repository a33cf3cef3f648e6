//! Network namespaces, and threads inside them.

use std::{
    fs::File,
    io::Write,
    os::fd::AsFd,
    process::{Command, Output},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use rustix::{
    process::Uid,
    thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_uid},
};

/// Whether this process may make namespaces and has the programs for it. Says so on the terminal, past the test harness, where it has not.
pub fn available(test: &str) -> bool {
    static WHY_NOT: OnceLock<Option<String>> = OnceLock::new();
    let why_not = WHY_NOT.get_or_init(|| {
        if !rustix::process::geteuid().is_root() {
            return Some("not root".into());
        }
        for program in ["ip", "nft", "iptables-nft-restore", "iptables-legacy-restore"] {
            if Command::new(program).arg("--version").output().is_err() {
                return Some(format!("there is no program {program}: scripts/setup.sh netns"));
            }
        }
        let name = format!("shika-try-{}", std::process::id());
        let output = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
    });
    if let Some(why_not) = why_not {
        // Not `eprintln!`, which the harness swallows.
        let _ = std::io::stderr().write_all(format!("\n*** {test}: NOTHING WAS CHECKED: {why_not} ***\n").as_bytes());
    }
    why_not.is_none()
}

/// A network namespace; goes with the value.
pub struct Space {
    pub name: String,
}

impl Space {
    pub fn new() -> Space {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("shika-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let space = Space { name };
        sh(&["ip", "netns", "add", &space.name]);
        space.sh("ip link set lo up");
        // Namespaces inherit the host's settings, and tests count on the kernel's defaults.
        for (key, value) in [
            ("net.ipv6.conf.all.disable_ipv6", "0"),
            ("net.ipv6.conf.default.disable_ipv6", "0"),
            ("net.ipv6.conf.lo.disable_ipv6", "0"),
        ] {
            space.sh(&format!("sysctl -qw {key}={value}"));
        }
        space
    }

    /// A command in the namespace; it has to succeed.
    pub fn sh(&self, command: &str) -> String {
        let output = self.run(&command.split_ascii_whitespace().collect::<Vec<_>>());
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A command in the namespace.
    pub fn run(&self, command: &[&str]) -> Output {
        Command::new("ip").args(["netns", "exec", &self.name]).args(command).output().unwrap()
    }

    /// A command in the namespace with text for its standard input; it has to succeed.
    pub fn feed(&self, command: &[&str], input: &str) {
        use std::process::Stdio;
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(command)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{command:?}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs something on a thread inside the namespace and as this user: its sockets belong there for good.
    pub fn within<T: Send>(&self, uid: u32, run: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                if uid != 0 {
                    set_thread_uid(Uid::from_raw(uid)).unwrap();
                }
                run()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A virtual cable from here to another namespace.
    pub fn cable(&self, name: &str, other: &Space, other_name: &str) {
        self.sh(&format!("ip link add {name} type veth peer name {other_name} netns {}", other.name));
        self.sh(&format!("ip link set {name} up"));
        other.sh(&format!("ip link set {other_name} up"));
    }

    /// An address on an interface, at once usable.
    pub fn address(&self, interface: &str, address: &str) {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        self.sh(&format!("ip address add {address} dev {interface} {nodad}"));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

fn sh(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
