//! One Redis whose place another takes: the address moves, and the old connections lead to what is a replica now.

use redis::{Value, aio::MultiplexedConnection};
use surety_common::{connect, domain::Status};
use surety_producer::dev::servers::{RedisOptions, RedisServer};
use surety_tests::{
    proxy::Proxy,
    scrape::{address, get},
    witness::{Witness, settled},
    world::{World, wait},
};

use super::metrics::LISTEN;

async fn plain(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn run(server: &RedisServer, words: &[&str]) -> Value {
    let mut cmd = redis::cmd(words[0]);
    cmd.arg(&words[1..]);
    cmd.query_async(&mut plain(server).await).await.unwrap()
}

/// A replica of the world's Redis that has everything.
async fn replica(world: &World, name: &str) -> RedisServer {
    let options =
        RedisOptions { port: None, data: world.dir.path().join(name), extra_args: Vec::new(), log: None };
    let server = RedisServer::start(options).await.unwrap();
    run(&server, &["REPLICAOF", "127.0.0.1", &world.redis.port().to_string()]).await;
    in_step(world, &server).await;
    server
}

/// Waits until the replica has what its master has.
async fn in_step(world: &World, replica: &RedisServer) {
    let offset = async |server: &RedisServer, field: &str| {
        let mut c = plain(server).await;
        let info: redis::InfoDict = redis::cmd("INFO").arg("replication").query_async(&mut c).await.unwrap();
        (info.get::<String>("master_link_status").unwrap_or_default(), info.get::<u64>(field).unwrap_or(0))
    };
    wait("the replica to have everything", async || {
        let (_, wrote) = offset(&world.redis, "master_repl_offset").await;
        let (link, has) = offset(replica, "slave_repl_offset").await;
        link == "up" && has >= wrote
    })
    .await;
}

/// The replica becomes the master, and the old master its replica: as Sentinel and managed services do it.
async fn fail_over(world: &World, new: &RedisServer) {
    run(new, &["REPLICAOF", "NO", "ONE"]).await;
    run(&world.redis, &["REPLICAOF", "127.0.0.1", &new.port().to_string()]).await;
}

fn at(server: &RedisServer) -> std::net::SocketAddr {
    ([127, 0, 0, 1], server.port()).into()
}

// Shows: P1, P5, P6
#[tokio::test]
async fn a_demoted_master_is_left_for_the_new_one() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done")).await;
    let proxy = Proxy::start(at(&world.redis)).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    world.connect().await;
    let mut worker = world.worker(&["--redis", &url], &[LISTEN]);
    let mut reaper = world.reaper_with(&["--redis", &url], &[LISTEN]);
    for i in 0..4 {
        world.publish("default", &format!("before{i}"), r#"{"type":"work"}"#).await;
        witness.started(&format!("before{i}"), 1).await;
    }
    let new = replica(&world, "two").await;
    proxy.lead_to(at(&new));
    fail_over(&world, &new).await;
    witness.touch("go");
    for i in 0..40 {
        world.publish("default", &format!("after{i}"), r#"{"type":"noop"}"#).await;
    }
    // It asks what is the master now.
    let settings = world.settings_for(&world.nats.url(), &new.url());
    let c = connect::look(&settings, "test").await.unwrap();
    for job in (0..4).map(|i| format!("before{i}")).chain((0..40).map(|i| format!("after{i}"))) {
        assert_eq!(world.ended(&c, &job).await.status, Status::Done, "{job}");
    }
    settled(&world, &c).await;
    witness.no_overlap();
    world.history(&c).await.check().unwrap();
    for p in [&mut worker, &mut reaper] {
        let at = address(p).await;
        wait("the process to be ready", async || get(at, "/readyz").await.0 == 200).await;
        assert!(p.log().contains("connected anew"), "{}", p.log());
    }
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}

// Shows: P1
#[tokio::test]
async fn a_start_in_the_middle_of_a_failover_waits_for_its_end() {
    let world = World::start().await;
    let proxy = Proxy::start(at(&world.redis)).await.unwrap();
    let url = format!("redis://{}", proxy.addr());
    world.connect().await;
    let new = replica(&world, "two").await;
    fail_over(&world, &new).await;
    // The address leads to a replica still.
    let mut worker = world.worker(&["--redis", &url], &[("SURETY_TELEMETRY_LOG_LEVEL", "debug")]);
    let nats = world.nats.url();
    let args = ["--nats", &nats, "--redis", &url, "workers"];
    let (early, ()) = tokio::join!(world.surety_bare(&args), async {
        worker.logged("is a replica").await;
        proxy.lead_to(at(&new));
    });
    early.exits(0);
    worker.logged("worker ready").await;
    let old = world.redis.url();
    let said = world.surety_bare(&["--nats", &world.nats.url(), "--redis", &old, "workers"]).await.exits(69);
    assert!(said.err.contains("is a replica"), "{}", said.err);
    assert_eq!(worker.stop().await, Some(0));
}

// Shows: O-06, P6
#[tokio::test]
async fn settings_that_drift_hold_new_starts_and_nothing_else() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("work", "until [ -e $W.go ]; do sleep 0.02; done")).await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    world.publish("default", "runs", r#"{"type":"work"}"#).await;
    witness.started("runs", 1).await;
    for node in &world.redis.nodes {
        run(node, &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    }
    worker.logged("redis_unfit").await;
    let (status, body) = get(at, "/readyz").await;
    assert!(status == 503 && body.contains("allkeys-lru"), "{body}");
    assert!(get(at, "/metrics").await.1.contains("surety_alerts_total{alert=\"redis_unfit\"} 1"));
    world.publish("default", "waits", r#"{"type":"noop"}"#).await;
    // Who looks is told, and still sees what is there.
    for args in [
        &["status", "runs"][..],
        &["events", "runs"],
        &["why", "runs"],
        &["queues"],
        &["workers"],
        &["guards"],
    ] {
        let said = world.surety(args).await.exits(0);
        assert!(said.err.contains("allkeys-lru"), "{args:?}: {}", said.err);
    }
    // What runs may end.
    witness.touch("go");
    assert_eq!(world.ended(&c, "runs").await.status, Status::Done);
    assert!(c.store.record(&surety_tests::witness::id("waits")).await.unwrap().is_none_or(|r| r.epoch == 0));
    for node in &world.redis.nodes {
        run(node, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    }
    assert_eq!(world.ended(&c, "waits").await.status, Status::Done);
    wait("the worker to be ready", async || get(at, "/readyz").await.0 == 200).await;
    assert_eq!(worker.stop().await, Some(0));
}
