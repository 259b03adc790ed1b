//! `surety pause --list`.

use serde::Serialize;
use surety_common::{
    broker::{Broker, pauses::is_endless},
    domain::pause::{Pause, Target},
};

use super::Shown;
use crate::{
    cli::{Context, events::moment, failure::Failure, workers::span},
    render::{Row, printable},
};

#[derive(Serialize, schemars::JsonSchema)]
pub(in crate::cli) struct Answer<'a> {
    pauses: &'a [Shown],
}

impl Row for Shown {
    const HEADS: &'static [&'static str] = &["WHAT", "NAME", "SINCE", "LEFT", "BY", "REASON"];
    fn cells(&self) -> Vec<String> {
        let p = &self.pause;
        let or_none = |t: Option<&str>| t.map_or_else(|| "-".to_owned(), printable);
        vec![
            p.kind.clone(),
            printable(&p.name),
            if p.at.is_empty() { "?".to_owned() } else { moment(&p.at) },
            self.left_ms.map_or_else(|| "-".to_owned(), span),
            printable(&p.by),
            or_none(p.reason.as_deref()),
        ]
    }
}

pub(super) async fn run(cx: &Context, broker: &Broker) -> Result<(), Failure> {
    let known = broker.pauses().await?;
    let mut rows: Vec<Shown> =
        known.pauses.list(known.now_ms).into_iter().map(|p| Shown::of(p, known.now_ms)).collect();
    // Somebody may have paused the consumers themselves.
    for queue in broker.found().await?.queues {
        if known.pauses.of_queue(queue.as_str(), known.now_ms).is_some() {
            continue;
        }
        let left = broker.queue_state(&queue).await?.into_iter().filter_map(|lane| lane.paused_ms).max();
        if let Some(ms) = left {
            let by_hand = Pause {
                target: Target::Queue(queue),
                reason: Some("its consumers are paused, and nobody said why".to_owned()),
                by: "unknown".to_owned(),
                at_ms: 0,
                until_ms: (!is_endless(ms)).then(|| known.now_ms.saturating_add(ms)),
            };
            rows.push(Shown::of(&by_hand, known.now_ms));
        }
    }
    cx.screen.table(&Answer { pauses: &rows }, &rows)?;
    if rows.is_empty() {
        cx.screen.note("nothing is paused");
    }
    Ok(())
}
