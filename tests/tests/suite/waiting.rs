//! Jobs that no worker has seen: the reaper reads them from their queue, and from then on they are like any other.

use async_nats::HeaderMap;
use surety_common::{
    connect::Connected,
    domain::{Contract, Status},
    store::{WaitingItem, WaitingReply},
};
use surety_tests::{
    witness::dead_letters,
    world::{World, messages, wait},
};

use super::scripts::{FIRST, World as Scripts, claim, epoch, finish, id, replay};

/// Promised starts are missed at once, and what waits is looked at often.
const SOON: &str = "[contract]\nack = \"200ms\"\n[reaper]\ncarrier_check = \"500ms\"\n";

async fn world() -> (World, Connected) {
    let world = World::with(SOON).await;
    let c = world.connect().await;
    (world, c)
}

/// A time some seconds from now.
fn in_seconds(s: i64) -> String {
    (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(s)).to_string()
}

async fn jobs(w: &World) -> u64 {
    messages(w, "SURETY_JOBS").await
}

fn item(job: &str) -> WaitingItem {
    let c = claim(job);
    WaitingItem {
        id: c.id.into_owned(),
        queue: c.queue.into_owned(),
        job_type: c.job_type.into_owned(),
        key: String::new(),
        trace: String::new(),
        carrier: c.carrier.into_owned(),
        created_ms: c.created_ms,
        finish_ms: c.finish_ms,
        max_retries: c.max_retries,
        generation: 1,
        expires_ms: 0,
        notify: r#"{"subject":"me"}"#.into(),
        summary: "what it is".into(),
    }
}

impl Scripts {
    async fn register(&self, items: &[WaitingItem]) -> Vec<WaitingReply> {
        self.store.register(0, items).await.unwrap().results
    }
}

// Shows: P3, C-09, C-10, D-08
#[tokio::test]
async fn a_job_that_no_worker_has_seen_expires_and_reaches_its_finish_deadline() {
    let (world, c) = world().await;
    let _reaper = world.reaper(&[]);
    let expires = format!(r#"{{"type":"noop","expires_at":"{}"}}"#, in_seconds(2));
    world.publish("default", "stale", &expires).await;
    world.publish("default", "late", r#"{"type":"noop","contract":{"finish":"2s"}}"#).await;
    world.publish("critical", "patient", r#"{"type":"noop","key":"k","summary":"s"}"#).await;

    let patient = world.status(&c, "patient", Status::Queued).await;
    assert_eq!((patient.rev, patient.epoch, patient.attempt), (0, 0, 0), "nothing happened to it");
    assert_eq!((patient.carrier.as_str(), patient.queue.as_str()), ("JOBS:3", "critical"));
    assert_eq!((patient.key.as_str(), patient.summary.as_str()), ("\"k\"", "s"));
    let said = world.surety(&["--json", "status", "patient"]).await.exits(0).json();
    assert_eq!((&said["status"], &said["source"]), (&"queued".into(), &"record".into()), "{said}");

    let stale = world.ended(&c, "stale").await;
    assert_eq!((stale.status, stale.code.as_str()), (Status::Failed, "expired"));
    let late = world.ended(&c, "late").await;
    assert_eq!((late.status, late.code.as_str()), (Status::TimedOut, "finish_deadline"));
    // What was never delivered cannot be acked: it is gone nevertheless, and was kept.
    wait("their messages to be gone", async || jobs(&world).await == 1).await;
    assert_eq!(dead_letters(&world).await.len(), 2);

    world.surety(&["cancel", "patient"]).await.exits(0);
    wait("JOBS to be empty", async || jobs(&world).await == 0).await;
    assert_eq!(world.ended(&c, "patient").await.status, Status::Cancelled);
    let h = world.history(&c).await;
    h.check().unwrap();
    for job in ["stale", "late", "patient"] {
        assert_eq!(h.count(job, "finished"), 1, "{job}");
    }
}

// Shows: P3, J-03
#[tokio::test]
async fn a_registered_job_is_claimed_like_any_other() {
    let (world, c) = world().await;
    let mut reaper = world.reaper(&[]);
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    world.publish("default", "bad", r#"{"type":"noop","payload":"#).await;
    let mut h = HeaderMap::new();
    h.insert("Nats-Schedule", format!("@at {}", in_seconds(1)).as_str());
    h.insert("Nats-Schedule-Target", "surety.due.default.due");
    let js = async_nats::jetstream::new(world.plain().await);
    let sent = js.publish_with_headers("surety.sched.default.due", h, r#"{"type":"noop"}"#.into());
    sent.await.unwrap().await.unwrap();
    world.status(&c, "a", Status::Queued).await;
    assert!(world.status(&c, "due", Status::Queued).await.carrier.starts_with("SCHED:"));
    reaper.logged("what waits there is no job").await;
    assert!(c.store.record(&id("bad")).await.unwrap().is_none(), "left to its worker");

    let _worker = world.worker(&[], &[]);
    for job in ["a", "due"] {
        let done = world.ended(&c, job).await;
        assert_eq!((done.status, done.attempt, done.rev), (Status::Done, 1, 2), "{job}");
    }
    assert_eq!(world.ended(&c, "bad").await.code, "invalid_job");
    world.drained(&c).await;
    assert_eq!(messages(&world, "SURETY_SCHED").await, 0);
    world.history(&c).await.check().unwrap();
}

// Shows: P3, D-08
#[tokio::test]
async fn the_message_of_a_job_that_was_cancelled_before_it_came_is_taken_away() {
    let (world, c) = world().await;
    for job in ["one", "two"] {
        world.surety(&["cancel", job, "--queue", "default"]).await.exits(0);
        assert_eq!(world.ended(&c, job).await.status, Status::Cancelled);
    }
    // By the reaper, where no worker comes.
    let reaper = world.reaper(&[]);
    world.publish("default", "one", r#"{"type":"noop"}"#).await;
    wait("the reaper to remove it", async || jobs(&world).await == 0).await;
    drop(reaper);
    // By a worker.
    let _worker = world.worker(&[], &[]);
    world.publish("default", "two", r#"{"type":"noop"}"#).await;
    wait("the worker to remove it", async || jobs(&world).await == 0).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("one", "started"), h.count("two", "started")), (0, 0));
    assert_eq!(dead_letters(&world).await.len(), 2, "both can be replayed");
}

// Shows: C-09, D-08
#[tokio::test]
async fn a_replay_that_nobody_recorded_is_registered() {
    let w = Scripts::start().await;
    let granted = epoch(&w.claim(&[claim("a")]).await[0]);
    w.finish(&[finish("a", granted, surety_common::store::Verdict::Done)]).await;
    let next = WaitingItem { generation: 2, carrier: "JOBS:9".into(), ..item("a") };
    assert_eq!(w.register(&[next]).await, [WaitingReply::Registered { generation: 2 }]);
    let r = w.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((r.status, r.generation, r.carrier.as_str()), (Status::Queued, 2, "JOBS:9"));
    assert_eq!(w.events().await.last().unwrap().kind.as_str(), "replayed");
    // Its own record comes later and finds it done; the message of the generation before is left over.
    w.store.replay(0, &[replay("a", 2)]).await.unwrap();
    assert_eq!(w.register(&[item("a")]).await, [WaitingReply::StaleGeneration]);
    assert_eq!(w.events().await.iter().filter(|e| e.kind == "replayed").count(), 1);
}

// Shows: P3, X-04
#[tokio::test]
async fn what_is_known_stays_and_what_a_record_lacks_is_filled_in() {
    let w = Scripts::start().await;
    let known = || WaitingReply::Known { carrier: "JOBS:a".into() };
    assert_eq!(w.register(&[item("a")]).await, [WaitingReply::Registered { generation: 1 }]);
    let first = w.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((first.status, first.contract, first.rev), (Status::Queued, Contract::Created, 0));
    assert_eq!(first.finish_by_ms, first.created_ms + 86_400_000);
    assert!(first.promise_ms > 0 && w.outbox().await.is_empty(), "{first:?}");
    let other = WaitingItem { carrier: "JOBS:b".into(), created_ms: 1, expires_ms: 5, ..item("a") };
    assert_eq!(w.register(&[other]).await, [known()]);
    assert_eq!(w.store.record(&id("a")).await.unwrap().unwrap(), first);

    // Restored from the journal, which knows neither when it was made nor who asks.
    let bare = surety_common::store::ClaimItem {
        created_ms: 0,
        finish_ms: 2_000_000_000_000,
        max_retries: 0,
        ..claim("b")
    };
    let granted = epoch(&w.claim(&[bare]).await[0]);
    w.finish(&[finish("b", granted, surety_common::store::Verdict::Release)]).await;
    assert_eq!(w.register(&[item("b")]).await, [WaitingReply::Known { carrier: "JOBS:b".into() }]);
    let b = w.store.record(&id("b")).await.unwrap().unwrap();
    assert_eq!((b.created_ms, b.max_retries, b.summary.as_str()), (1_800_000_000_000, 3, "what it is"));
    assert_eq!((b.notify.as_str(), b.rev, b.epoch), (r#"{"subject":"me"}"#, 2, FIRST));

    // It runs as what it is now; an outcome leaves the message over.
    let granted = epoch(&w.claim(&[claim("b")]).await[0]);
    let running = w.store.record(&id("b")).await.unwrap().unwrap();
    assert_eq!(w.register(&[item("b")]).await, [WaitingReply::Known { carrier: "JOBS:b".into() }]);
    assert_eq!(w.store.record(&id("b")).await.unwrap().unwrap(), running);
    w.finish(&[finish("b", granted, surety_common::store::Verdict::Done)]).await;
    let answer = w.store.register(0, &[item("b")]).await.unwrap();
    assert!(matches!(&answer.results[0], WaitingReply::Ended(e) if !e.is_journaled), "{answer:?}");
    assert_eq!(answer.entries.len(), 1, "to be published before the message goes");
}

// Shows: P3
#[tokio::test]
async fn a_queue_without_its_consumer_hides_no_job() {
    let (world, c) = world().await;
    let js = async_nats::jetstream::new(world.plain().await);
    js.delete_consumer_from_stream("critical", "SURETY_JOBS").await.unwrap();
    world.publish("critical", "a", r#"{"type":"noop"}"#).await;
    let _reaper = world.reaper(&[]);
    assert_eq!(world.status(&c, "a", Status::Queued).await.epoch, 0);
    world.surety(&["provision"]).await.exits(0);
    let _worker = world.worker(&[], &[]);
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    world.drained(&c).await;
    world.history(&c).await.check().unwrap();
}

// Shows: D-08, C-10
#[tokio::test]
async fn a_backlog_of_many_pages_is_registered_by_two_reapers() {
    let config = format!("{SOON}batch = 7\n");
    let world = World::with(&config).await;
    let c = world.connect().await;
    let client = world.plain().await;
    for n in 0..400 {
        let body = r#"{"type":"noop"}"#;
        client.publish(format!("surety.jobs.default.j{n}"), body.into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let _reapers = [world.reaper(&[]), world.reaper(&[])];
    wait("all to be known", async || c.store.n_open().await.unwrap() == 400).await;
    // Workers take them, registered or not, and each once.
    let _worker = world.worker(&[], &[]);
    world.drained(&c).await;
    wait("all to have ended", async || c.store.n_open().await.unwrap() == 0).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    for n in 0..400 {
        assert_eq!(h.count(&format!("j{n}"), "finished"), 1);
    }
}

// Shows: D-08, P7
#[tokio::test]
async fn a_partition_that_is_lost_by_itself_gets_its_waiting_jobs_back() {
    let world = World::with(&format!("{SOON}[layout]\npartitions = 2\n")).await;
    let c = world.connect().await;
    let job = |p| super::cluster::of_partition(&c, p, "w").to_string();
    let both = [job(0), job(1)];
    let _reaper = world.reaper(&[]);
    for id in &both {
        world.publish("default", id, r#"{"type":"noop"}"#).await;
        world.status(&c, id, Status::Queued).await;
    }
    // No worker is there, so nobody else makes them known again; and registering writes nothing to the journal.
    let mut redis = world.redis.plain(0).await;
    let of_second: Vec<String> =
        redis::cmd("KEYS").arg("surety:{p01}:*").query_async(&mut redis).await.unwrap();
    let _: u64 = redis::cmd("DEL").arg(of_second).query_async(&mut redis).await.unwrap();
    for id in &both {
        world.status(&c, id, Status::Queued).await;
    }
}
