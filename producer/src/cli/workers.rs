//! `surety workers`: who runs what.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use surety_common::{
    clock::{format_span, iso},
    store::{FleetSession, Held},
};

use super::{Context, failure::Failure};
use crate::render::Row;

/// Show the workers that are alive and what they run
///
/// A worker is listed by its session, from its start until it stopped in order or the reaper took its jobs back. EXPIRED
/// under RENEWED: its lease is over, and a reaper has not acted on it yet. NOT READY: it takes no jobs, and says why with --json.
/// TYPES: what it has handlers for.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety workers\n  surety workers --attempts")]
pub(super) struct WorkersArgs {
    /// List the running attempts instead, the longest first
    #[arg(long)]
    attempts: bool,
}

/// Types of a worker that a line has room for.
const TYPES_SHOWN: usize = 6;

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Worker {
    session: String,
    host: Option<String>,
    pid: Option<u32>,
    /// By the worker's own clock.
    started_at: Option<String>,
    version: Option<String>,
    slots: Option<u64>,
    queues: Option<Vec<String>>,
    /// Types that it has handlers for; the first 200.
    types: Option<Vec<String>>,
    /// Why it takes no jobs, part by part; empty: it does.
    not_ready: Option<Vec<String>>,
    /// Age of the last renewal.
    renewed_ms: Option<u64>,
    /// Its lease is over.
    is_expired: bool,
    running: Vec<Attempt>,
}

#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub(super) struct Attempt {
    job: String,
    epoch: u64,
    queue: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    attempt: Option<u32>,
    started_at: Option<String>,
    running_ms: Option<u64>,
    #[serde(skip)]
    session: String,
}

/// A span in milliseconds as people read it: whole seconds once it is longer than one.
pub(super) fn span(ms: u64) -> String {
    let shown = if ms < 1000 { ms } else { ms - ms % 1000 };
    match shown {
        ..60_000 => format_span(Duration::from_millis(shown)),
        60_000..3_600_000 => format!("{}m {}s", ms / 60_000, ms / 1000 % 60),
        3_600_000..86_400_000 => format!("{}h {}m", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{}d {}h", ms / 86_400_000, ms / 3_600_000 % 24),
    }
}

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "?".into(), |v| v.to_string())
}

impl Attempt {
    fn of(h: &Held, session: &str, now_ms: u64) -> Self {
        let r = h.record.as_ref();
        Self {
            job: h.job.to_string(),
            epoch: h.epoch,
            queue: r.map(|r| r.queue.clone()),
            kind: r.map(|r| r.job_type.clone()),
            attempt: r.map(|r| r.attempt),
            started_at: r.and_then(|r| iso(r.started_ms)),
            running_ms: r.map(|r| now_ms.saturating_sub(r.started_ms)),
            session: session.to_owned(),
        }
    }
}

impl Worker {
    fn of(s: &FleetSession, now_ms: u64) -> Self {
        let info = s.info.clone().unwrap_or_default();
        Self {
            session: s.id.clone(),
            renewed_ms: s.renewed_ago_ms(now_ms),
            is_expired: s.is_expired(now_ms),
            running: s.held.iter().map(|h| Attempt::of(h, &s.id, now_ms)).collect(),
            host: info.host,
            pid: info.pid,
            started_at: info.started_at,
            version: info.version,
            slots: info.slots,
            queues: info.queues,
            types: info.types,
            not_ready: info.not_ready,
        }
    }
}

impl Row for Worker {
    const HEADS: &'static [&'static str] =
        &["SESSION", "HOST", "PID", "VERSION", "RUNNING", "LONGEST", "RENEWED", "QUEUES", "TYPES"];
    fn cells(&self) -> Vec<String> {
        let longest = self.running.iter().filter_map(|a| a.running_ms).max();
        let types = match self.types.as_deref() {
            Some(all) if all.len() > TYPES_SHOWN => {
                let (first, rest) = all.split_at(TYPES_SHOWN);
                format!("{} +{}", first.join(" "), rest.len())
            }
            Some(all) => all.join(" "),
            None => "?".to_owned(),
        };
        let renewed = self.renewed_ms.map_or_else(|| "?".into(), |ms| format!("{} ago", span(ms)));
        vec![
            self.session.clone(),
            or_unknown(self.host.as_ref()),
            or_unknown(self.pid),
            or_unknown(self.version.as_ref()),
            format!("{}/{}", self.running.len(), or_unknown(self.slots)),
            longest.map_or_else(|| "-".into(), span),
            match self.not_ready.as_deref() {
                _ if self.is_expired => format!("EXPIRED {renewed}"),
                Some([_, ..]) => format!("{renewed}, NOT READY"),
                _ => renewed,
            },
            or_unknown(self.queues.as_ref().map(|q| q.join(" "))),
            types,
        ]
    }
}

impl Row for Attempt {
    const HEADS: &'static [&'static str] = &["JOB", "QUEUE", "TYPE", "ATTEMPT", "RUNNING FOR", "SESSION"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.job.clone(),
            or_unknown(self.queue.as_ref()),
            or_unknown(self.kind.as_ref()),
            or_unknown(self.attempt),
            self.running_ms.map_or_else(|| "?".into(), span),
            self.session.clone(),
        ]
    }
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer {
    workers: Vec<Worker>,
}

pub(super) async fn run(cx: &Context, args: WorkersArgs) -> Result<(), Failure> {
    let fleet = cx.look().await?.store.fleet().await?;
    let workers = fleet.sessions.iter().map(|s| Worker::of(s, fleet.now_ms)).collect();
    let answer = Answer { workers };
    if args.attempts {
        let mut attempts: Vec<Attempt> = answer.workers.iter().flat_map(|w| w.running.clone()).collect();
        attempts.sort_by_key(|a| std::cmp::Reverse(a.running_ms));
        cx.screen.table(&answer, &attempts)?;
    } else {
        cx.screen.table(&answer, &answer.workers)?;
    }
    for w in &answer.workers {
        if let Some(why) = w.not_ready.as_deref().filter(|why| !why.is_empty()) {
            cx.screen.note(&format!("worker {} is not ready: {}", w.session, why.join("; ")));
        }
    }
    if answer.workers.is_empty() {
        cx.screen.note("no worker is alive: start `surety-worker` (or `surety dev`)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (ms, text) in [
            (0, "0s"),
            (250, "250ms"),
            (1999, "1s"),
            (61_500, "1m 1s"),
            (3_661_000, "1h 1m"),
            (200_000_000, "2d 7h"),
        ] {
            assert_eq!(span(ms), text);
        }
    }
}
