//! One run: one case on one subject.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_yaml_ng::Value;
use tokio::net::{TcpSocket, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::bootstrap::{self, Placeholders};
use crate::case::{Case, Fate, Protocol, StatValue};
use crate::certs::{self, Certs};
use crate::control::{self, Answer, Served};
use crate::observe::{Observed, Recorder};
use crate::subject::{self, Running, Subject};
use crate::text::Normalizer;
use crate::upstream::Listening;
use crate::wire::PATIENCE;
use crate::{client, upstream};

/// What an upstream has seen so far.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Connections accepted.
    pub connections: usize,
    /// Requests whose head has come (`tcp`: connections).
    pub started: usize,
    /// Requests that were noted as a whole.
    pub done: usize,
    /// Control plane: what the subject last said about each type.
    pub answers: BTreeMap<String, Answer>,
    /// How connections ended, by index.
    pub ended: BTreeMap<usize, Fate>,
}

/// What all parts of a run share.
pub struct Run {
    /// The case.
    pub case: Case,
    /// Where observations go.
    pub recorder: Recorder,
    /// `${NAME}` values.
    pub placeholders: Placeholders,
    /// Certificates of the suite.
    pub certs: Arc<Certs>,
    /// Address of the subject's admin server.
    pub admin: String,
    /// Per upstream, what it has seen.
    pub seen: BTreeMap<String, watch::Sender<Seen>>,
    /// Per control plane, what it serves.
    pub serving: BTreeMap<String, watch::Sender<Served>>,
}

impl Run {
    /// A resource of the case with its placeholders filled in.
    pub fn filled(&self, resource: &Value) -> Result<serde_json::Value> {
        bootstrap::filled(resource, &self.placeholders)
    }

    /// Waits until an upstream has seen a request head or connection.
    pub async fn until_seen(&self, name: &str, path: &str) {
        let Some(seen) = self.seen.get(name) else {
            self.recorder.miss(format!("{path}: no upstream `{name}`"));
            return;
        };
        if timeout(PATIENCE, seen.subscribe().wait_for(|seen| seen.started > 0)).await.is_err() {
            self.recorder.note(&format!("{path}.failed"), "the upstream saw nothing");
            self.recorder.miss(format!("{path}: upstream `{name}` saw nothing"));
        }
    }
}

/// Outcome of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What was observed.
    pub observed: Observed,
    /// Expectations that were missed.
    pub missed: Vec<String>,
    /// The end of the subject's stderr, for reports.
    pub tail: String,
}

/// Runs a case on a subject in a directory of its own.
pub async fn run(subject: Subject, case: Case, certs: Arc<Certs>, certs_dir: &Path, dir: &Path) -> Result<Outcome> {
    let stage = Stage::start(subject, case, certs, certs_dir, dir).await?;
    stage.play().await?;
    stage.finish().await
}

/// A subject that serves a case's bootstrap, with the case's upstreams.
pub struct Stage {
    /// What all parts of the run share.
    pub run: Arc<Run>,
    running: Running,
    upstreams: JoinSet<()>,
    log: PathBuf,
    /// Kept bound to the end.
    _refusing: Vec<TcpSocket>,
}

impl Stage {
    /// Starts upstreams and subject, and waits until it is live.
    pub async fn start(subject: Subject, case: Case, certs: Arc<Certs>, certs_dir: &Path, dir: &Path) -> Result<Stage> {
        let mut placeholders = Placeholders::new();
        let log = dir.join("access.log");
        placeholders.insert("LISTENER".into(), subject::free_port()?.to_string());
        placeholders.insert("CERTS".into(), certs_dir.display().to_string());
        placeholders.insert("LOG".into(), log.display().to_string());
        placeholders.insert("DIR".into(), dir.display().to_string());
        for file in certs::files() {
            let text = std::fs::read_to_string(certs_dir.join(&file))?;
            placeholders.insert(format!("BASE64:{file}"), BASE64_STANDARD.encode(&text));
            placeholders.insert(format!("TEXT:{file}"), text);
        }

        let mut sockets = Vec::new();
        let mut refusing = Vec::new();
        for (name, upstream) in &case.upstreams {
            if upstream.pipe {
                let path = dir.join(format!("{name}.sock"));
                placeholders.insert(bootstrap::placeholder(name), path.display().to_string());
                sockets.push((name.clone(), Listening::Pipe(UnixListener::bind(path)?)));
                continue;
            }
            let socket = TcpSocket::new_v4()?;
            socket.bind("127.0.0.1:0".parse()?)?;
            placeholders.insert(bootstrap::placeholder(name), socket.local_addr()?.port().to_string());
            match upstream.protocol {
                // Bound and not listening: connects are refused and nobody else can take the port.
                Protocol::Refuse => refusing.push(socket),
                Protocol::H1 | Protocol::H2 | Protocol::Tcp => {
                    sockets.push((name.clone(), Listening::Tcp(socket.listen(128)?)))
                }
            }
        }
        std::fs::write(dir.join("bootstrap.yaml"), bootstrap::build(&case, &placeholders)?)?;
        let running = Running::start(subject, dir, certs_dir).await?;
        placeholders.insert("ADMIN".into(), running.admin.rsplit(':').next().unwrap_or_default().to_owned());

        let normalizer = Normalizer::new(
            placeholders.iter().filter(|(name, _)| !name.contains(':')).map(|(k, v)| (k.as_str(), v.as_str())),
            &case.source,
        );
        let seen = case.upstreams.keys().map(|name| (name.clone(), watch::Sender::new(Seen::default()))).collect();
        let admin = running.admin.clone();
        let mut serving = BTreeMap::new();
        for (name, upstream) in case.upstreams.iter().filter(|(_, upstream)| !upstream.xds.is_empty()) {
            let resources = upstream.xds.iter().map(|resource| bootstrap::filled(resource, &placeholders));
            let served = Served::new(&resources.collect::<Result<Vec<_>>>()?)?;
            serving.insert(name.clone(), watch::Sender::new(served));
        }
        let run =
            Arc::new(Run { recorder: Recorder::new(normalizer), case, placeholders, certs, admin, seen, serving });

        let mut upstreams = JoinSet::new();
        for (name, listener) in sockets {
            upstreams.spawn(upstream::serve(run.clone(), name, listener));
        }
        let mut stage = Stage { run, running, upstreams, log, _refusing: refusing };
        stage.running.live().await?;
        Ok(stage)
    }

    /// Runs the case's clients, and waits until its upstreams and statistics have seen what they must.
    pub async fn play(&self) -> Result<()> {
        let run = &self.run;
        for index in 0..run.case.connections.len() {
            client::run(run, index).await;
        }
        settle_upstreams(run).await;
        check_stats(run, &run.case.stats, "stats").await
    }

    /// Stops the subject; what was seen.
    pub async fn finish(mut self) -> Result<Outcome> {
        let run = self.run;
        let tail = self.running.tail();
        match self.running.stop().await {
            Ok(status) => run.recorder.note("exit", &status.to_string()),
            Err(error) => {
                run.recorder.note("exit", "not in order");
                run.recorder.miss(format!("{error:#}"));
            }
        }
        self.upstreams.abort_all();
        check_access_log(&run, &self.log);
        for (name, _) in run.case.upstreams.iter().filter(|(_, upstream)| upstream.unobserved) {
            run.recorder.forget(&format!("upstream.{name}."));
        }
        let (observed, missed) = run.recorder.take();
        Ok(Outcome { observed, missed, tail })
    }
}

/// Values for every placeholder of a case that is only looked at.
pub fn standing_placeholders(case: &Case) -> Placeholders {
    let names = ["LISTENER", "CERTS", "LOG", "DIR", "ADMIN"].map(str::to_owned).into_iter();
    let files = certs::files().flat_map(|file| [format!("BASE64:{file}"), format!("TEXT:{file}")]);
    let upstreams = case.upstreams.keys().map(|name| bootstrap::placeholder(name));
    names.chain(files).chain(upstreams).map(|name| (name, "1".into())).collect()
}

/// Waits until upstreams have noted what they began, then checks what they must have seen.
async fn settle_upstreams(run: &Run) {
    for (name, upstream) in run.case.upstreams.iter().filter(|(_, upstream)| !upstream.unobserved) {
        if !upstream.xds.is_empty() {
            control::settle(run, name).await;
            continue;
        }
        let Some(seen) = run.seen.get(name) else { continue };
        let ends = upstream.ends.as_deref().unwrap_or_default();
        let expected = upstream.expect.as_ref().map_or(0, Vec::len);
        let settled = |seen: &Seen| {
            seen.done == seen.started
                && seen.done >= expected
                && ends.iter().enumerate().all(|(i, fate)| *fate == Fate::Open || seen.ended.contains_key(&i))
        };
        let in_time = timeout(PATIENCE, seen.subscribe().wait_for(settled)).await.is_ok();
        if !in_time {
            run.recorder.miss(format!("upstream {name}: unfinished: {:?}", *seen.borrow()));
        }
        let seen = seen.borrow().clone();
        let path = format!("upstream.{name}");
        run.recorder.note(&format!("{path}.connections"), &seen.connections.to_string());
        run.recorder.note(&format!("{path}.requests"), &seen.started.to_string());
        for (index, fate) in ends.iter().enumerate() {
            let path = format!("{path}.connection[{index}].end");
            run.recorder.note(&path, &format!("{:?}", seen.ended.get(&index).copied().unwrap_or(Fate::Open)));
            run.recorder.expect_text(&path, &format!("{fate:?}"));
        }
        for (index, facts) in upstream.handshakes.iter().flatten().enumerate() {
            for (fact, pattern) in facts {
                run.recorder.expect(&format!("{path}.connection[{index}].tls.{fact}"), Some(pattern));
            }
        }
        let Some(expected) = &upstream.expect else { continue };
        if upstream.protocol != Protocol::Tcp && seen.started != expected.len() {
            run.recorder.miss(format!("{path}: expected {} requests, saw {}", expected.len(), seen.started));
        }
        for (index, expected) in expected.iter().enumerate() {
            let path = format!("{path}.request[{index}]");
            if let Some(line) = &expected.line {
                run.recorder.expect(&format!("{path}.line"), Some(line));
            }
            if let Some(framing) = &expected.framing {
                run.recorder.expect_text(&format!("{path}.framing"), framing);
            }
            if let Some(body) = &expected.body {
                run.recorder.expect(&format!("{path}.body"), Some(body));
            }
            for (field, pattern) in &expected.message {
                run.recorder.expect(&format!("{path}.message.{field}"), pattern.as_ref());
            }
            for (name, pattern) in &expected.headers {
                run.recorder.expect(&format!("{path}.header.{name}"), pattern.as_ref());
            }
            for (name, pattern) in &expected.trailers {
                run.recorder.expect(&format!("{path}.trailer.{name}"), pattern.as_ref());
            }
        }
    }
}

/// Waits until stats have their values; notes them as they then are.
pub async fn check_stats(run: &Run, wanted: &BTreeMap<String, StatValue>, path: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = subject::admin(&run.admin, "GET /stats").await.context("reading stats")?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let stats: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once(": ")).collect();
        let as_text = |value: &StatValue| match value {
            StatValue::Number(number) => number.to_string(),
            StatValue::Word(word) => word.clone(),
        };
        let see = |name: &String| {
            let filled = bootstrap::fill_text(name, &run.placeholders).unwrap_or_default();
            stats.get(filled.as_str()).copied().unwrap_or("absent").to_owned()
        };
        let reached = wanted.iter().all(|(name, value)| see(name) == as_text(value));
        if reached || Instant::now() > deadline {
            for (name, value) in wanted {
                run.recorder.note(&format!("{path}.{name}"), &see(name));
                run.recorder.expect_text(&format!("{path}.{name}"), &as_text(value));
            }
            return Ok(());
        }
        // Polling interval: a counter may be raised after the last byte has reached the client.
        sleep(Duration::from_millis(20)).await;
    }
}

/// The access log is written out in full when the subject quits.
fn check_access_log(run: &Run, log: &Path) {
    let Some(expected) = &run.case.access_log else { return };
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        run.recorder.note(&format!("access_log[{index}]"), line);
    }
    for (index, pattern) in expected.iter().enumerate() {
        run.recorder.expect(&format!("access_log[{index}]"), Some(pattern));
    }
    if lines.len() != expected.len() {
        run.recorder.miss(format!("access log: expected {} lines, saw {}", expected.len(), lines.len()));
    }
}
