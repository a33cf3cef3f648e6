//! A client that calls at a fixed rate whatever happens, and writes down what became of each call and when: what a fault costs, and for
//! how long. Each call looks the name up and opens a connection, as a client does that keeps neither, so that a lost resolver, a lost
//! listener and a lost upstream all show.

use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// Longest reply, in bytes.
const REPLY_LIMIT: usize = 64 * 1024;

/// Whom to call, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `host` or `host:port`, called over HTTP/1.1.
    pub targets: Vec<String>,
    /// Path of the calls.
    pub path: String,
    /// Calls per second to each target.
    pub rate: f64,
    /// Longest wait for one reply, from looking the name up to the last byte.
    pub timeout: Duration,
}

/// What became of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// When the call was made, in milliseconds since 1970.
    pub at: u128,
    /// Which target it was made to.
    pub target: String,
    /// `ok`, the status, or what broke first.
    pub result: String,
    /// How long it took.
    pub took: Duration,
    /// The `service` that the reply of an echo service names; `-` without one.
    pub by: String,
}

impl Outcome {
    /// One line: time, target, result, milliseconds, who answered; with tabs between them.
    fn line(&self) -> String {
        format!("{}\t{}\t{}\t{}\t{}\n", self.at, self.target, self.result, self.took.as_millis(), self.by)
    }
}

/// Calls until its task is dropped, and writes each outcome to `log` as soon as it is known.
///
/// # Errors
/// When the log cannot be written.
pub async fn run(plan: Plan, mut log: impl Write) -> io::Result<()> {
    // As many calls are under way at most as leave within a timeout, so that the queue cannot grow.
    let (sender, mut outcomes) = mpsc::unbounded_channel();
    for target in plan.targets.clone() {
        let (plan, sender) = (plan.clone(), sender.clone());
        tokio::spawn(async move {
            let mut due = tokio::time::interval(Duration::from_secs_f64(1.0 / plan.rate.max(0.001)));
            due.set_missed_tick_behavior(MissedTickBehavior::Burst);
            while !sender.is_closed() {
                due.tick().await;
                let (target, path, sender) = (target.clone(), plan.path.clone(), sender.clone());
                tokio::spawn(async move {
                    // The receiver is gone when the probe ends.
                    let _ = sender.send(call(target, &path, plan.timeout).await);
                });
            }
        });
    }
    while let Some(outcome) = outcomes.recv().await {
        log.write_all(outcome.line().as_bytes())?;
        log.flush()?;
    }
    Ok(())
}

/// Makes one call.
async fn call(target: String, path: &str, timeout: Duration) -> Outcome {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let start = Instant::now();
    let (result, by) = match tokio::time::timeout(timeout, exchange(&target, path)).await {
        Ok(Ok((200..=299, by))) => ("ok".to_owned(), by),
        Ok(Ok((status, by))) => (status.to_string(), by),
        Ok(Err(broken)) => (broken, None),
        Err(_) => ("timeout".to_owned(), None),
    };
    Outcome { at, target, result, took: start.elapsed(), by: by.unwrap_or_else(|| "-".to_owned()) }
}

/// The status of the reply and who answered; or in a word what broke.
async fn exchange(target: &str, path: &str) -> Result<(u16, Option<String>), String> {
    let (host, port) = match target.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| "port".to_owned())?),
        None => (target, 80),
    };
    let address = tokio::net::lookup_host((host, port)).await.ok().and_then(|mut found| found.next());
    let stream = TcpStream::connect(address.ok_or("name")?).await.map_err(|error| connecting(&error))?;
    let broken = |error: hyper::Error| if error.is_parse() { "protocol".to_owned() } else { "closed".to_owned() };
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::get(path).header("host", target).header("connection", "close").body(Empty::<&[u8]>::new());
    let request = request.map_err(|_| "request".to_owned())?;
    let reply = async {
        let reply = client.send_request(request).await.map_err(broken)?;
        let status = reply.status().as_u16();
        let body = Limited::new(reply.into_body(), REPLY_LIMIT).collect().await.map_err(|_| "closed".to_owned())?;
        Ok((status, service(&body.to_bytes())))
    };
    // The connection is driven here, so that it ends together with the call.
    tokio::pin!(reply);
    tokio::select! {
        reply = &mut reply => reply,
        _ = connection => reply.await,
    }
}

fn connecting(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused",
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
        io::ErrorKind::ConnectionReset => "closed",
        _ => "connect",
    }
    .to_owned()
}

/// The `service` of what `/echo` answers.
fn service(body: &[u8]) -> Option<String> {
    let shown: serde_json::Value = serde_json::from_slice(body).ok()?;
    shown.get("service")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::net::TcpListener;

    use super::*;
    use crate::echo;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn each_call_has_its_outcome() {
        let served = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = served.local_addr().unwrap().to_string();
        let service = echo::Service { name: "here".into(), ..echo::Service::default() };
        tokio::spawn(echo::serve(served, echo::Mode::Http, service));
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = taken.local_addr().unwrap().to_string();
        drop(taken);
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closer = closing.local_addr().unwrap().to_string();
        tokio::spawn(async move { while closing.accept().await.is_ok() {} });
        for (target, path, patience, result, by) in [
            (good.clone(), "/echo", PATIENCE, "ok", "here"),
            (good, "/", PATIENCE, "ok", "-"),
            (nobody, "/", PATIENCE, "refused", "-"),
            (closer, "/", PATIENCE, "closed", "-"),
            ("no-such-name.invalid".to_owned(), "/", PATIENCE, "name", "-"),
            (silent.local_addr().unwrap().to_string(), "/", Duration::from_millis(1), "timeout", "-"),
        ] {
            let outcome = call(target.clone(), path, patience).await;
            assert_eq!((outcome.result.as_str(), outcome.by.as_str()), (result, by), "{target}{path}");
        }
    }

    #[test]
    fn outcomes_are_lines() {
        let outcome = Outcome {
            at: 1_700_000_000_123,
            target: "echo.mesh".into(),
            result: "503".into(),
            took: Duration::from_micros(4_900),
            by: "-".into(),
        };
        assert_eq!(outcome.line(), "1700000000123\techo.mesh\t503\t4\t-\n");
    }
}
