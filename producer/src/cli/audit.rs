//! `surety audit`: the promises, proved from the journal.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use surety_common::{
    broker::{
        Broker,
        barrier::Barrier,
        follow::{Follow, From, News, Part},
    },
    clock::{format_span, parse_span},
    config::Settings,
    domain::{JobId, deadline::millis},
    history::{
        Audit, Finding, Tally,
        live::{Doubt, Live, Stored},
    },
    loss::foreign_barriers,
    store::Store,
    wire::event::Event,
};
use tokio::time::Instant;

use super::{
    Context,
    events::{OfJob, PAGE_CAP},
    failure::Failure,
    watch::lost,
};
use crate::render::note;

/// Prove from the journal that every promise was kept
///
/// Folds the whole journal by job and revision: no revision is missing or there twice with different content, every event
/// may follow the one before it, each generation has one outcome and nothing after it but its receipt, epochs never fall.
/// Exit code 1, with the first job that shows otherwise and its events; 0 when there is none.
///
/// It covers all queues, for a replay may move a job. Where the oldest part of the journal was dropped by age, a job may
/// begin with any event. While the system works, what is on its way to the journal is waited for, as long as a relay may take.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  surety audit\n  surety audit --running --json")]
pub(super) struct AuditArgs {
    /// Read only what was stored in this last span, by the clock of NATS: quicker, and blind for jobs that began before
    #[arg(long, value_name = "DURATION", value_parser = parse_span)]
    since: Option<Duration>,
    /// Compare with Redis, too: what runs has a live worker, and the journal has every transition of every record
    #[arg(long)]
    running: bool,
}

/// Broken jobs that are named beside the first one.
const NAMED: usize = 20;
/// Records of one read.
const SLICE: usize = 500;
/// A journal that is silent for this long has no more news for now.
const SILENCE: Duration = Duration::from_millis(300);

/// A job that breaks a promise.
#[derive(Serialize, schemars::JsonSchema)]
struct Broken<'a> {
    job: &'a str,
    /// The rule that it breaks.
    what: &'a str,
}

/// The first job that breaks one.
#[derive(Serialize, schemars::JsonSchema)]
struct First<'a> {
    job: &'a str,
    /// The rule that it breaks.
    what: &'a str,
    /// All its events in the journal, by revision; copies, too.
    events: Vec<Event>,
    /// There are more than 500; these are the last.
    is_cut: bool,
}

#[derive(Serialize, schemars::JsonSchema)]
pub(super) struct Answer<'a> {
    /// No promise is broken.
    is_clean: bool,
    jobs: u64,
    /// Transitions, each once.
    events: u64,
    /// Events that were there before: relayed once more than needed.
    copies: u64,
    /// Jobs without an outcome.
    open: u64,
    done: u64,
    failed: u64,
    cancelled: u64,
    timed_out: u64,
    /// Jobs whose record was deleted after their end.
    deleted: u64,
    /// Jobs whose first events are not in the journal any more.
    cut: u64,
    /// Messages that held something unreadable.
    unreadable: u64,
    /// Messages that do not count: they came after the end of their data set.
    ignored: u64,
    /// Barriers of the journal that name another data set than Redis has; they were compared where messages are ignored.
    hidden_by: Vec<Barrier>,
    /// Records that were compared, with --running.
    #[serde(skip_serializing_if = "Option::is_none")]
    compared: Option<u64>,
    /// Jobs that break a promise.
    broken: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<First<'a>>,
    /// The next of them, at most 20.
    others: Vec<Broken<'a>>,
}

impl<'a> Answer<'a> {
    fn new(r: &'a Reading, t: &Tally, compared: Option<u64>, first: Option<First<'a>>) -> Self {
        let named = r.audit.findings().iter().skip(1).take(NAMED);
        Self {
            // What could not be read may hide anything.
            is_clean: t.broken == 0 && r.unreadable == 0 && r.hidden_by.as_ref().is_ok_and(Vec::is_empty),
            jobs: t.jobs,
            events: t.events,
            copies: t.copies,
            open: t.open,
            done: t.done,
            failed: t.failed,
            cancelled: t.cancelled,
            timed_out: t.timed_out,
            deleted: t.deleted,
            cut: t.cut,
            unreadable: r.unreadable,
            ignored: r.ignored,
            hidden_by: r.hidden_by.clone().unwrap_or_default(),
            compared,
            broken: t.broken,
            first,
            others: named.map(|f| Broken { job: &f.job, what: &f.what }).collect(),
        }
    }

    fn text(&self) -> String {
        let mut parts = vec![format!("{} jobs, {} events", self.jobs, self.events)];
        let counts = [
            ("done", self.done),
            ("failed", self.failed),
            ("timed out", self.timed_out),
            ("cancelled", self.cancelled),
            ("open", self.open),
            ("broken", self.broken),
            ("messages ignored", self.ignored),
        ];
        parts.extend(counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")));
        if let Some(n) = self.compared {
            parts.push(format!("{n} records compared"));
        }
        let verdict = if self.is_clean {
            "clean: every transition once, one outcome for each generation"
        } else {
            "NOT clean"
        };
        format!("{verdict}\n{}", parts.join(", "))
    }
}

/// The journal as it is read.
struct Reading {
    audit: Audit,
    unreadable: u64,
    ignored: u64,
    /// Barriers that the store does not know; the error says why that is not known.
    hidden_by: Result<Vec<Barrier>, String>,
    /// What came after the end that the first reading met.
    tail: Follow,
}

impl Reading {
    async fn start(broker: &Broker, since: Option<Duration>) -> Result<Self, Failure> {
        let kept = broker.journal_kept().await?;
        let from_ms = match since {
            None => 0,
            Some(span) => broker.now_ms().await?.saturating_sub(millis(span)).max(1),
        };
        let mut audit = Audit::new(kept.is_cut() || since.is_some());
        let mut end = kept.last;
        let passed = broker
            .read_journal_placed(from_ms, |sequence, e| {
                end = end.max(sequence);
                audit.take(&e);
            })
            .await?;
        // The head may have been dropped under the reading.
        if broker.journal_kept().await?.is_cut() {
            audit.cut();
        }
        let tail = broker.follow(&[], Part::All, From::Sequence(end + 1)).await?;
        Ok(Self {
            audit,
            unreadable: passed.unreadable,
            ignored: passed.ignored,
            hidden_by: Ok(Vec::new()),
            tail,
        })
    }

    /// Reads on until the journal is silent for a moment, at most until then.
    async fn go_on(&mut self, deadline: Instant) -> Result<(), Failure> {
        loop {
            match tokio::time::timeout(SILENCE, self.tail.news()).await {
                Err(_) => return Ok(()),
                Ok(News::Events(events)) => events.iter().for_each(|e| self.audit.take(e)),
                Ok(News::Back) => {}
                Ok(News::Lost(e)) => note(&lost(&e)),
            }
            if Instant::now() >= deadline {
                return Ok(());
            }
        }
    }

    /// Waits for what is on its way.
    async fn close_gaps(&mut self, deadline: Instant) -> Result<(), Failure> {
        while self.audit.gaps() > 0 && Instant::now() < deadline {
            self.go_on(deadline).await?;
        }
        Ok(())
    }
}

/// How long something may be under way: a dead worker is found, what it left is relayed.
fn patience(s: &Settings) -> Duration {
    s.lease.ttl + s.reaper.relay_age + 5 * s.reaper.tick + s.connection.call_timeout
}

/// The comparison of the journal with the store.
struct Comparison<'a> {
    store: &'a Store,
    compared: u64,
    doubts: Vec<(JobId, Doubt)>,
}

impl Comparison<'_> {
    /// The first look, at every job that the journal or a session knows.
    async fn look(&mut self, audit: &Audit) -> Result<(), Failure> {
        let ids = audit.all_told().filter(|(_, t)| !t.is_deleted).filter_map(|(id, _)| JobId::new(id).ok());
        let ids: Vec<JobId> = ids.collect();
        let live = Live::of(&self.store.fleet().await?);
        for slice in ids.chunks(SLICE) {
            let found = self.ask(audit, &live, slice).await?;
            self.doubts.extend(found);
        }
        self.compared = ids.len() as u64;
        for (job, doubt) in live.unknown() {
            if let Ok(job) = JobId::new(job) {
                self.doubts.push((job, doubt.clone()));
            }
        }
        Ok(())
    }

    /// Another look, at what was doubtful.
    async fn look_again(&mut self, audit: &Audit) -> Result<(), Failure> {
        let ids: Vec<JobId> = self.doubts.iter().map(|(id, _)| id.clone()).collect();
        let live = Live::of(&self.store.fleet().await?);
        let mut now = Vec::new();
        for slice in ids.chunks(SLICE) {
            now.extend(self.ask(audit, &live, slice).await?);
        }
        self.doubts.retain(|(id, d)| {
            let same = |(job, x): &&(JobId, Doubt)| job == id && x == d;
            let held = live.unknown().iter().find(|(job, x)| job == id.as_str() && x == d);
            let now = now.iter().find(same).map(|(_, x)| x).or(held.map(|(_, x)| x));
            d.lasts(audit.told(id.as_str()), now)
        });
        Ok(())
    }

    async fn ask(&self, audit: &Audit, live: &Live, ids: &[JobId]) -> Result<Vec<(JobId, Doubt)>, Failure> {
        let records = self.store.records_of(ids).await?;
        let doubts = ids.iter().zip(records).filter_map(|(id, record)| {
            // One that cannot be read is as good as none: what the journal says of it is held by nobody.
            let record = record.record();
            let stored = record.as_ref().map(Stored::from);
            Some((id.clone(), live.doubt(id.as_str(), audit.told(id.as_str()), stored.as_ref())?))
        });
        Ok(doubts.collect())
    }
}

/// Compares until nothing is doubtful any more, or it has been for too long; gives the number of records.
async fn compare(r: &mut Reading, store: &Store, patience: Duration) -> Result<u64, Failure> {
    let mut c = Comparison { store, compared: 0, doubts: Vec::new() };
    c.look(&r.audit).await?;
    let deadline = Instant::now() + patience;
    while !c.doubts.is_empty() && Instant::now() < deadline {
        r.go_on(deadline).await?;
        c.look_again(&r.audit).await?;
    }
    for (id, doubt) in &c.doubts {
        r.audit.add(id.as_str(), doubt.to_string());
    }
    Ok(c.compared)
}

/// The last events of a job, with copies.
async fn events_of(broker: &Broker, job: &str) -> Result<(Vec<Event>, bool), Failure> {
    let mut all = Vec::new();
    let mut is_cut = false;
    broker
        .read_journal(None, 0, |e| {
            if e.job == job {
                all.push(e);
            }
            // Kept small while it grows: what matters is near the end of a job that reported for hours.
            if all.len() > 2 * PAGE_CAP {
                all.drain(..PAGE_CAP);
                is_cut = true;
            }
        })
        .await?;
    all.sort_by_key(|e| e.rev);
    if all.len() > PAGE_CAP {
        all.drain(..all.len() - PAGE_CAP);
        is_cut = true;
    }
    Ok((all, is_cut))
}

pub(super) async fn run(cx: &Context, args: AuditArgs) -> Result<(), Failure> {
    let (broker, store) = if args.running {
        let c = cx.look().await?;
        (c.broker, Some(c.store))
    } else {
        (cx.client().await?.broker().clone(), None)
    };
    let patience = patience(&cx.settings);
    let mut r = Reading::start(&broker, args.since).await?;
    if r.audit.gaps() > 0 {
        cx.screen.note(&format!(
            "{} jobs have an event that came early; waiting up to {} for those before it",
            r.audit.gaps(),
            format_span(patience)
        ));
        r.close_gaps(Instant::now() + patience).await?;
    }
    let compared = match &store {
        Some(store) => Some(compare(&mut r, store, patience).await?),
        None => None,
    };
    if r.ignored > 0 {
        r.hidden_by = hidden_by(cx, &broker, store.as_ref()).await;
    }
    r.audit.end();
    show(cx, &broker, &r, compared).await
}

/// The barriers of the journal that hide what the store of today writes. `store`: where it is connected already.
async fn hidden_by(cx: &Context, broker: &Broker, store: Option<&Store>) -> Result<Vec<Barrier>, String> {
    let store = match store {
        Some(store) => store.clone(),
        None => cx.look().await.map_err(|e| e.to_string())?.store,
    };
    foreign_barriers(&store, broker).await.map_err(|e| e.to_string())
}

/// What else may hide a broken promise: what was not read, and what does not count.
fn unread(r: &Reading) -> Vec<String> {
    let mut out = Vec::new();
    if r.unreadable > 0 {
        out.push(format!(
            "{} journal messages held something unreadable (see the log), so nobody can say what happened in them",
            r.unreadable
        ));
    }
    match &r.hidden_by {
        Ok(barriers) => out.extend(barriers.iter().map(|b| {
            format!(
                "journal message {} is a barrier of partition {} and names a data set that Redis does not have: what came after it \
                 is not read ({} messages are passed over in all). Look at it, and remove it from the stream if it was forged",
                b.sequence, b.partition, r.ignored
            )
        })),
        Err(e) => out.push(format!(
            "{} journal messages came after the end of their data set; whether that end is true could not be asked: {e}",
            r.ignored
        )),
    }
    out
}

async fn show(cx: &Context, broker: &Broker, r: &Reading, compared: Option<u64>) -> Result<(), Failure> {
    let tally = r.audit.tally();
    let first: Option<&Finding> = r.audit.findings().first();
    let told = match first {
        Some(f) => {
            let (events, is_cut) = events_of(broker, &f.job).await?;
            Some(First { job: &f.job, what: &f.what, events, is_cut })
        }
        None => None,
    };
    let answer = Answer::new(r, &tally, compared, told);
    cx.screen.show(&answer, || answer.text())?;
    let unread = unread(r);
    let Some(first) = &answer.first else {
        return if unread.is_empty() { Ok(()) } else { Err(Failure::no(unread.join("; "))) };
    };
    unread.iter().for_each(|what| cx.screen.note(what));
    if !cx.screen.is_json {
        cx.screen.line(&format!("\njob {}: {}\n", first.job, first.what))?;
        cx.screen.table(&answer, &first.events.iter().map(OfJob).collect::<Vec<_>>())?;
        for other in &answer.others {
            cx.screen.line(&format!("also job {}: {}", other.job, other.what))?;
        }
    }
    Err(Failure::no(format!(
        "{} of {} jobs break a promise, first {}: {}",
        tally.broken, tally.jobs, first.job, first.what
    )))
}
