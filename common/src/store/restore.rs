//! Writing what the journal knows into a data set that is being made whole.

use std::time::Duration;

use redis::AsyncCommands;

use super::{
    ops::millis,
    record::Record,
    script::{Answer, Store, StoreError, pack},
};
use crate::domain::{JobId, ids::SessionId};

/// What to write of one job.
#[derive(Debug, Clone, PartialEq)]
pub enum Restored {
    /// A record. Of its fields `told`, `print`, `tell_error`, `ack_subject` and `entry` are not written: the journal does not
    /// know them. `created_ms` 0: not known, the next claim knows.
    Record(Box<Record>),
    /// The record was deleted with this revision.
    Deleted { rev: u64 },
    /// The message `carrier` is gone.
    NoCarrier { carrier: String },
}

/// One job.
#[derive(Debug, Clone, PartialEq)]
pub struct RestoredItem {
    pub id: JobId,
    pub what: Restored,
    /// Session that runs it by what the data set has now.
    pub before: Option<SessionId>,
}

impl Store {
    /// Every job of the due index: what is open, or has an outcome that is not told yet.
    pub async fn indexed(&self, p: u32) -> Result<Vec<JobId>, StoreError> {
        let ids: Vec<String> = self.connection().zrange(self.keys().due(p), 0, -1).await?;
        ids.iter().map(|id| JobId::new(id).map_err(|e| StoreError::Decode(e.to_string()))).collect()
    }

    /// Writes jobs of one partition, each only where the data set knows less of it. `sessions_for`: how long the sessions that
    /// run them are waited for. Gives the number that was written.
    /// Errors: `Rebuilding` where the gate is not closed any more, or somebody else makes the data set whole.
    pub async fn restore(
        &self,
        p: u32,
        by: &str,
        sessions_for: Duration,
        items: &[RestoredItem],
    ) -> Result<usize, StoreError> {
        let mut keys = self.job_keys(items.iter().map(|i| i.id.as_str()), p);
        let empty = Record::queued();
        let mut packed = Vec::with_capacity(items.len());
        for it in items {
            let (what, rev, r) = match &it.what {
                Restored::Record(r) => (1u8, r.rev, r.as_ref()),
                Restored::Deleted { rev } => (2, *rev, &empty),
                Restored::NoCarrier { .. } => (3, 0, &empty),
            };
            let carrier = match &it.what {
                Restored::NoCarrier { carrier } => carrier.as_str(),
                _ => r.carrier.as_str(),
            };
            let mut place = |session: Option<SessionId>| {
                session.map_or(0, |s| {
                    keys.push(self.keys().run(p, &s));
                    // Positions in KEYS count from 1, after the six keys of the frame.
                    keys.len() + 6
                })
            };
            let owner = SessionId::new(&r.session).ok().filter(|_| r.status.is_running());
            let (now_at, before_at) = (place(owner), place(it.before.clone()));
            let before = it.before.as_ref().map_or("", SessionId::as_str);
            packed.push(serde_json::json!([
                it.id.as_str(),
                what,
                r.status.code(),
                r.contract.code(),
                r.generation,
                rev,
                r.epoch,
                r.attempt,
                r.charged,
                r.max_retries,
                r.start_failures,
                r.due_ms,
                r.started_ms,
                r.deadline_ms,
                r.created_ms,
                r.finish_by_ms,
                r.ended_ms,
                r.promise_ms,
                u8::from(r.is_cancelling),
                r.queue,
                r.job_type,
                r.key,
                r.trace,
                carrier,
                r.session,
                r.code,
                r.notify,
                r.summary,
                now_at,
                before,
                before_at,
                r.lost,
            ]));
        }
        let (inc, call, s, keep, look) = self.frame(p, None);
        let frame = (inc, call, s, keep, look, by, millis(sessions_for));
        let answer: Answer<Vec<(u8,)>> =
            self.call(&self.inner.scripts.restore, p, None, &keys, &frame, pack(&packed)?).await?;
        Ok(answer.results.iter().filter(|(code,)| *code == 0).count())
    }
}
