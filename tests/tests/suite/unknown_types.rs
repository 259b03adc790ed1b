//! Jobs that no worker knows what to do with: they are seen at once, and everybody names the type that was meant.

use surety_common::domain::Status;
use surety_tests::{
    scrape::{address, get},
    world::{World, wait},
};

use super::metrics::LISTEN;

// Shows: O-06
#[tokio::test]
async fn a_mistyped_type_is_seen_at_once_and_the_nearest_known_one_is_named() {
    let config =
        "[worker]\nhand_on_delay = \"2s\"\nhand_on_limit = 40\n[handlers.resize]\ncommand = [\"true\"]\n";
    let world = World::with(config).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    for id in ["a", "b"] {
        world.publish("default", id, r#"{"type":"resise"}"#).await;
    }
    let row = async || {
        let queues = world.ask(&["queues"]).await;
        let rows = queues["queues"].as_array().unwrap().clone();
        rows.into_iter().find(|q| q["queue"] == "default").unwrap()
    };
    wait("both to be counted", async || row().await["without_handler"]["resise"] == 2).await;
    let said = world.surety(&["queues"]).await.exits(0);
    assert!(said.err.contains("resise") && said.err.contains("\"resize\""), "{said:?}");
    let why = world.ask(&["why", "a"]).await;
    assert_eq!(why["gate"]["code"], "no_handler", "{why:#}");
    assert!(why["gate"]["what"].as_str().unwrap().contains("\"resize\""), "{why:#}");
    let workers = world.ask(&["workers"]).await;
    let types = workers["workers"][0]["types"].as_array().unwrap();
    assert!(types.contains(&"resize".into()) && types.contains(&"noop".into()), "{workers:#}");
    assert_eq!(workers["workers"][0]["not_ready"], serde_json::json!([]));
    let said = world.surety(&["doctor", "--json", "--skip", "disk,power_loss"]).await;
    let doctor = said.json();
    let found = doctor["findings"].as_array().unwrap();
    let found = found.iter().find(|f| f["check"] == "unknown_type").unwrap_or_else(|| panic!("{doctor:#}"));
    assert!(found["what"].as_str().unwrap().contains("\"resize\""), "{found}");
    let metrics = get(at, "/metrics").await.1;
    assert!(metrics.contains("surety_alerts_total{alert=\"unknown_type\"} 1"), "once for both");
    assert_eq!(worker.log().matches("no handler for this type").count(), 1, "{}", worker.log());
    // A worker that has the handler runs them, and nobody complains any more.
    let with = world.path("with.toml");
    std::fs::write(&with, format!("{}\n[handlers.resise]\ncommand = [\"true\"]\n", world.config)).unwrap();
    let mut other = world.worker(&["--config", &with, "--state-dir", &world.path("other")], &[]);
    for id in ["a", "b"] {
        assert_eq!(world.ended(&c, id).await.status, Status::Done);
    }
    wait("nothing to be missed", async || row().await["without_handler"] == serde_json::json!({})).await;
    assert_eq!(other.stop().await, Some(0));
    assert_eq!(worker.stop().await, Some(0));
}
