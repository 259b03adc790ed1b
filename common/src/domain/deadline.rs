//! What follows when the earliest deadline of an open job has passed. The due index has one member for each job; here its
//! record says which of its deadlines that was. `due.lua` judges again before it acts.

use std::time::Duration;

use super::{Contract, Status};

/// The times of a job, in milliseconds of the store's clock; 0 for "not set".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched {
    pub status: Status,
    pub contract: Contract,
    pub epoch: u64,
    /// Time limit of the attempt that runs; before the first one: `expires_at`.
    pub deadline_ms: u64,
    pub finish_by_ms: u64,
    /// By when the next thing that is promised has to happen.
    pub promise_ms: u64,
    /// Tries so far of what is being told.
    pub told: u32,
}

/// What bounds the reaper's patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long an attempt may go on past its time limit before it is taken from its worker.
    pub overstay: Duration,
    /// How often a start is told before it is given up.
    pub tries: u32,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet; look again after so long.
    NotYet(Duration),
    /// Not started by its `expires_at`.
    Expired,
    /// Not ended by its finish deadline, and nobody runs it.
    Overdue,
    /// The attempt went on past its time limit: its worker does not stop it.
    Overstayed,
    /// No progress within the promise.
    Missed,
    /// The start was not told within the promise: tell it.
    TellStart,
    /// The nudge of a missed promise was not told.
    TellNudge,
    /// The receipt was not delivered within its time: send it again.
    SendReceipt,
    /// It could be claimed and was not: look whether its message is still there.
    CheckCarrier,
    /// What should be told was tried often enough.
    Forgo,
    /// Nothing of it is to be watched any more.
    Drop,
}

/// Judges one job at `now_ms`.
pub fn decide(w: &Watched, patience: &Patience, now_ms: u64) -> Due {
    let passed = |t: u64| t > 0 && t <= now_ms;
    if w.status.is_terminal() {
        return match w.contract {
            Contract::TerminalPending if passed(w.promise_ms) => Due::SendReceipt,
            Contract::TerminalPending => Due::NotYet(until(w.promise_ms, now_ms)),
            _ => Due::Drop,
        };
    }
    if w.status.is_running() {
        let overstayed_at = w.deadline_ms.saturating_add(millis(patience.overstay));
        if passed(overstayed_at) {
            return Due::Overstayed;
        }
        if passed(w.promise_ms) {
            return match w.contract {
                Contract::Created if w.told >= patience.tries => Due::Forgo,
                Contract::Created => Due::TellStart,
                Contract::SlaMissed => Due::TellNudge,
                _ => Due::Missed,
            };
        }
        let promise = if w.promise_ms == 0 { u64::MAX } else { w.promise_ms };
        let next = if passed(w.deadline_ms) { overstayed_at } else { w.deadline_ms };
        return Due::NotYet(until(next.min(promise), now_ms));
    }
    if passed(w.finish_by_ms) {
        return Due::Overdue;
    }
    if w.epoch == 0 && passed(w.deadline_ms) {
        return Due::Expired;
    }
    if w.promise_ms <= now_ms {
        return Due::CheckCarrier;
    }
    Due::NotYet(until(w.promise_ms.min(w.finish_by_ms), now_ms))
}

/// How long until the carrier of a job that waits since `since_ms` is looked at again: at twice its age, so that a long backlog
/// costs little, between `least` and an hour.
pub fn next_look(since_ms: u64, now_ms: u64, least: Duration) -> Duration {
    let age = Duration::from_millis(now_ms.saturating_sub(since_ms));
    age.clamp(least, least.max(Duration::from_secs(3600)))
}

fn until(then_ms: u64, now_ms: u64) -> Duration {
    // Never at once: a deadline that has passed without effect must not spin.
    Duration::from_millis(then_ms.saturating_sub(now_ms).max(100))
}

/// Until the receipt of an outcome is looked for, where a requester waits; the scripts have the same.
pub const RECEIPT_WITHIN: Duration = Duration::from_secs(60);

/// Milliseconds of a span, and no more than can be added to a time and kept in a record: four thousand years.
pub fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX).min(1 << 47)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { overstay: Duration::from_secs(30), tries: 3 };

    fn running(contract: Contract) -> Watched {
        Watched {
            status: Status::Running,
            contract,
            epoch: 1,
            deadline_ms: 10_000,
            finish_by_ms: 90_000,
            promise_ms: 5_000,
            told: 0,
        }
    }

    #[test]
    fn an_attempt_is_taken_only_after_its_limit_and_its_grace() {
        let w = Watched { promise_ms: 0, ..running(Contract::SlaMissed) };
        assert_eq!(decide(&w, &PATIENCE, 9_000), Due::NotYet(Duration::from_secs(1)));
        assert_eq!(decide(&w, &PATIENCE, 10_000), Due::NotYet(Duration::from_secs(30)));
        assert_eq!(decide(&w, &PATIENCE, 39_999), Due::NotYet(Duration::from_millis(100)));
        assert_eq!(decide(&w, &PATIENCE, 40_000), Due::Overstayed);
    }

    // Shows: C-07, C-08
    #[test]
    fn what_a_passed_promise_means_follows_from_the_contract() {
        let at = |c| decide(&running(c), &PATIENCE, 5_000);
        assert_eq!(at(Contract::Created), Due::TellStart);
        assert_eq!(at(Contract::Acked), Due::Missed);
        assert_eq!(at(Contract::Progressing), Due::Missed);
        assert_eq!(at(Contract::SlaMissed), Due::TellNudge);
        let tired = Watched { told: 3, ..running(Contract::Created) };
        assert_eq!(decide(&tired, &PATIENCE, 5_000), Due::Forgo);
        assert_eq!(
            decide(&running(Contract::Acked), &PATIENCE, 4_999),
            Due::NotYet(Duration::from_millis(100))
        );
    }

    #[test]
    fn what_waits_ends_at_its_deadlines_and_is_looked_for_before() {
        let w = Watched { status: Status::RetryWait, ..running(Contract::Acked) };
        assert_eq!(decide(&w, &PATIENCE, 5_000), Due::CheckCarrier);
        assert_eq!(decide(&w, &PATIENCE, 90_000), Due::Overdue);
        let new = Watched { status: Status::Queued, epoch: 0, promise_ms: 50_000, ..w };
        assert_eq!(decide(&new, &PATIENCE, 10_000), Due::Expired);
        let forever = Watched { deadline_ms: 0, ..new };
        assert_eq!(decide(&forever, &PATIENCE, 10_000), Due::NotYet(Duration::from_secs(40)));
    }

    #[test]
    fn an_outcome_is_watched_until_its_receipt_is_settled() {
        let w = Watched { status: Status::Done, ..running(Contract::TerminalPending) };
        assert_eq!(decide(&w, &PATIENCE, 5_000), Due::SendReceipt);
        assert_eq!(decide(&w, &PATIENCE, 4_000), Due::NotYet(Duration::from_secs(1)));
        for c in [Contract::TerminalAcked, Contract::TerminalFailed] {
            assert_eq!(decide(&Watched { contract: c, ..w }, &PATIENCE, 5_000), Due::Drop);
        }
    }

    #[test]
    fn looks_become_rarer_with_the_age_of_what_waits() {
        let least = Duration::from_secs(60);
        let at = |age_s: u64| next_look(1_000, 1_000 + age_s * 1000, least).as_secs();
        assert_eq!([at(0), at(60), at(600), at(86_400)], [60, 60, 600, 3600]);
    }
}
