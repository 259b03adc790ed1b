//! Troubles, each provoked: the log says which and with what, and a counter rises.

use surety_common::domain::Status;
use surety_tests::{
    proxy::Proxy,
    scrape::{Scrape, address},
    witness::{QUICK, Witness, wait_logged},
    world::World,
};

use super::metrics::LISTEN;

/// A metric with labels, and what the log says.
type Trouble<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

// Shows: O-09
#[tokio::test]
async fn each_trouble_of_a_worker_is_counted_and_logged_with_its_job() {
    let witness = Witness::default();
    let handlers = witness.handler("slow", "exec sleep 30")
        + &witness.handler("chatty", "head -c 20000000 /dev/zero")
        + &witness.handler("wordy", "printf '{\"message\":\"%05000d\"}\\n' 1 >&3; echo 'no json' >&3")
        + &witness.handler("killed", "kill -9 $$")
        + &witness.handler("hold", "until [ -e $W.go ]; do sleep 0.02; done");
    let world = World::with(&(handlers + QUICK)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let mut worker = world.worker(&["--redis", &format!("redis://{}", proxy.addr())], &[LISTEN]);
    let (at, reaper_at) = (address(&mut worker).await, address(&mut reaper).await);
    worker.logged("worker ready").await;
    let once = r#""retry":{"max_retries":0}"#;
    for (id, body) in [
        ("slow", format!(r#"{{"type":"slow",{once},"contract":{{"timeout":"300ms"}}}}"#)),
        ("chatty", format!(r#"{{"type":"chatty",{once}}}"#)),
        ("wordy", format!(r#"{{"type":"wordy",{once}}}"#)),
        ("killed", format!(r#"{{"type":"killed",{once}}}"#)),
        ("garbage", "no job".to_owned()),
    ] {
        world.publish("default", id, &body).await;
        world.ended(&c, id).await;
    }
    // A worker that is cut off: its session is stale for the reaper, and its late renewal meets a conflict.
    world.publish("default", "hold", r#"{"type":"hold"}"#).await;
    witness.started("hold", 1).await;
    proxy.hold();
    world.until(&c, "hold", |r| r.status == Status::RetryWait || r.epoch > 1).await;
    witness.touch("go");
    proxy.heal();
    world.ended(&c, "hold").await;

    let attempts = "surety_attempts_total";
    let of_worker: &[Trouble<'_>] = &[
        // A timeout, and why an attempt was killed.
        (attempts, &[("error_code", "timeout"), ("outcome", "timed_out")], "slow"),
        (attempts, &[("error_code", "signal"), ("outcome", "failed")], "killed"),
        (attempts, &[("outcome", "fenced")], "session lost"),
        ("surety_truncations_total", &[("what", "output")], "output over the limit was cut"),
        ("surety_truncations_total", &[("what", "report")], "a report over the limit was cut"),
        ("surety_decode_errors_total", &[("what", "line")], "control line does not parse"),
        ("surety_decode_errors_total", &[("what", "message")], "garbage"),
        ("surety_sessions_lost_total", &[], "session lost"),
        ("surety_alerts_total", &[("alert", "job_failed")], "job_failed"),
        ("surety_alerts_total", &[("alert", "buried")], "job buried"),
    ];
    for (name, labels, says) in of_worker {
        wait_logged(&world, &format!("{name} {labels:?}"), async || {
            Scrape::of(at).await.sum(name, labels) >= Some(1.0)
        })
        .await;
        assert!(worker.log().contains(says), "{name} {labels:?} is not logged:\n{}", worker.log());
    }
    let of_reaper: &[Trouble<'_>] = &[
        ("surety_sessions_expired_total", &[], "session expired"),
        ("surety_attempts_lost_total", &[("type", "hold")], "attempt lost"),
    ];
    for (name, labels, says) in of_reaper {
        wait_logged(&world, &format!("{name} {labels:?}"), async || {
            Scrape::of(reaper_at).await.sum(name, labels) >= Some(1.0)
        })
        .await;
        assert!(reaper.log().contains(says), "{name}: {}", reaper.log());
    }
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}
