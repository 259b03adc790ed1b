//! Counting open jobs by queue and state.

use std::collections::{BTreeMap, HashSet};

use redis::AsyncCommands;

use super::{
    record::Record,
    script::{Store, StoreError},
    unreadable::Read,
};
use crate::domain::Status;

/// Open jobs that have a record, by queue: every job without an outcome that was claimed once, or waited for longer than its
/// start was promised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenJobs {
    by_queue: BTreeMap<String, BTreeMap<&'static str, Group>>,
}

/// Jobs of one queue in one state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Group {
    n: u64,
    /// When the oldest of them was enqueued (ms).
    oldest_ms: u64,
}

impl OpenJobs {
    /// Number of jobs of a queue in a state.
    pub fn count(&self, queue: &str, status: Status) -> u64 {
        self.group(queue, status).map_or(0, |g| g.n)
    }

    /// When the oldest job of a queue in a state was enqueued (ms of the stream's clock); `None`: there is none.
    pub fn oldest_ms(&self, queue: &str, status: Status) -> Option<u64> {
        self.group(queue, status).map(|g| g.oldest_ms)
    }

    fn group(&self, queue: &str, status: Status) -> Option<&Group> {
        self.by_queue.get(queue)?.get(status.name())
    }

    fn add(&mut self, r: Record) {
        let of = self.by_queue.entry(r.queue).or_default();
        let g = of.entry(r.status.name()).or_insert(Group { n: 0, oldest_ms: r.created_ms });
        g.n += 1;
        g.oldest_ms = g.oldest_ms.min(r.created_ms);
    }
}

/// Records of one read.
const SLICE: usize = 500;

impl Store {
    /// Number of open jobs that have a record.
    pub async fn n_open(&self) -> Result<u64, StoreError> {
        let mut n = 0;
        for p in 0..self.keys().partitions() {
            let here: u64 = self.connection().zcard(self.keys().due(p)).await?;
            n += here;
        }
        Ok(n)
    }

    /// Counts open jobs by queue and state. Reads every record, in slices of 500, so it takes a second or so for each
    /// 100 000; what changes meanwhile is counted before or after.
    pub async fn open_jobs(&self) -> Result<OpenJobs, StoreError> {
        let mut out = OpenJobs::default();
        for p in 0..self.keys().partitions() {
            // A scan may give a member twice while the set is resized.
            let mut seen: HashSet<String> = HashSet::new();
            let mut cursor = 0u64;
            loop {
                let (next, members): (u64, Vec<(String, f64)>) = redis::cmd("ZSCAN")
                    .arg(self.keys().due(p))
                    .arg(cursor)
                    .arg("COUNT")
                    .arg(SLICE)
                    .query_async(&mut self.connection())
                    .await?;
                let keys: Vec<String> = members
                    .into_iter()
                    .map(|(id, _)| self.keys().job_in(p, &id))
                    .filter(|key| seen.insert(key.clone()))
                    .collect();
                for record in self.records(&keys).await?.into_iter().filter_map(Read::record) {
                    if !record.status.is_terminal() {
                        out.add(record);
                    }
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(out)
    }
}
