//! What the guards gave to a job.

use std::sync::Arc;

use surety_common::{
    clock::boot_ms,
    domain::{ErrorCode, guard::GuardKind},
    store::{GuardOutcome, Scope, guards::member},
};

use super::{Place, Request, is_held};
use crate::{
    hand::InHand,
    handler::{Ended, Locks},
    shared::Shared,
};

/// What one call gave, in one partition.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) partition: u32,
    pub(crate) member: Arc<str>,
    /// Gives it back, and nobody else's.
    pub(crate) token: Arc<str>,
    /// Incarnation of the data set that made it.
    pub(crate) known_in: Arc<str>,
    /// What was made by that call, each with its number: a lock's fencing token.
    pub(crate) scopes: Vec<(Arc<Scope>, u64)>,
}

impl Hold {
    /// Whether it has to be kept alive.
    pub(crate) fn is_kept(&self) -> bool {
        self.scopes.iter().any(|(s, _)| is_held(s.kind))
    }
}

/// What a job may start with. Dropped, everything in it is given back, on whatever way the job ends.
pub(crate) struct Pass {
    w: Arc<Shared>,
    pub(crate) member: Arc<str>,
    pub(crate) holds: Vec<Arc<Hold>>,
    /// What another delivery of the job made: nothing of ours until the claim is granted.
    pub(crate) borrowed: Vec<(u32, Vec<Arc<Scope>>)>,
    outcome: GuardOutcome,
    /// Of what is kept: until when the job waits for the rest.
    until_ms: Option<u64>,
    /// The crash-loop guard of its type was asked.
    pub(crate) has_asked: bool,
    /// That guard, where it was not asked and has to be told: with the name under which it is told once.
    report: Option<(Arc<Scope>, String)>,
    /// When it began to ask, or to renew all that it holds (boot-time clock, ms).
    pub(super) since: u64,
    /// Under which its holds are kept alive, once its attempt runs.
    pub(super) kept: Option<usize>,
}

impl Pass {
    /// An empty one.
    pub(crate) fn new(w: &Arc<Shared>, member: String) -> Self {
        Self {
            w: w.clone(),
            member: member.into(),
            holds: Vec::new(),
            borrowed: Vec::new(),
            outcome: GuardOutcome::Undone,
            until_ms: None,
            has_asked: false,
            report: None,
            since: boot_ms(),
            kept: None,
        }
    }

    /// Takes in what one partition answered: for each scope a number, or 0 where another delivery of the job made it.
    pub(crate) fn add(&mut self, partition: u32, token: &Arc<str>, asked: Vec<Place>, numbers: &[u64]) {
        let is_borrowed = |s: &Scope, number: u64| number == 0 && s.kind != GuardKind::Loop;
        let all = asked.iter().zip(numbers);
        let borrowed: Vec<_> =
            all.filter(|((_, s), n)| is_borrowed(s, **n)).map(|((_, s), _)| s.clone()).collect();
        if !borrowed.is_empty() {
            self.borrowed.push((partition, borrowed));
        }
        // What the loop guard has counted stays counted, whatever becomes of the job.
        let all = asked.into_iter().zip(numbers).map(|((_, s), n)| (s, *n));
        let made: Vec<_> = all.filter(|(s, n)| *n > 0 && s.kind != GuardKind::Loop).collect();
        if !made.is_empty() {
            self.holds.push(Arc::new(Hold {
                partition,
                member: self.member.clone(),
                token: token.clone(),
                known_in: self.w.c.store.data_set(partition),
                scopes: made,
            }));
        }
    }

    /// The job waits for something else: what can be kept for it is, when this is dropped. `until_ms`: it comes back then.
    pub(crate) fn keeps(&mut self, until_ms: Option<u64>) {
        self.outcome = GuardOutcome::Kept;
        self.until_ms = until_ms;
    }

    /// Whether what is held was given, or renewed, so long ago that it may end before the session that it is trusted with: that
    /// one trusts its own last renewal for a TTL less a margin, so that what is a margin older ends first.
    pub(crate) fn is_late(&self) -> bool {
        let margin = u64::try_from(self.w.settings.lease.margin.as_millis()).unwrap_or(u64::MAX);
        self.holds.iter().any(|h| h.is_kept()) && boot_ms() >= self.since + margin
    }

    /// The locks in it, each with its fencing token.
    pub(crate) fn locks(&self) -> Locks {
        let all = self.holds.iter().flat_map(|h| h.scopes.iter());
        all.filter(|(s, _)| s.kind == GuardKind::Lock).map(|(s, n)| (s.label.clone(), *n)).collect()
    }

    fn holds(&self, scope: &Scope) -> bool {
        self.holds.iter().any(|h| h.scopes.iter().any(|(s, _)| s.hash == scope.hash))
    }
}

/// Notes how an attempt has ended. What crashed is told to the crash-loop guard of its type, also where that was not asked.
pub(crate) fn ended(w: &Arc<Shared>, job: &mut InHand, epoch: u64, ended: &Ended) {
    let mut outcome = outcome(ended);
    let is_fenced = matches!(ended, Ended::Fenced);
    if is_fenced && job.held.session.is_lost() {
        outcome = GuardOutcome::Lost;
    }
    if let Some(pass) = job.pass.as_mut() {
        pass.outcome = outcome;
    }
    // What was taken from us is reported by who took it.
    if outcome != GuardOutcome::Crashed || is_fenced {
        return;
    }
    let document = &job.decoded.job;
    let Some(scope) = w.guards.crash_loop(document.kind.as_str()) else { return };
    let member = member(&document.id, job.decoded.generation);
    // Whose crash it was, too: one worker alone is not believed at once.
    let name = format!("{member}/{epoch} {}", job.held.session.id);
    let pass = job.pass.get_or_insert_with(|| Box::new(Pass::new(w, member)));
    if !pass.holds(&scope) {
        pass.report = Some((Arc::new(scope), name));
    }
}

fn outcome_of(code: ErrorCode) -> GuardOutcome {
    use ErrorCode as C;
    match code {
        C::Signal | C::Oom | C::PidsLimit | C::Lost => GuardOutcome::Crashed,
        C::LockLost => GuardOutcome::Neutral,
        _ => GuardOutcome::WentWrong,
    }
}

fn outcome(ended: &Ended) -> GuardOutcome {
    match ended {
        Ended::Done { .. } => GuardOutcome::WentWell,
        Ended::NotStarted { .. } => GuardOutcome::Crashed,
        Ended::Failed { code, .. } => outcome_of(*code),
        // Its lease was taken: it is lost.
        Ended::Fenced => GuardOutcome::Crashed,
        Ended::Stopped | Ended::Signalled | Ended::Cancelled => GuardOutcome::Neutral,
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(key) = self.kept.take() {
            self.w.guards.kept.forget(key);
        }
        for hold in self.holds.drain(..) {
            let partition = hold.partition;
            self.w.lanes.guard(partition, Request::release(&self.w, hold, self.until_ms, self.outcome));
        }
        if let Some((scope, name)) = self.report.take() {
            let at = scope.partition(self.w.c.store.keys().partitions());
            let member = self.member.clone();
            self.w.lanes.guard(at, Request::Crashed { member, scope, name, _token: self.w.tracker.token() });
        }
    }
}

#[cfg(test)]
mod tests {
    use surety_common::domain::ErrorCode as C;

    use super::*;

    // Shows: S-08
    #[test]
    fn what_kills_an_attempt_is_a_crash_and_what_a_handler_says_is_none() {
        for code in [C::Signal, C::Oom, C::PidsLimit, C::Lost] {
            assert_eq!(outcome_of(code), GuardOutcome::Crashed, "{}", code.name());
        }
        for code in [C::ExitCode, C::HandlerError, C::Timeout, C::OutputLimit] {
            assert_eq!(outcome_of(code), GuardOutcome::WentWrong, "{}", code.name());
        }
        assert_eq!(outcome_of(C::LockLost), GuardOutcome::Neutral);
    }
}
