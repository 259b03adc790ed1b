//! `surety why`: what holds a job, and everything a person asks next.

use std::{fmt::Write, time::Duration};

use clap::Args;
use serde::Serialize;
use surety_common::{
    broker::{Broker, topology::Found},
    clock::format_span,
    connect::{self, ConnectError},
    domain::JobId,
    lookup::LookupError,
    pace::Transient,
    store::StoreError,
    why::{self, AttemptTold, Deadline, Gate, GateCode, Why},
};

use super::{
    Context,
    events::{OfJob, moment},
    failure::Failure,
    lookup,
    workers::span,
};
use crate::render::{Row, Screen};

/// So long a connection to Redis is waited for, before the answer goes without it.
const PATIENCE: Duration = Duration::from_secs(4);

/// Explain why a job is where it is
///
/// Says first what holds the job now and when that should clear, then who runs it, its deadlines, what was promised to whoever
/// asked for it, its attempts with their errors and the output of the last failed one, its message at the broker, and its last
/// events. Reads the record, or the queue, or the journal, whichever knows the job. While Redis cannot be reached it says what the
/// queue and the journal do, names what is not known, and ends with exit code 69; without NATS it can say nothing. Of the journal
/// it reads what `surety events` does.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety why 01JD0000000000000000000000")]
pub(super) struct WhyArgs {
    /// The job's id
    #[arg(value_name = "ID")]
    id: JobId,
}

/// A line of the list of attempts.
#[derive(Serialize)]
struct OfAttempt<'a>(&'a AttemptTold);

impl Row for OfAttempt<'_> {
    const HEADS: &'static [&'static str] = &["ATTEMPT", "EPOCH", "STARTED", "ENDED", "END", "ERROR"];
    fn cells(&self) -> Vec<String> {
        let a = self.0;
        let at = |t: &Option<String>| t.as_deref().map_or_else(|| "-".into(), moment);
        let error: Vec<&str> = [&a.error_code, &a.message].into_iter().filter_map(|p| p.as_deref()).collect();
        let (attempt, epoch) = (a.attempt.to_string(), a.epoch.to_string());
        vec![attempt, epoch, at(&a.started_at), at(&a.ended_at), a.end.clone(), error.join(": ")]
    }
}

/// A line of the list of deadlines.
#[derive(Serialize)]
struct OfDeadline<'a>(&'a Deadline);

impl Row for OfDeadline<'_> {
    const HEADS: &'static [&'static str] = &["IN", "AT", "WHAT"];
    fn cells(&self) -> Vec<String> {
        let d = self.0;
        let far = span(d.in_ms.unsigned_abs());
        let far = if d.in_ms < 0 { format!("{far} ago") } else { far };
        vec![far, moment(&d.at), d.what.clone()]
    }
}

/// The gate as two or three facts.
fn held(g: &Gate, screen: Screen) -> String {
    if g.code == GateCode::Ended {
        return screen.facts(&[("ended", Some(g.what.clone())), ("next", Some(g.then.clone()))]);
    }
    screen.facts(&[
        ("held by", Some(g.code.name())),
        ("", Some(g.what.clone())),
        ("next", Some(g.then.clone())),
        ("until", g.until.clone()),
    ])
}

fn human(w: &Why, screen: Screen) -> String {
    let mut out = held(&w.gate, screen);
    let mut section = |title: &str, body: String| {
        if !body.is_empty() {
            // Writing to a text cannot fail.
            write!(out, "\n\n{title}\n{body}").ok();
        }
    };
    for g in &w.also {
        section("besides", held(g, screen));
    }
    let j = &w.job;
    let attempt = j.attempt.map(|a| match (j.charged, j.max_retries) {
        (Some(c), Some(m)) => format!("{a} ({c} of {} failed)", u64::from(m) + 1),
        _ => a.to_string(),
    });
    section(
        "job",
        screen.facts(&[
            ("id", Some(j.id.clone())),
            ("status", Some(j.status.to_owned())),
            ("read from", Some(j.source.to_owned())),
            ("queue", Some(j.queue.clone())),
            ("type", j.job_type.clone()),
            ("key", j.key.clone()),
            ("generation", Some(j.generation.to_string())),
            ("attempt", attempt),
            ("error code", j.error_code.clone()),
            ("created at", j.created_at.clone()),
            ("ended at", j.ended_at.clone()),
        ]),
    );
    if let Some(o) = &w.owner {
        let renewed = o.renewed_ms.map(|ms| format!("{} ago", span(ms)));
        let renewed = renewed.map(|r| if o.is_expired { format!("{r}: EXPIRED") } else { r });
        section(
            "owner",
            screen.facts(&[
                ("session", Some(o.session.clone())),
                ("host", o.host.clone()),
                ("process", o.pid.map(|p| p.to_string())),
                ("release", o.version.clone()),
                ("renewed", renewed.or_else(|| o.is_expired.then(|| "EXPIRED".to_owned()))),
                ("lease until", o.lease_until.clone()),
            ]),
        );
    }
    let deadlines: Vec<_> = w.deadlines.iter().map(OfDeadline).collect();
    section("deadlines", if deadlines.is_empty() { String::new() } else { screen.rows(&deadlines) });
    if let Some(p) = &w.promise {
        section(
            "promise",
            screen.facts(&[
                ("contract", Some(p.contract.to_owned())),
                ("summary", p.summary.clone()),
                ("requester", Some(p.requester.clone().unwrap_or_else(|| "nobody".into()))),
                ("receipt", Some(p.receipt.to_owned())),
                ("tries", (p.tries > 0).then(|| p.tries.to_string())),
                ("last error", p.last_error.clone()),
            ]),
        );
    }
    let attempts: Vec<_> = w.attempts.iter().map(OfAttempt).collect();
    section("attempts", if attempts.is_empty() { String::new() } else { screen.rows(&attempts) });
    for a in &w.attempts {
        for (name, lines) in [("stdout", &a.stdout_tail), ("stderr", &a.stderr_tail)] {
            let title = format!("{name} of attempt {} (its last lines)", a.attempt);
            section(&title, lines.iter().map(|l| screen.fit(l)).collect::<Vec<_>>().join("\n"));
        }
    }
    if let Some(c) = &w.carrier {
        let place = format!("{}:{}", c.stream, c.sequence);
        section(
            "message",
            screen.facts(&[
                ("carrier", Some(if c.is_there { place } else { format!("{place}, which is gone") })),
                ("subject", c.subject.clone()),
                ("stored at", c.stored_at.clone()),
                ("delivered", c.is_delivered.map(|d| if d { "yes" } else { "not yet" }.to_owned())),
                ("ahead of it", c.ahead.map(|n| n.to_string())),
            ]),
        );
    }
    let events: Vec<_> = w.events.iter().map(OfJob).collect();
    section("last events", if events.is_empty() { String::new() } else { screen.rows(&events) });
    section("not found out", w.unknown.iter().map(|u| screen.fit(u)).collect::<Vec<_>>().join("\n"));
    out
}

pub(super) async fn run(cx: &Context, args: WhyArgs) -> Result<(), Failure> {
    let broker = connect::broker(&cx.settings, "surety").await?;
    let found = broker.found().await?;
    // What the broker knows is worth saying while Redis is away, too: that is when one asks.
    let failure = match with_store(cx, &args.id, broker.clone(), found.clone()).await {
        Err(Ended::OfStore(failure)) => failure,
        Err(Ended::Otherwise(failure)) => return Err(failure),
        Ok(w) => {
            let w = w.ok_or_else(|| lookup::unknown(&args.id))?;
            return cx.screen.show(&w, || human(&w, cx.screen));
        }
    };
    match Box::pin(why::without_store(&broker, &found.queues, &args.id, &failure.text)).await? {
        Some(w) => cx.screen.show(&w, || human(&w, cx.screen))?,
        None => {
            let text = format!("neither a queue nor the journal knows job {}: the store might", args.id);
            cx.screen.note(&text);
        }
    }
    Err(failure)
}

/// Why there is no whole answer.
enum Ended {
    /// The store could not be read.
    OfStore(Failure),
    Otherwise(Failure),
}

async fn with_store(cx: &Context, id: &JobId, broker: Broker, found: Found) -> Result<Option<Why>, Ended> {
    let look = connect::look_at(&cx.settings, broker, found);
    let c = match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(c)) => c,
        Ok(Err(e @ ConnectError::Store(_))) => return Err(Ended::OfStore(e.into())),
        Ok(Err(e)) => return Err(Ended::Otherwise(e.into())),
        Err(_) => {
            let text = format!("no answer within {}", format_span(PATIENCE));
            return Err(Ended::OfStore(StoreError::Unreachable(text).into()));
        }
    };
    Box::pin(why::why(&c, id, cx.settings.reaper.overstay)).await.map_err(|e| match e {
        LookupError::Store(e) if e.is_transient() => Ended::OfStore(e.into()),
        e => Ended::Otherwise(e.into()),
    })
}
