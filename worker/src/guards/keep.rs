//! Keeping alive what running attempts hold: with every renewal of the session, one call per partition and [`GROUP_CAP`] holds.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use slab::Slab;
use surety_common::{
    clock::boot_ms,
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
    /// Each with the incarnation of the data set that is known to have it.
    holds: Vec<(Arc<Hold>, Arc<str>)>,
    /// Ends it, where there is a lock among them.
    lost: Option<LostLock>,
}

impl Held {
    fn has(&self, hold: &Arc<Hold>) -> bool {
        self.holds.iter().any(|(h, _)| Arc::ptr_eq(h, hold))
    }
}

/// One of them, to be renewed.
struct ToRenew {
    key: usize,
    hold: Arc<Hold>,
    known_in: Arc<str>,
}

/// State of a renewed hold: it was gone, and is there again.
const HELD_AGAIN: u8 = 2;

/// What attempts that run hold. Each pass knows its own key, so that another delivery of its job ends nothing of it.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Slab<Held>>);

impl Kept {
    fn all(&self) -> MutexGuard<'_, Slab<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempt has ended.
    pub(crate) fn forget(&self, key: usize) {
        self.all().try_remove(key);
    }

    /// A key may be another attempt's by now.
    fn is_kept(&self, of: &ToRenew) -> bool {
        self.all().get(of.key).is_some_and(|kept| kept.has(&of.hold))
    }

    fn in_partition(&self, p: u32) -> Vec<ToRenew> {
        let all = self.all();
        let each = all.iter().flat_map(|(key, held)| held.holds.iter().map(move |h| (key, h)));
        each.filter(|(_, (hold, _))| hold.partition == p)
            .map(|(key, (hold, known_in))| ToRenew { key, hold: hold.clone(), known_in: known_in.clone() })
            .collect()
    }

    fn is_known_in(&self, of: &ToRenew, data_set: &Arc<str>) {
        let mut all = self.all();
        let holds = all.get_mut(of.key).map(|h| h.holds.iter_mut());
        for (_, known_in) in holds.into_iter().flatten().filter(|(h, _)| Arc::ptr_eq(h, &of.hold)) {
            *known_in = data_set.clone();
        }
    }

    /// A lock of a hold is gone. Nothing follows where its attempt has ended meanwhile and gave it back.
    fn lose(&self, of: &ToRenew, lock: &Scope) {
        let all = self.all();
        if let Some(held) = all.get(of.key).filter(|kept| kept.has(&of.hold)) {
            tracing::error!(member = %of.hold.member, lock = lock.label, "a lock was lost: its attempt is killed");
            if let Some(lost) = &held.lost {
                lost.lose(&lock.label);
            }
        }
    }
}

/// An attempt runs: what it holds is kept from now on, until its pass is dropped. `lost` is told when it lost a lock.
pub(crate) fn keep(w: &Shared, pass: &mut Pass, lost: &LostLock) {
    let held = pass.holds.iter().filter(|h| h.is_kept());
    let holds: Vec<_> = held.map(|h| (h.clone(), h.known_in.clone())).collect();
    if !holds.is_empty() {
        let has_lock = holds.iter().any(|(h, _)| h.scopes.iter().any(|(s, _)| s.kind == GuardKind::Lock));
        let lost = has_lock.then(|| lost.clone());
        pass.kept = Some(w.guards.kept.all().insert(Held { holds, lost }));
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

/// Renews what a job was given while its claim took long, before it runs. `false`: some of it is somebody else's by now.
pub(crate) async fn refresh(
    w: &Arc<Shared>,
    session: &SessionId,
    pass: &mut Pass,
) -> Result<bool, StoreError> {
    let since = boot_ms();
    for hold in &pass.holds {
        let held: Vec<Arc<Scope>> =
            hold.scopes.iter().filter(|(s, _)| is_held(s.kind)).map(|(s, _)| s.clone()).collect();
        if held.is_empty() {
            continue;
        }
        let places: Vec<u16> = (0u16..).take(held.len()).collect();
        let act = GuardAct::Renew { token: Cow::Borrowed(&hold.token), may_restore: false, number: 0 };
        let item = GuardItem { act, member: Cow::Borrowed(&hold.member), scopes: places.into() };
        let answer = w.c.store.guard(hold.partition, Some(session), w.hold_ms(), &held, &[item]).await?;
        after(w, hold.partition, &held, answer.woken, answer.watched, answer.now_ms);
        let Some(GuardReply::Renewed(states)) = answer.replies.into_iter().next() else { return Ok(false) };
        // A gate that lets everybody through knows nobody.
        let is_slot = |s: &Scope| matches!(s.kind, GuardKind::Concurrency | GuardKind::Lock);
        if held.iter().zip(states).any(|(s, state)| is_slot(s) && state != 1) {
            return Ok(false);
        }
    }
    pass.since = since;
    Ok(true)
}

/// Renews what is held in a partition.
pub(crate) async fn renew(w: &Arc<Shared>, session: &SessionId, p: u32) -> Result<(), StoreError> {
    let kept = w.guards.kept.in_partition(p);
    let data_set = w.c.store.data_set(p);
    // One item for each scope: what may have to be held again has a number of its own.
    let each: Vec<(&ToRenew, &Arc<Scope>, u64)> = kept
        .iter()
        .flat_map(|h| h.hold.scopes.iter().filter(|(s, _)| is_held(s.kind)).map(move |(s, n)| (h, s, *n)))
        .collect();
    for group in each.chunks(GROUP_CAP) {
        let mut table = Table::default();
        let items: Vec<GuardItem> = group
            .iter()
            .map(|(h, scope, number)| GuardItem {
                act: GuardAct::Renew {
                    token: Cow::Borrowed(&h.hold.token),
                    may_restore: h.known_in != data_set,
                    number: *number,
                },
                member: Cow::Borrowed(&h.hold.member),
                scopes: vec![table.place(scope)].into(),
            })
            .collect();
        let answer = w.c.store.guard(p, Some(session), w.hold_ms(), &table.scopes, &items).await?;
        for ((of, scope, _), reply) in group.iter().zip(answer.replies) {
            let GuardReply::Renewed(states) = reply else { continue };
            // Ordering: its attempt ended while this call was on its way, so that it may have come after the release.
            if states.contains(&HELD_AGAIN) && !w.guards.kept.is_kept(of) {
                w.lanes.guard(p, Request::release(w, of.hold.clone(), None, GuardOutcome::Neutral));
                continue;
            }
            match states.first() {
                Some(0) if scope.kind == GuardKind::Lock => w.guards.kept.lose(of, scope),
                Some(1) => {}
                _ => {
                    let kind = scope.kind.name();
                    tracing::warn!(member = %of.hold.member, scope = scope.label, kind, "what it held was gone");
                }
            }
        }
        after(w, p, &table.scopes, answer.woken, answer.watched, answer.now_ms);
    }
    for of in &kept {
        w.guards.kept.is_known_in(of, &data_set);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(token: &str) -> Arc<Hold> {
        let scope = Scope::new(GuardKind::Concurrency, "one", "k", [1, 5000, 0, 0]);
        Arc::new(Hold {
            partition: 0,
            member: "a/1".into(),
            token: token.into(),
            known_in: "set".into(),
            scopes: vec![(Arc::new(scope), 1)],
        })
    }

    // Shows: S-07
    #[test]
    fn an_attempt_whose_key_was_given_to_another_loses_nothing_of_that_one() {
        let kept = Kept::default();
        let keep = |hold: &Arc<Hold>| {
            let holds = vec![(hold.clone(), hold.known_in.clone())];
            kept.all().insert(Held { holds, lost: Some(LostLock::default()) })
        };
        let first = hold("first");
        let key = keep(&first);
        let [renewed] = &kept.in_partition(0)[..] else { panic!("it is not renewed") };
        assert!(renewed.key == key && kept.is_kept(renewed) && kept.in_partition(1).is_empty());
        kept.forget(key);
        assert!(!kept.is_kept(renewed) && kept.in_partition(0).is_empty());
        // Another attempt of the same job, while the renewal of the first is on its way.
        let second = hold("second");
        assert_eq!(keep(&second), key, "the case that this is about");
        assert!(!kept.is_kept(renewed), "what the first held would be taken for held");
        let lock = Scope::new(GuardKind::Lock, "", "l", [1, 5000, 0, 0]);
        kept.lose(renewed, &lock);
        kept.is_known_in(renewed, &"other".into());
        let all = kept.all();
        let held = all.get(key).unwrap();
        assert!(held.lost.as_ref().unwrap().failure().is_none() && &*held.holds[0].1 == "set");
    }
}
