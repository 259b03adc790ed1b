//! Whether Redis has lost data while nobody looked: what the journal has is compared with what the store says, before a
//! process opens the data set (`docs/redis-loss.md`). Running processes notice at their next call (`store::gate`).

use crate::{
    broker::{Broker, BrokerError, barrier::Barrier, topology::Found},
    connect::ConnectError,
    doctor::Role,
    store::{Gate, Store, StoreError},
};

/// The barriers of the journal that name another data set than the store has: they hide what the store writes.
pub async fn foreign_barriers(store: &Store, broker: &Broker) -> Result<Vec<Barrier>, BrokerError> {
    let mut all = broker.barriers_in_force().await?;
    let partitions = store.keys().partitions();
    all.retain(|b| is_foreign(b, partitions, store.gate(b.partition), &store.incarnation(b.partition)));
    Ok(all)
}

/// While a gate is not open, a rebuild is about to write the barrier that counts.
fn is_foreign(b: &Barrier, partitions: u32, gate: Gate, incarnation: &str) -> bool {
    b.partition < partitions && gate == Gate::Open && b.incarnation != incarnation
}

/// Newest messages of the journal that are looked at: enough to find each of several partitions among them.
const NEWEST: u64 = 64;

/// Notes what the newest messages of the journal say of the data sets that they came from.
pub async fn note_newest(store: &Store, broker: &Broker) -> Result<(), BrokerError> {
    let n = if store.keys().partitions() == 1 { 1 } else { NEWEST };
    match broker.newest_commits(n).await {
        Ok(newest) => newest.into_iter().for_each(|(p, commit)| store.note_commit(p, commit)),
        // Whoever may not read the journal leaves it to the reaper.
        Err(BrokerError::Denied(why)) => tracing::debug!(why, "the journal is not compared with redis"),
        Err(e) => return Err(e),
    }
    Ok(())
}

/// Opens the data set that belongs to `JOBS`: makes it where nothing was ever journaled, closes its gate where it knows less
/// than the journal.
/// Errors: `OtherStore` where the data set belongs to another `JOBS`, and it is not for this process to say which is right.
pub(crate) async fn open(
    store: &Store,
    broker: &Broker,
    found: &Found,
    role: Role,
) -> Result<(), ConnectError> {
    store.belong_to(&found.jobs_created);
    let is_fresh = !has_journal(broker).await?;
    if !is_fresh {
        note_newest(store, broker).await?;
    }
    for p in 0..store.keys().partitions() {
        let Some(here) = store.identity(p).await? else {
            if !is_fresh {
                store.look_at_gate(p, false).await?;
            }
            continue;
        };
        if here.commit < store.seen_commit(p) {
            store.look_at_gate(p, false).await?;
        } else if here.jobs_created != found.jobs_created {
            // A process with the wrong address must not discard what another one's jobs wait for: only a reaper says so, and
            // only of a stream that was made later.
            if role != Role::Reaper || here.jobs_created > found.jobs_created {
                return Err(StoreError::OtherStore("it belongs to another JOBS stream").into());
            }
            store.close_for_jobs(p, &found.jobs_created).await?;
        }
    }
    match store.open(&found.jobs_created, is_fresh).await {
        // It was lost this very moment.
        Err(StoreError::OtherStore(why)) if why != "it belongs to another JOBS stream" => {
            for p in 0..store.keys().partitions() {
                store.look_at_gate(p, false).await?;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Whether anything was ever journaled. Where it is not for us to know: yes, because a data set that is closed for nothing
/// opens again by itself, and one that is opened for nothing repeats what was decided.
async fn has_journal(broker: &Broker) -> Result<bool, BrokerError> {
    match broker.journal_kept().await {
        Ok(kept) => Ok(kept.last > 0),
        Err(BrokerError::Denied(why)) => {
            tracing::warn!(why, "whether there is a journal is not known");
            Ok(true)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: P7
    #[test]
    fn a_barrier_is_foreign_where_the_store_is_open_and_another_data_set() {
        let b = |partition, incarnation: &str| Barrier {
            sequence: 7,
            partition,
            incarnation: incarnation.into(),
        };
        assert!(is_foreign(&b(0, "FORGED"), 4, Gate::Open, "A"));
        assert!(!is_foreign(&b(0, "A"), 4, Gate::Open, "A"));
        assert!(!is_foreign(&b(0, "FORGED"), 4, Gate::Closed, "A"), "a rebuild is about to say what counts");
        assert!(!is_foreign(&b(9, "FORGED"), 4, Gate::Open, ""), "no partition of ours");
    }
}
