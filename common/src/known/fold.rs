//! What the journal says of each job, folded while it streams by. Pure. What is kept of a job is its latest state and a few
//! counters of its generation, whatever the number of its events.
//!
//! Several processes publish, so events may come out of order and twice: the state is that of the highest revision, and what
//! is counted is counted once for each revision. Of an id that was used again it is that of the latest life.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use super::lives::{Mark, Reborn, Whose};
use crate::{
    clock::read_millis,
    domain::{Contract, ErrorCode, Status},
};

/// An event as far as a record can be made of it. Read from the message without copies; its data only where it matters.
#[derive(Debug, Deserialize)]
struct Fact<'a> {
    #[serde(borrow)]
    job: Cow<'a, str>,
    #[serde(rename = "gen")]
    generation: u32,
    rev: u64,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    at: Cow<'a, str>,
    #[serde(borrow)]
    queue: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    job_type: Cow<'a, str>,
    /// As it stands in the message: a JSON string literal.
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    contract: Cow<'a, str>,
    attempt: u32,
    epoch: u64,
    #[serde(borrow, default)]
    session: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    carrier: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    trace: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// Most revisions that are remembered as missing, of one job.
const GAPS: usize = 1024;

/// One job, as far as the journal was read. Times are milliseconds, 0 for "none"; texts are empty for "none".
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    pub status: Status,
    pub contract: Contract,
    pub generation: u32,
    /// Highest revision.
    pub rev: u64,
    /// Lowest revision of this life of the job that was read.
    pub first: u64,
    /// Revisions between them that were not.
    pub gaps: Vec<u64>,
    pub epoch: u64,
    pub attempt: u32,
    /// Attempts of this generation that used up budget.
    pub charged: u32,
    /// Of these, those that were lost.
    pub lost: u32,
    /// Starts in a row that failed.
    pub start_failures: u32,
    pub due_ms: u64,
    pub started_ms: u64,
    pub ended_ms: u64,
    /// Time of the latest event.
    pub at_ms: u64,
    /// When the life before this one was deleted; 0: none is known.
    pub after_ms: u64,
    /// The attempt that runs was asked to stop.
    pub is_cancelling: bool,
    /// The nudge for the progress that was missed was told.
    pub is_nudged: bool,
    /// Its record was deleted.
    pub is_deleted: bool,
    /// Met or changed since it was last taken.
    is_dirty: bool,
    /// A box, for nearly no job has one.
    pub(super) reborn: Option<Box<Reborn>>,
    pub queue: Arc<str>,
    pub job_type: Arc<str>,
    /// A JSON string literal, or empty.
    pub key: Box<str>,
    pub trace: Box<str>,
    pub carrier: Box<str>,
    /// Who runs it, or empty.
    pub session: Arc<str>,
    /// Error code of the last failure.
    pub code: Arc<str>,
    /// Who is to be told, as a JSON object, of an outcome; else empty.
    pub notify: Box<str>,
}

impl Known {
    /// Whether it has no outcome yet and is remembered.
    pub fn is_open(&self) -> bool {
        !self.is_deleted && !self.status.is_terminal()
    }
}

/// Every job that was met.
#[derive(Debug, Default)]
pub struct Fold {
    jobs: HashMap<Box<str>, Known>,
    texts: HashSet<Arc<str>>,
    /// Events that were read.
    pub events: u64,
    /// Events that could not be.
    pub unreadable: u64,
}

impl Fold {
    /// Takes in the body of a journal message. `is_wanted`: whether a job is one of those that matter.
    pub fn message(&mut self, body: &[u8], is_wanted: impl Fn(&str) -> bool) {
        let Ok(items) = serde_json::from_slice::<Vec<&RawValue>>(body) else {
            self.unreadable += 1;
            return;
        };
        for item in items {
            match serde_json::from_str::<Fact<'_>>(item.get()) {
                Ok(f) => {
                    self.events += 1;
                    if is_wanted(&f.job) {
                        self.take(&f);
                    }
                }
                Err(_) => self.unreadable += 1,
            }
        }
    }

    /// The jobs that were met or changed since the last call.
    pub fn take_dirty(&mut self) -> Vec<(&str, &Known)> {
        let met = self.jobs.iter_mut().filter_map(|(id, k)| {
            let is_dirty = std::mem::take(&mut k.is_dirty);
            let k: &Known = k;
            is_dirty.then_some((id.as_ref(), k))
        });
        met.collect()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Known)> {
        self.jobs.iter().map(|(id, k)| (id.as_ref(), k))
    }

    /// What is known of one job.
    pub fn get(&self, job: &str) -> Option<&Known> {
        self.jobs.get(job)
    }

    /// Number of jobs.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether no job was met.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    fn text(&mut self, s: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(s) {
            return known.clone();
        }
        let new: Arc<str> = s.into();
        self.texts.insert(new.clone());
        new
    }

    fn take(&mut self, f: &Fact<'_>) {
        let at_ms = read_millis(&f.at).unwrap_or(0);
        let mark = Mark { generation: f.generation, rev: f.rev, kind: &f.kind, at_ms };
        let before = self.jobs.get(f.job.as_ref());
        // A job of a deleted job's id is a new one, and counts from 1.
        let is_reborn = before.is_some_and(|k| k.is_followed_by(mark));
        let mut known = match before {
            Some(k) if !is_reborn => k.clone(),
            // A state of a newer release is none of ours: nothing is made up in its place.
            _ if f.state().is_none() => {
                self.unreadable += 1;
                return;
            }
            _ => Known { after_ms: before.map_or(0, |k| k.at_ms), ..blank(f) },
        };
        match known.whose(mark) {
            Whose::Former => return,
            Whose::This => self.read(&mut known, f, at_ms),
            Whose::Next => self.keep_aside(&mut known, f, at_ms),
            Whose::Either => {
                self.keep_aside(&mut known, f, at_ms);
                self.read(&mut known, f, at_ms);
            }
            Whose::End => {
                if let Some(next) = known.reborn.take() {
                    known = Known { after_ms: at_ms, is_dirty: true, ..next.known };
                }
            }
        }
        if known.is_deleted {
            // What began before that was no life of its own.
            known.reborn = None;
        }
        match self.jobs.get_mut(f.job.as_ref()) {
            Some(k) => *k = known,
            None => drop(self.jobs.insert(f.job.as_ref().into(), known)),
        }
    }

    /// An event of this life.
    fn read(&mut self, known: &mut Known, f: &Fact<'_>, at_ms: u64) {
        if !known.note_rev(f.rev) {
            return;
        }
        known.count(f);
        if f.rev == known.rev {
            let [queue, job_type] = [&f.queue, &f.job_type].map(|t| self.text(t));
            (known.queue, known.job_type) = (queue, job_type);
            let (session, code) = known.apply(f, at_ms);
            if let Some(s) = session {
                known.session = self.text(s);
            }
            if let Some(c) = code {
                known.code = self.text(&c);
            }
        }
        known.is_dirty = true;
    }

    /// An event of the life after this one.
    fn keep_aside(&mut self, known: &mut Known, f: &Fact<'_>, at_ms: u64) {
        let mut next = match known.reborn.take() {
            Some(next) => next,
            None if f.state().is_none() => {
                self.unreadable += 1;
                return;
            }
            None => Box::new(Reborn { known: blank(f), since_ms: at_ms }),
        };
        next.since_ms = next.since_ms.min(at_ms);
        self.read(&mut next.known, f, at_ms);
        known.reborn = Some(next);
    }
}

impl Fact<'_> {
    /// Status and contract, where this release knows both.
    fn state(&self) -> Option<(Status, Contract)> {
        let status = Status::ALL.into_iter().find(|s| s.name() == self.status)?;
        Some((status, Contract::ALL.into_iter().find(|c| c.name() == self.contract)?))
    }

    fn data(&self) -> Value {
        self.data.and_then(|d| serde_json::from_str(d.get()).ok()).unwrap_or_default()
    }
}

/// Why it says that something failed or waits: an error code, or what a guard gives.
fn code(data: &Value) -> String {
    let said = data.get("error_code").or_else(|| data.get("reason"));
    said.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn blank(f: &Fact<'_>) -> Known {
    let none: Arc<str> = "".into();
    Known {
        status: Status::Queued,
        contract: Contract::Created,
        generation: f.generation,
        rev: 0,
        first: f.rev,
        gaps: Vec::new(),
        epoch: 0,
        attempt: 0,
        charged: 0,
        lost: 0,
        start_failures: 0,
        due_ms: 0,
        started_ms: 0,
        ended_ms: 0,
        at_ms: 0,
        after_ms: 0,
        is_cancelling: false,
        is_nudged: false,
        is_deleted: false,
        is_dirty: true,
        reborn: None,
        queue: none.clone(),
        job_type: none.clone(),
        key: "".into(),
        trace: "".into(),
        carrier: "".into(),
        session: none.clone(),
        code: none,
        notify: "".into(),
    }
}

impl Known {
    /// Whether this revision was not read before; notes it.
    fn note_rev(&mut self, rev: u64) -> bool {
        if self.rev == 0 || rev == self.rev + 1 {
            self.rev = rev;
            return true;
        }
        if rev > self.rev {
            self.gaps.extend((self.rev + 1..rev).take(GAPS.saturating_sub(self.gaps.len())));
            self.rev = rev;
            return true;
        }
        if rev < self.first {
            self.gaps.extend((rev + 1..self.first).take(GAPS.saturating_sub(self.gaps.len())));
            self.first = rev;
            return true;
        }
        let gap = self.gaps.iter().position(|g| *g == rev);
        gap.map(|i| self.gaps.swap_remove(i)).is_some()
    }

    /// What a generation's events add up to.
    fn count(&mut self, f: &Fact<'_>) {
        if f.generation > self.generation {
            (self.generation, self.charged, self.lost, self.start_failures) = (f.generation, 0, 0, 0);
        }
        if f.generation < self.generation {
            return;
        }
        match f.kind.as_ref() {
            "attempt_failed" | "lost" => {
                self.charged += 1;
                self.lost += u32::from(f.kind == "lost");
                self.start_failures = 0;
            }
            // A guard defers as well, and that is no failure.
            "deferred" if code(&f.data()) == ErrorCode::StartFailed.name() => self.start_failures += 1,
            "released" => self.start_failures = 0,
            _ => {}
        }
    }

    /// The latest event. Gives the session that runs the job from now on, and the error code, where they change.
    fn apply<'a>(&mut self, f: &'a Fact<'_>, at_ms: u64) -> (Option<&'a str>, Option<String>) {
        self.at_ms = at_ms;
        if f.kind == "missing" || f.generation < self.generation {
            // A place in the order, or the notification of a generation before this one.
            return (None, None);
        }
        let Some((status, contract)) = f.state() else { return (None, None) };
        self.contract = contract;
        (self.epoch, self.attempt) = (f.epoch, f.attempt);
        let text = |t: &Option<Cow<'_, str>>| t.as_deref().unwrap_or_default().into();
        (self.carrier, self.trace) = (text(&f.carrier), text(&f.trace));
        self.key = f.key.map(|k| k.get()).filter(|k| *k != "null").unwrap_or_default().into();
        let time =
            |d: &Value, field: &str| d.get(field).and_then(Value::as_str).and_then(read_millis).unwrap_or(0);
        // Its outcome is the event after it; without one the job is as it was.
        if f.kind != "buried" {
            self.status = status;
        }
        let nobody = Some("");
        match f.kind.as_ref() {
            "started" => {
                (self.started_ms, self.due_ms, self.is_cancelling, self.is_nudged) = (at_ms, 0, false, false);
                (f.session.as_deref(), None)
            }
            "attempt_failed" | "deferred" => {
                let d = f.data();
                self.due_ms = time(&d, if f.kind == "deferred" { "until" } else { "retry_at" });
                self.is_cancelling = false;
                (nobody, Some(code(&d)))
            }
            "lost" => {
                (self.due_ms, self.is_cancelling) = (at_ms, false);
                (nobody, Some("lost".to_owned()))
            }
            "released" => {
                (self.due_ms, self.is_cancelling) = (0, false);
                (nobody, None)
            }
            "finished" => {
                let d = f.data();
                (self.ended_ms, self.due_ms, self.is_cancelling) = (at_ms, 0, false);
                self.notify = d.get("notify").map(ToString::to_string).unwrap_or_default().into();
                (nobody, Some(d.get("receipt").map(code).unwrap_or_default()))
            }
            "replayed" => {
                (self.ended_ms, self.attempt, self.due_ms, self.notify) = (0, 0, 0, "".into());
                (nobody, Some(String::new()))
            }
            "deleted" => {
                self.is_deleted = true;
                (None, None)
            }
            "cancel_requested" => {
                self.is_cancelling = true;
                (f.session.as_deref(), None)
            }
            "sla_missed" => {
                self.is_nudged = false;
                (f.session.as_deref(), None)
            }
            "nudged" => {
                self.is_nudged = true;
                (f.session.as_deref(), None)
            }
            _ if self.status.is_running() => (f.session.as_deref(), None),
            _ => (None, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(rev: u64, kind: &str, status: &str, more: &str) -> String {
        format!(
            r#"{{"v":1,"job":"a","gen":1,"rev":{rev},"kind":"{kind}","at":"2026-11-21T08:00:{:02}.000Z","queue":"q","type":"t",
            "key":"k\"1","status":"{status}","contract":"acked","attempt":1,"epoch":{rev},"session":"s","carrier":"JOBS:7"{more}}}"#,
            rev % 60
        )
    }

    fn fold(events: &[String]) -> Fold {
        let mut f = Fold::default();
        f.message(format!("[{}]", events.join(",")).as_bytes(), |_| true);
        assert_eq!(f.unreadable, 0);
        f
    }

    fn get(f: &Fold, job: &str) -> Known {
        f.all().find(|(id, _)| *id == job).map(|(_, k)| k.clone()).unwrap()
    }

    #[test]
    fn the_state_is_that_of_the_highest_revision_and_counters_count_each_once() {
        let started = event(1, "started", "running", "");
        let failed = event(
            2,
            "attempt_failed",
            "retry_wait",
            r#","data":{"error_code":"signal","retry_at":"2026-11-21T09:00:00.000Z"}"#,
        );
        let again = event(3, "started", "running", "");
        for events in [
            [started.clone(), failed.clone(), again.clone()],
            [again.clone(), failed.clone(), started.clone()],
            [failed.clone(), again.clone(), failed.clone()],
        ] {
            let f = fold(&events);
            let k = get(&f, "a");
            assert_eq!((k.status, k.rev, k.epoch, k.charged), (Status::Running, 3, 3, 1), "{events:?}");
            assert_eq!((&*k.session, &*k.key, &*k.carrier, k.due_ms), ("s", r#""k\"1""#, "JOBS:7", 0));
            assert!(k.gaps.is_empty());
        }
        let f = fold(&[started, failed]);
        let k = get(&f, "a");
        assert_eq!((k.status, &*k.code, &*k.session), (Status::RetryWait, "signal", ""));
        assert_eq!(Some(k.due_ms), read_millis("2026-11-21T09:00:00Z"));
    }

    #[test]
    fn a_burial_without_its_outcome_leaves_the_job_open() {
        let mut events = vec![event(1, "buried", "failed", "")];
        assert!(get(&fold(&events), "a").is_open());
        events.push(event(
            2,
            "finished",
            "failed",
            r#","data":{"receipt":{"error_code":"expired"},"notify":{"subject":"x"}}"#,
        ));
        let f = fold(&events);
        let k = get(&f, "a");
        assert_eq!((k.status, &*k.code, &*k.notify), (Status::Failed, "expired", r#"{"subject":"x"}"#));
        events.push(event(3, "deleted", "failed", ""));
        assert!(get(&fold(&events), "a").is_deleted);
        // Its id begins a new life; a late copy of the old one does not.
        events.push(event(2, "finished", "failed", ""));
        assert!(get(&fold(&events), "a").is_deleted);
        events.push(event(1, "started", "running", "").replace("08:00", "09:00"));
        let f = fold(&events);
        assert_eq!((get(&f, "a").rev, get(&f, "a").status), (1, Status::Running));
    }

    #[test]
    fn a_state_of_a_newer_release_is_not_made_up() {
        let strange = event(1, "started", "levitating", "");
        let mut f = Fold::default();
        f.message(format!("[{strange}]").as_bytes(), |_| true);
        assert!(f.is_empty() && f.unreadable == 1);
        let f = fold(&[event(1, "started", "running", ""), event(2, "raised", "levitating", "")]);
        assert_eq!((get(&f, "a").status, get(&f, "a").rev), (Status::Running, 2));
    }

    #[test]
    fn only_starts_that_failed_count_as_such() {
        let deferred = |rev, why: &str| event(rev, "deferred", "deferred", &format!(r#","data":{{{why}}}"#));
        let failed = r#""error_code":"start_failed","until":"2026-11-21T09:00:00.000Z""#;
        let f = fold(&[deferred(1, failed), deferred(2, r#""reason":"rate_limited""#), deferred(3, failed)]);
        assert_eq!((get(&f, "a").start_failures, get(&f, "a").status), (2, Status::Deferred));
        assert_eq!(&*get(&fold(&[deferred(1, r#""reason":"rate_limited""#)]), "a").code, "rate_limited");
        assert_eq!(Some(get(&f, "a").due_ms), read_millis("2026-11-21T09:00:00Z"));
    }

    // Shows: P7
    #[test]
    fn what_is_missing_between_two_revisions_is_known() {
        let f = fold(&[event(2, "started", "running", ""), event(5, "finished", "done", "")]);
        assert_eq!(get(&f, "a").gaps, [3, 4]);
        assert_eq!(get(&f, "a").first, 2);
        let mut f = f;
        assert_eq!(f.take_dirty().len(), 1);
        f.message(format!("[{}]", event(3, "progress", "running", "")).as_bytes(), |_| true);
        assert_eq!(f.take_dirty().len(), 1);
        assert_eq!(get(&f, "a").gaps, [4]);
        assert_eq!(get(&f, "a").status, Status::Done);
    }
}
