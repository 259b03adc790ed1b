//! Records that cannot be read, because something damaged them: every call goes on without them, whoever meets one notes it,
//! and after some meetings the reaper puts in its place what the journal knows ([`crate::mend`]).
//!
//! A record is never written, taken for "not there" or filled with defaults while it cannot be read. Good records pay nothing
//! for it: a script that meets a bad one stops before its first write and names all of them, and the call is made again
//! without them.

use redis::{AsyncCommands, Script};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    deadlines::{DueReply, StopReply, ToldReply},
    defers::DeferReply,
    ops::{ClaimReply, FinishReply, LostReply, ProgressReply, ReplayReply, SettleReply, only},
    record::{Record, is_of_newer_release},
    script::{Answer, Store, StoreError, unreadable},
    waiting::WaitingReply,
};
use crate::domain::{JobId, ids::SessionId};

/// How long the due index leaves a job alone whose record cannot be judged (ms).
const LOOK_AGAIN_MS: u64 = 30_000;

/// What the scripts say of records that do not decode, before their keys, which end with `;`.
const MARK: &str = "record does not decode: ";

/// A reply that can say that the record of its item cannot be read.
pub(super) trait OrUnreadable {
    fn unreadable() -> Self;
}

macro_rules! or_unreadable {
    ($($reply:ty),+) => { $(impl OrUnreadable for $reply {
        fn unreadable() -> Self {
            Self::Unreadable
        }
    })+ };
}

or_unreadable!(
    ClaimReply,
    FinishReply,
    LostReply,
    ProgressReply,
    SettleReply,
    ReplayReply,
    DueReply,
    ToldReply,
    StopReply,
    WaitingReply,
    DeferReply
);

/// A call that is ready to be made.
pub(super) struct Prepared<F> {
    /// After those of the frame.
    pub(super) keys: Vec<String>,
    pub(super) frame: F,
    pub(super) items: Vec<u8>,
}

/// What was read under the key of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    Missing,
    Record(Box<Record>),
    /// Something that is no record; the problem was counted.
    Unreadable,
}

impl Read {
    /// The record, if there is one that can be read.
    pub fn record(self) -> Option<Record> {
        match self {
            Self::Record(r) => Some(*r),
            Self::Missing | Self::Unreadable => None,
        }
    }
}

/// The ids of the records that a script's error names; empty when it is about something else.
pub(super) fn named_in(error: &str) -> Vec<String> {
    let Some((_, rest)) = error.split_once(MARK) else { return Vec::new() };
    let keys = rest.split_once(';').map_or(rest, |(keys, _)| keys);
    keys.split(' ').filter_map(|k| k.rsplit_once("job:")).map(|(_, id)| id.to_owned()).collect()
}

impl Store {
    /// Calls a script with all items, and again without those whose records cannot be read; these are noted, and their
    /// replies say so.
    pub(super) async fn skipping<T, F, R>(
        &self,
        script: &Script,
        p: u32,
        session: Option<&SessionId>,
        items: &[T],
        id: impl Fn(&T) -> &str,
        prepare: impl Fn(&[&T]) -> Result<Prepared<F>, StoreError>,
    ) -> Result<Answer<Vec<R>>, StoreError>
    where
        F: Serialize,
        R: DeserializeOwned + OrUnreadable,
    {
        let mut bad: Vec<String> = Vec::new();
        loop {
            let is_bad = |item: &T| bad.iter().any(|b| b == id(item));
            let kept: Vec<&T> = items.iter().filter(|i| !is_bad(i)).collect();
            if kept.is_empty() && !bad.is_empty() {
                let results = items.iter().map(|_| R::unreadable()).collect();
                return Ok(Answer { now_ms: self.now_ms_of(p).await?, results, entries: Vec::new() });
            }
            let call = prepare(&kept)?;
            let made =
                self.call_or(script, p, session, &call.keys, &call.frame, call.items, Some(R::unreadable));
            match made.await {
                Ok((answer, garbled)) => {
                    // The scripts pass texts on unread: that one is damaged may show only here.
                    for item in garbled.iter().filter_map(|i| kept.get(*i)) {
                        self.note_unreadable(p, id(item)).await;
                    }
                    if bad.is_empty() {
                        return Ok(answer);
                    }
                    let mut good = answer.results.into_iter();
                    let merge = |item| if is_bad(item) { Some(R::unreadable()) } else { good.next() };
                    let results: Option<Vec<R>> = items.iter().map(merge).collect();
                    let results =
                        results.ok_or_else(|| StoreError::Decode("the reply is too short".into()))?;
                    return Ok(Answer { now_ms: answer.now_ms, results, entries: answer.entries });
                }
                Err(StoreError::Unreadable { ids, why }) => {
                    let fresh: Vec<String> =
                        ids.into_iter().filter(|b| kept.iter().any(|i| id(i) == b)).collect();
                    if fresh.is_empty() {
                        return Err(StoreError::Unreadable { ids: fresh, why });
                    }
                    for id in &fresh {
                        self.note_unreadable(p, id).await;
                    }
                    bad.extend(fresh);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Notes that a record could not be read: logged and counted, here and in the store, where the reaper finds it. The due
    /// index leaves the job alone for a while. A record of a newer release is passed over and never counted as damaged.
    pub async fn note_unreadable(&self, p: u32, id: &str) {
        if let Err(e) = self.note(p, id).await {
            tracing::warn!(job_id = id, error = %e, "a record that does not decode could not be noted");
        }
    }

    async fn note(&self, p: u32, id: &str) -> Result<(), StoreError> {
        let raw: Option<Vec<u8>> = self.connection().get(self.keys().job_in(p, id)).await?;
        match raw {
            Some(raw) => self.note_bytes(p, id, raw).await,
            None => Ok(()),
        }
    }

    /// Notes that these bytes are no record, if they still stand under its key: what takes their place meanwhile is not touched.
    pub async fn note_bytes(&self, p: u32, id: &str, raw: Vec<u8>) -> Result<(), StoreError> {
        let Err(problem) = Record::decode(&raw) else { return Ok(()) };
        let is_newer = is_of_newer_release(&raw);
        let keys = [self.keys().job_in(p, id), self.keys().bad(p)];
        let (inc, call, s, keep, look) = self.frame(p, None);
        let frame = (inc, call, s, keep, look, id, LOOK_AGAIN_MS, u8::from(!is_newer));
        let (times,): (u64,) =
            only(Box::pin(self.call(&self.inner.scripts.note, p, None, &keys, &frame, raw)).await?)?;
        if is_newer {
            tracing::warn!(job_id = id, "a record of a newer release is passed over");
            return Ok(());
        }
        if times == 0 {
            tracing::debug!(job_id = id, "a record that did not decode was put right meanwhile");
            return Ok(());
        }
        tracing::error!(
            job_id = id,
            field = problem.field,
            problem = problem.problem,
            times,
            "record does not decode: passed over"
        );
        Ok(())
    }

    /// Jobs whose records could not be read, with how often that was noted. What is no id is left out, and forgotten.
    pub async fn noted_unreadable(&self, p: u32) -> Result<Vec<(JobId, u64)>, StoreError> {
        let all: Vec<(String, u64)> = self.connection().hgetall(self.keys().bad(p)).await?;
        let mut out = Vec::with_capacity(all.len());
        for (id, times) in all {
            match JobId::new(&id) {
                Ok(id) => out.push((id, times)),
                Err(_) => self.forget_unreadable(p, &id).await?,
            }
        }
        Ok(out)
    }

    /// Forgets that a record could not be read.
    pub async fn forget_unreadable(&self, p: u32, id: &str) -> Result<(), StoreError> {
        let _: u64 = self.connection().hdel(self.keys().bad(p), id).await?;
        Ok(())
    }

    /// The bytes under the key of a record that are none; `None` when there is nothing, or a record.
    pub async fn raw_if_unreadable(&self, p: u32, id: &JobId) -> Result<Option<Vec<u8>>, StoreError> {
        let raw: Option<Vec<u8>> = self.connection().get(self.keys().job_in(p, id.as_str())).await?;
        Ok(raw.filter(|r| Record::decode(r).is_err() && !is_of_newer_release(r)))
    }

    /// Takes these bytes out of the way, if they still stand under the key of the record, and puts `instead` in their place. A
    /// running attempt is given back to its session; one that has expired is then found by the reaper. `false`: the
    /// record is otherwise by now, and nothing was moved.
    pub async fn set_aside(
        &self,
        p: u32,
        id: &JobId,
        raw: &[u8],
        instead: Option<&Record>,
    ) -> Result<bool, StoreError> {
        let session = instead.and_then(|r| SessionId::new(&r.session).ok());
        let keys = [self.keys().job(id), self.keys().set_aside(p, "job", id.as_str()), self.keys().bad(p)];
        let (inc, call, s, keep, look) = self.frame(p, session.as_ref());
        let frame = (inc, call, s, keep, look, id.as_str());
        let length = u32::try_from(raw.len()).map_err(|_| StoreError::Decode("record is too long".into()))?;
        let mut items = length.to_le_bytes().to_vec();
        items.extend_from_slice(raw);
        items.extend(instead.map(Record::encode).unwrap_or_default());
        let scripts = &self.inner.scripts;
        let answer: Answer<Vec<(u8,)>> =
            self.call(&scripts.quarantine, p, session.as_ref(), &keys, &frame, items).await?;
        Ok(answer.results.first() == Some(&(0,)))
    }

    /// Takes an outbox entry out of the way that cannot be read; its bytes are kept. A repeat does no harm.
    pub async fn set_entry_aside(&self, p: u32, id: &str) -> Result<(), StoreError> {
        let (outbox, mut c) = (self.keys().outbox(p), self.connection());
        let found: Vec<(String, Vec<Vec<u8>>)> = c.xrange(&outbox, id, id).await?;
        if let Some((_, fields)) = found.into_iter().next() {
            let bytes = match fields.as_slice() {
                [name, text] if name == b"e" => text.clone(),
                fields => fields.concat(),
            };
            // Ordering: kept before it is removed.
            let _: () = c.set(self.keys().set_aside(p, "entry", id), bytes).await?;
            let _: u64 = c.xdel(&outbox, &[id]).await?;
        }
        Ok(())
    }

    /// Removes what stands in an index and is no name that any process could have written there.
    pub(super) async fn drop_garbage(&self, key: &str, kind: &str, what: &str) {
        unreadable();
        let mut c = self.connection();
        let command = if kind == "run" { "SREM" } else { "ZREM" };
        let removed: Result<u64, _> = redis::cmd(command).arg(key).arg(what).query_async(&mut c).await;
        tracing::error!(
            key,
            what,
            is_removed = removed.is_ok(),
            alert = "index_garbage",
            "an entry of an index is no name"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_that_an_error_names_are_found() {
        let e = "ERR user_script:301: record does not decode: surety:{p00}:job:a surety:{p00}:job:b-1; script: f_1, on @user_script:301.";
        assert_eq!(named_in(e), ["a", "b-1"]);
        assert!(named_in("ERR user_script:3: attempt to index a nil value").is_empty());
    }
}
