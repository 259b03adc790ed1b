//! The checker: folds the journal and proves what the promises say of it (P2, P7). `surety audit`, `surety demo` and the
//! suites use the same.
//!
//! 1. `moves`: the rules of one job, as a table of allowed moves.
//! 2. `order`: one job's events by `rev`, each once, although they may be read out of order and twice.
//! 3. `audit`: all jobs of a journal of any length, without keeping an event.
//! 4. [`live`]: the journal against the store.
//! 5. [`History`]: the same with the events, for journals that fit into memory.
//!
//! Pure: whoever reads the journal hands over the events.

mod audit;
mod fact;
pub mod live;
mod moves;
mod order;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use audit::Seen;
pub use audit::{Audit, Finding, Tally, Told};

use crate::wire::event::Event;

/// A promise that the journal shows broken. The events are in its `Debug` form.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    #[error("the journal is empty")]
    Empty,
    #[error("job {}: two different events of revision {}", .0.0.job, .0.0.rev)]
    Ambiguous(Box<(Event, Event)>),
    #[error("job {job}: {what}")]
    Job { job: String, what: String, events: Vec<Event> },
}

/// The events of one job, by revision, each once.
#[derive(Debug, Default)]
pub struct JobHistory {
    pub events: Vec<Event>,
}

/// Every job's history.
#[derive(Debug, Default)]
pub struct History {
    pub jobs: BTreeMap<String, JobHistory>,
    /// The same event read more than once (a relayed copy past the broker's window).
    pub copies: usize,
    findings: Vec<Finding>,
}

impl History {
    /// Folds events as they were read: the whole journal, in any order within a small window.
    /// Errors: `Ambiguous`.
    pub fn fold(events: Vec<Event>) -> Result<Self, Violation> {
        let mut h = Self::default();
        let mut audit = Audit::new(false);
        for e in events {
            match audit.see(&e) {
                Seen::Copy => h.copies += 1,
                Seen::New | Seen::Broken => h.jobs.entry(e.job.clone()).or_default().events.push(e),
            }
        }
        audit.end();
        for j in h.jobs.values_mut() {
            j.events.sort_by_key(|e| e.rev);
        }
        h.findings = audit.findings().to_vec();
        match h.findings.iter().find_map(|f| h.pair(f)) {
            Some(pair) => Err(Violation::Ambiguous(Box::new(pair))),
            None => Ok(h),
        }
    }

    /// P2 and P7: revisions from 1 without gaps, epochs that never fall, allowed moves only, one `finished` a generation,
    /// nothing after it but its receipt or a replay, never two attempts at once.
    /// Errors: `Empty`, or the first of [`History::violations`].
    pub fn check(&self) -> Result<(), Violation> {
        if self.jobs.is_empty() {
            return Err(Violation::Empty);
        }
        self.violations().next().map_or(Ok(()), Err)
    }

    /// What [`History::check`] looks for, at most one of each job.
    pub fn violations(&self) -> impl Iterator<Item = Violation> {
        self.findings.iter().map(|f| Violation::Job {
            job: f.job.clone(),
            what: f.what.clone(),
            events: self.jobs.get(&f.job).map(|j| j.events.clone()).unwrap_or_default(),
        })
    }

    /// The last status of a job.
    pub fn status(&self, job: &str) -> Option<&str> {
        self.jobs.get(job)?.events.last().map(|e| e.status.as_str())
    }

    /// Events of one kind of a job.
    pub fn count(&self, job: &str, kind: &str) -> usize {
        self.jobs.get(job).map_or(0, |h| h.events.iter().filter(|e| e.kind == kind).count())
    }

    /// The two events of one revision.
    fn pair(&self, f: &Finding) -> Option<(Event, Event)> {
        let rev = f.ambiguous?;
        let mut of_rev = self.jobs.get(&f.job)?.events.iter().filter(|e| e.rev == rev);
        Some((of_rev.next()?.clone(), of_rev.next()?.clone()))
    }
}
