//! Shutdown: what runs may end, what does not end is handed back, and nothing is left.

use std::time::{Duration, Instant};

use surety_common::domain::Status;
use surety_tests::{
    witness::{Witness, settled, wait_logged},
    world::World,
};

const LONG: &str = "if [ $SURETY_ATTEMPT -eq 1 ]; then child 'exec sleep 60'; sleep 60; fi";

// Shows: D-01, D-03, D-04, A-07, H-02, X-11, T-19
#[tokio::test]
async fn the_short_job_ends_and_the_long_one_is_handed_back_at_no_charge() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("short", "sleep 1.2") + &witness.handler("long", LONG))).await;
    let c = world.connect().await;
    let mut first = world.worker(&[], &[]);
    world.publish("default", "short", r#"{"type":"short"}"#).await;
    world.publish("default", "long", r#"{"type":"long","retry":{"max_retries":0}}"#).await;
    witness.started("short", 1).await;
    witness.started("long", 2).await;
    let session = world.status(&c, "long", Status::Running).await.session;
    let since = Instant::now();
    first.terminate();
    first.logged("draining").await;
    // Published after the signal: not for this one.
    world.publish("default", "next", r#"{"type":"noop"}"#).await;
    assert_eq!(first.ended(Duration::from_secs(20)).await, Some(0), "{}", first.log());
    let took = since.elapsed();
    // The drain of 3 s, the grace of 300 ms, and the machine.
    assert!(took > Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    // There is no reaper: it did all this itself.
    assert_eq!(world.ended(&c, "short").await.status, Status::Done);
    assert!(c.store.record(&surety_tests::witness::id("next")).await.unwrap().is_none());
    let back = world.status(&c, "long", Status::Queued).await;
    assert_eq!((back.charged, back.session.as_str()), (0, ""));
    assert!(!witness.lives("long"), "{}", witness.text());
    let sessions = c.store.sessions(0, u64::MAX / 4, 10).await.unwrap();
    assert!(sessions.is_empty(), "{sessions:?}");
    let session = surety_common::domain::ids::SessionId::new(&session).unwrap();
    assert!(c.store.running(0, &session).await.unwrap().is_empty());
    assert!(c.store.session_info(0, &session).await.unwrap().is_none());
    assert_eq!(c.store.outbox_len(0).await.unwrap(), 0, "everything is journaled, and the store knows");
    let left: Vec<_> = std::fs::read_dir(world.path("state")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    let since = Instant::now();
    let mut second = world.worker(&["--state-dir", &world.path("other")], &[]);
    let ended = world.ended(&c, "long").await;
    assert!(since.elapsed() < Duration::from_secs(3), "picked up after {:?}", since.elapsed());
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 0));
    witness.no_overlap();
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(
        (h.count("long", "released"), h.count("long", "lost"), h.count("short", "released")),
        (1, 0, 0)
    );
    assert_eq!(second.stop().await, Some(0));
}

// Shows: D-03, D-04
#[tokio::test]
async fn a_second_signal_ends_the_drain() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("long", LONG) + "[worker]\ndrain = \"60s\"")).await;
    let c = world.connect().await;
    let mut first = world.worker(&[], &[]);
    world.publish("default", "long", r#"{"type":"long"}"#).await;
    witness.started("long", 2).await;
    first.terminate();
    first.logged("draining").await;
    let since = Instant::now();
    assert_eq!(first.stop().await, Some(0));
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert!(first.log().contains("told to hurry"), "{}", first.log());
    assert!(!witness.lives("long"));
    let mut second = world.worker(&[], &[]);
    let ended = world.ended(&c, "long").await;
    assert_eq!((ended.status, ended.charged), (Status::Done, 0));
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(second.stop().await, Some(0));
}

// Shows: X-11, D-01
#[tokio::test]
async fn a_worker_that_stops_amid_many_short_jobs_leaves_none_half_done() {
    let world = World::start().await;
    let c = world.connect().await;
    let js = async_nats::jetstream::new(world.plain().await);
    let mut acks = Vec::new();
    for i in 0..400 {
        acks.push(
            js.publish(format!("surety.jobs.default.j{i}"), r#"{"type":"noop"}"#.into()).await.unwrap(),
        );
    }
    for a in acks {
        a.await.unwrap();
    }
    let mut first = world.worker(&[], &[]);
    let jobs = c.broker.names().jobs();
    let some = async || surety_tests::world::messages(&world, &jobs).await < 390;
    wait_logged(&world, "some jobs to be done", some).await;
    assert_eq!(first.stop().await, Some(0));
    assert_eq!(c.store.outbox_len(0).await.unwrap(), 0);
    assert!(c.store.sessions(0, u64::MAX / 4, 10).await.unwrap().is_empty());
    let h = world.history(&c).await;
    h.check().unwrap();
    for job in h.jobs.keys() {
        assert_ne!(h.status(job), Some("running"), "{job}");
    }
    let left = surety_tests::world::messages(&world, &jobs).await;
    let done = h.jobs.keys().filter(|j| h.status(j) == Some("done")).count() as u64;
    assert_eq!(done + left, 400, "what is done is acked, what is not is there");
    let mut second = world.worker(&[], &[]);
    for i in 0..400 {
        let r = world.ended(&c, &format!("j{i}")).await;
        assert_eq!((r.status, r.charged), (Status::Done, 0));
    }
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(second.stop().await, Some(0));
}
