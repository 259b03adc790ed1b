//! How full the queues are.

use super::{Broker, BrokerError, info::ConsumerInfo, topology::Lane};
use crate::domain::QueueName;

/// One consumer of a queue, as the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneState {
    pub stream: String,
    pub consumer: String,
    /// There is no such consumer: what waits is given to nobody.
    pub is_missing: bool,
    /// Messages that no worker has been given yet.
    pub waiting: u64,
    /// Messages that a worker holds, or that were given back with a delay.
    pub held: u64,
    /// Messages among the held ones that were delivered more than once.
    pub redelivered: u64,
    /// Pulls of workers that wait for a message.
    pub pulls: u64,
    /// Most messages that may be held: beyond it nothing is delivered. 0: no limit.
    pub max_held: u64,
    /// How much longer the consumer is paused.
    pub paused_ms: Option<u64>,
    /// Age of the oldest waiting message by the server's clock.
    pub oldest_waiting_ms: Option<u64>,
}

impl LaneState {
    pub(crate) fn missing(lane: &Lane) -> Self {
        Self {
            stream: lane.stream.clone(),
            consumer: lane.consumer.clone(),
            is_missing: true,
            waiting: 0,
            held: 0,
            redelivered: 0,
            pulls: 0,
            max_held: 0,
            paused_ms: None,
            oldest_waiting_ms: None,
        }
    }

    /// Without the age of what waits.
    pub(crate) fn of(lane: &Lane, info: &ConsumerInfo) -> Self {
        Self {
            is_missing: false,
            waiting: info.num_pending,
            held: info.num_ack_pending,
            redelivered: info.num_redelivered,
            pulls: info.num_waiting,
            max_held: u64::try_from(info.config.max_ack_pending).unwrap_or(0),
            paused_ms: info.paused.then(|| info.pause_remaining.unwrap_or(0) / 1_000_000),
            ..Self::missing(lane)
        }
    }

    /// As many are held as may be: nothing more is delivered.
    pub fn is_full(&self) -> bool {
        self.max_held > 0 && self.held >= self.max_held
    }
}

impl Broker {
    /// Reads the state of each consumer of a queue: two to four small requests for each.
    /// Errors: `Unreachable`, `Refused`.
    pub async fn queue_state(&self, queue: &QueueName) -> Result<Vec<LaneState>, BrokerError> {
        let mut out = Vec::new();
        for lane in self.names().lanes(queue) {
            out.push(match self.consumer_info(&lane.stream, &lane.consumer).await? {
                None => LaneState::missing(&lane),
                Some(info) => {
                    let oldest_waiting_ms = self.oldest_waiting(&lane, &info).await?;
                    LaneState { oldest_waiting_ms, ..LaneState::of(&lane, &info) }
                }
            });
        }
        Ok(out)
    }

    /// The age of the first message that was not delivered yet: one direct get for each subject.
    async fn oldest_waiting(&self, lane: &Lane, info: &ConsumerInfo) -> Result<Option<u64>, BrokerError> {
        if info.num_pending == 0 {
            return Ok(None);
        }
        let from = info.delivered.stream_sequence + 1;
        let mut oldest: Option<u64> = None;
        for subject in &lane.subjects {
            if let Some(m) = self.next_message(&lane.stream, from, subject).await? {
                oldest = Some(oldest.map_or(m.stored_ms, |o| o.min(m.stored_ms)));
            }
        }
        Ok(info.answered_ms.zip(oldest).map(|(now, then)| now.saturating_sub(then)))
    }
}
