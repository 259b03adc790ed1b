//! Long waits for the next attempt, which take up no place at the broker.

use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    witness::{Witness, dead_letters, settled},
    world::{PATIENCE, World, messages, wait},
};

use super::redis_loss::flush;

/// More jobs in backoff than a consumer holds at all.
const JOBS: usize = 50;
const FEW_PLACES: &str = "[layout]\nmax_ack_pending = 20\n[handlers.fail]\ncommand = [\"false\"]\n";

async fn publish_failing(world: &World, c: &Connected, backoff: &str) {
    for i in 0..JOBS {
        let body = format!(r#"{{"type":"fail","retry":{{"backoff":["{backoff}"]}}}}"#);
        world.publish("default", &format!("f{i}"), &body).await;
    }
    for i in 0..JOBS {
        world.status(c, &format!("f{i}"), Status::RetryWait).await;
    }
}

// Shows: A-12
#[tokio::test]
async fn fifty_jobs_in_backoff_leave_a_queue_of_twenty_places_free() {
    let world = World::with(FEW_PLACES).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    publish_failing(&world, &c, "30m").await;
    world.publish("default", "fresh", r#"{"type":"noop"}"#).await;
    assert_eq!(world.ended(&c, "fresh").await.status, Status::Done);
    wait("the places to be free", async || messages(&world, "SURETY_JOBS").await == 0).await;
    assert_eq!(messages(&world, "SURETY_SCHED").await, JOBS as u64);

    // They are jobs and no schedules that somebody made; each is found, and can be cancelled.
    let listed = world.surety(&["schedule", "list", "--json"]).await.exits(0).json();
    assert_eq!(listed["schedules"], serde_json::json!([]));
    let removed = world.surety(&["schedule", "rm", "f1", "--yes"]).await;
    assert!(removed.code == Some(1) && removed.err.contains("surety cancel f1"), "{removed:?}");
    for replace in [&["--replace"][..], &[]] {
        let add = ["schedule", "add", "f2", "noop", "--every", "1h"].iter().chain(replace).copied();
        let added = world.surety(&add.collect::<Vec<_>>()).await.exits(1);
        assert!(added.err.contains("is a job that is scheduled"), "{added:?}");
    }
    assert_eq!(messages(&world, "SURETY_SCHED").await, JOBS as u64, "none was replaced");
    let why = world.surety(&["why", "f1", "--json"]).await.exits(0).json();
    assert_eq!(
        (&why["job"]["status"], &why["carrier"]["is_there"]),
        (&"retry_wait".into(), &true.into()),
        "{why}"
    );
    let status = world.surety(&["status", "f1", "--json"]).await.exits(0).json();
    assert_eq!(status["status"], "retry_wait");
    world.surety(&["cancel", "f1"]).await.exits(0);
    assert_eq!(messages(&world, "SURETY_SCHED").await, JOBS as u64 - 1);
    let letters = dead_letters(&world).await;
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "cancelled"));

    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}

/// A job whose first attempt fails and whose second one, eleven seconds later, succeeds.
async fn second_attempt_succeeds(env: &[(&str, &str)], is_redis_emptied: bool) {
    let witness = Witness::default();
    let world = World::with(&witness.handler("second", "[ $SURETY_ATTEMPT -gt 1 ] || exit 1")).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut first = world.worker(&["--state-dir", &world.path("one")], env);
    let body = r#"{"type":"second","retry":{"max_retries":1,"backoff":["11s"]}}"#;
    world.publish("default", "a", body).await;
    let waits = world.status(&c, "a", Status::RetryWait).await;
    wait("a copy", async || messages(&world, "SURETY_SCHED").await == 1).await;
    let mut second = if env.is_empty() {
        first
    } else {
        first.ended(PATIENCE).await;
        world.worker(&["--state-dir", &world.path("two")], &[])
    };
    if is_redis_emptied {
        flush(&world, 0).await;
    }
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1));
    assert!(ended.started_ms >= waits.due_ms || is_redis_emptied, "not before its time");
    assert_eq!(witness.executions("a"), 2);
    settled(&world, &c).await;
    wait("no copy to be left", async || messages(&world, "SURETY_SCHED").await == 0).await;
    assert_eq!(dead_letters(&world).await.len(), 0);
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "started"), 2);
    assert_eq!(second.stop().await, Some(0));
}

// Shows: A-12, A-02
#[tokio::test]
async fn a_job_that_waited_as_a_schedule_is_tried_again_at_its_time() {
    second_attempt_succeeds(&[], false).await;
}

// Shows: A-12, A-13
#[tokio::test]
async fn a_worker_that_dies_between_the_copy_and_the_ack_leaves_one_job() {
    second_attempt_succeeds(&[("SURETY_FAULT", "postponed:1")], false).await;
}

// Shows: A-12
#[tokio::test]
async fn a_job_that_waits_as_a_schedule_outlives_its_record() {
    second_attempt_succeeds(&[], true).await;
}

// Shows: A-12
#[tokio::test]
async fn a_job_that_waits_as_a_schedule_ends_at_its_finish_deadline() {
    let world = World::with(FEW_PLACES).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut one = world.worker(&[], &[]);
    let body = r#"{"type":"fail","contract":{"finish":"3s"},"retry":{"max_retries":2,"backoff":["30m"]}}"#;
    world.publish("default", "a", body).await;
    wait("a copy", async || messages(&world, "SURETY_SCHED").await == 1).await;
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.code.as_str()), (Status::TimedOut, "finish_deadline"));
    wait("no copy to be left", async || messages(&world, "SURETY_SCHED").await == 0).await;
    assert_eq!(dead_letters(&world).await.len(), 1);
    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}
