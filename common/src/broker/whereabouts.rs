//! Where one message stands in its queue.

use super::{Broker, BrokerError, place::Carrier, pull::Delivery, queues::LaneState};
use crate::domain::QueueName;

/// A carrier and the consumer that should deliver it.
#[derive(Debug, Clone)]
pub struct Whereabouts {
    /// Without the age of what waits.
    pub lane: LaneState,
    /// `None`: it is gone.
    pub message: Option<Delivery>,
    /// It was given to a worker at least once; `None`: that cannot be told.
    pub is_delivered: Option<bool>,
    /// Messages that will be delivered before it; `None` where it was delivered.
    pub ahead: Option<u64>,
}

impl Broker {
    /// Looks where a carrier of a queue stands: a handful of small requests, however long the queue is.
    /// `None`: no queue of that name is provisioned for its stream.
    pub async fn whereabouts(
        &self,
        queue: &QueueName,
        carrier: Carrier,
    ) -> Result<Option<Whereabouts>, BrokerError> {
        let lanes = self.names().lanes(queue);
        let Some(lane) = lanes.into_iter().find(|l| l.of == carrier.stream) else { return Ok(None) };
        // Ordering: the consumer first. What it delivers meanwhile makes the answer older, not wrong.
        let info = self.consumer_info(&lane.stream, &lane.consumer).await?;
        let message = self.message(&lane.stream, carrier.sequence).await?;
        let Some(info) = info else {
            let lane = LaneState::missing(&lane);
            return Ok(Some(Whereabouts { lane, message, is_delivered: None, ahead: None }));
        };
        let state = LaneState::of(&lane, &info);
        let is_delivered = carrier.sequence <= info.delivered.stream_sequence;
        let mut ahead = None;
        if message.is_some() && !is_delivered {
            let mut after = 0;
            for subject in &lane.subjects {
                after += self.count_from(&lane.stream, carrier.sequence + 1, subject).await?;
            }
            ahead = Some(info.num_pending.saturating_sub(after + 1));
        }
        Ok(Some(Whereabouts { lane: state, message, is_delivered: Some(is_delivered), ahead }))
    }
}
