//! Names, by the system's own resolver in a namespace: through the real rules to the real proxy, and to a real name server for what is not the mesh's.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use hickory_server::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{RData, Record, RecordType},
};
use shika_proto::type_url;

use crate::{
    common::{
        control_plane::Session,
        sidecar::{Place, Setup, Sidecar, documents},
    },
    host::{APPLICATION, BACKENDS, Backend, From, Host, PROXY_UID},
    probe::{self, Caller},
    proxy::resources,
    space::{Space, available},
};

/// The names of the mesh, as Kuma's document: backend is a service in both families, `legacy` has no IPv6 address.
const DOCUMENT: &str = r#"{"records":[{"name":"backend.mesh","ips":["240.0.0.1","fd00:fd00::1"]},
    {"name":"backend.svc.mesh.local","ips":["240.0.0.1","fd00:fd00::1"]},{"name":"legacy.mesh","ips":["240.0.0.2"]}],"ttl":30}"#;

/// The file that programs in a namespace find at /etc/resolv.conf; goes with the value.
struct ResolvConf(PathBuf);

impl ResolvConf {
    fn new(space: &Space, text: &str) -> ResolvConf {
        let directory = PathBuf::from("/etc/netns").join(&space.name);
        fs::create_dir_all(&directory).unwrap();
        let conf = ResolvConf(directory);
        conf.write(text);
        conf
    }

    fn write(&self, text: &str) {
        fs::write(self.0.join("resolv.conf"), text).unwrap();
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A name server that knows `outside.example` and nothing else; how many queries for it came.
fn name_server(space: &Space, addresses: &[&str]) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    for address in addresses {
        let address: SocketAddr = address.parse().unwrap();
        let socket = space.within(0, || UdpSocket::bind(address).unwrap());
        let asked = asked.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
                let question = query.queries[0].clone();
                let mut answer = Message::response(query.metadata.id, OpCode::Query);
                answer.metadata.recursion_desired = query.metadata.recursion_desired;
                answer.metadata.recursion_available = true;
                answer.add_query(question.clone());
                if question.name().to_lowercase().to_ascii() == "outside.example." {
                    asked.fetch_add(1, SeqCst);
                    let data = match question.query_type() {
                        RecordType::A => Some(RData::A(Ipv4Addr::new(192, 0, 2, 1).into())),
                        RecordType::AAAA => Some(RData::AAAA("2001:db8::1".parse::<Ipv6Addr>().unwrap().into())),
                        _ => None,
                    };
                    // Not to be kept by anyone: each query of a client is one here.
                    answer.answers.extend(data.map(|data| Record::from_rdata(question.name().clone(), 0, data)));
                } else {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                let _ = socket.send_to(&answer.to_vec().unwrap(), from);
            }
        });
    }
    asked
}

/// A sidecar in the host's namespace, as the user that the rules exempt, with its names.
async fn sidecar(host: &Host) -> (Sidecar, Session) {
    let (listeners, clusters) = resources(true);
    let user = PROXY_UID.to_string();
    let launch = ["ip", "netns", "exec", &host.app.name, "setpriv", "--clear-groups", "--reuid", &user];
    let listen = || host.app.within(0, || std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let mut sidecar = Sidecar::start(Setup {
        args: &["--transparent-proxy", "--dns-enabled"],
        resources: &format!("{clusters}\n  listeners:{listeners}\n"),
        place: Some(Place { launch: &launch, uid: PROXY_UID, listen: &listen }),
        ..Setup::default()
    })
    .await;
    assert_eq!(sidecar.request["dnsPort"], 15053);
    let mut session = sidecar.session().await;
    session.send(type_url::CLUSTER, "1", vec![]).await;
    let directory = sidecar.directory.path().to_str().unwrap().to_owned();
    let names = documents(&directory, &[("/dns", DOCUMENT)]);
    let ack = session.send(type_url::LISTENER, "1", vec![("_kuma:dynamicconfig", names)]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    (sidecar, session)
}

/// What a user's program gets from getaddrinfo, without repetitions: addresses, or nothing.
fn addresses(host: &Host, uid: u32, family: &str, name: &str) -> String {
    let uid = uid.to_string();
    let output = host.app.run(&["setpriv", "--clear-groups", "--reuid", &uid, "getent", family, name]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found: Vec<&str> = text.lines().filter_map(|line| line.split_ascii_whitespace().next()).collect();
    found.dedup();
    found.join(" ")
}

/// What a user's program reaches by name.
fn by_name(host: &Host, uid: u32, name: &str, port: u16) -> String {
    let (uid, script) = (uid.to_string(), format!("exec 3<>/dev/tcp/{name}/{port} && cat <&3"));
    let output = host.app.run(&["setpriv", "--clear-groups", "--reuid", &uid, "bash", "-c", &script]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A connection to backend's address, of whichever family the client preferred, came out at its endpoint.
fn served(by: &str) {
    assert!(["peer:80 for 10.77.0.2:80", "peer:80 for [fd77::2]:80"].contains(&by), "{by}");
}

const V4: &str = "ahostsv4";
const V6: &str = "ahostsv6";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_client_reaches_services_by_name() {
    if !available("names through the proxy") {
        return;
    }
    for backend in BACKENDS {
        let host = Host::new(backend);
        for port in [80, 444] {
            probe::serve_tcp(&host.peer, "peer", port);
        }
        let both = "nameserver 192.0.2.1\nnameserver 2001:db8::1\noptions timeout:10\n";
        let conf = ResolvConf::new(&host.app, both);
        let asked = name_server(&host.peer, &["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(addresses(&host, APPLICATION, V4, "backend.mesh"), "", "{backend:?}: without rules");

        host.must_install("--kuma-dp-user=5678 --redirect-dns --exclude-outbound-ports-for-uids=udp:53:1001");
        let (running, _session) = sidecar(&host).await;
        for resolv_conf in [both, "nameserver 2001:db8::1\noptions timeout:10\n"] {
            conf.write(resolv_conf);
            for (uid, family, name, expected) in [
                (APPLICATION, V4, "backend.mesh", "240.0.0.1"),
                (APPLICATION, V6, "backend.mesh", "fd00:fd00::1"),
                (APPLICATION, V4, "BackEnd.svc.mesh.local", "240.0.0.1"),
                (APPLICATION, V4, "legacy.mesh", "240.0.0.2"),
                // The resolver of glibc makes an IPv4 address into one of IPv6 where there is no other.
                (APPLICATION, V6, "legacy.mesh", "::ffff:240.0.0.2"),
                (APPLICATION, V4, "nobody.mesh", ""),
                (0, V4, "backend.mesh", "240.0.0.1"),
                // A user whose queries are excluded asks the name server itself.
                (1001, V4, "backend.mesh", ""),
                // The proxy's own queries go there too, as does what it forwards.
                (PROXY_UID, V4, "backend.mesh", ""),
                (APPLICATION, V4, "outside.example", "192.0.2.1"),
                (APPLICATION, V6, "outside.example", "2001:db8::1"),
            ] {
                let found = addresses(&host, uid, family, name);
                assert_eq!(found, expected, "{backend:?}: user {uid}, {name} {family}, with {resolv_conf:?}");
            }
        }
        // Once by each client for its family, and no query went round.
        assert_eq!(asked.load(SeqCst), 4, "{backend:?}");
        conf.write(both);
        // By name to the address that stands for the service, and from there to the endpoint.
        served(&by_name(&host, APPLICATION, "backend.mesh", 80));
        // A name outside passes through.
        let passed = by_name(&host, APPLICATION, "outside.example", 444);
        assert!(passed.starts_with("peer:444 for "), "{backend:?}: {passed}");

        // A proxy that is dead answers nothing, and nothing goes past it.
        let before = asked.load(SeqCst);
        drop(running);
        assert_eq!(addresses(&host, APPLICATION, V4, "outside.example"), "", "{backend:?}: a dead proxy");
        assert_eq!(asked.load(SeqCst), before, "{backend:?}: a dead proxy");
        let (_running, _session) = sidecar(&host).await;
        assert_eq!(addresses(&host, APPLICATION, V4, "backend.mesh"), "240.0.0.1", "{backend:?}: another one");
        served(&by_name(&host, APPLICATION, "backend.mesh", 80));

        // Without rules the name server is asked again, with the proxy still there.
        host.uninstall();
        assert_eq!(addresses(&host, APPLICATION, V4, "backend.mesh"), "", "{backend:?}: uninstalled");
        assert_eq!(addresses(&host, APPLICATION, V4, "outside.example"), "192.0.2.1", "{backend:?}: uninstalled");
        assert_eq!(host.tcp(From::App(Caller::user(APPLICATION)), "10.77.0.2:80"), "peer:80 for 10.77.0.2:80");
    }
}

/// With `--redirect-all-dns-traffic` the server that a client asks does not matter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_name_server_is_the_proxy() {
    if !available("all DNS through the proxy") {
        return;
    }
    let host = Host::new(Backend::Nftables);
    let conf = ResolvConf::new(&host.app, "nameserver 192.0.2.1\noptions timeout:10\n");
    let asked = name_server(&host.peer, &["192.0.2.1:53"]);
    host.must_install("--kuma-dp-user=5678 --redirect-all-dns-traffic");
    let (_running, _session) = sidecar(&host).await;
    // The proxy has read the file; a client of its own mind asks somebody who is not there.
    assert_eq!(addresses(&host, APPLICATION, V4, "outside.example"), "192.0.2.1");
    conf.write("nameserver 10.77.0.99\noptions timeout:10\n");
    assert_eq!(addresses(&host, APPLICATION, V4, "backend.mesh"), "240.0.0.1");
    assert_eq!(addresses(&host, APPLICATION, V6, "backend.mesh"), "fd00:fd00::1");
    assert!(asked.load(SeqCst) >= 1);
}
