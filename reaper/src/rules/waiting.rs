//! Jobs that wait in their queue longer than their start was promised: they get a record, so that `expires_at`, the finish
//! deadline, `status` and `cancel` work for what no worker has seen. They are read from the stream in bounded batches, behind
//! the last delivery; where workers take them faster than they are registered, the reaper does not race with them.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use surety_common::{
    broker::{
        decode::{Decoded, decode},
        position::Position,
        pull::Delivery,
    },
    clock::format_span,
    domain::deadline::millis,
    ending::json_string,
    pace::Pace,
    store::{StoreError, WaitingItem, WaitingReply},
    telemetry::metrics::shared,
};

use crate::{
    leftover,
    rule::{Context, Done, Look, Rule, RuleError, Step, Verdict},
};

/// Pages of one subject that one step reads at most, where workers take from it.
const PAGES: usize = 10;
/// The same where nobody does.
const PAGES_OF_REST: usize = 200;
/// What workers will have taken within so many ticks, at the pace of the last one, is left to them.
const AHEAD: u64 = 15;
/// How long publishes of one step are tried before the next step goes on.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));

/// The rule. Remembers per subject how far it came.
#[derive(Default)]
pub(crate) struct Waiting {
    covered: Mutex<HashMap<String, (String, Covered)>>,
}

/// What of a subject is known to be registered: sequences `from` to before `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Covered {
    from: u64,
    to: u64,
    /// The newest delivery, as it was then.
    delivered: u64,
}

impl Covered {
    /// Where to go on. `last`: newest sequence of the stream.
    fn after(before: Option<Self>, delivered: u64, last: u64) -> Self {
        let fresh = |begin| Self { from: begin, to: begin, delivered };
        // A stream that was made anew counts from the start.
        let Some(b) = before.filter(|b| b.delivered <= delivered && b.to <= last + 1) else {
            return fresh(delivered + 1);
        };
        let pace = delivered - b.delivered;
        let begin = delivered + 1 + pace * AHEAD;
        // What was passed over while workers were faster is registered when they are not; a pace that varies is no reason.
        let is_passed_over = delivered + 1 + pace * AHEAD * 3 < b.from;
        if is_passed_over || begin > b.to { fresh(begin) } else { Self { delivered, ..b } }
    }
}

/// Some messages of a subject, and whether more that are old enough may follow.
struct Page {
    jobs: Vec<(Delivery, Decoded)>,
    is_more: bool,
}

impl Rule for Waiting {
    fn name(&self) -> &'static str {
        "waiting"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for at in positions(x).await? {
                for subject in &at.lane.subjects {
                    let (mut covered, _) = self.go_on(x, subject, &at).await?;
                    for _ in 0..PAGES {
                        let page = page(x, &at, subject, &mut covered).await?;
                        for (m, d) in &page.jobs {
                            out.extend(verdict(x, &at, m, d).await?);
                        }
                        if !page.is_more {
                            break;
                        }
                    }
                }
            }
            Ok(out)
        })
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            for at in positions(x).await? {
                for subject in &at.lane.subjects {
                    let (mut covered, is_moving) = self.go_on(x, subject, &at).await?;
                    let mut is_more = false;
                    for _ in 0..if is_moving { PAGES } else { PAGES_OF_REST } {
                        let page = page(x, &at, subject, &mut covered).await?;
                        let jobs: Vec<_> = page.jobs.iter().map(|(m, d)| (m, d)).collect();
                        done.acted += register(x, &jobs).await?;
                        self.remember(x, subject, covered);
                        is_more = page.is_more;
                        if !is_more {
                            break;
                        }
                    }
                    done.is_partial |= is_more && !is_moving;
                }
            }
            Ok(done)
        })
    }
}

impl Waiting {
    /// Where to go on with a subject, and whether workers take from its lane.
    async fn go_on(&self, x: &Context, subject: &str, at: &Position) -> Result<(Covered, bool), RuleError> {
        let last = x.c.broker.last_sequence(at.lane.of).await?;
        let all = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        // Another data set, in any partition, knows nothing of what was registered in the one before.
        let before = all.get(subject).filter(|(of, _)| *of == data_sets(x)).map(|(_, c)| *c);
        let is_moving = before.is_some_and(|b| b.delivered < at.delivered);
        Ok((Covered::after(before, at.delivered, last), is_moving))
    }

    fn remember(&self, x: &Context, subject: &str, covered: Covered) {
        let mut all = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(subject.to_owned(), (data_sets(x), covered));
    }
}

/// Names the data sets of all partitions: each may be lost by itself.
fn data_sets(x: &Context) -> String {
    let all: Vec<_> = (0..x.c.store.keys().partitions()).map(|p| x.c.store.incarnation(p)).collect();
    all.join(" ")
}

/// The lanes in which something waits.
async fn positions(x: &Context) -> Result<Vec<Position>, RuleError> {
    let mut out = Vec::new();
    for lane in x.c.broker.lanes().await? {
        let at = x.c.broker.position(&lane).await?;
        if at.waiting > 0 || at.is_missing {
            out.push(at);
        }
    }
    Ok(out)
}

/// Reads on from `covered`, and moves it to behind the last message that needs no second look.
async fn page(x: &Context, at: &Position, subject: &str, covered: &mut Covered) -> Result<Page, RuleError> {
    let (messages, is_more) = x.c.broker.messages(&at.lane.stream, covered.to, subject, x.batch).await?;
    let mut page = Page { jobs: Vec::new(), is_more };
    let mut young = None;
    let mut unreadable = 0;
    for m in messages {
        let read = decode(&x.c.broker, &at.lane.queue, &m, &x.c.found.jobs_created);
        let own = read.as_ref().ok().and_then(|d| d.job.terms.ack);
        let promise = own.map_or(x.settings.contract.ack, |a| a.min(x.settings.contract.ack));
        if !is_late(m.stored_ms, at.at_ms, promise) {
            young.get_or_insert(m.sequence);
            continue;
        }
        if young.is_none() {
            covered.to = m.sequence + 1;
        }
        match read {
            Ok(d) => page.jobs.push((m, d)),
            // Its worker buries it, with its reason.
            Err(_) => unreadable += u64::from(young.is_none()),
        }
    }
    page.is_more &= young.is_none();
    if unreadable > 0 {
        tracing::warn!(subject, messages = unreadable, "what waits there is no job; a worker will bury it");
        shared().decode_errors.with_label_values(&["message"]).inc_by(unreadable);
    }
    Ok(page)
}

fn is_late(stored_ms: u64, now_ms: u64, promise: Duration) -> bool {
    u128::from(now_ms.saturating_sub(stored_ms)) >= promise.as_millis()
}

/// Makes jobs known. Returns the number of those that were not, or whose message was left over.
pub(super) async fn register(x: &Context, jobs: &[(&Delivery, &Decoded)]) -> Result<usize, RuleError> {
    let mut acted = 0;
    for p in 0..x.c.store.keys().partitions() {
        let here: Vec<_> = jobs.iter().filter(|(_, d)| x.c.store.keys().partition(&d.job.id) == p).collect();
        if here.is_empty() {
            continue;
        }
        let items: Vec<WaitingItem> = here.iter().map(|(m, d)| item(x, m, d)).collect();
        let answer = x.c.store.register(p, &items).await?;
        // Ordering: an outcome is journaled before its message is removed.
        x.c.relay.publish(p, &answer.entries, PATIENCE).await?;
        for ((m, d), reply) in here.into_iter().zip(answer.results) {
            let queue = d.job.queue.as_str();
            match reply {
                WaitingReply::Registered { .. } => {}
                // Another message of an open job is for the rule `stray`.
                WaitingReply::Known { .. } | WaitingReply::Unreadable => continue,
                WaitingReply::Ended(e) => {
                    let removed = leftover::remove(x, m, &d.job.id, queue, &e).await;
                    let Some(()) = leftover::of_several(removed, m.carrier())? else { continue };
                }
                WaitingReply::StaleGeneration => leftover::discard(x, queue, m.carrier()).await?,
            }
            acted += 1;
        }
    }
    Ok(acted)
}

/// A job as its message says it.
pub(crate) fn item(x: &Context, m: &Delivery, d: &Decoded) -> WaitingItem {
    let job = &d.job;
    let finish = job.terms.finish.unwrap_or(x.settings.attempt.finish);
    WaitingItem {
        id: job.id.to_string(),
        queue: job.queue.to_string(),
        job_type: job.kind.to_string(),
        key: json_string(job.key.as_deref()),
        trace: d.trace.clone(),
        carrier: d.carrier.clone(),
        created_ms: m.stored_ms,
        finish_ms: millis(finish),
        max_retries: job.retry.max_retries,
        generation: d.generation,
        expires_ms: job.expires_at.and_then(|t| u64::try_from(t.as_millisecond()).ok()).unwrap_or(0),
        notify: job.requester.to_json().into_owned(),
        summary: job.summary.clone().unwrap_or_default(),
    }
}

/// What would be done about one of them.
async fn verdict(
    x: &Context,
    at: &Position,
    m: &Delivery,
    d: &Decoded,
) -> Result<Option<Verdict>, RuleError> {
    let record = match x.c.store.record(&d.job.id).await {
        Err(StoreError::Unreadable { .. }) => return Ok(None),
        other => other?,
    };
    let age = Duration::from_millis(at.at_ms.saturating_sub(m.stored_ms));
    let seen = match &record {
        None => "no record".to_owned(),
        Some(r) => format!("its record says {} of generation {}", r.status.name(), r.generation),
    };
    let does = match &record {
        None => "register it",
        Some(r) if r.generation > d.generation => "remove the message: its generation was replayed",
        Some(r) if r.status.is_terminal() && r.generation == d.generation => {
            "remove the message: the job has its outcome"
        }
        Some(r) if r.status.is_terminal() => "record its next generation",
        Some(_) => return Ok(None),
    };
    let evidence =
        format!("{} waits for {} on {}, not delivered; {seen}", d.carrier, format_span(age), m.subject);
    Ok(Some(Verdict::new(&d.job.id, evidence, does)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(from: u64, to: u64, delivered: u64) -> Covered {
        Covered { from, to, delivered }
    }

    #[test]
    fn a_lane_that_stands_still_is_read_to_its_end() {
        assert_eq!(Covered::after(None, 10, 500), covered(11, 11, 10));
        assert_eq!(Covered::after(Some(covered(11, 111, 10)), 10, 500), covered(11, 111, 10));
    }

    #[test]
    fn what_workers_are_about_to_take_is_left_to_them() {
        // 20 in a tick: 300 in the next ones.
        assert_eq!(Covered::after(Some(covered(11, 111, 10)), 30, 5000), covered(331, 331, 30));
        // The end is near: nothing to register.
        assert_eq!(Covered::after(Some(covered(11, 111, 10)), 30, 200), covered(331, 331, 30));
        // A slow lane that was registered far ahead goes on there.
        assert_eq!(Covered::after(Some(covered(11, 900, 10)), 12, 5000), covered(11, 900, 12));
    }

    #[test]
    fn what_was_passed_over_is_read_once_workers_get_slow_or_stop() {
        let fast = covered(331, 900, 30);
        assert_eq!(Covered::after(Some(fast), 30, 5000), covered(31, 31, 30), "they stopped");
        assert_eq!(Covered::after(Some(fast), 50, 5000), covered(331, 900, 50), "same pace");
        assert_eq!(Covered::after(Some(fast), 34, 5000), covered(95, 95, 34), "a fifth of the pace");
    }

    #[test]
    fn a_stream_that_was_made_anew_is_read_from_the_start() {
        assert_eq!(Covered::after(Some(covered(11, 900, 10)), 10, 20), covered(11, 11, 10));
        assert_eq!(Covered::after(Some(covered(11, 900, 10)), 0, 5000), covered(1, 1, 0));
    }

    #[test]
    fn the_promise_counts_from_the_moment_it_was_stored() {
        let s = Duration::from_secs(1);
        assert!(!is_late(1000, 1999, s) && is_late(1000, 2000, s));
        assert!(!is_late(2000, 1000, s), "clocks of two servers");
    }
}
