//! The control service: answers requests about jobs, for producers that have NATS only. Every request gets an answer, an error
//! with its code where there is no other; of several reapers one answers.

use std::{sync::Arc, time::Duration};

use surety_common::{
    broker::control::Request,
    cancel::{self, CancelError, Happened, Wish},
    connect::Connected,
    domain::{JobId, QueueName},
    lookup::LookupError,
    pace::{Pace, Transient},
    reload::LiveSettings,
    store::StoreError,
    telemetry::metrics::reaper,
    view::JobView,
    why,
    wire::control::{ControlCode, ControlError, ControlReply, ControlRequest},
};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Requests in hand at once: each holds a connection's worth of work, and a cancel may wait.
const AT_ONCE: usize = 64;
/// How long a cancel waits for the end of a running attempt: where the request does not say, and at most.
const WAIT: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));
/// How long a request may take besides.
const LIMIT: Duration = Duration::from_secs(30);
/// What there is.
const OPS: [&str; 3] = ["cancel", "status", "why"];
/// What has its name, and is not made yet.
const LATER: [&str; 2] = ["nudge", "answer"];

/// What a request needs.
pub(crate) struct Control {
    pub(crate) c: Connected,
    pub(crate) live: LiveSettings,
}

/// Answers until `stop`, then ends what is in hand with an error that says so.
pub(crate) async fn serve(control: Control, stop: CancellationToken) {
    let control = Arc::new(control);
    let (slots, tasks) = (Arc::new(Semaphore::new(AT_ONCE)), TaskTracker::new());
    while !stop.is_cancelled() {
        let mut requests = tokio::select! {
            opened = open(&control) => opened,
            () = stop.cancelled() => break,
        };
        loop {
            let request = tokio::select! {
                next = requests.next() => next,
                () = stop.cancelled() => break,
            };
            let Some(request) = request else { break };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                let text = format!("{AT_ONCE} requests are in hand: ask again");
                let refused = Err(ControlError::new(ControlCode::Busy, text));
                reply(&control, request, None, refused).await;
                continue;
            };
            let (control, stop) = (control.clone(), stop.clone());
            tasks.spawn(async move {
                handle(&control, request, &stop).await;
                drop(slot);
            });
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Subscribes, for as long as it takes.
async fn open(control: &Control) -> surety_common::broker::control::Requests {
    let mut delays = Pace::forever().delays();
    loop {
        match control.c.broker.requests().await {
            Ok(requests) => return requests,
            Err(error) => tracing::warn!(%error, "cannot listen for control requests"),
        }
        tokio::time::sleep(delays.next_delay().unwrap_or(Duration::from_secs(2))).await;
    }
}

async fn handle(control: &Control, request: Request, stop: &CancellationToken) {
    let read = read(&request);
    let op = read.as_ref().ok().map(|(_, asked)| asked.op.clone());
    let answer = match read {
        Err(e) => Err(e),
        Ok((id, asked)) => {
            let limit = wait_of(&asked) + LIMIT;
            tokio::select! {
                done = tokio::time::timeout(limit, answer(control, &id, &asked)) => done.unwrap_or_else(|_| {
                    Err(ControlError::new(ControlCode::Unreachable, "the time for this request is up: ask again"))
                }),
                // What was begun in the store goes on without us.
                () = stop.cancelled() => {
                    Err(ControlError::new(ControlCode::Unreachable, "this reaper is being stopped: ask again"))
                }
            }
        }
    };
    reply(control, request, op, answer).await;
}

/// The job and what is asked of it.
fn read(request: &Request) -> Result<(JobId, ControlRequest), ControlError> {
    let bad = |e: &dyn std::fmt::Display| ControlError::new(ControlCode::BadRequest, e.to_string());
    let id = JobId::new(&request.id).map_err(|e| bad(&e))?;
    let asked: ControlRequest = serde_json::from_slice(&request.body).map_err(|e| bad(&e))?;
    if asked.v.is_some_and(|v| v != 1) {
        return Err(bad(&"version: this release knows 1"));
    }
    if LATER.contains(&asked.op.as_str()) {
        let text = format!("{}: this release cannot do that yet", asked.op);
        return Err(ControlError::new(ControlCode::NotSupported, text));
    }
    if !OPS.contains(&asked.op.as_str()) {
        let text = format!("there is no operation {:?}", surety_common::domain::text::cut(&asked.op, 80));
        let known = OPS.map(str::to_owned).to_vec();
        return Err(ControlError { known, ..ControlError::new(ControlCode::UnknownOp, text) });
    }
    Ok((id, asked))
}

fn wait_of(asked: &ControlRequest) -> Duration {
    match asked.wait_ms {
        _ if asked.op != "cancel" => Duration::ZERO,
        None => WAIT.0,
        Some(ms) => Duration::from_millis(ms).min(WAIT.1),
    }
}

type Answer = Result<serde_json::Value, ControlError>;

async fn answer(control: &Control, id: &JobId, asked: &ControlRequest) -> Answer {
    let unknown = || {
        let text =
            format!("unknown job {id}: no record, no waiting message and no journal event has this id");
        ControlError::new(ControlCode::UnknownJob, text)
    };
    match asked.op.as_str() {
        "cancel" => {
            let queue = asked.queue.as_deref().map(QueueName::new).transpose();
            let queue = queue.map_err(|e| ControlError::new(ControlCode::BadRequest, e.to_string()))?;
            let wish =
                Wish { id, reason: asked.reason.as_deref(), queue: queue.as_ref(), wait: wait_of(asked) };
            let report = Box::pin(cancel::cancel(&control.c, &wish)).await.map_err(|e| of_cancel(&e))?;
            tracing::info!(job_id = %id, result = ?report.result, "asked to cancel: {}", report.text);
            if report.result == Happened::Unknown {
                return Err(ControlError::new(ControlCode::UnknownJob, report.text));
            }
            encode(&report)
        }
        "status" => {
            let view = Box::pin(JobView::find(&control.c, id)).await.map_err(|e| of_lookup(&e))?;
            encode(&view.ok_or_else(unknown)?)
        }
        _ => {
            let overstay = control.live.now().reaper.overstay;
            let why = Box::pin(why::why(&control.c, id, overstay)).await.map_err(|e| of_lookup(&e))?;
            encode(&why.ok_or_else(unknown)?)
        }
    }
}

fn encode(value: &impl serde::Serialize) -> Answer {
    serde_json::to_value(value).map_err(|e| ControlError::new(ControlCode::Internal, e.to_string()))
}

fn of_lookup(e: &LookupError) -> ControlError {
    let is_passing = e.is_transient() || matches!(e, LookupError::Store(StoreError::OutboxFull));
    let code = if is_passing { ControlCode::Unreachable } else { ControlCode::Internal };
    ControlError::new(code, e.to_string())
}

fn of_cancel(e: &CancelError) -> ControlError {
    match e {
        CancelError::Lookup(e) => of_lookup(e),
        CancelError::NotDeclared(_) => ControlError::new(ControlCode::BadRequest, e.to_string()),
        CancelError::NotJournaled { .. } | CancelError::NotRemoved { .. } | CancelError::Restless(_) => {
            ControlError::new(ControlCode::Unreachable, e.to_string())
        }
    }
}

async fn reply(control: &Control, request: Request, op: Option<String>, answer: Answer) {
    let result = answer.as_ref().map_or_else(|e| e.code.name(), |_| "ok");
    let label = op.as_deref().filter(|o| OPS.contains(o)).unwrap_or("other");
    reaper().control_requests.with_label_values(&[label, result]).inc();
    let Some(to) = request.reply_to else {
        tracing::debug!(job_id = request.id, "a control request without a place for its answer");
        return;
    };
    let (answer, error) = match answer {
        Ok(a) => (Some(a), None),
        Err(e) => (None, Some(e)),
    };
    let id = surety_common::domain::text::cut(&request.id, 200).into_owned();
    let mut reply = ControlReply { v: 1, id, op, answer, error };
    // A struct of texts and JSON always serializes.
    let mut body = serde_json::to_vec(&reply).unwrap_or_default();
    let most = control.c.broker.max_payload();
    if body.len() > most {
        let text = format!("the answer has {} bytes; a message may have {most}", body.len());
        (reply.answer, reply.error) = (None, Some(ControlError::new(ControlCode::TooLarge, text)));
        body = serde_json::to_vec(&reply).unwrap_or_default();
    }
    if let Err(error) = control.c.broker.answer(to, body).await {
        tracing::warn!(job_id = reply.id, %error, "a control request was not answered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(id: &str, body: &str) -> Result<(JobId, ControlRequest), ControlError> {
        read(&Request { id: id.into(), body: body.to_owned().into(), reply_to: None })
    }

    #[test]
    fn what_cannot_be_read_or_done_is_told_by_its_code() {
        use ControlCode as C;
        for (id, body, code) in [
            ("a", "", C::BadRequest),
            ("a", "[]", C::BadRequest),
            ("a", "{}", C::BadRequest),
            ("a", r#"{"op":"cancel","reasn":"x"}"#, C::BadRequest),
            ("a", r#"{"v":2,"op":"status"}"#, C::BadRequest),
            ("a b", r#"{"op":"status"}"#, C::BadRequest),
            ("a", r#"{"op":"explode"}"#, C::UnknownOp),
            ("a", r#"{"op":"nudge"}"#, C::NotSupported),
            ("a", r#"{"op":"answer"}"#, C::NotSupported),
        ] {
            assert_eq!(asked(id, body).unwrap_err().code, code, "{id} {body}");
        }
        assert_eq!(asked("a", r#"{"op":"explode"}"#).unwrap_err().known, OPS);
        let misspelt = asked("a", r#"{"op":"cancel","reasn":"x"}"#).unwrap_err().text;
        assert!(misspelt.contains("reasn") && misspelt.contains("reason"), "{misspelt}");
        assert!(asked("a", r#"{"v":1,"op":"why"}"#).is_ok());
    }

    #[test]
    fn a_wait_is_bounded() {
        let wait = |body: &str| wait_of(&asked("a", body).unwrap().1).as_millis();
        assert_eq!(wait(r#"{"op":"cancel"}"#), 3000);
        assert_eq!(wait(r#"{"op":"cancel","wait_ms":0}"#), 0);
        assert_eq!(wait(r#"{"op":"cancel","wait_ms":9000000}"#), 60_000);
        assert_eq!(wait(r#"{"op":"status","wait_ms":9000}"#), 0);
    }
}
