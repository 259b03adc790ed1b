//! Looks at the store from outside of any job: whether it is there, and how much it holds.

use super::{
    gate::Gate,
    script::{Store, StoreError},
};

/// Clock of the partition's node, open jobs, entries, the first of them.
type Looked = ((u64, u64), u64, u64, Vec<(String, redis::Value)>);

/// What the store holds, over all partitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depths {
    /// Jobs that have a record and no outcome yet: started ones, and those that waited longer than their start was promised.
    pub open_jobs: u64,
    /// Journal entries that wait for the broker.
    pub outbox: u64,
    /// Age of the oldest of them in milliseconds, by the store's clock.
    pub oldest_ms: u64,
}

impl Store {
    /// Whether the store answers, with the data set that this process opened, and whole.
    /// Errors: `OtherStore` when it is another one or gone; `Rebuilding`; `Unreachable`.
    pub async fn check(&self) -> Result<(), StoreError> {
        for p in 0..self.keys().partitions() {
            match self.identity(p).await? {
                None => return Err(StoreError::OtherStore("it is empty")),
                Some(found) if found.incarnation != self.incarnation(p) => {
                    return Err(StoreError::OtherStore("another incarnation"));
                }
                Some(found) if found.gate != Gate::Open => return Err(StoreError::Rebuilding),
                Some(_) => {}
            }
        }
        match self.mistyped().await?.into_iter().next() {
            Some(what) => Err(StoreError::Refused(what)),
            None => Ok(()),
        }
    }

    /// How far the clock of the store is behind what it was once (ms): somebody set it back. The ids of a stream never go back, so
    /// the last one tells. Where this user may not ask, nothing is told.
    pub async fn set_back_ms(&self) -> Result<u64, StoreError> {
        let mut most = 0;
        for p in 0..self.keys().partitions() {
            let last = match self.last_write_ms(p).await {
                Ok(last) => last,
                Err(StoreError::Refused(why)) if why.contains("NOPERM") => continue,
                Err(e) => return Err(e),
            };
            most = most.max(last.saturating_sub(self.now_ms_of(p).await?));
        }
        Ok(most)
    }

    /// Keys of the indexes that somebody made into something else: every call that touches one fails. One round trip for each
    /// partition. Where this user may not ask, none is named.
    pub async fn mistyped(&self) -> Result<Vec<String>, StoreError> {
        let keys = self.keys();
        let mut out = Vec::new();
        for p in 0..keys.partitions() {
            let of: [(String, &str); 8] = [
                (keys.store(p), "hash"),
                (keys.due(p), "zset"),
                (keys.outbox(p), "stream"),
                (keys.sessions(p), "zset"),
                (keys.session_info(p), "hash"),
                (keys.ended(p), "list"),
                (keys.guards(p), "zset"),
                (keys.bad(p), "hash"),
            ];
            let mut pipe = redis::pipe();
            of.iter().for_each(|(key, _)| {
                pipe.cmd("TYPE").arg(key);
            });
            let mut connection = self.home_of(p);
            let found: Vec<String> = match pipe.query_async(&mut connection).await {
                Ok(found) => found,
                Err(e) if e.code() == Some("NOPERM") => return Ok(out),
                Err(e) => return Err(e.into()),
            };
            for ((key, wanted), is) in of.iter().zip(found) {
                if is != *wanted && is != "none" {
                    out.push(format!(
                        "the key {key:?} is a {is} and has to be a {wanted}: somebody wrote it by hand. Rename it; its \
                         partition is rebuilt from the journal where something is missing then"
                    ));
                }
            }
        }
        Ok(out)
    }

    /// How much the store holds: one round trip for each partition.
    pub async fn depths(&self) -> Result<Depths, StoreError> {
        let mut all = Depths::default();
        for p in 0..self.keys().partitions() {
            let (due, outbox) = (self.keys().due(p), self.keys().outbox(p));
            let mut connection = self.connection();
            let ((s, us), open, waiting, first): Looked = redis::pipe()
                .cmd("TIME")
                .zcard(due)
                .xlen(&outbox)
                .xrange_count(&outbox, "-", "+", 1)
                .query_async(&mut connection)
                .await?;
            let now = s * 1000 + us / 1000;
            all.open_jobs += open;
            all.outbox += waiting;
            // The id of an entry begins with the store's time in milliseconds.
            let stored_ms = first.first().and_then(|(id, _)| id.split('-').next()?.parse::<u64>().ok());
            all.oldest_ms = all.oldest_ms.max(stored_ms.map_or(0, |ms| now.saturating_sub(ms)));
        }
        Ok(all)
    }
}
