//! From how an attempt ended to what the store is told: verdict, receipt, data. No IO.

use std::time::Duration;

use surety_common::{
    broker::decode::Decoded,
    clock::iso_millis,
    domain::{ErrorCode, FailureClass, Job, Status, text},
    pace::Transient,
    store::{FinishItem, StoreError, Verdict, ops::Grant},
    wire::receipt::Draft,
};

use crate::handler::{Detail, Ended};

/// The finish of an attempt: verdict with the retry budget looked at, receipt, data and detail.
pub(crate) fn finish_item(
    job: &Job,
    grant: &Grant,
    ended: &Ended,
    start_retry: Duration,
    trace: &str,
) -> FinishItem {
    let started = iso_millis(grant.started_ms);
    let receipt = |status: Status, code: Option<ErrorCode>, message: Option<&str>, ended: Option<&Ended>| {
        let mut r = Draft::new(&job.id, grant.generation, &job.kind, status.name());
        r.error_code = code;
        r.message = message;
        r.started_at = started.as_deref();
        r.trace = (!trace.is_empty()).then_some(trace);
        if let Some(Ended::Done { result, usage }) = ended {
            r.result = result.as_deref();
            r.usage = usage.as_deref();
        }
        r.open_json()
    };
    let item = |verdict, receipt, data: String, detail| FinishItem {
        id: job.id.clone(),
        epoch: grant.epoch,
        verdict,
        receipt,
        data: data.strip_suffix('}').unwrap_or("{").to_owned(),
        detail,
    };
    match ended {
        // What the store writes by itself: nothing to carry there and back.
        Ended::Done { result: None, usage: None } => {
            item(Verdict::Done, String::new(), "{}".into(), String::new())
        }
        Ended::Done { .. } => {
            item(Verdict::Done, receipt(Status::Done, None, None, Some(ended)), "{}".into(), String::new())
        }
        Ended::Stopped | Ended::Fenced => {
            item(Verdict::Release, "{".into(), r#"{"reason":"shutdown"}"#.into(), String::new())
        }
        Ended::Signalled => {
            item(Verdict::Release, "{".into(), r#"{"reason":"signal"}"#.into(), String::new())
        }
        Ended::Cancelled => {
            let code = Some(ErrorCode::Cancelled);
            let receipt = receipt(Status::Cancelled, code, Some("cancelled while it ran"), None);
            item(Verdict::CancelObeyed, receipt, "{}".into(), String::new())
        }
        Ended::NotStarted { message } => {
            let delay = start_delay(start_retry, grant.start_failures);
            let data = failure_data(ErrorCode::StartFailed, message, &Detail::default());
            let detail = failure_detail(grant, ErrorCode::StartFailed, message, &Detail::default());
            item(Verdict::StartFailed { delay }, "{".into(), data, detail)
        }
        Ended::Failed { code, class, message, detail } => {
            let random = f64::from(rand_u16()) / f64::from(u16::MAX);
            let delay = if *class == FailureClass::Retryable {
                job.retry.delay_after(grant.charged + 1, random)
            } else {
                None
            };
            let stored = failure_detail(grant, *code, message, detail);
            if let Some(delay) = delay {
                let data = failure_data(*code, message, detail);
                return item(Verdict::Retry { code: *code, delay }, "{".into(), data, stored);
            }
            let (last, text_) = final_error(*code, *class, grant, message);
            let is_late = matches!(last, ErrorCode::Timeout | ErrorCode::FinishDeadline);
            let status = if is_late { Status::TimedOut } else { Status::Failed };
            item(Verdict::Fail(last), receipt(status, Some(last), Some(&text_), None), "{}".into(), stored)
        }
    }
}

/// The job's own error once no attempt follows: the attempt's where it is final or the only one, else that all failed.
fn final_error(code: ErrorCode, class: FailureClass, grant: &Grant, message: &str) -> (ErrorCode, String) {
    let message = text::cut(message, 2048);
    let is_exhausted = class == FailureClass::Retryable && grant.charged > 0 && code != ErrorCode::Timeout;
    if is_exhausted {
        let n = grant.charged + 1;
        return (
            ErrorCode::AttemptsExhausted,
            format!("all {n} attempts failed, the last with {}: {message}", code.name()),
        );
    }
    (code, message.into_owned())
}

fn failure_data(code: ErrorCode, message: &str, detail: &Detail) -> String {
    // Without the tails, which may be large: they are kept beside the record.
    let small = Detail { stdout_tail: vec![], stderr_tail: vec![], ..detail.clone() };
    let mut v = serde_json::to_value(small).unwrap_or_default();
    if let Some(o) = v.as_object_mut() {
        o.insert("error_code".into(), code.name().into());
        o.insert("message".into(), text::cut(message, 2048).into());
    }
    v.to_string()
}

fn failure_detail(grant: &Grant, code: ErrorCode, message: &str, detail: &Detail) -> String {
    let mut v = serde_json::to_value(detail).unwrap_or_default();
    if let Some(o) = v.as_object_mut() {
        o.insert("attempt".into(), grant.attempt.into());
        o.insert("epoch".into(), grant.epoch.into());
        o.insert("error_code".into(), code.name().into());
        o.insert("message".into(), text::cut(message, 4096).into());
    }
    v.to_string()
}

/// A random number for jitter; not for secrets.
fn rand_u16() -> u16 {
    (ulid::Ulid::generate().random() & 0xffff) as u16
}

/// Delay before a start that failed is tried again: doubles from `first`, up to ten minutes.
fn start_delay(first: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(16)).min(Duration::from_secs(600))
}

/// Whether a finish that could not be written for its whole budget of tries becomes a failure: only an outcome that the store
/// refuses. While the store is away the lease decides; a result in hand must not turn into a failure, nor a release at
/// shutdown, nor a retry.
pub(crate) fn gives_up(verdict: Verdict, error: &StoreError) -> bool {
    // A record that cannot be read says nothing about the result: it is set aside and the finish goes on.
    let is_refused = !error.is_transient() && !matches!(error, StoreError::Unreadable { .. });
    matches!(verdict, Verdict::Done | Verdict::Fail(_)) && is_refused
}

/// The failure that takes the place of a finish that cannot be written.
pub(crate) fn gave_up(item: &FinishItem, decoded: &Decoded, why: &str) -> FinishItem {
    let generation = decoded.generation;
    let mut r = Draft::new(&decoded.job.id, generation, &decoded.job.kind, Status::Failed.name());
    r.error_code = Some(ErrorCode::Internal);
    r.message = Some(why);
    FinishItem { verdict: Verdict::Fail(ErrorCode::Internal), receipt: r.open_json(), ..item.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(charged: u32) -> Grant {
        Grant {
            epoch: 9,
            attempt: 4,
            charged,
            generation: 1,
            started_ms: 1,
            rev: 1,
            start_failures: 0,
            limit_ms: 0,
        }
    }

    // Shows: A-05
    #[test]
    fn the_last_failure_of_a_budget_has_its_own_error() {
        let (code, text_) =
            final_error(ErrorCode::ExitCode, FailureClass::Retryable, &grant(3), "exit code 3");
        assert_eq!(code, ErrorCode::AttemptsExhausted);
        assert_eq!(text_, "all 4 attempts failed, the last with exit_code: exit code 3");
        assert_eq!(
            final_error(ErrorCode::ExitCode, FailureClass::Final, &grant(3), "x").0,
            ErrorCode::ExitCode
        );
        assert_eq!(
            final_error(ErrorCode::Timeout, FailureClass::Retryable, &grant(3), "x").0,
            ErrorCode::Timeout
        );
        assert_eq!(
            final_error(ErrorCode::Signal, FailureClass::Retryable, &grant(0), "x").0,
            ErrorCode::Signal
        );
    }

    // Shows: A-05
    #[test]
    fn only_an_outcome_that_the_store_refuses_is_given_up() {
        let (away, refused) = (StoreError::Unreachable("".into()), StoreError::Refused("".into()));
        assert!(gives_up(Verdict::Done, &refused) && gives_up(Verdict::Fail(ErrorCode::Oom), &refused));
        assert!(!gives_up(Verdict::Done, &away));
        let again = Verdict::Retry { code: ErrorCode::Oom, delay: Duration::ZERO };
        for v in
            [Verdict::Release, again, Verdict::StartFailed { delay: Duration::ZERO }, Verdict::CancelObeyed]
        {
            assert!(!gives_up(v, &refused), "{v:?}");
        }
    }

    #[test]
    fn failure_data_leaves_the_tails_out_and_the_detail_keeps_them() {
        let d = Detail { stderr_tail: vec!["boom".into()], iteration: Some(7), ..Detail::default() };
        let data = failure_data(ErrorCode::ExitCode, "m", &d);
        assert!(!data.contains("boom") && data.contains("\"iteration\":7"), "{data}");
        assert!(failure_detail(&grant(0), ErrorCode::ExitCode, "m", &d).contains("boom"));
    }

    #[test]
    fn start_delays_grow_and_are_bounded() {
        let secs = |n| start_delay(Duration::from_secs(2), n).as_secs();
        assert_eq!([secs(0), secs(1), secs(2), secs(20)], [2, 4, 8, 600]);
    }
}
