//! Looking after guard scopes: what is over by time is freed, what a dead session held as well, and whoever is next is woken.

use std::time::{Duration, Instant};

use crate::{
    connect::Connected,
    domain::{guard::GuardKind, ids::SessionId},
    store::{GuardAct, GuardItem, Scope, StoreError},
    wake::wake,
    watch::tell,
};

/// Scopes that a sweep reads in one go.
const AT_ONCE: usize = 500;
/// Dead sessions that one call looks for.
const SESSIONS_AT_ONCE: usize = 4;

/// Frees what is over in these scopes of a partition, and what `sessions` held, where some are named. Returns how many were woken.
pub async fn tend(
    c: &Connected,
    p: u32,
    hold_ms: u64,
    scopes: Vec<Scope>,
    sessions: &[SessionId],
) -> Result<usize, StoreError> {
    if scopes.is_empty() {
        return Ok(0);
    }
    let all: Vec<u16> = (0u16..).take(scopes.len()).collect();
    let item = |session: &str| GuardItem {
        act: GuardAct::Tend { session: session.to_owned().into() },
        member: "".into(),
        scopes: all.clone().into(),
    };
    let items = match sessions {
        [] => vec![item("")],
        dead => dead.iter().map(|s| item(s.as_str())).collect(),
    };
    let answer = c.store.guard(p, None, hold_ms, &scopes, &items).await?;
    let woken = answer.woken.len();
    tell(c, &scopes, &answer.watched, answer.now_ms).await;
    wake(c, p, hold_ms, &scopes, answer.woken).await;
    Ok(woken)
}

/// Whether attempts hold something of such a scope that ends with their session.
fn is_held(kind: GuardKind) -> bool {
    match kind {
        GuardKind::Concurrency | GuardKind::Lock | GuardKind::CrashLoop | GuardKind::Breaker => true,
        GuardKind::Rate | GuardKind::Pause | GuardKind::Loop => false,
    }
}

/// Frees what dead sessions held, in the scopes of a partition: before its holds end by themselves, as they do in any case. Walks
/// all of them, for `limit` at most. `false`: that was not enough.
pub async fn sweep(
    c: &Connected,
    p: u32,
    hold_ms: u64,
    sessions: &[SessionId],
    limit: Duration,
) -> Result<bool, StoreError> {
    let (started, mut cursor) = (Instant::now(), 0);
    loop {
        let (next, mut found) = c.store.scan_scopes(p, cursor, AT_ONCE).await?;
        found.retain(|s| is_held(s.kind));
        for dead in sessions.chunks(SESSIONS_AT_ONCE) {
            tend(c, p, hold_ms, found.clone(), dead).await?;
        }
        if next == 0 {
            return Ok(true);
        }
        if started.elapsed() > limit {
            return Ok(false);
        }
        cursor = next;
    }
}
