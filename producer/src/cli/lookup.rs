//! Finding a job: its record, else the message that nobody has pulled yet, else the journal.

use surety_common::{
    broker::pull::Delivery,
    connect::Connected,
    domain::{JobId, QueueName},
    store::Record,
    wire::event::Event,
};

use super::failure::Failure;

/// What is known of a job, from the best source that knows it.
pub(super) enum Seen {
    /// Redis has its record.
    Record(Box<Record>),
    /// It waits in a queue, or is scheduled; no worker has pulled it.
    Waiting(QueueName, Box<Delivery>),
    /// Its record is gone; this is the last event of it.
    Journal(Box<Event>),
}

/// Looks a job up; `None` when no source knows it.
pub(super) async fn find(c: &Connected, id: &JobId) -> Result<Option<Seen>, Failure> {
    if let Some(r) = c.store.record(id).await? {
        return Ok(Some(Seen::Record(Box::new(r))));
    }
    if let Some((queue, m)) = c.broker.find_carrier(&c.found.queues, id).await? {
        return Ok(Some(Seen::Waiting(queue, Box::new(m))));
    }
    // It may have been pulled between the two looks.
    if let Some(r) = c.store.record(id).await? {
        return Ok(Some(Seen::Record(Box::new(r))));
    }
    Ok(last_event(c, id).await?.map(|e| Seen::Journal(Box::new(e))))
}

/// The newest event of a job, from the whole journal.
async fn last_event(c: &Connected, id: &JobId) -> Result<Option<Event>, Failure> {
    let mut last: Option<Event> = None;
    c.broker
        .read_journal(None, 0, |e| {
            let newer = last.as_ref().is_none_or(|l| (e.generation, e.rev) > (l.generation, l.rev));
            if e.job == id.as_str() && newer {
                last = Some(e);
            }
        })
        .await?;
    Ok(last)
}

/// What an id that no source knows is told.
pub(super) fn unknown(id: &JobId) -> Failure {
    Failure::no(format!("unknown job {id}: no record, no waiting message and no journal event has this id"))
}
