//! `surety enqueue`: one job.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use surety_common::{
    broker::{BrokerError, follow::From as FollowFrom},
    clock::{format_span, parse_span, parse_time},
    config::caller,
    domain::{QueueName, text},
    wire::{event::Event, headers},
};
use tokio::time::Instant;

use super::{
    Context,
    failure::Failure,
    job_args::{JobArgs, traced},
};
use crate::{
    client::{Client, ClientError, Enqueued, JobBuilder},
    render::{Tone, printable},
};

/// Enqueue one job and print its id
///
/// The id names this enqueue for ever: enqueueing the same id again adds nothing. Durations carry a unit: 250ms, 30s, 5m,
/// 24h. Inside a handler the new job is a child of the handler's own job, which is how a loop of jobs is seen. A job for later
/// is kept by NATS and needs no process of ours until then; `surety schedule` makes recurring ones.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  surety enqueue thumbnail '{\"url\":\"https://example.org/a.png\"}' --max-retries 1\n  \
                        echo '{\"n\":1}' | surety enqueue count - --wait\n  \
                        surety enqueue remind --in 10m"
)]
pub(super) struct EnqueueArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Queue to put it in
    #[arg(long, value_name = "NAME", default_value = "default")]
    queue: QueueName,
    /// Name of this enqueue, 1 to 128 of A-Z a-z 0-9 _ - [default: a new ULID]
    #[arg(long)]
    id: Option<String>,
    /// Id of the job that this one belongs to [default: SURETY_JOB_ID, set inside a handler]
    #[arg(long, value_name = "ID", conflicts_with = "no_parent")]
    parent: Option<String>,
    #[command(flatten)]
    kin: Kin,
    /// W3C trace context to pass on
    #[arg(long, env = "TRACEPARENT", value_name = "CONTEXT")]
    traceparent: Option<String>,
    /// Start it after this long, by the clock of this machine
    #[arg(long = "in", value_name = "DURATION", value_parser = parse_span, conflicts_with = "at")]
    delay: Option<Duration>,
    /// Start it at this time, like 2027-01-01T09:30:00+01:00
    #[arg(long, value_name = "RFC3339", value_parser = parse_time)]
    at: Option<Timestamp>,
    /// Wait for the outcome; exit code 1 unless it is done
    #[arg(long)]
    wait: bool,
    /// How long to wait for the outcome, from when it may start
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_span)]
    wait_for: Duration,
}

/// What a job has to do with the job whose handler runs this command.
#[derive(Debug, Args)]
pub(super) struct Kin {
    /// Inside a handler: not a child of the handler's own job. The loop guard does not see where it comes from
    #[arg(long)]
    no_parent: bool,
}

impl Kin {
    /// The client, which knows from now on whose children its jobs are.
    pub(super) fn tie(&self, client: Client) -> Result<Client, Failure> {
        let lineage = if self.no_parent { None } else { caller::lineage().map_err(ClientError::from)? };
        Ok(client.with_lineage(lineage))
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    id: &'a str,
    sequence: u64,
    is_duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<&'a serde_json::Value>,
}

pub(super) async fn run(cx: &Context, args: EnqueueArgs) -> Result<(), Failure> {
    let job = builder(&args)?;
    let is_named = args.id.is_some() || args.job.is_document();
    let client = args.kin.tie(cx.client().await?)?;
    let mut follow = None;
    let mut began = 0;
    if args.wait {
        // What the journal has by now is of a job that had this id before.
        began = client.broker().journal_end().await?;
        // A job that was named may have ended long ago; a new one has its outcome after this moment.
        let from = if is_named { FollowFrom::Start } else { FollowFrom::Now };
        follow = Some(client.broker().follow_ended(&args.queue, from).await?);
    }
    let enqueued = match client.enqueue(&args.queue, job).await {
        Ok(e) => e,
        Err(e) => return Err(explain(&client, &args.queue, e).await),
    };
    let id = enqueued.id.as_str();
    let mut answer = Answer {
        id,
        sequence: enqueued.sequence,
        is_duplicate: enqueued.is_duplicate,
        due_at: enqueued.due_at.filter(|_| !enqueued.is_duplicate).map(|t| t.to_string()),
        outcome: None,
        receipt: None,
    };
    if enqueued.is_duplicate {
        if let Some(other) = taken_by(&client, &enqueued).await {
            return Err(Failure::not_run(format!(
                "{id} was not enqueued: its message id was used by another message, on {other}; use another id"
            )));
        }
        cx.screen.note("this id was enqueued before; nothing was added");
    }
    let Some(mut follow) = follow else {
        return cx.screen.show(&answer, || id.to_owned());
    };
    if !cx.screen.is_json {
        cx.screen.line(id)?;
    }
    let now = client.now().await;
    let until_due = enqueued
        .due_at
        .map_or(Duration::ZERO, |t| Duration::try_from(t.duration_since(now)).unwrap_or_default());
    let ended = tokio::select! {
        biased;
        ended = follow.ended(id, Instant::now() + until_due + args.wait_for) => ended?,
        _ = tokio::signal::ctrl_c() => {
            cx.screen.note(&format!("the job goes on: `surety why {id}` says where it is, `surety cancel {id}` ends it"));
            return Err(Failure::interrupted());
        }
    };
    let Some(event) = ended else {
        if cx.screen.is_json {
            cx.screen.show(&answer, String::new)?;
        }
        let limit = format_span(args.wait_for);
        return Err(Failure::no(format!("{id} has no outcome after {limit}; see `surety status {id}`")));
    };
    let receipt = receipt(&event);
    answer.outcome = Some(&event.status);
    answer.receipt = receipt;
    let is_before = follow.next_place().is_some_and(|n| n <= began);
    if !enqueued.is_duplicate && (is_before || is_of_former(&enqueued, &event)) {
        cx.screen.show(&answer, String::new)?;
        return Err(Failure::not_run(format!(
            "{id} did not run: a job with this id had ended before, as {} at {}; use another id, or `surety dlq replay`",
            event.status, event.at
        )));
    }
    cx.screen.show(&answer, || {
        let result = receipt.and_then(|r| r.get("result")).map(|r| format!("\n{r}"));
        let status = cx.screen.paint(Tone::of_status(&event.status), &event.status);
        format!("{status}{}", result.unwrap_or_default())
    })?;
    if event.status == "done" {
        return Ok(());
    }
    let text = |name: &str| receipt.and_then(|r| r.get(name)).and_then(|v| v.as_str()).unwrap_or("");
    let why = printable(&format!("{} {}", text("error_code"), text("message")));
    Err(Failure::no(format!("{id} ended as {}: {}", event.status, why.trim())))
}

/// The subject of the message that the broker took ours for a copy of, where that is another job's. A message that is gone, or that
/// this user may not read, says nothing.
async fn taken_by(client: &Client, enqueued: &Enqueued) -> Option<String> {
    let names = client.broker().names();
    let stream = if enqueued.due_at.is_some() { names.sched() } else { names.jobs() };
    let there = client.broker().message(&stream, enqueued.sequence).await.ok()??;
    // Without an id in its subject it is named by its message id, which is ours.
    let in_subject = names.parse_job_subject(&there.subject).and_then(|(_, id)| id);
    let id = there.header(headers::JOB).or(in_subject)?;
    (id != enqueued.id.as_str()).then(|| printable(&there.subject))
}

/// Whether an outcome that came after our enqueue is of a message that was stored before ours: that one still ran.
fn is_of_former(enqueued: &Enqueued, event: &Event) -> bool {
    let sequence = event.carrier.as_deref().and_then(|c| c.strip_prefix("JOBS:")?.parse::<u64>().ok());
    enqueued.due_at.is_none() && sequence.is_some_and(|n| n < enqueued.sequence)
}

fn receipt(event: &Event) -> Option<&serde_json::Value> {
    event.data.get("receipt")
}

/// Turns the error of an enqueue into what to do about it; for an undeclared queue that needs the declared ones.
pub(super) async fn explain(client: &Client, queue: &QueueName, error: ClientError) -> Failure {
    if !matches!(error, ClientError::Broker(BrokerError::NoStream { .. })) {
        return error.into();
    }
    match client.broker().found().await {
        Ok(found) => undeclared(queue, &found.queues),
        Err(e) => e.into(),
    }
}

/// What a queue that is not declared is told.
pub(super) fn undeclared(queue: &QueueName, declared: &[QueueName]) -> Failure {
    let names: Vec<&str> = declared.iter().map(QueueName::as_str).collect();
    let hint = text::nearest(queue.as_str(), names.iter().copied())
        .map(|n| format!("; did you mean {n:?}?"))
        .unwrap_or_default();
    Failure::input(format!(
        "queue {:?} is not declared{hint} (declared: {}; `surety provision` adds those of layout.queues)",
        queue.as_str(),
        names.join(", ")
    ))
}

/// The job that the arguments describe.
fn builder(args: &EnqueueArgs) -> Result<JobBuilder, Failure> {
    let mut doc = args.job.document()?;
    if args.id.is_some() {
        doc.id.clone_from(&args.id);
    }
    let mut job = traced(JobBuilder::from(doc), args.traceparent.as_deref());
    if let Some(parent) = &args.parent {
        job = job.parent(parent);
    }
    Ok(match (args.at, args.delay) {
        (Some(at), _) => job.at(at),
        (None, Some(delay)) => job.delay(delay),
        (None, None) => job,
    })
}
