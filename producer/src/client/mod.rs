//! Enqueueing jobs.
//!
//! ```no_run
//! use surety_producer::client::{Client, JobBuilder};
//! # async fn example(settings: &surety_common::config::Settings) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(settings).await?;
//! let queue = "default".parse()?;
//! let job = JobBuilder::new("thumbnail").payload(&serde_json::json!({ "url": "https://example.org/a.png" }))?;
//! let enqueued = client.enqueue(&queue, job).await?;
//! println!("{} is stored as message {}", enqueued.id, enqueued.sequence);
//! # Ok(()) }
//! ```
//!
//! A job whose enqueue returned reaches an outcome (promise P1). One whose enqueue failed with an unreachable broker may
//! be stored or not: enqueue it again under the same id, the copy is dropped.

pub mod builder;
pub mod recurring;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use surety_common::{
    broker::{
        Broker, BrokerError,
        jobs::first_message,
        publish::{self, Publisher, Stored},
        schedule::NOT_EMPTY,
    },
    clock::wall_now,
    config::{
        Settings,
        caller::{self, CallerError},
    },
    connect::{self, ConnectError},
    domain::{ErrorCode, Job, JobId, Lineage, QueueName, ids::NameError, schedule::reachable},
    pace::{Pace, Transient, retry},
    wire::{
        batch::BatchPart,
        job::{Refused, VERSION, check},
    },
};
use tokio::sync::OnceCell;

pub use builder::JobBuilder;
use builder::Start;

/// Why a job was not enqueued.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The document breaks a rule; nothing was sent. Every problem is named.
    #[error("the job was refused: {0}")]
    Refused(#[from] Refused),
    /// `NoStream`: the queue is not declared. `Unreachable`: stored or not, repeat it under the same id.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The environment names a job that this process is part of, but not as a worker does.
    #[error(transparent)]
    Caller(#[from] CallerError),
}

impl Transient for ClientError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Caller(_) => false,
            Self::Broker(e) => e.is_transient(),
            Self::Connect(e) => e.is_unreachable(),
        }
    }
}

/// A job that the broker has stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enqueued {
    pub id: JobId,
    /// Sequence in `JOBS`, or in `SCHED` for a job for later; of the original where `is_duplicate`.
    pub sequence: u64,
    /// This id was enqueued before, within the stream's duplicate window, or is scheduled; this call added nothing.
    pub is_duplicate: bool,
    /// When it may start, where that is later.
    pub due_at: Option<Timestamp>,
}

/// A job that is checked and encoded, ready to be sent any number of times.
#[derive(Debug, Clone)]
pub struct Prepared {
    id: JobId,
    queue: QueueName,
    traceparent: Option<Box<str>>,
    due_at: Option<Timestamp>,
    body: Bytes,
}

impl Prepared {
    /// Checks a job and encodes it. Without an id it gets a ULID; without a parent it gets `lineage`.
    /// Errors: every problem of the document.
    pub fn new(
        queue: &QueueName,
        job: impl Into<JobBuilder>,
        lineage: Option<&Lineage>,
    ) -> Result<Self, Refused> {
        Self::at(wall_now(), queue, job, lineage)
    }

    /// [`Prepared::new`] for whoever knows better what time it is: a start for later is counted from then.
    pub fn at(
        now: Timestamp,
        queue: &QueueName,
        job: impl Into<JobBuilder>,
        lineage: Option<&Lineage>,
    ) -> Result<Self, Refused> {
        let JobBuilder { mut document, traceparent, start, mut problems, .. } = job.into().adopted(lineage);
        let due_at = due_at(start, now).unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
        let named = match document.id.as_deref() {
            None => generated_id(),
            // The rest is checked under another id, so that all problems come at once.
            Some(given) => JobId::new(given).or_else(|e| {
                problems.push(format!("id: {e}"));
                generated_id()
            }),
        };
        let id = named
            .map_err(|e| Refused { code: ErrorCode::Internal, problems: vec![format!("a new id: {e}")] })?;
        document.v = Some(VERSION);
        document.id = Some(id.to_string());
        // Encoded before the check takes the document apart: so nothing is copied.
        let body = serde_json::to_vec(&document);
        match (check(document, id.clone(), queue.clone()), body) {
            (Ok(_), Ok(body)) if problems.is_empty() => {
                Ok(Self { id, queue: queue.clone(), traceparent, due_at, body: body.into() })
            }
            (checked, body) => {
                problems.extend(checked.err().into_iter().flat_map(|r| r.problems));
                problems.extend(body.err().map(|e| format!("the document does not encode: {e}")));
                Err(Refused { code: ErrorCode::InvalidJob, problems })
            }
        }
    }

    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// Size of the encoded document in bytes.
    pub fn size(&self) -> usize {
        self.body.len()
    }

    fn enqueued(self, stored: Stored) -> Enqueued {
        let Stored { sequence, is_duplicate } = stored;
        Enqueued { id: self.id, sequence, is_duplicate, due_at: self.due_at }
    }
}

/// The time of a start for later. Errors: one line for people.
fn due_at(start: Start, now: Timestamp) -> Result<Option<Timestamp>, String> {
    let at = match start {
        Start::Now => return Ok(None),
        Start::At(at) => at,
        Start::After(delay) => now
            .checked_add(delay)
            .map_err(|_| "start: the delay is longer than time can be told".to_owned())?,
    };
    if at <= now {
        return Err(format!("start: {at} is not in the future"));
    }
    reachable(at).map(Some).map_err(|e| format!("start: {e}"))
}

/// What an error says of a job for later whose id is scheduled already.
fn scheduled_before(error: &BrokerError) -> Option<Stored> {
    match error {
        BrokerError::Refused { code: NOT_EMPTY, text } => {
            let sequence = text.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            Some(Stored { sequence, is_duplicate: true })
        }
        _ => None,
    }
}

fn generated_id() -> Result<JobId, NameError> {
    JobId::new(ulid::Ulid::generate().array_to_str(&mut [0; ulid::ULID_LEN]))
}

/// Tries of one look for a missing stream.
const FEW: Duration = Duration::from_secs(1);

/// One connection to the broker, for enqueueing. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Client {
    link: Arc<Link>,
    lineage: Option<Lineage>,
}

/// What every pending job shares: it is cloned once for each, so it is one pointer.
struct Link {
    broker: Broker,
    publisher: Publisher,
    patience: Pace,
    /// The broker's clock minus ours.
    offset: OnceCell<SignedDuration>,
}

impl Client {
    /// Connects to the broker of these settings (Redis is not needed to enqueue). In the process of a handler its jobs become
    /// children of the handler's job.
    /// Errors: unreachable for longer than `connection.retry_limit`; a server that is too old or has no JetStream; `Caller`.
    pub async fn connect(settings: &Settings) -> Result<Self, ClientError> {
        let lineage = caller::lineage()?;
        let broker = connect::broker(settings, "surety-client").await?;
        Ok(Self::on(broker, settings).await?.with_lineage(lineage))
    }

    /// A client on a connection that stands already. It knows of no lineage.
    pub async fn on(broker: Broker, settings: &Settings) -> Result<Self, ClientError> {
        let publisher = Publisher::start(&broker).await?;
        let patience = Pace::call(settings.connection.retry_limit);
        Ok(Self {
            link: Arc::new(Link { broker, publisher, patience, offset: OnceCell::new() }),
            lineage: None,
        })
    }

    /// The lineage of jobs that name no parent. A Rust handler inside a worker gives the one of its context
    /// (`JobContext::children`): the environment is that of the worker.
    #[must_use]
    pub fn with_lineage(self, lineage: Option<Lineage>) -> Self {
        Self { lineage, ..self }
    }

    /// The connection.
    pub fn broker(&self) -> &Broker {
        &self.link.broker
    }

    pub(crate) fn publisher(&self) -> &Publisher {
        &self.link.publisher
    }

    /// Tells which jobs a batch has, so that others can follow them: the `n`th part of its list.
    /// Errors: `NoStream` where nothing is provisioned for it.
    pub async fn publish_batch_part(&self, part: &BatchPart, n: u64) -> Result<(), BrokerError> {
        let Link { broker, publisher, patience, .. } = &*self.link;
        broker.publish_batch_part(publisher, part, n, *patience).await
    }

    /// Enqueues one job and waits until it is stored.
    /// Errors: `Refused` (nothing was sent); `NoStream`; `Unreachable` after `connection.retry_limit`.
    pub async fn enqueue(
        &self,
        queue: &QueueName,
        job: impl Into<JobBuilder>,
    ) -> Result<Enqueued, ClientError> {
        self.send(queue, job).await?.stored().await
    }

    /// Sends one job without waiting for its acknowledgement: the way to enqueue many. Waits only while the buffer of
    /// unacknowledged messages is full (8192 messages or 64 MiB). Await [`Pending::stored`] of every one of them.
    pub async fn send(&self, queue: &QueueName, job: impl Into<JobBuilder>) -> Result<Pending, ClientError> {
        let job = self.fit(job.into());
        let now = if matches!(job.start, Start::Now) { wall_now() } else { self.now().await };
        let prepared = Prepared::at(now, queue, job, self.lineage.as_ref())?;
        Ok(self.send_prepared(prepared).await?)
    }

    /// What time it is for the schedules of the broker: by its clock, as this client saw it first; by ours, where it does not
    /// tell. Jobs for later are counted from it, so that a clock that is wrong here moves none of them.
    pub async fn now(&self) -> Timestamp {
        let Link { broker, offset, .. } = &*self.link;
        let ask = async || {
            let ms = i64::try_from(broker.now_ms().await?).unwrap_or(i64::MAX);
            Ok::<_, BrokerError>(SignedDuration::from_millis(ms - wall_now().as_millisecond()))
        };
        let offset = offset.get_or_try_init(ask).await;
        let offset = offset.copied().unwrap_or_else(|e| {
            tracing::debug!(error = %e, "the broker does not tell its time; ours is taken");
            SignedDuration::ZERO
        });
        let now = wall_now();
        now.checked_add(offset).unwrap_or(now)
    }

    /// The job, with a problem more where its requester's subject is one of this namespace.
    fn fit(&self, mut job: JobBuilder) -> JobBuilder {
        let names = self.link.broker.names();
        if let Some(notify) = job.document.notify.as_ref().filter(|n| names.is_reserved(&n.subject)) {
            let ns = names.namespace();
            job.problems.push(format!(
                "notify.subject: {:?} is a subject of {ns} itself, where a message would be a command; use {ns}.notify.… or another",
                notify.subject
            ));
        }
        job
    }

    /// [`Client::send`] for a job that was prepared before (its requester is looked at when it is told).
    pub async fn send_prepared(&self, job: Prepared) -> Result<Pending, BrokerError> {
        let Prepared { id, queue, due_at, .. } = &job;
        let names = self.link.broker.names();
        let (subject, headers) = first_message(names, queue, id, *due_at, job.traceparent.as_deref());
        let ack = self.link.publisher.send(subject, headers, job.body.clone()).await?;
        Ok(Pending { job, ack, link: self.link.clone() })
    }
}

impl Link {
    /// Publishes under the same message id until it is stored or the patience is used up.
    async fn repeat(&self, job: &Prepared) -> Result<Stored, BrokerError> {
        let Prepared { id, queue, due_at, .. } = job;
        let names = self.broker.names();
        let (subject, headers) = first_message(names, queue, id, *due_at, job.traceparent.as_deref());
        let (subject, headers) = (&subject, &headers);
        retry(self.patience, || async move {
            match self.publisher.publish(subject, headers, &job.body, Pace::call(FEW)).await {
                // A server that is starting has no streams yet: only a look at the declared queues tells a missing one.
                Err(BrokerError::NoStream { subject }) => match self.broker.found().await {
                    Ok(f) if f.queues.contains(&job.queue) => {
                        Err(BrokerError::Unreachable(format!("no stream answers on {subject:?} yet")))
                    }
                    Err(e) if e.is_transient() => Err(e),
                    Ok(_) | Err(_) => Err(BrokerError::NoStream { subject }),
                },
                other => other,
            }
        })
        .await
    }
}

/// A job on its way to the broker. Dropping it gives up waiting, not the job.
pub struct Pending {
    job: Prepared,
    ack: publish::Pending,
    link: Arc<Link>,
}

impl Pending {
    /// The job's id.
    pub fn id(&self) -> &JobId {
        &self.job.id
    }

    /// Size of the encoded document in bytes.
    pub fn size(&self) -> usize {
        self.job.size()
    }

    /// Waits until the job is stored. What may go away by itself is repeated under the same message id for
    /// `connection.retry_limit`, so the job is stored at most once.
    pub async fn stored(self) -> Result<Enqueued, ClientError> {
        let Self { job, ack, link } = self;
        let first = ack.stored().await;
        let stored = match first {
            // A missing stream may be an election; only a repeat can tell.
            Err(e) if e.is_transient() || matches!(e, BrokerError::NoStream { .. }) => {
                tracing::debug!(job = %job.id, error = %e, "enqueue failed, trying again");
                link.repeat(&job).await
            }
            other => other,
        };
        let stored = stored.or_else(|e| scheduled_before(&e).ok_or(e))?;
        Ok(job.enqueued(stored))
    }

    /// Waits for this one acknowledgement and repeats nothing: for a caller that gave up already and counts what is left.
    pub async fn stored_as_sent(self) -> Result<Enqueued, ClientError> {
        let stored = self.ack.stored().await.or_else(|e| scheduled_before(&e).ok_or(e))?;
        Ok(self.job.enqueued(stored))
    }
}

impl From<&Job> for JobBuilder {
    fn from(job: &Job) -> Self {
        surety_common::wire::job::document(job).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> QueueName {
        QueueName::new("default").unwrap()
    }

    #[test]
    fn a_job_without_an_id_gets_a_new_one_and_one_with_an_id_keeps_it() {
        let a = Prepared::new(&queue(), JobBuilder::new("a"), None).unwrap();
        let b = Prepared::new(&queue(), JobBuilder::new("a"), None).unwrap();
        assert_ne!(a.id(), b.id());
        assert_eq!(a.id().as_str().len(), 26);
        let c = Prepared::new(&queue(), JobBuilder::new("a").id("order-7"), None).unwrap();
        assert_eq!(c.id().as_str(), "order-7");
    }

    #[test]
    fn every_problem_is_reported_at_once_also_that_of_the_id() {
        let bad = JobBuilder::new("Not A Type").id("has space").max_retries(5000).traceparent("rubbish");
        let e = Prepared::new(&queue(), bad, None).unwrap_err();
        for field in ["type", "id", "retry.max_retries", "traceparent"] {
            assert!(e.problems.iter().any(|p| p.starts_with(field)), "{field} in {e}");
        }
    }

    #[test]
    fn what_a_job_says_of_its_parent_wins_over_what_the_process_knows() {
        let child = Lineage::of_children(&JobId::new("r").unwrap(), None);
        let ours = Lineage::of_children(&JobId::new("caller").unwrap(), Some(&child));
        let told = |job: JobBuilder| {
            let p = Prepared::new(&queue(), job, Some(&ours)).unwrap();
            let body: serde_json::Value = serde_json::from_slice(&p.body).unwrap();
            serde_json::json!([body.get("parent"), body.get("root"), body.get("depth")])
        };
        let known = serde_json::json!(["caller", "r", 2]);
        assert_eq!(told(JobBuilder::new("a")), known);
        assert_eq!(told(JobBuilder::new("a").parent("caller")), known);
        assert_eq!(told(JobBuilder::new("a").parent("other")), serde_json::json!(["other", null, null]));
        assert_eq!(told(JobBuilder::new("a").lineage(&child)), serde_json::json!(["r", null, null]));
        assert_eq!(told(JobBuilder::new("a").detached()), serde_json::json!([null, null, null]));
    }
}
