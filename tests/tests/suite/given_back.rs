//! Deliveries that live workers give back, of jobs that wait: however many they are, none of them is lost.

use redis::AsyncCommands;
use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    witness::{Witness, dead_letters, kinds, settled, wait_logged},
    world::World,
};

/// Runs until `$W.go-<job>` is there.
const GATED: &str = "until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done";

/// By what `early` stands in line: when it arrived (ms), of the one scope there is.
async fn arrivals(world: &World, c: &Connected) -> Vec<u64> {
    let scope = c.store.scopes().await.unwrap().remove(0);
    let [_, _, wait, _] = c.store.keys().guard(scope.partition, &scope.scope.hash);
    let mut found = Vec::new();
    for node in 0..world.redis.nodes.len() {
        // Another node of a cluster has not got it.
        let score = world.redis.plain(node).await.zscore::<_, _, Option<f64>>(&wait, "early/1").await;
        found.extend(score.ok().flatten().map(|ms| ms as u64));
    }
    found
}

// Shows: A-07
#[tokio::test]
async fn a_job_is_deferred_more_often_than_any_limit_of_deliveries_keeps_its_place_and_runs() {
    let witness = Witness::default();
    let limits = "[lease]\nttl = \"6s\"\nmargin = \"2s\"\n[layout]\nmax_deliver = 4\n[worker]\nhand_on_limit = 2\n[guards]\nfallback = \"100ms\"\n";
    let rule = "[guards.concurrency.one]\nscope = \"{type}\"\nlimit = 1\n";
    let world = World::with(&(limits.to_owned() + rule)).await;
    let c = world.connect().await;
    // One worker knows the type, the other one does not.
    let ignorant = world.path("ignorant.toml");
    std::fs::copy(world.config_file(), &ignorant).unwrap();
    world.reconfigure(&witness.handler("work", GATED));
    let mut knows = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    world.publish("default", "holder", r#"{"type":"work"}"#).await;
    witness.started("holder", 1).await;
    world.publish("default", "early", r#"{"type":"work","retry":{"max_retries":0}}"#).await;
    let first = world.status(&c, "early", Status::Deferred).await;
    world.publish("default", "late", r#"{"type":"work"}"#).await;
    world.status(&c, "late", Status::Deferred).await;
    let mut does_not = world.worker(&["--config", &ignorant, "--state-dir", &world.path("other-state")], &[]);
    wait_logged(&world, "a job to be handed on", async || does_not.log().contains("handed on")).await;
    // Two messages were given up by the broker: the one that was published, and a copy.
    let mut carriers = vec![first.carrier.clone()];
    while carriers.len() < 3 {
        let r =
            world.until(&c, "early", |r| r.status.is_terminal() || carriers.last() != Some(&r.carrier)).await;
        assert_eq!((r.status, r.code.as_str()), (Status::Deferred, "concurrency"), "{}", world.logs());
        carriers.push(r.carrier);
    }
    assert_eq!(arrivals(&world, &c).await, [first.created_ms], "a copy arrived when the first message did");
    for name in ["holder", "early"] {
        assert!(witness.of("late").is_empty(), "who came first is first");
        witness.touch(&format!("go-{name}"));
        let r = world.ended(&c, name).await;
        assert_eq!((r.status, r.attempt, r.charged), (Status::Done, 1, 0), "{name}");
    }
    witness.touch("go-late");
    let late = world.ended(&c, "late").await;
    let all = kinds(&world, &c, "late").await;
    assert_eq!((late.status, late.code.as_str()), (Status::Done, ""), "{all:?}");
    settled(&world, &c).await;
    assert_eq!(kinds(&world, &c, "early").await, ["deferred", "started", "finished"]);
    world.history(&c).await.check().unwrap();
    assert_eq!(dead_letters(&world).await.len(), 0);
    for w in [&mut knows, &mut does_not, &mut reaper] {
        assert_eq!(w.stop().await, Some(0));
    }
}
