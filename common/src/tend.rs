//! Looking after guard scopes: what is over by time is freed, what a dead session held as well, and whoever is next is woken.

use crate::{
    connect::Connected,
    domain::ids::SessionId,
    store::{GuardAct, GuardItem, Scope, StoreError},
    wake::wake,
    watch::tell,
};

/// Later than any look at a scope.
const ALWAYS: u64 = u64::MAX / 4096;

/// Frees what is over in these scopes of a partition, and what `session` held, where one is named. Returns how many were woken.
pub async fn tend(
    c: &Connected,
    p: u32,
    hold_ms: u64,
    scopes: Vec<Scope>,
    session: Option<&SessionId>,
) -> Result<usize, StoreError> {
    if scopes.is_empty() {
        return Ok(0);
    }
    let item = |place| GuardItem {
        act: GuardAct::Tend { session: session.map(|s| s.as_str().into()).unwrap_or_default() },
        member: "".into(),
        scopes: vec![place].into(),
    };
    let items: Vec<GuardItem> = (0u16..).take(scopes.len()).map(item).collect();
    let answer = c.store.guard(p, None, hold_ms, &scopes, &items).await?;
    let woken = answer.woken.len();
    tell(c, &scopes, &answer.watched, answer.now_ms).await;
    wake(c, p, hold_ms, &scopes, answer.woken).await;
    Ok(woken)
}

/// Frees what a dead session held, in every scope of a partition, `batch` at a time: before its holds end by themselves.
pub async fn sweep(
    c: &Connected,
    p: u32,
    hold_ms: u64,
    batch: usize,
    session: &SessionId,
) -> Result<(), StoreError> {
    let mut skip = 0;
    loop {
        // What is tended may move behind the others, or away: a scope that is missed ends by its time.
        let found = c.store.guard_scopes(p, ALWAYS, skip, batch).await?;
        let n = found.len();
        tend(c, p, hold_ms, found.into_iter().map(|s| s.scope).collect(), Some(session)).await?;
        if n < batch {
            return Ok(());
        }
        skip += n;
    }
}
