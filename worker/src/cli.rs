//! The `surety-worker` command.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser};
use surety_common::{
    config::ConnectionOptions,
    connect::ConnectError,
    manual,
    reload::{Reloader, Source},
    telemetry::{self, LogFormat, TelemetryOptions, health::CLIENT_ENDED},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{JobContext, StartError, Worker, keeper};

/// Runs jobs: pulls them from NATS JetStream, claims each in Redis, starts its command, and settles it.
///
/// Handlers are commands from the configuration file:
///
///   [handlers.hello]
///   command = ["sh", "-c", "echo hello"]
///
/// The type `noop` is built in: it does nothing and succeeds.
#[derive(Debug, Parser)]
#[command(
    name = "surety-worker",
    version,
    after_help = "Example:\n  surety-worker --config surety.toml --slots 4\n\nSignals:\n  TERM, INT  stop pulling, drain, hand back; a second one ends the drain at once\n  HUP        read the configuration again; a changed file is read without it\n\nCommands:\n  surety-worker health  ask the process with these settings on this host whether it is ready: exit code 0, or 1\n  surety-worker man     print the manual page\n\nExit codes:\n  0 stopped in order, 2 bad arguments, 69 NATS or Redis not reachable, 70 internal error,\n  78 bad configuration, a login or permission that is missing, or servers that do not keep what\n     the promises need"
)]
struct Args {
    #[command(flatten)]
    connection: ConnectionOptions,
    /// Jobs that run at once [default: 8]
    #[arg(long, value_name = "N")]
    slots: Option<String>,
    /// Queues in rank order, separated by commas [default: all declared]
    #[arg(long, value_name = "LIST")]
    queues: Option<String>,
    /// Folder for the record of running commands [default: .surety/state]
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<String>,
    /// Threads of this process itself; commands run in processes of their own
    ///
    /// One is enough for tens of thousands of jobs a second, and a second one costs more in hand-overs than it brings.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    #[command(flatten)]
    telemetry: TelemetryOptions,
}

/// File, environment and flags.
fn source(args: &Args) -> Source {
    let own = [
        ("worker.slots", &args.slots, "--slots"),
        ("worker.queues", &args.queues, "--queues"),
        ("worker.state_dir", &args.state_dir, "--state-dir"),
    ];
    let own = own.into_iter().filter_map(|(path, value, flag)| Some((path, value.clone()?, flag)));
    let flags = [args.connection.flags(), args.telemetry.flags()].concat().into_iter().chain(own).collect();
    Source::new(&args.connection, flags)
}

/// Entry point of the binary: the keeper when started as one, else the worker.
pub fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("keeper") {
        return run_keeper();
    }
    if std::env::args().nth(1).as_deref() == Some("man") {
        return manual::print(Args::command());
    }
    if let Some(rest) = telemetry::arguments_after("health") {
        return match source(&Args::parse_from(rest)).load() {
            Ok(s) => telemetry::health("surety-worker", s.telemetry.listen),
            Err(e) => fail(78, &e.to_string()),
        };
    }
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(usize::from(args.threads))
        .enable_all()
        .build()
    {
        Ok(r) => r,
        Err(e) => return fail(70, &format!("cannot start the runtime: {e}")),
    };
    runtime.block_on(run(args))
}

fn run_keeper() -> ExitCode {
    // It writes to the log of its worker, in the same way.
    let format = std::env::args().nth(2).and_then(|f| f.parse().ok()).unwrap_or(LogFormat::Human);
    telemetry::start(format, "warn");
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => return fail(70, &format!("keeper: cannot start the runtime: {e}")),
    };
    match runtime.block_on(keeper::run_keeper()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => fail(70, &format!("keeper: {e}")),
    }
}

fn fail(code: u8, text: &str) -> ExitCode {
    telemetry::last_words("surety-worker", text);
    ExitCode::from(code)
}

async fn run(args: Args) -> ExitCode {
    let mut source = source(&args);
    let settings = match source.load() {
        Ok(s) => s,
        Err(e) => return fail(78, &e.to_string()),
    };
    telemetry::start(settings.telemetry.log_format, &settings.telemetry.log_level);
    let format = settings.telemetry.log_format.name();
    // `/proc/self/exe` stays this very binary, also when the file is replaced during an upgrade.
    let worker = Worker::builder(settings)
        .handler("noop", |_: JobContext| async { Ok(serde_json::Value::Null) })
        .keeper(PathBuf::from("/proc/self/exe"), vec!["keeper".to_owned(), format.to_owned()]);
    #[cfg(feature = "faults")]
    let worker = crate::test_handlers::add(worker);
    let kinds = (SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup());
    let (mut term, mut int, mut hup) = match (signal(kinds.0), signal(kinds.1), signal(kinds.2)) {
        (Ok(t), Ok(i), Ok(h)) => (t, i, h),
        (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => return fail(70, &format!("signals: {e}")),
    };
    let reloader = match Reloader::new(source) {
        Ok(r) => r,
        Err(e) => return fail(70, &format!("signals: {e}")),
    };
    // A start may take as long as a rebuild of the store does. Whoever is told to stop meanwhile has nothing to give back yet.
    let started = tokio::select! {
        started = Box::pin(worker.start()) => started,
        _ = term.recv() => return stopped_early(),
        _ = int.recv() => return stopped_early(),
    };
    let running = match started {
        Ok(r) => r,
        Err(e) => return fail(exit_code(&e), &e.to_string()),
    };
    let gone = CancellationToken::new();
    let reloading = reloader.start(running.live().clone(), gone.clone());
    let mut is_lost = false;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            () = gone.cancelled() => break,
            () = running.client_ended() => {
                is_lost = true;
                break;
            }
            // The reloader hears it too.
            Some(()) = hup.recv() => running.hung_up(),
        }
    }
    // At once: what ends by the same signal is judged by it.
    running.told_to_stop();
    reloading.stop().await;
    let hurry = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    running.stop(hurry).await;
    if is_lost { fail(70, CLIENT_ENDED) } else { ExitCode::SUCCESS }
}

fn stopped_early() -> ExitCode {
    tracing::info!("told to stop before the start was over");
    ExitCode::SUCCESS
}

fn exit_code(e: &StartError) -> u8 {
    use surety_common::pace::Transient;
    let unreachable = match e {
        StartError::Connect(e @ ConnectError::Broker(_) | e @ ConnectError::Store(_)) => e.is_unreachable(),
        StartError::Store(e) => e.is_transient(),
        StartError::Recover(_) => true,
        _ => false,
    };
    if unreachable { 69 } else { 78 }
}
