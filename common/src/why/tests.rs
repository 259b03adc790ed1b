//! One test for each gate, and for what is told besides.

use super::*;
use crate::{
    broker::queues::LaneState,
    domain::{
        Contract, JobId, Status,
        pause::{Pause, Target},
    },
    guard_view::GuardView,
    locks::{LockOwner, LockView},
    store::{Record, SessionInfo},
};

const NOW: u64 = 1_800_000_000_000;

fn record(status: Status) -> Record {
    Record {
        status,
        contract: if status.is_terminal() { Contract::TerminalAcked } else { Contract::Acked },
        generation: 1,
        rev: 3,
        epoch: 1,
        attempt: 1,
        charged: 0,
        max_retries: 3,
        start_failures: 0,
        due_ms: 0,
        started_ms: NOW - 61_000,
        deadline_ms: if status.is_running() { NOW + 540_000 } else { 0 },
        created_ms: NOW - 90_000,
        finish_by_ms: NOW + 86_000_000,
        ended_ms: if status.is_terminal() { NOW - 1000 } else { 0 },
        promise_ms: if status.is_terminal() { 0 } else { NOW + 30_000 },
        told: 0,
        is_cancelling: false,
        queue: "default".into(),
        job_type: "t".into(),
        key: String::new(),
        trace: String::new(),
        carrier: "JOBS:7".into(),
        ack_subject: String::new(),
        session: if status.is_running() { "s1".into() } else { String::new() },
        code: String::new(),
        entry: "1-0".into(),
        notify: String::new(),
        summary: String::new(),
        print: String::new(),
        tell_error: String::new(),
        lost: 0,
    }
}

fn id() -> JobId {
    JobId::new("a").unwrap()
}

fn facts(r: Record) -> Facts {
    let is_running = r.status.is_running();
    let info = SessionInfo {
        host: Some("h1".into()),
        pid: Some(42),
        ttl_ms: Some(20_000),
        ..SessionInfo::default()
    };
    let view = JobView::of_record(&id(), &r, None);
    Facts {
        owner: is_running.then_some(OwnerFacts { info: Some(info), expires_ms: Some(NOW + 17_000) }),
        carrier: Some(CarrierFacts { name: r.carrier.clone(), message: Some(message(None)) }),
        record: Some(r),
        overstay_ms: 30_000,
        ..Facts::of(id(), NOW, view)
    }
}

/// A message that was delivered, or one behind so many others.
fn message(ahead: Option<u64>) -> MessageFacts {
    MessageFacts {
        subject: "surety.jobs.default.a".into(),
        stored_ms: NOW - 90_000,
        is_delivered: Some(ahead.is_none()),
        ahead,
    }
}

fn lane() -> LaneState {
    LaneState {
        stream: "SURETY_JOBS".into(),
        consumer: "default".into(),
        is_missing: false,
        waiting: 5,
        held: 2,
        redelivered: 0,
        pulls: 1,
        max_held: 1000,
        paused_ms: None,
        oldest_waiting_ms: None,
    }
}

fn queue(lane: LaneState, workers: u64, busy: u64) -> QueueFacts {
    QueueFacts { lane, workers: Some(workers), slots: workers * 4, busy, types: None }
}

/// A job that no worker has seen: in its queue behind others.
fn unseen(q: QueueFacts, ahead: u64) -> Facts {
    let mut f = facts(record(Status::Queued));
    f.view = JobView { source: "queue", status: "queued", queue: "default".into(), ..JobView::default() };
    f.record = None;
    f.queue = Some(q);
    f.carrier = Some(CarrierFacts { name: "JOBS:7".into(), message: Some(message(Some(ahead))) });
    f
}

fn codes(w: &Why) -> Vec<GateCode> {
    std::iter::once(w.gate.code).chain(w.also.iter().map(|g| g.code)).collect()
}

fn at(ms: u64) -> Option<String> {
    crate::clock::iso_millis(ms)
}

#[test]
fn an_attempt_that_runs_is_told_with_its_worker_and_its_limit() {
    let w = explain(facts(record(Status::Running)));
    assert_eq!(codes(&w), [GateCode::Running]);
    assert_eq!(w.gate.what, "attempt 1 runs at worker h1, process 42 since 1m 1s");
    assert_eq!(w.gate.until, at(NOW + 540_000));
    let o = w.owner.unwrap();
    assert_eq!((o.session.as_str(), o.renewed_ms, o.is_expired), ("s1", Some(3000), false));
    let what: Vec<&str> = w.deadlines.iter().map(|d| d.what.as_str()).collect();
    assert_eq!(
        what,
        [
            "it shows progress, or is marked sla_missed",
            "time limit of this attempt: it is stopped, and counts as failed",
            "finish deadline of the job: it ends as timed_out"
        ]
    );
    assert_eq!(w.deadlines[0].in_ms, 30_000);
}

#[test]
fn an_owner_whose_lease_is_over_or_that_nobody_knows_is_the_first_thing_told() {
    let mut f = facts(record(Status::Running));
    f.owner = Some(OwnerFacts { info: None, expires_ms: Some(NOW - 4000) });
    let w = explain(f.clone());
    assert_eq!(codes(&w), [GateCode::OwnerLost]);
    assert!(w.gate.what.contains("ended 4s ago"), "{}", w.gate.what);
    assert!(w.owner.unwrap().is_expired);
    f.owner = Some(OwnerFacts { info: None, expires_ms: None });
    let w = explain(f);
    assert!(w.gate.what.contains("not known to the store"), "{}", w.gate.what);
}

#[test]
fn what_kept_a_job_waiting_is_not_said_of_it_once_it_runs() {
    let id = JobId::new("j").unwrap();
    let code = |status, code: &str| {
        JobView::of_record(&id, &Record { code: code.into(), ..record(status) }, None).error_code
    };
    assert_eq!(code(Status::Deferred, "concurrency").as_deref(), Some("concurrency"));
    assert_eq!(code(Status::Running, "concurrency"), None);
    assert_eq!(code(Status::Running, "oom").as_deref(), Some("oom"), "how its last attempt ended");
}

#[test]
fn a_pending_cancel_and_an_overstayed_limit_are_told_of_an_attempt_that_runs() {
    let r = Record { is_cancelling: true, ..record(Status::Running) };
    assert_eq!(codes(&explain(facts(r.clone()))), [GateCode::CancelPending]);
    let late = Record { deadline_ms: NOW - 5000, ..record(Status::Running) };
    let w = explain(facts(late));
    assert_eq!(codes(&w), [GateCode::Overstayed]);
    assert_eq!(w.gate.until, at(NOW + 25_000));
    // A frozen worker whose job is to be cancelled: both are told, the worker first.
    let mut f = facts(r);
    f.owner = Some(OwnerFacts { info: None, expires_ms: Some(NOW - 1) });
    let w = explain(f);
    assert_eq!(codes(&w), [GateCode::OwnerLost, GateCode::CancelPending]);
    assert!(w.gate.then.contains("cancelled"), "{}", w.gate.then);
}

#[test]
fn a_question_holds_its_job() {
    assert_eq!(explain(facts(record(Status::WaitingInput))).gate.code, GateCode::WaitingInput);
}

#[test]
fn a_job_in_backoff_is_told_until_when_and_why() {
    let r =
        Record { due_ms: NOW + 75_000, code: "exit_code".into(), charged: 1, ..record(Status::RetryWait) };
    let mut f = facts(r);
    f.queue = Some(queue(lane(), 0, 0));
    let w = explain(f);
    // What would hold it next is told, too.
    assert_eq!(codes(&w), [GateCode::NotDue, GateCode::NoWorker]);
    assert_eq!(w.gate.what, "attempt 1 failed (exit_code); it is not due for another 1m 15s");
    assert_eq!(w.gate.until, at(NOW + 75_000));
    let r = Record {
        due_ms: NOW + 1,
        start_failures: 2,
        code: "start_failed".into(),
        ..record(Status::Deferred)
    };
    assert!(explain(facts(r)).gate.what.starts_with("its start failed 2 times (start_failed)"));
}

#[test]
fn a_deferred_job_is_told_its_guard_and_its_slot_or_its_place_in_line() {
    let now = GuardView {
        kind: "concurrency",
        scope: "repo: acme".into(),
        limit: "2 at once".into(),
        now: "2 held".into(),
        is_full: true,
        waiting: 5,
        clears_at: None,
        hash: "0".into(),
    };
    let r = Record { code: "concurrency".into(), due_ms: NOW - 5, ..record(Status::Deferred) };
    let mut f = facts(r.clone());
    f.guard = Some(GuardFacts {
        reason: "concurrency".into(),
        label: "repo: acme".into(),
        now: Some(now),
        before: Some(3),
    });
    let w = explain(f.clone());
    assert_eq!(codes(&w), [GateCode::Guarded]);
    assert_eq!(
        w.gate.what,
        "the guard \"repo: acme\" keeps it waiting: concurrency (2 at once; now: 2 held); 3 jobs are before it in line"
    );
    f.record = Some(Record { code: "rate_limited".into(), due_ms: NOW + 2500, ..r });
    let w = explain(f);
    assert_eq!(w.gate.until, at(NOW + 2500));
    assert!(w.gate.what.ends_with("its slot is in 2s"), "{}", w.gate.what);
}

#[test]
fn a_job_that_a_gate_holds_is_told_until_when_and_what_follows() {
    let view = |clears_at| GuardView {
        kind: "breaker",
        scope: "host: h".into(),
        limit: "50% of 20 or more fail in 1m".into(),
        now: "open: nobody starts (time 1 in a row)".into(),
        is_full: true,
        waiting: 5,
        clears_at,
        hash: "0".into(),
    };
    let mut f = facts(Record { code: "circuit_open".into(), due_ms: NOW - 5, ..record(Status::Deferred) });
    let guard = |clears_at| GuardFacts {
        reason: "circuit_open".into(),
        label: "host: h".into(),
        now: Some(view(clears_at)),
        before: Some(3),
    };
    f.guard = Some(guard(at(NOW + 9000)));
    let open = explain(f.clone()).gate;
    assert_eq!((open.code, open.until), (GateCode::Guarded, at(NOW + 9000)));
    assert!(open.then.contains("those that waited longest are tried"), "{}", open.then);
    f.guard = Some(guard(None));
    let half_open = explain(f).gate;
    assert_eq!(half_open.until, None);
    assert!(half_open.then.contains("tried now"), "{}", half_open.then);
}

#[test]
fn a_job_that_waits_for_a_lock_is_told_which_and_who_has_it() {
    let owner = |job: &str| LockOwner {
        job: job.into(),
        generation: 1,
        attempt: Some(2),
        epoch: Some(9),
        session: Some("s1".into()),
        host: Some("h2".into()),
        pid: Some(7),
        is_offer: false,
        held_ms: Some(61_000),
        until: None,
    };
    let lock = |name: &str, job: &str| LockFacts {
        name: name.into(),
        now: Some(LockView { name: name.into(), owner: Some(owner(job)), token: 1, waiting: 3 }),
        before: None,
    };
    let r = Record { code: "lock_busy".into(), due_ms: NOW - 5, ..record(Status::Deferred) };
    let mut f = facts(r);
    // What the journal told last may be another lock by now.
    let (reason, label) = ("lock_busy".into(), "free".into());
    f.guard = Some(GuardFacts { reason, label, now: None, before: None });
    let free = LockFacts { name: "free".into(), now: None, before: None };
    f.locks = vec![free, lock("kept", "a"), lock("repo", "other")];
    let w = explain(f.clone());
    assert_eq!(codes(&w), [GateCode::Guarded]);
    assert_eq!(
        w.gate.what,
        "the lock \"repo\" keeps it waiting: job other, attempt 2, at h2, process 7 has it since 1m 1s; 3 wait for it"
    );
    assert_eq!(w.locks, ["free", "kept", "repo"]);
    // It stands in the line of one of them.
    f.locks.push(LockFacts { before: Some(2), ..lock("tool", "other") });
    let what = explain(f.clone()).gate.what;
    assert!(what.starts_with("the lock \"tool\" keeps it waiting"), "{what}");
    assert!(what.ends_with("; 3 wait for it; 2 jobs are before it in line"), "{what}");
    f.locks.truncate(2);
    assert!(explain(f).gate.what.starts_with("the guard \"free\" keeps it waiting: lock_busy"));
}

#[test]
fn a_job_that_is_due_waits_for_its_redelivery() {
    let mut f = facts(record(Status::RetryWait));
    f.queue = Some(queue(lane(), 1, 0));
    assert_eq!(codes(&explain(f)), [GateCode::Redelivery]);
}

#[test]
fn an_open_job_without_its_message_is_told_first() {
    let mut f = facts(record(Status::Queued));
    f.carrier = Some(CarrierFacts { name: "JOBS:7".into(), message: None });
    f.queue = Some(queue(lane(), 1, 0));
    let w = explain(f);
    assert_eq!(codes(&w), [GateCode::CarrierMissing]);
    assert!(!w.carrier.unwrap().is_there);
}

#[test]
fn a_waiting_job_knows_its_place_and_who_could_take_it() {
    let w = explain(unseen(queue(lane(), 2, 3), 4));
    assert_eq!(codes(&w), [GateCode::Queued]);
    assert_eq!(
        w.gate.what,
        "it waits in queue default since 1m 30s, behind 4 messages; 2 workers pull from it, 3 of 8 slots are taken"
    );
    let c = w.carrier.unwrap();
    assert_eq!((c.is_delivered, c.ahead, c.sequence), (Some(false), Some(4), 7));
    let w = explain(unseen(queue(lane(), 2, 8), 4));
    assert_eq!(codes(&w), [GateCode::NoFreeSlot, GateCode::Queued]);
    let w = explain(unseen(queue(lane(), 0, 0), 4));
    assert_eq!(codes(&w), [GateCode::NoWorker]);
    // Delivered, and no worker claimed it: a type that none knows, for example.
    let mut f = unseen(queue(lane(), 1, 0), 0);
    f.carrier = Some(CarrierFacts { name: "JOBS:7".into(), message: Some(message(None)) });
    let w = explain(f);
    assert_eq!(codes(&w), [GateCode::Redelivery]);
    assert!(w.gate.then.contains("type"), "{}", w.gate.then);
}

#[test]
fn a_consumer_that_gives_nothing_out_is_told() {
    let missing = LaneState { is_missing: true, ..lane() };
    assert_eq!(codes(&explain(unseen(queue(missing, 1, 0), 0))), [GateCode::ConsumerMissing]);
    let paused = LaneState { paused_ms: Some(120_000), ..lane() };
    let w = explain(unseen(queue(paused, 1, 0), 0));
    assert_eq!(codes(&w), [GateCode::ConsumerPaused, GateCode::Queued]);
    assert_eq!(w.gate.until, at(NOW + 120_000));
    let full = LaneState { held: 1000, ..lane() };
    assert_eq!(explain(unseen(queue(full, 1, 0), 0)).gate.code, GateCode::ConsumerFull);
}

fn pause(target: Target, until_ms: Option<u64>) -> Pause {
    let reason = Some("database moves".to_owned());
    Pause { target, reason, by: "ann@h1".into(), at_ms: NOW - 61_000, until_ms }
}

// Shows: I-01
#[test]
fn a_pause_is_told_with_who_why_and_until_when() {
    let by_queue = pause(Target::Queue("default".parse().unwrap()), Some(NOW + 120_000));
    let by_key = pause(Target::key("it's").unwrap(), None);
    let lane = LaneState { paused_ms: Some(120_000), ..lane() };
    let mut f = unseen(queue(lane, 1, 0), 4);
    f.pauses = vec![by_queue, by_key.clone()];
    let w = explain(f);
    // The consumer is paused because its queue is: that is told once.
    assert_eq!(codes(&w), [GateCode::Paused, GateCode::Paused, GateCode::Queued]);
    assert_eq!(w.gate.what, "queue default is paused by ann@h1 since 1m 1s: database moves");
    assert_eq!(w.gate.then, "it ends by itself in 2m 0s; sooner: `surety resume default`");
    assert_eq!((w.gate.until, &w.also[0].until), (at(NOW + 120_000), &None));
    assert_eq!(w.also[0].then, r"`surety resume --key 'it'\''s'`");
    // Known to the store: it waits for its retry, and for the end of the pause.
    let mut f = facts(Record { due_ms: NOW + 60_000, code: "exit_code".into(), ..record(Status::RetryWait) });
    f.pauses = vec![by_key.clone()];
    assert_eq!(codes(&explain(f)), [GateCode::Paused, GateCode::NotDue]);
    // What runs goes on.
    let mut f = facts(record(Status::Running));
    f.pauses = vec![by_key];
    assert_eq!(codes(&explain(f)), [GateCode::Running]);
}

#[test]
fn a_store_that_takes_no_claims_holds_whatever_waits() {
    let mut f = unseen(queue(lane(), 1, 0), 0);
    f.store_closed = Some("it is being rebuilt from the journal".into());
    assert_eq!(explain(f).gate.code, GateCode::StoreClosed);
    // What runs goes on.
    let mut f = facts(record(Status::Running));
    f.store_closed = Some("x".into());
    assert_eq!(codes(&explain(f)), [GateCode::Running]);
}

#[test]
fn a_schedule_is_told_with_its_time() {
    let mut f = unseen(queue(lane(), 1, 0), 0);
    f.queue = None;
    f.view = JobView {
        source: "schedule",
        status: "scheduled",
        due_at: Some("2027-01-15T08:00:00Z".into()),
        ..JobView::default()
    };
    let w = explain(f);
    assert_eq!((w.gate.code, w.gate.until.as_deref()), (GateCode::Scheduled, Some("2027-01-15T08:00:00Z")));
}

#[test]
fn an_outcome_is_told_with_what_is_left_to_do() {
    let w = explain(facts(record(Status::Done)));
    assert_eq!((codes(&w), w.gate.what.as_str()), (vec![GateCode::Ended], "it ended as done"));
    let failed = Record { code: "exit_code".into(), ..record(Status::Failed) };
    assert!(explain(facts(failed)).gate.then.contains("dlq replay"));
    let mut f = facts(record(Status::Done));
    f.is_unjournaled = true;
    assert_eq!(codes(&explain(f)), [GateCode::NotJournaled]);

    let asked = r#"{"subject":"replies.a","notices":false}"#;
    let pending = Record {
        contract: Contract::TerminalPending,
        notify: asked.into(),
        told: 2,
        tell_error: "no responders".into(),
        promise_ms: NOW + 9000,
        ..record(Status::Done)
    };
    let w = explain(facts(pending.clone()));
    assert_eq!(codes(&w), [GateCode::ReceiptPending]);
    assert_eq!(w.gate.what, "it is done; its receipt was tried 2 times (last: no responders)");
    let p = w.promise.unwrap();
    assert_eq!((p.receipt, p.requester.as_deref(), p.tries), ("pending", Some("replies.a"), 2));
    assert_eq!(p.last_error.as_deref(), Some("no responders"));
    let given_up = Record { contract: Contract::TerminalFailed, ..pending.clone() };
    let w = explain(facts(given_up));
    assert_eq!((codes(&w), w.promise.unwrap().receipt), (vec![GateCode::ReceiptFailed], "failed"));
    // The outcome and its notification are told apart (C-14).
    assert_eq!(w.job.status, "done");
    let told = Record { contract: Contract::TerminalAcked, ..pending };
    assert_eq!(explain(facts(told)).promise.unwrap().receipt, "delivered");
}

#[test]
fn without_a_record_the_journal_has_the_last_word() {
    let mut f = unseen(queue(lane(), 1, 0), 0);
    (f.queue, f.carrier) = (None, None);
    f.view = JobView { source: "journal", status: "done", is_terminal: true, ..JobView::default() };
    let w = explain(f.clone());
    assert_eq!(w.gate.code, GateCode::Ended);
    assert!(w.gate.what.contains("its record is gone"), "{}", w.gate.what);
    f.view = JobView { source: "journal", status: "running", ..JobView::default() };
    assert_eq!(explain(f).gate.code, GateCode::RecordGone);
}

fn event(rev: u64, kind: &str, epoch: u64, data: serde_json::Value) -> Event {
    Event {
        v: 1,
        job: "a".into(),
        generation: 1,
        rev,
        kind: kind.into(),
        at: format!("2026-11-21T08:00:{rev:02}.000Z"),
        queue: "default".into(),
        job_type: "t".into(),
        key: None,
        status: if kind == "finished" { "failed" } else { "running" }.into(),
        contract: "acked".into(),
        attempt: u32::try_from(epoch).unwrap(),
        epoch,
        session: Some(format!("s{epoch}")),
        carrier: None,
        trace: None,
        data,
    }
}

#[test]
fn every_attempt_is_told_with_its_error_and_the_last_failed_one_with_its_output() {
    let mut f = facts(Record { epoch: 4, attempt: 4, ..record(Status::Running) });
    f.events = vec![
        event(1, "started", 1, serde_json::Value::Null),
        event(
            2,
            "attempt_failed",
            1,
            serde_json::json!({"error_code": "exit_code", "message": "exit code 3"}),
        ),
        event(3, "started", 2, serde_json::Value::Null),
        event(4, "progress", 2, serde_json::json!({"progress": 0.5})),
        event(5, "lost", 2, serde_json::json!({"error_code": "lost"})),
        event(6, "started", 3, serde_json::Value::Null),
        event(7, "attempt_failed", 3, serde_json::json!({"error_code": "signal", "message": "signal 9"})),
        event(8, "deferred", 3, serde_json::json!({"reason": "rate_limited", "guard": "rate:api"})),
        event(9, "started", 4, serde_json::Value::Null),
    ];
    f.view.detail = Some(serde_json::json!({"epoch": 3, "stderr_tail": ["boom"], "stdout_tail": ["out"]}));
    let w = explain(f);
    let told: Vec<_> =
        w.attempts.iter().map(|a| (a.epoch, a.end.as_str(), a.error_code.as_deref().unwrap_or(""))).collect();
    assert_eq!(
        told,
        [
            (1, "attempt_failed", "exit_code"),
            (2, "lost", "lost"),
            (3, "attempt_failed", "signal"),
            (4, "running", "")
        ]
    );
    assert_eq!(w.attempts[2].stderr_tail, ["boom"]);
    assert_eq!(w.attempts[0].message.as_deref(), Some("exit code 3"));
    assert_eq!(w.attempts[1].started_at.as_deref(), Some("2026-11-21T08:00:03.000Z"));
    assert!(w.attempts[0].stderr_tail.is_empty());
    assert_eq!(w.events.len(), 9);
}

#[test]
fn the_last_events_are_shown_and_what_is_unknown_is_said() {
    let mut f = facts(record(Status::Done));
    f.events = (1..60).map(|rev| event(rev, "progress", 1, serde_json::Value::Null)).collect();
    f.unknown = vec!["its journal: away".into()];
    let w = explain(f);
    assert_eq!((w.events.len(), w.events[0].rev), (explain::EVENTS_SHOWN, 40));
    assert_eq!(w.unknown, ["its journal: away"]);
    // An attempt whose end nobody told is not said to run.
    assert_eq!(w.attempts[0].end, "unknown");
}

#[test]
fn every_gate_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<String> = GateCode::ALL.iter().map(|g| g.name()).collect();
    assert_eq!(names.len(), GateCode::ALL.len());
    assert!(names.contains("consumer_paused") && !names.contains(""));
}

// The page for whoever looks at a job that is stuck.
#[test]
fn every_gate_is_in_the_handbook() {
    let page = include_str!("../../../docs/operating.md");
    for g in GateCode::ALL {
        assert!(page.contains(&format!("`{}`", g.name())), "docs/operating.md does not explain {}", g.name());
    }
}
