//! What the redirection needs to know of the host: users, DNS servers, interfaces.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr},
};

/// Kuma's default UID of the proxy.
pub const DEFAULT_UID: u32 = 5678;
/// Kuma's default user name of the proxy.
pub const DEFAULT_USER: &str = "kuma-dp";
/// Index of the loopback interface in every network namespace (Linux, include/net/flow.h, LOOPBACK_IFINDEX).
pub const LOOPBACK_INDEX: u32 = 1;

/// The facts, read once; tests make their own.
#[derive(Clone, Debug)]
pub struct Host {
    /// Text of /etc/passwd; none in an image without users.
    pub passwd: Option<String>,
    /// Name of the loopback interface.
    pub loopback: String,
    /// Whether an interface other than the loopback has an IPv6 address.
    pub ipv6: bool,
    /// Whether Docker answers DNS in this namespace by rewriting the ports of queries to 127.0.0.11.
    pub docker_dns: bool,
}

impl Host {
    /// Reads /etc/passwd, /proc and /sys.
    pub fn read() -> Host {
        Host {
            passwd: fs::read_to_string("/etc/passwd").ok(),
            loopback: loopback_name(),
            ipv6: fs::read_to_string("/proc/net/if_inet6").is_ok_and(|text| has_ipv6(&text)),
            docker_dns: false,
        }
    }

    /// The UID of a name or number. Empty means Kuma's defaults. A number is taken as it is.
    ///
    /// # Errors
    /// There is no such user.
    pub fn uid(&self, user: &str) -> Result<u32, String> {
        if let Ok(uid) = user.parse() {
            return Ok(uid);
        }
        let passwd = self.passwd.as_deref().unwrap_or_default();
        if !user.is_empty() {
            return uid_of(passwd, user).ok_or(format!(
                "kumaDPUser: there is no user `{user}` on this host; create it, or give the UID that the proxy runs with"
            ));
        }
        // An image without users cannot hold the default user either.
        if self.passwd.is_none() || has_uid(passwd, DEFAULT_UID) {
            return Ok(DEFAULT_UID);
        }
        uid_of(passwd, DEFAULT_USER).ok_or(format!(
            "kumaDPUser: not given, and there is neither a user with UID {DEFAULT_UID} nor one named `{DEFAULT_USER}` on this host; pass --kuma-dp-user"
        ))
    }
}

fn fields(line: &str) -> Option<(&str, u32)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let uid = fields.nth(1)?.parse().ok()?;
    Some((name, uid))
}

fn uid_of(passwd: &str, user: &str) -> Option<u32> {
    passwd.lines().filter_map(fields).find(|(name, _)| *name == user).map(|(_, uid)| uid)
}

fn has_uid(passwd: &str, wanted: u32) -> bool {
    passwd.lines().filter_map(fields).any(|(_, uid)| uid == wanted)
}

fn loopback_name() -> String {
    let index = |name: &str| fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok();
    fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| index(name).is_some_and(|index| index.trim() == LOOPBACK_INDEX.to_string()))
        .unwrap_or_else(|| "lo".into())
}

/// proc(5): address, index, prefix length, scope, flags, name; scope 0x10 is the host's own.
fn has_ipv6(if_inet6: &str) -> bool {
    if_inet6.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().and_then(|word| u128::from_str_radix(word, 16).ok()).map(Ipv6Addr::from);
        let index = words.next().and_then(|word| u32::from_str_radix(word, 16).ok());
        // ::6 is what an earlier installation has put on the loopback.
        address.is_some_and(|address| !address.is_loopback()) && index.is_some_and(|index| index != LOOPBACK_INDEX)
    })
}

/// The servers of a resolv.conf (resolv.conf(5)). An IPv6 scope (`fe80::1%eth0`) is dropped: rules match addresses.
pub fn dns_servers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_ascii_whitespace().next())
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nkuma-dp:x:1234:1234::/:/bin/false\nodd line\n";

    fn host(passwd: Option<&str>) -> Host {
        Host { passwd: passwd.map(str::to_owned), loopback: "lo".into(), ipv6: true, docker_dns: false }
    }

    #[test]
    fn users() {
        for (passwd, user, expected) in [
            (Some(PASSWD), "root", Ok(0)),
            (Some(PASSWD), "0", Ok(0)),
            (Some(PASSWD), "4321", Ok(4321)),
            (Some(PASSWD), "nobody", Err("no user `nobody`")),
            (Some(PASSWD), "", Ok(1234)),
            (Some("envoy:x:5678:1::/:/bin/false\nkuma-dp:x:1234:1::/:/bin/false"), "", Ok(5678)),
            (Some("root:x:0:0::/:/bin/sh"), "", Err("--kuma-dp-user")),
            (None, "", Ok(5678)),
            (None, "kuma-dp", Err("no user `kuma-dp`")),
        ] {
            match (host(passwd).uid(user), expected) {
                (Ok(uid), Ok(expected)) => assert_eq!(uid, expected, "{user}"),
                (Err(error), Err(needle)) => assert!(error.contains(needle), "{user}: {error}"),
                (result, _) => assert!(result.is_err() && expected.is_err(), "{user}: {result:?} for {expected:?}"),
            }
        }
    }

    #[test]
    fn servers() {
        let text = "# nameserver 9.9.9.9\nsearch a b\nnameserver 10.0.0.1\nnameserver\t2001:db8::1 # x\nnameservers 1.1.1.1\nnameserver fe80::1%eth0\n nameserver junk\n";
        let expected: Vec<IpAddr> =
            ["10.0.0.1", "2001:db8::1", "fe80::1"].iter().filter_map(|text| text.parse().ok()).collect();
        assert_eq!(dns_servers(text), expected);
    }

    #[test]
    fn ipv6() {
        assert!(!has_ipv6("00000000000000000000000000000001 01 80 10 80       lo\n"));
        assert!(!has_ipv6("00000000000000000000000000000006 01 80 00 80       lo\n"));
        assert!(has_ipv6("fe80000000000000b4a2cffffe3f8b1d 02 40 20 80     eth0\n"));
        assert!(!has_ipv6("garbage\n\n"));
    }
}
