//! NATS on three servers: what a replica does not have yet is not absent.

use std::{pin::pin, time::Duration};

use surety_common::{broker::BrokerError, connect, doctor::Role, domain::Status};
use surety_tests::{nats_cluster::NatsCluster, witness::settled};

/// Rounds, in each of which a replica is behind for a moment.
const ROUNDS: usize = 8;

// Shows: I-03
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_was_acknowledged_is_never_unknown_though_a_replica_lags() {
    let cluster = NatsCluster::start().await;
    let world = &cluster.world;
    let c = world.connect().await;
    cluster.last_follows("SURETY_JOBS").await;
    // What this one asks is answered by the server that lags, which has the stream.
    let settings = world.settings_for(&cluster.last(), &world.redis.url());
    let behind = connect::connect(&settings, "behind", Role::Operator).await.unwrap();
    for round in 0..ROUNDS {
        let id = format!("a-{round}").parse().unwrap();
        cluster.lag();
        let sequence = world.publish("default", &format!("a-{round}"), r#"{"type":"noop"}"#).await;
        // At the same time: any server may be asked, and what another one has to answer waits for the healing.
        let (broker, name) = (&behind.broker, format!("JOBS:{sequence}"));
        let jobs = broker.names().jobs();
        let asked = async {
            let found = tokio::join!(
                broker.find_carrier(&behind.found.queues[1..], &id),
                broker.carrier_message(&name),
                broker.messages(&jobs, sequence, "surety.jobs.>", 10)
            );
            Ok::<_, BrokerError>((found.0?.is_some(), found.1?.is_some(), found.2?.0.len()))
        };
        // The lagging server answers at once; the others, when they are heard again.
        let mut asked = pin!(asked);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut asked).await;
        cluster.catch_up();
        let found = match early {
            Ok(found) => found,
            Err(_) => asked.await,
        };
        assert_eq!(found.unwrap(), (true, true, 1), "round {round}: the replica does not have it yet");
    }
    // And what is not there is not there.
    assert!(
        behind.broker.find_carrier(&behind.found.queues, &"never".parse().unwrap()).await.unwrap().is_none()
    );
    let mut worker = world.worker(&[], &[]);
    for round in 0..ROUNDS {
        assert_eq!(world.ended(&c, &format!("a-{round}")).await.status, Status::Done);
    }
    settled(world, &c).await;
    world.history(&c).await.check().unwrap();
    assert_eq!(worker.stop().await, Some(0));
}
