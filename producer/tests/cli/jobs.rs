//! Enqueue, status, events, cancel.

use std::process::Stdio;

use surety_common::{
    domain::ErrorCode,
    store::{ClaimReply, Verdict},
};

use super::support::{Hand, World, feed, finish, wait};

// Shows: J-10
#[tokio::test]
async fn the_same_id_twice_is_one_job() {
    let w = World::provisioned().await;
    let args = ["enqueue", "thumbnail", "{\"n\":1}", "--id", "order-7"];
    assert_eq!(w.run(&args).await.exits(0).out, "order-7\n");
    let again = w.run(&args).await.exits(0).complains("nothing was added");
    assert_eq!(again.out, "order-7\n");
    assert_eq!(w.waiting("default").await, 1);
    let answer = w.json(&args).await;
    assert_eq!((&answer["id"], &answer["is_duplicate"]), (&"order-7".into(), &true.into()));
}

// Shows: J-11
#[tokio::test]
async fn what_is_published_is_the_documented_envelope() {
    let w = World::provisioned().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut c = w.command(&[
        "enqueue",
        "thumbnail",
        "{\"url\":\"x\"}",
        "--id",
        "a",
        "--queue",
        "critical",
        "--key",
        "k",
        "--summary",
        "s",
        "--meta",
        "workspace=42",
        "--max-retries",
        "1",
        "--backoff",
        "1s,2s",
        "--timeout",
        "90s",
        "--finish",
        "2h",
    ]);
    c.env("SURETY_JOB_ID", "mother").env("TRACEPARENT", trace);
    finish(c).await.exits(0);
    let c = w.connect().await;
    let id = "a".parse().unwrap();
    let (queue, m) = c.broker.find_carrier(&c.found.queues, &id).await.unwrap().unwrap();
    assert_eq!((queue.as_str(), m.subject.as_str()), ("critical", "surety.jobs.critical.a"));
    assert_eq!((m.header("Nats-Msg-Id"), m.header("traceparent")), (Some("a"), Some(trace)));
    let body: serde_json::Value = serde_json::from_slice(&m.payload).unwrap();
    assert_eq!(
        body,
        serde_json::json!({
            "v": 1, "type": "thumbnail", "payload": {"url": "x"}, "id": "a", "key": "k", "summary": "s",
            "meta": {"workspace": "42"}, "parent": "mother",
            "retry": {"max_retries": 1, "backoff": ["1s", "2s"]},
            "contract": {"timeout": "90s", "finish": "2h"},
        })
    );
}

#[tokio::test]
async fn jobs_of_a_handler_carry_its_lineage_unless_they_are_told_not_to() {
    let w = World::provisioned().await;
    let inside = |args: &[&str]| {
        let mut c = w.command(args);
        c.env("SURETY_JOB_ID", "caller").env("SURETY_ROOT", "first").env("SURETY_DEPTH", "4");
        c
    };
    let c = w.connect().await;
    let told = async |id: &str| {
        let id = id.parse().unwrap();
        let (_, m) = c.broker.find_carrier(&c.found.queues, &id).await.unwrap().unwrap();
        let body: serde_json::Value = serde_json::from_slice(&m.payload).unwrap();
        serde_json::json!([body.get("parent"), body.get("root"), body.get("depth")])
    };
    let ours = serde_json::json!(["caller", "first", 5]);
    let nobody = serde_json::json!([null, null, null]);
    finish(inside(&["enqueue", "note", "--id", "plain"])).await.exits(0);
    assert_eq!(told("plain").await, ours);
    finish(inside(&["enqueue", "note", "--id", "same", "--parent", "caller"])).await.exits(0);
    assert_eq!(told("same").await, ours);
    finish(inside(&["enqueue", "note", "--id", "other", "--parent", "else"])).await.exits(0);
    assert_eq!(told("other").await, serde_json::json!(["else", null, null]));
    finish(inside(&["enqueue", "note", "--id", "free", "--no-parent"])).await.exits(0);
    assert_eq!(told("free").await, nobody);
    let lines = "{\"type\":\"note\",\"id\":\"line\"}\n{\"type\":\"note\",\"id\":\"own\",\"parent\":\"x\",\"root\":\"y\",\"depth\":2}\n";
    feed(inside(&["batch", "-"]), lines.as_bytes()).await.exits(0);
    assert_eq!(told("line").await, ours);
    assert_eq!(told("own").await, serde_json::json!(["x", "y", 2]));
    feed(inside(&["batch", "-", "--no-parent"]), b"{\"type\":\"note\",\"id\":\"lone\"}").await.exits(0);
    assert_eq!(told("lone").await, nobody);

    let args = ["enqueue", "note", "--no-parent", "--parent", "x"];
    finish(inside(&args)).await.exits(2).complains("cannot be used with");
    let mut bad = inside(&["enqueue", "note"]);
    bad.env("SURETY_DEPTH", "deep");
    finish(bad).await.exits(2).complains("SURETY_DEPTH: \"deep\" is not a depth");
    let mut cleared = inside(&["enqueue", "note", "--id", "cleared"]);
    cleared.env("SURETY_JOB_ID", "");
    finish(cleared).await.exits(0);
    assert_eq!(told("cleared").await, nobody);
    w.run(&["enqueue", "--doc", "{\"type\":\"note\",\"depth\":3}"])
        .await
        .exits(2)
        .complains("depth: goes with");
}

// Shows: I-02
#[tokio::test]
async fn status_is_read_from_the_queue_the_record_or_the_journal() {
    let w = World::provisioned().await;
    w.run(&["status", "a"]).await.exits(1).complains("unknown job a");
    w.run(&["enqueue", "thumbnail", "--id", "a", "--key", "k\"1"]).await.exits(0);
    let seen = async || {
        let s = w.json(&["status", "a"]).await;
        let text = |n: &str| s[n].as_str().unwrap_or_default().to_owned();
        assert_eq!(
            (text("type"), text("queue"), text("key")),
            ("thumbnail".into(), "default".into(), "k\"1".into())
        );
        (text("status"), text("source"))
    };
    assert_eq!(seen().await, ("queued".into(), "queue".into()));
    let hand = Hand::start(&w).await;
    let g = hand.granted("a").await;
    assert_eq!(seen().await, ("running".into(), "record".into()));
    let delay = std::time::Duration::from_secs(60);
    hand.finish("a", g.epoch, Verdict::Retry { code: ErrorCode::ExitCode, delay }).await;
    assert_eq!(seen().await, ("retry_wait".into(), "record".into()));
    w.run(&["cancel", "a"]).await.exits(0);
    assert_eq!(seen().await, ("cancelled".into(), "record".into()));
    // Long after the end the record is gone; the journal still knows.
    let mut w = w;
    w.redis.kill9().await.unwrap();
    std::fs::remove_dir_all(w.folder.path().join("redis")).unwrap();
    std::fs::create_dir(w.folder.path().join("redis")).unwrap();
    w.redis.restart().await.unwrap();
    let s = w.json(&["status", "a"]).await;
    assert_eq!((&s["status"], &s["source"]), (&"cancelled".into(), &"journal".into()));
    w.run(&["cancel", "a"]).await.exits(1).complains("already cancelled");
}

// Shows: E-01, E-03
#[tokio::test]
async fn events_are_listed_in_order_and_limits_mean_what_they_say() {
    let w = World::provisioned().await;
    w.run(&["enqueue", "thumbnail", "--id", "a", "--key", "k"]).await.exits(0);
    w.run(&["enqueue", "thumbnail", "--id", "b", "--key", "k"]).await.exits(0);
    let hand = Hand::start(&w).await;
    for _ in 0..2 {
        let g = hand.granted("a").await;
        let delay = std::time::Duration::ZERO;
        hand.finish("a", g.epoch, Verdict::Retry { code: ErrorCode::ExitCode, delay }).await;
    }
    let g = hand.granted("a").await;
    hand.finish("a", g.epoch, Verdict::Done).await;
    let g = hand.granted("b").await;
    hand.finish("b", g.epoch, Verdict::Done).await;

    let list = async |args: &[&str]| {
        let page = w.json(&[&["events"], args].concat()).await;
        let revs: Vec<u64> =
            page["events"].as_array().unwrap().iter().map(|e| e["rev"].as_u64().unwrap()).collect();
        (revs, page["is_cut"].as_bool().unwrap(), page["next_after"].as_u64())
    };
    assert_eq!(list(&["a"]).await, ((1..=6).collect(), false, None));
    assert_eq!(list(&["a", "--limit", "0"]).await, (vec![], false, None));
    assert_eq!(list(&["a", "--limit", "1"]).await, (vec![1], true, Some(1)));
    assert_eq!(list(&["a", "--limit", "4", "--after", "1"]).await, (vec![2, 3, 4, 5], true, Some(5)));
    assert_eq!(list(&["a", "--limit", "999999"]).await, ((1..=6).collect(), false, None));
    w.run(&["events", "a", "--limit", "-1"]).await.exits(2).complains("negative");
    w.run(&["events", "a", "--limit", "2"]).await.exits(0).complains("--after 2");
    w.run(&["events", "nobody"]).await.exits(1).complains("unknown job");
    assert_eq!(list(&["--key", "k"]).await.0.len(), 8);
    assert_eq!(list(&["--key", "k", "--limit", "3", "--after", "5"]).await, (vec![6, 1, 2], false, None));

    // The journal and the record agree (E-09).
    let page = w.json(&["events", "a"]).await;
    let (last, status) = (&page["events"][5], w.json(&["status", "a"]).await);
    assert_eq!((&last["kind"], &last["status"]), (&"finished".into(), &status["status"]));
    assert_eq!((&last["rev"], &last["attempt"]), (&status["rev"], &status["attempt"]));
}

// Shows: T-13, T-14
#[tokio::test]
async fn a_waiting_job_is_cancelled_once_and_its_message_is_kept_as_a_dead_letter() {
    let w = World::provisioned().await;
    w.run(&["enqueue", "thumbnail", "--id", "a"]).await.exits(0);
    let said = w.run(&["cancel", "a", "--reason", " wrong file "]).await.exits(0);
    assert_eq!(said.out, "a: cancelled (wrong file)\n");
    assert_eq!(w.waiting("default").await, 0);
    let status = w.json(&["status", "a"]).await;
    assert_eq!((&status["status"], &status["error_code"]), (&"cancelled".into(), &"cancelled".into()));
    let page = w.json(&["events", "a"]).await;
    let kinds: Vec<_> =
        page["events"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["finished"]);
    assert_eq!(page["events"][0]["data"]["receipt"]["message"], "wrong file");
    let letter = w.json(&["dlq", "show", "a"]).await;
    assert_eq!((&letter["reason"], &letter["message"]), (&"cancelled".into(), &"wrong file".into()));
    w.run(&["cancel", "a"]).await.exits(1).complains("not cancelled, already cancelled");
    assert_eq!(w.json(&["events", "a"]).await["events"].as_array().unwrap().len(), 1);
}

// Shows: I-03
#[tokio::test]
async fn cancel_says_what_happened() {
    let w = World::provisioned().await;
    w.run(&["cancel", "nobody"]).await.exits(1).complains("unknown job nobody").complains("--queue");
    w.run(&["cancel", "nobody", "--queue", "undeclared"]).await.exits(2).complains("not declared");
    w.run(&["enqueue", "thumbnail", "--id", "a"]).await.exits(0);
    let hand = Hand::start(&w).await;
    let g = hand.granted("a").await;
    // Nobody obeys: it is told as it is, and the wish stays.
    let said = w.run(&["--json", "cancel", "a", "--reason", "first", "--wait", "100ms"]).await.exits(75);
    let said = said.complains("still running after 100ms").json();
    assert_eq!((&said["result"], &said["is_cancelled"]), (&"stopping".into(), &false.into()));
    // Its worker has the result all the same.
    hand.finish("a", g.epoch, Verdict::Done).await;
    w.run(&["cancel", "a"]).await.exits(1).complains("not cancelled, already done");

    w.run(&["enqueue", "thumbnail", "--id", "b"]).await.exits(0);
    let g = hand.granted("b").await;
    let obey = async {
        wait("the request", async || {
            hand.c.store.record(&"b".parse().unwrap()).await.unwrap().unwrap().is_cancelling
        })
        .await;
        hand.finish("b", g.epoch, Verdict::CancelObeyed).await;
    };
    let (said, ()) = tokio::join!(w.run(&["cancel", "b", "--reason", " first "]), obey);
    assert_eq!(said.exits(0).out, "b: cancelled (first)\n");
}

// Shows: T-13
#[tokio::test]
async fn a_cancel_may_come_before_the_job() {
    let w = World::provisioned().await;
    w.run(&["cancel", "later", "--queue", "default"]).await.exits(0);
    w.run(&["enqueue", "thumbnail", "--id", "later"]).await.exits(0);
    let reply = Hand::start(&w).await.claim("later").await;
    assert!(matches!(&reply, ClaimReply::Ended(e) if e.code == "cancelled"), "{reply:?}");
}

#[tokio::test]
async fn wait_follows_the_job_to_its_outcome() {
    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    let id = "waited".parse().unwrap();
    let play = async |verdict| {
        wait("its message", async || {
            hand.c.broker.find_carrier(&hand.c.found.queues, &id).await.unwrap().is_some()
        })
        .await;
        let g = hand.granted("waited").await;
        hand.finish("waited", g.epoch, verdict).await;
    };
    let args = ["enqueue", "thumbnail", "--id", "waited", "--wait", "--wait-for", "30s"];
    let (said, ()) = tokio::join!(w.run(&args), play(Verdict::Done));
    assert_eq!(said.exits(0).out, "waited\ndone\n");
    // The outcome of a job that ended before is found too.
    assert_eq!(w.run(&args).await.exits(0).out, "waited\ndone\n");

    w.run(&["enqueue", "thumbnail", "--wait", "--wait-for", "300ms"])
        .await
        .exits(1)
        .complains("no outcome after 300ms");

    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    w.run(&["enqueue", "thumbnail", "--id", "bad"]).await.exits(0);
    let g = hand.granted("bad").await;
    hand.finish("bad", g.epoch, Verdict::Fail(ErrorCode::ExitCode)).await;
    let said = w.run(&["--json", "enqueue", "thumbnail", "--id", "bad", "--wait"]).await;
    let said = said.exits(1).complains("ended as failed: exit_code by hand");
    assert_eq!(said.json()["receipt"]["error_code"], "exit_code");
}

#[tokio::test]
async fn a_reader_that_went_away_ends_the_command_quietly() {
    let w = World::provisioned().await;
    let mut child = w.command(&["queues"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().await.unwrap();
    assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stderr).as_ref()), (Some(0), ""));
}
