//! promtool on the pages, and a Prometheus that scrapes the proxies.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time::{Duration, Instant, sleep, timeout},
};

use crate::{Played, pages, subject, wire::PATIENCE};

/// A program of the distribution's package: of `target/tools`, or of PATH.
fn program(name: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin").join(name);
    if tools.exists() { tools } else { name.into() }
}

/// Whether both programs are there.
pub fn installed() -> bool {
    let runs = |name| std::process::Command::new(program(name)).arg("--version").output().is_ok();
    runs("prometheus") && runs("promtool")
}

/// What `promtool check metrics` says of every page of both. Any error fails; a warning fails if Envoy's pages have none of that sort.
pub async fn lint(played: &Played) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let mut sorts: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (subject, admin) in [("Envoy", played.envoy.admin()), ("shika-proxy", played.shika.admin())] {
        for query in ["", "?usedonly", "?filter=cluster.*cx_total", "?usedonly&histogram_buckets=summary"] {
            let page = pages::page(admin, &format!("/stats/prometheus{query}")).await?;
            for line in promtool(&page).await? {
                let sort = line.split_once(' ').map_or(line.as_str(), |(_, sort)| sort).to_owned();
                let known = sorts.entry(subject).or_default().insert(sort.clone());
                if subject != "Envoy" && known && !sorts.get("Envoy").is_some_and(|envoy| envoy.contains(&sort)) {
                    failures.push(format!("{}: promtool: /stats/prometheus{query} of {subject}: {line}", played.name));
                }
            }
        }
    }
    Ok(failures)
}

/// The warnings of `promtool check metrics`; an error is one.
pub async fn promtool(page: &str) -> Result<Vec<String>> {
    let mut child = Command::new(program("promtool"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting promtool")?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let page = page.to_owned();
    let writer = tokio::spawn(async move { stdin.write_all(page.as_bytes()).await });
    let output = timeout(PATIENCE, child.wait_with_output()).await??;
    writer.await??;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    match output.status.code() {
        // 3: it can be read, and could be better.
        Some(0 | 3) => Ok(text.lines().map(str::to_owned).collect()),
        other => bail!("promtool ends with {other:?}: {text}"),
    }
}

/// A running Prometheus.
pub struct Prometheus {
    _child: Child,
    address: String,
    targets: PathBuf,
    scratch: PathBuf,
}

impl Prometheus {
    /// Starts one that looks for its targets in a file.
    pub async fn start(root: &Path) -> Result<Prometheus> {
        let scratch = root.join("prometheus");
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir_all(&scratch)?;
        let targets = scratch.join("targets.json");
        std::fs::write(&targets, "[]")?;
        let config = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{
                "job_name": "proxies",
                "metrics_path": "/stats/prometheus",
                "file_sd_configs": [{"files": [targets], "refresh_interval": "1s"}],
            }],
        });
        std::fs::write(scratch.join("prometheus.yml"), config.to_string())?;
        let address = format!("127.0.0.1:{}", subject::free_port()?);
        let log = std::fs::File::create(scratch.join("log"))?;
        let child = Command::new(program("prometheus"))
            .arg(format!("--config.file={}", scratch.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", scratch.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting Prometheus")?;
        Ok(Prometheus { _child: child, address, targets, scratch })
    }

    /// Makes it scrape a scene's proxies, and no others.
    pub fn scrape(&self, played: &Played) -> Result<()> {
        let target = |subject: &str, address: &str| json!({"targets": [address], "labels": {"scene": played.name, "subject": subject}});
        let targets = json!([target("envoy", played.envoy.admin()), target("shika", played.shika.admin())]);
        // It reads whatever it finds, so the file is whole from the start.
        let new = self.scratch.join("targets.new");
        std::fs::write(&new, targets.to_string())?;
        std::fs::rename(new, &self.targets)?;
        Ok(())
    }

    async fn ask(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&pages::page(&self.address, path).await?)?)
    }

    /// Waits until both proxies of a scene are scraped without an error, and shika-proxy's samples are what its page says. What is wrong at the end.
    pub async fn agrees(&self, played: &Played) -> Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let wrong = match self.look(played).await {
                Ok(wrong) => wrong,
                Err(error) => vec![format!("{:#}", error)],
            };
            if wrong.is_empty() || Instant::now() > deadline {
                return Ok(wrong.into_iter().map(|line| format!("{}: Prometheus: {line}", played.name)).collect());
            }
            // Polling interval: it scrapes once a second.
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn look(&self, played: &Played) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let targets = self.ask("/api/v1/targets?state=active").await?;
        let targets = targets["data"]["activeTargets"].as_array().context("no targets")?;
        for subject in ["envoy", "shika"] {
            let of_subject = |target: &&Value| {
                target["labels"]["scene"] == played.name.as_str() && target["labels"]["subject"] == subject
            };
            match targets.iter().find(of_subject) {
                Some(target) if target["health"] == "up" && target["lastError"] == "" => {}
                other => wrong.push(format!("{subject} is not up: {other:?}")),
            }
        }
        let scraped = self.samples(&played.name, "shika").await?;
        let page = pages::page(played.shika.admin(), "/stats/prometheus").await?;
        let page = pages::exposition(&page)?;
        let own = ["envoy_server_uptime", "envoy_server_memory", "envoy_server_stats_recent_lookups"];
        // What the scrape itself changes.
        let volatile = |name: &str| own.iter().any(|own| name.starts_with(own)) || name.contains("admin");
        for (name, value) in page.samples.iter().filter(|(name, _)| !volatile(name)) {
            let name = if name.ends_with("{}") { name.trim_end_matches("{}") } else { name };
            let seen = scraped.get(name);
            if seen.and_then(|seen| seen.parse::<f64>().ok()) != value.parse().ok() {
                wrong.push(format!("{name} is {value} on the page, {seen:?} in Prometheus"));
            }
        }
        Ok(wrong)
    }

    /// All samples of a proxy by name and labels, as they stand now.
    async fn samples(&self, scene: &str, subject: &str) -> Result<BTreeMap<String, String>> {
        let query = format!("%7Bscene%3D%22{scene}%22%2Csubject%3D%22{subject}%22%7D");
        let answer = self.ask(&format!("/api/v1/query?query={query}")).await?;
        let mut samples = BTreeMap::new();
        for sample in answer["data"]["result"].as_array().context("no result")? {
            let metric = sample["metric"].as_object().context("no metric")?;
            let added = ["__name__", "scene", "subject", "instance", "job"];
            let labels: Vec<String> = metric
                .iter()
                .filter(|(name, _)| !added.contains(&name.as_str()))
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            let name = metric["__name__"].as_str().unwrap_or_default();
            let name = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
            samples.insert(name, sample["value"][1].as_str().unwrap_or_default().to_owned());
        }
        Ok(samples)
    }
}
