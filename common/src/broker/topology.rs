//! Streams and consumers, as data. [`provision`](Broker::provision) makes them so and reports what it will not change.

use std::{collections::HashMap, time::Duration};

use async_nats::jetstream::{
    consumer::{AckPolicy, pull},
    stream::{Config, DiscardPolicy, RetentionPolicy, StorageType},
};

use super::{Broker, BrokerError, advisories, drift, place::CarrierStream, receipts};
use crate::{
    clock::wall_now,
    domain::{
        JobId, QueueName,
        ids::{Namespace, SessionId},
    },
};

/// Metadata key of `JOBS` that holds the number of Redis partitions.
pub(super) const PARTITIONS: &str = "surety-partitions";
/// Metadata key of `JOBS` that holds the version of this layout.
pub(super) const LAYOUT: &str = "surety-layout";
/// Steps of the layout, each applied by [`Broker::provision`]; numbers are unique and never reused.
pub const LAYOUT_STEPS: &[(u32, &str)] = &[
    (1, "streams JOBS, EVENTS, DLQ and ADVISORIES; one consumer per queue"),
    (2, "stream SCHED for schedules; one consumer per queue for the jobs that come due; its advisories"),
    (3, "stream BATCHES"),
    (4, "stream RECEIPTS and its consumer"),
    (5, "bucket PAUSES"),
];

/// Subjects, streams and consumers of a namespace.
#[derive(Debug, Clone)]
pub struct Names {
    ns: Namespace,
    upper: String,
}

impl Names {
    /// Names in this namespace.
    pub fn new(ns: Namespace) -> Self {
        let upper = ns.as_str().to_uppercase();
        Self { ns, upper }
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.ns
    }

    /// Work to do.
    pub fn jobs(&self) -> String {
        format!("{}_JOBS", self.upper)
    }

    /// Schedules, and what came due.
    pub fn sched(&self) -> String {
        format!("{}_SCHED", self.upper)
    }

    /// A stream that carries jobs.
    pub fn stream(&self, of: CarrierStream) -> String {
        format!("{}_{}", self.upper, of.name())
    }

    /// Whether a stream of this name is that one.
    pub fn is_stream(&self, of: CarrierStream, name: &str) -> bool {
        name.strip_prefix(self.upper.as_str()).and_then(|rest| rest.strip_prefix('_')) == Some(of.name())
    }

    /// The journal.
    pub fn events(&self) -> String {
        format!("{}_EVENTS", self.upper)
    }

    /// Which jobs a batch has.
    pub fn batches(&self) -> String {
        format!("{}_BATCHES", self.upper)
    }

    /// Where the list of a batch goes.
    pub fn batch_subject(&self, batch: &str) -> String {
        format!("{}.batches.{batch}", self.ns)
    }

    /// The bucket of pauses, as KV tools name it.
    pub fn pauses_bucket(&self) -> String {
        format!("{}_PAUSES", self.upper)
    }

    /// The stream of that bucket.
    pub fn pauses(&self) -> String {
        format!("KV_{}", self.pauses_bucket())
    }

    /// Where the pause of a place is kept (`>`: of any).
    pub fn pause_subject(&self, slot: &str) -> String {
        format!("$KV.{}.{slot}", self.pauses_bucket())
    }

    /// Where it is said that the pauses are others now.
    pub fn control_pauses_subject(&self) -> String {
        format!("{}.control.pauses", self.ns)
    }

    /// Receipts on their way to requesters.
    pub fn receipts(&self) -> String {
        format!("{}_RECEIPTS", self.upper)
    }

    /// Where the receipt of a job goes: it can be asked for by its id while it waits.
    pub fn receipt_subject(&self, queue: &str, id: &JobId) -> String {
        format!("{}.receipts.{queue}.{id}", self.ns)
    }

    /// Queue of the subject of a receipt.
    pub fn parse_receipt_subject<'a>(&self, subject: &'a str) -> Option<&'a str> {
        self.parse(subject, ".receipts.").map(|(queue, _)| queue)
    }

    /// Whether a requester's subject is one of ours, where a message would be a command or a fact: all but `<ns>.notify.>`.
    pub fn is_reserved(&self, subject: &str) -> bool {
        let rest = subject.strip_prefix(self.ns.as_str()).and_then(|rest| rest.strip_prefix('.'));
        rest.is_some_and(|rest| !rest.starts_with("notify."))
    }

    /// Dead letters.
    pub fn dlq(&self) -> String {
        format!("{}_DLQ", self.upper)
    }

    /// What the broker says about deliveries it gave up.
    pub fn advisories(&self) -> String {
        format!("{}_ADVISORIES", self.upper)
    }

    /// Where a job is published: addressable by its id.
    pub fn job_subject(&self, queue: &QueueName, id: &JobId) -> String {
        format!("{}.jobs.{queue}.{id}", self.ns)
    }

    /// Both subjects of a queue.
    pub fn queue_subjects(&self, queue: &QueueName) -> [String; 2] {
        [format!("{}.jobs.{queue}", self.ns), format!("{}.jobs.{queue}.>", self.ns)]
    }

    /// Every consumer that carries jobs of a queue.
    pub fn lanes(&self, queue: &QueueName) -> Vec<Lane> {
        let lane = |of| Lane {
            queue: queue.clone(),
            of,
            stream: self.stream(of),
            consumer: queue.to_string(),
            subjects: match of {
                CarrierStream::Jobs => self.queue_subjects(queue).to_vec(),
                CarrierStream::Sched => self.due_subjects(queue).to_vec(),
            },
        };
        CarrierStream::ALL.map(lane).into()
    }

    /// Where a schedule is published; `name` is the job's id where it fires once.
    pub fn sched_subject(&self, queue: &str, name: &str) -> String {
        format!("{}.sched.{queue}.{name}", self.ns)
    }

    /// Where the job of a schedule comes due.
    pub fn due_subject(&self, queue: &str, name: &str) -> String {
        format!("{}.due.{queue}.{name}", self.ns)
    }

    /// Both subjects of a queue on which its jobs come due.
    pub fn due_subjects(&self, queue: &QueueName) -> [String; 2] {
        [format!("{}.due.{queue}", self.ns), format!("{}.due.{queue}.>", self.ns)]
    }

    /// Queue and id (where the subject has one) of a job subject.
    pub fn parse_job_subject<'a>(&self, subject: &'a str) -> Option<(&'a str, Option<&'a str>)> {
        self.parse(subject, ".jobs.")
    }

    /// The same for a subject on which jobs come due.
    pub fn parse_due_subject<'a>(&self, subject: &'a str) -> Option<(&'a str, Option<&'a str>)> {
        self.parse(subject, ".due.")
    }

    /// Queue and name of the subject of a schedule.
    pub fn parse_sched_subject<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        let (queue, name) = self.parse(subject, ".sched.")?;
        Some((queue, name?))
    }

    /// The queue that a carrier is in or will be in, whichever of the subjects it has.
    pub fn queue_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        [".jobs.", ".due.", ".sched."]
            .iter()
            .find_map(|kind| self.parse(subject, kind))
            .map(|(queue, _)| queue)
    }

    fn parse<'a>(&self, subject: &'a str, kind: &str) -> Option<(&'a str, Option<&'a str>)> {
        let rest = subject.strip_prefix(self.ns.as_str())?.strip_prefix(kind)?;
        Some(match rest.split_once('.') {
            Some((queue, id)) => (queue, Some(id)),
            None => (rest, None),
        })
    }

    /// Where a journal entry goes; `suffix` is `<queue>` or `<queue>.ended`.
    pub fn event_subject(&self, suffix: &str) -> String {
        format!("{}.events.{suffix}", self.ns)
    }

    /// Where a job is asked about, and asked of: `cancel`, `status`, `why`.
    pub fn control_job_subject(&self, id: &str) -> String {
        format!("{}.control.job.{id}", self.ns)
    }

    /// Where the worker of a session is told to look at once.
    pub fn control_session_subject(&self, session: &SessionId) -> String {
        format!("{}.control.session.{session}", self.ns)
    }

    /// Where a barrier of a partition goes (`*`: of any). No queue has capital letters in its name.
    pub fn barrier_subject(&self, partition: &str) -> String {
        self.event_subject(&format!("STORE.{partition}"))
    }

    /// Where a dead letter goes.
    pub fn dlq_subject(&self, queue: &str, id: &JobId) -> String {
        format!("{}.dlq.{queue}.{id}", self.ns)
    }

    /// Matches the dead letters of a queue (`None`: of all) and of a job (`None`: of all).
    pub fn dlq_filter(&self, queue: Option<&QueueName>, id: Option<&JobId>) -> String {
        let queue = queue.map_or("*", QueueName::as_str);
        format!("{}.dlq.{queue}.{}", self.ns, id.map_or("*", JobId::as_str))
    }
}

/// One consumer on the way of a queue's jobs to the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    pub queue: QueueName,
    pub of: CarrierStream,
    /// Name of that stream.
    pub stream: String,
    /// Durable name.
    pub consumer: String,
    /// What it filters.
    pub subjects: Vec<String>,
}

impl Lane {
    /// `consumer default`, for people.
    pub fn title(&self) -> String {
        match self.of {
            CarrierStream::Jobs => format!("consumer {}", self.consumer),
            CarrierStream::Sched => format!("consumer {} of due jobs", self.consumer),
        }
    }
}

/// What a namespace is provisioned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Declared queues, in rank order: the first is the most urgent.
    pub queues: Vec<QueueName>,
    /// Redis partitions.
    pub partitions: u32,
    /// Copies of each stream: 1, or 3 on a cluster.
    pub replicas: usize,
    pub ack_wait: Duration,
    /// Deliveries after which the broker itself gives up; a live worker settles a job long before.
    pub max_deliver: i64,
    /// Far above what is in flight and in backoff: a delayed nak holds a slot.
    pub max_ack_pending: i64,
    /// A receipt that a dispatcher took and did not settle for this long is given to another.
    pub receipt_wait: Duration,
    pub duplicate_window: Duration,
    pub events_age: Duration,
    pub dlq_age: Duration,
    /// 0: no limit.
    pub events_bytes: u64,
    /// 0: no limit.
    pub dlq_bytes: u64,
}

/// What `provision` did and what it left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provisioned {
    /// One line for each stream or consumer that was made or changed.
    pub changed: Vec<String>,
    /// One line for each difference that would lose or move data, so that a person must decide.
    pub refused: Vec<String>,
}

impl Provisioned {
    /// Notes what cannot be changed; says whether there is something to change.
    fn take(&mut self, what: &str, differences: &[drift::Difference]) -> bool {
        let (fixable, left): (Vec<_>, Vec<_>) = differences.iter().partition(|d| d.is_fixable);
        self.refused.extend(left.iter().map(|d| format!("{what}: {}", d.text)));
        // A stream of another kind is not touched at all.
        !fixable.is_empty() && !left.iter().any(|d| ["retention", "storage"].contains(&d.field))
    }
}

/// What is provisioned, as every process reads it at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub partitions: u32,
    /// Creation time of `JOBS` (RFC 3339): the identity of this broker's data.
    pub jobs_created: String,
    pub queues: Vec<QueueName>,
    pub ack_wait: Duration,
    pub max_deliver: i64,
}

impl Layout {
    /// Every stream.
    pub(crate) fn streams(&self, n: &Names) -> Vec<Config> {
        let ns = n.namespace();
        let base = |name: String, subjects: Vec<String>| Config {
            name,
            subjects,
            storage: StorageType::File,
            num_replicas: self.replicas,
            allow_direct: true,
            duplicate_window: self.duplicate_window,
            ..Config::default()
        };
        let jobs = Config {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            metadata: HashMap::from([
                (PARTITIONS.to_owned(), self.partitions.to_string()),
                (LAYOUT.to_owned(), LAYOUT_STEPS.len().to_string()),
            ]),
            ..base(n.jobs(), self.queues.iter().flat_map(|q| n.queue_subjects(q)).collect())
        };
        // The queues one by one, so that a schedule of an undeclared one, or for one, is refused at once. No limits: a full
        // stream with schedules cannot refuse, it would drop the oldest.
        let sched = Config {
            retention: RetentionPolicy::WorkQueue,
            allow_message_schedules: true,
            first_sequence: Some(first_sequence()),
            ..base(
                n.sched(),
                self.queues
                    .iter()
                    .flat_map(|q| [n.sched_subject(q.as_str(), "*")].into_iter().chain(n.due_subjects(q)))
                    .collect(),
            )
        };
        let events = Config {
            max_age: self.events_age,
            max_bytes: bytes(self.events_bytes),
            ..base(n.events(), vec![format!("{ns}.events.>")])
        };
        // As old as the journal: a list of jobs without their events is of no use.
        let batches = Config { max_age: self.events_age, ..base(n.batches(), vec![n.batch_subject("*")]) };
        // As KV tools make a bucket, so that they can read it. No expiry of entries: the newest message says how new a copy is.
        let pauses = Config {
            max_messages_per_subject: 1,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            ..base(n.pauses(), vec![n.pause_subject(">")])
        };
        // What is full refuses: the outcome then stays in the outbox, and no receipt is dropped.
        let receipts = Config {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            ..base(n.receipts(), vec![format!("{ns}.receipts.>")])
        };
        let dlq = Config {
            max_age: self.dlq_age,
            max_bytes: bytes(self.dlq_bytes),
            ..base(n.dlq(), vec![format!("{ns}.dlq.>")])
        };
        let advisories = Config {
            max_age: Duration::from_secs(7 * 24 * 3600),
            ..base(
                n.advisories(),
                CarrierStream::ALL
                    .into_iter()
                    .flat_map(|s| ["MAX_DELIVERIES", "MSG_TERMINATED"].map(|kind| (kind, n.stream(s))))
                    .map(|(kind, stream)| format!("$JS.EVENT.ADVISORY.CONSUMER.{kind}.{stream}.>"))
                    .collect(),
            )
        };
        // Ordering: `JOBS` last, because its metadata say that the others are there.
        vec![events, batches, pauses, receipts, dlq, advisories, sched, jobs]
    }

    /// Every consumer of the declared queues.
    pub fn lanes(&self, n: &Names) -> Vec<Lane> {
        self.queues.iter().flat_map(|q| n.lanes(q)).collect()
    }

    pub(crate) fn consumer(&self, lane: &Lane) -> pull::Config {
        pull::Config {
            durable_name: Some(lane.consumer.clone()),
            filter_subjects: lane.subjects.clone(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: self.max_deliver,
            max_ack_pending: self.max_ack_pending,
            // Not updatable later: room for one waiting pull of each worker of a large fleet.
            max_waiting: 4096,
            ..pull::Config::default()
        }
    }

    /// What all dispatchers of receipts share. The tries are counted in the records, so the broker sets no limit.
    pub(crate) fn dispatcher(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(receipts::CONSUMER.into()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.receipt_wait,
            max_deliver: -1,
            max_ack_pending: self.max_ack_pending,
            max_waiting: 4096,
            ..pull::Config::default()
        }
    }
}

impl Broker {
    /// Makes streams and consumers as the layout says. Safe to repeat: a second run changes nothing.
    /// Queues that exist and are not in the layout are kept, with what waits in them.
    pub async fn provision(&self, layout: &Layout) -> Result<Provisioned, BrokerError> {
        let n = self.names();
        let mut done = Provisioned::default();
        for want in layout.streams(n) {
            let name = want.name.clone();
            match self.stream_info(&name).await? {
                Some(found) => {
                    let (differences, next) = drift::stream(&found.config, &want);
                    if done.take(&format!("stream {name}"), &differences) {
                        let update = self.js.update_stream(next);
                        self.on_stream(&name, update).await?.map_err(|e| unfit(&name, &e))?;
                        done.changed.push(format!("stream {name} updated"));
                    }
                }
                None => {
                    let create = self.js.create_stream(want);
                    self.on_stream(&name, create).await?.map_err(|e| unfit(&name, &e))?;
                    done.changed.push(format!("stream {name} created"));
                }
            }
        }
        for lane in layout.lanes(n) {
            let want = layout.consumer(&lane);
            self.provision_consumer(&mut done, &lane.title(), &lane.stream, &lane.consumer, want).await?;
        }
        let (want, of) = (layout.dispatcher(), n.receipts());
        self.provision_consumer(&mut done, "consumer of receipts", &of, receipts::CONSUMER, want).await?;
        let of = n.advisories();
        if self.consumer_info(&of, advisories::CONSUMER).await?.is_none() {
            let stream = self.on_stream(&of, self.js.get_stream(&of)).await?.map_err(|e| unfit(&of, &e))?;
            let create = stream.create_consumer(advisories::consumer());
            self.on_stream(&of, create).await?.map_err(|e| unfit(advisories::CONSUMER, &e))?;
            done.changed.push(format!("consumer {} created", advisories::CONSUMER));
        }
        done.changed.extend(self.keep_paused(&layout.lanes(n)).await?);
        Ok(done)
    }

    async fn provision_consumer(
        &self,
        done: &mut Provisioned,
        title: &str,
        of: &str,
        consumer: &str,
        want: pull::Config,
    ) -> Result<(), BrokerError> {
        let stream = self.on_stream(of, self.js.get_stream(of)).await?.map_err(|e| unfit(title, &e))?;
        match self.consumer_info(of, consumer).await? {
            Some(found) => {
                let (differences, next) = drift::consumer(&found.config, &want);
                if done.take(title, &differences) {
                    let update = stream.update_consumer(next);
                    self.on_stream(of, update).await?.map_err(|e| unfit(title, &e))?;
                    done.changed.push(format!("{title} updated"));
                }
            }
            None => {
                let create = stream.create_consumer(want);
                self.on_stream(of, create).await?.map_err(|e| unfit(title, &e))?;
                done.changed.push(format!("{title} created"));
            }
        }
        Ok(())
    }

    pub(crate) async fn jobs_stream(&self) -> Result<async_nats::jetstream::stream::Stream, BrokerError> {
        use async_nats::jetstream::context::GetStreamErrorKind as K;
        let name = self.names().jobs();
        let found = self.on_stream(&name, self.js.get_stream(&name)).await?;
        found.map_err(|e| match e.kind() {
            K::JetStream(inner) if inner.error_code().0 == 10059 => BrokerError::Unfit(format!(
                "stream {name} does not exist: run `surety provision` first (`surety dev` does it by itself)"
            )),
            _ => BrokerError::Unreachable(format!("stream {name}: {e}")),
        })
    }

    /// Reads what is provisioned.
    /// Errors: `Unfit` when nothing is, or when a newer release provisioned it.
    pub async fn found(&self) -> Result<Found, BrokerError> {
        let stream = self.jobs_stream().await?;
        let info = stream.cached_info();
        let number = |k: &str| info.config.metadata.get(k).and_then(|v| v.parse::<u32>().ok());
        let (Some(partitions), Some(layout)) = (number(PARTITIONS), number(LAYOUT)) else {
            return Err(BrokerError::Unfit(format!(
                "stream {} was not made by `surety provision`: it lacks the metadata {PARTITIONS} and {LAYOUT}",
                info.config.name
            )));
        };
        if layout as usize > LAYOUT_STEPS.len() {
            return Err(BrokerError::Unfit(format!(
                "stream {} has layout {layout}, this release knows {}: upgrade this process",
                info.config.name,
                LAYOUT_STEPS.len()
            )));
        }
        if let Some((step, what)) = LAYOUT_STEPS.get(layout as usize) {
            return Err(BrokerError::Unfit(format!(
                "stream {} has layout {layout}, this release needs {}: run `surety provision` (step {step}: {what})",
                info.config.name,
                LAYOUT_STEPS.len()
            )));
        }
        let mut queues = Vec::new();
        for s in &info.config.subjects {
            if let Some((q, None)) = self.names().parse_job_subject(s)
                && let Ok(q) = QueueName::new(q)
            {
                queues.push(q);
            }
        }
        if queues.is_empty() {
            return Err(BrokerError::Unfit("no queue is declared".into()));
        }
        let mut consumer = None;
        for lane in queues.iter().flat_map(|q| self.names().lanes(q)) {
            consumer = self.consumer_info(&lane.stream, &lane.consumer).await?;
            if consumer.is_some() {
                break;
            }
        }
        let Some(c) = consumer.map(|c| c.config) else {
            return Err(BrokerError::Unfit("no queue has its consumer: run `surety provision`".into()));
        };
        Ok(Found {
            partitions,
            jobs_created: info.created.to_string(),
            queues,
            ack_wait: c.ack_wait,
            max_deliver: c.max_deliver,
        })
    }
}

/// A limit as the server has it: -1 for none.
fn bytes(limit: u64) -> i64 {
    i64::try_from(limit).ok().filter(|n| *n > 0).unwrap_or(-1)
}

/// Where a new `SCHED` begins to count: at the time in milliseconds. Sequences make the ids of recurring jobs and name
/// carriers in records that may outlive the stream, so one that is made anew must not repeat them.
fn first_sequence() -> u64 {
    u64::try_from(wall_now().as_millisecond()).unwrap_or(1)
}

fn unfit(name: &str, e: &dyn std::fmt::Display) -> BrokerError {
    BrokerError::Unfit(format!("{name}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_subjects_split_into_queue_and_id() {
        let n = Names::new(Namespace::new("surety").unwrap());
        assert_eq!(n.parse_job_subject("surety.jobs.default.a-1"), Some(("default", Some("a-1"))));
        assert_eq!(n.parse_job_subject("surety.jobs.default"), Some(("default", None)));
        assert_eq!(n.parse_job_subject("other.jobs.default"), None);
        assert_eq!(n.parse_due_subject("surety.due.default.a-1"), Some(("default", Some("a-1"))));
        assert_eq!(n.parse_sched_subject("surety.sched.default.a-1"), Some(("default", "a-1")));
        assert_eq!(n.parse_sched_subject("surety.sched.default"), None);
        for (subject, queue) in
            [("surety.due.q", Some("q")), ("surety.sched.q.a", Some("q")), ("surety.dlq.q.a", None)]
        {
            assert_eq!(n.queue_of(subject), queue, "{subject}");
        }
    }

    #[test]
    fn a_requester_among_our_own_subjects_is_told_from_others() {
        let n = Names::new(Namespace::new("surety").unwrap());
        for ours in ["surety.jobs.default.a", "surety.control.job.a", "surety.notify", "surety.x"] {
            assert!(n.is_reserved(ours), "{ours}");
        }
        for theirs in
            ["surety.notify.me", "surety", "surety2.jobs.default", "replies.surety.jobs", "_INBOX.a"]
        {
            assert!(!n.is_reserved(theirs), "{theirs}");
        }
    }

    // Shows: B-02
    #[test]
    fn layout_steps_are_numbered_once_and_in_order() {
        assert!(!LAYOUT_STEPS.is_empty());
        for (i, (n, what)) in LAYOUT_STEPS.iter().enumerate() {
            assert_eq!(*n as usize, i + 1);
            assert!(!what.is_empty());
        }
    }
}
