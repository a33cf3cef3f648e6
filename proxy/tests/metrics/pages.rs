//! The pages of one proxy, read apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use crate::{Side, subject};

/// A page of the Prometheus format.
#[derive(Debug, Default)]
pub struct Exposition {
    /// Types by family.
    pub types: BTreeMap<String, String>,
    /// Values by name and labels, the labels in the order of their names.
    pub samples: BTreeMap<String, String>,
}

/// What a proxy showed at about one moment.
#[derive(Debug, Default)]
pub struct Pages {
    /// `/stats`: values by name.
    pub text: BTreeMap<String, String>,
    /// `/stats?format=json`: names.
    pub json: BTreeSet<String>,
    /// `/stats/prometheus`
    pub prometheus: Exposition,
    /// `/stats/prometheus?usedonly`
    pub used: Exposition,
    raw: BTreeMap<&'static str, String>,
}

impl Pages {
    /// Those of a proxy.
    pub async fn of(side: &Side) -> Result<Pages> {
        let run = &side.stage.run;
        let mut raw = BTreeMap::new();
        for (name, path) in [
            ("text", "/stats"),
            ("json", "/stats?format=json"),
            ("prometheus", "/stats/prometheus"),
            ("used", "/stats/prometheus?usedonly"),
        ] {
            let page = page(&run.admin, path).await?;
            // What differs between two runs on one machine.
            let listener = run.placeholders.get("LISTENER").context("every scene has a listener")?;
            let page = page.replace(&format!("_{listener}"), "_PORT");
            raw.insert(name, page.replace(&format!("_{}", side.dynamic), "_DYNAMIC"));
        }
        let text = raw["text"].lines().filter_map(|line| line.split_once(": "));
        Ok(Pages {
            text: text.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            json: json_names(&raw["json"])?,
            prometheus: exposition(&raw["prometheus"])?,
            used: exposition(&raw["used"])?,
            raw,
        })
    }

    /// Writes them to a directory.
    pub fn keep(&self, directory: &Path) -> Result<()> {
        for (name, page) in &self.raw {
            std::fs::write(directory.join(name), page)?;
        }
        Ok(())
    }
}

/// A page of the admin interface.
pub async fn page(admin: &str, path: &str) -> Result<String> {
    let answer = subject::admin(admin, &format!("GET {path}")).await?;
    if answer.status() != Some(200) {
        bail!("{path}: {}", answer.start);
    }
    String::from_utf8(answer.body).with_context(|| format!("{path} is not text"))
}

fn json_names(page: &str) -> Result<BTreeSet<String>> {
    let page: serde_json::Value = serde_json::from_str(page).context("/stats?format=json")?;
    let mut names = BTreeSet::new();
    for stat in page["stats"].as_array().context("no `stats`")? {
        match stat["name"].as_str() {
            Some(name) => drop(names.insert(name.to_owned())),
            None => {
                let histograms = stat["histograms"]["computed_quantiles"].as_array().context("no histograms")?;
                names.extend(histograms.iter().filter_map(|one| Some(one["name"].as_str()?.to_owned())));
            }
        }
    }
    Ok(names)
}

/// Reads a page of the Prometheus format.
pub fn exposition(page: &str) -> Result<Exposition> {
    let mut exposition = Exposition::default();
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (family, kind) = kind.split_once(' ').with_context(|| format!("{line:?}"))?;
            if exposition.types.insert(family.to_owned(), kind.to_owned()).is_some() {
                bail!("{family} has two TYPE lines");
            }
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
        let name = match name.split_once('{') {
            Some((name, labels)) => {
                let mut labels: Vec<&str> = split_labels(labels.trim_end_matches('}'));
                labels.sort_unstable();
                format!("{name}{{{}}}", labels.join(","))
            }
            None => name.to_owned(),
        };
        if exposition.samples.insert(name.clone(), value.to_owned()).is_some() {
            bail!("{name} is there twice");
        }
    }
    Ok(exposition)
}

/// `a="x,y",b="z"` at the commas between labels.
fn split_labels(labels: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in labels.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(&labels[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < labels.len() {
        parts.push(&labels[start..]);
    }
    parts
}
