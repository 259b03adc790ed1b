//! How far the delivery of each lane has come, and how many messages of a stream nobody will deliver.

use super::{
    Broker, BrokerError,
    place::CarrierStream,
    topology::{Lane, Names},
};

/// Where a lane stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    pub lane: Lane,
    /// There is no such consumer: what is there is given to nobody.
    pub is_missing: bool,
    /// Sequence of the newest message that was delivered; what is behind it was not. 0: none.
    pub delivered: u64,
    /// Up to this sequence everything is settled: a message of the lane that is still there is delivered by nobody.
    pub floor: u64,
    /// Sequence of the consumer's own for the newest delivery: with it an ack subject is made.
    pub delivered_as: u64,
    /// Messages that were not delivered yet.
    pub waiting: u64,
    /// Messages that were delivered and are not settled.
    pub held: u64,
    /// When the server said so (milliseconds of its clock).
    pub at_ms: u64,
}

impl Broker {
    /// Asks where a lane stands: one request.
    pub async fn position(&self, lane: &Lane) -> Result<Position, BrokerError> {
        let info = self.consumer_info(&lane.stream, &lane.consumer).await?;
        Ok(match info {
            None => Position {
                lane: lane.clone(),
                is_missing: true,
                delivered: 0,
                floor: 0,
                delivered_as: 0,
                waiting: 0,
                held: 0,
                at_ms: self.now_ms().await?,
            },
            Some(info) => Position {
                lane: lane.clone(),
                is_missing: false,
                delivered: info.delivered.stream_sequence,
                floor: info.ack_floor.stream_sequence,
                delivered_as: info.delivered.consumer_sequence,
                waiting: info.num_pending,
                held: info.num_ack_pending,
                at_ms: info.answered_ms.unwrap_or(0),
            },
        })
    }

    /// Every lane of the queues that are declared now.
    pub async fn lanes(&self) -> Result<Vec<Lane>, BrokerError> {
        let found = self.found().await?;
        Ok(found.queues.iter().flat_map(|q| self.names().lanes(q)).collect())
    }

    /// Number of messages of a stream that carry jobs to do now: all but schedules.
    pub async fn carried_by(&self, of: CarrierStream) -> Result<u64, BrokerError> {
        let stream = self.names().stream(of);
        let all = self.stream_info(&stream).await?.map_or(0, |i| i.state.messages);
        if of == CarrierStream::Jobs || all == 0 {
            return Ok(all);
        }
        let schedules = self.count(&stream, &format!("{}.sched.>", self.names().namespace())).await?;
        Ok(all.saturating_sub(schedules))
    }

    /// Sequence of the newest message that a stream ever had.
    pub async fn last_sequence(&self, of: CarrierStream) -> Result<u64, BrokerError> {
        let info = self.stream_info(&self.names().stream(of)).await?;
        Ok(info.map_or(0, |i| i.state.last_seq))
    }
}

impl Names {
    /// Matches what a stream carries: jobs to do, or jobs that came due.
    pub fn carried(&self, of: CarrierStream) -> String {
        match of {
            CarrierStream::Jobs => format!("{}.jobs.>", self.namespace()),
            CarrierStream::Sched => format!("{}.due.>", self.namespace()),
        }
    }
}
