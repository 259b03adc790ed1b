//! Limits of the whole fleet, end to end: what many workers together let start, what a restart of everything keeps, and that a
//! slot comes back on whatever way its attempt ends.

use std::{collections::BTreeSet, time::Duration};

use surety_common::{
    cancel::{Wish, cancel},
    connect::Connected,
    domain::{Status, guard::GuardKind},
    store::{GuardAct, GuardItem, GuardOutcome, GuardReply, Record, Scope},
};
use surety_tests::{
    witness::{QUICK, Witness, id, kinds, settled, wait_logged},
    world::{World, wait},
};
use surety_worker::{JobContext, Running, Worker};

/// Runs until `$W.go-<job>` is there.
const GATED: &str = "until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done";

/// A worker in this process, whose jobs are done at once.
async fn quick_worker(world: &World, name: &str) -> Running {
    let mut settings = world.settings();
    settings.worker.state_dir = world.path(name);
    let done = |_: JobContext| async { Ok(serde_json::Value::Null) };
    Worker::builder(settings).handler("quick", done).start().await.unwrap()
}

async fn stop(worker: Running) {
    worker.stop(std::future::pending()).await;
}

async fn records(c: &Connected, ids: &[String]) -> Vec<Option<Record>> {
    let ids: Vec<_> = ids.iter().map(|i| id(i)).collect();
    c.store.records_of(&ids).await.unwrap().into_iter().map(surety_common::store::Read::record).collect()
}

/// Waits until each of them has ended or is deferred; gives those that were let in.
async fn judged(world: &World, c: &Connected, ids: &[String]) -> BTreeSet<String> {
    wait_logged(world, "every job to be judged", async || {
        let is_judged = |r: &Option<Record>| {
            r.as_ref().is_some_and(|r| r.status == Status::Done || r.status == Status::Deferred)
        };
        records(c, ids).await.iter().all(is_judged)
    })
    .await;
    let all = ids.iter().zip(records(c, ids).await);
    all.filter(|(_, r)| r.as_ref().is_some_and(|r| r.status == Status::Done))
        .map(|(i, _)| i.clone())
        .collect()
}

pub(super) async fn deliveries(world: &World) -> u64 {
    let js = async_nats::jetstream::new(world.plain().await);
    let stream = js.get_stream("SURETY_JOBS").await.unwrap();
    stream.consumer_info("default").await.unwrap().delivered.consumer_sequence
}

/// Publishes quick jobs on one connection.
async fn publish_all(world: &World, jobs: &[String]) {
    let js = async_nats::jetstream::new(world.plain().await);
    let mut acks = Vec::new();
    for job in jobs {
        let mut h = async_nats::HeaderMap::new();
        h.insert("Nats-Msg-Id", job.as_str());
        let subject = format!("surety.jobs.default.{job}");
        acks.push(js.publish_with_headers(subject, h, r#"{"type":"quick"}"#.into()).await.unwrap());
    }
    for ack in acks {
        ack.await.unwrap();
    }
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("j{n:03}")).collect()
}

/// So many in a day: no slot comes free while a test runs.
const HUNDRED: &str = "[guards.rate.api]\nscope = \"{type}\"\nlimit = 100\nper = \"24h\"\n";

// Shows: S-01, S-04, S-05, A-07
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_workers_let_a_hundred_of_three_hundred_in_and_a_restart_of_everything_forgets_none() {
    let mut world = World::with(HUNDRED).await;
    let c = world.connect().await;
    let mut workers = Vec::new();
    for n in 0..10 {
        workers.push(quick_worker(&world, &format!("s{n}")).await);
    }
    let jobs = names(300);
    publish_all(&world, &jobs).await;
    assert_eq!(judged(&world, &c, &jobs).await.len(), 100);
    assert_eq!(deliveries(&world).await, 300, "nobody polls");
    let mut slots = Vec::new();
    for r in records(&c, &jobs).await.into_iter().flatten().filter(|r| r.status == Status::Deferred) {
        assert_eq!(
            (r.code.as_str(), r.attempt, r.epoch, r.charged),
            ("rate_limited", 0, 0, 0),
            "what is deferred is not counted"
        );
        slots.push(r.due_ms);
    }
    // Each has a slot of its own, a hundredth of a day after the other.
    slots.sort_unstable();
    for pair in slots.windows(2) {
        assert!((pair[1] - pair[0]).abs_diff(864_000) <= 1, "{pair:?}");
    }
    for w in workers {
        stop(w).await;
    }
    world.redis.kill9().await.unwrap();
    world.nats.kill9().await.unwrap();
    world.redis.restart().await.unwrap();
    world.nats.restart().await.unwrap();
    let c = world.connect().await;
    let again = quick_worker(&world, "again").await;
    let mut reaper = world.reaper(&[]);
    world.publish("default", "next", r#"{"type":"quick"}"#).await;
    let next = world.until(&c, "next", |r| r.status == Status::Deferred || r.started_ms > 0).await;
    assert_eq!((next.status, next.code.as_str()), (Status::Deferred, "rate_limited"), "{next:?}");
    assert!(next.due_ms.abs_diff(slots[199] + 864_000) <= 1, "the window goes on where it was");
    assert_eq!(judged(&world, &c, &jobs).await.len(), 100);
    stop(again).await;
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-05
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_backlog_flows_at_its_rate_with_one_more_delivery_each() {
    let rule = "[guards.rate.api]\nscope = \"{type}\"\nlimit = 10\nper = \"1s\"\nburst = 4\n";
    let world = World::with(rule).await;
    let c = world.connect().await;
    let jobs = names(24);
    publish_all(&world, &jobs).await;
    let workers = [quick_worker(&world, "s1").await, quick_worker(&world, "s2").await];
    let mut starts = Vec::new();
    for j in &jobs {
        let r = world.ended(&c, j).await;
        assert_eq!((r.status, r.attempt), (Status::Done, 1));
        starts.push(r.started_ms);
    }
    starts.sort_unstable();
    // Any row of n + 4 starts takes at least n intervals. (A claim comes a little after it was let in, by some more than by others.)
    for (n, s) in starts.iter().enumerate().skip(4) {
        let at_least = (n as u64 - 4 + 1) * 100;
        assert!(s - starts[0] + 50 >= at_least, "start {n} after {} ms", s - starts[0]);
    }
    settled(&world, &c).await;
    assert!(deliveries(&world).await <= 24 + 20, "{} deliveries", deliveries(&world).await);
    let h = world.history(&c).await;
    h.check().unwrap();
    for j in &jobs {
        assert!(h.count(j, "deferred") <= 1, "{j}");
    }
    for w in workers {
        stop(w).await;
    }
}

// Shows: J-02
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_backlog_is_let_in_the_same_way_again() {
    let rule = "[guards.rate.api]\nscope = \"{type}\"\nlimit = 10\nper = \"24h\"\n";
    let jobs = names(40);
    let mut sets = Vec::new();
    for _ in 0..2 {
        let world = World::with(rule).await;
        let c = world.connect().await;
        publish_all(&world, &jobs).await;
        let worker = quick_worker(&world, "s").await;
        sets.push(judged(&world, &c, &jobs).await);
        stop(worker).await;
    }
    assert_eq!(sets[0], sets[1]);
    assert_eq!(sets[0], jobs[..10].iter().cloned().collect::<BTreeSet<_>>(), "the first ten");
}

fn one(value: &str, offer_ms: u64) -> Scope {
    Scope::new(GuardKind::Concurrency, "one", value, [1, offer_ms, 0, 0])
}

/// The line of a scope is asked for by hand: the test itself holds its slot. Gives the token.
async fn hold(c: &Connected, scope: &Scope) -> String {
    let p = scope.partition(c.store.keys().partitions());
    let act = GuardAct::Ask { arrival_ms: 1, ack_subject: "".into(), work: "".into(), keeps: false };
    let ask = GuardItem { act, member: "test/1".into(), scopes: vec![0].into() };
    let answer = c.store.guard(p, None, 600_000, std::slice::from_ref(scope), &[ask]).await.unwrap();
    assert_eq!(answer.replies, [GuardReply::Passes(vec![1])]);
    answer.token
}

/// Frees it, and wakes nobody, as a worker does that dies right after.
async fn free_and_die(c: &Connected, scope: &Scope, token: String) {
    let p = scope.partition(c.store.keys().partitions());
    let act = GuardAct::Release { token: token.into(), until_ms: None, outcome: GuardOutcome::WentWell };
    let release = GuardItem { act, member: "test/1".into(), scopes: vec![0].into() };
    let answer = c.store.guard(p, None, 600_000, std::slice::from_ref(scope), &[release]).await.unwrap();
    assert_eq!(answer.woken.len(), 1, "{answer:?}");
}

async fn in_use(c: &Connected, scope: &Scope) -> u64 {
    let p = scope.partition(c.store.keys().partitions());
    c.store.scope_state(p, &scope.hash).await.unwrap().map_or(0, |s| s.held)
}

async fn sleeper(c: &Connected, world: &World, scope: &Scope, job: &str) -> Option<String> {
    let [.., asleep] = c.store.keys().guard(scope.partition(c.store.keys().partitions()), &scope.hash);
    world.redis.hget(&asleep, &format!("{job}/1")).await
}

// Shows: S-05
#[tokio::test]
async fn a_waiter_whose_wake_was_lost_is_woken_again_and_a_cancelled_one_keeps_no_place() {
    let witness = Witness::default();
    let rule = "[guards]\noffer = \"2s\"\n[guards.concurrency.one]\nscope = \"{key}\"\nlimit = 1\n";
    let world = World::with(&(witness.handler("work", "true") + rule)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    let scope = one("k", 2000);
    let token = hold(&c, &scope).await;
    for name in ["a", "gone", "b"] {
        world.publish("default", name, r#"{"type":"work","key":"k"}"#).await;
        world.status(&c, name, Status::Deferred).await;
    }
    // By now the first sleeps for a minute, and its worker has looked once more whether its turn came.
    let gone = id("gone");
    let wish = Wish { id: &gone, reason: None, queue: None, wait: Duration::from_secs(20) };
    cancel(&c, &wish).await.unwrap();
    let freed = c.store.now_ms().await.unwrap();
    free_and_die(&c, &scope, token).await;
    let a = world.ended(&c, "a").await;
    assert!(a.started_ms - freed < 2000, "it started {} ms after the slot came free", a.started_ms - freed);
    let b = world.ended(&c, "b").await;
    assert!(
        b.started_ms - a.ended_ms < 1500,
        "a cancelled job kept its place for {} ms",
        b.started_ms - a.ended_ms
    );
    assert_eq!(world.ended(&c, "gone").await.status, Status::Cancelled);
    settled(&world, &c).await;
    wait("the slot to be free", async || in_use(&c, &scope).await == 0).await;
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: A-07
#[tokio::test]
async fn twenty_deferrals_leave_the_whole_budget_of_retries() {
    let witness = Witness::default();
    let rule = "[guards.concurrency.one]\nscope = \"{key}\"\nlimit = 1\n";
    let world = World::with(&(witness.handler("work", "exit 1") + rule)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let scope = one("k", 5000);
    let token = hold(&c, &scope).await;
    let job = r#"{"type":"work","key":"k","retry":{"max_retries":2,"backoff":["50ms"]}}"#;
    world.publish("default", "a", job).await;
    let mut last = None;
    for _ in 0..20 {
        wait("the next delivery to stand in line", async || {
            let ack = sleeper(&c, &world, &scope, "a").await;
            ack.is_some() && ack != last
        })
        .await;
        world.status(&c, "a", Status::Deferred).await;
        last = sleeper(&c, &world, &scope, "a").await;
        // As often as it takes: the worker may not have given it back yet.
        let ack = last.clone().unwrap();
        let comes = async || sleeper(&c, &world, &scope, "a").await != last;
        loop {
            c.broker.nak(&ack, Duration::ZERO).await.unwrap();
            let next = wait("its next delivery", comes);
            if tokio::time::timeout(Duration::from_secs(2), next).await.is_ok() {
                break;
            }
        }
    }
    let r = world.status(&c, "a", Status::Deferred).await;
    assert_eq!((r.attempt, r.charged, r.epoch), (0, 0, 0));
    assert!(deliveries(&world).await > 20);
    let mut reaper = world.reaper(&[]);
    free_and_die(&c, &scope, token).await;
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Failed, 3, 3), "{ended:?}");
    let kinds = kinds(&world, &c, "a").await;
    assert_eq!(
        kinds.iter().filter(|k| *k == "deferred").count(),
        1,
        "one that waits on is one event: {kinds:?}"
    );
    assert_eq!(kinds.iter().filter(|k| *k == "started").count(), 3);
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

/// The defaults: what comes back by time alone does so after twenty seconds.
const SLOW: &str = r#"
[layout]
ack_wait = "60s"
[lease]
renewal = "2s"
ttl = "30s"
margin = "5s"
extend = "10s"
[worker]
drain = "500ms"
[handlers.nothing]
command = ["/nonexistent/handler"]
"#;

// Shows: S-07
#[tokio::test]
async fn a_slot_comes_back_on_every_ending() {
    let witness = Witness::default();
    let rule = "[guards.concurrency.one]\nscope = \"{key}\"\nlimit = 1\n[guards.rate.r]\nscope = \"{key}\"\nlimit = 50\n";
    let handlers = witness.handler("work", GATED)
        + &witness.handler("bad", "exit 65")
        + &witness.handler("again", "if [ $SURETY_ATTEMPT -eq 1 ]; then kill -9 $$; fi");
    let world = World::with(&(handlers + rule + SLOW)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let job = |kind: &str, more: &str| format!(r#"{{"type":"{kind}","key":"KEY"{more}}}"#);
    let cases = [
        ("done", job("work", ""), Status::Done),
        ("failed", job("bad", ""), Status::Failed),
        ("retried", job("again", r#","retry":{"backoff":["50ms"]}"#), Status::Done),
        (
            "late",
            job("work", r#","contract":{"timeout":"400ms"},"retry":{"max_retries":0}"#),
            Status::TimedOut,
        ),
        ("cancelled", job("work", ""), Status::Cancelled),
        ("nothing", job("nothing", ""), Status::Deferred),
        ("released", job("work", ""), Status::Queued),
    ];
    witness.touch("go-done");
    for (name, body, _) in &cases {
        world.publish("default", name, &body.replace("KEY", name)).await;
    }
    witness.started("cancelled", 1).await;
    let cancelled = id("cancelled");
    let wish = Wish { id: &cancelled, reason: None, queue: None, wait: Duration::from_secs(20) };
    cancel(&c, &wish).await.unwrap();
    for (name, _, status) in cases.iter().filter(|(name, ..)| *name != "released") {
        let r = match *name {
            "nothing" => world.until(&c, name, |r| r.start_failures > 2).await,
            _ => world.status(&c, name, *status).await,
        };
        let free = async || in_use(&c, &one(name, 5000)).await == 0;
        wait_logged(&world, &format!("the slot of {name}"), free).await;
        if *name != "nothing" {
            let took = c.store.now_ms().await.unwrap() - r.ended_ms;
            assert!(took < 15_000, "the slot of {name} came back by time alone, after {took} ms");
        }
    }
    // What is held goes on being held beyond its time, as the session is renewed; a shutdown gives it back before the worker ends.
    witness.started("released", 1).await;
    assert_eq!(in_use(&c, &one("released", 5000)).await, 1);
    assert_eq!(worker.stop().await, Some(0), "{}", worker.log());
    assert_eq!(world.status(&c, "released", Status::Queued).await.charged, 0);
    assert_eq!(in_use(&c, &one("released", 5000)).await, 0, "the worker ended with a slot in its hand");
    assert!(!worker.log().contains("a lane did not take"), "{}", worker.log());
}

// Shows: S-07
#[tokio::test]
async fn a_slot_comes_back_from_a_worker_that_was_frozen_and_is_kept_for_one_that_lives() {
    let witness = Witness::default();
    let rule = "[guards.concurrency.one]\nscope = \"{key}\"\nlimit = 1\n";
    let world = World::with(&(witness.handler("work", GATED) + rule + QUICK)).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let mut first = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"work","key":"k","retry":{"max_retries":0}}"#).await;
    world.publish("default", "live", r#"{"type":"work","key":"live"}"#).await;
    witness.started("a", 1).await;
    witness.started("live", 1).await;
    let r = world.status(&c, "live", Status::Running).await;
    // It runs, and is delivered again, to a worker that does not know of it: nothing of it comes free.
    let mut second = world.worker(&["--state-dir", &world.path("s2")], &[]);
    second.logged("worker ready").await;
    c.broker.nak_recorded("default", &r.carrier, &r.ack_subject, Duration::ZERO).await.unwrap();
    world.publish("default", "b", r#"{"type":"work","key":"k"}"#).await;
    world.status(&c, "b", Status::Deferred).await;
    let begun = c.store.now_ms().await.unwrap();
    wait("more than the time of a hold to pass", async || {
        assert_eq!(in_use(&c, &one("live", 5000)).await, 1, "a running attempt lost its slot");
        c.store.now_ms().await.unwrap() > begun + 3000
    })
    .await;
    assert!(witness.of("b").is_empty(), "two of one key ran at once");
    // Its session ends while it is frozen, and its attempt is fenced when it wakes.
    first.freeze();
    let lost = world.ended(&c, "a").await;
    assert_eq!((lost.status, lost.code.as_str()), (Status::Failed, "attempts_exhausted"));
    let b = world.until(&c, "b", |r| r.started_ms > 0).await;
    assert!(b.started_ms.saturating_sub(lost.ended_ms) < 3000, "{} ms", b.started_ms - lost.ended_ms);
    first.thaw();
    first.logged("session lost").await;
    // The fenced attempt gives back what it had: not what is somebody else's by now.
    first.logged_within("session opened", Duration::from_secs(20)).await;
    assert_eq!(in_use(&c, &one("k", 5000)).await, 1);
    for name in ["b", "live"] {
        witness.touch(&format!("go-{name}"));
        world.ended(&c, name).await;
    }
    settled(&world, &c).await;
    for key in ["k", "live"] {
        wait("the slot to be free", async || in_use(&c, &one(key, 5000)).await == 0).await;
    }
    assert_eq!(first.stop().await, Some(0));
    assert_eq!(second.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-05, S-07
#[tokio::test]
async fn guards_of_several_partitions_are_given_all_or_none() {
    let witness = Witness::default();
    // The rate limit is in a partition that is asked first, so that it has to be given back.
    let rate = |value: &str| Scope::new(GuardKind::Rate, "r", value, [1, 1, 0, 0]);
    let key =
        (0..200).map(|n| format!("k{n}")).find(|k| rate(k).partition(3) < one(k, 5000).partition(3)).unwrap();
    let rules = "[layout]\npartitions = 3\n[guards.concurrency.one]\nscope = \"{key}\"\nlimit = 1\n\
                 [guards.rate.r]\nscope = \"{key}\"\nlimit = 2\nper = \"24h\"\n";
    let world = World::with(&(witness.handler("work", GATED) + rules)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    let body = format!(r#"{{"type":"work","key":"{key}"}}"#);
    for name in ["a", "b", "c"] {
        world.publish("default", name, &body).await;
        match name {
            "a" => drop(witness.started("a", 1).await),
            _ => assert_eq!(world.status(&c, name, Status::Deferred).await.code, "concurrency", "{name}"),
        }
    }
    // Both were asked, and only one refused them: a start is left for one of them, and none for the other.
    witness.touch("go-a");
    witness.started("b", 1).await;
    witness.touch("go-b");
    let c3 = world.until(&c, "c", |r| r.code == "rate_limited" || r.started_ms > 0).await;
    assert_eq!((c3.status, c3.started_ms), (Status::Deferred, 0));
    world.ended(&c, "b").await;
    wait("the slot to be free", async || in_use(&c, &one(&key, 5000)).await == 0).await;
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: S-07, P6
#[tokio::test]
async fn what_an_attempt_holds_is_held_again_after_a_loss_of_redis_before_anything_starts() {
    let witness = Witness::default();
    let rule = "[guards]\nfallback = \"500ms\"\n[guards.concurrency.one]\nscope = \"{key}\"\nlimit = 1\n";
    let world = World::with(&(witness.handler("work", GATED) + rule)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    let scope = one("k", 5000);
    world.publish("default", "a", r#"{"type":"work","key":"k"}"#).await;
    witness.started("a", 1).await;
    world.publish("default", "b", r#"{"type":"work","key":"k"}"#).await;
    world.status(&c, "b", Status::Deferred).await;
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    () = redis::cmd("FLUSHALL").query_async(&mut plain).await.unwrap();
    reaper.logged("redis is whole again").await;
    wait_logged(&world, "the next one to stand in line again", async || {
        sleeper(&c, &world, &scope, "b").await.is_some()
    })
    .await;
    assert_eq!(in_use(&c, &scope).await, 1, "{}", world.logs());
    assert!(witness.of("b").is_empty(), "two of one key ran at once");
    witness.touch("go-a");
    let a = world.ended(&c, "a").await;
    assert_eq!((a.status, witness.executions("a")), (Status::Done, 1));
    witness.touch("go-b");
    world.ended(&c, "b").await;
    wait("the slot to be free", async || in_use(&c, &scope).await == 0).await;
    assert_eq!(worker.stop().await, Some(0));
    assert_eq!(reaper.stop().await, Some(0));
}
