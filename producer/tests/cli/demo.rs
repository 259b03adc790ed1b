//! `surety demo` with the real reaper and worker: a small one to its end, and one that is interrupted.

use std::{fs, path::Path, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
};

use super::support::{finish, surety};

/// The command in a folder with 60 files of its own in `tree`.
fn demo(folder: &Path) -> Command {
    let beside = Path::new(env!("CARGO_BIN_EXE_surety")).parent().unwrap();
    for name in ["surety-worker", "surety-reaper"] {
        assert!(
            beside.join(name).is_file(),
            "{name} is not in {}: build the whole workspace first (`cargo build --workspace`, or `cargo test --workspace`)",
            beside.display()
        );
    }
    fs::create_dir(folder.join("tree")).unwrap();
    for n in 0..60 {
        fs::write(folder.join("tree").join(format!("file-{n}")), format!("line\n{n}\n")).unwrap();
    }
    let mut c = surety(folder);
    c.args(["demo", "--tree", "tree", "--files", "60", "--json"]);
    // The target folder may be outside the project, where `.servers/bin` would be found.
    c.env("SURETY_NATS_SERVER", surety_producer::dev::servers::find_nats_server().unwrap());
    // What a caller has set must not reach the demo's own workers.
    c.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("SURETY_LEASE_TTL", "1h");
    c.env("SURETY_LAYOUT_ACK_WAIT", "2h").env("SURETY_LEASE_EXTEND", "10m");
    c
}

/// Processes that name this folder: in their environment or arguments, or by working there.
fn at_work_in(folder: &Path) -> Vec<String> {
    let needle = folder.to_str().unwrap().as_bytes();
    let has = |b: Vec<u8>| b.windows(needle.len()).any(|w| w == needle);
    let all = fs::read_dir("/proc").unwrap().flatten().map(|e| e.path());
    all.filter(|p| p.join("stat").is_file())
        .filter(|p| {
            ["environ", "cmdline"].iter().any(|f| fs::read(p.join(f)).is_ok_and(has))
                || fs::read_link(p.join("cwd")).is_ok_and(|c| c.starts_with(folder))
        })
        .map(|p| fs::read_to_string(p.join("cmdline")).unwrap_or_default().replace('\0', " "))
        .collect()
}

// Shows: J-06
#[tokio::test]
async fn a_killed_worker_costs_no_job_and_the_demo_proves_it() {
    let folder = tempfile::tempdir().unwrap();
    let said = finish(demo(folder.path())).await.exits(0).complains("kill -9 ");
    let r = said.json();
    for zero in ["lost_jobs", "duplicates", "not_done", "wrong_results", "left_behind"] {
        assert_eq!(r[zero], 0, "{zero} in {r}");
    }
    let n = |name: &str| r[name].as_u64().unwrap();
    assert_eq!((n("jobs"), &r["problems"]), (60, &serde_json::json!([])));
    assert!(n("handlers_at_kill") >= 2 && n("lost_attempts") >= 1, "{r}");
    assert!(n("attempts") >= 60 + n("lost_attempts") && n("reports") >= 3, "{r}");
    assert_eq!(at_work_in(folder.path()), Vec::<String>::new());
}

// Shows: D-01
#[tokio::test]
async fn an_interrupted_demo_ends_everything_and_keeps_what_was_to_be_kept() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let mut child = demo(folder.path()).arg("--keep").arg(&kept).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let read = async {
        let mut all = String::new();
        let mut is_told = false;
        while let Some(line) = lines.next_line().await.unwrap() {
            // The kill is far from the end, and the other worker has handlers at work.
            if line.contains("nothing of it is left") && !is_told {
                assert!(at_work_in(&kept).len() >= 4, "{all}");
                let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
                kill_process(pid, Signal::INT).unwrap();
                is_told = true;
            }
            all.push_str(&line);
            all.push('\n');
        }
        all
    };
    let said = tokio::time::timeout(Duration::from_secs(60), read).await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(1), "{said}");
    assert!(said.contains("stopped before the end; everything that was started has ended"), "{said}");
    assert_eq!(at_work_in(&kept), Vec::<String>::new());
    assert!(kept.join("nats").is_dir() && kept.join("worker-1.log").is_file());

    let mut again = surety(folder.path());
    again.args(["demo", "--keep"]).arg(&kept);
    finish(again).await.exits(2).complains("is not empty");
}
