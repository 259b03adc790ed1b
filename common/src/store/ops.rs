//! The operations, one per script: what goes in, what comes out, typed.

use std::{
    borrow::{Borrow, Cow},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    packed::Packer,
    script::{Answer, Store, StoreError, pack},
    unreadable::Prepared,
};
pub(super) use crate::domain::deadline::millis;
use crate::domain::{ErrorCode, JobId, Requester, Status, ids::SessionId};

/// One job to claim.
#[derive(Debug, Clone)]
pub struct ClaimItem<'a> {
    pub id: Cow<'a, str>,
    pub queue: Cow<'a, str>,
    pub job_type: Cow<'a, str>,
    /// A JSON string literal, or empty.
    pub key: Cow<'a, str>,
    pub trace: Cow<'a, str>,
    /// `STREAM:sequence`.
    pub carrier: Cow<'a, str>,
    pub ack_subject: Cow<'a, str>,
    /// When the carrier was stored (the stream's clock).
    pub created_ms: u64,
    pub finish_ms: u64,
    pub max_retries: u32,
    pub timeout_ms: u64,
    pub generation: u32,
    /// A recorded carrier that was seen to be gone, so that this one may take its place; else empty.
    pub adopt: Cow<'a, str>,
    /// 0: never.
    pub expires_ms: u64,
    /// Within this time the start is told to a requester who wants notices.
    pub ack_ms: u32,
    /// Within this time progress is promised.
    pub progress_ms: u32,
    /// Who is to be told.
    pub requester: &'a Requester,
    pub summary: Cow<'a, str>,
    /// The crash-loop guard of its type was asked.
    pub has_asked: bool,
}

/// The right to run one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub epoch: u64,
    pub attempt: u32,
    /// Charged attempts before this one.
    pub charged: u32,
    pub generation: u32,
    pub started_ms: u64,
    pub rev: u64,
    /// Failed starts in a row before this one.
    pub start_failures: u32,
    /// Until the finish deadline, where it comes before the time limit of the attempt; else 0.
    pub limit_ms: u64,
}

/// A job that has its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// `false`: the journal entry was still in the outbox and is among the answer's entries: publish it before the ack.
    pub is_journaled: bool,
    pub status: Status,
    pub generation: u32,
    pub epoch: u64,
    /// Error code, empty for `done`.
    pub code: String,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimReply {
    Granted(Grant),
    /// Another attempt runs; its lease ends in `lease_ms` unless renewed.
    LiveOwner {
        lease_ms: u64,
    },
    NotDue {
        due_in_ms: u64,
    },
    /// The job is carried by another message: `STREAM:sequence`.
    SecondCarrier {
        recorded: String,
    },
    Ended(Ended),
    /// The carrier belongs to a generation that was replayed since.
    StaleGeneration,
    /// `expires_at` passed before the first start.
    Expired,
    /// The finish deadline passed.
    Overdue,
    /// Jobs of its type crash: for so long each asks the crash-loop guard before it is claimed.
    AskFirst {
        for_ms: u64,
    },
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// What became of an attempt, as its worker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Done,
    Fail(ErrorCode),
    Retry { code: ErrorCode, delay: Duration },
    Release,
    StartFailed { delay: Duration },
    CancelObeyed,
}

/// One attempt to finish.
#[derive(Debug, Clone)]
pub struct FinishItem {
    pub id: JobId,
    pub epoch: u64,
    pub verdict: Verdict,
    /// [`crate::wire::receipt::Draft::open_json`]; used when the verdict ends the job. Empty: it says what the event says.
    pub receipt: String,
    /// JSON object without its closing brace; used when it does not.
    pub data: String,
    /// JSON for the `data` key (error text, tails), or empty.
    pub detail: String,
}

/// What became of a finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReply {
    Applied {
        status: Status,
        rev: u64,
    },
    /// Another epoch, or nobody, owns the job: the result was refused.
    Fenced {
        status: Status,
        epoch: u64,
    },
    NoRecord,
    BudgetSpent,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// One attempt of an expired session.
#[derive(Debug, Clone, Serialize)]
pub struct LostItem {
    pub id: String,
    pub epoch: u64,
    /// Receipt in case the budget is spent.
    pub receipt: String,
    pub data: String,
}

/// A job whose state the call changed, with what is needed to settle its carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub status: Status,
    /// Empty when no delivery was recorded.
    pub ack_subject: String,
    pub carrier: String,
    pub generation: u32,
    pub rev: u64,
    pub epoch: u64,
}

/// What became of a lost attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostReply {
    Applied(Settled),
    NotApplied,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// One report of a running attempt.
#[derive(Debug, Clone, Serialize)]
pub struct ProgressItem {
    pub id: String,
    pub epoch: u64,
    /// Event kind.
    pub kind: &'static str,
    /// JSON object.
    pub data: String,
    /// Within this time the next progress is promised.
    pub progress_ms: u32,
    /// Fingerprint of what it says ([`crate::domain::fingerprint()`]).
    pub print: String,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressReply {
    Journaled {
        rev: u64,
    },
    Fenced,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// A job to end without an attempt.
#[derive(Debug, Clone, Serialize)]
pub struct SettleItem {
    pub id: String,
    /// 1 cancel, 2 bury, 3 the finish deadline passed.
    pub verdict: u8,
    pub code: &'static str,
    pub receipt: String,
    /// JSON object.
    pub reason: String,
    pub queue: String,
    pub job_type: String,
    pub key: String,
    pub trace: String,
    pub carrier: String,
    pub ack_subject: String,
    pub created_ms: u64,
    pub generation: u32,
    /// Who is to be told ([`Requester`] as JSON), or empty.
    pub notify: String,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettleReply {
    Applied(Settled),
    /// An attempt runs, or (burial) another message carries the job: nothing was written.
    Running {
        status: Status,
    },
    /// Its entry is among the answer's entries while it is not journaled.
    Ended(Ended),
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// A job whose next generation's carrier is published.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayItem {
    pub id: String,
    pub generation: u32,
    pub carrier: String,
    pub created_ms: u64,
    pub finish_ms: u64,
    pub data: String,
}

/// What became of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayReply {
    Queued {
        generation: u32,
        rev: u64,
    },
    Open {
        status: Status,
    },
    NoRecord,
    /// Its record cannot be read: nothing was done with it.
    Unreadable,
}

/// What a step of retention did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Elements taken from the list of ended jobs.
    pub taken: usize,
    /// Records deleted.
    pub deleted: usize,
    /// Jobs put back: not journaled, or not readable.
    pub kept: usize,
}

/// What a renewal compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Renewed {
    /// `<id>:<epoch>` that the worker runs and no longer owns: to be killed without a finish.
    pub fenced: Vec<String>,
    /// `<id>:<epoch>` that Redis gives to the session and the worker does not run.
    pub orphans: Vec<String>,
    /// `<id>:<epoch>` that somebody wants stopped.
    pub stops: Vec<String>,
}

/// What opening a session told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SessionState {
    pub incarnation: String,
    /// Creation time of the `JOBS` stream that this data set belongs to.
    pub jobs_created: String,
    pub live_sessions: u64,
    /// Attempts that the session still owns.
    pub owned: u64,
}

/// What to do with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionAct {
    Identity = 0,
    Open = 1,
    Close = 2,
    Expire = 3,
    OpenAgain = 4,
    Describe = 5,
}

/// What every script is told: incarnation, call id, session, `keep` and `look` in milliseconds.
pub(super) type Frame = (String, String, String, u64, u64);

impl Store {
    pub(super) fn frame(&self, p: u32, session: Option<&SessionId>) -> Frame {
        let options = &self.inner.options;
        (
            self.incarnation(p),
            self.call_id(),
            session.map(ToString::to_string).unwrap_or_default(),
            millis(options.keep).max(1),
            millis(options.look_after).max(1),
        )
    }

    pub(super) fn job_keys<'a>(&self, ids: impl Iterator<Item = &'a str>, p: u32) -> Vec<String> {
        ids.map(|id| self.keys().job_in(p, id)).collect()
    }

    /// Claims jobs of one partition for a session. `outbox_cap`: most journal entries that may wait.
    /// Errors: `SessionLost`, `OutboxFull`, `OtherStore`, `Unreachable`; in each case nothing was claimed, except that an
    /// `Unreachable` call may have been executed: the next renewal finds such attempts as orphans.
    pub async fn claim(
        &self,
        p: u32,
        session: &SessionId,
        outbox_cap: u64,
        items: &[ClaimItem<'_>],
    ) -> Result<Answer<Vec<ClaimReply>>, StoreError> {
        let prepare = |items: &[&ClaimItem<'_>]| {
            let (inc, call, s, keep, look) = self.frame(p, Some(session));
            let keys = self.job_keys(items.iter().map(|i| i.id.as_ref()), p);
            let frame = (inc, call, s, keep, look, outbox_cap);
            let mut packed = Packer::with_capacity(items.len() * 160);
            for it in items {
                packed
                    .text(&it.id)
                    .text(&it.queue)
                    .text(&it.job_type)
                    .text(&it.key)
                    .text(&it.trace)
                    .text(&it.carrier)
                    .text(&it.ack_subject)
                    .text(&it.adopt)
                    .u48(it.created_ms)
                    .u48(it.finish_ms)
                    .u32(it.max_retries)
                    .u48(it.timeout_ms)
                    .u32(it.generation)
                    .u48(it.expires_ms)
                    .u32(it.ack_ms)
                    .u32(it.progress_ms)
                    .byte(u8::from(it.requester.wants_notices()))
                    .byte(u8::from(it.has_asked))
                    .text(&it.requester.to_json())
                    .text(&it.summary);
            }
            Ok(Prepared { keys, frame, items: packed.into_bytes() })
        };
        let script = &self.inner.scripts.claim;
        self.skipping(script, p, Some(session), items, |i| i.id.as_ref(), prepare).await
    }

    /// Finishes attempts of one partition. Same errors as [`Store::claim`], without `SessionLost`.
    pub async fn finish(
        &self,
        p: u32,
        session: &SessionId,
        items: &[impl Borrow<FinishItem>],
    ) -> Result<Answer<Vec<FinishReply>>, StoreError> {
        let items: Vec<&FinishItem> = items.iter().map(Borrow::borrow).collect();
        let prepare = |items: &[&&FinishItem]| {
            let mut keys: Vec<String> = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            let n = keys.len();
            let mut packed = Packer::with_capacity(n * 64);
            for it in items {
                let data_key = if it.detail.is_empty() {
                    0
                } else {
                    keys.push(self.keys().data(&it.id));
                    // Positions in KEYS count from 1, after the six keys of the frame.
                    u32::try_from(keys.len() + 6).unwrap_or(0)
                };
                let (verdict, code, delay) = match it.verdict {
                    Verdict::Done => (1, "", 0),
                    Verdict::Fail(code) => (2, code.name(), 0),
                    Verdict::Retry { code, delay } => (3, code.name(), millis(delay)),
                    Verdict::Release => (4, "", 0),
                    Verdict::StartFailed { delay } => (5, ErrorCode::StartFailed.name(), millis(delay)),
                    Verdict::CancelObeyed => (6, ErrorCode::Cancelled.name(), 0),
                };
                packed
                    .text(it.id.as_str())
                    .u48(it.epoch)
                    .byte(verdict)
                    .text(code)
                    .u48(delay)
                    .text(&it.receipt)
                    .text(&it.data)
                    .text(&it.detail)
                    .u32(data_key);
            }
            let (inc, call, s, keep, look) = self.frame(p, Some(session));
            let frame = (inc, call, s, keep, look, n);
            Ok(Prepared { keys, frame, items: packed.into_bytes() })
        };
        let script = &self.inner.scripts.finish;
        self.skipping(script, p, Some(session), &items, |i| i.id.as_str(), prepare).await
    }

    /// Commits attempts of an expired session as lost. `SessionLost` here means the opposite of its name: the session is
    /// alive, so nothing was written.
    pub async fn lost(
        &self,
        p: u32,
        session: &SessionId,
        items: &[LostItem],
    ) -> Result<Answer<Vec<LostReply>>, StoreError> {
        let prepare = |items: &[&LostItem]| {
            let mut keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            keys.push(self.keys().session_info(p));
            let (inc, call, s, keep, look) = self.frame(p, Some(session));
            let frame = (inc, call, s, keep, look, self.inner.options.lost_limit);
            Ok(Prepared { keys, frame, items: pack(items)? })
        };
        self.skipping(&self.inner.scripts.lost, p, Some(session), items, |i| &i.id, prepare).await
    }

    /// Journals what running attempts reported.
    pub async fn progress(
        &self,
        p: u32,
        session: &SessionId,
        items: &[ProgressItem],
    ) -> Result<Answer<Vec<ProgressReply>>, StoreError> {
        let prepare = |items: &[&ProgressItem]| {
            let keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            Ok(Prepared { keys, frame: self.frame(p, Some(session)), items: pack(items)? })
        };
        self.skipping(&self.inner.scripts.progress, p, Some(session), items, |i| &i.id, prepare).await
    }

    /// Ends jobs that nobody runs: cancel or burial.
    pub async fn settle(&self, p: u32, items: &[SettleItem]) -> Result<Answer<Vec<SettleReply>>, StoreError> {
        let prepare = |items: &[&SettleItem]| {
            let keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            Ok(Prepared { keys, frame: self.frame(p, None), items: pack(items)? })
        };
        self.skipping(&self.inner.scripts.settle, p, None, items, |i| &i.id, prepare).await
    }

    /// Records the next generation of ended jobs.
    pub async fn replay(&self, p: u32, items: &[ReplayItem]) -> Result<Answer<Vec<ReplayReply>>, StoreError> {
        let prepare = |items: &[&ReplayItem]| {
            let keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
            Ok(Prepared { keys, frame: self.frame(p, None), items: pack(items)? })
        };
        self.skipping(&self.inner.scripts.replay, p, None, items, |i| &i.id, prepare).await
    }

    /// Deletes the records of jobs that ended more than `keep` ago, as far as `head` reaches: the first elements of the list of
    /// ended jobs, as [`Store::ended`] read them. `None`: another reaper was here first.
    pub async fn forget(
        &self,
        p: u32,
        keep: Duration,
        head: &[String],
    ) -> Result<Answer<Vec<Option<Forgotten>>>, StoreError> {
        let ids = || head.iter().filter(|h| !h.starts_with('@')).map(String::as_str);
        let mut keys = self.job_keys(ids(), p);
        keys.extend(ids().map(|id| self.keys().data_in(p, id)));
        let (inc, call, s, _, look) = self.frame(p, None);
        let frame = (inc, call, s, millis(keep), look);
        let a: Answer<Vec<(u8, usize, usize, usize)>> =
            self.call(&self.inner.scripts.forget, p, None, &keys, &frame, pack(head)?).await?;
        let read = |(code, taken, deleted, kept)| (code == 0).then_some(Forgotten { taken, deleted, kept });
        Ok(Answer {
            now_ms: a.now_ms,
            results: a.results.into_iter().map(read).collect(),
            entries: a.entries,
        })
    }

    /// Renews a session and compares what it runs (`<id>:<epoch>`). `SessionLost`: open another one.
    pub async fn renew(
        &self,
        p: u32,
        session: &SessionId,
        ttl: Duration,
        running: &[String],
    ) -> Result<Renewed, StoreError> {
        let (inc, call, s, keep, look) = self.frame(p, Some(session));
        let frame = (inc, call, s, keep, look, millis(ttl));
        let answer =
            self.call(&self.inner.scripts.renew, p, Some(session), &[], &frame, pack(running)?).await?;
        // It writes, and makes no commit.
        self.note_refusal(None);
        only(answer)
    }

    /// Opens a session in a partition. `info` is JSON ([`super::SessionInfo`]).
    pub async fn open_session(
        &self,
        p: u32,
        session: &SessionId,
        ttl: Duration,
        info: &str,
    ) -> Result<SessionState, StoreError> {
        self.session(p, session, SessionAct::Open, ttl, info).await
    }

    /// Opens a live session again, in a data set that lost it and is being rebuilt: its attempts go on.
    /// Errors: `SessionLost` where the gate is not closed any more, so that its attempts may be running elsewhere.
    pub async fn reopen_session(
        &self,
        p: u32,
        session: &SessionId,
        ttl: Duration,
        info: &str,
    ) -> Result<SessionState, StoreError> {
        self.session(p, session, SessionAct::OpenAgain, ttl, info).await
    }

    /// Says something else of a live session; of another one nothing is kept.
    pub async fn describe_session(
        &self,
        p: u32,
        session: &SessionId,
        info: &str,
    ) -> Result<SessionState, StoreError> {
        self.session(p, session, SessionAct::Describe, Duration::ZERO, info).await
    }

    /// Closes a session that runs nothing any more; otherwise changes nothing and `owned` says how many are left.
    pub async fn close_session(&self, p: u32, session: &SessionId) -> Result<SessionState, StoreError> {
        self.session(p, session, SessionAct::Close, Duration::ZERO, "").await
    }

    /// Lets a session expire now, because its process is known to be dead with all its handlers.
    pub async fn expire_session(&self, p: u32, session: &SessionId) -> Result<SessionState, StoreError> {
        self.session(p, session, SessionAct::Expire, Duration::ZERO, "").await
    }

    async fn session(
        &self,
        p: u32,
        session: &SessionId,
        act: SessionAct,
        ttl: Duration,
        info: &str,
    ) -> Result<SessionState, StoreError> {
        let (inc, call, s, keep, look) = self.frame(p, Some(session));
        let frame = (inc, call, s, keep, look, act as u8, millis(ttl), info, "", 0u8);
        let keys = [self.keys().session_info(p)];
        only(self.call(&self.inner.scripts.session, p, Some(session), &keys, &frame, Vec::new()).await?)
    }
}

/// Reads `<id>:<epoch>`.
pub fn parse_member(member: &str) -> Option<(JobId, u64)> {
    let (id, epoch) = member.rsplit_once(':')?;
    Some((JobId::new(id).ok()?, epoch.parse().ok()?))
}

/// The one result of a call that has one.
pub(super) fn only<R>(answer: Answer<Vec<R>>) -> Result<R, StoreError> {
    answer.results.into_iter().next().ok_or_else(|| StoreError::Decode("the reply has no result".into()))
}
