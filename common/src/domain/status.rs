//! The job machine: a pure function `(state, input, now) → state + events, or a typed refusal`.
//!
//! The Lua scripts in `store/scripts` enforce the same table; `tests/suite/model.rs` drives both with the same random
//! sequences. The table in words is in `docs/state-machine.md`.

use serde::{Deserialize, Serialize};

use super::{
    contract::{Contract, ContractInput},
    event::EventKind,
    outcome::ErrorCode,
    requester::Requester,
};

/// Where a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Queued,
    Scheduled,
    Deferred,
    Running,
    WaitingInput,
    RetryWait,
    Done,
    Failed,
    Cancelled,
    TimedOut,
}

impl Status {
    /// Every status; the position plus one is the number in the Redis record.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Scheduled,
        Self::Deferred,
        Self::Running,
        Self::WaitingInput,
        Self::RetryWait,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
    ];

    /// The name in store, journal, CLI and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
            Self::Deferred => "deferred",
            Self::Running => "running",
            Self::WaitingInput => "waiting_input",
            Self::RetryWait => "retry_wait",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed_out",
        }
    }

    /// Whether the job has its outcome.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled | Self::TimedOut)
    }

    /// Whether an attempt holds the job.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::WaitingInput)
    }

    /// The number in the Redis record.
    pub fn code(self) -> u8 {
        self as u8 + 1
    }

    /// The status of a record's number; `None` for one that this release does not know.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// What the machine knows of a job. Times are milliseconds of the store's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    pub status: Status,
    pub contract: Contract,
    /// From 1; one more for each operator replay.
    pub generation: u32,
    /// Number of transitions so far.
    pub rev: u64,
    /// Fencing token: grows with every claim.
    pub epoch: u64,
    /// Number of the present or last attempt of this generation.
    pub attempt: u32,
    /// Attempts of this generation that used up retry budget.
    pub charged: u32,
    /// Retry budget: `max_retries + 1` charged attempts are allowed.
    pub max_retries: u32,
    /// Failed starts in a row.
    pub start_failures: u32,
    /// When `retry_wait`, `deferred` and `scheduled` become claimable; 0 otherwise.
    pub due_ms: u64,
    /// The attempt that runs was asked to stop.
    pub is_cancelling: bool,
    /// Attempts of this generation that were lost.
    pub lost: u32,
    /// Why the job failed, when it did.
    pub error: Option<ErrorCode>,
}

impl JobState {
    /// A job first seen in a queue: queued, nothing tried.
    pub fn queued(max_retries: u32) -> Self {
        Self {
            status: Status::Queued,
            contract: Contract::Created,
            generation: 1,
            rev: 0,
            epoch: 0,
            attempt: 0,
            charged: 0,
            max_retries,
            start_failures: 0,
            due_ms: 0,
            is_cancelling: false,
            lost: 0,
            error: None,
        }
    }

    /// With which code the job ends if its attempt is lost now; `None`: it is tried again. `limit`: so many may be lost.
    pub fn lost_code(&self, limit: u32) -> Option<ErrorCode> {
        if self.charged >= self.max_retries {
            Some(ErrorCode::AttemptsExhausted)
        } else {
            (self.lost + 1 >= limit).then_some(ErrorCode::Lost)
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A worker wants to start an attempt.
    Claim,
    /// A guard or a missing precondition says "not now".
    Defer { until_ms: u64 },
    /// The time of a scheduled job came.
    Fired,
    /// The attempt with this epoch could not be started.
    StartFailed { epoch: u64, until_ms: u64 },
    /// The handler reported progress.
    Progress { epoch: u64 },
    /// The handler waits for an answer.
    Waiting { epoch: u64 },
    /// The answer came.
    Answered { epoch: u64 },
    /// The attempt failed and is to be tried again at `at_ms`.
    Retry { epoch: u64, at_ms: u64 },
    /// The attempt failed for good, or its budget is spent.
    Fail { epoch: u64, code: ErrorCode },
    /// The attempt's result is in.
    Finish { epoch: u64 },
    /// The attempt was stopped because somebody cancelled the job.
    CancelObeyed { epoch: u64 },
    /// The worker gives the attempt back at shutdown.
    Release { epoch: u64 },
    /// The session of the attempt expired. `limit`: so many attempts may be lost.
    Lost { epoch: u64, limit: u32 },
    /// The attempt went on past its time limit and is fenced; again from `at_ms` on, when it is dead. `limit`: the same.
    Overstayed { at_ms: u64, limit: u32 },
    /// Cancel of a job that is not running.
    Cancel,
    /// Cancel of a running job: its attempt is asked to stop.
    AskToStop { epoch: u64 },
    /// The start surfaced at the requester.
    Surfaced,
    /// No progress within the promise.
    Missed,
    /// The requester was nudged.
    Nudged,
    /// The receipt was delivered.
    Delivered,
    /// The delivery of the receipt was given up.
    GivenUp,
    /// Poison, expired, unknown, or given up by the broker: the job ends without (another) attempt.
    Bury { code: ErrorCode },
    /// The finish deadline of a job that is not running passed.
    Overdue,
    /// An operator asks for another generation.
    Replay,
}

/// Why an input was not applied. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("another attempt owns the job")]
    LiveOwner,
    #[error("the job is not due yet")]
    NotDue,
    #[error("the job already has its outcome")]
    Terminal,
    #[error("the job is still open")]
    Open,
    #[error("the attempt is fenced: a newer one, or none, owns the job")]
    Fenced,
    #[error("the retry budget is spent")]
    Budget,
    #[error("the job is not in a state that allows this")]
    NotApplicable,
}

/// A move that was allowed: the new state, and the events it must journal, in order. One `rev` per event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Transition {
    pub state: JobState,
    pub events: &'static [EventKind],
}

/// The machine.
///
/// A move of the contract that would go backwards, come twice or come too late is `NotApplicable`.
pub fn next(job: &JobState, input: Input, now_ms: u64, requester: &Requester) -> Result<Transition, Refusal> {
    use EventKind as E;
    use Status as S;

    let mut n = job.clone();
    if let Some((told, event)) = telling(input) {
        let is_about_running = matches!(input, Input::Missed | Input::Nudged);
        if is_about_running && !job.status.is_running()
            || input == Input::Surfaced && job.status.is_terminal()
        {
            return Err(Refusal::NotApplicable);
        }
        n.contract = match input {
            // Said of a missed promise, and moves the contract no further.
            Input::Nudged if job.contract == Contract::SlaMissed => job.contract,
            Input::Nudged => return Err(Refusal::NotApplicable),
            _ => job.contract.next(told).ok_or(Refusal::NotApplicable)?,
        };
        n.rev += event.len() as u64;
        return Ok(Transition { state: n, events: event });
    }
    // Every write of an attempt carries its epoch; any other is fenced, whatever the job's status.
    if let Some(epoch) = epoch_of(input)
        && !(job.status.is_running() && job.epoch == epoch)
    {
        return Err(Refusal::Fenced);
    }
    let (status, events): (Status, &'static [E]) = match (job.status, input) {
        (S::Running | S::WaitingInput, Input::Claim) => return Err(Refusal::LiveOwner),
        (S::Queued, Input::Claim) => (S::Running, &[E::Started]),
        (S::Deferred | S::RetryWait, Input::Claim) if job.due_ms <= now_ms => (S::Running, &[E::Started]),
        (S::Deferred | S::RetryWait | S::Scheduled, Input::Claim) => return Err(Refusal::NotDue),

        (S::Queued | S::RetryWait | S::Deferred, Input::Defer { until_ms }) => {
            n.due_ms = until_ms;
            (S::Deferred, &[E::Deferred])
        }
        (S::Scheduled, Input::Fired) => (S::Queued, &[]),

        // From here to `Lost` the epoch was compared above: the job is running and the attempt owns it.
        (_, Input::StartFailed { .. } | Input::Retry { .. } | Input::Release { .. }) if job.is_cancelling => {
            n.error = Some(ErrorCode::Cancelled);
            (S::Cancelled, &[E::Finished])
        }
        (_, Input::StartFailed { until_ms, .. }) => {
            n.start_failures += 1;
            // It never ran, so it is neither counted nor charged.
            n.attempt -= 1;
            n.due_ms = until_ms;
            (S::Deferred, &[E::Deferred])
        }
        (_, Input::Progress { .. }) => {
            n.contract = n.contract.next(ContractInput::Progress).unwrap_or(n.contract);
            (job.status, &[E::Progress])
        }
        (S::Running, Input::Waiting { .. }) => (S::WaitingInput, &[E::WaitingInput]),
        (S::WaitingInput, Input::Answered { .. }) => (S::Running, &[E::Answered]),
        (_, Input::Waiting { .. } | Input::Answered { .. }) => return Err(Refusal::NotApplicable),
        (_, Input::AskToStop { .. }) if job.is_cancelling => (job.status, &[]),
        (_, Input::AskToStop { .. }) => {
            n.is_cancelling = true;
            (job.status, &[E::CancelRequested])
        }
        (S::Running | S::WaitingInput, Input::Lost { .. } | Input::Overstayed { .. })
            if job.is_cancelling =>
        {
            n.charged += 1;
            n.lost += 1;
            n.error = Some(ErrorCode::Cancelled);
            (S::Cancelled, &[E::Finished])
        }
        (_, Input::Retry { at_ms, .. }) => {
            if job.charged >= job.max_retries {
                return Err(Refusal::Budget);
            }
            n.charged += 1;
            n.due_ms = at_ms;
            (S::RetryWait, &[E::AttemptFailed])
        }
        (_, Input::Fail { code, .. }) => {
            n.charged += 1;
            n.error = Some(code);
            let is_late = matches!(code, ErrorCode::Timeout | ErrorCode::FinishDeadline);
            (if is_late { S::TimedOut } else { S::Failed }, &[E::Finished])
        }
        (_, Input::Finish { .. }) => (S::Done, &[E::Finished]),
        (_, Input::CancelObeyed { .. }) => {
            n.error = Some(ErrorCode::Cancelled);
            (S::Cancelled, &[E::Finished])
        }
        (_, Input::Release { .. }) => (S::Queued, &[E::Released]),
        (S::Running | S::WaitingInput, Input::Lost { limit, .. } | Input::Overstayed { limit, .. }) => {
            n.charged += 1;
            n.lost += 1;
            n.error = job.lost_code(limit);
            if n.error.is_some() {
                (S::Failed, &[E::Finished])
            } else {
                n.due_ms = if let Input::Overstayed { at_ms, .. } = input { at_ms } else { now_ms };
                (S::RetryWait, &[E::Lost])
            }
        }
        (S::Queued | S::Scheduled | S::Deferred | S::RetryWait, Input::Overstayed { .. }) => {
            return Err(Refusal::NotApplicable);
        }
        // Fenced above: an attempt that is lost was running.
        (_, Input::Lost { .. }) => return Err(Refusal::Fenced),

        (S::Done | S::Failed | S::Cancelled | S::TimedOut, Input::Replay) => {
            n.generation += 1;
            n.attempt = 0;
            n.charged = 0;
            n.start_failures = 0;
            n.lost = 0;
            n.error = None;
            n.contract = Contract::Created;
            (S::Queued, &[E::Replayed])
        }
        (_, Input::Replay) => return Err(Refusal::Open),
        (S::Done | S::Failed | S::Cancelled | S::TimedOut, _) => return Err(Refusal::Terminal),

        (
            S::Running | S::WaitingInput,
            Input::Cancel | Input::Bury { .. } | Input::Overdue | Input::Defer { .. },
        ) => {
            return Err(Refusal::LiveOwner);
        }
        (_, Input::Cancel) => {
            n.error = Some(ErrorCode::Cancelled);
            (S::Cancelled, &[E::Finished])
        }
        (_, Input::Bury { code }) => {
            n.error = Some(code);
            (S::Failed, &[E::Buried, E::Finished])
        }
        (_, Input::Overdue) => {
            n.error = Some(ErrorCode::FinishDeadline);
            (S::TimedOut, &[E::Finished])
        }
        (S::Scheduled, Input::Defer { .. })
        | (S::Queued | S::Deferred | S::RetryWait | S::Running | S::WaitingInput, Input::Fired) => {
            return Err(Refusal::NotApplicable);
        }
        // Answered above: they move the contract and nothing else.
        (_, Input::Surfaced | Input::Missed | Input::Nudged | Input::Delivered | Input::GivenUp) => {
            return Err(Refusal::NotApplicable);
        }
    };

    if matches!(input, Input::Claim) {
        // The first is the clock's: a record that was lost with its claim never gets the same one again.
        n.epoch = if n.epoch == 0 { now_ms } else { n.epoch + 1 };
        n.attempt += 1;
        if !requester.wants_notices() {
            n.contract = n.contract.next(ContractInput::Surfaced).unwrap_or(n.contract);
        }
    }
    let keeps_failed_starts = matches!(
        input,
        Input::StartFailed { .. } | Input::Claim | Input::Progress { .. } | Input::AskToStop { .. }
    );
    if !keeps_failed_starts || status.is_terminal() {
        n.start_failures = 0;
    }
    if !status.is_running() {
        n.is_cancelling = false;
    }
    if !matches!(status, S::RetryWait | S::Deferred) {
        n.due_ms = 0;
    }
    if status.is_terminal() {
        n.contract =
            n.contract.next(ContractInput::Ended { someone: !requester.is_nobody() }).unwrap_or(n.contract);
    }
    n.status = status;
    n.rev += events.len() as u64;
    Ok(Transition { state: n, events })
}

/// What an input says of the contract alone, with its event.
fn telling(input: Input) -> Option<(ContractInput, &'static [EventKind])> {
    Some(match input {
        Input::Surfaced => (ContractInput::Surfaced, &[EventKind::Acked]),
        Input::Missed => (ContractInput::Missed, &[EventKind::SlaMissed]),
        Input::Nudged => (ContractInput::Missed, &[EventKind::Nudged]),
        Input::Delivered => (ContractInput::Delivered, &[EventKind::ReceiptDelivered]),
        Input::GivenUp => (ContractInput::GivenUp, &[EventKind::ReceiptFailed]),
        _ => return None,
    })
}

fn epoch_of(input: Input) -> Option<u64> {
    match input {
        Input::StartFailed { epoch, .. }
        | Input::Progress { epoch }
        | Input::Waiting { epoch }
        | Input::Answered { epoch }
        | Input::Retry { epoch, .. }
        | Input::Fail { epoch, .. }
        | Input::Finish { epoch }
        | Input::CancelObeyed { epoch }
        | Input::Release { epoch }
        | Input::AskToStop { epoch }
        | Input::Lost { epoch, .. } => Some(epoch),
        Input::Claim
        | Input::Defer { .. }
        | Input::Fired
        | Input::Overstayed { .. }
        | Input::Cancel
        | Input::Bury { .. }
        | Input::Overdue
        | Input::Surfaced
        | Input::Missed
        | Input::Nudged
        | Input::Delivered
        | Input::GivenUp
        | Input::Replay => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn running() -> JobState {
        next(&JobState::queued(3), Input::Claim, 1000, &Requester::Nobody).unwrap().state
    }

    #[test]
    fn claim_grants_one_attempt_and_refuses_the_second() {
        let j = running();
        assert_eq!(
            (j.status, j.epoch, j.attempt, j.rev, j.contract),
            (Status::Running, 1000, 1, 1, Contract::Acked)
        );
        assert_eq!(next(&j, Input::Claim, 1000, &Requester::Nobody), Err(Refusal::LiveOwner));
    }

    #[test]
    fn a_job_in_backoff_is_claimable_at_its_time_and_not_before() {
        let j = next(&running(), Input::Retry { epoch: 1000, at_ms: 5000 }, 1000, &Requester::Nobody)
            .unwrap()
            .state;
        assert_eq!(next(&j, Input::Claim, 4999, &Requester::Nobody), Err(Refusal::NotDue));
        assert_eq!(next(&j, Input::Claim, 5000, &Requester::Nobody).unwrap().state.epoch, 1001);
    }

    // Shows
    #[test]
    fn budget_counts_charged_attempts_only() {
        let mut j = JobState::queued(3);
        for _ in 0..20 {
            j = next(&j, Input::Claim, 1000, &Requester::Nobody).unwrap().state;
            j = next(&j, Input::Release { epoch: j.epoch }, 1000, &Requester::Nobody).unwrap().state;
        }
        let mut runs = 0;
        loop {
            j = next(&j, Input::Claim, u64::MAX, &Requester::Nobody).unwrap().state;
            runs += 1;
            match next(&j, Input::Retry { epoch: j.epoch, at_ms: 2000 }, 1000, &Requester::Nobody) {
                Ok(t) => j = t.state,
                Err(r) => {
                    assert_eq!(r, Refusal::Budget);
                    break;
                }
            }
        }
        assert_eq!(runs, 4);
    }

    // Shows: X-03
    #[test]
    fn a_late_result_is_fenced() {
        let j =
            next(&running(), Input::Lost { epoch: 1000, limit: 5 }, 1000, &Requester::Nobody).unwrap().state;
        let j = next(&j, Input::Claim, 1000, &Requester::Nobody).unwrap().state;
        assert_eq!(next(&j, Input::Finish { epoch: 1000 }, 1000, &Requester::Nobody), Err(Refusal::Fenced));
        assert_eq!(
            next(&j, Input::Finish { epoch: 1001 }, 1000, &Requester::Nobody).unwrap().state.status,
            Status::Done
        );
    }

    // Shows: A-11
    #[test]
    fn replay_resets_exactly_what_a_new_generation_needs() {
        let done = next(
            &running(),
            Input::Fail { epoch: 1000, code: ErrorCode::ExitCode },
            1000,
            &Requester::Nobody,
        )
        .unwrap()
        .state;
        let again = next(&done, Input::Replay, 1000, &Requester::Nobody).unwrap().state;
        let want = JobState {
            status: Status::Queued,
            contract: Contract::Created,
            generation: 2,
            rev: done.rev + 1,
            epoch: done.epoch, // never goes back: old attempts stay fenced
            attempt: 0,
            charged: 0,
            max_retries: done.max_retries,
            start_failures: 0,
            due_ms: 0,
            is_cancelling: false,
            lost: 0,
            error: None,
        };
        assert_eq!(again, want);
        assert_eq!(next(&again, Input::Replay, 1000, &Requester::Nobody), Err(Refusal::Open));
    }

    #[test]
    fn a_timeout_is_its_own_terminal_state() {
        let j =
            next(&running(), Input::Fail { epoch: 1000, code: ErrorCode::Timeout }, 1000, &Requester::Nobody)
                .unwrap()
                .state;
        assert_eq!(j.status, Status::TimedOut);
    }

    fn any_input() -> impl Strategy<Value = Input> {
        let epoch = 0u64..4;
        prop_oneof![
            3 => Just(Input::Claim),
            1 => epoch.clone().prop_map(|epoch| Input::StartFailed { epoch, until_ms: 10 }),
            1 => epoch.clone().prop_map(|epoch| Input::Retry { epoch, at_ms: 10 }),
            1 => epoch.clone().prop_map(|epoch| Input::Fail { epoch, code: ErrorCode::ExitCode }),
            1 => epoch.clone().prop_map(|epoch| Input::Finish { epoch }),
            1 => epoch.clone().prop_map(|epoch| Input::Release { epoch }),
            1 => epoch.clone().prop_map(|epoch| Input::Progress { epoch }),
            1 => epoch.clone().prop_map(|epoch| Input::AskToStop { epoch }),
            1 => epoch.clone().prop_map(|epoch| Input::CancelObeyed { epoch }),
            1 => epoch.prop_map(|epoch| Input::Lost { epoch, limit: 2 }),
            1 => Just(Input::Cancel),
            1 => Just(Input::Bury { code: ErrorCode::InvalidJob }),
            1 => Just(Input::Overdue),
            1 => Just(Input::Overstayed { at_ms: 10, limit: 2 }),
            1 => Just(Input::Replay),
            // What is said to the requester, by whoever says it, early or late.
            6 => prop::sample::select(vec![
                Input::Surfaced,
                Input::Missed,
                Input::Nudged,
                Input::Delivered,
                Input::GivenUp,
            ]),
        ]
    }

    fn any_requester() -> impl Strategy<Value = Requester> {
        prop::sample::select(vec![
            Requester::Nobody,
            Requester::new("replies", false).unwrap(),
            Requester::new("replies", true).unwrap(),
        ])
    }

    // Shows: C-02, C-08
    #[test]
    fn the_start_acknowledges_what_was_only_asked_for_and_a_nudge_needs_a_missed_promise() {
        for contract in Contract::ALL {
            let j = JobState { contract, ..running() };
            let moved = |input| next(&j, input, 0, &Requester::Nobody).ok().map(|t| t.state.contract);
            let is_open = contract < Contract::TerminalPending;
            if is_open {
                let acked = (contract == Contract::Created).then_some(Contract::Acked);
                assert_eq!(moved(Input::Surfaced), acked, "{contract:?}");
            }
            let nudged = (contract == Contract::SlaMissed).then_some(contract);
            assert_eq!(moved(Input::Nudged), nudged, "{contract:?}");
        }
    }

    proptest! {
        // Shows: C-04, C-13, C-14
        #[test]
        fn whatever_happens_revisions_are_gapless_and_an_outcome_stays(
            inputs in prop::collection::vec(any_input(), 0..60),
            who in any_requester(),
        ) {
            let mut j = JobState::queued(1);
            for i in inputs {
                if let Ok(t) = next(&j, i, 100, &who) {
                    prop_assert_eq!(t.state.rev, j.rev + t.events.len() as u64);
                    prop_assert!(t.state.epoch >= j.epoch);
                    prop_assert!(t.state.charged <= t.state.max_retries + 1);
                    let is_receipt = matches!(i, Input::Delivered | Input::GivenUp);
                    if j.status.is_terminal() && !is_receipt {
                        prop_assert_eq!(i, Input::Replay);
                        prop_assert_eq!(t.state.generation, j.generation + 1);
                    }
                    let ends = t.events.iter().filter(|e| **e == EventKind::Finished).count();
                    prop_assert_eq!(ends == 1, t.state.status.is_terminal() && !is_receipt);
                    // A new generation is a new promise; within one the rank never falls, but by progress after a miss.
                    let (was, is) = (j.contract, t.state.contract);
                    let recovered = (was, is) == (Contract::SlaMissed, Contract::Progressing);
                    prop_assert!(i == Input::Replay || is >= was || recovered, "{:?}: {:?} to {:?}", i, was, is);
                    // The outcome and the notification are told apart.
                    prop_assert_eq!(is >= Contract::TerminalPending, t.state.status.is_terminal());
                    prop_assert!(!is_receipt || t.state.status == j.status);
                    j = t.state;
                }
            }
        }
    }
}
