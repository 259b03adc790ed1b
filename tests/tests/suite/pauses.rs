//! Pauses: what is held starts nothing, everything else flows, and what was held starts when the pause ends.

use std::time::Duration;

use serde_json::json;
use surety_common::{
    clock::parse_time,
    connect::Connected,
    domain::{Status, pause::Target},
};
use surety_tests::{
    process::Process,
    proxy::Proxy,
    scrape,
    witness::{Witness, kinds},
    world::{World, messages, wait},
};

/// A world with two types that can be told apart.
struct Case {
    world: World,
    c: Connected,
    witness: Witness,
}

impl Case {
    async fn start() -> Self {
        let witness = Witness::default();
        let handlers = witness.handler("held", "true")
            + &witness.handler("free", "true")
            + &witness.handler("long", "until [ -e $W.go ]; do sleep 0.02; done");
        let world = World::with(&handlers).await;
        let c = world.connect().await;
        Self { world, c, witness }
    }

    async fn pause(&self, what: &[&str]) -> String {
        self.world.surety(&[&["pause"], what].concat()).await.exits(0).out
    }

    async fn resume(&self, what: &[&str]) -> String {
        self.world.surety(&[&["resume"], what].concat()).await.exits(0).out
    }

    async fn add(&self, queue: &str, id: &str, body: &str) {
        self.world.publish(queue, id, body).await;
    }

    /// Enqueues a job that nothing holds, behind all others, and waits until it is done: a worker has seen the others then.
    async fn flows(&self, queue: &str, id: &str) {
        self.add(queue, id, r#"{"type":"free"}"#).await;
        self.world.status(&self.c, id, Status::Done).await;
    }

    fn started(&self, id: &str) -> bool {
        self.witness.starts().iter().any(|s| s.job == id)
    }

    fn none_started(&self, ids: &[&str]) {
        for id in ids {
            assert!(!self.started(id), "{id} was started\n{}", self.world.logs());
        }
    }

    async fn all_done(&self, ids: &[&str]) {
        for id in ids {
            self.world.status(&self.c, id, Status::Done).await;
        }
        self.world.drained(&self.c).await;
        self.world.history(&self.c).await.check().unwrap();
    }

    async fn why(&self, id: &str) -> serde_json::Value {
        self.world.ask(&["why", id]).await["gate"].clone()
    }
}

async fn ready(mut p: Process) -> Process {
    p.logged("worker ready").await;
    p
}

const HELD: &str = r#"{"type":"held"}"#;
const KEYED: &str = r#"{"type":"free","key":"acme/site €"}"#;

// Shows: S-04
#[tokio::test]
async fn a_paused_type_and_a_paused_key_hold_their_jobs_and_no_others() {
    let case = Case::start().await;
    let said = case.pause(&["--type", "held", "--reason", "disk is full", "--by", "ann"]).await;
    assert!(said.contains("type held is paused until it is resumed"), "{said}");
    case.pause(&["--key", "acme/site €", "--for", "2h"]).await;
    for (queue, id, body) in [
        ("default", "t1", HELD),
        ("critical", "t2", HELD),
        ("default", "k1", KEYED),
        ("critical", "k2", KEYED),
    ] {
        case.add(queue, id, body).await;
    }
    case.add("default", "other-key", r#"{"type":"free","key":"acme/site"}"#).await;
    // The first jobs that it ever sees are held: it knew before.
    let mut worker = ready(case.world.worker(&["--listen", "127.0.0.1:0"], &[])).await;
    case.flows("critical", "f1").await;
    case.flows("default", "f2").await;
    case.world.status(&case.c, "other-key", Status::Done).await;
    case.none_started(&["t1", "t2", "k1", "k2"]);

    for id in ["t1", "k2"] {
        let r = case.world.status(&case.c, id, Status::Deferred).await;
        assert_eq!((r.code.as_str(), r.attempt), ("paused", 0), "{id}");
    }
    let gate = case.why("t1").await;
    assert_eq!((&gate["code"], &gate["until"]), (&json!("paused"), &json!(null)), "{gate}");
    let what = gate["what"].as_str().unwrap();
    assert!(what.contains("type held is paused by ann") && what.contains("disk is full"), "{what}");
    let gate = case.why("k1").await;
    assert!(gate["code"] == "paused" && gate["until"].is_string(), "{gate}");
    assert!(gate["then"].as_str().unwrap().contains("surety resume --key 'acme/site €'"), "{gate}");
    // What they stand in line for is told by its own name, with its end.
    let told = case.world.ask(&["guards", "--kind", "pause"]).await;
    let lines: Vec<_> =
        told["guards"].as_array().unwrap().iter().map(|g| (&g["scope"], &g["clears_at"])).collect();
    let end = &json!("key \"acme/site €\"");
    assert_eq!(lines, [(end, &gate["until"]), (&json!("type held"), &json!(null))], "{told}");
    let also = case.world.ask(&["why", "k1"]).await["also"].to_string();
    assert!(also.contains("acme/site €") && !also.contains("key."), "{also}");
    let list = case.world.ask(&["pause", "--list"]).await;
    let names: Vec<_> = list["pauses"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
    assert_eq!(names, ["held", "acme/site €"], "{list}");
    assert!(list["pauses"][1]["by"].as_str().unwrap().contains('@'), "{list}");
    assert!(case.world.surety(&["queues"]).await.exits(0).err.contains("2 types or keys are paused"));
    let at = scrape::address(&mut worker).await;
    let seen = scrape::Scrape::of(at).await;
    assert!(seen.sum("surety_deferrals_total", &[("reason", "paused")]).unwrap() >= 4.0);
    assert_eq!(scrape::ready(at).await.1["pauses"], "ok");

    case.resume(&["--type", "held"]).await;
    case.all_but(&["k1", "k2"]).await;
    case.none_started(&["k1", "k2"]);
    let said = case.resume(&["--key", "acme/site €"]).await;
    assert!(said.contains("is resumed"), "{said}");
    case.all_done(&["t1", "t2", "k1", "k2"]).await;
    assert_eq!(kinds(&case.world, &case.c, "t1").await, ["deferred", "started", "finished"]);
    let h = case.world.history(&case.c).await;
    assert_eq!(h.jobs["t1"].events[0].data["reason"], "paused");
}

// Shows: S-08
#[tokio::test]
async fn many_paused_jobs_are_delivered_once_and_start_when_the_pause_is_over() {
    const N: usize = 1000;
    let case = Case::start().await;
    case.pause(&["--type", "noop"]).await;
    let mut worker = ready(case.world.worker(&["--listen", "127.0.0.1:0", "--slots", "50"], &[])).await;
    let at = scrape::address(&mut worker).await;
    let nats = case.world.plain().await;
    for n in 0..N {
        nats.publish(format!("surety.jobs.default.n{n}"), r#"{"type":"noop"}"#.into()).await.unwrap();
    }
    nats.flush().await.unwrap();
    let held = async || {
        let seen = scrape::Scrape::of(at).await;
        seen.sum("surety_deferrals_total", &[("reason", "paused")])
    };
    wait("all to be held", async || held().await == Some(N as f64)).await;
    case.flows("default", "f").await;
    // Delivered once each, and never again while they are held.
    let seen = scrape::Scrape::of(at).await;
    assert_eq!(seen.sum("surety_deliveries_total", &[]), Some(N as f64 + 1.0));
    assert_eq!((held().await, lines(&case).await), (Some(N as f64), 1));
    case.resume(&["--type", "noop"]).await;
    let resumed = std::time::Instant::now();
    case.world.drained(&case.c).await;
    // Each would sleep for a minute if nobody woke it.
    assert!(resumed.elapsed() < Duration::from_secs(30), "{:?}", resumed.elapsed());
    for n in [0, N / 2, N - 1] {
        case.world.status(&case.c, &format!("n{n}"), Status::Done).await;
    }
    wait("the line to be forgotten", async || lines(&case).await == 0).await;
}

/// Scopes of guards that are kept.
async fn lines(case: &Case) -> usize {
    let mut n = 0;
    for p in 0..case.c.store.keys().partitions() {
        n += case.c.store.guard_scopes(p, u64::MAX / 4096, 0, 100).await.unwrap().len();
    }
    n
}

// Shows: S-04
#[tokio::test]
async fn a_pause_of_a_key_that_cannot_be_read_is_resumed_by_the_name_that_it_is_shown_by() {
    let case = Case::start().await;
    let slot = Target::key("acme").unwrap().slot().to_string();
    let js = async_nats::jetstream::new(case.world.plain().await);
    let entry = js.publish(format!("$KV.SURETY_PAUSES.{slot}"), "not json".into()).await.unwrap();
    entry.await.unwrap();
    let mut worker = ready(case.world.worker(&[], &[])).await;
    worker.logged("what is paused is not started").await;
    case.add("default", "t", r#"{"type":"held","key":"acme"}"#).await;
    case.world.status(&case.c, "t", Status::Deferred).await;
    // It stands in the line of that pause, and not of another that nobody would open, or that a reaper would at once.
    let mut labels = Vec::new();
    for p in 0..case.c.store.keys().partitions() {
        let found = case.c.store.guard_scopes(p, u64::MAX / 4096, 0, 100).await.unwrap();
        labels.extend(found.into_iter().map(|s| s.scope.label));
    }
    assert_eq!(labels, std::slice::from_ref(&slot));
    let listed = case.world.ask(&["pause", "--list"]).await;
    let name = listed["pauses"][0]["name"].as_str().unwrap().to_owned();
    assert_eq!(name, slot.replace("key.", "#"));
    case.resume(&["--key", &name]).await;
    case.all_done(&["t"]).await;
    case.world.surety(&["resume", "--key", &name]).await.exits(1);
}

#[tokio::test]
async fn a_reaper_wakes_what_was_resumed_while_no_worker_was_there() {
    let case = Case::start().await;
    let mut reaper = case.world.reaper(&[]);
    let mut worker = ready(case.world.worker(&[], &[])).await;
    case.pause(&["--type", "held"]).await;
    // The command does not wait until every worker has heard of it.
    worker.logged("what is paused is not started").await;
    case.add("default", "t", HELD).await;
    case.world.status(&case.c, "t", Status::Deferred).await;
    worker.kill9().await;
    case.resume(&["--type", "held"]).await;
    wait("the line to be opened", async || lines(&case).await == 0).await;
    let _worker = ready(case.world.worker(&[], &[])).await;
    case.all_done(&["t"]).await;
    assert_eq!(reaper.stop().await, Some(0));
}

impl Case {
    /// Waits until the two jobs of the type that was held are done, while those are still held.
    async fn all_but(&self, held: &[&str]) {
        for id in ["t1", "t2"] {
            self.world.status(&self.c, id, Status::Done).await;
        }
        self.flows("default", "f3").await;
        self.none_started(held);
    }
}

#[tokio::test]
async fn a_paused_queue_gives_nothing_out_while_what_runs_goes_on() {
    let case = Case::start().await;
    let _worker = ready(case.world.worker(&[], &[])).await;
    case.add("critical", "runs", r#"{"type":"long"}"#).await;
    case.witness.started("runs", 1).await;
    let said = case.pause(&["critical", "--reason", "database moves"]).await;
    assert!(said.contains("queue critical is paused until it is resumed"), "{said}");
    for id in ["q1", "q2"] {
        case.add("critical", id, r#"{"type":"free"}"#).await;
    }
    let later = ["enqueue", "free", "--id", "q3", "--queue", "critical", "--in", "100ms"];
    case.world.surety(&later).await.exits(0);
    case.witness.touch("go");
    case.world.status(&case.c, "runs", Status::Done).await;
    case.flows("default", "f1").await;
    wait("the schedule to fire", async || case.world.ask(&["queues"]).await["queues"][0]["waiting"] == 3)
        .await;
    case.none_started(&["q1", "q2", "q3"]);
    let q = case.world.ask(&["queues"]).await["queues"][0].clone();
    assert_eq!((&q["queue"], &q["paused"]["reason"]), (&json!("critical"), &json!("database moves")), "{q}");
    assert!(q["consumers"].as_array().unwrap().iter().all(|c| c["state"] == "paused"), "{q}");
    let table = case.world.surety(&["queues"]).await.exits(0).out;
    assert!(table.contains("paused by ") && table.contains("database moves"), "{table}");
    assert_eq!(case.why("q1").await["code"], "paused");
    let doctor = case.world.surety(&["doctor"]).await;
    assert!(
        doctor.out.contains("queue critical") && doctor.out.contains("surety resume critical"),
        "{doctor:?}"
    );

    // Provisioning keeps it, also where a consumer has to be made anew.
    assert_eq!(case.world.surety(&["provision"]).await.exits(0).out, "nothing to do\n");
    let nats = case.world.plain().await;
    nats.request("$JS.API.CONSUMER.DELETE.SURETY_JOBS.critical", "".into()).await.unwrap();
    let said = case.world.surety(&["provision"]).await.exits(0).out;
    assert!(said.contains("consumer critical paused, as its queue is"), "{said}");
    case.flows("default", "f2").await;
    case.none_started(&["q1", "q2", "q3"]);

    case.resume(&["critical"]).await;
    case.all_done(&["q1", "q2", "q3"]).await;
    // Paused by something else, without a word: listed, and resumed all the same.
    let until = r#"{"pause_until":"2999-01-01T00:00:00Z"}"#;
    nats.request("$JS.API.CONSUMER.PAUSE.SURETY_JOBS.critical", until.into()).await.unwrap();
    let list = case.world.ask(&["pause", "--list"]).await;
    assert_eq!(list["pauses"][0]["by"], "unknown", "{list}");
    assert!(case.resume(&["critical"]).await.contains("nobody had said why"));
    case.flows("critical", "f4").await;
}

// Shows: S-04
#[tokio::test]
async fn a_pause_outlives_every_restart_and_the_loss_of_redis() {
    let mut case = Case::start().await;
    let _reaper = case.world.reaper(&[]);
    let mut worker = ready(case.world.worker(&[], &[])).await;
    case.pause(&["--type", "held"]).await;
    case.pause(&["critical"]).await;
    case.add("default", "t", HELD).await;
    case.add("critical", "q", r#"{"type":"free"}"#).await;
    let ids = ["t", "q"];
    case.flows("default", "f1").await;
    worker.kill9().await;
    let _worker = ready(case.world.worker(&[], &[])).await;
    case.flows("default", "f2").await;
    case.none_started(&ids);
    case.world.nats.kill9().await.unwrap();
    case.world.nats.restart().await.unwrap();
    case.flows("default", "f3").await;
    case.none_started(&ids);
    wait("the journal to know who waits", async || kinds(&case.world, &case.c, "t").await == ["deferred"])
        .await;
    let mut redis = redis::Client::open(case.world.redis.url())
        .unwrap()
        .get_multiplexed_async_connection()
        .await
        .unwrap();
    redis::cmd("FLUSHALL").exec_async(&mut redis).await.unwrap();
    case.flows("default", "f4").await;
    case.none_started(&ids);
    assert_eq!(case.world.ask(&["pause", "--list"]).await["pauses"].as_array().unwrap().len(), 2);
    case.resume(&["--type", "held"]).await;
    case.resume(&["critical"]).await;
    for id in ids {
        case.world.status(&case.c, id, Status::Done).await;
    }
}

#[tokio::test]
async fn a_pause_ends_by_itself_and_not_before() {
    let case = Case::start().await;
    let _reaper = case.world.reaper(&[]);
    let _worker = ready(case.world.worker(&[], &[])).await;
    let mut ends = Vec::new();
    for what in [["--type", "held"].as_slice(), &["--key", "acme/site €"], &["critical"]] {
        let said = case.world.ask(&[&["pause"], what, &["--for", "3s"]].concat()).await;
        ends.push(parse_time(said["paused"]["until"].as_str().unwrap()).unwrap());
    }
    let jobs = [("default", "t", HELD), ("default", "k", KEYED), ("critical", "q", r#"{"type":"free"}"#)];
    for (queue, id, body) in jobs {
        case.add(queue, id, body).await;
    }
    case.flows("default", "f").await;
    for ((_, id, _), end) in jobs.into_iter().zip(ends) {
        case.world.status(&case.c, id, Status::Done).await;
        let h = case.world.history(&case.c).await;
        let job = &h.jobs[id].events;
        let started = job.iter().find(|e| e.kind == "started").unwrap();
        assert!(parse_time(&started.at).unwrap() >= end, "{id}: {} and not after {end}", started.at);
    }
    // Nothing is left of them, and they cannot be ended twice.
    assert_eq!(case.world.ask(&["pause", "--list"]).await["pauses"], json!([]));
    let said = case.world.surety(&["resume", "--type", "held"]).await.exits(1);
    assert!(said.err.contains("is not paused"), "{said:?}");
}

#[tokio::test]
async fn a_pause_that_was_made_while_a_worker_was_cut_off_holds_when_it_is_back() {
    let case = Case::start().await;
    let proxy = Proxy::start(([127, 0, 0, 1], case.world.nats.port()).into()).await.unwrap();
    let _worker = ready(case.world.worker(&["--nats", &format!("nats://{}", proxy.addr())], &[])).await;
    case.flows("default", "f1").await;
    proxy.cut();
    case.add("default", "t", HELD).await;
    case.pause(&["--type", "held"]).await;
    proxy.heal();
    case.flows("default", "f2").await;
    case.none_started(&["t"]);
    case.resume(&["--type", "held"]).await;
    case.all_done(&["t"]).await;
}

#[tokio::test]
async fn what_cannot_be_paused_or_resumed_is_refused_with_what_to_do() {
    let case = Case::start().await;
    for (args, code, says) in [
        (&["pause", "defualt"][..], 2, "did you mean \"default\""),
        (&["resume", "defualt"], 2, "did you mean \"default\""),
        (&["resume", "default"], 1, "queue default is not paused; `surety pause --list` shows what is"),
        (&["resume", "--key", "x"], 1, "key \"x\" is not paused"),
        (&["pause", "default", "--until", "2020-01-01T00:00:00Z"], 2, "not ahead"),
        (&["pause", "default", "--for", "0s"], 2, "not ahead"),
        (&["pause", "default", "--type", "t"], 2, "cannot be used with"),
        (&["pause"], 2, "required"),
        (&["pause", "--key", ""], 2, "--key"),
    ] {
        let said = case.world.surety(args).await.exits(code);
        assert!(said.err.contains(says), "{args:?}: {said:?}");
    }
    assert_eq!(case.world.ask(&["pause", "--list"]).await, json!({"pauses": []}));
    assert_eq!(messages(&case.world, "KV_SURETY_PAUSES").await, 0);
    // Of many pauses that are over only the last trace is kept.
    for n in 0..3 {
        let name = format!("t{n}");
        let again = case.world.ask(&["pause", "--type", &name, "--for", "1h"]).await;
        assert!(again["replaced"].is_null(), "{again}");
        let again = case.world.ask(&["pause", "--type", &name, "--by", "bob"]).await;
        assert!(again["replaced"]["until"].is_string() && again["paused"]["by"] == "bob", "{again}");
        case.resume(&["--type", &name]).await;
    }
    assert_eq!(messages(&case.world, "KV_SURETY_PAUSES").await, 1);
    // Without the bucket nothing starts, and `provision` makes it.
    let js = async_nats::jetstream::new(case.world.plain().await);
    js.delete_stream("KV_SURETY_PAUSES").await.unwrap();
    let said = case.world.surety(&["pause", "default"]).await.exits(78);
    assert!(said.err.contains("surety provision"), "{said:?}");
    let mut worker = case.world.worker(&[], &[]);
    assert_eq!(worker.ended(Duration::from_secs(20)).await, Some(78), "{}", worker.log());
    assert!(case.world.surety(&["provision"]).await.exits(0).out.contains("KV_SURETY_PAUSES created"));
}
