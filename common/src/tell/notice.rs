//! Notices: made from the record alone, so that worker and reaper tell the same.

use std::time::Duration;

use bytes::Bytes;

use super::{Message, Sink, Told, commit};
use crate::{
    clock::iso_millis,
    connect::Connected,
    domain::{
        JobId, Requester,
        notice::{Facts, Kind, notice_id, text},
    },
    pace::Pace,
    recover::RecoverError,
    store::{Record, Telling},
    telemetry::metrics::shared,
    wire::notice::Notice,
};

/// How long what a notice commits is tried to be journaled.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));

/// The notice of a record. `n` and `at_ms` as [`notice_id`] and [`Notice`] have them.
pub fn document(kind: Kind, job: &JobId, r: &Record, n: u64, at_ms: u64) -> Notice {
    let facts = Facts { job, job_type: &r.job_type, summary: &r.summary, attempt: r.attempt };
    Notice {
        v: 1,
        notice: notice_id(job, r.generation, kind, n),
        kind: kind.name().to_owned(),
        job: job.to_string(),
        generation: r.generation,
        job_type: r.job_type.clone(),
        queue: r.queue.clone(),
        summary: (!r.summary.is_empty()).then(|| r.summary.clone()),
        text: text(kind, &facts),
        at: iso_millis(at_ms).unwrap_or_default(),
        attempt: r.attempt,
        ends_by: iso_millis(r.deadline_ms),
        finish_by: iso_millis(r.finish_by_ms),
    }
}

/// Tells that the attempt of this record started, and commits whether it surfaced. `progress`: within this time progress is
/// promised from then on. `by`: who tells, for the journal.
/// Errors: what is not committed is told again by a reaper.
pub async fn tell_start(
    c: &Connected,
    sink: &dyn Sink,
    job: &JobId,
    r: &Record,
    progress: Duration,
    by: &'static str,
) -> Result<Told, RecoverError> {
    let notice = document(Kind::Started, job, r, r.epoch, r.started_ms);
    let told = tell(sink, Kind::Started, job, r, &notice).await;
    let data = serde_json::json!({ "notice": notice.notice, "by": by });
    match &told {
        Told::Surfaced => {
            commit(c, job, r.generation, Telling::Start { progress }, "", &data, PATIENCE).await?;
        }
        Told::NotSurfaced(why) | Told::Never(why) => {
            commit(c, job, r.generation, Telling::StartFailed, why, &data, PATIENCE).await?;
        }
        Told::NotTried(_) => {}
    }
    Ok(told)
}

/// Tells that progress did not come in time, and commits the nudge, seen or not: there is one until progress comes. Whoever
/// wants no notices gets none, and the nudge is committed all the same. `rev`: of the missed promise; `at_ms`: its time.
/// Errors: what is not committed is told again by a reaper.
pub async fn tell_nudge(
    c: &Connected,
    sink: &dyn Sink,
    job: &JobId,
    r: &Record,
    rev: u64,
    at_ms: u64,
) -> Result<Option<Told>, RecoverError> {
    let mut told = None;
    let mut data = Nudged { surfaced: false, notice: None, message: None };
    if Requester::from_json(&r.notify).is_ok_and(|to| to.wants_notices()) {
        let notice = document(Kind::Nudge, job, r, rev, at_ms);
        match told.insert(tell(sink, Kind::Nudge, job, r, &notice).await) {
            Told::Surfaced => data.surfaced = true,
            Told::NotSurfaced(why) | Told::Never(why) => data.message = Some(why.clone()),
            Told::NotTried(_) => return Ok(told),
        }
        data.notice = Some(notice.notice);
    }
    let note = data.message.clone().unwrap_or_default();
    commit(c, job, r.generation, Telling::Nudge, &note, &data, PATIENCE).await?;
    Ok(told)
}

/// Data of the event `nudged`.
#[derive(serde::Serialize)]
struct Nudged {
    surfaced: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    notice: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

async fn tell(sink: &dyn Sink, kind: Kind, job: &JobId, r: &Record, notice: &Notice) -> Told {
    let told = match (Requester::from_json(&r.notify), serde_json::to_vec(notice)) {
        (Ok(to), Ok(body)) => {
            let message = Message {
                kind,
                id: notice.notice.clone(),
                job: job.clone(),
                generation: r.generation,
                trace: r.trace.clone(),
                body: Bytes::from(body),
            };
            sink.surface(&to, &message).await
        }
        (Err(e), _) => Told::Never(e),
        (_, Err(e)) => Told::Never(format!("the notice does not encode: {e}")),
    };
    shared().notices.with_label_values(&[kind.name(), told.name()]).inc();
    match &told {
        Told::Surfaced => tracing::debug!(job_id = %job, kind = kind.name(), "notice surfaced"),
        Told::NotSurfaced(why) | Told::Never(why) | Told::NotTried(why) => {
            tracing::info!(job_id = %job, kind = kind.name(), result = told.name(), why, "notice did not surface");
        }
    }
    told
}
