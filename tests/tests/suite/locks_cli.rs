//! `surety locks`, with the users of `deploy/`: who has which lock, and taking one away.

use surety_common::domain::Status;
use surety_tests::{
    guarded::Guarded,
    process::Process,
    witness::{Witness, wait_logged},
};

/// Runs until `$W.go-<job>` is there.
const GATED: &str = "until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done";

async fn ready(mut p: Process) -> Process {
    p.logged("ready").await;
    p
}

fn refused(p: &Process) -> Vec<String> {
    p.log().lines().filter(|l| l.contains("does not let")).map(str::to_owned).collect()
}

// Shows: L-03
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_listed_with_its_owner_and_taken_away_only_by_force() {
    let witness = Witness::default();
    let g = Guarded::with(&witness.handler("work", GATED)).await;
    let c = g.operator().await;
    let (worker, reaper) = (ready(g.worker("worker", "a")).await, ready(g.reaper()).await);
    let said = g.surety("reader", &["locks"]).await.exits(0);
    assert!(said.err.contains("no lock is held"), "{}", said.err);
    let enqueue = async |id: &str| {
        let args = [
            "enqueue",
            "work",
            "--id",
            id,
            "--lock",
            "repo:acme/site",
            "--lock",
            "other",
            "--backoff",
            "10ms",
        ];
        g.surety("producer", &args).await.exits(0);
    };
    enqueue("first").await;
    witness.started("first", 1).await;
    enqueue("second").await;
    assert_eq!(g.world.status(&c, "second", Status::Deferred).await.code, "lock_busy");
    let all = g.surety("reader", &["locks", "--json"]).await.exits(0).json();
    let lock = &all["locks"][1];
    assert_eq!(lock["name"], "repo:acme/site", "{all}");
    // It stands in one line: that of the first of its locks in an order that all jobs keep.
    let waiting: u64 = (0..2).filter_map(|n| all["locks"][n]["waiting"].as_u64()).sum();
    assert_eq!(waiting, 1, "{all}");
    let owner = &lock["owner"];
    let epoch = g.world.status(&c, "first", Status::Running).await.epoch;
    assert_eq!(
        (owner["job"].as_str(), owner["attempt"].as_u64(), owner["epoch"].as_u64(), owner["pid"].as_u64()),
        (Some("first"), Some(1), Some(epoch), Some(u64::from(worker.pid()))),
        "{all}"
    );
    assert!(owner["held_ms"].is_u64() && lock["token"].as_u64() > Some(0), "{all}");
    let table = g.surety("reader", &["locks"]).await.exits(0).out;
    assert!(table.contains("repo:acme/site") && table.contains("first"), "{table}");

    let why = g.surety("reader", &["why", "second", "--json"]).await.exits(0).json();
    let what = why["gate"]["what"].as_str().unwrap();
    assert!(
        what.contains("keeps it waiting: job first, attempt 1")
            && what.contains("1 wait for it; it is the first in line"),
        "{why}"
    );
    assert_eq!(why["locks"], serde_json::json!(["repo:acme/site", "other"]));

    // Without force, without the lock, without the right to.
    let no = g.surety("operator", &["locks", "release", "repo:acme/site"]).await.exits(1);
    assert!(no.err.contains("held by job first, attempt 1") && no.err.contains("--force"), "{}", no.err);
    let no = g.surety("operator", &["locks", "release", "nobody's", "--force"]).await.exits(1);
    assert!(no.err.contains("nobody holds"), "{}", no.err);
    g.surety("reader", &["locks", "release", "repo:acme/site", "--force"]).await.exits(78);
    assert_eq!(witness.of("first").len(), 1);

    let said = g.surety("operator", &["locks", "release", "repo:acme/site", "--force"]).await.exits(0);
    assert!(said.out.contains("was taken from job first, attempt 1"), "{}", said.out);
    // The one that had it is killed and comes again after the one that waited.
    witness.dead("first", 1).await;
    witness.started("second", 1).await;
    for job in ["first", "second"] {
        witness.touch(&format!("go-{job}"));
    }
    for job in ["first", "second"] {
        assert_eq!(g.world.ended(&c, job).await.status, Status::Done);
    }
    let h = g.world.history(&c).await;
    h.check().unwrap();
    let failure = h.jobs["first"].events.iter().find(|e| e.kind == "attempt_failed").unwrap();
    assert_eq!(failure.data["error_code"], "lock_lost");
    let is_empty =
        async || g.surety("reader", &["locks", "--json"]).await.json()["locks"] == serde_json::json!([]);
    wait_logged(&g.world, "no lock to be held", is_empty).await;
    for p in [&worker, &reaper] {
        assert_eq!(refused(p), [""; 0]);
    }
}
