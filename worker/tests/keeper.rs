//! The keeper with real processes, with and without cgroups.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stdout
)]

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use surety_worker::keeper::{
    AttemptSpec, Cause, Exit, ExitStatusKind, Keeper, KeeperOptions, RunningAttempt, StartError, StopReason,
    boot_ms, kill_left_over,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_surety-worker");
const BOUND: Duration = Duration::from_secs(20);

fn options(cgroup: bool) -> KeeperOptions {
    KeeperOptions {
        program: PathBuf::from(PROGRAM),
        args: vec!["keeper".into()],
        cgroup,
        silence: Duration::from_secs(5),
    }
}

async fn keeper(cgroup: bool) -> Keeper {
    Keeper::start(options(cgroup)).await.unwrap()
}

fn token(name: &str) -> String {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{name}-{}-{}", std::process::id(), nanos.as_nanos())
}

fn spec(name: &str, argv: &[&str]) -> AttemptSpec {
    AttemptSpec {
        token: token(name),
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![],
        cwd: None,
        stdin: vec![],
        timeout: Duration::from_secs(30),
        grace: Duration::from_millis(200),
        output_limit: 1 << 20,
        result_cap: 64 << 10,
        tail_lines: 5,
    }
}

fn sh(name: &str, script: &str) -> AttemptSpec {
    spec(name, &["/bin/sh", "-c", script])
}

async fn end(attempt: &RunningAttempt) -> Exit {
    tokio::time::timeout(BOUND, attempt.wait()).await.expect("the attempt ends")
}

async fn line(attempt: &RunningAttempt) -> Option<String> {
    tokio::time::timeout(BOUND, attempt.next_line()).await.expect("a line or the end")
}

/// Fields of /proc/<pid>/stat from the third on.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|f| f[0] != "Z" && f[0] != "X")
}

fn start_time(pid: i32) -> u64 {
    stat(pid).unwrap()[19].parse().unwrap()
}

/// The living processes with the token, found without the code under test.
fn with_token(token: &str) -> Vec<i32> {
    let wanted = format!("SURETY_KEEPER_TOKEN={token}");
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == wanted.as_bytes()))
                && alive(*pid)
        })
        .collect()
}

/// There is no signal for the death of processes that are not our children: poll with a bound.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// A shell that ignores TERM and has a grandchild in a session of its own that does so too; writes
/// both pids as a line.
const STUBBORN: &str = r#"trap "" TERM
setsid sh -c 'trap "" TERM; echo "$1 $$" >&3; while :; do sleep 0.05; done' x $$ &
while :; do sleep 0.05; done"#;

async fn exit_code_result_and_tails(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let mut spec = sh("code", "cat; echo more; printf 'e1\ne2' >&2; echo \"$WHO\"; exit 7");
    spec.stdin = b"given\n".to_vec();
    spec.env = vec![("WHO".into(), "me".into())];
    let attempt = keeper.run(spec).await.unwrap();
    assert!(attempt.pid > 0 && attempt.start_time > 0);
    let exit = end(&attempt).await;
    assert_eq!(exit.status, ExitStatusKind::Code(7));
    assert_eq!(exit.cause, Cause::Exited);
    assert_eq!(exit.stdout, b"given\nmore\nme\n");
    assert_eq!(exit.stdout_total, 14);
    assert_eq!(exit.stdout_tail, ["given", "more", "me"]);
    assert_eq!(exit.stderr_tail, ["e1", "e2"]);
    assert_eq!((exit.stderr_total, exit.strays_killed, exit.strays_left), (5, 0, 0));
    assert!(!exit.output_truncated && !exit.oom);
    assert_eq!(end(&attempt).await.stdout, exit.stdout);

    let attempt = keeper.run(sh("signal", "kill -9 $$")).await.unwrap();
    assert_eq!(end(&attempt).await.status, ExitStatusKind::Signal(9));

    // Input larger than a pipe, read, and not read.
    let mut large = sh("large", "wc -c");
    large.stdin = vec![b'x'; 3 << 20];
    let exit = end(&keeper.run(large).await.unwrap()).await;
    assert_eq!(String::from_utf8(exit.stdout).unwrap().trim(), (3 << 20).to_string());
    let mut unread = sh("unread", "exit 0");
    unread.stdin = vec![b'x'; 3 << 20];
    let exit = end(&keeper.run(unread).await.unwrap()).await;
    assert_eq!(exit.status, ExitStatusKind::Code(0));
    keeper.shutdown().await;
}

async fn control_lines(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let script =
        "i=0; while [ $i -lt 500 ]; do echo \"{\\\"n\\\":$i}\" >&3; i=$((i+1)); done; printf last >&3";
    let attempt = keeper.run(sh("lines", script)).await.unwrap();
    let mut lines = vec![];
    let mut exit = None;
    // Both raced, as a worker does.
    while exit.is_none() {
        tokio::select! {
            Some(line) = attempt.next_line() => lines.push(line),
            ended = end(&attempt) => exit = Some(ended),
        }
    }
    while let Some(line) = line(&attempt).await {
        lines.push(line);
    }
    let mut expected: Vec<String> = (0..500).map(|n| format!("{{\"n\":{n}}}")).collect();
    expected.push("last".into());
    assert_eq!(lines, expected);
    assert_eq!(exit.unwrap().status, ExitStatusKind::Code(0));

    // Lines nobody takes do not hold up an end.
    let attempt = keeper.run(sh("untaken", "seq 1 200 >&3")).await.unwrap();
    assert_eq!(end(&attempt).await.cause, Cause::Exited);
    let mut count = 0;
    while line(&attempt).await.is_some() {
        count += 1;
    }
    assert_eq!(count, 200);
    keeper.shutdown().await;
}

// Shows: T-01, T-02, T-04, P-08
async fn time_limit_kills_the_stubborn(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let mut spec = sh("stubborn", STUBBORN);
    spec.timeout = Duration::from_millis(400);
    let name = spec.token.clone();
    let attempt = keeper.run(spec).await.unwrap();
    let pids = line(&attempt).await.unwrap();
    let pids: Vec<i32> = pids.split(' ').map(|p| p.parse().unwrap()).collect();
    assert!(pids.iter().all(|p| alive(*p)));
    let exit = end(&attempt).await;
    assert_eq!(exit.cause, Cause::TimedOut);
    assert_eq!(exit.status, ExitStatusKind::Signal(9));
    assert!(exit.wall >= Duration::from_millis(600), "grace was given: {:?}", exit.wall);
    assert!(exit.strays_killed >= 1);
    assert_eq!(exit.strays_left, 0);
    assert!(pids.iter().all(|p| !alive(*p)));
    assert_eq!(with_token(&name), [0; 0]);

    // One that heeds TERM gets to say so.
    let mut spec = sh("heeds", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.02; done");
    spec.timeout = Duration::from_millis(300);
    spec.grace = Duration::from_secs(10);
    let exit = end(&keeper.run(spec).await.unwrap()).await;
    assert_eq!((exit.status, exit.cause), (ExitStatusKind::Code(3), Cause::TimedOut));
    assert_eq!(exit.stdout, b"bye\n");
    keeper.shutdown().await;
}

// Shows: T-04
async fn strays_die_before_the_end_is_told(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let busy = keeper.run(sh("busy", "sleep 60")).await.unwrap();
    let script = "setsid sleep 61 & (setsid sh -c 'sleep 62' &) ; sleep 63 & exit 0";
    for round in 0..5 {
        let spec = sh(&format!("strays{round}"), script);
        let name = spec.token.clone();
        let exit = end(&keeper.run(spec).await.unwrap()).await;
        assert_eq!((exit.status, exit.cause), (ExitStatusKind::Code(0), Cause::Exited));
        assert!(exit.strays_killed >= 1);
        assert_eq!(with_token(&name), [0; 0]);
    }
    assert!(alive(busy.pid.try_into().unwrap()));
    drop(busy);

    // Nothing to know it by but its being the keeper's child.
    let script = "(env -i setsid sh -c 'echo $$ >&3; exec sleep 64' 3>&3 &) ; sleep 0.1";
    // The busy attempt above may not be reported yet.
    let attempt = keeper.run(sh("bare", script)).await.unwrap();
    let pid: i32 = line(&attempt).await.unwrap().parse().unwrap();
    let exit = end(&attempt).await;
    assert!(exit.strays_killed >= 1);
    assert!(!alive(pid));
    keeper.shutdown().await;
}

async fn stops(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    for (reason, grace) in
        [(StopReason::Cancelled, true), (StopReason::Shutdown, true), (StopReason::Fenced, false)]
    {
        let mut spec = sh("stop", STUBBORN);
        spec.grace = if grace { Duration::from_millis(100) } else { Duration::from_secs(60) };
        let name = spec.token.clone();
        let attempt = keeper.run(spec).await.unwrap();
        assert!(line(&attempt).await.is_some());
        attempt.stopper().stop(reason);
        let exit = end(&attempt).await;
        assert_eq!(exit.cause, Cause::Stopped(reason));
        assert_eq!(with_token(&name), [0; 0]);
    }
    let spec = sh("dropped", STUBBORN);
    let name = spec.token.clone();
    let attempt = keeper.run(spec).await.unwrap();
    assert!(line(&attempt).await.is_some());
    drop(attempt);
    until("a dropped attempt is killed", || with_token(&name).is_empty()).await;

    let spec = sh("shutdown", STUBBORN);
    let name = spec.token.clone();
    let attempt = keeper.run(spec).await.unwrap();
    assert!(line(&attempt).await.is_some());
    keeper.shutdown().await;
    assert_eq!(end(&attempt).await.cause, Cause::Stopped(StopReason::Shutdown));
    assert_eq!(with_token(&name), [0; 0]);
    assert!(matches!(keeper.run(sh("late", "true")).await, Err(StartError::KeeperLost(_))));
}

async fn start_errors(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let missing = keeper.run(spec("missing", &["/no/such/program"])).await.err();
    assert!(matches!(missing, Some(StartError::NotFound(_))), "{missing:?}");
    let plain = keeper.run(spec("plain", &["/etc/passwd"])).await.err();
    assert!(matches!(plain, Some(StartError::NotExecutable(_))), "{plain:?}");
    let empty = keeper.run(spec("empty", &[])).await.err();
    assert!(matches!(empty, Some(StartError::Invalid(_))), "{empty:?}");
    let mut nowhere = spec("nowhere", &["true"]);
    nowhere.cwd = Some("/no/such/place".into());
    let nowhere = keeper.run(nowhere).await.err();
    assert!(matches!(nowhere, Some(StartError::Directory(_))), "{nowhere:?}");
    let exit = end(&keeper.run(spec("path", &["true"])).await.unwrap()).await;
    assert_eq!(exit.status, ExitStatusKind::Code(0));
    keeper.shutdown().await;
}

// Shows: P-09
async fn much_output(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    for script in ["yes line | head -c 100000000; echo end", "head -c 100000000 /dev/zero; echo; echo end"] {
        let exit = end(&keeper.run(sh("much", script)).await.unwrap()).await;
        assert_eq!((exit.status, exit.cause), (ExitStatusKind::Code(0), Cause::Exited));
        assert!(exit.output_truncated);
        assert!(exit.stdout_total > 100_000_000);
        assert_eq!(exit.stdout.len(), 64 << 10);
        assert_eq!(exit.stdout_tail.last().unwrap(), "end");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", keeper.pid())).unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 32 << 10, "{peak} kB");
    keeper.shutdown().await;
}

// Shows: P-04
async fn group_and_session(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let script = "sh -c 'sleep 60 & echo $$ $! >&3; wait' & wait";
    let attempt = keeper.run(sh("group", script)).await.unwrap();
    let pids = line(&attempt).await.unwrap();
    let main = attempt.pid.to_string();
    for pid in pids.split(' ').map(|p| p.parse::<i32>().unwrap()).chain([main.parse().unwrap()]) {
        let fields = stat(pid).unwrap();
        assert_eq!((&fields[2], &fields[3]), (&main, &main));
    }
    assert_eq!(start_time(main.parse().unwrap()), attempt.start_time);
    if cgroup {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let theirs = std::fs::read_to_string(format!("/proc/{main}/cgroup")).unwrap();
        let v2 = |t: &str| t.lines().find_map(|l| l.strip_prefix("0::").map(str::to_owned));
        // Where the host has no writable v2 the fallback is what runs.
        println!("cgroup of the handler: {:?}", v2(&theirs));
        assert!(v2(&theirs) != v2(&own) || v2(&own).is_none());
    }
    keeper.shutdown().await;
}

async fn keeper_killed(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let before = keeper.pid();
    let spec = sh("orphan", STUBBORN);
    let name = spec.token.clone();
    let attempt = keeper.run(spec).await.unwrap();
    assert!(line(&attempt).await.is_some());
    let mut bystander = Command::new("sleep").arg("65").spawn().unwrap();
    send(before, Signal::KILL);
    let exit = end(&attempt).await;
    assert_eq!(exit.cause, Cause::KeeperLost);
    assert_eq!(with_token(&name), [0; 0]);
    assert_eq!(line(&attempt).await, None);
    let exit = end(&keeper.run(sh("next", "exit 4")).await.unwrap()).await;
    assert_eq!(exit.status, ExitStatusKind::Code(4));
    assert_ne!(keeper.pid(), before);
    assert!(bystander.try_wait().unwrap().is_none(), "another child of the worker is let be");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    // Its zombies are not left to the worker either.
    let own = std::process::id().to_string();
    let main = attempt.pid.to_string();
    let left = std::fs::read_dir("/proc").unwrap().filter_map(|e| {
        let fields = stat(e.ok()?.file_name().to_str()?.parse().ok()?)?;
        (fields[1] == own && fields[2] == main).then_some(())
    });
    assert_eq!(left.count(), 0);
    keeper.shutdown().await;
}

/// Not a test: the worker that the next ones kill and freeze.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by other tests"]
async fn helper_worker() {
    let Ok(name) = std::env::var("HELPER_TOKEN") else {
        return;
    };
    let keeper = keeper(std::env::var("HELPER_CGROUP").is_ok()).await;
    let trust = std::env::var("HELPER_TRUST").is_ok();
    if trust {
        keeper.trust(boot_ms() + 700);
    }
    let mut spec = sh("helper", STUBBORN);
    spec.token = name;
    let attempt = keeper.run(spec).await.unwrap();
    assert!(line(&attempt).await.is_some());
    println!("\nREADY {} {} {}", keeper.pid(), attempt.pid, attempt.start_time);
    for _ in 0..600 {
        if trust {
            keeper.trust(boot_ms() + 700);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

struct Helper {
    child: Child,
    token: String,
    keeper: u32,
    main: u32,
    start_time: u64,
}

fn helper(cgroup: bool, trust: bool) -> Helper {
    let token = token("helper");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["helper_worker", "--exact", "--ignored", "--nocapture"])
        .env("HELPER_TOKEN", &token)
        .stdout(Stdio::piped());
    if cgroup {
        command.env("HELPER_CGROUP", "1");
    }
    if trust {
        command.env("HELPER_TRUST", "1");
    }
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut lines = lines.skip_while(|l| !l.starts_with("READY"));
    let ready = lines.next().expect("the helper gets ready");
    let numbers: Vec<u64> = ready.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    // Of the attempt only: the helper itself and its keeper do not carry the variable.
    assert!(with_token(&token).len() >= 2);
    Helper {
        child,
        token,
        keeper: numbers[0].try_into().unwrap(),
        main: numbers[1].try_into().unwrap(),
        start_time: numbers[2],
    }
}

// Shows: P4
async fn worker_killed(cgroup: bool) {
    let mut helper = helper(cgroup, false);
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();
    until("the trees of a dead worker die", || with_token(&helper.token).is_empty()).await;
    let keeper = i32::try_from(helper.keeper).unwrap();
    until("its keeper ends", || !alive(keeper)).await;
    assert_eq!(kill_left_over(helper.main, helper.start_time, &helper.token).unwrap(), 0);
}

// Shows: P4
async fn worker_frozen(cgroup: bool) {
    let mut helper = helper(cgroup, true);
    send(helper.child.id(), Signal::STOP);
    let frozen = Instant::now();
    until("the trees of a frozen worker die", || with_token(&helper.token).is_empty()).await;
    assert!(frozen.elapsed() < Duration::from_secs(3), "{:?}", frozen.elapsed());
    assert!(frozen.elapsed() > Duration::from_millis(300), "{:?}", frozen.elapsed());
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();
}

async fn worker_and_keeper_killed(cgroup: bool) {
    let mut helper = helper(cgroup, false);
    // Frozen first, so that it can not clean up after its keeper.
    send(helper.child.id(), Signal::STOP);
    send(helper.keeper, Signal::KILL);
    helper.child.kill().unwrap();
    helper.child.wait().unwrap();
    // The main process dies with its keeper; the one in a session of its own does not.
    assert!(!with_token(&helper.token).is_empty());
    let killed = kill_left_over(helper.main, helper.start_time, &helper.token).unwrap();
    assert!(killed >= 1, "{killed}");
    assert_eq!(with_token(&helper.token), [0; 0]);
}

async fn trust_lost_and_regained(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    keeper.trust(boot_ms() + 300);
    let mut spec = sh("trust", STUBBORN);
    spec.grace = Duration::from_secs(60);
    let attempt = keeper.run(spec).await.unwrap();
    assert_eq!(end(&attempt).await.cause, Cause::TrustLost);
    assert!(matches!(keeper.run(sh("early", "true")).await, Err(StartError::TrustLost)));
    keeper.trust(u64::MAX);
    let exit = end(&keeper.run(sh("again", "exit 5")).await.unwrap()).await;
    assert_eq!(exit.status, ExitStatusKind::Code(5));
    keeper.shutdown().await;
}

/// In 200 processes every number is one of a running child or stray of another.
async fn many_at_once(cgroup: bool) {
    let keeper = keeper(cgroup).await;
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..8 {
        let keeper = keeper.clone();
        tasks.spawn(async move {
            for n in 0..25 {
                let script = if n % 5 == 0 { "setsid sleep 66 & exit 0" } else { "sleep 0.01" };
                let spec = sh(&format!("many{lane}-{n}"), script);
                let name = spec.token.clone();
                let exit = end(&keeper.run(spec).await.unwrap()).await;
                assert_eq!(exit.status, ExitStatusKind::Code(0));
                assert_eq!(exit.cause, Cause::Exited);
                assert_eq!(with_token(&name), [0; 0]);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    keeper.shutdown().await;
}

/// Forty daemons that shed session, group, parents, environment and pipes: nothing tells whose they are. `$1`: their file.
const DAEMONS: &str = r#"for i in $(seq 40); do
(setsid sh -c 'echo $$ >> "$1"; exec env -i sleep 1000' x "$1" </dev/null >/dev/null 2>&1 3>&- &)
done
while [ "$(wc -l < "$1")" -lt "$2" ]; do sleep 0.02; done"#;

// Shows: T-04, P4
/// Ends of attempts beside many such daemons, more than could be looked at one by one while the worker waits for an answer.
async fn bare_daemons_cost_no_neighbour_its_keeper(cgroup: bool) {
    let keeper =
        Keeper::start(KeeperOptions { silence: Duration::from_secs(2), ..options(cgroup) }).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("daemons").display().to_string();
    std::fs::write(&file, "").unwrap();
    let innocent = keeper.run(spec("innocent", &["/bin/sleep", "1000"])).await.unwrap();
    let mut jobs = Vec::new();
    for n in 0..5 {
        // All of them end when all daemons are there.
        let mut job = sh(&format!("daemons{n}"), DAEMONS);
        job.argv.extend(["x".to_owned(), file.clone(), "200".to_owned()]);
        jobs.push(keeper.run(job).await.unwrap());
    }
    let bound = Duration::from_secs(60);
    for job in &jobs {
        let exit = tokio::time::timeout(bound, job.wait()).await.expect("the attempt ends");
        assert_eq!((exit.status, exit.cause), (ExitStatusKind::Code(0), Cause::Exited));
    }
    innocent.stopper().stop(StopReason::Fenced);
    assert_eq!(end(&innocent).await.cause, Cause::Stopped(StopReason::Fenced), "its keeper lives");
    let daemons: Vec<i32> =
        std::fs::read_to_string(&file).unwrap().lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(daemons.len(), 200);
    until("the daemons to be gone", || !daemons.iter().any(|pid| alive(*pid))).await;
    keeper.shutdown().await;
}

macro_rules! both {
    ($($name:ident)*) => {
        mod with_cgroup {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(true).await; })*
        }
        mod without_cgroup {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$name(false).await; })*
        }
    };
}

both! {
    exit_code_result_and_tails control_lines time_limit_kills_the_stubborn
    strays_die_before_the_end_is_told stops start_errors much_output group_and_session
    keeper_killed worker_killed worker_frozen worker_and_keeper_killed trust_lost_and_regained
    many_at_once bare_daemons_cost_no_neighbour_its_keeper
}

/// The directory of this process's cgroup v2, and whether another one can be made beside it.
fn another_cgroup() -> Option<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?.trim_start_matches('/').to_owned();
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let at =
        mounts.lines().map(|l| l.split(' ').collect::<Vec<_>>()).find(|f| f.get(2) == Some(&"cgroup2"))?;
    let dir = PathBuf::from(at[1]).join(path).join(token("elsewhere"));
    std::fs::create_dir(&dir).ok()?;
    Some(dir)
}

// Shows: T-04
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_moves_itself_to_another_cgroup_dies_with_its_attempt() {
    let Some(elsewhere) = another_cgroup() else {
        eprintln!("SKIPPED: no cgroup v2 can be made here");
        return;
    };
    let keeper = keeper(true).await;
    let procs = elsewhere.join("cgroup.procs").display().to_string();
    // By descent, by token, and by nothing but its being a child of the keeper; each in a session of its own.
    let moved = "echo $$ > \"$1\" && echo $$ >&3; exec";
    let scripts = [
        format!(
            "setsid sh -c '{moved} env -i sleep 1000' x \"$1\" & setsid sh -c '{moved} sleep 1000' x \"$1\" &"
        ),
        format!(
            "(setsid sh -c '{moved} env -i sleep 1000' x \"$1\" &); (setsid sh -c '{moved} sleep 1000' x \"$1\" &)"
        ),
    ];
    for script in scripts {
        for end_of_it in ["sleep 1000", "read x"] {
            // Ended by us, and by itself when the processes have moved.
            let is_stopped = end_of_it == "sleep 1000";
            let wait = "while [ $(wc -l < \"$1\") -lt 2 ]; do sleep 0.02; done";
            let mut job = sh("moves", &format!("{script}\n{wait}\n{end_of_it}"));
            job.argv.extend(["x".to_owned(), procs.clone()]);
            let attempt = keeper.run(job).await.unwrap();
            let mut pids: Vec<i32> = Vec::new();
            for _ in 0..2 {
                pids.push(line(&attempt).await.expect("it has moved").parse().unwrap());
            }
            if is_stopped {
                attempt.stopper().stop(StopReason::Fenced);
            }
            let exit = end(&attempt).await;
            assert_eq!((exit.strays_left, exit.strays_killed >= 2), (0, true), "{script}: {exit:?}");
            assert!(!pids.iter().any(|pid| alive(*pid)), "{script}: alive after the end was told");
        }
    }
    keeper.shutdown().await;
    until("the cgroup to be empty", || std::fs::remove_dir(&elsewhere).is_ok()).await;
}

// Shows: P-03
#[test]
fn a_reused_pid_is_let_be() {
    let name = token("reused");
    let mut stranger = Command::new("sleep").arg("67").spawn().unwrap();
    let its_start = start_time(i32::try_from(stranger.id()).unwrap());
    let mut child = Command::new("sleep").arg("67").env("SURETY_KEEPER_TOKEN", &name).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    let start = start_time(pid);
    let other = token("other");
    assert_eq!(kill_left_over(child.id(), start + 1, &other).unwrap(), 0);
    assert_eq!(kill_left_over(child.id(), start.saturating_sub(1), &other).unwrap(), 0);
    // Numbers that are right prove nothing without the token.
    assert_eq!(kill_left_over(child.id(), start, &other).unwrap(), 0);
    assert_eq!(kill_left_over(child.id(), start, "").unwrap(), 0);
    assert_eq!(kill_left_over(stranger.id(), its_start, &name).unwrap(), 1, "the one with the token alone");
    assert!(stranger.try_wait().unwrap().is_none(), "a planted record kills no stranger");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
}
