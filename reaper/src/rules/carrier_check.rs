//! Jobs that could be claimed and were not for a while: is their message still there, and will it be delivered? It waits: look
//! again later. It sleeps for a guard: it is given back, so that somebody asks again. It is dead: a copy takes its place, once;
//! then it is buried. It is gone: the journal decides, then another message of the job, else the job failed.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use surety_common::{
    broker::{decode::decode, hand_on::Moved, place::Carrier, pull::Delivery, schedule::due_at},
    clock::iso_millis,
    domain::{ErrorCode, JobId, QueueName, Status, TypeName, deadline::next_look},
    fault,
    pace::Pace,
    store::{CarrierAct, CarrierItem, DueReply, Record},
    telemetry::metrics::{job_ended, reaper},
    wire::{event::Event, receipt::Draft},
};

use super::{max_deliver, sleepers};
use crate::{
    leftover,
    rule::{Context, RuleError, Verdict},
    sight::{Fate, Sight},
};

/// How long publishes of one step are tried before the next step goes on.
const PATIENCE: Pace = Pace::call(Duration::from_secs(10));
/// Clocks of NATS and Redis may differ by this much where the journal is read from the creation of a job on (ms).
const SKEW_MS: u64 = 60_000;
/// Why a job failed whose message is nowhere.
const LOST: &str = "its message vanished from the broker, and no journal has an outcome";

/// What was found of a waiting job.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// Its message, and what becomes of it. `is_forgotten`: its consumer does not deliver all that it should.
    There { message: Box<Delivery>, fate: Fate, is_forgotten: bool },
    /// The message is gone. What the journal has, and another message of the same job.
    Gone { ending: Option<Box<Event>>, other: Option<Carrier> },
    /// A schedule will make its message.
    Scheduled { due_in: Duration },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    Commit(CarrierAct),
    /// A copy takes the place of the message.
    HandOn,
    /// A copy did already, and came to nothing.
    GiveUp,
}

/// Times that bound the patience with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// Between two looks at least.
    pub(crate) look: Duration,
    /// Within this time a delivered message comes to something, or is delivered again.
    pub(crate) redelivery: Duration,
}

impl Patience {
    pub(crate) fn of(x: &Context) -> Self {
        let look = x.settings.reaper.carrier_check;
        Self { look, redelivery: x.c.found.ack_wait + look }
    }
}

/// Decides about one job. `is_copy`: its message took the place of another one since the last attempt.
pub(crate) fn decide(r: &Record, found: &Found, is_copy: bool, patience: Patience, now_ms: u64) -> Next {
    let again = |after, looks| Next::Commit(CarrierAct::LookAgain { after, looks });
    let since = r.due_ms.max(r.created_ms);
    match found {
        Found::Scheduled { due_in } => again(*due_in + patience.look, 0),
        Found::There { fate: Fate::Waits | Fate::Scheduled | Fate::Uncovered, .. } => {
            again(next_look(since, now_ms, patience.look), 0)
        }
        // Somebody may be about to claim it, or hands it on: once more, when it would have come again.
        Found::There { fate: Fate::Delivered, .. } if r.told == 0 => again(patience.redelivery, 1),
        Found::There { fate: Fate::Delivered, is_forgotten: false, .. } => {
            again(next_look(since, now_ms, patience.redelivery), r.told.saturating_add(1).min(1000))
        }
        Found::There { fate: Fate::Delivered | Fate::Dead, .. } => {
            if is_copy {
                Next::GiveUp
            } else {
                Next::HandOn
            }
        }
        Found::Gone { ending: Some(e), .. } if e.generation >= r.generation => {
            let status = Status::ALL.into_iter().find(|s| s.name() == e.status && s.is_terminal());
            let code = e.data.pointer("/receipt/error_code").and_then(|c| c.as_str()).unwrap_or_default();
            match status {
                Some(status) => Next::Commit(CarrierAct::Ended {
                    status,
                    code: code.to_owned(),
                    rev: e.rev,
                    epoch: e.epoch,
                }),
                // A newer release knows what it means.
                None => again(patience.redelivery, 0),
            }
        }
        Found::Gone { other: Some(carrier), .. } => {
            Next::Commit(CarrierAct::Replace { carrier: carrier.to_string(), after: patience.look })
        }
        Found::Gone { .. } => Next::Commit(CarrierAct::Lost { receipt: String::new(), data: String::new() }),
    }
}

/// Looks for the messages of waiting jobs. A job whose look failed is left out, and comes again.
pub(crate) async fn find<'a>(
    x: &Context,
    sight: &Sight,
    jobs: &'a [(JobId, Record)],
    now_ms: u64,
) -> Result<Vec<(&'a JobId, &'a Record, Found)>, RuleError> {
    let mut there = HashMap::new();
    let mut gone = HashSet::new();
    for (id, r) in jobs {
        match message_of(x, id, r).await? {
            Some(m) => {
                let fate = sight.fate_of(x, &m).await?;
                let is_forgotten = match (fate, sight.lane_of(x, &m).await?) {
                    (Fate::Delivered, Some(at)) if r.told > 0 => sight.forgotten(x, &at.lane).await? > 0,
                    _ => false,
                };
                there.insert(id, Found::There { message: Box::new(m), fate, is_forgotten });
            }
            None => {
                gone.insert(id.to_string());
            }
        }
    }
    // Once for all of them, from the creation of the oldest on.
    let from = jobs.iter().filter(|(id, _)| gone.contains(id.as_str())).map(|(_, r)| r.created_ms).min();
    let mut endings = match from {
        Some(from) => x.c.broker.find_endings(&gone, from.saturating_sub(SKEW_MS)).await?,
        None => HashMap::new(),
    };
    let mut out = Vec::with_capacity(jobs.len());
    for (id, r) in jobs {
        let found = match there.remove(id) {
            Some(found) => found,
            None => look_elsewhere(x, id, r, endings.remove(id.as_str()), now_ms).await?,
        };
        out.push((id, r, found));
    }
    Ok(out)
}

/// The recorded message, if it is there and is this job's.
async fn message_of(x: &Context, id: &JobId, r: &Record) -> Result<Option<Delivery>, RuleError> {
    let found = x.c.broker.carrier_message(&r.carrier).await?;
    Ok(found.filter(|m| is_of(x, m, id, r.generation)))
}

/// Whether a message carries this generation of a job.
pub(crate) fn is_of(x: &Context, m: &Delivery, id: &JobId, generation: u32) -> bool {
    let Some(queue) = x.c.broker.names().queue_of(&m.subject).and_then(|q| QueueName::new(q).ok()) else {
        return false;
    };
    match decode(&x.c.broker, &queue, m, &x.c.found.jobs_created) {
        Ok(d) => d.job.id == *id && d.generation == generation,
        // Read by the release that recorded it.
        Err(u) => u.id == *id && u.generation == generation,
    }
}

async fn look_elsewhere(
    x: &Context,
    id: &JobId,
    r: &Record,
    ending: Option<Event>,
    now_ms: u64,
) -> Result<Found, RuleError> {
    if let Some(e) = ending.filter(|e| e.generation >= r.generation) {
        return Ok(Found::Gone { ending: Some(Box::new(e)), other: None });
    }
    let queues = x.c.broker.found().await?.queues;
    let Some((_, m)) = x.c.broker.find_carrier(&queues, id).await? else {
        return Ok(Found::Gone { ending: None, other: None });
    };
    if let Some(at) = due_at(&m) {
        let at_ms = u64::try_from(at.as_millisecond()).unwrap_or(0);
        return Ok(Found::Scheduled { due_in: Duration::from_millis(at_ms.saturating_sub(now_ms)) });
    }
    let other = is_of(x, &m, id, r.generation).then(|| m.carrier());
    Ok(Found::Gone { ending: None, other })
}

/// Looks for the messages of waiting jobs of one partition, commits what follows, and does the rest. Returns the number of
/// acts beyond looking again.
pub(crate) async fn check(
    x: &Context,
    p: u32,
    jobs: &[(JobId, Record)],
    now_ms: u64,
) -> Result<usize, RuleError> {
    let sight = Sight::default();
    let found = find(x, &sight, jobs, now_ms).await?;
    let patience = Patience::of(x);
    let mut acted = 0;
    let (mut items, mut of) = (Vec::new(), Vec::new());
    for (id, r, found) in &found {
        match next(r, id, found, patience, now_ms) {
            Next::Commit(act) => {
                items.push(item(id, r, fill(id, r, act)));
                of.push((*r, found));
            }
            next => {
                if let Found::There { message, .. } = found {
                    acted += usize::from(move_on(x, p, id, r, message, &next).await?);
                }
            }
        }
    }
    let answer = x.c.store.on_carriers(p, &items).await?;
    x.c.relay.publish(p, &answer.entries, PATIENCE).await?;
    for ((item, (r, found)), reply) in items.iter().zip(of).zip(answer.results) {
        if !matches!(reply, DueReply::Applied(_)) {
            continue;
        }
        let sleeps = asleep(r, found, &item.act);
        let label = if sleeps.is_some() { "woken" } else { label(&item.act) };
        reaper().carriers.with_label_values(&[label]).inc();
        acted += usize::from(sleeps.is_some() || !matches!(item.act, CarrierAct::LookAgain { .. }));
        tell(&item.id, r, &item.act);
        if let Some(message) = sleeps {
            // Ordering: after the commit, so that of several reapers one does it. One that dies before it looks again.
            sleepers::wake(x, &sight, r, message).await?;
        }
    }
    Ok(acted)
}

/// What is to be done about one job.
pub(crate) fn next(r: &Record, id: &JobId, found: &Found, patience: Patience, now_ms: u64) -> Next {
    let is_copy = matches!(found, Found::There { message, .. } if copies_made(id, r, message) > 0);
    decide(r, found, is_copy, patience, now_ms)
}

/// How many copies were made since the last attempt began, down to this message.
pub(super) fn copies_made(id: &JobId, r: &Record, message: &Delivery) -> u32 {
    QueueName::new(&r.queue).map_or(0, |queue| {
        Moved { job: id, queue: &queue, generation: r.generation, epoch: r.epoch }.nth(message)
    })
}

/// The message of a job that waits for its turn, where it is asleep, or on its way already: given back it comes once more.
fn asleep<'a>(r: &Record, found: &'a Found, act: &CarrierAct) -> Option<&'a Delivery> {
    match (found, act) {
        (Found::There { message, fate: Fate::Delivered, .. }, CarrierAct::LookAgain { .. })
            if sleepers::is_in_line(r) =>
        {
            Some(message)
        }
        _ => None,
    }
}

/// A message that nobody delivers any more: handed on, or given up. `false`: nothing was done.
pub(crate) async fn move_on(
    x: &Context,
    p: u32,
    id: &JobId,
    r: &Record,
    message: &Delivery,
    next: &Next,
) -> Result<bool, RuleError> {
    if *next == Next::GiveUp {
        reaper().carriers.with_label_values(&["given_up"]).inc();
        return max_deliver::give_up(x, message.carrier()).await;
    }
    hand_on(x, p, id, r, message).await
}

/// Puts a copy in the place of a message. `false`: the record changed meanwhile, or no copy could be stored now.
pub(super) async fn hand_on(
    x: &Context,
    p: u32,
    id: &JobId,
    r: &Record,
    message: &Delivery,
) -> Result<bool, RuleError> {
    let (old, patience) = (message.carrier(), Patience::of(x));
    let Some(queue) = x.c.broker.names().queue_of(&message.subject).and_then(|q| QueueName::new(q).ok())
    else {
        return Ok(false);
    };
    let moved = Moved { job: id, queue: &queue, generation: r.generation, epoch: r.epoch };
    let copy = x.c.broker.copy_carrier(&x.c.publisher, message, &moved, PATIENCE).await?;
    fault::point("carrier_copied");
    let act = match copy {
        Some(copy) => CarrierAct::Replace { carrier: copy.to_string(), after: patience.look },
        // It was taken away: an attempt or an outcome came of it. Another one can be stored later.
        None => CarrierAct::LookAgain { after: x.settings.layout.duplicate_window, looks: r.told },
    };
    let answer = x.c.store.on_carriers(p, &[item(id, r, act)]).await?;
    fault::point("carrier_replaced");
    let is_replaced = copy.is_some() && matches!(answer.results.first(), Some(DueReply::Applied(_)));
    // A worker may have claimed with the copy before.
    let now = if is_replaced { None } else { x.c.store.record(id).await? };
    let is_carried_by_copy =
        copy.is_some_and(|copy| is_replaced || now.is_some_and(|now| now.carrier == copy.to_string()));
    if is_carried_by_copy {
        tracing::warn!(job_id = %id, %old, epoch = r.epoch, "a copy takes the place of a message that nobody delivers");
        reaper().carriers.with_label_values(&["handed_on"]).inc();
        leftover::discard(x, queue.as_str(), old).await?;
    }
    Ok(is_carried_by_copy)
}

pub(crate) fn item(id: &JobId, r: &Record, act: CarrierAct) -> CarrierItem {
    CarrierItem { id: id.clone(), rev: r.rev, promise_ms: r.promise_ms, carrier: r.carrier.clone(), act }
}

/// Gives what ends a job its words.
fn fill(id: &JobId, r: &Record, act: CarrierAct) -> CarrierAct {
    let CarrierAct::Lost { .. } = act else { return act };
    let kind = TypeName::new(&r.job_type).unwrap_or_else(|_| TypeName::unknown());
    let started = iso_millis(r.started_ms).filter(|_| r.started_ms > 0);
    let mut draft = Draft::new(id, r.generation, &kind, Status::Failed.name());
    draft.error_code = Some(ErrorCode::MessageLost);
    draft.message = Some(LOST);
    draft.started_at = started.as_deref();
    draft.trace = (!r.trace.is_empty()).then_some(r.trace.as_str());
    let data = serde_json::json!({ "error_code": ErrorCode::MessageLost, "message": LOST });
    CarrierAct::Lost { receipt: draft.open_json(), data: data.to_string() }
}

fn label(act: &CarrierAct) -> &'static str {
    match act {
        CarrierAct::LookAgain { looks: 0, .. } => "waits",
        CarrierAct::LookAgain { .. } => "delivered",
        CarrierAct::Replace { .. } => "adopted",
        CarrierAct::Lost { .. } => "lost",
        CarrierAct::Ended { .. } => "ended",
    }
}

fn tell(id: &JobId, r: &Record, act: &CarrierAct) {
    match act {
        CarrierAct::LookAgain { .. } => {}
        CarrierAct::Replace { carrier, .. } => {
            tracing::warn!(job_id = %id, was = r.carrier, carrier, "the recorded message is gone; another one carries the job")
        }
        CarrierAct::Lost { .. } => {
            job_ended(&r.queue, &r.job_type, Status::Failed, ErrorCode::MessageLost.name());
            tracing::error!(job_id = %id, carrier = r.carrier, alert = "message_lost", "job failed: {LOST}");
        }
        CarrierAct::Ended { status, rev, .. } => tracing::warn!(
            job_id = %id, status = status.name(), rev, record = r.status.name(),
            "the journal has the outcome of a job whose record was open"
        ),
    }
}

/// What would be done, for people.
pub(crate) fn verdict(id: &JobId, r: &Record, found: &Found, next: &Next) -> Option<Verdict> {
    let seen = match found {
        Found::There { fate, is_forgotten, .. } => {
            let known = if *is_forgotten { ", and its consumer forgot some of its messages" } else { "" };
            format!("its message {} is there: {fate:?}{known}", r.carrier)
        }
        Found::Scheduled { .. } => "a schedule will make its message".to_owned(),
        Found::Gone { ending: Some(e), .. } => {
            format!("its message {} is gone; the journal has {} with revision {}", r.carrier, e.status, e.rev)
        }
        Found::Gone { other: Some(c), .. } => {
            format!("its message {} is gone; {c} is the same job", r.carrier)
        }
        Found::Gone { .. } => format!("its message {} is gone, and nothing else is known of it", r.carrier),
    };
    let does = match next {
        Next::Commit(act @ CarrierAct::LookAgain { .. }) if asleep(r, found, act).is_some() => {
            "give its message back, so that its guards are asked again"
        }
        Next::Commit(CarrierAct::LookAgain { .. }) => return None,
        Next::Commit(CarrierAct::Replace { .. }) => "record the other message",
        Next::Commit(CarrierAct::Lost { .. }) => "fail it as `message_lost`",
        Next::Commit(CarrierAct::Ended { .. }) => "give the record the outcome of the journal",
        Next::HandOn => "put a copy in its place",
        Next::GiveUp => "bury it as `max_deliver`: a copy took its place already and came to nothing",
    };
    let evidence = format!("{} of revision {}, told {}; {seen}", r.status.name(), r.rev, r.told);
    Some(Verdict::new(id, evidence, does))
}
