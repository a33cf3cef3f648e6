//! Load that must not notice anything: keep-alive requests and long upgraded connections, where any error, any other
//! status and any closed connection is a failure. Proves that a change elsewhere (a control plane killed, a thousand
//! configuration updates) does not touch traffic.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::load::Failure;
use crate::load::http1::Connection;
use crate::load::stream::Peer;

/// What to hold.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// `host` header.
    pub host: String,
    /// Path of the keep-alive requests.
    pub path: String,
    /// Path of the upgrade requests.
    pub upgrade_path: String,
    /// Keep-alive connections, each with one request at a time.
    pub connections: usize,
    /// Upgraded connections, each with one message at a time.
    pub long_connections: usize,
    /// Pause between two requests or messages of a connection.
    pub interval: Duration,
    /// Longest wait for one reply or message.
    pub timeout: Duration,
}

/// What was held, and what was lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Good replies on keep-alive connections.
    pub requests: u64,
    /// Messages that came back over upgraded connections.
    pub messages: u64,
    /// Connections that were up.
    pub connections: u64,
    /// Connections that ended with a failure.
    pub lost_connections: u64,
    /// Failures by kind.
    pub failures: BTreeMap<String, u64>,
    /// The first failure in words.
    pub first_failure: Option<String>,
}

/// Counters that can be read while connections are held.
#[derive(Default)]
pub struct Progress {
    /// Connections that had their first good exchange.
    pub up: AtomicU64,
    /// Good replies and messages.
    pub exchanges: AtomicU64,
    /// Connections that failed.
    pub lost: AtomicU64,
}

/// Connections being held.
pub struct Hold {
    /// Counters to watch.
    pub progress: Arc<Progress>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<Held>,
}

/// One connection's outcome.
struct Held {
    long: bool,
    exchanges: u64,
    failure: Option<Failure>,
}

impl Hold {
    /// Opens all connections. Each is used until [`Hold::finish`] or its first failure; none is opened a second time.
    pub fn start(plan: &Plan) -> Self {
        let progress = Arc::new(Progress::default());
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..plan.connections + plan.long_connections {
            let long = number >= plan.connections;
            tasks.spawn(hold_one(plan.clone(), long, progress.clone(), stopped.clone()));
        }
        Self { progress, stop, tasks }
    }

    /// Waits for the exchanges under way and adds up.
    pub async fn finish(mut self) -> Tally {
        self.stop.send_replace(true);
        let mut tally = Tally { connections: self.progress.up.load(Ordering::Relaxed), ..Tally::default() };
        while let Some(held) = self.tasks.join_next().await {
            let held = held.unwrap_or_else(|error| Held {
                long: false,
                exchanges: 0,
                failure: Some(Failure::Protocol(format!("a task ended early: {error}"))),
            });
            let counter = if held.long { &mut tally.messages } else { &mut tally.requests };
            *counter += held.exchanges;
            if let Some(failure) = held.failure {
                tally.lost_connections += 1;
                *tally.failures.entry(failure.kind()).or_default() += 1;
                tally.first_failure.get_or_insert_with(|| {
                    format!("{} connection: {failure}", if held.long { "upgraded" } else { "keep-alive" })
                });
            }
        }
        tally
    }
}

async fn hold_one(plan: Plan, long: bool, progress: Arc<Progress>, mut stopped: watch::Receiver<bool>) -> Held {
    let mut held = Held { long, exchanges: 0, failure: None };
    let mut connection = match open(&plan, long).await {
        Ok(connection) => connection,
        Err(failure) => {
            progress.lost.fetch_add(1, Ordering::Relaxed);
            return Held { failure: Some(failure), ..held };
        }
    };
    let request = format!("GET {} HTTP/1.1\r\nhost: {}\r\n\r\n", plan.path, plan.host).into_bytes();
    loop {
        let message = format!("message {:>20}", held.exchanges).into_bytes();
        let outcome = tokio::time::timeout(plan.timeout, async {
            if long {
                return connection.echo(&message).await;
            }
            match connection.exchange(&request).await? {
                reply if !(200..300).contains(&reply.status) => Err(Failure::Status(reply.status)),
                // `connection: close` ends a connection that a client wanted to keep.
                reply if !reply.keep_alive => Err(Failure::Closed),
                _ => Ok(()),
            }
        })
        .await
        .unwrap_or(Err(Failure::Timeout));
        if let Err(failure) = outcome {
            progress.lost.fetch_add(1, Ordering::Relaxed);
            held.failure = Some(failure);
            return held;
        }
        held.exchanges += 1;
        progress.exchanges.fetch_add(1, Ordering::Relaxed);
        if held.exchanges == 1 {
            progress.up.fetch_add(1, Ordering::Relaxed);
        }
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return held,
            failure = connection.wait_for_end() => {
                progress.lost.fetch_add(1, Ordering::Relaxed);
                held.failure = Some(failure);
                return held;
            }
            () = tokio::time::sleep(plan.interval) => {}
        }
    }
}

async fn open(plan: &Plan, long: bool) -> Result<Connection, Failure> {
    let opening = async {
        let mut connection = Connection::open(&Peer::plain(plan.target), 0).await?;
        if long {
            let request = format!(
                "GET {} HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-version: 13\r\nsec-websocket-key: c2hpa2EtbG9hZHRlc3Qtaw==\r\n\r\n",
                plan.upgrade_path, plan.host
            );
            connection.upgrade(request.as_bytes()).await?;
        }
        Ok(connection)
    };
    tokio::time::timeout(plan.timeout, opening).await.unwrap_or(Err(Failure::Timeout))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::echo::{self, Mode, Service};
    use tokio::net::TcpListener;

    fn plan(target: SocketAddr) -> Plan {
        Plan {
            target,
            host: "service".into(),
            path: "/".into(),
            upgrade_path: "/ws".into(),
            connections: 3,
            long_connections: 2,
            interval: Duration::from_millis(1),
            timeout: Duration::from_secs(20),
        }
    }

    #[tokio::test]
    async fn both_kinds_of_connection_are_held_without_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(echo::serve(listener, Mode::Http, Service::default()));
        let hold = Hold::start(&plan(target));
        while hold.progress.up.load(Ordering::Relaxed) < 5 || hold.progress.exchanges.load(Ordering::Relaxed) < 100 {
            assert_eq!(hold.progress.lost.load(Ordering::Relaxed), 0);
            tokio::task::yield_now().await;
        }
        let tally = hold.finish().await;
        assert_eq!((tally.connections, tally.lost_connections), (5, 0), "{tally:?}");
        assert!(tally.requests >= 3 && tally.messages >= 2, "{tally:?}");
        assert_eq!(tally.first_failure, None);
    }

    #[tokio::test]
    async fn a_connection_closed_between_two_requests_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let (close, closed) = watch::channel(false);
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, peer)) = listener.accept().await {
                let mut closed = closed.clone();
                open.push(tokio::spawn(async move {
                    let service = hyper::service::service_fn(|_| async {
                        Ok::<_, std::convert::Infallible>(http::Response::new(String::from("ok")))
                    });
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
                    tokio::select! {
                        _ = serving => panic!("{peer} left first"),
                        _ = closed.wait_for(|closed| *closed) => {}
                    }
                }));
            }
        });
        let plan = Plan { connections: 2, long_connections: 0, interval: Duration::from_secs(3600), ..plan(target) };
        let hold = Hold::start(&plan);
        while hold.progress.up.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        close.send_replace(true);
        while hold.progress.lost.load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
        let tally = hold.finish().await;
        assert_eq!(tally.lost_connections, 2, "{tally:?}");
        assert_eq!(tally.failures.get("closed"), Some(&2), "{tally:?}");
    }

    #[tokio::test]
    async fn a_refused_upgrade_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(echo::serve(listener, Mode::Http, Service::default()));
        let plan = Plan { connections: 0, long_connections: 1, upgrade_path: "/plain".into(), ..plan(target) };
        let hold = Hold::start(&plan);
        while hold.progress.lost.load(Ordering::Relaxed) < 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(hold.finish().await.failures.get("status_200"), Some(&1));
    }
}
