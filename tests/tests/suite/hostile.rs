//! What somebody with the rights of a producer, or of a handler, may send: it costs a stated bound, and nobody else.

use surety_common::domain::Status;
use surety_tests::{
    scrape::{address, get},
    witness::{Witness, dead_letters, settled},
    world::{World, wait},
};

use super::metrics::LISTEN;

// Shows: P8, J-12
#[tokio::test]
async fn a_generation_that_is_none_is_refused_and_holds_no_slot() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut worker = world.worker(&["--slots", "2"], &[]);
    let js = async_nats::jetstream::new(world.plain().await);
    let bad = ["0", "-1", "+1", "1.5", "abc", "4294967296", "1000000001", "99999999999999999999"];
    for (i, generation) in bad.iter().enumerate() {
        let mut h = async_nats::HeaderMap::new();
        h.insert("Surety-Generation", *generation);
        let subject = format!("surety.jobs.default.g{i}");
        js.publish_with_headers(subject, h, r#"{"type":"noop"}"#.into()).await.unwrap().await.unwrap();
    }
    world.publish("default", "behind", r#"{"type":"noop"}"#).await;
    assert_eq!(world.ended(&c, "behind").await.status, Status::Done);
    for (i, generation) in bad.iter().enumerate() {
        let r = world.ended(&c, &format!("g{i}")).await;
        assert_eq!((r.status, r.code.as_str()), (Status::Failed, "invalid_job"), "{generation}");
    }
    settled(&world, &c).await;
    assert!(dead_letters(&world).await.iter().all(|l| l.message.contains("Surety-Generation")));
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: P8, J-12
#[tokio::test]
async fn a_reason_has_a_bound_whatever_is_wrong_with_a_document() {
    let world = World::with("[worker]\nhand_on_limit = 1\n").await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let long = "x".repeat(400_000);
    let spans: Vec<String> = (0..100_000).map(|i| format!("\"{i}q\"")).collect();
    let names: Vec<String> = (0..20_000).map(|i| format!("\"f{i}\":1")).collect();
    for (id, body) in [
        ("name", format!(r#"{{"type":"noop","{long}":1}}"#)),
        ("names", format!(r#"{{"type":"noop",{}}}"#, names.join(","))),
        ("spans", format!(r#"{{"type":"noop","retry":{{"backoff":[{}]}}}}"#, spans.join(","))),
        ("type", format!(r#"{{"type":"{long}"}}"#)),
        ("time", format!(r#"{{"type":"noop","expires_at":"{long}"}}"#)),
        ("subject", format!(r#"{{"type":"noop","notify":{{"subject":"{long}"}}}}"#)),
    ] {
        world.publish("default", id, &body).await;
        assert_eq!(world.ended(&c, id).await.status, Status::Failed, "{id}");
    }
    settled(&world, &c).await;
    for l in dead_letters(&world).await {
        assert!(l.message.len() <= 600, "{}: {} bytes", l.job, l.message.len());
    }
    let longest = worker.log().lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 20_000, "a line of the log has {longest} bytes");
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: P-08, O-03
#[tokio::test]
async fn what_is_kept_of_a_failed_attempt_and_of_a_result_is_bounded_as_it_is_stored() {
    let odd = r"head -c 300000 /dev/zero | tr '\0' '\001'";
    let config = format!(
        "[handlers.tails]\ncommand = ['sh', '-c', '''for i in $(seq 200); do {odd} | head -c 4000; echo; {odd} | head -c 4000 >&2; echo >&2; done; exit 65''']\n\
         [handlers.result]\ncommand = ['sh', '-c', '''{odd}''']\n"
    );
    let world = World::with(&config).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    for job in ["tails", "result"] {
        let body = format!(r#"{{"type":"{job}","retry":{{"max_retries":0}}}}"#);
        world.publish("default", job, &body).await;
    }
    assert_eq!(world.ended(&c, "tails").await.status, Status::Failed);
    let mut redis = world.redis.plain(0).await;
    let kept: usize =
        redis::cmd("STRLEN").arg("surety:{p00}:data:tails").query_async(&mut redis).await.unwrap_or(0);
    assert!(kept > 1000 && kept <= 70 * 1024, "{kept} bytes beside the record");
    assert_eq!(world.ended(&c, "result").await.status, Status::Done);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    let receipt = h.jobs["result"].events.last().unwrap().data["receipt"].to_string();
    assert!(receipt.len() <= 257 * 1024 && receipt.len() > 1000, "{} bytes", receipt.len());
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: P1, A-05, O-06
#[tokio::test]
async fn handlers_that_succeed_while_redis_refuses_writes_have_succeeded() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done")).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    let set = async |what: &str, value: &str| {
        for node in 0..world.redis.nodes.len() {
            let mut redis = world.redis.plain(node).await;
            let () =
                redis::cmd("CONFIG").arg("SET").arg(what).arg(value).query_async(&mut redis).await.unwrap();
        }
    };
    for (what, bad, good) in [("min-replicas-to-write", "3", "0"), ("maxmemory", "1", "0")] {
        let jobs: Vec<String> = (0..4).map(|i| format!("{what}-{i}")).collect();
        for job in &jobs {
            world.publish("default", job, r#"{"type":"work","retry":{"max_retries":0}}"#).await;
            witness.started(job, 1).await;
        }
        set(what, bad).await;
        witness.touch("go");
        for job in &jobs {
            witness.dead(job, 1).await;
        }
        wait("readiness to say it", async || {
            let (status, body) = get(at, "/readyz").await;
            status == 503 && (body.contains("NOREPLICAS") || body.contains("OOM"))
        })
        .await;
        set(what, good).await;
        for job in &jobs {
            let r = world.ended(&c, job).await;
            assert_eq!((r.status, witness.executions(job)), (Status::Done, 1), "{job}");
        }
        wait("the worker to be ready", async || get(at, "/readyz").await.0 == 200).await;
    }
    assert!(get(at, "/metrics").await.1.contains("surety_alerts_total{alert=\"redis_refuses_writes\"} 2"));
    world.history(&c).await.check().unwrap();
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: J-10
#[tokio::test]
async fn an_id_that_belongs_to_another_job_is_told_and_its_outcome_is_not_ours() {
    let world = World::with("[layout]\nduplicate_window = \"1s\"\n").await;
    let c = world.connect().await;
    // Its message id is the id of a job that somebody enqueues next.
    let js = async_nats::jetstream::new(world.plain().await);
    let mut h = async_nats::HeaderMap::new();
    h.insert("Nats-Msg-Id", "c");
    let body = r#"{"type":"noop"}"#;
    js.publish_with_headers("surety.jobs.default.other", h, body.into()).await.unwrap().await.unwrap();
    let said = world.surety(&["enqueue", "noop", "--id", "c"]).await.exits(3);
    assert!(said.err.contains("surety.jobs.default.other"), "{}", said.err);

    let mut worker = world.worker(&[], &[]);
    let enqueue = async || world.surety(&["enqueue", "noop", "--id", "b", "--wait", "--json"]).await;
    let first = enqueue().await.exits(0).json();
    let ended = world.ended(&c, "b").await;
    // Within the window it is a copy, whose outcome is that of the first; afterwards it is a job that does not run.
    let late = std::cell::RefCell::new(None);
    wait("the window to pass", async || {
        let said = enqueue().await;
        let is_over = said.code != Some(0);
        late.replace(Some(said));
        is_over
    })
    .await;
    let late = late.take().unwrap().exits(3);
    assert!(late.err.contains("b did not run") && late.err.contains("as done at"), "{}", late.err);
    assert_eq!((&late.json()["outcome"], &first["outcome"]), (&"done".into(), &"done".into()));
    assert_eq!(world.ended(&c, "b").await.rev, ended.rev, "nothing ran");

    // The same for one that is due later, and for a batch, in which others run.
    let late = world.surety(&["enqueue", "noop", "--id", "b", "--in", "200ms", "--wait"]).await.exits(3);
    assert!(late.err.contains("b did not run"), "{}", late.err);
    let lines = "{\"type\":\"noop\",\"id\":\"b\"}\n{\"type\":\"noop\",\"id\":\"new\"}\n{\"type\":\"noop\"}\n";
    std::fs::write(world.path("jobs.ndjson"), lines).unwrap();
    wait("the window to pass again", async || {
        let said = world.surety(&["batch", &world.path("jobs.ndjson"), "--watch", "--json"]).await;
        let outcomes = said.json()["outcomes"].clone();
        let is_over = said.code == Some(3) && outcomes["not_run"].as_u64() > Some(0);
        // At first "b" is a copy still, and "new" runs.
        assert!(is_over || said.code == Some(0), "{said:?}");
        is_over
    })
    .await;
    assert_eq!(world.ended(&c, "b").await.rev, ended.rev, "nothing ran");
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: P7
#[tokio::test]
async fn a_forged_barrier_is_told_and_no_audit_is_clean_over_what_it_hides() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "before", r#"{"type":"noop"}"#).await;
    world.ended(&c, "before").await;
    world.drained(&c).await;
    assert_eq!(world.ask(&["audit"]).await["is_clean"], true);
    let js = async_nats::jetstream::new(world.plain().await);
    let mut forged = Vec::new();
    for p in 0..c.store.keys().partitions() {
        let mut h = async_nats::HeaderMap::new();
        h.insert("Surety-Fence", format!("{p} FORGED").as_str());
        let subject = format!("surety.events.STORE.{p}");
        let ack = js.publish_with_headers(subject, h, "[]".into()).await.unwrap();
        forged.push(ack.await.unwrap().sequence);
    }
    world.publish("default", "hidden", r#"{"type":"noop"}"#).await;
    world.ended(&c, "hidden").await;
    world.drained(&c).await;
    let said = world.surety(&["audit", "--json"]).await.exits(1);
    let answer = said.json();
    assert_eq!(
        (&answer["is_clean"], &answer["hidden_by"][0]["sequence"]),
        (&false.into(), &forged[0].into())
    );
    assert!(answer["ignored"].as_u64() > Some(0) && said.err.contains("barrier of partition"), "{said:?}");
    wait("the alert", async || {
        let metrics = get(at, "/metrics").await.1;
        metrics
            .lines()
            .any(|l| l.starts_with("surety_alerts_total{alert=\"journal_hidden\"}") && !l.ends_with(" 0"))
    })
    .await;
    // A person removes them, and everything counts again.
    let events = js.get_stream("SURETY_EVENTS").await.unwrap();
    for sequence in forged {
        events.delete_message(sequence).await.unwrap();
    }
    let answer = world.surety(&["audit", "--json"]).await.exits(0).json();
    assert_eq!((&answer["is_clean"], &answer["jobs"]), (&true.into(), &2.into()));
    assert_eq!(worker.stop().await, Some(0));
}

/// An account with little room, which every client uses.
const LITTLE_ROOM: &str = r#"
accounts { SMALL { jetstream: { max_file: 4MB, max_mem: 1MB }, users: [{ user: u, password: p }] } }
no_auth_user: u
"#;

// Shows: P1, O-06
#[tokio::test]
async fn a_nats_that_stores_nothing_is_told_and_outcomes_wait_for_it() {
    let witness = Witness::default();
    let handler = witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done");
    let world = World::on(&handler, LITTLE_ROOM, &[]).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    world.publish("default", "a", r#"{"type":"work","retry":{"max_retries":0}}"#).await;
    witness.started("a", 1).await;
    let js = async_nats::jetstream::new(world.plain().await);
    // The last bytes, too.
    for size in [500_000, 50_000, 5_000, 500, 50, 1] {
        let send = async || js.publish("surety.batches.x", vec![b'x'; size].into()).await.unwrap().await;
        wait("the account to be full", async || send().await.is_err()).await;
    }
    witness.touch("go");
    wait("readiness to say it", async || {
        let (status, body) = get(at, "/readyz").await;
        status == 503 && body.contains("it stores nothing")
    })
    .await;
    wait("the doctor to say it", async || {
        let report = world.surety(&["doctor", "--json", "--skip", "disk"]).await.json();
        let found = |check: &str| report["findings"].as_array().unwrap().iter().any(|f| f["check"] == check);
        found("worker_ready") && found("storage")
    })
    .await;
    let metrics = get(at, "/metrics").await.1;
    assert!(metrics.contains("surety_alerts_total{alert=\"nats_refuses_writes\"} 1"));
    js.get_stream("SURETY_BATCHES").await.unwrap().purge().await.unwrap();
    let r = world.ended(&c, "a").await;
    assert_eq!((r.status, witness.executions("a")), (Status::Done, 1));
    settled(&world, &c).await;
    // What it stores next shows that there is room again.
    world.publish("default", "b", r#"{"type":"noop"}"#).await;
    assert_eq!(world.ended(&c, "b").await.status, Status::Done);
    wait("the worker to be ready", async || get(at, "/readyz").await.0 == 200).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "finished"), 1);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: B-02
#[tokio::test]
async fn a_nats_whose_messages_are_too_small_for_an_outcome_is_refused() {
    let world = World::on("", "max_payload: 262144", &[]).await;
    let said = world.surety(&["provision"]).await.exits(78);
    assert!(said.err.contains("max_payload") && said.err.contains("262144"), "{said:?}");
    let mut worker = world.worker(&[], &[]);
    assert_eq!(worker.ended(std::time::Duration::from_secs(45)).await, Some(78), "{}", worker.log());
}

// Shows: P8, E-08
#[tokio::test]
async fn a_flood_of_reports_is_folded_and_the_last_one_counts() {
    let witness = Witness::default();
    let flood = r#"seq 1 20000 | sed 's/.*/{"iteration":&,"max":20000}/' >&3"#;
    let world = World::with(&witness.handler("flood", flood)).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"flood"}"#).await;
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let told: Vec<_> = h.jobs["a"].events.iter().filter(|e| e.kind == "progress").collect();
    // The bound, and twenty for each second that the flood may take here.
    assert!((200..2_000).contains(&told.len()), "{} reports in the journal", told.len());
    assert_eq!(told.last().unwrap().data["iteration"], 20_000, "the last one counts");
    let folded: u64 = told.iter().filter_map(|e| e.data["folded"].as_u64()).sum();
    assert_eq!(folded + told.len() as u64, 20_000, "every report is one, or is counted by one");
    assert_eq!(worker.log().matches("reports are folded").count(), 1);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: O-06
#[tokio::test]
async fn slow_connections_do_not_keep_others_from_asking_after_health() {
    let world = World::start().await;
    world.connect().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        slow.push(tokio::net::TcpStream::connect(at).await.unwrap());
    }
    let asked = tokio::time::timeout(std::time::Duration::from_secs(3), get(at, "/livez")).await;
    assert_eq!(asked.expect("an answer beside 200 connections that say nothing").0, 200);
    drop(slow);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: B-02, O-06
#[tokio::test]
async fn an_index_of_a_wrong_type_is_told_with_its_name() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    wait("the worker to be ready", async || get(at, "/readyz").await.0 == 200).await;
    let key = c.store.keys().ended(0);
    let mut redis = world.redis.plain(0).await;
    let () = redis::cmd("SET").arg(&key).arg("mine").query_async(&mut redis).await.unwrap();
    wait("readiness to say it", async || {
        let (status, body) = get(at, "/readyz").await;
        status == 503 && body.contains("has to be a list")
    })
    .await;
    let report = world.surety(&["doctor", "--json", "--skip", "disk"]).await.exits(78).json();
    let found = report["findings"].as_array().unwrap();
    let found = found.iter().find(|f| f["check"] == "redis_key_type").unwrap_or_else(|| panic!("{report:#}"));
    assert!(found["what"].as_str().unwrap().contains(&key), "{found}");
    let () = redis::cmd("DEL").arg(&key).query_async(&mut redis).await.unwrap();
    wait("the worker to be ready", async || get(at, "/readyz").await.0 == 200).await;
    assert_eq!(worker.stop().await, Some(0));
}
