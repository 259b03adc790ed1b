//! Whether processes are alive and ready, as they say over HTTP.

use std::{net::SocketAddr, sync::Mutex};

use surety_common::domain::Status;
use surety_tests::{
    process::Process,
    proxy::Proxy,
    scrape::{Scrape, address, get, ready},
    world::{PATIENCE, World, bin, wait},
};

const LISTEN: (&str, &str) = ("SURETY_TELEMETRY_LISTEN", "127.0.0.1:0");

async fn is_ready(at: SocketAddr) {
    wait("the process to be ready", async || ready(at).await.0).await;
}

/// Waits until the part is the reason why the process is not ready; gives what it says.
async fn missing(at: SocketAddr, part: &str) -> String {
    // Not read once more: what is missing may be back a moment later.
    let text = Mutex::new(String::new());
    wait(&format!("{part} to be missed"), async || {
        let (is_ready, parts) = ready(at).await;
        let said = parts[part].as_str().unwrap_or("ok").to_owned();
        let is_missed = !is_ready && said != "ok";
        *text.lock().unwrap() = said;
        is_missed
    })
    .await;
    text.into_inner().unwrap()
}

/// Cuts one server off and gives it back: readiness follows, liveness does not.
async fn follows(at: SocketAddr, proxy: &Proxy, part: &str, other: &str) {
    is_ready(at).await;
    proxy.cut();
    missing(at, part).await;
    assert_eq!(ready(at).await.1[other], "ok");
    assert_eq!(get(at, "/livez").await.0, 200);
    let scrape = Scrape::of(at).await;
    assert_eq!(scrape.sum("surety_ready", &[]), Some(0.0));
    assert_eq!(scrape.sum("surety_part_ready", &[("part", part)]), Some(0.0));
    assert_eq!(scrape.sum("surety_part_ready", &[("part", other)]), Some(1.0));
    proxy.heal();
    is_ready(at).await;
    assert_eq!(Scrape::of(at).await.sum("surety_ready", &[]), Some(1.0));
}

// Shows: O-06
#[tokio::test]
async fn readiness_follows_both_servers_and_liveness_holds() {
    let world = World::start().await;
    let c = world.connect().await;
    let nats = Proxy::start(format!("127.0.0.1:{}", world.nats.port()).parse().unwrap()).await.unwrap();
    let redis = Proxy::start(format!("127.0.0.1:{}", world.redis.port()).parse().unwrap()).await.unwrap();
    let (nats_url, redis_url) = (format!("nats://{}", nats.addr()), format!("redis://{}", redis.addr()));
    let through = ["--nats", &nats_url, "--redis", &redis_url];
    let mut worker = world.worker(&through, &[LISTEN]);
    let mut reaper = world.reaper_with(&through, &[LISTEN]);
    for process in [&mut worker, &mut reaper] {
        let at = address(process).await;
        follows(at, &redis, "redis", "nats").await;
        follows(at, &nats, "nats", "redis").await;
        assert!(Scrape::of(at).await.sum("surety_nats_reconnects_total", &[]) >= Some(1.0));
    }
    // A server that is silent, and not gone, is told within the patience of a prober.
    let at = address(&mut worker).await;
    redis.hold();
    let text = missing(at, "redis").await;
    assert!(text.contains("no answer within"), "{text}");
    redis.heal();
    is_ready(at).await;
    drop((worker, reaper, c));
}

// Shows: O-06
#[tokio::test]
async fn another_data_set_in_redis_is_not_ready() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    is_ready(at).await;
    let client = redis::Client::open(world.redis.url()).unwrap();
    let mut r = client.get_multiplexed_async_connection().await.unwrap();
    let _: () = redis::cmd("HSET")
        .arg(c.store.keys().store(0))
        // Of another broker as well: else it is one that another reaper has made whole, and gone on with.
        .arg(&["inc", "other", "jobs", "other"])
        .query_async(&mut r)
        .await
        .unwrap();
    let text = missing(at, "redis").await;
    assert!(text.contains("another incarnation"), "{text}");
    wait("it to be refused", async || reaper.log().contains("it belongs to another JOBS stream")).await;
    assert!(missing(at, "redis").await.contains("another incarnation"));
}

// Shows: O-06
#[tokio::test]
async fn a_process_is_alive_before_it_is_ready_and_not_ready_while_it_drains() {
    let world =
        World::with("[connection]\nretry_limit = \"60s\"\n[handlers.wait]\ncommand = [\"sleep\", \"60\"]")
            .await;
    // Nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let mut early = world.worker(&["--nats", &url], &[LISTEN]);
    let at = address(&mut early).await;
    assert_eq!(get(at, "/livez").await.0, 200);
    assert!(missing(at, "start").await.contains("not started"));
    assert_eq!(Scrape::of(at).await.sum("surety_ready", &[]), Some(0.0));
    early.kill9().await;

    let c = world.connect().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let at = address(&mut worker).await;
    is_ready(at).await;
    world.publish("default", "a", r#"{"type":"wait"}"#).await;
    world.status(&c, "a", Status::Running).await;
    worker.terminate();
    assert_eq!(missing(at, "worker").await, "draining");
    assert_eq!(get(at, "/livez").await.0, 200);
}

async fn refused(mut process: Process, taken: SocketAddr) {
    let code = process.ended(std::time::Duration::from_secs(60)).await;
    let log = process.log();
    assert_eq!(code, Some(78), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains(&format!("cannot listen on {taken}")) && last.contains("--listen"), "{log}");
}

#[tokio::test]
async fn a_port_that_is_taken_ends_the_start_with_what_to_do() {
    let world = World::start().await;
    world.connect().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    refused(world.worker(&["--listen", &at.to_string()], &[]), at).await;
    refused(world.reaper(&[("SURETY_TELEMETRY_LISTEN", &at.to_string())]), at).await;
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::start().await;
    world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let at = address(&mut reaper).await;
    assert_eq!(get(at, "/").await.0, 404);
    for (request, status) in
        [("POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", " 405 "), ("nonsense\r\n\r\n", " 400 ")]
    {
        let mut s = tokio::net::TcpStream::connect(at).await.unwrap();
        s.write_all(request.as_bytes()).await.unwrap();
        let mut all = String::new();
        s.read_to_string(&mut all).await.unwrap();
        assert!(all.lines().next().unwrap().contains(status), "{all}");
    }
}

/// Runs the health check of a program for an address; gives its exit code and what it says.
async fn health(program: &str, listen: &str) -> (Option<i32>, String) {
    let mut c = tokio::process::Command::new(bin(program));
    c.env_clear().args(["health", "--listen", listen]).kill_on_drop(true);
    let o = tokio::time::timeout(PATIENCE, c.output()).await.expect("the health check hangs").unwrap();
    (o.status.code(), String::from_utf8(o.stderr).unwrap())
}

// Shows: O-06
#[tokio::test]
async fn programs_ask_each_other_for_their_health() {
    let world = World::start().await;
    world.connect().await;
    let redis = Proxy::start(format!("127.0.0.1:{}", world.redis.port()).parse().unwrap()).await.unwrap();
    let url = format!("redis://{}", redis.addr());
    let mut worker = world.worker(&["--redis", &url], &[LISTEN]);
    let mut reaper = world.reaper(&[LISTEN]);
    for (program, process) in [("t-worker", &mut worker), ("t-reaper", &mut reaper)] {
        let at = address(process).await;
        is_ready(at).await;
        let (code, said) = health(program, &at.to_string()).await;
        assert!(code == Some(0) && said.contains("\"ready\":true"), "{code:?} {said}");
    }
    let at = address(&mut worker).await;
    redis.cut();
    missing(at, "redis").await;
    let (code, said) = health("t-worker", &at.to_string()).await;
    assert!(
        code == Some(1) && said.contains("not ready: {") && said.contains("\"redis\":"),
        "{code:?} {said}"
    );
    worker.kill9().await;
    let (code, said) = health("t-worker", &at.to_string()).await;
    assert!(code == Some(1) && said.contains(&format!("no answer at {at}")), "{code:?} {said}");
    let (code, said) = health("t-worker", "off").await;
    assert!(code == Some(78) && said.contains("SURETY_TELEMETRY_LISTEN"), "{code:?} {said}");
    let (code, said) = health("t-reaper", "somewhere").await;
    assert!(code == Some(78) && said.contains("telemetry.listen"), "{code:?} {said}");
}
