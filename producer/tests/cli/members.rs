//! Batches that are followed to the ends of their jobs.

use std::process::Stdio;

use surety_common::{domain::ErrorCode, store::Verdict, wire::batch::BatchPart};
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{
    support::{Hand, Said, World, finish, patience, wait},
    terminal::Terminal,
};

const THREE: &str =
    "{\"type\":\"a\",\"id\":\"one\"}\n{\"type\":\"a\",\"id\":\"two\"}\n{\"type\":\"a\",\"id\":\"three\"}\n";

fn file(w: &World, text: &str) {
    std::fs::write(w.folder.path().join("jobs.ndjson"), text).unwrap();
}

async fn end(hand: &Hand, id: &str, verdict: Verdict) {
    let job = id.parse().unwrap();
    wait("its message", async || {
        hand.c.broker.find_carrier(&hand.c.found.queues, &job).await.unwrap().is_some()
    })
    .await;
    let g = hand.granted(id).await;
    hand.finish(id, g.epoch, verdict).await;
}

#[tokio::test]
async fn a_batch_is_followed_until_its_last_job_has_ended() {
    let w = World::provisioned().await;
    file(&w, THREE);
    let hand = Hand::start(&w).await;
    let play = async {
        end(&hand, "one", Verdict::Done).await;
        // Failed and retried on the way: only the end counts.
        let again = Verdict::Retry { code: ErrorCode::ExitCode, delay: std::time::Duration::ZERO };
        end(&hand, "two", again).await;
        end(&hand, "two", Verdict::Done).await;
        w.run(&["cancel", "three", "--reason", "not now"]).await.exits(0);
    };
    let (said, ()) = tokio::join!(w.run(&["--json", "batch", "jobs.ndjson", "--watch"]), play);
    let said = said.exits(1).complains("1 of 3 jobs did not end as done");
    let answer = said.json();
    assert_eq!(
        (&answer["accepted"], &answer["outcomes"]),
        (
            &3.into(),
            &serde_json::json!({
                "not_run": 0, "jobs": 3, "done": 2, "failed": 0, "timed_out": 0, "cancelled": 1,
                "failures": [{"id": "three", "outcome": "cancelled", "error_code": "cancelled", "message": "not now"}],
            })
        )
    );
    // What had ended before is found in the past of the journal, also where the broker stores a job anew.
    let said = w.run(&["batch", "jobs.ndjson", "--watch"]).await.exits(1);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[0], "accepted 0, duplicate 3, refused 0");
    assert_eq!(lines[1], "3 jobs: 2 done, 0 failed, 0 timed out, 1 cancelled");
    assert!(lines[3].contains("three") && lines[3].ends_with("not now"), "{}", said.out);
    file(&w, "");
    assert!(w.run(&["batch", "jobs.ndjson", "--watch"]).await.exits(0).out.contains("0 jobs: 0 done"));
}

#[tokio::test]
async fn a_batch_is_found_by_its_name_from_elsewhere() {
    let w = World::provisioned().await;
    w.run(&["watch", "--batch", "nightly"]).await.exits(1).complains("unknown batch nightly");
    w.run(&["watch", "--batch", "nightly", "--queue", "default"]).await.exits(2);
    w.run(&["batch", "jobs.ndjson", "--batch-id", "has space"]).await.exits(2).complains("batch id");
    let hand = Hand::start(&w).await;
    for (ids, code, words) in [
        (["a", "b"], 0, "2 jobs: 2 done, 0 failed"),
        // The same name again means the new jobs only.
        (["c", "d"], 1, "2 jobs: 1 done, 1 failed"),
    ] {
        file(&w, &ids.map(|id| format!("{{\"type\":\"a\",\"id\":\"{id}\"}}\n")).concat());
        let said = w.run(&["batch", "jobs.ndjson", "--batch-id", "nightly"]).await.exits(0);
        assert!(said.err.contains("surety watch --batch nightly"), "{}", said.err);
        end(&hand, ids[0], Verdict::Done).await;
        let (said, ()) = tokio::join!(w.run(&["watch", "--batch", "nightly"]), async {
            let last = if code == 0 { Verdict::Done } else { Verdict::Fail(ErrorCode::ExitCode) };
            end(&hand, ids[1], last).await;
        });
        let said = said.exits(code);
        assert!(said.out.starts_with(words), "{}", said.out);
    }
    let again = w.run(&["--json", "watch", "--batch", "nightly"]).await.exits(1).json();
    assert_eq!((&again["jobs"], &again["failures"][0]["id"]), (&2.into(), &"d".into()));
}

#[tokio::test]
async fn a_batch_that_is_still_being_sent_is_waited_for() {
    let w = World::provisioned().await;
    let c = w.connect().await;
    let part = async |n: u64, is_last: bool, ids: &[&str]| {
        let ids = ids.iter().map(|i| (*i).to_owned()).collect();
        let (batch, run, queue) = ("slow".to_owned(), "r1".to_owned(), "default".to_owned());
        let part = BatchPart { v: 1, batch, run, queue, from: 1, ids, is_last };
        c.broker.publish_batch_part(&c.publisher, &part, n, patience()).await.unwrap();
    };
    w.run(&["enqueue", "a", "--id", "a"]).await.exits(0);
    w.run(&["cancel", "a"]).await.exits(0);
    part(0, false, &["a"]).await;
    let mut command = w.command(&["watch", "--batch", "slow"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = BufReader::new(child.stderr.take().unwrap()).lines();
    let said = tokio::time::timeout(std::time::Duration::from_secs(60), err.next_line()).await.unwrap();
    assert_eq!(said.unwrap().unwrap(), "the batch is still being sent (1 jobs so far)");
    part(1, true, &[]).await;
    let out = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output()).await;
    let out = out.unwrap().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8(out.stdout).unwrap().starts_with("1 jobs: 0 done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrow_terminal_shows_how_far_it_is_and_ctrl_c_ends_only_the_watching() {
    let w = World::provisioned().await;
    file(&w, THREE);
    let hand = Hand::start(&w).await;
    let t = Terminal::start(w.command(&["batch", "jobs.ndjson", "--watch"]), 40);
    end(&hand, "one", Verdict::Done).await;
    hand.granted("two").await;
    t.shows("1/3 1 done, 0 failed, 1 r").await;
    t.interrupt();
    let (code, text) = t.end().await;
    assert_eq!(code, 130, "{text}");
    let Said { out, .. } = finish(w.command(&["status", "two"])).await.exits(0);
    assert!(out.contains("running"), "{out}");
}
