//! Deadlines that passed: the due index has one member for each open job, its earliest. What follows is decided by
//! `domain::deadline` from the record, and judged again by the script, so that of several reapers one acts.

use std::{collections::BTreeSet, time::Duration};

use surety_common::{
    domain::{
        Contract, ErrorCode, JobId, Status, TypeName,
        deadline::{Due, Patience, Watched, decide, next_look},
        ids::SessionId,
    },
    fault,
    pace::{Pace, Transient},
    recover::{Left, settle_carrier, why_lost},
    store::{CarrierAct, DueAct, DueItem, DueReply, Read, Record, guards::member, ops::Settled},
    telemetry::metrics::{attempt_lost, reaper},
    watch::{self, CrashLoop},
    wire::receipt::Draft,
};

use super::{
    carrier_check::{self, Patience as CarrierPatience},
    tell::{TELL_WITHIN, Teller, Todo},
};
use crate::{
    leftover,
    rule::{Context, Done, Look, Rule, RuleError, Step, Verdict},
    sight::Sight,
};

/// How often the start of a job is told by reapers before it is given up.
const TRIES: u32 = 5;
/// How long publishes of one step are tried before the next step goes on.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));

/// The rule.
#[derive(Default)]
pub(crate) struct Deadlines {
    teller: Teller,
}

impl Rule for Deadlines {
    fn name(&self) -> &'static str {
        "deadlines"
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            for p in 0..x.c.store.keys().partitions() {
                let passed = read(x, p).await?;
                done.is_partial |= passed.len() >= x.batch;
                for id in &passed.unreadable {
                    // It comes again later, or with what is put in its place; the others go on.
                    x.c.store.note_unreadable(p, id.as_str()).await;
                }
                if !passed.judged.is_empty() {
                    done.acted += apply(x, &self.teller, p, &passed.judged).await?;
                }
                if !passed.waiting.is_empty() {
                    done.acted += carriers(x, p, &passed.waiting, passed.now).await?;
                }
            }
            Ok(done)
        })
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for p in 0..x.c.store.keys().partitions() {
                let Passed { now, judged, waiting, .. } = read(x, p).await?;
                out.extend(judged.iter().filter_map(|j| verdict(j, now)));
                let (sight, patience) = (Sight::default(), CarrierPatience::of(x));
                for (id, r, found) in carrier_check::find(x, &sight, &waiting, now).await? {
                    let next = carrier_check::next(r, id, &found, patience, now);
                    out.extend(carrier_check::verdict(id, r, &found, &next));
                }
            }
            Ok(out)
        })
    }
}

/// The jobs of a partition whose deadline has passed, each with what is to be done about it; and the store's clock.
async fn read(x: &Context, p: u32) -> Result<Passed, RuleError> {
    let now = x.c.store.now_ms_of(p).await?;
    let ids = x.c.store.due(p, now, isize::try_from(x.batch).unwrap_or(100)).await?;
    let keys: Vec<String> = ids.iter().map(|id| x.c.store.keys().job(id)).collect();
    let records = if keys.is_empty() { Vec::new() } else { x.c.store.records(&keys).await? };
    let mut passed = Passed { now, judged: Vec::new(), waiting: Vec::new(), unreadable: Vec::new() };
    for (id, read) in ids.into_iter().zip(records) {
        if read == Read::Unreadable {
            passed.unreadable.push(id);
            continue;
        }
        match judge(x, id, read.record(), now) {
            Judged { id, record: Some(r), due: Due::CheckCarrier } => passed.waiting.push((id, r)),
            judged => passed.judged.push(judged),
        }
    }
    Ok(passed)
}

/// What of a partition has passed its deadline.
struct Passed {
    /// The store's clock.
    now: u64,
    judged: Vec<Judged>,
    /// Those whose message has to be looked for; they have a way of their own.
    waiting: Vec<(JobId, Record)>,
    /// Jobs whose record cannot be read.
    unreadable: Vec<JobId>,
}

impl Passed {
    fn len(&self) -> usize {
        self.judged.len() + self.waiting.len() + self.unreadable.len()
    }
}

/// Looks for the messages of waiting jobs. Where that fails with more than a server that is away, they come again later, one by
/// one with others, and hold up nobody.
async fn carriers(x: &Context, p: u32, waiting: &[(JobId, Record)], now_ms: u64) -> Result<usize, RuleError> {
    let error = match carrier_check::check(x, p, waiting, now_ms).await {
        Err(e) if !e.is_transient() => e,
        other => return other,
    };
    tracing::error!(jobs = waiting.len(), %error, alert = "rule_failed", "messages of waiting jobs could not be looked for");
    let after = x.settings.reaper.carrier_check;
    let later: Vec<_> = waiting
        .iter()
        .map(|(id, r)| carrier_check::item(id, r, CarrierAct::LookAgain { after, looks: r.told }))
        .collect();
    x.c.store.on_carriers(p, &later).await?;
    Ok(0)
}

/// What would be done, for people.
fn verdict(j: &Judged, now_ms: u64) -> Option<Verdict> {
    let does = match j.due {
        Due::NotYet(_) => return None,
        Due::Expired => "fail it: it was not started by its `expires_at`",
        Due::Overdue => "end it as timed out: its finish deadline passed",
        Due::Overstayed => "take the attempt from its worker: it went on past its time limit",
        Due::Missed => "journal that progress was missed, and nudge",
        Due::TellStart => "tell the start",
        Due::TellNudge => "tell the nudge",
        Due::SendReceipt => "send the receipt again",
        Due::CheckCarrier => "look again later",
        Due::Forgo => "promise nothing any more: the start could not be told",
        Due::Drop => "take it out of the index",
    };
    let evidence = j.record.as_ref().map_or_else(
        || "in the index, without a record".to_owned(),
        |r| {
            let by = |name: &str, ms: u64| {
                surety_common::clock::iso_millis(ms).map_or(String::new(), |at| format!(", {name} {at}"))
            };
            format!(
                "{}, contract {}, epoch {}{}{}{}{}",
                r.status.name(),
                r.contract.name(),
                r.epoch,
                by("promised by", r.promise_ms),
                by("deadline", r.deadline_ms),
                by("finish by", r.finish_by_ms),
                by("now", now_ms)
            )
        },
    );
    Some(Verdict::new(&j.id, evidence, does))
}

/// A due job with what is to be done about it.
pub(crate) struct Judged {
    pub(crate) id: JobId,
    /// `None`: there is none, and the index is behind.
    pub(crate) record: Option<Record>,
    pub(crate) due: Due,
}

fn judge(x: &Context, id: JobId, record: Option<Record>, now_ms: u64) -> Judged {
    let patience = Patience { overstay: x.settings.reaper.overstay, tries: TRIES };
    let due = record.as_ref().map_or(Due::Drop, |r| decide(&watched(r), &patience, now_ms));
    Judged { id, record, due }
}

fn watched(r: &Record) -> Watched {
    Watched {
        status: r.status,
        contract: r.contract,
        epoch: r.epoch,
        deadline_ms: r.deadline_ms,
        finish_by_ms: r.finish_by_ms,
        promise_ms: r.promise_ms,
        told: r.told,
    }
}

/// Commits what was judged, journals it, and does what follows outside of the store. Returns the number of acts.
/// The error is the last one of what follows: it is that of one job, and the others went on.
async fn apply(x: &Context, teller: &Teller, p: u32, judged: &[Judged]) -> Result<usize, RuleError> {
    let items: Vec<DueItem> = judged.iter().map(|j| item(x, j)).collect();
    let answer = x.c.store.act_on_due(p, x.settings.reaper.overstay, &items).await?;
    fault::point("due_committed");
    // Ordering: the verdicts are journaled before any carrier is touched.
    x.c.relay.publish(p, &answer.entries, PATIENCE).await?;
    fault::point("due_journaled");
    let (mut acted, mut to_tell, mut failed) = (0, Todo::default(), None);
    for (j, reply) in judged.iter().zip(answer.results) {
        let DueReply::Applied(s) = reply else { continue };
        if matches!(j.due, Due::NotYet(_) | Due::Drop) {
            continue;
        }
        acted += 1;
        reaper().deadlines.with_label_values(&[name(j.due)]).inc();
        if let Some(r) = &j.record {
            to_tell.add(x, teller, j.due, (&j.id, r), s.rev);
        }
        if let Err(error) = follow(x, j, s).await {
            // It is committed and comes here no more: its message comes back by itself, and is told that the job has ended.
            tracing::warn!(job_id = %j.id, due = name(j.due), %error, "the message of a job could not be settled");
            failed = Some(error);
        }
    }
    teller.tell(x, p, to_tell).await?;
    failed.map_or(Ok(acted), Err)
}

/// Deadlines whose series are there from the start, so that an alert has something to compare with.
pub(crate) const TOLD: [&str; 4] = ["progress", "finish", "overstayed", "expired"];

/// The label of a deadline.
fn name(due: Due) -> &'static str {
    match due {
        Due::NotYet(_) => "not_yet",
        Due::Expired => "expired",
        Due::Overdue => "finish",
        Due::Overstayed => "overstayed",
        Due::Missed => "progress",
        Due::TellStart => "ack",
        Due::TellNudge => "nudge",
        Due::SendReceipt => "receipt",
        Due::CheckCarrier => "carrier",
        Due::Forgo => "forgone",
        Due::Drop => "drop",
    }
}

fn item(x: &Context, j: &Judged) -> DueItem {
    let act = match j.due {
        Due::NotYet(after) => DueAct::LookAgain(after),
        Due::Expired => DueAct::Expired,
        Due::Overdue => DueAct::Overdue,
        // By then its worker was told at a renewal and has killed it, or has lost its trust.
        Due::Overstayed => DueAct::Overstayed(x.settings.lease.ttl),
        Due::Missed => DueAct::Missed(TELL_WITHIN),
        Due::TellStart | Due::TellNudge => DueAct::Tell(TELL_WITHIN),
        Due::SendReceipt => DueAct::Tell(j.record.as_ref().map_or(TELL_WITHIN, |r| {
            // Its own tries go on meanwhile; this only finds out whether it was lost.
            next_look(r.ended_ms, r.promise_ms, TELL_WITHIN)
        })),
        Due::CheckCarrier => DueAct::LookAgain(x.settings.reaper.carrier_check),
        Due::Forgo => DueAct::Forgo,
        Due::Drop => DueAct::Drop,
    };
    let (receipt, data) =
        j.record.as_ref().map(|r| texts(&j.id, r, j.due, x.c.store.lost_limit())).unwrap_or_default();
    DueItem {
        id: j.id.clone(),
        rev: j.record.as_ref().map_or(0, |r| r.rev),
        promise_ms: j.record.as_ref().map_or(0, |r| r.promise_ms),
        act,
        receipt,
        data,
        session: j.record.as_ref().and_then(|r| SessionId::new(&r.session).ok()),
    }
}

/// What a job is told that ended by a deadline, and why.
fn outcome(
    due: Due,
    status: Status,
    lost: Option<ErrorCode>,
    limit: u32,
) -> Option<(Status, ErrorCode, String)> {
    let text = str::to_owned;
    match due {
        Due::Expired => {
            Some((Status::Failed, ErrorCode::Expired, text("it was not started by its `expires_at`")))
        }
        Due::Overdue => Some((
            Status::TimedOut,
            ErrorCode::FinishDeadline,
            text("it was not ended by its finish deadline"),
        )),
        Due::Overstayed if status == Status::Cancelled => {
            Some((status, ErrorCode::Cancelled, text("cancelled; its worker did not stop the attempt")))
        }
        Due::Overstayed if lost == Some(ErrorCode::Lost) => {
            let (code, why) = why_lost(lost, limit);
            Some((Status::Failed, code, why))
        }
        Due::Overstayed => Some((
            Status::Failed,
            ErrorCode::AttemptsExhausted,
            text("the last attempt went on past its time limit and was taken from its worker"),
        )),
        _ => None,
    }
}

/// Receipt and data of the event, each as a JSON object without its closing brace.
fn texts(id: &JobId, r: &Record, due: Due, limit: u32) -> (String, String) {
    let outcome = |status| outcome(due, status, r.state().lost_code(limit), limit);
    let open = |v: serde_json::Value| {
        let mut text = v.to_string();
        text.pop();
        text
    };
    let receipt =
        outcome(Status::Failed).zip(TypeName::new(&r.job_type).ok()).map(|((status, code, why), kind)| {
            let started = surety_common::clock::iso_millis(r.started_ms);
            let mut draft = Draft::new(id, r.generation, &kind, status.name());
            draft.error_code = Some(code);
            draft.message = Some(&why);
            draft.started_at = started.as_deref();
            draft.open_json()
        });
    let data = match due {
        Due::Overstayed => open(serde_json::json!({ "error_code": ErrorCode::Lost, "reason": "overstayed" })),
        Due::Missed => {
            let by = surety_common::clock::iso_millis(r.promise_ms);
            open(serde_json::json!({ "promised_by": by }))
        }
        _ => match outcome(Status::Failed) {
            Some((_, code, why)) => open(serde_json::json!({ "error_code": code, "message": why })),
            None => "{".to_owned(),
        },
    };
    (receipt.unwrap_or_else(|| "{".to_owned()), data)
}

/// What follows outside of the store.
async fn follow(x: &Context, j: &Judged, s: Settled) -> Result<(), RuleError> {
    let Some(r) = &j.record else { return Ok(()) };
    match j.due {
        Due::Expired | Due::Overdue | Due::Overstayed => {
            let limit = x.c.store.lost_limit();
            let ended = outcome(j.due, s.status, r.state().lost_code(limit), limit);
            let (code, why) =
                ended.map_or((ErrorCode::Internal, String::new()), |(_, code, why)| (code, why));
            tracing::warn!(
                job_id = %j.id, epoch = r.epoch, session = r.session, status = s.status.name(), error_code = code.name(), "{why}"
            );
            if j.due == Due::Overstayed {
                attempt_lost(&r.queue, &r.job_type);
                let of = member(&j.id, r.generation);
                let name = format!("{of}/{} {}", r.epoch, r.session);
                let types = BTreeSet::from([r.job_type.as_str()]);
                watch::lost(&x.c, &CrashLoop::new(&x.settings), &types, &of, &name).await;
            }
            let left = Left { job: &j.id, queue: &r.queue, kind: &r.job_type, code, why: &why };
            // What was never delivered cannot be acked.
            if let Some(carrier) = settle_carrier(&x.c, &left, &s, x.settings.lease.ttl).await? {
                leftover::discard(x, &r.queue, carrier).await?;
            }
        }
        Due::Missed => tracing::warn!(
            job_id = %j.id, epoch = r.epoch, session = r.session,
            was = if r.contract == Contract::Acked { "acked" } else { "progressing" },
            "no progress within the promise"
        ),
        Due::Forgo => {
            tracing::warn!(job_id = %j.id, tries = r.told, why = r.tell_error, "nobody could be told of the start")
        }
        Due::TellStart
        | Due::TellNudge
        | Due::SendReceipt
        | Due::CheckCarrier
        | Due::NotYet(_)
        | Due::Drop => {}
    }
    Ok(())
}
