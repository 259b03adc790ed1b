//! A store that is slow, and a worker that is stopped the moment its jobs are done: loops go on, nothing is lost or reordered.

use std::time::{Duration, Instant};

use futures::StreamExt;
use surety_common::domain::Status;
use surety_tests::{
    proxy::Proxy,
    scrape::{address, get},
    witness::{Witness, settled, wait_logged},
    world::World,
};

use super::metrics::LISTEN;

/// Calls take two seconds here and are waited for.
const PATIENT: &str = r#"
[connection]
call_timeout = "6s"
retry_limit = "20s"
[layout]
ack_wait = "30s"
[lease]
renewal = "2s"
ttl = "20s"
margin = "5s"
extend = "1s"
"#;

/// The journal has the ten reports of each job in the order in which they were written.
fn in_order(h: &surety_tests::history::History, job: &str, n: u64) {
    let said: Vec<u64> = h.jobs[job]
        .events
        .iter()
        .filter(|e| e.kind == "progress")
        .map(|e| e.data["iteration"].as_u64().unwrap())
        .collect();
    assert_eq!(said, (1..=n).collect::<Vec<_>>(), "{job}");
}

// Shows: X-10
#[tokio::test]
async fn two_seconds_of_store_latency_stop_no_loop_and_reorder_nothing() {
    let witness = Witness::default();
    let body = "for i in 1 2 3 4 5; do echo \"{\\\"iteration\\\":$i,\\\"max\\\":5}\" >&3; sleep 0.2; done";
    let world = World::with(&(witness.handler("reports", body) + PATIENT)).await;
    let c = world.connect().await;
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let mut worker = world.worker(&["--redis", &url, "--slots", "16"], &[LISTEN]);
    let mut reaper = world.reaper_with(&["--redis", &url], &[LISTEN]);
    let at = [address(&mut worker).await, address(&mut reaper).await];
    worker.logged("worker ready").await;
    reaper.logged("reaper ready").await;
    let mut acks = world.plain().await.subscribe("$JS.ACK.SURETY_JOBS.default.>").await.unwrap();
    // A second each way.
    proxy.delay(Duration::from_secs(1));
    let since = Instant::now();
    for i in 0..3 {
        world.publish("default", &format!("r{i}"), r#"{"type":"reports"}"#).await;
    }
    for i in 0..10 {
        world.publish("default", &format!("n{i}"), r#"{"type":"noop"}"#).await;
    }
    // Both processes answer from the loop that everything else runs on: it waits for no call.
    let (mut took, mut pace) = (Vec::new(), tokio::time::interval(Duration::from_millis(50)));
    while took.len() < 60 {
        for address in at {
            let asked = Instant::now();
            assert_eq!(get(address, "/livez").await.0, 200);
            took.push(asked.elapsed());
        }
        pace.tick().await;
    }
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_millis(50), "median {:?}", took[took.len() / 2]);
    assert!(took[took.len() - 1] < Duration::from_millis(800), "longest {:?}", took[took.len() - 1]);
    // What is in hand is extended every second meanwhile.
    let mut extended = 0;
    let counting = async {
        while extended < 3 {
            extended += usize::from(&acks.next().await.unwrap().payload[..] == b"+WPI");
        }
    };
    tokio::time::timeout(Duration::from_secs(8), counting).await.expect("extensions in time");
    // A claim and a finish, two seconds each; claims do not queue behind one another.
    for i in 0..10 {
        assert_eq!(world.ended(&c, &format!("n{i}")).await.status, Status::Done);
    }
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    for i in 0..3 {
        assert_eq!(world.ended(&c, &format!("r{i}")).await.status, Status::Done);
    }
    proxy.delay(Duration::ZERO);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    for i in 0..3 {
        in_order(&h, &format!("r{i}"), 5);
    }
    assert!(h.jobs.keys().all(|j| h.count(j, "lost") == 0));
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}

// Shows: X-11, D-01
#[tokio::test]
async fn a_worker_that_is_stopped_right_after_a_completion_leaves_every_write_in_order() {
    let witness = Witness::default();
    let body =
        "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo \"{\\\"iteration\\\":$i,\\\"max\\\":20}\" >&3; done";
    let world = World::with(&witness.handler("reports", body)).await;
    let c = world.connect().await;
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let mut worker = world.worker(&["--redis", &format!("redis://{}", proxy.addr())], &[]);
    worker.logged("worker ready").await;
    // Slow enough that reports and outcomes are on their way when the signal comes.
    proxy.delay(Duration::from_millis(60));
    for i in 0..3 {
        world.publish("default", &format!("r{i}"), r#"{"type":"reports"}"#).await;
    }
    wait_logged(&world, "a job to be done", async || witness.text().contains("end r")).await;
    // No reaper is there: whatever the worker leaves undone stays undone.
    assert_eq!(worker.stop().await, Some(0));
    let h = world.history(&c).await;
    h.check().unwrap();
    let done: Vec<&String> = h.jobs.keys().filter(|j| h.count(j, "finished") == 1).collect();
    assert!(!done.is_empty(), "{}", world.logs());
    for job in &done {
        in_order(&h, job, 20);
        assert_eq!(h.jobs[*job].events.last().unwrap().kind, "finished");
    }
    assert_eq!(c.store.sessions(0, u64::MAX / 4, 10).await.unwrap(), []);
    // What it did not end it gave back: done by the next one.
    let mut next = world.worker(&["--state-dir", &world.path("next")], &[]);
    next.logged("worker ready").await;
    for i in 0..3 {
        assert_eq!(world.ended(&c, &format!("r{i}")).await.status, Status::Done);
    }
    let _reaper = world.reaper(&[]);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(next.stop().await, Some(0));
}
