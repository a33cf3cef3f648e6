//! Policies in force: real Envoys take what policies make of their configuration, and do it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, missing_docs)]

#[path = "dp/envoy.rs"]
mod envoy;
#[path = "dp/support.rs"]
mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use envoy::{start_envoy, until};
use parking_lot::Mutex;
use shika_cp::store::Store;
use support::{Cp, PATIENCE, free_port, two_services};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// An application that answers every request with its head. What begins with `/slow` is never answered; what begins with `/flaky` is
/// answered with 503 the first time.
async fn application() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut request = Vec::new();
                let mut chunk = [0; 4096];
                while let Ok(read @ 1..) = socket.read(&mut chunk).await {
                    request.extend_from_slice(&chunk[..read]);
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let text = String::from_utf8(std::mem::take(&mut request)).unwrap();
                    let path = text.split_whitespace().nth(1).unwrap().to_owned();
                    if path.starts_with("/slow") {
                        continue;
                    }
                    let times = {
                        let mut seen = seen.lock();
                        let times = seen.entry(path.clone()).or_default();
                        *times += 1;
                        *times
                    };
                    let status =
                        if path.starts_with("/flaky") && times == 1 { "503 Service Unavailable" } else { "200 OK" };
                    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", text.len());
                    socket.write_all(head.as_bytes()).await.unwrap();
                    socket.write_all(text.as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

const ROUTES: &str = "
type: MeshHTTPRoute
mesh: default
name: routes
spec:
  targetRef: {kind: MeshService, name: web}
  to:
  - targetRef: {kind: MeshService, name: server}
    rules:
    - matches: [{path: {type: PathPrefix, value: /v1}}]
      default:
        filters:
        - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}
        - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-route, value: rewritten}]}}
    - matches: [{path: {type: Exact, value: /moved}}]
      default:
        filters: [{type: RequestRedirect, requestRedirect: {hostname: elsewhere.example, statusCode: 308}}]
    - matches: [{path: {type: RegularExpression, value: '/split/.*'}, method: GET, headers: [{type: Absent, name: x-other}], queryParams: [{type: Exact, name: q, value: a}]}]
      default:
        filters:
        - {type: RequestMirror, requestMirror: {percentage: '50.5', backendRef: {kind: MeshService, name: server}}}
        backendRefs:
        - {kind: MeshService, name: server, weight: 1}
        - {kind: MeshServiceSubset, name: server, tags: {kuma.io/protocol: http}, weight: 1}
";

const LIMITS: &str = "
type: MeshTimeout
mesh: default
name: limits
spec:
  targetRef: {kind: MeshService, name: web}
  to:
  - targetRef: {kind: MeshService, name: server}
    default: {connectionTimeout: 2s, http: {requestTimeout: 300ms, requestHeadersTimeout: 1s, maxConnectionDuration: 1h, maxStreamDuration: 1h}}
---
type: MeshRetry
mesh: default
name: again
spec:
  to:
  - targetRef: {kind: Mesh}
    default:
      tcp: {maxConnectAttempt: 3}
      http:
        numRetries: 2
        perTryTimeout: 10s
        backOff: {baseInterval: 1ms, maxInterval: 2ms}
        rateLimitedBackOff: {resetHeaders: [{name: retry-after, format: Seconds}], maxInterval: 1s}
        retryOn: [5xx, Reset, HttpMethodGet, '503']
        retriableRequestHeaders: [{type: Prefix, name: x-try, value: y}]
        hostSelection: [{predicate: OmitPreviousHosts}, {predicate: OmitHostsWithTags, tags: {a: b}}, {predicate: OmitPreviousPriorities}]
        hostSelectionMaxAttempts: 3
      grpc: {numRetries: 2, retryOn: [Canceled, Unavailable]}
---
type: MeshCircuitBreaker
mesh: default
name: breaker
spec:
  to:
  - targetRef: {kind: Mesh}
    default:
      connectionLimits: {maxConnections: 100, maxConnectionPools: 10, maxPendingRequests: 50, maxRetries: 5, maxRequests: 60}
      outlierDetection:
        interval: 5s
        baseEjectionTime: 10s
        maxEjectionPercent: 50
        splitExternalAndLocalErrors: true
        healthyPanicThreshold: '33.3'
        detectors:
          totalFailures: {consecutive: 50}
          gatewayFailures: {consecutive: 50}
          localOriginFailures: {consecutive: 50}
          successRate: {minimumHosts: 5, requestVolume: 10, standardDeviationFactor: '1.9'}
          failurePercentage: {minimumHosts: 5, requestVolume: 10, threshold: 85}
  from:
  - targetRef: {kind: Mesh}
    default: {connectionLimits: {maxConnections: 77}}
";

#[tokio::test(flavor = "multi_thread")]
async fn envoy_does_what_policies_say() {
    let Some(envoy) = support::envoy() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cp = Cp::start(Store::memory(), dir.path()).await;
    let (inbound, outbound, client_inbound) = (free_port(), free_port(), free_port());
    let app = application().await;
    cp.apply(&two_services(inbound, app, outbound, client_inbound)).await;
    let (mut server, server_admin) = start_envoy(&cp, &envoy, dir.path(), "server-1", false).await;
    let (mut client, client_admin) = start_envoy(&cp, &envoy, dir.path(), "web-1", true).await;
    until(outbound, "/hello", |status, _| status == 200).await;

    cp.apply(ROUTES).await;
    let (_, echoed) = until(outbound, "/v1/a", |_, body| body.contains("x-route: rewritten")).await;
    assert!(echoed.starts_with("GET /v2/a HTTP/1.1"), "{echoed}");
    let (_, echoed) = until(outbound, "/v1", |status, _| status == 200).await;
    assert!(echoed.starts_with("GET /v2 HTTP/1.1"), "{echoed}");
    let (_, echoed) = until(outbound, "/v1b", |status, _| status == 200).await;
    assert!(echoed.starts_with("GET /v1b HTTP/1.1"), "a prefix is made of whole segments: {echoed}");
    until(outbound, "/moved", |status, _| status == 308).await;
    until(outbound, "/split/a?q=a", |status, _| status == 200).await;

    cp.apply(LIMITS).await;
    let (_, body) = until(outbound, "/slow", |status, _| status == 504).await;
    assert!(body.contains("timeout"), "{body}");
    let limits = "server::default_priority::max_connections::100";
    until(client_admin, "/clusters", |_, body| body.contains(limits)).await;
    until(server_admin, "/clusters", |_, body| body.contains("::default_priority::max_connections::77")).await;
    // The first answer to each path is 503, and with retries nobody sees it. The routes come after the clusters that were waited for, and a try may
    // take longer than the limit above.
    let retried = async {
        let mut number = 0;
        while !matches!(envoy::get(outbound, &format!("/flaky/{number}")).await, Some((200, _))) {
            number += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, retried).await.expect("a request that is tried again");

    for (_, stream) in cp.stats.streams() {
        assert_eq!(stream.rejected, [0; 5], "{}: {:?}", stream.name, stream.last_rejection);
    }
    for child in [&mut server, &mut client] {
        child.kill().await.unwrap();
    }
    cp.stop().await;
}
