//! The gate of a data set: open, unless the data set has lost something and is being made whole (`docs/redis-loss.md`).
//!
//! Every reply of a script tells the commit counter and the gate. What this process has seen of them is kept here, so that a
//! data set that knows less than we do is noticed by the next call, whatever the call is.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::AsyncCommands;
use serde::Deserialize;

use super::{
    entry::Origin,
    ops::millis,
    script::{Answer, Store, StoreError},
};
use crate::clock::boot_ms;

/// Who may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Gate {
    /// Everybody.
    #[default]
    Open,
    /// Sessions and their renewals only.
    Closed,
    /// Everything but claims: attempts of the time before, which this data set does not know, may still live.
    Restored,
}

impl Gate {
    /// The gate of a number in the store; `None` for one that this release does not know.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        [Self::Open, Self::Closed, Self::Restored].get(usize::from(code)).copied()
    }

    /// For logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Restored => "restored",
        }
    }
}

/// Why a gate was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The data set was gone.
    Empty,
    /// It is a copy from before.
    Older,
    /// It is whole, and belongs to another `JOBS` stream.
    OtherJobs,
    /// One that this release does not know.
    Unknown,
}

impl Why {
    /// For logs and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Older => "older",
            Self::OtherJobs => "jobs",
            Self::Unknown => "unknown",
        }
    }

    fn read(text: &str) -> Self {
        [Self::Empty, Self::Older, Self::OtherJobs]
            .into_iter()
            .find(|w| w.name() == text)
            .unwrap_or(Self::Unknown)
    }
}

/// The head of a reply.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) code: u8,
    pub(super) now_ms: u64,
    pub(super) commit: u64,
    pub(super) gate: Gate,
    /// Of the commit that the call made, `<commit> <call id>`; empty where it made none.
    pub(super) mark: String,
}

/// Commits whose marks a data set keeps (`MARKS` of the scripts).
const MARKS: u64 = 64;

/// What this process knows of a partition's data set.
#[derive(Debug, Default)]
pub(super) struct Seen {
    incarnation: Mutex<Arc<str>>,
    /// Highest commit counter that was seen.
    commit: AtomicU64,
    /// Mark of the last commit that this process made.
    mark: Mutex<String>,
    /// 0 open, 1 closed, 2 restored.
    gate: AtomicU8,
}

/// A data set whose gate is not open, or is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateState {
    pub incarnation: String,
    pub gate: Gate,
    pub why: Why,
    /// Incarnation of the older copy, or of nothing.
    pub former: String,
    /// Who makes it whole; empty: nobody now.
    pub by: String,
    /// Since it was closed.
    pub closed_for: Duration,
    /// Since it was restored.
    pub restored_for: Duration,
    /// Creation time of the `JOBS` stream that it belongs to.
    pub jobs_created: String,
    /// The store's clock when it was closed; 0 where it is open.
    pub closed_ms: u64,
}

#[derive(Deserialize)]
struct Raw(String, u8, String, String, String, u64, u64, String, u64);

/// What to do with a gate.
enum Act<'a> {
    /// Close it, if the data set is not whole. `jobs_is_younger`: `JOBS` is known to be another stream, of a later time.
    Look {
        jobs_is_younger: bool,
    },
    Elect {
        by: &'a str,
        lease: Duration,
    },
    Restored {
        by: &'a str,
        closed_for: Duration,
        commit: u64,
    },
    Open {
        by: &'a str,
        restored_for: Duration,
    },
}

impl Store {
    /// Incarnation of a partition's data set; empty before [`Store::open`].
    pub fn incarnation(&self, p: u32) -> String {
        self.data_set(p).to_string()
    }

    /// [`Store::incarnation`], to be kept and compared.
    pub fn data_set(&self, p: u32) -> Arc<str> {
        let seen = self.inner.seen.get(p as usize);
        seen.map(|s| s.incarnation.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    pub(super) fn set_incarnation(&self, p: u32, incarnation: &str) {
        if let Some(seen) = self.inner.seen.get(p as usize) {
            *seen.incarnation.lock().unwrap_or_else(PoisonError::into_inner) = incarnation.into();
            seen.mark.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    pub(super) fn origin(&self, p: u32) -> Origin {
        Origin { incarnation: self.data_set(p), asked_ms: boot_ms() }
    }

    /// Highest commit counter of the partition that this process has seen, or was told of.
    pub(crate) fn seen_commit(&self, p: u32) -> u64 {
        self.inner.seen.get(p as usize).map_or(0, |s| s.commit.load(Ordering::Relaxed))
    }

    /// Notes a commit counter that somebody has seen: from now on a data set with a lower one is an older copy.
    pub fn note_commit(&self, p: u32, commit: u64) {
        if let Some(s) = self.inner.seen.get(p as usize) {
            s.commit.fetch_max(commit, Ordering::Relaxed);
        }
    }

    /// The mark of the last commit that this process made, and the field that a data set has it in; empty where it made none.
    pub(super) fn own_mark(&self, p: u32) -> (String, String) {
        let Some(seen) = self.inner.seen.get(p as usize) else { return Default::default() };
        let mark = seen.mark.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let commit = mark.split(' ').next().and_then(|n| n.parse::<u64>().ok());
        commit.map(|n| (format!("m{}", n % MARKS), mark)).unwrap_or_default()
    }

    /// Takes in what a reply of our data set says.
    pub(super) fn hear(&self, p: u32, head: &Head) {
        let Some(seen) = self.inner.seen.get(p as usize) else { return };
        if matches!(head.code, 0 | 3 | 4 | 5) {
            seen.commit.fetch_max(head.commit, Ordering::Relaxed);
            if !head.mark.is_empty() {
                self.note_refusal(None);
                head.mark.clone_into(&mut seen.mark.lock().unwrap_or_else(PoisonError::into_inner));
            }
            if seen.gate.swap(head.gate as u8, Ordering::Relaxed) != head.gate as u8 {
                self.tell_gates();
            }
        }
    }

    /// Why nothing may start although every gate is open: the server is not configured as the promises need.
    pub fn unfit(&self) -> Option<String> {
        self.inner.unfit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether [`Store::unfit`] says something. Cheap: for every job.
    pub fn is_unfit(&self) -> bool {
        !*self.inner.is_open.borrow() && self.unfit().is_some()
    }

    /// Notes what [`Store::unfit`] says.
    pub fn set_unfit(&self, why: Option<String>) {
        *self.inner.unfit.lock().unwrap_or_else(PoisonError::into_inner) = why;
        self.tell_gates();
    }

    /// Why the server refuses writes, as the last one found: memory, disk or replicas are missing. Results are kept meanwhile, and
    /// written when it takes them again.
    pub fn refusal(&self) -> Option<String> {
        self.inner.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn note_refusal(&self, why: Option<String>) {
        let mut refused = self.inner.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match (&why, refused.is_some()) {
            (Some(why), false) => {
                tracing::error!(
                    why,
                    alert = "redis_refuses_writes",
                    "redis refuses writes; nothing starts or ends until it takes them"
                );
            }
            (None, true) => tracing::info!("redis takes writes again"),
            _ => return,
        }
        *refused = why;
    }

    fn tell_gates(&self) {
        let is_whole = self.inner.seen.iter().all(|s| s.gate.load(Ordering::Relaxed) == Gate::Open as u8);
        let is_open = is_whole && self.unfit().is_none();
        self.inner.is_open.send_if_modified(|was| std::mem::replace(was, is_open) != is_open);
    }

    /// The gate of a partition, as the last reply said.
    pub fn gate(&self, p: u32) -> Gate {
        let code = self.inner.seen.get(p as usize).map_or(0, |s| s.gate.load(Ordering::Relaxed));
        Gate::from_code(code).unwrap_or_default()
    }

    /// Whether jobs may start: every gate is open, as the last replies said, and the server is fit ([`Store::unfit`]).
    pub fn is_open(&self) -> tokio::sync::watch::Receiver<bool> {
        self.inner.is_open.subscribe()
    }

    /// A call met another data set than the one that we know. Closes its gate, if it has lost something; from then on this
    /// process knows that data set. Several processes may do so at once: it is closed once.
    pub(super) async fn reconcile(&self, p: u32, why: &str) -> Result<GateState, StoreError> {
        tracing::warn!(partition = p, why, "the data in redis is not what this process knows; looking");
        self.look_at_gate(p, false).await
    }

    /// Looks whether the data set is whole, and closes its gate if it is not.
    /// Errors: `OtherStore` when it is not the one that we know, and belongs to another `JOBS` stream than that was.
    pub async fn watch_gate(&self, p: u32) -> Result<GateState, StoreError> {
        self.look_at_gate(p, false).await
    }

    /// Closes the gate of a data set that is whole and belongs to an older `JOBS` stream than this one.
    pub async fn close_for_jobs(&self, p: u32, jobs_created: &str) -> Result<GateState, StoreError> {
        self.belong_to(jobs_created);
        self.look_at_gate(p, true).await
    }

    pub(crate) async fn look_at_gate(&self, p: u32, jobs_is_younger: bool) -> Result<GateState, StoreError> {
        let before = self.data_set(p);
        let state = self.gate_call(p, &Act::Look { jobs_is_younger }).await?;
        if *before != *state.incarnation {
            // One that was made whole is gone on with, but not that of another broker, whose jobs we know nothing of.
            if state.gate == Gate::Open && !self.is_of(&state.jobs_created) {
                return Err(StoreError::OtherStore("it belongs to another JOBS stream"));
            }
            self.set_incarnation(p, &state.incarnation);
            // They are of a data set that is gone.
            self.drop_confirmed(p);
            if state.gate != Gate::Open {
                tracing::error!(
                    partition = p, why = state.why.name(), before = %before, incarnation = state.incarnation,
                    alert = "redis_lost", "redis has lost data; it is rebuilt from the journal, and nothing is claimed until then"
                );
            }
        }
        Ok(state)
    }

    /// Asks to make the data set whole, for so long, under a name of one's own. `None`: the gate is open, or somebody else does.
    pub async fn elect(&self, p: u32, by: &str, lease: Duration) -> Result<Option<GateState>, StoreError> {
        match self.gate_call(p, &Act::Elect { by, lease }).await {
            Ok(state) => Ok(Some(state)),
            Err(StoreError::Rebuilding) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The data set is whole as far as the journal goes, whose highest commit counter is `commit`.
    /// Errors: `Rebuilding` where it is too early (`closed_for`), or somebody else's to say.
    pub async fn restored(
        &self,
        p: u32,
        by: &str,
        closed_for: Duration,
        commit: u64,
    ) -> Result<GateState, StoreError> {
        self.gate_call(p, &Act::Restored { by, closed_for, commit }).await
    }

    /// Opens the gate of a data set that was restored so long ago.
    /// Errors: `Rebuilding` where it is too early, or somebody else's to say.
    pub async fn open_gate(&self, p: u32, by: &str, restored_for: Duration) -> Result<GateState, StoreError> {
        self.gate_call(p, &Act::Open { by, restored_for }).await
    }

    async fn gate_call(&self, p: u32, act: &Act<'_>) -> Result<GateState, StoreError> {
        let (inc, call, session, keep, look) = self.frame(p, None);
        let fresh = ulid::Ulid::generate().to_string();
        let jobs = self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (code, name, jobs, younger, ms, commit) = match act {
            Act::Look { jobs_is_younger } => (1u8, fresh.as_str(), jobs.as_str(), *jobs_is_younger, 0, 0),
            Act::Elect { by, lease } => (2, *by, "", false, millis(*lease), 0),
            Act::Restored { by, closed_for, commit } => (3, *by, "", false, millis(*closed_for), *commit),
            Act::Open { by, restored_for } => (4, *by, "", false, millis(*restored_for), 0),
        };
        let frame = (inc, call, session, keep, look, code, name, jobs, u8::from(younger), ms, commit);
        let (answer, _): (Answer<Vec<Raw>>, _) =
            self.call_here(&self.inner.scripts.gate, p, None, &[], &frame, Vec::new(), None).await?;
        let Raw(incarnation, gate, why, former, by, closed, restored, jobs_created, closed_ms) =
            answer.results.into_iter().next().ok_or_else(|| StoreError::Decode("no gate".into()))?;
        Ok(GateState {
            incarnation,
            gate: Gate::from_code(gate).ok_or_else(|| StoreError::Decode(format!("unknown gate {gate}")))?,
            why: Why::read(&why),
            former,
            by,
            closed_for: Duration::from_millis(closed),
            restored_for: Duration::from_millis(restored),
            jobs_created,
            closed_ms,
        })
    }

    /// When something was last written to the outbox (milliseconds of the store's clock), or 0: of an older copy, when it was
    /// made, or somewhat earlier.
    pub async fn last_write_ms(&self, p: u32) -> Result<u64, StoreError> {
        let asked: Result<redis::streams::StreamInfoStreamReply, _> =
            self.connection().xinfo_stream(self.keys().outbox(p)).await;
        match asked {
            Ok(info) => {
                Ok(info.last_generated_id.split('-').next().and_then(|ms| ms.parse().ok()).unwrap_or(0))
            }
            // There is no outbox.
            Err(e) if e.to_string().contains("no such key") => Ok(0),
            Err(e) => Err(e.into()),
        }
    }
}
