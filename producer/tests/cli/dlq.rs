//! Dead letters: list, show, replay.

use surety_common::{pace::Pace, store::Verdict};

use super::{
    support::{Hand, World, patience},
    terminal::Terminal,
};

#[tokio::test]
async fn a_dead_letter_is_replayed_as_the_next_generation() {
    let w = World::provisioned().await;
    w.run(&["enqueue", "thumbnail", "{\"n\":1}", "--id", "a"]).await.exits(0);
    let hand = Hand::start(&w).await;
    hand.fail("a").await;
    let listed = w.json(&["dlq", "list"]).await;
    assert_eq!((&listed["letters"][0]["id"], &listed["is_cut"]), (&"a".into(), &false.into()));
    let shown = w.json(&["dlq", "show", "a"]).await;
    assert_eq!((&shown["body"]["payload"]["n"], &shown["reason"]), (&1.into(), &"exit_code".into()));

    let answer = w.json(&["dlq", "replay", "a"]).await;
    assert_eq!(
        (&answer["replayed"][0]["generation"], &answer["refused"]),
        (&2.into(), &serde_json::json!([]))
    );
    let status = w.json(&["status", "a"]).await;
    assert_eq!((&status["status"], &status["generation"]), (&"queued".into(), &2.into()));
    assert_eq!(w.json(&["dlq", "list"]).await["letters"], serde_json::json!([]));
    w.run(&["dlq", "replay", "a"]).await.exits(1).complains("a: it has no dead letter");

    let g = hand.granted("a").await;
    assert_eq!((g.generation, g.attempt), (2, 1));
    hand.finish("a", g.epoch, Verdict::Done).await;
    let page = w.json(&["events", "a"]).await;
    let kinds: Vec<_> =
        page["events"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["started", "finished", "replayed", "started", "finished"]);
}

#[tokio::test]
async fn a_replay_that_died_after_its_publish_is_finished_by_the_next_claim_or_by_repeating_it() {
    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    for id in ["a", "b"] {
        w.run(&["enqueue", "thumbnail", "--id", id]).await.exits(0);
        hand.fail(id).await;
        // What the command does first, and no more.
        let b = &hand.c.broker;
        let id = id.parse().unwrap();
        let letter =
            b.last_message(&b.names().dlq(), &b.names().dlq_filter(None, Some(&id))).await.unwrap().unwrap();
        let epoch = letter.header("Surety-Epoch").unwrap().parse().unwrap();
        let headers = surety_common::broker::jobs::replay_headers(&letter, &id, 2, epoch);
        let subject = b.names().job_subject(&"default".parse().unwrap(), &id);
        hand.c.publisher.publish(&subject, &headers, &letter.payload, patience()).await.unwrap();
    }
    let g = hand.granted("a").await;
    assert_eq!(g.generation, 2);
    w.run(&["dlq", "replay", "a"]).await.exits(1).complains("it is open (running, generation 2)");
    hand.finish("a", g.epoch, Verdict::Done).await;
    // Its letter is stale now: it must not run a third time.
    w.run(&["dlq", "replay", "a"]).await.exits(1).complains("was replayed before; generation 2 is done");
    w.run(&["dlq", "show", "a"]).await.exits(1);

    w.run(&["dlq", "replay", "b"]).await.exits(0);
    assert_eq!(w.waiting("default").await, 2, "one message of a that nobody acked, one of b");
    assert_eq!(w.json(&["status", "b"]).await["generation"], 2);
}

#[tokio::test]
async fn more_than_one_needs_yes_and_filters_choose() {
    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    for id in ["a", "b"] {
        w.run(&["enqueue", "thumbnail", "--id", id]).await.exits(0);
        hand.fail(id).await;
    }
    w.run(&["enqueue", "thumbnail", "--id", "c", "--queue", "critical"]).await.exits(0);
    w.run(&["cancel", "c"]).await.exits(0);
    let said = w
        .run(&["dlq", "replay", "--all"])
        .await
        .exits(2)
        .complains("3 jobs would be replayed; repeat with --yes");
    assert!(said.out.contains("exit_code") && said.out.contains("cancelled"), "{}", said.out);
    assert_eq!(w.waiting("default").await, 0);
    // One letter needs no --yes.
    w.run(&["dlq", "replay", "--all", "--queue", "critical", "--reason", "cancelled"]).await.exits(0);
    w.run(&["dlq", "replay", "--all", "--reason", "exit_code", "--yes"]).await.exits(0);
    assert_eq!((w.waiting("default").await, w.waiting("critical").await), (2, 1));
    w.run(&["dlq", "list", "--limit", "-1"]).await.exits(2).complains("negative");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_sees_what_would_be_replayed_and_is_asked() {
    let w = World::provisioned().await;
    for id in ["a", "b"] {
        w.run(&["enqueue", "thumbnail", "--id", id]).await.exits(0);
        w.run(&["cancel", id]).await.exits(0);
    }
    // Who wants JSON is a program, which is not asked.
    let t = Terminal::start(w.command(&["--json", "dlq", "replay", "--all"]), 80);
    let (code, text) = t.end().await;
    assert!(code == 2 && text.contains("would_replay") && text.contains("repeat with --yes"), "{text}");
    for (answer, code, waiting) in [("n\n", 1, 0), ("\n", 1, 0), ("y\n", 0, 2)] {
        let mut t = Terminal::start(w.command(&["dlq", "replay", "--all"]), 80);
        t.shows("2 jobs would be replayed. Go on? [y/N]").await;
        assert!(t.text().contains("cancelled by request"), "{}", t.text());
        t.types(answer);
        let (is, text) = t.end().await;
        assert_eq!(is, code, "{text}");
        assert_eq!(text.contains("nothing was done"), code == 1, "{text}");
        assert_eq!(w.waiting("default").await, waiting);
    }
}

// Shows: J-12
#[tokio::test]
async fn a_letter_that_is_no_job_is_shown_and_not_replayed() {
    let w = World::provisioned().await;
    let c = w.connect().await;
    for (id, body) in
        [("garbage", &b"\xff{not json\x1b[31m"[..]), ("other", b"{\"type\":\"a\",\"id\":\"another\"}")]
    {
        let (queue, job) = ("default".parse().unwrap(), id.parse().unwrap());
        let (_, headers) =
            surety_common::broker::jobs::first_message(c.broker.names(), &queue, &job, None, None);
        let subject = c.broker.names().dlq_subject("default", &id.parse().unwrap());
        let pace: Pace = patience();
        c.publisher.publish(&subject, &headers, &bytes::Bytes::from_static(body), pace).await.unwrap();
    }
    let said = w.run(&["dlq", "show", "garbage"]).await.exits(0);
    assert!(said.out.contains("not json") && !said.out.contains('\x1b'), "{:?}", said.out);
    assert!(w.json(&["dlq", "show", "garbage"]).await["raw"].is_string());
    w.run(&["dlq", "replay", "garbage"]).await.exits(1).complains("its message is not a job");
    w.run(&["dlq", "replay", "other"]).await.exits(1).complains("names another id, \"another\"");
    assert_eq!(w.json(&["dlq", "list", "--limit", "1"]).await["is_cut"], true);
}

#[tokio::test]
async fn what_is_piped_is_cut_nowhere() {
    let w = World::provisioned().await;
    w.run(&["enqueue", "thumbnail", "--id", "a"]).await.exits(0);
    let reason = format!("{} to the very end", "because ".repeat(40));
    w.run(&["cancel", "a", "--reason", &reason]).await.exits(0);
    for looks in [&["dlq", "list"][..], &["events", "a"]] {
        let said = w.run(looks).await.exits(0);
        assert!(said.out.contains(reason.trim()), "{looks:?}:\n{}", said.out);
    }
}
