//! Messages of jobs that have their outcome already. A worker takes them away when it gets them; what no worker gets is
//! taken away here.

use std::time::Duration;

use surety_common::{
    broker::{dead::Obituary, place::Carrier, pull::Delivery},
    domain::{JobId, Status},
    pace::{Pace, Transient},
    store::ops::Ended,
};

use crate::rule::{Context, RuleError};

/// What came of one message of several: where the servers do not let it be dealt with, the others still are. `None`: it stays.
/// Errors: a server is away, and nothing would come of the others either.
pub(crate) fn of_several<T>(result: Result<T, RuleError>, carrier: Carrier) -> Result<Option<T>, RuleError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.is_transient() => Err(error),
        Err(error) => {
            tracing::error!(%carrier, %error, alert = "rule_failed", "a message could not be dealt with; it stays");
            Ok(None)
        }
    }
}

/// How long a dead letter is tried; the next step goes on.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));

/// Removes a message of an ended job whose outcome is journaled. What is not done is among the dead letters before.
pub(crate) async fn remove(
    x: &Context,
    m: &Delivery,
    id: &JobId,
    queue: &str,
    e: &Ended,
) -> Result<(), RuleError> {
    let carrier = m.carrier();
    if e.status != Status::Done {
        let letter = Obituary {
            job: id,
            queue,
            generation: e.generation,
            epoch: e.epoch,
            reason: &e.code,
            message: "see the journal",
            carrier: &carrier.to_string(),
        };
        x.c.broker.bury(&x.c.publisher, m, &letter, PATIENCE).await?;
    }
    tracing::info!(job_id = %id, %carrier, status = e.status.name(), "message of an ended job removed");
    discard(x, queue, carrier).await
}

/// Removes a message, whether it was delivered or not. It is gone already: fine.
pub(crate) async fn discard(x: &Context, queue: &str, carrier: Carrier) -> Result<(), RuleError> {
    // Frees its place among the held ones at once; only a deletion removes what was never delivered.
    if let Some(ack) = x.c.broker.recorded_ack(queue, &carrier.to_string(), "") {
        x.c.broker.ack(&ack).await?;
    }
    Ok(x.c.broker.delete_carrier(carrier).await?)
}
