//! In-process handlers.

use std::{future::Future, panic::AssertUnwindSafe, pin::Pin, sync::Arc};

use futures::FutureExt;
use serde_json::{Value, value::RawValue};
use surety_common::{
    clock::format_span,
    domain::{ErrorCode, FailureClass, job::RESULT_CAP},
    wire::strict,
};

use super::{Attempt, Detail, Ended, HandlerError, JobContext};

type Run =
    dyn Fn(JobContext) -> Pin<Box<dyn Future<Output = Result<Value, HandlerError>> + Send>> + Send + Sync;

/// A Rust function as handler.
#[derive(Clone)]
pub(crate) struct RustHandler(Arc<Run>);

impl RustHandler {
    pub(crate) fn new<F, Fut>(run: F) -> Self
    where
        F: Fn(JobContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Value, HandlerError>> + Send + 'static,
    {
        Self(Arc::new(move |c| Box::pin(run(c))))
    }

    /// Runs the handler. At the time limit, at an abort, at a fence and when a lock is lost its future is dropped; a panic is a failure.
    pub(crate) async fn run(&self, a: Attempt) -> Ended {
        let ask = a.context.stop.clone();
        let work = AssertUnwindSafe((self.0)(a.context)).catch_unwind();
        let failed = |code: ErrorCode, class, message| Ended::Failed {
            code,
            class,
            message,
            detail: Detail::default(),
        };
        tokio::select! {
            biased;
            () = a.stop.fence.cancelled() => {
                ask.cancel();
                Ended::Fenced
            }
            out = work => match out {
                Ok(Ok(value)) => result(&value),
                Ok(Err(e)) => failed(ErrorCode::HandlerError, e.class, e.message),
                Err(panic) => {
                    let text = panic
                        .downcast_ref::<&str>()
                        .map(|s| (*s).to_owned())
                        .or_else(|| panic.downcast_ref::<String>().cloned())
                        .unwrap_or_else(|| "no message".into());
                    failed(ErrorCode::HandlerError, FailureClass::Retryable, format!("the handler panicked: {text}"))
                }
            },
            () = a.stop.lock.lost() => {
                ask.cancel();
                match a.stop.lock.failure() {
                    Some((code, class, message)) => failed(code, class, message),
                    None => Ended::Stopped,
                }
            }
            () = a.stop.abort.cancelled() => {
                ask.cancel();
                Ended::Stopped
            }
            () = a.stop.cancel.cancelled() => {
                ask.cancel();
                Ended::Cancelled
            }
            () = tokio::time::sleep(a.timeout) => {
                ask.cancel();
                failed(ErrorCode::Timeout, FailureClass::Retryable, format!("time limit of {} reached", format_span(a.timeout)))
            }
        }
    }
}

fn result(value: &Value) -> Ended {
    if value.is_null() {
        return Ended::Done { result: None, usage: None };
    }
    let text = value.to_string();
    if let Err(why) = strict::check(&text) {
        return Ended::Failed {
            code: ErrorCode::HandlerError,
            class: FailureClass::Final,
            message: format!("the result was refused: {why}"),
            detail: Detail::default(),
        };
    }
    match RawValue::from_string(text) {
        Ok(r) if r.get().len() <= RESULT_CAP => Ended::Done { result: Some(r), usage: None },
        Ok(r) => Ended::Failed {
            code: ErrorCode::OutputLimit,
            class: FailureClass::Final,
            message: format!("the result has {} bytes; the cap is {RESULT_CAP}", r.get().len()),
            detail: Detail::default(),
        },
        Err(e) => Ended::Failed {
            code: ErrorCode::Internal,
            class: FailureClass::Final,
            message: format!("the result is not JSON: {e}"),
            detail: Detail::default(),
        },
    }
}
