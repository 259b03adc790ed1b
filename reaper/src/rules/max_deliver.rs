//! Deliveries that the broker gave up: their message stays in the stream, invisible to every consumer. Where live workers used
//! them up, because the job waits for a guard, for its backoff, or for a worker that knows its type, a copy takes its place.
//! Else they were lost by dying workers each time: the job is buried, and its message removed.

use std::time::Duration;

use surety_common::{
    broker::{decode::decode, place::Carrier},
    domain::{ErrorCode, QueueName, Requester, Status, TypeName},
    ending::{By, Ending, Outcome, end_job, json_string},
    store::{Record, StoreError},
};
use tokio::sync::Mutex;

use super::carrier_check;
use crate::rule::{Context, Done, Look, Rule, RuleError, Step, Verdict};

/// Copies of the message of one job that a guard defers, until an attempt begins: ten thousand deliveries by default. What has
/// not begun by then is taken for one that kills its workers before they can claim it.
const MOST_COPIES: u32 = 100;

/// How many copies may take the place of a message, one after the other, until an attempt begins. `age`: of the message, which
/// the broker gave up after `max_deliver` deliveries.
fn copies(r: &Record, age: Duration, ack_wait: Duration, max_deliver: u64) -> u32 {
    let half = max_deliver.div_ceil(2);
    match r.status {
        // What kills its workers is tried no more.
        _ if u64::from(r.lost) >= half => 0,
        Status::Deferred => MOST_COPIES,
        Status::RetryWait => 1,
        Status::Queued if r.epoch > 0 => 1,
        // A worker that dies costs an ack-wait: in less time than that, live ones gave it back.
        Status::Queued if age < ack_wait.saturating_mul(u32::try_from(half).unwrap_or(u32::MAX)) => 1,
        _ => 0,
    }
}

/// Reads the advisories through a consumer that all reapers share.
#[derive(Default)]
pub(crate) struct MaxDeliver {
    advisories: Mutex<()>,
}

impl Rule for MaxDeliver {
    fn name(&self) -> &'static str {
        "max_deliver"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for a in x.c.broker.peek_advisories(x.batch).await?.into_iter().filter(|a| a.is_max_deliveries) {
                let stream = x.c.broker.names().stream(a.carrier.stream);
                let (evidence, does) = match x.c.broker.message(&stream, a.carrier.sequence).await? {
                    None => ("the broker gave it up; it is gone since", "nothing but ack the advisory"),
                    Some(_) => (
                        "the broker gave it up; it is still there",
                        "put a copy in its place while its job waits; else bury the job, unless it runs",
                    ),
                };
                out.push(Verdict::new(a.carrier, evidence.to_owned(), does));
            }
            Ok(out)
        })
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let _one_at_a_time = self.advisories.lock().await;
            let mut done = Done::default();
            let advisories = x.c.broker.advisories(x.batch).await?;
            done.is_partial = advisories.len() >= x.batch;
            for a in advisories {
                if a.is_max_deliveries {
                    if !give_up(x, a.carrier).await? {
                        // An attempt runs, or the record changed meanwhile: looked at again later.
                        x.c.broker.nak(&a.ack_subject, x.settings.lease.ttl).await?;
                        continue;
                    }
                    done.acted += 1;
                }
                x.c.broker.ack(&a.ack_subject).await?;
            }
            Ok(done)
        })
    }
}

/// A message that is delivered no more: a copy takes its place, or its job is buried. `false` while an attempt of it runs, and
/// where it was not possible now.
pub(super) async fn give_up(x: &Context, at: Carrier) -> Result<bool, RuleError> {
    let names = x.c.broker.names();
    let Some(raw) = x.c.broker.message(&names.stream(at.stream), at.sequence).await? else { return Ok(true) };
    let queue = names.queue_of(&raw.subject).and_then(|q| QueueName::new(q).ok());
    let Some(queue) = queue else { return Ok(true) };
    let why = "the broker gave up: every worker that had the job died with it";
    let unknown = TypeName::unknown();
    let read = decode(&x.c.broker, &queue, &raw, &x.c.found.jobs_created);
    let mut requester = Requester::Nobody;
    if let Ok(d) = &read {
        requester.clone_from(&d.job.requester);
    }
    let (id, kind, key, generation, carrier) = match &read {
        Ok(d) => (&d.job.id, &d.job.kind, json_string(d.job.key.as_deref()), d.generation, &d.carrier),
        Err(u) => (&u.id, &unknown, String::new(), u.generation, &u.carrier),
    };
    let record = match x.c.store.record(id).await {
        // Looked at again later, when the record was set aside.
        Err(StoreError::Unreadable { .. }) => {
            x.c.store.note_unreadable(x.c.store.keys().partition(id), id.as_str()).await;
            return Ok(false);
        }
        other => other?,
    };
    if let Some(record) = &record
        && !record.status.is_terminal()
        && !record.carrier.is_empty()
        && record.carrier != *carrier
    {
        // A second carrier: the recorded one goes on; this one is only in the way.
        x.c.broker.delete_carrier(at).await?;
        return Ok(true);
    }
    if let Some(record) = &record
        && record.generation == generation
    {
        let now = x.c.broker.now_ms().await?;
        let age = Duration::from_millis(now.saturating_sub(raw.stored_ms));
        // Both as they are provisioned: the settings of this reaper may be newer.
        let max_deliver = u64::try_from(x.c.found.max_deliver).unwrap_or(x.settings.layout.max_deliver.0);
        let most = copies(record, age, x.c.found.ack_wait, max_deliver);
        if carrier_check::copies_made(id, record, &raw) < most {
            let p = x.c.store.keys().partition(id);
            return carrier_check::hand_on(x, p, id, record, &raw).await;
        }
    }
    let end = Ending {
        by: By::Burial,
        id,
        kind,
        queue: queue.as_str(),
        key,
        trace: "",
        generation,
        carrier,
        code: ErrorCode::MaxDeliver,
        why,
        requester: &requester,
    };
    match end_job(&x.c, Some(&raw), &end).await? {
        Outcome::Running(_) => Ok(false),
        Outcome::Ended { .. } | Outcome::Before(_) => {
            tracing::error!(job_id = %id, carrier, alert = "max_deliver", "job buried: {why}");
            x.c.broker.delete_carrier(at).await?;
            Ok(true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_live_workers_gave_back_is_copied_and_what_kills_them_is_not() {
        let (ack_wait, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let of = |status, epoch, lost| Record { status, epoch, lost, ..Record::queued() };
        let most = |r: &Record, age| copies(r, age, ack_wait, 100);
        assert_eq!(most(&of(Status::Deferred, 0, 0), hour), MOST_COPIES);
        assert_eq!(most(&of(Status::Deferred, 60, 50), hour), 0, "half of the deliveries were lost attempts");
        assert_eq!(most(&of(Status::RetryWait, 60, 49), hour), 1);
        assert_eq!(most(&of(Status::RetryWait, 60, 50), hour), 0);
        assert_eq!(most(&of(Status::Queued, 1, 0), hour), 1, "a shutdown gave it back");
        assert_eq!(most(&of(Status::Queued, 0, 0), ack_wait * 49), 1, "no hundred workers died in that time");
        assert_eq!(most(&of(Status::Queued, 0, 0), ack_wait * 50), 0);
        assert_eq!(most(&of(Status::Running, 1, 0), hour), 0);
    }
}
