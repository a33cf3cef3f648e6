//! The list of endpoints.

use std::fmt::Write;

/// One endpoint.
pub struct Endpoint {
    /// Path.
    pub path: &'static str,
    /// Only by POST.
    pub post: bool,
    /// What it does.
    pub help: &'static str,
    /// Parameters and what they do.
    pub parameters: &'static [(&'static str, &'static str)],
}

const fn get(path: &'static str, help: &'static str) -> Endpoint {
    Endpoint { path, post: false, help, parameters: &[] }
}

const fn post(path: &'static str, help: &'static str) -> Endpoint {
    Endpoint { path, post: true, help, parameters: &[] }
}

const fn with(endpoint: Endpoint, parameters: &'static [(&'static str, &'static str)]) -> Endpoint {
    Endpoint { path: endpoint.path, post: endpoint.post, help: endpoint.help, parameters }
}

const FILTER: (&str, &str) = ("filter", "Regular expression for filtering stats");
const USED_ONLY: (&str, &str) = ("usedonly", "Only include stats that have been written by system since restart");
const INVERT: (&str, &str) = ("invert_filter", "Invert the filter regex");

/// All endpoints, by path.
pub const ENDPOINTS: &[Endpoint] = &[
    get("/", "Admin home page"),
    get("/certs", "print certs on machine"),
    with(
        get("/clusters", "upstream cluster status"),
        &[("format", "One of (text, json)"), ("filter", "Regular expression for filtering clusters by name")],
    ),
    with(
        get("/config_dump", "dump current configuration"),
        &[
            ("resource", "The resource to dump, such as static_clusters or dynamic_listeners"),
            ("mask", "The field mask to apply; with resource, to each element"),
            ("name_regex", "Only resources whose names match"),
            ("include_eds", "Also dump endpoints"),
        ],
    ),
    get("/contention", "mutex contention stats: none are kept"),
    with(post("/cpuprofiler", "CPU profiler: not supported"), &[("enable", "One of (y, n)")]),
    with(
        post("/drain_listeners", "drain listeners"),
        &[
            ("graceful", "Drain connections for the drain time before the listeners stop"),
            ("skip_exit", "Drain connections but never stop the listeners"),
            ("inboundonly", "Only listeners whose traffic_direction is INBOUND"),
        ],
    ),
    post("/healthcheck/fail", "cause the server to fail health checks"),
    post("/healthcheck/ok", "cause the server to pass health checks"),
    get("/heap_dump", "heap dump: not supported"),
    with(post("/heapprofiler", "heap profiler: not supported"), &[("enable", "One of (y, n)")]),
    get("/help", "print out list of admin commands"),
    get("/hot_restart_version", "print the hot restart compatibility version"),
    get("/init_dump", "what is still waited for"),
    with(get("/listeners", "print listener info"), &[("format", "One of (text, json)")]),
    with(
        post("/logging", "query/change logging levels"),
        &[
            ("paths", "Change several: <logger>:<level>,<logger>:<level>"),
            ("level", "Change all; One of (trace, debug, info, warning, error, critical, off)"),
        ],
    ),
    get("/memory", "print current allocation/heap usage"),
    post("/quitquitquit", "exit the server"),
    get("/ready", "print server state, return 200 if LIVE, otherwise return 503"),
    post("/reopen_logs", "reopen access logs"),
    post("/reset_counters", "reset all counters to zero"),
    get("/runtime", "print runtime values"),
    post("/runtime_modify", "modify runtime values: there is no admin layer"),
    get("/server_info", "print server version/status information"),
    with(
        get("/stats", "print server stats"),
        &[
            USED_ONLY,
            FILTER,
            INVERT,
            ("format", "One of (text, json, prometheus)"),
            ("type", "One of (All, Counters, Histograms, Gauges, TextReadouts)"),
            ("histogram_buckets", "One of (summary, cumulative, disjoint)"),
        ],
    ),
    with(
        get("/stats/prometheus", "print server stats in prometheus format"),
        &[
            USED_ONLY,
            FILTER,
            INVERT,
            ("text_readouts", "Accepted; there are no text readouts"),
            ("histogram_buckets", "One of (cumulative, summary)"),
        ],
    ),
    get("/stats/recentlookups", "stat-name lookups: not recorded"),
    get("/unsupported", "fields of the configuration that were passed over as harmless, and why"),
];

/// The list as text.
pub fn text() -> String {
    let mut out = String::from("admin commands are:\n");
    for endpoint in ENDPOINTS {
        let method = if endpoint.post { " (POST)" } else { "" };
        // Writing to a string does not fail.
        let _ = writeln!(out, "  {}{method}: {}", endpoint.path, endpoint.help);
        for (name, help) in endpoint.parameters {
            let _ = writeln!(out, "      {name}: {help}");
        }
    }
    out
}

/// The home page.
pub fn page() -> String {
    let mut out = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Shika Admin</title></head>\n<body><h1>Shika</h1>\n<table>\n",
    );
    for endpoint in ENDPOINTS {
        let _ = if endpoint.post {
            writeln!(
                out,
                "<tr><td><form action=\"{0}\" method=\"post\"><button>{0}</button></form></td><td>{1}</td></tr>",
                endpoint.path, endpoint.help
            )
        } else {
            writeln!(out, "<tr><td><a href=\"{0}\">{0}</a></td><td>{1}</td></tr>", endpoint.path, endpoint.help)
        };
    }
    out.push_str("</table></body></html>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_in_order_and_listed_once() {
        assert!(ENDPOINTS.windows(2).all(|pair| pair[0].path < pair[1].path));
        assert!(text().contains("  /logging (POST): query/change logging levels\n      paths: "));
    }
}
