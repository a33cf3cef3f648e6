#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;

/// Envoy from `SHIKA_ENVOY` or PATH. Where there is none the test is left out, but not in CI: there it is installed.
fn envoy() -> Option<Subject> {
    let path = std::env::var_os("SHIKA_ENVOY").map_or_else(|| PathBuf::from("envoy"), PathBuf::from);
    match Subject::find("envoy", &path, None) {
        Ok(subject) => Some(subject),
        Err(error) if std::env::var_os("CI").is_some() => panic!("{error}"),
        Err(error) => {
            note(&format!("NOT TESTED: {error}"));
            None
        }
    }
}

#[tokio::test]
async fn every_scenario_answers_through_envoy() {
    let Some(mut subject) = envoy() else { return };
    let work = WorkDir::create().unwrap();
    identify(&mut subject, &work).await.unwrap();
    assert!(subject.version.contains("1.40.0"), "the figures are made against 1.40.0, this is {}", subject.version);
    for scenario in SCENARIOS {
        let upstream = Upstream::start(scenario.upstream).unwrap();
        let (proxies, target) = start_proxies(scenario, &subject, &work, upstream.port).await.unwrap();
        let plan = Plan {
            target,
            protocol: scenario.protocol,
            host: "backend".into(),
            path: "/".into(),
            payload: scenario.payload,
            connections: 2,
            streams: 2,
            rate: None,
            new_connection: scenario.new_connection,
            timeout: Duration::from_secs(20),
        };
        let load = Load::start(&plan);
        load.record();
        while load.progress().completed() < 20 {
            assert!(cpu_of(&proxies).is_ok(), "{}: a proxy ended", scenario.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let record = load.finish().await;
        assert_eq!(record.failed(), 0, "{}: {:?}", scenario.name, record.first_failure);
        assert!(proxies.iter().all(|proxy| proxy.resident_mib().unwrap() > 1.0), "{}", scenario.name);
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_its_bootstrap_is_quoted() {
    let Some(subject) = envoy() else { return };
    let work = WorkDir::create().unwrap();
    let hop = scenario::Hop { name: "broken", template: "no_such_field: {{listener_port}}\n" };
    let rendered = work.render(&hop, 1).unwrap();
    let error = Proxy::start(&subject, &rendered, &work).unwrap().wait_until_live().await.unwrap_err();
    assert!(format!("{error:#}").contains("no_such_field"), "{error:#}");
}

#[test]
fn an_unknown_scenario_is_refused_by_name() {
    let error = choose(&["http9".to_owned()]).err().unwrap();
    assert!(error.to_string().contains("http9"), "{error}");
    assert_eq!(choose(&[]).unwrap().len(), SCENARIOS.len());
}
