//! What comes in: duplicates, messages that are no jobs, the order of queues, replays, and a whole fan of it.

use std::time::Duration;

use surety_common::domain::Status;
use surety_tests::{
    witness::{Witness, dead_letters, id, kinds, settled, wait_logged},
    world::{World, messages, wait},
};

async fn jetstream(w: &World) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(w.plain().await)
}

/// Publishes with headers; gives the ack.
async fn publish(
    w: &World,
    subject: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> async_nats::jetstream::publish::PublishAck {
    let mut h = async_nats::HeaderMap::new();
    for (k, v) in headers {
        h.insert(*k, *v);
    }
    let js = jetstream(w).await;
    js.publish_with_headers(subject.to_owned(), h, body.to_owned().into()).await.unwrap().await.unwrap()
}

// Shows: J-10
#[tokio::test]
async fn one_id_published_twice_inside_and_outside_of_the_window_is_one_job() {
    let witness = Witness::default();
    let handlers =
        witness.handler("work", "true") + &witness.handler("held", "until [ -e $W.go ]; do sleep 0.02; done");
    let world = World::with(&(handlers + "[layout]\nduplicate_window = \"1s\"")).await;
    let c = world.connect().await;
    let twice = async |job: &str, body: &str| {
        publish(&world, &format!("surety.jobs.default.{job}"), &[("Nats-Msg-Id", job)], body).await
    };
    assert!(!twice("a", r#"{"type":"work"}"#).await.duplicate);
    assert!(twice("a", r#"{"type":"work"}"#).await.duplicate, "inside of the window");
    assert!(!twice("held", r#"{"type":"held"}"#).await.duplicate);
    let mut one = world.worker(&[], &[]);
    world.ended(&c, "a").await;
    witness.started("held", 1).await;
    // Outside of it, once for a job that has ended and once for one that runs.
    wait_logged(&world, "the end of the window", async || !twice("a", r#"{"type":"work"}"#).await.duplicate)
        .await;
    wait_logged(&world, "the end of the window", async || {
        !twice("held", r#"{"type":"held"}"#).await.duplicate
    })
    .await;
    witness.touch("go");
    assert_eq!(world.ended(&c, "held").await.status, Status::Done);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!((witness.executions("a"), witness.executions("held")), (1, 1), "{}", witness.text());
    assert_eq!(kinds(&world, &c, "a").await, ["started", "finished"]);
    assert!(dead_letters(&world).await.is_empty());
    assert_eq!(one.stop().await, Some(0));
}

// Shows: J-12, J-10, P8
#[tokio::test]
async fn messages_that_are_no_jobs_are_kept_with_their_bytes_and_block_nothing() {
    let world = World::with("[worker]\nhand_on_delay = \"20ms\"").await;
    let c = world.connect().await;
    let big = format!(r#"{{"type":"noop","payload":"{}"}}"#, "x".repeat(600 * 1024));
    // Id, body, error code; they stand in the stream between good ones.
    let bad: Vec<(&str, &str, &str)> = vec![
        ("garbage", "\u{1}not json", "invalid_job"),
        ("empty", "", "invalid_job"),
        ("no-type", "{}", "invalid_job"),
        ("list", "[1,2]", "invalid_job"),
        ("deep", "[[[[[[[[[[[[[[[[[[[[", "invalid_job"),
        ("bad-unit", r#"{"type":"noop","contract":{"timeout":"5 parsecs"}}"#, "invalid_job"),
        ("other-id", r#"{"type":"noop","id":"someone-else"}"#, "invalid_job"),
        ("big", &big, "invalid_job"),
        ("stranger", r#"{"type":"nobody-knows"}"#, "unknown_type"),
        ("newer", r#"{"type":"noop","v":2}"#, "unknown_version"),
        ("new-field", r#"{"type":"noop","colour":"red"}"#, "unknown_version"),
    ];
    for (n, (job, body, _)) in bad.iter().enumerate() {
        world.publish("default", &format!("good-{n}"), r#"{"type":"noop"}"#).await;
        world.publish("default", job, body).await;
    }
    world.publish("default", "good-last", r#"{"type":"noop"}"#).await;
    let mut one = world.worker(&["--slots", "1"], &[]);
    for n in 0..bad.len() {
        assert_eq!(world.ended(&c, &format!("good-{n}")).await.status, Status::Done);
    }
    assert_eq!(world.ended(&c, "good-last").await.status, Status::Done);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let letters = dead_letters(&world).await;
    assert_eq!(letters.len(), bad.len(), "{letters:?}");
    for (job, body, code) in &bad {
        // A message whose id is in doubt has one of its own; its bytes say which it is.
        let found: Vec<_> = letters.iter().filter(|l| l.body == body.as_bytes()).collect();
        assert_eq!(found.len(), 1, "{job} is listed once");
        assert_eq!(found[0].reason, *code, "{job}: {}", found[0].message);
        assert!(!found[0].message.is_empty());
        assert_eq!(found[0].headers.get("Surety-Original-Nats-Msg-Id").map(|v| v.as_str()), Some(*job));
        assert!(found[0].subject.starts_with("surety.dlq.default."), "{}", found[0].subject);
        let job = &found[0].job;
        assert_eq!((h.count(job, "buried"), h.count(job, "finished")), (1, 1), "{job}");
        let r = c.store.record(&id(job)).await.unwrap().unwrap();
        assert_eq!((r.status, r.code.as_str()), (Status::Failed, *code));
    }
    assert!(
        c.store.record(&id("someone-else")).await.unwrap().is_none(),
        "no word about a job that nobody sent"
    );
    assert_eq!(one.stop().await, Some(0));
}

// Shows: J-01
#[tokio::test]
async fn one_slot_takes_the_first_queue_first_and_each_queue_in_its_order() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", "true")).await;
    let c = world.connect().await;
    for i in 0..10 {
        world.publish("default", &format!("d{i}"), r#"{"type":"work"}"#).await;
        world.publish("critical", &format!("c{i}"), r#"{"type":"work"}"#).await;
    }
    let mut one = world.worker(&["--slots", "1"], &[]);
    for i in 0..10 {
        world.ended(&c, &format!("d{i}")).await;
    }
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    let order: Vec<String> = witness.starts().into_iter().map(|s| s.job).collect();
    let want: Vec<String> =
        (0..10).map(|i| format!("c{i}")).chain((0..10).map(|i| format!("d{i}"))).collect();
    assert_eq!(order, want);
    assert_eq!(one.stop().await, Some(0));
}

/// Jobs in the order of their `started` events in the journal; neighbours may be exchanged, their entries are published at once.
async fn started_in_order(w: &World, c: &surety_common::connect::Connected) -> Vec<String> {
    let mut jobs = Vec::new();
    let unreadable = c.broker.read_journal(None, 0, |e| {
        if e.kind == "started" && !jobs.contains(&e.job) {
            jobs.push(e.job);
        }
    });
    assert_eq!(unreadable.await.unwrap(), 0, "{}", w.logs());
    jobs
}

// Shows: J-01
#[tokio::test]
async fn a_queue_that_may_have_no_more_under_way_does_not_keep_the_others_waiting() {
    let witness = Witness::default();
    let handlers = witness.handler("held", "until [ -e $W.go ]; do sleep 0.02; done");
    let queues = "queues = [\"critical\", \"default\"]\nslots = 4\norder = \"strict\"\n";
    let world = World::with(&format!("{handlers}[layout]\nmax_ack_pending = 1\n[worker]\n{queues}")).await;
    let c = world.connect().await;
    for name in ["one", "two"] {
        world.publish("critical", name, r#"{"type":"held"}"#).await;
    }
    let mut worker = world.worker(&[], &[]);
    witness.started("one", 1).await;
    // Of the four that were asked for the broker may not give the second, and does not say so.
    world.publish("default", "other", r#"{"type":"noop"}"#).await;
    let other = world.ended(&c, "other").await;
    let waited = other.ended_ms - other.created_ms;
    assert!(waited < 8000, "{waited} ms: as long as a server without a sign of life is waited for");
    witness.touch("go");
    for name in ["one", "two"] {
        assert_eq!(world.ended(&c, name).await.status, Status::Done);
    }
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: J-01
#[tokio::test]
async fn weights_share_the_slots() {
    let world = World::with("[worker]\norder = \"weighted\"\nqueues = [\"critical:3\", \"default:1\"]").await;
    let c = world.connect().await;
    for i in 0..120 {
        world.publish("default", &format!("d{i}"), r#"{"type":"noop"}"#).await;
        world.publish("critical", &format!("c{i}"), r#"{"type":"noop"}"#).await;
    }
    let mut one = world.worker(&["--slots", "1"], &[]);
    for i in 0..120 {
        world.ended(&c, &format!("d{i}")).await;
        world.ended(&c, &format!("c{i}")).await;
    }
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    let order = started_in_order(&world, &c).await;
    assert_eq!(order.len(), 240);
    // While both have work: three of four from the heavier queue, within what chance does (4 standard deviations).
    let of_first = order[..100].iter().filter(|j| j.starts_with('c')).count();
    assert!((58..=92).contains(&of_first), "{of_first} of the first hundred");
    assert_eq!(one.stop().await, Some(0));
}

// Shows: J-11, P8
#[tokio::test]
async fn an_undeclared_queue_is_refused_at_once() {
    let world = World::start().await;
    let c = world.connect().await;
    let js = jetstream(&world).await;
    let error =
        js.publish("surety.jobs.defualt.a", r#"{"type":"noop"}"#.into()).await.unwrap().await.unwrap_err();
    assert_eq!(error.kind(), async_nats::jetstream::context::PublishErrorKind::StreamNotFound, "{error}");
    let worker = world.worker(&["--queues", "defualt"], &[]).ended(Duration::from_secs(20)).await;
    assert_eq!(worker, Some(78));
    assert!(
        world.logs().contains("defualt") && world.logs().contains("critical, default"),
        "{}",
        world.logs()
    );
    assert_eq!(messages(&world, &c.broker.names().jobs()).await, 0);
}

// Shows: P8
#[tokio::test]
async fn a_job_past_its_time_is_not_started_and_one_that_started_in_time_goes_on() {
    let witness = Witness::default();
    let body = "[ $SURETY_ATTEMPT -gt 1 ] || exit 1";
    let world = World::with(&witness.handler("once", body)).await;
    let c = world.connect().await;
    let at = |ms: u64| jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap().to_string();
    let now = c.store.now_ms().await.unwrap();
    let job =
        |t: u64| format!(r#"{{"type":"once","expires_at":"{}","retry":{{"backoff":["1500ms"]}}}}"#, at(t));
    world.publish("default", "late", &job(now - 1)).await;
    world.publish("default", "open", &job(now + 1200)).await;
    let mut one = world.worker(&[], &[]);
    let late = world.ended(&c, "late").await;
    assert_eq!((late.status, late.code.as_str()), (Status::Failed, "expired"));
    // Its second attempt comes after the time, which speaks of the first.
    assert_eq!(world.ended(&c, "open").await.status, Status::Done);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!((witness.executions("late"), witness.executions("open")), (0, 2));
    assert_eq!(dead_letters(&world).await.len(), 1);
    assert_eq!(one.stop().await, Some(0));
}

// Shows: P2, P7
#[tokio::test]
async fn a_republished_dead_letter_of_the_next_generation_runs_and_an_old_one_does_not() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("mended", "[ -e $W.go ] || exit 64")).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"mended"}"#).await;
    assert_eq!(world.ended(&c, "a").await.status, Status::Failed);
    wait("the dead letter", async || messages(&world, "SURETY_DLQ").await == 1).await;
    let letter = dead_letters(&world).await.remove(0);
    witness.touch("go");
    let replay = async |generation: &str, message_id: &str| {
        let headers = [("Nats-Msg-Id", message_id), ("Surety-Job", "a"), ("Surety-Generation", generation)];
        publish(&world, "surety.jobs.default.a", &headers, std::str::from_utf8(&letter.body).unwrap()).await
    };
    assert!(!replay("2", "a/2/replay/1").await.duplicate);
    let ended = world.until(&c, "a", |r| r.status == Status::Done).await;
    assert_eq!((ended.generation, ended.attempt), (2, 1));
    // Both once more, past the window as it were: the second generation has ended, the first is of the past.
    assert!(!replay("2", "another").await.duplicate);
    assert!(!replay("1", "older").await.duplicate);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(kinds(&world, &c, "a").await, ["started", "finished", "replayed", "started", "finished"]);
    assert_eq!(witness.executions("a"), 2);
    assert_eq!(dead_letters(&world).await.len(), 1);
    assert_eq!(one.stop().await, Some(0));
}

// Shows: J-03, P1, P2, P7
#[tokio::test]
async fn five_workers_share_two_hundred_jobs_under_two_reapers() {
    let world = World::start().await;
    let c = world.connect().await;
    let _reapers = [world.reaper(&[]), world.reaper(&[])];
    let mut workers = Vec::new();
    for _ in 0..5 {
        workers.push(world.worker(&["--slots", "4"], &[]));
    }
    for w in &mut workers {
        w.logged("worker ready").await;
    }
    let js = jetstream(&world).await;
    for i in 0..200 {
        let queue = ["critical", "default"][i % 2];
        let ack = js.publish(format!("surety.jobs.{queue}.j{i}"), r#"{"type":"noop"}"#.into()).await.unwrap();
        ack.await.unwrap();
    }
    for i in 0..200 {
        let r = world.ended(&c, &format!("j{i}")).await;
        assert_eq!((r.status, r.attempt), (Status::Done, 1));
    }
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.jobs.len(), 200);
    let mut owners = std::collections::BTreeSet::new();
    for (job, j) in &h.jobs {
        assert_eq!((h.count(job, "started"), h.count(job, "finished"), j.events.len()), (1, 1, 2), "{job}");
        owners.insert(j.events[0].session.clone().unwrap());
    }
    for owner in &owners {
        // Claimed by: the session names host, process and start time of the worker.
        let session = surety_common::domain::ids::SessionId::new(owner).unwrap();
        let info = c.store.session_info(0, &session).await.unwrap().unwrap();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert!(info["host"].is_string() && info["pid"].is_u64(), "{info}");
    }
    assert!(owners.len() > 1, "one worker took them all");
    for mut w in workers {
        assert_eq!(w.stop().await, Some(0));
    }
}
