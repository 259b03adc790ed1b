//! How long a rebuild of Redis from a journal of N events takes: `cargo run --release -p surety-tests --example rebuild -- 1000000`.
//!
//! Writes the events straight into the journal, a hundred to a message: for each job a start and an outcome, but one in a hundred
//! runs and one in a hundred waits for its retry. Then a reaper meets an empty Redis. (`docs/bench.md` has what was measured.)
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stdout, reason = "a measurement")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use surety_tests::world::World;

const IN_MESSAGE: u64 = 100;

fn event(job: u64, rev: u64, kind: &str, status: &str, data: &str) -> String {
    format!(
        r#"{{"v":1,"job":"job-{job:08}","gen":1,"rev":{rev},"kind":"{kind}","at":"2026-11-21T08:00:00.123Z","queue":"default","type":"thumbnail","status":"{status}","contract":"terminal_acked","attempt":1,"epoch":1,"session":"01M7Z146SZMBZGV66XB5EJHYT6","carrier":"JOBS:{job}"{data}}}"#
    )
}

fn second(job: u64) -> Option<String> {
    match job % 100 {
        0 => None,
        1 => Some(event(job, 2, "attempt_failed", "retry_wait", r#","data":{"error_code":"signal"}"#)),
        _ => Some(event(
            job,
            2,
            "finished",
            "done",
            r#","data":{"receipt":{"v":1,"receipt":"0123456789abcdef","job":"x","gen":1,"outcome":"done"}}"#,
        )),
    }
}

#[tokio::main]
async fn main() {
    let n: u64 = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(1_000_000);
    let world = World::with(
        "[lease]\nttl = \"20s\"\nmargin = \"5s\"\nrenewal = \"5s\"\n[layout]\nack_wait = \"60s\"\n",
    )
    .await;
    let c = world.connect().await;
    let js = async_nats::jetstream::new(world.plain().await);
    let started = Instant::now();
    let (mut written, mut job, mut acks) = (0, 0, Vec::new());
    while written < n {
        let mut events = Vec::new();
        while (events.len() as u64) < IN_MESSAGE && written + (events.len() as u64) < n {
            job += 1;
            events.push(event(job, 1, "started", "running", ""));
            events.extend(second(job));
        }
        written += events.len() as u64;
        let mut h = async_nats::HeaderMap::new();
        h.insert("Nats-Msg-Id", format!("old-0-{written}-0").as_str());
        h.insert("Surety-Commit", written.to_string().as_str());
        let body = Bytes::from(format!("[{}]", events.join(",")));
        acks.push(js.publish_with_headers("surety.events.default.ended", h, body).await.unwrap());
        if acks.len() >= 200 {
            for a in acks.drain(..) {
                a.await.unwrap();
            }
        }
    }
    for a in acks {
        a.await.unwrap();
    }
    println!("{written} events of {job} jobs written in {:?}", started.elapsed());
    let mut redis =
        redis::Client::open(world.redis.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    () = redis::cmd("FLUSHALL").query_async(&mut redis).await.unwrap();
    drop(c);
    let started = Instant::now();
    let mut reaper = world.reaper(&[]);
    reaper.logged_within("redis is whole again", Duration::from_secs(900)).await;
    println!("gate open after {:?}", started.elapsed());
    for line in
        reaper.log().lines().filter(|l| l.contains("the journal was read") || l.contains("whole again"))
    {
        println!("{line}");
    }
    let memory: String = redis::cmd("INFO").arg("memory").query_async(&mut redis).await.unwrap();
    println!("{}", memory.lines().find(|l| l.starts_with("used_memory_human")).unwrap_or(""));
    let status = std::fs::read_to_string(format!("/proc/{}/status", reaper.pid())).unwrap_or_default();
    println!("reaper {}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or(""));
    reaper.stop().await;
}
