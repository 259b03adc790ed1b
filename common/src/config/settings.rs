//! The table of settings: one declaration each.

use std::collections::BTreeMap;

use super::{
    changes::{self, Change, Reload},
    guards::GuardRule,
    handlers::Handler,
    layers::{ConfigError, Layers},
    secrets::{Address, FilePath, Secret},
    value::{Choice, Count, Setting, Size, Span, Spans},
};
use crate::{
    broker::topology::Layout,
    domain::QueueName,
    telemetry::{Listen, LogFormat},
};

/// One setting, for documentation.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    pub section: &'static str,
    pub key: &'static str,
    pub kind: &'static str,
    pub default: &'static str,
    /// What a process that runs does about a changed value.
    pub reload: Reload,
    pub meaning: &'static str,
}

/// `live` behind a default: a process that runs takes a changed value. Without it a change waits for a restart.
macro_rules! reload {
    () => {
        Reload::Restart
    };
    (live) => {
        Reload::Live
    };
}

macro_rules! settings {
    ($( $(#[doc = $sdoc:literal])+ [$section:literal] $name:ident { $( $(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:literal $(, $reload:ident)?; )+ } )+) => {
        $(
            $(#[doc = $sdoc])+
            #[derive(Debug, Clone)]
            pub struct $name { $( $(#[doc = $doc])+ pub $key: $type, )+ }

            impl $name {
                fn take(layers: &mut Layers) -> Option<Self> {
                    // Every field is read before the first that failed ends it, so that all problems are reported.
                    $( let $key = layers.take::<$type>($section, stringify!($key), $default); )+
                    Some(Self { $( $key: $key?, )+ })
                }

                fn values(&self, out: &mut Vec<(&'static str, &'static str, String)>) {
                    $( out.push(($section, stringify!($key), self.$key.show())); )+
                }

                fn changes(&self, new: &Self, out: &mut Vec<Change>) {
                    $( if self.$key != new.$key {
                        let what = format!("{} -> {}", self.$key.show(), new.$key.show());
                        let name = concat!($section, ".", stringify!($key)).to_owned();
                        out.push(Change { name, reload: reload!($($reload)?), what });
                    } )+
                }

                fn adopted(&self, new: &Self) -> Self {
                    Self { $( $key: reload!($($reload)?).choose(&self.$key, &new.$key).clone(), )+ }
                }
            }
        )+

        const SECTIONS: &[(&str, &str)] = &[ $( ($section, concat!($($sdoc),+)), )+ ];

        const ROWS: &[Row] = &[ $( $( Row {
            section: $section,
            key: stringify!($key),
            kind: <$type as Setting>::KIND,
            default: $default,
            reload: reload!($($reload)?),
            meaning: concat!($($doc),+),
        }, )+ )+ ];
    };
}

settings! {
    /// Where the servers are, and who we are to them. `docs/connecting.md` explains it.
    ["connection"] Connection {
        /// NATS servers, separated by commas (also `NATS_URL`); `tls://` where it must be encrypted.
        nats_url: Address = "nats://127.0.0.1:4222";
        /// A context of the `nats` command: its name, or a path to its file (also `NATS_CONTEXT`).
        nats_context: String = "";
        /// User at NATS.
        nats_user: String = "";
        /// Password of that user.
        nats_password: Secret = "";
        /// Token, where NATS knows no users.
        nats_token: Secret = "";
        /// Credentials of a NATS user with JWT and seed (`.creds`).
        nats_creds: FilePath = "";
        /// Seed of an nkey (`SU…`).
        nats_nkey: FilePath = "";
        /// What the subjects of replies begin with; has to be one that the user may subscribe to. Empty: `_INBOX`.
        nats_inbox_prefix: String = "";
        /// Certificates (PEM) of the authorities that may vouch for NATS. Empty: those of the system.
        nats_ca: FilePath = "";
        /// Our certificate for NATS (PEM), where it wants one.
        nats_cert: FilePath = "";
        /// Private key of that certificate (PEM).
        nats_key: FilePath = "";
        /// TLS from the first byte, for a server with `handshake_first`.
        nats_tls_first: bool = "false";
        /// The Redis server, or nodes of a Redis Cluster separated by commas: one is enough (also `REDIS_URL`); `rediss://` for TLS.
        redis_url: Address = "redis://127.0.0.1:6379";
        /// User at Redis.
        redis_user: String = "";
        /// Password of that user, or of the default one.
        redis_password: Secret = "";
        /// Certificates (PEM) of the authorities that may vouch for Redis. Empty: those of the system.
        redis_ca: FilePath = "";
        /// Our certificate for Redis (PEM), where it wants one.
        redis_cert: FilePath = "";
        /// Private key of that certificate (PEM).
        redis_key: FilePath = "";
        /// Prefix of subjects, streams and Redis keys.
        namespace: String = "surety";
        /// How long one call to NATS or Redis may take before it is repeated.
        call_timeout: Span = "2s";
        /// How long a call is repeated before its error is reported; also how long a start waits for the servers.
        retry_limit: Span = "10s";
    }
    /// What `surety provision` makes.
    ["layout"] LayoutSettings {
        /// Declared queues in rank order; a publish to any other is refused at once.
        queues: Vec<String> = "default";
        /// Parts of the Redis data; 1 for a single Redis (best batching), several per master on a cluster (`docs/cluster.md`).
        partitions: Count<99> = "1";
        /// Copies of each stream: 1, or 3 on a cluster of NATS servers.
        replicas: Count<5> = "1";
        /// The broker redelivers a message that nobody extended for this long.
        ack_wait: Span = "60s";
        /// Deliveries after which the broker gives up; a backstop, a live worker settles a job long before.
        max_deliver: Count<1000000> = "100";
        /// Messages in flight and in backoff per queue; far above both, because a delayed one holds a place.
        max_ack_pending: Count<10000000> = "1000000";
        /// A receipt that a worker took to deliver and did not settle for this long is given to another one.
        receipt_wait: Span = "30s";
        /// A message id is refused again for this long.
        duplicate_window: Span = "10m";
        /// Age of journal events before they are dropped; above `attempt.finish`.
        events_age: Span = "720h";
        /// Age of dead letters before they are dropped.
        dlq_age: Span = "2160h";
        /// Size of the journal from which on its oldest events are dropped before their time; 0B: no limit. It must hold the events of
        /// `attempt.finish`, or outcomes are forgotten that a job's message outlives.
        events_bytes: Size = "0B";
        /// Size of the dead letters from which on the oldest are dropped before their time; 0B: no limit.
        dlq_bytes: Size = "0B";
    }
    /// How a worker holds on to what it runs.
    ["lease"] Lease {
        /// How often a session is renewed in Redis.
        renewal: Span = "5s";
        /// A session that was not renewed for this long is lost; its attempts are given to others.
        ttl: Span = "20s";
        /// A worker stops trusting its lease this long before it can be lost, and its handlers are killed.
        margin: Span = "5s";
        /// How often the broker is told that a message is being worked on.
        extend: Span = "20s";
    }
    /// Defaults for jobs that say nothing themselves.
    ["attempt"] Attempt {
        /// Time limit of one attempt.
        timeout: Span = "10m", live;
        /// Time by which a job must have ended, over all its attempts.
        finish: Span = "24h", live;
        /// Between TERM and KILL.
        kill_grace: Span = "10s", live;
        /// Output of a command beyond this is cut; the command goes on.
        output_limit: Size = "10MiB", live;
        /// Last lines of stdout and stderr that are kept with a failed attempt.
        tail_lines: Count<1000> = "100", live;
        /// First delay after a start that failed; it doubles up to ten minutes.
        start_retry: Span = "2s", live;
    }
    /// What a requester is promised, for jobs that say nothing themselves.
    ["contract"] Contract {
        /// Within this time after the first start the requester is told of it.
        ack: Span = "5s", live;
        /// A running job shows progress at least this often, or its requester is told.
        progress: Span = "45s", live;
    }
    /// How requesters are told: notices by workers and reapers, receipts by workers.
    ["notify"] Notify {
        /// Whether a worker delivers receipts besides running jobs; some worker has to.
        dispatch: bool = "true";
        /// A message that was not answered within this time did not surface.
        timeout: Span = "5s";
        /// Tries of a receipt before its delivery is given up; it stays in the journal.
        tries: Count<10000> = "30", live;
        /// Delays between these tries; the last one repeats.
        backoff: Spans = "1s,5s,30s,2m,10m,1h", live;
        /// Messages to requesters under way at once, in one process.
        concurrency: Count<10000> = "64";
    }
    /// Rules that may defer a start; the rules themselves stand in tables of their own, see below.
    ["guards"] GuardSettings {
        /// A slot or lock that came free is kept for the job that waited longest; one that does not come for it within this time
        /// goes back into line by itself, and the next one has it; meanwhile it is woken five times, at equal intervals. Long enough
        /// for a message to come from the broker, and short beside what a slot that nobody uses costs.
        offer: Span = "5s", live;
        /// A job in line is woken when its turn comes; should nobody wake it, it comes back by itself after half the time that it
        /// has waited: after this time at least, and after ten minutes (or this time) at most. It costs a delivery each time. Who was
        /// promised a moment by a rate limit comes at that moment, or after ten minutes (or this time) where it is farther away.
        fallback: Span = "1m", live;
        /// The crash-loop guard that every type has: so many abnormal ends (a crash by a signal, out of memory, lost, a start that
        /// failed) within `crash_window`, and no other end among them, suppress the type. Five are more than one broken job makes
        /// within the window by its own retries and backoff.
        crash_threshold: Count<100000> = "5", live;
        /// The time that is counted, in ten steps.
        crash_window: Span = "5m", live;
        /// How long a type is suppressed the first time, before one job of it is tried; twice as long after each such probe that
        /// crashes again. Short, because a restart is often all that was needed.
        crash_open: Span = "10s", live;
        /// How long that may become at most: a handler that is mended is found well within this time.
        crash_longest: Span = "10m", live;
        /// Types that are never suppressed; `*`: no type is.
        crash_except: Vec<String> = "", live;
        /// A job of which so many attempts were lost (its worker died, froze or lost its lease) is not tried again, whatever its
        /// budget: it may be what kills them. Five is one more than the attempts that a job has by default.
        lost_limit: Count<255> = "5";
    }
    /// The loop guard: jobs that handlers enqueue, and that go in a circle or grow without end, are stopped for good, loudly. It looks
    /// at jobs with a parent only.
    ["guards.loop"] LoopSettings {
        /// Most steps from the first job of the line. Deeper than any pipeline that people draw, and a job that enqueues itself
        /// is stopped after 20 rounds.
        depth: Count<1000000> = "20", live;
        /// Most jobs of one root that ask for the same work (type, payload and key) within `window`: a loop that branches, which
        /// depth alone would let grow to a million. Work that is asked for again by design is rarely asked for so often.
        repeats: Count<1000000000> = "50", live;
        /// Most jobs of one root within `window`: for what grows and never repeats itself. Above what one handler enqueues in
        /// earnest; each costs about 100 bytes of Redis until the window ends.
        fan_out: Count<1000000000> = "100000", live;
        /// For how long is counted, from the first job of a root on; then anew. Long enough for a loop that does real work in
        /// each round.
        window: Span = "1h", live;
        /// Types whose jobs are not looked at and not counted; `*` stands for all of them.
        exempt: Vec<String> = "", live;
    }
    /// One worker process.
    ["worker"] WorkerSettings {
        /// Queues to pull from, in rank order; `name:weight` where `order` is weighted. Empty: all declared ones.
        queues: Vec<String> = "";
        /// How slots are shared among the queues.
        order: Choice = "strict";
        /// Jobs that run at once.
        slots: Count<100000> = "8";
        /// At shutdown, how long running attempts may go on before they are stopped and handed back.
        drain: Span = "30s", live;
        /// Folder for the record of running commands; a restarted worker cleans up what it finds there.
        state_dir: String = ".surety/state";
        /// Journal entries that may wait for NATS before claims stop.
        outbox_cap: Count<10000000> = "10000", live;
        /// Delay before a job of unknown type or version is offered to another worker.
        hand_on_delay: Span = "15s";
        /// Deliveries after which such a job is buried, unless another worker deferred or tried it.
        hand_on_limit: Count<1000000> = "40";
        /// Put each command into a cgroup of its own where the host allows it.
        cgroups: bool = "true";
    }
    /// The reaper process.
    ["reaper"] Reaper {
        /// How often each rule looks for work.
        tick: Span = "2s", live;
        /// An attempt that goes on this long after its time limit is taken from its worker; above `attempt.kill_grace`.
        overstay: Span = "30s", live;
        /// A job that could be claimed and was not for this long is looked at: whether its message is still there.
        carrier_check: Span = "60s", live;
        /// Journal entries older than this are published by the reaper.
        relay_age: Span = "5s", live;
        /// How long the record of an ended job is kept: what `surety status` shows, and what refuses a second run of the same id.
        keep: Span = "168h", live;
        /// Records of ended jobs that are kept at most, about; the oldest go first, but none younger than `layout.duplicate_window`.
        keep_records: Count<1000000000> = "1000000000", live;
        /// Memory of Redis (`used_memory`) from which on the oldest records of ended jobs are deleted before their time, but none
        /// younger than `layout.duplicate_window`; well below its `maxmemory`. 0B: no limit.
        keep_bytes: Size = "0B", live;
        /// Jobs that one step of a rule handles; a step that times out is halved.
        batch: Count<1000> = "100", live;
    }
    /// What a process says of itself: see docs/metrics.md.
    ["telemetry"] Telemetry {
        /// Where a worker or reaper answers `/metrics`, `/livez` and `/readyz`, such as `127.0.0.1:9464`; two processes on one
        /// host need two addresses (`--listen`).
        listen: Listen = "off";
        /// How log lines look (also `--log-format`).
        log_format: LogFormat = "human";
        /// What is logged, as a tracing filter: `info`, `warn,surety_worker=debug` (also `--log` and `SURETY_LOG`).
        log_level: String = "info", live;
    }
}

/// Everything a process may be configured with.
#[derive(Debug, Clone)]
pub struct Settings {
    pub connection: Connection,
    pub layout: LayoutSettings,
    pub lease: Lease,
    pub attempt: Attempt,
    pub contract: Contract,
    pub notify: Notify,
    pub guards: GuardSettings,
    pub guards_loop: LoopSettings,
    pub worker: WorkerSettings,
    pub reaper: Reaper,
    pub telemetry: Telemetry,
    /// Command handlers by job type.
    pub handlers: BTreeMap<String, Handler>,
    /// `[guards.<kind>.<name>]`.
    pub guard_rules: Vec<GuardRule>,
}

/// Every section with its meaning, in the order of the sample file.
pub(super) fn sections() -> &'static [(&'static str, &'static str)] {
    SECTIONS
}

/// Every setting, in the order of the sample file.
pub fn table() -> &'static [Row] {
    ROWS
}

impl Settings {
    pub(super) fn take(layers: &mut Layers) -> Option<Self> {
        let connection = Connection::take(layers);
        let layout = LayoutSettings::take(layers);
        let lease = Lease::take(layers);
        let attempt = Attempt::take(layers);
        let contract = Contract::take(layers);
        let notify = Notify::take(layers);
        let guards = GuardSettings::take(layers);
        let guards_loop = LoopSettings::take(layers);
        let worker = WorkerSettings::take(layers);
        let reaper = Reaper::take(layers);
        let telemetry = Telemetry::take(layers);
        let handlers = layers.take_handlers();
        let guard_rules = layers.take_guards();
        let s = Self {
            connection: connection?,
            layout: layout?,
            lease: lease?,
            attempt: attempt?,
            contract: contract?,
            notify: notify?,
            guards: guards?,
            guards_loop: guards_loop?,
            worker: worker?,
            reaper: reaper?,
            telemetry: telemetry?,
            handlers,
            guard_rules,
        };
        s.cross_check(layers.problems());
        Some(s)
    }

    fn cross_check(&self, problems: &mut Vec<String>) {
        let Lease { renewal, ttl, margin, extend } = self.lease;
        let mut must = |holds: bool, rule: &str| {
            if !holds {
                problems.push(format!("these settings do not fit together: {rule}"));
            }
        };
        must(
            margin < ttl && renewal * 3 <= ttl.saturating_sub(margin),
            "lease.renewal × 3 ≤ lease.ttl − lease.margin",
        );
        must(ttl < self.layout.ack_wait, "lease.ttl < layout.ack_wait");
        must(extend * 2 < self.layout.ack_wait, "lease.extend × 2 < layout.ack_wait");
        must(
            self.reaper.overstay > self.attempt.kill_grace,
            "reaper.overstay > attempt.kill_grace (or an attempt that is being stopped is taken from its worker)",
        );
        must(
            self.notify.timeout * 2 < self.layout.receipt_wait,
            "notify.timeout × 2 < layout.receipt_wait (or a receipt that is being delivered is given to another worker)",
        );
        must(self.layout.events_age > self.attempt.finish, "layout.events_age > attempt.finish");
        must(
            self.worker.hand_on_limit.0 < self.layout.max_deliver.0,
            "worker.hand_on_limit < layout.max_deliver (or the broker gives up first)",
        );
        must(
            self.connection.call_timeout < ttl.saturating_sub(margin),
            "connection.call_timeout < lease.ttl − lease.margin",
        );
        must(self.guards.crash_open <= self.guards.crash_longest, "guards.crash_open ≤ guards.crash_longest");
        for name in &self.layout.queues {
            if let Err(e) = QueueName::new(name) {
                problems.push(format!("layout.queues: {e}"));
            }
        }
        if self.layout.queues.is_empty() {
            problems.push("layout.queues: at least one queue must be declared".to_owned());
        }
        for problem in self.guards_loop.problems().into_iter().chain(self.connection.problems()) {
            problems.push(problem);
        }
        if let Err(e) = crate::domain::ids::Namespace::new(&self.connection.namespace) {
            problems.push(format!("connection.namespace: {e}"));
        }
        for q in &self.worker.queues {
            let (name, weight) = q.split_once(':').unwrap_or((q, "1"));
            if let Err(e) = QueueName::new(name) {
                problems.push(format!("worker.queues: {e}"));
            }
            if !weight.parse::<u32>().is_ok_and(|w| (1..=1000).contains(&w)) {
                problems.push(format!("worker.queues: the weight in {q:?} is not a number from 1 to 1000"));
            }
        }
    }

    /// The settings in effect: section, key and value as a file would have it, with passwords in URLs masked.
    pub fn values(&self) -> Vec<(&'static str, &'static str, String)> {
        let mut out = Vec::with_capacity(ROWS.len());
        self.connection.values(&mut out);
        self.layout.values(&mut out);
        self.lease.values(&mut out);
        self.attempt.values(&mut out);
        self.contract.values(&mut out);
        self.notify.values(&mut out);
        self.guards.values(&mut out);
        self.guards_loop.values(&mut out);
        self.worker.values(&mut out);
        self.reaper.values(&mut out);
        self.telemetry.values(&mut out);
        out
    }

    /// What differs in `new`, in the order of the sample file.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        // Every field is named, so that none is forgotten.
        let Self {
            connection,
            layout,
            lease,
            attempt,
            contract,
            notify,
            guards,
            guards_loop,
            worker,
            reaper,
            telemetry,
            handlers,
            guard_rules,
        } = self;
        let mut out = Vec::new();
        connection.changes(&new.connection, &mut out);
        layout.changes(&new.layout, &mut out);
        lease.changes(&new.lease, &mut out);
        attempt.changes(&new.attempt, &mut out);
        contract.changes(&new.contract, &mut out);
        notify.changes(&new.notify, &mut out);
        guards.changes(&new.guards, &mut out);
        guards_loop.changes(&new.guards_loop, &mut out);
        worker.changes(&new.worker, &mut out);
        reaper.changes(&new.reaper, &mut out);
        telemetry.changes(&new.telemetry, &mut out);
        changes::of_handlers(handlers, &new.handlers, &mut out);
        changes::of_rules(guard_rules, &new.guard_rules, &mut out);
        out
    }

    /// These settings with the live ones as `new` has them. Refused where the result breaks a rule between settings: what `new`
    /// changes along with them may wait for a restart.
    pub fn adopted(&self, new: &Self) -> Result<Self, ConfigError> {
        let out = Self {
            connection: self.connection.adopted(&new.connection),
            layout: self.layout.adopted(&new.layout),
            lease: self.lease.adopted(&new.lease),
            attempt: self.attempt.adopted(&new.attempt),
            contract: self.contract.adopted(&new.contract),
            notify: self.notify.adopted(&new.notify),
            guards: self.guards.adopted(&new.guards),
            guards_loop: self.guards_loop.adopted(&new.guards_loop),
            worker: self.worker.adopted(&new.worker),
            reaper: self.reaper.adopted(&new.reaper),
            telemetry: self.telemetry.adopted(&new.telemetry),
            handlers: changes::adopted_handlers(&self.handlers, &new.handlers),
            guard_rules: new.guard_rules.clone(),
        };
        let mut problems = Vec::new();
        out.cross_check(&mut problems);
        if problems.is_empty() { Ok(out) } else { Err(ConfigError { problems }) }
    }

    /// What `provision` makes of these settings.
    pub fn layout(&self) -> Layout {
        let l = &self.layout;
        Layout {
            queues: l.queues.iter().filter_map(|q| QueueName::new(q).ok()).collect(),
            partitions: u32::try_from(l.partitions.0).unwrap_or(1),
            replicas: usize::try_from(l.replicas.0).unwrap_or(1),
            ack_wait: l.ack_wait,
            max_deliver: i64::try_from(l.max_deliver.0).unwrap_or(100),
            max_ack_pending: i64::try_from(l.max_ack_pending.0).unwrap_or(1_000_000),
            receipt_wait: l.receipt_wait,
            duplicate_window: l.duplicate_window,
            events_age: l.events_age,
            dlq_age: l.dlq_age,
            events_bytes: l.events_bytes.0,
            dlq_bytes: l.dlq_bytes.0,
        }
    }
}
