//! Following the journal as it grows.

use std::time::Duration;

use async_nats::jetstream::{
    Message,
    consumer::{DeliverPolicy, pull},
};
use futures::StreamExt;
use tokio::time::Instant;

use super::{Broker, BrokerError, barrier::Barriers, scan::reader};
use crate::{
    domain::QueueName,
    pace::Transient,
    wire::{event, headers},
};

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With everything that is kept.
    Start,
    /// With what is stored after this call.
    Now,
    /// With what was stored in this last span, by the clock of the server.
    Ago(Duration),
    /// With this place in the stream.
    Sequence(u64),
}

/// Which messages of a queue's journal to read. The server leaves out the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    All,
    /// Only those with outcomes: `finished` events and nothing else.
    Ended,
    /// Only those without.
    Open,
}

/// What came next.
#[derive(Debug, Clone)]
pub enum News {
    /// The events of one journal message, in order. Those that cannot be read were logged and left out.
    Events(Vec<event::Event>),
    /// The server cannot be reached. Said once for each outage; nothing is missed meanwhile.
    Lost(BrokerError),
    /// It can be reached again.
    Back,
}

/// Reads the journal from a place on. A lost connection or consumer costs a pause: it goes on after the last message read,
/// so nothing is missed or comes twice.
pub struct Follow {
    broker: Broker,
    stream: String,
    subjects: Vec<String>,
    /// First message not read yet.
    next: DeliverPolicy,
    barriers: Barriers,
    messages: Option<pull::Stream>,
    is_lost: bool,
}

/// The pause before a lost consumer is made again, and how often the connection is looked at.
const PAUSE: Duration = Duration::from_millis(250);

impl Broker {
    /// Follows the outcomes (`finished` events) of a queue.
    pub async fn follow_ended(&self, queue: &QueueName, from: From) -> Result<Follow, BrokerError> {
        self.follow(std::slice::from_ref(queue), Part::Ended, from).await
    }

    /// Follows the journal of these queues, in the order of the stream; no queue: of all.
    /// Errors: the first look at the journal failed. Later failures are waited out.
    pub async fn follow(&self, queues: &[QueueName], part: Part, from: From) -> Result<Follow, BrokerError> {
        let next = match from {
            From::Start => DeliverPolicy::All,
            From::Sequence(n) => DeliverPolicy::ByStartSequence { start_sequence: n.max(1) },
            From::Now => DeliverPolicy::ByStartSequence { start_sequence: self.journal_end().await? },
            From::Ago(span) => DeliverPolicy::ByStartTime { start_time: self.server_time().await? - span },
        };
        let names =
            if queues.is_empty() { vec!["*"] } else { queues.iter().map(QueueName::as_str).collect() };
        let suffixes: &[&str] = match part {
            Part::All => &["", ".ended"],
            Part::Ended => &[".ended"],
            Part::Open => &[""],
        };
        let subject = |queue: &str, suffix: &str| self.names().event_subject(&format!("{queue}{suffix}"));
        let mut subjects: Vec<_> =
            names.iter().flat_map(|q| suffixes.iter().map(|s| subject(q, s))).collect();
        subjects.push(self.names().barrier_subject("*"));
        let barriers = if from == From::Start { Barriers::default() } else { self.barriers().await? };
        let mut follow = Follow {
            broker: self.clone(),
            stream: self.names().events(),
            subjects,
            next,
            barriers,
            messages: None,
            is_lost: false,
        };
        follow.messages = Some(follow.guarded_open().await?);
        Ok(follow)
    }

    /// What the server's clock says.
    async fn server_time(&self) -> Result<time::OffsetDateTime, BrokerError> {
        let subject = format!("STREAM.INFO.{}", self.names().events());
        let info = self.api(subject, serde_json::json!({})).await?;
        let text = info.get("ts").and_then(serde_json::Value::as_str).unwrap_or_default();
        let ns = text
            .parse::<jiff::Timestamp>()
            .map_err(|e| away(&format!("time {text:?}: {e}")))?
            .as_nanosecond();
        time::OffsetDateTime::from_unix_timestamp_nanos(ns).map_err(|e| away(&e))
    }
}

impl Follow {
    /// What comes next, whenever it comes.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped: a message counts as read when it is returned.
    pub async fn news(&mut self) -> News {
        loop {
            match self.step().await {
                Ok(Some(m)) => {
                    let (events, problems) = event::read_message(&m.payload);
                    if !problems.is_empty() {
                        let problems = problems.join("; ");
                        tracing::warn!(subject = %m.subject, problems, "unreadable journal events were skipped");
                    }
                    return News::Events(events);
                }
                Ok(None) if std::mem::take(&mut self.is_lost) => return News::Back,
                Ok(None) => {}
                Err(e) if !self.is_lost => {
                    self.is_lost = true;
                    return News::Lost(e);
                }
                Err(error) => {
                    tracing::debug!(%error, "the journal is still away");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// First place in the journal that was not read yet; `None`: nothing was read.
    pub fn next_place(&self) -> Option<u64> {
        match self.next {
            DeliverPolicy::ByStartSequence { start_sequence } => Some(start_sequence),
            _ => None,
        }
    }

    /// The next `finished` event of this job, or `None` at `deadline`. Transient failures are waited out.
    pub async fn ended(&mut self, job: &str, deadline: Instant) -> Result<Option<event::Event>, BrokerError> {
        loop {
            let message = match tokio::time::timeout_at(deadline, self.step()).await {
                Err(_) => return Ok(None),
                Ok(Ok(None)) => continue,
                Ok(Ok(Some(m))) => m,
                Ok(Err(error)) if !error.is_transient() => return Err(error),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "following the journal failed, trying again");
                    tokio::time::sleep_until(deadline.min(Instant::now() + PAUSE)).await;
                    continue;
                }
            };
            if let Some(list) = message.headers.as_ref().and_then(|h| h.get(headers::ENDED))
                && !list.as_str().split(',').any(|id| id == job)
            {
                continue;
            }
            let (events, _) = event::read_message(&message.payload);
            if let Some(e) = events.into_iter().find(|e| e.job == job && e.kind == "finished") {
                return Ok(Some(e));
            }
        }
    }

    /// The next message; `None`: the consumer stands (again), or nothing came for a while.
    async fn step(&mut self) -> Result<Option<Message>, BrokerError> {
        let Some(messages) = &mut self.messages else {
            self.messages = Some(self.guarded_open().await?);
            return Ok(None);
        };
        let next = tokio::time::timeout(PAUSE, messages.next());
        let next = match self.broker.on_stream(&self.stream, next).await {
            Ok(Ok(Some(next))) => next.map_err(|e| away(&e)),
            Ok(Ok(None)) => Err(away(&"the consumer was deleted")),
            // The consumer's own missing heartbeats would tell much later.
            Ok(Err(_)) if !self.broker.is_connected() => Err(away(&"the connection is lost")),
            Ok(Err(_)) => return Ok(None),
            Err(denied) => Err(denied),
        };
        let sequence = next.and_then(|m| match m.info() {
            Ok(i) => Ok((i.stream_sequence, m)),
            Err(e) => Err(away(&e)),
        });
        match sequence {
            Ok((n, m)) => {
                self.next = DeliverPolicy::ByStartSequence { start_sequence: n + 1 };
                Ok(self.barriers.admit(n, m.headers.as_ref()).then_some(m))
            }
            Err(e) => {
                self.messages = None;
                Err(e)
            }
        }
    }

    async fn guarded_open(&self) -> Result<pull::Stream, BrokerError> {
        self.broker.on_stream(&self.stream, Box::pin(self.open())).await?
    }

    async fn open(&self) -> Result<pull::Stream, BrokerError> {
        let stream = self.broker.js.get_stream(&self.stream).await.map_err(|e| away(&e))?;
        let consumer =
            stream.create_consumer(reader(self.next, self.subjects.clone())).await.map_err(|e| away(&e))?;
        consumer
            .stream()
            .max_messages_per_batch(200)
            .heartbeat(Duration::from_secs(2))
            .expires(Duration::from_secs(20))
            .messages()
            .await
            .map_err(|e| away(&e))
    }
}

fn away(e: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unreachable(format!("journal: {e}"))
}
