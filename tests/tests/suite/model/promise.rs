//! What the record promises beside its states, as the model knows it: by when, how often it was told, which deadline comes first.

use std::{sync::LazyLock, time::Duration};

use proptest::{prelude::*, sample::select};
use surety_common::{
    domain::{
        Contract, Input, JobState, Requester,
        deadline::{Due, Patience, Watched, decide},
    },
    store::{DueAct, Telling},
};

use super::{HOUR, JOBS};

/// How long an attempt may overstay here: a deadline that passed is acted on at once.
pub(super) const OVERSTAY: Duration = Duration::ZERO;
/// A receipt is looked for again after so long (`RECEIPT_WITHIN` of the prelude).
pub(super) const RECEIPT_WITHIN_MS: u64 = 60_000;

/// How long a reaper has what it took to tell. Not none: that it was taken shows in a promise that moved.
const TELL_WITHIN: Duration = Duration::from_millis(1);

/// Who asked for each job: nobody, somebody who wants the outcome, somebody who wants notices too.
static REQUESTERS: LazyLock<[Requester; JOBS]> = LazyLock::new(|| {
    [
        Requester::Nobody,
        Requester::new("replies.outcome", false).unwrap(),
        Requester::new("replies.all", true).unwrap(),
    ]
});

pub(super) fn requester(job: usize) -> &'static Requester {
    &REQUESTERS[job]
}

/// The times of a claim: which of them is over at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terms {
    Roomy,
    /// The start is to be told, and progress is promised, at once.
    Impatient,
    /// The attempt's time limit is over at once.
    NoTime,
    /// The finish deadline of a job that is seen for the first time is over at once.
    Overdue,
}

impl Terms {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            4 => Just(Self::Roomy),
            3 => Just(Self::Impatient),
            2 => Just(Self::NoTime),
            1 => Just(Self::Overdue),
        ]
    }

    pub(super) fn promise_ms(self) -> u32 {
        if self == Self::Impatient { 0 } else { 60_000 }
    }

    pub(super) fn timeout_ms(self) -> u64 {
        if self == Self::NoTime { 0 } else { 600_000 }
    }

    pub(super) fn finish_ms(self) -> u64 {
        if self == Self::Overdue { 0 } else { 86_400_000 }
    }
}

/// What a reaper may say of a due job, whatever the job is.
pub(super) fn any_act() -> impl Strategy<Value = Option<DueAct>> {
    let wrong = select(vec![
        DueAct::LookAgain(HOUR),
        DueAct::Expired,
        DueAct::Overdue,
        DueAct::Overstayed(Duration::ZERO),
        DueAct::Missed(Duration::ZERO),
        DueAct::Tell(TELL_WITHIN),
        DueAct::Drop,
        DueAct::Forgo,
    ]);
    prop_oneof![4 => Just(None), 1 => wrong.prop_map(Some)]
}

pub(super) fn any_telling() -> impl Strategy<Value = Telling> {
    select(vec![
        Telling::Start { progress: Duration::ZERO },
        Telling::Start { progress: HOUR },
        Telling::StartFailed,
        Telling::Nudge,
        Telling::Receipt,
        Telling::ReceiptLater { after: Duration::ZERO },
        Telling::ReceiptGivenUp,
    ])
}

/// The times of a job, as the model expects them in its record.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Promise {
    pub(super) by: u64,
    pub(super) told: u32,
    pub(super) deadline: u64,
    pub(super) finish_by: u64,
    /// Where the reaper moved the member of the index and nothing else.
    pub(super) index: Option<u64>,
}

/// What an input says besides.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Times {
    pub(super) ack: u64,
    pub(super) progress: u64,
    pub(super) timeout: u64,
    /// For how long the reaper has what it took.
    pub(super) after: u64,
    /// Until somebody looks why a job that waits is not claimed.
    pub(super) look: u64,
}

impl Promise {
    /// What follows from an input that the machine took: the table of `docs/redis-keys.md`.
    pub(super) fn follow(&mut self, new: &JobState, input: Input, now: u64, t: Times) {
        self.index = None;
        if new.status.is_terminal() && !about_outcome(input) {
            self.by = if new.contract == Contract::TerminalPending { now + RECEIPT_WITHIN_MS } else { 0 };
            self.told = 0;
            return;
        }
        match input {
            Input::Claim => {
                let first = if new.contract == Contract::Created { t.ack } else { t.progress };
                (self.by, self.told) = (now + first, 0);
                self.deadline = (now + t.timeout).min(self.finish_by);
            }
            Input::Progress { .. } => (self.by, self.told) = (now + t.progress, 0),
            Input::Surfaced => {
                self.told = 0;
                if new.status.is_running() {
                    self.by = now + t.progress;
                }
            }
            Input::Missed => (self.by, self.told) = (now + t.after, 1),
            Input::Nudged => (self.by, self.told) = (0, 0),
            Input::Delivered => self.by = 0,
            Input::GivenUp => (self.by, self.told) = (0, self.told + 1),
            Input::Replay => {
                (self.by, self.told, self.deadline) = (now + t.look, 0, 0);
            }
            Input::AskToStop { .. } => {}
            // The attempt is no more: the job waits.
            _ => (self.by, self.deadline) = (new.due_ms.max(now) + t.look, 0),
        }
    }

    /// Where the due index has the job; `None`: it is not in it.
    pub(super) fn indexed(&self, state: &JobState) -> Option<u64> {
        if state.status.is_terminal() {
            return (state.contract == Contract::TerminalPending).then_some(self.by);
        }
        let set = |t: u64| if t == 0 { u64::MAX } else { t };
        Some(self.index.unwrap_or_else(|| self.finish_by.min(set(self.deadline)).min(set(self.by))))
    }

    fn watched(&self, s: &JobState) -> Watched {
        Watched {
            status: s.status,
            contract: s.contract,
            epoch: s.epoch,
            deadline_ms: self.deadline,
            finish_by_ms: self.finish_by,
            promise_ms: self.by,
            told: self.told,
        }
    }

    /// What a reaper does about the job at this time.
    pub(super) fn judged(&self, state: Option<&JobState>, now: u64) -> DueAct {
        let patience = Patience { overstay: OVERSTAY, tries: 2 };
        let Some(s) = state else { return DueAct::Drop };
        match decide(&self.watched(s), &patience, now) {
            Due::NotYet(after) => DueAct::LookAgain(after),
            Due::Expired => DueAct::Expired,
            Due::Overdue => DueAct::Overdue,
            Due::Overstayed => DueAct::Overstayed(Duration::ZERO),
            Due::Missed => DueAct::Missed(Duration::ZERO),
            Due::TellStart | Due::TellNudge | Due::SendReceipt => DueAct::Tell(TELL_WITHIN),
            Due::CheckCarrier => DueAct::LookAgain(HOUR),
            Due::Forgo => DueAct::Forgo,
            Due::Drop => DueAct::Drop,
        }
    }
}

fn about_outcome(input: Input) -> bool {
    matches!(input, Input::Delivered | Input::GivenUp)
}
