//! `surety dlq replay`: another generation of a job that ended badly.

use clap::Args;
use serde::Serialize;
use surety_common::{
    broker::{BrokerError, jobs::replay_headers, place::Carrier, pull::Delivery},
    connect::Connected,
    domain::{Job, JobId, QueueName, deadline::millis},
    pace::Pace,
    store::{ReplayItem, ReplayReply, StoreError},
    wire::{
        headers::MAX_GENERATION,
        job::{check, parse},
    },
};

use super::{
    Context,
    confirm::Consent,
    dlq::{Letter, Letters, newest},
    failure::{Exit, Failure},
};
use crate::render::Row;

/// Most letters of one `--all`; repeat the command for more.
const ALL_CAP: usize = 10_000;

/// Queue jobs again from their dead letters
///
/// The job keeps its id and gets the next generation, with a fresh retry budget; its outcome is decided anew. More than
/// one letter is shown first and asked about; where nobody can be asked, it needs --yes (exit code 2).
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety dlq replay 01JD0000000000000000000000\n  \
                        surety dlq replay --all --queue default --reason timeout --yes")]
pub(super) struct ReplayArgs {
    /// Ids of the jobs
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<JobId>,
    /// Replay every dead letter that --queue and --reason leave
    #[arg(long)]
    all: bool,
    /// With --all: of this queue only
    #[arg(long, value_name = "NAME", requires = "all")]
    queue: Option<QueueName>,
    /// With --all: with this error code only
    #[arg(long, value_name = "CODE", requires = "all")]
    reason: Option<String>,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    replayed: Vec<Replayed>,
    refused: Vec<RefusedReplay>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Replayed {
    id: String,
    queue: String,
    generation: u32,
    /// `STREAM:sequence` of the new message.
    carrier: String,
}

impl Row for Replayed {
    const HEADS: &'static [&'static str] = &["JOB", "QUEUE", "GENERATION", "CARRIER"];
    fn cells(&self) -> Vec<String> {
        vec![self.id.clone(), self.queue.clone(), self.generation.to_string(), self.carrier.clone()]
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct RefusedReplay {
    id: String,
    reason: String,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Preview<'a> {
    would_replay: &'a [Letter],
}

pub(super) async fn run(cx: &Context, args: ReplayArgs) -> Result<(), Failure> {
    let c = cx.connect().await?;
    let mut answer = Answer { replayed: Vec::new(), refused: Vec::new() };
    let letters = select(&c, &args, &mut answer.refused).await?;
    if letters.len() > 1 && !args.consent.is_given() {
        let preview = Preview { would_replay: &letters };
        cx.screen.table(&preview, &letters)?;
        args.consent.to(cx.screen, &format!("{} jobs would be replayed", letters.len())).await?;
    }
    let mut worst = None;
    for letter in &letters {
        let outcome = match JobId::new(&letter.id) {
            Ok(id) => one(cx, &c, &id, letter).await,
            Err(e) => Err(Failure::no(e.to_string())),
        };
        match outcome {
            Ok(r) => answer.replayed.push(r),
            Err(f) => {
                answer.refused.push(RefusedReplay { id: letter.id.clone(), reason: f.text });
                if f.exit != Exit::No {
                    worst = Some(f.exit);
                    break;
                }
            }
        }
    }
    cx.screen.table(&answer, &answer.replayed)?;
    if answer.refused.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = answer.refused.iter().map(|r| format!("{}: {}", r.id, r.reason)).collect();
    let text = format!("not replayed:\n  {}", lines.join("\n  "));
    Err(Failure { exit: worst.unwrap_or(Exit::No), text })
}

/// The letters that the arguments name; ids without one go to `refused`.
async fn select(
    c: &Connected,
    args: &ReplayArgs,
    refused: &mut Vec<RefusedReplay>,
) -> Result<Vec<Letter>, Failure> {
    let mut found = Vec::new();
    for id in &args.ids {
        match newest(&c.broker, id).await? {
            Some(m) => found.push(Letter::read(&m)),
            None => {
                refused.push(RefusedReplay { id: id.to_string(), reason: "it has no dead letter".into() })
            }
        }
    }
    if args.all {
        let mut letters = Letters::new(&c.broker, args.queue.as_ref(), 0);
        while found.len() < ALL_CAP {
            let Some(l) = letters.next().await? else { break };
            if args.reason.as_ref().is_none_or(|r| *r == l.reason) {
                found.push(l);
            }
        }
    }
    Ok(found)
}

/// The job in a dead letter, if it can run at all.
fn job_of(id: &JobId, queue: &QueueName, m: &Delivery) -> Result<Job, Failure> {
    let again = "publish a corrected one with `surety enqueue --doc`";
    let doc =
        parse(&m.payload).map_err(|e| Failure::no(format!("its message is not a job: {e}; {again}")))?;
    if doc.id.as_deref().is_some_and(|d| d != id.as_str()) {
        let named = doc.id.unwrap_or_default();
        return Err(Failure::no(format!("its message names another id, {named:?}; {again}")));
    }
    check(doc, id.clone(), queue.clone()).map_err(|e| {
        Failure::no(format!("its message breaks the rules and would be buried again: {e}; {again}"))
    })
}

async fn one(cx: &Context, c: &Connected, id: &JobId, letter: &Letter) -> Result<Replayed, Failure> {
    let dlq = c.broker.names().dlq();
    let queue = QueueName::new(&letter.queue).map_err(|e| Failure::no(e.to_string()))?;
    let Some(m) = c.broker.message(&dlq, letter.sequence).await? else {
        return Err(Failure::no("its dead letter is gone: somebody else replayed or purged it"));
    };
    let job = job_of(id, &queue, &m)?;
    let record = c.store.record(id).await?;
    if let Some(r) = &record {
        // Checked first: replaying what still runs would give it two carriers.
        if !r.status.is_terminal() {
            return Err(Failure::no(format!(
                "it is open ({}, generation {}): nothing to replay",
                r.status.name(),
                r.generation
            )));
        }
        if r.generation > letter.generation {
            c.broker.delete(&dlq, letter.sequence).await?;
            return Err(Failure::no(format!(
                "this letter of generation {} was replayed before; generation {} is {}. The letter was removed",
                letter.generation,
                r.generation,
                r.status.name()
            )));
        }
    }
    if letter.generation >= MAX_GENERATION {
        return Err(Failure::no(format!(
            "{id} is at generation {}, the last one: enqueue its body under a new id",
            letter.generation
        )));
    }
    let generation = letter.generation + 1;
    let patience = Pace::call(cx.settings.connection.retry_limit);
    let headers = replay_headers(&m, id, generation, letter.epoch);
    let subject = c.broker.names().job_subject(&queue, id);
    // Ordering: the new carrier first. If we die here, the claim that meets it records the replay by itself; the other
    // way round a queued record without a message would be left. A duplicate is this very replay, by its message id.
    let stored = match c.publisher.publish(&subject, &headers, &m.payload, patience).await {
        Err(BrokerError::NoStream { .. }) => {
            return Err(Failure::no(format!(
                "queue {queue} is not declared any more; `surety provision` adds it"
            )));
        }
        other => other?,
    };
    let carrier = Carrier::jobs(stored.sequence).to_string();
    let finish = job.terms.finish.unwrap_or(cx.settings.attempt.finish);
    let item = ReplayItem {
        id: id.to_string(),
        generation,
        carrier: carrier.clone(),
        created_ms: c.store.now_ms().await?,
        finish_ms: millis(finish),
        data: serde_json::json!({ "from": format!("DLQ:{}", letter.sequence) }).to_string(),
    };
    let p = c.store.keys().partition(id);
    let answer = c.store.replay(p, &[item]).await?;
    c.relay.publish(p, &answer.entries, patience).await?;
    match answer.results.first() {
        // No record: the claim will make one from the carrier's headers.
        Some(ReplayReply::Queued { .. } | ReplayReply::NoRecord) => {}
        Some(ReplayReply::Open { status }) => {
            return Err(Failure::no(format!(
                "it became open meanwhile ({}); its letter is kept",
                status.name()
            )));
        }
        Some(ReplayReply::Unreadable) => return Err(StoreError::unreadable(id.as_str()).into()),
        None => return Err(Failure::bug("redis answered for no job")),
    }
    c.broker.delete(&dlq, letter.sequence).await?;
    Ok(Replayed { id: id.to_string(), queue: queue.to_string(), generation, carrier })
}
