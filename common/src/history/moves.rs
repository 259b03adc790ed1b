//! The rules of one job: which event may follow which. Events come here in the order of `rev`, each once.

use super::fact::{Fact, Kind};
use crate::domain::{EventKind, Status};

/// Where the events so far have brought a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Open, and no attempt holds it.
    Idle,
    Running,
    /// An attempt holds it and waits for an answer.
    Waiting,
    /// Its generation has the outcome.
    Ended,
    /// Its record was deleted.
    Deleted,
}

/// The table of allowed moves; `None`: not allowed.
fn after(phase: Phase, kind: EventKind) -> Option<Phase> {
    use EventKind as K;
    use Phase::{Deleted, Ended, Idle, Running, Waiting};
    Some(match (phase, kind) {
        (Idle, K::Started) => Running,
        // A failed start, or a guard that says "not now".
        (Idle | Running, K::Deferred) => Idle,
        (Running | Waiting, K::AttemptFailed | K::Lost | K::Released) => Idle,
        (Idle, K::Buried) => Idle,
        (Running, K::WaitingInput) => Waiting,
        (Waiting, K::Answered) => Running,
        (Running | Waiting, K::Progress | K::Tool | K::PhaseStarted | K::PhaseCompleted | K::Checkpoint) => {
            phase
        }
        (Idle | Running | Waiting, K::Acked | K::SlaMissed | K::Nudged | K::CancelRequested) => phase,
        (Idle | Running | Waiting, K::Finished) => Ended,
        (Ended, K::ReceiptDelivered | K::ReceiptFailed) => Ended,
        (Ended, K::Replayed) => Idle,
        (Ended, K::Deleted) => Deleted,
        _ => return None,
    })
}

/// What is wrong with a move that the table does not have.
fn refused(phase: Phase, f: &Fact) -> String {
    let kind = f.kind;
    match (phase, kind) {
        (Phase::Deleted, _) => format!("{kind} after the record was deleted"),
        (Phase::Ended, _) => format!("{kind} after the outcome"),
        (_, Kind::Known(EventKind::Started)) => {
            format!("attempt of epoch {} started inside another", f.epoch)
        }
        (_, Kind::Known(EventKind::Buried)) => "buried while an attempt runs".into(),
        (_, Kind::Known(EventKind::Replayed)) => {
            format!("replayed to generation {} from an open one", f.generation)
        }
        (_, Kind::Known(EventKind::Deleted | EventKind::ReceiptDelivered | EventKind::ReceiptFailed)) => {
            format!("{kind} before the outcome")
        }
        (Phase::Idle, _) => format!("{kind} of an attempt that does not run"),
        (Phase::Running | Phase::Waiting, _) => format!("{kind} does not fit the attempt's state"),
    }
}

/// Whether an event may say this status. `None` is one that this release does not know.
fn fits(kind: EventKind, status: Option<Status>, outcome: Option<Status>) -> bool {
    use EventKind as K;
    let Some(s) = status else { return !matches!(kind, K::Finished) };
    match kind {
        K::Started | K::Answered => s == Status::Running,
        K::WaitingInput => s == Status::WaitingInput,
        K::Deferred => s == Status::Deferred,
        K::AttemptFailed | K::Lost => s == Status::RetryWait,
        K::Released | K::Replayed => s == Status::Queued,
        K::Buried => s == Status::Failed,
        K::Finished => s.is_terminal(),
        K::Deleted | K::ReceiptDelivered | K::ReceiptFailed => outcome.is_none_or(|o| o == s),
        K::Progress | K::Tool | K::PhaseStarted | K::PhaseCompleted | K::Checkpoint => s.is_running(),
        K::Acked | K::SlaMissed | K::Nudged | K::CancelRequested => !s.is_terminal(),
        K::Missing => true,
    }
}

/// One job as its events tell it. Small, whatever their number.
#[derive(Debug, Clone)]
pub(super) struct Life {
    phase: Phase,
    generation: u32,
    epoch: u64,
    /// Of this generation; `None`: it has none, or it was not seen.
    outcome: Option<Status>,
    /// This generation's notification came to its end.
    is_settled: bool,
    /// Ended generations before this one whose notification has not.
    unsettled: Vec<u32>,
    /// The beginning is not known.
    is_cut: bool,
    /// What the last event was is not known: the next one is believed.
    is_blank: bool,
}

impl Life {
    /// The life that begins with this event, which is checked like any other. The first generation of a job whose earlier
    /// ones were forgotten is not 1.
    pub(super) fn begin(first: &Fact) -> Result<Self, String> {
        let mut life = Self {
            phase: Phase::Idle,
            generation: first.generation,
            epoch: 0,
            outcome: None,
            is_settled: false,
            unsettled: Vec::new(),
            is_cut: false,
            is_blank: false,
        };
        life.apply(first)?;
        Ok(life)
    }

    /// The life of which only the part that ends with this event was dropped: the event is believed.
    pub(super) fn amid(first: &Fact) -> Self {
        let phase = match (first.kind, first.status) {
            (Kind::Known(EventKind::Buried), _) | (_, None) => Phase::Idle,
            (Kind::Known(EventKind::Deleted), _) => Phase::Deleted,
            (_, Some(s)) if s.is_terminal() => Phase::Ended,
            (_, Some(Status::WaitingInput)) => Phase::Waiting,
            (_, Some(Status::Running)) => Phase::Running,
            (_, Some(_)) => Phase::Idle,
        };
        Self {
            phase,
            generation: first.generation,
            epoch: first.epoch,
            outcome: first.status.filter(|_| matches!(phase, Phase::Ended | Phase::Deleted)),
            is_settled: matches!(
                first.kind,
                Kind::Known(EventKind::ReceiptDelivered | EventKind::ReceiptFailed)
            ),
            unsettled: Vec::new(),
            is_cut: true,
            is_blank: false,
        }
    }

    /// The next event. Error: the rule that it breaks.
    pub(super) fn apply(&mut self, f: &Fact) -> Result<(), String> {
        // A newer release's event: it has its place in the order, and that is all that is known of it.
        let Kind::Known(kind) = f.kind else { return Ok(()) };
        if kind == EventKind::Missing {
            // Redis lost it before it was journaled; what follows was decided, and counts.
            self.is_blank = true;
            return Ok(());
        }
        if std::mem::take(&mut self.is_blank) {
            if f.epoch < self.epoch {
                return Err(format!("epoch fell from {} to {}", self.epoch, f.epoch));
            }
            *self = Self { unsettled: std::mem::take(&mut self.unsettled), ..Self::amid(f) };
            return Ok(());
        }
        let is_receipt = matches!(kind, EventKind::ReceiptDelivered | EventKind::ReceiptFailed);
        if is_receipt && f.generation < self.generation && self.phase != Phase::Deleted {
            return self.settle_earlier(f);
        }
        if kind == EventKind::Replayed {
            if self.phase != Phase::Ended || f.generation != self.generation + 1 {
                return Err(refused(Phase::Idle, f));
            }
            if !std::mem::take(&mut self.is_settled) {
                self.unsettled.push(self.generation);
            }
            (self.generation, self.outcome) = (f.generation, None);
        }
        if f.generation != self.generation {
            return Err(format!("generation {} inside {}", f.generation, self.generation));
        }
        let next = after(self.phase, kind).ok_or_else(|| refused(self.phase, f))?;
        self.epoch_fits(kind, f.epoch)?;
        if !fits(kind, f.status, self.outcome) {
            let status = f.status.map_or("an unknown status", Status::name);
            return Err(format!("{kind} as {status}", kind = f.kind));
        }
        if kind == EventKind::Finished {
            if f.status == Some(Status::Done) && self.phase == Phase::Idle {
                return Err("done without an attempt".into());
            }
            if !f.is_receipt_true {
                return Err("the receipt says something else than the event".into());
            }
            self.outcome = f.status;
        }
        if is_receipt && std::mem::replace(&mut self.is_settled, true) {
            return Err(format!("{} of a receipt that was settled before", f.kind));
        }
        (self.phase, self.epoch) = (next, f.epoch);
        Ok(())
    }

    /// The receipt of a generation that was replayed before its notification came to an end.
    fn settle_earlier(&mut self, f: &Fact) -> Result<(), String> {
        match self.unsettled.iter().position(|g| *g == f.generation) {
            Some(i) => {
                self.unsettled.swap_remove(i);
                Ok(())
            }
            None if self.is_cut => Ok(()),
            None => Err(format!("{} of generation {}, which has none to settle", f.kind, f.generation)),
        }
    }

    fn epoch_fits(&self, kind: EventKind, epoch: u64) -> Result<(), String> {
        use EventKind as K;
        let known = self.epoch;
        if epoch < known {
            return Err(format!("epoch fell from {known} to {epoch}"));
        }
        let is_of_attempt = match kind {
            K::Started if epoch == known => return Err(format!("epoch {epoch} was used before")),
            K::Progress | K::Tool | K::PhaseStarted | K::PhaseCompleted | K::Checkpoint => true,
            K::WaitingInput | K::AttemptFailed | K::Lost | K::Released => true,
            _ => false,
        };
        if is_of_attempt && epoch != known {
            return Err(format!("{} of epoch {epoch} outside its attempt", kind.name()));
        }
        Ok(())
    }

    /// The outcome of the present generation.
    pub(super) fn outcome(&self) -> Option<Status> {
        self.outcome
    }

    /// Whether an attempt holds it.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Waiting)
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Deleted)
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.phase == Phase::Deleted
    }

    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }
}
