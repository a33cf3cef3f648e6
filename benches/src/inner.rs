//! Operations on the path of a connection or a request, and off it, each alone: no sockets, no threads, nothing that differs from run to run.
//!
//! Criterion takes their time (`benches/inner.rs`), callgrind counts their instructions (`shika-benches-instructions`).

use std::{
    hint::black_box,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use http::{HeaderMap, HeaderValue, Version, header};
use prost::Message;
use shika_data::{
    connection::{Connection, FilterState},
    drain::Watch,
    model::{
        access_log::RequestLogs,
        chain_match::{ConnectionFacts, TransportProtocol},
        cluster::Cluster,
        header_view::KeptHeaders,
        listener::{Listener, Terminal},
        rbac::{PeerNames, RequestView, Subject},
    },
    record::{self, Record},
    snapshot::Snapshot,
    stats::{Origin, Registry, enter_worker},
    upstream::pick::{self, PickContext},
    worker,
};

use crate::{configuration, fixtures};

/// One turn of what is measured.
pub type Operation = Box<dyn FnMut()>;

/// What is measured.
pub struct Scenario {
    /// Its name in the baseline.
    pub name: &'static str,
    /// Turns that are enough for a figure.
    pub turns: u64,
    /// Makes what it works on. Takes a directory with [`configuration::write_certificates`]'s files.
    pub prepare: fn(&Path) -> anyhow::Result<Operation>,
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "route_match: 1,000 hosts, last of 10 prefixes", turns: 20_000, prepare: |_| route_match() },
    Scenario { name: "chain_match: one of 1,000 server names", turns: 20_000, prepare: |_| chain_match() },
    Scenario { name: "rbac: last of 100 SPIFFE ids", turns: 5_000, prepare: |_| rbac() },
    Scenario { name: "lb: round robin over 16", turns: 50_000, prepare: |_| balance("ROUND_ROBIN") },
    Scenario { name: "lb: least request over 16", turns: 50_000, prepare: |_| balance("LEAST_REQUEST") },
    Scenario { name: "lb: random over 16", turns: 50_000, prepare: |_| balance("RANDOM") },
    Scenario { name: "lb: ring hash over 16", turns: 50_000, prepare: |_| balance("RING_HASH") },
    Scenario { name: "lb: Maglev over 16", turns: 50_000, prepare: |_| balance("MAGLEV") },
    Scenario { name: "headers: 4 added, 2 removed", turns: 10_000, prepare: headers },
    Scenario {
        name: "access_log: text as Kuma's default",
        turns: 5_000,
        prepare: |certificates| access_log(SERVER, certificates),
    },
    Scenario {
        name: "access_log: JSON of 14 fields",
        turns: 5_000,
        prepare: |certificates| access_log(CLIENT, certificates),
    },
    Scenario { name: "stats: what a request counts", turns: 50_000, prepare: stats },
    Scenario { name: "compile: a sidecar with 10 services", turns: 2, prepare: compile_sidecar },
    Scenario { name: "compile: 1,000 clusters", turns: 1, prepare: |_| compile_clusters() },
];

/// Finds a scenario.
///
/// # Errors
/// There is none of that name.
pub fn scenario(name: &str) -> anyhow::Result<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name).with_context(|| format!("there is no scenario `{name}`"))
}

const SERVER: &str = include_str!("../bootstraps/sidecar_server.yaml");
const CLIENT: &str = include_str!("../bootstraps/sidecar_client.yaml");

fn route_match() -> anyhow::Result<Operation> {
    let table = fixtures::route_table(1_000, 10);
    let hosts: Vec<String> = (0..64).map(|i| format!("service-{}.example.com", i * 15)).collect();
    let headers = request_headers();
    let mut turn = 0;
    Ok(Box::new(move || {
        turn = (turn + 1) % hosts.len();
        let request = RequestView {
            method: "GET",
            path: black_box("/api/v9/items?x=1"),
            authority: hosts.get(turn).map_or("", String::as_str),
            scheme: "http",
            headers: (&headers).into(),
        };
        let route = table
            .virtual_host(request.authority)
            .and_then(|host| host.route(&request, &FilterState::default(), false, &mut || 0));
        black_box(route.map(|route| route.name.len()));
    }))
}

fn chain_match() -> anyhow::Result<Operation> {
    let table = fixtures::sni_chains(1_000)?;
    let names: Vec<String> = (0..64).map(|i| format!("service-{}.mesh", i * 15)).collect();
    let mut turn = 0;
    Ok(Box::new(move || {
        turn = (turn + 1) % names.len();
        let facts = ConnectionFacts {
            destination: Some(([10, 0, 0, 1], 10_001).into()),
            source: Some(([10, 0, 0, 2], 40_000).into()),
            direct_source: Some(([10, 0, 0, 2], 40_000).into()),
            server_name: names.get(turn).map_or("", String::as_str),
            transport: TransportProtocol::Tls,
            application_protocols: &[],
        };
        black_box(table.find(&facts).map(|chain| chain.id));
    }))
}

fn rbac() -> anyhow::Result<Operation> {
    let rules = fixtures::rules(100);
    let peer = PeerNames { uris: vec!["spiffe://default/service-99".into()], dns: Vec::new(), subject: "".into() };
    Ok(Box::new(move || {
        let subject = Subject {
            peer: Some(black_box(&peer)),
            destination: None,
            remote: None,
            direct_remote: None,
            server_name: "",
            request: None,
        };
        black_box(rules.decide(&subject).allowed);
    }))
}

/// 16 endpoints under a policy of Envoy's.
fn balance(policy: &str) -> anyhow::Result<Operation> {
    let endpoints: Vec<_> = (1..=16)
        .map(|host| {
            format!("{{endpoint: {{address: {{socket_address: {{address: 10.0.0.{host}, port_value: 80}}}}}}}}")
        })
        .collect();
    let (registry, snapshot) = configuration::compile(configuration::bootstrap(&format!(
        "static_resources: {{clusters: [{{name: backend, type: STATIC, lb_policy: {policy}, load_assignment: {{cluster_name: backend, endpoints: \
         [{{lb_endpoints: [{}]}}]}}}}]}}",
        endpoints.join(", ")
    ))?)?;
    let cluster = first_cluster(&snapshot)?;
    enter(snapshot);
    let mut hash = 1_u64;
    Ok(Box::new(move || {
        // What is counted belongs to the registry.
        black_box(&registry);
        hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17);
        let context = PickContext { hash: Some(hash), ..PickContext::default() };
        black_box(pick::choose(&cluster, &context).is_ok());
    }))
}

fn headers(certificates: &Path) -> anyhow::Result<Operation> {
    let mutations = fixtures::header_mutations();
    let (connection, _registry) = connection(certificates)?;
    let headers = request_headers();
    Ok(Box::new(move || {
        let mut headers = headers.clone();
        let values = shika_data::http::header_values(&mutations, &Record::of_connection(&connection));
        shika_data::http::mutate(&mut headers, &mutations, values);
        black_box(headers.len());
    }))
}

/// The access log of the first listener of a bootstrap, and a request of which everything is known. What of its headers is asked for is kept first.
fn access_log(yaml: &str, certificates: &Path) -> anyhow::Result<Operation> {
    let (connection, registry) = connection(certificates)?;
    let (_, snapshot) = compile(yaml, certificates)?;
    let listener = first_listener(&snapshot)?;
    let logs = access_logs(&listener)?;
    let cluster = first_cluster(&snapshot)?;
    let endpoint = cluster.endpoints.load().all().next().context("the cluster has no endpoint")?.clone();
    let (request, mut response) = (request_headers(), HeaderMap::new());
    response.insert("x-envoy-upstream-service-time", HeaderValue::from_static("3"));
    enter(snapshot);
    Ok(Box::new(move || {
        black_box(&registry);
        let request = KeptHeaders::of(&request, logs.request_headers());
        let response = KeptHeaders::of(&response, logs.response_headers());
        let record = Record {
            request: Some(RequestView {
                method: "GET",
                path: "/api/v1/items?x=1",
                authority: "backend.mesh",
                scheme: "http",
                headers: request.view(),
            }),
            version: Some(Version::HTTP_11),
            response: Some(response.view()),
            status: 200,
            details: Some("via_upstream"),
            request_done: Some(Duration::from_micros(20)),
            response_start: Some(Duration::from_millis(3)),
            duration: Duration::from_millis(4),
            bytes_received: 0,
            bytes_sent: 1_024,
            cluster: Some(&cluster),
            endpoint: Some(&endpoint),
            upstream_version: Some(Version::HTTP_2),
            attempts: 1,
            ..Record::of_connection(&connection)
        };
        record::write(&logs, &record);
    }))
}

fn stats(certificates: &Path) -> anyhow::Result<Operation> {
    let (registry, snapshot) = compile(SERVER, certificates)?;
    let cluster = first_cluster(&snapshot)?;
    let listener = first_listener(&snapshot)?;
    let manager = match &first_chain(&listener)?.terminal {
        Terminal::Http(manager) => manager.clone(),
        _ => bail!("the first chain does not end in HTTP"),
    };
    enter(snapshot);
    Ok(Box::new(move || {
        black_box(&registry);
        manager.stats.downstream_rq_total().inc();
        manager.stats.downstream_rq_active().inc();
        cluster.stats.upstream_rq_total().inc();
        cluster.stats.upstream_rq_active().inc();
        cluster.stats.upstream_cx_rx_bytes_total().add(black_box(200));
        cluster.stats.upstream_cx_tx_bytes_total().add(black_box(300));
        cluster.stats.count_code(Origin::Internal, black_box(200));
        cluster.stats.record_time(Origin::Internal, black_box(3));
        cluster.stats.upstream_rq_active().dec();
        manager.stats.downstream_rq_time().record(black_box(4));
        manager.stats.downstream_rq_active().dec();
    }))
}

/// What a sidecar starts with, from the bytes that a control plane sends.
fn compile_sidecar(certificates: &Path) -> anyhow::Result<Operation> {
    Ok(compiling(configuration::mesh(&filled(CLIENT, certificates), 10)?.encode_to_vec()))
}

fn compile_clusters() -> anyhow::Result<Operation> {
    let yaml = include_str!("../../loadtest/bootstraps/one_hop_http1.yaml");
    let mut bootstrap = configuration::mesh(&filled(yaml, Path::new("")), 1_000)?;
    if let Some(resources) = &mut bootstrap.static_resources {
        resources.listeners.truncate(1);
    }
    Ok(compiling(bootstrap.encode_to_vec()))
}

fn compiling(bytes: Vec<u8>) -> Operation {
    Box::new(move || {
        let compiled =
            Message::decode(bytes.as_slice()).ok().and_then(|bootstrap| configuration::compile(bootstrap).ok());
        black_box(compiled.map(|(_, snapshot)| snapshot.clusters.len()));
    })
}

fn compile(yaml: &str, certificates: &Path) -> anyhow::Result<(Arc<Registry>, Arc<Snapshot>)> {
    configuration::compile(configuration::bootstrap(&filled(yaml, certificates))?)
}

/// A bootstrap's text with ports that nobody listens on.
fn filled(yaml: &str, certificates: &Path) -> String {
    yaml.replace("{{listener_port}}", "1")
        .replace("{{upstream_port}}", "2")
        .replace("{{admin_port}}", "3")
        .replace("{{certs}}", &certificates.to_string_lossy())
}

/// Makes this thread a worker.
fn enter(snapshot: Arc<Snapshot>) {
    enter_worker(0);
    worker::enter_for_test(snapshot);
}

fn request_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_static("backend.mesh"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("bench/1.0"));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert("x-forwarded-for", HeaderValue::from_static("10.0.0.7"));
    headers.insert("x-forwarded-proto", HeaderValue::from_static("http"));
    headers.insert("x-request-id", HeaderValue::from_static("6d8a9dcb-0b44-4b4f-9f3a-1a2b3c4d5e6f"));
    headers.insert("x-kuma-tags", HeaderValue::from_static("&kuma.io/service=web&&version=v1&"));
    headers
}

fn first_cluster(snapshot: &Snapshot) -> anyhow::Result<Arc<Cluster>> {
    snapshot.clusters.iter().flatten().next().cloned().context("there is no cluster")
}

fn first_listener(snapshot: &Snapshot) -> anyhow::Result<Arc<Listener>> {
    snapshot.listeners.iter().flatten().next().cloned().context("there is no listener")
}

fn first_chain(listener: &Listener) -> anyhow::Result<Arc<shika_data::model::listener::FilterChain>> {
    listener.chains.iter().next().map(|(_, chain)| chain.clone()).context("the listener has no chain")
}

fn access_logs(listener: &Listener) -> anyhow::Result<RequestLogs> {
    match &first_chain(listener)?.terminal {
        Terminal::Http(manager) => Ok(manager.access_log.clone()),
        _ => bail!("the first chain does not end in HTTP"),
    }
}

/// A connection that is not there.
fn connection(certificates: &Path) -> anyhow::Result<(Connection, Arc<Registry>)> {
    let (registry, snapshot) = compile(SERVER, certificates)?;
    let listener = first_listener(&snapshot)?;
    let connection = Connection {
        id: shika_data::connection::next_id(),
        listener: listener.id,
        chain: first_chain(&listener)?.id,
        demands: 0,
        direction: listener.direction,
        local: Some(([127, 0, 0, 1], 80).into()),
        restored: false,
        direct_local: Some(([127, 0, 0, 1], 80).into()),
        remote: Some(([10, 0, 0, 7], 40_000).into()),
        direct_remote: Some(([10, 0, 0, 7], 40_000).into()),
        sni: "".into(),
        alpn: None,
        detected: None,
        tls: None,
        filter_state: FilterState::default(),
        start: Instant::now(),
        start_time: SystemTime::now(),
        received: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        drain: Watch::new(0),
        upgrade: Default::default(),
        gone: Default::default(),
    };
    Ok((connection, registry))
}
