//! `surety schedule list`.

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use surety_common::{
    broker::schedule::Schedule,
    clock::iso,
    domain::{QueueName, schedule::When},
};

use super::{server_now, time, words};
use crate::{
    cli::{Context, failure::Failure},
    render::Row,
};

/// Most schedules of one page.
const PAGE_CAP: usize = 1000;

/// List schedules and when each fires next
///
/// In the order in which they were stored, jobs that are scheduled for one time among them. Intervals count from when the
/// schedule was stored, and anew after an outage of the server.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety schedule list --recurring")]
pub(super) struct ListArgs {
    /// Of this queue only
    #[arg(long, value_name = "NAME")]
    queue: Option<QueueName>,
    /// Without those that fire once
    #[arg(long)]
    recurring: bool,
    /// Schedules to list, at most 1000; 0 lists none
    #[arg(long, value_name = "N", default_value_t = 200, allow_negative_numbers = true)]
    limit: i64,
    /// Go on after this sequence
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    after: u64,
}

#[derive(Serialize, schemars::JsonSchema)]
struct Line {
    /// The job's id where it fires once.
    name: String,
    queue: String,
    /// `at`, `every`, `cron`, or `unknown`: this release cannot read it.
    kind: &'static str,
    /// When it fires, as the header says it.
    pattern: String,
    /// Of a cron expression; UTC without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    job_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_at: Option<String>,
    /// Sequence in `SCHED`.
    sequence: u64,
    #[serde(skip)]
    next: String,
    #[serde(skip)]
    words: String,
}

impl Line {
    fn of(s: &Schedule, now: Timestamp) -> Self {
        let body: Option<serde_json::Value> = serde_json::from_slice(&s.body).ok();
        let next = s.next(now, 1).first().copied();
        let (kind, words) = match &s.when {
            Ok(when) => {
                let kind = match when {
                    When::At(_) => "at",
                    When::Every(_) => "every",
                    When::Cron { .. } => "cron",
                };
                (kind, words(when))
            }
            Err(_) => ("unknown", s.pattern.clone()),
        };
        let shown = s.when.as_ref().ok().zip(next).map(|(when, t)| time(t, when));
        Self {
            name: s.name.clone(),
            queue: s.queue.clone(),
            kind,
            pattern: s.pattern.clone(),
            zone: s.zone.clone(),
            job_type: body.and_then(|b| Some(b.get("type")?.as_str()?.to_owned())),
            next_at: next.map(|t| t.to_string()),
            stored_at: iso(s.stored_ms),
            sequence: s.sequence,
            next: shown.unwrap_or_else(|| "-".into()),
            words,
        }
    }
}

impl Row for Line {
    const HEADS: &'static [&'static str] = &["NAME", "QUEUE", "TYPE", "NEXT", "FIRES"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.queue.clone(),
            self.job_type.clone().unwrap_or_else(|| "-".into()),
            self.next.clone(),
            self.words.clone(),
        ]
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(crate) struct Page {
    schedules: Vec<Line>,
    is_cut: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_after: Option<u64>,
}

pub(super) async fn run(cx: &Context, args: ListArgs) -> Result<(), Failure> {
    let Ok(limit) = usize::try_from(args.limit) else {
        return Err(Failure::input(format!("--limit {} is negative; 0 lists none", args.limit)));
    };
    if limit > PAGE_CAP {
        cx.screen.note(&format!("a page has at most {PAGE_CAP} schedules"));
    }
    let limit = limit.min(PAGE_CAP);
    let client = cx.client().await?;
    let broker = client.broker();
    let now = server_now(broker).await?;
    let mut page = Page { schedules: Vec::new(), is_cut: false, next_after: None };
    let mut from = Some(args.after.saturating_add(1)).filter(|_| limit > 0);
    while let Some(sequence) = from {
        let (found, next) = broker.schedules(args.queue.as_ref(), sequence).await?;
        for s in found.iter().filter(|s| s.is_recurring() || !args.recurring) {
            if page.schedules.len() == limit {
                page.is_cut = true;
                page.next_after = page.schedules.last().map(|l| l.sequence);
                break;
            }
            page.schedules.push(Line::of(s, now));
        }
        from = next.filter(|_| !page.is_cut);
    }
    cx.screen.table(&page, &page.schedules)?;
    if let Some(next) = page.next_after {
        cx.screen.note(&format!("the list is cut; go on with --after {next}"));
    }
    Ok(())
}
