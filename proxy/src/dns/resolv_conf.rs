//! `/etc/resolv.conf`.
//!
//! Source: resolv.conf(5). `search`, `domain` and `ndots` are the client's: names arrive here complete.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    path::Path,
    time::Duration,
};

/// glibc's `MAXNS`.
const MAX_SERVERS: usize = 3;
/// glibc's bounds.
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: u64 = 5;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// In order. Port 53, but for the form `[address]:port` that the BSDs have.
    pub servers: Vec<SocketAddr>,
    /// `timeout:`; how long a client that reads this file waits for one answer.
    pub timeout: Duration,
    /// `attempts:`; rounds over all servers.
    pub attempts: u32,
    /// `rotate`: every query starts with the next server.
    pub rotate: bool,
    /// `use-vc`: TCP only.
    pub tcp_only: bool,
}

impl ResolvConf {
    /// Reads the file.
    ///
    /// # Errors
    /// The file and why it cannot be read.
    pub fn read(path: &Path) -> Result<ResolvConf, String> {
        fs::read(path)
            .map(|text| ResolvConf::parse(&String::from_utf8_lossy(&text)))
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Lines that say nothing to a forwarder are passed over, as everywhere.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            rotate: false,
            tcp_only: false,
        };
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") if conf.servers.len() < MAX_SERVERS => {
                    conf.servers.extend(words.next().and_then(server));
                }
                Some("options") => words.for_each(|option| conf.option(option)),
                Some(_) | None => {}
            }
        }
        if conf.servers.is_empty() {
            // resolv.conf(5): the name server on the local machine.
            conf.servers.push((Ipv4Addr::LOCALHOST, 53).into());
        }
        conf
    }

    fn option(&mut self, option: &str) {
        let number = |text: &str, most: u64| text.parse::<u64>().ok().map(|number| number.clamp(1, most));
        match option.split_once(':') {
            Some(("timeout", text)) => {
                self.timeout = number(text, MAX_TIMEOUT).map_or(self.timeout, Duration::from_secs);
            }
            Some(("attempts", text)) => {
                self.attempts = number(text, MAX_ATTEMPTS).map_or(self.attempts, |number| number as u32);
            }
            Some(_) => {}
            None => {
                self.rotate |= option == "rotate";
                self.tcp_only |= option == "use-vc";
            }
        }
    }
}

fn server(text: &str) -> Option<SocketAddr> {
    if let Some((address, scope)) = text.split_once('%') {
        return Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, interface(scope)?).into());
    }
    match text.parse::<IpAddr>() {
        Ok(address) => Some((address, 53).into()),
        Err(_) => {
            let (address, port) = text.strip_prefix('[')?.split_once("]:")?;
            Some((address.parse::<IpAddr>().ok()?, port.parse().ok()?).into())
        }
    }
}

/// Index of an interface, by number or name.
fn interface(scope: &str) -> Option<u32> {
    scope.parse().ok().or_else(|| {
        let plain = !scope.is_empty() && !scope.contains('/') && scope != "..";
        plain.then(|| fs::read_to_string(format!("/sys/class/net/{scope}/ifindex")).ok()?.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_options() {
        let conf = ResolvConf::parse(
            "# made by something\nsearch a.example b.example\nnameserver 10.0.0.2\nnameserver fd00::2 ; second\nnameserver [127.0.0.1]:5300\n\
             nameserver 10.0.0.9\noptions ndots:5 timeout:1 attempts:9 rotate edns0\noptions use-vc\n",
        );
        let servers: Vec<_> = conf.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["10.0.0.2:53", "[fd00::2]:53", "127.0.0.1:5300"]);
        assert_eq!((conf.timeout, conf.attempts), (Duration::from_secs(1), 5));
        assert!(conf.rotate && conf.tcp_only);
    }

    #[test]
    fn defaults_and_rubbish() {
        let conf =
            ResolvConf::parse("nameserver\nnameserver nowhere\noptions timeout:soon attempts:0 timeout\nsortlist x\n");
        assert_eq!(conf.servers, [SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]);
        assert_eq!((conf.timeout, conf.attempts, conf.rotate), (Duration::from_secs(5), 1, false));
        let scoped = ResolvConf::parse("nameserver fe80::1%lo\nnameserver fe80::2%7");
        let scopes = scoped.servers.iter().filter_map(|server| match server {
            SocketAddr::V6(server) => Some(server.scope_id()),
            SocketAddr::V4(_) => None,
        });
        assert_eq!(scopes.collect::<Vec<_>>(), [1, 7]);
        assert!(ResolvConf::read(Path::new("/nowhere")).is_err());
    }
}
