//! Cancelling jobs, running ones above all: what is reported is what happened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use surety_common::{
    cancel::{Happened, Report, Wish, cancel},
    connect::Connected,
    domain::{Requester, Status, ids::SessionId},
    pace::Pace,
    store::{ClaimItem, ClaimReply, FinishItem, FinishReply, StopItem, StopReply, Verdict},
};
use surety_tests::{
    process::Process,
    witness::{Witness, dead_letters, id, kinds, settled},
    world::{World, messages, wait},
};
use surety_worker::{JobContext, Worker};

/// A tree that ignores TERM, and would go on for a minute.
const STUBBORN: &str =
    "trap '' TERM; child 'while :; do sleep 0.1; done'; while :; do sleep 0.1; done; touch $W.late";

/// Renewals so rare that whatever waits for one of them fails the test.
const RARE: &str = r#"
[layout]
ack_wait = "400s"
[lease]
renewal = "90s"
ttl = "300s"
margin = "10s"
extend = "100s"
"#;

async fn ready(mut p: Process) -> Process {
    p.logged("worker ready").await;
    p
}

async fn with_tree(config: &str) -> (World, Connected, Witness) {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("tree", STUBBORN) + config)).await;
    let c = world.connect().await;
    (world, c, witness)
}

/// The tree runs.
async fn running(world: &World, witness: &Witness, job: &str) {
    world.publish("default", job, r#"{"type":"tree"}"#).await;
    witness.started(job, 2).await;
}

// Shows: I-03, T-02, T-04, T-07, T-14, P4
#[tokio::test]
async fn a_running_tree_is_dead_when_its_cancel_is_reported() {
    let (world, c, witness) = with_tree(RARE).await;
    let _reaper = world.reaper(&[]);
    let _worker = ready(world.worker(&[], &[])).await;
    running(&world, &witness, "a").await;
    // The worker hears of it at once: its next renewal is a minute and a half away.
    let said = world.surety(&["cancel", "a", "--reason", " not needed ", "--wait", "20s"]).await.exits(0);
    assert_eq!(said.out, "a: cancelled (not needed)\n");
    assert!(!witness.lives("a"), "{}", witness.text());
    let r = c.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((r.status, r.code.as_str(), r.charged), (Status::Cancelled, "cancelled", 0));
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "a").await, ["started", "cancel_requested", "finished"]);
    let h = world.history(&c).await;
    h.check().unwrap();
    let of = |kind: &str| h.jobs["a"].events.iter().find(|e| e.kind == kind).unwrap().data.clone();
    assert_eq!(of("cancel_requested")["reason"], "not needed");
    assert_eq!(of("finished")["receipt"]["outcome"], "cancelled");
    let letters = dead_letters(&world).await;
    assert_eq!((letters[0].job.as_str(), letters[0].reason.as_str()), ("a", "cancelled"));
    assert!(!witness.exists("late"));
    // Cancelled is final, and is told as what it is.
    let said = world.surety(&["cancel", "a"]).await.exits(1);
    assert!(said.err.contains("a: not cancelled, already cancelled"), "{}", said.err);
}

// Shows: T-11, T-14, I-03
#[tokio::test]
async fn several_cancellers_make_one_request_and_hear_of_one_outcome() {
    let (world, c, witness) = with_tree("").await;
    let _worker = ready(world.worker(&[], &[])).await;
    running(&world, &witness, "a").await;
    let ask = |reason: &'static str| {
        let (c, job) = (c.clone(), id("a"));
        async move {
            let wish = Wish { id: &job, reason: Some(reason), queue: None, wait: Duration::from_secs(30) };
            cancel(&c, &wish).await.unwrap()
        }
    };
    let (a, b, d) = tokio::join!(ask("one"), ask("two"), ask("three"));
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "a").await, ["started", "cancel_requested", "finished"]);
    let h = world.history(&c).await;
    let stored = h.jobs["a"].events[1].data["reason"].as_str().unwrap();
    for r in [a, b, d] {
        assert_eq!((r.result, r.reason.as_deref()), (Happened::Cancelled, Some(stored)), "{r:?}");
    }
}

// Shows: I-03
#[tokio::test]
async fn a_hint_that_is_lost_costs_time_until_the_next_renewal_and_nothing_else() {
    let (world, c, witness) = with_tree("").await;
    let _worker = ready(world.worker(&[], &[])).await;
    running(&world, &witness, "a").await;
    let r = c.store.record(&id("a")).await.unwrap().unwrap();
    // The wish alone, without the message.
    let wish = StopItem { id: "a".into(), epoch: r.epoch, data: r#"{"reason":"r"}"#.into() };
    let asked = c.store.ask_to_stop(0, &SessionId::new(&r.session).unwrap(), &[wish]).await.unwrap();
    assert_eq!(asked.results, [StopReply::Asked { rev: 2 }]);
    assert_eq!(world.ended(&c, "a").await.status, Status::Cancelled);
    assert!(!witness.lives("a"));
    // The other way round: a hint without a wish stops nothing.
    running(&world, &witness, "b").await;
    let r = c.store.record(&id("b")).await.unwrap().unwrap();
    let session = SessionId::new(&r.session).unwrap();
    let renewed = async || c.store.sessions(0, u64::MAX / 4, 10).await.unwrap()[0].1;
    let before = renewed().await;
    c.broker.hint_stop(&session, &id("b"), r.epoch).await.unwrap();
    wait("two renewals", async || renewed().await > before + 400).await;
    assert!(witness.lives("b"));
    world.surety(&["cancel", "b"]).await.exits(0);
}

// Shows: I-03, T-07
#[tokio::test]
async fn a_job_of_a_frozen_worker_is_cancelled_when_it_is_lost_and_never_runs_again() {
    let (world, c, witness) = with_tree("").await;
    let first = ready(world.worker(&["--state-dir", &world.path("one")], &[])).await;
    running(&world, &witness, "a").await;
    let _second = ready(world.worker(&["--state-dir", &world.path("two")], &[])).await;
    first.freeze();
    let said = world.surety(&["--json", "cancel", "a", "--wait", "0s"]).await.exits(75);
    assert_eq!(said.json()["result"], "stopping");
    assert_eq!(said.json()["status"], "running");
    // Who waits is told what became of it.
    let (said, _reaper) =
        tokio::join!(world.surety(&["cancel", "a", "--wait", "40s"]), async { world.reaper(&[]) });
    assert_eq!(said.exits(0).out, "a: cancelled (cancelled by request)\n");
    witness.dead("a", 1).await;
    first.thaw();
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "a").await, ["started", "cancel_requested", "finished"]);
    assert_eq!(witness.executions("a"), 1);
    assert_eq!(dead_letters(&world).await.len(), 1);
    world.history(&c).await.check().unwrap();
}

// Shows: I-03, T-13
#[tokio::test]
async fn a_job_that_waits_for_its_retry_is_cancelled_at_once() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("fails", "exit 1")).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let _worker = ready(world.worker(&[], &[])).await;
    let job = r#"{"type":"fails","retry":{"max_retries":3,"backoff":["1h"]}}"#;
    world.publish("default", "a", job).await;
    world.status(&c, "a", Status::RetryWait).await;
    let said = world.ask(&["cancel", "a", "--reason", "x"]).await;
    assert_eq!((&said["result"], &said["is_buried"]), (&"cancelled".into(), &true.into()), "{said}");
    assert_eq!(messages(&world, "SURETY_JOBS").await, 0);
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "a").await, ["started", "attempt_failed", "finished"]);
    assert_eq!(witness.executions("a"), 1);
    // Somebody nobody knows.
    let said = world.surety(&["--json", "cancel", "nobody"]).await.exits(1);
    assert_eq!(said.json()["result"], "unknown");
}

/// A job of this test's own session, running.
async fn claimed(c: &Connected, session: &SessionId, job: &str) -> u64 {
    let item = ClaimItem {
        id: job.to_owned().into(),
        queue: "default".into(),
        job_type: "t".into(),
        key: "".into(),
        trace: "".into(),
        carrier: "JOBS:1".into(),
        ack_subject: "".into(),
        created_ms: c.store.now_ms().await.unwrap(),
        finish_ms: 86_400_000,
        max_retries: 3,
        timeout_ms: 600_000,
        generation: 1,
        adopt: "".into(),
        expires_ms: 0,
        has_asked: false,
        ack_ms: 60_000,
        progress_ms: 60_000,
        requester: &Requester::Nobody,
        summary: "".into(),
    };
    let a = c.store.claim(0, session, 1_000_000, &[item]).await.unwrap();
    let ClaimReply::Granted(g) = &a.results[0] else { panic!("{:?}", a.results) };
    c.relay.publish(0, &a.entries, Pace::call(Duration::from_secs(10))).await.unwrap();
    g.epoch
}

/// Ends it while somebody cancels it; gives what the canceller heard.
async fn raced(c: Connected, session: SessionId, n: u32) -> Report {
    let job = format!("race-{n}");
    let epoch = claimed(&c, &session, &job).await;
    let verdict = [
        Verdict::Done,
        Verdict::CancelObeyed,
        Verdict::Retry { code: surety_common::domain::ErrorCode::Signal, delay: Duration::ZERO },
    ][n as usize % 3];
    let item = FinishItem {
        id: id(&job),
        epoch,
        verdict,
        receipt: String::new(),
        data: r#"{"message":"m""#.into(),
        detail: String::new(),
    };
    let wanted = id(&job);
    let wish = Wish { id: &wanted, reason: Some("race"), queue: None, wait: Duration::from_secs(30) };
    let end = async {
        // Now before, now after the request.
        for _ in 0..n % 40 {
            tokio::task::yield_now().await;
        }
        let a = c.store.finish(0, &session, &[item]).await.unwrap();
        assert!(matches!(a.results[0], FinishReply::Applied { .. }), "{:?}", a.results);
        c.relay.publish(0, &a.entries, Pace::call(Duration::from_secs(10))).await.unwrap();
    };
    let (report, ()) = tokio::join!(cancel(&c, &wish), end);
    report.unwrap()
}

// Shows: T-10, T-11, I-03
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_cancels_that_race_an_end_each_is_told_what_happened() {
    const RACES: u32 = 1000;
    let world = World::start().await;
    let c = world.connect().await;
    let session = SessionId::new("racer").unwrap();
    c.store.open_session(0, &session, Duration::from_secs(600), "{}").await.unwrap();
    let mut reports = Vec::new();
    for from in (0..RACES).step_by(50) {
        let all: Vec<_> =
            (from..from + 50).map(|n| tokio::spawn(raced(c.clone(), session.clone(), n))).collect();
        for one in all {
            reports.push(one.await.unwrap());
        }
    }
    let h = world.history(&c).await;
    h.check().unwrap();
    let mut seen = [0; 2];
    for r in &reports {
        let of = &h.jobs[&r.id];
        let finished: Vec<_> = of.events.iter().filter(|e| e.kind == "finished").collect();
        assert_eq!(finished.len(), 1, "{r:?}");
        assert_eq!(r.status, Some(finished[0].status.as_str()), "{r:?}");
        // Told as cancelled by this request only where it was.
        assert!(r.is_cancelled == (r.result == Happened::Cancelled), "{r:?}");
        assert!(!r.is_cancelled || finished[0].status == "cancelled", "{r:?}");
        let requests = of.events.iter().filter(|e| e.kind == "cancel_requested").count();
        assert!(requests <= 1, "{r:?}");
        seen[usize::from(r.is_cancelled)] += 1;
    }
    assert_eq!(reports.len(), RACES as usize);
    assert!(seen.iter().all(|n| *n > 50), "both ends of the race were seen: {seen:?}");
}

/// Says that it was dropped.
struct Dropped(Arc<AtomicU32>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// Shows: T-02, I-03
#[tokio::test(flavor = "multi_thread")]
async fn a_rust_handler_is_asked_and_dropped() {
    let world = World::with(RARE).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let (asked, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let handler = {
        let (asked, dropped) = (asked.clone(), dropped.clone());
        move |job: JobContext| {
            let (asked, dropped) = (asked.clone(), dropped.clone());
            async move {
                let _guard = Dropped(dropped);
                let beside = job.clone();
                // What it started beside itself is told, too.
                tokio::spawn(async move {
                    beside.stopped().await;
                    asked.store(true, Ordering::Relaxed);
                });
                std::future::pending::<()>().await;
                Ok(serde_json::Value::Null)
            }
        }
    };
    let worker = Worker::builder(world.settings()).handler("slow", handler).start().await.unwrap();
    world.publish("default", "a", r#"{"type":"slow"}"#).await;
    world.status(&c, "a", Status::Running).await;
    let since = Instant::now();
    world.surety(&["cancel", "a"]).await.exits(0);
    assert!(since.elapsed() < Duration::from_secs(20));
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
    wait("what it started to be told", async || asked.load(Ordering::Relaxed)).await;
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "a").await, ["started", "cancel_requested", "finished"]);
    worker.stop(std::future::pending()).await;
}
