//! Every metric, declared once with its labels and its meaning; `docs/metrics.md` is generated from this table.
//!
//! Names are those of the outside world: they change as rarely as a wire document. Values of `queue` and `type` go through
//! [`labels`](super::labels); all other labels have the values that the code knows. Whoever counts at every job resolves
//! its series once and keeps it.

use std::sync::LazyLock;

use prometheus::{GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{
    family::{CALL, Definition, Family, WAIT, WORK, register},
    labels::{QUEUES, TYPES},
};

macro_rules! metrics {
    ($( $(#[doc = $gdoc:literal])+ $group:ident as $get:ident in $programs:literal {
        $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $name:literal [$($label:literal),*] $(, $buckets:ident)?; )+
    } )+) => {
        $(
            $(#[doc = $gdoc])+
            #[derive(Debug)]
            pub struct $group { $( $(#[doc = $doc])+ pub $field: $type, )+ }

            $(#[doc = $gdoc])+
            pub fn $get() -> &'static $group {
                static GROUP: LazyLock<$group> = LazyLock::new(|| $group {
                    $( $field: register(&Definition {
                        programs: $programs,
                        name: $name,
                        kind: <$type as Family>::KIND,
                        labels: &[$($label),*],
                        meaning: concat!($($doc),+),
                        buckets: metrics!(@buckets $($buckets)?),
                    }), )+
                });
                &GROUP
            }
        )+

        const TABLE: &[Definition] = &[ $( $( Definition {
            programs: $programs,
            name: $name,
            kind: <$type as Family>::KIND,
            labels: &[$($label),*],
            meaning: concat!($($doc),+),
            buckets: metrics!(@buckets $($buckets)?),
        }, )+ )+ ];
    };
    (@buckets) => { None };
    (@buckets $buckets:ident) => { Some($buckets) };
}

metrics! {
    /// What worker and reaper have in common.
    Shared as shared in "worker, reaper" {
        /// Always 1; its labels say which release of which program this is.
        build_info: IntGaugeVec = "surety_build_info" ["program", "version"];
        /// 1 while `/readyz` would say so, else 0. Looked at when it is scraped.
        ready: IntGauge = "surety_ready" [];
        /// 1 for each part that `/readyz` names and finds well, else 0.
        part_ready: IntGaugeVec = "surety_part_ready" ["part"];
        /// Times that the connection to NATS was made again after it was lost.
        nats_reconnects: IntCounter = "surety_nats_reconnects_total" [];
        /// Messages that the NATS client dropped because their reader was too slow; each is delivered again.
        nats_dropped: IntCounter = "surety_nats_dropped_messages_total" [];
        /// Calls to Redis that were repeated after an error that may go away: its connection was lost, or it was not ready.
        redis_retries: IntCounter = "surety_redis_retries_total" [];
        /// Journal entries that were published (`stored`), or stay in the outbox after all tries (`failed`).
        journal_entries: IntCounterVec = "surety_journal_entries_total" ["result"];
        /// Jobs that got their outcome from this process, by status and error code (`none` for `done`).
        jobs_ended: IntCounterVec = "surety_jobs_ended_total" ["queue", "type", "status", "error_code"];
        /// Attempts that were taken back from a session that died, froze or was cut off.
        attempts_lost: IntCounterVec = "surety_attempts_lost_total" ["queue", "type"];
        /// Notices to requesters, by kind (`started`, `nudge`) and what became of them (`surfaced`, `not_surfaced`, `refused`,
        /// `not_tried`).
        notices: IntCounterVec = "surety_notices_total" ["kind", "result"];
        /// Dead letters stored, by the error code that is their reason (`cancelled` for a cancelled job).
        dead_letters: IntCounterVec = "surety_dead_letters_total" ["queue", "error_code"];
        /// What could not be read: a `message` of a queue that is no job, a `record`, index or reply of Redis, an
        /// `entry` of the outbox, a message of the `journal`, a control `line` of a command.
        decode_errors: IntCounterVec = "surety_decode_errors_total" ["what"];
        /// Times that the running process read its configuration again, by result: `applied` (something that is live changed),
        /// `unchanged`, `refused` (it has problems; what was in force stays).
        config_reloads: IntCounterVec = "surety_config_reloads_total" ["result"];
        /// 1 while the configuration that was read last is a good one, 0 while it is refused and an older one is in force.
        config_ok: IntGauge = "surety_config_ok" [];
        /// When a good configuration was read last, as Unix time; the start counts.
        config_loaded: IntGauge = "surety_config_loaded_timestamp_seconds" [];
        /// Settings that differ from those in force and wait for a restart of this process.
        config_pending: IntGauge = "surety_config_restart_pending" [];
        /// Timers that are armed, by purpose: the look at the file of the `config`, a rule of a reaper, the look at the
        /// settings of Redis (`fitness`), the `renewal` of a worker's
        /// session and its `extend`ing of deliveries. More than one of a purpose is a defect.
        timers: IntGaugeVec = "surety_timers" ["purpose"];
        /// Conditions that need a person: lines of the log that carry `alert`.
        alerts: IntCounterVec = "surety_alerts_total" ["alert"];
    }
    /// What a worker does.
    Worker as worker in "worker" {
        /// Messages that were pulled from a queue, redelivered ones included.
        deliveries: IntCounterVec = "surety_deliveries_total" ["queue"];
        /// Deliveries that did not lead to an attempt now and were given back, by reason.
        deferrals: IntCounterVec = "surety_deferrals_total" ["queue", "reason"];
        /// Attempts whose claim was granted.
        attempts_started: IntCounterVec = "surety_attempts_started_total" ["queue", "type"];
        /// Attempts that ended, by outcome and by the attempt's own error code (`none` where it has none).
        attempts: IntCounterVec = "surety_attempts_total" ["queue", "type", "outcome", "error_code"];
        /// Attempts that run now, from their claim to the end of their finish.
        running: IntGaugeVec = "surety_running_attempts" ["queue"];
        /// Attempts that may run at once.
        slots: IntGauge = "surety_worker_slots" [];
        /// From the moment a job was stored to the start of its first attempt (clocks of NATS and Redis).
        wait: HistogramVec = "surety_job_wait_seconds" ["queue"], WAIT;
        /// From the start of a handler to its end, whatever the end is.
        handler: HistogramVec = "surety_handler_seconds" ["type"], WORK;
        /// One step of the write order: a `claim` or `finish` call (of up to 200 jobs), a `journal` publish of what such a call
        /// wrote, the `ack` or nak of one message.
        stage: HistogramVec = "surety_stage_seconds" ["stage"], CALL;
        /// Sessions that this process opened.
        sessions_opened: IntCounter = "surety_sessions_opened_total" [];
        /// Sessions that it lost: every attempt of it was killed.
        sessions_lost: IntCounter = "surety_sessions_lost_total" [];
        /// Renewals of the session, by result (`ok`, `failed`).
        renewals: IntCounterVec = "surety_renewals_total" ["result"];
        /// Receipts that this worker took to deliver: `delivered`, `later` (it did not surface and is tried again), `failed`
        /// (given up), `settled` (it was already), `unreadable`, `left` (no try could be made: a server was away).
        receipts: IntCounterVec = "surety_receipts_total" ["result"];
        /// Texts of handlers that were longer than allowed and were cut: `output` of a command, a `report`.
        truncations: IntCounterVec = "surety_truncations_total" ["what"];
        /// What could not be handed on inside the process, because nobody waited for it any more.
        dropped_sends: IntCounter = "surety_dropped_sends_total" [];
    }
    /// What a reaper does, and what it sees of the whole fleet when it is scraped. With several reapers each says the same:
    /// take the `max`. What cannot be seen, because a server is away, is left out.
    Reaper as reaper in "reaper" {
        /// Things that a rule repaired.
        actions: IntCounterVec = "surety_reaper_actions_total" ["rule"];
        /// Deadlines of jobs that passed and were acted on, by kind.
        deadlines: IntCounterVec = "surety_deadlines_total" ["kind"];
        /// Looks at the messages of waiting jobs, by what was found or done: it `waits`; it was `delivered` and is held, was `woken`
        /// from its sleep for a guard, or was `handed_on` as a copy, because its consumer forgot it; it is gone and another one was `adopted`; the journal had the
        /// job `ended`; the job is `lost`; it was `given_up`, because its copy was forgotten too.
        carriers: IntCounterVec = "surety_reaper_carriers_total" ["result"];
        /// Requests about jobs that were answered, by operation (`cancel`, `status`, `why`, `other`) and result: `ok`, or the
        /// code of the error.
        control_requests: IntCounterVec = "surety_control_requests_total" ["op", "result"];
        /// Data sets of Redis that were made whole by this reaper, by what was wrong: `empty`, an `older` copy, other `jobs`.
        rebuilds: IntCounterVec = "surety_rebuilds_total" ["why"];
        /// Sessions that were not renewed in time and are taken apart: their worker died, froze or was cut off.
        sessions_expired: IntCounter = "surety_sessions_expired_total" [];
        /// Steps of a rule, by result (`ok`, `failed`, `timed_out`).
        steps: IntCounterVec = "surety_reaper_steps_total" ["rule", "result"];
        /// Length of the steps of a rule.
        step: HistogramVec = "surety_reaper_step_seconds" ["rule"], CALL;
        /// When a rule last ended a step well, as Unix time.
        last_step: GaugeVec = "surety_reaper_last_step_timestamp_seconds" ["rule"];
        /// Looks at the fleet for a scrape, by result (`ok`, `failed`).
        observations: IntCounterVec = "surety_observations_total" ["result"];
        /// Jobs that no worker has been given yet.
        waiting: IntGaugeVec = "surety_queue_waiting_jobs" ["queue"];
        /// Jobs whose attempt runs, on any worker.
        queue_running: IntGaugeVec = "surety_queue_running_jobs" ["queue"];
        /// Jobs that could use a slot now: waiting and running. The number to scale workers by.
        runnable: IntGaugeVec = "surety_queue_runnable_jobs" ["queue"];
        /// Jobs that were given back for later (retries, not due): about, as it is what the broker holds without what runs.
        delayed: IntGaugeVec = "surety_queue_delayed_jobs" ["queue"];
        /// Delayed jobs of one queue from which on the broker's consumer gets slow.
        delayed_warning: IntGauge = "surety_queue_delayed_warning_jobs" [];
        /// Age of the oldest job that no worker has been given yet; 0 when there is none.
        oldest: GaugeVec = "surety_queue_oldest_seconds" ["queue"];
        /// Sessions of workers whose lease is not over.
        sessions: IntGaugeVec = "surety_sessions" [];
        /// Slots of these sessions, by queue that they pull from.
        slots: IntGaugeVec = "surety_queue_slots" ["queue"];
        /// Jobs that have a record and no outcome yet: started ones, and those that waited longer than `contract.ack`.
        open_jobs: IntGaugeVec = "surety_open_jobs" [];
        /// Journal entries that wait for NATS.
        outbox_entries: IntGaugeVec = "surety_outbox_entries" [];
        /// Age of the oldest of them; 0 when there is none.
        outbox_oldest: GaugeVec = "surety_outbox_oldest_seconds" [];
        /// Messages in a stream: `jobs`, `sched`, `events`, `receipts`, `dlq` or `advisories`.
        stream_messages: IntGaugeVec = "surety_stream_messages" ["stream"];
        /// Size of a stream.
        stream_bytes: IntGaugeVec = "surety_stream_bytes" ["stream"];
    }
}

/// Every metric of Surety's own, in the order of the document.
pub fn table() -> &'static [Definition] {
    TABLE
}

/// Values of the field `alert` in the log: each has its series from the start, or an increase from nothing would not show.
pub const ALERTS: &[&str] = &[
    "attempts_exhausted",
    "buried",
    "config_refused",
    "guard_opened",
    "index_garbage",
    "job_failed",
    "journal_entry_refused",
    "journal_entry_unreadable",
    "journal_hidden",
    "keeper_hangs",
    "max_deliver",
    "message_lost",
    "nats_recreated",
    "nats_refuses_writes",
    "receipt_failed",
    "receipt_unreadable",
    "record_set_aside",
    "records_kept",
    "redis_lost",
    "redis_refuses_writes",
    "redis_unfit",
    "rule_failed",
    "status_write_failed",
    "stray_subject",
    "unknown_type",
];

/// The label of no error.
pub const NO_ERROR: &str = "none";

/// Delayed jobs of one queue from which on the broker's consumer gets slow (`docs/platform.md`).
pub const DELAYED_WARNING: i64 = 100_000;

/// Makes what worker and reaper have in common, with its series at zero, so that an alert has something to compare with.
pub fn start(program: &str) {
    let m = shared();
    m.build_info.with_label_values(&[program, env!("CARGO_PKG_VERSION")]).set(1);
    for result in ["stored", "failed"] {
        m.journal_entries.with_label_values(&[result]);
    }
    for alert in ALERTS {
        m.alerts.with_label_values(&[alert]);
    }
    for what in ["message", "record", "entry", "journal", "line"] {
        m.decode_errors.with_label_values(&[what]);
    }
}

/// Counts an outcome that this process gave a job.
pub fn job_ended(queue: &str, kind: &str, status: crate::domain::Status, code: &str) {
    let (queue, kind) = (QUEUES.of(queue), TYPES.of(kind));
    let code = if code.is_empty() { NO_ERROR } else { code };
    shared().jobs_ended.with_label_values(&[queue, kind, status.name(), code]).inc();
}

/// Counts an attempt that was taken back from a dead session.
pub fn attempt_lost(queue: &str, kind: &str) {
    shared().attempts_lost.with_label_values(&[QUEUES.of(queue), TYPES.of(kind)]).inc();
}

/// A histogram that is observed with the time since a start.
pub fn since(histogram: &Histogram, start: std::time::Instant) {
    histogram.observe(start.elapsed().as_secs_f64());
}
