//! Control messages: plain NATS, without JetStream. They carry no authority: what is to happen stands in the store.

use async_nats::{Subscriber, client::RequestErrorKind};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};

use super::{Broker, BrokerError};
use crate::domain::{JobId, ids::SessionId};

/// Reapers answer as one: each request reaches one of them.
const GROUP: &str = "reaper";

/// A hint to the worker of a session: somebody wants this attempt stopped. Whatever it says, the worker renews its session
/// at once and does what the store tells it then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Order {
    pub v: u32,
    /// `stop`.
    pub op: String,
    pub job: String,
    pub epoch: u64,
}

/// The hints for one session.
pub struct Orders {
    messages: Option<Subscriber>,
}

impl Orders {
    /// Returns when a hint came, and takes all that are there. Never, once the connection was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was taken is one hint, and it is told.
    pub async fn came(&mut self) {
        let Some(messages) = &mut self.messages else { return std::future::pending().await };
        if messages.next().await.is_none() {
            self.messages = None;
            return std::future::pending().await;
        }
        while let Some(Some(_)) = messages.next().now_or_never() {}
    }
}

/// Requests about jobs.
pub struct Requests {
    messages: Subscriber,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// What stands where the job's id should.
    pub id: String,
    pub body: Bytes,
    /// `None`: nobody waits for an answer.
    pub reply_to: Option<String>,
}

impl Requests {
    /// The next request; `None` once the connection was closed.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Option<Request> {
        let m = self.messages.next().await?;
        let id = m.subject.rsplit('.').next().unwrap_or_default().to_owned();
        Some(Request { id, body: m.payload, reply_to: m.reply.map(|r| r.to_string()) })
    }
}

impl Broker {
    /// Listens to the hints for a session. Where the server does not allow it, none comes: the next renewal tells the same.
    pub async fn orders(&self, session: &SessionId) -> Orders {
        let messages = self.client.subscribe(self.names().control_session_subject(session)).await;
        if let Err(error) = &messages {
            tracing::warn!(%error, "no control messages: what is to be stopped is told by the next renewal");
        }
        Orders { messages: messages.ok() }
    }

    /// Hints to the worker of a session that an attempt is to be stopped. Not waited for, and not certain to arrive.
    pub async fn hint_stop(&self, session: &SessionId, job: &JobId, epoch: u64) -> Result<(), BrokerError> {
        let order = Order { v: 1, op: "stop".into(), job: job.to_string(), epoch };
        // A struct of texts and numbers always serializes.
        let body = serde_json::to_vec(&order).unwrap_or_default();
        self.client
            .publish(self.names().control_session_subject(session), body.into())
            .await
            .map_err(|e| BrokerError::Unreachable(e.to_string()))?;
        self.flush().await
    }

    /// Takes part in answering requests about jobs.
    pub async fn requests(&self) -> Result<Requests, BrokerError> {
        let subject = self.names().control_job_subject("*");
        let messages = self
            .client
            .queue_subscribe(subject, GROUP.to_owned())
            .await
            .map_err(|e| BrokerError::Unreachable(e.to_string()))?;
        Ok(Requests { messages })
    }

    /// Whether anybody answers requests about jobs: a reaper does.
    /// Errors: `Unreachable` where an answer is due and does not come.
    pub async fn is_answered(&self) -> Result<bool, BrokerError> {
        // Every request gets an answer, also one that nobody knows.
        let body = Bytes::from_static(br#"{"v":1,"op":"ping"}"#);
        let subject = self.names().control_job_subject("doctor");
        match self.client.request(subject, body).await {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == RequestErrorKind::NoResponders => Ok(false),
            Err(e) => Err(BrokerError::Unreachable(e.to_string())),
        }
    }

    /// Answers a request.
    pub async fn answer(&self, to: String, body: Vec<u8>) -> Result<(), BrokerError> {
        self.client.publish(to, body.into()).await.map_err(|e| BrokerError::Unreachable(e.to_string()))
    }
}
