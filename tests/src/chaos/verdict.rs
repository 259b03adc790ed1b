//! Whether every promise was kept, and what shows that one was not.

use std::collections::{BTreeMap, BTreeSet};

use surety_common::{
    broker::BrokerError,
    connect::Connected,
    domain::{JobId, Status, guard::GuardKind, ids::receipt_id},
    history::History,
    store::{Read, StoreError},
};

use super::{load::Book, traces::Traces};
use crate::{
    requester::Requester,
    witness::dead_letters,
    world::{World, messages},
};

/// Something that no run may show.
#[derive(Debug, Clone)]
pub struct Problem {
    /// `None`: of no single job.
    pub job: Option<String>,
    pub what: String,
}

/// What a run came to, in numbers.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    pub jobs: usize,
    pub events: usize,
    pub attempts: usize,
    pub lost: usize,
    pub copies: usize,
    pub outcomes: BTreeMap<&'static str, usize>,
}

/// Why the system cannot be asked: a server does not answer, although everything is healed.
#[derive(Debug)]
pub struct Away(String);

impl std::fmt::Display for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<StoreError> for Away {
    fn from(e: StoreError) -> Self {
        Self(e.to_string())
    }
}

impl From<BrokerError> for Away {
    fn from(e: BrokerError) -> Self {
        Self(e.to_string())
    }
}

/// What is still to come before the run is over; empty when everything has settled. `may_wipe`: records of jobs that had ended
/// may be gone for good, and the journal alone knows them.
pub async fn unsettled(
    world: &World,
    c: &Connected,
    book: &Book,
    may_wipe: bool,
) -> Result<Vec<Problem>, Away> {
    let mut out = Vec::new();
    let mut whole = |what: String| out.push(Problem { job: None, what });
    let left = messages(world, &c.broker.names().jobs()).await;
    if left > 0 {
        whole(format!("JOBS holds {left} messages"));
    }
    let receipts = messages(world, &c.broker.names().receipts()).await;
    if receipts > 0 {
        whole(format!("RECEIPTS holds {receipts} messages"));
    }
    let (open, outbox) = (c.store.n_open().await?, c.store.depths().await?.outbox);
    if open > 0 {
        whole(format!("the due index has {open} jobs"));
    }
    if outbox > 0 {
        whole(format!("the outbox holds {outbox} entries"));
    }
    for s in c
        .store
        .scopes()
        .await?
        .iter()
        .filter(|s| s.held > 0 || s.waiting > 0 && s.scope.kind != GuardKind::Rate)
    {
        whole(format!("guard {} has {} held and {} waiting", s.scope.label, s.held, s.waiting));
    }
    for s in c.store.fleet().await?.sessions {
        for h in s.held {
            let what = format!("session {} holds an attempt of epoch {}", s.id, h.epoch);
            out.push(Problem { job: Some(h.job.to_string()), what });
        }
    }
    let ids: Vec<JobId> = book.jobs.keys().map(|id| JobId::new(id).unwrap()).collect();
    for slice in ids.chunks(500) {
        for (id, record) in slice.iter().zip(c.store.records_of(slice).await?) {
            let what = match record {
                Read::Record(r) if r.status.is_terminal() => continue,
                Read::Record(r) => format!("it is {} under session {:?}", r.status.name(), r.session),
                Read::Missing if may_wipe => continue,
                Read::Missing => "it has no record".to_owned(),
                Read::Unreadable => "its record does not decode".to_owned(),
            };
            out.push(Problem { job: Some(id.to_string()), what });
        }
    }
    Ok(out)
}

/// Looks at everything, once the system has settled.
pub async fn judge(
    world: &World,
    c: &Connected,
    book: &Book,
    traces: &Traces,
    requester: &Requester,
) -> Result<(Figures, Vec<Problem>), Away> {
    let mut problems: Vec<Problem> =
        book.problems.iter().map(|p| Problem { job: None, what: p.clone() }).collect();
    let mut events = Vec::new();
    let unreadable = c.broker.read_journal(None, 0, |e| events.push(e)).await?;
    let mut figures = Figures { jobs: book.jobs.len(), events: events.len(), ..Figures::default() };
    if unreadable > 0 {
        problems.push(Problem { job: None, what: format!("{unreadable} unreadable journal messages") });
    }
    let history = match History::fold(events) {
        Ok(h) => h,
        Err(v) => {
            problems.push(Problem { job: None, what: format!("{v}: {v:?}") });
            return Ok((figures, problems));
        }
    };
    figures.copies = history.copies;
    for v in history.violations() {
        let surety_common::history::Violation::Job { job, what, .. } = v else { continue };
        problems.push(Problem { job: Some(job), what });
    }
    let letters: BTreeSet<String> = dead_letters(world).await.into_iter().map(|l| l.job).collect();
    for (id, sent) in &book.jobs {
        let mut say = |what: String| problems.push(Problem { job: Some(id.clone()), what });
        let trace = traces.of(id);
        trace.overlaps.iter().for_each(|o| say(format!("two attempts lived at once: {o}")));
        trace.shared.iter().for_each(|s| say(format!("what it had was not its own: {s}")));
        figures.attempts += history.count(id, "started");
        figures.lost += history.count(id, "lost");
        let outcomes = history.count(id, "finished");
        if outcomes != 1 {
            say(format!("it has {outcomes} outcomes in the journal"));
        }
        let Some(status) = history.status(id).and_then(of_name) else { continue };
        *figures.outcomes.entry(status.name()).or_default() += 1;
        let is_cancelled = status == Status::Cancelled;
        let is_fine = sent.kind.outcomes().contains(&status) || is_cancelled && sent.is_cancel_tried;
        if !is_fine {
            say(format!("it ended as {}, not as {:?}", status.name(), sent.kind.outcomes()));
        }
        if sent.is_cancel_promised && !is_cancelled {
            say(format!("`surety cancel` said that it is cancelled, and it is {}", status.name()));
        }
        if letters.contains(id) == (status == Status::Done) {
            let has = if letters.contains(id) { "a" } else { "no" };
            say(format!("it ended as {} and has {has} dead letter", status.name()));
        }
        told(id, sent.is_told, &history, requester).into_iter().for_each(&mut say);
        let claimed: BTreeSet<u64> = history.jobs.get(id).map_or_else(BTreeSet::new, |h| {
            h.events.iter().filter(|e| e.kind == "started").map(|e| e.epoch).collect()
        });
        for epoch in trace.epochs.difference(&claimed) {
            say(format!("a handler ran under epoch {epoch}, which nobody claimed"));
        }
    }
    for id in history.jobs.keys().filter(|id| !book.jobs.contains_key(*id)) {
        problems.push(Problem { job: Some(id.clone()), what: "nobody enqueued it".into() });
    }
    Ok((figures, problems))
}

/// What is wrong with how an outcome was told: at least once where somebody is to be told, always the same, and the truth.
fn told(id: &str, is_told: bool, history: &History, requester: &Requester) -> Vec<String> {
    let heard = requester.heard(id, "receipt");
    let (delivered, failed) = (history.count(id, "receipt_delivered"), history.count(id, "receipt_failed"));
    let mut out = Vec::new();
    if (delivered, failed) != (usize::from(is_told), 0) {
        out.push(format!("its receipt was delivered {delivered} times and given up {failed} times"));
    }
    if heard.is_empty() == is_told {
        out.push(format!("its requester heard of it {} times", heard.len()));
    }
    let job = JobId::new(id).unwrap();
    let events = history.jobs.get(id).map(|h| h.events.as_slice()).unwrap_or_default();
    let decided = events.iter().find(|e| e.kind == "finished").map(|e| &e.data["receipt"]);
    for h in &heard {
        let is_same = h.id == receipt_id(&job, 1, "finished") && h.body == heard[0].body;
        if !is_same || Some(&h.json()) != decided {
            out.push(format!("its requester heard {:?} and the journal has {decided:?}", h.json()));
        }
    }
    out
}

fn of_name(status: &str) -> Option<Status> {
    Status::ALL.into_iter().find(|s| s.name() == status)
}
