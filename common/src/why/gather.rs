//! Reading what [`super::explain`] judges. Each source that fails is told as unknown, but for the record: without it there is
//! nothing to explain.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    CarrierFacts, Facts, GuardFacts, MessageFacts, OwnerFacts, QueueFacts, Why,
    explain::{EVENTS_SHOWN, explain},
    locks,
};
use crate::{
    broker::{Broker, place::Carrier, queues::LaneState},
    connect::Connected,
    domain::{
        ErrorCode, JobId, QueueName, Status,
        deadline::millis,
        ids::SessionId,
        pause::{Slot, Target},
    },
    guard_view::view,
    lookup::{LookupError, Seen, find, journal_part},
    store::{Record, StoreError, TYPES_SAID, guards},
    view::JobView,
    wire::event::Event,
};

/// Most events of one job that are kept for the list of its attempts.
const ATTEMPT_EVENTS: usize = 400;

/// Looks a job up and explains it; `None` when no source knows it. `overstay`: how long reapers let an attempt go on past its
/// time limit. Errors: the record, or the search for the job, could not be read.
pub async fn why(c: &Connected, id: &JobId, overstay: Duration) -> Result<Option<Why>, LookupError> {
    Ok(gather(c, id, overstay).await?.map(explain))
}

/// Reads everything that is known of a job.
pub async fn gather(c: &Connected, id: &JobId, overstay: Duration) -> Result<Option<Facts>, LookupError> {
    let Some(seen) = find(c, id).await? else { return Ok(None) };
    let (view, record) = match &seen {
        Seen::Record(r) => {
            let detail = c.store.detail(id).await?;
            (JobView::of_record(id, r, detail.as_deref()), Some((**r).clone()))
        }
        Seen::Waiting(queue, m) => (JobView::of_carrier(id, queue, m), None),
        Seen::Journal(e) => {
            let newer = || LookupError::NewerRelease { id: id.clone(), status: e.status.clone() };
            (JobView::of_event(id, e).ok_or_else(newer)?, None)
        }
    };
    let now_ms = c.store.now_ms_of(c.store.keys().partition(id)).await?;
    let mut f = Facts { record, overstay_ms: millis(overstay), ..Facts::of(id.clone(), now_ms, view) };
    f.store_closed = match c.store.check().await {
        Err(e @ (StoreError::Rebuilding | StoreError::OtherStore(_))) => Some(e.to_string()),
        Ok(()) | Err(_) => None,
    };
    if let Some(r) = f.record.clone().filter(|r| r.status.is_running()) {
        note(&mut f.unknown, "its owner", owner(c, id, &r).await, |o| f.owner = Some(o));
    }
    if !f.view.is_terminal && f.record.as_ref().is_none_or(|r| !r.status.is_running()) {
        let (queue, kind, key) = (f.view.queue.clone(), f.view.job_type.clone(), f.view.key.clone());
        note(&mut f.unknown, "what is paused", c.broker.pauses().await, |known| {
            let holding = known.pauses.all_of(&queue, kind.as_deref(), key.as_deref(), known.now_ms);
            f.pauses = holding.cloned().collect();
        });
    }
    if let Some(lane) = whereabouts(&c.broker, &mut f).await {
        crew(c, &mut f, lane).await;
    }
    let waits = f.record.as_ref().filter(|r| r.status == Status::Deferred);
    let member = waits.map(|r| guards::member(id, r.generation));
    let read = locks::read(c, std::mem::take(&mut f.locks), member.as_deref()).await;
    note(&mut f.unknown, "its locks", read, |l| f.locks = l);
    let (queue, from_ms) = journal_part(&seen);
    let mut story = Story::of(id);
    match c.broker.look_through_journal(queue.as_deref(), from_ms, |e| story.add(e)).await {
        Ok(0) => {}
        Ok(n) => f.unknown.push(format!("{n} journal messages held something unreadable")),
        Err(e) => f.unknown.push(format!("its journal: {e}")),
    }
    (f.events, f.is_cut) = story.told();
    guard(c, &mut f).await;
    if let Some(r) = f.record.clone().filter(|r| r.status.is_terminal() && !r.entry.is_empty()) {
        let is_told = f.events.iter().any(|e| e.generation == r.generation && e.kind == "finished");
        let p = c.store.keys().partition(id);
        note(&mut f.unknown, "the outbox", c.store.has_entry(p, &r.entry).await, |is_there| {
            // An entry is trimmed some time after it was journaled.
            f.is_unjournaled = is_there && !is_told;
        });
    }
    Ok(Some(f))
}

/// The guard that its last deferral names.
async fn guard(c: &Connected, f: &mut Facts) {
    let Some(r) = f.record.as_ref().filter(|r| r.status == Status::Deferred) else { return };
    if r.code == ErrorCode::StartFailed.name() {
        return;
    }
    let said = f.events.iter().rev().find(|e| e.kind == "deferred" && e.data.get("guard").is_some());
    let text = |key: &str| said.and_then(|e| e.data.get(key)).and_then(|v| v.as_str()).map(str::to_owned);
    let label = text("guard").unwrap_or_else(|| "a guard".into());
    let mut found = GuardFacts {
        reason: r.code.clone(),
        label: paused_by(f, &label).unwrap_or(label),
        now: None,
        before: None,
    };
    if let Some(hash) = text("scope") {
        let p = guards::partition(&hash, c.store.keys().partitions());
        let member = guards::member(&f.id, r.generation);
        note(&mut f.unknown, "its guard", c.store.scope_state(p, &hash).await, |s| {
            found.now = s.as_ref().map(view);
        });
        note(&mut f.unknown, "its place in line", c.store.place_in_line(p, &hash, &member).await, |n| {
            found.before = n;
        });
    }
    f.guard = Some(found);
}

/// What is paused, by its own name, where `label` is the place of a pause: a key is known by a hash there.
fn paused_by(f: &Facts, label: &str) -> Option<String> {
    let slot = Slot::parse(label)?;
    let mut targets = f.pauses.iter().map(|p| p.target.clone());
    let own_key = || f.view.key.as_deref().and_then(|k| Target::key(k).ok()).filter(|t| t.slot() == slot);
    let found = targets.find(|t| t.slot() == slot).or_else(own_key).or_else(|| slot.target());
    found.map(|t| t.to_string())
}

/// Takes what was read, or notes that it could not be.
pub(super) fn note<T, E: std::fmt::Display>(
    unknown: &mut Vec<String>,
    what: &str,
    read: Result<T, E>,
    take: impl FnOnce(T),
) {
    match read {
        Ok(found) => take(found),
        Err(e) => unknown.push(format!("{what}: {e}")),
    }
}

async fn owner(c: &Connected, id: &JobId, r: &Record) -> Result<OwnerFacts, StoreError> {
    let p = c.store.keys().partition(id);
    let session = SessionId::new(&r.session).map_err(|e| StoreError::Decode(e.to_string()))?;
    let info = c.store.session_info(p, &session).await?;
    Ok(OwnerFacts {
        info: info.as_deref().and_then(|i| serde_json::from_str(i).ok()),
        expires_ms: c.store.lease(p, &session).await?,
    })
}

/// The carrier, and the consumer that stands between it and a worker where the job waits for one.
pub(super) async fn whereabouts(broker: &Broker, f: &mut Facts) -> Option<LaneState> {
    let (Some(name), Ok(queue)) = (f.view.carrier.clone(), QueueName::new(&f.view.queue)) else {
        return None;
    };
    let carrier = Carrier::parse(&name)?;
    if f.view.source == "schedule" {
        // A schedule is no message of a queue yet.
        let message = broker.carrier_message(&name).await;
        note(&mut f.unknown, "its message", message, |m| {
            let message = m.map(|m| MessageFacts {
                subject: m.subject.to_string(),
                stored_ms: m.stored_ms,
                is_delivered: None,
                ahead: None,
            });
            f.carrier = Some(CarrierFacts { name, message });
        });
        return None;
    }
    let mut name = name;
    let mut found = match broker.whereabouts(&queue, carrier).await {
        Ok(found) => found?,
        Err(e) => {
            f.unknown.push(format!("its message and its queue: {e}"));
            return None;
        }
    };
    if found.message.is_none()
        && let Ok(id) = JobId::new(&f.view.id)
        && let Ok(Some(m)) = broker.postponed(&queue, &id, &name).await
    {
        name = m.carrier().to_string();
        found.message = Some(m);
        found.is_delivered = None;
    }
    f.locks = found.message.as_ref().map(|m| locks::named(&m.payload)).unwrap_or_default();
    f.carrier = Some(CarrierFacts {
        name,
        message: found.message.map(|m| MessageFacts {
            subject: m.subject.to_string(),
            stored_ms: m.stored_ms,
            is_delivered: found.is_delivered,
            ahead: found.ahead,
        }),
    });
    let is_waiting = f.record.as_ref().is_none_or(|r| !r.status.is_terminal() && !r.status.is_running());
    (is_waiting && !f.view.is_terminal).then_some(found.lane)
}

/// The workers of its queue.
async fn crew(c: &Connected, f: &mut Facts, lane: LaneState) {
    let (now, queue) = (f.now_ms, f.view.queue.clone());
    note(&mut f.unknown, "the workers", c.store.crew().await, |crew| {
        let mut q = QueueFacts { lane, workers: Some(0), slots: 0, busy: 0, types: Some(BTreeSet::new()) };
        let alive = crew.iter().filter(|m| m.expires_ms > now);
        for (m, info) in alive.filter_map(|m| Some((m, m.info.as_ref()?))) {
            if info.serves(&queue) == Some(true) {
                let slots = info.slots.unwrap_or(0);
                q.workers = q.workers.map(|n| n + 1);
                (q.slots, q.busy) = (q.slots + slots, q.busy + m.n_held.min(slots));
                match (&mut q.types, &info.types) {
                    (Some(all), Some(some)) if some.len() < TYPES_SAID => all.extend(some.iter().cloned()),
                    (all, _) => *all = None,
                }
            }
        }
        f.queue = Some(q);
    });
}

/// The events of one job that are worth keeping: those of attempts, and the last ones.
pub(super) struct Story {
    job: JobId,
    attempts: BTreeMap<(u64, u32), Event>,
    last: BTreeMap<(u64, u32), Event>,
    is_cut: bool,
}

impl Story {
    pub(super) fn of(id: &JobId) -> Self {
        Self { job: id.clone(), attempts: BTreeMap::new(), last: BTreeMap::new(), is_cut: false }
    }

    pub(super) fn add(&mut self, e: Event) {
        if e.job != self.job.as_str() {
            return;
        }
        // A relayed copy has the same revision and generation.
        let key = (e.rev, e.generation);
        let is_of_attempt = matches!(
            e.kind.as_str(),
            "started" | "attempt_failed" | "lost" | "released" | "deferred" | "finished" | "cancel_requested"
        );
        if is_of_attempt {
            self.attempts.insert(key, e.clone());
            if self.attempts.len() > ATTEMPT_EVENTS {
                self.attempts.pop_first();
            }
        }
        self.last.insert(key, e);
        if self.last.len() > EVENTS_SHOWN {
            self.last.pop_first();
            self.is_cut = true;
        }
    }

    pub(super) fn told(mut self) -> (Vec<Event>, bool) {
        self.attempts.append(&mut self.last);
        (self.attempts.into_values().collect(), self.is_cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BrokerError;

    fn event(rev: u64, kind: &str) -> Event {
        let text = format!(
            r#"{{"v":1,"job":"a","gen":1,"rev":{rev},"kind":"{kind}","at":"2026-11-21T08:00:00.000Z","queue":"q",
                "type":"t","status":"running","contract":"acked","attempt":1,"epoch":1}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_long_story_keeps_its_attempts_and_its_end() {
        let mut s = Story::of(&JobId::new("a").unwrap());
        s.add(event(1, "started"));
        for rev in (2..1000).chain(2..1000) {
            s.add(event(rev, "progress"));
        }
        s.add(Event { job: "b".into(), ..event(1, "lost") });
        let (events, is_cut) = s.told();
        assert!(is_cut);
        let revs: Vec<u64> = events.iter().map(|e| e.rev).collect();
        assert_eq!(revs, std::iter::once(1).chain(980..1000).collect::<Vec<_>>());
    }

    #[test]
    fn what_could_not_be_read_is_noted() {
        let mut unknown = Vec::new();
        note(&mut unknown, "x", Err::<(), _>(BrokerError::Unfit("no".into())), |()| ());
        assert_eq!(unknown, ["x: no"]);
    }
}
