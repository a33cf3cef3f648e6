//! A data plane without sockets.

use std::{cell::Cell, future::Future, path::Path, sync::Arc, time::Duration};

use shika_data::{
    fuzzing::{self, Memory},
    model::{ListenerId, access_log::LogSink, tracing::SpanSink},
    snapshot::Snapshot,
    stats::{Registry, Scope, ServerStats},
};
use shika_proto::{envoy::config::bootstrap::v3::Bootstrap, json};
use shika_xds::{CompileOptions, Compiler};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf},
    runtime::Builder,
};

/// What a connection in memory holds in each direction.
const PIPE: usize = 64 * 1024;
/// Most bytes that are kept of what the other side says.
const KEPT: usize = 256 * 1024;
/// Time of the runtime after which a connection whose peer is gone counts as stuck: less than the timeout of any route. Nothing waits that long in truth:
/// time goes on when nothing else does.
const STUCK: Duration = Duration::from_secs(10);

/// A compiler with nothing in it.
pub fn compiler() -> Compiler {
    Compiler::new(
        Registry::new(1),
        CompileOptions {
            hostname: "host".into(),
            concurrency: 1,
            reject_unknown_dynamic_fields: false,
            log_sink: Box::new(|path| LogSink::new(path, 16).0),
            span_sink: Box::new(|_| SpanSink::new(1).0),
            log_collector: Box::new(|_| LogSink::new("", 1).0),
        },
    )
}

/// A configuration, compiled once for each thread.
pub struct Proxy {
    snapshot: Arc<Snapshot>,
    server: ServerStats,
}

impl Proxy {
    /// From a bootstrap in YAML.
    pub fn new(yaml: &str) -> Self {
        let bootstrap: Bootstrap = json::from_yaml(yaml).unwrap_or_else(|errors| panic!("{errors:?}"));
        let mut compiler = compiler();
        if let Err(rejects) = compiler.load_static(&(&bootstrap).into(), std::time::Instant::now()) {
            panic!("{rejects:?}");
        }
        let Some(plan) = compiler.build() else { panic!("nothing to publish") };
        let scope = Scope { prefix: "server.".into(), stem: "server.".into(), tags: Vec::new() };
        Proxy { snapshot: plan.snapshot, server: ServerStats::new(&Registry::new(1), scope) }
    }

    /// Serves a client on the listener of this name, and returns what it was sent. `upstreams` is asked for connections to clusters by their path.
    pub fn serve(
        &self,
        listener: &str,
        client: Client<'_>,
        upstreams: impl FnMut(&Path) -> Option<Memory> + 'static,
    ) -> Vec<u8> {
        let listener = self.snapshot.listeners.iter().flatten().find(|one| &*one.name == listener);
        let Some(id) = listener.map(|one| one.id) else { panic!("no such listener") };
        run(async {
            fuzzing::enter(&self.snapshot, upstreams);
            self.exchange(id, client).await
        })
    }

    async fn exchange(&self, id: ListenerId, client: Client<'_>) -> Vec<u8> {
        let (near, far) = pair();
        let (mut from, mut to) = tokio::io::split(near);
        let mut heard = Vec::new();
        let mut serving = tokio::spawn(fuzzing::serve(far, id, self.server.clone()));
        let talk = async {
            for chunk in client.bytes.chunks(client.chunk.max(1)) {
                if to.write_all(chunk).await.is_err() {
                    return;
                }
                // Over as soon as nothing else is to be done.
                quiet().await;
            }
            if client.half_closes {
                let _ = to.shutdown().await;
            }
            for _ in 0..4 {
                quiet().await;
            }
        };
        tokio::select! {
            () = async { tokio::join!(talk, hear(&mut from, &mut heard)); } => {}
            () = async { for _ in 0..client.bytes.len() / client.chunk.max(1) + 16 { quiet().await } } => {}
            _ = &mut serving => {}
        }
        // What is left in the pipe.
        let _ = tokio::time::timeout(Duration::from_millis(1), hear(&mut from, &mut heard)).await;
        drop(from.unsplit(to));
        if !serving.is_finished() && tokio::time::timeout(STUCK, serving).await.is_err() {
            panic!("the peer is gone, and its connection is still served");
        }
        heard
    }
}

/// What a client does.
#[derive(Clone, Copy)]
pub struct Client<'a> {
    /// What it says.
    pub bytes: &'a [u8],
    /// How much of it at a time.
    pub chunk: usize,
    /// It says that it has said all, and goes on listening.
    pub half_closes: bool,
}

/// Waits until every task waits for something.
pub async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn hear(from: &mut ReadHalf<Memory>, heard: &mut Vec<u8>) {
    let mut piece = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        if heard.len() < KEPT {
            heard.extend_from_slice(piece.get(..n).unwrap_or_default());
        }
    }
}

/// Both ends of a connection.
pub fn pair() -> (Memory, Memory) {
    fuzzing::pair(PIPE)
}

thread_local! {
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs to the end on a runtime of its own, whose time stands still while anything can be done. A panic of any task is one of the caller.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICKED.with(|panicked| panicked.set(true));
            before(panic);
        }));
    });
    PANICKED.with(|panicked| panicked.set(false));
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let Ok(runtime) = runtime else { panic!("no runtime") };
    let result = runtime.block_on(future);
    drop(runtime);
    assert!(!PANICKED.with(Cell::get), "a task panicked");
    result
}
