//! Messages and records that do not fit together: each made on purpose, and healed by the reaper.

use async_nats::{HeaderMap, jetstream};
use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    witness::{Witness, dead_letters, settled},
    world::{PATIENCE, World, messages, wait},
};

use super::scripts::id;

/// Everything that takes patience takes little of it.
const SOON: &str = r#"
[contract]
ack = "200ms"
[layout]
ack_wait = "2500ms"
[lease]
ttl = "2s"
extend = "1s"
[reaper]
carrier_check = "400ms"
"#;

async fn world() -> (World, Connected) {
    let world = World::with(SOON).await;
    let c = world.connect().await;
    (world, c)
}

async fn js(w: &World) -> jetstream::Context {
    jetstream::new(w.plain().await)
}

/// Deletes a message behind everybody's back.
async fn vanish(w: &World, stream: &str, sequence: u64) {
    let stream = js(w).await.get_stream(stream).await.unwrap();
    assert!(stream.delete_message(sequence).await.unwrap());
}

/// Makes a consumer believe that everything up to now is settled, though it is there: it is made anew, behind the messages.
/// (The server does so by itself in the class of nats-server issue 7680.)
async fn forget(w: &World, queue: &str) {
    let stream = js(w).await.get_stream("SURETY_JOBS").await.unwrap();
    // A message that was delivered and whose delivery was given up is neither waiting nor held.
    let mut consumer = stream.get_consumer::<jetstream::consumer::pull::Config>(queue).await.unwrap();
    let mut config = consumer.info().await.unwrap().config.clone();
    config.max_deliver = 1;
    config.ack_wait = std::time::Duration::from_millis(100);
    let _: jetstream::consumer::Consumer<jetstream::consumer::pull::Config> = stream
        .update_consumer(jetstream::consumer::pull::Config {
            durable_name: config.durable_name.clone(),
            filter_subjects: config.filter_subjects.clone(),
            ack_policy: config.ack_policy,
            ack_wait: config.ack_wait,
            max_deliver: 1,
            max_ack_pending: config.max_ack_pending,
            max_waiting: config.max_waiting,
            ..Default::default()
        })
        .await
        .unwrap();
    use futures::StreamExt;
    let mut got = consumer.fetch().max_messages(100).messages().await.unwrap();
    while let Some(m) = got.next().await {
        m.unwrap();
    }
    wait("the consumer to give them up", async || {
        let mut c = stream.get_consumer::<jetstream::consumer::pull::Config>(queue).await.unwrap();
        let info = c.info().await.unwrap();
        info.num_pending + info.num_ack_pending as u64 == 0
    })
    .await;
    // The advisory is lost.
    js(w).await.get_stream("SURETY_ADVISORIES").await.unwrap().purge().await.unwrap();
    w.surety(&["provision"]).await.exits(0);
}

// Shows: C-09, A-06
#[tokio::test]
async fn an_open_record_whose_message_is_gone_fails_with_an_alert() {
    let (world, c) = world().await;
    let mut reaper = world.reaper(&[]);
    let sequence = world.publish("default", "a", r#"{"type":"noop"}"#).await;
    world.status(&c, "a", Status::Queued).await;
    vanish(&world, "SURETY_JOBS", sequence).await;
    let lost = world.ended(&c, "a").await;
    assert_eq!((lost.status, lost.code.as_str()), (Status::Failed, "message_lost"));
    reaper.logged("alert=\"message_lost\"").await;
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "buried"), h.count("a", "finished")), (1, 1));
}

// Shows: P2
#[tokio::test]
async fn a_record_that_is_open_while_the_journal_has_the_outcome_gets_that_one() {
    let (world, c) = world().await;
    let worker = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    let done = world.ended(&c, "a").await;
    world.drained(&c).await;
    drop(worker);
    // The record as it was before the end: queued, and its message is acked since.
    let old = surety_common::store::WaitingItem {
        id: "a".into(),
        queue: "default".into(),
        job_type: "noop".into(),
        key: String::new(),
        trace: String::new(),
        carrier: "JOBS:1".into(),
        created_ms: done.created_ms,
        finish_ms: 3_600_000,
        max_retries: 3,
        generation: 1,
        expires_ms: 0,
        notify: String::new(),
        summary: String::new(),
    };
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    let key = c.store.keys().job(&id("a"));
    let _: u64 = redis::cmd("DEL").arg(&key).query_async(&mut plain).await.unwrap();
    c.store.register(0, &[old]).await.unwrap();
    assert_eq!(c.store.record(&id("a")).await.unwrap().unwrap().status, Status::Queued);
    let _reaper = world.reaper(&[]);
    let again = world.ended(&c, "a").await;
    assert_eq!((again.status, again.rev, again.epoch), (Status::Done, done.rev, done.epoch));
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "finished"), 1, "decided once");
    settled(&world, &c).await;
}

// Shows: C-09
#[tokio::test]
async fn another_message_of_the_job_takes_the_place_of_one_that_is_gone() {
    let (world, c) = world().await;
    let _reaper = world.reaper(&[]);
    let first = world.publish("default", "a", r#"{"type":"noop"}"#).await;
    world.status(&c, "a", Status::Queued).await;
    // The second has another message id, or the broker would drop it.
    let mut h = HeaderMap::new();
    h.insert("Nats-Msg-Id", "other");
    h.insert("Surety-Job", "a");
    let js = js(&world).await;
    let sent = js.publish_with_headers("surety.jobs.default.a", h, r#"{"type":"noop"}"#.into());
    let second = sent.await.unwrap().await.unwrap().sequence;
    vanish(&world, "SURETY_JOBS", first).await;
    world.until(&c, "a", |r| r.carrier == format!("JOBS:{second}")).await;
    let _worker = world.worker(&[], &[]);
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    world.drained(&c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "started"), 1);
}

// Shows: P3, A-13
#[tokio::test]
async fn a_message_that_its_consumer_forgot_is_handed_on_as_a_copy() {
    let (world, c) = world().await;
    let _reaper = world.reaper(&[]);
    let body = r#"{"type":"noop","key":"k"}"#;
    let first = world.publish("default", "a", body).await;
    world.status(&c, "a", Status::Queued).await;
    forget(&world, "default").await;
    let moved = world.until(&c, "a", |r| r.carrier != format!("JOBS:{first}")).await;
    assert_eq!((moved.status, moved.rev), (Status::Queued, 0));
    wait("the old one to go", async || messages(&world, "SURETY_JOBS").await == 1).await;
    let copy = c.broker.carrier_message(&moved.carrier).await.unwrap().unwrap();
    assert_eq!(copy.payload, body);
    assert_eq!(copy.header("Nats-Msg-Id"), Some("a/1/moved/0"));
    assert_eq!(copy.header("Surety-Carrier"), Some(format!("JOBS:{first}").as_str()));
    assert!(copy.header("Surety-First-At").is_some());
    let _worker = world.worker(&[], &[]);
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    world.drained(&c).await;
    world.history(&c).await.check().unwrap();
}

/// The reaper dies at a point while it hands a message on.
async fn handed_on_though_it_dies_at(point: &str, is_taken_first: bool) {
    let (world, c) = world().await;
    let mut doomed = world.reaper(&[("SURETY_FAULT", &format!("{point}:1"))]);
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    world.status(&c, "a", Status::Queued).await;
    forget(&world, "default").await;
    assert_eq!(doomed.ended(PATIENCE).await, None, "{}", doomed.log());
    assert_eq!(messages(&world, "SURETY_JOBS").await, 2);
    let (worker, reaper);
    if is_taken_first {
        // The record does not name the copy yet: the copy itself says whose place it takes.
        worker = world.worker(&[], &[]);
        assert_eq!(world.ended(&c, "a").await.carrier, "JOBS:2", "{}", worker.log());
        reaper = world.reaper(&[]);
    } else {
        reaper = world.reaper(&[]);
        world.until(&c, "a", |r| r.carrier == "JOBS:2").await;
        worker = world.worker(&[], &[]);
    }
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    world.drained(&c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "started"), h.count("a", "finished")), (1, 1));
    drop((worker, reaper));
}

// Shows: X-13, D-06
#[tokio::test]
async fn a_message_is_handed_on_once_though_the_reaper_dies_at_it() {
    tokio::join!(
        handed_on_though_it_dies_at("carrier_copied", false),
        handed_on_though_it_dies_at("carrier_copied", true),
        handed_on_though_it_dies_at("carrier_replaced", false),
    );
}

// Shows: A-06, A-13
#[tokio::test]
async fn a_job_whose_copy_is_given_up_too_is_buried() {
    let (world, c) = world().await;
    let _reaper = world.reaper(&[]);
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    let first = world.status(&c, "a", Status::Queued).await.carrier;
    forget(&world, "default").await;
    world.until(&c, "a", |r| r.carrier != first).await;
    forget(&world, "default").await;
    let end = world.ended(&c, "a").await;
    assert_eq!((end.status, end.code.as_str()), (Status::Failed, "max_deliver"));
    wait("its message to go", async || messages(&world, "SURETY_JOBS").await == 0).await;
    assert_eq!(dead_letters(&world).await.len(), 1);
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!(h.count("a", "finished"), 1);
}

// Shows: H-05
#[tokio::test]
async fn a_lost_attempt_is_given_back_at_once_though_earlier_messages_were_settled() {
    // Nobody waits for this ack-wait: what is delivered again within a test was given back.
    let witness = Witness::default();
    let config = witness.handler("stay", "[ $SURETY_ATTEMPT -gt 1 ] || exec sleep 60")
        + "[layout]\nack_wait = \"10m\"\n[lease]\nextend = \"2s\"\n";
    let world = World::with(&config).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let mut first = world.worker(&["--state-dir", &world.path("one")], &[]);
    for n in 0..5 {
        world.publish("default", &format!("before-{n}"), r#"{"type":"noop"}"#).await;
    }
    world.drained(&c).await;
    world.publish("default", "a", r#"{"type":"stay"}"#).await;
    witness.started("a", 1).await;
    first.kill9().await;
    let _second = world.worker(&["--state-dir", &world.path("two")], &[]);
    let ended = world.ended(&c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1));
    settled(&world, &c).await;
}

/// Publishes one more message of a job, under a message id of its own.
async fn again(w: &World, job: &str, message_id: &str) -> u64 {
    let mut h = HeaderMap::new();
    h.insert("Nats-Msg-Id", message_id);
    h.insert("Surety-Job", job);
    let js = js(w).await;
    let subject = format!("surety.jobs.default.{job}");
    js.publish_with_headers(subject, h, r#"{"type":"noop"}"#.into()).await.unwrap().await.unwrap().sequence
}

// Shows: A-13, C-09
#[tokio::test]
async fn forgotten_messages_of_known_ended_and_unknown_jobs_are_all_dealt_with() {
    let (world, c) = world().await;
    // One has its outcome, one is a second message of an open job, one is no job, one is known to nobody.
    world.surety(&["cancel", "ended", "--queue", "default"]).await.exits(0);
    world.publish("default", "ended", r#"{"type":"noop"}"#).await;
    let first = world.publish("critical", "open", r#"{"type":"noop","contract":{"ack":"1h"}}"#).await;
    let reaper = world.reaper(&[]);
    world.status(&c, "open", Status::Queued).await;
    wait("the ended one to go", async || messages(&world, "SURETY_JOBS").await == 1).await;
    drop(reaper);
    world.publish("default", "ended", r#"{"type":"noop"}"#).await;
    again(&world, "ended", "ended-again").await;
    again(&world, "open", "open-again").await;
    world.publish("default", "bad", r#"{"type":"noop","payload":"#).await;
    world.publish("default", "unknown", r#"{"type":"noop"}"#).await;
    forget(&world, "default").await;
    assert_eq!(messages(&world, "SURETY_JOBS").await, 5);

    let _reaper = world.reaper(&[]);
    let unknown = world.until(&c, "unknown", |r| r.carrier.starts_with("JOBS:")).await;
    world.until(&c, "unknown", |r| r.carrier != unknown.carrier).await;
    assert_eq!(world.ended(&c, "bad").await.code, "max_deliver");
    wait("what is of no use to go", async || messages(&world, "SURETY_JOBS").await == 2).await;
    assert_eq!(c.store.record(&id("open")).await.unwrap().unwrap().carrier, format!("JOBS:{first}"));
    let _worker = world.worker(&[], &[]);
    for job in ["open", "unknown"] {
        assert_eq!(world.ended(&c, job).await.status, Status::Done);
    }
    world.drained(&c).await;
    world.history(&c).await.check().unwrap();
}

// Shows: A-06, A-13, P8
#[tokio::test]
async fn a_job_that_kills_its_workers_is_buried_though_the_advisory_was_lost() {
    let config = SOON.replace("[layout]", "[layout]\nmax_deliver = 2") + "[worker]\nhand_on_limit = 1";
    let world = World::with(&config).await;
    let c = world.connect().await;
    // Nobody hears what the broker says of deliveries that it gave up.
    let js = js(&world).await;
    let mut deaf = js.get_stream("SURETY_ADVISORIES").await.unwrap().get_info().await.unwrap().config;
    deaf.subjects.retain(|s| !s.contains("MAX_DELIVERIES"));
    js.update_stream(deaf).await.unwrap();
    world.publish("default", "poison", r#"{"type":"noop"}"#).await;
    let _reaper = world.reaper(&[]);
    // Twice as it is, and twice as its copy.
    for n in 0..4 {
        let mut w = world.worker(&["--slots", "1"], &[("SURETY_FAULT", "pulled:1")]);
        assert_eq!(w.ended(PATIENCE).await, None, "{n}: {}", w.log());
    }
    let later = world.worker(&[], &[]);
    let ended = world.ended(&c, "poison").await;
    assert_eq!((ended.status, ended.code.as_str()), (Status::Failed, "max_deliver"));
    wait("its messages to go", async || messages(&world, "SURETY_JOBS").await == 0).await;
    assert_eq!(dead_letters(&world).await.len(), 1);
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("poison", "buried"), h.count("poison", "finished")), (1, 1));
    drop(later);
}

// Shows: P3
#[tokio::test]
async fn messages_that_no_consumer_covers_are_told_of_and_go_on_once_there_is_one() {
    let (world, c) = world().await;
    let js = js(&world).await;
    world.publish("critical", "a", r#"{"type":"noop"}"#).await;
    // Another layout, made by hand: its messages stay.
    js.delete_consumer_from_stream("critical", "SURETY_JOBS").await.unwrap();
    let mut config = js.get_stream("SURETY_JOBS").await.unwrap().get_info().await.unwrap().config;
    config.subjects.retain(|s| !s.contains("critical"));
    js.update_stream(config).await.unwrap();
    let mut reaper = world.reaper(&[]);
    reaper.logged("alert=\"stray_subject\"").await;
    // It is known all the same, and has its deadlines.
    assert_eq!(world.status(&c, "a", Status::Queued).await.queue, "critical");
    world.surety(&["doctor"]).await.exits(78);
    world.surety(&["provision"]).await.exits(0);
    let _worker = world.worker(&[], &[]);
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    world.drained(&c).await;
    world.history(&c).await.check().unwrap();
}

// Shows: P3, P1
#[tokio::test]
async fn a_consumer_that_was_made_anew_runs_no_job_twice() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("stay", "sleep 2") + SOON)).await;
    let c = world.connect().await;
    let _reaper = world.reaper(&[]);
    let _worker = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"stay"}"#).await;
    witness.started("a", 1).await;
    // It is forgotten that this one was delivered.
    js(&world).await.delete_consumer_from_stream("default", "SURETY_JOBS").await.unwrap();
    world.surety(&["provision"]).await.exits(0);
    world.publish("default", "b", r#"{"type":"noop"}"#).await;
    for job in ["a", "b"] {
        let done = world.ended(&c, job).await;
        assert_eq!((done.status, done.attempt), (Status::Done, 1), "{job}");
    }
    settled(&world, &c).await;
    assert_eq!(witness.executions("a"), 1);
}
