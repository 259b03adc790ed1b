//! `surety why`: one answer with everything that a person asks about a job that is stuck.

use std::time::Duration;

use serde_json::Value;
use surety_common::domain::Status;
use surety_tests::{
    witness::Witness,
    world::{World, wait},
};

async fn why(world: &World, id: &str) -> Value {
    world.ask(&["why", id]).await
}

// Shows: I-01
#[tokio::test]
async fn one_call_says_why_a_job_is_stuck() {
    let witness = Witness::default();
    let body = "echo 'to stdout'; echo 'it broke' >&2; exit 3";
    let world = World::with(&witness.handler("fails", body)).await;
    let c = world.connect().await;
    let _worker = world.worker(&[], &[]);
    let job = r#"{"type":"fails","key":"k","summary":"Public words","retry":{"max_retries":3,"backoff":["100ms","1h"]}}"#;
    world.publish("default", "a", job).await;
    let r = world.until(&c, "a", |r| r.status == Status::RetryWait && r.charged == 2).await;
    wait("the journal to have it", async || {
        why(&world, "a").await["attempts"]
            .as_array()
            .is_some_and(|a| a.len() == 2 && a[1]["end"] == "attempt_failed")
    })
    .await;
    let w = why(&world, "a").await;
    // State, error, retry count.
    let j = &w["job"];
    assert_eq!(
        (&j["status"], &j["error_code"], &j["key"]),
        (&"retry_wait".into(), &"exit_code".into(), &"k".into())
    );
    assert_eq!((&j["charged"], &j["max_retries"], &j["attempt"]), (&2.into(), &3.into(), &2.into()));
    // What holds it, and until when.
    assert_eq!(w["gate"]["code"], "not_due", "{w}");
    let until: jiff::Timestamp = w["gate"]["until"].as_str().unwrap().parse().unwrap();
    assert_eq!(until.as_millisecond() as u64, r.due_ms);
    // Attempts, with the error of each and the output of the last.
    let a = w["attempts"].as_array().unwrap();
    for one in a {
        assert_eq!(one["error_code"], "exit_code");
        assert!(one["message"].as_str().unwrap().contains("exit code 3: it broke"), "{one}");
        assert!(one["started_at"].is_string() && one["ended_at"].is_string() && one["session"].is_string());
    }
    assert_eq!((&a[1]["stderr_tail"][0], &a[1]["stdout_tail"][0]), (&"it broke".into(), &"to stdout".into()));
    // Contract, receipt, deadlines, locks, journal, and the broker's view of its message.
    let p = &w["promise"];
    assert_eq!(
        (&p["contract"], &p["receipt"], &p["summary"]),
        (&"acked".into(), &"none".into(), &"Public words".into())
    );
    assert!(
        w["deadlines"]
            .as_array()
            .unwrap()
            .iter()
            .any(|d| d["what"].as_str().unwrap().contains("finish deadline"))
    );
    assert_eq!(w["locks"], serde_json::json!([]));
    assert_eq!(w["events"].as_array().unwrap().last().unwrap()["kind"], "attempt_failed");
    let m = &w["carrier"];
    assert_eq!(
        (&m["stream"], &m["is_there"], &m["is_delivered"]),
        (&"SCHED".into(), &true.into(), &serde_json::Value::Null),
        "a copy waits for its next attempt"
    );
    assert_eq!(m["subject"], "surety.sched.default.a");
    assert_eq!(w["unknown"], serde_json::json!([]));
    // The same for people.
    let said = world.surety(&["why", "a"]).await.exits(0).out;
    for part in
        ["held by", "not_due", "it broke", "stderr of attempt 2", "last events", "surety.sched.default.a"]
    {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
}

// Shows: I-01
#[tokio::test]
async fn an_owner_is_told_with_host_process_and_the_age_of_its_renewal() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("long", "exec sleep 60")).await;
    let _c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"long"}"#).await;
    witness.started("a", 1).await;
    let w = why(&world, "a").await;
    assert_eq!(w["gate"]["code"], "running", "{w}");
    let o = &w["owner"];
    assert_eq!((&o["pid"], &o["is_expired"]), (&worker.pid().into(), &false.into()));
    assert!(o["host"].is_string() && o["renewed_ms"].as_u64().unwrap() < 2000, "{o}");
    assert_eq!(w["attempts"][0]["end"], "running");
    worker.kill9().await;
    wait("its lease to be over", async || why(&world, "a").await["gate"]["code"] == "owner_lost").await;
    let w = why(&world, "a").await;
    assert_eq!(w["owner"]["is_expired"], true);
    assert!(w["gate"]["then"].as_str().unwrap().contains("reaper"), "{w}");
}

// Shows: I-01
#[tokio::test]
async fn a_job_that_no_worker_has_seen_is_explained_from_its_queue() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("long", "until [ -e $W.go ]; do sleep 0.05; done")).await;
    let c = world.connect().await;
    for id in ["a", "b", "d"] {
        world.publish("default", id, r#"{"type":"long"}"#).await;
    }
    // What is addressed to nobody in particular stands in the same queue.
    let js = async_nats::jetstream::new(world.plain().await);
    js.publish("surety.jobs.default", r#"{"type":"noop"}"#.into()).await.unwrap().await.unwrap();
    let w = why(&world, "d").await;
    assert_eq!((&w["gate"]["code"], &w["carrier"]["ahead"]), (&"no_worker".into(), &2.into()), "{w}");
    let _worker = world.worker(&["--slots", "1", "--queues", "default"], &[]);
    world.status(&c, "a", Status::Running).await;
    wait("the slot to be taken", async || why(&world, "d").await["gate"]["code"] == "no_free_slot").await;
    let w = why(&world, "d").await;
    assert_eq!(w["also"][0]["code"], "queued", "{w}");
    // Another queue, paused; then without its consumer.
    let nats = world.plain().await;
    let consumer = async |verb: &str, body: &'static str| {
        nats.request(format!("$JS.API.CONSUMER.{verb}.SURETY_JOBS.critical"), body.into()).await.unwrap()
    };
    consumer("PAUSE", r#"{"pause_until":"2100-01-01T00:00:00Z"}"#).await;
    world.publish("critical", "p", r#"{"type":"noop"}"#).await;
    let w = why(&world, "p").await;
    assert_eq!(w["gate"]["code"], "consumer_paused", "{w}");
    let until = w["gate"]["until"].as_str().unwrap();
    assert!(until.starts_with("2100-01-01T") || until.starts_with("2099-12-31T"), "{w}");
    consumer("DELETE", "").await;
    assert_eq!(why(&world, "p").await["gate"]["code"], "consumer_missing");
    // Nobody knows it.
    let said = world.surety(&["why", "nobody"]).await.exits(1);
    assert!(said.err.contains("unknown job nobody"), "{}", said.err);
    witness.touch("go");
}

// Shows: I-01, C-14
#[tokio::test]
async fn a_receipt_that_does_not_surface_is_what_holds_an_ended_job() {
    let world = World::start().await;
    let c = world.connect().await;
    let _worker = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"noop","notify":{"subject":"surety.notify.nobody"}}"#).await;
    world.ended(&c, "a").await;
    wait("a try", async || why(&world, "a").await["promise"]["tries"].as_u64() > Some(0)).await;
    let w = why(&world, "a").await;
    assert_eq!((&w["job"]["status"], &w["gate"]["code"]), (&"done".into(), &"receipt_pending".into()), "{w}");
    let p = &w["promise"];
    assert_eq!((&p["receipt"], &p["requester"]), (&"pending".into(), &"surety.notify.nobody".into()));
    assert!(p["last_error"].is_string(), "{p}");
}

#[tokio::test]
async fn a_job_whose_record_is_gone_is_explained_from_the_journal() {
    let world = World::with("[reaper]\nkeep = \"100ms\"").await;
    let c = world.connect().await;
    let _worker = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    world.ended(&c, "a").await;
    let _reaper = world.reaper(&[]);
    let id = "a".parse().unwrap();
    wait("its record to be deleted", async || c.store.record(&id).await.unwrap().is_none()).await;
    tokio::time::timeout(Duration::from_secs(20), async {
        let w = why(&world, "a").await;
        assert_eq!((&w["gate"]["code"], &w["job"]["source"]), (&"ended".into(), &"journal".into()), "{w}");
        assert_eq!(w["attempts"][0]["end"], "done", "{w}");
    })
    .await
    .unwrap();
}

/// What `surety why` says of a job that a guard defers: what holds it, and until when (ms) where time decides that.
async fn guarded(world: &World, c: &surety_common::connect::Connected, id: &str) -> (String, Option<u64>) {
    world.status(c, id, Status::Deferred).await;
    // The event with the guard's name is journaled after the record.
    wait("the journal to have it", async || {
        why(world, id).await["gate"]["what"].as_str().is_some_and(|w| w.contains('('))
    })
    .await;
    let gate = why(world, id).await["gate"].clone();
    assert_eq!(gate["code"], "guarded", "{gate}");
    let until = gate["until"].as_str().map(|t| t.parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64);
    (gate["what"].as_str().unwrap().to_owned(), until)
}

// Shows: S-06, S-08
#[tokio::test]
async fn a_job_that_a_guard_defers_is_told_which_one_and_when_it_clears() {
    let witness = Witness::default();
    let handlers = witness.handler("slow", "until [ -e $W.go ]; do sleep 0.02; done")
        + &witness.handler("fails", "exit 1")
        + &witness.handler("dies", "kill -SEGV $$")
        + &witness.handler("quick", ":");
    let rules = r#"
[guards.rate.api]
scope = "{type}"
types = ["quick"]
limit = 1
per = "10m"
[guards.concurrency.one]
scope = "{type}"
types = ["slow"]
limit = 1
[guards.breaker.host]
scope = "{type}"
types = ["fails"]
sample = 1
open = "10m"
[guards.crash_loop.repo]
scope = "{type}"
types = ["dies"]
threshold = 1
open = "9m"
"#;
    let world = World::with(&(handlers + rules)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    for kind in ["quick", "slow", "fails", "dies"] {
        let body = format!(r#"{{"type":"{kind}","retry":{{"max_retries":0}}}}"#);
        world.publish("default", &format!("{kind}1"), &body).await;
        world
            .until(&c, &format!("{kind}1"), |r| {
                r.started_ms > 0 && (kind == "slow" || r.status.is_terminal())
            })
            .await;
        // A guard hears of an end after it was committed.
        let hears =
            async || match kind {
                "fails" | "dies" => c.store.scopes().await.unwrap().iter().any(|s| {
                    s.scope.label.ends_with(kind) && s.fields.get("level").is_some_and(|l| l == "1")
                }),
                _ => true,
            };
        wait("the guard to hear of it", hears).await;
        world.publish("default", &format!("{kind}2"), &body).await;
    }
    let now = c.store.now_ms().await.unwrap();
    let (what, until) = guarded(&world, &c, "quick2").await;
    assert!(what.contains("\"api: quick\"") && what.contains("rate_limited"), "{what}");
    assert!(until.is_some_and(|t| t > now + 500_000 && t < now + 700_000), "{until:?}");
    let (what, until) = guarded(&world, &c, "slow2").await;
    assert!(what.contains("\"one: slow\"") && what.contains("1 held"), "{what}");
    assert_eq!(until, None, "no time decides that");
    for (job, name, span) in [("fails2", "host: fails", 600_000), ("dies2", "repo: dies", 540_000)] {
        let (what, until) = guarded(&world, &c, job).await;
        assert!(what.contains(name) && what.contains("open: nobody starts"), "{what}");
        let left = until.map(|t| t.saturating_sub(now));
        assert!(left.is_some_and(|ms| ms > span - 60_000 && ms <= span), "{left:?}");
    }
    witness.touch("go");
    assert_eq!(world.ended(&c, "slow2").await.status, Status::Done);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: I-01
#[tokio::test]
async fn while_redis_is_away_a_job_is_explained_from_its_queue_and_the_journal() {
    let witness = Witness::default();
    let config = format!(
        "{}{}",
        witness.handler("fails", "exit 3"),
        witness.handler("long", "until [ -e $W.go ]; do sleep 0.05; done")
    );
    let world = World::with(&config).await;
    let c = world.connect().await;
    let _worker = world.worker(&["--queues", "default"], &[]);
    let job = r#"{"type":"fails","retry":{"max_retries":3,"backoff":["100ms","1h"]}}"#;
    world.publish("default", "failing", job).await;
    world.publish("default", "running", r#"{"type":"long"}"#).await;
    world.publish("default", "over", r#"{"type":"noop"}"#).await;
    world.publish("critical", "first", r#"{"type":"noop"}"#).await;
    world.publish("critical", "second", r#"{"type":"noop"}"#).await;
    world.until(&c, "failing", |r| r.status == Status::RetryWait && r.charged == 2).await;
    world.ended(&c, "over").await;
    world.status(&c, "running", Status::Running).await;
    wait("the journal to have it all", async || {
        let last = async |id: &str| {
            why(&world, id).await["events"].as_array()?.last()?["kind"].as_str().map(str::to_owned)
        };
        let found = [last("failing").await, last("over").await, last("running").await];
        found.each_ref().map(Option::as_deref) == ["attempt_failed", "finished", "started"].map(Some)
    })
    .await;
    world.surety(&["pause", "critical", "--reason", "moving house"]).await.exits(0);

    // Nobody listens; somebody listens and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nats = world.nats.url();
    let at = async |redis: &str, args: &[&str]| {
        world.surety_bare(&[&["--nats", &nats, "--redis", redis], args].concat()).await
    };
    let away = ["redis://127.0.0.1:1".to_owned(), format!("redis://{}", mute.local_addr().unwrap())];
    for redis in &away {
        let began = std::time::Instant::now();
        let said = at(redis, &["--json", "why", "failing"]).await.exits(69);
        assert!(began.elapsed() < Duration::from_secs(12), "it took {:?}", began.elapsed());
        assert!(said.err.contains("redis is not reachable"), "{}", said.err);
        let w = said.json();
        assert_eq!(w["gate"]["code"], "store_unread", "{w}");
        assert_eq!(
            (&w["job"]["source"], &w["job"]["status"]),
            (&"journal".into(), &"retry_wait".into()),
            "{w}"
        );
        assert_eq!(
            (&w["attempts"][1]["end"], &w["carrier"]["is_there"]),
            (&"attempt_failed".into(), &true.into())
        );
        let unknown = w["unknown"][0].as_str().unwrap();
        assert!(unknown.contains("its record") && unknown.contains("redis is not reachable"), "{w}");
    }
    let without = async |id: &str| at(&away[0], &["--json", "why", id]).await.exits(69).json();
    let w = without("second").await;
    assert_eq!((&w["job"]["source"], &w["carrier"]["ahead"]), (&"queue".into(), &1.into()), "{w}");
    let besides: Vec<_> = w["also"].as_array().unwrap().iter().map(|g| g["code"].as_str().unwrap()).collect();
    assert_eq!(besides, ["paused", "queued"], "{w}");
    assert!(w["also"][0]["what"].as_str().unwrap().contains("moving house"), "{w}");
    let w = without("running").await;
    assert!(w["gate"]["what"].as_str().unwrap().contains("the journal has of it is running"), "{w}");
    assert_eq!(without("over").await["gate"]["code"], "ended");
    // An id that nobody else knows may be one that the store knows.
    let said = at(&away[0], &["why", "nobody"]).await.exits(69);
    assert!(said.err.contains("neither a queue nor the journal knows job nobody"), "{}", said.err);
    // The same for people.
    let said = at(&away[0], &["why", "failing"]).await.exits(69).out;
    for part in ["store_unread", "attempt_failed", "not found out", "its record"] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    witness.touch("go");
}
