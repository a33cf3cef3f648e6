//! HostnameGenerator (Kuma `pkg/core/resources/apis/hostnamegenerator`) and its templates.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::external::Extension;
use super::service::LabelSelector;

/// Gives services host names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostnameGenerator {
    /// Which services.
    pub selector: HostnameSelector,
    /// The host name, see [`render`].
    pub template: String,
    /// Handled by an extension of the control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension: Option<Extension>,
}

/// Which services a HostnameGenerator is for; exactly one field is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostnameSelector {
    /// MeshServices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_service: Option<LabelSelector>,
    /// MeshExternalServices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_external_service: Option<LabelSelector>,
    /// MeshMultiZoneServices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_multi_zone_service: Option<LabelSelector>,
}

/// What a template can say of a service.
#[derive(Clone, Copy, Debug)]
pub struct TemplateData<'a> {
    /// The name in this control plane.
    pub name: &'a str,
    /// The name where it was created.
    pub display_name: &'a str,
    /// The Kubernetes namespace; empty without one.
    pub namespace: &'a str,
    /// The mesh.
    pub mesh: &'a str,
    /// The zone; empty without one.
    pub zone: &'a str,
    /// The labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Renders the host name of a service. Of Go's text/template, which Kuma uses, this takes what names are made of: text,
/// `{{ .DisplayName }}`, `{{ .Name }}`, `{{ .Namespace }}`, `{{ .Mesh }}`, `{{ .Zone }}` and `{{ label "key" }}`, with `{{-` and
/// `-}}` taking away the white space beside them.
///
/// # Errors
/// A text that names the action that is not known, not closed, or whose label the service does not have.
pub fn render(template: &str, data: &TemplateData<'_>) -> Result<String, String> {
    let lookup = |label: &str| data.labels.get(label).cloned().ok_or_else(|| format!("label {label} not found"));
    evaluate(template, data, lookup)
}

/// Checks a template by rendering it for a service that has every label.
///
/// # Errors
/// As [`render`]; also when the result is no DNS name.
pub(super) fn check(template: &str) -> Result<String, String> {
    let data = TemplateData {
        name: "name",
        display_name: "displayname",
        namespace: "namespace",
        mesh: "mesh",
        zone: "zone",
        labels: &BTreeMap::new(),
    };
    evaluate(template, &data, |_| Ok("label".to_owned()))
}

fn evaluate(
    template: &str,
    data: &TemplateData<'_>,
    label: impl Fn(&str) -> Result<String, String>,
) -> Result<String, String> {
    let mut rendered = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, mut next) = after
            .split_once("}}")
            .ok_or_else(|| format!("{:?} is not closed with \"}}}}\"", format!("{{{{{after}")))?;
        let (before, action) = match action.strip_prefix("- ") {
            Some(action) => (before.trim_end(), action),
            None => (before, action),
        };
        let action = match action.strip_suffix(" -") {
            Some(action) => {
                next = next.trim_start();
                action
            }
            None => action,
        };
        rendered.push_str(before);
        match action.trim() {
            ".DisplayName" => rendered.push_str(data.display_name),
            ".Name" => rendered.push_str(data.name),
            ".Namespace" => rendered.push_str(data.namespace),
            ".Mesh" => rendered.push_str(data.mesh),
            ".Zone" => rendered.push_str(data.zone),
            other => rendered.push_str(&label(label_key(other)?)?),
        }
        rest = next;
    }
    rendered.push_str(rest);
    Ok(rendered)
}

/// The key of `label "key"`.
fn label_key(action: &str) -> Result<&str, String> {
    let unknown = || {
        format!(
            "{action:?} is not supported: use .DisplayName, .Name, .Namespace, .Mesh, .Zone or label \"key\" between \
             double braces"
        )
    };
    let argument =
        action.strip_prefix("label").filter(|rest| rest.starts_with([' ', '\t'])).ok_or_else(unknown)?.trim();
    let quoted = |quote: char| argument.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    quoted('"').or_else(|| quoted('`')).filter(|key| !key.contains(['"', '`', '\\'])).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates() {
        let labels = BTreeMap::from([("k8s.kuma.io/service-name".to_owned(), "redis".to_owned())]);
        let data = TemplateData {
            name: "web-x2w5",
            display_name: "web",
            namespace: "shop",
            mesh: "default",
            zone: "east",
            labels: &labels,
        };
        for (template, expected) in [
            ("{{ .DisplayName }}.svc.{{ .Zone }}.mesh.local", Ok("web.svc.east.mesh.local")),
            ("{{.DisplayName}}.{{.Namespace}}.svc.mesh.local", Ok("web.shop.svc.mesh.local")),
            ("{{ .Name }}.{{ .Mesh }}", Ok("web-x2w5.default")),
            ("{{ label \"k8s.kuma.io/service-name\" }}.x", Ok("redis.x")),
            ("{{ label `k8s.kuma.io/service-name` }}.x", Ok("redis.x")),
            ("a. {{- .Zone -}} .b", Ok("a.east.b")),
            ("a. {{- .Zone }}", Ok("a.east")),
            ("{{ .Zone -}} .b", Ok("east.b")),
            ("plain.example", Ok("plain.example")),
            ("{{ label \"none\" }}", Err("label none not found")),
            ("{{ .Zone", Err("not closed")),
            ("{{ if .Zone }}a{{ end }}", Err("is not supported")),
            ("{{ label }}", Err("is not supported")),
        ] {
            match (render(template, &data), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{template}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{template}: {found}"),
                (found, expected) => assert_eq!(found.as_deref().map_err(String::as_str), expected, "{template}"),
            }
        }
    }
}
