//! Tags: which parts of a statistic's name become Prometheus labels.
//!
//! Source: Envoy `envoy/config/metrics/v3/stats.proto` (`StatsConfig`, `TagSpecifier`) and the default tags of its documentation; checked against
//! Envoy 1.40's output. As in Envoy each extractor sees the whole original name, and everything that any of them cuts out is removed in the end.

use std::{borrow::Cow, ops::Range};

use shika_xds::bootstrap::{StatsTag, StatsTagValue, TagRegex};

/// The extractors of a process.
#[derive(Debug, Default)]
pub struct Tags {
    defaults: bool,
    custom: Vec<(String, TagRegex)>,
    fixed: Vec<(String, String)>,
}

/// A name without its tags, and the tags.
#[derive(Debug, PartialEq, Eq)]
pub struct Extracted<'a> {
    /// What is left of the name.
    pub name: Cow<'a, str>,
    /// Label names, already without dots, and values.
    pub tags: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl Tags {
    /// From `stats_config` and the `name:value` pairs of `--stats-tag`. `defaults` is `use_all_default_tags`.
    pub fn new(defaults: bool, configured: &[StatsTag], flags: &[String]) -> Tags {
        let mut tags = Tags { defaults, ..Tags::default() };
        tags.fixed.extend(
            flags
                .iter()
                .filter_map(|flag| flag.split_once(':'))
                .map(|(name, value)| (label(name).into_owned(), value.to_owned())),
        );
        for tag in configured {
            let name = label(&tag.name).into_owned();
            match &tag.value {
                StatsTagValue::Regex(regex) => tags.custom.push((name, regex.clone())),
                StatsTagValue::Fixed(value) => tags.fixed.push((name, value.clone())),
                // A default tag by its name: with `defaults` off, all defaults are better than a label that is missing.
                StatsTagValue::Default => tags.defaults = true,
            }
        }
        tags
    }

    /// Takes the prefix of a cluster's statistics apart, where all that follow it with one of `names` have its tags and no others: then what is true
    /// of one cluster is true of ten thousand. `None` where names have to be looked at one by one.
    pub fn of_cluster<'a>(
        &'a self,
        prefix: &'a str,
        mut names: impl Iterator<Item = &'static str>,
    ) -> Option<Extracted<'a>> {
        let (cluster, behind) = prefix.strip_prefix("cluster.")?.split_once('.')?;
        // The cluster's name has to end within the prefix, and to be the only tag of the place.
        let named = self.defaults && !cluster.is_empty() && !behind.starts_with("grpc.");
        let whole = named && (behind.is_empty() || behind.ends_with('.'));
        let mut full = String::new();
        let alike = whole
            && names.all(|name| {
                let code = name
                    .len()
                    .checked_sub(7)
                    .and_then(|at| name.get(at..))
                    .is_some_and(|tail| tail.starts_with("_rq_"));
                let code = code || (behind == "ssl." && CHOICES.iter().any(|(kind, _)| name.starts_with(kind)));
                if self.custom.is_empty() {
                    return !code;
                }
                full.clear();
                full.push_str(prefix);
                full.push_str(name);
                !code && !self.custom.iter().any(|(_, regex)| regex.groups(&full).is_some())
            });
        alike.then(|| self.extract(prefix))
    }

    /// Takes a name apart.
    pub fn extract<'a>(&'a self, name: &'a str) -> Extracted<'a> {
        let mut cut: Vec<Range<usize>> = Vec::new();
        let mut tags: Vec<(Cow<'a, str>, Cow<'a, str>)> = Vec::new();
        if self.defaults {
            response_code(name, &mut cut, &mut tags);
        }
        tags.extend(self.fixed.iter().map(|(tag, value)| (Cow::Borrowed(tag.as_str()), Cow::Borrowed(value.as_str()))));
        for (tag, regex) in &self.custom {
            let Some((removed, value)) = regex.groups(name) else { continue };
            cut.push(removed);
            tags.push((Cow::Borrowed(tag), Cow::Borrowed(name.get(value).unwrap_or_default())));
        }
        if self.defaults {
            places(name, &mut cut, &mut tags);
        }
        Extracted { name: without(name, cut), tags }
    }
}

/// `_rq_503` → tag `503`; `_rq_5xx` → `_rq_xx`, tag `5`.
fn response_code<'a>(name: &'a str, cut: &mut Vec<Range<usize>>, tags: &mut Vec<(Cow<'a, str>, Cow<'a, str>)>) {
    let Some(at) = name.len().checked_sub(3).filter(|at| name.is_char_boundary(*at)) else { return };
    let (head, tail) = name.split_at(at);
    if !head.ends_with("_rq_") {
        return;
    }
    if tail.bytes().all(|b| b.is_ascii_digit()) {
        cut.push(at - 1..name.len());
        tags.push((Cow::Borrowed("envoy_response_code"), Cow::Borrowed(tail)));
    } else if tail.ends_with("xx") && tail.starts_with(|c: char| c.is_ascii_digit()) {
        cut.push(at..at + 1);
        tags.push((Cow::Borrowed("envoy_response_code_class"), Cow::Borrowed(&name[at..at + 1])));
    }
}

/// Tags by the place in the tree of names: cluster, connection manager, listener, TCP proxy, RBAC, rate limits.
fn places<'a>(name: &'a str, cut: &mut Vec<Range<usize>>, tags: &mut Vec<(Cow<'a, str>, Cow<'a, str>)>) {
    // What is cut out and is no value.
    let mut also = None;
    let mut tag = |tag: &'static str, start: usize, end: usize| {
        if let Some(value) = name.get(start..end).filter(|value| !value.is_empty()) {
            cut.push(start..end + 1);
            tags.push((Cow::Borrowed(tag), Cow::Borrowed(value)));
        }
    };
    let Some((root, rest)) = name.split_once('.') else { return };
    let start = root.len() + 1;
    // All but addresses end at the next dot, whatever dots the configured name has.
    let next = || rest.find('.').map(|at| start + at);
    match root {
        "cluster" => {
            if let Some(end) = next() {
                ssl(name, end, &mut tag);
                // `grpc.<service>.<method>.<statistic>`: one word each, whatever dots the service's name has.
                let at = end + ".grpc.".len();
                if let Some(call) = name.get(end..).and_then(|tail| tail.strip_prefix(".grpc."))
                    && let Some((service, rest)) = call.split_once('.')
                    && let Some((method, _)) = rest.split_once('.')
                {
                    let middle = at + service.len();
                    tag("envoy_grpc_bridge_method", middle + 1, middle + 1 + method.len());
                    tag("envoy_grpc_bridge_service", at, middle);
                }
                tag("envoy_cluster_name", start, end);
            }
        }
        "http" => {
            if let Some(end) = next() {
                tag("envoy_http_conn_manager_prefix", start, end);
            }
            if let (Some(rds), Some(last)) = (name.find(".rds."), name.rfind('.'))
                && rds + 5 < last
            {
                tag("envoy_rds_route_config", rds + 5, last);
            }
        }
        "tcp" => {
            if let Some(end) = next() {
                tag("envoy_tcp_prefix", start, end);
            }
        }
        "listener" if !rest.starts_with("admin.") => {
            if let Some(length) = address(rest) {
                let after = start + length;
                ssl(name, after, &mut tag);
                worker(name, after + 1, &mut tag);
                tag("envoy_listener_address", start, after);
                if let Some(http) = name.get(after..).and_then(|tail| tail.strip_prefix(".http.")) {
                    let start = name.len() - http.len();
                    if let Some(end) = http.find('.') {
                        tag("envoy_http_conn_manager_prefix", start, start + end);
                    }
                }
            }
        }
        "sds" => {
            if let Some(last) = name.rfind('.').filter(|last| *last > start) {
                tag("envoy_xds_resource_name", start, last);
            }
        }
        "proxy_proto" => {
            // `[<stat_prefix>.]versions.v<version>.<statistic>`; the prefix is a tag too.
            let versions = name.find("versions.v").filter(|at| *at == start || name[..*at].ends_with('.'));
            let (prefix, version) = match versions {
                Some(at) => (at, name[at..].rfind('.').map(|last| (at, at + last))),
                None => (name.rfind('.').map_or(start, |last| last + 1), None),
            };
            if prefix > start {
                tag("envoy_proxy_protocol_prefix", start, prefix - 1);
            }
            if let Some((at, last)) = version {
                tag("envoy_proxy_protocol_version", at + "versions.v".len(), last);
                also = Some(at..at + "versions.v".len());
            }
        }
        "server" => worker(name, start, &mut tag),
        "dns_filter" => {
            if let Some(end) = next() {
                tag("envoy_dns_filter_prefix", start, end);
            }
        }
        "local_rate_limit" => {
            if let Some(end) = next() {
                tag("envoy_local_network_ratelimit_prefix", start, end);
            }
        }
        _ if rest.starts_with("http_local_rate_limit.") => tag("envoy_local_http_ratelimit_prefix", 0, root.len()),
        _ if rest.starts_with("rbac.") => tag("envoy_rbac_prefix", 0, root.len()),
        _ => {}
    }
    cut.extend(also);
}

/// Below `ssl.`: kinds of things that a handshake agrees on, and their tags.
const CHOICES: [(&str, &str); 4] = [
    ("versions.", "envoy_ssl_version"),
    ("ciphers.", "envoy_ssl_cipher"),
    ("curves.", "envoy_ssl_curve"),
    ("sigalgs.", "envoy_ssl_sigalg"),
];

/// What handshakes agreed on, and certificates, in `.ssl.<kind>.<value>` at `at`.
fn ssl(name: &str, at: usize, tag: &mut impl FnMut(&'static str, usize, usize)) {
    let Some(rest) = name.get(at..).and_then(|tail| tail.strip_prefix(".ssl.")) else { return };
    let start = name.len() - rest.len();
    for (kind, label) in CHOICES {
        if rest.starts_with(kind) {
            // Envoy's own tag for the ciphers of clusters, and the only one without its prefix.
            let of_cluster = kind == "ciphers." && name.starts_with("cluster.");
            tag(if of_cluster { "cipher_suite" } else { label }, start + kind.len(), name.len());
        }
    }
    if rest.starts_with("certificate.")
        && let Some(last) = rest.rfind('.')
    {
        tag("envoy_tls_certificate", start + "certificate.".len(), start + last);
    }
}

/// `worker_<n>.` at `at`.
fn worker(name: &str, at: usize, tag: &mut impl FnMut(&'static str, usize, usize)) {
    let Some(rest) = name.get(at..).and_then(|tail| tail.strip_prefix("worker_")) else { return };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if rest.as_bytes().get(digits) == Some(&b'.') {
        let start = at + "worker_".len();
        // `worker_0.x` is left as `worker_x`.
        tag("envoy_worker_id", start, start + digits);
    }
}

/// Length of the address or prefix at the start of what follows `listener.`.
fn address(rest: &str) -> Option<usize> {
    let run = |allowed: fn(u8) -> bool| {
        let end = rest.bytes().position(|b| !allowed(b)).unwrap_or(rest.len());
        // The dot behind belongs to the name; an IPv4 address has dots of its own.
        let end = if rest.as_bytes().get(end) == Some(&b'.') { Some(end) } else { rest.get(..end)?.rfind('.') };
        end.filter(|end| *end > 0)
    };
    run(|b| matches!(b, b'_' | b'.' | b'0'..=b'9'))
        .or_else(|| run(|b| matches!(b, b'_' | b'[' | b']') || b.is_ascii_hexdigit()))
        .or_else(|| rest.find('.'))
}

/// The name without the ranges, which may overlap.
fn without(name: &str, mut cut: Vec<Range<usize>>) -> Cow<'_, str> {
    if cut.is_empty() {
        return Cow::Borrowed(name);
    }
    cut.sort_unstable_by_key(|range| range.start);
    let mut left = String::with_capacity(name.len());
    let mut at = 0;
    for range in cut {
        if range.start > at {
            left.push_str(name.get(at..range.start).unwrap_or_default());
        }
        at = at.max(range.end);
    }
    left.push_str(name.get(at..).unwrap_or_default());
    // A cut at the end leaves the dot before it.
    if left.ends_with('.') {
        left.pop();
    }
    Cow::Owned(left)
}

/// A tag's name as a label.
fn label(name: &str) -> Cow<'_, str> {
    super::prometheus::sanitize(name)
}

#[cfg(test)]
mod tests {
    use shika_data::stats::{ClusterStats, SslStats};

    use super::*;

    fn kuma() -> Tags {
        let regex = |name: &str, regex: &str| StatsTag {
            name: name.into(),
            value: StatsTagValue::Regex(TagRegex::new(regex).expect("a regex")),
        };
        let configured = [
            regex("worker", r"(worker_([0-9]+)\.)"),
            regex("listener", r"((.+?)\.)rbac\."),
            regex("kafka_name", r"^kafka(\.(\S*[0-9]))\."),
            regex("kafka_type", r"^kafka\..*\.(.*?(?=_duration|$))"),
        ];
        Tags::new(true, &configured, &[])
    }

    #[test]
    fn names_as_envoy_1_40_splits_them() {
        let tags = kuma();
        for (name, left, expected) in [
            (
                "cluster.backend.one.upstream_rq_total",
                "cluster.one.upstream_rq_total",
                &[("envoy_cluster_name", "backend")][..],
            ),
            (
                "cluster.a.external.upstream_rq_503",
                "cluster.external.upstream_rq",
                &[("envoy_response_code", "503"), ("envoy_cluster_name", "a")],
            ),
            (
                "cluster.a.upstream_rq_5xx",
                "cluster.upstream_rq_xx",
                &[("envoy_response_code_class", "5"), ("envoy_cluster_name", "a")],
            ),
            (
                "cluster.a.grpc.Echo.Say.total",
                "cluster.grpc.total",
                &[
                    ("envoy_grpc_bridge_method", "Say"),
                    ("envoy_grpc_bridge_service", "Echo"),
                    ("envoy_cluster_name", "a"),
                ],
            ),
            (
                "cluster.a.grpc.pkg.Echo.Say.total",
                "cluster.grpc.Say.total",
                &[
                    ("envoy_grpc_bridge_method", "Echo"),
                    ("envoy_grpc_bridge_service", "pkg"),
                    ("envoy_cluster_name", "a"),
                ],
            ),
            ("cluster.a.grpc.total", "cluster.grpc.total", &[("envoy_cluster_name", "a")]),
            ("cluster_manager.cluster_added", "cluster_manager.cluster_added", &[]),
            (
                "http.admin.downstream_cx_total",
                "http.downstream_cx_total",
                &[("envoy_http_conn_manager_prefix", "admin")],
            ),
            (
                "http.in.rds.my.route.update_success",
                "http.rds.update_success",
                &[("envoy_http_conn_manager_prefix", "in"), ("envoy_rds_route_config", "my.route")],
            ),
            (
                "listener.10.0.0.1_80.downstream_cx_total",
                "listener.downstream_cx_total",
                &[("envoy_listener_address", "10.0.0.1_80")],
            ),
            (
                "listener.[__1]_0.downstream_cx_total",
                "listener.downstream_cx_total",
                &[("envoy_listener_address", "[__1]_0")],
            ),
            (
                "listener.foo_bar.downstream_cx_total",
                "listener.downstream_cx_total",
                &[("envoy_listener_address", "foo_bar")],
            ),
            (
                "listener./tmp/px/x.sock.downstream_cx_total",
                "listener.sock.downstream_cx_total",
                &[("envoy_listener_address", "/tmp/px/x")],
            ),
            (
                "kafka.kafka_127.0.0.1_9092.request.api_versions_request_duration",
                "kafka.request._duration",
                &[("kafka_name", "kafka_127.0.0.1_9092"), ("kafka_type", "api_versions_request")],
            ),
            ("listener.admin.downstream_cx_total", "listener.admin.downstream_cx_total", &[]),
            (
                "listener.0.0.0.0_1.http.in.downstream_rq_2xx",
                "listener.http.downstream_rq_xx",
                &[
                    ("envoy_response_code_class", "2"),
                    ("envoy_listener_address", "0.0.0.0_1"),
                    ("envoy_http_conn_manager_prefix", "in"),
                ],
            ),
            ("tcp.out.downstream_cx_total", "tcp.downstream_cx_total", &[("envoy_tcp_prefix", "out")]),
            (
                "inbound_80.rbac.denied",
                "rbac.denied",
                &[("listener", "inbound_80"), ("envoy_rbac_prefix", "inbound_80")],
            ),
            (
                "rate_limit.http_local_rate_limit.ok",
                "http_local_rate_limit.ok",
                &[("envoy_local_http_ratelimit_prefix", "rate_limit")],
            ),
            (
                "local_rate_limit.tcp_rate_limit.rate_limited",
                "local_rate_limit.rate_limited",
                &[("envoy_local_network_ratelimit_prefix", "tcp_rate_limit")],
            ),
            (
                "http.in.rbac.denied",
                "rbac.denied",
                &[("listener", "http.in"), ("envoy_http_conn_manager_prefix", "in")],
            ),
            ("server.live", "server.live", &[]),
            ("server.worker_panic", "server.worker_panic", &[]),
            (
                "listener.10.0.0.1_80.worker_12.downstream_cx_total",
                "listener.downstream_cx_total",
                &[("worker", "12"), ("envoy_worker_id", "12"), ("envoy_listener_address", "10.0.0.1_80")],
            ),
            (
                "listener.10.0.0.1_80.ssl.versions.TLSv1.3",
                "listener.ssl.versions",
                &[("envoy_ssl_version", "TLSv1.3"), ("envoy_listener_address", "10.0.0.1_80")],
            ),
            (
                "cluster.a.ssl.ciphers.ECDHE-RSA-AES128-GCM-SHA256",
                "cluster.ssl.ciphers",
                &[("cipher_suite", "ECDHE-RSA-AES128-GCM-SHA256"), ("envoy_cluster_name", "a")],
            ),
            (
                "listener.10.0.0.1_80.ssl.certificate.mesh.ca.expiration_unix_time_seconds",
                "listener.ssl.certificate.expiration_unix_time_seconds",
                &[("envoy_tls_certificate", "mesh.ca"), ("envoy_listener_address", "10.0.0.1_80")],
            ),
            ("sds.a.b.update_success", "sds.update_success", &[("envoy_xds_resource_name", "a.b")]),
            (
                "proxy_proto.edge.versions.v2.found",
                "proxy_proto.found",
                &[("envoy_proxy_protocol_prefix", "edge"), ("envoy_proxy_protocol_version", "2")],
            ),
            ("proxy_proto.versions.v1.error", "proxy_proto.error", &[("envoy_proxy_protocol_version", "1")]),
            ("proxy_proto.not_found_allowed", "proxy_proto.not_found_allowed", &[]),
            ("cluster.", "cluster.", &[]),
            ("é_rq_", "é_rq_", &[]),
        ] {
            let extracted = tags.extract(name);
            assert_eq!(extracted.name, left, "{name}");
            let found: Vec<_> = extracted.tags.iter().map(|(tag, value)| (tag.as_ref(), value.as_ref())).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn what_clusters_have_in_common_is_what_each_name_says() {
        let names = || ClusterStats::DEFS.iter().chain(SslStats::DEFS).map(|def| def.name);
        for tags in [kuma(), Tags::new(true, &[], &["zone:z1".into()])] {
            for prefix in ["cluster.a.", "cluster.a.ssl.", "cluster.a.b.c.", "cluster.a\"b."] {
                let common = tags.of_cluster(prefix, names()).expect(prefix);
                for name in names() {
                    let full = format!("{prefix}{name}");
                    let one = tags.extract(&full);
                    assert_eq!(format!("{}.{name}", common.name), one.name, "{full}");
                    assert_eq!(common.tags, one.tags, "{full}");
                }
            }
            for prefix in [
                "cluster.",
                "cluster..",
                "cluster.a.grpc.Echo.Say.",
                "cluster.a",
                "cluster.a.b",
                "cluster_manager.",
                "http.a.",
            ] {
                assert_eq!(tags.of_cluster(prefix, names()), None, "{prefix}");
            }
            assert_eq!(tags.of_cluster("cluster.a.", ["upstream_rq_503"].into_iter()), None);
        }
        // Tags of their own: by the configuration, or by its silence.
        assert_eq!(kuma().of_cluster("cluster.worker_1.", names()), None);
        assert_eq!(Tags::new(false, &[], &[]).of_cluster("cluster.a.", names()), None);
    }

    #[test]
    fn defaults_can_be_off_and_fixed_tags_are_on_everything() {
        let tags = Tags::new(
            false,
            &[StatsTag { name: "a.b".into(), value: StatsTagValue::Fixed("x".into()) }],
            &["zone:z1".into()],
        );
        let extracted = tags.extract("cluster.a.upstream_rq_200");
        assert_eq!(extracted.name, "cluster.a.upstream_rq_200");
        let found: Vec<_> = extracted.tags.iter().map(|(tag, value)| (tag.as_ref(), value.as_ref())).collect();
        assert_eq!(found, [("zone", "z1"), ("a_b", "x")]);
    }
}
