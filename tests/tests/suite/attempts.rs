//! One attempt after the other: retries, limits, what is kept of a failure, and what a running attempt owes to both servers.

use std::time::{Duration, Instant};

use futures::StreamExt;
use surety_common::domain::{Status, ids::SessionId};
use surety_tests::{
    proxy::Proxy,
    witness::{QUICK, Witness, dead_letters, id, kinds, ms, settled, wait_logged},
    world::{World, messages, wait},
};

// Shows: A-02, A-03, A-05, A-10, J-04, P-07, O-08
#[tokio::test]
async fn an_always_failing_job_runs_four_times_at_its_times_though_the_worker_is_replaced() {
    let witness = Witness::default();
    let body = r#"echo '{"iteration":7,"max":9}' >&3; seq 1 150; echo "it broke" >&2; exit 3"#;
    let world = World::with(&witness.handler("fail", body)).await;
    let c = world.connect().await;
    let mut first = world.worker(&[], &[]);
    let retry = r#"{"max_retries":3,"backoff":["300ms","900ms"]}"#;
    world.publish("default", "a", &format!(r#"{{"type":"fail","retry":{retry}}}"#)).await;
    // In its second wait the worker goes, and another one comes.
    world.until(&c, "a", |r| r.status == Status::RetryWait && r.charged == 2).await;
    assert_eq!(first.stop().await, Some(0));
    let mut second = world.worker(&["--state-dir", &world.path("other")], &[]);
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.code.as_str(), ended.charged), (Status::Failed, "attempts_exhausted", 4));
    assert_eq!((witness.executions("a"), witness.of("a").len()), (4, 4));
    settled(&world, &c).await;

    let h = world.history(&c).await;
    h.check().unwrap();
    let events = &h.jobs["a"].events;
    let delays: Vec<i64> = events
        .windows(2)
        .filter(|pair| pair[0].kind == "attempt_failed")
        .map(|pair| {
            let due = ms(pair[0].data["retry_at"].as_str().unwrap());
            let late = ms(&pair[1].at) - due;
            assert!((0..1500).contains(&late), "started {late} ms after its time");
            due - ms(&pair[0].at)
        })
        .collect();
    assert_eq!(delays, [300, 900, 900], "the last delay repeats");

    // The same error and the same iteration in the journal and beside the record, with the last lines.
    let failed = events.iter().find(|e| e.kind == "attempt_failed").unwrap();
    assert_eq!(failed.data["error_code"], "exit_code");
    assert_eq!(failed.data["message"], "exit code 3: it broke");
    assert_eq!(failed.data["iteration"], 7);
    let kept: serde_json::Value =
        serde_json::from_str(&c.store.detail(&id("a")).await.unwrap().unwrap()).unwrap();
    for field in ["error_code", "message", "iteration", "exit_code"] {
        assert_eq!(kept[field], failed.data[field], "{field}");
    }
    assert_eq!(kept["attempt"], 4);
    let tail = kept["stdout_tail"].as_array().unwrap();
    assert_eq!((tail.len(), tail[0].as_str(), tail[99].as_str()), (100, Some("51"), Some("150")));
    assert_eq!(second.log().matches("alert=\"job_failed\"").count(), 1, "{}", second.log());
    let letters = dead_letters(&world).await;
    assert_eq!((letters.len(), letters[0].reason.as_str()), (1, "attempts_exhausted"));
    assert_eq!(second.stop().await, Some(0));
}

// Shows: A-12, A-02
#[tokio::test]
async fn three_hundred_jobs_in_backoff_do_not_delay_a_fresh_one() {
    let world = World::with("[handlers.fail]\ncommand = [\"false\"]").await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    let js = async_nats::jetstream::new(world.plain().await);
    for i in 0..300 {
        let backoff = if i == 0 { "" } else { r#","retry":{"backoff":["30m"]}"# };
        let body = format!(r#"{{"type":"fail"{backoff}}}"#);
        js.publish(format!("surety.jobs.default.f{i}"), body.into()).await.unwrap().await.unwrap();
    }
    for i in 0..300 {
        let r = world.status(&c, &format!("f{i}"), Status::RetryWait).await;
        // The default schedule begins with a minute; on the store's clock, to the millisecond.
        let minutes = if i == 0 { 1 } else { 30 };
        assert!(
            r.due_ms > r.started_ms + minutes * 60_000 && r.due_ms < r.started_ms + minutes * 60_000 + 10_000
        );
    }
    let since = Instant::now();
    world.publish("default", "fresh", r#"{"type":"noop"}"#).await;
    world.ended(&c, "fresh").await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    wait("them to give up their places", async || messages(&world, "SURETY_JOBS").await == 0).await;
    assert_eq!(messages(&world, "SURETY_SCHED").await, 300);
    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}

// Shows: A-04
#[tokio::test]
async fn a_job_killed_at_its_last_iteration_is_not_retried() {
    let witness = Witness::default();
    let body = |n: u32| format!(r#"echo '{{"iteration":{n},"max":3}}' >&3; kill -9 $$"#);
    let world =
        World::with(&(witness.handler("last", &body(3)) + &witness.handler("middle", &body(2)))).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    let retry = r#""retry":{"max_retries":2,"backoff":["20ms"]}"#;
    world.publish("default", "last", &format!(r#"{{"type":"last",{retry}}}"#)).await;
    world.publish("default", "middle", &format!(r#"{{"type":"middle",{retry}}}"#)).await;
    let last = world.ended(&c, "last").await;
    assert_eq!((last.status, last.code.as_str()), (Status::Failed, "limit_reached"));
    let middle = world.ended(&c, "middle").await;
    assert_eq!((middle.status, middle.code.as_str()), (Status::Failed, "attempts_exhausted"));
    assert_eq!((witness.executions("last"), witness.executions("middle")), (1, 3));
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}

// Shows: A-05, E-07, O-08
#[tokio::test]
async fn an_outcome_that_cannot_be_written_fails_the_job_with_an_alert_and_nothing_stays_running() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("slow", "until [ -e $W.go ]; do sleep 0.02; done")).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"slow"}"#).await;
    witness.started("a", 1).await;
    // The store takes renewals and refuses what writes the outbox.
    let redis = redis::Client::open(world.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let acl = |rule: &str| redis::cmd("ACL").arg("SETUSER").arg("default").arg(rule).to_owned();
    let _: () = acl("-xadd").query_async(&mut redis).await.unwrap();
    witness.touch("go");
    one.logged("Status update failed after retries").await;
    let still = c.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!((still.status, still.attempt), (Status::Running, 1), "its session lived all the time");
    assert_eq!(kinds(&world, &c, "a").await, ["started"], "no word of what was not committed");
    let _: () = acl("+xadd").query_async(&mut redis).await.unwrap();
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.code.as_str(), ended.attempt), (Status::Failed, "internal", 1));
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let receipt = &h.jobs["a"].events.last().unwrap().data["receipt"];
    assert_eq!(receipt["message"], "Status update failed after retries");
    assert_eq!(one.log().matches("alert=\"status_write_failed\"").count(), 1, "{}", one.log());
    assert_eq!(witness.executions("a"), 1);
    assert_eq!(one.stop().await, Some(0));
}

// Shows: A-07, J-07, J-08
#[tokio::test]
async fn failed_starts_cost_no_attempt_and_are_delayed_more_and_more() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let handler = format!("[handlers.late]\ncommand = [\"{}\"]", program.display());
    let world = World::with(&format!("{handler}\n[attempt]\nstart_retry = \"20ms\"")).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    let body = r#"{"type":"late","retry":{"max_retries":2,"backoff":["20ms"]}}"#;
    world.publish("default", "a", body).await;
    let waiting = world.until(&c, "a", |r| r.start_failures == 5).await;
    assert_eq!((waiting.status, waiting.attempt, waiting.charged), (Status::Deferred, 0, 0));
    assert_eq!(waiting.code, "start_failed");
    let kept = c.store.detail(&id("a")).await.unwrap().unwrap();
    assert!(kept.contains("start_failed") && kept.contains("program"), "{kept}");
    // The program is there now, and fails: the whole budget is left.
    std::fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.charged, ended.attempt), (Status::Failed, 3, 3));
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let until: Vec<i64> = h.jobs["a"]
        .events
        .iter()
        .filter(|e| e.kind == "deferred")
        .map(|e| {
            assert_eq!(e.data["error_code"], "start_failed");
            ms(e.data["until"].as_str().unwrap()) - ms(&e.at)
        })
        .collect();
    assert_eq!(until[..5], [20, 40, 80, 160, 320]);
    assert_eq!(h.count("a", "attempt_failed") + h.count("a", "finished"), 3);
    assert_eq!(one.stop().await, Some(0));
}

// Shows: A-07
#[tokio::test]
async fn twenty_deliveries_without_an_execution_leave_the_whole_budget() {
    let witness = Witness::default();
    let world = World::with("[worker]\nhand_on_delay = \"10ms\"\nhand_on_limit = 90").await;
    let c = world.connect().await;
    let mut stranger = world.worker(&[], &[("SURETY_LOG", "debug")]);
    let body = r#"{"type":"mine","retry":{"max_retries":2,"backoff":["20ms"]}}"#;
    world.publish("default", "a", body).await;
    wait_logged(&world, "twenty hand-ons", async || stranger.log().matches("handed on").count() >= 20).await;
    assert_eq!(stranger.stop().await, Some(0));
    assert!(c.store.record(&id("a")).await.unwrap().is_none(), "nobody claimed it");
    let config = world.path("mine.toml");
    std::fs::write(&config, format!("{}\n{}", world.config, witness.handler("mine", "exit 1"))).unwrap();
    let mut owner = world.worker(&["--config", &config], &[]);
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.charged, witness.executions("a")), (Status::Failed, 3, 3));
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(owner.stop().await, Some(0));
}

// Shows: A-09, A-08
#[tokio::test]
async fn each_class_of_end_is_retried_or_not() {
    let witness = Witness::default();
    // The end is written into the job's id.
    let ends = witness.handler("end", r#"case $SURETY_JOB_ID in exit-*) exit ${SURETY_JOB_ID#exit-};; esac
        case $SURETY_JOB_ID in signal) kill -TERM $$; sleep 5;; esac
        case $SURETY_JOB_ID in said-final) echo '{"error":{"code":"bad","message":"no use","retry":false}}' >&3; exit 1;; esac
        case $SURETY_JOB_ID in said-again) echo '{"error":{"message":"once more"}}' >&3; exit 1;; esac
        case $SURETY_JOB_ID in timeout) sleep 30;; esac"#);
    // A table of the handler comes after its command.
    let ends = format!("{ends}[handlers.end.exit_codes]\n21 = \"stuck\"\n22 = \"limit_reached\"\n");
    let world = World::with(&ends).await;
    let c = world.connect().await;
    let mut one = world.worker(&["--slots", "20"], &[]);
    let table = [
        ("exit-0", "", 1),
        ("exit-1", "exit_code", 2),
        ("exit-2", "exit_code", 2),
        ("exit-69", "exit_code", 2),
        ("exit-75", "exit_code", 2),
        ("exit-64", "exit_code", 1),
        ("exit-65", "exit_code", 1),
        ("exit-77", "exit_code", 1),
        ("exit-78", "exit_code", 1),
        ("exit-126", "exit_code", 1),
        ("exit-127", "exit_code", 1),
        ("exit-21", "stuck", 2),
        ("exit-22", "limit_reached", 1),
        ("signal", "signal", 2),
        ("said-final", "handler_error", 1),
        ("said-again", "handler_error", 2),
        ("timeout", "timeout", 2),
    ];
    for (id, ..) in table {
        let body =
            r#"{"type":"end","retry":{"max_retries":1,"backoff":["20ms"]},"contract":{"timeout":"1s"}}"#;
        world.publish("default", id, body).await;
    }
    for (job, code, executions) in table {
        let r = world.ended(&c, job).await;
        assert_eq!(witness.executions(job), executions, "{job}");
        let kept = c.store.detail(&id(job)).await.unwrap().unwrap_or_default();
        let outcome = match code {
            "" => Status::Done,
            "timeout" => Status::TimedOut,
            _ => Status::Failed,
        };
        assert_eq!(r.status, outcome, "{job}");
        assert!(code.is_empty() || kept.contains(&format!(r#""error_code":"{code}""#)), "{job}: {kept}");
    }
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(one.stop().await, Some(0));
}

// Shows: T-01, T-02, T-04, T-05
#[tokio::test]
async fn a_timeout_kills_the_tree_and_nothing_of_it_happens_later() {
    let witness = Witness::default();
    let body =
        "child 'sleep 2; echo late > $W.file; exec sleep 60'; trap '' TERM; sleep 2; echo late > $W.file";
    let world = World::with(&witness.handler("slow", body)).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    let since = Instant::now();
    let body = r#"{"type":"slow","retry":{"max_retries":0},"contract":{"timeout":"1s"}}"#;
    world.publish("default", "a", body).await;
    let ended = world.ended(&c, "a").await;
    let took = since.elapsed();
    assert_eq!((ended.status, ended.code.as_str()), (Status::TimedOut, "timeout"));
    // The limit of 1 s, the grace of 300 ms, and the machine.
    assert!(took > Duration::from_secs(1) && took < Duration::from_millis(2000), "{took:?}");
    assert!(!witness.lives("a"), "{}", witness.text());
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let receipt = &h.jobs["a"].events.last().unwrap().data["receipt"];
    assert_eq!(
        (receipt["outcome"].as_str(), receipt["error_code"].as_str()),
        (Some("timed_out"), Some("timeout"))
    );
    assert_eq!(receipt["message"], "time limit of 1s reached");
    assert_eq!(kinds(&world, &c, "a").await, ["started", "finished"]);
    assert!(one.log().contains("error_code=\"timeout\""), "{}", one.log());
    // Past the moment when both would have written.
    wait("two seconds and more", async || since.elapsed() > Duration::from_millis(2600)).await;
    assert!(!witness.exists("file"));
    assert_eq!(one.stop().await, Some(0));
}

// Shows: G-05
#[tokio::test]
async fn limits_are_settings_and_a_job_may_have_its_own_schedule_of_retries() {
    let witness = Witness::default();
    let body =
        "if [ $SURETY_ATTEMPT = 1 ]; then exec sleep 60; fi; head -c 5000 /dev/zero | tr '\\000' x; exit 3";
    let world = World::with(&witness.handler("odd", body)).await;
    let c = world.connect().await;
    let env = [("SURETY_ATTEMPT_TIMEOUT", "700ms"), ("SURETY_ATTEMPT_OUTPUT_LIMIT", "1KiB")];
    let mut one = world.worker(&[], &env);
    let body = r#"{"type":"odd","retry":{"max_retries":1,"backoff":["300ms"]}}"#;
    world.publish("default", "a", body).await;
    assert_eq!(world.ended(&c, "a").await.code, "attempts_exhausted");
    let h = world.history(&c).await;
    let of = |kind: &str| h.jobs["a"].events.iter().filter(|e| e.kind == kind).collect::<Vec<_>>();
    let (starts, failed) = (of("started"), of("attempt_failed"));
    assert_eq!(failed[0].data["message"], "time limit of 700ms reached");
    assert!(ms(&starts[1].at) - ms(&failed[0].at) >= 270, "the backoff of the job, less its jitter");
    let detail: serde_json::Value =
        serde_json::from_str(&c.store.detail(&id("a")).await.unwrap().unwrap()).unwrap();
    assert_eq!(detail["output_truncated"], true, "{detail}");
    // The threshold after which a silent worker counts as dead is a setting as well; the tests of `lost` run with a short one.
    assert_eq!(world.settings().lease.ttl, Duration::from_secs(2));
    assert_eq!(one.stop().await, Some(0));
}

// Shows: P-09
#[tokio::test]
async fn output_over_the_limit_is_cut_and_the_job_ends_normally() {
    let witness = Witness::default();
    let world =
        World::with(&witness.handler("chatty", "head -c 30000000 /dev/zero | tr '\\000' x; echo; echo last"))
            .await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"chatty"}"#).await;
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    settled(&world, &c).await;
    one.logged("output over the limit was cut; the command went on").await;
    let h = world.history(&c).await;
    h.check().unwrap();
    let result = h.jobs["a"].events.last().unwrap().data["receipt"]["result"].as_str().unwrap().to_owned();
    assert!(result.ends_with("… [truncated, 30000006 bytes total]"), "{}", &result[result.len() - 60..]);
    let keeper = surety_tests::witness::keeper_of(one.pid()).await;
    for pid in [one.pid().to_string(), keeper.to_string()] {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
        let kib: u64 = peak.strip_suffix(" kB").unwrap().parse().unwrap();
        assert!(kib < 100 * 1024, "the peak of {pid} is {peak}");
    }
    assert_eq!(one.stop().await, Some(0));
}

// Shows: H-01, H-02, H-08
#[tokio::test]
async fn a_silent_run_is_renewed_and_extended_and_both_stop_with_it() {
    let witness = Witness::default();
    let handlers = witness.handler("silent", "sleep 7.6")
        + &witness.handler(
            "busy",
            r#"for i in 1 2 3 4 5; do echo "{\"tool\":\"t$i\",\"state\":\"started\"}" >&3; echo "{\"progress\":0.$i}" >&3; done"#,
        )
        + &witness.handler("failing", "sleep 1.2; exit 64")
        + &witness.handler("limited", "sleep 30");
    let world = World::with(&(handlers + QUICK)).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    let plain = world.plain().await;
    let mut acks = plain.subscribe("$JS.ACK.SURETY_JOBS.default.>").await.unwrap();
    world.publish("default", "silent", r#"{"type":"silent"}"#).await;
    world.publish("default", "busy", r#"{"type":"busy"}"#).await;
    world.publish("default", "failing", r#"{"type":"failing"}"#).await;
    let limited = r#"{"type":"limited","retry":{"max_retries":0},"contract":{"timeout":"1200ms"}}"#;
    world.publish("default", "limited", limited).await;
    // The lease is never older than the renewal and a little: beats come though the handler says nothing.
    let session = SessionId::new(&world.status(&c, "silent", Status::Running).await.session).unwrap();
    let beats = std::cell::RefCell::new(std::collections::BTreeSet::new());
    wait("the silent job to end", async || {
        let now = c.store.now_ms().await.unwrap();
        let all = c.store.sessions(0, u64::MAX / 4, 10).await.unwrap();
        let (_, until) = all.iter().find(|(s, _)| *s == session).expect("the session lives");
        assert!(*until > now + 1000, "the lease of 2 s ends in {} ms", until - now);
        beats.borrow_mut().insert(*until);
        c.store.record(&id("silent")).await.unwrap().unwrap().status == Status::Done
    })
    .await;
    let beats = beats.into_inner();
    assert!(beats.len() >= 25, "{} renewals in 7.6 s at one in 200 ms", beats.len());
    for (job, status) in [
        ("silent", Status::Done),
        ("busy", Status::Done),
        ("failing", Status::Failed),
        ("limited", Status::TimedOut),
    ] {
        assert_eq!(world.ended(&c, job).await.status, status);
    }
    settled(&world, &c).await;
    // Two extension intervals later, after each way of ending: no beat of anything that ended.
    assert!(c.store.running(0, &session).await.unwrap().is_empty());
    let mut settled_carriers = std::collections::BTreeMap::new();
    let mut extensions = std::collections::BTreeMap::<String, usize>::new();
    let until = Instant::now() + Duration::from_millis(2200);
    while let Ok(Some(m)) =
        tokio::time::timeout(until.saturating_duration_since(Instant::now()), acks.next()).await
    {
        let f: Vec<_> = m.subject.split('.').collect();
        let (delivered, sequence) = (f[4].to_owned(), f[5].to_owned());
        assert_eq!(delivered, "1", "delivered once, though it ran for three ack-waits");
        if &m.payload[..] == b"+WPI" {
            assert!(!settled_carriers.contains_key(&sequence), "extended after it was settled");
            *extensions.entry(sequence).or_default() += 1;
        } else {
            assert_eq!(&m.payload[..], b"+ACK");
            assert!(settled_carriers.insert(sequence, ()).is_none(), "settled twice");
        }
    }
    assert_eq!(settled_carriers.len(), 4);
    assert!(extensions["1"] >= 6, "{extensions:?}");
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("busy", "tool"), h.count("busy", "progress")), (5, 5));
    let order: Vec<_> = h.jobs["busy"].events.iter().filter_map(|e| e.data["tool"].as_str()).collect();
    assert_eq!(order, ["t1", "t2", "t3", "t4", "t5"]);
    assert_eq!(kinds(&world, &c, "silent").await, ["started", "finished"]);
    assert_eq!(one.stop().await, Some(0));
}

// Shows: H-03, H-04
#[tokio::test]
async fn two_seconds_without_redis_cost_nothing() {
    let witness = Witness::default();
    let times = "[lease]\nttl = \"6s\"\nmargin = \"1s\"\n[connection]\nretry_limit = \"500ms\"\n";
    let world = World::with(&(witness.handler("work", "sleep 3.5") + times)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    let mut one = world.worker(&["--redis", &format!("redis://{}", proxy.addr())], &[]);
    for i in 0..4 {
        world.publish("default", &format!("j{i}"), r#"{"type":"work"}"#).await;
        witness.started(&format!("j{i}"), 1).await;
    }
    proxy.cut();
    let since = Instant::now();
    one.logged("renewal failed").await;
    wait("two seconds", async || since.elapsed() > Duration::from_secs(2)).await;
    proxy.heal();
    for i in 0..4 {
        let r = world.ended(&c, &format!("j{i}")).await;
        assert_eq!((r.status, r.attempt), (Status::Done, 1));
        assert_eq!(witness.executions(&format!("j{i}")), 1);
    }
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(one.log().matches("session opened").count(), 1, "{}", one.log());
    assert_eq!(one.stop().await, Some(0));
}

// Shows: X-04, P1, D-07
#[tokio::test]
async fn an_attempt_whose_finish_was_refused_is_found_when_its_worker_dies() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("slow", "until [ -e $W.go ]; do sleep 0.02; done")).await;
    let c = world.connect().await;
    let mut one = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"slow"}"#).await;
    witness.started("a", 1).await;
    let redis = redis::Client::open(world.redis.url()).unwrap();
    let mut redis = redis.get_multiplexed_async_connection().await.unwrap();
    let acl = |rule: &str| redis::cmd("ACL").arg("SETUSER").arg("default").arg(rule).to_owned();
    let _: () = acl("-xadd").query_async(&mut redis).await.unwrap();
    witness.touch("go");
    // The script breaks off where it writes the outbox: nothing of it may have taken the attempt off the session.
    one.logged("finish failed, trying again").await;
    one.kill9().await;
    let _: () = acl("+xadd").query_async(&mut redis).await.unwrap();
    let _reaper = world.reaper(&[]);
    let _two = world.worker(&["--state-dir", &world.path("other")], &[]);
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1));
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "lost"), 1);
}
