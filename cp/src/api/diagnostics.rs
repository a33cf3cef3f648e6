//! The diagnostics server on 5680: health, readiness and metrics of the control plane.

use std::collections::BTreeMap;
use std::fmt::Write;

use http::{Method, StatusCode};

use super::server::{Answer, Request};
use super::{KUMA_VERSION, PRODUCT};
use crate::dp::stats::DpStats;
use crate::resource::{DpStatus, Kind};
use crate::store::{Store, StoreError};

/// Answers a request to the diagnostics server. It listens only once the control plane is ready, and stays ready as long
/// as its store answers.
pub async fn answer(store: &Store, instance_id: &str, dp: &DpStats, request: Request) -> Answer {
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed\n");
    }
    match request.path() {
        "/healthy" => Answer::text(StatusCode::OK, ""),
        "/ready" => match store.list(Kind::Mesh, None).await {
            Ok(_) => Answer::text(StatusCode::OK, ""),
            Err(error) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        },
        "/metrics" => match metrics(store, instance_id).await {
            Ok(mut body) => {
                body.push_str(&dp.prometheus());
                Answer { status: StatusCode::OK, content_type: "text/plain; version=0.0.4", body: body.into() }
            }
            Err(error) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        },
        _ => Answer::text(StatusCode::NOT_FOUND, "try /healthy, /ready or /metrics\n"),
    }
}

/// Metrics in the Prometheus text format. Labels are kinds and meshes, so that their number stays small.
async fn metrics(store: &Store, instance_id: &str) -> Result<String, StoreError> {
    let mut text = String::new();
    let version = env!("CARGO_PKG_VERSION");
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "# HELP cp_info Build of the control plane.\n# TYPE cp_info gauge\n\
         cp_info{{product=\"{PRODUCT}\",version=\"{KUMA_VERSION}\",shika_version=\"{version}\",instance_id=\"{instance_id}\"}} 1\n\
         # HELP resources_count Resources in the store.\n# TYPE resources_count gauge\n"
    );
    for kind in Kind::ALL {
        let count = store.list(kind, None).await?.len();
        let _ = writeln!(text, "resources_count{{resource_type=\"{kind}\"}} {count}");
    }
    let insights = store.list(Kind::DataplaneInsight, None).await?;
    let insights: BTreeMap<(&str, &str), _> = insights
        .iter()
        .filter_map(|resource| Some(((resource.meta.mesh.as_str(), resource.meta.name.as_str()), resource.insight()?)))
        .collect();
    let mut proxies: BTreeMap<(String, &str), u64> = BTreeMap::new();
    for resource in store.list(Kind::Dataplane, None).await? {
        let Some(dataplane) = resource.dataplane() else { continue };
        let insight = insights.get(&(resource.meta.mesh.as_str(), resource.meta.name.as_str()));
        let (status, _) = DpStatus::of(dataplane, insight.map(|insight| insight.as_ref()));
        *proxies.entry((resource.meta.mesh.clone(), status.as_str())).or_default() += 1;
    }
    text.push_str("# HELP shika_dataplanes Dataplanes by status.\n# TYPE shika_dataplanes gauge\n");
    for ((mesh, status), count) in proxies {
        let _ = writeln!(text, "shika_dataplanes{{mesh=\"{mesh}\",status=\"{status}\"}} {count}");
    }
    // A certificate must never go stale in silence: the one that expires first, of the proxies that are connected.
    let mut expiry: BTreeMap<&str, i64> = BTreeMap::new();
    for ((mesh, _), insight) in &insights {
        let time = insight.mtls.as_ref().and_then(|mtls| mtls.certificate_expiration_time);
        if let Some(time) = time.filter(|_| insight.is_online()) {
            let first = expiry.entry(mesh).or_insert(i64::MAX);
            *first = time.timestamp().min(*first);
        }
    }
    text.push_str(
        "# HELP shika_certificate_expiration_seconds When the first certificate of a connected proxy expires, seconds since \
         1970.\n# TYPE shika_certificate_expiration_seconds gauge\n",
    );
    for (mesh, time) in expiry {
        let _ = writeln!(text, "shika_certificate_expiration_seconds{{mesh=\"{mesh}\"}} {time}");
    }
    Ok(text)
}
