//! MeshMetric's document and the bootstrap's list of applications.
//!
//! Source: Kuma `pkg/plugins/policies/meshmetric/dpapi`, `pkg/xds/bootstrap/types` (`metrics.aggregate`).

use serde_json::Value;

use super::{exposition::escape, profile::Profile};

/// Where a path is not set.
const DEFAULT_PATH: &str = "/metrics";

/// Something that has metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Name, may be empty.
    pub name: String,
    /// Where it listens, if not at the proxy's address.
    pub address: Option<String>,
    /// Port.
    pub port: u16,
    /// Path.
    pub path: String,
}

/// What is shown on `/meshmetric`.
#[derive(Debug, Default)]
pub struct Config {
    /// Besides the proxy itself.
    pub applications: Vec<Application>,
    /// Of the proxy's own.
    pub profile: Profile,
    /// Of the proxy's own also those never written.
    pub include_unused: bool,
    /// On every series; values escaped.
    pub extra_labels: Vec<(String, String)>,
}

impl Application {
    /// How it is called in logs and labels.
    pub fn key(&self) -> String {
        let at = format!("{}:{}{}", self.address.as_deref().unwrap_or_default(), self.port, self.path);
        if self.name.is_empty() { at } else { format!("{} ({at})", self.name) }
    }

    /// From JSON; `at` is its place in the document.
    ///
    /// # Errors
    /// The field that is missing or wrong.
    fn parse(from: &Value, at: &str) -> Result<Application, String> {
        let text = |field: &str| from.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let port = from.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
        let port = port.filter(|port| *port != 0).ok_or_else(|| format!("{at}.port: expected 1 to 65535"))?;
        let path = text("path").unwrap_or(DEFAULT_PATH);
        // Go's URLs begin it with a slash where it is missing.
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Application {
            name: text("name").unwrap_or_default().to_owned(),
            address: text("address").map(str::to_owned),
            port,
            path,
        })
    }

    /// Those of the bootstrap's answer, `kumaSidecarConfiguration.metrics.aggregate`.
    ///
    /// # Errors
    /// The entry and field that is wrong.
    pub fn aggregate(sidecar: &Value) -> Result<Vec<Application>, String> {
        let entries = sidecar.pointer("/metrics/aggregate").and_then(Value::as_array).into_iter().flatten();
        entries
            .enumerate()
            .map(|(at, from)| Application::parse(from, &format!("kumaSidecarConfiguration.metrics.aggregate[{at}]")))
            .collect()
    }
}

impl Config {
    /// Reads the document. The second value lists what was left out, with its place.
    ///
    /// # Errors
    /// No JSON, or another shape.
    pub fn parse(document: &[u8]) -> Result<(Config, Vec<String>), String> {
        let document: Value = serde_json::from_slice(document).map_err(|error| error.to_string())?;
        let metrics = document.pointer("/observability/metrics").ok_or("observability.metrics: expected an object")?;
        let mut left_out = Vec::new();
        let list = |field: &str| match metrics.get(field) {
            None | Some(Value::Null) => Ok(&[][..]),
            Some(Value::Array(list)) => Ok(list.as_slice()),
            Some(_) => Err(format!("observability.metrics.{field}: expected a list")),
        };
        let mut applications = Vec::new();
        for (at, from) in list("applications")?.iter().enumerate() {
            match Application::parse(from, &format!("observability.metrics.applications[{at}]")) {
                Ok(application) => applications.push(application),
                Err(error) => left_out.push(error),
            }
        }
        for (at, backend) in list("backends")?.iter().enumerate() {
            if backend.get("type").and_then(Value::as_str) != Some("Prometheus") {
                left_out.push(format!(
                    "observability.metrics.backends[{at}]: metrics are not pushed; only backends of type Prometheus are served"
                ));
            }
        }
        let sidecar = metrics.get("sidecar");
        let extra_labels = metrics
            .get("extraLabels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((label_name(name), escape(value.as_str()?))))
            .collect();
        let config = Config {
            applications,
            profile: Profile::parse(sidecar.and_then(|sidecar| sidecar.get("profiles")), &mut left_out),
            include_unused: sidecar.and_then(|sidecar| sidecar.get("includeUnused")?.as_bool()).unwrap_or(false),
            extra_labels,
        };
        Ok((config, left_out))
    }
}

/// `kuma.workload` becomes `kuma_workload`.
fn label_name(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kumas_document() {
        // From Kuma's golden file of MeshMetric.
        let (config, left_out) = Config::parse(
            br#"{"observability":{"metrics":{"applications":[{"path":"/metrics","port":8080,"address":""},{"name":"b","path":"m","port":9,"address":"::1"}],
                "backends":[{"type":"Prometheus","name":null}],"sidecar":{"includeUnused":true},
                "extraLabels":{"kuma.proxy_role":"sidecar","kuma_io_services":",backend,","mesh":"a\"b"}}}}"#,
        )
        .expect("a configuration");
        assert_eq!(left_out, Vec::<String>::new());
        let keys: Vec<_> = config.applications.iter().map(Application::key).collect();
        assert_eq!(keys, [":8080/metrics", "b (::1:9/m)"]);
        assert!(config.include_unused);
        assert_eq!(
            config.extra_labels,
            [
                ("kuma_proxy_role".into(), "sidecar".into()),
                ("kuma_io_services".into(), ",backend,".into()),
                ("mesh".into(), "a\\\"b".into())
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (document, needle) in [
            (&b"{"[..], "EOF"),
            (b"{}", "observability.metrics"),
            (br#"{"observability":{"metrics":{"applications":{}}}}"#, "observability.metrics.applications"),
        ] {
            let error = Config::parse(document).expect_err("an error");
            assert!(error.contains(needle), "{error}");
        }
        let (_, left_out) = Config::parse(
            br#"{"observability":{"metrics":{"applications":[{"port":0}],"backends":[{"type":"OpenTelemetry","name":"x"}]}}}"#,
        )
        .expect("a configuration");
        assert!(left_out[0].starts_with("observability.metrics.applications[0].port"), "{left_out:?}");
        assert!(left_out[1].starts_with("observability.metrics.backends[0]"), "{left_out:?}");
        let sidecar = serde_json::json!({"metrics": {"aggregate": [{"name": "a", "address": "127.0.0.1", "port": 80, "path": "/m"}, {"name": "b"}]}});
        let error = Application::aggregate(&sidecar).expect_err("an error");
        assert!(error.contains("aggregate[1].port"), "{error}");
        assert_eq!(Application::aggregate(&Value::Null), Ok(vec![]));
    }
}
