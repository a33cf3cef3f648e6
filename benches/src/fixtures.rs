//! Configurations of a given size, built by hand.

use std::sync::Arc;

use http::{HeaderName, StatusCode, header};
use shika_data::model::{
    ChainId, RouteTableId,
    chain_match::{ChainMatch, ChainTable, DuplicateMatch},
    format::{AddressPart, Format, Operator, Part},
    header::{AppendAction, HeaderAdd, HeaderMutations},
    http_filter::FilterSettings,
    listener::{FilterChain, Terminal},
    matcher::StringMatcher,
    rbac::{Action, Permission, Policy, Principal, Rules},
    route::{DirectResponse, Domains, PathMatch, RequireTls, Route, RouteAction, RouteTable, VirtualHost},
};

/// A route table with `hosts` virtual hosts of `routes` prefix routes each.
pub fn route_table(hosts: u32, routes: u32) -> RouteTable {
    let mut domains = Domains::default();
    let virtual_hosts = (0..hosts)
        .map(|host| {
            let name = format!("service-{host}.example.com");
            domains.exact.insert(name.as_str().into(), host);
            VirtualHost {
                name: name.into(),
                routes: (0..routes).map(|route| prefix_route(&format!("/api/v{route}/"))).collect(),
                require_tls: RequireTls::No,
                request_headers: HeaderMutations::default(),
                response_headers: HeaderMutations::default(),
                filters: FilterSettings::default(),
                rate_limits: None,
            }
        })
        .collect();
    RouteTable {
        id: RouteTableId(0),
        name: "bench".into(),
        virtual_hosts,
        domains,
        ignore_port: false,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        most_specific_wins: false,
        filters: FilterSettings::default(),
    }
}

fn prefix_route(prefix: &str) -> Route {
    Route {
        name: prefix.into(),
        path: PathMatch::Prefix { value: prefix.into(), ignore_case: false },
        headers: Vec::new(),
        query: Vec::new(),
        grpc_only: false,
        filter_state: Vec::new(),
        fraction: None,
        action: RouteAction::Direct(DirectResponse { status: StatusCode::OK, body: bytes::Bytes::new(), format: None }),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        filters: FilterSettings::default(),
        kri: None,
        tracing: None,
    }
}

/// A listener's chains: one for each of `services` server names, as a zone ingress has them.
pub fn sni_chains(services: u32) -> Result<ChainTable, DuplicateMatch> {
    let chains = (0..services)
        .map(|service| {
            let criteria = ChainMatch {
                server_names: vec![format!("service-{service}.mesh").into()],
                transport_protocol: Some("tls".into()),
                ..ChainMatch::default()
            };
            let chain = FilterChain {
                id: ChainId(service),
                name: format!("service-{service}").into(),
                tls: None,
                handshake_timeout: None,
                filters: Vec::new(),
                terminal: Terminal::Close,
                demands: 0,
                denials: None,
            };
            (criteria, Arc::new(chain))
        })
        .collect();
    ChainTable::new(chains, None)
}

/// Rules that allow `callers` SPIFFE ids, in one policy each.
pub fn rules(callers: u32) -> Rules {
    let policies = (0..callers)
        .map(|caller| Policy {
            name: format!("allow-{caller}").into(),
            allows: true,
            permissions: vec![Permission::Any],
            principals: vec![Principal::Authenticated(Some(StringMatcher::Exact {
                value: format!("spiffe://default/service-{caller}").into(),
                ignore_case: false,
            }))],
        })
        .collect();
    Rules { action: Action::Allow, policies }
}

/// What a route does to headers: two constants, two values that depend on the connection, and two removals.
pub fn header_mutations() -> HeaderMutations {
    let text = |text: &str| Part::Text(text.into());
    let add = |name: &'static str, parts: Vec<Part>, append: AppendAction| HeaderAdd {
        name: HeaderName::from_static(name),
        value: Format { parts, omit_empty: false },
        append,
        keep_empty: false,
    };
    HeaderMutations {
        add: vec![
            add("x-mesh", vec![text("default")], AppendAction::OverwriteIfExistsOrAdd),
            add("x-kuma-tags", vec![text("&kuma.io/service=web&")], AppendAction::AppendIfExistsOrAdd),
            add(
                "x-peer",
                vec![Part::Operator(Operator::DownstreamRemoteAddress(AddressPart::Full), None)],
                AppendAction::OverwriteIfExistsOrAdd,
            ),
            add(
                "x-asked",
                vec![text("at "), Part::Operator(Operator::DownstreamLocalAddress(AddressPart::Full), None)],
                AppendAction::AddIfAbsent,
            ),
        ],
        remove: vec![header::ACCEPT, HeaderName::from_static("x-absent")],
    }
}
