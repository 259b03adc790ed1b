//! Where the jobs of a batch are, counted from their events. Pure.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use surety_common::{domain::Status, wire::event::Event};

/// Jobs that did not end as done of which more than the number is kept.
const KEPT: usize = 100;

/// A job that ended, and not as done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub(in crate::cli) struct Bad {
    pub(super) id: String,
    pub(super) outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
}

/// Every job with the newest of its events.
pub(super) struct Tally {
    jobs: HashMap<String, (u64, Status)>,
    pub(super) running: usize,
    pub(super) done: usize,
    pub(super) failed: usize,
    pub(super) timed_out: usize,
    pub(super) cancelled: usize,
    failures: Vec<Bad>,
    /// Those that did not run.
    former: HashSet<String>,
}

impl Tally {
    pub(super) fn new(ids: Vec<String>) -> Self {
        Self {
            jobs: ids.into_iter().map(|id| (id, (0, Status::Queued))).collect(),
            running: 0,
            done: 0,
            failed: 0,
            timed_out: 0,
            cancelled: 0,
            failures: Vec::new(),
            former: HashSet::new(),
        }
    }

    pub(super) fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Jobs with an outcome.
    pub(super) fn ended(&self) -> usize {
        self.done + self.failed + self.timed_out + self.cancelled + self.former.len()
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended() == self.jobs()
    }

    pub(super) fn failures(self) -> Vec<Bad> {
        self.failures
    }

    pub(super) fn not_run(&self) -> usize {
        self.former.len()
    }

    /// Takes an event of a job that had the id of one of ours before. With its outcome ours is not run.
    pub(super) fn former(&mut self, e: &Event) {
        let is_terminal = Status::ALL.into_iter().any(|s| s.name() == e.status && s.is_terminal());
        if is_terminal
            && self.jobs.contains_key(&e.job)
            && self.former.insert(e.job.clone())
            && self.failures.len() < KEPT
        {
            self.failures.push(Bad {
                id: e.job.clone(),
                outcome: "not_run".to_owned(),
                error_code: None,
                message: Some(format!("a job with this id had ended before, as {} at {}", e.status, e.at)),
            });
        }
    }

    /// Takes an event of any job. One that comes late, or again, changes nothing.
    pub(super) fn add(&mut self, e: &Event) {
        if self.former.contains(&e.job) {
            return;
        }
        let Some(job) = self.jobs.get_mut(&e.job).filter(|(rev, _)| *rev < e.rev) else { return };
        let Some(now) = Status::ALL.into_iter().find(|s| s.name() == e.status) else { return };
        let (_, before) = std::mem::replace(job, (e.rev, now));
        if before == now {
            return;
        }
        if let Some(n) = self.count(before) {
            *n -= 1;
        }
        if let Some(n) = self.count(now) {
            *n += 1;
        }
        // A replay gives a job that had failed another chance.
        if before.is_terminal() {
            self.failures.retain(|b| b.id != e.job);
        }
        if now.is_terminal() && now != Status::Done && self.failures.len() < KEPT {
            let text = |name: &str| {
                e.data.pointer(&format!("/receipt/{name}")).and_then(|v| v.as_str()).map(str::to_owned)
            };
            let (error_code, message) = (text("error_code"), text("message"));
            self.failures.push(Bad {
                id: e.job.clone(),
                outcome: now.name().to_owned(),
                error_code,
                message,
            });
        }
    }

    fn count(&mut self, status: Status) -> Option<&mut usize> {
        match status {
            Status::Running | Status::WaitingInput => Some(&mut self.running),
            Status::Done => Some(&mut self.done),
            Status::Failed => Some(&mut self.failed),
            Status::TimedOut => Some(&mut self.timed_out),
            Status::Cancelled => Some(&mut self.cancelled),
            Status::Queued | Status::Scheduled | Status::Deferred | Status::RetryWait => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(job: &str, rev: u64, status: &str) -> Event {
        serde_json::from_value(serde_json::json!({
            "v": 1, "job": job, "gen": 1, "rev": rev, "kind": "k", "at": "2026-11-21T08:00:00.123Z", "queue": "q",
            "type": "t", "status": status, "contract": "acked", "attempt": 1, "epoch": 1,
            "data": {"receipt": {"error_code": "timeout", "message": "10m"}},
        }))
        .unwrap()
    }

    #[test]
    fn late_and_repeated_events_and_those_of_others_change_nothing() {
        let mut t = Tally::new(vec!["a".into(), "b".into(), "a".into()]);
        assert_eq!(t.jobs(), 2);
        for (job, rev, status) in [
            ("a", 1, "running"),
            ("c", 1, "running"),
            ("b", 3, "done"),
            ("b", 1, "running"),
            ("b", 3, "done"),
            ("a", 2, "running"),
        ] {
            t.add(&event(job, rev, status));
        }
        assert_eq!((t.running, t.done, t.ended(), t.is_over()), (1, 1, 1, false));
        t.add(&event("a", 3, "timed_out"));
        assert!(t.is_over() && t.running == 0 && t.timed_out == 1);
        let failure = &t.failures()[0];
        assert_eq!((failure.id.as_str(), failure.error_code.as_deref()), ("a", Some("timeout")));
    }

    #[test]
    fn a_replayed_job_is_open_again() {
        let mut t = Tally::new(vec!["a".into()]);
        t.add(&event("a", 1, "failed"));
        assert!(t.is_over());
        t.add(&event("a", 2, "queued"));
        assert!(!t.is_over() && t.failed == 0);
        t.add(&event("a", 4, "done"));
        assert!(t.is_over() && t.failures().is_empty());
    }
}
