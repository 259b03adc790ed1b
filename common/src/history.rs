//! The checker: folds the journal and proves what the promises say of it. Used by the suites and by `surety demo`.

use std::collections::BTreeMap;

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
}

const TERMINAL: [&str; 4] = ["done", "failed", "cancelled", "timed_out"];

impl History {
    /// Folds events as they were read, in any order.
    /// Errors: `Ambiguous`.
    pub fn fold(events: Vec<Event>) -> Result<Self, Violation> {
        let mut h = Self::default();
        let mut seen: BTreeMap<(String, u64), Event> = BTreeMap::new();
        for e in events {
            match seen.get(&(e.job.clone(), e.rev)) {
                Some(first) if *first == e => h.copies += 1,
                Some(first) => return Err(Violation::Ambiguous(Box::new((first.clone(), e)))),
                None => {
                    seen.insert((e.job.clone(), e.rev), e);
                }
            }
        }
        for ((job, _), e) in seen {
            h.jobs.entry(job).or_default().events.push(e);
        }
        Ok(h)
    }

    /// P2 and P7: revisions from 1 without gaps, epochs that never fall, allowed moves only, one `finished` a generation,
    /// nothing after it but a replay, never two attempts at once.
    /// Errors: `Empty`, or the first of [`History::violations`].
    pub fn check(&self) -> Result<(), Violation> {
        if self.jobs.is_empty() {
            return Err(Violation::Empty);
        }
        self.violations().next().map_or(Ok(()), Err)
    }

    /// What [`History::check`] looks for, at most one of each job.
    pub fn violations(&self) -> impl Iterator<Item = Violation> {
        self.jobs.iter().filter_map(|(job, h)| {
            let what = h.check().err()?;
            Some(Violation::Job { job: job.clone(), what, events: h.events.clone() })
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
}

impl JobHistory {
    fn check(&self) -> Result<(), String> {
        let mut rev = 0;
        let mut generation = 1;
        let mut epoch = 0;
        let mut open = false;
        let mut is_finished = false;
        let mut is_deleted = false;
        for e in &self.events {
            rev += 1;
            if e.rev != rev {
                return Err(format!("revision {rev} is missing, {} follows", e.rev));
            }
            if e.kind == "replayed" {
                if !is_finished || e.generation != generation + 1 {
                    return Err(format!("replayed to generation {} from an open one", e.generation));
                }
                (generation, is_finished) = (e.generation, false);
                continue;
            }
            if e.generation != generation {
                return Err(format!("generation {} inside {generation}", e.generation));
            }
            if is_deleted {
                return Err(format!("{} after the record was deleted", e.kind));
            }
            if is_finished && e.kind == "deleted" {
                is_deleted = true;
                continue;
            }
            if is_finished {
                return Err(format!("{} after the outcome", e.kind));
            }
            if e.epoch < epoch {
                return Err(format!("epoch fell from {epoch} to {}", e.epoch));
            }
            match e.kind.as_str() {
                "started" => {
                    if open {
                        return Err(format!("attempt of epoch {} started inside another", e.epoch));
                    }
                    if e.epoch <= epoch {
                        return Err(format!("epoch {} was used before", e.epoch));
                    }
                    open = true;
                }
                "progress" | "tool" => {
                    if !open || e.epoch != epoch {
                        return Err(format!("report of epoch {} outside its attempt", e.epoch));
                    }
                }
                "attempt_failed" | "lost" | "released" => {
                    if !open || e.epoch != epoch {
                        return Err(format!("{} of an attempt that does not run", e.kind));
                    }
                    open = false;
                }
                "deferred" => open = false,
                "buried" => {
                    if open {
                        return Err("buried while an attempt runs".into());
                    }
                }
                "finished" => {
                    if !TERMINAL.contains(&e.status.as_str()) {
                        return Err(format!("finished as {}", e.status));
                    }
                    if e.status == "done" && !open {
                        return Err("done without an attempt".into());
                    }
                    if e.data.get("receipt").and_then(|r| r.get("outcome")).and_then(|o| o.as_str())
                        != Some(&e.status)
                    {
                        return Err("the receipt says something else than the event".into());
                    }
                    (open, is_finished) = (false, true);
                }
                other => return Err(format!("unexpected kind {other}")),
            }
            epoch = e.epoch;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(rev: u64, kind: &str, status: &str, epoch: u64) -> Event {
        serde_json::from_value(serde_json::json!({
            "v": 1, "job": "a", "gen": 1, "rev": rev, "kind": kind, "at": "", "queue": "q", "type": "t", "status": status,
            "contract": "acked", "attempt": 1, "epoch": epoch, "data": {"receipt": {"outcome": status}}
        }))
        .unwrap()
    }

    #[test]
    fn the_checker_finds_each_violation() {
        let start = event(1, "started", "running", 1);
        let done = event(2, "finished", "done", 1);
        let check = |events: Vec<Event>| History::fold(events).and_then(|h| h.check());
        check(vec![start.clone(), done.clone()]).unwrap();
        check(vec![start.clone(), start.clone(), done.clone()]).unwrap();
        let deleted = event(3, "deleted", "done", 1);
        check(vec![start.clone(), done.clone(), deleted.clone()]).unwrap();
        for bad in [
            vec![],
            vec![start.clone(), event(3, "finished", "done", 1)],
            vec![start.clone(), done.clone(), event(3, "finished", "failed", 1)],
            vec![start.clone(), event(2, "started", "running", 2)],
            vec![start.clone(), event(1, "started", "running", 2)],
            vec![event(1, "finished", "done", 1)],
            vec![start.clone(), event(2, "lost", "retry_wait", 1), event(3, "started", "running", 1)],
            vec![start.clone(), event(2, "finished", "running", 1)],
            vec![start.clone(), event(2, "deleted", "running", 1)],
            vec![start.clone(), done.clone(), deleted, event(4, "deleted", "done", 1)],
        ] {
            assert!(check(bad.clone()).is_err(), "{bad:#?}");
        }
    }
}
