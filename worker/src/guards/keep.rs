//! Keeping alive what running attempts hold: with every renewal of the session, one call per partition and [`GROUP_CAP`] holds.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use surety_common::{
    domain::ids::SessionId,
    store::{GuardAct, GuardItem, GuardReply, Guarded, StoreError, group::GROUP_CAP},
};

use super::{
    Hold, Pass,
    call::{Table, wake},
};
use crate::shared::Shared;

/// What attempts that run hold, by member.
#[derive(Default)]
pub(crate) struct Kept(Mutex<HashMap<Arc<str>, Vec<Hold>>>);

impl Kept {
    fn all(&self) -> MutexGuard<'_, HashMap<Arc<str>, Vec<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its attempt has ended.
    pub(crate) fn forget(&self, member: &str) {
        self.all().remove(member);
    }

    fn in_partition(&self, p: u32) -> Vec<Hold> {
        self.all().values().flatten().filter(|h| h.partition == p).cloned().collect()
    }

    fn is_known_in(&self, p: u32, member: &str, data_set: &Arc<str>) {
        let mut all = self.all();
        for hold in all.get_mut(member).into_iter().flatten().filter(|h| h.partition == p) {
            hold.known_in = data_set.clone();
        }
    }
}

/// An attempt runs: what it holds is kept from now on, until its pass is dropped.
pub(crate) fn keep(w: &Shared, pass: &Pass) {
    let holds: Vec<Hold> = pass.holds.iter().filter(|h| h.is_kept()).cloned().collect();
    if !holds.is_empty() {
        w.guards.kept.all().insert(pass.member.clone(), holds);
    }
}

/// The claim was granted: what another delivery of the job had made is this attempt's from now on.
pub(crate) async fn adopt(w: &Arc<Shared>, session: &SessionId, pass: &mut Pass) -> Result<(), StoreError> {
    for (p, scopes) in std::mem::take(&mut pass.borrowed) {
        let places = (0u16..).take(scopes.len()).collect();
        let item = GuardItem { act: GuardAct::Adopt, member: pass.member.to_string(), scopes: places };
        let answer = w.c.store.guard(p, Some(session), w.hold_ms(), &scopes, &[item]).await?;
        let Guarded { replies, woken, token, .. } = answer;
        wake(w, p, &scopes, woken);
        if let Some(GuardReply::Adopted(numbers)) = replies.into_iter().next() {
            pass.add(p, &token.into(), scopes, &numbers);
        }
    }
    // What is counted and not held has nothing to adopt.
    pass.borrowed.clear();
    Ok(())
}

/// Renews what is held in a partition.
pub(crate) async fn renew(w: &Arc<Shared>, session: &SessionId, p: u32) -> Result<(), StoreError> {
    let kept = w.guards.kept.in_partition(p);
    let data_set = w.c.store.data_set(p);
    for holds in kept.chunks(GROUP_CAP) {
        let mut table = Table::default();
        let items: Vec<GuardItem> = holds
            .iter()
            .map(|h| GuardItem {
                act: GuardAct::Renew { token: h.token.to_string(), may_restore: h.known_in != data_set },
                member: h.member.to_string(),
                scopes: h.scopes.iter().map(|(s, _)| table.place(s)).collect(),
            })
            .collect();
        let answer = w.c.store.guard(p, Some(session), w.hold_ms(), &table.scopes, &items).await?;
        for (hold, reply) in holds.iter().zip(answer.replies) {
            let GuardReply::Renewed(states) = reply else { continue };
            w.guards.kept.is_known_in(p, &hold.member, &data_set);
            for ((scope, _), _) in hold.scopes.iter().zip(states).filter(|(_, state)| *state != 1) {
                let kind = scope.kind.name();
                tracing::warn!(member = %hold.member, scope = scope.label, kind, "what it held was gone");
            }
        }
        wake(w, p, &table.scopes, answer.woken);
    }
    Ok(())
}
