//! Servers that are away, not fit, or too old.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::support::{World, finish, surety};

// Shows: B-02
#[tokio::test]
async fn provisioning_twice_changes_nothing() {
    let w = World::bare().await;
    let first = w.run(&["provision"]).await.exits(0);
    assert!(first.out.contains("SURETY_JOBS created") && first.out.contains("consumer critical created"));
    let second = w.run(&["provision"]).await.exits(0);
    assert_eq!(second.out, "nothing to do\n");
    // A difference that needs a person is reported and left alone.
    let mut c = w.command(&["provision"]);
    c.env("SURETY_LAYOUT_PARTITIONS", "4");
    finish(c).await.exits(1).complains("partitions");
    assert_eq!(w.run(&["provision"]).await.exits(0).out, "nothing to do\n");
}

#[tokio::test]
async fn commands_before_provisioning_say_what_to_do() {
    let w = World::bare().await;
    w.run(&["enqueue", "a"]).await.exits(78).complains("surety provision");
    w.run(&["status", "a"]).await.exits(78).complains("surety provision");
}

// Shows: X-08
#[tokio::test]
async fn a_server_that_is_away_is_exit_code_69_in_bounded_time() {
    let mut w = World::provisioned().await;
    w.redis.kill9().await.unwrap();
    let started = Instant::now();
    w.run(&["status", "a"]).await.exits(69).complains("redis").complains("--redis");
    // Enqueueing needs no Redis.
    w.run(&["enqueue", "a", "--id", "kept"]).await.exits(0);
    w.nats.kill9().await.unwrap();
    let away = w.run(&["enqueue", "a"]).await.exits(69).complains("nats").complains("--nats");
    away.complains("no answer from nats").complains("surety dev");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

// Shows: X-08
#[tokio::test]
async fn a_server_that_comes_back_in_time_is_waited_for() {
    let mut w = World::provisioned().await;
    w.nats.kill9().await.unwrap();
    let mut c = w.command(&["enqueue", "a", "--id", "patient"]);
    c.env("SURETY_CONNECTION_RETRY_LIMIT", "30s");
    let (said, restarted) = tokio::join!(finish(c), w.nats.restart());
    restarted.unwrap();
    assert_eq!(said.exits(0).out, "patient\n");
}

#[tokio::test]
async fn a_redis_that_may_lose_records_is_refused() {
    for (arguments, part) in [
        (&["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"][..], "maxmemory-policy noeviction"),
        (&["--appendonly", "no"], "appendonly yes"),
    ] {
        let w = World::with_redis(arguments).await;
        w.run(&["provision"]).await.exits(78).complains(part);
    }
}

#[tokio::test]
async fn a_nats_server_that_is_too_old_is_refused_with_both_versions() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (mut s, _) = listener.accept().await.unwrap();
            let info = r#"INFO {"server_id":"old","version":"2.9.10","jetstream":true,"headers":true,"max_payload":1048576}"#;
            s.write_all(format!("{info}\r\n").as_bytes()).await.unwrap();
            let mut read = [0; 4096];
            while let Ok(n) = s.read(&mut read).await {
                if n == 0 {
                    break;
                }
                if read[..n].windows(4).any(|w| w == b"PING") {
                    s.write_all(b"PONG\r\n").await.unwrap();
                }
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let mut c = surety(folder.path());
    c.args(["enqueue", "a", "--nats", &url]);
    finish(c).await.exits(78).complains("2.9.10").complains("2.14.2 or newer");
    server.abort();
}
