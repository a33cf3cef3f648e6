//! TCP access logs of `shika-proxy run`: kuma-dp's streamer.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::{
    io::{BufRead, BufReader, Read},
    net::{SocketAddr, TcpListener, TcpStream},
};

use common::{
    LIMIT, eventually, get, http_listener,
    sidecar::{Setup, Sidecar},
};
use shika_proto::{
    any, envoy::config::bootstrap::v3::bootstrap::StaticResources, google::protobuf::Any, json, type_url,
};

/// A listener with the access logs that Kuma generates for TCP backends: MeshAccessLog's two forms, and TrafficLog's.
fn web(pipe: &str, backends: &[SocketAddr; 2]) -> Any {
    let log = |format: &str| {
        format!(
            "{{name: envoy.access_loggers.file, typed_config: {{'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {pipe}, log_format: {format}}}}}"
        )
    };
    let [first, second] = backends;
    let logs = [
        log(&format!(
            "{{json_format: {{address: '{first}', message: \"plain %REQ(:PATH)% \\\"%RESPONSE_CODE%\\\"\\n\"}}}}"
        )),
        log(&format!(
            "{{json_format: {{address: '{second}', message: {{code: '%RESPONSE_CODE%', path: '%REQ(:PATH)%'}}}}}}"
        )),
        log(&format!("{{text_format_source: {{inline_string: \"{first};traffic %REQ(:PATH)%\\n\"}}}}")),
    ];
    let routes = format!(
        "access_log: [{}]\n          route_config: {{virtual_hosts: [{{name: v, domains: ['*'], routes: [{{match: {{prefix: /}}, \
         direct_response: {{status: 200, body: {{inline_string: hi}}}}}}]}}]}}",
        logs.join(", ")
    );
    let text = format!("listeners:{}", http_listener("web", "127.0.0.1:0", &routes));
    let resources: StaticResources = json::from_yaml(&text).unwrap();
    any::pack(&resources.listeners[0])
}

fn accepted(listener: &TcpListener) -> BufReader<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let stream = eventually("the connection of the logs", || listener.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    BufReader::new(stream)
}

fn lines(stream: &mut BufReader<TcpStream>, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        lines.push(line);
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_go_to_the_backends_that_they_name() {
    let mut sidecar = Sidecar::start(Setup::default()).await;
    let features = sidecar.request["features"].as_array().unwrap();
    assert!(features.contains(&"feature-tcp-accesslog-via-named-pipe".into()), "{features:?}");

    let backends = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let addresses = [backends[0].local_addr().unwrap(), backends[1].local_addr().unwrap()];
    // Trap 6: the path that the control plane makes of work directory, name and mesh.
    let pipe = sidecar.path("kuma-al-backend-1-default.sock");
    let mut stream = sidecar.session().await;
    stream.send(type_url::CLUSTER, "1", vec![]).await;
    let ack = stream.send(type_url::LISTENER, "1", vec![("web", web(pipe.to_str().unwrap(), &addresses))]).await;
    assert!(ack.error_detail.is_none(), "{ack:?}");
    let address = sidecar.listener("web");
    assert_eq!(get(&address, "/one").status, 200);
    let mut first = accepted(&backends[0]);
    let mut second = accepted(&backends[1]);
    assert_eq!(lines(&mut first, 2), ["plain /one \"200\"\n", "traffic /one\n"]);
    assert_eq!(lines(&mut second, 1), ["{\"code\":200,\"path\":\"/one\"}\n"]);

    // One backend goes. The other's lines go on coming, and what is lost is said and counted.
    let [first_listener, second_listener] = backends;
    drop((second, second_listener));
    eventually("a loss that is counted", || {
        assert_eq!(get(&address, "/two").status, 200);
        let dropped = sidecar.admin("/stats?filter=server.log_lines_dropped").body;
        (!dropped.trim_end().ends_with(": 0")).then_some(())
    });
    assert_eq!(lines(&mut first, 2), ["plain /two \"200\"\n", "traffic /two\n"]);
    let said = format!("access logs for {} are dropped: ", addresses[1]);
    assert_eq!(sidecar.logged().matches(&said).count(), 1, "{}", sidecar.logged());

    // Back again.
    let second_listener = TcpListener::bind(addresses[1]).unwrap();
    second_listener.set_nonblocking(true).unwrap();
    eventually("the backend's new connection", || {
        get(&address, "/three");
        second_listener.accept().ok()
    });

    // The last lines before the end arrive, and the connection ends in order.
    get(&address, "/last");
    sidecar.signal("TERM");
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("plain /last \"200\"\ntraffic /last\n"), "{rest}");
    drop(first_listener);
    assert_eq!(sidecar.exit_code(), Some(0));
    assert!(!pipe.exists(), "lines went to a file");
}
