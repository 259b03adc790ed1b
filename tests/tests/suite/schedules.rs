//! Jobs for later: scheduled by a plain client, or waiting for a retry. Nobody prods them.

use std::time::Duration;

use surety_common::{
    clock::wall_now,
    connect::Connected,
    domain::{JobId, Status},
    store::Record,
};
use surety_tests::{
    process::Process,
    witness::{QUICK, Witness, dead_letters, id, ms},
    world::{PATIENCE, World, messages, wait},
};

/// One tick of the reaper by its default: the longest that a due job may wait on an idle system.
const TICK_MS: i64 = 2000;

fn now_ms() -> i64 {
    wall_now().as_millisecond()
}

fn iso(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).unwrap().to_string()
}

/// Publishes a schedule the way a stranger would.
async fn schedule(
    w: &World,
    queue: &str,
    name: &str,
    when: &str,
    body: &str,
) -> Result<u64, async_nats::jetstream::context::PublishError> {
    let js = async_nats::jetstream::new(w.plain().await);
    let mut h = async_nats::HeaderMap::new();
    h.insert("Nats-Msg-Id", name);
    h.insert("Nats-Schedule", when);
    h.insert("Nats-Schedule-Target", format!("surety.due.{queue}.{name}").as_str());
    let subject = format!("surety.sched.{queue}.{name}");
    Ok(js.publish_with_headers(subject, h, body.to_owned().into()).await?.await?.sequence)
}

async fn at(w: &World, queue: &str, name: &str, due_ms: i64, body: &str) {
    schedule(w, queue, name, &format!("@at {}", iso(due_ms)), body).await.unwrap();
}

/// Waits until nothing is left in `SCHED`: no schedule, no job that came due.
async fn sched_empty(w: &World) {
    wait("SCHED to be empty", async || messages(w, "SURETY_SCHED").await == 0).await;
}

async fn until_ms(t: i64) {
    wait("a point in time", async || now_ms() >= t).await;
}

fn lateness(r: &Record, due_ms: i64) -> i64 {
    i64::try_from(r.started_ms).unwrap() - due_ms
}

#[track_caller]
fn on_time(late: i64) {
    assert!((0..=TICK_MS).contains(&late), "it started {late} ms after it was due");
}

struct Idle {
    world: World,
    c: Connected,
    witness: Witness,
    worker: Process,
}

/// A worker with nothing to do.
async fn idle() -> Idle {
    let witness = Witness::default();
    let flaky = witness.handler("flaky", "[ $SURETY_ATTEMPT -gt 1 ] || exit 1");
    let world = World::with(&(witness.handler("work", "true") + &flaky)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    worker.logged("worker ready").await;
    Idle { world, c, witness, worker }
}

const BACKOFF: &str = r#"{"type":"flaky","retry":{"backoff":["2s"]}}"#;

impl Idle {
    /// A job due in two seconds by a schedule, and one in backoff as long; nobody asks for either until both have ended.
    /// `event` happens a second before.
    async fn both_start_on_time(&mut self, event: impl AsyncFnOnce(&mut World, &mut Process)) {
        self.world.publish("default", "backoff", BACKOFF).await;
        let failed = self.world.status(&self.c, "backoff", Status::RetryWait).await;
        let retry_ms = i64::try_from(failed.due_ms).unwrap();
        let due_ms = now_ms() + 2000;
        at(&self.world, "default", "due", due_ms, r#"{"type":"work"}"#).await;
        until_ms(retry_ms - 1000).await;
        event(&mut self.world, &mut self.worker).await;
        // What was down when they came due is up again: no tick before that.
        let ready_ms = now_ms();
        let due = self.world.ended(&self.c, "due").await;
        let backoff = self.world.ended(&self.c, "backoff").await;
        for (r, planned, attempt) in [(&due, due_ms, 1), (&backoff, retry_ms, 2)] {
            assert_eq!((r.status, r.attempt), (Status::Done, attempt), "{}", self.world.logs());
            assert!(lateness(r, planned) >= 0, "{} ms early", -lateness(r, planned));
            on_time(lateness(r, planned.max(ready_ms)).max(0));
        }
        assert!(due.carrier.starts_with("SCHED:") && backoff.carrier.starts_with("JOBS:"), "{due:?}");
        self.world.drained(&self.c).await;
        sched_empty(&self.world).await;
        self.world.history(&self.c).await.check().unwrap();
        assert_eq!((self.witness.executions("due"), self.witness.executions("backoff")), (1, 2));
        assert_eq!(self.worker.stop().await, Some(0));
    }
}

// Shows: J-04
#[tokio::test]
async fn a_job_for_later_starts_when_it_is_due_on_an_idle_system() {
    idle().await.both_start_on_time(async |_, _| {}).await;
}

// Shows: J-04, D-01
#[tokio::test]
async fn a_job_for_later_starts_when_it_is_due_though_nats_was_restarted() {
    idle().await.both_start_on_time(async |w, _| w.nats.restart().await.unwrap()).await;
}

// Shows: J-04, D-01
#[tokio::test]
async fn a_job_for_later_starts_when_it_is_due_though_the_worker_was_restarted() {
    let restart = async |w: &mut World, worker: &mut Process| {
        assert_eq!(worker.stop().await, Some(0));
        *worker = w.worker(&[], &[]);
        worker.logged("worker ready").await;
    };
    idle().await.both_start_on_time(restart).await;
}

// Shows: J-04, J-10
#[tokio::test]
async fn each_firing_of_a_recurring_schedule_is_a_job_of_its_own_and_runs_once() {
    let mut i = idle().await;
    let added = ["schedule", "add", "beat", "work", "--queue", "critical", "--cron", "* * * * * *"];
    let sequence = i.world.ask(&added).await["sequence"].as_u64().unwrap();
    let firings = async || {
        let h = i.world.history(&i.c).await;
        h.jobs.keys().cloned().collect::<Vec<_>>()
    };
    wait("three firings", async || firings().await.len() >= 3).await;
    i.world.surety(&["schedule", "rm", "beat", "--yes"]).await.exits(0);
    sched_empty(&i.world).await;
    i.world.drained(&i.c).await;
    let h = i.world.history(&i.c).await;
    h.check().unwrap();
    assert!(h.jobs.len() >= 3);
    for (job, j) in &h.jobs {
        let n: u64 = job.strip_prefix("beat-").unwrap().parse().unwrap();
        assert!(n > sequence, "{job}");
        assert_eq!((h.count(job, "started"), h.count(job, "finished")), (1, 1), "{job}");
        assert_eq!(j.events[0].carrier.as_deref(), Some(format!("SCHED:{n}").as_str()));
        assert_eq!(i.witness.executions(job), 1);
    }
    assert_eq!(i.worker.stop().await, Some(0));
}

// Shows: J-04, P8
#[tokio::test]
async fn due_messages_that_are_no_jobs_are_kept_and_a_schedule_for_no_queue_is_refused() {
    let mut i = idle().await;
    let recurring = r#"{"type":"work","id":"always-the-same"}"#;
    let sequence = schedule(&i.world, "default", "named", "@every 1s", recurring).await.unwrap();
    wait("a dead letter", async || messages(&i.world, "SURETY_DLQ").await >= 1).await;
    let js = async_nats::jetstream::new(i.world.plain().await);
    js.get_stream("SURETY_SCHED").await.unwrap().delete_message(sequence).await.unwrap();
    at(&i.world, "default", "other", now_ms() + 100, r#"{"type":"work","id":"someone-else"}"#).await;
    at(&i.world, "default", "garbage", now_ms() + 100, "not json").await;
    sched_empty(&i.world).await;
    let letters = dead_letters(&i.world).await;
    let reason_of = |part: &str| letters.iter().find(|l| l.message.contains(part)).map(|l| l.reason.as_str());
    for part in ["names each of its jobs itself", "\"someone-else\"", "not valid JSON"] {
        assert_eq!(reason_of(part), Some("invalid_job"), "{part}: {letters:?}");
    }
    assert!(letters.iter().any(|l| l.job.starts_with("named-")), "{letters:?}");
    for never in ["always-the-same", "someone-else"] {
        assert!(i.c.store.record(&id(never)).await.unwrap().is_none(), "no word about {never}");
    }
    assert!(i.witness.starts().is_empty(), "{}", i.witness.text());
    // A mistyped queue parks nothing: neither as the place of the schedule nor as its target.
    let body = r#"{"type":"work"}"#;
    let error = schedule(&i.world, "defualt", "a", "@every 1s", body).await.unwrap_err();
    assert_eq!(error.kind(), async_nats::jetstream::context::PublishErrorKind::StreamNotFound, "{error}");
    let mut h = async_nats::HeaderMap::new();
    h.insert("Nats-Schedule", "@every 1s");
    h.insert("Nats-Schedule-Target", "surety.due.defualt.a");
    let sent = js.publish_with_headers("surety.sched.default.a", h, body.into()).await.unwrap().await;
    assert!(sent.unwrap_err().to_string().contains("target"));
    assert_eq!(messages(&i.world, "SURETY_SCHED").await, 0);
    assert_eq!(i.worker.stop().await, Some(0));
}

// Shows: J-04, H-05, P1
#[tokio::test]
async fn a_due_job_whose_worker_is_killed_goes_on_elsewhere() {
    let witness = Witness::default();
    let hang = "[ $SURETY_ATTEMPT -gt 1 ] || exec sleep 60";
    let world = World::with(&witness.handler("hang", hang)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut doomed = world.worker(&["--state-dir", &world.path("doomed")], &[]);
    at(&world, "default", "a", now_ms() + 300, r#"{"type":"hang"}"#).await;
    witness.started("a", 1).await;
    let mut other = world.worker(&["--state-dir", &world.path("other")], &[]);
    other.logged("worker ready").await;
    doomed.kill9().await;
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1), "{}", world.logs());
    sched_empty(&world).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "lost"), h.count("a", "finished")), (1, 1));
    witness.no_overlap();
    assert_eq!(other.stop().await, Some(0));
}

// Shows: J-04, A-05
#[tokio::test]
async fn a_due_job_whose_last_attempt_is_lost_is_a_dead_letter_and_its_message_goes() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("hang", "exec sleep 60")).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut doomed = world.worker(&[], &[]);
    at(&world, "default", "a", now_ms() + 300, r#"{"type":"hang","retry":{"max_retries":0}}"#).await;
    witness.started("a", 1).await;
    doomed.kill9().await;
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.code.as_str()), (Status::Failed, "attempts_exhausted"));
    sched_empty(&world).await;
    let letters = dead_letters(&world).await;
    assert_eq!((letters.len(), letters[0].job.as_str()), (1, "a"));
    let carrier = letters[0].headers.get("Surety-Carrier").unwrap().to_string();
    assert!(carrier.starts_with("SCHED:"), "{carrier}");
    assert!(letters[0].headers.get("Nats-Scheduler").is_none());
}

// Shows: J-04, A-05
#[tokio::test]
async fn a_due_job_that_fails_is_a_dead_letter_and_its_replay_runs() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("mended", "[ -e $W.go ] || exit 64")).await;
    let c = world.connect().await;
    // Takes away what the command leaves in the outbox.
    let _reaper = world.reaper(&[]);
    let mut one = world.worker(&[], &[]);
    world.surety(&["enqueue", "mended", "--id", "a", "--in", "300ms"]).await.exits(0);
    let failed = world.ended(&c, "a").await;
    assert_eq!((failed.status, failed.code.as_str()), (Status::Failed, "exit_code"));
    assert!(failed.carrier.starts_with("SCHED:"), "{}", failed.carrier);
    sched_empty(&world).await;
    witness.touch("go");
    let replayed = world.ask(&["dlq", "replay", "a"]).await;
    assert!(replayed["replayed"][0]["carrier"].as_str().unwrap().starts_with("JOBS:"), "{replayed}");
    let done = world.until(&c, "a", |r| r.status == Status::Done).await;
    assert_eq!((done.generation, done.attempt), (2, 1));
    world.drained(&c).await;
    world.history(&c).await.check().unwrap();
    assert!(dead_letters(&world).await.is_empty());
    assert_eq!(one.stop().await, Some(0));
}

// Shows: J-04, A-06, D-06
#[tokio::test]
async fn a_due_job_that_the_broker_gave_up_is_buried() {
    let config = QUICK.replace("[layout]", "[layout]\nmax_deliver = 2") + "[worker]\nhand_on_limit = 1";
    let world = World::with(&config).await;
    let c = world.connect().await;
    at(&world, "default", "poison", now_ms() + 100, r#"{"type":"noop"}"#).await;
    for _ in 0..2 {
        let mut w = world.worker(&["--slots", "1"], &[("SURETY_FAULT", "pulled:1")]);
        assert_eq!(w.ended(PATIENCE).await, None, "{}", w.log());
    }
    // The broker says that it gave up when somebody asks for work.
    let mut later = world.worker(&[], &[]);
    let _reaper = world.reaper(&[]);
    let ended = world.ended(&c, "poison").await;
    assert_eq!((ended.status, ended.code.as_str()), (Status::Failed, "max_deliver"));
    sched_empty(&world).await;
    assert_eq!(dead_letters(&world).await.len(), 1);
    world.history(&c).await.check().unwrap();
    assert_eq!(later.stop().await, Some(0));
}

// Shows: J-01, J-04
#[tokio::test]
async fn due_jobs_rank_with_their_queue_and_share_its_slots() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", "sleep 0.05")).await;
    let c = world.connect().await;
    // All of it waits before the worker comes; the urgent queue has both kinds.
    let soon = now_ms() + 300;
    for i in 0..10 {
        at(&world, "critical", &format!("cd{i}"), soon, r#"{"type":"work"}"#).await;
        at(&world, "default", &format!("dd{i}"), soon, r#"{"type":"work"}"#).await;
        world.publish("critical", &format!("cj{i}"), r#"{"type":"work"}"#).await;
        world.publish("default", &format!("dj{i}"), r#"{"type":"work"}"#).await;
    }
    until_ms(soon + 600).await;
    let mut one = world.worker(&["--slots", "1"], &[]);
    wait("all of them to start", async || witness.starts().len() == 40).await;
    sched_empty(&world).await;
    world.drained(&c).await;
    let order: Vec<String> = witness.starts().into_iter().map(|s| s.job).collect();
    let last_urgent = order.iter().rposition(|j| j.starts_with('c')).unwrap();
    assert_eq!(last_urgent, 19, "the urgent queue first, whichever way its jobs came: {order:?}");
    let due = |jobs: &[String]| jobs.iter().filter(|j| j.as_bytes()[1] == b'd').count();
    for half in [&order[..10], &order[20..30]] {
        assert!((3..=7).contains(&due(half)), "neither kind waits for all of the other: {order:?}");
    }
    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}

// Shows: J-04
#[tokio::test]
async fn a_thousand_jobs_due_at_once_drain_on_one_queue_while_others_keep_coming() {
    let world = World::with("[worker]\nqueues = [\"default\"]").await;
    let c = world.connect().await;
    let mut one = world.worker(&["--slots", "8"], &[]);
    one.logged("worker ready").await;
    let due_ms = now_ms() + 1500;
    let js = async_nats::jetstream::new(world.plain().await);
    let mut acks = Vec::new();
    for n in 0..1000 {
        let mut h = async_nats::HeaderMap::new();
        h.insert("Nats-Schedule", format!("@at {}", iso(due_ms)).as_str());
        h.insert("Nats-Schedule-Target", format!("surety.due.default.s{n}").as_str());
        let body = r#"{"type":"noop"}"#;
        acks.push(
            js.publish_with_headers(format!("surety.sched.default.s{n}"), h, body.into()).await.unwrap(),
        );
        if n % 4 == 0 {
            acks.push(js.publish(format!("surety.jobs.default.j{n}"), body.into()).await.unwrap());
        }
    }
    for a in acks {
        a.await.unwrap();
    }
    sched_empty(&world).await;
    world.drained(&c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.jobs.len(), 1250);
    let mut slowest = 0;
    for (job, j) in &h.jobs {
        assert_eq!((h.count(job, "started"), h.count(job, "finished")), (1, 1), "{job}");
        if job.starts_with('s') {
            let late = ms(&j.events[0].at) - due_ms;
            assert!(late >= 0, "{job} started {late} ms early");
            slowest = slowest.max(late);
        }
    }
    // Look after look; one job a tick would take minutes.
    assert!(Duration::from_millis(slowest.unsigned_abs()) < Duration::from_secs(30), "{slowest} ms");
    assert!(c.store.record(&JobId::new("s0").unwrap()).await.unwrap().is_some());
    assert_eq!(one.stop().await, Some(0));
}

/// Sets the version of the layout in the metadata of `JOBS`.
async fn set_layout(w: &World, version: &str) {
    let js = async_nats::jetstream::new(w.plain().await);
    let mut config = js.get_stream("SURETY_JOBS").await.unwrap().cached_info().config.clone();
    config.metadata.insert("surety-layout".into(), version.into());
    js.update_stream(config).await.unwrap();
}

// Shows: B-02, J-04
#[tokio::test]
async fn a_layout_without_schedules_is_refused_until_it_was_upgraded() {
    let world = World::start().await;
    drop(world.connect().await);
    let js = async_nats::jetstream::new(world.plain().await);
    world.publish("default", "kept", r#"{"type":"noop"}"#).await;
    js.delete_stream("SURETY_SCHED").await.unwrap();
    set_layout(&world, "1").await;
    let mut one = world.worker(&[], &[]);
    assert_eq!(one.ended(PATIENCE).await, Some(78));
    for part in ["layout 1", "this release needs", "surety provision", "SCHED"] {
        assert!(one.log().contains(part), "{part} is not in {}", one.log());
    }
    let settings = world.settings();
    let (c, done) = surety_common::connect::provision(&settings, "test").await.unwrap();
    for part in
        ["stream SURETY_SCHED created", "consumer default of due jobs created", "stream SURETY_JOBS updated"]
    {
        assert!(done.changed.iter().any(|l| l == part), "{part:?} is not in {:?}", done.changed);
    }
    let again = surety_common::connect::provision(&settings, "test").await.unwrap().1;
    assert!(again.changed.is_empty() && again.refused.is_empty(), "{again:?}");
    at(&world, "default", "due", now_ms() + 100, r#"{"type":"noop"}"#).await;
    let mut one = world.worker(&[], &[]);
    for job in ["kept", "due"] {
        assert_eq!(world.ended(&c, job).await.status, Status::Done);
    }
    assert_eq!(one.stop().await, Some(0));
    // What a newer release made is not made older.
    set_layout(&world, "99").await;
    let error = surety_common::connect::provision(&settings, "test").await.err().unwrap().to_string();
    assert!(error.contains("layout 99") && error.contains("upgrade this process"), "{error}");
}
