//! The client library.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use surety_common::{
    broker::{BrokerError, jobs::first_headers},
    domain::{JobId, QueueName},
};
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
    settings.connection.nats_url = format!("nats://127.0.0.1:{port}");
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

/// Not a check of the machine: prints both rates. `cargo test --release -p surety-producer -- --ignored rate --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn rate_of_enqueue_against_plain_publish() {
    const N: usize = 100_000;
    let w = World::provisioned().await;
    let c = w.connect().await;
    let client = Client::connect(&w.settings()).await.unwrap();
    let payload = serde_json::value::to_raw_value(&"x".repeat(254)).unwrap();
    let body = Bytes::from(vec![b'x'; 256]);
    for round in 0..3 {
        let started = Instant::now();
        let mut sent = Vec::with_capacity(N);
        for n in 0..N {
            let id = JobId::new(&format!("plain-{round}-{n}")).unwrap();
            let subject = c.broker.names().job_subject(&queue(), &id);
            sent.push(c.publisher.send(subject, first_headers(&id, None), body.clone()).await.unwrap());
        }
        for p in sent {
            p.stored().await.unwrap();
        }
        let plain = started.elapsed();
        let started = Instant::now();
        let mut sent = Vec::with_capacity(N);
        for _ in 0..N {
            let job = JobBuilder::new("thumbnail").raw_payload(payload.clone());
            sent.push(client.send(&queue(), job).await.unwrap());
        }
        for p in sent {
            p.stored().await.unwrap();
        }
        let enqueue = started.elapsed();
        let rate = |d: Duration| (N as f64 / d.as_secs_f64()).round();
        println!(
            "plain {}/s, enqueue {}/s, {:.0} %",
            rate(plain),
            rate(enqueue),
            100.0 * plain.as_secs_f64() / enqueue.as_secs_f64()
        );
    }
}
