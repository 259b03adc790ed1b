//! How large the streams are.

use super::{Broker, BrokerError};

/// The server's code for a stream that is not there.
const NO_SUCH_STREAM: u64 = 10059;

impl Broker {
    /// Messages and bytes of every stream: `jobs`, `sched`, `events`, `receipts`, `dlq` and `advisories`, each with one small request.
    pub async fn stream_sizes(&self) -> Result<Vec<(&'static str, u64, u64)>, BrokerError> {
        let n = self.names();
        let streams = [
            ("jobs", n.jobs()),
            ("sched", n.sched()),
            ("events", n.events()),
            ("receipts", n.receipts()),
            ("dlq", n.dlq()),
            ("advisories", n.advisories()),
        ];
        let mut out = Vec::with_capacity(streams.len());
        for (what, name) in streams {
            let info = match self.api(format!("STREAM.INFO.{name}"), serde_json::json!({})).await {
                // An older layout has fewer.
                Err(BrokerError::Refused { code: NO_SUCH_STREAM, .. }) => continue,
                other => other?,
            };
            let number = |path: &str| info.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or(0);
            out.push((what, number("/state/messages"), number("/state/bytes")));
        }
        Ok(out)
    }
}
