//! The locks that a job names: who has the one that it waits for.

use super::{
    Facts, Gate, GateCode, LockFacts,
    gate::{place_in_line, span},
};
use crate::{
    connect::Connected,
    locks,
    store::{Scope, StoreError},
};

/// The locks that a job's document names; none where it does not read.
pub(super) fn named(document: &[u8]) -> Vec<LockFacts> {
    let read = serde_json::from_slice::<serde_json::Value>(document).ok();
    let list = read.as_ref().and_then(|d| d.get("locks")).and_then(|l| l.as_array());
    let names = list.into_iter().flatten().filter_map(|n| n.as_str());
    names.map(|name| LockFacts { name: name.to_owned(), now: None, before: None }).collect()
}

/// Looks who has them. `member`: the job, where it may stand in a line.
pub(super) async fn read(
    c: &Connected,
    mut all: Vec<LockFacts>,
    member: Option<&str>,
) -> Result<Vec<LockFacts>, StoreError> {
    for lock in &mut all {
        lock.now = locks::look(c, &lock.name).await?;
        let (Some(member), Some(now)) = (member, &lock.now) else { continue };
        if now.waiting > 0 {
            let scope = Scope::of_lock(&lock.name);
            let p = scope.partition(c.store.keys().partitions());
            lock.before = c.store.place_in_line(p, &scope.hash, member).await?;
        }
    }
    Ok(all)
}

/// The lock that keeps the job waiting: that in whose line it stands, else the first of its locks that another has.
pub(super) fn busy(f: &Facts) -> Option<Gate> {
    let others = || {
        f.locks.iter().filter_map(|l| {
            let lock = l.now.as_ref()?;
            let owner = lock.owner.as_ref().filter(|o| o.job != f.id.as_str())?;
            Some((lock, owner, l.before))
        })
    };
    let (lock, owner, before) = others()
        .find(|(_, _, before)| before.is_some())
        .or_else(|| others().find(|(lock, ..)| lock.waiting > 0))
        .or_else(|| others().next())?;
    let since = owner.held_ms.map(|ms| format!(" since {}", span(ms))).unwrap_or_default();
    Some(Gate {
        code: GateCode::Guarded,
        what: format!(
            "the lock {:?} keeps it waiting: {} has it{since}; {} wait for it{}",
            lock.name,
            owner.text(),
            lock.waiting,
            place_in_line(before)
        ),
        then: "it is woken when the lock is free and its turn has come; see `surety locks`".into(),
        until: None,
    })
}
