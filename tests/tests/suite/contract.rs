//! The contract as its requester sees it: the start is told in time, silence is told once, and nothing of it stops the job.

use std::time::Duration;

use surety_common::{
    config::load_text,
    connect::Connected,
    domain::{Contract, Status},
    store::Record,
};
use surety_tests::{
    requester::Requester,
    witness::{Witness, id, kinds, settled},
    world::{World, wait},
};

/// Promises that are kept or missed soon.
const BRISK: &str = r#"
[contract]
ack = "500ms"
progress = "400ms"
[notify]
timeout = "300ms"
"#;

/// Reports progress when `$W.report` is there, ends when `$W.go` is.
const TALKER: &str = r#"until [ -e $W.report ]; do sleep 0.02; done
echo '{"progress":0.5,"message":"half"}' >&3
until [ -e $W.go ]; do sleep 0.02; done"#;

async fn world(witness: &Witness, more: &str) -> (World, Connected) {
    let world = World::with(&(witness.handler("talk", TALKER) + BRISK + more)).await;
    let c = world.connect().await;
    (world, c)
}

fn told(subject: &str, more: &str) -> String {
    format!(r#"{{"type":"talk","summary":"A talk","notify":{{"subject":"{subject}"}}{more}}}"#)
}

async fn record(c: &Connected, job: &str) -> Record {
    c.store.record(&id(job)).await.unwrap().unwrap()
}

/// Waits until the store's clock has gone on by so long.
async fn passes(c: &Connected, time: Duration) {
    let until = c.store.now_ms().await.unwrap() + u64::try_from(time.as_millis()).unwrap();
    wait("time to pass", async || c.store.now_ms().await.is_ok_and(|now| now >= until)).await;
}

// Shows: R-01, R-11, C-16, C-05
#[tokio::test]
async fn a_start_that_surfaced_acknowledges_the_contract_and_says_nothing_that_is_not_public() {
    let witness = Witness::default();
    let (world, c) = world(&witness, "").await;
    let requester = Requester::start(&world, "surety.notify.me").await;
    let mut worker = world.worker(&[], &[]);
    let secret =
        r#","payload":{"token":"MARKER"},"meta":{"note":"MARKER"},"contract":{"ack":"20s","progress":"20s"}"#;
    world.publish("default", "a", &told("surety.notify.me", secret)).await;
    let r = world.until(&c, "a", |r| r.contract == Contract::Acked).await;
    assert_eq!(
        r.promise_ms / 1000 - r.started_ms / 1000,
        20,
        "progress is promised from the acknowledgement on"
    );
    let heard = requester.hears("a", "started", 1).await;
    let notice = heard[0].json();
    assert_eq!(notice["notice"], heard[0].id.as_str());
    for (field, value) in [
        ("kind", "started"),
        ("job", "a"),
        ("type", "talk"),
        ("queue", "default"),
        ("summary", "A talk"),
        ("text", "Started: A talk (job a, attempt 1)."),
    ] {
        assert_eq!(notice[field], value, "{notice:#}");
    }
    assert!(notice["ends_by"].is_string() && notice["finish_by"].is_string() && notice["at"].is_string());
    witness.touch("report");
    world.until(&c, "a", |r| r.contract == Contract::Progressing).await;
    witness.touch("go");
    world.until(&c, "a", |r| r.contract == Contract::TerminalAcked).await;
    settled(&world, &c).await;
    let told: Vec<_> = requester.heard("a", "").iter().map(|h| h.kind.clone()).collect();
    assert_eq!(told, ["started", "receipt"]);
    let said: String =
        requester.heard("a", "").iter().map(|h| String::from_utf8_lossy(&h.body).into_owned()).collect();
    let stored = format!("{:?}", record(&c, "a").await);
    assert!(!said.contains("MARKER") && !stored.contains("MARKER"), "{said} {stored}");
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(
        kinds(&world, &c, "a").await,
        ["started", "acked", "progress", "finished", "receipt_delivered"]
    );
    assert_eq!(h.jobs["a"].events[1].data["by"], "worker");
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: R-01, C-07, C-02, G-01
#[tokio::test]
async fn a_start_that_nobody_saw_is_told_by_the_reaper_in_the_same_words() {
    let witness = Witness::default();
    let (world, c) = world(&witness, "").await;
    let requester = Requester::start(&world, "replies.me").await;
    requester.answer(false);
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "a", &told("replies.me", r#","contract":{"progress":"20s"}"#)).await;
    let silent = world.until(&c, "a", |r| !r.tell_error.is_empty()).await;
    assert_eq!((silent.contract, silent.told), (Contract::Created, 0), "accepted is not seen");
    assert_eq!(silent.promise_ms - silent.started_ms, 500, "the promise is that of the settings");
    assert!(silent.tell_error.contains("no answer within 300ms"), "{}", silent.tell_error);
    requester.answer(true);
    let _reaper = world.reaper(&[]);
    let acked = world.until(&c, "a", |r| r.contract == Contract::Acked).await;
    assert!(acked.promise_ms - acked.started_ms > 20_000, "the job's own promise of progress holds");
    let heard = requester.hears("a", "started", 2).await;
    assert_eq!(heard[0], heard[1], "the same id, the same text");
    let h = world.history(&c).await;
    let event = h.jobs["a"].events.iter().find(|e| e.kind == "acked").unwrap();
    assert_eq!(event.data["by"], "reaper");
    for name in ["report", "go"] {
        witness.touch(name);
    }
    world.until(&c, "a", |r| r.contract == Contract::TerminalAcked).await;
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(requester.heard("a", "started").len(), 2, "and not again");
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: C-07, V-09, P3
#[tokio::test]
async fn a_start_is_told_by_reapers_a_bounded_number_of_times_and_the_job_goes_on() {
    let witness = Witness::default();
    let (world, c) = world(&witness, "").await;
    let mut worker = world.worker(&[], &[]);
    let _reapers = [world.reaper(&[]), world.reaper(&[])];
    world.publish("default", "a", &told("replies.nobody", "")).await;
    let r = world.until(&c, "a", |r| r.told >= 1).await;
    assert_eq!((r.contract, r.status), (Contract::Created, Status::Running));
    for name in ["report", "go"] {
        witness.touch(name);
    }
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: C-08, H-07, P3
#[tokio::test]
async fn silence_for_five_periods_is_nudged_once_and_the_job_lives() {
    let witness = Witness::default();
    let (world, c) = world(&witness, "").await;
    let requester = Requester::start(&world, "replies.me").await;
    let mut worker = world.worker(&[], &[]);
    let _reapers = [world.reaper(&[]), world.reaper(&[])];
    world.publish("default", "a", &told("replies.me", "")).await;
    world
        .publish("default", "quiet", r#"{"type":"talk","notify":{"subject":"replies.me","notices":false}}"#)
        .await;
    world.publish("default", "nobody", r#"{"type":"talk"}"#).await;
    for job in ["a", "quiet", "nobody"] {
        world.until(&c, job, |r| r.contract == Contract::SlaMissed && r.promise_ms == 0).await;
    }
    passes(&c, Duration::from_millis(5 * 400)).await;
    let nudges = requester.heard("a", "nudge");
    assert_eq!(nudges.len(), 1);
    assert_eq!(
        nudges[0].json()["text"],
        "No progress for longer than promised: A talk (job a, attempt 1). It still runs."
    );
    assert!(requester.heard("quiet", "").is_empty(), "who wants no notices gets none");
    let r = record(&c, "a").await;
    assert_eq!((r.status, r.contract, r.attempt), (Status::Running, Contract::SlaMissed, 1));
    for name in ["report", "go"] {
        witness.touch(name);
    }
    for job in ["a", "quiet", "nobody"] {
        let r = world.ended(&c, job).await;
        assert_eq!((r.status, r.attempt), (Status::Done, 1), "it was silent, and was not killed for it");
    }
    world.until(&c, "a", |r| r.contract == Contract::TerminalAcked).await;
    world.until(&c, "quiet", |r| r.contract == Contract::TerminalAcked).await;
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    for (job, surfaced) in [("a", true), ("quiet", false), ("nobody", false)] {
        assert_eq!((h.count(job, "sla_missed"), h.count(job, "nudged")), (1, 1), "{job}");
        let nudged = h.jobs[job].events.iter().find(|e| e.kind == "nudged").unwrap();
        assert_eq!(nudged.data["surfaced"], surfaced, "{job}");
    }
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: C-06, C-04
#[tokio::test]
async fn progress_arms_the_nudge_anew() {
    let witness = Witness::default();
    let (world, c) = world(&witness, "").await;
    let requester = Requester::start(&world, "replies.me").await;
    let mut worker = world.worker(&[], &[]);
    let _reaper = world.reaper(&[]);
    world.publish("default", "a", &told("replies.me", "")).await;
    requester.hears("a", "nudge", 1).await;
    witness.touch("report");
    let nudges = requester.hears("a", "nudge", 2).await;
    assert_ne!(nudges[0].id, nudges[1].id, "the second is no repeat of the first");
    witness.touch("go");
    world.until(&c, "a", |r| r.contract == Contract::TerminalAcked).await;
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let mut states: Vec<_> = h.jobs["a"].events.iter().map(|e| e.contract.clone()).collect();
    states.dedup();
    let want =
        ["created", "acked", "sla_missed", "progressing", "sla_missed", "terminal_pending", "terminal_acked"];
    assert_eq!(states, want);
    assert_eq!(requester.heard("a", "nudge").len(), 2);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: C-08, R-01
#[tokio::test]
async fn a_nudge_that_nobody_saw_is_one_all_the_same_and_says_why() {
    let witness = Witness::default();
    let (world, c) = world(&witness, "").await;
    let requester = Requester::start(&world, "replies.me").await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "a", &told("replies.me", "")).await;
    world.until(&c, "a", |r| r.contract == Contract::Acked).await;
    requester.answer(false);
    let _reaper = world.reaper(&[]);
    world.until(&c, "a", |r| r.contract == Contract::SlaMissed && r.promise_ms == 0).await;
    passes(&c, Duration::from_millis(3 * 400)).await;
    assert_eq!(requester.heard("a", "nudge").len(), 1);
    let h = world.history(&c).await;
    let nudged = h.jobs["a"].events.iter().find(|e| e.kind == "nudged").unwrap();
    assert_eq!(nudged.data["surfaced"], false);
    assert!(nudged.data["message"].as_str().unwrap().contains("no answer"), "{}", nudged.data);
    for name in ["report", "go"] {
        witness.touch(name);
    }
    world.ended(&c, "a").await;
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: C-01, C-16
#[tokio::test]
async fn every_field_of_a_contract_can_be_read_and_survives_a_restart_of_the_store() {
    let witness = Witness::default();
    let (mut world, c) = world(&witness, "").await;
    let _requester = Requester::start(&world, "replies.me").await;
    let mut worker = world.worker(&[], &[]);
    world
        .publish("default", "a", &told("replies.me", r#","contract":{"progress":"30s","finish":"1h"}"#))
        .await;
    world.until(&c, "a", |r| r.contract == Contract::Acked).await;
    witness.touch("report");
    let before = world.until(&c, "a", |r| r.contract == Contract::Progressing).await;
    let see = async |world: &World| world.surety(&["--json", "status", "a"]).await.exits(0).json();
    let status = see(&world).await;
    for (field, value) in [
        ("id", "a"),
        ("contract", "progressing"),
        ("summary", "A talk"),
        ("last_report", before.print.as_str()),
    ] {
        assert_eq!(status[field], value, "{status:#}");
    }
    assert_eq!(status["requester"], serde_json::json!({ "subject": "replies.me", "notices": true }));
    assert_eq!((&status["attempt"], &status["is_nudged"]), (&1.into(), &false.into()));
    for time in ["progress_by", "finish_by", "deadline_at"] {
        assert!(status[time].is_string(), "{time} in {status:#}");
    }
    world.redis.kill9().await.unwrap();
    world.redis.restart().await.unwrap();
    wait("the record", async || c.store.record(&id("a")).await.is_ok_and(|r| r.as_ref() == Some(&before)))
        .await;
    assert_eq!(see(&world).await["contract"], "progressing");
    witness.touch("go");
    world.ended(&c, "a").await;
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: G-01
#[test]
fn the_times_of_a_contract_are_settings() {
    let settings = |text| load_text(Some((text, "test")), &|_| None, &vec![]).unwrap();
    let times = |text| {
        let s = settings(text);
        (s.contract.ack.as_secs(), s.contract.progress.as_secs(), s.reaper.tick.as_secs())
    };
    assert_eq!(times(""), (5, 45, 2));
    assert_eq!(times("[contract]\nack = \"7s\"\nprogress = \"2m\"\n[reaper]\ntick = \"1s\""), (7, 120, 1));
}
