//! Every check, by name: what `docs/operating.md` lists.

use super::{Finding, Severity};

/// One check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    /// Worst that it can find.
    pub worst: Severity,
    /// A worker or reaper does not start with the worst of it.
    pub refuses_start: bool,
    /// What it finds.
    pub finds: &'static str,
    /// What happens otherwise.
    pub why: &'static str,
    /// What to do, in short.
    pub fix: &'static str,
}

impl Check {
    fn finding(
        &self,
        severity: Severity,
        place: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) -> Finding {
        Finding {
            check: self.name,
            severity,
            what: what.into(),
            place: place.to_owned(),
            fix: fix.into(),
            refuses_start: false,
        }
    }

    pub(super) fn note(&self, place: &str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Severity::Note, place, what, fix)
    }

    pub(super) fn unknown(&self, place: &str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Severity::Unknown, place, what, fix)
    }

    pub(super) fn warn(&self, place: &str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Severity::Warning, place, what, fix)
    }

    pub(super) fn must_fix(&self, place: &str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        self.finding(Severity::MustFix, place, what, fix)
    }

    /// [`Check::must_fix`], and no worker or reaper starts with it.
    pub(super) fn refuse(&self, place: &str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { refuses_start: true, ..self.must_fix(place, what, fix) }
    }
}

macro_rules! checks {
    ($( $constant:ident = $name:literal, $worst:ident $(, $refuses:ident)?; $finds:literal; $why:literal; $fix:literal; )+) => {
        $( pub(super) const $constant: Check = Check {
            name: $name,
            worst: Severity::$worst,
            refuses_start: false $(|| stringify!($refuses).len() > 0)?,
            finds: $finds,
            why: $why,
            fix: $fix,
        }; )+

        /// Every check, in the order of `docs/operating.md`.
        pub const CHECKS: &[Check] = &[ $( $constant, )+ ];
    };
}

checks! {
    NATS_UNREACHABLE = "nats_unreachable", MustFix;
        "NATS does not answer"; "nothing is taken in or given out";
        "check `--nats` (`NATS_URL`), and that the server runs";
    NATS_VERSION = "nats_version", MustFix, refuses;
        "a nats-server older than 2.14.2 (2.15 recommended)"; "older ones lose messages, or ignore in silence what they are asked for";
        "`scripts/install-servers` gets a new one";
    JETSTREAM_OFF = "jetstream_off", MustFix, refuses;
        "NATS runs without JetStream"; "there is nothing to store jobs in";
        "start it with `-js`, or with a `jetstream {}` block";
    MAX_PAYLOAD = "max_payload", MustFix, refuses;
        "a NATS whose `max_payload` is below 512 KiB"; "the outcome of a job may be larger than a message may be, and would never be told";
        "raise `max_payload` to 1MB, its default";
    NOT_PROVISIONED = "not_provisioned", MustFix, refuses;
        "streams that are missing, or not made by `surety provision`"; "jobs, events or dead letters have nowhere to go";
        "`surety provision`";
    JOBS_CAN_VANISH = "jobs_can_vanish", MustFix, refuses;
        "a job stream that drops messages: by age, by count or size with `discard: old`, of one subject, or kept in memory"; "acknowledged jobs vanish";
        "`surety provision`; where retention or storage is wrong, a new stream";
    STREAM_DRIFT = "stream_drift", Warning;
        "a stream that is not as the settings say"; "what was promised for it may not hold";
        "`surety provision`";
    DUPLICATE_WINDOW = "duplicate_window", Warning;
        "a window for repeated message ids that is shorter than a publish is tried"; "a repeated publish is stored twice, and the second copy is dealt with only when it is claimed";
        "`surety provision` with `layout.duplicate_window` above twice `connection.retry_limit`";
    QUEUE_NOT_PROVISIONED = "queue_not_provisioned", Warning;
        "a queue that is in the settings and not at the broker"; "publishing to it is refused";
        "`surety provision`";
    WORKER_QUEUE = "worker_queue", MustFix, refuses;
        "`worker.queues` names a queue that is not declared"; "the worker would wait for ever";
        "correct `worker.queues`, or declare the queue and run `surety provision`";
    GUARD_QUEUE = "guard_queue", Warning;
        "a rule of `[guards]` is for a queue that is not declared"; "it holds back none of its jobs";
        "correct the rule's `queues`, or declare the queue and run `surety provision`";
    POWER_LOSS = "power_loss", Warning;
        "one replica, on a server that does not sync each message to its disk"; "a power cut loses acknowledged jobs of the last minutes; a killed process does not";
        "`sync_interval: always` in its `jetstream {}` block, or `layout.replicas = 3` on a cluster";
    REPLICA_OFFLINE = "replica_offline", Warning;
        "replicas of a stream that are offline"; "one more failure and the stream stops";
        "bring the servers back";
    CONSUMER_MISSING = "consumer_missing", MustFix, refuses;
        "a declared queue without its consumer, or receipts without theirs"; "its jobs are given to nobody, or nobody is told of outcomes";
        "`surety provision`; what waits is delivered then";
    CONSUMER_BROKEN = "consumer_broken", MustFix, refuses;
        "a consumer that loses deliveries: other acks, other subjects, headers only, or gone after a pause"; "jobs are lost or never delivered";
        "`surety provision`; where the kind of acks is wrong, delete the consumer first: nothing is lost by that";
    CONSUMER_DRIFT = "consumer_drift", Warning;
        "a consumer that is not as the settings say"; "redelivery and backoff are not what was asked for";
        "`surety provision`";
    ACK_WAIT = "ack_wait", MustFix, refuses;
        "an ack-wait that is shorter than leases last"; "the broker redelivers what still runs";
        "`surety provision` with the settings of the workers";
    MAX_DELIVER = "max_deliver", MustFix, refuses;
        "a limit of deliveries that is not above `worker.hand_on_limit`"; "the broker gives jobs up before a worker does, with retries left";
        "`surety provision` with the settings of the workers";
    MAX_ACK_PENDING = "max_ack_pending", MustFix;
        "a limit of held messages that the fleet reaches with its slots and delayed jobs"; "nothing more is delivered";
        "raise `layout.max_ack_pending`, then `surety provision`";
    DELAYED = "delayed", Warning;
        "100,000 jobs or more in backoff or deferred in one queue"; "each holds a place at the broker and slows fresh ones: to 0.8 at 100,000, to half at 500,000";
        "find out why they fail (`surety events`, `surety dlq list`); shorten the backoff or cancel them";
    CONSUMER_PAUSED = "consumer_paused", Warning;
        "a consumer that is paused while its queue is not (`paused`)"; "nothing is delivered until then, and nobody said why";
        "`surety resume QUEUE`";
    PAUSED = "paused", Warning;
        "a queue, a type or a key that is paused"; "its jobs wait, whatever their deadlines";
        "`surety resume`, when the reason is gone";
    UNCOVERED_SUBJECT = "uncovered_subject", MustFix;
        "a subject of the job stream that no consumer covers"; "what is published to it waits for ever, without an error";
        "add the queue to `layout.queues` and run `surety provision`: what waits is delivered then; or take the subject out of the stream";
    STRAY_MESSAGES = "stray_messages", MustFix;
        "messages in the job stream that no consumer will deliver"; "their jobs hang without a deadline";
        "run a reaper: it puts a copy in the place of each, or buries it";
    PERMISSIONS = "permissions", MustFix, refuses;
        "subjects that this process needs and may not publish to"; "calls time out, jobs are redelivered";
        "allow them for this user";
    STORAGE = "storage", MustFix;
        "storage of the account that is used up by 80 % (warning) or 95 %"; "publishes are refused";
        "raise `max_file` of the account or the server, or shorten `layout.events_age` and `layout.dlq_age`; `surety dlq purge`";
    CLOCKS = "clocks", Warning;
        "clocks that differ by more than two seconds, or one of Redis that was set back"; "deadlines that begin with a publish (NATS) and end in Redis are off by that much";
        "run a time service (chrony, systemd-timesyncd) on the hosts";
    REDIS_UNREACHABLE = "redis_unreachable", MustFix;
        "Redis does not answer"; "nothing starts and nothing ends";
        "check `--redis` (`REDIS_URL`), and that the server runs";
    REDIS_VERSION = "redis_version", MustFix, refuses;
        "a Redis older than 7.0"; "scripts and streams behave otherwise";
        "upgrade it";
    REDIS_EVICTION = "redis_eviction", MustFix, refuses;
        "an eviction policy"; "records of open jobs vanish when memory is full";
        "`maxmemory-policy noeviction`";
    REDIS_EVICTED = "redis_evicted", Warning;
        "keys that were evicted since the server started"; "records may be gone";
        "restart workers and reapers, then `CONFIG RESETSTAT`";
    REDIS_AOF = "redis_aof", MustFix, refuses;
        "no append-only file"; "a restart loses what ran since the last snapshot";
        "`appendonly yes`";
    REDIS_FSYNC = "redis_fsync", Warning;
        "`appendfsync` that is not `always` (note) or is `no`"; "a power cut loses the last second, or what the system had not written";
        "`appendfsync always` costs a fifth of its rate";
    REDIS_WRITES = "redis_writes", MustFix;
        "a Redis that could not write its files"; "it refuses writes, or would lose them";
        "look for a full disk in its log";
    REDIS_MEMORY = "redis_memory", MustFix;
        "memory used up by 75 % (warning) or 90 %"; "at the limit every write is refused; without one the system kills it";
        "raise `maxmemory`, or give the host more";
    REDIS_REPLICA = "redis_replica", MustFix, refuses;
        "a Redis that is a replica"; "it takes no writes, or ones that vanish";
        "set `connection.redis_url` to the master";
    REDIS_CLUSTER = "redis_cluster", Note;
        "a Redis Cluster: its masters, replicas, and where the partitions lie"; "a failover loses the last writes";
        "`docs/cluster.md`";
    REDIS_CLUSTER_STATE = "redis_cluster_state", MustFix;
        "a cluster that is not ok, or partitions whose slots nobody serves"; "their jobs neither start nor end";
        "`redis-cli --cluster check`; start its nodes";
    REDIS_CLUSTER_SPREAD = "redis_cluster_spread", Warning;
        "masters without a partition"; "they take none of the load";
        "more `layout.partitions` before the streams are made, or `redis-cli --cluster reshard`";
    REDIS_CLUSTER_NODES = "redis_cluster_nodes", Warning;
        "masters that have partitions and no replica, replicas that do not answer"; "when the master is away, its partitions stand still";
        "`redis-cli --cluster add-node`; start the replica";
    REDIS_CLUSTER_TIMEOUT = "redis_cluster_timeout", Warning;
        "`cluster-node-timeout` above half of the time that a lease is trusted without a renewal"; "a failover ends attempts";
        "a third of `lease.ttl` - `lease.margin` - `lease.renewal`";
    REDIS_DATA_SET = "redis_data_set", MustFix;
        "a Redis that is empty while the journal is not, or that belongs to another broker"; "nothing starts until a reaper has rebuilt it from the journal; processes refuse another broker's records";
        "bring its data back, or see `docs/guarantees.md`, \"Redis loses its data\"";
    REDIS_KEY_TYPE = "redis_key_type", MustFix;
        "a key of an index that is of another type than it should be"; "every call that touches it fails: nothing starts or ends";
        "rename that key, and look who wrote it";
    DISK = "disk", MustFix;
        "a file system on this host that is full by 90 % (warning) or 97 %, with less than 20 GiB left"; "the server on it stops taking writes";
        "make room, or move its data";
    OUTBOX = "outbox", MustFix;
        "journal entries that were not published for 30 seconds, or that fill half of `worker.outbox_cap` (must be fixed: all of it)"; "outcomes are not told, and in the end nothing starts";
        "run a reaper, and look for `journal_entry_refused` in its log";
    REAPER = "reaper", Warning;
        "no reaper that answers, or sessions of dead workers that nobody took back"; "jobs of dead workers hang, deadlines pass unnoticed";
        "run `surety-reaper`";
    DISPATCHER = "dispatcher", Warning;
        "receipts that wait while no dispatcher asks for any"; "requesters are not told how their jobs went";
        "run a worker with `notify.dispatch = true`";
    WORKER_READY = "worker_ready", Warning;
        "live workers that say they are not ready"; "they start no jobs";
        "what the worker says; its `/readyz` and its log say more";
    UNKNOWN_TYPE = "unknown_type", Warning;
        "jobs of a type that no live worker of their queue has a handler for"; "they are passed on, and given up as `unknown_type` after `worker.hand_on_limit` deliveries";
        "correct the type, or start a worker with that handler";
    UNSERVED_QUEUE = "unserved_queue", Warning;
        "jobs that wait in a queue which no live worker pulls from"; "they wait without a limit";
        "start a worker for it, or add it to `worker.queues`";
    WORKER_VERSIONS = "worker_versions", Note;
        "workers of another release than this command"; "fine during an upgrade";
        "finish the upgrade";
}

/// The rows of the table in `docs/operating.md`.
#[cfg(test)]
fn table() -> String {
    let mut out = "| Check | Worst | Finds | Otherwise | Repair |\n|---|---|---|---|---|\n".to_owned();
    for c in CHECKS {
        let worst = if c.refuses_start { "must fix, refuses start" } else { c.worst.words() };
        out += &format!("| `{}` | {worst} | {} | {} | {} |\n", c.name, c.finds, c.why, c.fix);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // `UPDATE=1 cargo test -p surety-common doctor_doc` rewrites the table.
    // Shows: B-02
    #[test]
    fn doctor_doc_lists_every_check() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
        let doc = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = doc.split_once("<!-- checks -->\n").unwrap();
        let (have, after) = rest.split_once("<!-- /checks -->").unwrap();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, format!("{before}<!-- checks -->\n{}<!-- /checks -->{after}", table()))
                .unwrap();
        } else {
            assert_eq!(have, table(), "docs/operating.md is not what the code says; run `make docs`");
        }
    }

    #[test]
    fn names_are_unique_and_only_the_worst_refuses() {
        let mut names: Vec<_> = CHECKS.iter().map(|c| c.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), CHECKS.len());
        for c in CHECKS {
            assert!(!c.refuses_start || c.worst == Severity::MustFix, "{}", c.name);
        }
    }
}
