//! `shika-loadtest`: echo services, load, and Shika beside Envoy. Everything happens over the network; nothing of the
//! product is linked in.

mod bench;
mod echo;
mod greet;
mod histogram;
mod hold;
mod load;
mod probe;
mod text;

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use text::{note, parse_duration, say};

/// Echo services, load, and Shika beside Envoy.
#[derive(Parser)]
#[command(name = "shika-loadtest", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve as the application behind a proxy: HTTP/1.1 and HTTP/2 on one port, or a TCP echo.
    Echo(EchoArguments),
    /// Send load and report throughput, failures and latency.
    Load(LoadArguments),
    /// Hold keep-alive and upgraded connections and fail on the first thing that a client would notice.
    Hold(HoldArguments),
    /// Wait for a server that speaks first, and report how long that took.
    Greet(GreetArguments),
    /// Call at a fixed rate whatever happens, and write down what became of each call and when.
    Probe(ProbeArguments),
    /// Measure Shika, Envoy, HAProxy and nginx side by side on the same work.
    Bench(bench::Arguments),
    /// Make the report of what `bench` has measured.
    Report(bench::ReportArguments),
}

#[derive(Args)]
struct EchoArguments {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// File that receives the port once the service listens.
    #[arg(long)]
    port_file: Option<PathBuf>,
    /// What to serve.
    #[arg(long, value_enum, default_value = "http")]
    mode: echo::Mode,
    /// Name that `/echo` shows.
    #[arg(long, default_value = "echo")]
    name: String,
    /// Body of the fixed reply.
    #[arg(long, default_value = "ok\n")]
    reply: String,
}

#[derive(Args)]
struct LoadArguments {
    /// Address of the subject, host:port.
    #[arg(long)]
    target: String,
    /// What to speak.
    #[arg(long, value_enum, default_value = "http1")]
    protocol: load::Protocol,
    /// Host header; the target when not given.
    #[arg(long)]
    host: Option<String>,
    /// Path of the request.
    #[arg(long, default_value = "/")]
    path: String,
    /// Bytes of the request body or of one TCP message.
    #[arg(long, default_value_t = 0)]
    payload: usize,
    /// Bytes expected back (a hint), with `--protocol bulk` the bytes asked for.
    #[arg(long, default_value_t = 0)]
    reply: usize,
    /// Connections open at a time.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests in flight per HTTP/2 connection.
    #[arg(long, default_value_t = 10)]
    streams: usize,
    /// Requests per second over all connections (open loop); without it each lane sends as fast as replies come (closed loop).
    #[arg(long)]
    rate: Option<f64>,
    /// Open a new connection for each request.
    #[arg(long)]
    new_connection: bool,
    /// Time before recording starts.
    #[arg(long, value_parser = parse_duration, default_value = "1s")]
    warmup: Duration,
    /// Time of recording.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    duration: Duration,
    /// Longest wait for one reply.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct HoldArguments {
    /// Address of the subject, host:port.
    #[arg(long)]
    target: String,
    /// Host header; the target when not given.
    #[arg(long)]
    host: Option<String>,
    /// Path of the keep-alive requests.
    #[arg(long, default_value = "/")]
    path: String,
    /// Path of the upgrade requests.
    #[arg(long, default_value = "/ws")]
    upgrade_path: String,
    /// Keep-alive connections.
    #[arg(long, default_value_t = 20)]
    connections: usize,
    /// Upgraded, WebSocket-like connections.
    #[arg(long, default_value_t = 10)]
    long_connections: usize,
    /// Pause between two requests or messages of a connection.
    #[arg(long, value_parser = parse_duration, default_value = "20ms")]
    interval: Duration,
    /// Longest wait for one reply or message.
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    timeout: Duration,
    /// How long to hold; without it until SIGTERM or SIGINT.
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// File that is written once every connection has had its first good exchange.
    #[arg(long)]
    ready_file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct GreetArguments {
    /// Address of the subject, host:port.
    #[arg(long)]
    target: String,
    /// Connections, one after the other.
    #[arg(long, default_value_t = 500)]
    count: usize,
    /// Longest wait for one greeting.
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ProbeArguments {
    /// Whom to call, host or host:port; may be given more than once.
    #[arg(long, required = true)]
    target: Vec<String>,
    /// Path of the calls.
    #[arg(long, default_value = "/echo")]
    path: String,
    /// Calls per second to each target.
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Longest wait for one reply.
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    timeout: Duration,
    /// File for the outcomes, one line each: milliseconds since 1970, target, `ok` or what failed, milliseconds it took, who answered.
    #[arg(long)]
    log: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread: what this process takes from the machine is missing to the subject.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            note(&format!("shika-loadtest: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match arguments.command {
            Command::Echo(arguments) => serve_echo(arguments).await,
            Command::Load(arguments) => send_load(arguments).await,
            Command::Hold(arguments) => hold_connections(arguments).await,
            Command::Greet(arguments) => await_greetings(arguments).await,
            Command::Probe(arguments) => probe(arguments).await,
            Command::Bench(arguments) => Box::pin(bench::run(arguments)).await,
            Command::Report(arguments) => bench::report(&arguments),
        }
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            note(&format!("shika-loadtest: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve_echo(arguments: EchoArguments) -> anyhow::Result<ExitCode> {
    let address = SocketAddr::new(arguments.address, arguments.port);
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    if let Some(file) = &arguments.port_file {
        write_whole(file, &format!("{}\n", address.port()))?;
    }
    note(&format!("echo `{}` listens on {address}", arguments.name));
    let service = echo::Service { name: arguments.name, reply: Bytes::from(arguments.reply) };
    tokio::select! {
        never = echo::serve(listener, arguments.mode, service) => match never {},
        () = asked_to_end() => Ok(ExitCode::SUCCESS),
    }
}

async fn send_load(arguments: LoadArguments) -> anyhow::Result<ExitCode> {
    let plan = load::Plan {
        host: arguments.host.unwrap_or_else(|| arguments.target.clone()),
        path: arguments.path,
        payload: arguments.payload,
        reply: arguments.reply,
        connections: arguments.connections,
        streams: arguments.streams,
        rate: arguments.rate,
        new_connection: arguments.new_connection,
        timeout: arguments.timeout,
        ..load::Plan::to(resolve(&arguments.target)?, arguments.protocol)
    };
    let load = load::Load::start(&plan);
    tokio::select! {
        () = tokio::time::sleep(arguments.warmup) => {}
        () = asked_to_end() => bail!("ended during the warm-up"),
    }
    load.record();
    let begin = Instant::now();
    tokio::select! {
        () = tokio::time::sleep(arguments.duration) => {}
        () = asked_to_end() => {}
    }
    let elapsed = begin.elapsed();
    let record = load.finish().await;
    let micros = |percent| record.latency.percentile(percent).as_secs_f64() * 1e6;
    let per_second = record.latency.count() as f64 / elapsed.as_secs_f64();
    if arguments.json {
        let shown = serde_json::json!({
            "requests": record.latency.count(),
            "requests_per_second": per_second,
            "seconds": elapsed.as_secs_f64(),
            "failed": record.failed(),
            "failures": record.failures,
            "first_failure": record.first_failure,
            "latency_us": {
                "mean": record.latency.mean().as_secs_f64() * 1e6,
                "p50": micros(50.0), "p90": micros(90.0), "p99": micros(99.0), "p99.9": micros(99.9),
                "max": record.latency.max().as_secs_f64() * 1e6,
            },
        });
        say(&serde_json::to_string_pretty(&shown)?)?;
    } else {
        say(&format!("requests    {} in {:.2} s, {per_second:.0}/s", record.latency.count(), elapsed.as_secs_f64()))?;
        say(&format!(
            "latency µs  p50 {:.0}  p90 {:.0}  p99 {:.0}  p99.9 {:.0}  max {:.0}",
            micros(50.0),
            micros(90.0),
            micros(99.0),
            micros(99.9),
            record.latency.max().as_secs_f64() * 1e6
        ))?;
        say(&format!("failed      {}", record.failed()))?;
        for (kind, count) in &record.failures {
            say(&format!("  {kind:<10} {count}"))?;
        }
        if let Some(first) = &record.first_failure {
            say(&format!("  first: {first}"))?;
        }
    }
    let good = record.failed() == 0 && record.latency.count() > 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn hold_connections(arguments: HoldArguments) -> anyhow::Result<ExitCode> {
    let plan = hold::Plan {
        target: resolve(&arguments.target)?,
        host: arguments.host.unwrap_or_else(|| arguments.target.clone()),
        path: arguments.path,
        upgrade_path: arguments.upgrade_path,
        connections: arguments.connections,
        long_connections: arguments.long_connections,
        interval: arguments.interval,
        timeout: arguments.timeout,
    };
    let wanted = (plan.connections + plan.long_connections) as u64;
    let hold = hold::Hold::start(&plan);
    let ready = async {
        while hold.progress.up.load(Ordering::Relaxed) < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        match &arguments.ready_file {
            Some(file) => write_whole(file, &format!("{wanted}\n")),
            None => Ok(()),
        }
    };
    let all_lost = async {
        while hold.progress.lost.load(Ordering::Relaxed) < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let end = async {
        match arguments.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    };
    let waiting = async {
        ready.await?;
        note(&format!("holding {wanted} connections"));
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        outcome = waiting => outcome?,
        () = all_lost => {}
        () = end => {}
        () = asked_to_end() => {}
    }
    let tally = hold.finish().await;
    if arguments.json {
        say(&serde_json::to_string_pretty(&tally)?)?;
    } else {
        say(&format!(
            "{} requests, {} messages over {} of {wanted} connections; {} lost",
            tally.requests, tally.messages, tally.connections, tally.lost_connections
        ))?;
        for (kind, count) in &tally.failures {
            say(&format!("  {kind:<10} {count}"))?;
        }
        if let Some(first) = &tally.first_failure {
            say(&format!("  first: {first}"))?;
        }
    }
    let good = tally.lost_connections == 0 && tally.connections == wanted;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn await_greetings(arguments: GreetArguments) -> anyhow::Result<ExitCode> {
    let times = greet::run(resolve(&arguments.target)?, arguments.count, arguments.timeout).await?;
    let micros = |percent| times.percentile(percent).as_secs_f64() * 1e6;
    if arguments.json {
        let shown = serde_json::json!({
            "greetings": times.count(),
            "time_us": {
                "p50": micros(50.0), "p90": micros(90.0), "p99": micros(99.0), "max": times.max().as_secs_f64() * 1e6,
            },
        });
        say(&serde_json::to_string_pretty(&shown)?)?;
    } else {
        say(&format!(
            "{} greetings, µs  p50 {:.0}  p90 {:.0}  p99 {:.0}  max {:.0}",
            times.count(),
            micros(50.0),
            micros(90.0),
            micros(99.0),
            times.max().as_secs_f64() * 1e6
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn probe(arguments: ProbeArguments) -> anyhow::Result<ExitCode> {
    let log = &arguments.log;
    let log = std::fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let plan = probe::Plan {
        targets: arguments.target,
        path: arguments.path,
        rate: arguments.rate,
        timeout: arguments.timeout,
    };
    tokio::select! {
        outcome = probe::run(plan, log) => outcome.context("cannot write the outcomes")?,
        () = asked_to_end() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Resolves at SIGTERM or SIGINT; never when signals cannot be watched.
async fn asked_to_end() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// The first address of `host:port`.
fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    target
        .to_socket_addrs()
        .with_context(|| format!("--target {target}: not a host:port that resolves"))?
        .next()
        .with_context(|| format!("--target {target}: no address"))
}

/// Writes the file so that a reader who sees it sees all of it.
fn write_whole(file: &Path, text: &str) -> anyhow::Result<()> {
    let part = file.with_extension("part");
    std::fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
    std::fs::rename(&part, file).with_context(|| format!("cannot write {}", file.display()))
}
