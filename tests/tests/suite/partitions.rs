//! Workers that are cut off: from Redis, from NATS, from both, with their connections held or closed.

use std::time::{Duration, Instant};

use surety_common::{connect::Connected, domain::Status};
use surety_tests::{
    process::Process,
    proxy::Proxy,
    witness::{QUICK, Witness, id, settled, wait_logged},
    world::{World, messages, wait},
};

/// A tree in its first epoch: the main process and a grandchild in a session of its own that ignores TERM. Later epochs end
/// at once.
const TREE: &str = "if [ $SURETY_ATTEMPT -eq 1 ]; then child 'exec sleep 60'; exec sleep 60; fi";

/// TTL 2 s, two ticks of 100 ms, and what a loaded machine takes for a start. The ack-wait is four times as long.
const NEXT_WITHIN: Duration = Duration::from_millis(2000 + 200 + 1800);

/// Two workers, of which the first has its servers behind proxies, and a reaper.
struct Split {
    world: World,
    c: Connected,
    witness: Witness,
    nats: Proxy,
    redis: Proxy,
    first: Process,
    _others: [Process; 2],
}

impl Split {
    /// The job `a` runs at the first worker, which can be cut off; the second can take it.
    async fn new(handler: &str, config: &str) -> Self {
        let witness = Witness::default();
        let world = World::with(&(witness.handler("work", handler) + config)).await;
        let c = world.connect().await;
        let proxy = async |port: u16| Proxy::start(([127, 0, 0, 1], port).into()).await.unwrap();
        let (nats, redis) = (proxy(world.nats.port()).await, proxy(world.redis.port()).await);
        let reaper = world.reaper(&[]);
        let urls = (format!("nats://{}", nats.addr()), format!("redis://{}", redis.addr()));
        let state = world.path("one");
        let first = world.worker(&["--state-dir", &state, "--nats", &urls.0, "--redis", &urls.1], &[]);
        world.publish("default", "a", r#"{"type":"work"}"#).await;
        witness.started("a", 1).await;
        let mut second = world.worker(&["--state-dir", &world.path("two")], &[]);
        second.logged("worker ready").await;
        Self { world, c, witness, nats, redis, first, _others: [second, reaper] }
    }

    /// The second attempt began in time, when nothing of the first was left, and ended the job; the first worker goes on later.
    async fn taken_over(mut self, since: Instant) {
        wait("the second attempt", async || self.witness.executions("a") == 2).await;
        assert!(since.elapsed() < NEXT_WITHIN, "the next attempt came after {:?}", since.elapsed());
        let ended = self.world.ended(&self.c, "a").await;
        assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 2, 1));
        self.witness.no_overlap();
        assert!(!self.witness.lives("a"), "{}", self.witness.text());
        settled(&self.world, &self.c).await;
        self.nats.heal();
        self.redis.heal();
        let opened = || self.first.log().matches("session opened").count();
        wait_logged(&self.world, "a new session", async || opened() == 2).await;
        let h = self.world.history(&self.c).await;
        h.check().unwrap();
        assert_eq!((h.count("a", "lost"), h.count("a", "finished")), (1, 1));
        assert_eq!(self.first.stop().await, Some(0), "{}", self.first.log());
    }
}

// Shows: H-05, H-09, P4, P5
#[tokio::test]
async fn a_worker_without_both_servers_loses_its_tree_and_then_its_job() {
    let s = Split::new(TREE, "").await;
    s.witness.started("a", 2).await;
    let since = Instant::now();
    s.nats.hold();
    s.redis.hold();
    s.taken_over(since).await;
}

// Shows: H-05, H-09, P4, P5
#[tokio::test]
async fn the_same_when_its_connections_are_closed_and_refused() {
    let s = Split::new(TREE, "").await;
    s.witness.started("a", 2).await;
    let since = Instant::now();
    s.nats.cut();
    s.redis.cut();
    s.taken_over(since).await;
}

// Shows: P1, P2, P5, J-05, X-13, E-12
#[tokio::test]
async fn a_worker_without_nats_goes_on_and_what_it_ends_is_journaled_and_acked_by_others() {
    let hold = "until [ -e $W.go ]; do sleep 0.02; done; echo '\"only\"'";
    let mut s = Split::new(hold, QUICK).await;
    s.nats.hold();
    let redelivered = async || {
        let js = async_nats::jetstream::new(s.world.plain().await);
        let consumer: async_nats::jetstream::consumer::PullConsumer =
            js.get_consumer_from_stream("default", "SURETY_JOBS").await.unwrap();
        consumer.get_info().await.unwrap().delivered.consumer_sequence >= 3
    };
    // It cannot extend, so its message is offered to the other worker, again and again, and refused each time.
    wait("redeliveries", redelivered).await;
    let record = s.c.store.record(&id("a")).await.unwrap().unwrap();
    assert_eq!(
        (record.status, record.attempt),
        (Status::Running, 1),
        "it renews in Redis, so the attempt goes on"
    );
    s.witness.touch("go");
    let ended = s.world.ended(&s.c, "a").await;
    assert_eq!((ended.status, ended.attempt, ended.charged), (Status::Done, 1, 0));
    // It is still cut off: the reaper publishes the outcome, and whoever is offered the message next acks it.
    wait_logged(&s.world, "the outcome to be journaled", async || {
        s.world.history(&s.c).await.count("a", "finished") == 1
    })
    .await;
    wait_logged(&s.world, "the message to be acked", async || messages(&s.world, "SURETY_JOBS").await == 0)
        .await;
    assert_eq!(s.witness.executions("a"), 1, "{}", s.witness.text());
    s.nats.heal();
    settled(&s.world, &s.c).await;
    let h = s.world.history(&s.c).await;
    h.check().unwrap();
    assert_eq!(h.jobs["a"].events.last().unwrap().data["receipt"]["result"], "only");
    assert_eq!(s.first.log().matches("session opened").count(), 1, "it never lost its session");
    s.world.publish("default", "b", r#"{"type":"noop"}"#).await;
    s.world.ended(&s.c, "b").await;
    assert_eq!(s.first.stop().await, Some(0), "{}", s.first.log());
}
