//! Whose data set this is: opening it at the start of a process, and looking at its identity without writing.

use std::sync::PoisonError;

use redis::AsyncCommands;

use super::{
    gate::Gate,
    ops::{SessionAct, SessionState, only},
    script::{Store, StoreError},
};

/// Identity of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) incarnation: String,
    pub(crate) commit: u64,
    pub(crate) gate: Gate,
    pub(crate) jobs_created: String,
}

impl Store {
    /// Reads the identity of every partition's data set, creating it where `may_create` and it is missing, and remembers
    /// it: from then on a call that meets another data set writes nothing.
    /// Errors: `OtherStore` when missing, or when it belongs to another `JOBS` stream than `jobs_created`.
    pub async fn open(&self, jobs_created: &str, may_create: bool) -> Result<(), StoreError> {
        self.belong_to(jobs_created);
        for p in 0..self.keys().partitions() {
            let fresh = ulid::Ulid::generate().to_string();
            let (_, call, s, keep, look) = self.frame(p, None);
            let frame = (
                fresh,
                call,
                s,
                keep,
                look,
                SessionAct::Identity as u8,
                0u64,
                "",
                jobs_created,
                u8::from(may_create),
            );
            let keys = [self.keys().session_info(p)];
            let script = &self.inner.scripts.session;
            let (answer, _) = self.call_here(script, p, None, &keys, &frame, Vec::new(), None).await?;
            let found: SessionState = only(answer)?;
            if found.jobs_created != jobs_created {
                return Err(StoreError::OtherStore("it belongs to another JOBS stream"));
            }
            self.set_incarnation(p, &found.incarnation);
        }
        Ok(())
    }

    /// Notes the creation time of the `JOBS` stream that this process works for.
    pub(crate) fn belong_to(&self, jobs_created: &str) {
        jobs_created.clone_into(&mut self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether this is that creation time.
    pub(crate) fn is_of(&self, jobs_created: &str) -> bool {
        *self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner) == jobs_created
    }

    /// [`Store::open`] without writing: a data set that is not there yet is an empty one.
    /// Errors: `OtherStore` when it belongs to another `JOBS` stream than `jobs_created`.
    pub async fn look(&self, jobs_created: &str) -> Result<(), StoreError> {
        // Whoever meets an emptied data set first says whose it is, whatever it came for.
        self.belong_to(jobs_created);
        for p in 0..self.keys().partitions() {
            let (incarnation, jobs): (Option<String>, Option<String>) =
                self.connection().hmget(self.keys().store(p), &["inc", "jobs"]).await?;
            if jobs.is_some_and(|j| j != jobs_created) {
                return Err(StoreError::OtherStore("it belongs to another JOBS stream"));
            }
            self.set_incarnation(p, &incarnation.unwrap_or_default());
        }
        Ok(())
    }

    /// Whether the data set that answers now is this one still. An entry that was stored before this was asked was stored
    /// before its data set was given up.
    pub(crate) async fn is_still(&self, p: u32, incarnation: &str) -> Result<bool, StoreError> {
        let found: Option<String> = self.connection().hget(self.keys().store(p), "inc").await?;
        Ok(found.as_deref() == Some(incarnation))
    }

    /// Incarnation, commit counter, gate and `JOBS` of a partition's data set, as it is: nothing is written. `None`: there is none.
    pub(crate) async fn identity(&self, p: u32) -> Result<Option<Identity>, StoreError> {
        let fields = &["inc", "commit", "gate", "jobs"];
        let (inc, commit, gate, jobs): (Option<String>, Option<u64>, Option<u8>, Option<String>) =
            redis::cmd("HMGET")
                .arg(self.keys().store(p))
                .arg(fields)
                .query_async(&mut self.connection())
                .await?;
        Ok(inc.map(|incarnation| Identity {
            incarnation,
            commit: commit.unwrap_or(0),
            gate: Gate::from_code(gate.unwrap_or(0)).unwrap_or(Gate::Closed),
            jobs_created: jobs.unwrap_or_default(),
        }))
    }
}
