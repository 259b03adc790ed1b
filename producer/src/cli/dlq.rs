//! `surety dlq`: look at dead letters; replay and remove them in files of their own.

use clap::{Args, Subcommand};
use serde::Serialize;
use surety_common::{
    broker::{Broker, BrokerError, pull::Delivery},
    clock::{iso, wall_now},
    domain::{JobId, QueueName},
    wire::headers,
};

use super::{Context, failure::Failure, purge, replay, workers::span};
use crate::render::{Row, printable};

/// Most letters of one page.
const PAGE_CAP: usize = 500;

/// Look at dead letters, replay or remove them
///
/// A dead letter is the raw message of a job that failed, timed out or was cancelled, with the reason.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety dlq list --queue default")]
pub(super) struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    List(ListArgs),
    Show(ShowArgs),
    Replay(replay::ReplayArgs),
    Purge(purge::PurgeArgs),
}

/// List dead letters, oldest first
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety dlq list --queue default --limit 20")]
struct ListArgs {
    /// Of this queue only
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Letters to list, at most 500; 0 lists none
    #[arg(long, value_name = "N", default_value_t = 200, allow_negative_numbers = true)]
    limit: i64,
    /// Go on after this sequence
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    after: u64,
}

/// Show one dead letter with its message
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety dlq show 01JD0000000000000000000000")]
struct ShowArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
}

/// What the headers of a dead letter say.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub(super) struct Letter {
    /// Place in the stream of dead letters.
    pub(super) sequence: u64,
    pub(super) id: String,
    pub(super) queue: String,
    /// Error code.
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) generation: u32,
    pub(super) epoch: u64,
    carrier: String,
    subject: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buried_at: Option<String>,
    #[serde(skip)]
    buried_ms: u64,
    /// Bytes of the message.
    size: usize,
}

impl Letter {
    pub(super) fn read(m: &Delivery) -> Self {
        let text = |name: &str| m.header(name).unwrap_or_default().to_owned();
        // `<ns>.dlq.<queue>.<id>`, whatever the headers say.
        let mut tokens = m.subject.rsplit('.');
        let id = tokens.next().unwrap_or_default().to_owned();
        let queue = tokens.next().unwrap_or_default().to_owned();
        let original = format!("{}{}", headers::ORIGINAL, headers::FIRST_AT);
        Self {
            sequence: m.sequence,
            id,
            queue,
            reason: text(headers::REASON),
            message: text(headers::MESSAGE),
            generation: headers::read_generation(m.header(headers::GENERATION)).unwrap_or(1),
            epoch: m.header(headers::EPOCH).and_then(|e| e.parse().ok()).unwrap_or(0),
            carrier: text(headers::CARRIER),
            subject: text(headers::SUBJECT),
            first_at: m.header(&original).or_else(|| m.header(headers::FIRST_AT)).map(str::to_owned),
            buried_at: iso(m.stored_ms),
            buried_ms: m.stored_ms,
            size: m.payload.len(),
        }
    }
}

/// How long ago, by this machine's clock: for people only.
fn age(ms: u64) -> String {
    let now = u64::try_from(wall_now().as_millisecond()).unwrap_or(0);
    span(now.saturating_sub(ms).max(1000))
}

impl Row for Letter {
    const HEADS: &'static [&'static str] = &["SEQ", "JOB", "QUEUE", "REASON", "GEN", "AGE", "MESSAGE"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.sequence.to_string(),
            self.id.clone(),
            self.queue.clone(),
            self.reason.clone(),
            self.generation.to_string(),
            age(self.buried_ms),
            self.message.clone(),
        ]
    }
}

/// The newest dead letter of a job.
pub(super) async fn newest(broker: &Broker, id: &JobId) -> Result<Option<Delivery>, BrokerError> {
    let names = broker.names();
    broker.last_message(&names.dlq(), &names.dlq_filter(None, Some(id))).await
}

/// Dead letters from a sequence on, one by one.
pub(super) struct Letters<'a> {
    broker: &'a Broker,
    filter: String,
    next: u64,
}

impl<'a> Letters<'a> {
    pub(super) fn new(broker: &'a Broker, queue: Option<&QueueName>, after: u64) -> Self {
        Self { broker, filter: broker.names().dlq_filter(queue, None), next: after.saturating_add(1) }
    }

    pub(super) async fn next(&mut self) -> Result<Option<Letter>, BrokerError> {
        let found = self.broker.next_message(&self.broker.names().dlq(), self.next, &self.filter).await?;
        Ok(found.map(|m| {
            self.next = m.sequence + 1;
            Letter::read(&m)
        }))
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Page {
    letters: Vec<Letter>,
    is_cut: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<u64>,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Shown {
    #[serde(flatten)]
    letter: Letter,
    /// The message, where it is JSON.
    body: Option<serde_json::Value>,
    /// The message as text, where it is not JSON; what is not UTF-8 is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
}

pub(super) async fn run(cx: &Context, args: DlqArgs) -> Result<(), Failure> {
    match args.command {
        DlqCommand::List(a) => list(cx, a).await,
        DlqCommand::Show(a) => show(cx, a).await,
        DlqCommand::Replay(a) => replay::run(cx, a).await,
        DlqCommand::Purge(a) => purge::run(cx, a).await,
    }
}

async fn list(cx: &Context, args: ListArgs) -> Result<(), Failure> {
    let Ok(limit) = usize::try_from(args.limit) else {
        return Err(Failure::input(format!("--limit {} is negative; 0 lists none", args.limit)));
    };
    if limit > PAGE_CAP {
        cx.screen.note(&format!("a page has at most {PAGE_CAP} letters"));
    }
    let limit = limit.min(PAGE_CAP);
    let mut page = Page { letters: Vec::new(), is_cut: false, next_after: None };
    if limit > 0 {
        let client = cx.client().await?;
        let mut letters = Letters::new(client.broker(), args.queue.as_ref(), args.after);
        while let Some(l) = letters.next().await? {
            if page.letters.len() == limit {
                page.is_cut = true;
                page.next_after = page.letters.last().map(|l| l.sequence);
                break;
            }
            page.letters.push(l);
        }
    }
    cx.screen.table(&page, &page.letters)?;
    if let Some(next) = page.next_after {
        cx.screen.note(&format!("the list is cut; go on with --after {next}"));
    }
    Ok(())
}

async fn show(cx: &Context, args: ShowArgs) -> Result<(), Failure> {
    let client = cx.client().await?;
    let Some(m) = newest(client.broker(), &args.id).await? else {
        return Err(Failure::no(format!("job {} has no dead letter", args.id)));
    };
    let body: Option<serde_json::Value> = serde_json::from_slice(&m.payload).ok();
    let raw = body.is_none().then(|| String::from_utf8_lossy(&m.payload).into_owned());
    let shown = Shown { letter: Letter::read(&m), body, raw };
    cx.screen.show(&shown, || {
        let l = &shown.letter;
        let head = cx.screen.facts(&[
            ("job", Some(l.id.clone())),
            ("queue", Some(l.queue.clone())),
            ("reason", Some(l.reason.clone())),
            ("message", Some(l.message.clone())),
            ("generation", Some(l.generation.to_string())),
            ("epoch", Some(l.epoch.to_string())),
            ("carrier", Some(l.carrier.clone())),
            ("subject", Some(l.subject.clone())),
            ("first stored at", l.first_at.clone()),
            ("buried at", l.buried_at.clone()),
            ("bytes", Some(l.size.to_string())),
        ]);
        let body = match (&shown.body, &shown.raw) {
            (Some(b), _) => b.to_string(),
            (None, Some(r)) => printable(r),
            (None, None) => String::new(),
        };
        format!("{head}\n\n{body}")
    })
}
