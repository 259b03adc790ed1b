//! Locks end to end: real workers, real servers, jobs that need what others have.

use std::{collections::HashMap, time::Duration};

use redis::AsyncCommands;
use surety_common::{
    connect::Connected,
    domain::{Status, guard::GuardKind},
    locks,
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Scope, Woken, guards::ONLY_LOOK},
    wake::wake,
};
use surety_tests::{
    proxy::Proxy,
    witness::{Witness, id, kinds, settled},
    world::{World, wait},
};

use super::guard_limits::deliveries;

/// Takes a folder for each of its locks, which must not be there, and writes down each with its token; until it may go.
const WORK: &str = r#"
for lock in $(echo "$SURETY_LOCKS" | tr -d '{}"' | tr ',' ' '); do
  mkdir $W.in-${lock%%:*} || say clash ${lock%%:*}
  echo "$lock" >> $W.tokens
done
[ -e $W.all ] || until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done
for lock in $(echo "$SURETY_LOCKS" | tr -d '{}"' | tr ',' ' '); do rmdir $W.in-${lock%%:*}; done"#;

/// Runs until `$W.go-<job>` is there.
const GATED: &str = "until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done";

fn job(locks: &[&str]) -> String {
    serde_json::json!({ "type": "work", "locks": locks, "retry": { "backoff": ["10ms"] } }).to_string()
}

/// The key that says who holds a lock.
fn hold_key(c: &Connected, name: &str) -> String {
    let scope = Scope::new(GuardKind::Lock, "", name, [0; 4]);
    let p = scope.partition(c.store.keys().partitions());
    let [_, hold, ..] = c.store.keys().guard(p, &scope.hash);
    hold
}

/// Who holds a lock: `<job>/<generation>`, or nobody.
async fn holder(c: &Connected, name: &str) -> String {
    let lock = c.store.lock(name).await.unwrap();
    lock.and_then(|l| l.holder).map(|h| h.member).unwrap_or_default()
}

/// No lock is held.
async fn is_free(c: &Connected, name: &str) {
    wait(&format!("{name} to be free"), async || holder(c, name).await.is_empty()).await;
}

/// Nothing of any guard is left.
async fn nothing_left(world: &World, c: &Connected) {
    wait("every guard to be idle", async || {
        for p in 0..c.store.keys().partitions() {
            if c.store.guard_scopes(p, u64::MAX / 4096, 0, 100).await.is_ok_and(|s| !s.is_empty()) {
                return false;
            }
        }
        true
    })
    .await;
    for node in 0..world.redis.nodes.len() {
        let keys: Vec<String> = world.redis.plain(node).await.keys("surety:*:hold:*").await.unwrap();
        assert_eq!(keys, Vec::<String>::new());
    }
}

/// Forty jobs with one to three of three locks, named in any order, at two workers.
async fn in_any_order(config: &str) {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("work", WORK) + config)).await;
    let c = world.connect().await;
    witness.touch("all");
    let mut workers = [world.worker(&[], &[]), world.worker(&["--state-dir", &world.path("s2")], &[])];
    let mut reaper = world.reaper(&[]);
    let sets: [&[&str]; 8] = [
        &["a", "b"],
        &["b", "a"],
        &["a"],
        &["c", "a"],
        &["b", "c"],
        &["b"],
        &["c", "b", "a"],
        &["a", "b", "c"],
    ];
    for n in 0..40 {
        world.publish("default", &format!("j{n}"), &job(sets[n % sets.len()])).await;
    }
    for n in 0..40 {
        let id = format!("j{n}");
        let r = world.ended(&c, &id).await;
        // What one delivery was given in another partition may be given back before another one is granted the attempt, which then
        // ends before it runs.
        assert_eq!((r.status, r.charged, witness.executions(&id)), (Status::Done, 0, 1), "{id} {r:#?}");
    }
    assert!(!witness.text().contains("clash"), "{}", witness.text());
    let written = witness.written("tokens");
    let mut last: HashMap<&str, u64> = HashMap::new();
    for line in written.lines() {
        let (name, token) = line.split_once(':').unwrap();
        let token: u64 = token.parse().unwrap();
        let before = last.insert(name, token).unwrap_or(0);
        assert!(token > before, "{name}: {token} after {before}");
    }
    assert_eq!(last.len(), 3);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    nothing_left(&world, &c).await;
    for w in &mut workers {
        assert_eq!(w.stop().await, Some(0));
    }
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: L-01
#[tokio::test]
async fn jobs_with_several_locks_in_any_order_all_end_and_never_share_one() {
    in_any_order("").await;
}

// Shows: L-01
#[tokio::test]
async fn so_they_do_where_their_locks_are_in_several_partitions() {
    in_any_order("[layout]\npartitions = 3\n").await;
}

// Shows: L-01
#[tokio::test]
async fn whether_a_job_is_over_that_keeps_a_lock_is_looked_at_without_delivering_it() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", GATED)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "holder", &job(&["one"])).await;
    witness.started("holder", 1).await;
    world.publish("default", "waits", &job(&["one"])).await;
    world.status(&c, "waits", Status::Deferred).await;
    // By the time that this one starts it sleeps at the broker.
    world.publish("default", "before", &job(&[])).await;
    witness.started("before", 1).await;
    let scope = Scope::new(GuardKind::Lock, "", "another", [1, 5000, 0, 0]);
    let p = scope.partition(c.store.keys().partitions());
    let looked_at = Woken { scope: 0, member: "waits/1".into(), ack_subject: ONLY_LOOK.into() };
    wake(&c, p, 1000, std::slice::from_ref(&scope), vec![looked_at]).await;
    // What was given back would come before this one.
    world.publish("default", "after", &job(&[])).await;
    witness.started("after", 1).await;
    assert_eq!(deliveries(&world).await, 4, "it was delivered again");
    for name in ["before", "after", "holder", "waits"] {
        witness.touch(&format!("go-{name}"));
        world.ended(&c, name).await;
    }
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "waits").await, ["deferred", "started", "finished"]);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: L-03
#[tokio::test]
async fn an_attempt_whose_lock_is_deleted_under_it_is_killed_and_says_so() {
    let witness = Witness::default();
    let handler = format!("[ $SURETY_ATTEMPT -gt 1 ] || child 'exec sleep 60'\n{GATED}");
    let world = World::with(&witness.handler("work", &handler)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "a", &job(&["one", "two"])).await;
    witness.started("a", 2).await;
    assert_eq!(holder(&c, "two").await, "a/1");
    let mut n_deleted = 0;
    for node in 0..world.redis.nodes.len() {
        // Of a cluster one node has it, and the others say so.
        n_deleted += world.redis.plain(node).await.del(hold_key(&c, "two")).await.unwrap_or(0);
    }
    assert_eq!(n_deleted, 1);
    witness.dead("a", 1).await;
    let failed = world.until(&c, "a", |r| r.charged == 1).await;
    assert_eq!(failed.code, "lock_lost");
    // It is tried again, with both locks.
    witness.started("a", 3).await;
    assert_eq!(holder(&c, "two").await, "a/1");
    witness.touch("go-a");
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    let h = world.history(&c).await;
    h.check().unwrap();
    let failure = h.jobs["a"].events.iter().find(|e| e.kind == "attempt_failed").unwrap();
    assert_eq!(failure.data["error_code"], "lock_lost");
    assert_eq!(failure.data["message"], "the lock \"two\" was lost: another may hold it");
    witness.no_overlap();
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: L-01, D-04
#[tokio::test]
async fn however_an_attempt_ends_its_locks_are_free() {
    let witness = Witness::default();
    let handlers = witness.handler("work", GATED)
        + &witness.handler("bad", "exit 64")
        + &witness.handler("again", "exit 1")
        + "[handlers.unborn]\ncommand = [\"/nonexistent/program\"]\n";
    let world = World::with(&handlers).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let state = world.path("one");
    let mut worker = world.worker(&["--state-dir", &state], &[]);
    let document = |kind: &str, more: &str| format!(r#"{{"type":"{kind}","locks":["a","b"],{more}}}"#);
    let once = r#""retry":{"max_retries":0}"#;
    let none_held = async || {
        for name in ["a", "b"] {
            is_free(&c, name).await;
        }
    };
    witness.touch("go-done");
    for (id, kind, more, status) in [
        ("done", "work", once, Status::Done),
        ("failed", "bad", once, Status::Failed),
        ("late", "work", r#""retry":{"max_retries":0},"contract":{"timeout":"300ms"}"#, Status::TimedOut),
        ("expired", "work", r#""retry":{"max_retries":0},"contract":{"finish":"900ms"}"#, Status::TimedOut),
        ("waits", "again", r#""retry":{"max_retries":1,"backoff":["1h"]}"#, Status::RetryWait),
        ("unborn", "unborn", r#""contract":{"finish":"2h"}"#, Status::Deferred),
    ] {
        world.publish("default", id, &document(kind, more)).await;
        world.status(&c, id, status).await;
        none_held().await;
    }
    world.publish("default", "cancelled", &document("work", once)).await;
    witness.started("cancelled", 1).await;
    let wish = surety_common::cancel::Wish {
        id: &id("cancelled"),
        reason: None,
        queue: None,
        wait: Duration::from_secs(20),
    };
    assert!(surety_common::cancel::cancel(&c, &wish).await.unwrap().is_cancelled);
    none_held().await;
    // Given back at shutdown, and taken by another worker.
    world.publish("default", "released", &document("work", once)).await;
    witness.started("released", 1).await;
    assert_eq!(worker.stop().await, Some(0));
    none_held().await;
    let mut worker = world.worker(&["--state-dir", &state], &[]);
    witness.started("released", 2).await;
    assert_eq!(holder(&c, "a").await, "released/1");
    // Lost, with its worker.
    worker.kill9().await;
    assert_eq!(world.ended(&c, "released").await.code, "attempts_exhausted");
    none_held().await;
    world.history(&c).await.check().unwrap();
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: L-04, J-06
#[tokio::test]
async fn a_worker_that_starts_again_frees_what_its_former_self_held_long_before_that_ends() {
    let witness = Witness::default();
    let lease = "[lease]\nttl = \"300s\"\nmargin = \"10s\"\n[layout]\nack_wait = \"400s\"\n";
    let world = World::with(&(witness.handler("work", GATED) + lease)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut first = world.worker(&["--state-dir", &world.path("s1")], &[]);
    world.publish("default", "a", &job(&["one"])).await;
    witness.started("a", 1).await;
    let mut second = world.worker(&["--state-dir", &world.path("s2")], &[]);
    second.logged("worker ready").await;
    world.publish("default", "b", &job(&["one"])).await;
    assert_eq!(world.status(&c, "b", Status::Deferred).await.code, "lock_busy");
    first.kill9().await;
    // Its handler is dead, but for the store it lives for five minutes more, and so does its lock.
    let mut first = world.worker(&["--state-dir", &world.path("s1")], &[]);
    witness.touch("go-a");
    witness.touch("go-b");
    assert_eq!(world.ended(&c, "b").await.status, Status::Done);
    assert_eq!(world.ended(&c, "a").await.charged, 1);
    settled(&world, &c).await;
    is_free(&c, "one").await;
    for p in [&mut first, &mut second, &mut reaper] {
        assert_eq!(p.stop().await, Some(0));
    }
}

// Shows: L-02, L-04, H-06, H-09
#[tokio::test]
async fn a_frozen_worker_loses_its_run_its_locks_and_its_say_and_the_next_has_them() {
    let witness = Witness::default();
    let handler = format!("[ $SURETY_ATTEMPT -gt 1 ] || child 'exec sleep 60'\n{GATED}");
    let world = World::with(&witness.handler("work", &handler)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut frozen = world.worker(&["--state-dir", &world.path("s1")], &[]);
    world.publish("default", "a", &job(&["one"])).await;
    witness.started("a", 2).await;
    let mut other = world.worker(&["--state-dir", &world.path("s2")], &[]);
    other.logged("worker ready").await;
    frozen.freeze();
    // Killed by its keeper, while its worker cannot do anything.
    witness.dead("a", 1).await;
    witness.started("a", 3).await;
    assert_eq!(holder(&c, "one").await, "a/1");
    frozen.thaw();
    frozen.logged("session lost").await;
    world.publish("default", "b", &job(&["one"])).await;
    assert_eq!(world.status(&c, "b", Status::Deferred).await.code, "lock_busy");
    for job in ["a", "b"] {
        witness.touch(&format!("go-{job}"));
    }
    let (a, b) = (world.ended(&c, "a").await, world.ended(&c, "b").await);
    assert_eq!((a.status, a.attempt, a.charged), (Status::Done, 2, 1));
    assert!(b.started_ms >= a.ended_ms, "{} {}", b.started_ms, a.ended_ms);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let lost = h.jobs["a"].events.iter().find(|e| e.kind == "lost").unwrap();
    assert_eq!(lost.data["error_code"], "lost");
    assert_eq!(kinds(&world, &c, "a").await, ["started", "lost", "started", "finished"]);
    witness.no_overlap();
    for p in [&mut frozen, &mut other, &mut reaper] {
        assert_eq!(p.stop().await, Some(0));
    }
    is_free(&c, "one").await;
}

/// A second each way, and a claim that takes long by it.
const SLOW: &str = r#"
[layout]
ack_wait = "30s"
[connection]
call_timeout = "6s"
retry_limit = "20s"
[lease]
renewal = "2s"
ttl = "20s"
margin = "3s"
"#;

// Shows: L-03
#[tokio::test]
async fn a_lock_that_ended_while_the_claim_took_long_is_missed_before_anything_runs() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("work", WORK) + SLOW)).await;
    if world.redis.nodes.len() > 1 {
        // A cluster tells its clients where its nodes are: past the proxy.
        return;
    }
    let c = world.connect().await;
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let mut reaper = world.reaper(&[]);
    let mut worker = world.worker(&["--redis", &format!("redis://{}", proxy.addr())], &[]);
    worker.logged("worker ready").await;
    proxy.delay(Duration::from_secs(1));
    world.publish("default", "a", &job(&["one"])).await;
    // The claim is committed, and its answer under way: the lock goes to somebody else.
    world.status(&c, "a", Status::Running).await;
    let released = locks::release(&c, "one", true, 20_000).await.unwrap();
    assert!(released.is_released, "{}", released.text);
    let scope = [Scope::new(GuardKind::Lock, "", "one", [1, 5000, 0, 0])];
    let p = scope[0].partition(c.store.keys().partitions());
    let act = GuardAct::Ask { arrival_ms: 1, ack_subject: "".into(), work: "".into(), keeps: false };
    let item = GuardItem { act, member: "other/1".into(), scopes: vec![0].into() };
    let other = c.store.guard(p, None, 60_000, &scope, &[item]).await.unwrap();
    assert!(matches!(other.replies[..], [GuardReply::Passes(_)]), "{other:?}");
    worker.logged("what the guards gave is not to be had").await;
    assert!(witness.of("a").is_empty(), "it ran without its lock");
    proxy.delay(Duration::ZERO);
    assert_eq!(world.status(&c, "a", Status::Deferred).await.code, "lock_busy");
    witness.touch("all");
    let act = GuardAct::Release { token: other.token.into(), until_ms: None, outcome: GuardOutcome::Neutral };
    let item = GuardItem { act, member: "other/1".into(), scopes: vec![0].into() };
    let freed = c.store.guard(p, None, 60_000, &scope, &[item]).await.unwrap();
    wake(&c, p, 60_000, &scope, freed.woken).await;
    let a = world.ended(&c, "a").await;
    assert_eq!((a.status, a.charged), (Status::Done, 0));
    for p in [&mut worker, &mut reaper] {
        assert_eq!(p.stop().await, Some(0));
    }
}

// Shows: L-03, A-07
#[tokio::test]
async fn after_a_loss_of_redis_a_lock_is_held_again_before_anything_starts_and_its_token_grows() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", WORK)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    world.publish("default", "a", &job(&["one"])).await;
    witness.started("a", 1).await;
    world.publish("default", "b", &job(&["one"])).await;
    world.status(&c, "b", Status::Deferred).await;
    for node in 0..world.redis.nodes.len() {
        let _: () = redis::cmd("FLUSHALL").query_async(&mut world.redis.plain(node).await).await.unwrap();
    }
    reaper.logged("redis is whole again").await;
    wait("the lock to be held again", async || holder(&c, "one").await == "a/1").await;
    // Whoever asks now waits.
    world.publish("default", "c", &job(&["one"])).await;
    world.status(&c, "c", Status::Deferred).await;
    assert!(witness.of("b").is_empty() && witness.of("c").is_empty());
    for job in ["a", "b", "c"] {
        witness.touch(&format!("go-{job}"));
    }
    for (job, charged) in [("a", 0), ("b", 0), ("c", 0)] {
        let r = world.ended(&c, job).await;
        assert_eq!((r.status, r.charged), (Status::Done, charged), "{job}");
    }
    assert!(!witness.text().contains("clash"), "{}", witness.text());
    let written = witness.written("tokens");
    let tokens: Vec<u64> =
        written.lines().map(|l| l.strip_prefix("one:").unwrap().parse().unwrap()).collect();
    assert!(tokens.len() == 3 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    world.history(&c).await.check().unwrap();
    for p in [&mut worker, &mut reaper] {
        assert_eq!(p.stop().await, Some(0));
    }
}
