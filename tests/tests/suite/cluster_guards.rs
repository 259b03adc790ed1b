//! Guards, locks and pauses on a Redis Cluster whose masters die: what was held stays held, who waited goes on waiting, in order, and
//! starts when its turn comes.

use std::time::Duration;

use surety_common::{
    connect::Connected,
    domain::{Status, guard::GuardKind, pause::Target},
    store::Scope,
};
use surety_tests::{
    redis::MASTERS,
    witness::Witness,
    world::{World, wait},
};

use super::{
    cluster::{PATIENT, config, kept, masters, of_partition},
    guard_slots::ask,
    scripts::{claim, session},
    tending::locks,
};

/// The first name with this stem whose scope a master keeps.
fn name_at(at: &[usize], master: usize, stem: &str, scope: impl Fn(&str) -> Scope) -> String {
    let n = u32::try_from(at.len()).unwrap();
    let is_there = |name: &String| at[scope(name).partition(n) as usize] == master;
    (0..).map(|i| format!("{stem}-{i}")).find(is_there).unwrap()
}

// Shows: S-05, L-01, L-02
#[tokio::test]
async fn what_guards_and_locks_hold_outlives_the_death_of_their_master() {
    let witness = Witness::default();
    let gated =
        r#"echo "$SURETY_LOCKS" >> $W.tokens; until [ -e $W.go-$SURETY_JOB_ID ]; do sleep 0.02; done"#;
    let rule = "[guards.concurrency.two]\nscope = \"{key}\"\nlimit = 2\n";
    let world = World::on_cluster(&(witness.handler("gated", gated) + rule + PATIENT), 1).await;
    let c = world.connect().await;
    let at = masters(&world, &c).await;
    const DIES: usize = 1;
    let name = |stem: &str, scope: &dyn Fn(&str) -> Scope| name_at(&at, DIES, stem, scope);
    let lock = name("lock", &|n| Scope::new(GuardKind::Lock, "", n, [0; 4]));
    let key = name("key", &|n| Scope::new(GuardKind::Concurrency, "two", n, [0; 4]));
    let paused = name("paused", &|n| Scope::of_pause(&Target::key(n).unwrap().slot()));
    let mut reaper = world.reaper(&[]);
    let mut workers = [world.worker(&[], &[]), world.worker(&["--state-dir", &world.path("s2")], &[])];
    for w in &mut workers {
        w.logged("worker ready").await;
    }
    world.surety(&["pause", "--key", &paused]).await.exits(0);
    for w in &mut workers {
        w.logged("what is paused is not started").await;
    }
    let mut jobs = Vec::new();
    let mut add = async |id: &str, more: &str| {
        world.publish("default", id, &format!(r#"{{"type":"gated",{more}}}"#)).await;
        jobs.push((id.to_owned(), Status::Done));
    };
    let (locked, keyed) = (format!(r#""locks":["{lock}"]"#), format!(r#""key":"{key}""#));
    add("l1", &locked).await;
    witness.started("l1", 1).await;
    for id in ["c1", "c2"] {
        add(id, &keyed).await;
        witness.started(id, 1).await;
    }
    add("p1", &format!(r#""key":"{paused}""#)).await;
    for (id, more) in [("l2", &locked), ("l3", &locked), ("c3", &keyed), ("c4", &keyed)] {
        add(id, more).await;
        world.status(&c, id, Status::Deferred).await;
    }
    let waiting = [
        ("l2", "lock_busy"),
        ("l3", "lock_busy"),
        ("c3", "concurrency"),
        ("c4", "concurrency"),
        ("p1", "paused"),
    ];
    for (id, code) in waiting {
        assert_eq!(world.status(&c, id, Status::Deferred).await.code, code, "{id}");
    }

    let replica = world.redis.replicas_of(DIES).start;
    let mut world = world;
    world.redis.nodes[DIES].kill9().await.unwrap();
    wait("the replica to take over", async || world.redis.is_master(replica).await).await;
    wait("what is held to be renewed at the new master", async || {
        c.store.lock(&lock).await.is_ok_and(|l| l.and_then(|l| l.holder).is_some_and(|h| h.member == "l1/1"))
    })
    .await;
    for (id, _) in waiting {
        assert_eq!(witness.executions(id), 0, "{id} was started\n{}", world.logs());
    }
    // Each that ends lets in one, the one that waited longest.
    for (ends, next, not_yet) in [("l1", "l2", "l3"), ("c1", "c3", "c4")] {
        witness.touch(&format!("go-{ends}"));
        witness.started(next, 1).await;
        assert_eq!(witness.executions(not_yet), 0, "{not_yet} was started beside {next}");
    }
    world.surety(&["resume", "--key", &paused]).await.exits(0);
    witness.started("p1", 1).await;
    for (id, _) in &jobs {
        witness.touch(&format!("go-{id}"));
    }
    kept(&world, &c, &jobs).await;
    for (id, _) in &jobs {
        assert_eq!(witness.executions(id), 1, "{id}: an attempt was lost");
    }
    let written = witness.written("tokens");
    let tokens: Vec<u64> = written
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()?.get(&lock)?.as_u64())
        .collect();
    assert!(tokens.len() == 3 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    for w in &mut workers {
        assert_eq!(w.stop().await, Some(0), "{}", w.log());
    }
    assert_eq!(reaper.stop().await, Some(0));
}

/// Whether a scope of a partition is in use.
async fn n_scopes(c: &Connected, p: u32) -> Option<u64> {
    c.store.guards_due(p, u64::MAX / 4096).await.ok()
}

// Shows: H-05
#[tokio::test]
async fn a_master_that_is_away_does_not_keep_the_reaper_from_the_partitions_of_others() {
    let mut world = World::on_cluster("", 0).await;
    let c = world.connect().await;
    for node in 0..MASTERS {
        config(&world, node, "cluster-require-full-coverage", "no").await;
    }
    let at = masters(&world, &c).await;
    let mut reaper = world.reaper(&[]);
    reaper.logged("reaper ready").await;
    // The first partition is among those that are away.
    assert_eq!(at[0], 0);
    world.redis.nodes[0].kill9().await.unwrap();
    reaper.logged("rule waits for the servers").await;
    let p = u32::try_from(at.iter().position(|m| *m == 2).unwrap()).unwrap();
    let (session, job) = (session("dead"), of_partition(&c, p, "job"));
    wait("the other masters to answer", async || {
        c.store.open_session(p, &session, Duration::from_secs(3600), "{}").await.is_ok()
    })
    .await;
    c.store.claim(p, &session, 1000, &[claim(job.as_str())]).await.unwrap();
    c.store.expire_session(p, &session).await.unwrap();
    let lock = locks(1);
    c.store.guard(p, None, 1, &lock, &[ask("other/1", 1, &[0])]).await.unwrap();
    wait("the attempt to be taken back", async || {
        c.store.record(&job).await.is_ok_and(|r| r.is_some_and(|r| r.status == Status::RetryWait))
    })
    .await;
    wait("the guard to be idle", async || n_scopes(&c, p).await == Some(0)).await;
}
