//! Redis loses its data in the middle of a run: emptied, restarted with an empty folder, restarted with an older copy.
//! NATS is made anew while Redis was kept.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    process::Process,
    witness::{Witness, settled, wait_logged},
    world::{World, messages},
};

/// Handlers that last, come back, cannot be started, succeed and fail.
fn handlers(w: &Witness) -> String {
    let go = "until [ -e $W.go ]; do sleep 0.02; done";
    w.handler("slow", go)
        + &w.handler("tree", &format!("child '{go}'; {go}"))
        + &w.handler("flaky", "if ! [ -e $W.$SURETY_JOB_ID ]; then touch $W.$SURETY_JOB_ID; exit 1; fi")
        + &w.handler("final", "exit 64")
        + &w.handler("ok", "true")
        + "[handlers.later]\ncommand = [\"/nonexistent/program\"]\n"
}

/// A run with jobs in every state.
struct Case {
    world: World,
    c: Connected,
    witness: Witness,
    worker: Process,
    reapers: Vec<Process>,
    jobs: Vec<(String, Status)>,
}

const SLOTS: &[&str] = &["--slots", "4"];

impl Case {
    async fn start() -> Self {
        let witness = Witness::default();
        let world = World::with(&handlers(&witness)).await;
        let c = world.connect().await;
        let reapers = vec![world.reaper(&[])];
        let mut case =
            Self { worker: world.worker(SLOTS, &[]), world, c, witness, reapers, jobs: Vec::new() };
        case.worker.logged("worker ready").await;
        // Ended ones, acked and not.
        case.add("done", r#"{"type":"ok"}"#, Status::Done).await;
        case.add("failed", r#"{"type":"final"}"#, Status::Failed).await;
        for id in ["done", "failed"] {
            case.world.ended(&case.c, id).await;
        }
        case.die_after_journal().await;
        // Backed off for longer than the rebuild takes, and for less; deferred.
        let retry =
            |ms: u64| format!(r#"{{"type":"flaky","retry":{{"max_retries":3,"backoff":["{ms}ms"]}}}}"#);
        case.add("backoff-long", &retry(9000), Status::Done).await;
        case.add("backoff-short", &retry(1500), Status::Done).await;
        for id in ["backoff-long", "backoff-short"] {
            case.world.until(&case.c, id, |r| r.charged == 1).await;
        }
        case.add("deferred", r#"{"type":"later","contract":{"finish":"20s"}}"#, Status::TimedOut).await;
        case.world.status(&case.c, "deferred", Status::Deferred).await;
        // Running, for longer than the rebuild takes; waiting behind them.
        for id in ["slow-1", "slow-2", "slow-3"] {
            case.add(id, r#"{"type":"slow"}"#, Status::Done).await;
            case.witness.started(id, 1).await;
        }
        case.add("tree", r#"{"type":"tree"}"#, Status::Done).await;
        case.witness.started("tree", 2).await;
        for i in 0..20 {
            case.add(&format!("waiting-{i}"), r#"{"type":"ok"}"#, Status::Done).await;
        }
        case
    }

    async fn add(&mut self, id: &str, body: &str, outcome: Status) {
        self.world.publish("default", id, body).await;
        self.jobs.push((id.to_owned(), outcome));
    }

    /// Jobs that the journal knows as finished, and whose carriers are still there, because their workers died.
    async fn die_after_journal(&mut self) {
        self.worker.freeze();
        let mut dying = self.world.worker(
            &["--state-dir", &self.world.path("dying"), "--slots", "1"],
            &[("SURETY_FAULT", "finish_journaled:1")],
        );
        dying.logged("worker ready").await;
        self.add("unacked", r#"{"type":"ok"}"#, Status::Done).await;
        dying.ended(Duration::from_secs(30)).await;
        self.worker.thaw();
        assert_eq!(self.world.ended(&self.c, "unacked").await.status, Status::Done);
        assert!(messages(&self.world, &self.c.broker.names().jobs()).await >= 1, "its carrier is there");
    }

    /// Waits until a reaper has made the store whole.
    async fn rebuilt(&self) {
        wait_logged(&self.world, "the store to be whole again", async || {
            self.reapers.iter().any(|r| r.log().contains("redis is whole again"))
        })
        .await;
    }

    async fn all_as_promised(&mut self) {
        for (id, outcome) in &self.jobs {
            let ended = self.world.ended(&self.c, id).await;
            assert_eq!(ended.status, *outcome, "{id}\n{}", self.world.logs());
        }
        settled(&self.world, &self.c).await;
        self.witness.no_overlap();
        let h = self.world.history(&self.c).await;
        h.check().unwrap();
        for (id, _) in &self.jobs {
            assert_eq!(h.count(id, "finished"), 1, "{id}");
        }
        // The journal knew these as finished: they did not run again.
        for id in ["done", "failed", "unacked"] {
            assert_eq!(self.witness.executions(id), 1, "{id}\n{}", self.world.logs());
        }
        // And these as running: their attempts went on.
        for id in ["slow-1", "slow-2", "slow-3", "tree"] {
            assert_eq!(self.witness.executions(id), 1, "{id}\n{}", self.world.logs());
        }
        assert_eq!(self.worker.stop().await, Some(0));
    }

    async fn receipts(&self) -> Vec<(String, serde_json::Value)> {
        let h = self.world.history(&self.c).await;
        let of = |j: &surety_tests::history::JobHistory| {
            let e = j.events.iter().find(|e| e.kind == "finished")?;
            Some((e.job.clone(), e.data["receipt"].clone()))
        };
        h.jobs.values().filter_map(of).collect()
    }
}

async fn flush(w: &World) {
    let client = redis::Client::open(w.redis.url()).unwrap();
    let mut c = client.get_multiplexed_async_connection().await.unwrap();
    () = redis::cmd("FLUSHALL").query_async(&mut c).await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(e.file_name());
        if e.file_type().unwrap().is_dir() {
            copy(&e.path(), &to);
        } else if !e.file_name().to_string_lossy().ends_with(".log") {
            std::fs::copy(e.path(), to).unwrap();
        }
    }
}

fn folder(w: &World) -> PathBuf {
    w.dir.path().join("redis")
}

// Shows: P1, P2, P5, P7, X-04
#[tokio::test]
async fn an_emptied_redis_is_rebuilt_in_the_middle_of_a_run() {
    let mut case = Case::start().await;
    let before = case.receipts().await;
    flush(&case.world).await;
    case.rebuilt().await;
    case.witness.touch("go");
    case.all_as_promised().await;
    let after = case.receipts().await;
    for r in before {
        assert!(after.contains(&r), "a receipt changed: {r:?}");
    }
}

// Shows: P1, P2, P5, P7
#[tokio::test]
async fn a_redis_with_an_empty_folder_is_rebuilt() {
    let mut case = Case::start().await;
    case.world.redis.kill9().await.unwrap();
    std::fs::remove_dir_all(folder(&case.world)).unwrap();
    std::fs::create_dir_all(folder(&case.world)).unwrap();
    case.world.redis.restart().await.unwrap();
    // It ends while nothing can be committed: the result waits.
    case.witness.touch("go");
    case.rebuilt().await;
    case.all_as_promised().await;
}

// Shows: P1, P2, P5, P7
#[tokio::test]
async fn an_older_copy_of_redis_is_brought_up_to_the_journal() {
    let mut case = Case::start().await;
    let dir = folder(&case.world);
    let kept = case.world.dir.path().join("copy");
    copy(&dir, &kept);
    // What comes after the copy is known to the journal alone.
    case.add("after", r#"{"type":"slow"}"#, Status::Done).await;
    case.witness.touch("go");
    for id in ["slow-1", "waiting-3", "waiting-19", "after"] {
        case.world.ended(&case.c, id).await;
    }
    case.world.redis.kill9().await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    copy(&kept, &dir);
    case.world.redis.restart().await.unwrap();
    case.rebuilt().await;
    case.all_as_promised().await;
    for (id, _) in case.jobs.iter().filter(|(id, _)| id.starts_with("waiting")) {
        assert_eq!(case.witness.executions(id), 1, "{id}");
    }
}

// Shows: D-08
#[tokio::test]
async fn a_reaper_that_dies_while_it_rebuilds_is_replaced_by_another() {
    for point in ["rebuild_scanned", "rebuild_fenced", "rebuild_restored"] {
        let mut case = Case::start().await;
        for r in &mut case.reapers {
            r.kill9().await;
        }
        let fault = format!("{point}:1");
        let mut dying = case.world.reaper(&[("SURETY_FAULT", &fault)]);
        dying.logged("reaper ready").await;
        flush(&case.world).await;
        let died = dying.ended(Duration::from_secs(60)).await;
        assert_eq!(died, None, "{point}");
        case.reapers = vec![case.world.reaper(&[]), case.world.reaper(&[])];
        case.rebuilt().await;
        case.witness.touch("go");
        case.all_as_promised().await;
    }
}
