//! The `surety-reaper` command.

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use surety_common::{
    config::ConnectionOptions,
    manual,
    reload::{Reloader, Source},
    telemetry::{self, TelemetryOptions, health::CLIENT_ENDED},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    once::{Pass, PassError, once},
    service::Reaper,
};

/// Reconciles what got stuck: attempts of dead workers, journal entries that were not published, deliveries that the broker
/// gave up. Several may run.
#[derive(Debug, Parser)]
#[command(
    name = "surety-reaper",
    version,
    after_help = "Example:\n  surety-reaper --nats nats://127.0.0.1:4222 --redis redis://127.0.0.1:6379\n  surety-reaper --once --dry-run\n\nSignals:\n  TERM, INT  end what is in hand and stop\n  HUP        read the configuration again; a changed file is read without it\n\nCommands:\n  surety-reaper health  ask the process with these settings on this host whether it is ready: exit code 0, or 1\n  surety-reaper man     print the manual page\n\nExit codes:\n  0 stopped in order, 1 --once: a rule failed, 2 bad arguments, 69 NATS or Redis not reachable, 70 internal error,\n  78 bad configuration, a login or permission that is missing, or servers that do not keep what\n     the promises need"
)]
struct Args {
    #[command(flatten)]
    connection: ConnectionOptions,
    #[command(flatten)]
    telemetry: TelemetryOptions,
    /// Go through every rule once, tell what each did, and end
    #[arg(long)]
    once: bool,
    /// With --once: tell what each rule would do and why; write nothing
    #[arg(long, requires = "once")]
    dry_run: bool,
    /// With --once: one JSON object in each line
    #[arg(long, requires = "once")]
    json: bool,
}

/// File, environment and flags.
fn source(args: &Args) -> Source {
    Source::new(&args.connection, [args.connection.flags(), args.telemetry.flags()].concat())
}

/// Entry point of the binary.
pub fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("man") {
        return manual::print(Args::command());
    }
    if let Some(rest) = telemetry::arguments_after("health") {
        return match source(&Args::parse_from(rest)).load() {
            Ok(s) => telemetry::health("surety-reaper", s.telemetry.listen),
            Err(e) => fail(78, &e.to_string()),
        };
    }
    let args = Args::parse();
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(r) => r.block_on(run(args)),
        Err(e) => fail(70, &format!("cannot start the runtime: {e}")),
    }
}

fn fail(code: u8, text: &str) -> ExitCode {
    telemetry::last_words("surety-reaper", text);
    ExitCode::from(code)
}

async fn run(args: Args) -> ExitCode {
    let mut source = source(&args);
    let settings = match source.load() {
        Ok(s) => s,
        Err(e) => return fail(78, &e.to_string()),
    };
    telemetry::start(settings.telemetry.log_format, &settings.telemetry.log_level);
    if args.once {
        let pass = Pass { is_dry: args.dry_run, is_json: args.json };
        return match Box::pin(once(settings, pass, &mut std::io::stdout())).await {
            Ok(0) => ExitCode::SUCCESS,
            Ok(n) => fail(1, &format!("{n} rules failed: see the log")),
            Err(PassError::Connect(e)) => fail(if e.is_unreachable() { 69 } else { 78 }, &e.to_string()),
            Err(e @ PassError::Output(_)) => fail(70, &e.to_string()),
        };
    }
    let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(t), Ok(i)) => (t, i),
        (Err(e), _) | (_, Err(e)) => return fail(70, &format!("signals: {e}")),
    };
    let reloader = match Reloader::new(source) {
        Ok(r) => r,
        Err(e) => return fail(70, &format!("signals: {e}")),
    };
    let reaper = match Reaper::start(settings).await {
        Ok(r) => r,
        Err(e) => return fail(if e.is_unreachable() { 69 } else { 78 }, &e.to_string()),
    };
    let gone = CancellationToken::new();
    let reloading = reloader.start(reaper.live().clone(), gone.clone());
    let mut is_lost = false;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = gone.cancelled() => {}
        () = reaper.client_ended() => is_lost = true,
    }
    reloading.stop().await;
    reaper.stop().await;
    if is_lost { fail(70, CLIENT_ENDED) } else { ExitCode::SUCCESS }
}
