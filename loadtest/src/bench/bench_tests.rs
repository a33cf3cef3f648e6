#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::load;

/// Envoy from `SHIKA_ENVOY` or PATH. Where there is none the test is left out, but not in CI: there it is installed.
fn envoy() -> Option<Subject> {
    let path = std::env::var_os("SHIKA_ENVOY").map_or_else(|| PathBuf::from("envoy"), PathBuf::from);
    match Subject::find(Name::Envoy, &path, None) {
        Ok(subject) => Some(subject),
        Err(error) if std::env::var_os("CI").is_some() => panic!("{error}"),
        Err(error) => {
            note(&format!("NOT TESTED: {error}"));
            None
        }
    }
}

fn bench(subjects: Vec<Subject>) -> Bench {
    let settings = Settings {
        duration: Duration::from_millis(300),
        warmup: Duration::from_millis(50),
        connections: 2,
        streams: 2,
        rate: None,
    };
    Bench::new(settings, subjects, None).unwrap()
}

#[tokio::test]
async fn every_scenario_answers_through_every_subject_that_is_here() {
    let Some(envoy) = envoy() else { return };
    let peers = [Name::Haproxy, Name::Nginx].map(|name| Subject::find(name, Path::new(&name.to_string()), None));
    let mut bench = bench(std::iter::once(envoy).chain(peers.into_iter().flatten()).collect());
    bench.identify().await.unwrap();
    let version = &bench.subjects[0].version;
    assert!(version.contains("1.40.0"), "the figures are made against 1.40.0, this is {version}");
    for scenario in SCENARIOS {
        for subject in bench.subjects.iter().filter(|subject| scenario.is_for(subject.name)) {
            let Kind::Closed(work) = &scenario.kind else { continue };
            let upstream = Upstream::start(work.upstream).unwrap();
            let chain = Chain::start(work, subject, &bench.dir, upstream.port).await.unwrap();
            let plan = load::Plan {
                connections: 2,
                timeout: Duration::from_secs(30),
                ..bench.plan(work, chain.target).unwrap()
            };
            let load = load::Load::start(&plan);
            load.record();
            while load.progress().completed() < 10 {
                subject::usage_of(&chain.proxies).unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let record = load.finish().await;
            assert_eq!(record.failed(), 0, "{} {}: {:?}", scenario.name, subject.name, record.first_failure);
            assert!(subject::memory_of(&chain.proxies).unwrap().resident > 1.0, "{}", scenario.name);
        }
    }
}

/// The scenario's kind by its name.
fn kind(name: &str) -> &'static Kind {
    &SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap().kind
}

#[tokio::test]
async fn what_is_not_a_closed_loop_yields_its_figures() {
    let Some(envoy) = envoy() else { return };
    let mut bench = bench(vec![envoy]);
    bench.identify().await.unwrap();
    let subject = &bench.subjects[0];
    let has = |round: &Round, metrics: &[Metric]| {
        for metric in metrics {
            assert!(round.get(metric).is_some_and(|value| *value > 0.0), "{}: {round:?}", metric.label());
        }
    };
    let (Kind::Start(start), Kind::Churn(churn, _), Kind::Idle(idle, _), Kind::Open(open, _)) =
        (kind("start"), kind("churn"), kind("idle_mtls"), kind("latency_70"))
    else {
        panic!("a scenario has another kind");
    };
    has(&bench.start_round(start, subject).await.unwrap(), &[Metric::Start, Metric::IdleMemory, Metric::Resident]);
    has(&bench.churn_round(churn, 50, subject).await.unwrap(), &[Metric::Cpu, Metric::Updates]);
    // So few connections may well fit into memory that is free already.
    let idle = bench.idle_round(idle, 50, subject).await.unwrap();
    has(&idle, &[Metric::Resident, Metric::Rate]);
    assert!(idle.contains_key(&Metric::ConnectionMemory), "{idle:?}");
    has(&bench.clusters_round(1, subject).await.unwrap(), &[Metric::Start, Metric::Update, Metric::ScrapeSize]);
    let three = bench.clusters_round(3, subject).await.unwrap();
    has(&three, &[Metric::ScrapeAll, Metric::ScrapeUsed, Metric::Cpu, Metric::Growth]);
    assert!(three.contains_key(&Metric::ClusterMemory), "{three:?}");
    let settings = Settings { rate: Some(200.0), ..bench.settings.clone() };
    let bench = Bench { settings, ..bench };
    match bench.open_round(open, 0.7, 0, &bench.subjects[0]).await {
        Ok(open) => has(&open, &[Metric::P50, Metric::P90, Metric::P99, Metric::P999, Metric::Lateness]),
        // On a busy machine that is the right outcome.
        Err(error) => assert!(error.to_string().contains("the load was late itself"), "{error:#}"),
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_its_bootstrap_is_quoted() {
    let Some(subject) = envoy() else { return };
    let dir = WorkDir::create().unwrap();
    let rendered = dir.render("broken", "no_such_field: {{listener_port}}\n", "", &[]).unwrap();
    let error = subject::Proxy::start(&subject, &rendered, 1, &dir).unwrap().wait_until_live().await.unwrap_err();
    assert!(format!("{error:#}").contains("no_such_field"), "{error:#}");
}

#[test]
fn scenarios_are_chosen_by_name_and_by_their_beginning() {
    let error = choose(&["http9".to_owned()]).err().unwrap();
    assert!(error.to_string().contains("http9"), "{error}");
    assert_eq!(choose(&[]).unwrap().len(), SCENARIOS.len());
    let names: Vec<&str> =
        choose(&["tcp_*".to_owned(), "handshake".to_owned()]).unwrap().iter().map(|scenario| scenario.name).collect();
    assert_eq!(names, ["tcp_one_hop", "tcp_one_hop_10mb", "handshake", "tcp_one_hop_10mb_up"]);
}
