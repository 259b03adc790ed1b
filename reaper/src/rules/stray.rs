//! The stream against its consumers: messages that nobody will deliver. There is no list of them, so the numbers are asked
//! first, which is cheap; only while they say that some are missing, the stream is read in bounded batches. What is found of no
//! record is registered, and then looked after like any other waiting job (`carrier_check`); one more message of an open job is
//! taken away; so is one whose job has its outcome, or vanishes with its bytes kept where it is no job.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use surety_common::{
    broker::{
        decode::{Decoded, Undecoded, decode},
        place::CarrierStream,
        pull::Delivery,
    },
    clock::format_span,
    domain::{QueueName, Status},
    store::{CarrierAct, DueReply, Record, StoreError, ops::Ended},
    wire::event::Event,
};

use super::{carrier_check, max_deliver, waiting};
use crate::{
    leftover,
    rule::{Context, Done, Look, Rule, RuleError, Step, Verdict},
    sight::{Fate, Sight},
};

/// The numbers are asked for at every so many steps.
const EVERY: u32 = 5;
/// Looks at the numbers, one after the other, before they are believed: they are no snapshot, and jobs come and go.
const SAMPLES: usize = 3;
/// Between two of them.
const BETWEEN: Duration = Duration::from_millis(200);
/// Pages of one stream that one step reads at most.
const PAGES: usize = 100;
/// Clocks of NATS and Redis may differ by this much (ms).
const SKEW_MS: u64 = 60_000;

/// The rule. Remembers per stream how far a walk came, and which subjects it told of.
#[derive(Default)]
pub(crate) struct Stray {
    steps: AtomicU32,
    /// Sequence at which a walk goes on.
    walks: Mutex<HashMap<CarrierStream, u64>>,
    told: Mutex<HashSet<String>>,
}

/// A message that nobody will deliver, or may not, and what is known of its job.
struct Found {
    message: Delivery,
    queue: QueueName,
    fate: Fate,
    /// How long it has been in the stream.
    age: Duration,
    job: Result<Decoded, Box<Undecoded>>,
    record: Option<Record>,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Somebody else looks after it, or will deliver it.
    Leave,
    /// Its job has no record.
    Register,
    /// Its job has the outcome, or a later generation.
    Remove,
    /// Another message carries its open job, if that one is there.
    Second,
    /// It is no job, and no worker will ever say so.
    Bury,
}

/// Times that bound the patience with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Patience {
    /// Within this time a delivered message comes to something.
    delivered: Duration,
    /// Within this time one that a worker cannot read is handed on often enough.
    unread: Duration,
}

impl Patience {
    fn of(x: &Context) -> Self {
        let (w, look) = (&x.settings.worker, x.settings.reaper.carrier_check);
        let delivered = x.c.found.ack_wait + look;
        let times = u32::try_from(w.hand_on_limit.0).unwrap_or(u32::MAX).saturating_mul(2);
        Self { delivered, unread: delivered + w.hand_on_delay.saturating_mul(times) }
    }
}

/// Decides about one message. `generation`: `None` where it is no job. `own`: its name as a carrier.
fn decide(
    fate: Fate,
    age: Duration,
    patience: Patience,
    generation: Option<u32>,
    own: &str,
    record: Option<&Record>,
) -> Next {
    let lasts = |within| match fate {
        Fate::Waits | Fate::Scheduled => false,
        Fate::Dead | Fate::Uncovered => true,
        Fate::Delivered => age > within,
    };
    let Some(generation) = generation else {
        let is_lost = fate != Fate::Uncovered && lasts(patience.unread);
        return if is_lost { Next::Bury } else { Next::Leave };
    };
    match record {
        _ if !lasts(patience.delivered) => Next::Leave,
        None => Next::Register,
        Some(r) if r.generation > generation => Next::Remove,
        Some(r) if r.generation == generation && r.status.is_terminal() => Next::Remove,
        Some(r) if r.generation < generation => Next::Register,
        Some(r) if r.carrier != own => Next::Second,
        Some(_) => Next::Leave,
    }
}

impl Found {
    fn next(&self, patience: Patience) -> Next {
        let generation = self.job.as_ref().ok().map(|d| d.generation);
        let own = self.message.carrier().to_string();
        decide(self.fate, self.age, patience, generation, &own, self.record.as_ref())
    }
}

impl Rule for Stray {
    fn name(&self) -> &'static str {
        "stray"
    }

    fn look<'a>(&'a self, x: &'a Context) -> Look<'a> {
        Box::pin(async move {
            let mut out = Vec::new();
            for of in CarrierStream::ALL {
                let n = missing(x, of).await?;
                let (sight, mut at) = (Sight::default(), 1);
                while n > 0
                    && let Some(found) = page(x, &sight, of, &mut at).await?
                {
                    out.extend(found.iter().filter_map(|f| verdict(f, f.next(Patience::of(x)), n)));
                }
            }
            Ok(out)
        })
    }

    fn step<'a>(&'a self, x: &'a Context) -> Step<'a> {
        Box::pin(async move {
            let mut done = Done::default();
            let is_asked = self.steps.fetch_add(1, Ordering::Relaxed).is_multiple_of(EVERY);
            for of in CarrierStream::ALL {
                let mut at = self.place(of);
                // A walk that began goes to its end.
                if at == 1 && (!is_asked || missing(x, of).await? == 0) {
                    continue;
                }
                let sight = Sight::default();
                let mut pages = 0;
                let is_over = loop {
                    if pages == PAGES {
                        break false;
                    }
                    let Some(found) = page(x, &sight, of, &mut at).await? else { break true };
                    pages += 1;
                    self.tell(&found);
                    done.acted += act(x, &found).await?;
                };
                self.keep(of, if is_over { 1 } else { at });
                done.is_partial |= !is_over;
            }
            Ok(done)
        })
    }
}

impl Stray {
    fn place(&self, of: CarrierStream) -> u64 {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner).get(&of).copied().unwrap_or(1)
    }

    fn keep(&self, of: CarrierStream, at: u64) {
        self.walks.lock().unwrap_or_else(PoisonError::into_inner).insert(of, at);
    }

    /// Says once of each queue that nobody covers it.
    fn tell(&self, found: &[Found]) {
        for f in found.iter().filter(|f| f.fate == Fate::Uncovered) {
            let of = format!("{} of {}", f.queue, f.message.carrier().stream.name());
            if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(of) {
                tracing::error!(
                    queue = %f.queue, subject = %f.message.subject, alert = "stray_subject",
                    "messages wait on a subject that no consumer covers: add the queue to layout.queues and run `surety provision`"
                );
            }
        }
    }
}

/// At least so many messages of a stream are neither waiting nor held by a consumer.
async fn missing(x: &Context, of: CarrierStream) -> Result<u64, RuleError> {
    let mut least = u64::MAX;
    for sample in 0..SAMPLES {
        if sample > 0 {
            tokio::time::sleep(BETWEEN).await;
        }
        let before = accounted(x, of).await?;
        let there = x.c.broker.carried_by(of).await?;
        if there <= before {
            return Ok(0);
        }
        // What was taken or added meanwhile is in one of the two.
        least = least.min(there.saturating_sub(before.max(accounted(x, of).await?)));
        if least == 0 {
            break;
        }
    }
    Ok(least)
}

/// What the consumers of a stream have before them or hold.
async fn accounted(x: &Context, of: CarrierStream) -> Result<u64, RuleError> {
    let mut n = 0;
    for lane in x.c.broker.lanes().await?.into_iter().filter(|l| l.of == of) {
        let at = x.c.broker.position(&lane).await?;
        n += at.waiting + at.held;
    }
    Ok(n)
}

/// The next messages of a walk that may be delivered to nobody; `None` at the end of the stream.
async fn page(
    x: &Context,
    sight: &Sight,
    of: CarrierStream,
    at: &mut u64,
) -> Result<Option<Vec<Found>>, RuleError> {
    let names = x.c.broker.names();
    let (messages, _) = x.c.broker.messages(&names.stream(of), *at, &names.carried(of), x.batch).await?;
    let Some(last) = messages.last() else { return Ok(None) };
    *at = last.sequence + 1;
    let now = x.c.broker.now_ms().await?;
    let mut out = Vec::new();
    for message in messages {
        let fate = sight.fate_of(x, &message).await?;
        let queue = names.queue_of(&message.subject).and_then(|q| QueueName::new(q).ok());
        let Some(queue) = queue.filter(|_| !matches!(fate, Fate::Waits | Fate::Scheduled)) else { continue };
        let job = decode(&x.c.broker, &queue, &message, &x.c.found.jobs_created);
        let record = match &job {
            Ok(d) => match x.c.store.record(&d.job.id).await {
                Err(StoreError::Unreadable { .. }) => continue,
                other => other?,
            },
            Err(_) => None,
        };
        let age = Duration::from_millis(now.saturating_sub(message.stored_ms));
        out.push(Found { message, queue, fate, age, job, record });
    }
    Ok(Some(out))
}

/// Does what follows. Returns the number of messages that were dealt with.
async fn act(x: &Context, found: &[Found]) -> Result<usize, RuleError> {
    let patience = Patience::of(x);
    let mut acted = 0;
    let mut endings = endings(x, found, patience).await?;
    let mut jobs = Vec::new();
    for f in found {
        let carrier = f.message.carrier();
        let done = match (f.next(patience), &f.job) {
            (Next::Register | Next::Remove, Ok(d)) => match endings.remove(d.job.id.as_str()) {
                // Its record was deleted since.
                Some(e) if e.generation >= d.generation => {
                    let ended = ended(&e);
                    leftover::remove(x, &f.message, &d.job.id, f.queue.as_str(), &ended).await.map(|()| true)
                }
                _ => {
                    jobs.push((&f.message, d));
                    continue;
                }
            },
            (Next::Second, Ok(d)) => second(x, f, d).await,
            (Next::Bury, _) => max_deliver::give_up(x, carrier).await,
            _ => continue,
        };
        acted += usize::from(leftover::of_several(done, carrier)? == Some(true));
    }
    Ok(acted + waiting::register(x, &jobs).await?)
}

/// The outcomes of jobs without a record, as the journal has them since their messages were stored.
async fn endings(
    x: &Context,
    found: &[Found],
    patience: Patience,
) -> Result<HashMap<String, Event>, RuleError> {
    let unknown: Vec<_> = found
        .iter()
        .filter(|f| f.record.is_none() && f.next(patience) == Next::Register)
        .filter_map(|f| Some((f.job.as_ref().ok()?.job.id.to_string(), f.message.stored_ms)))
        .collect();
    let Some(from) = unknown.iter().map(|(_, ms)| *ms).min() else { return Ok(HashMap::new()) };
    let ids: HashSet<String> = unknown.into_iter().map(|(id, _)| id).collect();
    Ok(x.c.broker.find_endings(&ids, from.saturating_sub(SKEW_MS)).await?)
}

fn ended(e: &Event) -> Ended {
    let status = Status::ALL.into_iter().find(|s| s.name() == e.status).unwrap_or(Status::Failed);
    let code = e.data.pointer("/receipt/error_code").and_then(|c| c.as_str()).unwrap_or_default();
    Ended { is_journaled: true, status, generation: e.generation, epoch: e.epoch, code: code.to_owned() }
}

/// One more message of an open job: taken away while the recorded one is there, else it takes its place.
async fn second(x: &Context, f: &Found, d: &Decoded) -> Result<bool, RuleError> {
    let (id, own) = (&d.job.id, f.message.carrier());
    let Some(r) = &f.record else { return Ok(false) };
    let recorded = x.c.broker.carrier_message(&r.carrier).await?;
    if recorded.is_some_and(|m| carrier_check::is_of(x, &m, id, r.generation)) {
        tracing::info!(job_id = %id, carrier = %own, recorded = r.carrier, "second message of an open job removed");
        leftover::discard(x, f.queue.as_str(), own).await?;
        return Ok(true);
    }
    let act = CarrierAct::Replace { carrier: own.to_string(), after: Duration::ZERO };
    let p = x.c.store.keys().partition(id);
    let answer = x.c.store.on_carriers(p, &[carrier_check::item(id, r, act)]).await?;
    Ok(matches!(answer.results.first(), Some(DueReply::Applied(_))))
}

/// What would be done, for people.
fn verdict(f: &Found, next: Next, missing: u64) -> Option<Verdict> {
    let does = match next {
        Next::Leave if f.fate == Fate::Uncovered => {
            "nothing: add its queue to layout.queues and run `surety provision`"
        }
        Next::Leave => return None,
        Next::Register => "register its job",
        Next::Remove => "remove it: its job has the outcome, or a later generation",
        Next::Second => "remove it while the recorded message is there, else record it",
        Next::Bury => "bury it: it is no job",
    };
    let record = f.record.as_ref().map_or("no record".to_owned(), |r| {
        format!(
            "its record says {} of generation {}, carried by {}",
            r.status.name(),
            r.generation,
            r.carrier
        )
    });
    let evidence = format!(
        "{missing} messages of its stream are neither waiting nor held; it is {:?}, stored {} ago on {}; {record}",
        f.fate,
        format_span(f.age),
        f.message.subject
    );
    Some(Verdict::new(f.message.carrier(), evidence, does))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience =
        Patience { delivered: Duration::from_secs(60), unread: Duration::from_secs(600) };
    const OLD: Duration = Duration::from_secs(61);

    fn record(generation: u32, status: Status, carrier: &str) -> Record {
        Record { generation, status, carrier: carrier.into(), ..Record::queued() }
    }

    #[test]
    fn what_will_be_delivered_or_just_was_is_left_alone() {
        let at = |fate, age| decide(fate, age, PATIENCE, Some(1), "JOBS:1", None);
        assert_eq!(at(Fate::Waits, OLD), Next::Leave);
        assert_eq!(at(Fate::Scheduled, OLD), Next::Leave);
        assert_eq!(at(Fate::Delivered, Duration::from_secs(60)), Next::Leave);
        assert_eq!(at(Fate::Delivered, OLD), Next::Register);
        assert_eq!(at(Fate::Dead, Duration::ZERO), Next::Register);
        assert_eq!(at(Fate::Uncovered, Duration::ZERO), Next::Register);
    }

    #[test]
    fn the_record_of_its_job_says_what_a_message_is() {
        let at = |r: &Record| decide(Fate::Dead, OLD, PATIENCE, Some(2), "JOBS:1", Some(r));
        assert_eq!(at(&record(2, Status::Queued, "JOBS:1")), Next::Leave, "looked after as its carrier");
        assert_eq!(at(&record(2, Status::Running, "JOBS:7")), Next::Second);
        assert_eq!(at(&record(2, Status::Done, "JOBS:7")), Next::Remove);
        assert_eq!(at(&record(3, Status::Queued, "JOBS:7")), Next::Remove);
        assert_eq!(at(&record(1, Status::Done, "JOBS:7")), Next::Register, "a replay that nobody recorded");
    }

    #[test]
    fn what_is_no_job_is_buried_only_when_no_worker_can_be_about_to() {
        let at = |fate, age| decide(fate, age, PATIENCE, None, "JOBS:1", None);
        assert_eq!(at(Fate::Delivered, OLD), Next::Leave, "it may be handed on to a newer release");
        assert_eq!(at(Fate::Delivered, Duration::from_secs(601)), Next::Bury);
        assert_eq!(at(Fate::Dead, Duration::ZERO), Next::Bury);
        assert_eq!(at(Fate::Uncovered, Duration::from_secs(601)), Next::Leave);
    }
}
