//! What an operator sees of a fleet: `surety workers`, `surety queues`.

use surety_common::domain::Status;
use surety_tests::{
    command::is_documented,
    witness::Witness,
    world::{World, bin, wait},
};

const OPERATING: &str = include_str!("../../../docs/operating.md");
const UNTIL_TOLD: &str = "until [ -e $W.go ]; do sleep 0.05; done";

// Shows: J-03
#[tokio::test]
async fn workers_are_shown_with_what_they_run_until_they_are_gone() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("long", UNTIL_TOLD)).await;
    let c = world.connect().await;
    let none = world.surety(&["workers"]).await.exits(0);
    assert!(none.out == "(none)\n" && none.err.contains("no worker is alive"), "{none:?}");

    let mut worker = world.worker(&["--slots", "3", "--queues", "default"], &[]);
    world.publish("default", "a", r#"{"type":"long","retry":{"max_retries":0}}"#).await;
    witness.started("a", 1).await;
    let answer = world.ask(&["workers"]).await;
    let w = &answer["workers"][0];
    assert_eq!(answer["workers"].as_array().unwrap().len(), 1);
    let session = c.store.sessions(0, u64::MAX / 4, 10).await.unwrap()[0].0.to_string();
    assert_eq!(w["session"], session);
    assert_eq!(
        (&w["pid"], &w["slots"], &w["queues"], &w["is_expired"]),
        (&worker.pid().into(), &3.into(), &serde_json::json!(["default"]), &false.into())
    );
    assert_eq!(w["version"], env!("CARGO_PKG_VERSION"));
    assert!(w["host"].is_string() && w["started_at"].is_string(), "{w}");
    // It is renewed every 200 ms, and lost after 2 s.
    assert!(w["renewed_ms"].as_u64().unwrap() < 2000, "{w}");
    is_documented(&answer, OPERATING, &[]);
    let a = &w["running"][0];
    assert_eq!(
        (&a["job"], &a["queue"], &a["type"], &a["attempt"]),
        (&"a".into(), &"default".into(), &"long".into(), &1.into())
    );
    let epoch = world.status(&c, "a", Status::Running).await.epoch;
    assert_eq!(a["epoch"], epoch);
    assert!(a["started_at"].is_string() && a["running_ms"].is_u64(), "{a}");
    let table = world.surety(&["workers"]).await.exits(0).out;
    assert!(table.contains("1/3") && table.contains(&session), "{table}");
    let attempts = world.surety(&["workers", "--attempts"]).await.exits(0).out;
    assert!(attempts.contains("long") && attempts.contains("RUNNING FOR"), "{attempts}");

    worker.kill9().await;
    wait("the session to expire", async || world.ask(&["workers"]).await["workers"][0]["is_expired"] == true)
        .await;
    let late = world.surety(&["workers"]).await.exits(0).out;
    assert!(late.contains("EXPIRED"), "{late}");
    // Nobody took it back yet: a reaper does.
    let reaper = world.reaper(&[]);
    wait("the session to be taken back", async || {
        world.ask(&["workers"]).await["workers"] == serde_json::json!([])
    })
    .await;
    drop(reaper);
}

/// One row of `surety queues --json`.
async fn queue(world: &World, name: &str) -> serde_json::Value {
    let answer = world.ask(&["queues"]).await;
    answer["queues"].as_array().unwrap().iter().find(|q| q["queue"] == name).unwrap().clone()
}

#[tokio::test]
async fn queues_show_what_waits_runs_and_is_put_off_and_who_serves_them() {
    let witness = Witness::default();
    let handlers = witness.handler("long", UNTIL_TOLD)
        + &witness.handler("fails", "exit 1")
        + "[handlers.absent]\ncommand = [\"./no-such-program\"]\n[attempt]\nstart_retry = \"10m\"\n";
    let mut world = World::with(&handlers).await;
    let c = world.connect().await;
    let worker = world.worker(&["--queues", "default"], &[]);
    for n in 0..3 {
        world.publish("critical", &format!("w{n}"), r#"{"type":"noop"}"#).await;
    }
    world.publish("default", "r", r#"{"type":"long"}"#).await;
    world.publish("default", "b", r#"{"type":"fails","retry":{"max_retries":3,"backoff":["1h"]}}"#).await;
    world.publish("default", "d", r#"{"type":"absent"}"#).await;
    world.status(&c, "r", Status::Running).await;
    world.status(&c, "b", Status::RetryWait).await;
    world.status(&c, "d", Status::Deferred).await;
    // Those that wait for long give their places up.
    wait("two copies", async || surety_tests::world::messages(&world, "SURETY_SCHED").await == 2).await;
    wait("their places", async || queue(&world, "default").await["held"] == 1).await;

    let q = queue(&world, "critical").await;
    assert_eq!((&q["waiting"], &q["running"], &q["workers"]), (&3.into(), &0.into(), &0.into()), "{q}");
    assert!(q["oldest_waiting_ms"].is_u64() && q["longest_running_ms"].is_null(), "{q}");
    let q = queue(&world, "default").await;
    assert_eq!(
        (&q["waiting"], &q["running"], &q["backoff"], &q["deferred"], &q["workers"]),
        (&0.into(), &1.into(), &1.into(), &1.into(), &1.into()),
        "{q}"
    );
    assert!(q["oldest_waiting_ms"].is_null() && q["longest_running_ms"].is_u64(), "{q}");
    assert!(q["oldest_deferred_ms"].is_u64(), "{q}");
    is_documented(&q, OPERATING, &[]);
    let consumer = &q["consumers"][0];
    assert_eq!((&consumer["state"], &consumer["name"]), (&"ok".into(), &"default".into()), "{q}");
    assert!(consumer["pulls"].as_u64().unwrap() > 0, "its worker asks for more: {q}");
    let table = world.surety(&["queues"]).await.exits(0).out;
    assert!(table.contains("critical") && table.contains("BACKOFF"), "{table}");

    let nats = world.plain().await;
    let ask = async |subject: &str, body: String| {
        nats.request(format!("$JS.API.CONSUMER.{subject}.SURETY_JOBS.critical"), body.into()).await.unwrap()
    };
    ask("PAUSE", r#"{"pause_until":"2999-01-01T00:00:00Z"}"#.into()).await;
    let q = queue(&world, "critical").await;
    assert_eq!(q["consumers"][0]["state"], "paused");
    assert!(q["consumers"][0]["paused_ms"].as_u64().unwrap() > 1_000_000, "{q}");
    assert!(world.surety(&["queues"]).await.exits(0).out.contains("paused"));
    ask("DELETE", String::new()).await;
    assert_eq!(queue(&world, "critical").await["consumers"][0]["state"], "missing");

    // Without Redis the broker's part is still told.
    drop(worker);
    world.redis.kill9().await.unwrap();
    let said = world.surety(&["--json", "queues"]).await.exits(69);
    let row = &said.json()["queues"][1];
    assert_eq!((&row["held"], &row["running"]), (&1.into(), &serde_json::Value::Null), "{row}");
}

#[tokio::test]
async fn a_batch_whose_list_cannot_be_stored_is_enqueued_all_the_same() {
    let world = World::start().await;
    world.connect().await;
    let js = async_nats::jetstream::new(world.plain().await);
    js.delete_stream("SURETY_BATCHES").await.unwrap();
    std::fs::write(world.path("jobs.ndjson"), "{\"type\":\"a\"}\n{\"type\":\"b\"}\n").unwrap();
    let said = world.surety(&["batch", &world.path("jobs.ndjson"), "--batch-id", "b"]).await.exits(0);
    assert!(said.err.contains("cannot be watched by its name"), "{}", said.err);
    assert_eq!(queue(&world, "default").await["waiting"], 2);
}

#[tokio::test]
async fn workers_and_reapers_print_their_manual_pages() {
    for (program, name) in [("t-worker", "surety\\-worker"), ("t-reaper", "surety\\-reaper")] {
        let out = tokio::process::Command::new(bin(program)).arg("man").output().await.unwrap();
        let page = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success() && page.contains(".TH "), "{page}");
        assert!(page.contains(name) && page.contains("\\-\\-log\\-format"), "{page}");
    }
}
