//! Workers that are killed, frozen, cut off or restarted, with live process trees.

use std::time::{Duration, Instant};

use futures::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use surety_common::{
    connect::Connected,
    domain::{Status, ids::SessionId},
    store::{FinishItem, FinishReply, Verdict},
};
use surety_tests::{
    process::Process,
    proxy::Proxy,
    witness::{QUICK, Witness, alive, id, keeper_of, ms, settled, stat},
    world::{World, wait},
};

/// A tree in its first epoch: the main process and a grandchild in a session of its own that ignores TERM. Later epochs end
/// at once.
const TREE: &str = "if [ $SURETY_ATTEMPT -eq 1 ]; then child 'exec sleep 60'; exec sleep 60; fi";

/// TTL 2 s, two ticks of 100 ms, and what a loaded machine takes for a start.
const NEXT_WITHIN: Duration = Duration::from_millis(2000 + 200 + 1800);

async fn with_tree() -> (World, Connected, Witness) {
    let witness = Witness::default();
    let world = World::with(&witness.handler("tree", TREE)).await;
    let c = world.connect().await;
    (world, c, witness)
}

/// A worker with a state folder of its own, and this Redis.
fn worker(w: &World, name: &str, more: &[&str]) -> Process {
    w.worker(&[&["--state-dir", &w.path(name)], more].concat(), &[])
}

async fn ready(mut p: Process) -> Process {
    p.logged("worker ready").await;
    p
}

fn kill9(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// The second attempt came in time, after the first tree was dead, and ended the job.
async fn taken_over(world: &World, c: &Connected, witness: &Witness, since: Instant) {
    wait("the second attempt", async || witness.executions("a") == 2).await;
    assert!(since.elapsed() < NEXT_WITHIN, "the next attempt came after {:?}", since.elapsed());
    let ended = world.ended(c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1));
    witness.no_overlap();
    assert!(!witness.lives("a"), "{}", witness.text());
    settled(world, c).await;
    let h = world.history(c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "lost"), h.count("a", "finished")), (1, 1));
}

// Shows: H-05, P4, P5, V-05
#[tokio::test]
async fn a_killed_worker_leaves_no_process_and_the_next_attempt_starts_in_time() {
    let (world, c, witness) = with_tree().await;
    let _reaper = world.reaper(&[]);
    let mut first = worker(&world, "one", &[]);
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 2).await;
    let _second = ready(worker(&world, "two", &[])).await;
    let since = Instant::now();
    first.kill9().await;
    // The keeper sees the end of its pipe; nobody waits for the lease.
    witness.dead("a", 1).await;
    assert!(since.elapsed() < Duration::from_millis(1500), "dead after {:?}", since.elapsed());
    taken_over(&world, &c, &witness, since).await;
}

// Shows: H-06, P4, P5, T-03
#[tokio::test]
async fn a_frozen_worker_loses_its_processes_before_its_job() {
    let (world, c, witness) = with_tree().await;
    let _reaper = world.reaper(&[]);
    let mut first = worker(&world, "one", &[]);
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 2).await;
    let second = ready(worker(&world, "two", &[])).await;
    let since = Instant::now();
    first.freeze();
    taken_over(&world, &c, &witness, since).await;
    let h = world.history(&c).await;
    let lost = h.jobs["a"].events.iter().find(|e| e.kind == "lost").unwrap();
    assert_eq!(lost.data["error_code"], "lost");
    // Thawed, it has nothing to say about that job, and works on under a new session.
    drop(second);
    first.thaw();
    first.logged("session lost").await;
    wait("a new session", async || first.log().matches("session opened").count() == 2).await;
    world.publish("default", "b", r#"{"type":"noop"}"#).await;
    assert_eq!(world.ended(&c, "b").await.status, Status::Done);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "finished"), 1);
    assert_eq!(first.stop().await, Some(0));
}

// Shows: H-09, P5
#[tokio::test]
async fn a_worker_cut_off_from_redis_stops_its_run_before_another_starts_it() {
    let (world, c, witness) = with_tree().await;
    let _reaper = world.reaper(&[]);
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let mut first = worker(&world, "one", &["--redis", &url]);
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 2).await;
    let _second = ready(worker(&world, "two", &[])).await;
    let since = Instant::now();
    proxy.hold();
    taken_over(&world, &c, &witness, since).await;
    proxy.heal();
    wait("a new session", async || first.log().matches("session opened").count() == 2).await;
    assert_eq!(first.stop().await, Some(0));
    world.history(&c).await.check().unwrap();
}

// Shows: X-03, T-03
#[tokio::test]
async fn the_late_result_of_a_cut_off_worker_is_refused() {
    let witness = Witness::default();
    let body = "if [ $SURETY_ATTEMPT -eq 1 ]; then until [ -e $W.go ]; do sleep 0.02; done; echo first
        else until [ -e $W.on ]; do sleep 0.02; done; echo second; fi";
    let world = World::with(&witness.handler("slow", body)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    let mut first = worker(&world, "one", &["--redis", &url]);
    world.publish("default", "a", r#"{"type":"slow"}"#).await;
    witness.started("a", 1).await;
    let old = world.status(&c, "a", Status::Running).await;
    let _second = ready(worker(&world, "two", &[])).await;
    // The first worker has a result, and its finish is on its way when the lease ends.
    proxy.hold();
    witness.touch("go");
    witness.dead("a", 1).await;
    wait("the second attempt", async || witness.executions("a") == 2).await;
    proxy.heal();
    wait("a new session", async || first.log().matches("session opened").count() == 2).await;
    let running = c.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((running.status, running.epoch), (Status::Running, old.epoch + 1));
    // The same by hand, as the most stubborn worker would: the old session with the old epoch.
    let item = FinishItem {
        id: id("a"),
        epoch: old.epoch,
        verdict: Verdict::Done,
        receipt: "{".into(),
        data: "{".into(),
        detail: String::new(),
    };
    let session = SessionId::new(&old.session).unwrap();
    let late = c.store.finish(0, &session, &[item]).await.unwrap();
    assert_eq!(late.results, [FinishReply::Fenced { status: Status::Running, epoch: old.epoch + 1 }]);
    assert!(late.entries.is_empty());
    witness.touch("on");
    world.ended(&c, "a").await;
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.jobs["a"].events.last().unwrap().data["receipt"]["result"], "second");
    assert_eq!(first.stop().await, Some(0));
}

// Shows: J-06, P-01, P-02, D-05, P4
#[tokio::test]
async fn a_restarted_worker_kills_what_it_left_and_tells_the_store_before_it_claims() {
    let (world, c, witness) = with_tree().await;
    let mut first = worker(&world, "one", &[]);
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 2).await;
    // Keeper and worker at one stroke: nobody is left to kill the tree.
    let keeper = keeper_of(first.pid()).await;
    first.freeze();
    kill9(keeper);
    wait("the keeper's end", async || !alive(keeper)).await;
    first.kill9().await;
    assert!(witness.lives("a"), "an orphan is what this test is about");
    let running = world.status(&c, "a", Status::Running).await;

    // There is no reaper, and the lease of the dead session has not ended.
    let second = ready(worker(&world, "one", &[])).await;
    witness.dead("a", 1).await;
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.epoch, ended.charged), (Status::Done, running.epoch + 1, 1));
    witness.no_overlap();
    let log = second.log();
    let at = |text: &str| log.find(text).unwrap_or_else(|| panic!("{text:?} is not in\n{log}"));
    assert!(at("left over from a dead worker") < at("earlier session reconciled"));
    assert!(at("earlier session reconciled") < at("session opened"));
    assert!(at("session opened") < at("worker ready"));
    let folders = std::fs::read_dir(world.path("one")).unwrap().count();
    assert_eq!(folders, 1, "only the folder of the live session is left");
    // For what the dead worker published and could not trim any more.
    let _reaper = world.reaper(&[]);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
}

// Shows: P-06, P4, T-04
#[tokio::test]
async fn a_killed_keeper_costs_the_attempt_and_is_replaced() {
    let (world, c, witness) = with_tree().await;
    let mut one = worker(&world, "one", &[]);
    world.publish("default", "a", r#"{"type":"tree","retry":{"backoff":["50ms"]}}"#).await;
    witness.started("a", 2).await;
    let keeper = keeper_of(one.pid()).await;
    let since = Instant::now();
    kill9(keeper);
    let ended = world.ended(&c, "a").await;
    assert!(
        since.elapsed() < Duration::from_secs(3),
        "noticed at once, not after a lease: {:?}",
        since.elapsed()
    );
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1));
    witness.no_overlap();
    assert!(!witness.lives("a"));
    assert_ne!(keeper_of(one.pid()).await, keeper);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let failed = h.jobs["a"].events.iter().find(|e| e.kind == "attempt_failed").unwrap();
    assert_eq!(failed.data["error_code"], "signal");
    assert!(failed.data["message"].as_str().unwrap().contains("keeper"), "{}", failed.data);
    assert_eq!(one.stop().await, Some(0));
}

// Shows: P-04
#[tokio::test]
async fn child_and_grandchild_have_the_group_of_the_run() {
    let witness = Witness::default();
    let body = "sh -c 'echo \"start $SURETY_JOB_ID $SURETY_EPOCH $$\" >> '$W'; sleep 60; true'";
    let world = World::with(&witness.handler("nest", body)).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    world
        .publish("default", "a", r#"{"type":"nest","retry":{"max_retries":0},"contract":{"timeout":"1s"}}"#)
        .await;
    let found = witness.started("a", 2).await;
    let group = |pid: i32| stat(pid).unwrap()[2].clone();
    assert_eq!(group(found[0].pid), found[0].pid.to_string(), "the run leads a group of its own");
    assert_eq!(group(found[1].pid), found[0].pid.to_string());
    assert_eq!(world.ended(&c, "a").await.status, Status::TimedOut);
    assert!(!witness.lives("a"));
    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}

// Shows: J-05, H-08
#[tokio::test]
async fn a_redelivery_of_a_live_run_starts_nothing() {
    let witness = Witness::default();
    let world =
        World::with(&(witness.handler("long", "until [ -e $W.go ]; do sleep 0.02; done") + QUICK)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let proxy = Proxy::start(([127, 0, 0, 1], world.nats.port()).into()).await.unwrap();
    let url = format!("nats://{}", proxy.addr());
    let mut first = worker(&world, "one", &["--nats", &url]);
    world.publish("default", "a", r#"{"type":"long"}"#).await;
    witness.started("a", 1).await;
    // It cannot extend, so the ack-wait ends while it runs and renews.
    proxy.hold();
    let mut second = ready(worker(&world, "two", &[])).await;
    let redelivered = async || {
        let js = async_nats::jetstream::new(world.plain().await);
        let consumer: async_nats::jetstream::consumer::PullConsumer =
            js.get_consumer_from_stream("default", "SURETY_JOBS").await.unwrap();
        consumer.get_info().await.unwrap().delivered.consumer_sequence >= 2
    };
    wait("a redelivery to the second worker", redelivered).await;
    let record = c.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((record.status, record.attempt), (Status::Running, 1));
    assert_eq!(second.stop().await, Some(0));
    proxy.heal();
    witness.touch("go");
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    assert_eq!(witness.executions("a"), 1, "{}", witness.text());
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "started"), 1);
    assert_eq!(first.stop().await, Some(0));
}

// Shows: J-05, H-08
#[tokio::test]
async fn a_redelivery_to_the_worker_that_runs_the_job_does_not_end_its_extension() {
    let witness = Witness::default();
    let world =
        World::with(&(witness.handler("long", "until [ -e $W.go ]; do sleep 0.02; done") + QUICK)).await;
    let c = world.connect().await;
    let mut only = worker(&world, "one", &[]);
    let plain = world.plain().await;
    let mut acks = plain.subscribe("$JS.ACK.SURETY_JOBS.default.>").await.unwrap();
    world.publish("default", "a", r#"{"type":"long"}"#).await;
    witness.started("a", 1).await;
    let beat =
        tokio::time::timeout(Duration::from_secs(10), acks.next()).await.expect("an extension").unwrap();
    assert_eq!(&beat.payload[..], b"+WPI");
    let deliveries = async || {
        let js = async_nats::jetstream::new(world.plain().await);
        let consumer: async_nats::jetstream::consumer::PullConsumer =
            js.get_consumer_from_stream("default", "SURETY_JOBS").await.unwrap();
        consumer.get_info().await.unwrap().delivered.consumer_sequence
    };
    // Whoever has an ack subject may give the message back: it comes at once to the worker that has it in hand.
    for n in 2..=4 {
        plain.publish(beat.subject.clone(), "-NAK".into()).await.unwrap();
        wait("a redelivery", async || deliveries().await == n).await;
    }
    // Extended under its newest name for longer than the ack-wait: it is not offered again.
    let mut extended = 0;
    while extended < 3 {
        let m = tokio::time::timeout(Duration::from_secs(10), acks.next())
            .await
            .expect("extensions go on")
            .unwrap();
        let delivered = m.subject.split('.').nth(4).unwrap();
        extended += usize::from(&m.payload[..] == b"+WPI" && delivered == "4");
    }
    assert_eq!(deliveries().await, 4);
    witness.touch("go");
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    assert_eq!(witness.executions("a"), 1, "{}", witness.text());
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(only.stop().await, Some(0));
}

/// Makes `clock_gettime(CLOCK_REALTIME)` wrong by `SKEW` seconds; other clocks stay.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
  int r = syscall(SYS_clock_gettime, id, t);
  const char *skew = getenv("SKEW");
  if (r == 0 && id == CLOCK_REALTIME && skew) t->tv_sec += atol(skew);
  return r;
}
"#;

// Shows: X-01
#[tokio::test]
async fn clocks_that_are_wrong_by_ten_minutes_change_nothing() {
    let witness = Witness::default();
    let handlers =
        witness.handler("long", "sleep 3") + &witness.handler("flaky", "[ $SURETY_ATTEMPT -gt 2 ] || exit 1");
    let world = World::with(&handlers).await;
    let c = world.connect().await;
    let (source, shim) = (world.path("skew.c"), world.path("skew.so"));
    std::fs::write(&source, SHIM).unwrap();
    let built = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o", &shim, &source]).status();
    assert!(built.unwrap().success(), "a C compiler links Rust programs, so it is there");
    let skewed = |s: &'static str| [("LD_PRELOAD", shim.clone()), ("SKEW", s.to_owned())];
    let env = |e: &[(&'static str, String); 2]| e.clone();
    let (ahead, behind) = (env(&skewed("600")), env(&skewed("-600")));
    let refs = |e: &[(&'static str, String); 2]| e.iter().map(|(k, v)| (*k, v.clone())).collect::<Vec<_>>();
    let start = |name: &str, e: &[(&'static str, String); 2]| {
        let e = refs(e);
        let e: Vec<(&str, &str)> = e.iter().map(|(k, v)| (*k, v.as_str())).collect();
        world.worker(&["--state-dir", &world.path(name), "--slots", "3"], &e)
    };
    let (mut one, mut two) = (start("one", &ahead), start("two", &behind));
    let reaper_env = refs(&ahead);
    let reaper_env: Vec<(&str, &str)> = reaper_env.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut reaper = world.reaper(&reaper_env);
    for i in 0..3 {
        world.publish("default", &format!("long-{i}"), r#"{"type":"long"}"#).await;
        world
            .publish("default", &format!("flaky-{i}"), r#"{"type":"flaky","retry":{"backoff":["700ms"]}}"#)
            .await;
    }
    let mut sessions = std::collections::BTreeSet::new();
    for i in 0..3 {
        assert_eq!(world.ended(&c, &format!("long-{i}")).await.status, Status::Done);
        assert_eq!(world.ended(&c, &format!("flaky-{i}")).await.status, Status::Done);
    }
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let now = i64::try_from(c.store.now_ms().await.unwrap()).unwrap();
    for (job, j) in &h.jobs {
        assert_eq!(h.count(job, "lost"), 0, "no false loss");
        for pair in j.events.windows(2) {
            if pair[0].kind == "attempt_failed" {
                let waited = ms(&pair[1].at) - ms(&pair[0].at);
                assert!((700..3000).contains(&waited), "{job} was retried after {waited} ms");
            }
        }
        for e in &j.events {
            assert!((now - 60_000..=now).contains(&ms(&e.at)), "{job}: {} at {}", e.kind, e.at);
            if e.kind == "started" {
                sessions.insert(e.session.clone());
            }
        }
    }
    assert_eq!(sessions.len(), 2, "both workers had jobs");
    for session in sessions.iter().flatten() {
        // The one wall-clock time that a worker writes, for people: it proves that the clocks were wrong.
        let info = c.store.session_info(0, &SessionId::new(session).unwrap()).await.unwrap().unwrap();
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert!(
            (now - ms(info["started_at"].as_str().unwrap())).abs() > 500_000,
            "the clock of {info} was right"
        );
    }
    assert_eq!((one.stop().await, two.stop().await, reaper.stop().await), (Some(0), Some(0), Some(0)));
}

// Shows: D-07, V-05, P1, P4, P5
#[tokio::test]
async fn workers_killed_at_random_leave_nothing_running_and_lose_nothing() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("work", "sleep 0.3") + QUICK)).await;
    let c = world.connect().await;
    let _reapers = [world.reaper(&[]), world.reaper(&[])];
    let mut workers: Vec<Process> = Vec::new();
    for i in 0..3 {
        workers.push(worker(&world, &format!("w{i}"), &["--slots", "3"]));
    }
    let ids: Vec<String> = (0..60).map(|i| format!("j{i}")).collect();
    for id in &ids {
        let body = r#"{"type":"work","retry":{"max_retries":20,"backoff":["20ms"]}}"#;
        world.publish("default", id, body).await;
    }
    // A fixed order of victims and pauses, seeded by nothing but the round.
    for round in 0..8_usize {
        let claimed = witness.starts().len();
        wait("progress before the next kill", async || witness.starts().len() >= claimed + 3).await;
        let i = (round * 7 + 3) % 3;
        workers[i].kill9().await;
        // One in two comes back with its own folder, the other as a stranger.
        let name = if round % 2 == 0 { format!("w{i}") } else { format!("w{i}-{round}") };
        workers[i] = worker(&world, &name, &["--slots", "3"]);
    }
    for id in &ids {
        assert_eq!(world.ended(&c, id).await.status, Status::Done, "{id}");
    }
    settled(&world, &c).await;
    witness.no_overlap();
    for s in witness.starts() {
        assert!(!alive(s.pid), "{s:?} is still there");
    }
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.jobs.len(), ids.len());
    let lost: usize = ids.iter().map(|id| h.count(id, "lost")).sum();
    assert!(lost > 0, "no kill hit a running job: the test shows nothing");
}
