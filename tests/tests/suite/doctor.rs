//! `surety doctor` finds each trap that is set here, and says what repairs it; workers refuse what would lose jobs.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::pull,
    stream::{Config, DiscardPolicy},
};
use futures::StreamExt;
use serde_json::Value;
use surety_tests::{
    command::{Said, is_documented},
    world::{World, wait},
};

/// Runs the doctor; it must end with this code. How full this machine's disk is is no matter of a test.
async fn examine(world: &World, code: i32) -> Value {
    world.surety(&["--json", "doctor", "--skip", "disk"]).await.exits(code).json()
}

/// The findings of a check.
fn of<'a>(report: &'a Value, check: &str) -> Vec<&'a Value> {
    let all = report["findings"].as_array().unwrap();
    all.iter().filter(|f| f["check"] == check).collect()
}

/// One finding: it must be there, with this severity and these words in its repair.
#[track_caller]
fn finding<'a>(report: &'a Value, check: &str, severity: &str, fix: &str) -> &'a Value {
    let found = of(report, check);
    assert!(!found.is_empty(), "{check} was not found in {report:#}");
    let f = found[0];
    assert_eq!(f["severity"], severity, "{f}");
    assert!(f["fix"].as_str().unwrap().contains(fix), "{fix:?} is not in {f}");
    assert!(f["what"].as_str().unwrap().len() > 10 && !f["where"].as_str().unwrap().is_empty(), "{f}");
    f
}

/// A worker must not start, and say why.
async fn refused(world: &World, more: &[&str], parts: &[&str]) {
    let mut worker = world.worker(more, &[]);
    assert_eq!(worker.ended(Duration::from_secs(45)).await, Some(78), "{}", worker.log());
    for part in parts {
        assert!(worker.log().contains(part), "{part:?} is not in {}", worker.log());
    }
}

async fn change_stream(world: &World, name: &str, change: impl FnOnce(&mut Config)) {
    let js = jetstream::new(world.plain().await);
    let mut config = js.get_stream(name).await.unwrap().cached_info().config.clone();
    change(&mut config);
    js.update_stream(config).await.unwrap();
}

async fn change_consumer(world: &World, queue: &str, change: impl FnOnce(&mut pull::Config)) {
    let js = jetstream::new(world.plain().await);
    let stream = js.get_stream("SURETY_JOBS").await.unwrap();
    let consumer = stream.get_consumer::<pull::Config>(queue).await.unwrap();
    let have = consumer.cached_info().config.clone();
    let mut config = pull::Config {
        durable_name: have.durable_name,
        filter_subjects: have.filter_subjects,
        ack_policy: have.ack_policy,
        ack_wait: have.ack_wait,
        max_deliver: have.max_deliver,
        max_ack_pending: have.max_ack_pending,
        max_waiting: have.max_waiting,
        ..pull::Config::default()
    };
    change(&mut config);
    stream.update_consumer(config).await.unwrap();
}

async fn redis(world: &World, command: &[&str]) -> redis::Value {
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut c = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd(command[0]).arg(&command[1..]).query_async(&mut c).await.unwrap()
}

// Shows: B-02
#[tokio::test]
async fn a_healthy_system_is_fine_and_an_empty_one_says_what_to_do() {
    let world = World::on("", "http: \"127.0.0.1:-1\"", &["--appendfsync", "always"]).await;
    let report = examine(&world, 78).await;
    assert_eq!(report["verdict"], "must_fix");
    finding(&report, "not_provisioned", "must_fix", "surety provision");
    world.surety(&["provision"]).await.exits(0);
    let mut worker = world.worker(&[], &[]);
    let _reaper = world.reaper(&[]);
    worker.logged("worker ready").await;
    let report = examine(&world, 0).await;
    is_documented(&report, include_str!("../../../docs/operating.md"), &[]);
    // What nobody can ask through a client is not passed over in silence.
    finding(&report, "power_loss", "unknown", "sync_interval: always");
    assert_eq!(
        (report["findings"].as_array().unwrap().len(), &report["workers"]),
        (1, &1.into()),
        "{report:#}"
    );
    assert_eq!((&report["verdict"], &report["redis"].is_string()), (&"fine".into(), &true));
    assert!(report["checks"].as_u64().unwrap() > 30 && report["nats"].is_string(), "{report}");

    // The monitoring port tells.
    let log = std::fs::read_to_string(format!("{}/nats-server.log", world.path("nats"))).unwrap();
    let address = log.split("http monitor on ").nth(1).unwrap().lines().next().unwrap().trim();
    let url = &format!("http://{address}");
    let said = world.surety(&["--json", "doctor", "--skip", "disk", "--monitor", url]).await.exits(1).json();
    let f = finding(&said, "power_loss", "warning", "sync_interval: always");
    assert!(f["what"].as_str().unwrap().contains("every 2m"), "{f}");
    let said = world.surety(&["doctor", "--skip", "disk", "--monitor", "http://127.0.0.1:1"]).await.exits(0);
    assert!(said.out.contains("does not answer") && said.out.contains("1 live worker:"), "{}", said.out);
    let said = world.surety(&["doctor", "--skip", "power_loss,disk"]).await.exits(0);
    assert!(!said.out.contains("power_loss"), "{}", said.out);
    let said = world.surety(&["doctor", "--skip", "powerloss"]).await.exits(2);
    assert!(said.err.contains("did you mean \"power_loss\"?"), "{}", said.err);
    assert_eq!(worker.stop().await, Some(0), "{}", worker.log());
    assert!(!worker.log().contains("power_loss"), "what is not wrong is not logged: {}", worker.log());
}

#[tokio::test]
async fn a_redis_that_loses_records_is_found_and_no_worker_starts_on_it() {
    for (arguments, check, parts) in [
        (
            &["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"][..],
            "redis_eviction",
            &["maxmemory-policy noeviction", "CONFIG SET"],
        ),
        (&["--appendonly", "no", "--save", "3600 1"], "redis_aof", &["appendonly yes", "snapshots only"]),
    ] {
        let world = World::on("", "", arguments).await;
        world.surety(&["provision"]).await.exits(78);
        let report = examine(&world, 78).await;
        let f = finding(&report, check, "must_fix", parts[0]);
        assert_eq!(f["refuses_start"], true);
        refused(&world, &[], parts).await;
        let mut reaper = world.reaper(&[]);
        assert_eq!(reaper.ended(Duration::from_secs(45)).await, Some(78), "{}", reaper.log());
        assert!(reaper.log().contains(parts[0]), "{}", reaper.log());
    }
}

#[tokio::test]
async fn redis_is_watched_for_memory_persistence_and_its_data() {
    let world = World::start().await;
    let c = world.connect().await;
    finding(&examine(&world, 0).await, "redis_fsync", "note", "appendfsync always");
    redis(&world, &["CONFIG", "SET", "appendfsync", "no"]).await;
    finding(&examine(&world, 1).await, "redis_fsync", "warning", "appendfsync everysec");
    // Just above what it uses.
    let used = c.store.server().await.unwrap().used;
    redis(&world, &["CONFIG", "SET", "maxmemory", &(used + used / 20).to_string()]).await;
    finding(&examine(&world, 78).await, "redis_memory", "must_fix", "maxmemory");
    redis(&world, &["CONFIG", "SET", "maxmemory", "0"]).await;

    // A journal entry that nobody publishes, and a worker that nobody takes back.
    // Version 2, no commit, no time; then the queue, no session, no events.
    let entry = format!("\u{2}{}default\0\0", "\0".repeat(12));
    redis(&world, &["XADD", "surety:{p00}:outbox", "1-1", "e", &entry]).await;
    redis(&world, &["ZADD", "surety:{p00}:sessions", "1", "dead"]).await;
    let report = examine(&world, 1).await;
    finding(&report, "outbox", "warning", "surety-reaper");
    finding(&report, "reaper", "warning", "surety-reaper");
    assert_eq!(report["workers"], 0);

    // It belongs to another broker; then it is empty, although there is a journal.
    redis(&world, &["HSET", "surety:{p00}:store", "jobs", "another"]).await;
    finding(&examine(&world, 78).await, "redis_data_set", "must_fix", "empty Redis");
    redis(&world, &["FLUSHALL"]).await;
    assert_eq!(of(&examine(&world, 1).await, "redis_data_set").len(), 0, "nothing was lost yet");
    let js = jetstream::new(world.plain().await);
    js.publish("surety.events.default", "[]".into()).await.unwrap().await.unwrap();
    finding(&examine(&world, 78).await, "redis_data_set", "must_fix", "guarantees.md");
}

// Shows: G-07
#[tokio::test]
async fn what_was_changed_at_the_broker_by_hand_is_found_and_provision_repairs_it() {
    let world = World::start().await;
    world.connect().await;
    change_stream(&world, "SURETY_SCHED", |s| s.max_messages = 1000).await;
    change_stream(&world, "SURETY_JOBS", |s| {
        s.max_age = Duration::from_secs(3600);
        s.discard = DiscardPolicy::Old;
        s.duplicate_window = Duration::from_secs(1);
    })
    .await;
    change_consumer(&world, "default", |c| {
        c.ack_wait = Duration::from_secs(1);
        c.max_deliver = 3;
        c.headers_only = true;
    })
    .await;
    let report = examine(&world, 78).await;
    finding(&report, "jobs_can_vanish", "must_fix", "surety provision");
    for (place, part) in
        [("stream SURETY_JOBS", "max_age is 3600s and not 0ns"), ("stream SURETY_SCHED", "drops the oldest")]
    {
        let is_told = |f: &&Value| f["where"] == place && f["what"].as_str().unwrap().contains(part);
        assert!(of(&report, "jobs_can_vanish").iter().any(is_told), "{place}: {report:#}");
    }
    finding(&report, "stream_drift", "warning", "surety provision");
    let f = finding(&report, "duplicate_window", "warning", "surety provision");
    assert!(f["what"].as_str().unwrap().contains("second message"), "{f}");
    finding(&report, "consumer_broken", "must_fix", "surety provision");
    finding(&report, "consumer_drift", "warning", "surety provision");
    finding(&report, "ack_wait", "must_fix", "surety provision");
    finding(&report, "max_deliver", "must_fix", "surety provision");
    refused(
        &world,
        &[],
        &[
            "it drops jobs: max_age",
            "it loses deliveries",
            "ack-wait of 1s is too short",
            "after 3 deliveries",
        ],
    )
    .await;

    world.surety(&["provision"]).await.exits(0);
    // A limit is the operator's own, also where it must go.
    change_stream(&world, "SURETY_SCHED", |s| s.max_messages = -1).await;
    let report = examine(&world, 0).await;
    for check in
        ["jobs_can_vanish", "stream_drift", "duplicate_window", "consumer_broken", "ack_wait", "max_deliver"]
    {
        assert!(of(&report, check).is_empty(), "{report:#}");
    }
    let mut worker = world.worker(&[], &[]);
    worker.logged("worker ready").await;
}

#[tokio::test]
async fn queues_that_nobody_can_serve_are_found() {
    let world = World::start().await;
    world.connect().await;
    let nats = world.plain().await;
    let consumer = async |what: &str, queue: &str, body: &str| {
        let subject = format!("$JS.API.CONSUMER.{what}.SURETY_JOBS.{queue}");
        nats.request(subject, body.to_owned().into()).await.unwrap()
    };
    // A job for a queue that no worker pulls, in a consumer that is paused.
    consumer("PAUSE", "default", r#"{"pause_until":"2999-01-01T00:00:00Z"}"#).await;
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    let report = examine(&world, 1).await;
    finding(&report, "consumer_paused", "warning", "surety resume default");
    finding(&report, "unserved_queue", "warning", "surety-worker");
    consumer("PAUSE", "default", "{}").await;
    // Receipts that nobody can deliver: the consumer of all dispatchers is paused, then gone.
    let dispatcher = async |what: &str, body: &str| {
        let subject = format!("$JS.API.CONSUMER.{what}.SURETY_RECEIPTS.dispatcher");
        nats.request(subject, body.to_owned().into()).await.unwrap()
    };
    let of = "consumer dispatcher of SURETY_RECEIPTS";
    dispatcher("PAUSE", r#"{"pause_until":"2999-01-01T00:00:00Z"}"#).await;
    let report = examine(&world, 1).await;
    let f = finding(&report, "consumer_paused", "warning", "resume SURETY_RECEIPTS dispatcher");
    assert_eq!(f["where"], of);
    dispatcher("DELETE", "").await;
    let report = examine(&world, 78).await;
    let f = finding(&report, "consumer_missing", "must_fix", "surety provision");
    assert_eq!((&f["where"], &f["refuses_start"]), (&of.into(), &false.into()));
    world.surety(&["provision"]).await.exits(0);
    // A queue of the settings that is not at the broker, and a worker's that is in neither.
    let with = std::fs::read_to_string(world.config_file()).unwrap();
    let more = with.replace("\"default\"", "\"default\", \"extra\"");
    assert_ne!(with, more);
    std::fs::write(world.config_file(), &more).unwrap();
    let report = examine(&world, 1).await;
    assert_eq!(
        finding(&report, "queue_not_provisioned", "warning", "surety provision")["where"],
        "queue extra"
    );
    refused(&world, &["--queues", "nowhere"], &["names \"nowhere\"", "declared: critical, default"]).await;

    // A subject that nobody covers takes jobs without an error.
    change_stream(&world, "SURETY_JOBS", |s| s.subjects.push("surety.jobs.typo.>".into())).await;
    world.publish("typo", "b", r#"{"type":"noop"}"#).await;
    let report = examine(&world, 78).await;
    let f = finding(&report, "uncovered_subject", "must_fix", "layout.queues");
    assert_eq!((&f["where"], &f["refuses_start"]), (&"subject surety.jobs.typo.>".into(), &false.into()));
    let f = finding(&report, "stray_messages", "must_fix", "uncovered_subject");
    assert!(f["what"].as_str().unwrap().starts_with("1 of its messages"), "{f}");

    // Only a worker that needs the consumer refuses to start without it.
    consumer("DELETE", "default", "").await;
    let report = examine(&world, 78).await;
    finding(&report, "consumer_missing", "must_fix", "surety provision");
    refused(&world, &["--queues", "default"], &["does not exist", "surety provision"]).await;
    let mut worker = world.worker(&["--queues", "critical"], &[]);
    worker.logged("worker ready").await;
    let mut reaper = world.reaper(&[]);
    reaper.logged("reaper ready").await;
    assert!(reaper.log().contains("consumer_missing"), "it says so and goes on: {}", reaper.log());
}

#[tokio::test]
async fn a_message_that_the_broker_gave_up_is_stray_until_a_reaper_buries_it() {
    let world = World::with("[layout]\nmax_deliver = 6").await;
    let c = world.connect().await;
    change_consumer(&world, "default", |c| c.max_deliver = 1).await;
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    let js = jetstream::new(world.plain().await);
    let stream = js.get_stream("SURETY_JOBS").await.unwrap();
    let consumer = stream.get_consumer::<pull::Config>("default").await.unwrap();
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    let message = batch.next().await.unwrap().unwrap();
    message.ack_with(jetstream::AckKind::Nak(None)).await.unwrap();
    wait("the message to be stray", async || {
        // The broker notices at a pull after it has worked off the nak.
        drop(consumer.fetch().max_messages(1).messages().await.unwrap().next().await);
        !of(&world.surety(&["--json", "doctor"]).await.json(), "stray_messages").is_empty()
    })
    .await;
    let report = examine(&world, 78).await;
    finding(&report, "stray_messages", "must_fix", "run a reaper");
    let _reaper = world.reaper(&[]);
    world.ended(&c, "a").await;
    wait("the message to be gone", async || {
        of(&world.surety(&["--json", "doctor"]).await.json(), "stray_messages").is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_limit_of_held_messages_that_the_fleet_reaches_is_found() {
    let world = World::start().await;
    let c = world.connect().await;
    change_consumer(&world, "default", |c| c.max_ack_pending = 2).await;
    let mut worker = world.worker(&["--slots", "2"], &[]);
    worker.logged("worker ready").await;
    assert!(worker.log().contains("max_ack_pending is 2 and not 1000000"), "{}", worker.log());
    let report = examine(&world, 1).await;
    let f = finding(&report, "max_ack_pending", "warning", "layout.max_ack_pending");
    assert!(f["what"].as_str().unwrap().contains("2 slots"), "{f}");
    for id in ["a", "b", "c"] {
        world.publish("default", id, r#"{"type":"nobody-handles-this"}"#).await;
    }
    // Handed on with a delay, they hold both places: the third is not delivered.
    wait("the consumer to be full", async || {
        let report = world.surety(&["--json", "doctor"]).await.json();
        of(&report, "max_ack_pending").iter().any(|f| f["severity"] == "must_fix")
    })
    .await;
    drop((worker, c));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_delayed_jobs_are_told() {
    const N: usize = 100_000;
    let world = World::start().await;
    world.connect().await;
    let client = world.plain().await;
    for _ in 0..N {
        client.publish("surety.jobs.default", r#"{"type":"noop"}"#.into()).await.unwrap();
    }
    client.flush().await.unwrap();
    let js = jetstream::new(client.clone());
    let stream = js.get_stream("SURETY_JOBS").await.unwrap();
    let consumer = stream.get_consumer::<pull::Config>("default").await.unwrap();
    let mut left = N;
    while left > 0 {
        let mut batch = consumer.fetch().max_messages(left.min(5000)).messages().await.unwrap();
        while let Some(m) = batch.next().await {
            let m = m.unwrap();
            // An hour: they are in backoff as long as this test runs.
            let delay = "-NAK {\"delay\":3600000000000}";
            client.publish(m.reply.clone().unwrap(), delay.into()).await.unwrap();
            left -= 1;
        }
    }
    client.flush().await.unwrap();
    let report = examine(&world, 1).await;
    let f = finding(&report, "delayed", "warning", "backoff");
    assert!(f["what"].as_str().unwrap().starts_with("100000 jobs are in backoff"), "{f}");
    // Without records they cannot be told apart, which the table says.
    let said = world.surety(&["queues"]).await.exits(0);
    assert!(said.out.contains(" 0 "), "{}", said.out);
}

#[tokio::test]
async fn a_user_that_may_not_do_its_work_is_told_which_subjects_it_lacks() {
    let users = r#"
authorization { users = [
  {user: "admin", password: "a"}
  {user: "lame", password: "l", permissions: {
    publish: {allow: ["$JS.API.>", "$SYS.REQ.USER.INFO", "surety.>"], deny: ["$JS.API.CONSUMER.MSG.NEXT.*.critical"]}
    subscribe: ["_INBOX.>"] } }
  {user: "narrow", password: "n", permissions: {
    publish: ["$SYS.REQ.USER.INFO", "$JS.API.STREAM.INFO.SURETY_JOBS", "$JS.API.CONSUMER.INFO.*.*"
      "$JS.API.STREAM.INFO.KV_SURETY_PAUSES"
      "$JS.API.CONSUMER.MSG.NEXT.*.default", "$JS.API.DIRECT.GET.*", "$JS.ACK.*.default.>", "surety.events.>"
      "surety.dlq.>", "surety.receipts.>", "$JS.API.CONSUMER.MSG.NEXT.*.dispatcher", "$JS.ACK.*.dispatcher.>"]
    subscribe: ["_INBOX.>"] } } ] }"#;
    let world = World::on("", users, &[]).await;
    let at = |user: &str| world.nats.url().replace("://", &format!("://{user}@"));
    world.surety_at(&at("admin:a"), &["provision"]).await.exits(0);
    let ask = async |user: &str, code: i32| -> Said {
        world
            .surety_at(&at(user), &["--json", "doctor", "--skip", "disk", "--as", "worker"])
            .await
            .exits(code)
    };
    assert!(of(&ask("admin:a", 0).await.json(), "permissions").is_empty());
    let report = ask("lame:l", 78).await.json();
    let f = finding(&report, "permissions", "must_fix", "permissions.publish");
    let what = f["what"].as_str().unwrap();
    for lacks in ["$JS.ACK.SURETY_JOBS.default.>", "$JS.API.CONSUMER.MSG.NEXT.SURETY_JOBS.critical"] {
        assert!(what.contains(lacks), "{lacks}: {what}");
    }
    assert!(!what.contains("NEXT.SURETY_JOBS.default") && !what.contains("surety.events"), "{what}");
    refused(&world, &["--nats", &at("lame:l")], &["may not publish to", "$JS.ACK.SURETY_JOBS.default.>"])
        .await;

    // Who may do no more than its own queue needs is fine with that queue; what it may not see is told as not known.
    let settings = std::fs::read_to_string(world.config_file()).unwrap();
    std::fs::write(world.config_file(), settings.replace("[worker]", "[worker]\nqueues = [\"default\"]"))
        .unwrap();
    let report = ask("narrow:n", 0).await.json();
    let f = finding(&report, "stream_drift", "unknown", "$JS.API.STREAM.INFO.SURETY_");
    assert!(f["what"].as_str().unwrap().contains("may not publish to"), "{f}");
    let mut worker = world.worker(&["--nats", &at("narrow:n")], &[]);
    worker.logged("worker ready").await;
    world.surety_at(&at("admin:a"), &["enqueue", "noop", "--wait"]).await.exits(0);
}

#[tokio::test]
async fn a_server_that_is_away_does_not_hide_what_the_other_says() {
    let mut world = World::with("[connection]\nretry_limit = \"1s\"").await;
    world.connect().await;
    change_consumer(&world, "default", |c| c.max_deliver = 30).await;
    world.redis.kill9().await.unwrap();
    let report = examine(&world, 69).await;
    finding(&report, "redis_unreachable", "must_fix", "REDIS_URL");
    finding(&report, "consumer_drift", "warning", "surety provision");
    world.nats.kill9().await.unwrap();
    let report = examine(&world, 69).await;
    finding(&report, "nats_unreachable", "must_fix", "NATS_URL");
    assert_eq!((&report["verdict"], &report["nats"]), (&"unreachable".into(), &Value::Null));
}

// Shows: B-02
#[tokio::test]
async fn a_clock_of_redis_that_was_set_back_is_told() {
    let world = World::start().await;
    let c = world.connect().await;
    // Ten minutes ahead, as an entry that was written before somebody set the clock back.
    let ahead = c.store.now_ms().await.unwrap() + 600_000;
    let (key, id) = (c.store.keys().outbox(0), format!("{ahead}-1"));
    let mut redis = world.redis.plain(0).await;
    let _: String =
        redis::cmd("XADD").arg(&key).arg(&id).arg("x").arg("y").query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("XDEL").arg(&key).arg(&id).query_async(&mut redis).await.unwrap();
    let report = examine(&world, 1).await;
    let found = finding(&report, "clocks", "warning", "time service");
    assert!(found["what"].as_str().unwrap().contains("was set back"), "{found}");
}
