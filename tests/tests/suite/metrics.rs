//! What processes count, scraped from real runs.

use surety_common::domain::Status;
use surety_tests::{
    scrape::{Scrape, address},
    witness::{Witness, wait_logged},
    world::World,
};

pub(super) const LISTEN: (&str, &str) = ("SURETY_TELEMETRY_LISTEN", "127.0.0.1:0");

// Shows: O-03
#[tokio::test]
async fn a_reaper_counts_what_could_run_whether_workers_are_there_or_not() {
    let witness = Witness::default();
    let body = "while ! test -e $W.go; do sleep 0.05; done";
    // What waits is not registered meanwhile.
    let patient = "[contract]\nack = \"1h\"\n";
    let handlers = witness.handler("hold", body) + &witness.handler("fail", "exit 3");
    let world = World::with(&(handlers + patient)).await;
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
    for rule in ["expired_sessions", "outbox_relay", "max_deliver", "waiting"] {
        let with = [("rule", rule)];
        assert_eq!(s.sum("surety_reaper_actions_total", &with), Some(0.0));
        assert!(s.sum("surety_reaper_steps_total", &[("rule", rule), ("result", "ok")]) >= Some(0.0));
        assert!(s.sum("surety_reaper_step_seconds_count", &with) >= Some(0.0));
    }
    assert_eq!(s.sum("surety_build_info", &[("program", "surety-reaper")]), Some(1.0));

    // Two of them run, one waits, and one is in backoff.
    let mut worker = world.worker(&["--slots", "2", "--queues", "critical,default"], &[]);
    let retry = r#"{"type":"fail","retry":{"max_retries":1,"backoff":["9s"]}}"#;
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
    // The rule that met it goes on, and another one takes it out of the way.
    wait_logged(&world, "the record to be set aside", async || {
        let s = Scrape::of(at).await;
        s.sum("surety_alerts_total", &[("alert", "record_set_aside")]) == Some(1.0)
            && s.sum("surety_sessions_expired_total", &[]) == Some(1.0)
    })
    .await;
    let failed = [("rule", "expired_sessions"), ("result", "failed")];
    assert_eq!(Scrape::of(at).await.sum("surety_reaper_steps_total", &failed), Some(0.0));
}

pub(super) const RUN: &str = r#"
[handlers.good]
command = ["true"]
[handlers.third]
command = ["sh", "-c", "test $SURETY_ATTEMPT -ge 3 || exit 3"]
[handlers.bad]
command = ["sh", "-c", "exit 64"]
[handlers.slow]
command = ["sleep", "60"]
[handlers.missing]
command = ["/nowhere/at/all"]
"#;

/// Publishes a job of each kind that a worker may meet: twelve that end in an attempt, two that are buried.
pub(super) async fn publish_all(world: &World) {
    let quick = r#""retry":{"max_retries":5,"backoff":["50ms"]}"#;
    for n in 0..4 {
        world.publish("default", &format!("good{n}"), r#"{"type":"good"}"#).await;
        world.publish("critical", &format!("noop{n}"), r#"{"type":"noop"}"#).await;
    }
    for n in 0..2 {
        world.publish("default", &format!("third{n}"), &format!(r#"{{"type":"third",{quick}}}"#)).await;
    }
    world.publish("default", "bad", r#"{"type":"bad"}"#).await;
    let slow =
        r#"{"type":"slow","retry":{"max_retries":1,"backoff":["50ms"]},"contract":{"timeout":"200ms"}}"#;
    world.publish("default", "slow", slow).await;
    world.publish("default", "unknown", r#"{"type":"nobody-has-it"}"#).await;
    world.publish("default", "garbage", "{").await;
}

// Shows: O-03, O-08
#[tokio::test]
async fn a_worker_counts_each_attempt_once_by_how_it_ended() {
    let world = World::with(RUN).await;
    let c = world.connect().await;
    publish_all(&world).await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    world.drained(&c).await;
    wait_logged(&world, "all attempts to be counted", async || {
        Scrape::of(at).await.sum("surety_running_attempts", &[]) == Some(0.0)
    })
    .await;
    let s = Scrape::of(at).await;
    let attempts = |kind, outcome, code| {
        s.sum("surety_attempts_total", &[("type", kind), ("outcome", outcome), ("error_code", code)])
    };
    assert_eq!(attempts("good", "done", "none"), Some(4.0));
    assert_eq!(attempts("noop", "done", "none"), Some(4.0));
    assert_eq!(
        [attempts("third", "retry", "exit_code"), attempts("third", "done", "none")],
        [Some(4.0), Some(2.0)]
    );
    assert_eq!(attempts("bad", "failed", "exit_code"), Some(1.0));
    assert_eq!(
        [attempts("slow", "retry", "timeout"), attempts("slow", "timed_out", "timeout")],
        [Some(1.0); 2]
    );
    let all = Some(4.0 + 4.0 + 6.0 + 1.0 + 2.0);
    assert_eq!([s.sum("surety_attempts_total", &[]), s.sum("surety_attempts_started_total", &[])], [all; 2]);
    assert_eq!(s.sum("surety_handler_seconds_count", &[]), all);
    assert!(s.sum("surety_handler_seconds_sum", &[("type", "slow")]) >= Some(0.4));
    assert_eq!(s.sum("surety_job_wait_seconds_count", &[]), Some(12.0), "first attempts only");

    let ended = |kind, status, code| {
        s.sum("surety_jobs_ended_total", &[("type", kind), ("status", status), ("error_code", code)])
    };
    assert_eq!([ended("good", "done", "none"), ended("third", "done", "none")], [Some(4.0), Some(2.0)]);
    assert_eq!(ended("bad", "failed", "exit_code"), Some(1.0));
    assert_eq!(ended("slow", "timed_out", "timeout"), Some(1.0));
    assert_eq!(ended("nobody-has-it", "failed", "unknown_type"), Some(1.0));
    assert_eq!(s.sum("surety_jobs_ended_total", &[("error_code", "invalid_job")]), Some(1.0));
    assert_eq!(s.sum("surety_jobs_ended_total", &[]), Some(14.0));
    assert_eq!(s.sum("surety_dead_letters_total", &[]), Some(4.0));
    assert_eq!(s.sum("surety_dead_letters_total", &[("error_code", "exit_code")]), Some(1.0));
    assert_eq!(s.sum("surety_decode_errors_total", &[("what", "message")]), Some(1.0));
    // Offered five times, buried at the fifth.
    assert_eq!(s.sum("surety_deferrals_total", &[("reason", "no_handler")]), Some(4.0));
    assert_eq!(
        s.sum("surety_deferrals_total", &[("reason", "live_owner")]),
        Some(0.0),
        "shown before it happens"
    );
    assert!(s.sum("surety_deliveries_total", &[]) >= Some(17.0 + 4.0 + 2.0));
    for stage in ["claim", "finish", "journal", "ack"] {
        assert!(s.sum("surety_stage_seconds_count", &[("stage", stage)]) >= Some(1.0), "{stage}");
    }
    assert!(s.sum("surety_journal_entries_total", &[("result", "stored")]) >= Some(1.0));
    assert_eq!(s.sum("surety_journal_entries_total", &[("result", "failed")]), Some(0.0));
    assert_eq!(s.sum("surety_worker_slots", &[]), Some(8.0));
    assert_eq!(s.sum("surety_sessions_opened_total", &[]), Some(1.0));
    assert_eq!(s.sum("surety_alerts_total", &[("alert", "job_failed")]), Some(2.0));
    assert_eq!(s.sum("surety_alerts_total", &[("alert", "buried")]), Some(2.0));
    assert!(s.sum("process_resident_memory_bytes", &[]) > Some(0.0));
}

// Shows: O-03
#[tokio::test]
async fn what_does_not_start_and_what_is_lost_is_counted() {
    let world = World::with(RUN).await;
    let c = world.connect().await;
    world.publish("default", "m", r#"{"type":"missing"}"#).await;
    world.publish("default", "s", r#"{"type":"slow"}"#).await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    world.status(&c, "s", Status::Running).await;
    wait_logged(&world, "starts to fail", async || {
        let with = [("type", "missing"), ("outcome", "start_failed"), ("error_code", "start_failed")];
        Scrape::of(at).await.sum("surety_attempts_total", &with) >= Some(2.0)
    })
    .await;
    assert_eq!(Scrape::of(at).await.sum("surety_running_attempts", &[]).map(|n| n >= 1.0), Some(true));
    // Frozen for longer than its lease, the worker finds its session gone.
    worker.freeze();
    let mut reaper = world.reaper(&[LISTEN]);
    let seen_by = address(&mut reaper).await;
    wait_logged(&world, "the session to expire", async || {
        Scrape::of(seen_by).await.sum("surety_sessions_expired_total", &[]) >= Some(1.0)
    })
    .await;
    worker.thaw();
    wait_logged(&world, "the lost session to be counted", async || {
        let s = Scrape::of(at).await;
        s.sum("surety_sessions_lost_total", &[]) >= Some(1.0)
            && s.sum("surety_attempts_total", &[("type", "slow"), ("outcome", "fenced")]) == Some(1.0)
    })
    .await;
}

// Shows: O-03
#[tokio::test]
async fn a_thousand_types_share_a_bounded_number_of_series() {
    // A hundred and fifty that the worker knows, a thousand that nobody does.
    let handlers: String = (0..150).map(|n| format!("[handlers.known{n}]\ncommand = [\"true\"]\n")).collect();
    // Sixty-four commands at once on a busy machine outlast a lease of two seconds, and each lost attempt would be another start.
    let patient = "[worker]\nhand_on_limit = 1\nslots = 64\n[lease]\nttl = \"7s\"\nmargin = \"1s\"\n";
    let world = World::with(&format!("{handlers}{patient}")).await;
    let c = world.connect().await;
    let js = async_nats::jetstream::new(world.plain().await);
    let mut acks = Vec::new();
    for n in 0..1000 {
        let kind = if n < 150 { format!("known{n}") } else { format!("strange{n}") };
        let body = format!(r#"{{"type":"{kind}"}}"#);
        acks.push(js.publish(format!("surety.jobs.default.j{n}"), body.into()).await.unwrap());
    }
    for a in acks {
        a.await.unwrap();
    }
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    world.drained(&c).await;
    let s = Scrape::of(at).await;
    for (name, n) in [("surety_attempts_started_total", 150.0), ("surety_jobs_ended_total", 1000.0)] {
        let types = s.values(name, "type");
        assert!(types.len() <= 101 && types.contains("other"), "{name}: {} types", types.len());
        assert_eq!(s.sum(name, &[]), Some(n), "{name}: nothing is lost");
    }
    assert!(s.sum("surety_attempts_started_total", &[("type", "other")]) >= Some(50.0));
}
