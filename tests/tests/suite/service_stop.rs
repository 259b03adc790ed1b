//! A stop of the whole service: the signal reaches the commands as well as their worker, and no job is worse for it.

use std::{process::Command, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use surety_common::{config::load_text, domain::Status};
use surety_tests::{
    process::Process,
    witness::{Witness, keeper_of, settled, wait_logged},
    world::{World, wait},
};

use super::{compose::read, redis_loss::flush};

/// In their first attempt: one that a signal ends, one that catches it as shells and runtimes do, and one that crashes by itself.
const PLAIN: &str = "if [ $SURETY_ATTEMPT -eq 1 ]; then exec sleep 60; fi";
const CATCHES: &str =
    "if [ $SURETY_ATTEMPT -eq 1 ]; then trap 'kill $!; exit 143' TERM; trap 'kill $!; exit 130' INT
trap 'kill $!; exit 129' HUP; sleep 60 & say ready 0; wait; fi";

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Signals the commands and the keeper of a worker, as whoever signals every process of a service does.
async fn to_commands(witness: &Witness, worker: &Process, jobs: &[&str], s: Signal) {
    signal(keeper_of(worker.pid()).await, s);
    for job in jobs {
        signal(witness.of(job)[0].pid, s);
    }
}

async fn begun(world: &World, witness: &Witness) {
    // No budget: whoever is charged has failed for good.
    for job in ["plain", "catches"] {
        let doc = format!(r#"{{"type":"{job}","retry":{{"max_retries":0}}}}"#);
        world.publish("default", job, &doc).await;
        witness.started(job, 1).await;
    }
    let is_ready = |l: &str| l.starts_with("ready catches ");
    wait("the trap", async || witness.text().lines().any(is_ready)).await;
}

fn handlers(witness: &Witness) -> String {
    witness.handler("plain", PLAIN) + &witness.handler("catches", CATCHES) + "[worker]\ndrain = \"60s\"\n"
}

/// The worker stops in the same moment as its commands; in which order, `is_late` says.
async fn stop_of_all(s: Signal, is_late: bool) {
    let witness = Witness::default();
    let world = World::with(&handlers(&witness)).await;
    let c = world.connect().await;
    let mut first = world.worker(&[], &[]);
    begun(&world, &witness).await;
    let worker = i32::try_from(first.pid()).unwrap();
    if !is_late {
        signal(worker, s);
        first.logged("draining").await;
    }
    to_commands(&witness, &first, &["plain", "catches"], s).await;
    if is_late {
        witness.dead("plain", 1).await;
        witness.dead("catches", 1).await;
        signal(worker, s);
    }
    assert_eq!(first.ended(Duration::from_secs(60)).await, Some(0), "{}", first.log());
    for job in ["plain", "catches"] {
        let back = world.status(&c, job, Status::Queued).await;
        assert_eq!((back.charged, back.session.as_str()), (0, ""), "{job}: {}", first.log());
    }
    let mut second = world.worker(&[], &[]);
    for job in ["plain", "catches"] {
        let ended = world.ended(&c, job).await;
        assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 0), "{job}");
    }
    witness.no_overlap();
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("plain", "released"), h.count("catches", "released")), (1, 1));
    assert_eq!(second.stop().await, Some(0));
}

// Shows: D-03, D-04, H-02
#[tokio::test]
async fn a_service_manager_that_terminates_every_process_fails_no_job() {
    stop_of_all(Signal::TERM, false).await;
}

// Shows: D-03, D-04
#[tokio::test]
async fn a_worker_that_is_terminated_a_moment_after_its_commands_gives_them_back() {
    stop_of_all(Signal::TERM, true).await;
}

// Shows: D-03, D-04
#[tokio::test]
async fn an_interrupt_of_a_whole_foreground_group_fails_no_job() {
    stop_of_all(Signal::INT, true).await;
}

#[tokio::test]
async fn a_hangup_of_a_whole_service_is_a_reload_and_costs_no_attempt() {
    let witness = Witness::default();
    let world = World::with(&handlers(&witness)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    begun(&world, &witness).await;
    let keeper = keeper_of(worker.pid()).await;
    to_commands(&witness, &worker, &["plain", "catches"], Signal::HUP).await;
    worker.hang_up();
    for job in ["plain", "catches"] {
        let ended = world.ended(&c, job).await;
        assert_eq!((ended.status, ended.charged), (Status::Done, 0), "{job}: {}", worker.log());
    }
    assert_eq!(keeper_of(worker.pid()).await, keeper, "it outlives what it does not act on");
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: A-08, P-06
#[tokio::test]
async fn a_signal_to_a_command_alone_and_a_crash_while_the_worker_drains_are_failures() {
    let witness = Witness::default();
    let world = World::with(&handlers(&witness)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    begun(&world, &witness).await;
    signal(witness.of("plain")[0].pid, Signal::TERM);
    let failed = world.ended(&c, "plain").await;
    assert_eq!((failed.status, failed.code.as_str()), (Status::Failed, "signal"), "{}", worker.log());
    worker.terminate();
    worker.logged("draining").await;
    signal(witness.of("catches")[0].pid, Signal::SEGV);
    let failed = world.ended(&c, "catches").await;
    assert_eq!((failed.status, failed.code.as_str()), (Status::Failed, "signal"), "{}", worker.log());
    assert_eq!(worker.ended(Duration::from_secs(60)).await, Some(0));
    wait_logged(&world, "nothing left", async || {
        surety_tests::world::messages(&world, &c.broker.names().jobs()).await == 0
    })
    .await;
    world.history(&c).await.check().unwrap();
}

/// The value of a directive of a unit; the last one counts.
fn directive<'a>(unit: &'a str, name: &str) -> Option<&'a str> {
    unit.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix('=')).next_back()
}

// Shows: D-03
#[test]
fn the_units_stop_the_worker_first_and_give_it_the_time_it_needs() {
    let settings = load_text(None, &|_| None, &vec![]).unwrap();
    let write = settings.connection.retry_limit;
    let stop = settings.worker.drain + settings.attempt.kill_grace + write + Duration::from_secs(10);
    for (name, needs) in [("surety-worker", stop), ("surety-reaper", write)] {
        let path = format!("deploy/systemd/{name}.service");
        let unit = read(&path);
        assert_eq!(directive(&unit, "KillMode"), Some("mixed"), "{path}");
        let given: u64 = directive(&unit, "TimeoutStopSec").unwrap().parse().unwrap();
        assert!(Duration::from_secs(given) > needs, "{path}: {given} s, and {needs:?} are needed");
        assert!(directive(&unit, "ExecReload").unwrap().contains("HUP $MAINPID"), "{path}");
        assert_eq!(directive(&unit, "RestartPreventExitStatus"), Some("2 78"), "{path}");
        assert!(read("docs/deploying.md").contains(&path), "{path} is documented");
    }
    let worker = read("deploy/systemd/surety-worker.service");
    assert_eq!(directive(&worker, "OOMPolicy"), Some("continue"), "else one command ends the service");
    assert_eq!(directive(&worker, "StateDirectoryMode"), Some("0700"));
    // What systemd itself makes of them, where it is there; that the programs are not is no fault of the units.
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/systemd/");
    let units = ["surety-worker.service", "surety-reaper.service"].map(|u| format!("{dir}{u}"));
    if let Ok(out) = Command::new("systemd-analyze").arg("verify").args(&units).output() {
        let said = String::from_utf8_lossy(&out.stderr);
        for bad in ["Unknown key", "Failed to parse", "Invalid"] {
            assert!(!said.contains(bad), "{said}");
        }
    }
}

// Shows: D-01
#[tokio::test]
async fn a_worker_that_waits_for_a_rebuild_at_its_start_ends_when_it_is_told_to() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("hold", "exec sleep 60")).await;
    let c = world.connect().await;
    let mut first = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"hold"}"#).await;
    world.status(&c, "a", Status::Running).await;
    first.kill9().await;
    // Nobody rebuilds it, for no reaper runs; and what the first one ran can be taken back only when it is.
    flush(&world, 0).await;
    let mut second = world.worker(&[], &[]);
    second.logged("redis_lost").await;
    second.terminate();
    assert_eq!(second.ended(Duration::from_secs(20)).await, Some(0), "{}", second.log());
    assert!(second.log().contains("before the start was over"), "{}", second.log());
}
