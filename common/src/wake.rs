//! Waking jobs that sleep at the broker because a guard had no room for them, and whose turn has come.

use std::time::Duration;

use crate::{
    connect::Connected,
    domain::{JobId, pause::Slot},
    store::{GuardAct, GuardItem, GuardOutcome, Scope, StoreError, Woken, guards::OFFER},
};

/// Gives the carriers of these jobs back to the broker's line, so that some worker asks for them at once. Who has its outcome
/// already leaves its place to the next; that is repeated until nobody is left to be woken.
pub async fn wake(c: &Connected, p: u32, hold_ms: u64, scopes: &[Scope], mut woken: Vec<Woken>) {
    while !woken.is_empty() {
        let gone = match over(c, &woken).await {
            Ok(gone) => gone,
            Err(e) => {
                tracing::debug!(error = %e, "who is woken is not looked up");
                vec![false; woken.len()]
            }
        };
        let mut items = Vec::new();
        for (sleeper, is_over) in woken.iter().zip(gone) {
            if is_over {
                items.push(GuardItem {
                    act: GuardAct::Release {
                        token: OFFER.to_owned(),
                        mark: None,
                        outcome: GuardOutcome::Neutral,
                    },
                    member: sleeper.member.clone(),
                    scopes: vec![u16::try_from(sleeper.scope).unwrap_or(u16::MAX)],
                });
            } else if !sleeper.ack_subject.is_empty()
                && let Err(e) = c.broker.nak(&sleeper.ack_subject, Duration::ZERO).await
            {
                tracing::warn!(member = sleeper.member, error = %e, "not woken; it comes back by itself");
            }
        }
        if items.is_empty() {
            return;
        }
        woken = match c.store.guard(p, None, hold_ms, scopes, &items).await {
            Ok(answer) => answer.woken,
            Err(e) => {
                tracing::warn!(error = %e, "places of jobs that have ended stay taken until their offers end");
                return;
            }
        };
    }
}

/// Lets everybody go who waits for the end of a pause; gives their number.
pub async fn open(c: &Connected, slot: &Slot) -> Result<usize, StoreError> {
    let scope = [Scope::of_pause(slot)];
    let p = scope.first().map_or(0, |s| s.partition(c.store.keys().partitions()));
    let mut n = 0;
    loop {
        let item = GuardItem { act: GuardAct::Open, member: String::new(), scopes: vec![0] };
        let woken = c.store.guard(p, None, 0, &scope, &[item]).await?.woken;
        if woken.is_empty() {
            return Ok(n);
        }
        n += woken.len();
        wake(c, p, 0, &scope, woken).await;
    }
}

/// Which of them have their outcome, or are forgotten.
async fn over(c: &Connected, woken: &[Woken]) -> Result<Vec<bool>, StoreError> {
    let ids: Vec<Option<JobId>> =
        woken.iter().map(|w| w.member.rsplit_once('/').and_then(|(id, _)| JobId::new(id).ok())).collect();
    let known: Vec<JobId> = ids.iter().flatten().cloned().collect();
    let mut records = c.store.records_of(&known).await?.into_iter();
    let is_over = |id: &Option<JobId>| {
        let record = id.as_ref().and_then(|_| records.next()).and_then(crate::store::Read::record);
        record.is_some_and(|r| r.status.is_terminal())
    };
    Ok(ids.iter().map(is_over).collect())
}
