//! How full the queues are.

use super::{Broker, BrokerError, answered_ms};
use crate::domain::QueueName;

/// What waits in a queue, as its consumer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that no worker has been given yet.
    pub waiting: u64,
    /// Messages that a worker holds, or that were given back with a delay.
    pub held: u64,
    /// Age of the oldest waiting message by the server's clock, in milliseconds.
    pub oldest_waiting_ms: Option<u64>,
}

impl Broker {
    /// Reads the state of a declared queue: two to four small requests.
    /// Errors: `Refused` when the queue has no consumer; `Unreachable`.
    pub async fn queue_state(&self, queue: &QueueName) -> Result<QueueState, BrokerError> {
        let jobs = self.names().jobs();
        let info = self.api(format!("CONSUMER.INFO.{jobs}.{queue}"), serde_json::json!({})).await?;
        let number = |path: &str| info.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or(0);
        let (waiting, held) = (number("/num_pending"), number("/num_ack_pending"));
        let now_ms = answered_ms(&info);
        let mut oldest: Option<u64> = None;
        if waiting > 0 {
            let from = number("/delivered/stream_seq") + 1;
            for subject in self.names().queue_subjects(queue) {
                if let Some(m) = self.next_message(&jobs, from, &subject).await? {
                    oldest = Some(oldest.map_or(m.stored_ms, |o| o.min(m.stored_ms)));
                }
            }
        }
        let oldest_waiting_ms = now_ms.zip(oldest).map(|(now, then)| now.saturating_sub(then));
        Ok(QueueState { waiting, held, oldest_waiting_ms })
    }
}
