//! Every Redis key, in one place (`docs/redis-keys.md`).

use crate::domain::{
    JobId,
    ids::{Namespace, SessionId},
};

/// Builds keys. The keys of a partition share its hash tag `{pNN}`, so a script touches one slot of a cluster.
#[derive(Debug, Clone)]
pub struct Keys {
    /// `<ns>:{pNN}:` of each partition.
    prefixes: Vec<String>,
}

impl Keys {
    /// Keys of this namespace with this number of partitions (at least 1).
    pub fn new(ns: Namespace, partitions: u32) -> Self {
        Self { prefixes: (0..partitions.max(1)).map(|p| format!("{ns}:{{p{p:02}}}:")).collect() }
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u32 {
        u32::try_from(self.prefixes.len()).unwrap_or(u32::MAX)
    }

    /// Partition of a job.
    pub fn partition(&self, id: &JobId) -> u32 {
        id.partition(self.partitions())
    }

    fn key(&self, p: u32, rest: &str) -> String {
        self.key_of(p, rest, "")
    }

    // Made for every job of every call, so it only appends.
    fn key_of(&self, p: u32, kind: &str, id: &str) -> String {
        let prefix = self.prefixes.get(p as usize).map_or("", String::as_str);
        let mut key = String::with_capacity(prefix.len() + kind.len() + id.len());
        key.push_str(prefix);
        key.push_str(kind);
        key.push_str(id);
        key
    }

    /// Identity of the data set (hash).
    pub fn store(&self, p: u32) -> String {
        self.key(p, "store")
    }

    /// Earliest deadline of each open job (zset).
    pub fn due(&self, p: u32) -> String {
        self.key(p, "due")
    }

    /// Journal entries not confirmed yet (stream).
    pub fn outbox(&self, p: u32) -> String {
        self.key(p, "outbox")
    }

    /// Sessions and their expiry (zset).
    pub fn sessions(&self, p: u32) -> String {
        self.key(p, "sessions")
    }

    /// Ended jobs in the order of their ends, for retention (list).
    pub fn ended(&self, p: u32) -> String {
        self.key(p, "ended")
    }

    /// What each session says of itself (hash).
    pub fn session_info(&self, p: u32) -> String {
        self.key(p, "sessinfo")
    }

    /// What a session runs (set of `<id>:<epoch>`; with `!` before it: somebody wants that one stopped).
    pub fn run(&self, p: u32, session: &SessionId) -> String {
        self.key_of(p, "run:", session.as_str())
    }

    /// Stands in the place of [`Keys::run`] in calls that have no session.
    pub fn key_without_session(&self, p: u32) -> String {
        self.key(p, "run:-")
    }

    /// When a reaper looks at which guard scope (zset).
    pub fn guards(&self, p: u32) -> String {
        self.key(p, "guards")
    }

    /// State (hash), holds (hash), line (zset) and sleepers (hash) of a guard scope, by its hash.
    pub fn guard(&self, p: u32, scope: &str) -> [String; 4] {
        ["guard:", "hold:", "wait:", "asleep:"].map(|kind| self.key_of(p, kind, scope))
    }

    /// Record of a job (packed string).
    pub fn job(&self, id: &JobId) -> String {
        self.key_of(self.partition(id), "job:", id.as_str())
    }

    /// [`Keys::job`] for a caller that knows the partition.
    pub fn job_in(&self, p: u32, id: &str) -> String {
        self.key_of(p, "job:", id)
    }

    /// How often each record could not be read (hash: id, count).
    pub fn bad(&self, p: u32) -> String {
        self.key(p, "bad")
    }

    /// What could not be read and was taken out of the way (string). `kind`: `job` or `entry`.
    pub fn set_aside(&self, p: u32, kind: &str, id: &str) -> String {
        self.key_of(p, &format!("bad:{kind}:"), id)
    }

    /// Error text and output tails of a job's last failed attempt (JSON string).
    pub fn data(&self, id: &JobId) -> String {
        self.data_in(self.partition(id), id.as_str())
    }

    /// [`Keys::data`] for a caller that knows the partition.
    pub fn data_in(&self, p: u32, id: &str) -> String {
        self.key_of(p, "data:", id)
    }
}
