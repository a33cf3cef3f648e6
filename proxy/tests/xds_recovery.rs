//! Refusals and recovery, streams that break, and answers out of order, however the proxy is subscribed.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{
    Proxy,
    control_plane::{Asked, Streams},
    eventually, get,
    planes::{
        Variant, answers, by_rds, cluster, cluster_of, eds_cluster, endpoints, inline, leads_to, listener,
        named_listener, routes,
    },
    upstream::Upstream,
};
use shika_proto::{google::protobuf::Any, type_url};

/// A listener whose only route has a regular expression that is none.
fn unusable(name: &str) -> Any {
    named_listener(
        name,
        "route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {safe_regex: {regex: '('}}, direct_response: {status: 200}}]}]}",
    )
}

fn named(name: &str, body: &str) -> Any {
    named_listener(name, &format!("route_config: {{virtual_hosts: [{}]}}", answers(body)))
}

fn detail(answer: &Asked) -> &str {
    &answer.error_detail.as_ref().expect("a refusal").message
}

async fn refusal_and_recovery(variant: Variant) {
    let (proxy, mut streams) = variant.start("", &[]).await;
    // The first of all is refused: there is no version to fall back to.
    let bad_cluster = cluster_of("\n  - name: bad\n    type: STATIC\n    lb_policy: CLUSTER_PROVIDED\n");
    let nack = streams.send(type_url::CLUSTER, "c1", vec![("bad", bad_cluster)]).await;
    assert!(detail(&nack).starts_with("Cluster \"bad\": lb_policy"), "{variant:?} {nack:?}");
    assert_eq!(nack.version_info, "", "{variant:?}");
    let ack = streams.of(type_url::CLUSTER).await.change(type_url::CLUSTER, "c2", vec![], &["bad"]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let good = vec![("web", inline("one")), ("other", named("other", "other"))];
    let ack = streams.send(type_url::LISTENER, "1", good).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let (web, other) = (proxy.listener("web"), proxy.listener("other"));

    // One of two cannot be used: the other is in force, the version is not.
    let mixed = vec![("web", unusable("web")), ("other", named("other", "changed")), ("third", unusable("third"))];
    let nack = streams.send(type_url::LISTENER, "2", mixed).await;
    for name in ["web", "third"] {
        let path = "filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].routes[0].match.safe_regex";
        assert!(detail(&nack).contains(&format!("Listener {name:?}: {path}")), "{variant:?} {nack:?}");
    }
    assert_eq!(nack.error_detail.as_ref().unwrap().code, 3, "INVALID_ARGUMENT");
    assert_eq!(nack.version_info, if variant.is_delta() { "" } else { "1" }, "{variant:?}: the last good version");
    assert_eq!(get(&web, "/").body, "one", "{variant:?}");
    assert_eq!(get(&proxy.listener("other"), "/").body, "changed", "{variant:?}");
    assert_eq!(proxy.stat("listener_manager.lds.update_rejected"), 1, "{variant:?}");
    let dump = get(&proxy.admin, "/config_dump?resource=dynamic_listeners").body;
    assert!(dump.contains("error_state"), "{variant:?} {dump}");

    // A name that comes twice is refused once; the first is taken.
    let twice = vec![("other", named("other", "first")), ("other", named("other", "second"))];
    let nack = streams.of(type_url::LISTENER).await.change(type_url::LISTENER, "3", twice, &["third", "web"]).await;
    assert_eq!(detail(&nack), "Listener \"other\": name: duplicate Listener other found", "{variant:?}");
    assert_eq!(get(&other, "/").body, "first", "{variant:?}");
    assert!(
        !get(&proxy.admin, "/listeners").body.contains("web::"),
        "{variant:?}: removals of a refused response hold"
    );

    // The next that is good ends it.
    let ack = streams
        .of(type_url::LISTENER)
        .await
        .change(type_url::LISTENER, "4", vec![("web", inline("four")), ("other", named("other", "four"))], &["third"])
        .await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    assert_eq!(ack.version_info, if variant.is_delta() { "" } else { "4" }, "{variant:?}");
    assert_eq!(get(&proxy.listener("web"), "/").body, "four", "{variant:?}");
    let dump = get(&proxy.admin, "/config_dump?resource=dynamic_listeners").body;
    assert!(!dump.contains("error_state"), "{variant:?} {dump}");

    // Routes that cannot be used leave those in force.
    streams
        .send(type_url::LISTENER, "5", vec![("web", by_rds(variant, "r", "0s")), ("other", named("other", "four"))])
        .await;
    streams.asked_for(type_url::ROUTE, "r").await;
    streams.send(type_url::ROUTE, "r1", vec![("r", routes("r", &answers("routed")))]).await;
    let web = proxy.listener("web");
    eventually("the routes", || (get(&web, "/").body == "routed").then_some(()));
    let bad = "{name: v, domains: ['a', 'a'], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}";
    let nack = streams.send(type_url::ROUTE, "r2", vec![("r", routes("r", bad))]).await;
    assert!(detail(&nack).starts_with("RouteConfiguration \"r\": virtual_hosts[0].domains"), "{variant:?} {nack:?}");
    assert_eq!(nack.version_info, if variant.is_delta() { "" } else { "r1" }, "{variant:?}");
    assert_eq!(get(&web, "/").body, "routed", "{variant:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_its_place_and_a_good_version_ends_it() {
    for variant in Variant::ALL {
        refusal_and_recovery(variant).await;
    }
}

/// What a new stream says at first of a type.
async fn first_of(streams: &mut Streams, type_url: &str) -> Asked {
    let first = streams.request(type_url).await;
    assert_eq!(first.response_nonce, "", "nothing of the stream before is acknowledged on this one");
    assert!(first.error_detail.is_none());
    first
}

async fn broken_stream(variant: Variant) {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let (proxy, mut streams) = variant.start("", &[]).await;
    let first = first_of(&mut streams, type_url::CLUSTER).await;
    assert_eq!(first.node.unwrap().id, "mesh.proxy", "{variant:?}");
    let ack = streams
        .send(
            type_url::CLUSTER,
            "c1",
            vec![("backend", eds_cluster(variant, "backend", "a", "0s", "")), ("fixed", cluster("fixed", one.address))],
        )
        .await;
    assert!(ack.node.is_none(), "{variant:?}: the node is in the first message alone");
    streams.asked_for(type_url::ENDPOINT, "a").await;
    streams.send(type_url::ENDPOINT, "e1", vec![("a", endpoints("a", one.address))]).await;
    let to_backend = listener(&format!("route_config: {{virtual_hosts: [{}]}}", leads_to("backend")));
    streams.send(type_url::LISTENER, "l1", vec![("web", to_backend)]).await;
    let web = proxy.listener("web");
    assert_eq!(get(&web, "/").body, "one", "{variant:?}");

    // The stream breaks in the middle of an update: the cluster has come, its endpoints have not.
    streams
        .send(
            type_url::CLUSTER,
            "c2",
            vec![("backend", eds_cluster(variant, "backend", "b", "0s", "")), ("fixed", cluster("fixed", one.address))],
        )
        .await;
    streams.asked_for(type_url::ENDPOINT, "b").await;
    streams.cut();
    eventually("the loss", || (get(&web, "/").body == "one" && lost(&proxy, variant)).then_some(()));

    // What is held is told, so that only the rest need be sent.
    let clusters = first_of(&mut streams, type_url::CLUSTER).await;
    assert!(clusters.node.is_some(), "{variant:?}: a new stream, a new first message");
    if variant.is_delta() {
        assert_eq!(clusters.initial_resource_versions["backend"], "c2", "{variant:?}");
        assert_eq!(clusters.initial_resource_versions["fixed"], "c2", "{variant:?}");
        assert!(clusters.names.is_empty(), "{variant:?}: a wildcard");
    } else {
        assert_eq!((clusters.version_info.as_str(), clusters.names.len()), ("c2", 0), "{variant:?}");
    }
    let mut names = first_of(&mut streams, type_url::ENDPOINT).await;
    if variant.is_delta() {
        // Of `a`, which the version in force uses still, it is told; of `b` nothing is held.
        assert_eq!(names.initial_resource_versions.keys().collect::<Vec<_>>(), ["a"], "{variant:?}");
    } else {
        assert_eq!(names.version_info, "e1", "{variant:?}");
    }
    names.names.sort();
    assert_eq!(names.names, ["a", "b"], "{variant:?}");
    let listeners = first_of(&mut streams, type_url::LISTENER).await;
    if variant.is_delta() {
        assert_eq!(listeners.initial_resource_versions["web"], "l1", "{variant:?}");
    } else {
        assert_eq!(listeners.version_info, "l1", "{variant:?}");
    }
    // Nothing but what was missing: the update is whole.
    let ack = streams.send(type_url::ENDPOINT, "e2", vec![("b", endpoints("b", two.address))]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    assert_eq!(get(&web, "/").body, "two", "{variant:?}");
}

/// A stream was lost, as far as the statistics say. A server of one type has no statistics of its own.
fn lost(proxy: &Proxy, variant: Variant) -> bool {
    match variant {
        Variant::DeltaAds | Variant::Ads => proxy.stat("cluster_manager.cds.update_failure") > 0,
        Variant::Delta | Variant::Grpc => proxy.stat("listener_manager.lds.update_failure") > 0,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_within_an_update_is_taken_up_where_it_broke() {
    for variant in Variant::ALL {
        broken_stream(variant).await;
    }
}

async fn out_of_order(variant: Variant) {
    let upstream = Upstream::start("up");
    let (proxy, mut streams) = variant.start("", &[]).await;
    // On ADS routes may come before anything has asked for them: they are passed over, unanswered, and sent again when they are asked for.
    if matches!(variant, Variant::DeltaAds | Variant::Ads) {
        let session = streams.of(type_url::CLUSTER).await;
        session.say(type_url::ROUTE, "r0", vec![("r", routes("r", &answers("early")))], &[]).await;
    }
    // The listener and its routes before the cluster that they lead to.
    streams.send(type_url::CLUSTER, "1", vec![]).await;
    let ack = streams.send(type_url::LISTENER, "1", vec![("web", by_rds(variant, "r", "0s"))]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    streams.asked_for(type_url::ROUTE, "r").await;
    let ack = streams.send(type_url::ROUTE, "r1", vec![("r", routes("r", &leads_to("late")))]).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    let web = proxy.listener("web");
    assert_eq!(get(&web, "/").status, 503, "{variant:?}");
    streams.send(type_url::CLUSTER, "2", vec![("late", cluster("late", upstream.address))]).await;
    assert_eq!(get(&web, "/").body, "up", "{variant:?}");
    // Routes of which nobody has asked, among those that somebody has: nothing of them is kept.
    let more = vec![("r", routes("r", &answers("wanted"))), ("s", routes("s", &answers("unwanted")))];
    let ack = streams.send(type_url::ROUTE, "r2", more).await;
    assert!(ack.error_detail.is_none(), "{variant:?} {ack:?}");
    assert_eq!(get(&web, "/").body, "wanted", "{variant:?}");
    assert!(!get(&proxy.admin, "/config_dump?resource=dynamic_route_configs").body.contains("unwanted"), "{variant:?}");
    streams.send(type_url::LISTENER, "2", vec![("web", by_rds(variant, "s", "0s"))]).await;
    streams.asked_for(type_url::ROUTE, "s").await;
    streams.send(type_url::ROUTE, "r3", vec![("s", routes("s", &answers("asked")))]).await;
    eventually("the other routes", || (get(&proxy.listener("web"), "/").body == "asked").then_some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_may_come_in_any_order() {
    for variant in Variant::ALL {
        out_of_order(variant).await;
    }
}
