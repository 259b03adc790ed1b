//! What holds a job: pure. The first gate that is found is the one that holds it now; those after it would be next.

use super::{Facts, Gate, GateCode, GuardFacts};
use crate::{
    clock::{format_span, iso_millis},
    domain::{Contract, Status, guard::GuardKind, pause::Target, text::nearest},
    store::Record,
};
use std::time::Duration;

/// All that holds the job, what holds it now first. Never empty.
pub(super) fn gates(f: &Facts) -> Vec<Gate> {
    let mut out = Vec::new();
    match &f.record {
        _ if f.store_unread.is_some() => unread(f, &mut out),
        Some(r) if r.status.is_terminal() => ended(f, r, &mut out),
        Some(r) if r.status.is_running() => running(f, r, &mut out),
        Some(r) => waiting(f, r, &mut out),
        None => unseen(f, &mut out),
    }
    out
}

fn gate(code: GateCode, what: impl Into<String>, then: impl Into<String>) -> Gate {
    Gate { code, what: what.into(), then: then.into(), until: None }
}

/// A span for people: rounded to what one looks at.
pub(super) fn span(ms: u64) -> String {
    let shown = if ms < 1000 { ms } else { ms - ms % 1000 };
    match shown {
        ..60_000 => format_span(Duration::from_millis(shown)),
        60_000..3_600_000 => format!("{}m {}s", ms / 60_000, ms / 1000 % 60),
        3_600_000..86_400_000 => format!("{}h {}m", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{}d {}h", ms / 86_400_000, ms / 3_600_000 % 24),
    }
}

fn ended(f: &Facts, r: &Record, out: &mut Vec<Gate>) {
    let status = r.status.name();
    if f.is_unjournaled {
        out.push(gate(
            GateCode::NotJournaled,
            format!("it is {status} in the store, and the journal has not stored that yet"),
            "a worker or the reaper publishes it; its message stays until then (is NATS reachable, does a reaper run?)",
        ));
    }
    match r.contract {
        Contract::TerminalPending => {
            let why =
                if r.tell_error.is_empty() { String::new() } else { format!(" (last: {})", r.tell_error) };
            out.push(Gate {
                until: iso_millis(r.promise_ms),
                ..gate(
                    GateCode::ReceiptPending,
                    format!("it is {status}; its receipt was tried {} times{why}", r.told),
                    "it is sent again until the requester answers, or the tries are used up",
                )
            });
        }
        Contract::TerminalFailed => out.push(gate(
            GateCode::ReceiptFailed,
            format!("it is {status}; the delivery of its receipt was given up: {}", or_unsaid(&r.tell_error)),
            "nothing more happens by itself; the outcome itself stands",
        )),
        _ if out.is_empty() => {
            let code = if r.code.is_empty() { String::new() } else { format!(" ({})", r.code) };
            let then = match (r.status, r.code.as_str()) {
                (Status::Done, _) => "nothing more happens",
                (_, "loop_guard") => {
                    "nothing more happens by itself; another generation is stopped again, unless the limits of [guards.loop] are \
                     raised or its type is exempt"
                }
                _ => "nothing more happens by itself; `surety dlq replay` makes another generation of it",
            };
            let why = buried(f, r).map(|m| format!(": {m}")).unwrap_or_default();
            out.push(gate(GateCode::Ended, format!("it ended as {status}{code}{why}"), then));
        }
        _ => {}
    }
}

/// Why this generation was buried, as its event says it.
fn buried<'a>(f: &'a Facts, r: &Record) -> Option<&'a str> {
    let event = f.events.iter().rev().find(|e| e.kind == "buried" && e.generation == r.generation)?;
    event.data.get("message")?.as_str()
}

fn or_unsaid(text: &str) -> &str {
    if text.is_empty() { "nobody said why" } else { text }
}

fn running(f: &Facts, r: &Record, out: &mut Vec<Gate>) {
    let who = who(f, r);
    let lease = f.owner.as_ref().and_then(|o| o.expires_ms);
    let is_alive = lease.is_some_and(|t| t > f.now_ms);
    if !is_alive {
        let what = match lease {
            Some(t) => {
                format!("{who} has not renewed its session: the lease ended {} ago", span(f.now_ms - t))
            }
            None => format!("{who} is not known to the store any more"),
        };
        let then = if r.is_cancelling {
            "the reaper takes the attempt back and the job ends as cancelled; does a reaper run?"
        } else {
            "the reaper takes the attempt back, and another is due at once; does a reaper run?"
        };
        out.push(gate(GateCode::OwnerLost, what, then));
    }
    if r.is_cancelling {
        let (what, then) = (
            format!("somebody wants it cancelled; {who} was asked to stop attempt {}", r.attempt),
            "TERM, the handler's grace, KILL; it ends as cancelled when all its processes are dead",
        );
        out.push(Gate { until: lease.and_then(iso_millis), ..gate(GateCode::CancelPending, what, then) });
    }
    if r.deadline_ms > 0 && r.deadline_ms <= f.now_ms {
        let what = format!(
            "attempt {} is past its time limit since {}: {who} should have stopped it",
            r.attempt,
            span(f.now_ms - r.deadline_ms)
        );
        out.push(Gate {
            until: iso_millis(r.deadline_ms.saturating_add(f.overstay_ms)),
            ..gate(GateCode::Overstayed, what, "then the reaper takes it from that worker, and it runs again")
        });
    }
    if r.status == Status::WaitingInput {
        out.push(Gate {
            until: iso_millis(r.deadline_ms),
            ..gate(
                GateCode::WaitingInput,
                "its handler asked something and waits for the answer",
                "answer it",
            )
        });
    }
    if is_alive && out.is_empty() {
        let what = format!(
            "attempt {} runs at {who} since {}",
            r.attempt,
            span(f.now_ms.saturating_sub(r.started_ms))
        );
        let then = if r.deadline_ms == r.finish_by_ms {
            "it ends by itself, or is stopped at the job's finish deadline"
        } else {
            "it ends by itself, or is stopped at its time limit"
        };
        out.push(Gate { until: iso_millis(r.deadline_ms), ..gate(GateCode::Running, what, then) });
    }
}

/// The owner as people find it.
fn who(f: &Facts, r: &Record) -> String {
    match f.owner.as_ref().and_then(|o| o.info.as_ref()).map(|i| (&i.host, i.pid)) {
        Some((Some(host), Some(pid))) => format!("worker {host}, process {pid}"),
        _ => format!("the worker of session {}", r.session),
    }
}

/// Open, and no attempt holds it.
fn waiting(f: &Facts, r: &Record, out: &mut Vec<Gate>) {
    closed(f, out);
    if let Some(c) = &f.carrier
        && c.message.is_none()
    {
        out.push(Gate {
            until: iso_millis(r.promise_ms),
            ..gate(
                GateCode::CarrierMissing,
                format!("its message {} is gone: nothing brings it to a worker", c.name),
                "then the reaper looks, and ends it as message_lost if there is no other; or cancel it",
            )
        });
    }
    paused(f, out);
    if let Some(g) = &f.guard {
        let by_lock = super::locks::busy(f).filter(|_| g.reason == GuardKind::Lock.reason());
        out.push(by_lock.unwrap_or_else(|| guarded(f, r, g)));
    }
    if r.due_ms > f.now_ms && f.guard.is_none() {
        let why = match (r.status, r.code.as_str()) {
            (Status::Deferred, _) => format!("its start failed {} times ({})", r.start_failures, r.code),
            (_, "") => "it was put off".to_owned(),
            (_, code) => format!("attempt {} failed ({code})", r.attempt),
        };
        out.push(Gate {
            until: iso_millis(r.due_ms),
            ..gate(
                GateCode::NotDue,
                format!("{why}; it is not due for another {}", span(r.due_ms - f.now_ms)),
                "then its message is delivered again and it is claimed",
            )
        });
    }
    queue(f, out);
    if out.is_empty() {
        out.push(gate(
            GateCode::Redelivery,
            "it is due, and its message is held by the broker: given back with a delay, or by a worker that has it in hand",
            "the broker delivers it again, at the latest after the ack-wait of its queue",
        ));
    }
}

/// How many stand before it in a line, as the end of a sentence.
pub(super) fn place_in_line(before: Option<u64>) -> String {
    match before {
        None => String::new(),
        Some(0) => "; it is the first in line".into(),
        Some(1) => "; 1 job is before it in line".into(),
        Some(n) => format!("; {n} jobs are before it in line"),
    }
}

/// A guard that deferred it: what it holds now, and when it lets the job go.
fn guarded(f: &Facts, r: &Record, g: &GuardFacts) -> Gate {
    let state = g.now.as_ref().map(|v| format!(" ({}; now: {})", v.limit, v.now)).unwrap_or_default();
    let what = format!("the guard {:?} keeps it waiting: {}{state}", g.label, g.reason);
    if r.due_ms > f.now_ms {
        let what = format!("{what}; its slot is in {}", span(r.due_ms - f.now_ms));
        let then = "then its message is delivered again and it starts";
        return Gate { until: iso_millis(r.due_ms), ..gate(GateCode::Guarded, what, then) };
    }
    let place = place_in_line(g.before);
    let clears = g.now.as_ref().and_then(|v| v.clears_at.clone());
    let is_gate = [GuardKind::Breaker, GuardKind::CrashLoop].iter().any(|k| k.reason() == g.reason);
    let then = match (is_gate, &clears, g.before) {
        (true, Some(_), _) => "then those that waited longest are tried; when one goes well, all start",
        (true, None, Some(_)) => {
            "it is woken when one that is tried now goes well, or when it is to be tried itself"
        }
        (false, _, Some(_)) => "it is woken when its turn comes",
        (_, _, None) => "its turn has come, or it comes back by itself soon and asks again",
    };
    Gate { until: clears, ..gate(GateCode::Guarded, format!("{what}{place}"), then) }
}

/// The store has not seen it, or has no record any more.
fn unseen(f: &Facts, out: &mut Vec<Gate>) {
    match f.view.source {
        "schedule" => {
            out.push(Gate {
                until: f.view.due_at.clone(),
                ..gate(GateCode::Scheduled, "its time has not come", "then the broker puts it into its queue")
            });
            paused(f, out);
        }
        "queue" => {
            closed(f, out);
            paused(f, out);
            queue(f, out);
            if out.is_empty() {
                out.push(gate(
                    GateCode::Redelivery,
                    "no worker has claimed it: a worker has its message in hand, or gave it back (an unknown type, say)",
                    "the broker delivers it again, at the latest after the ack-wait of its queue; does a worker know the type?",
                ));
            }
        }
        _ if f.view.is_terminal => out.push(gate(
            GateCode::Ended,
            format!("nothing: it is {} (its record is gone; the journal says so)", f.view.status),
            "nothing more happens",
        )),
        _ => out.push(gate(
            GateCode::RecordGone,
            format!("its record is gone, and the last that the journal has of it is {}", f.view.status),
            "the reaper makes the record anew from the journal; if none runs, start one",
        )),
    }
}

/// The store could not be read: what the message and the journal say.
fn unread(f: &Facts, out: &mut Vec<Gate>) {
    let status = f.view.status;
    if f.view.is_terminal {
        let what = format!("nothing: it is {status} (the journal says so; the store could not be read)");
        out.push(gate(GateCode::Ended, what, "nothing more happens; of its receipt, ask again"));
        return;
    }
    let said = match f.view.source {
        "schedule" => format!("it is scheduled for {}", f.view.due_at.as_deref().unwrap_or("later")),
        "queue" => format!("its message is in queue {}, and the journal has nothing of it", f.view.queue),
        _ => format!("the last that the journal has of it is {status}"),
    };
    out.push(gate(
        GateCode::StoreUnread,
        format!("that is in the store, which could not be read; {said}"),
        "ask again when Redis answers; while it is away from the workers, too, nothing is started",
    ));
    if let Some(c) = f.carrier.as_ref().filter(|c| c.message.is_none()) {
        let what = format!("its message {} is gone, or another stands for it", c.name);
        out.push(gate(GateCode::CarrierMissing, what, "the store tells, when it can be read"));
    }
    paused(f, out);
    queue(f, out);
}

fn closed(f: &Facts, out: &mut Vec<Gate>) {
    if let Some(why) = &f.store_closed {
        out.push(gate(
            GateCode::StoreClosed,
            format!("nothing is claimed now: {why}"),
            "claims go on when the store is complete again",
        ));
    }
}

/// Each pause that holds it: all of them have to end.
fn paused(f: &Facts, out: &mut Vec<Gate>) {
    for p in &f.pauses {
        let since = span(f.now_ms.saturating_sub(p.at_ms));
        let reason = p.reason.as_ref().map_or_else(String::new, |r| format!(": {r}"));
        let name = match &p.target {
            Target::Queue(q) => q.to_string(),
            Target::Type(t) => format!("--type {t}"),
            // As a shell takes it.
            Target::Key(k) | Target::Hashed(k) => format!("--key '{}'", k.replace('\'', r"'\''")),
        };
        let then = match p.until_ms {
            Some(end) => {
                format!(
                    "it ends by itself in {}; sooner: `surety resume {name}`",
                    span(end.saturating_sub(f.now_ms))
                )
            }
            None => format!("`surety resume {name}`"),
        };
        out.push(Gate {
            until: p.until_ms.and_then(iso_millis),
            ..gate(
                GateCode::Paused,
                format!("{} is paused by {} since {since}{reason}", p.target, p.by),
                then,
            )
        });
    }
}

/// What can hold it between the broker and a worker.
fn queue(f: &Facts, out: &mut Vec<Gate>) {
    let Some(q) = &f.queue else { return };
    let (name, lane) = (&f.view.queue, &q.lane);
    if lane.is_missing {
        let what = format!("queue {name} has no consumer in {}: what waits is given to nobody", lane.stream);
        out.push(gate(GateCode::ConsumerMissing, what, "`surety provision` makes it"));
        return;
    }
    let is_told = f.pauses.iter().any(|p| matches!(p.target, Target::Queue(_)));
    if let Some(ms) = lane.paused_ms.filter(|_| !is_told) {
        out.push(Gate {
            until: iso_millis(f.now_ms.saturating_add(ms)),
            ..gate(
                GateCode::ConsumerPaused,
                format!("the consumer of queue {name} is paused for another {}", span(ms)),
                format!("then it goes on; sooner: `surety resume {name}`"),
            )
        });
    }
    if lane.is_full() {
        let what = format!("queue {name} holds {} messages, as many as it may", lane.held);
        out.push(gate(GateCode::ConsumerFull, what, "raise layout.max_ack_pending, then `surety provision`"));
    }
    if q.workers == Some(0) {
        let what = format!("no live worker pulls from queue {name}");
        out.push(gate(GateCode::NoWorker, what, "start one: `surety-worker`; see `surety workers`"));
        return;
    }
    if let (Some(types), Some(kind)) = (&q.types, &f.view.job_type)
        && !types.contains(kind)
    {
        let hint = nearest(kind, types.iter().map(String::as_str))
            .map_or_else(String::new, |n| format!("; the nearest known type is {n:?}"));
        let what = format!("no live worker of queue {name} has a handler for the type {kind:?}{hint}");
        let then = "workers pass it on, and give it up as unknown_type after worker.hand_on_limit deliveries; start one with that handler, \
                    or cancel it and enqueue it with the right type";
        out.push(gate(GateCode::NoHandler, what, then));
    }
    let ahead = f.carrier.as_ref().and_then(|c| c.message.as_ref()).and_then(|m| m.ahead);
    if let Some(workers) = q.workers.filter(|_| q.busy >= q.slots && q.slots > 0) {
        let what = format!("all {} slots of the {workers} workers of queue {name} are taken", q.slots);
        out.push(gate(GateCode::NoFreeSlot, what, "it is claimed when a slot is free and its turn has come"));
    }
    if let Some(n) = ahead {
        let age = f.carrier.as_ref().and_then(|c| c.message.as_ref()).map_or(0, |m| m.stored_ms);
        let since = span(f.now_ms.saturating_sub(age));
        let workers = q.workers.map_or_else(String::new, |n| {
            format!("; {n} workers pull from it, {} of {} slots are taken", q.busy, q.slots)
        });
        let what = format!("it waits in queue {name} since {since}, behind {n} messages{workers}");
        out.push(gate(GateCode::Queued, what, "it is claimed when its turn has come"));
    }
}
