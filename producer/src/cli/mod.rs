//! The `surety` command: arguments, settings, exit codes. One file per command.

mod audit;
mod batch;
mod bench;
mod cancel;
mod confirm;
mod demo;
mod dev;
mod dlq;
mod doctor;
mod enqueue;
mod events;
pub(crate) mod failure;
mod guards;
mod job_args;
mod locks;
mod lookup;
mod members;
mod pause;
mod provision;
mod purge;
mod queues;
#[cfg(test)]
mod reference;
mod replay;
mod schedule;
mod shell;
mod status;
mod watch;
mod why;
mod workers;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::Pin,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, ColorChoice, CommandFactory, Parser, Subcommand};
use surety_common::{
    clock::format_span,
    config::{self, ConnectionOptions, Settings},
    connect::{self, Connected},
    doctor::Role,
    telemetry::{self, LogFormat},
};

use crate::{
    client::Client,
    render::{Screen, note},
};
use failure::{Exit, Failure};

/// A command says what it waits for after this long.
const SILENT_FOR: Duration = Duration::from_secs(1);

const EXIT_CODES: &str = "\
Exit codes:
   0  fine
   1  something unexpected, or the answer is no (unknown job, not cancelled, the awaited job did not end as done)
   2  bad arguments or bad input
   3  the job did not run and will not: its id belongs to another one (enqueue)
  69  NATS or Redis cannot be reached
  70  a bug in Surety
  75  asked for, and not over yet (an attempt that is still stopping)
  78  bad configuration, a login or permission that is missing, or servers that are not fit for use
 130  ended by Ctrl-C

Data goes to stdout, everything else to stderr.

Example:
  surety enqueue thumbnail '{\"url\":\"https://example.org/a.png\"}'";

/// Jobs that are not lost, do not hang and do not run twice at once.
#[derive(Debug, Parser)]
#[command(name = "surety", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    #[command(flatten)]
    connection: ConnectionOptions,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Output {
    /// Write JSON instead of text for people
    #[arg(long, global = true)]
    json: bool,
    /// Colour on stdout; `auto`: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
    /// What to log on stderr, such as `debug` or `surety_common=debug` [default: warn]
    #[arg(long, global = true, value_name = "FILTER", env = "SURETY_LOG")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Enqueue(Box<enqueue::EnqueueArgs>),
    Batch(batch::BatchArgs),
    Status(status::StatusArgs),
    Why(why::WhyArgs),
    Events(events::EventsArgs),
    Watch(watch::WatchArgs),
    Audit(audit::AuditArgs),
    Cancel(cancel::CancelArgs),
    Queues(queues::QueuesArgs),
    Pause(pause::PauseArgs),
    Resume(pause::resume::ResumeArgs),
    Workers(workers::WorkersArgs),
    Guards(guards::GuardsArgs),
    Locks(locks::LocksArgs),
    Doctor(doctor::DoctorArgs),
    Dlq(dlq::DlqArgs),
    Schedule(schedule::ScheduleArgs),
    Provision(provision::ProvisionArgs),
    Config(provision::ConfigArgs),
    Dev(dev::DevArgs),
    Bench(bench::BenchArgs),
    Demo(demo::DemoArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// What every command gets.
struct Context {
    settings: Settings,
    /// The file the settings came from, if any.
    file: Option<PathBuf>,
    screen: Screen,
}

impl Context {
    /// A connection to the broker alone. Whoever enqueues with it ties its jobs to their parent (`enqueue::Kin`).
    /// Waits for servers, and says so when it takes longer than somebody expects who looks at a silent terminal.
    async fn patiently<T>(&self, what: &str, mut call: Pin<Box<impl Future<Output = T>>>) -> T {
        if let Ok(done) = tokio::time::timeout(SILENT_FOR, &mut call).await {
            return done;
        }
        let c = &self.settings.connection;
        let at = match what {
            "nats" => c.nats_url.masked(),
            _ => format!("{} and {}", c.nats_url.masked(), c.redis_url.masked()),
        };
        self.screen.note(&format!(
            "no answer from {what} at {at} yet; trying for {} (connection.retry_limit). To try Surety without servers of your own: surety dev",
            format_span(c.retry_limit)
        ));
        call.await
    }

    async fn client(&self) -> Result<Client, Failure> {
        let broker = self.patiently("nats", Box::pin(connect::broker(&self.settings, "surety"))).await?;
        Ok(Client::on(broker, &self.settings).await?)
    }

    /// Both servers, to look and change nothing.
    async fn look(&self) -> Result<Connected, Failure> {
        Ok(self.patiently("nats and redis", Box::pin(connect::look(&self.settings, "surety"))).await?)
    }

    /// Both servers.
    async fn connect(&self) -> Result<Connected, Failure> {
        Ok(self
            .patiently("nats and redis", Box::pin(connect::connect(&self.settings, "surety", Role::Operator)))
            .await?)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let default_log = match cli.command {
        Command::Dev(_) => "info",
        // It says itself that the connection is lost.
        Command::Watch(_) => "warn,surety_common::broker=error,async_nats=error",
        _ => "warn",
    };
    telemetry::start(LogFormat::Human, cli.global.output.log.as_deref().unwrap_or(default_log));
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Failure::no(format!("cannot start: {e}")))?;
        let result = runtime.block_on(Box::pin(run(cli)));
        // A read of a terminal that nobody will answer must not keep the process.
        runtime.shutdown_background();
        result
    }));
    match outcome {
        Ok(Ok(())) => Exit::Fine.into(),
        Ok(Err(failure)) => {
            if !failure.text.is_empty() {
                note(&format!("surety: {failure}"));
            }
            failure.exit.into()
        }
        // The panic's own message is on stderr already.
        Err(_) => {
            note("surety: this is a bug in surety; please report it with the message above");
            Exit::Bug.into()
        }
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let Global { connection, output } = cli.global;
    let screen = Screen::of_stdout(output.json, output.color);
    // These need no settings, so a broken configuration does not stop them.
    match &cli.command {
        Command::Completions(a) => return shell::completions(screen, a, Cli::command()),
        Command::Man(a) => return shell::man(screen, a, Cli::command()),
        _ => {}
    }
    let file = connection.file();
    let settings = config::load(file.as_deref(), &connection.flags())?;
    let cx = Context { settings, file, screen };
    match cli.command {
        Command::Enqueue(a) => enqueue::run(&cx, *a).await,
        Command::Batch(a) => batch::run(&cx, a).await,
        Command::Status(a) => status::run(&cx, a).await,
        Command::Why(a) => Box::pin(why::run(&cx, a)).await,
        Command::Events(a) => events::run(&cx, a).await,
        Command::Watch(a) => watch::run(&cx, a).await,
        Command::Audit(a) => Box::pin(audit::run(&cx, a)).await,
        Command::Cancel(a) => Box::pin(cancel::run(&cx, a)).await,
        Command::Queues(a) => queues::run(&cx, a).await,
        Command::Pause(a) => Box::pin(pause::run(&cx, a)).await,
        Command::Resume(a) => Box::pin(pause::resume::run(&cx, a)).await,
        Command::Workers(a) => workers::run(&cx, a).await,
        Command::Guards(a) => guards::run(&cx, a).await,
        Command::Locks(a) => locks::run(&cx, a).await,
        Command::Doctor(a) => doctor::run(&cx, a).await,
        Command::Dlq(a) => dlq::run(&cx, a).await,
        Command::Schedule(a) => schedule::run(&cx, a).await,
        Command::Provision(a) => provision::run(&cx, a).await,
        Command::Config(a) => provision::config(&cx, a),
        Command::Dev(a) => dev::run(&cx, a).await,
        Command::Bench(a) => Box::pin(bench::run(&cx, a)).await,
        Command::Demo(a) => demo::run(&cx, a).await,
        // Answered above.
        Command::Completions(_) | Command::Man(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_an_example() {
        let mut root = Cli::command();
        root.build();
        root.clone().debug_assert();
        let mut left = vec![root];
        let mut n = 0;
        while let Some(c) = left.pop() {
            let help = c.get_after_help().map(ToString::to_string).unwrap_or_default();
            if c.get_name() != "help" {
                assert!(help.contains("Example:"), "{} has no example", c.get_name());
                n += 1;
                left.extend(c.get_subcommands().cloned());
            }
        }
        assert!(n > 10);
    }
}
