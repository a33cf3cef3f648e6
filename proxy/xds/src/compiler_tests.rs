#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use shika_proto::envoy::{
    config::{
        cluster::v3::Cluster as ProtoCluster, endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener as ProtoListener, route::v3::RouteConfiguration,
    },
    extensions::transport_sockets::tls::v3::Secret,
};

use super::*;
use crate::compile::testing::{ADS, apply, certificate, compiler, delta, load, quoted};

fn started() -> (Compiler, Instant) {
    let mut compiler = compiler();
    load(&mut compiler, ADS).unwrap();
    compiler.build().unwrap();
    (compiler, Instant::now())
}

const EDS_CLUSTER: &str =
    "{ name: a, type: EDS, eds_cluster_config: { eds_config: { ads: {}, resource_api_version: V3 } } }";

fn assignment(name: &str, hosts: &[(&str, u32)]) -> String {
    let hosts: Vec<String> = hosts
        .iter()
        .map(|(ip, port)| {
            format!("{{ endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }} }} }}")
        })
        .collect();
    format!("{{ cluster_name: {name}, endpoints: [{{ lb_endpoints: [{}] }}] }}", hosts.join(", "))
}

fn tcp_listener(name: &str, port: u16, cluster: &str) -> String {
    format!(
        "
name: {name}
address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
filter_chains:
- filters:
  - name: tcp
    typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, cluster: {cluster} }}
"
    )
}

fn http_listener(name: &str, port: u16, routes: &str) -> String {
    format!(
        "
name: {name}
address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
filter_chains:
- filters:
  - name: http
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: s
      {routes}
      http_filters: [{{ name: router, typed_config: {{ '@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}]
"
    )
}

const RDS: &str = "rds: { route_config_name: r, config_source: { ads: {}, resource_api_version: V3 } }";

fn names(list: &[&str]) -> Wanted {
    Wanted::Names(list.iter().map(|name| Arc::from(*name)).collect())
}

#[test]
fn a_cluster_waits_for_its_endpoints_and_listeners_for_clusters() {
    let (mut compiler, now) = started();
    assert_eq!(compiler.wanted(type_url::CLUSTER), Wanted::All);
    assert_eq!(compiler.wanted(type_url::LISTENER), Wanted::None, "LDS waits for CDS");
    assert!(!compiler.initialized());

    let applied = apply::<ProtoCluster>(&mut compiler, now, &[EDS_CLUSTER]);
    assert!(applied.changed && applied.rejects.is_empty(), "{applied:?}");
    let plan = compiler.build().unwrap();
    let warming =
        Warming { type_url: type_url::CLUSTER, name: "a".into(), waits_for: vec!["ClusterLoadAssignment/a".into()] };
    assert_eq!(plan.warming, [warming]);
    assert_eq!(compiler.wanted(type_url::ENDPOINT), names(&["a"]));
    assert_eq!(compiler.wanted(type_url::LISTENER), Wanted::None);

    assert!(apply::<ClusterLoadAssignment>(&mut compiler, now, &[&assignment("a", &[("10.0.0.1", 80)])]).changed);
    let plan = compiler.build().unwrap();
    assert!(plan.warming.is_empty());
    let cluster = plan.snapshot.clusters.iter().flatten().find(|cluster| &*cluster.name == "a").unwrap().clone();
    let endpoints = cluster.endpoints.load_full();
    assert_eq!(endpoints.priorities[0].endpoints[0].address.to_string(), "10.0.0.1:80");
    assert_eq!(compiler.wanted(type_url::LISTENER), Wanted::All);

    assert!(apply::<ProtoListener>(&mut compiler, now, &[&tcp_listener("l", 15_001, "a")]).changed);
    let plan = compiler.build().unwrap();
    assert_eq!(plan.bind.len(), 1);
    assert!(compiler.initialized());
    assert!(compiler.build().is_none(), "nothing new");

    // Endpoints change alone: the cluster and the endpoint that stays are the same values.
    let update = assignment("a", &[("10.0.0.1", 80), ("10.0.0.2", 80)]);
    let revision = compiler.revision();
    assert!(apply::<ClusterLoadAssignment>(&mut compiler, now, &[&update]).changed);
    assert!(compiler.build().is_none(), "in force without a publication");
    assert_eq!(compiler.revision(), revision, "nothing else to ask for");
    let now_endpoints = cluster.endpoints.load_full();
    assert_eq!(now_endpoints.priorities[0].endpoints.len(), 2);
    assert!(Arc::ptr_eq(&now_endpoints.priorities[0].endpoints[0], &endpoints.priorities[0].endpoints[0]));
    assert_eq!(apply::<ClusterLoadAssignment>(&mut compiler, now, &[&update]).unchanged, 1);

    // A changed cluster needs no new endpoints from the control plane.
    let changed = EDS_CLUSTER.replace("type: EDS", "type: EDS, connect_timeout: 1s");
    apply::<ProtoCluster>(&mut compiler, now, &[&changed]);
    let plan = compiler.build().unwrap();
    let new = plan.snapshot.cluster(cluster.id).unwrap();
    assert!(!Arc::ptr_eq(new, &cluster));
    assert_eq!(new.connect_timeout, Duration::from_secs(1));
    let endpoint = new.endpoints.load().priorities[0].endpoints[0].clone();
    assert!(Arc::ptr_eq(&endpoint, &endpoints.priorities[0].endpoints[0]), "counters go on");
}

#[test]
fn waiting_ends_with_the_initial_fetch_timeout() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &[EDS_CLUSTER]);
    compiler.build();
    assert_eq!(compiler.next_tick(), Some(now + Duration::from_secs(15)));
    assert!(!compiler.tick(now + Duration::from_secs(14)));
    assert!(compiler.tick(now + Duration::from_secs(15)));
    let plan = compiler.build().unwrap();
    assert!(plan.snapshot.clusters.iter().flatten().any(|cluster| &*cluster.name == "a"));
    assert_eq!(compiler.next_tick(), None);

    let for_ever = EDS_CLUSTER.replace("name: a", "name: b").replace("ads: {}", "ads: {}, initial_fetch_timeout: 0s");
    apply::<ProtoCluster>(&mut compiler, now, &[&for_ever]);
    compiler.build();
    assert!(!compiler.tick(now + Duration::from_secs(1_000_000)));
}

#[test]
fn a_listener_waits_for_its_routes_and_the_old_one_serves() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &[]);
    compiler.build();
    apply::<ProtoListener>(&mut compiler, now, &[&http_listener("l", 15_002, RDS)]);
    let plan = compiler.build();
    assert!(plan.is_none_or(|plan| plan.bind.is_empty() && plan.warming.len() == 1));
    assert_eq!(compiler.wanted(type_url::ROUTE), names(&["r"]));
    let table = "{ name: r, virtual_hosts: [{ name: v, domains: ['*'], routes: [{ match: { prefix: / }, direct_response: { status: 204 } }] }] }";
    apply::<RouteConfiguration>(&mut compiler, now, &[table]);
    let plan = compiler.build().unwrap();
    assert_eq!(plan.bind.len(), 1);
    let id = plan.bind[0];
    let chain = plan.snapshot.listener(id).unwrap().chains.iter().next().unwrap().1.clone();

    // Another table is asked for: the listener in force stays until it is there.
    apply::<ProtoListener>(&mut compiler, now, &[&http_listener("l", 15_002, &RDS.replace(": r,", ": r2,"))]);
    let plan = compiler.build().unwrap();
    assert!(Arc::ptr_eq(plan.snapshot.chain(id, chain.id).unwrap(), &chain));
    assert_eq!(plan.warming[0].waits_for, ["RouteConfiguration/r2"]);
    apply::<RouteConfiguration>(&mut compiler, now, &[&table.replace("name: r,", "name: r2,")]);
    let plan = compiler.build().unwrap();
    assert!(!Arc::ptr_eq(plan.snapshot.chain(id, chain.id).unwrap(), &chain), "same id, new chain");
    assert!(plan.bind.is_empty() && plan.unbind.is_empty(), "the sockets stay");
    assert_eq!(compiler.wanted(type_url::ROUTE), names(&["r2"]));
}

#[test]
fn one_bad_resource_rejects_only_itself_and_the_last_good_one_stays() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &["{ name: good }", "{ name: other }"]);
    compiler.build();
    let applied = apply::<ProtoCluster>(
        &mut compiler,
        now,
        &["{ name: good, lb_policy: LOAD_BALANCING_POLICY_CONFIG }", "{ name: other, connect_timeout: 2s }"],
    );
    let texts: Vec<_> = applied.rejects.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "Cluster \"good\": lb_policy: LOAD_BALANCING_POLICY_CONFIG is not supported; ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH, MAGLEV and CLUSTER_PROVIDED are"
        ]
    );
    assert!(applied.changed);
    let plan = compiler.build().unwrap();
    let timeout = |name: &str| {
        plan.snapshot.clusters.iter().flatten().find(|cluster| &*cluster.name == name).unwrap().connect_timeout
    };
    assert_eq!((timeout("good"), timeout("other")), (Duration::from_secs(5), Duration::from_secs(2)));
    let store = compiler.store().of(type_url::CLUSTER).unwrap();
    assert!(store.errors["good"].details.contains("LOAD_BALANCING_POLICY_CONFIG"));
    assert_eq!(store.dynamic["good"].version, "1");
}

#[test]
fn removals_and_full_states() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &["{ name: a }", "{ name: b }"]);
    compiler.build();
    let count = |plan: &Plan| plan.snapshot.clusters.iter().flatten().count();
    let mut update = delta::<ProtoCluster>("2", &[]);
    update.removed = vec!["a".into(), "never".into(), "ads".into()];
    assert!(compiler.apply(update, now).changed);
    assert_eq!(count(&compiler.build().unwrap()), 2, "the static one cannot be removed");
    let mut update = delta::<ProtoCluster>("3", &["{ name: c }"]);
    update.kind = UpdateKind::FullState;
    compiler.apply(update, now);
    let plan = compiler.build().unwrap();
    let names: BTreeSet<_> = plan.snapshot.clusters.iter().flatten().map(|cluster| cluster.name.to_string()).collect();
    assert_eq!(names, BTreeSet::from(["ads".to_owned(), "c".to_owned()]));
    let applied = apply::<ProtoCluster>(&mut compiler, now, &["{ name: ads }"]);
    assert_eq!(applied.rejects[0].reason, "a static resource of the bootstrap has this name and cannot be changed");

    apply::<ProtoListener>(&mut compiler, now, &[&tcp_listener("l", 15_003, "c")]);
    let bound = compiler.build().unwrap().bind;
    let mut update = delta::<ProtoListener>("4", &[]);
    update.kind = UpdateKind::FullState;
    compiler.apply(update, now);
    let plan = compiler.build().unwrap();
    assert_eq!(plan.unbind, bound);
    assert!(plan.snapshot.listener(bound[0]).is_none());
}

#[test]
fn a_listener_that_cannot_be_bound_leaves_the_old_one() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &["{ name: c }"]);
    apply::<ProtoListener>(&mut compiler, now, &[&tcp_listener("l", 15_004, "c")]);
    let id = compiler.build().unwrap().bind[0];
    apply::<ProtoListener>(&mut compiler, now, &[&tcp_listener("l", 15_005, "c")]);
    assert_eq!(compiler.build().unwrap().bind, [id]);
    let reject = compiler.bind_failed(id, "127.0.0.1:15005: Address already in use (os error 98)");
    assert_eq!(
        reject.to_string(),
        "Listener \"l\": address: cannot bind: 127.0.0.1:15005: Address already in use (os error 98)"
    );
    let plan = compiler.build().unwrap();
    assert!(plan.bind.is_empty() && plan.unbind.is_empty());
    assert!(format!("{:?}", plan.snapshot.listener(id).unwrap().addresses).contains("15004"));
    assert!(compiler.store().of(type_url::LISTENER).unwrap().errors.contains_key("l"));

    apply::<ProtoListener>(&mut compiler, now, &[&tcp_listener("new", 15_005, "c")]);
    let new = compiler.build().unwrap().bind[0];
    compiler.bind_failed(new, "taken");
    let plan = compiler.build().unwrap();
    assert!(plan.snapshot.listener(new).is_none());
    assert!(plan.unbind.is_empty(), "nothing was bound");
}

#[test]
fn a_listener_that_takes_its_place_again_has_its_routes_still() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &["{ name: c }"]);
    compiler.build();
    let of = |name: &str, port: u16| http_listener("l", port, &RDS.replace("name: r", &format!("name: {name}")));
    let table = |name: &str| format!("{{ name: {name}, virtual_hosts: [{{ name: v, domains: ['*'] }}] }}");
    let tables = |compiler: &Compiler| compiler.tables.keys().map(|name| name.to_string()).collect::<BTreeSet<_>>();
    apply::<ProtoListener>(&mut compiler, now, &[&of("first", 15_006)]);
    compiler.build();
    apply::<RouteConfiguration>(&mut compiler, now, &[&table("first")]);
    let id = compiler.build().unwrap().bind[0];
    apply::<ProtoListener>(&mut compiler, now, &[&of("second", 15_007)]);
    compiler.build();
    apply::<RouteConfiguration>(&mut compiler, now, &[&table("second")]);
    assert_eq!(compiler.build().unwrap().bind, [id]);
    assert_eq!(tables(&compiler), BTreeSet::from(["second".to_owned()]));
    compiler.bind_failed(id, "taken");
    let plan = compiler.build().unwrap();
    assert_eq!(tables(&compiler), BTreeSet::from(["first".to_owned()]));
    assert_eq!(plan.snapshot.route_tables.iter().flatten().count(), 1);

    // Once it is bound nothing is kept of the one before: what is asked for again has to come again.
    apply::<ProtoListener>(&mut compiler, now, &[&of("third", 15_008)]);
    compiler.build();
    apply::<RouteConfiguration>(&mut compiler, now, &[&table("third")]);
    assert_eq!(compiler.build().unwrap().bind, [id]);
    apply::<ProtoListener>(&mut compiler, now, &[&of("first", 15_008)]);
    assert_eq!(compiler.build().unwrap().warming.len(), 1);
    assert_eq!(tables(&compiler), BTreeSet::from(["third".to_owned()]));
}

#[test]
fn a_secret_is_swapped_below_the_snapshot_and_refused_if_it_does_not_work() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &["{ name: c }"]);
    compiler.build();
    let tls = "
  transport_socket:
    name: tls
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
      common_tls_context: { tls_certificate_sds_secret_configs: [{ name: id, sds_config: { ads: {}, resource_api_version: V3 } }] }
";
    let listener = format!("{}{tls}", tcp_listener("l", 15_006, "c").trim_end());
    assert_eq!(apply::<ProtoListener>(&mut compiler, now, &[&listener]).rejects, []);
    compiler.build();
    assert_eq!(compiler.wanted(type_url::SECRET), names(&["id"]));
    let secret = |(chain, key): &(String, String)| {
        let (chain, key) = (quoted(chain), quoted(key));
        format!(
            "{{ name: id, tls_certificate: {{ certificate_chain: {{ inline_string: {chain} }}, private_key: {{ inline_string: {key} }} }} }}"
        )
    };
    let (one, two) = (certificate("one.test"), certificate("two.test"));
    assert_eq!(apply::<Secret>(&mut compiler, now, &[&secret(&one)]).rejects, []);
    let plan = compiler.build().unwrap();
    let listener = plan.snapshot.listener(plan.bind[0]).unwrap().clone();
    let handle = listener.chains.iter().next().unwrap().1.tls.clone().unwrap();
    let first = handle.context.load_full().unwrap();

    assert_eq!(apply::<Secret>(&mut compiler, now, &[&secret(&two)]).rejects, []);
    let second = handle.context.load_full().unwrap();
    assert!(!Arc::ptr_eq(&first, &second), "in force at once");
    let plan = compiler.build().unwrap();
    assert!(Arc::ptr_eq(plan.snapshot.listener(listener.id).unwrap(), &listener), "nothing else changed");

    let mixed = (one.0.clone(), two.1.clone());
    let applied = apply::<Secret>(&mut compiler, now, &[&secret(&mixed)]);
    assert_eq!(applied.rejects.len(), 1, "{applied:?}");
    assert!(!applied.rejects[0].to_string().contains("PRIVATE"));
    assert!(Arc::ptr_eq(&handle.context.load_full().unwrap(), &second), "the last good one stays");
}

#[test]
fn names_are_resolved_and_a_failure_keeps_the_addresses() {
    let mut compiler = compiler();
    let text = "
static_resources:
  clusters:
  - name: d
    type: STRICT_DNS
    dns_lookup_family: V4_ONLY
    load_assignment: { cluster_name: d, endpoints: [{ lb_endpoints: [{ endpoint: { address: { socket_address: { address: a.test, port_value: 1 } } } }] }] }
";
    load(&mut compiler, text).unwrap();
    compiler.build();
    assert!(!compiler.initialized());
    let targets = compiler.dns_targets();
    assert_eq!(
        (&*targets[0].hostname, targets[0].family, targets[0].refresh),
        ("a.test", LookupFamily::V4Only, Duration::from_secs(5))
    );
    assert!(compiler.set_dns("d", "a.test", Some(&["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()])));
    let plan = compiler.build().unwrap();
    assert!(compiler.initialized());
    let cluster = plan.snapshot.clusters[0].clone().unwrap();
    let count = || cluster.endpoints.load().priorities[0].endpoints.len();
    assert_eq!(count(), 2);
    assert!(!compiler.set_dns("d", "a.test", None));
    assert_eq!(count(), 2);
    compiler.set_dns("d", "a.test", Some(&["10.0.0.2".parse().unwrap()]));
    assert_eq!(count(), 1);
    compiler.set_dns("d", "b.test", Some(&[]));
    assert_eq!(count(), 1, "not its name");
}

#[test]
fn chains_that_did_not_change_stay() {
    let (mut compiler, now) = started();
    apply::<ProtoCluster>(&mut compiler, now, &["{ name: c }"]);
    let both = |idle: u32| {
        let chain = |port: u32, idle: u32| {
            format!(
                "- filter_chain_match: {{ destination_port: {port} }}\n  filters:\n  - {{ name: t, typed_config: {{ '@type': \
                 type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: s, cluster: c, idle_timeout: {idle}s }} }}\n"
            )
        };
        format!(
            "name: l\naddress: {{ socket_address: {{ address: 127.0.0.1, port_value: 15007 }} }}\nfilter_chains:\n{}{}",
            chain(1, 5),
            chain(2, idle)
        )
    };
    apply::<ProtoListener>(&mut compiler, now, &[&both(5)]);
    let chains = |plan: &Plan| {
        let listener = plan.snapshot.listeners.iter().flatten().next().unwrap();
        listener.chains.iter().map(|(_, chain)| chain.clone()).collect::<Vec<_>>()
    };
    let before = chains(&compiler.build().unwrap());
    apply::<ProtoListener>(&mut compiler, now, &[&both(6)]);
    let after = chains(&compiler.build().unwrap());
    assert!(Arc::ptr_eq(&before[0], &after[0]));
    assert!(!Arc::ptr_eq(&before[1], &after[1]));
    assert_eq!((before[1].id, before[1].demands), (after[1].id, after[1].demands));
}

#[test]
fn the_bootstrap_is_taken_whole_or_not_at_all() {
    let mut compiler = compiler();
    let text = "
static_resources:
  listeners:
  - name: a
    address: { socket_address: { address: 0.0.0.0, port_value: 70000 } }
    filter_chains: [{}]
  - name: b
    address: { socket_address: { address: 0.0.0.0, port_value: 1 } }
  clusters:
  - { name: x, type: EDS }
  - { name: z }
  - { name: z }
";
    let errors = load(&mut compiler, text).unwrap_err();
    assert_eq!(
        errors,
        [
            "static_resources.clusters[0].eds_cluster_config: value is required",
            "static_resources.clusters[2].name: cluster manager: duplicate cluster 'z'",
            "static_resources.listeners[0].address.socket_address.port_value: value must be less than or equal to 65535, not 70000",
            "static_resources.listeners[1].filter_chains: error adding listener 'b': no filter chains specified",
        ]
    );
    let refused =
        load(&mut super::tests::compiler(), "overload_manager: { loadshed_points: [{ name: x }] }").unwrap_err();
    assert_eq!(refused, ["overload_manager.loadshed_points: load is shed by actions only"]);
}

#[test]
fn mutated_bytes_never_panic() {
    use prost::Message as _;
    let listener: ProtoListener = crate::compile::testing::yaml(&http_listener("l", 1, RDS));
    let bytes = listener.encode_to_vec();
    let (mut compiler, now) = started();
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut value = bytes.clone();
            value[at] ^= flip;
            let resource = Resource {
                name: String::new(),
                version: String::new(),
                resource: shika_proto::google::protobuf::Any { type_url: type_url::LISTENER.into(), value },
            };
            let update = Update {
                type_url: type_url::LISTENER.into(),
                resources: vec![resource],
                removed: Vec::new(),
                kind: UpdateKind::Delta,
                version: String::new(),
            };
            let applied = compiler.apply(update, now);
            assert!(applied.rejects.iter().all(|reject| !reject.reason.is_empty()));
        }
        compiler.build();
    }
}

#[test]
fn a_static_secret_can_be_replaced_by_one_that_works() {
    let mut compiler = compiler();
    let validation = |pem: &str| {
        format!("{{ name: ca, validation_context: {{ trusted_ca: {{ inline_string: {} }} }} }}", quoted(pem))
    };
    let bootstrap = format!(
        "
static_resources:
  secrets: [{}]
  clusters:
  - name: cp
    type: STATIC
    transport_socket:
      name: tls
      typed_config:
        '@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: {{ validation_context_sds_secret_config: {{ name: ca }} }}
    load_assignment: {{ cluster_name: cp, endpoints: [] }}
",
        validation(&certificate("one").0)
    );
    load(&mut compiler, &bootstrap).unwrap();
    let snapshot = compiler.build().unwrap().snapshot;
    let context = || snapshot.clusters[0].as_ref().unwrap().tls.as_ref().unwrap().context.load_full().unwrap();
    let first = context();
    let secret = |text: &str| crate::compile::testing::yaml::<Secret>(text);
    compiler.replace_static_secret(&secret(&validation(&certificate("two").0))).unwrap();
    // In force at once, in the cluster that the workers hold.
    let second = context();
    assert!(!Arc::ptr_eq(&first, &second));
    let reject = compiler.replace_static_secret(&secret(&validation("no PEM"))).unwrap_err();
    assert_eq!((reject.name.as_str(), reject.type_url.as_str()), ("ca", type_url::SECRET));
    assert!(Arc::ptr_eq(&second, &context()));
    let other = secret(&validation(&certificate("three").0).replace("name: ca", "name: other"));
    assert!(compiler.replace_static_secret(&other).unwrap_err().reason.contains("no static secret"));
}

#[test]
fn a_wrapper_is_taken_off_and_a_time_to_live_refused() {
    use shika_proto::envoy::service::discovery::v3::Resource as Wrapper;
    let mut compiler = compiler();
    load(&mut compiler, ADS).unwrap();
    let cluster = shika_proto::any::pack(&shika_proto::envoy::config::cluster::v3::Cluster {
        name: "c".into(),
        ..Default::default()
    });
    let mut send = |wrapper: &Wrapper| {
        compiler.apply(
            Update {
                type_url: type_url::CLUSTER.into(),
                resources: vec![Resource {
                    name: String::new(),
                    version: "1".into(),
                    resource: shika_proto::any::pack(wrapper),
                }],
                removed: Vec::new(),
                kind: UpdateKind::FullState,
                version: "1".into(),
            },
            Instant::now(),
        )
    };
    let wrapper = Wrapper { name: "c".into(), resource: Some(cluster), ..Default::default() };
    let ttl = Some(shika_proto::google::protobuf::Duration { seconds: 60, nanos: 0 });
    let refused = send(&Wrapper { ttl, ..wrapper.clone() });
    let found: Vec<String> = refused.rejects.iter().map(ToString::to_string).collect();
    assert_eq!(found, ["Cluster \"c\": ttl: resources with a time to live are not supported"]);
    let taken = send(&wrapper);
    assert!(taken.rejects.is_empty() && taken.changed);
}
