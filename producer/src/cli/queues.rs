//! `surety queues`: how full the queues are.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use surety_common::clock::format_span;

use super::{Context, failure::Failure};
use crate::render::Row;

/// Show how many jobs wait in each declared queue
///
/// WAITING: no worker was given them yet. HELD: a worker has them, or they are in backoff.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety queues --json")]
pub(super) struct QueuesArgs {}

#[derive(Serialize)]
struct QueueRow {
    queue: String,
    waiting: u64,
    /// In flight or delayed.
    held: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_waiting_ms: Option<u64>,
}

impl Row for QueueRow {
    const HEADS: &'static [&'static str] = &["QUEUE", "WAITING", "HELD", "OLDEST WAITING"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.queue.clone(),
            self.waiting.to_string(),
            self.held.to_string(),
            self.oldest_waiting_ms.map_or_else(|| "-".into(), |ms| format_span(Duration::from_millis(ms))),
        ]
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    queues: &'a [QueueRow],
}

pub(super) async fn run(cx: &Context, _: QueuesArgs) -> Result<(), Failure> {
    let client = cx.client().await?;
    let broker = client.broker();
    let mut rows = Vec::new();
    for q in broker.found().await?.queues {
        let s = broker.queue_state(&q).await?;
        rows.push(QueueRow {
            queue: q.to_string(),
            waiting: s.waiting,
            held: s.held,
            oldest_waiting_ms: s.oldest_waiting_ms,
        });
    }
    cx.screen.table(&Answer { queues: &rows }, &rows)
}
