//! Following all jobs of a batch to their ends.

use std::{collections::HashSet, io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use surety_common::{
    broker::{
        Broker,
        follow::{From, News, Part},
    },
    domain::{BatchId, QueueName},
};

use super::{
    lost,
    tally::{Bad, Tally},
};
use crate::{
    cli::failure::Failure,
    render::{Row, Screen, Tone, note},
};

/// How often the list of a batch that is still being sent is read on.
const LIST_PAUSE: Duration = Duration::from_millis(500);
/// Jobs that people are shown of those that did not end as done.
const SHOWN: usize = 20;

/// The jobs to follow.
pub(in crate::cli) struct Followed {
    pub(in crate::cli) queue: QueueName,
    /// Sequence in the journal to begin with.
    pub(in crate::cli) from: u64,
    pub(in crate::cli) ids: Vec<String>,
    /// Those among them that nobody had stored before: an outcome before `began` is another job's.
    pub(in crate::cli) fresh: HashSet<String>,
    /// Place in the journal when the batch began.
    pub(in crate::cli) began: u64,
}

/// How the jobs of a batch ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(in crate::cli) struct Outcomes {
    jobs: usize,
    /// Jobs that did not run, because one with the same id had ended before.
    not_run: usize,
    done: usize,
    failed: usize,
    timed_out: usize,
    cancelled: usize,
    /// Those that did not end as done: the first 100.
    failures: Vec<Bad>,
}

impl Row for Bad {
    const HEADS: &'static [&'static str] = &["JOB", "OUTCOME", "ERROR", "MESSAGE"];
    fn cells(&self) -> Vec<String> {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        vec![self.id.clone(), self.outcome.clone(), text(&self.error_code), text(&self.message)]
    }
    fn tone(&self) -> Option<(usize, Tone)> {
        Some((1, Tone::of_status(&self.outcome)?))
    }
}

impl Outcomes {
    fn of(tally: Tally) -> Self {
        let Tally { done, failed, timed_out, cancelled, .. } = tally;
        Self {
            jobs: tally.jobs(),
            not_run: tally.not_run(),
            done,
            failed,
            timed_out,
            cancelled,
            failures: tally.failures(),
        }
    }

    /// Writes them for people, or as JSON.
    pub(in crate::cli) fn show(&self, screen: Screen) -> Result<(), Failure> {
        let Self { jobs, not_run, done, failed, timed_out, cancelled, failures } = self;
        if screen.is_json {
            return screen.show(self, String::new);
        }
        let former = match not_run {
            0 => String::new(),
            n => format!(", {n} did not run (a job with the same id had ended before)"),
        };
        screen.line(&format!(
            "{jobs} jobs: {done} done, {failed} failed, {timed_out} timed out, {cancelled} cancelled{former}"
        ))?;
        if failures.is_empty() {
            return Ok(());
        }
        screen.table(self, failures.get(..SHOWN).unwrap_or(failures))?;
        let more = (jobs - done).saturating_sub(SHOWN);
        if more > 0 {
            screen.note(&format!("and {more} more"));
        }
        Ok(())
    }

    /// Exit code 1 unless every job is done; 3 where the others did not run.
    pub(in crate::cli) fn verdict(&self) -> Result<(), Failure> {
        if self.done == self.jobs {
            return Ok(());
        }
        if self.done + self.not_run == self.jobs {
            let text = format!(
                "{} of {} jobs did not run: jobs with these ids had ended before",
                self.not_run, self.jobs
            );
            return Err(Failure::not_run(text));
        }
        Err(Failure::no(format!("{} of {} jobs did not end as done", self.jobs - self.done, self.jobs)))
    }
}

/// `surety watch --batch`: finds the jobs by the name of their batch and follows them.
pub(super) async fn run(screen: Screen, broker: &Broker, batch: &BatchId) -> Result<(), Failure> {
    let followed = tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => return Err(Failure::interrupted()),
        found = list(broker, batch) => found?,
    };
    let outcomes = follow(screen, broker, followed).await?;
    outcomes.show(screen)?;
    outcomes.verdict()
}

/// Reads the list of the newest batch with this name; waits while it is still being sent.
async fn list(broker: &Broker, batch: &BatchId) -> Result<Followed, Failure> {
    let (mut next, mut run, mut is_said) = (1, String::new(), false);
    let mut found: Option<Followed> = None;
    loop {
        while let Some((sequence, part)) = broker.batch_part(batch, next).await? {
            next = sequence + 1;
            if part.run != run {
                run = part.run;
                found = None;
            }
            let queue =
                QueueName::new(&part.queue).map_err(|e| Failure::no(format!("batch {batch}: {e}")))?;
            let f = found.get_or_insert_with(|| Followed {
                queue,
                from: part.from,
                ids: Vec::new(),
                fresh: HashSet::new(),
                began: 0,
            });
            f.from = f.from.min(part.from);
            f.ids.extend(part.ids);
            if part.is_last && broker.batch_part(batch, next).await?.is_none() {
                return found.ok_or_else(|| Failure::bug("a batch vanished while it was read"));
            }
        }
        let Some(f) = &found else {
            let text = format!(
                "unknown batch {batch}: nothing was enqueued by `surety batch --batch-id {batch}` as long as the journal is kept"
            );
            return Err(Failure::no(text));
        };
        if !std::mem::replace(&mut is_said, true) {
            note(&format!("the batch is still being sent ({} jobs so far)", f.ids.len()));
        }
        tokio::time::sleep(LIST_PAUSE).await;
    }
}

/// Follows the jobs until all have ended.
/// Errors: the journal cannot be read at first; exit code 130 at Ctrl-C.
pub(in crate::cli) async fn follow(
    screen: Screen,
    broker: &Broker,
    followed: Followed,
) -> Result<Outcomes, Failure> {
    let Followed { queue, from, ids, fresh, began } = followed;
    let mut tally = Tally::new(ids);
    let meter = Meter::new(tally.jobs());
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    if !tally.is_over() {
        let mut journal =
            broker.follow(std::slice::from_ref(&queue), Part::All, From::Sequence(from)).await?;
        while !tally.is_over() {
            let news = tokio::select! {
                biased;
                _ = &mut interrupt => {
                    meter.bar.finish_and_clear();
                    return Err(Failure::interrupted());
                }
                news = journal.news() => news,
            };
            match news {
                News::Events(events) => {
                    let is_before = journal.next_place().is_some_and(|n| n <= began);
                    for e in &events {
                        if is_before && fresh.contains(&e.job) { tally.former(e) } else { tally.add(e) }
                    }
                }
                News::Lost(e) => meter.bar.suspend(|| screen.note(&lost(&e))),
                News::Back => meter.bar.suspend(|| screen.note("NATS is back")),
            }
            meter.show(&tally);
        }
    }
    meter.bar.finish_and_clear();
    Ok(Outcomes::of(tally))
}

/// A bar on a terminal; elsewhere a line for every tenth of the jobs.
struct Meter {
    bar: ProgressBar,
    is_terminal: bool,
    tenths: std::cell::Cell<usize>,
}

impl Meter {
    fn new(jobs: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let bar = if is_terminal { ProgressBar::new(jobs as u64) } else { ProgressBar::hidden() };
        let bar = match ProgressStyle::with_template("{bar:10} {pos}/{len} {wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(error) => {
                tracing::debug!(%error, "the progress bar keeps its own style");
                bar
            }
        };
        Self { bar, is_terminal, tenths: std::cell::Cell::new(0) }
    }

    fn show(&self, t: &Tally) {
        let (ended, jobs) = (t.ended(), t.jobs());
        let (done, bad, running) = (t.done, ended - t.done, t.running);
        self.bar.set_message(format!("{done} done, {bad} failed, {running} running"));
        self.bar.set_position(ended as u64);
        let tenths = ended * 10 / jobs.max(1);
        if !self.is_terminal && tenths > self.tenths.replace(tenths) {
            note(&format!("{ended} of {jobs} jobs have ended: {done} done, {bad} failed, {running} running"));
        }
    }
}
