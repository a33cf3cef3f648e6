//! Which of the proxy's own metrics are shown: MeshMetric's profiles.
//!
//! Source: Kuma `app/kuma-dp/pkg/dataplane/metrics/profiles.go`.

use regex::Regex;
use serde_json::Value;

use super::exposition::{Family, labels};

/// Parts of names that the profile `Basic` shows.
const BASIC_PARTS: &[&str] = &[
    "rq_time",
    "cx_length_ms",
    "cx_count",
    "_rq",
    "bytes",
    "timeout",
    "health_check",
    "lb_healthy_panic",
    "cx_destroy",
    "error",
    "fail",
    "reset",
    "eject",
    "overflow",
    "cancelled",
    "max_duration_reached",
    "no_cluster",
    "no_route",
    "no_filter_chain",
    "reject",
    "denied",
    "days_until_first_cert_expiring",
    "rbac",
    "cx_active",
    "cx_connect",
    "circuit_breakers",
    "cx_total",
    "ssl_handshake",
    "ssl_context_update_by_sds",
];
/// Beginnings of names that it shows.
const BASIC_PREFIXES: &[&str] =
    &["envoy_server", "envoy_control_plane", "envoy_dns_filter", "envoy_dns_cares", "kuma_dp_dns"];
/// Names that it shows.
const BASIC_NAMES: &[&str] =
    &["envoy_cluster_membership_degraded", "envoy_cluster_membership_healthy", "envoy_cluster_membership_total"];

/// Labels that name what a series is about.
const ENTITY_LABELS: &[&str] = &["envoy_cluster_name", "envoy_http_conn_manager_prefix", "envoy_listener_address"];
/// What is the proxy's own business, by the beginning of the name. `Basic` leaves it out.
const INTERNAL_PREFIXES: &[&str] = &["system_", "_", "tracing"];
/// The same, by the whole name.
const INTERNAL_NAMES: &[&str] = &["ads_cluster", "access_log_sink", "kuma:envoy:admin", "kuma:metrics:hijacker"];

/// A predefined set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Base {
    /// Nothing.
    None,
    /// Golden signals and what the dashboards show.
    #[default]
    Basic,
    /// Everything.
    All,
}

/// A set with exceptions.
#[derive(Debug, Default)]
pub struct Profile {
    base: Base,
    exclude: Vec<Selector>,
    /// Wins over `exclude`.
    include: Vec<Selector>,
}

#[derive(Debug)]
enum Selector {
    Exact(String),
    Prefix(String),
    Contains(String),
    Regex(Regex),
}

impl Profile {
    /// MeshMetric's `sidecar.profiles`; of several predefined sets the widest counts. What cannot be used is put on `left_out` with its place.
    pub fn parse(profiles: Option<&Value>, left_out: &mut Vec<String>) -> Profile {
        const AT: &str = "observability.metrics.sidecar.profiles";
        let Some(profiles) = profiles.filter(|profiles| !profiles.is_null()) else { return Profile::default() };
        let mut bases = Vec::new();
        for (index, profile) in list(profiles, "appendProfiles").iter().enumerate() {
            match profile.get("name").and_then(Value::as_str) {
                Some("All") => bases.push(Base::All),
                Some("Basic") => bases.push(Base::Basic),
                Some("None") => bases.push(Base::None),
                _ => left_out.push(format!("{AT}.appendProfiles[{index}]: {profile}; name is one of All, Basic, None")),
            }
        }
        let mut selectors = |field: &str| {
            let mut selectors = Vec::new();
            for (index, selector) in list(profiles, field).iter().enumerate() {
                match Selector::parse(selector) {
                    Ok(selector) => selectors.push(selector),
                    Err(error) => left_out.push(format!("{AT}.{field}[{index}]: {error}")),
                }
            }
            selectors
        };
        let (exclude, include) = (selectors("exclude"), selectors("include"));
        Profile { base: bases.into_iter().max().unwrap_or_default(), exclude, include }
    }

    /// Leaves in `family` what is shown; `false` if that is nothing.
    pub fn admit(&self, family: &mut Family) -> bool {
        let name = family.name.as_str();
        let base = match self.base {
            Base::All => true,
            Base::None => false,
            Base::Basic => {
                BASIC_PARTS.iter().any(|part| name.contains(part))
                    || BASIC_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                    || BASIC_NAMES.contains(&name)
            }
        };
        let excluded = self.exclude.iter().any(|selector| selector.takes(name));
        let included = self.include.iter().any(|selector| selector.takes(name));
        if !(included || base && !excluded) {
            return false;
        }
        if self.base == Base::Basic {
            family.samples.retain(|sample| !labels(&sample.labels).into_iter().any(internal));
        }
        !family.samples.is_empty()
    }
}

fn internal((name, value): (&str, &str)) -> bool {
    ENTITY_LABELS.contains(&name)
        && (INTERNAL_PREFIXES.iter().any(|prefix| value.starts_with(prefix)) || INTERNAL_NAMES.contains(&value))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

impl Selector {
    fn parse(from: &Value) -> Result<Selector, String> {
        let field = |name: &str| from.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let text = field("match");
        match field("type").as_str() {
            "Exact" => Ok(Selector::Exact(text)),
            "Prefix" => Ok(Selector::Prefix(text)),
            "Contains" => Ok(Selector::Contains(text)),
            "Regex" => Regex::new(&text).map(Selector::Regex).map_err(|error| error.to_string()),
            other => Err(format!("type {other:?}; one of Exact, Prefix, Contains, Regex")),
        }
    }

    fn takes(&self, name: &str) -> bool {
        match self {
            Selector::Exact(text) => name == text,
            Selector::Prefix(text) => name.starts_with(text),
            Selector::Contains(text) => name.contains(text),
            Selector::Regex(regex) => regex.is_match(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sidecar::metrics::exposition::{Format, parse};

    const OWN: &str = "envoy_cluster_upstream_rq{envoy_cluster_name=\"backend\"} 1
envoy_cluster_upstream_rq{envoy_cluster_name=\"ads_cluster\"} 1
envoy_cluster_upstream_cx_total{envoy_cluster_name=\"_kuma_metrics_hijacker\"} 1
envoy_cluster_membership_healthy{envoy_cluster_name=\"backend\"} 1
envoy_cluster_lb_zone_cluster_too_small{envoy_cluster_name=\"backend\"} 1
envoy_server_live 1
envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix=\"system_envoy_admin\"} 1
";

    fn shown(profiles: &Value) -> Vec<String> {
        let mut left_out = Vec::new();
        let profile = Profile::parse(Some(profiles), &mut left_out);
        assert_eq!(left_out, Vec::<String>::new());
        let mut shown = Vec::new();
        for mut family in parse(OWN, Format::Text).expect("families") {
            if profile.admit(&mut family) {
                shown.push(format!("{}*{}", family.name.trim_start_matches("envoy_"), family.samples.len()));
            }
        }
        shown
    }

    #[test]
    fn profiles_and_exceptions() {
        let basic = ["cluster_upstream_rq*1", "cluster_membership_healthy*1", "server_live*1"];
        let all = [
            "cluster_upstream_rq*2",
            "cluster_upstream_cx_total*1",
            "cluster_membership_healthy*1",
            "cluster_lb_zone_cluster_too_small*1",
            "server_live*1",
            "http_downstream_rq_xx*1",
        ];
        let profiles = |names: &[&str]| -> Value {
            json!({"appendProfiles": names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()})
        };
        assert_eq!(shown(&Value::Null), basic);
        assert_eq!(shown(&profiles(&["Basic"])), basic);
        assert_eq!(shown(&profiles(&["None", "All", "Basic"])), all);
        assert!(shown(&profiles(&["None"])).is_empty());
        let selected = json!({
            "appendProfiles": [{"name": "None"}],
            "exclude": [{"type": "Prefix", "match": "envoy_server"}],
            "include": [{"type": "Exact", "match": "envoy_server_live"}, {"type": "Regex", "match": "zone_.*small$"}],
        });
        assert_eq!(shown(&selected), ["cluster_lb_zone_cluster_too_small*1", "server_live*1"]);
        let excluded = json!({"exclude": [{"type": "Contains", "match": "_rq"}]});
        assert_eq!(shown(&excluded), ["cluster_membership_healthy*1", "server_live*1"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let mut left_out = Vec::new();
        let bad = json!({"appendProfiles": [{"name": "Some"}], "include": [{"type": "Regex", "match": "("}, {"type": "Like", "match": "x"}]});
        Profile::parse(Some(&bad), &mut left_out);
        assert_eq!(left_out.len(), 3, "{left_out:?}");
        assert!(left_out[0].starts_with("observability.metrics.sidecar.profiles.appendProfiles[0]"), "{left_out:?}");
        assert!(left_out[2].contains("include[1]: type \"Like\""), "{left_out:?}");
    }
}
