//! Consumers: whether every queue has its own, and whether it delivers; and the one of the receipts.

use std::time::Duration;

use super::{
    Finding, Role,
    checks::{
        ACK_WAIT, CONSUMER_BROKEN, CONSUMER_DRIFT, CONSUMER_MISSING, CONSUMER_PAUSED, DELAYED, DISPATCHER,
        MAX_ACK_PENDING, MAX_DELIVER, PAUSED,
    },
    facts::{DispatcherFacts, Facts, FleetFacts, LaneFacts, LayoutFacts, NatsFacts},
};
use crate::{
    broker::{pauses::is_endless, place::Carrier, receipts},
    clock::format_span,
    domain::pause::Target,
};

/// Delayed messages of a queue from which on fresh ones are noticeably slower.
pub(super) const DELAYED_PILE: u64 = 100_000;

const PROVISION: &str = "run `surety provision`";

pub(super) fn judge(facts: &Facts, nats: &NatsFacts, out: &mut Vec<Finding>) {
    let Some(layout) = &nats.layout else { return };
    paused(layout, out);
    for lane in &layout.lanes {
        let place = format!("consumer {} of {}", lane.state.consumer, lane.state.stream);
        if let Some(why) = &lane.unknown {
            let s = &lane.state;
            let fix = format!("allow this user `$JS.API.CONSUMER.INFO.{}.{}`", s.stream, s.consumer);
            out.push(CONSUMER_DRIFT.unknown(&place, format!("what it is like is not known ({why})"), fix));
            continue;
        }
        if lane.state.is_missing {
            missing(facts, lane, &place, out);
            continue;
        }
        differences(lane, &place, out);
        leases(facts, lane, &place, out);
        if let Some(ms) = lane.state.paused_ms.filter(|_| !is_told(layout, lane)) {
            let left = if is_endless(ms) {
                "until it is resumed".to_owned()
            } else {
                format!("for another {}", format_span(Duration::from_secs(ms / 1000)))
            };
            out.push(CONSUMER_PAUSED.warn(
                &place,
                format!("somebody paused it: nothing is delivered {left}"),
                format!("`surety resume {}`", lane.queue),
            ));
        }
        room(facts.fleet.as_ref(), lane, &place, out);
    }
    if let Some(d) = &layout.dispatcher {
        dispatcher(d, out);
    }
}

/// The consumer of the receipts: without it outcomes are told to nobody.
fn dispatcher(d: &DispatcherFacts, out: &mut Vec<Finding>) {
    let (stream, consumer) = (&d.stream, receipts::CONSUMER);
    let place = format!("consumer {consumer} of {stream}");
    if let Some(why) = &d.unknown {
        let fix = format!("allow this user `$JS.API.CONSUMER.INFO.{stream}.{consumer}`");
        out.push(CONSUMER_DRIFT.unknown(&place, format!("what it is like is not known ({why})"), fix));
        return;
    }
    if d.is_missing {
        let what = "it does not exist: the receipts of outcomes are given to nobody";
        out.push(CONSUMER_MISSING.must_fix(
            &place,
            what,
            format!("{PROVISION}: what waits is delivered then"),
        ));
    }
    if !d.is_missing && d.pulls == 0 && d.waiting > 0 {
        let what = format!("{} receipts wait, and nobody asks for one: no dispatcher runs", d.waiting);
        out.push(DISPATCHER.warn(&place, what, "run a worker with `notify.dispatch = true` (the default)"));
    }
    if !d.differences.is_empty() {
        let texts: Vec<_> = d.differences.iter().map(|d| d.text.as_str()).collect();
        out.push(CONSUMER_DRIFT.warn(&place, texts.join("; "), PROVISION));
    }
    if let Some(left) = d.paused_for {
        let left = format_span(Duration::from_secs(left.as_secs()));
        out.push(CONSUMER_PAUSED.warn(
            &place,
            format!("somebody paused it: no receipt is delivered for another {left}"),
            format!("`nats consumer resume {stream} {consumer}`"),
        ));
    }
}

/// Whether it is paused because its queue is, which is told apart.
fn is_told(layout: &LayoutFacts, lane: &LaneFacts) -> bool {
    layout.pauses.as_ref().is_ok_and(|(p, now_ms)| p.of_queue(lane.queue.as_str(), *now_ms).is_some())
}

/// What is held back by somebody's wish.
fn paused(layout: &LayoutFacts, out: &mut Vec<Finding>) {
    let (pauses, now_ms) = match &layout.pauses {
        Ok(known) => known,
        Err(why) => {
            let what = format!("what is paused is not known ({why})");
            out.push(PAUSED.unknown("pauses", what, "allow this user to look"));
            return;
        }
    };
    for p in pauses.list(*now_ms) {
        let reason = p.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
        let end = match p.until_ms {
            Some(end) => {
                let left = std::time::Duration::from_secs(end.saturating_sub(*now_ms).div_ceil(1000));
                format!("for another {}", format_span(left))
            }
            None => "without an end".to_owned(),
        };
        let option = if matches!(p.target, Target::Queue(_)) {
            String::new()
        } else {
            format!("--{} ", p.target.kind())
        };
        out.push(PAUSED.warn(
            &p.target.to_string(),
            format!("{} paused it {end}{reason}", p.by),
            format!("`surety resume {option}{}`, when the reason is gone", p.target.name()),
        ));
    }
}

/// Whether this process pulls from the queue.
fn is_needed(facts: &Facts, lane: &LaneFacts) -> bool {
    let own = &facts.settings.worker.queues;
    let named = |q: &String| q.split_once(':').map_or(q.as_str(), |(n, _)| n) == lane.queue.as_str();
    facts.role == Role::Worker && if own.is_empty() { lane.is_declared } else { own.iter().any(named) }
}

fn missing(facts: &Facts, lane: &LaneFacts, place: &str, out: &mut Vec<Finding>) {
    // A queue that the settings do not know is told as a subject that nobody covers.
    if lane.is_declared || is_needed(facts, lane) {
        let what = "it does not exist: the jobs of its queue are given to nobody";
        let fix = format!("{PROVISION}: what waits is delivered then");
        let finding = CONSUMER_MISSING.refuse(place, what, fix);
        let refuses_start = is_needed(facts, lane);
        out.push(Finding { refuses_start, ..finding });
    }
}

fn differences(lane: &LaneFacts, place: &str, out: &mut Vec<Finding>) {
    // Told with what follows from it, by `leases` and `room`.
    let (broken, drift): (Vec<_>, Vec<_>) = lane.differences.iter().partition(|d| {
        ["ack_policy", "deliver_policy", "filter_subjects", "headers_only", "inactive_threshold"]
            .contains(&d.field)
    });
    let texts = |all: &[&crate::broker::drift::Difference]| {
        all.iter().map(|d| d.text.as_str()).collect::<Vec<_>>().join("; ")
    };
    let again = format!(
        "`nats consumer rm {} {}` (nothing is lost by that), then {PROVISION}",
        lane.state.stream, lane.state.consumer
    );
    let fix = |all: &[&crate::broker::drift::Difference]| {
        if all.iter().all(|d| d.is_fixable) { PROVISION.to_owned() } else { again.clone() }
    };
    if !broken.is_empty() {
        out.push(CONSUMER_BROKEN.refuse(
            place,
            format!("it loses deliveries: {}", texts(&broken)),
            fix(&broken),
        ));
    }
    if !drift.is_empty() {
        out.push(CONSUMER_DRIFT.warn(place, texts(&drift), fix(&drift)));
    }
}

/// A lease must end before the broker gives the message to somebody else, and a worker must give a job up before it does.
fn leases(facts: &Facts, lane: &LaneFacts, place: &str, out: &mut Vec<Finding>) {
    if facts.role == Role::Reaper {
        return;
    }
    let fix = format!("{PROVISION} with the settings of the workers");
    let limit = facts.settings.worker.hand_on_limit.0;
    if u64::try_from(lane.max_deliver).is_ok_and(|n| n > 0 && n <= limit) {
        let what = format!(
            "it gives a job up after {} deliveries, and a worker only after {limit} (worker.hand_on_limit): retries that \
             are left are not made",
            lane.max_deliver
        );
        out.push(MAX_DELIVER.refuse(place, what, fix.clone()));
    }
    let lease = &facts.settings.lease;
    if lease.ttl >= lane.ack_wait || lease.extend * 2 >= lane.ack_wait {
        let what = format!(
            "its ack-wait of {} is too short for lease.ttl {} and lease.extend {}: the broker redelivers what runs",
            format_span(lane.ack_wait),
            format_span(lease.ttl),
            format_span(lease.extend)
        );
        out.push(ACK_WAIT.refuse(place, what, fix));
    }
}

/// Whether the limit of held messages leaves room, and how many of them are delayed.
fn room(fleet: Option<&FleetFacts>, lane: &LaneFacts, place: &str, out: &mut Vec<Finding>) {
    let s = &lane.state;
    let raise =
        "raise `layout.max_ack_pending` far above slots and delayed jobs, then run `surety provision`";
    if s.is_full() {
        let what = format!("{} messages are held, as many as may be: nothing more is delivered", s.held);
        out.push(MAX_ACK_PENDING.must_fix(place, what, raise));
    }
    let Some(f) = fleet else { return };
    let queue = lane.queue.as_str();
    let serving = f.fleet.alive().filter_map(|s| s.info.as_ref()).filter(|i| i.serves(queue) != Some(false));
    let slots: u64 = serving.filter_map(|i| i.slots).sum();
    let held = f.fleet.sessions.iter().flat_map(|s| &s.held).filter_map(|h| h.record.as_ref());
    let is_of = |carrier: &str| Carrier::parse(carrier).is_some_and(|c| c.stream == lane.of);
    let running = held.filter(|r| r.queue == queue && is_of(&r.carrier)).count() as u64;
    let delayed = s.held.saturating_sub(running);
    let need = slots + delayed;
    if s.max_held > 0 && !s.is_full() && need.saturating_mul(10) > s.max_held.saturating_mul(8) {
        let what = format!(
            "{} messages may be held, and the fleet needs {need}: {slots} slots and {delayed} delayed jobs",
            s.max_held
        );
        out.push(MAX_ACK_PENDING.warn(place, what, raise));
    }
    if delayed >= DELAYED_PILE {
        out.push(DELAYED.warn(
            place,
            format!("{delayed} jobs are in backoff or deferred: each holds a place at the broker and slows fresh ones"),
            "find out why they fail (`surety events`, `surety dlq list`); shorten the backoff, or cancel them",
        ));
    }
}
