//! A dead letter that the broker does not take: that one job's message stays where it is, and the others of its batch go on; and
//! what is made smaller so that it is taken.

use async_nats::jetstream::stream::Config;
use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    witness::{Witness, dead_letters, wait_logged},
    world::{World, messages, wait},
};

/// More than the dead letters take.
fn big(kind: &str, more: &str) -> String {
    format!(r#"{{"type":"{kind}","payload":"{}"{more}}}"#, "x".repeat(4000))
}

async fn dead_letters_are_small(world: &World) {
    let js = async_nats::jetstream::new(world.plain().await);
    let fit = js.get_stream("SURETY_DLQ").await.unwrap().cached_info().config.clone();
    js.update_stream(Config { max_message_size: 3000, ..fit }).await.unwrap();
}

// Shows: J-12, P8
#[tokio::test]
async fn a_message_as_large_as_the_server_takes_is_buried_with_what_fits_of_it() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[]);
    let most = c.broker.max_payload();
    let js = async_nats::jetstream::new(world.plain().await);
    js.publish("surety.jobs.default.huge", "x".repeat(most).into()).await.unwrap().await.unwrap();
    assert_eq!(world.ended(&c, "huge").await.code, "invalid_job");
    world.drained(&c).await;
    let letters = dead_letters(&world).await;
    let [letter] = &letters[..] else { panic!("{} letters", letters.len()) };
    assert!(letter.body.len() > most - 2000 && letter.body.len() < most, "{}", letter.body.len());
    assert_eq!(letter.headers.get("Surety-Cut").unwrap().as_str(), most.to_string());
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: P8
#[tokio::test]
async fn a_message_that_cannot_be_removed_does_not_keep_those_behind_it_from_being_known() {
    // Pages of one message, which nobody pulls.
    let world = World::with("[reaper]\nbatch = 1\n[contract]\nack = \"100ms\"").await;
    let c = world.connect().await;
    dead_letters_are_small(&world).await;
    world.surety(&["cancel", "big", "--queue", "default"]).await.exits(0);
    world.publish("default", "big", &big("noop", "")).await;
    world.publish("default", "small", r#"{"type":"noop"}"#).await;
    let mut reaper = world.reaper(&[]);
    world.status(&c, "small", Status::Queued).await;
    reaper.logged("a message could not be dealt with").await;
    assert_eq!(messages(&world, &c.broker.names().jobs()).await, 2);
    assert_eq!(reaper.stop().await, Some(0));
}

/// The dead letter of the small job is there and its message is gone; the messages of the big ones are kept.
async fn only_the_big_ones_stay(world: &World, c: &Connected, n: u64) {
    wait_logged(world, "the message of the small job to be settled", async || {
        messages(world, &c.broker.names().jobs()).await == n
    })
    .await;
    let letters: Vec<_> = dead_letters(world).await.into_iter().map(|l| l.job).collect();
    assert_eq!(letters, ["small"]);
    let h = world.history(c).await;
    h.check().unwrap();
    assert!(h.jobs.keys().all(|job| h.count(job, "finished") == 1));
}

#[tokio::test]
async fn a_deadline_whose_carrier_cannot_be_settled_does_not_hold_up_the_others() {
    let world = World::with("[handlers.fail]\ncommand = [\"false\"]").await;
    let c = world.connect().await;
    dead_letters_are_small(&world).await;
    let mut worker = world.worker(&[], &[]);
    // Short enough to wait in its queue.
    let more = r#","retry":{"backoff":["9s"]},"contract":{"finish":"4s"}"#;
    // The index has them in the order of their deadlines.
    for (id, body) in [("big", big("fail", more)), ("small", format!(r#"{{"type":"fail"{more}}}"#))] {
        world.publish("default", id, &body).await;
        world.status(&c, id, Status::RetryWait).await;
    }
    assert_eq!(worker.stop().await, Some(0));
    let record = world.status(&c, "small", Status::RetryWait).await;
    wait("both deadlines to pass", async || c.store.now_ms().await.unwrap() > record.finish_by_ms).await;
    let mut reaper = world.reaper(&[]);
    for id in ["big", "small"] {
        assert_eq!(world.ended(&c, id).await.code, "finish_deadline");
    }
    only_the_big_ones_stay(&world, &c, 1).await;
    reaper.logged("rule_failed").await;
    assert_eq!(reaper.stop().await, Some(0));
}

#[tokio::test]
async fn a_lost_attempt_whose_carrier_cannot_be_settled_does_not_hold_up_the_others() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("hold", "exec sleep 60")).await;
    let c = world.connect().await;
    dead_letters_are_small(&world).await;
    let mut worker = world.worker(&[], &[]);
    let more = r#","retry":{"max_retries":0}"#;
    // The set of what a session runs has no order: the small one is hardly ever the first.
    for n in 0..5 {
        world.publish("default", &format!("big-{n}"), &big("hold", more)).await;
    }
    world.publish("default", "small", &format!(r#"{{"type":"hold"{more}}}"#)).await;
    for id in ["big-0", "big-1", "big-2", "big-3", "big-4", "small"] {
        world.status(&c, id, Status::Running).await;
    }
    worker.kill9().await;
    let mut reaper = world.reaper(&[]);
    assert_eq!(world.ended(&c, "small").await.code, "attempts_exhausted");
    only_the_big_ones_stay(&world, &c, 5).await;
    reaper.logged("rule_failed").await;
    assert_eq!(reaper.stop().await, Some(0));
}

// Shows: T-13
#[tokio::test]
async fn a_cancel_whose_dead_letter_is_not_taken_goes_on_there_when_it_is_called_again() {
    let world = World::start().await;
    let c = world.connect().await;
    let js = async_nats::jetstream::new(world.plain().await);
    let before = js.get_stream("SURETY_DLQ").await.unwrap().cached_info().config.clone();
    dead_letters_are_small(&world).await;
    world.publish("default", "big", &big("noop", "")).await;
    let said = world.surety(&["cancel", "big"]).await;
    assert!(said.code != Some(0) && !said.err.is_empty(), "{said:?}");
    assert_eq!(world.status(&c, "big", Status::Cancelled).await.code, "cancelled");
    let left = async || (messages(&world, "SURETY_JOBS").await, dead_letters(&world).await.len());
    assert_eq!(left().await, (1, 0));
    js.update_stream(before).await.unwrap();
    world.surety(&["cancel", "big"]).await;
    assert_eq!(left().await, (0, 1));
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("big", "finished"), 1);
}
