//! Servers that go away and come back, and servers that are not fit.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use surety_common::{
    connect::{self, Connected},
    domain::Status,
};
use surety_producer::dev::servers::{RedisOptions, RedisServer};
use surety_tests::{
    process::Process,
    proxy::Proxy,
    witness::{QUICK, Witness, settled, wait_logged},
    world::{PATIENCE, World, messages, wait},
};

const N: usize = 200;

/// Two hundred jobs, half of them commands, for two workers and a reaper.
struct Busy {
    world: World,
    c: Connected,
    witness: Witness,
    processes: Vec<Process>,
}

impl Busy {
    async fn start() -> Self {
        let witness = Witness::default();
        let world = World::with(&(witness.handler("work", "sleep 0.1") + QUICK)).await;
        let c = world.connect().await;
        let processes = vec![
            world.worker(&["--state-dir", &world.path("one"), "--slots", "4"], &[]),
            world.worker(&["--state-dir", &world.path("two"), "--slots", "4"], &[]),
            world.reaper(&[]),
        ];
        let js = async_nats::jetstream::new(world.plain().await);
        let mut acks = Vec::new();
        for i in 0..N {
            let kind = ["noop", "work"][i % 2];
            let body = format!(r#"{{"type":"{kind}","retry":{{"max_retries":20,"backoff":["50ms"]}}}}"#);
            acks.push(js.publish(format!("surety.jobs.default.j{i}"), body.into()).await.unwrap());
        }
        for a in acks {
            a.await.unwrap();
        }
        let busy = Self { world, c, witness, processes };
        wait_logged(&busy.world, "some jobs to be executed", async || busy.witness.starts().len() > 10).await;
        busy
    }

    /// Every job has its outcome, though the servers went and came; nothing is left, nobody gave up.
    async fn all_done(mut self) {
        assert!(self.witness.starts().len() < N / 2, "the outage came too late to show anything");
        for i in 0..N {
            let r = self.world.ended(&self.c, &format!("j{i}")).await;
            assert_eq!(r.status, Status::Done, "j{i}");
        }
        settled(&self.world, &self.c).await;
        self.witness.no_overlap();
        let h = self.world.history(&self.c).await;
        h.check().unwrap();
        assert_eq!(h.jobs.len(), N);
        for p in &mut self.processes {
            assert_eq!(p.stop().await, Some(0), "{}", p.log());
        }
    }
}

// Shows: P1, P7, X-08, X-09
#[tokio::test]
async fn nats_is_restarted_amid_two_hundred_jobs() {
    let mut busy = Busy::start().await;
    busy.world.nats.restart().await.unwrap();
    busy.all_done().await;
}

// Shows: P1, P7
#[tokio::test]
async fn nats_is_killed_amid_two_hundred_jobs() {
    let mut busy = Busy::start().await;
    busy.world.nats.kill9().await.unwrap();
    busy.world.nats.restart().await.unwrap();
    busy.all_done().await;
}

// Shows: P1, P2, H-04, X-08
#[tokio::test]
async fn redis_is_restarted_amid_two_hundred_jobs() {
    let mut busy = Busy::start().await;
    busy.world.redis.restart().await.unwrap();
    busy.all_done().await;
}

// Shows: P1, P2, P7
#[tokio::test]
async fn both_servers_are_restarted_amid_two_hundred_jobs() {
    let mut busy = Busy::start().await;
    let World { nats, redis, .. } = &mut busy.world;
    let (a, b) = tokio::join!(nats.restart(), redis.restart());
    a.unwrap();
    b.unwrap();
    busy.all_done().await;
}

// Shows: D-08, P1
#[tokio::test]
async fn reapers_come_and_go_amid_two_hundred_jobs() {
    let mut busy = Busy::start().await;
    for kill in [true, false, true] {
        // A lost worker gives each of them something to do.
        let mut lost = busy.processes.remove(0);
        lost.kill9().await;
        let n = busy.processes.len();
        let name = busy.world.path(&format!("again-{n}-{}", busy.witness.starts().len()));
        busy.processes.push(busy.world.worker(&["--state-dir", &name, "--slots", "4"], &[]));
        let at = busy.processes.iter().position(|p| p.log().contains("reaper ready")).unwrap();
        let mut old = busy.processes.remove(at);
        if kill {
            old.kill9().await;
        } else {
            assert_eq!(old.stop().await, Some(0));
        }
        let mut reaper = busy.world.reaper(&[]);
        reaper.logged("reaper ready").await;
        // Workers are taken from the front.
        busy.processes.push(reaper);
    }
    busy.all_done().await;
}

async fn exits(mut p: Process, code: i32, within: Duration, says: &str) {
    let since = Instant::now();
    assert_eq!(p.ended(within).await, Some(code), "{}", p.log());
    assert!(since.elapsed() < within);
    let log = p.log();
    let lines: Vec<&str> = log.lines().filter(|l| l.starts_with("surety-")).collect();
    assert_eq!(lines.len(), 1, "one clear line:\n{log}");
    assert!(lines[0].contains(says), "{log}");
}

// Shows: X-08
#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for_and_then_reported() {
    let world = World::start().await;
    let _c = world.connect().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    drop(nobody);
    let (nats, redis) = (format!("nats://127.0.0.1:{port}"), format!("redis://127.0.0.1:{port}"));
    // The retry limit of these tests is 5 s.
    let (within, address) = (Duration::from_secs(12), port.to_string());
    tokio::join!(
        exits(world.worker(&["--nats", &nats], &[]), 69, within, &address),
        exits(world.worker(&["--redis", &redis], &[]), 69, within, &address),
    );
    // One that comes back in time is waited for.
    let proxy = Proxy::start(([127, 0, 0, 1], world.redis.port()).into()).await.unwrap();
    proxy.cut();
    let mut patient = world.worker(&["--redis", &format!("redis://{}", proxy.addr())], &[]);
    patient.logged("nats connected").await;
    proxy.heal();
    patient.logged("worker ready").await;
    assert_eq!(patient.stop().await, Some(0));
}

// Shows: V-01
#[tokio::test]
async fn a_redis_that_may_lose_records_is_refused() {
    let world = World::start().await;
    let _c = world.connect().await;
    let start = async |name: &str, args: &[&str]| {
        let extra_args = args.iter().map(|a| (*a).to_owned()).collect();
        let options = RedisOptions { port: None, data: world.dir.path().join(name), extra_args, log: None };
        RedisServer::start(options).await.unwrap()
    };
    let volatile = start("volatile", &["--appendonly", "no"]).await;
    let evicting = start("evicting", &["--maxmemory-policy", "allkeys-lru"]).await;
    for (redis, says) in [(&volatile, "appendonly yes"), (&evicting, "noeviction")] {
        let mut p = world.worker(&["--redis", &redis.url()], &[]);
        assert_eq!(p.ended(Duration::from_secs(10)).await, Some(78), "{}", p.log());
        assert!(p.log().contains(says), "{}", p.log());
    }
}

// Shows: P1, P7, X-13
#[tokio::test]
async fn the_outbox_grows_while_nats_is_away_and_is_drained_afterwards() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done")).await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    let proxy = Proxy::start(([127, 0, 0, 1], world.nats.port()).into()).await.unwrap();
    let mut one = world.worker(&["--nats", &format!("nats://{}", proxy.addr())], &[]);
    for i in 0..8 {
        world.publish("default", &format!("j{i}"), r#"{"type":"work"}"#).await;
        witness.started(&format!("j{i}"), 1).await;
    }
    // It would publish for the worker.
    assert_eq!(reaper.stop().await, Some(0));
    wait_logged(&world, "the outbox to be empty", async || c.store.outbox_len(0).await.is_ok_and(|n| n == 0))
        .await;
    proxy.cut();
    witness.touch("go");
    for i in 0..8 {
        // Committed in Redis though the journal is away, and not acked before it is back.
        assert_eq!(world.ended(&c, &format!("j{i}")).await.status, Status::Done);
    }
    assert!(c.store.outbox_len(0).await.unwrap() > 0);
    assert_eq!(
        messages(&world, &c.broker.names().jobs()).await,
        8,
        "nobody acks before the outcome is journaled"
    );
    let h = world.history(&c).await;
    assert!((0..8).all(|i| h.count(&format!("j{i}"), "finished") == 0));
    proxy.heal();
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    for i in 0..8 {
        assert_eq!(h.count(&format!("j{i}"), "finished"), 1);
        assert_eq!(witness.executions(&format!("j{i}")), 1);
    }
    assert_eq!(one.stop().await, Some(0));
}

// Shows: X-13, P1, P7
#[tokio::test]
async fn a_journal_that_refuses_keeps_the_carrier_until_it_takes_the_outcome() {
    let witness = Witness::default();
    let world = World::with(&(witness.handler("work", "true") + QUICK)).await;
    let c = world.connect().await;
    let js = async_nats::jetstream::new(world.plain().await);
    let mut events = js.get_stream("SURETY_EVENTS").await.unwrap();
    let fit = events.info().await.unwrap().config.clone();
    let small = async_nats::jetstream::stream::Config { max_message_size: 10, ..fit.clone() };
    js.update_stream(&small).await.unwrap();
    let mut one = world.worker(&[], &[]);
    world.publish("default", "a", r#"{"type":"work"}"#).await;
    world.publish("default", "b", r#"{"type":"noop"}"#).await;
    one.logged("journal entry not published; it stays in the outbox").await;
    for job in ["a", "b"] {
        assert_eq!(world.ended(&c, job).await.status, Status::Done);
    }
    // Each is delivered again after its ack-wait, told that it has ended, and still not acked.
    let deliveries = async || {
        let consumer: async_nats::jetstream::consumer::PullConsumer =
            js.get_consumer_from_stream("default", "SURETY_JOBS").await.unwrap();
        consumer.get_info().await.unwrap().delivered.consumer_sequence
    };
    wait_logged(&world, "redeliveries", async || deliveries().await >= 4).await;
    assert_eq!(messages(&world, &c.broker.names().jobs()).await, 2);
    js.update_stream(&fit).await.unwrap();
    let _reaper = world.reaper(&[]);
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "finished"), h.count("b", "finished"), witness.executions("a")), (1, 1, 1));
    assert_eq!(one.stop().await, Some(0));
}

// Shows: B-05, H-04
#[tokio::test]
async fn whoever_starts_while_redis_loads_its_data_waits_for_it() {
    // Half a millisecond for each key, and a look at connections after each 1024 of them.
    let mut world = World::on("", "", &["--key-load-delay", "500"]).await;
    let c = world.connect().await;
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    for n in 0..4000 {
        let () = redis::cmd("SET").arg(format!("key-{n}")).arg(n).query_async(&mut plain).await.unwrap();
    }
    world.publish("default", "a", r#"{"type":"noop"}"#).await;
    world.redis.kill9().await.unwrap();
    let mut worker = world.worker(&[], &[]);
    let mut reaper = world.reaper(&[]);
    world.redis.restart().await.unwrap();
    assert_eq!(world.ended(&c, "a").await.status, Status::Done);
    for p in [&mut worker, &mut reaper] {
        p.logged("ready").await;
        assert_eq!(p.stop().await, Some(0), "{}", p.log());
    }
}

/// The one consumer that reads the journal at the moment.
async fn reader(js: &async_nats::jetstream::Context) -> String {
    let found = Cell::new(None);
    wait("a reader of the journal that has its first messages", async || {
        let stream = js.get_stream("SURETY_EVENTS").await.unwrap();
        let infos: Vec<_> = stream.consumers().try_collect().await.unwrap();
        let reader = infos.into_iter().find(|c| c.delivered.stream_sequence > 0 && c.num_pending > 0);
        let is_there = reader.is_some();
        found.set(reader.map(|c| c.name));
        is_there
    })
    .await;
    found.take().unwrap()
}

// Shows: P7
#[tokio::test]
async fn reading_the_journal_survives_a_lost_reader_and_messages_deleted_under_it() {
    const N: usize = 2000;
    /// As many as the reader asks for at once: what is deleted behind them was announced with the last one.
    const FIRST: usize = 500;
    let world = World::start().await;
    let _c = world.connect().await;
    let client = world.plain().await;
    let js = async_nats::jetstream::new(client.clone());
    let inbox = client.new_inbox();
    let mut acks = client.subscribe(inbox.clone()).await.unwrap();
    // What follows the first ones has a subject of its own, and is deleted under the reader.
    for i in 0..N {
        let queue = if i < FIRST { "default" } else { "late" };
        let event = format!(
            r#"[{{"v":1,"job":"j{i}","gen":1,"rev":1,"kind":"started","at":"2026-11-21T08:00:00Z","queue":"{queue}","type":"t","status":"running","contract":"acked","attempt":1,"epoch":1}}]"#
        );
        client
            .publish_with_reply(format!("surety.events.{queue}"), inbox.clone(), event.into())
            .await
            .unwrap();
    }
    for _ in 0..N {
        tokio::time::timeout(PATIENCE, acks.next()).await.unwrap().unwrap();
    }
    // Slow enough to be met in the middle: messages come in batches that are asked for.
    let proxy = Proxy::start(([127, 0, 0, 1], world.nats.port()).into()).await.unwrap();
    let slow = world.settings_for(&format!("nats://{}", proxy.addr()), &world.redis.url());
    let slow = connect::look(&slow, "test").await.unwrap();
    proxy.delay(Duration::from_millis(300));

    let read = async || {
        let mut jobs = Vec::new();
        slow.broker.read_journal(None, 0, |e| jobs.push(e.job)).await.unwrap();
        jobs
    };
    let (jobs, ()) = tokio::join!(read(), async {
        let stream = js.get_stream("SURETY_EVENTS").await.unwrap();
        stream.delete_consumer(&reader(&js).await).await.unwrap();
    });
    let all: Vec<_> = (0..N).map(|i| format!("j{i}")).collect();
    assert!(jobs == all, "{} events, each once and in order", jobs.len());

    let (jobs, ()) = tokio::join!(read(), async {
        reader(&js).await;
        js.get_stream("SURETY_EVENTS").await.unwrap().purge().filter("surety.events.late").await.unwrap();
    });
    assert!(jobs.len() >= FIRST && jobs == all[..jobs.len()], "{} events", jobs.len());
}
