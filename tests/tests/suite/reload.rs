//! Settings that change while a process runs: what is live is taken, what is bad is refused, and timers do not pile up.

use std::net::SocketAddr;

use surety_common::domain::Status;
use surety_tests::{
    process::Process,
    scrape::{Scrape, address},
    witness::{Witness, id},
    world::{World, wait},
};

/// Listens where it finds room.
pub(super) const LISTEN: &[&str] = &["--listen", "127.0.0.1:0"];
/// What begins each line about a refusal.
const REFUSED: &str = "a changed configuration is refused";

/// One value that a process shows.
async fn shown(at: SocketAddr, name: &str, labels: &[(&str, &str)]) -> f64 {
    Scrape::of(at).await.sum(name, labels).unwrap_or_else(|| panic!("{name} {labels:?} is not shown"))
}

async fn reloads(at: SocketAddr, result: &str) -> f64 {
    shown(at, "surety_config_reloads_total", &[("result", result)]).await
}

/// Changes the file, sends SIGHUP, and waits for what comes of it. (A look at the file may be faster than the signal.)
pub(super) async fn changed(world: &World, more: &str, of: &[(&Process, SocketAddr)], result: &str) {
    let mut before = Vec::new();
    for (_, at) in of {
        before.push(reloads(*at, result).await);
    }
    world.reconfigure(more);
    for ((process, at), before) in of.iter().zip(before) {
        process.hang_up();
        wait(&format!("a configuration that is {result}"), async || reloads(*at, result).await > before)
            .await;
    }
}

// Shows: G-02, G-08
#[tokio::test]
async fn a_changed_promise_holds_for_the_next_deadline_and_a_bad_file_changes_nothing() {
    // Reports when it is told to, for ever.
    let talk = r#"for n in 1 2 3; do until [ -e $W.report$n ]; do sleep 0.02; done; echo '{"progress":0.5}' >&3; done; sleep 60"#;
    let witness = Witness::default();
    let world = World::with(&witness.handler("talk", talk)).await;
    let c = world.connect().await;
    let mut worker = world.worker(LISTEN, &[]);
    let at = address(&mut worker).await;
    let promised = async |job: &str, after: u64| {
        let r = world.until(&c, job, |r| r.promise_ms > after).await;
        // From the moment that it was armed, which the store's clock has passed by now.
        (r.promise_ms, r.promise_ms.saturating_sub(c.store.now_ms().await.unwrap()))
    };
    world.publish("default", "a", r#"{"type":"talk"}"#).await;
    let (start, _) = promised("a", 0).await;
    witness.touch("report1");
    let (first, left) = promised("a", start).await;
    assert!((40_000..=45_000).contains(&left), "45 s at first: {left}");

    world.reconfigure("[contract]\nprogress = \"20m\"");
    wait("the change to be taken", async || reloads(at, "applied").await == 1.0).await;
    worker.logged("contract.progress").await;
    // What is armed stays.
    assert_eq!(c.store.record(&id("a")).await.unwrap().unwrap().promise_ms, first);
    // The next one goes by the new setting, also of an attempt that began before.
    witness.touch("report2");
    let (second, left) = promised("a", first).await;
    assert!((1_100_000..=1_200_000).contains(&left), "20 min now: {left}");

    // Garbage, then a setting that does not exist beside one that fits with nothing: refused, with everything that is wrong.
    std::fs::write(world.config_file(), "[contract\nprogress = \"1s\"").unwrap();
    wait("garbage to be refused", async || reloads(at, "refused").await == 1.0).await;
    worker.logged("not valid TOML").await;
    assert_eq!(shown(at, "surety_config_ok", &[]).await, 0.0);
    world.reconfigure("[contract]\nprogres = \"1s\"\n[attempt]\nkill_grace = \"10m\"");
    wait("more garbage to be refused", async || reloads(at, "refused").await == 2.0).await;
    let log = worker.log();
    let line = log.split(REFUSED).nth(2).expect("a second refusal");
    for problem in ["contract.progres", "did you mean \"progress\"?", "reaper.overstay > attempt.kill_grace"]
    {
        assert!(log.contains(problem), "{problem}: {line}");
    }
    let alert = ("alert", "config_refused");
    assert_eq!(shown(at, "surety_alerts_total", &[alert]).await, 2.0);
    witness.touch("report3");
    let (_, left) = promised("a", second).await;
    assert!((1_100_000..=1_200_000).contains(&left), "still 20 min: {left}");

    // And a good one again.
    world.reconfigure("[contract]\nprogress = \"10m\"");
    wait("the good file to be taken", async || reloads(at, "applied").await == 2.0).await;
    assert_eq!(shown(at, "surety_config_ok", &[]).await, 1.0);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: G-02
#[tokio::test]
async fn live_settings_of_a_worker_are_taken_and_the_others_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mark").display().to_string();
    let handler = |mark: &str| {
        let script = format!("echo $MARK > {file}; exit 9");
        format!("[handlers.env]\ncommand = [\"sh\", \"-c\", \"{script}\"]\nenv = {{ MARK = \"{mark}\" }}\n")
    };
    let world = World::with(&handler("first-mark")).await;
    let c = world.connect().await;
    let mut worker =
        world.worker(&[LISTEN, &["--queues", "default"]].concat(), &[("SURETY_ATTEMPT_FINISH", "9h")]);
    let at = address(&mut worker).await;
    let run = async |job: &str| {
        world.publish("default", job, r#"{"type":"env","retry":{"max_retries":0}}"#).await;
        let r = world.ended(&c, job).await;
        (r, std::fs::read_to_string(&file).unwrap().trim().to_owned())
    };
    let (r, mark) = run("a").await;
    assert_eq!((r.status, mark.as_str()), (Status::Failed, "first-mark"));
    let hours = |r: &surety_common::store::Record| (r.finish_by_ms - r.created_ms) / 3_600_000;
    assert_eq!(hours(&r), 9);

    // Flags and environment win over the file at a reload as they do at the start.
    let more = "exit_codes = { 9 = \"stuck\" }\n[handlers.new]\ncommand = [\"true\"]\n[attempt]\nfinish = \"5h\"\n\
                [worker]\nqueues = [\"nowhere\"]\nslots = 3";
    changed(&world, &(handler("second-mark") + more), &[(&worker, at)], "applied").await;
    let (r, mark) = run("b").await;
    assert_eq!((mark.as_str(), r.code.as_str()), ("second-mark", "stuck"), "{}", worker.log());
    assert_eq!(hours(&r), 9, "the environment wins");
    worker.logged("wait for a restart").await;
    let log = worker.log();
    let line = log.lines().find(|l| l.contains("wait for a restart")).unwrap();
    for name in ["worker.slots: 8 -> 3", "handlers.new: added"] {
        assert!(line.contains(name), "{name}: {line}");
    }
    assert!(!line.contains("worker.queues") && !log.contains("second-mark"), "{log}");
    assert_eq!(shown(at, "surety_config_restart_pending", &[]).await, 2.0);
    assert_eq!(shown(at, "surety_worker_slots", &[]).await, 8.0);
    // Asked once more, nothing is new.
    changed(&world, &(handler("second-mark") + more), &[(&worker, at)], "unchanged").await;
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: G-04
#[tokio::test]
async fn fifty_reloads_leave_one_timer_for_each_purpose() {
    let world = World::with("[handlers.x]\ncommand = [\"true\"]").await;
    let c = world.connect().await;
    let (mut worker, mut reaper) = (world.worker(LISTEN, &[]), world.reaper_with(LISTEN, &[]));
    let (of_worker, of_reaper) = (address(&mut worker).await, address(&mut reaper).await);
    worker.logged("worker ready").await;
    reaper.logged("reaper ready").await;
    let timers = async |at: SocketAddr| {
        let s = Scrape::of(at).await;
        let purposes = s.values("surety_timers", "purpose");
        let most = s.find("surety_timers", &[]).map(|x| x.value).fold(0.0, f64::max);
        (purposes, s.sum("surety_timers", &[]).unwrap(), most)
    };
    let before = (timers(of_worker).await, timers(of_reaper).await);
    assert!(["config", "extend", "renewal"].iter().all(|p| before.0.0.contains(*p)), "{before:?}");
    assert!(before.1.0.contains("config") && before.1.0.contains("outbox_relay"), "{before:?}");
    for n in 0..50 {
        let tick = 60_000 + n;
        let more = format!("[reaper]\ntick = \"{tick}ms\"\n[worker]\ndrain = \"{}s\"", n + 4);
        changed(&world, &more, &[(&worker, of_worker), (&reaper, of_reaper)], "applied").await;
    }
    assert_eq!((timers(of_worker).await, timers(of_reaper).await), before);
    assert_eq!((before.0.2, before.1.2), (1.0, 1.0));
    // The pause of a minute is replaced by a short one, at once.
    world.reconfigure("[reaper]\ntick = \"50ms\"");
    reaper.hang_up();
    let steps = async || {
        let rule = ("rule", "outbox_relay");
        shown(of_reaper, "surety_reaper_steps_total", &[rule, ("result", "ok")]).await
    };
    let n = steps().await;
    wait("the rules to run again", async || steps().await > n + 3.0).await;
    world.publish("default", "a", r#"{"type":"x"}"#).await;
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}

// Shows: G-02, G-08
#[tokio::test]
async fn a_reaper_takes_its_log_level_and_keeps_it_when_a_filter_is_bad() {
    let world = World::start().await;
    let _c = world.connect().await;
    let mut reaper = world.reaper_with(LISTEN, &[]);
    let at = address(&mut reaper).await;
    reaper.logged("reaper ready").await;
    changed(&world, "[telemetry]\nlog_level = \"trace\"", &[(&reaper, at)], "applied").await;
    reaper.logged("TRACE").await;
    changed(&world, "[telemetry]\nlog_level = \"surety=shouting\"", &[(&reaper, at)], "refused").await;
    reaper.logged("is no log filter").await;
    changed(&world, "[telemetry]\nlog_level = \"error\"", &[(&reaper, at)], "applied").await;
    assert_eq!(shown(at, "surety_config_ok", &[]).await, 1.0);
    // A file that is gone is a bad one.
    std::fs::remove_file(world.config_file()).unwrap();
    wait("its absence to be refused", async || reloads(at, "refused").await == 2.0).await;
    assert!(shown(at, "surety_config_loaded_timestamp_seconds", &[]).await > 1.7e9);
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: G-02
#[tokio::test]
async fn a_rule_of_a_guard_holds_from_its_reload_on_and_until_its_removal() {
    let witness = Witness::default();
    let hold = witness.handler("hold", "until [ -e $W.go ]; do sleep 0.02; done");
    let world = World::with(&(hold + "[guards]\nfallback = \"500ms\"")).await;
    let c = world.connect().await;
    let mut worker = world.worker(LISTEN, &[]);
    let at = address(&mut worker).await;
    let publish = async |job: &str| world.publish("default", job, r#"{"type":"hold"}"#).await;
    publish("a").await;
    witness.started("a", 1).await;
    let rule = "[guards.concurrency.one]\nscope = \"{type}\"\nlimit = 1";
    changed(&world, rule, &[(&worker, at)], "applied").await;
    // The one that runs was never asked for: it does not count.
    publish("b").await;
    witness.started("b", 1).await;
    publish("c").await;
    world.status(&c, "c", Status::Deferred).await;
    assert_eq!(witness.executions("c"), 0);
    changed(&world, "", &[(&worker, at)], "applied").await;
    witness.started("c", 1).await;
    witness.touch("go");
    for job in ["a", "b", "c"] {
        assert_eq!(world.ended(&c, job).await.status, Status::Done);
    }
    assert_eq!(worker.stop().await, Some(0));
}
