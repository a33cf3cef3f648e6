//! A control plane that is asked by REST: questions, answers, failures.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use common::{LIMIT, Proxy, eventually, get, http_listener, planes::answers, run};
use serde_json::{Value, json};

/// A question as it came; the socket that waits for its answer.
struct Question {
    path: String,
    host: String,
    body: Value,
    socket: TcpStream,
}

impl Question {
    fn names(&self) -> Vec<&str> {
        self.body["resource_names"]
            .as_array()
            .map_or_else(Vec::new, |names| names.iter().map(|name| name.as_str().unwrap()).collect())
    }

    fn version(&self) -> &str {
        self.body["version_info"].as_str().unwrap_or_default()
    }

    fn answer(mut self, status: &str, body: &str) {
        write!(self.socket, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    }

    fn resources(self, version: &str, resources: &Value) {
        self.answer("200 OK", &json!({"version_info": version, "resources": resources}).to_string());
    }
}

/// Reads questions of one connection after the other.
fn questions(socket: TcpStream, asked: &Sender<Question>) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let field = |name: &str| {
            let line = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix(name).map(str::to_owned));
            line.unwrap().trim().to_owned()
        };
        let mut body = vec![0; field("content-length:").parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        assert!(head.starts_with("POST ") && field("content-type:") == "application/json", "{head}");
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let question = Question {
            path,
            host: field("host:"),
            body: serde_json::from_slice(&body).unwrap(),
            socket: socket.try_clone().unwrap(),
        };
        if asked.send(question).is_err() {
            return;
        }
    }
}

/// A control plane, and its questions.
fn control_plane() -> (u16, Receiver<Question>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions_in) = channel();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let asked = asked.clone();
            thread::spawn(move || questions(socket.unwrap(), &asked));
        }
    });
    (port, questions_in)
}

const SOURCE: &str = "{api_config_source: {api_type: REST, transport_api_version: V3, cluster_names: [cp], refresh_delay: 0.05s, request_timeout: 10s}, \
                      resource_api_version: V3, initial_fetch_timeout: 0s}";

fn bootstrap(port: u16) -> String {
    format!(
        "node: {{id: mesh.proxy, cluster: test}}
dynamic_resources: {{cds_config: {SOURCE}, lds_config: {SOURCE}}}
static_resources:
  clusters:{}",
        common::cluster("cp", &format!("127.0.0.1:{port}"))
    )
}

/// The next question at this path that `fits`; all others are told that nothing has changed.
fn next(asked: &Receiver<Question>, path: &str, fits: impl Fn(&Question) -> bool) -> Question {
    loop {
        let question = asked.recv_timeout(LIMIT).expect("a question in time");
        if question.path == path && fits(&question) {
            return question;
        }
        question.answer("304 Not Modified", "");
    }
}

fn listener(routes: &str) -> Value {
    let text =
        http_listener("web", "127.0.0.1:0", &format!("rds: {{route_config_name: {routes}, config_source: {SOURCE}}}"));
    let mut listeners: Value = serde_yaml_ng::from_str(&text).unwrap();
    listeners[0]["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
    listeners
}

fn table(name: &str, body: &str) -> Value {
    let mut table: Value =
        serde_yaml_ng::from_str(&format!("{{name: {name}, virtual_hosts: [{}]}}", answers(body))).unwrap();
    table["@type"] = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration".into();
    table
}

const CLUSTERS: &str = "/v3/discovery:clusters";
const LISTENERS: &str = "/v3/discovery:listeners";
const ROUTES: &str = "/v3/discovery:routes";

#[test]
fn a_control_plane_is_asked_again_and_again() {
    let (port, asked) = control_plane();
    let proxy = Proxy::start(&bootstrap(port), &[]);
    let first = next(&asked, CLUSTERS, |_| true);
    assert_eq!(first.host, "cp", "the cluster's name, as in Envoy");
    assert_eq!(first.body["node"]["id"], "mesh.proxy");
    assert_eq!(first.body["type_url"], "type.googleapis.com/envoy.config.cluster.v3.Cluster");
    assert_eq!((first.version(), first.names().len()), ("", 0));
    // A failure is followed by another question, not by the end.
    first.answer("503 Service Unavailable", "");
    next(&asked, CLUSTERS, |_| true).resources("c1", &json!([]));
    next(&asked, LISTENERS, |_| true).resources("l1", &listener("r"));
    let question = next(&asked, ROUTES, |_| true);
    assert_eq!((question.version(), question.names()), ("", vec!["r"]));
    question.resources("r1", &json!([table("r", "one")]));
    let question = next(&asked, ROUTES, |question| question.version() == "r1");
    assert_eq!(question.body["node"]["id"], "mesh.proxy", "every question stands alone");
    let web = proxy.listener("web");
    assert_eq!(get(&web, "/").body, "one");
    // Nothing has changed; then something has.
    question.answer("304 Not Modified", "");
    next(&asked, ROUTES, |_| true).resources("r2", &json!([table("r", "two")]));
    next(&asked, ROUTES, |question| question.version() == "r2").answer("304 Not Modified", "");
    assert_eq!(get(&web, "/").body, "two");
    // What cannot be used is refused: the version in force stays, and the next question says why.
    next(&asked, ROUTES, |_| true)
        .resources("r3", &json!([{"@type": table("r", "")["@type"], "name": "r", "virtual_hosts": [{"name": ""}]}]));
    let question = next(&asked, ROUTES, |question| question.body.get("error_detail").is_some());
    assert_eq!(question.version(), "r2");
    let detail = question.body["error_detail"]["message"].as_str().unwrap();
    assert!(detail.starts_with("RouteConfiguration \"r\": virtual_hosts[0].name"), "{detail}");
    // An answer that is none is told in the log.
    question.answer("200 OK", r#"{"version_info": "r4", "unknown": 1}"#);
    eventually("the log", || proxy.logged().contains("/v3/discovery:routes: unknown").then_some(()));
    assert_eq!(get(&web, "/").body, "two");
    // Other names: asked for as if nothing was held, since the server cannot know of what the version that is held consists.
    next(&asked, LISTENERS, |_| true).resources("l2", &listener("s"));
    let question = next(&asked, ROUTES, |question| question.names().contains(&"s"));
    assert_eq!(question.version(), "");
    question.resources("r5", &json!([table("r", "two"), table("s", "three")]));
    // The old table is asked for no more once the listener has the new one.
    next(&asked, ROUTES, |question| question.names() == ["s"]).resources("r5", &json!([table("s", "three")]));
    eventually("the other routes", || (get(&proxy.listener("web"), "/").body == "three").then_some(()));
    assert_eq!(proxy.stat("listener_manager.lds.update_success"), 2);
}

#[test]
fn ads_by_rest_is_refused_by_its_path() {
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    let text = bootstrap(1).replace(
        "dynamic_resources: {",
        "dynamic_resources: {ads_config: {api_type: REST, transport_api_version: V3, cluster_names: [cp], refresh_delay: 1s}, ",
    );
    std::fs::write(file.path(), text).unwrap();
    let output = run(&["--mode", "validate", "-c", file.path().to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success());
    assert!(said.contains("dynamic_resources.ads_config.api_type: ADS needs GRPC or DELTA_GRPC"), "{said}");
}
