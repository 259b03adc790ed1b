//! Jobs that end without an attempt, and dead letters.

use std::time::Duration;

use surety_common::{
    broker::{
        dead::Obituary,
        decode::{Decoded, Undecoded},
        pull::Delivery,
    },
    domain::{ErrorCode, QueueName, Requester},
    ending::{By, Ending, Outcome, end_job, json_string},
    fault,
    pace::Pace,
    telemetry::metrics::shared,
};

use crate::{hand::Settle, shared::Shared};

/// How long a dead letter is tried; after that the redelivery does it again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Copies the carrier of an ended job to the dead letters; only then may it be acked.
pub(crate) async fn dead_letter(w: &Shared, d: &Delivery, letter: &Obituary<'_>) -> Settle {
    match w.c.broker.bury(&w.c.publisher, d, letter, Pace::call(PATIENCE)).await {
        Ok(_) => {
            fault::point("buried");
            Settle::Ack
        }
        Err(e) => {
            tracing::error!(job_id = %letter.job, error = %e, "dead letter not stored; the carrier stays");
            Settle::Leave
        }
    }
}

/// Buries a job whose document was read.
pub(crate) async fn bury(
    w: &Shared,
    queue: &QueueName,
    d: &Delivery,
    decoded: &Decoded,
    code: ErrorCode,
    why: &str,
) -> Settle {
    let by = if code == ErrorCode::FinishDeadline { By::Deadline } else { By::Burial };
    let end = Ending {
        by,
        id: &decoded.job.id,
        kind: &decoded.job.kind,
        queue: queue.as_str(),
        key: json_string(decoded.job.key.as_deref()),
        trace: &decoded.trace,
        generation: decoded.generation,
        carrier: &decoded.carrier,
        code,
        why,
        requester: &decoded.job.requester,
    };
    settle(w, d, &end).await
}

/// Buries a message that is no job.
pub(crate) async fn bury_undecoded(w: &Shared, queue: &QueueName, d: &Delivery, u: &Undecoded) -> Settle {
    shared().decode_errors.with_label_values(&["message"]).inc();
    let why = u.refused.to_string();
    let end = Ending {
        by: By::Burial,
        id: &u.id,
        kind: &u.kind,
        queue: queue.as_str(),
        key: String::new(),
        trace: "",
        generation: u.generation,
        carrier: &u.carrier,
        code: u.refused.code,
        why: &why,
        requester: &Requester::Nobody,
    };
    settle(w, d, &end).await
}

async fn settle(w: &Shared, d: &Delivery, end: &Ending<'_>) -> Settle {
    match end_job(&w.c, Some(d), end).await {
        Ok(Outcome::Ended { .. }) => {
            tracing::error!(
                job_id = %end.id, error_code = end.code.name(), reason = end.why, alert = "buried", "job buried"
            );
            Settle::Ack
        }
        Ok(Outcome::Before(_)) => Settle::Ack,
        Ok(Outcome::Running(_)) => {
            // An attempt runs, or another message carries the job; this one is kept for a person, and does not disturb it.
            tracing::warn!(job_id = %end.id, reason = end.why, "a message that names another one's job cannot be run");
            let letter = Obituary {
                job: end.id,
                queue: end.queue,
                generation: end.generation,
                epoch: d.sequence,
                reason: end.code.name(),
                message: end.why,
                carrier: end.carrier,
            };
            dead_letter(w, d, &letter).await
        }
        Err(e) => {
            tracing::warn!(job_id = %end.id, error = %e, "burial is not complete; the job is given back");
            Settle::Nak(Duration::from_secs(1))
        }
    }
}
