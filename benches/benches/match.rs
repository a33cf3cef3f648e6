//! Matching on the path: routes, filter chains, permissions.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use shika_data::{
    connection::FilterState,
    model::{
        chain_match::{ConnectionFacts, TransportProtocol},
        rbac::{PeerNames, RequestView, Subject},
    },
};

fn routes(c: &mut Criterion) {
    let table = shika_benches::route_table(1_000, 10);
    let headers = HeaderMap::new();
    c.bench_function("route: 1000 hosts, last of 10 prefixes", |b| {
        b.iter(|| {
            let request = RequestView {
                method: "GET",
                path: black_box("/api/v9/items?x=1"),
                authority: "service-777.example.com",
                scheme: "http",
                headers: &headers,
            };
            let host = table.virtual_host(request.authority)?;
            host.route(&request, &FilterState::default(), false, &mut || 0).map(|route| black_box(route).name.len())
        });
    });
}

fn chains(c: &mut Criterion) {
    let Ok(table) = shika_benches::sni_chains(10_000) else { return };
    c.bench_function("chain: one of 10000 server names", |b| {
        b.iter(|| {
            let facts = ConnectionFacts {
                destination: "10.0.0.1:10001".parse().ok(),
                source: "10.0.0.2:40000".parse().ok(),
                direct_source: "10.0.0.2:40000".parse().ok(),
                server_name: black_box("service-7777.mesh"),
                transport: TransportProtocol::Tls,
                application_protocols: &[],
            };
            table.find(&facts).map(|chain| chain.id)
        });
    });
}

fn permissions(c: &mut Criterion) {
    let rules = shika_benches::rules(100);
    let peer = PeerNames { uris: vec!["spiffe://default/service-99".into()], dns: Vec::new(), subject: "".into() };
    c.bench_function("rbac: last of 100 SPIFFE ids", |b| {
        b.iter(|| {
            let subject = Subject {
                peer: Some(black_box(&peer)),
                destination: None,
                remote: None,
                direct_remote: None,
                server_name: "",
                request: None,
            };
            rules.decide(&subject).allowed
        });
    });
}

criterion_group!(matching, routes, chains, permissions);
criterion_main!(matching);
