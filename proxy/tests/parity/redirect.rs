//! Cases whose connections are redirected by the kernel, as iptables does it for a sidecar: they run in a network namespace of their own,
//! where what comes from 127.0.0.5 is redirected to port 15001. Whatever else is sent there goes where it says.

use std::process::Command;

/// Set in the run inside the namespace.
pub const INSIDE: &str = "SHIKA_PARITY_REDIRECTED";

/// Cases of this name need it.
pub const PREFIX: &str = "redirected-";

/// A namespace that ends with the value.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

fn namespace() -> Result<Namespace, String> {
    let name = format!("cover-{}", std::process::id());
    let script = format!(
        "ip netns add {name}; ip netns exec {name} sh -ec '
         ip link set lo up; ip route add local 240.0.0.0/8 dev lo
         nft add table ip nat
         nft add chain ip nat output \"{{ type nat hook output priority -100; }}\"
         nft add rule ip nat output ip saddr 127.0.0.5 tcp dport != 15001 redirect to :15001'"
    );
    let made = Command::new("sh").args(["-ec", &script]).output().map_err(|error| error.to_string())?;
    let namespace = Namespace(name);
    match made.status.success() {
        true => Ok(namespace),
        false => Err(String::from_utf8_lossy(&made.stderr).into_owned()),
    }
}

/// Plays the cases inside; says how that went, or why it cannot be.
pub fn run() -> Result<bool, String> {
    let namespace = namespace()?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut inside = Command::new("ip");
    if let Some(kept) = std::env::var_os("SHIKA_PARITY_KEEP") {
        // Certificates of two runs do not mix.
        inside.env("SHIKA_PARITY_KEEP", std::path::Path::new(&kept).join("redirected"));
    }
    let status = inside
        .args(["netns", "exec", &namespace.0])
        .arg(program)
        .args(["--exact", "every_case_agrees", "--nocapture"])
        .env(INSIDE, "1")
        .env("SHIKA_PARITY_CASES", PREFIX)
        // They share the port.
        .env("SHIKA_PARITY_JOBS", "1")
        .status();
    Ok(status.map_err(|error| error.to_string())?.success())
}
