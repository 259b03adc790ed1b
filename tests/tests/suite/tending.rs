//! Looking after guard scopes where there are very many of them: nothing waits for a tick that could be done at once, and what a
//! dead worker ran is not kept waiting by what it held.

use std::time::Duration;

use surety_common::{
    connect::Connected,
    domain::{JobId, Status, guard::GuardKind, ids::SessionId},
    store::{GuardAct, GuardOutcome, Scope},
};
use surety_tests::{
    witness::Witness,
    world::{World, wait},
};

use super::{
    cluster::of_partition,
    guard_slots::{ask, item, nothing_left, plain, release, store},
    reaper::once,
    scripts::{claim, session},
};

const HOUR_MS: u64 = 3_600_000;
/// Scopes of one call.
const SLICE: usize = 500;
/// Later than any look at a scope.
const ALWAYS: u64 = u64::MAX / 4096;

pub(super) fn locks(n: usize) -> Vec<Scope> {
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

fn job_of(c: &Connected, session: &str) -> JobId {
    of_partition(c, 0, &format!("job-of-{session}"))
}

/// A session whose worker is dead, which runs one job.
async fn dead(c: &Connected, name: &str) -> SessionId {
    let session = session(name);
    c.store.open_session(0, &session, Duration::from_secs(3600), "{}").await.unwrap();
    c.store.claim(0, &session, 1000, &[claim(job_of(c, name).as_str())]).await.unwrap();
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
        jobs.push(job_of(&c, session.as_str()));
        c.store.expire_session(0, &session).await.unwrap();
    }
    // One step after the other that is too long would end in a timeout.
    once(&world, &[]).await.exits(0);
    for job in jobs {
        assert_eq!(world.status(&c, job.as_str(), Status::RetryWait).await.charged, 1, "{job}");
    }
}

// Shows: S-02, R-09
#[tokio::test]
async fn a_scope_that_was_only_asked_for_leaves_nothing_behind() {
    let redis = super::scripts::redis().await;
    let store = store(&redis.url(), 1).await;
    let plain = plain(&redis).await;
    let of = |kind, name| Scope::new(kind, "r", name, [1, 5000, 0, 0]);
    let full = of(GuardKind::Concurrency, "full");
    let free = [of(GuardKind::Concurrency, "free"), of(GuardKind::Lock, "free")];
    let all = [full, free[0].clone(), free[1].clone()];
    let held = store.guard(0, None, HOUR_MS, &all[..1], &[ask("first/1", 1, &[0])]).await.unwrap();
    // Declined; checked; given back what is not there; left in line.
    store.guard(0, None, HOUR_MS, &all, &[ask("second/1", 2, &[0, 1, 2])]).await.unwrap();
    store.guard(0, None, HOUR_MS, &free, &[item(GuardAct::Check, "third/1", &[0])]).await.unwrap();
    let gone = release("fourth/1", &held.token, None, GuardOutcome::Undone, &[0, 1]);
    store.guard(0, None, HOUR_MS, &free, &[gone]).await.unwrap();
    for scope in &free {
        nothing_left(&store, &plain, scope).await;
    }
    // What is held is known by its name.
    let found = store.guard_scopes(0, ALWAYS, 0, 10).await.unwrap();
    assert_eq!(found.iter().map(|s| s.scope.label.as_str()).collect::<Vec<_>>(), ["r: full"]);
}

/// How often the server of partition 0 read from its clients.
async fn reads(world: &World) -> u64 {
    let info: redis::InfoDict =
        redis::cmd("INFO").arg("stats").query_async(&mut world.redis.plain(0).await).await.unwrap();
    info.get("total_reads_processed").unwrap()
}

// Shows: S-05
#[tokio::test]
async fn the_guards_are_listed_in_a_few_round_trips_and_no_more_of_them_than_asked_for() {
    let world = World::with("").await;
    let c = world.connect().await;
    hold(&c, None, HOUR_MS, &locks(600)).await;
    let slots = Scope::new(GuardKind::Concurrency, "api", "acme", [2, 5000, 0, 0]);
    hold(&c, None, HOUR_MS, &[slots]).await;
    // Of two roots one has all the jobs that it may have.
    let roots =
        [3, 1].map(|most| Scope::new(GuardKind::Loop, "", &format!("root-{most}"), [50, HOUR_MS, most, 0]));
    hold(&c, None, HOUR_MS, &roots).await;
    let before = reads(&world).await;
    let told = world.ask(&["guards", "--limit", "1000"]).await;
    let n_reads = reads(&world).await - before;
    assert!(n_reads < 300, "{n_reads} reads for 603 scopes");
    let listed = |told: &serde_json::Value| -> Vec<String> {
        let all = told["guards"].as_array().unwrap();
        all.iter().map(|g| g["scope"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((listed(&told).len(), &told["more"]), (602, &0.into()));
    assert_eq!(listed(&told).last().unwrap(), "root-1", "a root that is not full is not of interest");
    let told = world.ask(&["guards"]).await;
    assert_eq!((listed(&told).len(), &told["more"]), (100, &502.into()));
    assert!(world.surety(&["guards"]).await.exits(0).err.contains("502 more; --limit"));
    assert_eq!(listed(&world.ask(&["guards", "--kind", "loop"]).await), ["root-1", "root-3"]);
    assert_eq!(listed(&world.ask(&["guards", "--kind", "concurrency"]).await), ["api: acme"]);
    assert_eq!(listed(&world.ask(&["guards", "--full", "--kind", "loop"]).await), ["root-1"]);
    let said = world.surety(&["guards", "--full", "--kind", "concurrency"]).await.exits(0);
    let none = "no concurrency guard would keep a job waiting now; 603 scopes are in use";
    assert!(said.err.contains(none), "{said:?}");
    let said = world.surety(&["guards", "--kind", "breakr"]).await.exits(2);
    assert!(said.err.contains("none of rate, concurrency"), "{said:?}");
}

// Shows: G-02
#[tokio::test]
async fn who_waits_for_a_rule_that_was_removed_asks_again_when_its_scope_is_reset() {
    let witness = Witness::default();
    let hold = witness.handler("hold", "until [ -e $W.go ]; do sleep 0.02; done");
    let world = World::with(&(hold + "[guards]\nfallback = \"1h\"")).await;
    let c = world.connect().await;
    world.reconfigure("[guards.concurrency.one]\nscope = \"{type}\"\nlimit = 1\n");
    let mut worker = world.worker(&[], &[]);
    let publish = async |job: &str| world.publish("default", job, r#"{"type":"hold"}"#).await;
    publish("a").await;
    witness.started("a", 1).await;
    publish("b").await;
    let in_line = async || {
        wait("b to stand in line", async || c.store.scopes().await.unwrap().iter().any(|s| s.waiting == 1))
            .await;
    };
    in_line().await;
    world.status(&c, "b", Status::Deferred).await;
    let reset = async || {
        let said = world.surety(&["guards", "reset", "one: hold"]).await.exits(0).out;
        assert!(said.contains("1 jobs were woken and ask again; what is held stays (1 held)"), "{said}");
    };
    // While the rule holds that changes nothing.
    reset().await;
    in_line().await;
    assert_eq!(witness.executions("b"), 0);
    world.reconfigure("");
    worker.hang_up();
    worker.logged("every rule of a guard was removed").await;
    reset().await;
    witness.started("b", 1).await;
    witness.touch("go");
    for job in ["a", "b"] {
        assert_eq!(world.ended(&c, job).await.status, Status::Done);
    }
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: G-02
#[tokio::test]
async fn who_sleeps_for_a_moment_of_a_rate_limit_is_woken_in_order_when_that_is_reset() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("call", "true") + &witness.handler("noop", "true"))).await;
    let c = world.connect().await;
    // A slip: somebody meant another unit.
    world.reconfigure("[guards.rate.api]\nscope = \"{type}\"\nlimit = 1\nper = \"1000h\"\nburst = 1\n");
    let mut worker = world.worker(&["--slots", "1"], &[]);
    let throttled = async |job: &str| {
        world.publish("default", job, r#"{"type":"call"}"#).await;
        let r = world.status(&c, job, Status::Deferred).await;
        assert_eq!(r.code, "rate_limited", "{job}");
        r.due_ms
    };
    world.publish("default", "first", r#"{"type":"call"}"#).await;
    assert_eq!(world.ended(&c, "first").await.status, Status::Done);
    let due = [throttled("a").await, throttled("b").await, throttled("c").await];
    // What is done after the others were given back says that those sleep.
    let slept = async |job: &str, kind: &str| {
        world.publish("default", job, &format!(r#"{{"type":"{kind}"}}"#)).await;
        assert_eq!(world.ended(&c, job).await.status, Status::Done);
    };
    slept("slept", "noop").await;
    let reset = async |n: usize| {
        let said = world.surety(&["guards", "reset", "api: call"]).await.exits(0).out;
        assert!(said.contains(&format!("starts over; {n} jobs were woken")), "{said}");
    };
    // By the rule that still holds one of them starts: who has waited longest.
    reset(3).await;
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    // The others are told their new moments.
    for (job, before) in [("b", due[1]), ("c", due[2])] {
        let r = world.until(&c, job, |r| r.due_ms < before).await;
        assert_eq!((r.status, r.code.as_str()), (Status::Deferred, "rate_limited"), "{job}");
    }
    // The rule is gone: they just start, long before their moments.
    world.reconfigure("");
    worker.hang_up();
    worker.logged("every rule of a guard was removed").await;
    slept("slept-again", "noop").await;
    reset(2).await;
    for job in ["b", "c"] {
        assert_eq!(world.ended(&c, job).await.status, Status::Done, "{job}");
    }
    world.history(&c).await.check().unwrap();
    assert_eq!(worker.stop().await, Some(0));
}
