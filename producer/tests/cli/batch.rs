//! Batches: exact counts, whatever happens.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use super::support::{World, feed, wait};

#[tokio::test]
async fn bad_lines_are_named_and_good_ones_are_stored() {
    let w = World::provisioned().await;
    let file = "{\"type\":\"a\",\"id\":\"one\"}\n\n{\"type\":\"a\",\"id\":\"one\"}\n{\"type\":\"Bad\"}\nnot json\n\
                {\"type\":\"a\",\"paylod\":1}\n{\"type\":\"b\",\"meta\":{\"x\":\"y\"}}";
    std::fs::write(w.folder.path().join("jobs.ndjson"), file).unwrap();
    let said = w.run(&["batch", "jobs.ndjson", "--batch-id", "import-7", "--ids"]).await.exits(2);
    let said = said
        .complains("line 4: refused: type")
        .complains("line 5: refused: not valid JSON")
        .complains("line 6: refused: unknown field \"paylod\"; did you mean \"payload\"?")
        .complains("3 of 6 lines were refused");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!((lines[0], lines[1], lines.len()), ("one", "one", 4));
    assert_eq!(lines[3], "accepted 2, duplicate 1, refused 3");
    assert_eq!(w.waiting("default").await, 2);
    let c = w.connect().await;
    let (_, m) = c.broker.find_carrier(&c.found.queues, &lines[2].parse().unwrap()).await.unwrap().unwrap();
    let body: serde_json::Value = serde_json::from_slice(&m.payload).unwrap();
    assert_eq!(body["meta"], serde_json::json!({"x": "y", "batch": "import-7"}));
}

#[tokio::test]
async fn a_large_batch_is_counted_exactly_and_repeats_are_duplicates() {
    let w = World::provisioned().await;
    let lines: String = (0..10_000).map(|n| format!("{{\"type\":\"a\",\"id\":\"job-{n}\"}}\n")).collect();
    let run = async || feed(w.command(&["batch", "-"]), lines.as_bytes()).await.exits(0).out;
    assert_eq!(run().await, "accepted 10000, duplicate 0, refused 0\n");
    assert_eq!(run().await, "accepted 0, duplicate 10000, refused 0\n");
    assert_eq!(w.waiting("default").await, 10_000);
}

#[tokio::test]
async fn an_undeclared_queue_stops_the_batch_and_accepts_nothing() {
    let w = World::provisioned().await;
    let lines = "{\"type\":\"a\"}\n".repeat(20_000);
    let said =
        feed(w.command(&["--json", "batch", "-", "--queue", "defalt"]), lines.as_bytes()).await.exits(2);
    let said = said.complains("line 1: refused: queue \"defalt\" is not declared; did you mean \"default\"?");
    let counts = said.json();
    assert_eq!((&counts["accepted"], &counts["uncertain"]), (&0.into(), &0.into()));
    assert_eq!(counts["refused"], counts["lines"]);
    let stopped = counts["stopped_at"].as_u64().unwrap();
    assert!(stopped == counts["lines"].as_u64().unwrap() + 1 && stopped < 20_000, "{counts}");
}

// Shows: X-08
#[tokio::test]
async fn a_broker_that_dies_leaves_counts_that_match_the_stream() {
    let mut w = World::provisioned().await;
    let mut child = w.command(&["--json", "batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for n in 0..5000 {
        stdin.write_all(format!("{{\"type\":\"a\",\"id\":\"job-{n}\"}}\n").as_bytes()).await.unwrap();
    }
    wait("4000 jobs", async || w.waiting("default").await >= 4000).await;
    w.nats.kill9().await.unwrap();
    for n in 5000..5100 {
        stdin.write_all(format!("{{\"type\":\"a\",\"id\":\"job-{n}\"}}\n").as_bytes()).await.unwrap();
    }
    drop(stdin);
    let out = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let err = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(69), "{err}");
    let counts: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let n = |name: &str| counts[name].as_u64().unwrap();
    assert_eq!(n("accepted") + n("uncertain") + n("duplicate") + n("refused"), n("lines"), "{counts}");
    assert!(n("uncertain") > 0 && err.contains("uncertain"), "{counts}");
    w.nats.restart().await.unwrap();
    let stored = w.waiting("default").await;
    let sure = n("accepted");
    assert!((sure..=sure + n("uncertain")).contains(&stored), "{stored} are stored, {counts}");
}

// Shows: X-08, J-10
#[tokio::test]
async fn a_broker_that_restarts_in_time_costs_nothing_and_stores_each_job_once() {
    let mut w = World::provisioned().await;
    let mut c = w.command(&["--json", "batch", "-"]);
    c.env("SURETY_CONNECTION_RETRY_LIMIT", "40s");
    let mut child = c.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let line = |n: usize| format!("{{\"type\":\"a\",\"id\":\"job-{n}\"}}\n");
    stdin.write_all((0..1500).map(line).collect::<String>().as_bytes()).await.unwrap();
    wait("1000 jobs", async || w.waiting("default").await >= 1000).await;
    // The outage begins while jobs are under way; the rest is written into it.
    let rest = tokio::spawn(async move {
        stdin.write_all((1500..3000).map(line).collect::<String>().as_bytes()).await.unwrap();
    });
    w.nats.kill9().await.unwrap();
    w.nats.restart().await.unwrap();
    rest.await.unwrap();
    let out = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let counts: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(0), "{counts} {}", String::from_utf8_lossy(&out.stderr));
    let n = |name: &str| counts[name].as_u64().unwrap();
    // A repeat of one that was stored before the answer was lost counts as duplicate.
    assert_eq!(n("accepted") + n("duplicate"), 3000, "{counts}");
    assert_eq!(w.waiting("default").await, 3000);
}
