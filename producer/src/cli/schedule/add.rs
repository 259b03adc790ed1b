//! `surety schedule add`.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use surety_common::{
    clock::{format_span, parse_span, parse_time},
    domain::{JobId, QueueName, ids::ScheduleName, schedule::When},
};

use super::{json_times, server_now, time, words};
use crate::{
    cli::{
        Context,
        enqueue::{Kin, explain, undeclared},
        failure::Failure,
        job_args::JobArgs,
    },
    client::{Client, ClientError, JobBuilder, recurring::ScheduleError},
};

/// Firings that are shown.
const SHOWN: usize = 3;

/// Add a schedule and show when it fires
///
/// A cron expression has six fields: second, minute, hour, day of month, month, day of week (0 to 6, 0 is Sunday, or three
/// letters). A schedule for one time is a job under the schedule's name: `surety status` and `surety cancel` know it. The
/// times are those of nats-server's clock. Inside a handler the jobs of the schedule are children of the handler's own job.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  surety schedule add nightly report --cron '0 30 2 * * *' --zone Europe/Vienna\n  \
                        surety schedule add heartbeat ping '{\"to\":\"ops\"}' --every 5m --queue critical\n  \
                        surety schedule add launch announce --at 2027-01-01T09:30:00+01:00"
)]
pub(super) struct AddArgs {
    /// Names the schedule, and its jobs after it: 1 to 64 of A-Z a-z 0-9 _ -
    #[arg(value_name = "NAME")]
    name: ScheduleName,
    #[command(flatten)]
    job: JobArgs,
    #[command(flatten)]
    times: Times,
    /// IANA name of the time zone of --cron [default: UTC]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Queue of its jobs
    #[arg(long, value_name = "NAME", default_value = "default")]
    queue: QueueName,
    /// Take the place of a recurring schedule of this name
    #[arg(long, conflicts_with = "at")]
    replace: bool,
    #[command(flatten)]
    kin: Kin,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Times {
    /// Whenever this matches the clock
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// Again and again with this pause, at least 1s
    #[arg(long, value_name = "DURATION", value_parser = parse_span)]
    every: Option<Duration>,
    /// Once, at this time
    #[arg(long, value_name = "RFC3339", value_parser = parse_time)]
    at: Option<Timestamp>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Answer<'a> {
    name: &'a str,
    queue: &'a str,
    /// When it fires, as the header says it.
    pattern: String,
    /// Of a cron expression; UTC without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<&'a str>,
    /// Sequence in `SCHED`.
    sequence: u64,
    /// The next firings.
    next: Vec<String>,
}

pub(super) async fn run(cx: &Context, args: AddArgs) -> Result<(), Failure> {
    let when = when(&args)?;
    let client = args.kin.tie(cx.client().await?)?;
    let now = server_now(client.broker()).await?;
    let next = when.next(now, now, SHOWN);
    if next.is_empty() {
        return Err(Failure::input(match &when {
            When::At(t) => format!("{t} is in the past by the clock of nats-server, which shows {now}"),
            other => format!("{} never fires within five years", words(other)),
        }));
    }
    let job = JobBuilder::from(args.job.document()?);
    let sequence = if when.is_recurring() {
        recurring(&client, &args, &when, job).await?
    } else {
        once(cx, &client, &args, &when, job).await?
    };
    let answer = Answer {
        name: args.name.as_str(),
        queue: args.queue.as_str(),
        pattern: when.pattern(),
        zone: when.zone(),
        sequence,
        next: json_times(&next),
    };
    cx.screen.show(&answer, || {
        let times: Vec<String> = next.iter().map(|t| format!("  {}", time(*t, &when))).collect();
        format!("{}: {} in queue {}; next:\n{}", answer.name, words(&when), answer.queue, times.join("\n"))
    })
}

fn when(args: &AddArgs) -> Result<When, Failure> {
    let Times { cron, every, at } = &args.times;
    let input = |e: &dyn std::fmt::Display| Failure::input(e.to_string());
    if args.zone.is_some() && cron.is_none() {
        return Err(input(&"--zone goes with --cron only"));
    }
    match (cron, every, at) {
        (Some(text), _, _) => When::cron(text, args.zone.as_deref()).map_err(|e| input(&e)),
        (None, Some(pause), _) => When::every(*pause)
            .map_err(|_| input(&format!("--every {}: the shortest is 1s", format_span(*pause)))),
        (None, None, Some(at)) => Ok(When::At(*at)),
        (None, None, None) => Err(Failure::bug("no time was given")),
    }
}

async fn recurring(client: &Client, args: &AddArgs, when: &When, job: JobBuilder) -> Result<u64, Failure> {
    let declared = client.broker().found().await?.queues;
    if !declared.contains(&args.queue) {
        return Err(undeclared(&args.queue, &declared));
    }
    let name = args.name.as_str();
    for s in client.broker().find_schedules(&declared, name).await? {
        let is_here = s.queue == args.queue.as_str();
        if !s.is_recurring() {
            return Err(Failure::no(format!("{name:?} is a job that is scheduled in queue {}", s.queue)));
        }
        if !is_here {
            return Err(Failure::no(format!(
                "queue {} has a schedule {name:?} already; remove it first, or take another name",
                s.queue
            )));
        }
        if !args.replace {
            return Err(exists(name, Some(&s.pattern)));
        }
    }
    match client.schedule(&args.queue, &args.name, when, job, !args.replace).await {
        Ok(sequence) => Ok(sequence),
        Err(ScheduleError::Exists) => Err(exists(name, None)),
        Err(ScheduleError::Client(e)) => Err(explain(client, &args.queue, e).await),
    }
}

fn exists(name: &str, pattern: Option<&str>) -> Failure {
    let pattern = pattern.map(|p| format!(" ({p})")).unwrap_or_default();
    Failure::no(format!("there is a schedule {name:?} already{pattern}; --replace takes its place"))
}

/// A schedule for one time: a job that is named by it.
async fn once(
    cx: &Context,
    client: &Client,
    args: &AddArgs,
    when: &When,
    job: JobBuilder,
) -> Result<u64, Failure> {
    let name = args.name.as_str();
    let When::At(at) = when else { return Err(Failure::bug("a recurring schedule was taken for a job")) };
    if let Some(other) = job.named().filter(|id| *id != name) {
        return Err(Failure::input(format!("the document's id {other:?} is not {name:?}: leave it out")));
    }
    let id = JobId::new(name).map_err(|e| Failure::input(e.to_string()))?;
    let used = format!("{name:?} was used before: a job's id names one job for ever; take another name");
    // A job that has ended is remembered, and a second message of it would be taken away without a word.
    if cx.connect().await?.store.record(&id).await?.is_some() {
        return Err(Failure::no(used));
    }
    match client.enqueue(&args.queue, job.id(name).at(*at)).await {
        Ok(e) if e.is_duplicate => Err(Failure::no(used)),
        Ok(e) => Ok(e.sequence),
        Err(e @ ClientError::Refused(_)) => Err(e.into()),
        Err(e) => Err(explain(client, &args.queue, e).await),
    }
}
