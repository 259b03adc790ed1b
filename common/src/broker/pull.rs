//! Pulling exactly as much as there are free slots.
//!
//! The client's own continuous stream pulls ahead: messages wait in its buffer while their ack-wait runs, and another
//! worker could have had them. So this asks the consumer for as many messages as there are slots, counts what is still
//! to come, and asks again when slots come free (docs/adr/0002).

use std::time::Duration;

pub use async_nats::Subject;
use async_nats::jetstream;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::Serialize;
use tokio::time::Instant;

use super::{Broker, BrokerError, denial::Listener, place::CarrierStream};
use crate::domain::QueueName;

/// The longest that a pull waits at the server before it is asked again.
const LONGEST: Duration = Duration::from_secs(30);
/// The server's sign of life on a waiting pull, at least this often.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// A pull that does not wait is answered at once; but a consumer that may have no more messages under way, or whose last one
/// somebody else got this very moment, says nothing until it has another.
const ANSWER: Duration = Duration::from_secs(1);

/// One delivered message.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub subject: Subject,
    pub payload: Bytes,
    pub headers: Option<async_nats::HeaderMap>,
    /// Where acks for it go.
    pub ack_subject: Subject,
    /// Sequence in the stream.
    pub sequence: u64,
    /// The broker's delivery count: a hint, it can go backwards after a crash of the server.
    pub delivered: u64,
    /// When it was stored, milliseconds of the stream's clock.
    pub stored_ms: u64,
}

impl Delivery {
    /// First value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(|v| v.as_str())
    }
}

#[derive(Serialize)]
struct Request {
    batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_heartbeat: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_wait: bool,
}

/// Pulls from one consumer.
pub struct Puller {
    client: async_nats::Client,
    /// Reads ack subjects; kept, because making one for each message clones a whole context.
    reader: jetstream::Message,
    request_subject: String,
    denials: Listener,
    inbox: String,
    replies: async_nats::Subscriber,
    expires: Duration,
    outstanding: usize,
    asked: u64,
    /// By when the pull that does not wait is taken for ended.
    answer_by: Option<Instant>,
}

/// What [`Puller::next`] saw.
#[derive(Debug)]
pub enum Pulled {
    /// A job.
    Message(Delivery),
    /// A pull ended: what it did not deliver is no longer outstanding.
    Ended,
    /// The server gave no sign of life: nothing is outstanding any more, ask again.
    Silent,
    /// The consumer is gone (deleted, or the stream was).
    Gone(String),
    /// The server does not let us pull.
    Denied(BrokerError),
}

impl Puller {
    /// Subscribes to an inbox; nothing is pulled yet. `expires`: how long a pull waits at the server, half a minute at most.
    pub async fn start(
        broker: &Broker,
        of: CarrierStream,
        queue: &QueueName,
        expires: Duration,
    ) -> Result<Self, BrokerError> {
        Self::of(broker, &broker.names().stream(of), queue.as_str(), expires).await
    }

    /// The same for any consumer.
    pub(super) async fn of(
        broker: &Broker,
        stream: &str,
        consumer: &str,
        expires: Duration,
    ) -> Result<Self, BrokerError> {
        let inbox = broker.client.new_inbox();
        let replies = broker
            .client
            .subscribe(format!("{inbox}.*"))
            .await
            .map_err(|e| BrokerError::Unreachable(e.to_string()))?;
        Ok(Self {
            client: broker.client.clone(),
            reader: jetstream::Message { message: no_message(), context: broker.js.clone() },
            request_subject: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            denials: broker.denials.listen(),
            inbox,
            replies,
            expires: expires.min(LONGEST),
            outstanding: 0,
            asked: 0,
            answer_by: None,
        })
    }

    /// Messages asked for and not delivered yet.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Nothing is asked for any more, as far as this side knows: the connection was made anew.
    pub fn forget(&mut self) {
        (self.outstanding, self.answer_by) = (0, None);
    }

    /// Asks for `n` messages. `wait`: the pull stays at the server until they come or it expires; otherwise it ends at
    /// once with what is there. One that does not wait is the only one of its time, or their ends are mixed up.
    pub async fn ask(&mut self, n: usize, wait: bool) -> Result<(), BrokerError> {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).ok();
        let request = Request {
            batch: n,
            expires: if wait { nanos(self.expires) } else { None },
            idle_heartbeat: if wait { nanos(HEARTBEAT.min(self.expires / 3)) } else { None },
            no_wait: !wait,
        };
        let body = serde_json::to_vec(&request).map_err(|e| BrokerError::Unfit(e.to_string()))?;
        self.asked += 1;
        self.client
            .publish_with_reply(
                self.request_subject.clone(),
                format!("{}.{}", self.inbox, self.asked),
                body.into(),
            )
            .await
            .map_err(|e| BrokerError::Unreachable(e.to_string()))?;
        self.outstanding += n;
        self.answer_by = (!wait).then(|| Instant::now() + ANSWER);
        Ok(())
    }

    /// The next message or the end of a pull; waits.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Pulled {
        loop {
            let reply = async {
                tokio::select! {
                    biased;
                    reply = self.replies.next() => Ok(reply),
                    denied = self.denials.denied(|s| s == self.request_subject) => Err(denied),
                }
            };
            let reply = if self.outstanding == 0 {
                reply.await
            } else {
                let until = self.answer_by.unwrap_or_else(|| Instant::now() + HEARTBEAT * 3);
                match tokio::time::timeout_at(until, reply).await {
                    Ok(r) => r,
                    Err(_) => {
                        let was_probe = self.answer_by.is_some();
                        self.forget();
                        return if was_probe { Pulled::Ended } else { Pulled::Silent };
                    }
                }
            };
            let got = match reply {
                Ok(m) => m,
                Err(denied) => return Pulled::Denied(denied),
            };
            let Some(m) = got else {
                return Pulled::Gone("the connection was closed".into());
            };
            if let Some(p) = self.read(m) {
                return p;
            }
        }
    }

    /// What is here already; `None` when [`Puller::next`] would wait.
    pub fn next_here(&mut self) -> Option<Pulled> {
        loop {
            let Some(m) = self.replies.next().now_or_never()? else {
                return Some(Pulled::Gone("the connection was closed".into()));
            };
            if let Some(p) = self.read(m) {
                return Some(p);
            }
        }
    }

    fn read(&mut self, m: async_nats::Message) -> Option<Pulled> {
        let status = m.status.map(|s| s.as_u16());
        match status {
            None | Some(200) => {}
            Some(100) => return None,
            Some(404 | 408) => {
                let left = header_number(&m, "Nats-Pending-Messages").unwrap_or(0).max(1);
                self.outstanding = self.outstanding.saturating_sub(left);
                self.answer_by = None;
                return Some(Pulled::Ended);
            }
            Some(code) => {
                let text = m.description.clone().unwrap_or_default();
                self.outstanding = 0;
                tracing::warn!(code, text, "pull ended");
                return Some(if text.contains("Consumer Deleted") || code == 503 {
                    Pulled::Gone(text)
                } else {
                    Pulled::Ended
                });
            }
        }
        self.outstanding = self.outstanding.saturating_sub(1);
        self.reader.message = m;
        let read = self.reader.info().map(|i| {
            (
                i.stream_sequence,
                u64::try_from(i.delivered).unwrap_or(0),
                u64::try_from(i.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0),
            )
        });
        let read = read.map_err(|e| e.to_string());
        let m = std::mem::replace(&mut self.reader.message, no_message());
        let (sequence, delivered, stored_ms) = match read {
            Ok(r) => r,
            Err(error) => {
                tracing::warn!(error, "a message without a usable ack subject was skipped");
                return None;
            }
        };
        Some(Pulled::Message(Delivery {
            subject: m.subject,
            payload: m.payload,
            headers: m.headers,
            ack_subject: m.reply.unwrap_or_else(|| Subject::from_static("")),
            sequence,
            delivered,
            stored_ms,
        }))
    }
}

fn no_message() -> async_nats::Message {
    async_nats::Message {
        subject: async_nats::Subject::from_static(""),
        reply: None,
        payload: Bytes::new(),
        headers: None,
        status: None,
        description: None,
        length: 0,
    }
}

fn header_number(m: &async_nats::Message, name: &str) -> Option<usize> {
    m.headers.as_ref()?.get(name)?.as_str().parse().ok()
}
