//! The operations of deadlines and of telling requesters: what the due index fires, what surfaced, who is asked to stop.

use std::time::Duration;

use serde::Serialize;

use super::{
    ops::{Settled, millis},
    script::{Answer, Store, StoreError, pack},
    unreadable::Prepared,
};
use crate::domain::{Contract, JobId, Status, ids::SessionId};

/// What follows from a deadline that passed ([`crate::domain::deadline::decide`] says which).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DueAct {
    /// Nothing yet: look again after so long.
    LookAgain(Duration),
    /// `expires_at` passed before the first start.
    Expired,
    /// The finish deadline of a job that does not run passed.
    Overdue,
    /// An attempt went on past its time limit: lost, again after so long.
    Overstayed(Duration),
    /// No progress in time; the nudge is the caller's to tell for so long.
    Missed(Duration),
    /// What is to be told is the caller's to tell for so long.
    Tell(Duration),
    /// Nothing is to be watched any more.
    Drop,
    /// Nothing is promised any more: whoever should be told cannot be.
    Forgo,
}

impl DueAct {
    /// Number and time (ms) as the script has them.
    fn code(self) -> (u8, u64) {
        match self {
            Self::LookAgain(d) => (1, millis(d)),
            Self::Expired => (2, 0),
            Self::Overdue => (3, 0),
            Self::Overstayed(d) => (4, millis(d)),
            Self::Missed(d) => (5, millis(d)),
            Self::Tell(d) => (6, millis(d)),
            Self::Drop => (7, 0),
            Self::Forgo => (8, 0),
        }
    }
}

/// One due job, as it was when it was judged.
#[derive(Debug, Clone)]
pub struct DueItem {
    pub id: JobId,
    pub rev: u64,
    pub promise_ms: u64,
    pub act: DueAct,
    /// [`crate::wire::receipt::Draft::open_json`]; used where the act ends the job.
    pub receipt: String,
    /// JSON object without its closing brace, for the event.
    pub data: String,
    /// Who runs it, where somebody does.
    pub session: Option<SessionId>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DueReply {
    Applied(Settled),
    /// It is otherwise by now: somebody else acted, or something happened.
    NotApplied,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// What was told to a requester, or was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Telling {
    /// The start surfaced; progress is promised within this time.
    Start { progress: Duration },
    /// The start did not surface.
    StartFailed,
    /// The nudge was told.
    Nudge,
    /// The receipt was delivered.
    Receipt,
    /// The receipt did not surface: tried again after so long.
    ReceiptLater { after: Duration },
    /// The delivery of the receipt is given up.
    ReceiptGivenUp,
}

/// One telling.
#[derive(Debug, Clone)]
pub struct ToldItem {
    pub id: JobId,
    pub generation: u32,
    pub what: Telling,
    /// One line: why it did not surface; else empty.
    pub note: String,
    /// JSON object for the event.
    pub data: String,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToldReply {
    Applied {
        contract: Contract,
        rev: u64,
        /// Tries so far of what is being told.
        tries: u32,
    },
    /// Late, repeated, or of another generation: nothing was written.
    NotApplied {
        contract: Contract,
    },
    NoRecord,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// An attempt that somebody wants stopped.
#[derive(Debug, Clone, Serialize)]
pub struct StopItem {
    pub id: String,
    pub epoch: u64,
    /// JSON object for the event.
    pub data: String,
}

/// What became of the wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReply {
    /// The owner was asked, now or before.
    Asked {
        rev: u64,
    },
    /// That attempt does not run under this session any more.
    NotRunning {
        status: Status,
        epoch: u64,
    },
    NoRecord,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

impl Store {
    /// Applies what was judged of due jobs of one partition. Each is judged again, so that of several reapers one acts.
    /// `overstay`: how long an attempt may go on past its time limit.
    pub async fn act_on_due(
        &self,
        p: u32,
        overstay: Duration,
        items: &[DueItem],
    ) -> Result<Answer<Vec<DueReply>>, StoreError> {
        let prepare = |items: &[&DueItem]| {
            let mut keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            let mut packed = Vec::with_capacity(items.len());
            for it in items {
                let run_key = match &it.session {
                    None => 0,
                    Some(session) => {
                        keys.push(self.keys().run(p, session));
                        // Positions in KEYS count from 1, after the six keys of the frame.
                        keys.len() + 6
                    }
                };
                let (act, ms) = it.act.code();
                packed.push((it.id.as_str(), it.rev, it.promise_ms, act, ms, &it.receipt, &it.data, run_key));
            }
            let (inc, call, s, keep, look) = self.frame(p, None);
            let frame = (inc, call, s, keep, look, millis(overstay), self.inner.options.lost_limit);
            Ok(Prepared { keys, frame, items: pack(&packed)? })
        };
        self.skipping(&self.inner.scripts.due, p, None, items, |i| i.id.as_str(), prepare).await
    }

    /// Commits what surfaced at requesters, and what did not.
    pub async fn told(&self, p: u32, items: &[ToldItem]) -> Result<Answer<Vec<ToldReply>>, StoreError> {
        let prepare = |items: &[&ToldItem]| {
            let keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            let packed: Vec<_> = items
                .iter()
                .map(|it| {
                    let (what, after): (u8, u64) = match it.what {
                        Telling::Start { progress } => (1, millis(progress)),
                        Telling::Nudge => (2, 0),
                        Telling::Receipt => (3, 0),
                        Telling::ReceiptLater { after } => (4, millis(after)),
                        Telling::ReceiptGivenUp => (5, 0),
                        Telling::StartFailed => (6, 0),
                    };
                    (it.id.as_str(), it.generation, what, after, it.note.as_str(), it.data.as_str())
                })
                .collect();
            Ok(Prepared { keys, frame: self.frame(p, None), items: pack(&packed)? })
        };
        self.skipping(&self.inner.scripts.told, p, None, items, |i| i.id.as_str(), prepare).await
    }

    /// Asks the owner of running attempts to stop them, because their jobs are to be cancelled.
    pub async fn ask_to_stop(
        &self,
        p: u32,
        owner: &SessionId,
        items: &[StopItem],
    ) -> Result<Answer<Vec<StopReply>>, StoreError> {
        let prepare = |items: &[&StopItem]| {
            let keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            Ok(Prepared { keys, frame: self.frame(p, Some(owner)), items: pack(items)? })
        };
        self.skipping(&self.inner.scripts.stop, p, Some(owner), items, |i| &i.id, prepare).await
    }
}
