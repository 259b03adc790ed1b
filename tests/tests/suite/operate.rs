//! What an operator sees of a fleet: `surety workers`, `surety queues`.

use surety_tests::{
    witness::Witness,
    world::{World, wait},
};

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
    let a = &w["running"][0];
    assert_eq!(
        (&a["job"], &a["queue"], &a["type"], &a["attempt"], &a["epoch"]),
        (&"a".into(), &"default".into(), &"long".into(), &1.into(), &1.into())
    );
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
