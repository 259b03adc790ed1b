//! The control service, asked the way a stranger asks: with a plain NATS client and nothing else.

use std::time::Duration;

use serde_json::{Value, json};
use surety_common::domain::Status;
use surety_tests::{
    command::is_documented,
    scrape,
    witness::{Witness, settled},
    world::{World, wait},
};

const PROTOCOL: &str = include_str!("../../../docs/protocol.md");

async fn ask_raw(nats: &async_nats::Client, id: &str, body: &str) -> Value {
    let request =
        async_nats::Request::new().payload(body.to_owned().into()).timeout(Some(Duration::from_secs(40)));
    let reply = nats.send_request(format!("surety.control.job.{id}"), request).await.unwrap();
    let reply: Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!((&reply["v"], &reply["id"]), (&1.into(), &id.into()), "{reply}");
    // One of the two, and never both.
    assert_ne!(reply["answer"].is_null(), reply["error"].is_null(), "{reply}");
    is_documented(&reply, PROTOCOL, &["answer"]);
    reply
}

async fn ask(nats: &async_nats::Client, id: &str, body: Value) -> Value {
    ask_raw(nats, id, &body.to_string()).await
}

async fn listening(world: &World) {
    let nats = world.plain().await;
    wait("a reaper to listen", async || nats.request("surety.control.job.x", "{}".into()).await.is_ok())
        .await;
}

// Shows: I-01, I-03
#[tokio::test]
async fn a_producer_that_has_nats_only_asks_and_cancels() {
    let witness = Witness::default();
    let body = "trap '' TERM; child 'while :; do sleep 0.1; done'; while :; do sleep 0.1; done";
    let world = World::with(&witness.handler("tree", body)).await;
    let c = world.connect().await;
    let nats = world.plain().await;
    // Nobody answers: told at once, not after a time-out.
    let e = nats.request("surety.control.job.a", "{}".into()).await.unwrap_err();
    assert!(e.to_string().contains("no responders"), "{e}");
    let _reapers = (world.reaper(&[]), world.reaper(&[]));
    let _worker = world.worker(&[], &[]);
    listening(&world).await;
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 2).await;

    assert_eq!(ask(&nats, "a", json!({"op": "status"})).await["answer"]["status"], "running");
    let why = ask(&nats, "a", json!({"v": 1, "op": "why"})).await;
    assert_eq!(why["answer"]["gate"]["code"], "running");
    assert!(why["answer"]["owner"]["pid"].is_u64(), "{why}");
    // Of two requests at once each has its answer; what they say is what happened.
    let (x, y) = tokio::join!(
        ask(&nats, "a", json!({"op": "cancel", "reason": " enough ", "wait_ms": 30000})),
        ask(&nats, "a", json!({"op": "cancel", "reason": " enough ", "wait_ms": 30000}))
    );
    for r in [x, y] {
        let a = &r["answer"];
        assert_eq!(
            (&a["result"], &a["status"], &a["reason"]),
            (&"cancelled".into(), &"cancelled".into(), &"enough".into())
        );
    }
    assert!(!witness.lives("a"));
    settled(&world, &c).await;
    let h = world.history(&c).await;
    h.check().unwrap();
    assert_eq!((h.count("a", "cancel_requested"), h.count("a", "finished")), (1, 1));
    assert_eq!(ask(&nats, "a", json!({"op": "cancel"})).await["answer"]["result"], "already_ended");
    // Before it comes, where its queue is named.
    let early = ask(&nats, "later", json!({"op": "cancel", "queue": "default"})).await;
    assert_eq!(early["answer"]["result"], "cancelled");
    world.publish("default", "later", r#"{"type":"tree"}"#).await;
    settled(&world, &c).await;
    assert_eq!(witness.executions("later"), 0);
}

#[tokio::test]
async fn every_request_gets_an_answer_and_an_error_says_what_to_do() {
    let mut world = World::with("[telemetry]\nlisten = \"127.0.0.1:0\"").await;
    let _c = world.connect().await;
    let mut reaper = world.reaper(&[]);
    listening(&world).await;
    let nats = world.plain().await;
    for (id, body, code, part) in [
        ("a", "", "bad_request", "EOF"),
        ("a", "not json", "bad_request", "expected"),
        ("a", r#"{"op":"cancel","reasn":"x"}"#, "bad_request", "reasn"),
        ("a", r#"{"op":"cancel","queue":"B A D"}"#, "bad_request", "queue"),
        ("a", r#"{"op":"cancel","queue":"undeclared"}"#, "bad_request", "not declared"),
        ("a", r#"{"op":"explode"}"#, "unknown_op", "explode"),
        ("a", r#"{"op":"nudge"}"#, "not_supported", "nudge"),
        ("a", r#"{"op":"answer"}"#, "not_supported", "answer"),
        ("a", r#"{"op":"status"}"#, "unknown_job", "a"),
        ("a", r#"{"op":"why"}"#, "unknown_job", "a"),
        ("a", r#"{"op":"cancel"}"#, "unknown_job", "queue"),
        ("über", r#"{"op":"status"}"#, "bad_request", "not allowed"),
    ] {
        let e = &ask_raw(&nats, id, body).await["error"];
        assert_eq!(e["code"], code, "{id} {body}: {e}");
        assert!(e["text"].as_str().unwrap().contains(part), "{e}");
        if code == "unknown_op" {
            assert_eq!(e["known"], json!(["cancel", "status", "why"]));
        }
    }
    let at = scrape::address(&mut reaper).await;
    let counted = scrape::Scrape::of(at).await;
    let of = |op, result| counted.sum("surety_control_requests_total", &[("op", op), ("result", result)]);
    assert_eq!(of("status", "unknown_job"), Some(1.0));
    assert!(of("other", "bad_request") >= Some(3.0));

    // Nobody to ask: that is the answer.
    world.redis.kill9().await.unwrap();
    let e = &ask(&nats, "a", json!({"op": "status"})).await["error"];
    assert_eq!(e["code"], "unreachable", "{e}");
}

// Shows: I-03
#[tokio::test]
async fn a_cancel_that_is_not_over_in_its_time_is_told_as_stopping() {
    let witness = Witness::default();
    let world = World::with(&witness.handler("tree", "exec sleep 60")).await;
    let c = world.connect().await;
    let worker = world.worker(&[], &[]);
    let _reaper = world.reaper(&[]);
    listening(&world).await;
    let nats = world.plain().await;
    world.publish("default", "a", r#"{"type":"tree"}"#).await;
    witness.started("a", 1).await;
    worker.freeze();
    let r = ask(&nats, "a", json!({"op": "cancel", "wait_ms": 0})).await;
    assert_eq!((&r["answer"]["result"], &r["answer"]["is_cancelled"]), (&"stopping".into(), &false.into()));
    assert_eq!(world.ended(&c, "a").await.status, Status::Cancelled);
    worker.thaw();
}
