//! Guards end to end: real workers, real servers, jobs that have to wait for each other.

use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    witness::{Witness, id, kinds, settled},
    world::{World, wait},
};

/// A start is claimed this much later than its guards were asked, at most (ms).
const SLACK: u64 = 300;

/// Runs until `$W.go-<job>` is there.
const GATED: &str = "until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done";

async fn world(witness: &Witness, guards: &str) -> (World, Connected) {
    let world = World::with(&(witness.handler("work", GATED) + guards)).await;
    let c = world.connect().await;
    (world, c)
}

fn job(key: &str) -> String {
    format!(r#"{{"type":"work","key":"{key}"}}"#)
}

/// Nothing of any guard is held, and nobody waits.
async fn nothing_held(c: &Connected) {
    for p in 0..c.store.keys().partitions() {
        wait("every guard to be idle", async || {
            c.store.guard_scopes(p, u64::MAX / 4096, 0, 100).await.is_ok_and(|s| s.is_empty())
        })
        .await;
    }
}

// Shows: S-05, S-07, A-07
#[tokio::test]
async fn slots_are_given_in_the_order_of_arrival_and_other_keys_do_not_wait() {
    let witness = Witness::default();
    let rule = "[guards.concurrency.one]\nscope = \"{key}\"\nlimit = 1\n";
    let (world, c) = world(&witness, rule).await;
    let mut workers = [world.worker(&[], &[]), world.worker(&["--state-dir", &world.path("s2")], &[])];
    let mut reaper = world.reaper(&[]);
    world.publish("default", "a1", &job("a")).await;
    witness.started("a1", 1).await;
    for name in ["a2", "a3", "a4"] {
        world.publish("default", name, &job("a")).await;
        let r = world.status(&c, name, Status::Deferred).await;
        assert_eq!((r.code.as_str(), r.attempt, r.epoch), ("concurrency", 0, 0), "{name}");
    }
    world.publish("default", "b1", &job("b")).await;
    witness.started("b1", 1).await;
    for (done, next) in [("a1", "a2"), ("a2", "a3"), ("a3", "a4")] {
        assert!(witness.of(next).is_empty(), "{next} started beside {done}");
        witness.touch(&format!("go-{done}"));
        let ended = world.ended(&c, done).await.ended_ms;
        let started = world.until(&c, next, |r| r.started_ms > 0).await.started_ms;
        assert!(started - ended < 1000, "{next} started {} ms after {done}", started - ended);
    }
    witness.touch("go-a4");
    witness.touch("go-b1");
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "a3").await, ["deferred", "started", "finished"]);
    world.history(&c).await.check().unwrap();
    nothing_held(&c).await;
    for w in &mut workers {
        assert_eq!(w.stop().await, Some(0));
    }
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-01, S-05, S-08, A-07
#[tokio::test]
async fn a_throttled_job_gets_a_slot_and_comes_back_once_for_it_also_at_another_worker() {
    let witness = Witness::default();
    let rule = "[guards.rate.api]\nscope = \"{key}\"\nlimit = 2\nper = \"2s\"\nburst = 1\n";
    let (world, c) = world(&witness, rule).await;
    let mut first = world.worker(&[], &[]);
    for name in ["a1", "a2", "a3"] {
        witness.touch(&format!("go-{name}"));
        world.publish("default", name, &job("a")).await;
    }
    let a1 = world.ended(&c, "a1").await;
    let mut slots = Vec::new();
    for name in ["a2", "a3"] {
        let r = world.until(&c, name, |r| r.status == Status::Deferred || r.started_ms > 0).await;
        if r.status == Status::Deferred {
            assert_eq!(r.code, "rate_limited");
        }
        slots.push(r.due_ms);
    }
    assert_eq!(first.stop().await, Some(0));
    let mut second = world.worker(&["--state-dir", &world.path("s2")], &[]);
    let a2 = world.ended(&c, "a2").await;
    let a3 = world.ended(&c, "a3").await;
    assert!(
        a2.started_ms + SLACK >= a1.started_ms + 1000 && a3.started_ms + SLACK >= a1.started_ms + 2000,
        "{a1:?} {a2:?} {a3:?}"
    );
    assert_eq!((a2.charged, a3.charged), (0, 0), "a job that waits is not charged");
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(kinds(&world, &c, "a3").await, ["deferred", "started", "finished"]);
    let said = &h.jobs["a3"].events[0].data;
    assert_eq!((said["reason"].as_str(), said["guard"].as_str()), (Some("rate_limited"), Some("api: a")));
    assert_eq!(second.stop().await, Some(0));
}

// Shows: S-07
#[tokio::test]
async fn a_slot_of_a_killed_worker_is_free_as_soon_as_its_attempts_are_lost() {
    let witness = Witness::default();
    let rule = "[guards.concurrency.one]\nscope = \"{type}\"\nlimit = 1\n";
    let (world, c) = world(&witness, rule).await;
    let mut reaper = world.reaper(&[]);
    let mut first = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"work","retry":{"backoff":["30s"],"max_retries":0}}"#).await;
    witness.started("a", 1).await;
    world.publish("default", "b", &job("x")).await;
    world.status(&c, "b", Status::Deferred).await;
    first.kill9().await;
    let mut second = world.worker(&["--state-dir", &world.path("s2")], &[]);
    let lost = world.ended(&c, "a").await.ended_ms;
    let started = world.until(&c, "b", |r| r.started_ms > 0).await.started_ms;
    assert!(started.saturating_sub(lost) < 2000, "{} ms after the loss", started - lost);
    witness.touch("go-b");
    assert_eq!(c.store.record(&id("a")).await.unwrap().unwrap().status, Status::Failed);
    settled(&world, &c).await;
    nothing_held(&c).await;
    assert_eq!(second.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}
