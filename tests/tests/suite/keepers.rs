//! Keepers that are killed, frozen or hang, alone or with their workers; and attempts that nobody stops in time.

use std::{
    os::unix::fs::PermissionsExt,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    process::Process,
    proxy::Proxy,
    scrape::{Scrape, address},
    witness::{Witness, alive, keeper_of, settled, wait_logged},
    world::{World, wait},
};

use super::metrics::LISTEN;

/// A tree in its first epoch: the main process and a grandchild in a session of its own that ignores TERM. Later epochs end
/// at once.
const TREE: &str = "if [ $SURETY_ATTEMPT -eq 1 ]; then child 'exec sleep 60'; exec sleep 60; fi";

/// How long a keeper may be silent here, how long it takes to see, and what a loaded machine takes for the rest.
const FOUND_WITHIN: Duration = Duration::from_millis(2000 + 1000 + 3000);

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn worker(w: &World, name: &str, more: &[&str], env: &[(&str, &str)]) -> Process {
    w.worker(&[&["--state-dir", &w.path(name)], more].concat(), env)
}

/// The job ended in its second attempt, which began when nothing of the first was left.
async fn once_more(world: &World, c: &Connected, witness: &Witness, job: &str) {
    let ended = world.ended(c, job).await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1), "{}", world.logs());
    witness.no_overlap();
    assert!(!witness.lives(job), "{}", witness.text());
    settled(world, c).await;
    let h = world.history(c).await;
    h.check().unwrap();
    assert_eq!(h.count(job, "finished"), 1);
}

// Shows: P4, P5, T-01
#[tokio::test]
async fn a_keeper_that_is_frozen_alone_is_found_out_and_its_trees_are_killed() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("tree", TREE)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut one = worker(&world, "one", &[], &[LISTEN]);
    let at = address(&mut one).await;
    // The keeper would end the first at its time limit, and never the second: frozen, it does neither.
    let retry = r#""retry":{"backoff":["50ms"]}"#;
    world
        .publish("default", "short", &format!(r#"{{"type":"tree",{retry},"contract":{{"timeout":"1s"}}}}"#))
        .await;
    world.publish("default", "long", &format!(r#"{{"type":"tree",{retry}}}"#)).await;
    witness.started("short", 2).await;
    witness.started("long", 2).await;
    let keeper = keeper_of(one.pid()).await;
    let since = Instant::now();
    signal(keeper, Signal::STOP);
    for job in ["short", "long"] {
        witness.dead(job, 1).await;
        assert!(since.elapsed() < FOUND_WITHIN, "{job} was dead after {:?}", since.elapsed());
    }
    assert!(!alive(keeper));
    for job in ["short", "long"] {
        once_more(&world, &c, &witness, job).await;
    }
    assert_ne!(keeper_of(one.pid()).await, keeper);
    let s = Scrape::of(at).await;
    assert_eq!(s.sum("surety_alerts_total", &[("alert", "keeper_hangs")]), Some(1.0));
    assert_eq!(s.sum("surety_sessions_lost_total", &[]), Some(0.0), "the worker itself was well");
    assert_eq!(one.stop().await, Some(0));
}

// Shows: P4, P5, H-09
#[tokio::test]
async fn a_keeper_that_is_frozen_while_its_worker_loses_the_lease_is_killed_within_the_margin() {
    let witness = Witness::default();
    let lease = "[layout]\nack_wait = \"12s\"\n[lease]\nttl = \"8s\"\nmargin = \"5s\"\n";
    let world = World::with(&(witness.handler("tree", TREE) + lease)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let mut one = worker(&world, "one", &["--redis", &format!("redis://{}", proxy.addr())], &[]);
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 2).await;
    let _two = worker(&world, "two", &[], &[]);
    proxy.hold();
    signal(keeper_of(one.pid()).await, Signal::STOP);
    once_more(&world, &c, &witness, "a").await;
    assert_eq!(world.history(&c).await.count("a", "lost"), 1);
    proxy.heal();
    assert_eq!(one.stop().await, Some(0));
}

// Shows: P4, P5
#[tokio::test]
async fn a_worker_that_is_frozen_or_killed_after_its_keeper_was_leaves_no_two_attempts() {
    // The keeper dies first, and the worker kills what it left; then the worker dies, and the new keeper does.
    let witness = Witness::default();
    let world = World::with(&witness.handler("tree", TREE)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut one = worker(&world, "one", &[], &[]);
    world.publish("default", "a", r#"{"type":"tree","retry":{"backoff":["50ms"]}}"#).await;
    witness.started("a", 2).await;
    let first = keeper_of(one.pid()).await;
    signal(first, Signal::KILL);
    witness.dead("a", 1).await;
    world.ended(&c, "a").await;
    wait("another keeper", async || keeper_of(one.pid()).await != first).await;
    world.publish("default", "b", r#"{"type":"tree"}"#).await;
    witness.started("b", 2).await;
    let _two = worker(&world, "two", &[], &[]);
    one.kill9().await;
    once_more(&world, &c, &witness, "b").await;
}

/// Holds a lease on a file in another process, so that whoever opens it waits for 45 seconds, or until that process ends.
struct Leased(std::process::Child);

impl Leased {
    async fn new(path: &str) -> Self {
        let script = "import fcntl, os, signal, sys, time\n\
            fd = os.open(sys.argv[1], os.O_RDONLY)\n\
            signal.signal(signal.SIGIO, lambda *_: None)\n\
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
            open(sys.argv[2], 'w').close()\n\
            while True: time.sleep(60)\n";
        let sign = format!("{path}.leased");
        let child = std::process::Command::new("python3").args(["-c", script, path, &sign]).spawn().unwrap();
        wait("the lease", async || std::fs::exists(&sign).unwrap()).await;
        Self(child)
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

// Shows: P4, P5, J-07, J-08
#[tokio::test]
async fn an_exec_that_hangs_costs_its_start_and_never_runs_later() {
    let witness = Witness::default();
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("hangs").display().to_string();
    let body = witness.handler("unused", "true");
    let log = body.lines().find_map(|l| l.strip_prefix("W=")).unwrap().to_owned();
    std::fs::write(&program, format!("#!/bin/sh\necho \"start $SURETY_JOB_ID $SURETY_EPOCH $$\" >> {log}\n"))
        .unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let handlers = witness.handler("tree", TREE) + &format!("[handlers.hangs]\ncommand = [{program:?}]\n");
    let world = World::with(&handlers).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut one = worker(&world, "one", &[], &[]);
    world.publish("default", "beside", r#"{"type":"tree","retry":{"backoff":["50ms"]}}"#).await;
    witness.started("beside", 2).await;
    let keeper = keeper_of(one.pid()).await;
    let leased = Leased::new(&program).await;
    let since = Instant::now();
    world.publish("default", "h", r#"{"type":"hangs"}"#).await;
    wait("the keeper that hangs to be killed", async || !alive(keeper)).await;
    assert!(since.elapsed() < FOUND_WITHIN, "{:?}", since.elapsed());
    world.until(&c, "h", |r| r.start_failures > 0).await;
    // Whatever hung is released now, and does not execute: it died with its keeper.
    leased.end();
    let ended = world.ended(&c, "h").await;
    assert_eq!((ended.status, ended.charged), (Status::Done, 0), "a failed start is not charged");
    let starts = witness.of("h");
    assert_eq!(starts.len(), 1, "{}", witness.text());
    assert_eq!(starts[0].epoch, ended.epoch, "only the last attempt ever ran");
    assert_eq!(world.ended(&c, "beside").await.status, Status::Done);
    witness.no_overlap();
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}

// Shows: P3, P4, P5, T-03
#[tokio::test]
async fn an_attempt_that_overstays_is_fenced_killed_and_only_then_tried_again() {
    let witness = Witness::default();
    // At its time limit it gets TERM, ignores it, and would have a minute.
    let body = format!("trap '' TERM; {TREE}");
    let handler = witness.handler("stubborn", &body) + "kill_grace = \"60s\"\n";
    let world = World::with(&(handler + "[reaper]\noverstay = \"500ms\"\n")).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    let mut one = worker(&world, "one", &[], &[]);
    let mut two = worker(&world, "two", &[], &[]);
    world.publish("default", "a", r#"{"type":"stubborn","contract":{"timeout":"700ms"}}"#).await;
    witness.started("a", 2).await;
    let fenced = world.until(&c, "a", |r| r.status == Status::RetryWait).await;
    assert_eq!((fenced.attempt, fenced.code.as_str(), fenced.session.as_str()), (1, "lost", ""));
    once_more(&world, &c, &witness, "a").await;
    let h = world.history(&c).await;
    let lost = h.jobs["a"].events.iter().find(|e| e.kind == "lost").unwrap();
    assert_eq!(lost.data["reason"], "overstayed");
    let s = Scrape::of(at).await;
    assert_eq!(s.sum("surety_deadlines_total", &[("kind", "overstayed")]), Some(1.0));
    assert!(one.log().contains("fenced") || two.log().contains("fenced"), "{}", world.logs());
    assert_eq!((one.stop().await, two.stop().await, reaper.stop().await), (Some(0), Some(0), Some(0)));
}

// Shows: P3, T-03
#[tokio::test]
async fn a_rust_handler_that_blocks_is_fenced_and_its_late_result_refused() {
    let world = World::with("[reaper]\noverstay = \"500ms\"\n").await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    // A second thread: the one that blocks is lost to the others.
    let mut one = worker(&world, "one", &["--threads", "2"], &[LISTEN]);
    let gate = world.path("gate");
    let body =
        format!(r#"{{"type":"block","payload":{{"until":{gate:?}}},"contract":{{"timeout":"500ms"}}}}"#);
    world.publish("default", "a", &body).await;
    let running = world.status(&c, "a", Status::Running).await;
    world.until(&c, "a", |r| r.status == Status::RetryWait && r.epoch == running.epoch).await;
    // Its message is not kept from others meanwhile; here, where the former one goes on, it is given back.
    let address = address(&mut one).await;
    wait_logged(&world, "the message to be offered and given back", async || {
        let here = [("reason", "running_here")];
        Scrape::of(address).await.sum("surety_deferrals_total", &here) >= Some(1.0)
    })
    .await;
    assert_eq!(one.log().matches("fenced: the store gave").count(), 1, "said once");
    std::fs::write(&gate, "").unwrap();
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.epoch, ended.charged), (Status::Done, running.epoch + 1, 1));
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "lost"), h.count("a", "finished")), (1, 1));
    assert_eq!(one.stop().await, Some(0));
}
