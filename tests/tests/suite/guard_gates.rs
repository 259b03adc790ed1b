//! Rules for breakers and crash loops with real workers: one value of a scope, several probes, everything restarted.

use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    witness::{Witness, settled, wait_logged},
    world::{World, wait},
};

fn job(kind: &str, repo: &str) -> String {
    format!(r#"{{"type":"{kind}","payload":{{"repo":"{repo}"}},"retry":{{"max_retries":0}}}}"#)
}

/// Waits until a gate was opened so often in a row.
async fn opened(c: &Connected, times: u64) {
    let levels = async || {
        let scopes = c.store.scopes().await.ok()?;
        scopes.iter().filter_map(|s| s.fields.get("level")?.parse::<u64>().ok()).max()
    };
    wait("the gate to be open", async || levels().await == Some(times)).await;
}

// Shows: S-08
#[tokio::test]
async fn a_rule_for_crash_loops_suppresses_one_repository_and_no_other() {
    let witness = Witness::default();
    let body = "if grep -q '\"repo\":\"bad\"' && [ ! -e $W.mended ]; then kill -SEGV $$; fi";
    let rule = "[guards.crash_loop.repo]\nscope = \"{payload.repo}\"\nthreshold = 2\nopen = \"2s\"\n";
    let world = World::with(&(witness.handler("build", body) + rule)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    for name in ["bad0", "bad1"] {
        world.publish("default", name, &job("build", "bad")).await;
        assert_eq!(world.ended(&c, name).await.code, "signal");
    }
    opened(&c, 1).await;
    world.publish("default", "bad2", &job("build", "bad")).await;
    let held = world.until(&c, "bad2", |r| r.status == Status::Deferred || r.started_ms > 0).await;
    assert_eq!((held.code.as_str(), held.attempt), ("crash_loop", 0));
    world.publish("default", "good", &job("build", "good")).await;
    assert_eq!(world.ended(&c, "good").await.status, Status::Done);
    witness.touch("mended");
    world.publish("default", "bad3", &job("build", "bad")).await;
    let mut ends = Vec::new();
    for name in ["bad2", "bad3"] {
        ends.push(world.ended(&c, name).await.status);
    }
    assert_eq!(ends[1], Status::Done, "a probe ended the suppression");
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}

// Shows: S-06
#[tokio::test]
async fn a_breaker_with_three_probes_tries_three_at_once_and_the_first_that_ends_decides() {
    let witness = Witness::default();
    let body = "if [ $SURETY_JOB_ID = first ]; then exit 1; fi; until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done";
    let rule = "[guards.breaker.all]\nscope = \"{type}\"\nsample = 1\nopen = \"2s\"\nprobes = 3\n";
    let world = World::with(&(witness.handler("fetch", body) + rule)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    world.publish("default", "first", &job("fetch", "r")).await;
    assert_eq!(world.ended(&c, "first").await.status, Status::Failed);
    opened(&c, 1).await;
    let names = ["p0", "p1", "p2", "p3", "p4"];
    for name in names {
        world.publish("default", name, &job("fetch", "r")).await;
    }
    for name in names {
        world.until(&c, name, |r| r.code == "circuit_open" || r.started_ms > 0).await;
    }
    let running = || names.into_iter().filter(|n| !witness.of(n).is_empty()).collect::<Vec<_>>();
    wait_logged(&world, "three probes", async || running().len() >= 3).await;
    let probes = running();
    assert_eq!(probes.len(), 3, "{probes:?}");
    // What a reaper does in a while changes nothing: three are under way.
    let looks = async || c.store.scopes().await.unwrap()[0].fields["probing"].clone();
    assert_eq!(looks().await, "3");
    witness.touch(&format!("go-{}", probes[0]));
    wait_logged(&world, "all of them", async || running().len() == 5).await;
    for name in names {
        witness.touch(&format!("go-{name}"));
        assert_eq!(world.ended(&c, name).await.status, Status::Done, "{name}");
    }
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}

// Shows: S-03, S-06
#[tokio::test]
async fn a_breaker_that_is_open_is_open_after_everything_was_restarted() {
    let witness = Witness::default();
    let rule = "[guards.breaker.all]\nscope = \"{type}\"\nsample = 1\nopen = \"10s\"\n";
    let handler = witness.handler("fetch", "[ -e $W.mended ] || exit 1");
    let mut world = World::with(&(handler + rule)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    world.publish("default", "first", &job("fetch", "r")).await;
    assert_eq!(world.ended(&c, "first").await.status, Status::Failed);
    opened(&c, 1).await;
    settled(&world, &c).await;
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
    world.redis.kill9().await.unwrap();
    world.redis.restart().await.unwrap();
    wait("redis", async || c.store.now_ms().await.is_ok()).await;
    witness.touch("mended");
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "after", &job("fetch", "r")).await;
    let r = world.until(&c, "after", |r| r.status == Status::Deferred || r.started_ms > 0).await;
    assert_eq!((r.status, r.code.as_str()), (Status::Deferred, "circuit_open"));
    let mut reaper = world.reaper(&[]);
    assert_eq!(world.ended(&c, "after").await.status, Status::Done, "a probe, when its time was over");
    settled(&world, &c).await;
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}
