//! What the sidecar has to know of transparent proxying: `--transparent-proxy` and `--transparent-proxy-config`.
//!
//! The rules themselves are set by `install transparent-proxy`; this is the part of its configuration that kuma-dp reads and tells the control plane.
//! Source: kuma `pkg/transparentproxy/config/dataplane/config_dataplane.go`.

use std::{
    fs,
    io::{self, Read},
};

use serde_json::{Value, json};

/// Largest configuration that is read, bytes.
const MAX_CONFIG: u64 = 1024 * 1024;

/// One direction of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// It is redirected.
    pub enabled: bool,
    /// To this port.
    pub port: u16,
}

/// Kuma's `DataplaneConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransparentProxy {
    /// `ipFamilyMode: dualstack`; otherwise IPv4 only.
    pub dual_stack: bool,
    /// Port 15006.
    pub inbound: Redirect,
    /// Port 15001.
    pub outbound: Redirect,
    /// Port 15053.
    pub dns: Redirect,
    /// Networks of containers, `interface:CIDR`.
    pub networks: Vec<String>,
}

impl Default for TransparentProxy {
    fn default() -> Self {
        TransparentProxy {
            dual_stack: true,
            inbound: Redirect { enabled: true, port: 15006 },
            outbound: Redirect { enabled: true, port: 15001 },
            dns: Redirect { enabled: false, port: 15053 },
            networks: Vec::new(),
        }
    }
}

impl TransparentProxy {
    /// The defaults with these sources over them, in order: lists of files, separated by commas, or `-` for standard input.
    ///
    /// # Errors
    /// A source that cannot be read or holds something else, with its name and the field.
    pub fn load(sources: &[String]) -> Result<TransparentProxy, String> {
        let mut config = TransparentProxy::default();
        for source in sources.iter().flat_map(|sources| sources.split(',')).map(str::trim) {
            let named = |error: String| format!("--transparent-proxy-config {source}: {error}");
            let mut text = String::new();
            let read = match source {
                "" => continue,
                "-" => io::stdin().take(MAX_CONFIG).read_to_string(&mut text),
                path => fs::File::open(path).and_then(|file| file.take(MAX_CONFIG).read_to_string(&mut text)),
            };
            read.map_err(|error| named(error.to_string()))?;
            let value: Value = serde_yaml_ng::from_str(&text).map_err(|error| named(error.to_string()))?;
            config.merge(&value).map_err(named)?;
        }
        Ok(config)
    }

    /// Takes what is set. Keys of the installer's part of the configuration are not looked at.
    fn merge(&mut self, value: &Value) -> Result<(), String> {
        match value.get("ipFamilyMode") {
            None | Some(Value::Null) => {}
            Some(mode) => {
                self.dual_stack = match mode.as_str() {
                    Some("dualstack") => true,
                    Some("ipv4") => false,
                    _ => return Err(format!("ipFamilyMode: {mode}; one of dualstack, ipv4")),
                }
            }
        }
        let Some(redirect) = value.get("redirect") else { return Ok(()) };
        for (name, flow) in [("inbound", &mut self.inbound), ("outbound", &mut self.outbound), ("dns", &mut self.dns)] {
            let Some(given) = redirect.get(name) else { continue };
            if let Some(enabled) = given.get("enabled").filter(|value| !value.is_null()) {
                flow.enabled =
                    enabled.as_bool().ok_or_else(|| format!("redirect.{name}.enabled: {enabled}; true or false"))?;
            }
            if let Some(port) = given.get("port").filter(|value| !value.is_null()) {
                flow.port = port_number(port).ok_or_else(|| format!("redirect.{name}.port: {port}; 1 to 65535"))?;
            }
        }
        if let Some(networks) = redirect.pointer("/vnet/networks").filter(|value| !value.is_null()) {
            self.networks = networks
                .as_array()
                .and_then(|networks| networks.iter().map(|network| Some(network.as_str()?.to_owned())).collect())
                .ok_or_else(|| format!("redirect.vnet.networks: {networks}; a list of interface:CIDR"))?;
        }
        Ok(())
    }

    /// The field `dataplaneConfig` of the bootstrap request.
    pub fn to_json(&self) -> Value {
        let flow = |flow: &Redirect| json!({"enabled": flow.enabled, "port": flow.port});
        let vnet = if self.networks.is_empty() { json!({}) } else { json!({"networks": self.networks}) };
        json!({
            "ipFamilyMode": if self.dual_stack { "dualstack" } else { "ipv4" },
            "redirect": {
                "inbound": flow(&self.inbound),
                "outbound": flow(&self.outbound),
                "dns": flow(&self.dns),
                "vnet": vnet,
            },
        })
    }
}

/// A number, or text that is one.
fn port_number(value: &Value) -> Option<u16> {
    let port = match value {
        Value::String(text) => text.parse().ok()?,
        other => u16::try_from(other.as_u64()?).ok()?,
    };
    (port != 0).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_sources_win_and_the_installers_keys_are_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("a file");
            path.to_str().expect("UTF-8").to_owned()
        };
        let first = file(
            "a.yaml",
            "kumaDPUser: '5678'\nipFamilyMode: ipv4\nredirect: {inbound: {port: '15016', excludePorts: [22]}, vnet: {networks: ['docker0:172.17.0.0/16']}}\n",
        );
        let second = file("b.yaml", "redirect: {inbound: {enabled: false}, outbound: {port: 15011}}\n");
        let config = TransparentProxy::load(&[format!("{first},{second}")]).expect("a configuration");
        assert_eq!(
            config.to_json(),
            json!({"ipFamilyMode": "ipv4", "redirect": {"inbound": {"enabled": false, "port": 15016}, "outbound": {"enabled": true, "port": 15011},
                "dns": {"enabled": false, "port": 15053}, "vnet": {"networks": ["docker0:172.17.0.0/16"]}}})
        );
        assert_eq!(TransparentProxy::load(&[]), Ok(TransparentProxy::default()));
        for (text, needle) in [
            ("ipFamilyMode: ipv6", "ipFamilyMode: \"ipv6\""),
            ("redirect: {dns: {port: 0}}", "redirect.dns.port: 0"),
            ("redirect: {dns: {enabled: 'x'}}", "redirect.dns.enabled"),
            ("redirect: {vnet: {networks: docker0}}", "redirect.vnet.networks"),
            ("a: [", "c.yaml"),
        ] {
            let error = TransparentProxy::load(&[file("c.yaml", text)]).expect_err("an error");
            assert!(error.contains(needle) && error.contains("c.yaml"), "{error}");
        }
        assert!(TransparentProxy::load(&["/nowhere".into()]).expect_err("an error").contains("/nowhere"));
    }
}
