//! The client library.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use surety_common::{broker::BrokerError, domain::QueueName};
use surety_producer::client::{Client, ClientError, JobBuilder};
use tokio::net::{TcpListener, TcpStream};

use super::support::World;

fn queue() -> QueueName {
    QueueName::new("default").unwrap()
}

#[tokio::test]
async fn enqueue_tells_id_sequence_and_duplicate() {
    let w = World::provisioned().await;
    let client = Client::connect(&w.settings()).await.unwrap();
    let job = || JobBuilder::new("thumbnail").id("a").payload(&serde_json::json!({"n": 1})).unwrap();
    let first = client.enqueue(&queue(), job()).await.unwrap();
    assert_eq!((first.id.as_str(), first.sequence, first.is_duplicate), ("a", 1, false));
    let again = client.enqueue(&queue(), job()).await.unwrap();
    assert_eq!((again.sequence, again.is_duplicate), (1, true));
    let e = client.enqueue(&queue(), JobBuilder::new("Bad").max_retries(9999)).await.unwrap_err();
    assert!(matches!(&e, ClientError::Refused(r) if r.problems.len() == 2), "{e}");
    let e = client.enqueue(&"nowhere".parse().unwrap(), job()).await.unwrap_err();
    assert!(
        matches!(&e, ClientError::Broker(BrokerError::NoStream { subject }) if subject.ends_with("nowhere.a")),
        "{e}"
    );
}

// Shows: X-09
#[tokio::test]
async fn ten_thousand_enqueues_use_one_connection() {
    let w = World::provisioned().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, nats) = (listener.local_addr().unwrap().port(), w.nats.port());
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let proxy = tokio::spawn(async move {
        loop {
            let (mut a, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut b = TcpStream::connect(("127.0.0.1", nats)).await.unwrap();
                tokio::io::copy_bidirectional(&mut a, &mut b).await.ok();
            });
        }
    });
    let mut settings = w.settings();
    settings.connection.nats_url = format!("nats://127.0.0.1:{port}").into();
    let client = Client::connect(&settings).await.unwrap();
    let mut sent = Vec::new();
    for _ in 0..10_000 {
        sent.push(client.send(&queue(), JobBuilder::new("a")).await.unwrap());
    }
    for p in sent {
        assert!(!p.stored().await.unwrap().is_duplicate);
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    assert_eq!(w.waiting("default").await, 10_000);
    proxy.abort();
}
