//! Calls through the real proxy, redirected by the real rules.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    process::{Command, Stdio},
    thread,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    common::{LIMIT, eventually},
    host::{APPLICATION, Backend, From, Host},
    probe::Caller,
    proxy::Proxy,
    space::available,
};

fn application() -> From {
    From::App(Caller::user(APPLICATION))
}

/// 15001 alone serves both directions, as do 15001 and 15006.
#[test]
fn both_directions_both_families() {
    if !available("traffic through the proxy") {
        return;
    }
    for flags in ["", "--redirect-inbound-port=15001"] {
        let host = Host::new(Backend::Nftables).with_applications();
        host.must_install(&format!(
            "--kuma-dp-user=5678 --exclude-outbound-ports=22 --exclude-inbound-ports=22 --exclude-outbound-ports-for-uids=tcp:80:1001 {flags}"
        ));
        let proxy = Proxy::start(&host, true);
        for (from, to, expected) in [
            // By the address of a service.
            (application(), "240.0.0.1:80", "peer:80 for 10.77.0.2:80"),
            (application(), "[fd00:fd00::1]:80", "peer:80 for [fd77::2]:80"),
            // By the address of a pod that a listener names.
            (application(), "10.77.0.2:8080", "peer:443 for 192.0.2.1:443"),
            (application(), "[fd77::2]:8080", "peer:443 for [2001:db8::1]:443"),
            // What nothing names passes through.
            (application(), "192.0.2.1:444", "peer:444 for 192.0.2.1:444"),
            (application(), "[2001:db8::1]:444", "peer:444 for [2001:db8::1]:444"),
            // Trap 28: a service that calls itself comes back by its inbound.
            (application(), "240.0.0.2:80", "app:80 for 127.0.0.1:80"),
            (application(), "[fd00:fd00::2]:80", "app:80 for [::1]:80"),
            // Incoming: an inbound, and a port that no inbound names.
            (From::Peer, "10.77.0.1:80", "app:80 for 127.0.0.1:80"),
            (From::Peer, "[fd77::1]:80", "app:80 for [::1]:80"),
            (From::Peer, "10.77.0.1:8080", "app:8080 for 10.77.0.1:8080"),
            (From::Peer, "[fd77::1]:8080", "app:8080 for [fd77::1]:8080"),
            // Excluded ports and users never see the proxy.
            (application(), "10.77.0.2:22", "peer:22 for 10.77.0.2:22"),
            (From::Peer, "10.77.0.1:22", "app:22 for 10.77.0.1:22"),
            (From::App(Caller::user(1001)), "10.77.0.2:80", "peer:80 for 10.77.0.2:80"),
            (From::App(Caller::user(1001)), "[fd77::2]:80", "peer:80 for [fd77::2]:80"),
            // That user's other ports are redirected.
            (From::App(Caller::user(1001)), "10.77.0.2:8080", "peer:443 for 192.0.2.1:443"),
        ] {
            assert_eq!(host.tcp(from, to), expected, "{flags}: {from:?} to {to}");
        }
        for (cluster, connections) in [
            ("web", 1),
            ("web6", 1),
            ("far", 2),
            ("far6", 1),
            ("self", 1),
            ("self6", 1),
            ("outbound_passthrough_ipv4", 1),
            ("outbound_passthrough_ipv6", 1),
            ("inbound_passthrough_ipv4", 1),
            ("inbound_passthrough_ipv6", 1),
            ("localhost_80", 2),
            ("localhost6_80", 2),
        ] {
            let name = format!("cluster.{cluster}.upstream_cx_total");
            assert_eq!(proxy.stat(&name), connections, "{flags}: {name}");
        }
    }
}

#[test]
fn without_pass_through_unknown_destinations_are_closed() {
    if !available("pass-through turned off") {
        return;
    }
    let host = Host::new(Backend::Nftables).with_applications();
    host.must_install("--kuma-dp-user=5678");
    let _proxy = Proxy::start(&host, false);
    for to in ["192.0.2.1:444", "[2001:db8::1]:444"] {
        let reached = host.tcp(application(), to);
        assert!(!reached.contains("peer"), "{to} was reached: {reached}");
    }
    assert_eq!(host.tcp(application(), "240.0.0.1:80"), "peer:80 for 10.77.0.2:80");
    assert_eq!(host.tcp(From::Peer, "10.77.0.1:8080"), "app:8080 for 10.77.0.1:8080");
}

#[test]
fn calls_to_the_proxys_own_ports_do_not_go_round() {
    if !available("loops") {
        return;
    }
    for flags in ["", "--redirect-inbound-port=15001"] {
        let host = Host::new(Backend::Nftables).with_applications();
        host.must_install(&format!("--kuma-dp-user=5678 {flags}"));
        let proxy = Proxy::start(&host, true);
        for (from, to) in [
            (From::Peer, "10.77.0.1:15001"),
            (From::Peer, "10.77.0.1:15006"),
            (From::Peer, "[fd77::1]:15001"),
            (application(), "10.77.0.1:15001"),
            (application(), "127.0.0.1:15001"),
            (application(), "[::1]:15001"),
        ] {
            let reached = host.tcp(from, to);
            assert!(!reached.contains("app") && reached != "no answer", "{flags} {from:?} to {to}: {reached}");
        }
        let passed: u64 = ["inbound", "outbound"]
            .iter()
            .flat_map(|direction| {
                [4, 6].map(|family| format!("cluster.{direction}_passthrough_ipv{family}.upstream_cx_total"))
            })
            .map(|name| proxy.stat(&name))
            .sum();
        assert!(passed <= 12, "{flags}: {passed} connections for 6 calls: they go round");
        // It goes on serving.
        assert_eq!(host.tcp(application(), "240.0.0.1:80"), "peer:80 for 10.77.0.2:80");
    }
}

#[test]
fn a_killed_proxy_comes_back() {
    if !available("the proxy's death") {
        return;
    }
    let host = Host::new(Backend::Nftables).with_applications();
    host.must_install("--kuma-dp-user=5678");
    let proxy = Proxy::start(&host, true);
    assert_eq!(host.tcp(application(), "240.0.0.1:80"), "peer:80 for 10.77.0.2:80");
    proxy.kill();
    // Nothing goes past a proxy that is not there.
    assert_eq!(host.tcp(application(), "10.77.0.2:80"), "refused");
    assert_eq!(host.tcp(From::Peer, "10.77.0.1:80"), "refused");
    let _proxy = Proxy::start(&host, true);
    assert_eq!(host.tcp(application(), "240.0.0.1:80"), "peer:80 for 10.77.0.2:80");
    assert_eq!(host.tcp(From::Peer, "10.77.0.1:80"), "app:80 for 127.0.0.1:80");
}

/// Other rules take the place of those that are there without a moment between them: what was redirected stays so. When the rules go, new
/// connections go straight.
#[test]
fn changing_the_rules_spares_living_connections() {
    if !available("a change of rules under traffic") {
        return;
    }
    let host = Host::new(Backend::Nftables).with_applications();
    let listener = host.peer.within(0, || TcpListener::bind("10.77.0.2:7").unwrap());
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    host.must_install("--kuma-dp-user=5678");
    let proxy = Proxy::start(&host, true);
    let mut stream = connect(&host, "10.77.0.2:7");
    for text in ["first", "second", "third"] {
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, text.as_bytes());
        assert_eq!(proxy.stat("cluster.outbound_passthrough_ipv4.upstream_cx_total"), 1);
        host.must_install("--kuma-dp-user=5678 --exclude-outbound-ports=7");
    }
    host.uninstall();
    assert_eq!(host.tcp(application(), "10.77.0.2:80"), "peer:80 for 10.77.0.2:80");
    assert_eq!(proxy.stat("cluster.outbound_passthrough_ipv4.upstream_cx_total"), 1, "a new connection was redirected");
}

/// A connection of an application's user.
fn connect(host: &Host, to: &str) -> Socket {
    let to: SocketAddr = to.parse().unwrap();
    host.app.within(APPLICATION, || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket.connect_timeout(&to.into(), LIMIT).unwrap();
        socket
    })
}

/// The client says nothing until the server has greeted it: outbound passing through, inbound passing through, and an inbound that looks for TLS.
#[test]
fn a_server_that_speaks_first() {
    if !available("servers that speak first") {
        return;
    }
    let host = Host::new(Backend::Nftables);
    for (space, address) in [(&host.app, "0.0.0.0:3306"), (&host.app, "0.0.0.0:25"), (&host.peer, "0.0.0.0:25")] {
        let listener = space.within(0, || TcpListener::bind(address).unwrap());
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                thread::spawn(move || {
                    let mut line = [0; 4];
                    let _ = stream.write_all(b"220 hello\n");
                    // Greets once and answers once, so that both ways are seen.
                    let _ = stream.read_exact(&mut line).and_then(|()| stream.write_all(b"221 bye\n"));
                });
            }
        });
    }
    host.must_install("--kuma-dp-user=5678");
    let _proxy = Proxy::start(&host, true);
    let speak = |mut socket: Socket, what: &str| {
        let mut greeting = [0; 10];
        socket.read_exact(&mut greeting).unwrap_or_else(|error| panic!("{what}: no greeting: {error}"));
        assert_eq!(&greeting, b"220 hello\n", "{what}");
        socket.write_all(b"QUIT").unwrap();
        let mut rest = String::new();
        socket.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "221 bye\n", "{what}");
    };
    speak(connect(&host, "10.77.0.2:25"), "outbound, passing through");
    let from_peer = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        host.peer.within(0, || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.connect_timeout(&to.into(), LIMIT).unwrap();
            socket
        })
    };
    speak(from_peer("10.77.0.1:25"), "inbound, passing through");
    speak(from_peer("10.77.0.1:3306"), "inbound, looking for TLS");
}

/// MariaDB, where it is installed: its client waits for the server's greeting.
#[test]
fn a_real_database() {
    if !available("MariaDB through the proxy") {
        return;
    }
    let found = |program: &str| {
        ["/usr/sbin", "/usr/bin"]
            .iter()
            .map(|directory| format!("{directory}/{program}"))
            .find(|path| std::path::Path::new(path).exists())
    };
    let (Some(server), Some(installer)) = (found("mariadbd"), found("mariadb-install-db")) else {
        let _ = std::io::stderr().write_all(
            b"\n*** MariaDB through the proxy: NOTHING WAS CHECKED: there is no mariadbd: scripts/setup.sh netns ***\n",
        );
        return;
    };
    let client = found("mariadb").unwrap();
    let host = Host::new(Backend::Nftables);
    let data = host.directory.path().join("data");
    let socket = host.directory.path().join("socket");
    let status = Command::new(&installer)
        .args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(format!("--datadir={}", data.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{installer}");
    let mut database = Command::new("ip")
        .args([
            "netns",
            "exec",
            &host.app.name,
            &server,
            "--no-defaults",
            "--user=root",
            "--port=3306",
            "--bind-address=0.0.0.0",
        ])
        .args(["--skip-grant-tables", "--skip-networking=0", "--skip-name-resolve"])
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--socket={}", socket.display()))
        .arg(format!("--pid-file={}.pid", socket.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let query = |space: &crate::space::Space, address: &str| {
        space.run(&[
            &client,
            "--no-defaults",
            "--skip-ssl",
            "-h",
            address,
            "-P",
            "3306",
            "-u",
            "root",
            "-N",
            "-e",
            "select 6 * 7",
        ])
    };
    eventually("the database", || query(&host.peer, "10.77.0.1").status.success().then_some(()));
    host.must_install("--kuma-dp-user=5678");
    let proxy = Proxy::start(&host, true);
    let output = query(&host.peer, "10.77.0.1");
    let answered = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    database.kill().unwrap();
    database.wait().unwrap();
    assert_eq!(answered, "42", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(proxy.stat("cluster.localhost_3306.upstream_cx_total"), 1);
}
