//! What processes count, scraped from real runs.

use surety_common::domain::Status;
use surety_tests::{
    scrape::{Scrape, address},
    witness::{Witness, wait_logged},
    world::World,
};

const LISTEN: (&str, &str) = ("SURETY_TELEMETRY_LISTEN", "127.0.0.1:0");

// Shows: O-03
#[tokio::test]
async fn a_reaper_counts_what_could_run_whether_workers_are_there_or_not() {
    let witness = Witness::default();
    let body = "while ! test -e $W.go; do sleep 0.05; done";
    let world = World::with(&(witness.handler("hold", body) + &witness.handler("fail", "exit 3"))).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    for id in ["a", "b", "c"] {
        world.publish("default", id, r#"{"type":"hold"}"#).await;
    }
    let of = |s: &Scrape, name: &str| {
        s.sum(&format!("surety_queue_{name}"), &[("queue", "default")]).unwrap_or(-1.0)
    };
    wait_logged(&world, "the reaper to see the queue", async || {
        of(&Scrape::of(at).await, "waiting_jobs") == 3.0
    })
    .await;
    let s = Scrape::of(at).await;
    assert_eq!([of(&s, "running_jobs"), of(&s, "runnable_jobs"), of(&s, "delayed_jobs")], [0.0, 3.0, 0.0]);
    assert!(of(&s, "oldest_seconds") > 0.0);
    assert_eq!([s.sum("surety_sessions", &[]), s.sum("surety_open_jobs", &[])], [Some(0.0), Some(0.0)]);
    let critical = s.sum("surety_queue_runnable_jobs", &[("queue", "critical")]);
    assert_eq!(critical, Some(0.0), "an empty queue is shown too");
    assert_eq!(s.sum("surety_queue_delayed_warning_jobs", &[]), Some(100_000.0));
    for rule in ["expired_sessions", "outbox_relay", "max_deliver"] {
        let with = [("rule", rule)];
        assert_eq!(s.sum("surety_reaper_actions_total", &with), Some(0.0));
        assert!(s.sum("surety_reaper_steps_total", &[("rule", rule), ("result", "ok")]) >= Some(0.0));
        assert!(s.sum("surety_reaper_step_seconds_count", &with) >= Some(0.0));
    }
    assert_eq!(s.sum("surety_build_info", &[("program", "surety-reaper")]), Some(1.0));

    // Two of them run, one waits, and one is in backoff.
    let mut worker = world.worker(&["--slots", "2", "--queues", "critical,default"], &[]);
    let retry = r#"{"type":"fail","retry":{"max_retries":1,"backoff":["10m"]}}"#;
    world.publish("critical", "late", retry).await;
    world.until(&c, "late", |r| r.status == Status::RetryWait).await;
    wait_logged(&world, "two of them to run", async || {
        let s = Scrape::of(at).await;
        of(&s, "running_jobs") == 2.0 && of(&s, "waiting_jobs") == 1.0
    })
    .await;
    let s = Scrape::of(at).await;
    assert_eq!([of(&s, "runnable_jobs"), of(&s, "slots")], [3.0, 2.0]);
    assert_eq!(s.sum("surety_queue_delayed_jobs", &[("queue", "critical")]), Some(1.0));
    assert_eq!([s.sum("surety_sessions", &[]), s.sum("surety_open_jobs", &[])], [Some(1.0), Some(3.0)]);

    // The worker dies: its session is taken apart, and what ran can run again.
    worker.kill9().await;
    wait_logged(&world, "the lost attempts to be counted", async || {
        let s = Scrape::of(at).await;
        s.sum("surety_attempts_lost_total", &[("queue", "default"), ("type", "hold")]) == Some(2.0)
            && s.sum("surety_sessions_expired_total", &[]) == Some(1.0)
    })
    .await;
    let s = Scrape::of(at).await;
    assert_eq!(s.sum("surety_reaper_actions_total", &[("rule", "expired_sessions")]), Some(2.0));
    assert_eq!([of(&s, "running_jobs"), of(&s, "slots")], [0.0, 0.0]);
    assert_eq!(s.sum("surety_sessions", &[]), Some(0.0));
}

// Shows: O-03
#[tokio::test]
async fn what_a_reaper_cannot_see_is_left_out() {
    let world = World::start().await;
    world.connect().await;
    let redis =
        surety_tests::proxy::Proxy::start(format!("127.0.0.1:{}", world.redis.port()).parse().unwrap());
    let redis = redis.await.unwrap();
    let url = format!("redis://{}", redis.addr());
    let mut reaper = world.reaper_with(&["--redis", &url], &[LISTEN]);
    let at = address(&mut reaper).await;
    wait_logged(&world, "the outbox to be seen", async || {
        Scrape::of(at).await.sum("surety_outbox_entries", &[]) == Some(0.0)
    })
    .await;
    redis.cut();
    wait_logged(&world, "the look to fail", async || {
        Scrape::of(at).await.sum("surety_observations_total", &[("result", "failed")]) >= Some(1.0)
    })
    .await;
    let s = Scrape::of(at).await;
    for name in ["surety_outbox_entries", "surety_outbox_oldest_seconds", "surety_sessions"] {
        assert_eq!(s.sum(name, &[]), None, "{name} shows what was");
    }
    assert_eq!(s.sum("surety_ready", &[]), Some(0.0));
    redis.heal();
    wait_logged(&world, "the outbox to be seen again", async || {
        Scrape::of(at).await.sum("surety_outbox_entries", &[]) == Some(0.0)
    })
    .await;
}

// Shows: O-03
#[tokio::test]
async fn what_cannot_be_read_is_counted() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    let zero = Scrape::of(at).await.sum("surety_decode_errors_total", &[("what", "record")]);
    assert_eq!(zero, Some(0.0));
    // A record of an attempt that nobody can read, on a session that died.
    let (keys, session) = (c.store.keys(), "01JDEAD".parse().unwrap());
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut r = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::pipe()
        .cmd("SET")
        .arg(keys.job_in(0, "bad"))
        .arg("garbage")
        .cmd("SADD")
        .arg(keys.run(0, &session))
        .arg("bad:1")
        .cmd("ZADD")
        .arg(keys.sessions(0))
        .arg(1)
        .arg("01JDEAD")
        .query_async(&mut r)
        .await
        .unwrap();
    wait_logged(&world, "the record to be counted", async || {
        Scrape::of(at).await.sum("surety_decode_errors_total", &[("what", "record")]) >= Some(1.0)
    })
    .await;
    let s = Scrape::of(at).await;
    assert!(s.sum("surety_alerts_total", &[("alert", "rule_failed")]) >= Some(1.0));
    assert!(
        s.sum("surety_reaper_steps_total", &[("rule", "expired_sessions"), ("result", "failed")])
            >= Some(1.0)
    );
}
