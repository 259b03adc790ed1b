//! What is read without a script: one command each, nothing is decided by it.

use redis::AsyncCommands;

use super::{
    entry::{Origin, OutboxEntry},
    gate::Gate,
    ops::parse_member,
    record::Record,
    script::{Store, StoreError},
    unreadable::Read,
};
use crate::{
    clock::boot_ms,
    domain::{JobId, ids::SessionId},
};

/// An entry of a stream: its id, then names and values of its fields.
type Raw = (String, Vec<Vec<u8>>);
/// Incarnation and gate, where there is a data set.
type Identity = (Option<String>, Option<u8>);

impl Store {
    /// The record of a job, or `None` when the store has not seen it.
    pub async fn record(&self, id: &JobId) -> Result<Option<Record>, StoreError> {
        let bytes: Option<Vec<u8>> = self.connection().get(self.keys().job(id)).await?;
        let unreadable =
            |e| StoreError::Unreadable { ids: vec![id.to_string()], why: format!("job {id}: {e}") };
        bytes.map(|b| Record::decode(&b).map_err(unreadable)).transpose()
    }

    /// Records of many jobs, in the order of the ids: one call for each partition among them.
    pub async fn records_of(&self, ids: &[JobId]) -> Result<Vec<Read>, StoreError> {
        let mut found: Vec<Read> = vec![Read::Missing; ids.len()];
        for p in 0..self.keys().partitions() {
            let here: Vec<usize> = (0..ids.len())
                .filter(|i| ids.get(*i).is_some_and(|id| self.keys().partition(id) == p))
                .collect();
            let keys: Vec<String> =
                here.iter().filter_map(|i| ids.get(*i)).map(|id| self.keys().job(id)).collect();
            for (i, record) in here.into_iter().zip(self.records(&keys).await?) {
                if let Some(place) = found.get_mut(i) {
                    *place = record;
                }
            }
        }
        Ok(found)
    }

    /// Error text and tails of a job's last failed attempt (JSON), if any.
    pub async fn detail(&self, id: &JobId) -> Result<Option<String>, StoreError> {
        Ok(self.connection().get(self.keys().data(id)).await?)
    }

    /// Up to `n` outbox entries written before `before_ms` (the store's clock), oldest first, after entry `after`.
    /// Errors: `Rebuilding` while the gate is closed: what is there then is of the data set before.
    pub async fn outbox(
        &self,
        p: u32,
        after: &str,
        before_ms: u64,
        n: usize,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        let (gate, entries) = self.read_outbox(p, None, after, before_ms, n).await?;
        if gate == Gate::Closed { Err(StoreError::Rebuilding) } else { Ok(entries) }
    }

    /// What an older copy still has to journal, as entries of the data set that it is a copy of.
    pub async fn outbox_of_copy(
        &self,
        p: u32,
        copy_of: &str,
        after: &str,
        n: usize,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        Ok(self.read_outbox(p, Some(copy_of), after, u64::MAX >> 1, n).await?.1)
    }

    async fn read_outbox(
        &self,
        p: u32,
        copy_of: Option<&str>,
        after: &str,
        before_ms: u64,
        n: usize,
    ) -> Result<(Gate, Vec<OutboxEntry>), StoreError> {
        let from = if after.is_empty() { "-".to_owned() } else { format!("({after}") };
        let asked_ms = boot_ms();
        let store = self.keys().store(p);
        // The data set had this name before and after: the entries are its own.
        let (before, found, (inc, gate)): (Option<String>, Vec<Raw>, Identity) = redis::pipe()
            .hget(&store, "inc")
            .xrange_count(self.keys().outbox(p), from, before_ms, n)
            .cmd("HMGET")
            .arg(&store)
            .arg(&["inc", "gate"])
            .query_async(&mut self.connection())
            .await?;
        if before != inc {
            return Err(StoreError::Rebuilding);
        }
        let incarnation = copy_of.map(str::to_owned).or(inc).unwrap_or_default().into();
        let origin = Origin { incarnation, asked_ms };
        let read = |(id, fields): Raw| match fields.as_slice() {
            [name, text, ..] if name == b"e" => OutboxEntry::decode(id, text, &origin),
            _ => OutboxEntry::unreadable(id, "unexpected fields".into(), &origin),
        };
        let gate = Gate::from_code(gate.unwrap_or(0)).unwrap_or(Gate::Closed);
        Ok((gate, found.into_iter().map(read).collect()))
    }

    /// Whether an entry still waits in the outbox. It may be journaled: it is trimmed some time after that.
    pub async fn has_entry(&self, p: u32, id: &str) -> Result<bool, StoreError> {
        if id.is_empty() {
            return Ok(false);
        }
        let found: Vec<(String, redis::Value)> =
            self.connection().xrange_count(self.keys().outbox(p), id, id, 1).await?;
        Ok(!found.is_empty())
    }

    /// When the lease of a session ends unless it is renewed (ms); `None`: the store does not know the session.
    pub async fn lease(&self, p: u32, session: &SessionId) -> Result<Option<u64>, StoreError> {
        let score: Option<f64> = self.connection().zscore(self.keys().sessions(p), session.as_str()).await?;
        Ok(score.map(|s| s as u64))
    }

    /// Removes entries that JetStream confirmed.
    pub async fn trim(&self, p: u32, ids: &[String]) -> Result<(), StoreError> {
        if !ids.is_empty() {
            let _: u64 = self.connection().xdel(self.keys().outbox(p), ids).await?;
        }
        Ok(())
    }

    /// The first `n` members of the due index whose deadline has passed by `now_ms`: earliest first.
    pub async fn due(&self, p: u32, now_ms: u64, n: isize) -> Result<Vec<JobId>, StoreError> {
        let key = self.keys().due(p);
        let names: Vec<String> = self.connection().zrangebyscore_limit(&key, 0, now_ms, 0, n).await?;
        let mut ids = Vec::with_capacity(names.len());
        for name in names {
            match JobId::new(&name) {
                Ok(id) => ids.push(id),
                Err(_) => self.drop_garbage(&key, "due", &name).await,
            }
        }
        Ok(ids)
    }

    /// The first `n` elements of the list of ended jobs: `@<ms>`, then the ids of the jobs that ended at that moment.
    pub async fn ended(&self, p: u32, n: isize) -> Result<Vec<String>, StoreError> {
        Ok(self.connection().lrange(self.keys().ended(p), 0, n - 1).await?)
    }

    /// Length of the list of ended jobs: about their number, as the moments of their ends stand in it too.
    pub async fn ended_len(&self, p: u32) -> Result<u64, StoreError> {
        Ok(self.connection().llen(self.keys().ended(p)).await?)
    }

    /// Bytes of memory that the server of a partition uses.
    pub async fn used_memory(&self, p: u32) -> Result<u64, StoreError> {
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("memory").query_async(&mut self.home_of(p)).await?;
        info.get("used_memory").ok_or_else(|| StoreError::Decode("INFO has no used_memory".into()))
    }

    /// Number of entries in the outbox.
    pub async fn outbox_len(&self, p: u32) -> Result<u64, StoreError> {
        Ok(self.connection().xlen(self.keys().outbox(p)).await?)
    }

    /// The store's clock in milliseconds: on a cluster that of the first partition's node.
    pub async fn now_ms(&self) -> Result<u64, StoreError> {
        self.now_ms_of(0).await
    }

    /// The clock by which a partition is judged, in milliseconds.
    pub async fn now_ms_of(&self, p: u32) -> Result<u64, StoreError> {
        let (s, us): (u64, u64) = redis::cmd("TIME").query_async(&mut self.home_of(p)).await?;
        Ok(s * 1000 + us / 1000)
    }

    /// Sessions of a partition with their expiry, those that expire before `before_ms` only.
    pub async fn sessions(
        &self,
        p: u32,
        before_ms: u64,
        n: isize,
    ) -> Result<Vec<(SessionId, u64)>, StoreError> {
        let found: Vec<(String, f64)> = self
            .connection()
            .zrangebyscore_limit_withscores(self.keys().sessions(p), 0, before_ms, 0, n)
            .await?;
        let mut sessions = Vec::with_capacity(found.len());
        for (name, score) in found {
            match SessionId::new(&name) {
                Ok(id) => sessions.push((id, score as u64)),
                Err(_) => self.drop_garbage(&self.keys().sessions(p), "sessions", &name).await,
            }
        }
        Ok(sessions)
    }

    /// What a session runs: ids with epochs.
    pub async fn running(&self, p: u32, session: &SessionId) -> Result<Vec<(JobId, u64)>, StoreError> {
        let key = self.keys().run(p, session);
        let members: Vec<String> = self.connection().smembers(&key).await?;
        let mut running = Vec::with_capacity(members.len());
        // What begins so asks for a stop of the attempt.
        for member in members.iter().filter(|m| !m.starts_with('!')) {
            match parse_member(member) {
                Some(held) => running.push(held),
                None => self.drop_garbage(&key, "run", member).await,
            }
        }
        Ok(running)
    }

    /// What a session says of itself (JSON, [`super::SessionInfo`]), if it was opened in this partition.
    pub async fn session_info(&self, p: u32, session: &SessionId) -> Result<Option<String>, StoreError> {
        Ok(self.connection().hget(self.keys().session_info(p), session.as_str()).await?)
    }
}
