//! `surety schedule`: jobs again and again, by the broker's own schedules.

pub(super) mod add;
pub(super) mod list;
pub(super) mod next;
pub(super) mod remove;

use clap::{Args, Subcommand};
use jiff::{Timestamp, tz::TimeZone};
use surety_common::{
    broker::{Broker, schedule::Schedule},
    clock::format_span,
    domain::{QueueName, schedule::When},
};

use super::{Context, enqueue::undeclared, failure::Failure};

/// Make, list and remove schedules; see when they fire
///
/// The broker fires them by itself. Each firing is a job of its own, named after the schedule: <NAME>-<number>.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  surety schedule add nightly report --cron '0 30 2 * * *' --zone Europe/Vienna"
)]
pub(super) struct ScheduleArgs {
    #[command(subcommand)]
    command: ScheduleCommand,
}

#[derive(Debug, Subcommand)]
enum ScheduleCommand {
    Add(Box<add::AddArgs>),
    List(list::ListArgs),
    Rm(remove::RemoveArgs),
    Next(next::NextArgs),
}

pub(super) async fn run(cx: &Context, args: ScheduleArgs) -> Result<(), Failure> {
    match args.command {
        ScheduleCommand::Add(a) => add::run(cx, *a).await,
        ScheduleCommand::List(a) => list::run(cx, a).await,
        ScheduleCommand::Rm(a) => remove::run(cx, a).await,
        ScheduleCommand::Next(a) => next::run(cx, a).await,
    }
}

/// The one schedule of this name, in the queue that is named or in any.
async fn find(broker: &Broker, name: &str, queue: Option<&QueueName>) -> Result<Schedule, Failure> {
    let declared = broker.found().await?.queues;
    let among = match queue {
        Some(q) if !declared.contains(q) => return Err(undeclared(q, &declared)),
        Some(q) => vec![q.clone()],
        None => declared,
    };
    let mut found = broker.find_schedules(&among, name).await?;
    match found.len() {
        0 => Err(Failure::no(format!("no schedule {name:?}; `surety schedule list` shows all"))),
        1 if found.iter().any(|s| s.is_retry) => Err(Failure::no(format!(
            "{name:?} is no schedule but a job that waits for its next attempt: `surety why {name}` says until when, `surety cancel {name}` \
             ends it"
        ))),
        1 => found.pop().ok_or_else(|| Failure::bug("a schedule vanished")),
        _ => {
            let queues: Vec<&str> = found.iter().map(|s| s.queue.as_str()).collect();
            let queues = queues.join(", ");
            Err(Failure::input(format!("{name:?} is in several queues ({queues}): say which with --queue")))
        }
    }
}

/// The time by the server's clock, which is what schedules go by.
async fn server_now(broker: &Broker) -> Result<Timestamp, Failure> {
    let ms = broker.now_ms().await?;
    let now = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    now.ok_or_else(|| Failure::bug("the server's clock shows no time"))
}

/// A schedule in words.
fn words(when: &When) -> String {
    match (when, when.zone()) {
        (When::At(_), _) => "once".into(),
        (When::Every(pause), _) => format!("every {}", format_span(*pause)),
        (When::Cron { cron, .. }, Some(zone)) => format!("{cron} in {zone}"),
        (When::Cron { cron, .. }, None) => format!("{cron} in UTC"),
    }
}

/// A firing as people read it, in the zone of its schedule.
fn time(t: Timestamp, when: &When) -> String {
    let zone = match when {
        When::Cron { zone: Some(z), .. } => z.clone(),
        _ => TimeZone::UTC,
    };
    t.to_zoned(zone).strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string()
}

fn json_times(times: &[Timestamp]) -> Vec<String> {
    times.iter().map(ToString::to_string).collect()
}
