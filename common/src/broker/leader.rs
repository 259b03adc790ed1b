//! What only the leader of a stream knows. A direct read is answered by any replica, also by one that lags behind: what it does
//! not have may have been acknowledged seconds ago. So before something counts as absent, or as the newest, the leader is asked.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{Broker, BrokerError};

/// Between two reads of a message that the leader has and the replica that answered has not.
const BETWEEN: Duration = Duration::from_millis(50);
/// The server's code for "no message found".
const NO_MESSAGE: u64 = 10037;

impl Broker {
    /// Whether another replica than the leader may answer a direct read. A single server has none.
    pub(crate) fn may_lag(&self) -> bool {
        self.client.server_info().cluster.is_some()
    }

    /// Sequence of the message that the leader has for a request; `None`: there is none. The request is that of a direct read.
    /// Errors: `Refused` or `Denied` where this user may not ask (`$JS.API.STREAM.MSG.GET.<stream>`).
    pub(super) async fn leader_has(&self, stream: &str, wanted: &Value) -> Result<Option<u64>, BrokerError> {
        match self.api(format!("STREAM.MSG.GET.{stream}"), wanted.clone()).await {
            Ok(answer) => Ok(answer.pointer("/message/seq").and_then(Value::as_u64)),
            Err(BrokerError::Refused { code: NO_MESSAGE, .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// Says of each direct read whether its answer is as new as what the leader has. `wanted`: the request.
pub(super) struct Fresh<'a> {
    broker: &'a Broker,
    stream: &'a str,
    wanted: Value,
    deadline: Instant,
}

impl<'a> Fresh<'a> {
    pub(super) fn of(broker: &'a Broker, stream: &'a str, wanted: Value) -> Self {
        Self { broker, stream, wanted, deadline: Instant::now() + broker.call_timeout() }
    }

    pub(super) fn wanted(&self) -> &Value {
        &self.wanted
    }

    /// Whether what was found is to be believed; `false`: read again. `found`: the sequence of the first message, if there is any.
    /// Errors: those of asking the leader; `Unreachable` where no replica catches up within the time of a call.
    pub(super) async fn is_enough(&self, found: Option<u64>) -> Result<bool, BrokerError> {
        let is_newest = self.wanted.get("last_by_subj").is_some();
        if !self.broker.may_lag() || (found.is_some() && !is_newest) {
            return Ok(true);
        }
        // Nothing there: what was read is gone by now, or never was. Another replica may be ahead of the leader's answer.
        let there = self.broker.leader_has(self.stream, &self.wanted).await?;
        if there.is_none_or(|there| found.is_some_and(|n| n >= there)) {
            return Ok(true);
        }
        if Instant::now() >= self.deadline {
            let why = format!("{}: a replica lags behind its leader", self.stream);
            return Err(BrokerError::Unreachable(why));
        }
        tokio::time::sleep(BETWEEN).await;
        Ok(false)
    }
}
