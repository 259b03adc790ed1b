//! How an attempt ended, and what follows from it.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($variant:ident = $name:literal, $class:ident, $doc:literal;)+) => {
        /// Why a job or an attempt failed. The set is bounded, so it may be a metric label.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $(#[doc = $doc] $variant),+ }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name on the wire and in metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What the code means, in one sentence.
            pub fn describe(self) -> &'static str {
                match self { $(Self::$variant => $doc),+ }
            }

            /// Whether an attempt that ended this way is tried again while budget is left.
            pub fn class(self) -> FailureClass {
                match self { $(Self::$variant => FailureClass::$class),+ }
            }

            /// The code of a wire name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

/// Whether a failure is worth another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// Tried again while budget is left.
    Retryable,
    /// Failed for good, whatever budget is left.
    Final,
}

codes! {
    HandlerError = "handler_error", Retryable, "The handler reported an error.";
    ExitCode = "exit_code", Retryable, "The command ended with a non-zero exit code.";
    Signal = "signal", Retryable, "The command was ended by a signal that we did not send.";
    Oom = "oom", Retryable, "The kernel killed the command because it used too much memory.";
    PidsLimit = "pids_limit", Retryable, "The command reached its limit of processes.";
    Timeout = "timeout", Retryable, "The attempt reached its time limit and was stopped.";
    Stalled = "stalled", Retryable, "The attempt showed no activity for too long and was stopped.";
    Lost = "lost", Retryable, "The worker of the attempt died, froze or lost its lease.";
    StartFailed = "start_failed", Retryable, "The handler could not be started; this costs no attempt.";
    Preflight = "preflight", Retryable, "A precondition of the handler was not met.";
    OutputLimit = "output_limit", Retryable, "The command wrote more output than it may.";
    LimitReached = "limit_reached", Final, "The handler reached its own limit of iterations.";
    Stuck = "stuck", Retryable, "The handler said that it is stuck.";
    LockLost = "lock_lost", Retryable, "A lock of the attempt was lost.";
    InvalidJob = "invalid_job", Final, "The message is not a valid job document.";
    UnknownType = "unknown_type", Final, "No worker has a handler for this type.";
    UnknownVersion = "unknown_version", Final, "No worker knows this version of the job document, or one of its fields.";
    LoopGuard = "loop_guard", Final, "The job is part of a loop.";
    Expired = "expired", Final, "The job was not started by its `expires_at`.";
    Cancelled = "cancelled", Final, "The job was cancelled.";
    FinishDeadline = "finish_deadline", Final, "The job did not end by its finish deadline.";
    MaxDeliver = "max_deliver", Final, "The broker gave up delivering the job.";
    AttemptsExhausted = "attempts_exhausted", Final, "Every attempt of the retry budget failed.";
    MessageLost = "message_lost", Final, "The message of the job vanished from the broker.";
    Internal = "internal", Retryable, "Surety itself failed; see the message.";
}

/// How a command ended, as its worker saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandEnd {
    /// It exited by itself.
    Exit(i32),
    /// A signal that we did not send ended it; `oom` when the kernel says so.
    Signal { oom: bool },
    /// We stopped it at its time limit.
    TimedOut,
}

/// What the handler said on its control channel before it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// `{"error": {"retry": …}}`: the handler's own verdict.
    pub error_retry: Option<bool>,
    /// Whether an `error` line was seen at all.
    pub is_error: bool,
    /// The last `{"iteration": n, "max": m}`.
    pub iteration: Option<(u64, u64)>,
}

/// The verdict over one attempt, before the retry budget is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It did what was asked.
    Done,
    /// It failed; the class says whether another attempt may follow.
    Failed(ErrorCode, FailureClass),
}

/// Judges a command's end. `exit_codes` holds the handler's own meanings (exit code to error code).
///
/// Exit codes: 0 done; 69 and 75 retry; 64, 65, 77, 78, 126 and 127 failed for good; any other retried.
/// A command that was ended by force after its last iteration is `limit_reached` and not retried.
pub fn judge_command(end: CommandEnd, said: &Said, exit_codes: &[(i32, ErrorCode)]) -> Verdict {
    let at_limit = said.iteration.is_some_and(|(n, max)| max > 0 && n >= max);
    match end {
        CommandEnd::TimedOut | CommandEnd::Signal { .. } if at_limit => failed(ErrorCode::LimitReached),
        CommandEnd::TimedOut => failed(ErrorCode::Timeout),
        CommandEnd::Signal { oom: true } => failed(ErrorCode::Oom),
        CommandEnd::Signal { oom: false } => failed(ErrorCode::Signal),
        CommandEnd::Exit(code) => {
            if let Some((_, named)) = exit_codes.iter().find(|(c, _)| *c == code) {
                return failed(*named);
            }
            if said.is_error {
                let class = if said.error_retry == Some(false) {
                    FailureClass::Final
                } else {
                    FailureClass::Retryable
                };
                return Verdict::Failed(ErrorCode::HandlerError, class);
            }
            match code {
                0 => Verdict::Done,
                64 | 65 | 77 | 78 | 126 | 127 => Verdict::Failed(ErrorCode::ExitCode, FailureClass::Final),
                _ => failed(ErrorCode::ExitCode),
            }
        }
    }
}

fn failed(code: ErrorCode) -> Verdict {
    Verdict::Failed(code, code.class())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Shows: A-09
    #[test]
    fn classes_that_are_not_retried_are_exactly_these() {
        let finals: Vec<_> =
            ErrorCode::ALL.iter().filter(|c| c.class() == FailureClass::Final).map(|c| c.name()).collect();
        assert_eq!(
            finals,
            [
                "limit_reached",
                "invalid_job",
                "unknown_type",
                "unknown_version",
                "loop_guard",
                "expired",
                "cancelled",
                "finish_deadline",
                "max_deliver",
                "attempts_exhausted",
                "message_lost"
            ]
        );
        for c in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_name(c.name()), Some(*c));
        }
    }

    // Shows: A-09
    #[test]
    fn exit_codes_map_to_verdicts() {
        let said = Said::default();
        assert_eq!(judge_command(CommandEnd::Exit(0), &said, &[]), Verdict::Done);
        for code in [64, 65, 77, 78, 126, 127] {
            let want = Verdict::Failed(ErrorCode::ExitCode, FailureClass::Final);
            assert_eq!(judge_command(CommandEnd::Exit(code), &said, &[]), want, "{code}");
        }
        for code in [1, 2, 3, 69, 75, 101, 255] {
            let want = Verdict::Failed(ErrorCode::ExitCode, FailureClass::Retryable);
            assert_eq!(judge_command(CommandEnd::Exit(code), &said, &[]), want, "{code}");
        }
        let named = [(1, ErrorCode::Stuck), (2, ErrorCode::LimitReached)];
        assert_eq!(judge_command(CommandEnd::Exit(2), &said, &named), failed(ErrorCode::LimitReached));
        assert_eq!(judge_command(CommandEnd::Signal { oom: true }, &said, &[]), failed(ErrorCode::Oom));
    }

    // Shows: A-04
    #[test]
    fn killed_at_its_iteration_cap_is_not_retried() {
        let said = Said { iteration: Some((10, 10)), ..Said::default() };
        let want = Verdict::Failed(ErrorCode::LimitReached, FailureClass::Final);
        assert_eq!(judge_command(CommandEnd::TimedOut, &said, &[]), want);
        assert_eq!(judge_command(CommandEnd::Signal { oom: false }, &said, &[]), want);
        let before = Said { iteration: Some((9, 10)), ..Said::default() };
        assert_eq!(judge_command(CommandEnd::TimedOut, &before, &[]), failed(ErrorCode::Timeout));
    }

    #[test]
    fn an_error_line_that_says_no_retry_is_final_even_with_exit_0() {
        let said = Said { is_error: true, error_retry: Some(false), iteration: None };
        let want = Verdict::Failed(ErrorCode::HandlerError, FailureClass::Final);
        assert_eq!(judge_command(CommandEnd::Exit(0), &said, &[]), want);
    }
}
