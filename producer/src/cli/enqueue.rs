//! `surety enqueue`: one job.

use std::{io::Read, time::Duration};

use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use surety_common::{
    broker::{BrokerError, follow::From as FollowFrom},
    clock::{format_span, parse_span},
    domain::{JobId, QueueName, job::PAYLOAD_CAP, text},
    wire::{
        event::Event,
        job::{ContractDocument, JobDocument, RetryDocument, parse},
    },
};
use tokio::time::Instant;

use super::{Context, failure::Failure};
use crate::{
    client::{Client, ClientError, JobBuilder, builder::is_traceparent},
    render::{Tone, printable},
};

/// Enqueue one job and print its id
///
/// The id names this enqueue for ever: enqueueing the same id again adds nothing. Durations carry a unit: 250ms, 30s, 5m,
/// 24h. Inside a handler the new job gets the handler's own job as its parent.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  surety enqueue thumbnail '{\"url\":\"https://example.org/a.png\"}' --max-retries 1\n  \
                        echo '{\"n\":1}' | surety enqueue count - --wait"
)]
pub(super) struct EnqueueArgs {
    /// Names the handler: 1 to 64 of a-z 0-9 _ -
    #[arg(value_name = "TYPE", required_unless_present = "doc")]
    kind: Option<String>,
    /// The payload, any JSON up to 512 KiB; `-` reads it from stdin
    #[arg(value_name = "JSON|-")]
    payload: Option<String>,
    /// A whole job document instead of TYPE and payload; `-` reads it from stdin
    #[arg(long, value_name = "JSON|-", conflicts_with_all = ["kind", "payload"])]
    doc: Option<String>,
    /// Queue to put it in
    #[arg(long, value_name = "NAME", default_value = "default")]
    queue: QueueName,
    /// Name of this enqueue, 1 to 128 of A-Z a-z 0-9 _ - [default: a new ULID]
    #[arg(long)]
    id: Option<String>,
    /// What limits and filters group by
    #[arg(long)]
    key: Option<String>,
    /// Public one-line description
    #[arg(long, value_name = "TEXT")]
    summary: Option<String>,
    /// A free label; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    meta: Vec<String>,
    /// Retries after the first attempt, 0 to 1000 [default: 3]
    #[arg(long, value_name = "N")]
    max_retries: Option<u32>,
    /// Delays before the retries; the last repeats [default: 1m,5m,30m]
    #[arg(long, value_name = "DURATIONS", value_delimiter = ',')]
    backoff: Vec<String>,
    /// Time limit of one attempt [default: the worker's attempt.timeout, 10m]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<String>,
    /// Ended by then, over all attempts [default: the worker's attempt.finish, 24h]
    #[arg(long, value_name = "DURATION")]
    finish: Option<String>,
    /// Fail the job if it was not started by then
    #[arg(long, value_name = "RFC3339")]
    expires_at: Option<String>,
    /// Id of the job that this one belongs to [default: SURETY_JOB_ID, set inside a handler]
    #[arg(long, value_name = "ID")]
    parent: Option<String>,
    /// W3C trace context to pass on
    #[arg(long, env = "TRACEPARENT", value_name = "CONTEXT")]
    traceparent: Option<String>,
    #[command(flatten)]
    caller: Caller,
    /// Wait for the outcome; exit code 1 unless it is done
    #[arg(long)]
    wait: bool,
    /// How long to wait for the outcome
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_span)]
    wait_for: Duration,
}

/// The job whose handler runs this command.
#[derive(Debug, Args)]
pub(super) struct Caller {
    #[arg(long = "caller-job", env = "SURETY_JOB_ID", hide = true)]
    pub(super) caller_job: Option<JobId>,
}

#[derive(Serialize)]
struct Answer<'a> {
    id: &'a str,
    sequence: u64,
    is_duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipt: Option<&'a serde_json::Value>,
}

pub(super) async fn run(cx: &Context, args: EnqueueArgs) -> Result<(), Failure> {
    let job = builder(&args)?;
    let is_named = args.id.is_some() || args.doc.is_some();
    let client = cx.client().await?.with_parent(args.caller.caller_job.clone());
    let mut follow = None;
    if args.wait {
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
        outcome: None,
        receipt: None,
    };
    if enqueued.is_duplicate {
        cx.screen.note("this id was enqueued before; nothing was added");
    }
    let Some(mut follow) = follow else {
        return cx.screen.show(&answer, || id.to_owned());
    };
    if !cx.screen.is_json {
        cx.screen.line(id)?;
    }
    let Some(event) = follow.ended(id, Instant::now() + args.wait_for).await? else {
        if cx.screen.is_json {
            cx.screen.show(&answer, String::new)?;
        }
        let limit = format_span(args.wait_for);
        return Err(Failure::no(format!("{id} has no outcome after {limit}; see `surety status {id}`")));
    };
    let receipt = receipt(&event);
    answer.outcome = Some(&event.status);
    answer.receipt = receipt;
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
    let mut doc = match &args.doc {
        Some(text) => parse(read_or_stdin(text, "document")?.as_bytes())?,
        None => JobDocument { kind: args.kind.clone().unwrap_or_default(), ..JobDocument::default() },
    };
    if let Some(given) = &args.payload {
        let text = read_or_stdin(given, "payload")?;
        let raw: Box<RawValue> = serde_json::from_str(text.trim())
            .map_err(|e| Failure::input(format!("the payload is not valid JSON: {e}")))?;
        doc.payload = Some(raw);
    }
    let fields = [
        (&mut doc.id, &args.id),
        (&mut doc.key, &args.key),
        (&mut doc.summary, &args.summary),
        (&mut doc.parent, &args.parent),
        (&mut doc.expires_at, &args.expires_at),
    ];
    for (field, given) in fields {
        if given.is_some() {
            field.clone_from(given);
        }
    }
    for pair in &args.meta {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| Failure::input(format!("--meta {pair:?} is not NAME=VALUE")))?;
        doc.meta.get_or_insert_default().insert(name.to_owned(), value.to_owned());
    }
    if args.max_retries.is_some() || !args.backoff.is_empty() {
        let r: &mut RetryDocument = doc.retry.get_or_insert_default();
        r.max_retries = args.max_retries.or(r.max_retries);
        if !args.backoff.is_empty() {
            r.backoff = Some(args.backoff.clone());
        }
    }
    if args.timeout.is_some() || args.finish.is_some() {
        let c: &mut ContractDocument = doc.contract.get_or_insert_default();
        c.timeout = args.timeout.clone().or(c.timeout.take());
        c.finish = args.finish.clone().or(c.finish.take());
    }
    let mut job = JobBuilder::from(doc);
    if let Some(t) = &args.traceparent {
        if is_traceparent(t) {
            job = job.traceparent(t);
        } else {
            // As the standard asks: a context that does not parse is dropped, the work goes on.
            tracing::warn!("the trace context does not parse and is left out");
        }
    }
    Ok(job)
}

/// The text itself, or stdin where it is `-`.
fn read_or_stdin(given: &str, what: &str) -> Result<String, Failure> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    // Twice the cap: enough for a document around the largest payload, and the check still says how large it was.
    let limit = 2 * PAYLOAD_CAP as u64;
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .take(limit + 1)
        .read_to_string(&mut text)
        .map_err(|e| Failure::input(format!("cannot read the {what} from stdin: {e}")))?;
    if text.len() as u64 > limit {
        return Err(Failure::input(format!(
            "the {what} on stdin is larger than {limit} bytes; the payload cap is {PAYLOAD_CAP}"
        )));
    }
    Ok(text)
}
