//! Keeping alive what running attempts hold: with every renewal of the session, one call per partition and [`GROUP_CAP`] holds.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use surety_common::{
    domain::{guard::GuardKind, ids::SessionId},
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Guarded, Scope, StoreError, group::GROUP_CAP},
};

use super::{
    Hold, Pass, Request,
    call::{Table, after},
    is_held,
};
use crate::{handler::LostLock, shared::Shared};

/// What an attempt that runs holds.
struct Held {
    holds: Vec<Hold>,
    /// Ends it.
    lost: LostLock,
}

impl Held {
    fn has(&self, hold: &Hold) -> bool {
        self.holds.iter().any(|h| h.token == hold.token)
    }
}

/// State of a renewed hold: it was gone, and is there again.
const HELD_AGAIN: u8 = 2;

/// What attempts that run hold, by member.
#[derive(Default)]
pub(crate) struct Kept(Mutex<HashMap<Arc<str>, Held>>);

impl Kept {
    fn all(&self) -> MutexGuard<'_, HashMap<Arc<str>, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt that had these holds has ended. Another delivery of the same job, whose claim was refused, ends nothing.
    pub(crate) fn forget(&self, member: &str, holds: &[Hold]) {
        let mut all = self.all();
        let is_of_these = |k: &Hold| holds.iter().any(|h| h.token == k.token);
        if all.get(member).is_some_and(|kept| kept.holds.iter().any(is_of_these)) {
            all.remove(member);
        }
    }

    fn is_kept(&self, hold: &Hold) -> bool {
        self.all().get(&hold.member).is_some_and(|kept| kept.has(hold))
    }

    fn in_partition(&self, p: u32) -> Vec<Hold> {
        self.all().values().flat_map(|h| &h.holds).filter(|h| h.partition == p).cloned().collect()
    }

    fn is_known_in(&self, of: &Hold, data_set: &Arc<str>) {
        let mut all = self.all();
        let holds = all.get_mut(&of.member).map(|h| h.holds.iter_mut());
        for hold in holds.into_iter().flatten().filter(|h| h.token == of.token) {
            hold.known_in = data_set.clone();
        }
    }

    /// A lock of a hold is gone. Nothing follows where its attempt has ended meanwhile and gave it back.
    fn lose(&self, of: &Hold, lock: &Scope) {
        let all = self.all();
        if let Some(held) = all.get(&of.member).filter(|kept| kept.has(of)) {
            tracing::error!(member = %of.member, lock = lock.label, "a lock was lost: its attempt is killed");
            held.lost.lose(&lock.label);
        }
    }
}

/// An attempt runs: what it holds is kept from now on, until its pass is dropped. `lost` is told when it lost a lock.
pub(crate) fn keep(w: &Shared, pass: &Pass, lost: &LostLock) {
    let holds: Vec<Hold> = pass.holds.iter().filter(|h| h.is_kept()).cloned().collect();
    if !holds.is_empty() {
        w.guards.kept.all().insert(pass.member.clone(), Held { holds, lost: lost.clone() });
    }
}

/// The claim was granted: what another delivery of the job had made is this attempt's from now on. `false`: it was given back since,
/// and somebody else may have it.
pub(crate) async fn adopt(w: &Arc<Shared>, session: &SessionId, pass: &mut Pass) -> Result<bool, StoreError> {
    for (p, scopes) in std::mem::take(&mut pass.borrowed) {
        let places: Vec<u16> = (0u16..).take(scopes.len()).collect();
        let member = Cow::Borrowed(&*pass.member);
        let item = GuardItem { act: GuardAct::Adopt, member, scopes: places.into() };
        let answer = w.c.store.guard(p, Some(session), w.hold_ms(), &scopes, &[item]).await?;
        let Guarded { replies, woken, watched, token, now_ms } = answer;
        after(w, p, &scopes, woken, watched, now_ms);
        let Some(GuardReply::Adopted(numbers)) = replies.into_iter().next() else { return Ok(false) };
        let scopes = scopes.into_iter().map(|s| (p, s)).collect();
        pass.add(p, &token.into(), scopes, &numbers);
    }
    // What is counted and not held has nothing to adopt.
    pass.borrowed.clear();
    Ok(true)
}

/// Renews what is held in a partition.
pub(crate) async fn renew(w: &Arc<Shared>, session: &SessionId, p: u32) -> Result<(), StoreError> {
    let kept = w.guards.kept.in_partition(p);
    let data_set = w.c.store.data_set(p);
    // One item for each scope: what may have to be held again has a number of its own.
    let each: Vec<(&Hold, &Arc<Scope>, u64)> = kept
        .iter()
        .flat_map(|h| h.scopes.iter().filter(|(s, _)| is_held(s.kind)).map(move |(s, n)| (h, s, *n)))
        .collect();
    for group in each.chunks(GROUP_CAP) {
        let mut table = Table::default();
        let items: Vec<GuardItem> = group
            .iter()
            .map(|(h, scope, number)| GuardItem {
                act: GuardAct::Renew {
                    token: Cow::Borrowed(&h.token),
                    may_restore: h.known_in != data_set,
                    number: *number,
                },
                member: Cow::Borrowed(&h.member),
                scopes: vec![table.place(scope)].into(),
            })
            .collect();
        let answer = w.c.store.guard(p, Some(session), w.hold_ms(), &table.scopes, &items).await?;
        for ((hold, scope, _), reply) in group.iter().zip(answer.replies) {
            let GuardReply::Renewed(states) = reply else { continue };
            // Ordering: its attempt ended while this call was on its way, so that it may have come after the release.
            if states.contains(&HELD_AGAIN) && !w.guards.kept.is_kept(hold) {
                w.lanes.guard(p, Request::release(w, (*hold).clone(), None, GuardOutcome::Neutral));
                continue;
            }
            match states.first() {
                Some(0) if scope.kind == GuardKind::Lock => w.guards.kept.lose(hold, scope),
                Some(1) => {}
                _ => {
                    let kind = scope.kind.name();
                    tracing::warn!(member = %hold.member, scope = scope.label, kind, "what it held was gone");
                }
            }
        }
        after(w, p, &table.scopes, answer.woken, answer.watched, answer.now_ms);
    }
    for hold in &kept {
        w.guards.kept.is_known_in(hold, &data_set);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(token: &str) -> Hold {
        let scope = Scope::new(GuardKind::Concurrency, "one", "k", [1, 5000, 0, 0]);
        Hold {
            partition: 0,
            member: "a/1".into(),
            token: token.into(),
            known_in: "set".into(),
            scopes: [(Arc::new(scope), 1)].into(),
        }
    }

    // Shows: S-07
    #[test]
    fn the_end_of_another_delivery_of_a_job_leaves_what_its_attempt_holds() {
        let kept = Kept::default();
        let mine = hold("mine");
        let held = Held { holds: vec![mine.clone()], lost: LostLock::default() };
        kept.all().insert(mine.member.clone(), held);
        for other in [vec![], vec![hold("other")]] {
            kept.forget("a/1", &other);
            assert!(kept.is_kept(&mine), "a slot of an attempt that runs is not renewed any more");
        }
        kept.forget("a/1", std::slice::from_ref(&mine));
        assert!(!kept.is_kept(&mine) && kept.in_partition(0).is_empty());
    }
}
