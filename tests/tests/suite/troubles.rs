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
    world.until(&c, "hold", |r| r.status == Status::RetryWait || r.attempt > 1).await;
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

// Shows: O-09
#[tokio::test]
async fn messages_that_come_too_fast_and_answers_that_come_too_late_are_counted() {
    // A call to Redis may take long, and no lease ends over it.
    let patient = "[connection]\ncall_timeout = \"20s\"\nretry_limit = \"40s\"\n[layout]\nack_wait = \"120s\"\n\
        [lease]\nrenewal = \"5s\"\nttl = \"60s\"\nmargin = \"5s\"\n";
    let world = World::with(patient).await;
    let c = world.connect().await;
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let mut worker = world.worker(&["--redis", &format!("redis://{}", proxy.addr())], &[LISTEN]);
    let at = address(&mut worker).await;
    worker.logged("worker ready").await;
    let [lagged, dropped] = ["surety_nats_dropped_messages_total", "surety_dropped_sends_total"];
    let s = Scrape::of(at).await;
    assert_eq!([s.sum(lagged, &[]), s.sum(dropped, &[])], [Some(0.0); 2]);

    // Its handler reports while Redis is silent, and is dropped at its time limit: then the answer comes.
    let mark = world.path("dropped");
    let body = serde_json::json!({
        "type": "report", "payload": { "dropped": mark }, "retry": { "max_retries": 0 }, "contract": { "timeout": "3s" },
    });
    world.publish("default", "late", &body.to_string()).await;
    world.until(&c, "late", |r| r.status == Status::Running && r.rev > 3).await;
    proxy.hold();
    wait_logged(&world, "the handler to be dropped", async || std::fs::exists(&mark).unwrap()).await;

    // Whoever renews its session waits for Redis as well, and reads no hints meanwhile.
    let (session, _) = c.store.sessions(0, u64::MAX / 4, 1).await.unwrap().remove(0);
    let subject = c.broker.names().control_session_subject(&session);
    let plain = world.plain().await;
    for _ in 0..70_000 {
        plain.publish(subject.clone(), "{}".into()).await.unwrap();
    }
    plain.flush().await.unwrap();
    wait_logged(&world, "messages to be dropped", async || {
        Scrape::of(at).await.sum(lagged, &[]) >= Some(1.0)
    })
    .await;
    assert_eq!(Scrape::of(at).await.sum(dropped, &[]), Some(0.0), "nobody has answered yet");
    proxy.heal();
    wait_logged(&world, "the answer to be too late", async || {
        Scrape::of(at).await.sum(dropped, &[]) == Some(1.0)
    })
    .await;
    assert_eq!(world.ended(&c, "late").await.code, "timeout");
    let log = worker.log();
    let says = |words: [&str; 2]| log.lines().any(|l| words.iter().all(|w| l.contains(w)));
    assert!(says(["slow consumer", "nats"]), "{log}");
    assert!(says(["nobody waits for the answer to a report", "late"]), "{log}");
    // What was dropped were hints: the worker goes on, and so does the connection.
    world.publish("default", "next", r#"{"type":"noop"}"#).await;
    assert_eq!(world.ended(&c, "next").await.status, Status::Done);
    assert_eq!(worker.stop().await, Some(0));
}
