//! From facts to the answer: pure.

use super::{AttemptTold, CarrierSeen, Deadline, Facts, Owner, Promise, Why, gate};
use crate::{
    broker::place::Carrier,
    clock::{iso, iso_millis},
    domain::{Contract, Requester, job::EVENT_CAP},
    store::Record,
    wire::event::Event,
};

/// Events that the answer shows.
pub(super) const EVENTS_SHOWN: usize = 20;

/// Explains a job.
pub fn explain(f: Facts) -> Why {
    let mut gates = gate::gates(&f);
    let also = gates.split_off(1.min(gates.len()));
    // There always is a first; an empty list would say that the table of gates has a hole.
    let gate = gates.pop().unwrap_or_else(|| super::Gate {
        code: super::GateCode::Redelivery,
        what: "nothing that is known holds it".into(),
        then: "ask again".into(),
        until: None,
    });
    let (owner, promise, deadlines) = match &f.record {
        Some(r) => (owner(&f, r), Some(promise(r)), deadlines(&f, r)),
        None => (None, None, Vec::new()),
    };
    let attempts = attempts(&f);
    let carrier = carrier(&f);
    let first = f.events.len().saturating_sub(EVENTS_SHOWN);
    Why {
        gate,
        also,
        owner,
        promise,
        deadlines,
        attempts,
        locks: f.locks.into_iter().map(|l| l.name).collect(),
        carrier,
        unknown: f.unknown,
        asked_at: iso(f.now_ms),
        job: f.view,
        events: f.events.into_iter().skip(first).map(cut).collect(),
    }
}

/// An event without what is too large to look at: a result may have 256 KiB.
fn cut(mut e: Event) -> Event {
    let size = e.data.to_string().len();
    if size > EVENT_CAP {
        e.data = serde_json::json!({ "is_cut": true, "bytes": size });
    }
    e
}

fn owner(f: &Facts, r: &Record) -> Option<Owner> {
    if !r.status.is_running() {
        return None;
    }
    let facts = f.owner.as_ref();
    let info = facts.and_then(|o| o.info.clone()).unwrap_or_default();
    let expires_ms = facts.and_then(|o| o.expires_ms);
    Some(Owner {
        session: r.session.clone(),
        host: info.host,
        pid: info.pid,
        version: info.version,
        renewed_ms: info.ttl_ms.zip(expires_ms).map(|(ttl, end)| (f.now_ms + ttl).saturating_sub(end)),
        lease_until: expires_ms.and_then(iso_millis),
        is_expired: expires_ms.is_none_or(|t| t <= f.now_ms),
    })
}

fn promise(r: &Record) -> Promise {
    let (subject, notices) = match Requester::from_json(&r.notify) {
        Ok(Requester::Subject { subject, notices }) => (Some(subject), notices),
        Ok(Requester::Nobody) => (None, false),
        // What a newer release tells by is named as it stands.
        Err(_) => (Some(r.notify.clone()), false),
    };
    let text = |t: &str| (!t.is_empty()).then(|| t.to_owned());
    Promise {
        contract: r.contract.name(),
        receipt: match r.contract {
            Contract::TerminalPending => "pending",
            Contract::TerminalAcked if subject.is_some() => "delivered",
            Contract::TerminalFailed => "failed",
            // Nobody is to be told: it is in the journal, as every one is.
            _ if r.status.is_terminal() => "journaled",
            _ => "none",
        },
        requester: subject,
        notices,
        next: promised(r).to_owned(),
        by: iso_millis(r.promise_ms),
        tries: r.told,
        last_error: text(&r.tell_error),
        summary: text(&r.summary),
    }
}

/// What is promised next: the table of `docs/redis-keys.md`.
fn promised(r: &Record) -> &'static str {
    if r.promise_ms == 0 {
        return "nothing";
    }
    match (r.contract, r.status.is_running()) {
        (Contract::TerminalPending, _) => "its receipt is delivered, or sent again",
        (_, false) => "a worker claims it, or the reaper looks whether its message is there",
        (Contract::Created, true) => "the requester is told of the start",
        (Contract::SlaMissed, true) => "the requester is nudged",
        (_, true) => "it shows progress, or is marked sla_missed",
    }
}

fn deadlines(f: &Facts, r: &Record) -> Vec<Deadline> {
    let mut all = Vec::new();
    let mut put = |at: u64, what: &str| {
        if let (true, Some(text)) = (at > 0, iso_millis(at)) {
            let in_ms = i64::try_from(at).unwrap_or(i64::MAX) - i64::try_from(f.now_ms).unwrap_or(0);
            all.push(Deadline { at: text, what: what.to_owned(), in_ms });
        }
    };
    if r.contract < Contract::TerminalAcked {
        put(r.promise_ms, promised(r));
    }
    if !r.status.is_terminal() {
        // What has passed holds nothing any more; the gate says what does.
        put(if r.due_ms > f.now_ms { r.due_ms } else { 0 }, "it is due: claimable from then on");
        match (r.status.is_running(), r.deadline_ms == r.finish_by_ms) {
            (true, false) => {
                put(r.deadline_ms, "time limit of this attempt: it is stopped, and counts as failed")
            }
            (true, true) => {}
            (false, _) if r.epoch == 0 => put(r.deadline_ms, "expires_at: it is not started any more"),
            (false, _) => {}
        }
        put(r.finish_by_ms, "finish deadline of the job: it ends as timed_out");
    }
    all.sort_by_key(|d| d.in_ms);
    all
}

/// Each attempt of the present generation, from the event that began it and the one that ended it.
fn attempts(f: &Facts) -> Vec<AttemptTold> {
    let mut out: Vec<AttemptTold> = Vec::new();
    // A guard that puts a job off says so under the epoch of the attempt before, whose end it is not.
    let is_of_attempt = |e: &&Event| e.epoch > 0 && e.data.get("guard").is_none();
    for e in f.events.iter().filter(|e| e.generation == f.view.generation).filter(is_of_attempt) {
        let known = out.iter().position(|a| a.epoch == e.epoch);
        let i = known.unwrap_or_else(|| {
            out.push(AttemptTold {
                attempt: e.attempt,
                epoch: e.epoch,
                session: e.session.clone(),
                started_at: None,
                ended_at: None,
                end: "running".into(),
                error_code: None,
                message: None,
                stdout_tail: Vec::new(),
                stderr_tail: Vec::new(),
            });
            out.len() - 1
        });
        let Some(a) = out.get_mut(i) else { continue };
        take(a, e);
    }
    let open = f.record.as_ref().filter(|r| r.status.is_running()).map(|r| r.epoch);
    for a in &mut out {
        if a.end == "running" && Some(a.epoch) != open {
            // The event that says how it ended is not in the journal (yet).
            a.end = "unknown".into();
        }
    }
    // What is kept beside the record is of the last attempt that failed.
    if let Some(d) = &f.view.detail
        && let Some(a) = out.iter_mut().find(|a| Some(a.epoch) == d.get("epoch").and_then(|e| e.as_u64()))
    {
        let lines = |name: &str| -> Vec<String> {
            let list = d.get(name).and_then(|v| v.as_array()).into_iter().flatten();
            list.filter_map(|l| l.as_str().map(str::to_owned)).collect()
        };
        let text = |name: &str| d.get(name).and_then(|v| v.as_str()).map(str::to_owned);
        (a.stdout_tail, a.stderr_tail) = (lines("stdout_tail"), lines("stderr_tail"));
        a.error_code = a.error_code.take().or_else(|| text("error_code"));
        a.message = a.message.take().or_else(|| text("message"));
    }
    out
}

fn take(a: &mut AttemptTold, e: &Event) {
    let text = |path: &str| e.data.pointer(path).and_then(|v| v.as_str()).map(str::to_owned);
    match e.kind.as_str() {
        "started" => a.started_at = Some(e.at.clone()),
        "attempt_failed" | "lost" | "released" | "deferred" => {
            (a.end, a.ended_at) = (e.kind.clone(), Some(e.at.clone()));
            (a.error_code, a.message) = (text("/error_code"), text("/message"));
        }
        // An outcome between attempts is nobody's end.
        "finished" if a.end == "running" => {
            (a.end, a.ended_at) = (e.status.clone(), Some(e.at.clone()));
            (a.error_code, a.message) = (text("/receipt/error_code"), text("/receipt/message"));
        }
        _ => {}
    }
}

fn carrier(f: &Facts) -> Option<CarrierSeen> {
    let c = f.carrier.as_ref()?;
    let place = Carrier::parse(&c.name)?;
    let m = c.message.as_ref();
    Some(CarrierSeen {
        stream: place.stream.name().to_owned(),
        sequence: place.sequence,
        is_there: m.is_some(),
        subject: m.map(|m| m.subject.clone()),
        stored_at: m.and_then(|m| iso(m.stored_ms)),
        is_delivered: m.and_then(|m| m.is_delivered),
        ahead: m.and_then(|m| m.ahead),
    })
}
