//! Receipts reach their requesters: every outcome, by whichever dispatcher lives, once acked never again.

use surety_common::{
    broker::receipts::Outgoing,
    connect::Connected,
    domain::{Contract, ErrorCode, Requester as Asker, Status, TypeName, ids::receipt_id},
    ending::{By, Ending, Outcome, end_job},
};
use surety_tests::{
    requester::Requester,
    witness::{Witness, id, kinds, settled},
    world::{PATIENCE, World, messages, wait},
};

/// Receipts are tried again soon, and twice at most; a silent requester is given up on soon.
const HASTY: &str = r#"
[layout]
receipt_wait = "2s"
[notify]
timeout = "400ms"
tries = 3
backoff = ["100ms", "200ms"]
"#;

/// A job document with a requester who wants the receipt only.
fn quiet(kind: &str, subject: &str, more: &str) -> String {
    format!(r#"{{"type":"{kind}","notify":{{"subject":"{subject}","notices":false}}{more}}}"#)
}

// Shows: R-16, R-12
#[tokio::test]
async fn a_receipt_is_delivered_with_the_bytes_of_the_journal() {
    let world = World::with(HASTY).await;
    let c = world.connect().await;
    let requester = Requester::start(&world, "replies.me").await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "a", &quiet("noop", "replies.me", "")).await;
    world.publish("critical", "nobody", r#"{"type":"noop"}"#).await;
    let record = world.until(&c, "a", |r| r.contract == Contract::TerminalAcked).await;
    assert_eq!((record.status, record.promise_ms), (Status::Done, 0));
    let heard = requester.hears("a", "", 1).await;
    assert_eq!(heard[0].kind, "receipt");
    assert_eq!(heard[0].id, receipt_id(&id("a"), 1, "finished"));
    let receipt = heard[0].json();
    assert_eq!((&receipt["receipt"], &receipt["outcome"]), (&heard[0].id.as_str().into(), &"done".into()));
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(kinds(&world, &c, "a").await, ["started", "finished", "receipt_delivered"]);
    assert_eq!(kinds(&world, &c, "nobody").await, ["started", "finished"]);
    let js = async_nats::jetstream::new(world.plain().await);
    let stream = js.get_stream("SURETY_EVENTS").await.unwrap();
    let ended = stream.get_last_raw_message_by_subject("surety.events.default.ended").await.unwrap();
    let (journal, bytes) = (
        String::from_utf8(ended.payload.to_vec()).unwrap(),
        String::from_utf8(heard[0].body.clone()).unwrap(),
    );
    assert!(journal.contains(&format!(r#""receipt":{bytes},"notify""#)), "{bytes} is not in {journal}");
    none_under_way(&world).await;
    assert_eq!(requester.heard("a", "").len(), 1);
    assert_eq!(worker.stop().await, Some(0));
}

async fn none_under_way(world: &World) {
    wait("no receipt to be under way", async || messages(world, "SURETY_RECEIPTS").await == 0).await;
}

/// Ends a job that waits, as `surety cancel` does.
async fn cancel(c: &Connected, job: &str, subject: &str) {
    let (job, kind) = (id(job), TypeName::new("noop").unwrap());
    let requester = Asker::new(subject, true).unwrap();
    let end = Ending {
        by: By::Cancel,
        id: &job,
        kind: &kind,
        queue: "default",
        key: String::new(),
        trace: "",
        generation: 1,
        carrier: "",
        code: ErrorCode::Cancelled,
        why: "not needed any more",
        requester: &requester,
    };
    assert!(matches!(end_job(c, None, &end).await.unwrap(), Outcome::Ended { .. }));
}

/// One job for each outcome; gives their names.
async fn every_outcome(world: &World, c: &Connected, subject: &str) -> [(&'static str, Status); 4] {
    world.publish("default", "done", &quiet("noop", subject, "")).await;
    world.publish("default", "failed", &quiet("final", subject, "")).await;
    let once = r#","retry":{"max_retries":0},"contract":{"timeout":"200ms"}"#;
    world.publish("default", "timed_out", &quiet("long", subject, once)).await;
    cancel(c, "cancelled", subject).await;
    [
        ("done", Status::Done),
        ("failed", Status::Failed),
        ("timed_out", Status::TimedOut),
        ("cancelled", Status::Cancelled),
    ]
}

fn handlers(w: &Witness) -> String {
    w.handler("final", "exit 64") + &w.handler("long", "sleep 60")
}

// Shows: C-13, R-14
#[tokio::test]
async fn every_outcome_is_pending_until_its_receipt_surfaced_and_acked_then() {
    let witness = Witness::default();
    let world = World::with(&(handlers(&witness) + HASTY)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    // Runs the jobs and tells nobody, so that the contract is seen in between.
    let mut runner = world.worker(&[], &[("SURETY_NOTIFY_DISPATCH", "false")]);
    let jobs = every_outcome(&world, &c, "replies.me").await;
    for (job, outcome) in jobs {
        let r = world.ended(&c, job).await;
        assert_eq!((r.status, r.contract), (outcome, Contract::TerminalPending), "{job}");
    }
    let requester = Requester::start(&world, "replies.me").await;
    let other = world.path("other");
    let mut teller = world.worker(&["--state-dir", &other], &[]);
    for (job, outcome) in jobs {
        let r = world.until(&c, job, |r| r.contract != Contract::TerminalPending).await;
        assert_eq!((r.status, r.contract), (outcome, Contract::TerminalAcked), "{job}");
        let heard = requester.hears(job, "receipt", 1).await;
        assert_eq!(heard[0].json()["outcome"], outcome.name());
    }
    settled(&world, &c).await;
    none_under_way(&world).await;
    world.history(&c).await.check().unwrap();
    assert_eq!((runner.stop().await, teller.stop().await), (Some(0), Some(0)));
}

// Shows: C-13, C-14, R-06, R-08, R-11, O-08
#[tokio::test]
async fn a_receipt_that_nobody_takes_is_given_up_and_the_outcome_stands() {
    let witness = Witness::default();
    let world = World::with(&(handlers(&witness) + HASTY)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let silent = Requester::start(&world, "replies.silent").await;
    silent.answer(false);
    let mut worker = world.worker(&["--log-format", "json"], &[]);
    let jobs = every_outcome(&world, &c, "replies.nobody").await;
    world.publish("default", "silent", &quiet("noop", "replies.silent", "")).await;
    world.publish("default", "ours", &quiet("noop", "surety.jobs.default.x", "")).await;
    for (job, outcome) in jobs {
        let r = world.until(&c, job, |r| r.contract == Contract::TerminalFailed).await;
        assert_eq!((r.status, r.told), (outcome, 3), "{job}");
        assert!(r.tell_error.contains("no responders"), "{}", r.tell_error);
    }
    let r = world.until(&c, "silent", |r| r.contract == Contract::TerminalFailed).await;
    assert_eq!((r.status, r.told), (Status::Done, 3));
    assert!(r.tell_error.contains("no answer within 400ms"), "{}", r.tell_error);
    let heard = silent.heard("silent", "receipt");
    assert_eq!(heard.len(), 3, "every try was heard");
    assert!(heard.iter().all(|h| *h == heard[0]), "and each was the same");
    // Ours: not even tried.
    let r = world.until(&c, "ours", |r| r.contract == Contract::TerminalFailed).await;
    assert_eq!((r.status, r.told), (Status::Done, 1));
    assert!(r.tell_error.contains("a message would be a command"), "{}", r.tell_error);
    settled(&world, &c).await;
    none_under_way(&world).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    for job in jobs.map(|(job, _)| job).into_iter().chain(["silent", "ours"]) {
        let last = h.jobs[job].events.last().unwrap();
        assert_eq!(
            (last.kind.as_str(), last.contract.as_str()),
            ("receipt_failed", "terminal_failed"),
            "{job}"
        );
        assert!(!last.data["message"].as_str().unwrap().is_empty());
    }
    let alerts = worker.log().matches(r#""alert":"receipt_failed""#).count();
    assert_eq!(alerts, 6, "{}", worker.log());
    assert_eq!(worker.stop().await, Some(0));
}

/// A dispatcher dies at the point; another delivers what it left.
async fn dispatcher_dies_at(point: &str, answers: bool) {
    let world = World::with(
        &format!("{HASTY}[lease]\nextend = \"1s\"").replace("[layout]", "[layout]\nack_wait = \"2500ms\""),
    )
    .await;
    let c = world.connect().await;
    let requester = Requester::start(&world, "replies.me").await;
    requester.answer(answers);
    let mut doomed = world.worker(&[], &[("SURETY_FAULT", &format!("{point}:1"))]);
    world.publish("default", "a", &quiet("noop", "replies.me", "")).await;
    assert_eq!(doomed.ended(PATIENCE).await, None, "killed by {point}\n{}", doomed.log());
    let before = c.store.record(&id("a")).await.unwrap().unwrap();
    let _reaper = world.reaper(&[]);
    let mut other = world.worker(&["--state-dir", &world.path("other")], &[]);
    let end = if answers { Contract::TerminalAcked } else { Contract::TerminalFailed };
    let r = world.until(&c, "a", |r| r.contract == end).await;
    assert_eq!(r.status, Status::Done);
    settled(&world, &c).await;
    none_under_way(&world).await;
    let heard = requester.heard("a", "");
    assert!(
        !heard.is_empty() && heard.iter().all(|h| *h == heard[0]),
        "{point}: the same id and bytes each time"
    );
    if before.contract == Contract::TerminalAcked {
        assert_eq!(heard.len(), 1, "{point}: what is acked is not sent again");
    }
    let h = world.history(&c).await;
    h.check().unwrap();
    let last = if answers { "receipt_delivered" } else { "receipt_failed" };
    assert_eq!((h.count("a", "finished"), h.count("a", last)), (1, 1), "{point}");
    for e in &h.jobs["a"].events {
        // An acked receipt and an open contract never stand together.
        let is_settled = ["receipt_delivered", "receipt_failed"].contains(&e.kind.as_str());
        assert_eq!(["terminal_acked", "terminal_failed"].contains(&e.contract.as_str()), is_settled, "{e:?}");
    }
    assert_eq!(other.stop().await, Some(0), "{}", other.log());
}

macro_rules! dispatcher_dies {
    ($($point:ident)+) => { $(
        // Shows: R-07, R-08, R-09, R-16, R-12, X-13
        #[tokio::test]
        async fn $point() {
            tokio::join!(
                super::dispatcher_dies_at(stringify!($point), true),
                super::dispatcher_dies_at(stringify!($point), false),
            );
        }
    )+ };
}

mod dispatcher_dies_when {
    dispatcher_dies!(receipts_due receipts_stored receipt_taken receipt_told told_committed told_journaled);
}

// Shows: R-09
#[tokio::test]
async fn a_dispatcher_that_is_killed_while_it_waits_for_the_answer_is_replaced() {
    let world = World::with(&HASTY.replace("400ms", "900ms")).await;
    let c = world.connect().await;
    let requester = Requester::start(&world, "replies.me").await;
    requester.answer(false);
    let mut doomed = world.worker(&[], &[]);
    world.publish("default", "a", &quiet("noop", "replies.me", "")).await;
    requester.hears("a", "receipt", 1).await;
    doomed.kill9().await;
    requester.answer(true);
    let mut other = world.worker(&["--state-dir", &world.path("other")], &[]);
    world.until(&c, "a", |r| r.contract == Contract::TerminalAcked).await;
    let heard = requester.hears("a", "receipt", 2).await;
    assert_eq!(heard[0], heard[1], "the same id and bytes");
    none_under_way(&world).await;
    assert_eq!(other.stop().await, Some(0));
}

// Shows: R-05, C-03
#[tokio::test]
async fn a_receipt_that_is_published_again_is_not_told_again_once_it_is_settled() {
    let world = World::with(HASTY).await;
    let c = world.connect().await;
    let requester = Requester::start(&world, "replies.me").await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "acked", &quiet("noop", "replies.me", "")).await;
    world.publish("default", "failed", &quiet("noop", "replies.nobody", "")).await;
    let acked = world.until(&c, "acked", |r| r.contract == Contract::TerminalAcked).await;
    let failed = world.until(&c, "failed", |r| r.contract == Contract::TerminalFailed).await;
    let body = String::from_utf8(requester.hears("acked", "receipt", 1).await[0].body.clone()).unwrap();
    for (n, job) in ["acked", "failed"].into_iter().enumerate() {
        // Not the id that the broker remembers, as after its window.
        let again = Outgoing {
            job: &id(job),
            generation: 1,
            queue: "default",
            notify: r#"{"subject":"replies.me","notices":false}"#,
            trace: "",
            body: &body,
            message_id: &format!("again-{n}"),
        };
        c.broker.send_receipt(&c.publisher, again).await.unwrap().stored().await.unwrap();
    }
    none_under_way(&world).await;
    assert_eq!((requester.heard("acked", "").len(), requester.heard("failed", "").len()), (1, 0));
    assert_eq!(c.store.record(&id("acked")).await.unwrap(), Some(acked));
    assert_eq!(c.store.record(&id("failed")).await.unwrap(), Some(failed));
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: R-12, P8
#[tokio::test]
async fn a_receipt_without_a_record_is_delivered_and_what_is_none_is_dropped() {
    let world = World::with(HASTY).await;
    let c = world.connect().await;
    let requester = Requester::start(&world, "replies.me").await;
    let job = id("forgotten");
    let lost = Outgoing {
        job: &job,
        generation: 1,
        queue: "default",
        notify: r#"{"subject":"replies.me","notices":false}"#,
        trace: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        body: r#"{"v":1}"#,
        message_id: "",
    };
    c.broker.send_receipt(&c.publisher, lost).await.unwrap().stored().await.unwrap();
    let nobody =
        Outgoing { notify: r#"{"subject":"replies.nobody","notices":false}"#, message_id: "x", ..lost };
    c.broker.send_receipt(&c.publisher, nobody).await.unwrap().stored().await.unwrap();
    let js = async_nats::jetstream::new(world.plain().await);
    js.publish("surety.receipts.default", "no receipt".into()).await.unwrap().await.unwrap();
    let mut worker = world.worker(&[], &[]);
    let heard = requester.hears("forgotten", "receipt", 1).await;
    assert_eq!((heard[0].body.as_slice(), heard[0].trace.as_str()), (lost.body.as_bytes(), lost.trace));
    none_under_way(&world).await;
    assert_eq!(c.store.record(&job).await.unwrap(), None, "no record comes of it");
    assert_eq!(requester.heard("forgotten", "").len(), 1);
    assert!(worker.log().contains("receipt_unreadable") && worker.log().contains("receipt_failed"));
    assert_eq!(worker.stop().await, Some(0));
}
