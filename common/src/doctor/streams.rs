//! Streams: whether they are there, keep what they are given, and are as the settings say.

use super::{
    Finding, Role,
    checks::{
        DUPLICATE_WINDOW, GUARD_QUEUE, JOBS_CAN_VANISH, NOT_PROVISIONED, POWER_LOSS, QUEUE_NOT_PROVISIONED,
        REPLICA_OFFLINE, STRAY_MESSAGES, STREAM_DRIFT, UNCOVERED_SUBJECT, WORKER_QUEUE,
    },
    facts::{Facts, LayoutFacts, NatsFacts, StreamFacts},
};
use crate::{
    broker::{drift::Difference, place::CarrierStream},
    clock::format_span,
};

const PROVISION: &str = "run `surety provision`";

pub(super) fn judge(facts: &Facts, nats: &NatsFacts, out: &mut Vec<Finding>) {
    let Some(layout) = &nats.layout else { return };
    if let Some(why) = &layout.unusable {
        out.push(NOT_PROVISIONED.refuse("jetstream", why, PROVISION));
        return;
    }
    for s in &layout.streams {
        stream(facts, nats, s, out);
    }
    for subject in &layout.uncovered {
        out.push(UNCOVERED_SUBJECT.must_fix(
            &format!("subject {subject}"),
            "no consumer covers it: what is published to it is stored and waits for ever",
            "add the queue to `layout.queues` and run `surety provision` (what waits is delivered then), or take the \
             subject out of the stream",
        ));
    }
    if let Some(n) = layout.stray.filter(|n| *n > 0) {
        out.push(STRAY_MESSAGES.must_fix(
            "job stream",
            format!("{n} of its messages are neither waiting nor held: no consumer will deliver them"),
            if layout.uncovered.is_empty() {
                "run a reaper: it hands on what was forgotten and buries what the broker gave up; `surety doctor` again afterwards"
            } else {
                "see `uncovered_subject`"
            },
        ));
    }
    queues(facts, layout, out);
}

fn stream(facts: &Facts, nats: &NatsFacts, s: &StreamFacts, out: &mut Vec<Finding>) {
    let place = format!("stream {}", s.name);
    if let Some(why) = &s.unknown {
        let fix =
            format!("allow this user `$JS.API.STREAM.INFO.{}`, or look with an operator's login", s.name);
        out.push(STREAM_DRIFT.unknown(&place, format!("what it is like is not known ({why})"), fix));
        return;
    }
    if s.is_missing {
        out.push(NOT_PROVISIONED.refuse(&place, "it does not exist", PROVISION));
        return;
    }
    let (vanish, drift): (Vec<_>, Vec<_>) = s.differences.iter().partition(|d| loses_jobs(s, d));
    if !vanish.is_empty() {
        let fix = if vanish.iter().all(|d| d.is_fixable) {
            PROVISION.to_owned()
        } else {
            format!("let the queues run empty, delete {} and run `surety provision`", s.name)
        };
        out.push(JOBS_CAN_VANISH.refuse(&place, format!("it drops jobs: {}", texts(&vanish)), fix));
    }
    if s.carries.is_some() && s.drops_oldest {
        out.push(JOBS_CAN_VANISH.refuse(
            &place,
            "it has a limit by count or size, at which it drops the oldest jobs",
            format!("`nats stream edit {} --max-msgs=-1 --max-bytes=-1`; {PROVISION}", s.name),
        ));
    }
    let (windows, drift): (Vec<_>, Vec<_>) = drift.into_iter().partition(|d| d.field == "duplicate_window");
    if !windows.is_empty() {
        let tried = facts.settings.connection.retry_limit;
        let what = if s.duplicate_window < tried * 2 {
            format!(
                "{}: a publish is tried for {}, so a repeat may be stored as a second message",
                texts(&windows),
                format_span(tried)
            )
        } else {
            texts(&windows)
        };
        out.push(DUPLICATE_WINDOW.warn(&place, what, PROVISION));
    }
    // Missing subjects are told queue by queue.
    let drift: Vec<_> = drift
        .into_iter()
        .filter(|d| !(s.carries == Some(CarrierStream::Jobs) && d.field == "subjects"))
        .collect();
    let (fixable, left): (Vec<_>, Vec<_>) = drift.into_iter().partition(|d| d.is_fixable);
    if !fixable.is_empty() {
        out.push(STREAM_DRIFT.warn(&place, texts(&fixable), PROVISION));
    }
    if !left.is_empty() {
        let fix = "bring the settings of this process in line with it, or empty and delete the stream";
        out.push(STREAM_DRIFT.warn(&place, texts(&left), fix));
    }
    if !s.offline.is_empty() {
        out.push(REPLICA_OFFLINE.warn(
            &place,
            format!("its replicas on {} are offline", s.offline.join(", ")),
            "bring the servers back",
        ));
    }
    // Once: both streams of jobs are on the same servers.
    if s.carries == Some(CarrierStream::Jobs) && s.replicas < 3 {
        power_loss(nats, &place, s.replicas, out);
    }
}

/// Whether a difference lets acknowledged jobs vanish.
fn loses_jobs(s: &StreamFacts, d: &Difference) -> bool {
    match d.field {
        "retention" | "max_age" | "max_msgs_per_subject" | "no_ack" => s.carries.is_some(),
        "storage" => true,
        _ => false,
    }
}

fn texts(all: &[&Difference]) -> String {
    all.iter().map(|d| d.text.as_str()).collect::<Vec<_>>().join("; ")
}

fn power_loss(nats: &NatsFacts, place: &str, replicas: usize, out: &mut Vec<Finding>) {
    let fix = "`sync_interval: always` in the server's `jetstream {}` block (slower), or `layout.replicas = 3` on a cluster";
    match &nats.monitor {
        Ok(m) if m.is_synced_always => {}
        Ok(m) => out.push(POWER_LOSS.warn(
            place,
            format!(
                "it has {replicas} replica and its server syncs to disk every {}: a power cut loses acknowledged jobs \
                 of that time",
                format_span(m.sync_interval)
            ),
            fix,
        )),
        Err(why) => out.push(POWER_LOSS.unknown(
            place,
            format!("it has {replicas} replica; whether its server syncs each message to disk is not known ({why})"),
            format!("{fix}; `surety doctor --monitor http://HOST:8222` can tell"),
        )),
    }
}

fn queues(facts: &Facts, layout: &LayoutFacts, out: &mut Vec<Finding>) {
    let has = |name: &str| layout.queues.iter().any(|q| q.as_str() == name);
    for name in facts.settings.layout.queues.iter().filter(|q| !has(q)) {
        out.push(QUEUE_NOT_PROVISIONED.warn(
            &format!("queue {name}"),
            "it is in `layout.queues` and not at the broker: publishing to it is refused",
            PROVISION,
        ));
    }
    if facts.role == Role::Reaper {
        return;
    }
    let declared: Vec<_> = layout.queues.iter().map(|q| q.as_str()).collect();
    let not_declared = |name: &str| format!("it names {name:?}, which is not declared");
    let fix = format!(
        "declared: {}; correct it, or add the queue to `layout.queues` and {PROVISION}",
        declared.join(", ")
    );
    for rule in &facts.settings.guard_rules {
        for name in rule.queues.iter().filter(|q| !has(q.as_str())) {
            let place = format!("guards.{}.{}.queues", rule.kind().name(), rule.name);
            out.push(GUARD_QUEUE.warn(&place, not_declared(name.as_str()), fix.as_str()));
        }
    }
    for q in &facts.settings.worker.queues {
        let name = q.split_once(':').map_or(q.as_str(), |(n, _)| n);
        if !has(name) {
            out.push(WORKER_QUEUE.refuse("worker.queues", not_declared(name), fix.as_str()));
        }
    }
}
