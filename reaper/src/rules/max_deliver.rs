//! Deliveries that the broker gave up: their message stays in the stream, invisible to every consumer. A live worker settles
//! a job long before, so what is found here was lost by dying workers each time: the job is buried, and its message removed.

use surety_common::{
    broker::{decode::decode, place::Carrier},
    domain::{ErrorCode, QueueName, Requester, TypeName},
    ending::{By, Ending, Outcome, end_job, json_string},
    store::StoreError,
};
use tokio::sync::Mutex;

use crate::rule::{Context, Done, Look, Rule, RuleError, Step, Verdict};

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
                    Some(_) => ("the broker gave it up; it is still there", "bury its job, unless it runs"),
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
                    if !bury(x, a.carrier).await? {
                        // An attempt runs: looked at again later.
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

/// Buries the job of a message; `false` while an attempt of it runs.
pub(super) async fn bury(x: &Context, at: Carrier) -> Result<bool, RuleError> {
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
    if let Some(record) = record
        && !record.status.is_terminal()
        && !record.carrier.is_empty()
        && record.carrier != *carrier
    {
        // A second carrier: the recorded one goes on; this one is only in the way.
        x.c.broker.delete_carrier(at).await?;
        return Ok(true);
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
