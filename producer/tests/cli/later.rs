//! Jobs for later: enqueueing, looking at, cancelling them.

use std::time::{Duration, Instant};

use surety_common::{clock::wall_now, domain::Status};

use super::support::{Hand, World, finish, wait};

async fn scheduled(w: &World) -> u64 {
    w.connect().await.broker.stream_messages("SURETY_SCHED").await.unwrap()
}

// Shows: J-04, I-02
#[tokio::test]
async fn a_job_for_later_is_scheduled_then_queued_and_runs_by_its_id() {
    let w = World::provisioned().await;
    let before = wall_now();
    let answer =
        w.json(&["enqueue", "thumbnail", "{\"n\":1}", "--id", "a", "--key", "k", "--in", "1500ms"]).await;
    let due = answer["due_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(due.duration_since(before).as_millis() >= 1500, "{answer}");
    let s = w.json(&["status", "a"]).await;
    assert_eq!(
        (&s["status"], &s["source"], &s["queue"], &s["type"], &s["key"], &s["due_at"]),
        (
            &"scheduled".into(),
            &"schedule".into(),
            &"default".into(),
            &"thumbnail".into(),
            &"k".into(),
            &due.to_string().into()
        )
    );
    assert!(w.run(&["status", "a"]).await.exits(0).out.contains("not before"));
    wait("the job to come due", async || w.json(&["status", "a"]).await["status"] == "queued").await;
    assert!(wall_now() >= due);
    assert_eq!(w.json(&["status", "a"]).await["source"], "queue");
    let hand = Hand::start(&w).await;
    let g = hand.granted("a").await;
    hand.finish("a", g.epoch, surety_common::store::Verdict::Done).await;
    let s = w.json(&["status", "a"]).await;
    assert!(s["carrier"].as_str().unwrap().starts_with("SCHED:"), "{s}");
}

// Shows: J-10
#[tokio::test]
async fn a_scheduled_job_is_not_replaced_by_the_same_id_inside_or_outside_of_the_window() {
    let w = World::bare().await;
    let mut c = w.command(&["provision"]);
    c.env("SURETY_LAYOUT_DUPLICATE_WINDOW", "100ms");
    finish(c).await.exits(0);
    let first = w.json(&["enqueue", "thumbnail", "--id", "a", "--in", "1h"]).await;
    let due = w.json(&["status", "a"]).await["due_at"].clone();
    let published = Instant::now();
    for at_least in [Duration::ZERO, Duration::from_millis(500)] {
        wait("the end of the window", async || published.elapsed() >= at_least).await;
        let again = w.json(&["enqueue", "thumbnail", "--id", "a", "--in", "2h"]).await;
        assert_eq!(
            (&again["is_duplicate"], &again["sequence"]),
            (&true.into(), &first["sequence"]),
            "{again}"
        );
    }
    w.run(&["enqueue", "thumbnail", "--id", "a", "--in", "2h"]).await.exits(0).complains("nothing was added");
    assert_eq!((w.json(&["status", "a"]).await["due_at"].clone(), scheduled(&w).await), (due, 1));
}

// Shows: T-14
#[tokio::test]
async fn a_scheduled_job_is_cancelled_with_an_outcome_and_can_be_replayed() {
    let w = World::provisioned().await;
    w.run(&["enqueue", "thumbnail", "{\"n\":1}", "--id", "a", "--in", "1h"]).await.exits(0);
    w.run(&["enqueue", "thumbnail", "--id", "other", "--in", "1h"]).await.exits(0);
    let answer = w.json(&["cancel", "a", "--reason", "not needed"]).await;
    assert_eq!((&answer["is_cancelled"], &answer["is_buried"]), (&true.into(), &true.into()));
    assert_eq!(scheduled(&w).await, 1, "only this one");
    assert_eq!(w.json(&["status", "a"]).await["status"], "cancelled");
    let events = w.json(&["events", "a"]).await;
    assert_eq!(events["events"][0]["kind"], "finished", "{events}");
    let letter = w.json(&["dlq", "show", "a"]).await;
    assert_eq!(
        (&letter["subject"], &letter["reason"]),
        (&"surety.sched.default.a".into(), &"cancelled".into())
    );
    w.run(&["cancel", "a"]).await.exits(1).complains("already cancelled");
    // A replay is for now.
    w.run(&["dlq", "replay", "a"]).await.exits(0);
    assert_eq!((w.waiting("default").await, scheduled(&w).await), (1, 1));
    let hand = Hand::start(&w).await;
    assert_eq!(hand.granted("a").await.generation, 2);
}

// Shows: T-14, J-04
#[tokio::test]
async fn a_job_that_is_cancelled_while_it_comes_due_is_not_run() {
    let w = World::provisioned().await;
    let hand = Hand::start(&w).await;
    // Whichever comes first, there is one outcome, and nothing is granted after it.
    for n in 0..4 {
        let id = format!("race-{n}");
        w.run(&["enqueue", "thumbnail", "--id", &id, "--in", "300ms"]).await.exits(0);
        w.run(&["cancel", &id]).await.exits(0);
        wait("nothing to be scheduled", async || {
            hand.c.broker.find_carrier(&hand.c.found.queues, &id.parse().unwrap()).await.unwrap().is_none()
        })
        .await;
        let record = hand.c.store.record(&id.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!((record.status, record.epoch), (Status::Cancelled, 0));
    }
}

#[tokio::test]
async fn what_cannot_be_scheduled_is_refused_in_one_line() {
    let w = World::provisioned().await;
    for (args, part) in [
        (&["--at", "2020-01-01T00:00:00Z"][..], "2020-01-01T00:00:00Z is not in the future"),
        (&["--at", "tomorrow"], "\"tomorrow\" is not a point in time"),
        (&["--at", "2030-01-01T00:00:00"], "write it like 2027-01-01T09:30:00Z"),
        (&["--in", "0s"], "not in the future"),
        (&["--in", "5"], "not a duration"),
        (&["--in", "99999999h"], "longer than a hundred years"),
        (&["--in", "1h", "--at", "2030-01-01T00:00:00Z"], "cannot be used with"),
        (&["--in", "1h", "--queue", "defualt"], "did you mean \"default\"?"),
    ] {
        w.run(&[&["enqueue", "thumbnail"], args].concat()).await.exits(2).complains(part);
    }
    assert_eq!(scheduled(&w).await, 0);
}

#[tokio::test]
async fn what_is_too_far_away_for_the_broker_is_refused_and_never_fires_at_once() {
    let w = World::provisioned().await;
    for at in ["2262-04-12T00:00:00Z", "2300-01-01T00:00:00Z", "9999-12-30T00:00:00Z"] {
        let said = w.run(&["enqueue", "thumbnail", "--at", at]).await.exits(2);
        assert!(said.err.contains("too far away") && said.err.contains("2262-04-11"), "{}", said.err);
    }
    assert_eq!(scheduled(&w).await, 0);
    w.run(&["enqueue", "thumbnail", "--at", "2262-04-11T00:00:00Z"]).await.exits(0);
    assert_eq!(scheduled(&w).await, 1);
}
