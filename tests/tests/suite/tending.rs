//! Looking after guard scopes where there are very many of them: nothing waits for a tick that could be done at once, and what a
//! dead worker ran is not kept waiting by what it held.

use std::time::Duration;

use surety_common::{
    connect::Connected,
    domain::{Status, guard::GuardKind, ids::SessionId},
    store::{GuardAct, Scope},
};
use surety_tests::world::World;

use super::{
    guard_slots::{ask, item},
    reaper::once,
    scripts::{claim, session},
};

const HOUR_MS: u64 = 3_600_000;
/// Scopes of one call.
const SLICE: usize = 500;
/// Later than any look at a scope.
const ALWAYS: u64 = u64::MAX / 4096;

fn locks(n: usize) -> Vec<Scope> {
    (0..n).map(|i| Scope::new(GuardKind::Lock, "", &format!("lock-{i}"), [1, 5000, 0, 0])).collect()
}

/// All of them are held, each by a job of its own.
async fn hold(c: &Connected, session: Option<&SessionId>, hold_ms: u64, scopes: &[Scope]) {
    for slice in scopes.chunks(SLICE) {
        let items: Vec<_> =
            (0u16..).zip(slice).map(|(at, s)| ask(&format!("{}/1", s.label), 1, &[at])).collect();
        c.store.guard(0, session, hold_ms, slice, &items).await.unwrap();
    }
}

async fn n_scopes(c: &Connected) -> u64 {
    c.store.guards_due(0, ALWAYS).await.unwrap()
}

/// A session whose worker is dead, which runs one job.
async fn dead(c: &Connected, name: &str) -> SessionId {
    let session = session(name);
    c.store.open_session(0, &session, Duration::from_secs(3600), "{}").await.unwrap();
    c.store.claim(0, &session, 1000, &[claim(&format!("job-of-{name}"))]).await.unwrap();
    session
}

// Shows: S-07, C-10
#[tokio::test]
async fn a_reaper_goes_on_at_once_while_more_scopes_are_due_although_nobody_is_to_be_woken() {
    let world = World::with("[reaper]\nbatch = 10\n").await;
    let c = world.connect().await;
    let scopes = locks(300);
    hold(&c, None, 1, &scopes).await;
    assert_eq!(n_scopes(&c).await, 300);
    once(&world, &[]).await.exits(0);
    assert_eq!(n_scopes(&c).await, 0, "what is over by time is forgotten in one pass");
}

// Shows: S-07, L-02
#[tokio::test]
async fn what_dead_sessions_held_is_free_at_once_in_every_scope() {
    let world = World::with("").await;
    let c = world.connect().await;
    let sessions = [dead(&c, "s1").await, dead(&c, "s2").await];
    let scopes = locks(3 * SLICE);
    let (theirs, kept) = scopes.split_at(2 * SLICE);
    for (session, held) in sessions.iter().zip(theirs.chunks(SLICE)) {
        hold(&c, Some(session), HOUR_MS, held).await;
    }
    let alive = dead(&c, "alive").await;
    hold(&c, Some(&alive), HOUR_MS, kept).await;
    for session in &sessions {
        c.store.expire_session(0, session).await.unwrap();
    }
    once(&world, &[]).await.exits(0);
    assert_eq!(n_scopes(&c).await, kept.len() as u64);
}

// Shows: H-05
#[tokio::test]
async fn the_attempts_of_many_dead_workers_do_not_wait_for_the_scopes_that_are_looked_through() {
    const N: usize = 20_000;
    const DEAD: usize = 15;
    let world = World::with("").await;
    let c = world.connect().await;
    hold(&c, None, HOUR_MS, &locks(N)).await;
    let mut jobs = Vec::new();
    for n in 0..DEAD {
        let session = dead(&c, &format!("s{n}")).await;
        jobs.push(format!("job-of-{session}"));
        c.store.expire_session(0, &session).await.unwrap();
    }
    // One step after the other that is too long would end in a timeout.
    once(&world, &[]).await.exits(0);
    for job in jobs {
        assert_eq!(world.status(&c, &job, Status::RetryWait).await.charged, 1, "{job}");
    }
}

// Shows: S-02, R-09
#[tokio::test]
async fn a_scope_that_was_only_asked_for_leaves_nothing_behind() {
    let redis = super::scripts::redis().await;
    let store = super::guard_slots::store(&redis.url(), 1).await;
    let plain = super::guard_slots::plain(&redis).await;
    let of = |kind, name| Scope::new(kind, "r", name, [1, 5000, 0, 0]);
    let full = of(GuardKind::Concurrency, "full");
    let free = [of(GuardKind::Concurrency, "free"), of(GuardKind::Lock, "free")];
    let all = [full, free[0].clone(), free[1].clone()];
    let held = store.guard(0, None, HOUR_MS, &all[..1], &[ask("first/1", 1, &[0])]).await.unwrap();
    // Declined; checked; given back what is not there; left in line.
    store.guard(0, None, HOUR_MS, &all, &[ask("second/1", 2, &[0, 1, 2])]).await.unwrap();
    store.guard(0, None, HOUR_MS, &free, &[item(GuardAct::Check, "third/1", &[0])]).await.unwrap();
    let gone = super::guard_slots::release(
        "fourth/1",
        &held.token,
        None,
        surety_common::store::GuardOutcome::Undone,
        &[0, 1],
    );
    store.guard(0, None, HOUR_MS, &free, &[gone]).await.unwrap();
    for scope in &free {
        super::guard_slots::nothing_left(&store, &plain, scope).await;
    }
    // What is held is known by its name.
    let found = store.guard_scopes(0, ALWAYS, 0, 10).await.unwrap();
    assert_eq!(found.iter().map(|s| s.scope.label.as_str()).collect::<Vec<_>>(), ["r: full"]);
}
