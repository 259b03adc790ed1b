//! What the guards gave to a job.

use std::sync::Arc;

use surety_common::{
    domain::guard::GuardKind,
    store::{GuardOutcome, Scope},
};

use super::{Request, is_held};
use crate::{handler::Ended, shared::Shared};

/// What one call gave, in one partition.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    pub(crate) partition: u32,
    pub(crate) member: Arc<str>,
    /// Gives it back, and nobody else's.
    pub(crate) token: Arc<str>,
    /// Incarnation of the data set that knows it.
    pub(crate) known_in: Arc<str>,
    /// What was made by that call, each with its number: a lock's fencing token, a rate limit's mark.
    pub(crate) scopes: Arc<[(Scope, u64)]>,
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
    pub(crate) holds: Vec<Hold>,
    /// What another delivery of the job made: nothing of ours until the claim is granted.
    pub(crate) borrowed: Vec<(u32, Vec<Scope>)>,
    outcome: GuardOutcome,
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
        }
    }

    /// Takes in what one partition answered.
    pub(crate) fn add(&mut self, partition: u32, token: &Arc<str>, scopes: Vec<Scope>, numbers: &[u64]) {
        // What the loop guard has counted stays counted, whatever becomes of the job.
        let all = scopes.into_iter().zip(numbers.iter().copied()).filter(|(s, _)| s.kind != GuardKind::Loop);
        let (made, borrowed): (Vec<_>, Vec<_>) = all.partition(|(_, number)| *number > 0);
        if !borrowed.is_empty() {
            self.borrowed.push((partition, borrowed.into_iter().map(|(s, _)| s).collect()));
        }
        if !made.is_empty() {
            self.holds.push(Hold {
                partition,
                member: self.member.clone(),
                token: token.clone(),
                known_in: self.w.c.store.data_set(partition),
                scopes: made.into(),
            });
        }
    }

    /// How the attempt has ended.
    pub(crate) fn ended(&mut self, ended: &Ended) {
        self.outcome = outcome(ended);
    }
}

fn outcome(ended: &Ended) -> GuardOutcome {
    use surety_common::domain::ErrorCode as C;
    match ended {
        Ended::Done { .. } => GuardOutcome::WentWell,
        Ended::NotStarted { .. } => GuardOutcome::Crashed,
        Ended::Failed { code, .. } => match code {
            C::Signal | C::Oom | C::PidsLimit | C::Lost => GuardOutcome::Crashed,
            _ => GuardOutcome::WentWrong,
        },
        Ended::Stopped | Ended::Cancelled | Ended::Fenced => GuardOutcome::Neutral,
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.w.guards.kept.forget(&self.member, &self.holds);
        for hold in self.holds.drain(..) {
            // A mark is one number: where several limits counted, only time gives their tokens back.
            let mut marks = hold.scopes.iter().filter(|(s, _)| s.kind == GuardKind::Rate).map(|(_, n)| *n);
            let mark = marks.next().filter(|_| marks.next().is_none());
            let partition = hold.partition;
            self.w.lanes.guard(partition, Request::release(&self.w, hold, mark, self.outcome));
        }
    }
}
