//! Locks for people: who has each, and taking one away by force.

use std::time::Duration;

use serde::Serialize;

use crate::{
    clock::{format_span, iso_millis},
    connect::Connected,
    store::{
        GuardAct, GuardItem, GuardOutcome, Record, SessionInfo, StoreError,
        locks::{Holder, StoredLock},
    },
    wake::wake,
};

/// A lock, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct LockView {
    pub name: String,
    /// Who has it; left out where nobody does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<LockOwner>,
    /// The last fencing token that it gave: that of its owner. 0: none since it is in use.
    pub token: u64,
    /// Jobs that wait for it.
    pub waiting: u64,
}

/// Who has a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct LockOwner {
    pub job: String,
    /// Generation of the job.
    pub generation: u32,
    /// Number of the attempt; left out where the record does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The worker's incarnation; left out of an offer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// It came free and is kept for this job, which was woken and does not run yet.
    pub is_offer: bool,
    /// For how long it has it; left out where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_ms: Option<u64>,
    /// When it ends unless it is renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl LockOwner {
    fn of(lock: &StoredLock, h: &Holder, known: Known, now_ms: u64) -> Self {
        let (job, generation) = match h.job() {
            Some((id, generation)) => (id.to_string(), generation),
            None => (h.member.clone(), 0),
        };
        let session = h.session().map(|s| s.as_str().to_owned());
        let is_its = |r: &Record| r.generation == generation && Some(&r.session) == session.as_ref();
        let record = known.record.filter(is_its);
        let info = known.worker.unwrap_or_default();
        let is_known = lock.since_ms > 0 && !h.is_offer();
        Self {
            job,
            generation,
            attempt: record.as_ref().map(|r| r.attempt),
            epoch: record.as_ref().map(|r| r.epoch),
            session,
            host: info.host,
            pid: info.pid,
            is_offer: h.is_offer(),
            held_ms: is_known.then(|| now_ms.saturating_sub(lock.since_ms)),
            until: iso_millis(h.until_ms),
        }
    }

    /// In a few words: `job order-7, attempt 2, at host, process 77`.
    pub fn text(&self) -> String {
        let attempt = self.attempt.map(|a| format!(", attempt {a}")).unwrap_or_default();
        let place = match (&self.host, self.pid, &self.session) {
            (Some(host), Some(pid), _) => format!(", at {host}, process {pid}"),
            (_, _, Some(session)) => format!(", at session {session}"),
            _ => String::new(),
        };
        let offer = if self.is_offer { ", which was woken for it" } else { "" };
        format!("job {}{attempt}{place}{offer}", self.job)
    }
}

/// What is known of a holder besides its hold.
#[derive(Debug, Default)]
struct Known {
    record: Option<Record>,
    worker: Option<SessionInfo>,
}

/// Every lock that is held or waited for, by name.
pub async fn list(c: &Connected) -> Result<Vec<LockView>, StoreError> {
    let mut out = Vec::new();
    for lock in c.store.locks().await? {
        if lock.holder.is_some() || lock.waiting > 0 {
            out.push(view(c, &lock).await?);
        }
    }
    Ok(out)
}

/// One lock; `None` where nobody holds it and nobody waits.
pub async fn look(c: &Connected, name: &str) -> Result<Option<LockView>, StoreError> {
    match c.store.lock(name).await?.filter(|l| l.holder.is_some() || l.waiting > 0) {
        Some(lock) => Ok(Some(view(c, &lock).await?)),
        None => Ok(None),
    }
}

async fn view(c: &Connected, lock: &StoredLock) -> Result<LockView, StoreError> {
    let owner = match &lock.holder {
        Some(h) => Some(LockOwner::of(lock, h, known(c, h).await?, c.store.now_ms_of(lock.partition).await?)),
        None => None,
    };
    Ok(LockView { name: lock.scope.label.clone(), owner, token: lock.fence, waiting: lock.waiting })
}

async fn known(c: &Connected, h: &Holder) -> Result<Known, StoreError> {
    let Some((id, _)) = h.job() else { return Ok(Known::default()) };
    let record = match c.store.record(&id).await {
        Err(StoreError::Unreadable { .. }) => None,
        other => other?,
    };
    let p = c.store.keys().partition(&id);
    let info = match h.session() {
        Some(session) => c.store.session_info(p, &session).await?,
        None => None,
    };
    Ok(Known { record, worker: info.as_deref().and_then(|i| serde_json::from_str(i).ok()) })
}

/// What came of [`release`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Released {
    pub name: String,
    /// It was taken from its owner by this request.
    pub is_released: bool,
    /// Whose it is, or was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<LockOwner>,
    /// Jobs that waited for it.
    pub waiting: u64,
    /// The same in one line, for people.
    pub text: String,
}

/// Takes a lock away from whoever has it, where `is_forced`; else says only whose it is. The attempt that had it is told to
/// look, and ends as `lock_lost`; the next in line is woken at once and does not wait for that. `hold_ms`: how long holds last.
pub async fn release(
    c: &Connected,
    name: &str,
    is_forced: bool,
    hold_ms: u64,
) -> Result<Released, StoreError> {
    let stored = c.store.lock(name).await?;
    let answer = |is_released, owner, waiting, text| Released {
        name: name.to_owned(),
        is_released,
        owner,
        waiting,
        text,
    };
    let Some((lock, holder)) = stored.as_ref().and_then(|l| Some((l, l.holder.as_ref()?))) else {
        return Ok(answer(false, None, 0, format!("nobody holds the lock {name:?}; nothing was done")));
    };
    let now_ms = c.store.now_ms_of(lock.partition).await?;
    let owner = LockOwner::of(lock, holder, known(c, holder).await?, now_ms);
    let whose = owner.text();
    if !is_forced {
        let text = format!("the lock {name:?} is held by {whose}; nothing was done: --force takes it away");
        return Ok(answer(false, Some(owner), lock.waiting, text));
    }
    let item = GuardItem {
        act: GuardAct::Release {
            token: holder.token.as_str().into(),
            until_ms: None,
            outcome: GuardOutcome::Neutral,
        },
        member: holder.member.as_str().into(),
        scopes: vec![0].into(),
    };
    let scopes = [lock.scope.clone()];
    let done = c.store.guard(lock.partition, None, hold_ms, &scopes, &[item]).await?;
    wake(c, lock.partition, hold_ms, &scopes, done.woken).await;
    if let (Some((id, _)), Some(session), Some(epoch)) = (holder.job(), holder.session(), owner.epoch)
        && let Err(error) = c.broker.hint_stop(&session, &id, epoch).await
    {
        tracing::warn!(job_id = %id, %error, "its worker was not told to look: it will at its next renewal");
    }
    let since = owner.held_ms.map(|ms| format!(" for {}", format_span(Duration::from_millis(ms))));
    let text = format!("the lock {name:?} was taken from {whose}, which had it{}", since.unwrap_or_default());
    Ok(answer(true, Some(owner), lock.waiting, text))
}
