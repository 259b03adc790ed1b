//! The thinnest real path: publish, run, journal, ack.

use surety_common::domain::Status;
use surety_tests::world::World;

// Shows: J-11, V-01
#[tokio::test]
async fn a_plain_publish_becomes_a_done_job_with_a_receipt() {
    let w = World::with("[handlers.greet]\ncommand = [\"sh\", \"-c\", \"read x; echo hello; echo '{\\\"progress\\\":0.5}' >&3\"]").await;
    let c = w.connect().await;
    let mut worker = w.worker(&[], &[]);
    w.publish("default", "a", r#"{"type":"noop","payload":{"x":1}}"#).await;
    w.publish("default", "b", r#"{"type":"greet"}"#).await;
    assert_eq!(w.ended(&c, "a").await.status, Status::Done);
    assert_eq!(w.ended(&c, "b").await.status, Status::Done);
    w.drained(&c).await;
    let h = w.history(&c).await;
    h.check().unwrap();
    let last = h.jobs["b"].events.last().unwrap();
    assert_eq!(last.data["receipt"]["result"], "hello");
    assert_eq!(h.count("b", "progress"), 1);
    assert_eq!(worker.stop().await, Some(0));
}
