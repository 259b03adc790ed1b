//! Which jobs a batch has: kept here to follow them, and told to the broker so that others can.

use std::collections::HashSet;

use surety_common::{
    domain::{BatchId, JobId, QueueName},
    wire::batch::BatchPart,
};
use ulid::Ulid;

use super::{failure::Failure, watch::batch::Followed};
use crate::{client::Client, render::note};

/// Ids in one part of a list: well below the largest message, also with the longest ids.
const PART: usize = 4000;

/// Gathers the jobs of a batch as they are stored.
pub(super) struct Members<'a> {
    client: &'a Client,
    queue: &'a QueueName,
    /// Place in the journal where the batch began.
    began: u64,
    list: Option<List<'a>>,
    kept: Option<Vec<String>>,
    /// Those with an id of their own that this batch stored, and nobody before.
    fresh: HashSet<String>,
    /// One of them had an id of its own: it may have been stored, and may have ended, before this batch.
    is_any_named: bool,
}

/// The list of a batch with a name.
struct List<'a> {
    batch: &'a BatchId,
    run: String,
    ids: Vec<String>,
    is_part_named: bool,
    n: u64,
}

impl<'a> Members<'a> {
    /// `None` where nobody asked for it: neither a name nor to follow the jobs.
    pub(super) async fn start(
        client: &'a Client,
        queue: &'a QueueName,
        batch: Option<&'a BatchId>,
        is_watched: bool,
    ) -> Result<Option<Self>, Failure> {
        if batch.is_none() && !is_watched {
            return Ok(None);
        }
        let began = match client.broker().journal_end().await {
            Ok(n) => n,
            // Who only enqueues need not see the journal: whoever follows the batch then begins at its start.
            Err(error) if !is_watched => {
                tracing::debug!(%error, "the place in the journal is not known");
                1
            }
            Err(e) => return Err(e.into()),
        };
        let list = batch.map(|batch| List {
            batch,
            run: Ulid::generate().to_string(),
            ids: Vec::new(),
            is_part_named: false,
            n: 0,
        });
        let kept = is_watched.then(Vec::new);
        Ok(Some(Self { client, queue, began, list, kept, fresh: HashSet::new(), is_any_named: false }))
    }

    /// Takes one stored job; `is_named`: its document had an id; `is_duplicate`: it was stored before.
    pub(super) async fn add(&mut self, id: &JobId, is_named: bool, is_duplicate: bool) {
        if let Some(kept) = &mut self.kept {
            self.is_any_named |= is_named;
            if is_named && !is_duplicate {
                self.fresh.insert(id.to_string());
            }
            kept.push(id.to_string());
        }
        if let Some(list) = &mut self.list {
            list.is_part_named |= is_named;
            list.ids.push(id.to_string());
            if list.ids.len() >= PART {
                self.publish(false).await;
            }
        }
    }

    /// Ends the list, and gives what is to be followed. `is_whole`: every line was sent.
    pub(super) async fn finish(mut self, is_whole: bool) -> Option<Followed> {
        if is_whole {
            self.publish(true).await;
        }
        let from = if self.is_any_named { 1 } else { self.began };
        Some(Followed {
            queue: self.queue.clone(),
            from,
            ids: self.kept?,
            fresh: self.fresh,
            began: self.began,
        })
    }

    /// Publishes what has gathered. A list is a convenience: without it the jobs run all the same.
    async fn publish(&mut self, is_last: bool) {
        let Some(list) = &mut self.list else { return };
        let part = BatchPart {
            v: 1,
            batch: list.batch.to_string(),
            run: list.run.clone(),
            queue: self.queue.to_string(),
            from: if list.is_part_named { 1 } else { self.began },
            ids: std::mem::take(&mut list.ids),
            is_last,
        };
        list.is_part_named = false;
        match self.client.publish_batch_part(&part, list.n).await {
            Ok(()) if is_last => note(&format!("follow it with: surety watch --batch {}", part.batch)),
            Ok(()) => list.n += 1,
            Err(e) => {
                note(&format!("this batch cannot be watched by its name: {e}"));
                self.list = None;
            }
        }
    }
}
