//! The proof: what the journal says, against what was sent and what is true of the files. Pure.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;
use surety_common::{
    clock::read_millis,
    history::{History, JobHistory},
};

use super::{handlers::Kind, report::Figures, tree::Truth};

/// A job that was enqueued.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) id: String,
    pub(super) kind: Kind,
    /// When the stream stored it, in milliseconds.
    pub(super) stored_ms: u64,
    pub(super) truth: Truth,
}

/// Problems of one sort that are told in full; the rest is counted.
const TOLD: usize = 5;

/// Counts everything; `problems` is empty exactly if every promise was kept.
pub(super) fn judge(sent: &[Sent], history: &History) -> Figures {
    let mut f = Figures { jobs: sent.len(), ..Figures::default() };
    let mut told = Told::default();
    for v in history.violations() {
        told.say("the journal breaks a rule", v.to_string());
    }
    let ids: HashSet<&str> = sent.iter().map(|s| s.id.as_str()).collect();
    for id in history.jobs.keys().filter(|id| !ids.contains(id.as_str())) {
        told.say("nobody enqueued", id.clone());
    }
    let mut waits = Vec::with_capacity(sent.len());
    let (mut first, mut last) = (u64::MAX, 0);
    let none = JobHistory::default();
    for s in sent {
        let h = history.jobs.get(&s.id).unwrap_or(&none);
        let count = |kind: &str| h.events.iter().filter(|e| e.kind == kind).count();
        f.attempts += count("started");
        f.lost_attempts += count("lost");
        f.reports += count("progress");
        *f.by_type.entry(s.kind.name()).or_default() += 1;
        match count("finished") {
            0 => {
                f.lost_jobs += 1;
                told.say("never ended", s.id.clone());
            }
            1 => {}
            n => {
                f.duplicates += 1;
                told.say("ended more than once", format!("{} ({n} times)", s.id));
            }
        }
        first = first.min(s.stored_ms);
        if let Some(started) = h.events.iter().find(|e| e.kind == "started").and_then(|e| read_millis(&e.at))
        {
            waits.push(started.saturating_sub(s.stored_ms));
        }
        for e in h.events.iter().filter(|e| e.kind == "finished") {
            last = last.max(read_millis(&e.at).unwrap_or(0));
            let receipt = e.data.get("receipt").unwrap_or(&Value::Null);
            if e.status != "done" {
                f.not_done += 1;
                let why = receipt.get("message").and_then(Value::as_str).unwrap_or_default();
                told.say("did not end as done", format!("{} {} {why}", s.id, e.status));
            } else if !is_right(receipt.get("result").unwrap_or(&Value::Null), s) {
                f.wrong_results += 1;
                told.say("has a wrong result", s.id.clone());
            }
        }
    }
    waits.sort_unstable();
    let at = |q: f64| waits.get(((waits.len() as f64 - 1.0) * q).round() as usize).copied();
    (f.wait_p50_ms, f.wait_p99_ms) = (at(0.5), at(0.99));
    f.seconds = last.saturating_sub(first) as f64 / 1000.0;
    f.jobs_per_second = if f.seconds > 0.0 { f.jobs as f64 / f.seconds } else { 0.0 };
    f.problems = told.lines();
    f
}

/// Whether a result is what is true of the file: the text of `sha256sum`, or the object of the script.
fn is_right(result: &Value, s: &Sent) -> bool {
    match s.kind {
        Kind::Sha256 | Kind::Slow => {
            result.as_str().and_then(|t| t.split_whitespace().next()) == Some(&s.truth.sha256)
        }
        Kind::Lines => serde_json::to_value(&s.truth).is_ok_and(|t| t == *result),
    }
}

#[derive(Default)]
struct Told(BTreeMap<&'static str, (usize, Vec<String>)>);

impl Told {
    fn say(&mut self, sort: &'static str, what: String) {
        let (n, told) = self.0.entry(sort).or_default();
        *n += 1;
        if told.len() < TOLD {
            told.push(what);
        }
    }

    fn lines(self) -> Vec<String> {
        let more = |n: usize, told: &[String]| match n - told.len() {
            0 => String::new(),
            rest => format!(", and {rest} more"),
        };
        self.0
            .into_iter()
            .map(|(sort, (n, told))| format!("{sort}: {}{}", told.join(", "), more(n, &told)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use surety_common::wire::event::Event;

    use super::*;

    fn event(job: &str, rev: u64, kind: &str, epoch: u64, status: &str, result: Value) -> Event {
        serde_json::from_value(json!({
            "v": 1, "job": job, "gen": 1, "rev": rev, "kind": kind, "at": format!("2025-01-01T00:00:0{rev}Z"), "queue": "q",
            "type": "t", "status": status, "contract": "acked", "attempt": 1, "epoch": epoch,
            "data": {"receipt": {"outcome": status, "result": result}}
        }))
        .unwrap()
    }

    fn sent(id: &str, kind: Kind) -> Sent {
        let truth = Truth { sha256: "ab".into(), lines: 3 };
        Sent { id: id.into(), kind, stored_ms: read_millis("2025-01-01T00:00:00Z").unwrap(), truth }
    }

    fn run(job: &str, result: Value) -> Vec<Event> {
        vec![
            event(job, 1, "started", 1, "running", Value::Null),
            event(job, 2, "lost", 1, "retry_wait", Value::Null),
            event(job, 3, "started", 2, "running", Value::Null),
            event(job, 4, "finished", 2, "done", result),
        ]
    }

    #[test]
    fn a_rescued_job_with_the_right_result_is_proof() {
        let mut events = run("a", json!("ab  /file"));
        events.extend(run("b", json!({"sha256": "ab", "lines": 3})));
        let history = History::fold(events).unwrap();
        let f = judge(&[sent("a", Kind::Slow), sent("b", Kind::Lines)], &history);
        assert_eq!(f.problems, Vec::<String>::new());
        assert_eq!((f.jobs, f.attempts, f.lost_attempts, f.lost_jobs), (2, 4, 2, 0));
        assert_eq!((f.wait_p50_ms, f.seconds, f.jobs_per_second), (Some(1000), 4.0, 0.5));
    }

    #[test]
    fn whatever_is_wrong_is_told() {
        let mut events = run("a", json!("cd  /file"));
        events.push(event("a", 5, "finished", 2, "done", json!("ab  /file")));
        events.extend(run("stranger", Value::Null));
        let history = History::fold(events).unwrap();
        let f = judge(&[sent("a", Kind::Slow), sent("b", Kind::Lines)], &history);
        assert_eq!((f.lost_jobs, f.duplicates, f.wrong_results), (1, 1, 1));
        for part in [
            "rule: job a: finished after",
            "enqueued: stranger",
            "never ended: b",
            "once: a",
            "wrong result: a",
        ] {
            assert!(f.problems.iter().any(|p| p.contains(part)), "{part} in {:?}", f.problems);
        }
    }
}
