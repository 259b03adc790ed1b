//! `provision` sets back what it owns, and leaves what it does not.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::pull,
    stream::{Config, DiscardPolicy},
};
use surety_common::connect::provision;
use surety_tests::world::World;

// Shows: G-07
#[tokio::test]
async fn what_somebody_changed_by_hand_is_set_back_and_what_is_theirs_stays() {
    let world = World::start().await;
    let c = world.connect().await;
    let js = jetstream::new(world.plain().await);
    let jobs = js.get_stream("SURETY_JOBS").await.unwrap();
    let before = jobs.cached_info().config.clone();
    let changed = Config {
        max_age: Duration::from_secs(3600),
        discard: DiscardPolicy::Old,
        max_messages_per_subject: 1,
        duplicate_window: Duration::from_secs(1),
        max_bytes: 1 << 30,
        ..before.clone()
    };
    js.update_stream(changed).await.unwrap();
    let consumer = jobs.get_consumer::<pull::Config>("default").await.unwrap();
    let have = pull::Config {
        durable_name: Some("default".into()),
        filter_subjects: vec!["surety.jobs.default".into()],
        ack_policy: jetstream::consumer::AckPolicy::Explicit,
        backoff: vec![Duration::from_secs(1)],
        max_deliver: 7,
        max_waiting: consumer.cached_info().config.max_waiting,
        description: Some("ours".into()),
        ..pull::Config::default()
    };
    jobs.update_consumer(have).await.unwrap();

    let (_, done) = provision(&world.settings(), "test").await.unwrap();
    assert_eq!(
        (done.changed, done.refused),
        (vec!["stream SURETY_JOBS updated".to_owned(), "consumer default updated".to_owned()], vec![])
    );
    let now = js.get_stream("SURETY_JOBS").await.unwrap().cached_info().config.clone();
    assert_eq!(now, Config { max_bytes: 1 << 30, ..before });
    let now = jobs.get_consumer::<pull::Config>("default").await.unwrap().cached_info().config.clone();
    assert_eq!(
        (now.ack_wait, now.max_deliver, now.backoff.len(), now.filter_subjects.len()),
        (Duration::from_secs(8), 100, 0, 2)
    );
    assert_eq!(now.description.as_deref(), Some("ours"));
    let (_, again) = provision(&world.settings(), "test").await.unwrap();
    assert!(again.changed.is_empty() && again.refused.is_empty(), "{again:?}");
    drop(c);
}
