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
        Ok(())
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
