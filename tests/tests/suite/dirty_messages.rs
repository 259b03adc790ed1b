//! Messages that no client would send: their publisher harms himself at most.

use super::metrics::LISTEN;
use serde_json::Value;
use surety_common::domain::{Contract, Status};
use surety_tests::{
    process::Process,
    raw_nats::RawNats,
    scrape::{address, get},
    witness::settled,
    world::{World, wait},
};

/// Header blocks that say nothing which Surety needs. The job behind each runs.
fn harmless() -> Vec<(&'static str, Vec<u8>)> {
    let block = |lines: &[u8]| [b"NATS/1.0\r\n", lines, b"\r\n\r\n"].concat();
    let mut many = b"NATS/1.0\r\n".to_vec();
    (0..900).for_each(|i| many.extend_from_slice(format!("X-{i}: {i}\r\n").as_bytes()));
    many.extend_from_slice(b"\r\n");
    vec![
        ("cr-in-value", block(b"X-Note: one\rtwo")),
        ("lf-in-value", block(b"X-Note: one\ntwo")),
        ("latin-1", block(b"X-Note: caf\xe9")),
        ("no-colon", block(b"just words")),
        ("no-ascii-line", block(b"\xff\xfe\xfd")),
        ("name-with-space", block(b"X Note: one")),
        ("name-no-ascii", block("X-Ünote: one".as_bytes())),
        ("empty-name", block(b": one")),
        ("nul", block(b"X-Note: a\0b")),
        ("status", b"NATS/1.0 409 Consumer Deleted\r\n\r\n".to_vec()),
        ("heartbeat", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n".to_vec()),
        ("status-text", b"NATS/1.0 hello there\r\nX-Note: a\r\n\r\n".to_vec()),
        ("other-version", b"NATS/9.9\r\nX-Note: a\r\n\r\n".to_vec()),
        ("no-version", b"X-Note: a\r\n\r\n".to_vec()),
        ("many", many),
        ("twice", block(b"X-Note: a\r\nX-Note: b\r\nx-note: c")),
        ("folded", block(b"X-Note: a\r\n and more")),
        ("forged", block(b"Nats-Stream: X\r\nNats-Sequence: 1\r\nNats-Subject: surety.jobs.default.victim")),
        ("trace", block(b"traceparent: 00-\xff\r")),
    ]
}

/// Header blocks in which something is damaged that the job's fate may hang on. The job is refused.
fn refused() -> Vec<(&'static str, Vec<u8>)> {
    let block = |lines: &[u8]| [b"NATS/1.0\r\n", lines, b"\r\n\r\n"].concat();
    let mut more = b"NATS/1.0\r\n".to_vec();
    (0..2000).for_each(|i| more.extend_from_slice(format!("X-{i}: {i}\r\n").as_bytes()));
    more.extend_from_slice(b"Surety-Generation: 2\r\n\r\n");
    vec![
        ("bad-generation", block(b"Surety-Generation: 1\r2")),
        ("bad-generation-name", block(b"Surety-Generation : 2")),
        ("bad-first-at", block(b"Surety-First-At: caf\xe9")),
        ("too-many", more),
    ]
}

/// The process never lost its connection.
async fn never_disconnected(p: &mut Process) {
    let (status, text) = get(address(p).await, "/metrics").await;
    assert_eq!(status, 200);
    let lost = text.lines().find(|l| l.starts_with("surety_nats_reconnects_total")).unwrap_or_default();
    assert!(lost.ends_with(" 0"), "{lost:?}\n{}", p.log());
}

// Shows: P1, P8, J-12
#[tokio::test]
async fn no_header_costs_a_connection_or_hides_a_job() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    let mut raw = RawNats::to(&world).await;
    for (id, block) in harmless().into_iter().chain(refused()) {
        let subject = format!("surety.jobs.default.{id}");
        raw.publish(subject.as_bytes(), &block, br#"{"type":"noop"}"#).await;
    }
    // The server's own words about a stored message stand behind those of its publisher.
    let js = async_nats::jetstream::new(world.plain().await);
    let stored = js.get_stream("SURETY_JOBS").await.unwrap();
    let held = stored.get_last_raw_message_by_subject("surety.jobs.default.forged").await.unwrap();
    let read = c.broker.message("SURETY_JOBS", held.sequence).await.unwrap().unwrap();
    assert_eq!((read.sequence, read.subject.as_str()), (held.sequence, "surety.jobs.default.forged"));

    // A subject that is no text, and one with a line break.
    raw.publish(b"surety.jobs.default.\xff", b"NATS/1.0\r\n\r\n", br#"{"type":"noop"}"#).await;
    raw.publish(b"surety.jobs.default.a\rb", b"NATS/1.0\r\n\r\n", br#"{"type":"noop"}"#).await;
    raw.send(b"PUB surety.jobs.default.\xfe 15\r\n{\"type\":\"noop\"}").await;
    raw.flush().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    world.publish("default", "behind", r#"{"type":"noop"}"#).await;

    for (id, _) in harmless() {
        assert_eq!(world.ended(&c, id).await.status, Status::Done, "{id}");
    }
    for (id, _) in refused() {
        let r = world.ended(&c, id).await;
        assert_eq!((r.status, r.code.as_str()), (Status::Failed, "invalid_job"), "{id}");
    }
    assert_eq!(world.ended(&c, "behind").await.status, Status::Done);
    settled(&world, &c).await;
    world.history(&c).await.check().unwrap();
    let letters = world.ask(&["dlq", "list"]).await;
    let letters =
        letters.as_array().cloned().unwrap_or_else(|| letters["letters"].as_array().unwrap().clone());
    assert_eq!(letters.len(), refused().len() + 3, "{letters:?}");
    let of = |id: &str| letters.iter().find(|l| l["id"] == id || l["job"] == id).unwrap().to_string();
    assert!(of("bad-generation").contains("Surety-Generation"), "{}", of("bad-generation"));
    never_disconnected(&mut worker).await;
    never_disconnected(&mut reaper).await;
    assert_eq!((worker.stop().await, reaper.stop().await), (Some(0), Some(0)));
}

/// Bytes of a fixed sequence that looks random, rich in those that mean something in a header block.
fn noise(seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let n = next() % 120;
    let one = |r: u64| {
        if r.is_multiple_of(3) { b"\r\n: \t\0\xff\xc3AZ/9"[(r / 3) as usize % 12] } else { (r >> 8) as u8 }
    };
    (0..n).map(|_| one(next())).collect()
}

// Shows: P8, J-12
#[tokio::test]
async fn noise_in_headers_ends_as_a_job_or_as_a_letter() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    let mut raw = RawNats::to(&world).await;
    for i in 0..300 {
        let begin: &[u8] = if i % 5 == 0 { b"" } else { b"NATS/1.0\r\n" };
        let block = [begin, &noise(i), b"\r\n\r\n"].concat();
        raw.publish(format!("surety.jobs.default.n{i}").as_bytes(), &block, br#"{"type":"noop"}"#).await;
    }
    for i in 0..300 {
        world.ended(&c, &format!("n{i}")).await;
    }
    never_disconnected(&mut worker).await;
}

// Shows: P8
#[tokio::test]
async fn a_request_about_a_job_is_answered_whatever_its_headers_are() {
    let world = World::start().await;
    world.connect().await;
    let mut reaper = world.reaper(&[LISTEN]);
    reaper.logged("reaper ready").await;
    let mut raw = RawNats::to(&world).await;
    for (name, block) in harmless() {
        let answer = raw.request(b"surety.control.job.nobody", &block, br#"{"op":"status"}"#).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            text.contains("\"ok\"") || text.contains("unknown") || text.contains("error"),
            "{name}: {text}"
        );
    }
    never_disconnected(&mut reaper).await;
}

// Shows: P2, P8
#[tokio::test]
async fn an_answer_of_a_requester_is_an_answer_whatever_its_headers_are() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut raw = RawNats::to(&world).await;
    raw.send(b"SUB replies.me 7").await;
    raw.flush().await;
    let mut worker = world.worker(&[], &[LISTEN]);
    for (id, block) in harmless() {
        let job = r#"{"type":"noop","notify":{"subject":"replies.me","notices":false}}"#;
        world.publish("default", id, job).await;
        let m = raw.message().await;
        raw.publish(m.reply.as_bytes(), &block, b"seen").await;
        world.until(&c, id, |r| r.contract == Contract::TerminalAcked).await;
    }
    never_disconnected(&mut worker).await;
}

// Shows: P8
#[tokio::test]
async fn what_stands_in_other_streams_is_read_whatever_its_headers_are() {
    let world = World::start().await;
    let c = world.connect().await;
    let mut raw = RawNats::to(&world).await;
    world.publish("default", "good", r#"{"type":"noop"}"#).await;
    for (id, block) in harmless() {
        for subject in ["surety.dlq.default", "surety.due.default", "surety.receipts.default"] {
            raw.publish(format!("{subject}.{id}").as_bytes(), &block, br#"{"type":"noop"}"#).await;
        }
        raw.publish(b"surety.events.default", &block, b"[]").await;
        let advisory = b"$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.SURETY_JOBS.default";
        raw.publish(advisory, &block, b"{}").await;
    }
    let mut reaper = world.reaper(&[LISTEN]);
    let mut worker = world.worker(&[], &[LISTEN]);
    assert_eq!(world.ended(&c, "good").await.status, Status::Done);
    for (id, _) in harmless() {
        assert_eq!(world.ended(&c, id).await.status, Status::Done, "{id}, which came due");
    }
    settled(&world, &c).await;
    for (args, code) in [
        (&["dlq", "list"][..], 0),
        (&["dlq", "show", "latin-1"][..], 0),
        (&["audit"][..], 0),
        (&["events", "good"][..], 0),
        (&["status", "good"][..], 0),
        (&["why", "good"][..], 0),
        (&["queues"][..], 0),
        (&["reap-nothing"][..], 2),
    ] {
        world.surety(args).await.exits(code);
    }
    never_disconnected(&mut worker).await;
    never_disconnected(&mut reaper).await;
}

// Shows: P3
#[tokio::test]
async fn a_process_whose_nats_client_has_ended_ends_with_an_error() {
    let world = World::start().await;
    world.connect().await;
    let file = world.path("client-ends");
    let env = [LISTEN, ("SURETY_FAULT_CLIENT", &file)];
    let mut processes = [world.worker(&[], &env), world.reaper(&env)];
    for p in &mut processes {
        let at = address(p).await;
        wait("the process to be ready", async || get(at, "/readyz").await.0 == 200).await;
        assert_eq!(get(at, "/livez").await.0, 200);
    }
    std::fs::write(&file, "").unwrap();
    for p in &mut processes {
        p.logged("the NATS client of this process has ended").await;
        assert_eq!(p.ended(surety_tests::world::PATIENCE).await, Some(70), "{}", p.log());
    }
    let _: Value = world.ask(&["doctor"]).await;
}
