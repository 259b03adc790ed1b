//! The finish deadline: of what runs, of what waits for its retry, and of what is claimed too late.

use surety_common::domain::{ErrorCode, Status};
use surety_tests::{
    witness::{Witness, dead_letters, id, settled},
    world::{World, wait},
};

/// A tree whose grandchild ignores TERM.
const TREE: &str = "child 'exec sleep 60'; exec sleep 60";

async fn ended_late(world: &World, c: &surety_common::connect::Connected, job: &str) {
    let ended = world.ended(c, job).await;
    let code = ErrorCode::FinishDeadline.name();
    assert_eq!((ended.status, ended.code.as_str()), (Status::TimedOut, code), "{ended:#?}");
    settled(world, c).await;
    let h = world.history(c).await;
    h.check().unwrap();
    let last = h.jobs[job].events.iter().find(|e| e.kind == "finished").unwrap();
    assert_eq!(last.data["receipt"]["error_code"], code);
    // Kept, so that a person can look at it and replay it.
    let letters = dead_letters(world).await;
    assert!(letters.iter().any(|l| l.reason == code), "no dead letter");
    assert!(!c.store.due(0, u64::MAX >> 1, 10).await.unwrap().contains(&id(job)), "still in the index");
}

// Shows: P3, P4, T-01
#[tokio::test]
async fn a_running_job_is_stopped_at_its_finish_deadline_and_not_tried_again() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("tree", TREE)).await;
    let c = world.connect().await;
    let _worker = world.worker(&[], &[]);
    // The attempt alone might go on for ten minutes, and three more might follow.
    world.publish("default", "a", r#"{"type":"tree","contract":{"finish":"1500ms"}}"#).await;
    witness.started("a", 2).await;
    ended_late(&world, &c, "a").await;
    assert!(!witness.lives("a"), "{}", witness.text());
    let record = c.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((record.attempt, record.charged), (1, 1));
    assert!(record.ended_ms >= record.finish_by_ms, "ended before its deadline");
}

// Shows: C-09, P3
#[tokio::test]
async fn a_job_in_backoff_ends_at_its_finish_deadline_without_any_worker() {
    let world = World::with("[handlers.fail]\ncommand = [\"false\"]").await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let body = r#"{"type":"fail","retry":{"backoff":["1h"]},"contract":{"finish":"2500ms"}}"#;
    world.publish("default", "a", body).await;
    world.status(&c, "a", Status::RetryWait).await;
    assert_eq!(worker.stop().await, Some(0));
    let _reaper = world.reaper(&[]);
    ended_late(&world, &c, "a").await;
}

// Shows: P3
#[tokio::test]
async fn a_job_that_is_claimed_after_its_finish_deadline_does_not_run() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("quick", "exit 0")).await;
    let c = world.connect().await;
    world.publish("default", "a", r#"{"type":"quick","contract":{"finish":"1ms"}}"#).await;
    let now = c.broker.now_ms().await.unwrap();
    wait("the deadline to pass", async || c.broker.now_ms().await.unwrap() > now + 5).await;
    let _worker = world.worker(&[], &[]);
    ended_late(&world, &c, "a").await;
    assert_eq!(witness.executions("a"), 0);
}
