//! The reaper as a program: one pass and its dry run, and several of them at one backlog.

use std::{collections::BTreeMap, process::Stdio};

use redis::AsyncCommands;
use surety_common::{connect::Connected, domain::Status, store::WaitingItem};
use surety_tests::{
    command::Said,
    witness::{Witness, settled},
    world::{PATIENCE, World, bin, messages, wait},
};

use super::scripts::id;

/// Runs a reaper to its end.
pub(super) async fn once(w: &World, more: &[&str]) -> Said {
    let config = w.config_file().display().to_string();
    let (nats, redis) = (w.nats.url(), w.redis.url());
    let out = tokio::process::Command::new(bin("t-reaper"))
        .args(["--once", "--config", &config, "--nats", &nats, "--redis", &redis])
        .args(more)
        .stdin(Stdio::null())
        .output();
    let out = tokio::time::timeout(PATIENCE, out).await.unwrap().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    Said { code: out.status.code(), out: text(out.stdout), err: text(out.stderr) }
}

/// Everything that Redis has, and how much NATS has of everything.
async fn everything(w: &World) -> (BTreeMap<String, Vec<u8>>, Vec<u64>) {
    let client = redis::Client::open(w.redis.url()).unwrap();
    let mut c = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = c.keys("*").await.unwrap();
    let mut all = BTreeMap::new();
    for k in keys {
        let value: Vec<u8> = redis::cmd("DUMP").arg(&k).query_async(&mut c).await.unwrap();
        all.insert(k, value);
    }
    let mut counts = Vec::new();
    for stream in ["JOBS", "SCHED", "EVENTS", "DLQ", "ADVISORIES", "RECEIPTS"] {
        counts.push(messages(w, &format!("SURETY_{stream}")).await);
    }
    let js = async_nats::jetstream::new(w.plain().await);
    let stream = js.get_stream("SURETY_ADVISORIES").await.unwrap();
    let reaper = stream.consumer_info("reaper").await.unwrap();
    counts.extend([reaper.delivered.stream_sequence, reaper.ack_floor.stream_sequence]);
    (all, counts)
}

/// A job that waits, as its message would say it.
fn item(job: &str, expires_ms: u64) -> WaitingItem {
    WaitingItem {
        id: job.into(),
        queue: "default".into(),
        job_type: "noop".into(),
        key: String::new(),
        trace: String::new(),
        carrier: "JOBS:999999".into(),
        created_ms: 1_700_000_000_000,
        finish_ms: 400_000_000_000,
        max_retries: 3,
        generation: 1,
        expires_ms,
        notify: String::new(),
        summary: String::new(),
    }
}

async fn trouble() -> (World, Connected, Witness) {
    let witness = Witness::default();
    let config = witness.handler("stay", "[ $SURETY_ATTEMPT -gt 1 ] || exec sleep 60")
        + "[contract]\nack = \"100ms\"\n[reaper]\ncarrier_check = \"300ms\"\nrelay_age = \"1ms\"\n";
    let world = World::with(&config).await;
    let c = world.connect().await;
    // Its worker is dead.
    world.publish("default", "held", r#"{"type":"stay"}"#).await;
    let mut doomed = world.worker(&[], &[]);
    witness.started("held", 1).await;
    doomed.kill9().await;
    wait("its session to expire", async || {
        let now = c.store.now_ms().await.unwrap();
        c.store.sessions(0, now, 10).await.unwrap().len() == 1
    })
    .await;
    // No worker has seen it; one was not started in time; one's message is nowhere.
    world.publish("default", "unseen", r#"{"type":"noop"}"#).await;
    c.store.register(0, &[item("stale", 1), item("lost", 0)]).await.unwrap();
    wait("all of it to be due", async || {
        let now = c.store.now_ms().await.unwrap();
        c.store.due(0, now, 10).await.unwrap().len() >= 2
    })
    .await;
    (world, c, witness)
}

// Shows: D-08
#[tokio::test]
async fn a_dry_run_tells_what_one_pass_would_do_and_writes_nothing() {
    let (world, c, _witness) = trouble().await;
    let before = everything(&world).await;
    let said = once(&world, &["--dry-run", "--json"]).await.exits(0);
    assert_eq!(everything(&world).await, before, "{}", said.out);
    let told: Vec<serde_json::Value> = said.out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |rule: &str, what: &str, does: &str| {
        let is_it = |v: &&serde_json::Value| {
            v["rule"] == rule
                && v["of"].as_str().unwrap().contains(what)
                && v["does"].as_str().unwrap().contains(does)
        };
        let found: Vec<_> = told.iter().filter(is_it).collect();
        assert_eq!(found.len(), 1, "{rule} {what} {does}\n{}\n{}", said.out, said.err);
        found[0]["evidence"].as_str().unwrap().to_owned()
    };
    assert!(of("expired_sessions", "", "lost").contains("held:1"));
    assert!(of("deadlines", "stale", "expires_at").contains("queued"));
    assert!(of("deadlines", "lost", "message_lost").contains("JOBS:999999 is gone"));
    assert!(of("waiting", "unseen", "register").contains("no record"));
    let human = once(&world, &["--dry-run"]).await.exits(0);
    assert!(human.out.contains("waiting: unseen: register it\n    because "), "{}", human.out);
    assert_eq!(everything(&world).await, before);

    let said = once(&world, &[]).await.exits(0);
    assert!(said.out.lines().any(|l| l.starts_with("expired_sessions") && l.ends_with(" 1")), "{}", said.out);
    for (job, code) in [("stale", "expired"), ("lost", "message_lost")] {
        assert_eq!(world.ended(&c, job).await.code, code);
    }
    assert_eq!(world.status(&c, "held", Status::RetryWait).await.charged, 1);
    assert_eq!(world.status(&c, "unseen", Status::Queued).await.epoch, 0);
    let _worker = world.worker(&["--state-dir", &world.path("other")], &[]);
    assert_eq!(world.ended(&c, "held").await.status, Status::Done);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
}

// Shows: D-08
#[tokio::test]
async fn one_pass_says_with_its_exit_code_what_went_wrong() {
    let mut world = World::start().await;
    world.connect().await;
    once(&world, &[]).await.exits(0);
    once(&world, &["--dry-run"]).await.exits(0);
    let said = once(&world, &["--no-such-flag"]).await.exits(2);
    assert!(said.err.contains("no-such-flag"), "{}", said.err);
    world.redis.stop().await.unwrap();
    once(&world, &[]).await.exits(69);
}

// Shows: C-10, D-08
#[tokio::test]
async fn three_reapers_do_a_thousand_acts_for_a_thousand_deadlines() {
    const N: usize = 1000;
    let world = World::with("[reaper]\nbatch = 50\n").await;
    let c = world.connect().await;
    let jobs: Vec<String> = (0..N).map(|n| format!("j{n}")).collect();
    for slice in jobs.chunks(100) {
        let items: Vec<_> = slice.iter().map(|j| item(j, 1)).collect();
        c.store.register(0, &items).await.unwrap();
    }
    let reapers = [world.reaper(&[]), world.reaper(&[]), world.reaper(&[])];
    wait("all to have ended", async || c.store.n_open().await.unwrap() == 0).await;
    wait("the outbox to be empty", async || c.store.outbox_len(0).await.unwrap() == 0).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    for j in &jobs {
        assert_eq!((h.count(j, "finished"), h.count(j, "buried")), (1, 1), "{j}");
    }
    let acts: Vec<usize> =
        reapers.iter().map(|r| r.log().matches("it was not started by its `expires_at`").count()).collect();
    assert_eq!(acts.iter().sum::<usize>(), N, "{acts:?}");
    assert_eq!(c.store.record(&id("j0")).await.unwrap().unwrap().code, "expired");
}
