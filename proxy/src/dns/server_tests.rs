#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use hickory_server::proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{
        Name, RData, Record,
        rdata::{CNAME, MX, SOA, TXT, opt::EdnsOption},
    },
};
use tokio::task::LocalSet;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

/// The mesh of these tests, as Kuma's document.
const DOCUMENT: &str = r#"{"records":[
    {"name":"backend.mesh","ips":["240.0.0.1","fd00:fd00::f000:1"]},
    {"name":"backend_demo_svc_80.mesh","ips":["240.0.0.2"]},
    {"name":"backend.demo.svc.80.mesh","ips":["240.0.0.2"]},
    {"name":"echo.svc.mesh.local","ips":["241.0.0.1","fd00:fd00::f100:1"]},
    {"name":"two.mesh","ips":["240.0.0.3","240.0.0.4"]},
    {"name":"six.mesh","ips":["fd00:fd00::f000:6"]},
    {"name":"none.mesh","ips":[]},
    {"name":"shadow.example","ips":["242.0.0.1"]}],"ttl":30,"extraLabels":{"mesh":"default"}}"#;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A resolver that knows the zone `example.` by heart.
struct Resolver {
    address: SocketAddr,
    /// Queries by name, type and transport.
    asked: Rc<RefCell<BTreeMap<String, usize>>>,
    /// The last query as it came.
    last: Rc<RefCell<Vec<u8>>>,
    /// Holds every answer back until there is a permit.
    gate: Rc<Semaphore>,
}

fn resolve(query: &Message) -> Message {
    let question = query.queries[0].clone();
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.add_query(question.clone());
    let owner = question.name().clone();
    let soa = Record::from_rdata(
        name("example."),
        60,
        RData::SOA(SOA::new(name("ns.example."), name("admin.example."), 1, 2, 3, 4, 60)),
    );
    let a = |owner: &Name, last: u8| {
        Record::from_rdata(owner.clone(), 100, RData::A(Ipv4Addr::new(192, 0, 2, last).into()))
    };
    match (owner.to_lowercase().to_ascii().as_str(), question.query_type()) {
        ("a.example.", RecordType::A) => drop(answer.add_answer(a(&owner, 10))),
        ("a.example.", RecordType::AAAA) => {
            answer.add_answer(Record::from_rdata(
                owner,
                100,
                RData::AAAA("2001:db8::10".parse::<Ipv6Addr>().unwrap().into()),
            ));
        }
        ("alias.example.", RecordType::A) => {
            answer.add_answer(Record::from_rdata(owner, 100, RData::CNAME(CNAME(name("a.example.")))));
            answer.add_answer(a(&name("a.example."), 10));
        }
        ("mail.example.", RecordType::MX) => {
            answer.add_answer(Record::from_rdata(owner, 100, RData::MX(MX::new(10, name("mx.example.")))));
            answer.add_additional(a(&name("mx.example."), 25));
        }
        ("big.example.", RecordType::TXT) => {
            for number in 0..20 {
                let text = format!("{number:0>120}");
                answer.add_answer(Record::from_rdata(owner.clone(), 100, RData::TXT(TXT::new(vec![text]))));
            }
        }
        ("servfail.example.", _) => answer.metadata.response_code = ResponseCode::ServFail,
        ("refused.example.", _) => answer.metadata.response_code = ResponseCode::Refused,
        ("a.example." | "mail.example." | "alias.example." | "big.example.", _) => drop(answer.add_authority(soa)),
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.add_authority(soa);
        }
    }
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        *edns.options_mut() = asked.options().clone();
        answer.set_edns(edns);
    }
    answer
}

impl Resolver {
    /// Has to be made in a [`LocalSet`].
    async fn start() -> Resolver {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = Rc::new(tokio::net::UdpSocket::bind(address).await.unwrap());
        let resolver = Resolver {
            address,
            asked: Rc::default(),
            last: Rc::default(),
            gate: Rc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        };
        let note = |resolver: &Resolver, raw: &[u8], transport: &str| {
            let query = Message::from_vec(raw).unwrap();
            let key = format!("{} {} {transport}", query.queries[0].name(), query.queries[0].query_type());
            *resolver.asked.borrow_mut().entry(key).or_default() += 1;
            *resolver.last.borrow_mut() = raw.to_vec();
            resolve(&query)
        };
        let this = resolver.share();
        tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 65535];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let mut answer = note(&this, &buffer[..length], "udp");
                let limit = usize::from(Message::from_vec(&buffer[..length]).unwrap().max_payload());
                let (gate, socket) = (this.gate.clone(), socket.clone());
                tokio::task::spawn_local(async move {
                    let _open = gate.acquire().await.unwrap();
                    if answer.to_vec().unwrap().len() > limit {
                        answer = answer.truncate();
                        answer.metadata.truncation = true;
                    }
                    socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
                });
            }
        });
        let this = resolver.share();
        tokio::task::spawn_local(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut raw = vec![0; length.into()];
                stream.read_exact(&mut raw).await.unwrap();
                let bytes = note(&this, &raw, "tcp").to_vec().unwrap();
                stream.write_all(&[&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()).await.unwrap();
            }
        });
        resolver
    }

    fn share(&self) -> Resolver {
        Resolver { address: self.address, asked: self.asked.clone(), last: self.last.clone(), gate: self.gate.clone() }
    }

    fn count(&self, key: &str) -> usize {
        self.asked.borrow().get(key).copied().unwrap_or(0)
    }
}

/// A DNS server in this thread.
struct Served {
    address: SocketAddr,
    dns: Arc<Dns>,
    directory: tempfile::TempDir,
}

impl Served {
    fn start(resolv_conf: &str) -> Served {
        let directory = tempfile::tempdir().unwrap();
        let path: PathBuf = directory.path().join("resolv.conf");
        fs::write(&path, resolv_conf).unwrap();
        let dns = Arc::new(Dns::new(path));
        let sockets = Sockets::bind(&Addresses::new(0, true, false, false)).unwrap();
        let address = sockets.addresses()[0];
        tokio::task::spawn_local(run(sockets, dns.clone()));
        Served { address, dns, directory }
    }

    async fn udp(&self, query: &Message) -> Message {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket.send(&query.to_vec().unwrap()).await.unwrap();
        let mut buffer = vec![0; 65535];
        let length = timeout(LIMIT, socket.recv(&mut buffer)).await.expect("an answer in time").unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }

    async fn tcp(&self, query: &Message) -> Message {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let raw = query.to_vec().unwrap();
        stream.write_all(&[&(raw.len() as u16).to_be_bytes()[..], &raw].concat()).await.unwrap();
        let length = timeout(LIMIT, stream.read_u16()).await.expect("an answer in time").unwrap();
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    }
}

fn query(owner: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.id = 0x4242;
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name(owner), kind));
    query
}

fn with_edns(mut query: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    query.set_edns(edns);
    query
}

/// The answer in one line: code, flags, records of all sections.
fn summary(answer: &Message) -> String {
    let mut text = format!("{:?}", answer.metadata.response_code);
    for (set, flag) in [
        (answer.metadata.authoritative, "aa"),
        (answer.metadata.recursion_available, "ra"),
        (answer.metadata.truncation, "tc"),
        (answer.edns.is_some(), "edns"),
    ] {
        if set {
            text += " ";
            text += flag;
        }
    }
    for (section, records) in [("", &answer.answers), ("ns:", &answer.authorities), ("add:", &answer.additionals)] {
        for record in records {
            let data = match &record.data {
                RData::SOA(_) => String::new(),
                RData::TXT(_) => "…".into(),
                data => format!(" {data}"),
            };
            text += &format!("; {section}{} {} {}{data}", record.name, record.ttl, record.record_type());
        }
    }
    text
}

/// Runs a test on one thread with a [`LocalSet`], as the server's own.
fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

/// What CoreDNS with Kuma's configuration answers: the mesh's names of types A and AAAA from the table with AA and TTL 30, all else as the resolver
/// says. Two things differ on purpose: RA is set on the mesh's answers, since recursion is offered, and names are equal whatever their case.
#[test]
fn forty_queries() {
    use RecordType::{A, AAAA, ANY, CNAME, HTTPS, MX, NS, PTR, SRV, TXT};
    const SOA: &str = "; ns:example. 60 SOA";
    let nx = format!("NXDomain ra{SOA}");
    let nodata = format!("NoError ra{SOA}");
    let big: String = (0..20).map(|_| "; big.example. 100 TXT…").collect();
    let big = format!("NoError ra{big}");
    #[rustfmt::skip]
    let table: &[(&str, RecordType, &str, &str)] = &[
        // Names of the mesh. Trap 22: TTL 30, no error and no records where the family is missing.
        ("backend.mesh.", A, "udp", "NoError aa ra; backend.mesh. 30 A 240.0.0.1"),
        ("backend.mesh.", AAAA, "udp", "NoError aa ra; backend.mesh. 30 AAAA fd00:fd00::f000:1"),
        ("backend.mesh.", A, "tcp", "NoError aa ra; backend.mesh. 30 A 240.0.0.1"),
        ("backend.mesh.", AAAA, "tcp", "NoError aa ra; backend.mesh. 30 AAAA fd00:fd00::f000:1"),
        ("backend.mesh.", A, "edns", "NoError aa ra edns; backend.mesh. 30 A 240.0.0.1"),
        ("BACKEND.mesh.", A, "udp", "NoError aa ra; BACKEND.mesh. 30 A 240.0.0.1"),
        ("bAcKeNd.MeSh.", A, "udp", "NoError aa ra; bAcKeNd.MeSh. 30 A 240.0.0.1"),
        ("backend_demo_svc_80.mesh.", A, "udp", "NoError aa ra; backend_demo_svc_80.mesh. 30 A 240.0.0.2"),
        ("backend.demo.svc.80.mesh.", A, "udp", "NoError aa ra; backend.demo.svc.80.mesh. 30 A 240.0.0.2"),
        ("backend.demo.svc.80.mesh.", AAAA, "udp", "NoError aa ra"),
        ("backend_demo_svc_80.mesh.", AAAA, "edns", "NoError aa ra edns"),
        ("echo.svc.mesh.local.", A, "udp", "NoError aa ra; echo.svc.mesh.local. 30 A 241.0.0.1"),
        ("echo.svc.mesh.local.", AAAA, "udp", "NoError aa ra; echo.svc.mesh.local. 30 AAAA fd00:fd00::f100:1"),
        ("two.mesh.", A, "udp", "NoError aa ra; two.mesh. 30 A 240.0.0.3; two.mesh. 30 A 240.0.0.4"),
        ("two.mesh.", AAAA, "tcp", "NoError aa ra"),
        ("six.mesh.", A, "udp", "NoError aa ra"),
        ("six.mesh.", AAAA, "udp", "NoError aa ra; six.mesh. 30 AAAA fd00:fd00::f000:6"),
        ("none.mesh.", A, "udp", "NoError aa ra"),
        ("none.mesh.", AAAA, "udp", "NoError aa ra"),
        ("shadow.example.", A, "udp", "NoError aa ra; shadow.example. 30 A 242.0.0.1"),
        // Other types of them, and names that only look like them, are the resolver's.
        ("backend.mesh.", MX, "udp", &nx),
        ("backend.mesh.", TXT, "udp", &nx),
        ("backend.mesh.", HTTPS, "udp", &nx),
        ("backend.mesh.", SRV, "udp", &nx),
        ("backend.mesh.", ANY, "udp", &nx),
        ("x.backend.mesh.", A, "udp", &nx),
        ("mesh.", A, "udp", &nx),
        ("nobody.mesh.", A, "udp", &nx),
        ("nobody.mesh.", AAAA, "tcp", &nx),
        ("backend.mesh.cluster.local.", A, "udp", &nx),
        // Everything else.
        ("a.example.", A, "udp", "NoError ra; a.example. 100 A 192.0.2.10"),
        ("a.example.", AAAA, "udp", "NoError ra; a.example. 100 AAAA 2001:db8::10"),
        ("A.eXample.", A, "udp", "NoError ra; A.eXample. 100 A 192.0.2.10"),
        ("a.example.", A, "edns", "NoError ra edns; a.example. 100 A 192.0.2.10"),
        ("a.example.", MX, "udp", &nodata),
        ("alias.example.", A, "udp", "NoError ra; alias.example. 100 CNAME a.example.; a.example. 100 A 192.0.2.10"),
        ("alias.example.", CNAME, "udp", &nodata),
        ("mail.example.", MX, "tcp", "NoError ra; mail.example. 100 MX 10 mx.example.; add:mx.example. 100 A 192.0.2.25"),
        ("big.example.", TXT, "tcp", &big),
        ("servfail.example.", A, "udp", "ServFail ra"),
        ("refused.example.", A, "udp", "Refused ra"),
        (".", NS, "udp", &nx),
        ("10.2.0.192.in-addr.arpa.", PTR, "udp", &nx),
    ];
    assert!(table.len() >= 40);
    local(async {
        let resolver = Resolver::start().await;
        let served = Served::start(&format!("nameserver [127.0.0.1]:{}\n", resolver.address.port()));
        assert_eq!(served.dns.configure(DOCUMENT.as_bytes()), Ok(vec![]));
        for (owner, kind, how, expected) in table {
            let query = query(owner, *kind);
            let answer = match *how {
                "udp" => served.udp(&query).await,
                "tcp" => served.tcp(&query).await,
                _ => served.udp(&with_edns(query.clone(), 1232)).await,
            };
            assert_eq!(summary(&answer), *expected, "{owner} {kind} {how}");
            assert_eq!((answer.metadata.id, answer.metadata.recursion_desired), (0x4242, true), "{owner} {kind}");
            // 0x20: letter by letter.
            assert!(answer.queries[0].name().eq_case(&name(owner)), "{owner} {kind}");
        }
        assert_eq!(resolver.count("backend.mesh. A udp"), 0);
        let mut text = String::new();
        served.dns.metrics.write(&mut text, "");
        for line in [
            "kuma_dp_dns_queries_total{qtype=\"A\",source=\"local\"} 12",
            "kuma_dp_dns_queries_total{qtype=\"AAAA\",source=\"local\"} 8",
            "kuma_dp_dns_response_codes_total{rcode=\"servfail\"} 1",
            "kuma_dp_dns_entries_total 8",
            "kuma_dp_dns_upstream_request_failure_count 0",
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
    });
}

#[test]
fn what_does_not_fit_is_truncated_and_fetched_over_tcp() {
    local(async {
        let resolver = Resolver::start().await;
        let served = Served::start(&format!("nameserver [127.0.0.1]:{}\n", resolver.address.port()));
        let answer = served.udp(&query("big.example.", RecordType::TXT)).await;
        assert!(answer.metadata.truncation && answer.answers.len() < 20 && answer.to_vec().unwrap().len() <= 512);
        // The resolver truncated too, and was asked again over TCP, so that the whole answer is here for who comes back.
        assert_eq!((resolver.count("big.example. TXT udp"), resolver.count("big.example. TXT tcp")), (1, 1));
        let whole = served.tcp(&query("big.example.", RecordType::TXT)).await;
        assert!(!whole.metadata.truncation && whole.answers.len() == 20);
        let large = served.udp(&with_edns(query("big.example.", RecordType::TXT), 4096)).await;
        assert!(!large.metadata.truncation && large.answers.len() == 20);
        assert_eq!(resolver.count("big.example. TXT tcp"), 1);
    });
}

#[test]
fn equal_queries_at_once_are_one_and_answers_are_kept() {
    local(async {
        let resolver = Resolver::start().await;
        let served = Served::start(&format!("nameserver [127.0.0.1]:{}\n", resolver.address.port()));
        resolver.gate.forget_permits(Semaphore::MAX_PERMITS);
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(served.address).await.unwrap();
        for owner in ["a.example.", "A.example.", "a.EXAMPLE."].iter().cycle().take(30) {
            socket.send(&query(owner, RecordType::A).to_vec().unwrap()).await.unwrap();
        }
        while served.dns.metrics.coalesced.load(std::sync::atomic::Ordering::Relaxed) < 29 {
            tokio::task::yield_now().await;
        }
        resolver.gate.add_permits(1);
        let mut buffer = vec![0; 512];
        for _ in 0..30 {
            let length = timeout(LIMIT, socket.recv(&mut buffer)).await.expect("an answer in time").unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            assert!(answer.answers[0].name.eq_case(answer.queries[0].name()));
        }
        assert_eq!(resolver.count("a.example. A udp"), 1);
        let again = served.udp(&query("a.example.", RecordType::A)).await;
        assert_eq!(again.answers.len(), 1);
        assert_eq!(resolver.count("a.example. A udp"), 1);
        // Another question altogether: another type, with DO.
        resolver.gate.add_permits(2);
        served.udp(&query("a.example.", RecordType::AAAA)).await;
        let mut secure = with_edns(query("a.example.", RecordType::A), 1232);
        secure.edns.as_mut().unwrap().set_dnssec_ok(true);
        let answer = served.udp(&secure).await;
        assert!(answer.edns.unwrap().flags().dnssec_ok);
        assert_eq!(resolver.count("a.example. A udp"), 2);
    });
}

#[test]
fn edns_options_pass_both_ways_and_are_not_shared() {
    local(async {
        let resolver = Resolver::start().await;
        let served = Served::start(&format!("nameserver [127.0.0.1]:{}\n", resolver.address.port()));
        let mut asked = with_edns(query("a.example.", RecordType::A), 1232);
        asked.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(65001, vec![1, 2, 3]));
        for round in 1..=2 {
            let answer = served.udp(&asked).await;
            assert_eq!(answer.edns.unwrap().options().as_ref(), asked.edns.as_ref().unwrap().options().as_ref());
            assert_eq!(resolver.count("a.example. A udp"), round);
        }
        // The very bytes, but for the id.
        assert_eq!(resolver.last.borrow()[2..], asked.to_vec().unwrap()[2..]);
    });
}

#[test]
fn a_resolver_that_is_away_costs_no_more_than_its_timeout() {
    local(async {
        // Takes queries and never answers.
        let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let served = Served::start(&format!("nameserver [127.0.0.1]:{port}\noptions timeout:1 attempts:2\n"));
        assert_eq!(served.dns.configure(DOCUMENT.as_bytes()), Ok(vec![]));
        let start = Instant::now();
        let answer = served.udp(&query("a.example.", RecordType::A)).await;
        assert_eq!(summary(&answer), "ServFail ra");
        // Less than what the client, who reads the same file, waits for each of its own tries; the bound here is only against hanging.
        assert!(start.elapsed() < LIMIT);
        assert_eq!(
            summary(&served.udp(&query("backend.mesh.", RecordType::A)).await),
            "NoError aa ra; backend.mesh. 30 A 240.0.0.1"
        );
        let mut text = String::new();
        served.dns.metrics.write(&mut text, "");
        assert!(text.contains("kuma_dp_dns_upstream_request_failure_count 1\n"), "{text}");
        assert!(text.contains(&format!("shika_dns_resolver_up{{resolver=\"127.0.0.1:{port}\"}} 0\n")), "{text}");
        // Both rounds of the one query were sent.
        let mut buffer = [0; 512];
        for _ in 0..2 {
            silent.try_recv(&mut buffer).unwrap();
        }
        assert!(silent.try_recv(&mut buffer).is_err());
    });
}

#[test]
fn the_next_resolver_is_asked_and_the_file_is_read_again() {
    local(async {
        let (first, second) = (Resolver::start().await, Resolver::start().await);
        let closed = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let served = Served::start(&format!(
            "nameserver [127.0.0.1]:{}\nnameserver [127.0.0.1]:{}\n",
            closed.port(),
            first.address.port()
        ));
        assert_eq!(served.udp(&query("a.example.", RecordType::A)).await.answers.len(), 1);
        assert_eq!(first.count("a.example. A udp"), 1);
        let path = served.directory.path().join("resolv.conf");
        fs::write(&path, format!("nameserver [127.0.0.1]:{} # replaced\n", second.address.port())).unwrap();
        // Answers of the old ones are forgotten with them.
        let start = Instant::now();
        while second.count("a.example. A udp") == 0 {
            assert!(start.elapsed() < LIMIT);
            assert_eq!(served.udp(&query("a.example.", RecordType::A)).await.answers.len(), 1);
        }
        assert_eq!(first.count("a.example. A udp"), 1);
    });
}

#[test]
fn bad_messages_get_an_error_or_nothing() {
    local(async {
        let served = Served::start("nameserver 192.0.2.1\n");
        let good = query("backend.mesh.", RecordType::A).to_vec().unwrap();
        let patched = |patches: &[(usize, u8)]| {
            let mut raw = good.clone();
            for (at, value) in patches {
                raw[*at] = *value;
            }
            raw
        };
        for (raw, expected) in [
            // Opcode UPDATE.
            (patched(&[(2, 5 << 3)]), Some(ResponseCode::NotImp)),
            // No question, two questions, 65535 questions.
            (patched(&[(5, 0)]), Some(ResponseCode::FormErr)),
            (patched(&[(5, 2)]), Some(ResponseCode::FormErr)),
            (patched(&[(4, 255), (5, 255)]), Some(ResponseCode::FormErr)),
            // Records that are not there.
            (patched(&[(10, 255), (11, 255)]), Some(ResponseCode::FormErr)),
            (good[..20].to_vec(), Some(ResponseCode::FormErr)),
            // A name that points to itself.
            ([&good[..12], &[0xc0, 12, 0, 1, 0, 1]].concat(), Some(ResponseCode::FormErr)),
            // A response, half a header.
            (patched(&[(2, 0x80)]), None),
            (good[..11].to_vec(), None),
        ] {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(served.address).await.unwrap();
            socket.send(&raw).await.unwrap();
            // What gets no answer is followed by a query that does.
            if expected.is_none() {
                socket.send(&patched(&[(2, 5 << 3)])).await.unwrap();
            }
            let mut buffer = [0; 512];
            let length = timeout(LIMIT, socket.recv(&mut buffer)).await.expect("an answer in time").unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            assert_eq!(answer.metadata.message_type, MessageType::Response);
            assert_eq!(answer.metadata.response_code, expected.unwrap_or(ResponseCode::NotImp), "{raw:?}");
            assert_eq!(answer.metadata.id, 0x4242);
        }
        let mut future = with_edns(query("backend.mesh.", RecordType::A), 1232);
        future.edns.as_mut().unwrap().set_version(1);
        // 16 is BADVERS in an OPT record, and BADSIG in the library's words.
        assert_eq!(summary(&served.udp(&future).await), "BADSIG ra edns");
    });
}

#[test]
fn our_own_query_that_comes_back_is_not_forwarded_again() {
    local(async {
        // What a redirection that does not exempt the proxy's user does: the query to the resolver arrives at the server itself.
        let relay = Rc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let served = Served::start(&format!("nameserver [127.0.0.1]:{}\n", relay.local_addr().unwrap().port()));
        let forwarder = Forwarder::new(
            served.dns.clone(),
            Upstreams::new(ResolvConf::parse("nameserver 192.0.2.1"), &[], served.dns.clone()),
        );
        let server = Server { forwarder: Rc::new(forwarder), dns: served.dns.clone() };
        let raw = query("a.example.", RecordType::A).to_vec().unwrap();
        let from = SocketAddr::from(([127, 0, 0, 1], 40000));
        let _out = server.forwarder.outgoing.note(40000, 0x4242);
        let Step::Answer(reply) = server.take(raw.clone(), from, Protocol::Udp) else { panic!("not refused") };
        assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::ServFail);
        // The same from any other port is a client's.
        let other = SocketAddr::from(([127, 0, 0, 1], 40001));
        assert!(matches!(server.take(raw, other, Protocol::Udp), Step::Wait(_)));
    });
}

#[test]
fn a_thousand_names_change_while_queries_run() {
    let document = |round: u32| {
        let records: Vec<_> = (0..1000)
            .map(|number| {
                let ip = Ipv4Addr::from_bits(0xf000_0000 + round * 1000 + number);
                serde_json::json!({"name": format!("s{number}.mesh"), "ips": [ip.to_string()]})
            })
            .collect();
        serde_json::json!({"records": records, "ttl": 30}).to_string()
    };
    local(async {
        let served = Served::start("nameserver 192.0.2.1\n");
        served.dns.configure(document(0).as_bytes()).unwrap();
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        // Updates come from another thread, as from the control thread.
        let updates = {
            let (dns, stop) = (served.dns.clone(), stop.clone());
            std::thread::spawn(move || {
                for round in 1..=50 {
                    assert_eq!(dns.configure(document(round).as_bytes()), Ok(vec![]));
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            })
        };
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(served.address).await.unwrap();
        let (mut number, mut seen, mut buffer) = (0u32, 0, [0; 512]);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            number = (number + 7) % 1000;
            socket.send(&query(&format!("s{number}.mesh."), RecordType::A).to_vec().unwrap()).await.unwrap();
            let length = timeout(LIMIT, socket.recv(&mut buffer)).await.expect("an answer in time").unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            let RData::A(ip) = answer.answers[0].data else { panic!("{answer:?}") };
            let round = (ip.0.to_bits() - 0xf000_0000) / 1000;
            assert_eq!((ip.0.to_bits() - 0xf000_0000) % 1000, number);
            // Tables only get newer.
            assert!(round >= seen, "{round} after {seen}");
            seen = round;
        }
        updates.join().unwrap();
        let answer = served.udp(&query("s1.mesh.", RecordType::A)).await;
        assert_eq!(
            summary(&answer),
            format!("NoError aa ra; s1.mesh. 30 A {}", Ipv4Addr::from_bits(0xf000_0000 + 50_001))
        );
    });
}

#[test]
fn addresses_by_kumas_rule() {
    let listed =
        |addresses: Addresses| addresses.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    for (transparent, dual_stack, vnet, expected) in [
        (false, true, false, "0.0.0.0 127.0.0.1"),
        (true, false, false, "127.0.0.1"),
        (true, true, false, "127.0.0.1 ::1"),
        (true, false, true, "0.0.0.0 127.0.0.1"),
        (true, true, true, "0.0.0.0 127.0.0.1 :: ::1"),
    ] {
        assert_eq!(listed(Addresses::new(15053, transparent, dual_stack, vnet)), expected);
    }
}

#[test]
fn all_addresses_share_the_port_and_a_second_server_is_kept_out() {
    local(async {
        let sockets = Sockets::bind(&Addresses::new(0, true, true, true)).unwrap();
        let port = sockets.addresses()[0].port();
        assert!(sockets.addresses().iter().all(|address| address.port() == port));
        assert_eq!(sockets.udp.len(), 2 * sockets.tcp.len());
        let error = Sockets::bind(&Addresses::new(port, true, false, true)).unwrap_err();
        assert!(error.contains(&format!("0.0.0.0:{port}")), "{error}");
    });
}
